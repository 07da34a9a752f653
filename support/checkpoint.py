"""An interrupted run resumes after its last finished epoch. With --seed, it ends with the same model, to the byte.
Without this, Ctrl-C, a crash or a reboot in the last epoch costs the whole run."""
import ast
import hashlib
import inspect
import io
import json
import re
from numbers import Real
from pathlib import Path

import keras
import numpy as np

from support import errors, files
from support.checks import class_names


class Checkpoint(keras.callbacks.Callback):
    """Save the whole state of training after every epoch, and resume from it. It is one file,
    results/NAME.checkpoint.npz, so that its parts always belong together; keras.callbacks.BackupAndRestore writes two
    files, without options and history. A checkpoint without any epoch is written before the training begins: the sign
    that the logs belong to an unfinished run.
    `args` has the options of the command line, `main` is the main function of the script. Raises errors.UserError if
    there is a checkpoint that cannot be read, or one of a run with other options or other code."""

    def __init__(self, args, main):
        super().__init__()
        self.args = args
        self.path = Path("results", f"{args.name}.checkpoint.npz")
        self.logdir = Path("logs", args.name)
        self.options = options_of(args)
        self.run = {"options": self.options, "code": code_of_script(main)}
        self.saved = {} if args.restart or not self.path.exists() else self.read()
        self.history = self.run["history"] = self.saved.get("history", [])  # a dict of metrics for each finished epoch
        self.initial_epoch = len(self.history)
        self.precision = self.saved.get("precision")  # its Keras policy; that of this computer may be another one
        self.fits = 0  # how often fit() has begun; only the first one is saved
        self.finished = False
        if self.saved:
            self.compare_options_and_code()

    def read(self):
        """Return what was saved of the interrupted run, a dict; an empty one if no epoch was finished."""
        try:
            with self.path.open("rb") as file, np.load(file) as arrays:  # NumPy would leave a corrupt file open
                saved = json.loads(str(arrays["run"]))
                saved["values"] = [arrays[f"arr_{index}"] for index in range(len(arrays.files) - 1)]
        except Exception as error:  # zipfile, json and NumPy raise many kinds for a corrupt file
            raise errors.UserError(f"{self.path.absolute()} cannot be read ({type(error).__name__}).\n"
                                   "To discard it and begin this run again, add --restart.") from error
        return saved if saved["history"] else {}

    def compare_options_and_code(self):
        """Raise UserError if the interrupted run had other options or other code. It may get more epochs or fewer,
        unless the learning rate or the images depend on their number, as with --fast or --augment."""
        before = self.saved["options"]
        now = self.options
        other = []
        more_or_fewer = now["epochs"] >= self.initial_epoch and not now["fast"] and not now["augment"]
        for key in now:
            if before.get(key) != now[key] and not (key == "epochs" and more_or_fewer):
                other.append(f"{key.replace('_', ' ')} {before.get(key)}, not {now[key]}")
        if other:
            self.refuse("; ".join(other))
        if self.saved.get("code") != self.run["code"]:
            self.refuse("different code in train.py (main(), parse_args(), epochs and comments do not count)")

    def refuse(self, other):
        """Raise UserError: the interrupted run had something other."""
        raise errors.UserError(f"{self.path.absolute()} belongs to an unfinished run with {other}.\n"
                               "To resume it, use the same options and code; to discard it, add --restart;\n"
                               "to keep it, choose another --name.")

    def begin_or_resume(self, model, ds_train, steps_per_epoch, info):
        """Put the interrupted run, if there is one, into the compiled model, and cut the logs back to it; otherwise,
        rename an earlier run that has this name. Return the training stream as it goes on from there.
        Raises UserError if the interrupted run had another number of steps, other classes (of the data set that `info`
        describes), or variables of other shapes."""
        model.optimizer.build(model.trainable_variables)
        self.variables = model.variables + model.optimizer.variables
        self.run["steps"] = steps_per_epoch
        self.run["classes"] = class_names(info)
        self.run["precision"] = model.dtype_policy.name
        if self.saved:
            if self.saved["steps"] != steps_per_epoch:
                self.refuse(f"{self.saved['steps']} steps per epoch, not {steps_per_epoch}")
            if self.saved["classes"] != self.run["classes"]:
                self.refuse("different class names")
            values = self.saved.pop("values")
            if [value.shape for value in values] != [tuple(variable.shape) for variable in self.variables]:
                self.refuse("a network of different shapes")
            for variable, value in zip(self.variables, values):
                variable.assign(value.view(variable.dtype))  # NumPy's file does not know bfloat16
            print(f"Resuming after epoch {self.initial_epoch} of {self.args.epochs}")
        if not self.path.exists():
            files.keep_earlier(self.args.name)
        if not self.saved:
            self.write()
        files.cut_back(self.logdir, self.saved.get("logs", {}))
        if self.saved and self.args.seed is not None:  # the order of the images is then that of an uninterrupted run
            ds_train = ds_train.skip(self.initial_epoch * steps_per_epoch)
        return ds_train

    def delete(self):
        """Delete the checkpoint. It stays if the training was not finished, but interrupted, with a learner's own
        `except KeyboardInterrupt` around it."""
        if self.finished or not self.fits:  # without this callback, nothing was saved
            self.path.unlink(missing_ok=True)

    def on_train_begin(self, logs=None):
        self.fits += 1

    def on_epoch_begin(self, epoch, logs=None):
        if self.fits == 1:
            errors.training["where"] = f"in epoch {epoch + 1} of {self.args.epochs}"

    def on_epoch_end(self, epoch, logs=None):
        numbers = {key: float(value) for key, value in logs.items() if isinstance(value, Real)}
        self.history.append(numbers)  # a learner's own metrics may be arrays or texts
        if self.fits == 1:
            self.write()

    def on_train_end(self, logs=None):
        if self.fits == 1:
            errors.training["where"] = f"after epoch {len(self.history)} of {self.args.epochs}"
            self.finished = True

    def write(self):
        """Save the run and, if an epoch is finished, the values of all variables, in one file."""
        self.run["logs"] = files.log_sizes(self.logdir)  # what is in them now belongs to finished epochs
        values = []
        if self.history:
            values = [variable.numpy() for variable in self.variables]
        content = io.BytesIO()  # on a full disk, NumPy would print a traceback if it wrote to the file itself
        np.savez(content, *values, run=json.dumps(self.run))
        with files.replacing(self.path) as path:
            path.write_bytes(content.getbuffer())


def options_of(args):
    """Return the options that matter for the result, a dict, as the checkpoint and TensorBoard can keep them: None, a
    Path and the like become text."""
    kept = {key: value for key, value in vars(args).items() if key not in ("name", "restart")}
    return {key: value if isinstance(value, (bool, int, float, str)) else str(value) for key, value in kept.items()}


def code_of_script(function):
    """Return a checksum of the code of the script in which this function stands: a run is this code. Not compared are
    comments and spaces; main() and parse_args(), where a callback or an option may be added; and `epochs`, which is an
    option."""
    lines, _ = inspect.findsource(inspect.unwrap(function))
    parts = [ast.unparse(part) for part in ast.parse("".join(lines)).body]
    kept = [part for part in parts if not re.match(r"(@.+\n)*def (main|parse_args)\(", part)]
    with_epochs = [part for part in kept if re.search(r"\bepochs\b", part)]
    if len(with_epochs) == 1:  # else it matters, as for a schedule of the learning rate
        kept.remove(with_epochs[0])
    return hashlib.sha256("\n".join(kept).encode()).hexdigest()
