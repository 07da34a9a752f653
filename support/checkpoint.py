"""An interrupted run resumes after its last finished epoch. With --seed, it ends with the same model, to the byte.
Without this, Ctrl-C, a crash or a reboot in the last epoch costs the whole run."""
import hashlib
import io
import json
import re
import time
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from support import files, messages, options


class Checkpoint(keras.callbacks.Callback):
    """Save the whole state of training after every epoch, and resume from it. It is one file,
    results/NAME.checkpoint.npz, so that its parts always belong together; keras.callbacks.BackupAndRestore writes two
    files, without options and history. A checkpoint without any epoch is written before the training begins: the sign
    that the logs belong to an unfinished run.
    `args` has the options of the command line. Raises UserError if there is a checkpoint that cannot be read."""

    def __init__(self, args):
        super().__init__()
        self.args = args
        self.options = options.as_logged(args)
        self.path = Path("results", f"{args.name}.checkpoint.npz")
        self.saved = {} if args.restart or not self.path.exists() else self.read()
        self.history = self.saved.get("history", [])  # for each finished epoch, a dict of its metrics
        self.initial_epoch = len(self.history)
        self.precision = self.saved.get("precision")  # its Keras policy; that of this computer may be another one
        self.fits = 0  # how often fit() has begun; only the first one is saved
        self.finished = False

    def read(self):
        """Return what was saved of the interrupted run, a dict; an empty one if no epoch was finished."""
        try:
            with self.path.open("rb") as file, np.load(file) as arrays:  # NumPy would leave a corrupt file open
                saved = json.loads(str(arrays["run"]))
                saved["values"] = [arrays[f"arr_{index}"] for index in range(len(arrays.files) - 1)]
        except Exception as error:  # zipfile, json and NumPy raise many kinds for a corrupt file
            raise messages.UserError(f"{self.path.absolute()} cannot be read ({type(error).__name__}).\n"
                                     "To discard it and begin this run again, add --restart.") from error
        return saved if saved["history"] else {}

    def begin_or_resume(self, model, ds_train, steps_per_epoch, load_data):
        """Put the interrupted run, if there is one, into the compiled model, and cut the logs back to it; otherwise,
        rename an earlier run that has this name. Return the training stream as it goes on from there.
        `load_data` is that of train.py.
        Raises UserError if the interrupted run had other options, another network, or other data."""
        model.optimizer.build(model.trainable_variables)
        self.variables = model.variables + model.optimizer.variables
        self.run = {
            "options": self.options,
            "network": fingerprint(model, self.variables),
            "images": [steps_per_epoch, checksum(load_data, self.args.batch_size)],
            "precision": model.dtype_policy.name,
            "history": self.history,
        }
        if self.saved:
            self.compare()
            for variable, value in zip(self.variables, self.saved.pop("values")):
                variable.assign(value)
            print(f"Resuming after epoch {self.initial_epoch} of {self.args.epochs}")
        if not self.path.exists():
            files.keep_earlier(self.args.name)
        if not self.saved:
            self.write()
        files.cut_back(Path("logs", self.args.name), self.initial_epoch, self.saved.get("time", 0))
        if self.saved and self.args.seed is not None:  # the order of the images is then that of an uninterrupted run
            ds_train = ds_train.skip(self.initial_epoch * steps_per_epoch)
        return ds_train

    def compare(self):
        """Raise UserError if the interrupted run had other options, another network, or other data. It may get more
        epochs or fewer, if the learning rate does not depend on their number."""
        before = self.saved["options"]
        now = self.options
        other = []
        for key in now:
            more_or_fewer = key == "epochs" and now["epochs"] >= self.initial_epoch and not now["fast"]
            if before.get(key) != now[key] and not more_or_fewer:
                other.append(f"{key.replace('_', ' ')} {before.get(key)}, not {now[key]}")
        if not other and self.saved["network"] != self.run["network"]:
            other.append("another network, optimizer or loss")
        if not other and self.saved["images"] != self.run["images"]:
            other.append("other images or labels, or another preprocess_image()")
        if other:
            raise messages.UserError(f"{self.path.absolute()} belongs to an unfinished run with {'; '.join(other)}.\n"
                                     "To resume it, use the same options; to discard it, add --restart;\n"
                                     "to keep it, choose another --name.")

    def delete(self):
        """Delete the checkpoint. It stays if the training was not finished, but interrupted, with a learner's own
        `except KeyboardInterrupt` around it."""
        if self.finished:
            self.path.unlink(missing_ok=True)

    def on_train_begin(self, logs=None):
        self.fits += 1

    def on_epoch_begin(self, epoch, logs=None):
        if self.fits == 1:
            messages.progress["where"] = f"in epoch {epoch + 1} of {self.args.epochs}"

    def on_epoch_end(self, epoch, logs=None):
        self.history.append(options.numbers(logs))
        if self.fits == 1:
            self.write()

    def on_train_end(self, logs=None):
        if self.fits == 1:
            messages.progress["where"] = f"after epoch {len(self.history)} of {self.args.epochs}"
            self.finished = True

    def write(self):
        """Save the run and, if an epoch is finished, the values of all variables, in one file."""
        self.run["time"] = time.time()  # all that was logged before it belongs to finished epochs
        values = []
        if self.history:
            values = [variable.numpy() for variable in self.variables]
        content = io.BytesIO()  # on a full disk, NumPy would print a traceback if it wrote to the file itself
        np.savez(content, *values, run=json.dumps(self.run))
        with files.replacing(self.path) as path:
            path.write_bytes(content.getbuffer())


def fingerprint(model, variables):
    """Return a text that describes the layers and how they are connected, the shapes of all variables, and what the
    model was compiled with. Keras' names, which are others in each process, are replaced by their place in the text."""
    configs = [model.get_config(), *(layer.get_config() for layer in model.layers)]
    shapes = [list(variable.shape) for variable in variables]
    compiled = {**model.get_compile_config(), "jit_compile": None}  # Keras chooses it on each computer
    text = json.dumps([configs, shapes, compiled], default=lambda value: type(value).__name__)
    places = {}

    def place(match):
        return str(places.setdefault(match[0], len(places)))
    # a name (but not that of a precision), and one in a connection, such as ["conv2d", 0, 0]
    name = r'(?<="name": )(?<!"DTypePolicy", "config": {"name": )"[^"]+"'
    return re.sub(name + r'|(?<=\[)"[^"]+"(?=, \d+, \d+\])', place, text)


def checksum(load_data, batch_size):
    """Return a checksum of the first test batch, as the model gets it; None if it differs each time, since
    preprocess_image() makes random changes."""
    ds_test = load_data(batch_size)[1]  # a new one: if it is not read to the end, its cache may lack the rest
    iterators = iter(ds_test), iter(ds_test)
    found = set()
    for iterator in iterators:
        arrays = [np.asarray(part) for part in tf.nest.flatten(next(iterator))]
        found.add(hashlib.sha256(b"".join(array.tobytes() for array in arrays)).hexdigest())
    return found.pop() if len(found) == 1 else None
