"""Models that people bring, from any TensorFlow since 2.0, open here, or the reason is given.
Without this, the tutorial's own models do not open, and a file of another kind ends in a traceback."""
import inspect
import json
import shutil
import tempfile
from pathlib import Path

import h5py
import keras

from support.messages import UserError, one_line


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
                        "If the file is incomplete, make a new one: python train.py") from error
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=gives_scores(model))
    model.compile(loss=loss, metrics=["accuracy"])
    return model


def gives_scores(model):
    """Return whether a model ends without a softmax, so that its outputs are scores (logits), not probabilities."""
    last = model.layers[-1]
    while isinstance(last, keras.Model):
        last = last.layers[-1]
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
        version = str(file.attrs.get("keras_version", ""))
    if version.startswith("2") and '"hard_sigmoid"' in description:
        raise UserError(f"{path.absolute()} uses the hard_sigmoid of Keras 2,\n"
                        "and Keras 3 has another function of this name. Open it with TensorFlow 2.15 or earlier.")
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(shutil.copy(path, Path(folder, "model.h5")))
        copy.chmod(0o600)  # the file may be read-only
        with h5py.File(copy, "r+") as file:
            file.attrs["model_config"] = json.dumps(in_keras3_words(json.loads(description)))
        return keras.models.load_model(copy, compile=False)


def in_keras3_words(description):
    """Return Keras 2's description of a model, or of a layer, changed where Keras 3 misunderstands it."""
    config = description["config"]
    if description["class_name"] == "Sequential":
        first = config["layers"][0]
        if first["class_name"] != "InputLayer" and "batch_input_shape" in first["config"]:
            shape = {"batch_input_shape": first["config"]["batch_input_shape"]}
            config["layers"].insert(0, {"class_name": "InputLayer", "config": shape})
    if description["class_name"] != "InputLayer":
        config.pop("batch_input_shape", None)
    if isinstance(config.get("dtype"), dict):  # a mixed precision
        config["dtype"] = config["dtype"]["config"]["name"]
    for key in "input_layers", "output_layers":
        if len(config.get(key, [])) == 1:  # inside another model, Keras 3 would make a list of one output
            config[key] = config[key][0]
    if description["class_name"] in ("SeparableConv2D", "DepthwiseConv2D", "Conv2DTranspose", "SpatialDropout2D"):
        accepted = set(inspect.signature(getattr(keras.layers, description["class_name"])).parameters)
        if "kwargs" in accepted:
            accepted |= {"name", "trainable", "dtype"}
        for key in config.keys() - accepted:
            del config[key]  # Keras 2 writes down what these layers do not take
    for layer in config.get("layers", []):
        in_keras3_words(layer)
    return description


def check(model, categories):
    """Raise UserError if the model is not one from images (batch, 32, 32, 3) to an output for each category."""
    if model.input_shape != (None, 32, 32, 3) or model.output_shape != (None, len(categories)):
        raise UserError(f"This model does not classify 32x32 colour images into {len(categories)} classes:\n"
                        f"its input is {model.input_shape}, its output {model.output_shape}.")
