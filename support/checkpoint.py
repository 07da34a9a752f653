"""An interrupted run resumes after its last finished epoch. With --seed, it ends with the same model, to the byte.
Without this, Ctrl-C, a crash or a reboot in the last epoch costs the whole run."""
import io
import json
import shutil
from pathlib import Path

import keras
import numpy as np

from support import files, machine, messages


class Checkpoint(keras.callbacks.Callback):
    """Save the whole state of training after every epoch, and resume from it. It is one file,
    results/NAME.checkpoint.npz, so that its parts always belong together; keras.callbacks.BackupAndRestore writes two
    files, without options and history. A checkpoint without any epoch is written before the training begins: the sign
    that the logs belong to an unfinished run.
    `args` has the options of the command line; `loggers` has the callbacks that log each epoch."""

    def __init__(self, args, loggers):
        super().__init__()
        self.loggers = loggers
        self.name = args.name
        self.restart = args.restart
        self.options = {key: value for key, value in vars(args).items() if key not in ("name", "restart")}
        self.path = Path("results", f"{args.name}.checkpoint.npz")
        self.history = []  # for each finished epoch, a dict of its metrics
        self.finished = False

    def resume(self, model, ds_train, steps_per_epoch):
        """Put the checkpoint, if there is one, into the compiled model. Return the training stream as it goes on from
        there; the number of finished epochs is `initial_epoch`. Where there is none, an earlier run with this name gets
        another name. Raises messages.UserError if the interrupted run had other options or another network."""
        self.network = describe(model)
        self.precision = model.dtype_policy.name
        model.optimizer.build(model.trainable_variables)
        self.variables = model.variables + model.optimizer.variables
        logdir = Path("logs", self.name)
        if not self.path.exists():
            model_file = files.model_file(self.name)
            files.keep_earlier(self.name, logdir, model_file.with_suffix(".png"), model_file)
        elif not self.restart:
            self.read(model)
        for part in "train", "validation":  # left by an unfinished run; on_train_begin logs its epochs again
            shutil.rmtree(logdir / part, ignore_errors=True)
        self.initial_epoch = len(self.history)
        if self.initial_epoch == 0:
            self.write()
        elif self.options["seed"] is not None:  # the order of the images is then that of an uninterrupted run
            ds_train = ds_train.skip(self.initial_epoch * steps_per_epoch)
        return ds_train

    def read(self, model):
        """Read the checkpoint. If it has finished epochs, and belongs to this run, let the model go on from there."""
        try:
            with self.path.open("rb") as file, np.load(file) as arrays:  # NumPy would leave a corrupt file open
                saved = json.loads(str(arrays["run"]))
                values = [arrays[f"arr_{index}"] for index in range(len(arrays.files) - 1)]
        except Exception as error:  # zipfile, json and NumPy raise many kinds for a corrupt file
            raise messages.UserError(f"{self.path} cannot be read ({type(error).__name__}).\n"
                                     "To discard it and begin this run again, add --restart.") from error
        if not saved["history"]:
            return
        self.compare(saved)
        self.history = saved["history"]
        self.precision = saved["precision"]  # that of this computer may be another one
        machine.set_precision(model, self.precision)
        for variable, value in zip(self.variables, values):
            variable.assign(value)
        print(f"Resuming after epoch {len(self.history)} of {self.options['epochs']}")

    def compare(self, saved):
        """Raise messages.UserError if the interrupted run had other options or another network. It may get more epochs,
        if the learning rate does not depend on their number."""
        before = saved["options"]
        now = self.options
        other = []
        for key in now:
            more_epochs = key == "epochs" and now["epochs"] > before["epochs"] and not now["fast"]
            if before.get(key) != now[key] and not more_epochs:
                other.append(f"{key.replace('_', ' ')} {before.get(key)}, not {now[key]}")
        if not other and saved["network"] != self.network:
            other.append("another network, optimizer or loss")
        if other:
            raise messages.UserError(f"{self.path} belongs to an unfinished run with {'; '.join(other)}.\n"
                                     "To resume it, use the same options; to discard it, add --restart;\n"
                                     "to keep it, choose another --name.")

    def delete(self):
        """Delete the checkpoint. It stays if the training was not finished, but interrupted, with a learner's own
        `except KeyboardInterrupt` around it."""
        if self.finished:
            self.path.unlink(missing_ok=True)

    def on_train_begin(self, logs=None):
        """Log the finished epochs again: the logs then have each epoch once, no matter when the run was killed."""
        steps = self.model.optimizer.iterations
        done = int(steps)
        for epoch, metrics in enumerate(self.history):
            steps.assign(done * (epoch + 1) // len(self.history))  # TensorBoard logs the learning rate of a step
            for logger in self.loggers:
                logger.on_epoch_end(epoch, dict(metrics))

    def on_epoch_begin(self, epoch, logs=None):
        messages.progress.update(epoch=epoch + 1, epochs=self.options["epochs"])

    def on_epoch_end(self, epoch, logs=None):
        self.history.append({key: float(value) for key, value in logs.items()})
        self.write()

    def on_train_end(self, logs=None):
        self.finished = True

    def write(self):
        """Save the run and, if an epoch is finished, the values of all variables, in one file."""
        run = {"options": self.options, "network": self.network, "precision": self.precision, "history": self.history}
        values = []
        if self.history:
            values = [variable.numpy() for variable in self.variables]
        content = io.BytesIO()  # on a full disk, NumPy would print a traceback if it wrote to the file itself
        np.savez(content, *values, run=json.dumps(run))
        with files.replacing(self.path) as path:
            path.write_bytes(content.getbuffer())


def describe(model):
    """Return the configs of the layers, and what the model was compiled with, as the checkpoint keeps them."""
    layers = [[type(layer).__name__, layer.get_config()] for layer in model.layers]
    text = json.dumps([layers, model.get_compile_config()], default=lambda value: type(value).__name__)
    return json.loads(text, object_hook=without_names)


def without_names(config):
    """Return a config without what differs between processes (Keras numbers the names) or computers (the precision)."""
    return {key: value for key, value in config.items() if key not in ("name", "dtype", "jit_compile")}
