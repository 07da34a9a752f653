"""What Keras' TensorBoard callback leaves out, and the curves as a picture and as a table.
Without this, TensorBoard has no graph of the network, no table of the runs' options and no report."""
import shutil
import time
from math import nan

import keras
import tensorflow as tf
from matplotlib.figure import Figure
from tensorboard.plugins.hparams import api as hparams

from support import checkpoint, files
from support.messages import one_line


class Details(keras.callbacks.CSVLogger):
    """Log the network for TensorBoard's GRAPHS, the options for HPARAMS, and Muon's learning rate; write epochs.csv
    and, at the end, the curves. `logdir` is the Path of the logs, `args` has the options of the command line."""

    def __init__(self, logdir, args):
        super().__init__(logdir / "epochs.csv")
        self.logdir = logdir
        self.options = checkpoint.options(args)
        self.curves = files.model_file(args.name).with_suffix(".png")
        self.history = []  # for each epoch, a dict of its metrics

    def set_model(self, model):
        super().set_model(model)
        self.train_writer = tf.summary.create_file_writer(str(self.logdir / "train"))
        forward_pass = tf.function(model).get_concrete_function(tf.TensorSpec(model.input_shape))
        with self.train_writer.as_default():
            tf.summary.graph(forward_pass.graph)
        options = {**self.options, "seed": str(self.options["seed"]), "precision": model.dtype_policy.name}
        row = f"{self.logdir.name} {time.strftime('%Y-%m-%d %H:%M:%S')}"
        with tf.summary.create_file_writer(str(self.logdir / "validation")).as_default():  # next to what is compared
            hparams.hparams(options, trial_id=row)

    def on_epoch_end(self, epoch, logs=None):
        super().on_epoch_end(epoch, logs)
        self.history.append(logs)
        rate = muon_rate(self.model.optimizer)
        if rate is not None:
            with self.train_writer.as_default():
                tf.summary.scalar("epoch_learning_rate_muon", rate, step=epoch)

    def on_train_end(self, logs=None):
        super().on_train_end(logs)
        self.train_writer.close()
        try:
            plot_curves(self.history, self.curves)
        except Exception as error:  # whatever it is, the model is still to be saved
            print(f"The curves could not be drawn: {one_line(error)}")


def muon_rate(optimizer):
    """Return Muon's current learning rate, or None if the optimizer is another one."""
    optimizer = getattr(optimizer, "inner_optimizer", optimizer)  # in float16, Keras wraps it
    if not hasattr(optimizer, "muon_share"):
        return None
    return float(optimizer.learning_rate) * optimizer.muon_share


def plot_curves(history, path):
    """Draw the curves at `path`; `history` has a dict of loss, accuracy, val_loss and val_accuracy per epoch."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    epochs = range(1, len(history) + 1)
    for axes, key in zip(figure.subplots(1, 2), ("loss", "accuracy")):
        axes.plot(epochs, [epoch.get(key, nan) for epoch in history], "o-", c="#0072B2", ms=3, label="training")
        # colour-blind people can tell these two colours apart
        validation = [epoch.get(f"val_{key}", nan) for epoch in history]
        axes.plot(epochs, validation, "s--", c="#D55E00", ms=3, label="validation")
        axes.set(xlabel="epoch", ylabel=key, title=key.capitalize())
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
        axes.legend()
    files.write_atomically(path, lambda part: figure.savefig(part, dpi=150))


def log_picture(picture, logdir):
    """Put a picture, the Path of a PNG, into TensorBoard's IMAGES tab, in place of an earlier one."""
    shutil.rmtree(logdir, ignore_errors=True)
    with tf.summary.create_file_writer(str(logdir)).as_default():
        tf.summary.image(logdir.name, tf.io.decode_png(picture.read_bytes())[None], step=0)
