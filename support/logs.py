"""What Keras' TensorBoard callback leaves out, and the curves as a picture and as a table.
Without this, TensorBoard has no graph of the network and no table of the runs' options."""
import time
from math import nan
from pathlib import Path

import keras
import tensorflow as tf
from matplotlib.figure import Figure
from tensorboard.plugins.hparams import api as hparams

from support import files
from support.errors import one_line


class RunLogger(keras.callbacks.CSVLogger):
    """Log the network for TensorBoard's GRAPHS and the options for HPARAMS; write epochs.csv and, at the end, the
    curves. `logdir` is the folder of the logs; `tensorboard` is Keras' callback, which comes before this one;
    `checkpoint` has the name, the options and the history of the run."""

    def __init__(self, logdir, tensorboard, checkpoint):
        self.logdir = Path(logdir)
        self.tensorboard = tensorboard
        self.checkpoint = checkpoint
        super().__init__(self.logdir / "epochs.csv", append=True)

    def set_model(self, model):
        super().set_model(model)
        if self.checkpoint.initial_epoch or self.checkpoint.fits:  # the logs have it
            return
        forward_pass = tf.function(model).get_concrete_function(tf.TensorSpec(model.input_shape))
        with tf.summary.create_file_writer(str(self.logdir / "train")).as_default():
            tf.summary.graph(forward_pass.graph)
        options = {**self.checkpoint.options, "precision": model.dtype_policy.name}
        options["seed"] = str(options["seed"])  # else numbers and "None" would be in one column
        row = f"{self.checkpoint.args.name} {time.strftime('%Y-%m-%d %H:%M:%S')}"
        with tf.summary.create_file_writer(str(self.logdir / "validation")).as_default():  # next to what is compared
            hparams.hparams(options, trial_id=row)

    def on_train_begin(self, logs=None):
        super().on_train_begin(logs)
        # where a resumed run goes on; Keras would number the training steps from 0 again
        self.tensorboard._global_train_batch = int(self.model.optimizer.iterations)

    def on_epoch_end(self, epoch, logs=None):
        super().on_epoch_end(epoch, logs)
        for writer in self.tensorboard._writers.values():
            writer.flush()  # else a kill may lose what Keras has logged of an epoch that the checkpoint has

    def on_train_end(self, logs=None):
        super().on_train_end(logs)
        path = Path("results", f"{self.checkpoint.args.name}.png")
        try:
            plot_curves(self.checkpoint.history, path)
            print(f"The curves are in {path}")
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
