"""Model files: what is saved here opens in every TensorFlow from 2.0 on, and what people bring opens here.
Without this, a file opens only in a Keras like the one that saved it, and cannot be trained further."""
import inspect
import io
import json
import shutil
import tempfile
from pathlib import Path

import h5py
import keras

from support.messages import UserError, one_line

defaults = [  # settings that no signature shows, with their default values
    ("data_format", "channels_last"),
    ("ragged", False),
    ("rms_scaling", False),
    ("sparse", False),
]


def write_portable(source, target):
    """Write the HDF5 model in `source` to `target`, two Paths: the same weights, without the optimizer's state, which
    Keras cannot read again; described in the words that Keras 2 (TensorFlow 2.0 to 2.15) and Keras 3 share, or, if
    Keras does not understand them (some layers are new), in those of Keras 3."""
    with h5py.File(source) as file:
        model = json.loads(file.attrs["model_config"])
        training = json.loads(file.attrs["training_config"])
    optimizer = in_keras2_words({"module": "keras.optimizers", **training["optimizer_config"]})
    if isinstance(optimizer["config"].get("learning_rate"), dict):
        optimizer["config"]["learning_rate"] = 0.001  # Keras cannot read a schedule again
    loss = training["loss"]
    if isinstance(loss, dict):  # else it is a name
        loss = in_keras2_words({"module": "keras.losses", **loss})
    settings = {
        "loss": loss,
        "metrics": training["metrics"],
        "optimizer_config": optimizer,
        "loss_weights": None,  # TensorFlow 2.0 asks for these three
        "weighted_metrics": None,
        "sample_weight_mode": None,
    }
    kind = loss["class_name"] if isinstance(loss, dict) else loss
    if kind in ("sparse_categorical_crossentropy", "SparseCategoricalCrossentropy"):
        # for "accuracy", Keras 2 would choose another metric
        settings["metrics"] = [{"class_name": "SparseCategoricalAccuracy", "config": {"name": "accuracy"}}]
    for description in in_keras2_words(model), without_new_nulls(model):
        content = io.BytesIO()  # on a full disk, HDF5 would crash
        with h5py.File(source) as old, h5py.File(content, "w") as new:
            old.copy("model_weights", new)
            for key in "backend", "keras_version":
                new.attrs[key] = old.attrs[key]
            new.attrs["model_config"] = json.dumps(description).encode()  # TensorFlow 2.0 wants bytes
            new.attrs["training_config"] = json.dumps(settings).encode()
        target.write_bytes(content.getbuffer())
        if as_json(target) == as_json(source):
            return


def as_json(path):
    """Return the description of the model in a file as this Keras understands it, or None."""
    try:
        return keras.models.load_model(path, compile=False).to_json()
    except Exception:  # Keras raises many kinds
        return None


def in_keras2_words(said):
    """Return the description of a model, or a part of one, without the settings that have their default values: nearly
    all settings that an older Keras does not know are among them."""
    if isinstance(said, list):
        return [in_keras2_words(part) for part in said]
    if not isinstance(said, dict) or "config" not in said:
        return said
    if said["class_name"] == "DTypePolicy":
        return said["config"]["name"]
    module = said.get("module") or "keras.layers"
    module = getattr(keras, module.split(".")[-1], keras.layers)
    made_by = getattr(module, said["class_name"], keras.Layer)
    known = inspect.signature(made_by).parameters
    config = {}
    for key, value in said["config"].items():
        is_default = key in known and value == known[key].default
        if is_default or (key, value) in defaults:
            continue
        config["batch_input_shape" if key == "batch_shape" else key] = in_keras2_words(value)
    return {"class_name": said["class_name"], "config": config}


def without_new_nulls(said):
    """Return the description as Keras 3 has it, without three settings where they are null: Keras 3.3 to 3.14 refuse
    them."""
    if isinstance(said, list):
        return [without_new_nulls(part) for part in said]
    if not isinstance(said, dict):
        return said
    new = "input_axes", "output_axes", "quantization_config"
    return {key: without_new_nulls(part) for key, part in said.items() if part is not None or key not in new}


def find(path):
    """Raise UserError if there is no model at the Path `path`; it says what to do next."""
    if path.exists():
        return
    text = f"There is no model at {path.absolute()}.\nTrain one in a minute or two: python train.py --fast"
    others = [file for file in sorted(Path("results").glob("*.h5")) if not file.name.startswith(("draft-", "part-"))]
    if others:
        text += f"\nOr test an existing one: python test.py {others[-1]}"
    raise UserError(text)


def load_model(path):
    """Return the keras.Model in the file at `path`, compiled for `evaluate`. Keras runs no code that a file holds.
    Raises UserError if the file cannot be read, or holds such code or nothing but weights."""
    where = path.absolute()
    try:
        if h5py.is_hdf5(path):
            model = load_hdf5(path)
        else:
            model = keras.models.load_model(path, compile=False)
    except UserError:
        raise
    except Exception as error:  # whatever h5py, json or Keras make of a corrupt file
        raise UserError(f"{where} cannot be loaded as a Keras model:\n{one_line(error, 300)}\n"
                        "The file may be incomplete. To make a new one: python train.py") from error
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=gives_scores(model))
    model.compile(loss=loss, metrics=["accuracy"])
    return model


def gives_scores(model):
    """Return whether a model ends without a softmax, so that its outputs are scores (logits), not probabilities."""
    last = model.layers[-1]
    linear = keras.activations.linear
    return getattr(last, "activation", linear) is linear and not isinstance(last, keras.layers.Softmax)


def load_hdf5(path):
    """Return the model in an HDF5 file. Keras 3 misunderstands what Keras 2 says of some layers, so it gets a copy with
    another description."""
    with h5py.File(path) as file:
        if "model_config" not in file.attrs:
            raise UserError(f"{path.absolute()} holds only weights, without their network.\n"
                            "Save the whole model, with model.save() instead of model.save_weights().")
        description = file.attrs["model_config"]
    mended = in_keras3_words(json.loads(description))
    if mended == json.loads(description):
        return keras.models.load_model(path, compile=False)
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(shutil.copy(path, Path(folder, "model.h5")))
        copy.chmod(0o600)  # the file may be read-only
        with h5py.File(copy, "r+") as file:
            file.attrs["model_config"] = json.dumps(mended)
        return keras.models.load_model(copy, compile=False)


def in_keras3_words(model):
    """Return Keras 2's description of a Sequential, changed where Keras 3 misunderstands it."""
    if model["class_name"] != "Sequential":
        return model
    layers = model["config"]["layers"]
    first = layers[0]
    if first["class_name"] != "InputLayer" and "batch_input_shape" in first["config"]:  # TensorFlow 2.0 to 2.2
        shape = first["config"].pop("batch_input_shape")
        layers.insert(0, {"class_name": "InputLayer", "config": {"batch_input_shape": shape}})
    for layer in layers:
        if layer["class_name"] in ("SeparableConv2D", "DepthwiseConv2D", "Conv2DTranspose"):
            known = inspect.signature(getattr(keras.layers, layer["class_name"])).parameters
            for key in layer["config"].keys() - known.keys() - {"name", "trainable", "dtype"}:
                del layer["config"][key]  # Keras 2 writes down what these layers do not take
    return model


def check(model, categories):
    """Raise UserError if the model is not one from images (batch, 32, 32, 3) to an output for each category."""
    if model.input_shape != (None, 32, 32, 3) or model.output_shape != (None, len(categories)):
        raise UserError(f"This model does not classify 32x32 colour images into {len(categories)} classes:\n"
                        f"its input is {model.input_shape}, its output {model.output_shape}.")
