"""A saved model opens, and trains on, in every TensorFlow from 2.0 and every Keras from 3.3 on.
Without this, a file opens only in a Keras like the one that saved it, and cannot be trained further.

Keras describes a layer in the file like this:
    {"module": "keras.layers", "class_name": "ReLU", "config": {"dtype": {"class_name": "DTypePolicy", ...}, ...}, ...}
Here it becomes what Keras 2 would write, and Keras 3 can still read:
    {"class_name": "ReLU", "config": {"dtype": "float32", ...}}"""
import inspect
import io
import json

import h5py
import keras

keras2_names = {  # what TensorFlow 2.0 calls a class or a setting; Keras 3 understands these names, too
    "Functional": "Model",
    "HeNormal": "he_normal",
    "HeUniform": "he_uniform",
    "LecunNormal": "lecun_normal",
    "LecunUniform": "lecun_uniform",
    "Orthogonal": "orthogonal",
    "L1": "L1L2",
    "L2": "L1L2",
    "batch_shape": "batch_input_shape",
}
defaults = [  # settings that have default values, which no signature shows
    ("data_format", "channels_last"),
    ("ragged", False),
    ("rms_scaling", False),
    ("sparse", False),
]


def write(source, target):
    """Copy the HDF5 model in `source` to `target`, two Paths, without the optimizer's state, which Keras cannot read
    again. The network is described in words that Keras 2 (TensorFlow 2.0 to 2.15) and Keras 3 both know; if there are
    none, in Keras 3's. Raises what Keras raises if it cannot open the new file."""
    with h5py.File(source) as file:
        model = outputs_in_lists(without_defaults(json.loads(file.attrs["model_config"])))
        settings = training_settings(json.loads(file.attrs["training_config"]))
    try:  # words that both know
        shared = in_keras2_words(model)
        write_described(source, target, shared, settings)
        if in_keras2_words(as_understood(target)) == shared:
            return
    except OSError:  # the disk is full
        raise
    except Exception:  # Keras raises many kinds; Keras 2 cannot describe a layer with two arguments, for example
        pass
    write_described(source, target, model, settings)
    as_understood(target)


def as_understood(path):
    """Return the description of the model in a file, as this Keras understands it, without defaults."""
    model = keras.models.load_model(path, compile=False)
    return outputs_in_lists(without_defaults(json.loads(model.to_json())))


def outputs_in_lists(model):
    """Return the description of a model with its inputs and outputs in lists; Keras 3.3 wants a list of one, too."""
    for key in "input_layers", "output_layers":
        layers = model["config"].get(key)
        if layers and isinstance(layers[0], str):
            model["config"][key] = [layers]
    return model


def write_described(source, target, model, settings):
    """Write the weights in the file `source` to `target`, with this description of the model and of its training."""
    content = io.BytesIO()  # on a full disk, HDF5 would crash
    with h5py.File(source) as old, h5py.File(content, "w") as new:
        old.copy("model_weights", new)
        for key in "backend", "keras_version":
            new.attrs[key] = old.attrs[key]
        new.attrs["model_config"] = json.dumps(model).encode()  # TensorFlow 2.0 wants bytes
        new.attrs["training_config"] = json.dumps(settings).encode()
    target.write_bytes(content.getbuffer())


def training_settings(training):
    """Return Keras 3's description of loss, metrics and optimizer in words that Keras 2 understands, too."""
    optimizer = in_keras2_words(without_defaults({"module": "keras.optimizers", **training["optimizer_config"]}))
    if isinstance(optimizer["config"].get("learning_rate"), dict):
        optimizer["config"]["learning_rate"] = 0.001  # Keras cannot read a schedule again
    loss = training["loss"]
    kind = loss
    if isinstance(loss, dict):  # else it is a name
        loss = in_keras2_words(without_defaults({"module": "keras.losses", **loss}))
        kind = loss["class_name"]
    metrics = in_keras2_words(without_defaults(training["metrics"] or []))
    if kind in ("sparse_categorical_crossentropy", "SparseCategoricalCrossentropy"):
        # by "accuracy" in a file, Keras 2 understands another metric
        accuracy = {"class_name": "SparseCategoricalAccuracy", "config": {"name": "accuracy"}}
        metrics = [accuracy if metric == "accuracy" else metric for metric in metrics]
    return {
        "loss": loss,
        "metrics": metrics,
        "optimizer_config": optimizer,
        "loss_weights": None,  # TensorFlow 2.0 asks for these three
        "weighted_metrics": None,
        "sample_weight_mode": None,
    }


def without_defaults(description):
    """Return Keras 3's description of a model, or of a part of it, without the settings that have their default values:
    nearly all settings that an older Keras does not know, and refuses, are among them."""
    if isinstance(description, list):
        return [without_defaults(part) for part in description]
    if not isinstance(description, dict):
        return description
    if not isinstance(description.get("config"), dict):
        return {key: without_defaults(part) for key, part in description.items()}
    module = (description.get("module") or "keras.layers").split(".")[-1]
    made_by = getattr(getattr(keras, module, None), description["class_name"], None)
    known = {}
    # L1L2, as Keras 2 calls L1 and L2, has other defaults; and Keras wants to read all settings of a Rescaling
    if made_by and description["class_name"] not in ("L1", "L2", "Rescaling"):
        known = inspect.signature(made_by).parameters
    config = {}
    for key, value in description["config"].items():
        is_default = key in known and value == known[key].default
        if is_default or (key, value) in defaults:
            continue
        config[key] = without_defaults(value)
    return {**description, "config": config}


def in_keras2_words(description):
    """Return a description in Keras 3's words, or a part of one, in words that both understand. Raises ValueError if
    there are none."""
    if isinstance(description, list):
        return [in_keras2_words(part) for part in description]
    if not isinstance(description, dict):
        return description
    if "kwargs" in description:
        return call_in_keras2_words(description)
    if not isinstance(description.get("config"), dict):
        return description
    if description["class_name"] == "DTypePolicy":
        return description["config"]["name"]
    for layer in description["config"].get("layers", []):
        only_sequential = "output_layers" not in description["config"] and "output_layers" not in layer["config"]
        if "layers" in layer["config"] and not only_sequential:
            raise ValueError("Keras 2 counts the calls of a model inside another one differently")
    config = {}
    for key, value in description["config"].items():
        if value == "hard_sigmoid":
            raise ValueError("Keras 2 has another function of this name")
        config[keras2_names.get(key, key)] = in_keras2_words(value)
    if description["class_name"] == "LeakyReLU" and "negative_slope" in config:
        config["alpha"] = config.pop("negative_slope")
    new = {"class_name": keras2_names.get(description["class_name"], description["class_name"]), "config": config}
    for key in "name", "inbound_nodes":  # only the layers of a functional model have them
        if key in description:
            new[key] = in_keras2_words(description[key])
    return new


def call_in_keras2_words(description):
    """Return what in_keras2_words() does for the call of a layer in a functional model: its inputs, each with the
    settings of the call."""
    (inputs,) = description["args"]
    if not isinstance(inputs, list):
        inputs = [inputs]
    settings = {key: value for key, value in description["kwargs"].items() if value is not None}
    return [[*part["config"]["keras_history"], settings] for part in inputs]
