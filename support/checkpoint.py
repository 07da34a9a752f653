"""An interrupted run resumes after its last finished epoch. With --seed, it ends with the same model, to the byte.
Without this, Ctrl-C, a crash or a reboot in the last epoch costs the whole run."""
import hashlib
import io
import json
import shutil
from pathlib import Path

import keras
import numpy as np

from support import files, machine, messages, process, recipe


class Checkpoint(keras.callbacks.Callback):
    """Save the whole state of training after every epoch, and resume from it. It is one file,
    results/NAME.checkpoint.npz, so that its parts always belong together; keras.callbacks.BackupAndRestore writes two,
    without options and history. The previous checkpoint is kept in case this one is damaged. A checkpoint without any
    epoch is written when the training begins: the sign that the logs belong to an unfinished run.
    `args` has the options of the command line; `loggers` has the callbacks that came before this one."""

    def __init__(self, args, loggers):
        super().__init__()
        self.loggers = list(loggers)
        self.options = options(args)
        self.name = args.name
        self.restart = args.restart
        self.path, self.previous = files.checkpoint_files(args.name)
        self.history = []  # for each finished epoch, a dict of its metrics

    def resume(self, model):
        """Put the checkpoint, if there is one, into the compiled model. Return the number of finished epochs.
        Where nothing is resumed, an earlier run with this name is kept under another one.
        Raises messages.UserError if the interrupted run had other options or another network."""
        self.options["network"] = fingerprint(model)
        self.options["precision"] = model.dtype_policy.name
        model.optimizer.build(model.trainable_variables)
        self.variables = model.variables + model.optimizer.variables
        unfinished = self.path.exists() or self.previous.exists()
        saved = None if self.restart else self.read()
        if saved and saved["history"]:
            self.check(saved["options"])
            self.options["precision"] = saved["options"]["precision"]
            self.history = saved["history"]
            machine.set_precision(model, self.options["precision"])
            for variable, value in zip(self.variables, saved["values"]):
                variable.assign(value)
            print(f"Resuming after epoch {len(self.history)} of {self.options['epochs']}")
        logdir = Path("logs", self.name)
        if not unfinished:
            files.keep_earlier_run(self.name)
        for part in "train", "validation":  # left by an unfinished run; on_train_begin logs its epochs again
            shutil.rmtree(logdir / part, ignore_errors=True)
        if not self.history:
            files.write_atomically(self.path, self.write)
            self.previous.unlink(missing_ok=True)
        return len(self.history)

    def read(self):
        """Return what is saved in the newest checkpoint that can be read, as a dict, or None."""
        for file in self.path, self.previous:
            if not file.exists():
                continue
            try:
                with file.open("rb") as opened, np.load(opened) as arrays:  # NumPy would leave a corrupt file open
                    saved = {key: json.loads(str(arrays[key])) for key in ("options", "history")}
                    saved["values"] = [arrays[f"arr_{index}"] for index in range(len(arrays.files) - 2)]
                    return saved
            except OSError as error:
                raise messages.UserError(f"{file} cannot be read: {error.strerror or error}.") from error
            except Exception as error:  # zipfile, json and NumPy raise many kinds for a corrupt file
                aside = file.with_name("unreadable-" + file.name)
                file.replace(aside)
                print(f"The checkpoint {file} cannot be read ({type(error).__name__}). It was renamed to {aside}")
        return None

    def check(self, saved):
        """Raise messages.UserError if the options of the interrupted run are not those of this one.
        The precision may differ: it goes on with that of the checkpoint. So may the number of epochs, if it is higher
        and the learning rate does not depend on it."""
        now = self.options
        other = []
        for key in now:
            more_epochs = key == "epochs" and now["recipe"] == "tutorial" and now["epochs"] > saved["epochs"]
            if saved.get(key) != now[key] and key != "precision" and not more_epochs:
                other.append(f"{key} {saved.get(key)}, not {now[key]}")
        if other:
            raise messages.UserError(f"{self.path} belongs to an unfinished run with {'; '.join(other)}.\n"
                                     "To resume it, use the same options; to discard it, add --restart;\n"
                                     "to keep it, choose another --name.")

    def on_train_begin(self, logs=None):
        """Log the finished epochs again: the logs then have each epoch once, no matter when the run was killed."""
        steps = self.model.optimizer.iterations
        done = int(steps)
        for epoch, metrics in enumerate(self.history):
            steps.assign(done * (epoch + 1) // len(self.history))  # TensorBoard logs the learning rate of this step
            for logger in self.loggers:
                logger.on_epoch_end(epoch, dict(metrics))

    def on_epoch_begin(self, epoch, logs=None):
        messages.progress = f" in epoch {epoch + 1} of {self.options['epochs']}; to resume, {messages.again()}"

    def on_train_batch_end(self, batch, logs=None):
        process.stop_if_interrupted()

    def on_epoch_end(self, epoch, logs=None):
        self.history.append({key: float(value) for key, value in logs.items()})
        files.write_atomically(self.path, self.write, self.previous if epoch else None)

    def write(self, path):
        values = []
        if self.history:
            values = [variable.numpy() for variable in self.variables]
        content = io.BytesIO()  # on a full disk, NumPy would print a traceback if it wrote to the file itself
        np.savez(content, *values, options=json.dumps(self.options), history=json.dumps(self.history))
        path.write_bytes(content.getbuffer())


def options(args):
    """Return the options in `args` that define a run, and that must be the same when it resumes."""
    return {"epochs": args.epochs, "batch size": args.batch_size, "seed": args.seed, "augment": args.augment,
            "recipe": recipe.name if args.fast else "tutorial"}


def fingerprint(model):
    """Return eight characters that are the same for the same network and optimizer, in whichever process."""
    def without_names(config):
        return {key: value for key, value in config.items() if key not in ("name", "dtype")}

    config = json.dumps(model.get_config(), default=lambda value: type(value).__name__)
    config = json.loads(config, object_hook=without_names)  # Keras numbers the layers of all models in a process
    config["optimizer"] = type(model.optimizer).__name__
    return hashlib.sha256(json.dumps(config).encode()).hexdigest()[:8]
