"""A model file opens here, the tutorial's own of TensorFlow 2.0 included, or the reason is given.
Without this, the tutorial's old files do not open, and a file of another kind ends in a traceback."""
import json
import math
import shutil
import tempfile
from pathlib import Path

import h5py
import keras
import numpy as np
import tensorflow as tf

from support.commands import beside, quoted
from support.errors import UserError, one_line


def load_model(path):
    """Return the keras.Model in the file at `path`, compiled for `evaluate`; its outputs are probabilities. Keras runs
    no code that a file holds, and reads no other file for it (requirements.txt leaves out the versions that do). Raises
    UserError if there is no such file, or if Keras cannot open it."""
    path = Path(path)
    if not path.exists():
        raise UserError(missing(path))
    if path.is_dir():
        raise UserError(f"{path.absolute()} is a folder, not a model.")
    try:
        if h5py.is_hdf5(path):
            model = load_hdf5(path)
        else:
            model = keras.models.load_model(path, compile=False)
        if not gives_probabilities(model):  # but scores (logits)
            model = keras.Sequential([model, keras.layers.Softmax()])
    except (MemoryError, tf.errors.ResourceExhaustedError) as error:
        raise UserError(f"{path.absolute()} cannot be loaded: "
                        "its network needs more memory than this computer has.") from error
    except Exception as error:  # whatever h5py, json or Keras make of a corrupt file
        raise UserError(f"{path.absolute()} cannot be loaded as a Keras model: {one_line(error)}\n"
                        f"If the file is incomplete, make a new one: python {beside('train.py')}") from error
    model.compile(loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def missing(path):
    """Return the message for a model that is not there; it says what to do next."""
    text = (f"There is no model at {path.absolute()}.\n"
            f"Train one in a few minutes: python {beside('train.py')} --fast")
    others = list(Path("results").glob("[!.]*.h5"))
    if others:
        newest = max(others, key=lambda other: other.stat().st_mtime)
        text += f"\nOr test an existing one: python {beside('test.py')} {quoted(newest)}"
    return text


def load_hdf5(path):
    """Return the model in an HDF5 file. A Sequential of TensorFlow 2.0 has a shape in its first layer instead of an
    input layer, which Keras 3 needs; so a copy of the file, with such a layer, is loaded."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(shutil.copyfile(path, Path(folder, "model.h5")))
        with h5py.File(copy, "r+") as file:
            if "model_config" not in file.attrs:
                raise ValueError("It holds only weights. Save the whole model, with model.save().")
            description = json.loads(file.attrs["model_config"])
            layers = description["config"]["layers"]
            shape = layers[0]["config"].get("batch_input_shape")
            if layers[0]["class_name"] != "InputLayer" and shape:
                layers.insert(0, {"class_name": "InputLayer", "config": {"batch_input_shape": shape}})
                file.attrs["model_config"] = json.dumps(description)
        return keras.models.load_model(copy, compile=False)


def gives_probabilities(model):
    """Return whether the answers of a model for two images of noise are probabilities, which are from 0 to 1, and not
    scores. Those of a softmax sum to 1, those of sigmoids do not. A model that is not for images is not tried."""
    if not isinstance(model.output_shape, tuple) or len(model.input_shape) != 4:
        return True
    size = [length or 96 for length in model.input_shape[1:]]  # of a model for images of any size
    if math.prod(size) > 100_000_000:
        raise ValueError(f"It is for images of {' x '.join(map(str, size))} values, which are too many.")
    answers = np.asarray(model(np.random.default_rng(0).random((2, *size), np.float32)))
    return answers.min() >= 0 and answers.max() <= 1
