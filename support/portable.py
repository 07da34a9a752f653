"""A saved model opens, and trains on, in TensorFlow from 2.0 and in Keras from 3.3 on.
Without this, a file opens only in a Keras like the one that saved it, and cannot be trained further.

Keras writes down every setting of a layer. An older Keras refuses those that it does not know. Nearly all of them have
their default values, so here each setting is left out that makes no difference. Of those of the first convolution,
{"name": "conv2d", "filters": 32, "kernel_size": [3, 3], "padding": "same"} remains, which every Keras knows."""
import contextlib
import copy
import io
import json
from pathlib import Path

import h5py
import keras

from support import files
from support.commands import beside, quoted
from support.errors import one_line


@contextlib.contextmanager
def saving(model, path):
    """Give `with` a path to save the model to; then put that file at `path`, in a form that other versions open, too.
    Raises errors.UserError on a full disk."""
    path = Path(path)
    with files.replacing(path) as hidden:
        # on a full disk, HDF5 would crash; so see if it has room for each weight and two values of Adam, of four bytes
        hidden.write_bytes(bytes(3 * 4 * model.count_params() + 1_000_000))
        hidden.unlink()
        yield hidden
        if h5py.is_hdf5(hidden):
            rewrite(model, hidden)
    if not path.exists():  # a learner's own line has saved the model somewhere else
        return
    print(f"The model is in {path}\n"
          f"Next: python {beside('test.py')} {quoted(path)}\n"
          "and:  tensorboard --logdir=logs")


def rewrite(model, path):
    """Replace the description of the model in the HDF5 file at `path`, and leave out the state of the optimizer, which
    Keras cannot read again. Say so if Keras cannot open the file."""
    content = io.BytesIO()  # on a full disk, HDF5 would crash
    with h5py.File(path) as old, h5py.File(content, "w") as new:
        old.copy("model_weights", new)
        for key in "backend", "keras_version":
            new.attrs[key] = old.attrs[key]
        network = describe_network(model) or json.loads(old.attrs["model_config"])
        new.attrs["model_config"] = json.dumps(network).encode()  # TensorFlow 2.0 wants bytes
        if "training_config" in old.attrs:  # it is not if the model was saved without its optimizer
            training = describe_training(model, json.loads(old.attrs["training_config"]))
            new.attrs["training_config"] = json.dumps(training).encode()
    path.write_bytes(content.getbuffer())
    try:
        keras.models.load_model(path, compile=False)
    except Exception as error:  # Keras raises many kinds
        print(f"Keras cannot open this network again from a .h5 file: {one_line(error, 100)}\n"
              "Its weights are saved. To save the network, too: if it has a layer class of your own, write\n"
              "@keras.saving.register_keras_serializable() above it; if it has a Lambda, make that such a class;\n"
              "in other cases, replace .h5 by .keras at the end of train.py.")


def describe_network(model):
    """Return the description of a Sequential model in words that mean the same in Keras 2 and Keras 3; None if there
    is none."""
    if not isinstance(model, keras.Sequential):
        return None
    name = model.get_config()["layers"][0]["config"]["name"]
    input_layer = {"class_name": "InputLayer", "config": {"name": name, "batch_input_shape": model.input_shape}}
    layers = [describe(layer) for layer in model.layers]
    config = {"name": model.name, "layers": [input_layer, *layers]}
    if "hard_sigmoid" in json.dumps(config, default=str):  # it is another function in Keras 2
        return None
    if makes_the_same(model, config):
        return {"class_name": "Sequential", "config": config}
    return None


def describe_training(model, settings):
    """Return the description of the loss, the metrics and the optimizer in words that Keras 2 and Keras 3 know;
    `settings` is that of Keras 3."""
    loss = settings["loss"]
    kind = loss
    if isinstance(model.loss, keras.Loss):
        loss = describe(model.loss)
        kind = loss["class_name"]
    metrics = settings["metrics"] or []
    weighted = settings["weighted_metrics"] or []
    if kind in ("sparse_categorical_crossentropy", "SparseCategoricalCrossentropy"):
        # "accuracy" in a file is another metric in Keras 2
        accuracy = {"class_name": "SparseCategoricalAccuracy", "config": {"name": "accuracy"}}
        metrics = [accuracy if metric == "accuracy" else metric for metric in metrics]
        weighted = [accuracy if metric == "accuracy" else metric for metric in weighted]
    return {
        "loss": loss,
        "metrics": metrics,
        "optimizer_config": describe(model.optimizer),
        "loss_weights": settings["loss_weights"],  # TensorFlow 2.0 asks for these three
        "weighted_metrics": weighted or None,
        "sample_weight_mode": None,
    }


def describe(part):
    """Return the description of a layer, a loss or an optimizer without each setting that makes no difference: try
    without one after the other, and leave it out if the same part results."""
    config = part.get_config()
    for key, value in part.get_config().items():
        without = {other: config[other] for other in config if other != key}
        if makes_the_same(part, without):
            config = without
        elif isinstance(value, dict) and "class_name" in value:  # an initializer, for example
            with contextlib.suppress(Exception):  # a class of the learner's own may have no description
                shorter = {**config, key: describe(keras.saving.deserialize_keras_object(value))}
                if makes_the_same(part, shorter):
                    config = shorter
    return {"class_name": type(part).__name__, "config": config}


def makes_the_same(part, config):
    """Return whether this description makes the same layer, loss, optimizer or model."""
    try:
        made = type(part).from_config(copy.deepcopy(config))  # Keras changes what it is given
    except Exception:  # of many kinds, if a setting is missing
        return False
    return made.get_config() == part.get_config()
