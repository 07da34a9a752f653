"""What Keras' TensorBoard callback leaves out, and the curves as a picture and as a table.
Without this, TensorBoard has no graph of the network and no table of the runs' options."""
import time
from math import nan

import keras
import tensorflow as tf
from matplotlib.figure import Figure
from tensorboard.plugins.hparams import api as hparams

from support import files
from support.messages import one_line


class Details(keras.callbacks.CSVLogger):
    """Log the network for TensorBoard's GRAPHS and the options for HPARAMS; write epochs.csv and, at the end, the
    curves. `logdir` is the Path of the logs, `args` has the options of the command line."""

    def __init__(self, logdir, args):
        super().__init__(logdir / "epochs.csv")
        self.logdir = logdir
        self.args = args
        self.history = []  # for each epoch, a dict of its metrics

    def set_model(self, model):
        super().set_model(model)
        forward_pass = tf.function(model).get_concrete_function(tf.TensorSpec(model.input_shape))
        with tf.summary.create_file_writer(str(self.logdir / "train")).as_default():
            tf.summary.graph(forward_pass.graph)
        options = {**vars(self.args), "seed": str(self.args.seed), "precision": model.dtype_policy.name}
        del options["name"], options["restart"]  # they do not matter for the result
        row = f"{self.logdir.name} {time.strftime('%Y-%m-%d %H:%M:%S')}"
        with tf.summary.create_file_writer(str(self.logdir / "validation")).as_default():  # next to what is compared
            hparams.hparams(options, trial_id=row)

    def on_epoch_end(self, epoch, logs=None):
        super().on_epoch_end(epoch, logs)
        self.history.append(logs)

    def on_train_end(self, logs=None):
        super().on_train_end(logs)
        try:
            plot_curves(self.history, files.model_file(self.args.name).with_suffix(".png"))
        except Exception as error:  # whatever it is, the model is still to be saved
            print(f"The curves could not be drawn: {one_line(error)}")


def plot_curves(history, path):
    """Draw the curves of the loss and of each metric at `path`; `history` has a dict of them per epoch, such as loss,
    accuracy, val_loss and val_accuracy."""
    epochs = range(1, len(history) + 1)
    keys = [key for key in history[0] if not key.startswith("val_") and key != "learning_rate"]
    keys.sort(key=lambda key: key != "loss")  # the loss comes first
    figure = Figure(figsize=(5 * len(keys), 4), layout="constrained")
    for axes, key in zip(figure.subplots(1, len(keys), squeeze=False).flat, keys):
        # colour-blind people can tell these two colours apart
        axes.plot(epochs, [epoch.get(key, nan) for epoch in history], "o-", c="#0072B2", ms=3, label="training")
        validation = [epoch.get(f"val_{key}", nan) for epoch in history]
        axes.plot(epochs, validation, "s--", c="#D55E00", ms=3, label="validation")
        axes.set(xlabel="epoch", ylabel=key, title=key.capitalize())
        axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
        axes.grid(alpha=0.3)
        axes.legend()
    with files.replacing(path) as hidden:
        figure.savefig(hidden, dpi=150)
