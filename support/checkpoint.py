"""An interrupted run resumes after its last finished epoch and ends with the same model.
Without it, Ctrl-C, a crash or a reboot in the last epoch costs the whole run."""
import hashlib
import io
import json

import keras
import numpy as np

from support.files import keep_earlier_run, write_atomically
from support.messages import UserError, stop


class Checkpoint(keras.callbacks.Callback):
    """Save the whole state of training at `path`, *.npz, after every epoch, and resume from it. It is one file, so that
    a kill can never separate its parts; keras.callbacks.BackupAndRestore has two, without options and history. The
    checkpoint before is kept in case this one gets corrupt. With `restart`, both are discarded."""

    def __init__(self, path, restart=False):
        super().__init__()
        self.path, self.previous = path, path.with_name("previous-" + path.name)
        self.options = {}  # of the run; what must not change when it resumes
        self.history, self.values = [], []  # of each epoch, a dict of its metrics; of each variable, its array
        self.found = [file for file in (self.path, self.previous) if file.exists()]  # signs of an unfinished run
        for file in [] if restart else self.found:
            try:
                with file.open("rb") as opened, np.load(opened) as saved:  # NumPy alone would leave a corrupt file open
                    arrays = dict(saved)
                self.options, self.history = (json.loads(str(arrays.pop(key))) for key in ("options", "history"))
                self.values = [arrays[f"arr_{index}"] for index in range(len(arrays))]
                break
            except Exception as error:  # zipfile, json and NumPy raise many kinds for a corrupt file
                aside = file.with_name("unreadable-" + file.name)
                file.replace(aside)
                print(f"The checkpoint {file} cannot be read ({type(error).__name__}); it is now {aside}")

    def restore(self, model, options, loggers):
        """Put the checkpoint, if there is one, into the compiled model; `loggers` are callbacks of `fit`.
        `options` must be those of the interrupted run, or UserError is raised."""
        network = json.dumps(model.get_config(), default=str)
        options = {**options, "network": hashlib.sha256(network.encode()).hexdigest()[:8]}
        if self.history:
            saved = dict(self.options)
            if options["recipe"] == "tutorial" and options["epochs"] > saved["epochs"]:
                saved["epochs"] = options["epochs"]  # more are fine where the learning rate does not depend on them
            other = [f"{key} {saved[key]}, not {now}" for key, now in options.items() if saved[key] != now]
            if other:
                raise UserError(f"{self.path} is of an unfinished run with {'; '.join(other)}.\n"
                                "Give the same options to resume it, --restart to discard it, or another --name.")
            print(f"Resuming after epoch {len(self.history)} of {options['epochs']}")
        self.options, self.loggers = options, loggers
        model.optimizer.build(model.trainable_variables)
        model.compute_metrics(None, np.zeros(1), np.zeros((1, model.output_shape[-1])))  # makes their variables, too:
        # with all of them there, `fit` traces the training step once, not twice, and starts a second earlier
        self.variables = model.variables + model.optimizer.variables
        for variable, value in zip(self.variables, self.values):  # a new run has no values
            variable.assign(value)

    def begin(self, model_file, curves_file, log_dir):
        """Begin a new run: keep an earlier one of this name with its date, or discard one that is unfinished."""
        if not self.found:
            keep_earlier_run(model_file, curves_file, log_dir)
        write_atomically(self.path, self.write)  # without an epoch yet: the sign that these logs are unfinished
        self.previous.unlink(missing_ok=True)

    def on_train_begin(self, logs=None):
        """Log the finished epochs anew: the logs then have each epoch once, whenever the run was killed."""
        steps = self.model.optimizer.iterations
        done = int(steps)
        for epoch, metrics in enumerate(self.history):
            steps.assign(done * (epoch + 1) // len(self.history))  # TensorBoard logs the learning rate of this step
            for logger in self.loggers:
                logger.on_epoch_end(epoch, dict(metrics))

    def on_epoch_end(self, epoch, logs=None):
        self.history.append({key: float(value) for key, value in logs.items()})
        write_atomically(self.path, self.write, self.previous if epoch else None)

    def write(self, path):
        arrays = io.BytesIO()  # on a full disk, NumPy would print a traceback of zipfile's when it writes to the file
        np.savez(arrays, *[variable.numpy() for variable in self.variables if self.history],
                 options=json.dumps(self.options), history=json.dumps(self.history))
        path.write_bytes(arrays.getbuffer())

    def delete(self):
        for file in self.previous, self.path:
            file.unlink(missing_ok=True)

    def stop(self, *_):
        """Answer Ctrl-C at once, and say how far the training is. No file is ever half written, so this is safe."""
        epochs = self.options["epochs"]
        stop(f" in epoch {min(len(self.history) + 1, epochs)} of {epochs}; the same command resumes")
