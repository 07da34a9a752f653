"""TensorBoard with what Keras' callback leaves out, and the curves as a picture.
Without it, TensorBoard has no graph of the network, no table of the runs' options and no report."""
import shutil
import time
from pathlib import Path

import keras
import tensorflow as tf
from matplotlib.figure import Figure
from tensorboard.plugins.hparams import api as hparams

from support.files import write_atomically


class TensorBoard(keras.callbacks.TensorBoard):
    """Log the curves, as Keras does; also the network for the GRAPHS tab, the options for HPARAMS, and Muon's rate."""

    def __init__(self, log_dir, options):
        super().__init__(log_dir)
        self.options = {**options, "seed": str(options["seed"])}

    def set_model(self, model):
        log_dir = Path(self.log_dir)
        for part in "train", "validation":  # of a run that is resumed; Checkpoint logs its epochs anew
            shutil.rmtree(log_dir / part, ignore_errors=True)
        forward_pass = tf.function(model).get_concrete_function(tf.TensorSpec((None, *model.input_shape[1:])))
        with tf.summary.create_file_writer(str(log_dir / "train")).as_default():
            tf.summary.graph(forward_pass.graph)
        with tf.summary.create_file_writer(str(log_dir / "validation")).as_default():  # beside what is compared
            hparams.hparams(self.options, trial_id=time.strftime(f"{log_dir.name} %Y-%m-%d %H:%M:%S"))  # a row a run
        super().set_model(model)

    def on_epoch_end(self, epoch, logs=None):
        optimizer = self.model.optimizer
        if hasattr(optimizer, "muon_share"):
            logs = {**logs, "learning_rate_muon": float(optimizer.learning_rate) * optimizer.muon_share}
        super().on_epoch_end(epoch, logs)


def plot_curves(history, path):
    """Draw the curves at `path`; `history` has a dict of loss, accuracy, val_loss and val_accuracy per epoch."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    epochs = range(1, len(history) + 1)
    for axes, key in zip(figure.subplots(1, 2), ("loss", "accuracy")):  # colour-blind people can tell these two apart
        axes.plot(epochs, [epoch[key] for epoch in history], "o-", c="#0072B2", ms=3, label="training")
        axes.plot(epochs, [epoch[f"val_{key}"] for epoch in history], "s--", c="#D55E00", ms=3, label="validation")
        axes.set(xlabel="epoch", ylabel=key, title=key.capitalize())
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
        axes.legend()
    write_atomically(path, lambda part: figure.savefig(part, dpi=150))


def log_picture(picture, log_dir):
    """Put a picture, the Path of a PNG, into TensorBoard's IMAGES tab, in place of an earlier one."""
    shutil.rmtree(log_dir, ignore_errors=True)
    with tf.summary.create_file_writer(str(log_dir)).as_default():
        tf.summary.image(log_dir.name, tf.io.decode_png(picture.read_bytes())[None], step=0)
