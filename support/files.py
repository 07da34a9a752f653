"""Files: never half written, never written over an earlier run, never trusted blindly. Without it, a crash or a full
disk costs the old file as well as the new one."""
import os
import shutil
import tempfile
import time
from pathlib import Path

import h5py
import keras

from support.messages import UserError, one_line


def output_paths(name):
    """Return the Paths of the model, its curves and its logs, or raise UserError now if they cannot be written."""
    model_file, log_dir = Path("results", f"{name}.h5"), Path("logs", name)
    for folder in model_file.parent, log_dir:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=folder).close()
        except OSError as error:
            raise UserError(f"{folder} cannot be used as a folder to write to: {error.strerror}.") from error
    if model_file.is_dir():
        raise UserError(f"{model_file} is a folder, but the model is to be saved there.")
    return model_file, model_file.with_suffix(".png"), log_dir


def write_atomically(path, write, previous=None):
    """Call write(temporary path), then rename: `path` is always the whole old file or the whole new one.
    That holds after a crash and on a full disk, whose OSError is raised. `previous` is where to keep the old file."""
    part = path.with_name("part-" + path.name)
    try:
        write(part)
        with part.open("rb+") as file:
            os.fsync(file.fileno())  # without it, a power cut after the rename can leave an empty file
        for seconds in 0.1, 0.5, 2, None:
            try:
                if previous and path.exists():
                    path.replace(previous)
                part.replace(path)
                break
            except PermissionError:  # on Windows, another program may have it open for a moment, a virus scanner say
                if seconds is None:
                    raise
                time.sleep(seconds)
    except OSError as error:
        error.filename = str(path)
        raise
    finally:
        part.unlink(missing_ok=True)


def save_model(model, path):
    """Save the model as HDF5, in a form that Keras loads on any machine, however it was trained."""
    for layer in [model, *model.layers]:
        layer.dtype_policy = "float32"  # as the weights are in every case
    own_optimizer = type(model.optimizer) is not keras.optimizers.Adam
    if own_optimizer:  # without this project, Keras could not load it
        model.compile(loss="sparse_categorical_crossentropy", optimizer="adam", metrics=["accuracy"])

    def write(part):
        part.write_bytes(bytes(3 * 4 * model.count_params() + 1_000_000))  # on a full disk, HDF5 would crash
        model.save(part)
        if own_optimizer:
            with h5py.File(part, "r+") as file:  # Keras could not train on from the state of an Adam without steps
                del file["optimizer_weights"]

    write_atomically(path, write)


def load_classifier(path, num_classes):
    """Return the compiled keras.Model in the HDF5 file at `path`, from images (batch, 32, 32, 3) to num_classes.
    No code that the file may hold is run. UserError is raised if it is missing, corrupt, unsafe, or of another kind."""
    if not path.exists():
        raise UserError(f"There is no model at {path}.\nTrain one first: python train.py")
    try:
        with h5py.File(path) as file:
            unsafe = '"Lambda"' in str(file.attrs["model_config"])
        model = None if unsafe else keras.models.load_model(path, compile=False)  # in Keras' safe mode
    except Exception as error:  # whatever h5py, json or Keras make of a corrupt file
        raise UserError(f"{path} cannot be loaded as a Keras model ({one_line(error, 120)}).\n"
                        "Is it whole, and saved as HDF5? python train.py makes a new one.") from error
    if unsafe:
        raise UserError(f"{path} holds code of its own (a Lambda layer); it was refused and nothing of it was run.")
    if model.input_shape != (None, 32, 32, 3) or model.output_shape != (None, num_classes):
        raise UserError(f"{path} is not a classifier of 32x32 colour images into {num_classes} classes:\n"
                        f"its input is {model.input_shape}, its output {model.output_shape}.")
    model.compile(loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def keep_earlier_run(model_file, curves_file, log_dir):
    """Add the date to the names of an earlier run's files. The model is copied, to be there until the new one is."""
    written = [path.stat().st_mtime for path in [model_file, *log_dir.rglob("*")] if path.is_file()]
    if not written:
        return
    dated = log_dir.with_name(log_dir.name + time.strftime("-%Y%m%d-%H%M%S", time.localtime(written[0])))
    kept = [old.with_name(dated.name + old.suffix) for old in (model_file, curves_file)]
    for old, copy in zip((model_file, curves_file), kept):
        if old.exists() and not copy.exists():
            write_atomically(copy, lambda part, old=old: shutil.copy2(old, part))
    if not dated.exists():
        log_dir.rename(dated)
    model = f"{kept[0]} and " if kept[0].exists() else ""
    print(f"The earlier run is kept as {model}{dated}")
