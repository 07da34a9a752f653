"""Train the tutorial's three-block CNN on CIFAR-10: python train.py --help

Read it from the top: the dials, the data, the network, the training. That is all that decides the result.
The sections below `main` make it robust: checkpoints, TensorBoard, files, the download, the command line.
Then: python test.py
"""
import argparse
import hashlib
import json
import os
import re
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

# This must stand before the slow imports: Ctrl-C without a traceback, oneDNN's faster convolutions (TensorFlow leaves
# them off on CPUs without AVX-512), and a console without TensorFlow's log (2.21 writes before it reads the log level).
script = Path(sys.argv[0]).name
is_script = script in ("train.py", "test.py")
stderr = os.dup(2)


def stop(where=""):
    """Answer Ctrl-C at once; a normal exit would wait for the threads of a download."""
    os.write(stderr, f"\nStopped{where}.\n".encode())
    os._exit(130)


if is_script:
    signal.signal(signal.SIGINT, lambda *_: stop())
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
try:
    import tensorflow as tf  # noqa: I001 (first, to be the one that is named if none is installed)
    import h5py
    import keras
    import numpy as np
    import requests
    import tensorflow_datasets as tfds
    import tqdm
    import urllib3
    from absl import logging as absl_logging
    from keras import layers
    from matplotlib.figure import Figure
    from tensorboard.plugins.hparams import api as hparams
except ModuleNotFoundError as error:
    if not is_script or error.name not in ("tensorflow", "keras", "numpy", "tensorflow_datasets", "matplotlib",
                                           "tensorboard", "importlib_resources"):
        raise
    sys.exit(f"The package {error.name} is not installed for this Python, {sys.version.split()[0]}.\n"
             "Python 3.10 to 3.13 can have it:  python -m pip install -r requirements.txt\n"
             f"For any other, there is uv:  uv run --python 3.13 --with-requirements requirements.txt {script}")
finally:
    os.dup2(stderr, 2)

# The dials of the tutorial.
batch_size = 64  # images per step
num_classes = 10
epochs = 30  # passes over the 50,000 training images, 781 steps each
model_name = "cifar10-model-v1"  # of results/NAME.h5 and logs/NAME

# The dials of --fast. They were chosen on 5,000 training images kept aside, and belong to batches of 64.
fast_epochs = 4
adam_peak = 0.002  # highest learning rate of Adam; longer runs have lower ones
muon_peak = 0.003  # and of Muon
warm_up = 0.15  # part of the run in which the learning rates rise


def load_data(batch_size=batch_size, seed=None, augment=False, done=0):
    """Load CIFAR-10 as two streams of batches: images float32 (batch, 32, 32, 3) in [0, 1], labels int64 (batch,).

    Args:
        batch_size: images per batch.
        seed: int for the same order of training images in every run; None for another order each time.
        augment: True to flip training images horizontally and to shift them by up to 2 pixels, at random.
        done: finished epochs of a run that resumes; with a seed, the images that they have seen are skipped.
    Returns:
        ds_train: an endless stream; each pass has every training image once, shuffled over the whole split.
        ds_test: the test images once, in their own order; the last batch is smaller.
        info: the tfds.core.DatasetInfo.
    Raises:
        UserError: the data set is not there and cannot be downloaded.
    """
    builder = prepare_data()
    info = builder.info

    @tf.autograph.experimental.do_not_convert  # has nothing to convert; the search would take 0.2 s
    def decode(record):
        example = info.features.deserialize_example(record)
        return example["image"], example["label"]  # uint8 (32, 32, 3), int64

    @tf.autograph.experimental.do_not_convert
    def to_float(images, labels):
        return tf.cast(images, tf.float32) / 255.0, labels

    def flip_and_shift(example, seed):
        image, label = example
        image = tf.image.stateless_random_flip_left_right(image, seed)
        image = tf.pad(image, [[2, 2], [2, 2], [0, 0]], "REFLECT")
        return tf.image.stateless_random_crop(image, (32, 32, 3), seed + 1), label

    def read(split):
        return tf.data.TFRecordDataset([str(path) for path in info.splits[split].filepaths])

    def decode_all(records, split):
        decoded = records.map(decode, num_parallel_calls=tf.data.AUTOTUNE)
        return decoded.apply(tf.data.experimental.assert_cardinality(info.splits[split].num_examples))

    # The first pass shuffles the records before it decodes them, so the first batch comes at once. The decoded images
    # are cached as uint8, a quarter of float32; every later pass shuffles them anew.
    size = info.splits["train"].num_examples
    first_pass = decode_all(read("train").shuffle(size, seed=seed, reshuffle_each_iteration=False), "train").cache()
    later_passes = first_pass.shuffle(size, seed=seed).repeat()
    seen = 0 if seed is None else done * (size // batch_size) * batch_size
    ds_train = first_pass.concatenate(later_passes).skip(seen)
    if augment:
        seeds = tf.data.Dataset.random(seed).batch(2).skip(seen)
        ds_train = tf.data.Dataset.zip(ds_train, seeds).map(flip_and_shift, num_parallel_calls=tf.data.AUTOTUNE)
    ds_train = ds_train.batch(batch_size).map(to_float, num_parallel_calls=tf.data.AUTOTUNE)
    ds_train = ds_train.prefetch(tf.data.AUTOTUNE)  # prepares the next batch while the model trains on this one

    ds_test = decode_all(read("test"), "test").batch(batch_size).cache()
    ds_test = ds_test.map(to_float, num_parallel_calls=tf.data.AUTOTUNE).prefetch(tf.data.AUTOTUNE)
    return ds_train, ds_test, info


def create_model(input_shape, optimizer="adam"):
    """Build and compile the tutorial's network, 2,395,434 parameters, and print its summary.

    Args:
        input_shape: shape of one image, (32, 32, 3).
        optimizer: a Keras optimizer or its name.
    Returns:
        A compiled keras.Sequential from images in [0, 1] to the probabilities of the ten classes.
    """
    network = [keras.Input(input_shape)]
    for filters in 32, 64, 128:
        network += [
            layers.Conv2D(filters, (3, 3), padding="same"), layers.Activation("relu"),
            layers.Conv2D(filters, (3, 3), padding="same"), layers.Activation("relu"),
            layers.MaxPooling2D((2, 2)), layers.Dropout(0.25),
        ]
    network += [
        layers.Flatten(),
        layers.Dense(1024), layers.Activation("relu"), layers.Dropout(0.5),
        layers.Dense(num_classes), layers.Activation("softmax", dtype="float32"),  # 16 bits: too few for the loss
    ]
    model = keras.Sequential(network)
    model.summary()
    model.compile(loss="sparse_categorical_crossentropy", optimizer=optimizer, metrics=["accuracy"])
    return model


class OneCycle(keras.optimizers.schedules.LearningRateSchedule):
    """A learning rate that rises from 0 to `peak`, then falls to 0 at step `steps`, both linearly.

    Source: Smith and Topin, "Super-Convergence", https://arxiv.org/abs/1708.07120
    """

    def __init__(self, peak, steps):
        self.peak, self.steps = peak, steps

    def __call__(self, step):
        done = tf.cast(step, tf.float32) / self.steps
        return self.peak * tf.minimum(done / warm_up, (1 - done) / (1 - warm_up))

    def get_config(self):
        return {"peak": self.peak, "steps": self.steps}


class Muon(keras.optimizers.Adam):
    """Muon for the kernels of the convolutions, Adam for everything else. (Keras' own Muon takes no convolutions.)

    Muon makes the singular values of each update about equal, so that a kernel learns in all directions at once.
    Source: Jordan, "Muon: An optimizer for hidden layers in neural networks", https://kellerjordan.github.io/posts/muon/
    """

    def update_step(self, gradient, variable, learning_rate):
        if len(variable.shape) != 4:
            return super().update_step(gradient, variable, learning_rate)
        momentum = self._momentums[self._get_variable_index(variable)]
        self.assign(momentum, 0.95 * momentum + gradient)
        matrix = tf.reshape(gradient + 0.95 * momentum, (-1, variable.shape[-1]))  # (3 * 3 * channels, filters)
        rows, columns = matrix.shape
        matrix /= tf.norm(matrix) + 1e-7
        for _ in range(5):  # Newton-Schulz iterations, with the published coefficients
            gram = tf.matmul(matrix, matrix, transpose_a=True)
            matrix = 3.4445 * matrix + matrix @ (2.0315 * gram @ gram - 4.7750 * gram)
        rate = learning_rate * muon_peak / adam_peak * max(1, rows / columns) ** 0.5
        self.assign_sub(variable, rate * tf.reshape(matrix, variable.shape))


def main():
    args = parse_args()
    model_file, curves_file, log_dir = output_paths(args.name)

    checkpoint = Checkpoint(model_file.with_suffix(".checkpoint.npz"), args.restart)
    done = len(checkpoint.history)
    ds_train, ds_test, info = load_data(args.batch_size, args.seed, args.augment, done)
    steps_per_epoch = info.splits["train"].num_examples // args.batch_size
    if not steps_per_epoch:
        raise UserError(f"--batch-size {args.batch_size}: there are fewer training images than that.")

    if args.seed is not None:
        keras.utils.set_random_seed(args.seed)
    print(f"Training on: {device_name()}", flush=True)
    precision, optimizer = "float32", keras.optimizers.Adam()
    if args.fast:
        precision = checkpoint.options.get("precision") or faster_precision()
        scale = min(1, fast_epochs / args.epochs) ** 0.5  # longer runs get further with lower rates
        optimizer = Muon(OneCycle(scale * adam_peak, args.epochs * steps_per_epoch))
        print(f"Fast recipe: {args.epochs} epochs in {precision}, Muon for the convolutions, Adam for the rest;\n"
              f"their learning rates rise to {scale * muon_peak:.2g} and {scale * adam_peak:.2g}, then fall to 0",
              flush=True)
    keras.config.set_dtype_policy(precision)
    model = create_model(info.features["image"].shape, optimizer)

    options = {"epochs": args.epochs, "batch size": args.batch_size, "seed": args.seed, "augment": args.augment,
               "recipe": "fast" if args.fast else "tutorial", "precision": precision}
    loggers = [keras.callbacks.CSVLogger(log_dir / "epochs.csv"), TensorBoard(log_dir, options)]
    checkpoint.restore(model, options, loggers)
    if done:
        print(f"Resuming after epoch {done} of {args.epochs}", flush=True)
    else:
        keep_earlier_run(model_file, curves_file, log_dir)

    signal.signal(signal.SIGINT, checkpoint.stop)
    model.fit(ds_train, epochs=args.epochs, initial_epoch=done, steps_per_epoch=steps_per_epoch, shuffle=False,
              validation_data=ds_test, callbacks=[*loggers, checkpoint])
    plot_curves(checkpoint.history, curves_file)
    save_model(model, model_file)
    checkpoint.delete()
    print(f"The model is in {model_file}, its curves are in {curves_file}\n"
          f"Next: python test.py{'' if args.name == model_name else f' {model_file}'}\n"
          "and:  tensorboard --logdir=logs")


# ---------------------------------------------------------------------------------------------------------------------
# Checkpoints: an interrupted run resumes after its last finished epoch and ends with the same model.

class Checkpoint(keras.callbacks.Callback):
    """Save the whole state of training at `path`, *.npz, after every epoch, and resume from it.

    One file has it all: weights, optimizer, dropout's random state, options and history. So a kill can never separate
    them. keras.callbacks.BackupAndRestore has two files, and neither options nor history. The checkpoint before is
    kept, too, in case this one gets corrupt. `restart` deletes both.
    """

    def __init__(self, path, restart=False):
        super().__init__()
        self.path, self.previous = path, path.with_name("previous-" + path.name)
        self.options = {}  # of the run; what must not change when it resumes
        self.history = []  # of each epoch: a dict of its metrics
        if restart:
            self.delete()
        for file in filter(Path.exists, (self.path, self.previous)):
            try:
                with np.load(file) as saved:
                    arrays = dict(saved)
                self.options, self.history = json.loads(str(arrays["options"])), json.loads(str(arrays["history"]))
                self.values = [arrays[f"arr_{index}"] for index in range(len(arrays) - 2)]
                break
            except Exception as error:  # zipfile, json and NumPy raise many kinds for a corrupt file
                aside = file.with_name("unreadable-" + file.name)
                file.replace(aside)
                print(f"The checkpoint {file} cannot be read ({type(error).__name__}); it is now {aside}", flush=True)

    def restore(self, model, options, loggers):
        """Put the checkpoint, if there is one, into the compiled model.

        `options` must be those of the interrupted run, or UserError is raised. `loggers` are callbacks of `fit`.
        """
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
        self.options, self.loggers = options, loggers
        model.optimizer.build(model.trainable_variables)
        model.compute_metrics(None, np.zeros(1), np.zeros((1, num_classes)))  # makes their variables, too: with all of
        # them there, `fit` traces the training step once, not twice, and starts a second earlier
        self.variables = model.variables + model.optimizer.variables
        if self.history:
            for variable, value in zip(self.variables, self.values):
                variable.assign(value)

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
        write_atomically(self.path, self.write, self.previous)

    def write(self, path):
        np.savez(path, *[variable.numpy() for variable in self.variables],
                 options=json.dumps(self.options), history=json.dumps(self.history))

    def delete(self):
        self.previous.unlink(missing_ok=True)
        self.path.unlink(missing_ok=True)

    def stop(self, *_):
        """Answer Ctrl-C at once, and say how far the training is. No file is ever half written, so this is safe."""
        epoch, epochs = len(self.history) + 1, self.options["epochs"]
        if epoch > epochs:
            stop(" after the last epoch; the same command saves the model")
        stop(f" in epoch {epoch} of {epochs}; the same command resumes")


# ---------------------------------------------------------------------------------------------------------------------
# TensorBoard, with what Keras' callback leaves out, and the curves as a picture.

class TensorBoard(keras.callbacks.TensorBoard):
    """Log the curves, as Keras does; also the network for the GRAPHS tab, the options for HPARAMS, and Muon's rate."""

    def __init__(self, log_dir, options):
        super().__init__(log_dir)
        self.options = options

    def set_model(self, model):
        for part in "train", "validation":  # of a run that is resumed; Checkpoint logs its epochs anew
            shutil.rmtree(Path(self.log_dir, part), ignore_errors=True)
        forward_pass = tf.function(model).get_concrete_function(tf.TensorSpec((None, *model.input_shape[1:])))
        with tf.summary.create_file_writer(f"{self.log_dir}/train").as_default():
            tf.summary.graph(forward_pass.graph)
        with tf.summary.create_file_writer(f"{self.log_dir}/validation").as_default():  # beside what is compared
            started = time.strftime("%Y-%m-%d %H:%M:%S")  # an earlier run of this name has a row of its own
            hparams.hparams({**self.options, "seed": str(self.options["seed"])},
                            trial_id=f"{Path(self.log_dir).name} {started}")
        super().set_model(model)

    def on_epoch_end(self, epoch, logs=None):
        if self.options["recipe"] == "fast":
            logs = {**logs, "learning_rate_muon": float(self.model.optimizer.learning_rate) * muon_peak / adam_peak}
        super().on_epoch_end(epoch, logs)


def plot_curves(history, path):
    """Draw the curves at `path`; `history` has a dict of loss, accuracy, val_loss and val_accuracy per epoch."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    for axes, key in zip(figure.subplots(1, 2), ("loss", "accuracy")):
        numbers = range(1, len(history) + 1)
        axes.plot(numbers, [row[key] for row in history], "o-", color="#0072B2", markersize=3, label="training")
        axes.plot(numbers, [row[f"val_{key}"] for row in history], "s--", color="#D55E00", markersize=3,
                  label="validation")  # Okabe and Ito's colours, which colour-blind people can tell apart
        axes.set(xlabel="epoch", ylabel=key, title=key.capitalize())
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
        axes.legend()
    write_atomically(path, lambda part: figure.savefig(part, dpi=150))


# ---------------------------------------------------------------------------------------------------------------------
# Files: nothing is ever half written, and an earlier run is never overwritten.

def output_paths(name):
    """Return the Paths of the model, of its curves and of the log directory; make their folders.

    UserError is raised if they cannot be written to. It is better to learn this now than after an hour.
    """
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

    That holds after a crash, and after the OSError of a full disk. The old file is kept at `previous`, if given.
    """
    part = path.with_name("part-" + path.name)
    try:
        write(part)
        with part.open("rb+") as file:
            os.fsync(file.fileno())  # without it, a power cut after the rename can leave an empty file
        if previous and path.exists():
            path.replace(previous)
        part.replace(path)
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
    if own_optimizer:  # without this file, Keras could not load it
        model.compile(loss="sparse_categorical_crossentropy", optimizer="adam", metrics=["accuracy"])

    def write(part):
        part.write_bytes(bytes(3 * 4 * model.count_params() + 1_000_000))  # on a full disk, HDF5 would crash
        model.save(part)
        if own_optimizer:
            with h5py.File(part, "r+") as file:  # Keras could not train on from the state of an Adam without steps
                del file["optimizer_weights"]

    write_atomically(path, write)


def keep_earlier_run(model_file, curves_file, log_dir):
    """Rename the results and logs of an earlier run: the date is added to their name. Leave an empty log directory.

    The model is copied, not moved, so that there is one until the new one is saved.
    """
    if model_file.exists():
        dated = log_dir.name + time.strftime("-%Y%m%d-%H%M%S", time.localtime(model_file.stat().st_mtime))
        for old in model_file, curves_file:
            kept = old.with_name(dated + old.suffix)
            if old.exists() and not kept.exists():
                write_atomically(kept, lambda part, old=old: shutil.copy2(old, part))
        if not log_dir.with_name(dated).exists():  # else these are the logs of a newer run that was discarded
            log_dir.rename(log_dir.with_name(dated))
        print(f"The earlier run is kept as {model_file.with_name(dated)}.h5 and {log_dir.with_name(dated)}", flush=True)
    shutil.rmtree(log_dir, ignore_errors=True)
    log_dir.mkdir()


# ---------------------------------------------------------------------------------------------------------------------
# Getting CIFAR-10: https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz comes at 55 to 85 kB/s
# (pytorch/vision issue 9536), so mirrors are tried first.

mirrors = [
    "https://storage.googleapis.com/s4tf-hosted-binaries/datasets/CIFAR10/cifar-10-binary.tar.gz",
    "https://mindspore-website.obs.cn-north-4.myhuaweicloud.com/notebook/datasets/cifar-10-binary.tar.gz",
]
archive_sha256 = "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"  # as registered in TFDS
minimum_speed = 200_000  # bytes per second; a mirror that is slower after 10 s is dropped


def prepare_data():
    """Return the tfds.core.DatasetBuilder of `cifar10`; download and prepare the data set if it is not there.

    UserError is raised if it is corrupt, or cannot be downloaded.
    """
    try:
        builder = tfds.builder("cifar10")
        folder, prepared = Path(builder.data_dir), builder.is_prepared()
    except Exception as error:  # json, protobuf and file errors, if its description is corrupt
        raise UserError(corrupt_data(str(error))) from error
    if prepared:
        print(f"CIFAR-10 is in {folder}", flush=True)
        return builder
    if folder.exists():
        raise UserError(corrupt_data(f"{folder} is not complete"))
    downloads = folder.parents[1] / "downloads"
    print(f"CIFAR-10 (162 MiB) is being downloaded to {downloads / 'manual'}\n"
          f"and prepared in {folder}, this once.", flush=True)
    delete_incomplete(folder.parent, downloads)  # of a run that was killed
    try:
        fetch_archive(downloads / "manual" / "cifar-10-binary.tar.gz", next(iter(builder.url_infos)))
        builder.download_and_prepare()
    except Exception as error:  # TFDS raises many kinds
        if isinstance(error, UserError) or getattr(error, "filename", None):  # run() explains a full disk, for example
            raise
        raise UserError(f"CIFAR-10 could not be downloaded and prepared: {' '.join(str(error).split())[:200]}\n"
                        "Run the same command again.") from error
    finally:  # after Ctrl-C, too
        delete_incomplete(folder.parent, downloads)
    return builder


def delete_incomplete(prepared, downloads):
    """Delete what an interrupted download or preparation leaves in these two folders, up to 400 MB."""
    for folder in [*prepared.glob("incomplete.*"), *downloads.glob("extracted/incomplete.*")]:
        shutil.rmtree(folder, ignore_errors=True)
    for file in downloads.glob("manual/*.part"):
        file.unlink()


def fetch_archive(archive, original):
    """Download the archive of CIFAR-10, unless it is at the Path `archive`: from a mirror, or else from `original`.

    UserError is raised if none delivers it, or if the file that is there is another one.
    """
    if archive.exists():
        if sha256(archive) == archive_sha256:
            return
        raise UserError(f"{archive} is not the archive of CIFAR-10:\n"
                        f"its SHA-256 should be {archive_sha256}. Replace it, or delete it.")
    archive.parent.mkdir(parents=True, exist_ok=True)
    part = archive.with_suffix(".part")
    for url in [*mirrors, original]:
        try:
            download(url, part, minimum_speed if url != original else 0)
            part.replace(archive)
            return
        except (OSError, urllib3.exceptions.HTTPError) as error:
            reason = "cannot be reached" if isinstance(error, requests.ConnectionError) else str(error)[:100]
            print(f"Not downloaded from {url}: {reason}", flush=True)
    raise UserError("CIFAR-10 could not be downloaded. Try again later, or put cifar-10-binary.tar.gz\n"
                    f"into {archive.parent},\n"
                    "or set TFDS_DATA_DIR to a folder where TensorFlow Datasets has prepared cifar10.")


def download(url, path, minimum_speed):
    """Download the archive of CIFAR-10; raise OSError or urllib3's HTTPError if it is slow, corrupt or not there."""
    with requests.get(url, stream=True, timeout=(3, 10)) as reply, path.open("wb") as file, tqdm.tqdm(
            total=int(reply.headers.get("Content-Length", 0)), unit="B", unit_scale=True) as bar:
        reply.raise_for_status()
        start = time.monotonic()
        while block := reply.raw.read1(1 << 16):  # returns what has come, so that slowness is noticed
            file.write(block)
            bar.update(len(block))
            seconds = time.monotonic() - start
            if seconds > 10 and bar.n < minimum_speed * seconds:
                raise OSError(f"only {bar.n / seconds / 1000:.1f} kB/s")
    if sha256(path) != archive_sha256:
        raise OSError("delivered other bytes than CIFAR-10's, or not all of them")


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def corrupt_data(reason):
    """Return the message for a prepared data set that cannot be read, for a reason of any length."""
    return (f"The prepared CIFAR-10 cannot be read: {' '.join(reason.split())[:200]}\n"
            "Delete the folder cifar10 in your TensorFlow Datasets folder (TFDS_DATA_DIR, or ~/tensorflow_datasets)\n"
            "and run the same command again; it will be prepared anew.")


# ---------------------------------------------------------------------------------------------------------------------
# The machine: its name, and what it computes fastest.

def device_name():
    gpus = tf.config.list_physical_devices("GPU")
    return tf.config.experimental.get_device_details(gpus[0]).get("device_name", "GPU") if gpus else "CPU"


def faster_precision():
    """Time a convolution, and return the Keras policy that trains faster here: "float32", or a mixed one of 16 bits.

    CPUs without bfloat16 instructions and GPUs before compute capability 7.0 are slower in 16 bits; no library tells.
    """
    half = "float16" if tf.config.list_physical_devices("GPU") else "bfloat16"
    seconds = {"float32": [], half: []}
    try:
        for _ in range(50):  # in turns, so that another program slows down both
            for dtype, times in seconds.items():
                images, kernel = tf.ones((64, 16, 16, 64), dtype), tf.ones((3, 3, 64, 64), dtype)
                start = time.perf_counter()
                tf.reduce_sum(tf.nn.conv2d(images, kernel, 1, "SAME")).numpy()  # a GPU is not done before this returns
                times.append(time.perf_counter() - start)
    except tf.errors.OpError:  # oneDNN has no such convolution for this CPU
        return "float32"
    return f"mixed_{half}" if min(seconds[half]) < 0.9 * min(seconds["float32"]) else "float32"


# ---------------------------------------------------------------------------------------------------------------------
# The command line: options, and messages instead of tracebacks.

class UserError(Exception):
    """Something that the user can correct; the text says what happened and what to do."""


def parse_args():
    """Return the options of the command line; exit with code 2 if one is wrong."""
    def whole(low, high):
        def number(text):
            if not (text.isdecimal() and low <= int(text) <= high):
                raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {low} to {high}")
            return int(text)
        return number

    def name(text):
        if not re.fullmatch(r"\w([\w.-]{0,98}[\w-])?", text):
            raise argparse.ArgumentTypeError(f"{text!r} is not made of letters, digits, '_', '-' and '.'")
        return text

    parser = argparse.ArgumentParser(
        description="Train the tutorial's CNN on CIFAR-10. The same command resumes a run that was interrupted.")
    parser.add_argument("--fast", action="store_true",
                        help=f"reach the tutorial's accuracy in {fast_epochs} epochs: another optimizer, other learning"
                             " rates, and 16 bits where they are faster")
    parser.add_argument("--augment", action="store_true",
                        help="flip and shift training images at random; pays in long runs")
    parser.add_argument("--epochs", type=whole(1, 10_000), metavar="N",
                        help=f"passes over the training images (default: {epochs}; with --fast: {fast_epochs})")
    parser.add_argument("--batch-size", type=whole(1, 50_000), default=batch_size, metavar="N",
                        help="images per step (default: %(default)s)")
    parser.add_argument("--seed", type=whole(0, 2**32 - 1), metavar="N", help="the same number, the same model")
    parser.add_argument("--name", type=name, default=model_name,
                        help="of results/NAME.h5 and logs/NAME (default: %(default)s)")
    parser.add_argument("--restart", action="store_true", help="discard an unfinished run of this name")
    args = parser.parse_args()
    if args.fast and args.batch_size != batch_size:
        parser.error(f"argument --batch-size: --fast has learning rates for batches of {batch_size} only")
    args.epochs = args.epochs or (fast_epochs if args.fast else epochs)
    return args


def run(main):
    """Call a script's main function; answer what its user can cause with a short message and the right exit code."""
    sys.stdout.reconfigure(errors="replace")  # a Windows console may lack a character of a file name
    absl_logging.set_verbosity(absl_logging.ERROR)  # no advice against HDF5, which is the tutorial's format
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        main()
        sys.stdout.flush()
    except KeyboardInterrupt:
        stop()
    except BrokenPipeError:  # `python test.py | head` has read enough
        os._exit(1)
    except UserError as error:
        sys.exit(f"\n{error}")
    except (tf.errors.DataLossError, tf.errors.NotFoundError, tf.errors.PermissionDeniedError,
            tf.errors.FailedPreconditionError, tf.errors.InvalidArgumentError) as error:
        sys.exit("\n" + corrupt_data(error.message))
    except OSError as error:
        sys.exit(f"\n{error.filename or 'A file'}: {os.strerror(error.errno) if error.errno else error}.\n"
                 "What was saved before is intact. Once this is mended, run the same command again.")


if __name__ == "__main__":
    run(main)
