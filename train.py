"""Train the tutorial's three-block CNN on CIFAR-10: python train.py --help

The way of the data, from top to bottom of this file: archive -> TFDS -> input pipeline -> model -> fit,
with a backup after every epoch -> results/NAME.h5. `python test.py` takes it from there.
"""
import os
import signal
import sys

stopped = "Stopped."  # what Ctrl-C says; main() and Backup keep it up to date
stderr = os.dup(2)  # 2 itself is closed to TensorFlow's import below


def stop(*_):
    """Answer Ctrl-C with one line and exit code 130, at once: files are only ever replaced whole, so nothing tears."""
    os.write(stderr, f"\n{stopped}\n".encode())  # print() is not safe inside a signal handler
    os._exit(130)


if __name__ == "__main__":  # before the slow imports, so that Ctrl-C is answered there too
    signal.signal(signal.SIGINT, stop)

import argparse
import hashlib
import json
import logging
import re
import shutil
import tempfile
import time
import timeit
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # what matters arrives as an exception too
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")  # faster convolutions, off by itself on CPUs without AVX-512
logging.getLogger("matplotlib").setLevel(logging.ERROR)  # no word on its font cache at the very first run
os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # TensorFlow 2.21 logs there before it looks at its log level
try:
    import tensorflow as tf
finally:
    os.dup2(stderr, 2)
import keras
import numpy as np
import requests
import tensorflow_datasets as tfds
import tqdm
import urllib3
from absl import logging as absl_logging
from keras import layers
from matplotlib.figure import Figure

# all there is to change
batch_size = 64  # images a step
num_classes = 10
epochs = 30  # passes of 50,000 // 64 = 781 steps
model_name = "cifar10-model-v1"  # results/NAME.h5, logs/NAME

# copies of https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz, which comes at 55 to 85 kB/s from there
# (pytorch/vision issue 9536), and the SHA-256 that TFDS registers for it
mirrors = [
    "https://storage.googleapis.com/s4tf-hosted-binaries/datasets/CIFAR10/cifar-10-binary.tar.gz",
    "https://mindspore-website.obs.cn-north-4.myhuaweicloud.com/notebook/datasets/cifar-10-binary.tar.gz",
]
archive_sha256 = "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"
slowest = 200_000  # bytes a second; a mirror that is below it after 10 s is dropped


class Failure(Exception):
    """Something that the user can mend; the text says what happened and what to do."""


def replace_whole(path, write, previous=None):
    """Replace a file so that, whatever happens meanwhile, `path` is the old file or the new one, never a part of it.

    Args:
        path: Path of the file.
        write: function that writes the file at the temporary Path that it is given.
        previous: Path under which the old file is kept, or None.
    Raises:
        OSError: the file cannot be written, for instance because the disk is full; the old one is untouched.
    """
    part = path.with_name("part-" + path.name)
    try:
        write(part)
        with part.open("rb+") as file:
            os.fsync(file.fileno())  # before it takes the name: a power cut must not leave an empty file
        if previous and path.exists():
            os.replace(path, previous)
        os.replace(part, path)
    except OSError as error:
        part.unlink(missing_ok=True)
        error.filename = str(path)
        raise


def fetch_archive(archive, university):
    """Download CIFAR-10 to the Path `archive` from the first mirror that delivers it, unless it is there already.

    Raises:
        Failure: the file there is another one; or neither a mirror nor the address that TFDS uses, whose turn is next,
            can be reached.
    """
    if archive.exists():
        if hashlib.sha256(archive.read_bytes()).hexdigest() == archive_sha256:
            return
        raise Failure(f"{archive} is not the archive of CIFAR-10:\n"
                      f"its SHA-256 should be {archive_sha256}. Replace it, or delete it.")
    archive.parent.mkdir(parents=True, exist_ok=True)
    part = archive.with_suffix(".part")
    for url in mirrors:
        try:
            with requests.get(url, stream=True, timeout=(3, 10)) as reply, part.open("wb") as file, tqdm.tqdm(
                    total=int(reply.headers.get("Content-Length", 0)), unit="B", unit_scale=True) as bar:
                reply.raise_for_status()
                digest, start = hashlib.sha256(), time.monotonic()
                while block := reply.raw.read1(1 << 16):  # what has come, however little, so that slowness is seen
                    file.write(block)
                    digest.update(block)
                    bar.update(len(block))
                    seconds = time.monotonic() - start
                    if seconds > 10 and bar.n < slowest * seconds:
                        raise OSError(f"only {bar.n / seconds / 1000:.1f} kB/s")
            if digest.hexdigest() != archive_sha256:
                raise OSError("delivered other bytes than the original's, or not all of them")
            os.replace(part, archive)
            return
        except (OSError, urllib3.exceptions.HTTPError) as error:
            reason = "cannot be reached" if isinstance(error, requests.ConnectionError) else str(error)[:100]
            print(f"Mirror dropped: {url}: {reason}", flush=True)
        finally:
            part.unlink(missing_ok=True)
    try:  # without a network TFDS would try for minutes
        requests.head(university, timeout=(3, 10))
    except requests.RequestException as error:
        raise Failure(f"CIFAR-10 could not be downloaded: neither the mirrors nor {university} can be reached.\n"
                      f"Try again later, or put cifar-10-binary.tar.gz into {archive.parent},\n"
                      "or set TFDS_DATA_DIR to a folder where TensorFlow Datasets has prepared cifar10.") from error


def damaged(reason):
    """Return what to say when the prepared data set cannot be read, for a reason of any length."""
    return (f"The prepared CIFAR-10 cannot be read: {' '.join(reason.split())[:200]}\n"
            "Delete the folder cifar10 in your TensorFlow Datasets folder (TFDS_DATA_DIR, or ~/tensorflow_datasets)\n"
            "and run the same command again; it will be prepared anew.")


def prepare_data():
    """Return the tfds.core.DatasetBuilder of `cifar10`, prepared; download and prepare it first if need be.

    Raises:
        Failure: it is damaged, or it is not there and cannot be had.
    """
    try:
        builder = tfds.builder("cifar10")
        folder, prepared = Path(builder.data_dir), builder.is_prepared()
    except Exception as error:  # a damaged description ends in whatever json, protobuf or the file system raise
        raise Failure(damaged(str(error))) from error
    if prepared:
        print(f"CIFAR-10 is in {folder}", flush=True)
        return builder
    if folder.exists():
        raise Failure(damaged(f"{folder} is not complete"))
    archive = folder.parents[1] / "downloads" / "manual" / "cifar-10-binary.tar.gz"
    print(f"CIFAR-10 (162 MiB) is being downloaded to {archive.parent}\n"
          f"and prepared in {folder}, this once.", flush=True)
    fetch_archive(archive, next(iter(builder.url_infos)))
    try:
        builder.download_and_prepare()
    except Exception as error:  # TFDS's own have no common ancestor
        if isinstance(error, OSError) and error.filename:  # the disk
            raise
        raise Failure(f"CIFAR-10 could not be downloaded and prepared: {' '.join(str(error).split())[:200]}\n"
                      "Run the same command again.") from error
    return builder


def load_data(batch_size=batch_size, seed=None, augment=False):
    """Load CIFAR-10 as two streams of batches: images float32 (batch, 32, 32, 3) in [0, 1], labels int64 (batch,).

    Args:
        batch_size: images a batch.
        seed: int for the same order of training images in every run, None for another one each time.
        augment: whether each training image is mirrored, left to right, with probability 1/2.
    Returns:
        ds_train: every training image once per pass, in a new order over the whole split each pass, for ever.
        ds_test: the test split, finite and in its own order; its last batch is smaller.
        info: the tfds.core.DatasetInfo.
    Raises:
        Failure: the data set is not there and cannot be had.
    """
    builder = prepare_data()

    @tf.autograph.experimental.do_not_convert  # there is nothing to convert, and looking for it takes 0.2 s
    def decode(record):
        example = builder.info.features.deserialize_example(record)
        return example["image"], example["label"]  # uint8 (32, 32, 3) and int64

    @tf.autograph.experimental.do_not_convert
    def to_float(images, labels):
        return tf.cast(images, tf.float32) / 255.0, labels

    def mirror_some(batch, seed):
        return tf.image.stateless_random_flip_left_right(batch[0], seed), batch[1]

    def records(split):
        return tf.data.TFRecordDataset([str(path) for path in builder.info.splits[split].filepaths])

    def none_lost(split):
        return tf.data.experimental.assert_cardinality(builder.info.splits[split].num_examples)

    size = builder.info.splits["train"].num_examples
    # The first pass shuffles the undecoded records, which are read in a moment, so the first batch need not wait for
    # 50,000 PNGs to be decoded. What it decodes is cached, as uint8, for all passes to come.
    decoded = records("train").shuffle(size, seed=seed, reshuffle_each_iteration=False)
    decoded = decoded.map(decode, num_parallel_calls=tf.data.AUTOTUNE).apply(none_lost("train")).cache()
    ds_train = decoded.concatenate(decoded.shuffle(size, seed=seed).repeat())  # no image twice before all were seen
    ds_train = ds_train.batch(batch_size)
    ds_train = ds_train.map(to_float, num_parallel_calls=tf.data.AUTOTUNE)  # by batches: 64 calls fewer a step
    if augment:
        ds_train = tf.data.Dataset.zip(ds_train, tf.data.Dataset.random(seed).batch(2)).map(mirror_some)
    ds_train = ds_train.prefetch(tf.data.AUTOTUNE)  # the next batch is made while the model works on this one

    ds_test = records("test").map(decode, num_parallel_calls=tf.data.AUTOTUNE).apply(none_lost("test"))
    ds_test = ds_test.batch(batch_size).cache().map(to_float, num_parallel_calls=tf.data.AUTOTUNE)
    ds_test = ds_test.prefetch(tf.data.AUTOTUNE)
    return ds_train, ds_test, builder.info


def faster_policy(gpus):
    """Return the name of the Keras dtype policy by which this machine trains faster: a mixed one, or "float32".

    No library tells on every system whether a CPU has instructions for bfloat16, and without them it is several times
    slower than float32: so one of the network's convolutions is timed in both.

    Args:
        gpus: list of TensorFlow's physical devices of the kind GPU, empty if there is none.
    """
    if gpus:
        return "mixed_float16"
    seconds = {}
    for dtype in "float32", "bfloat16":
        images, kernel = tf.ones((64, 16, 16, 64), dtype), tf.ones((3, 3, 64, 64), dtype)
        seconds[dtype] = min(timeit.repeat(lambda: tf.nn.conv2d(images, kernel, 1, "SAME"), number=2, repeat=5))
    return "mixed_bfloat16" if seconds["bfloat16"] < 0.8 * seconds["float32"] else "float32"


def create_model(input_shape, learning_rate=0.001):
    """Build and compile the tutorial's network, 2,395,434 parameters, and print its summary.

    Args:
        input_shape: shape of one image, (32, 32, 3).
        learning_rate: of Adam; a number, or a keras.optimizers.schedules.LearningRateSchedule.
    Returns:
        A compiled keras.Sequential from images in [0, 1] to the probabilities of the ten classes.
    """
    model = keras.Sequential([keras.Input(input_shape)])
    for filters in 32, 64, 128:
        model.add(layers.Conv2D(filters, (3, 3), padding="same"))
        model.add(layers.Activation("relu"))
        model.add(layers.Conv2D(filters, (3, 3), padding="same"))
        model.add(layers.Activation("relu"))
        model.add(layers.MaxPooling2D((2, 2)))
        model.add(layers.Dropout(0.25))
    model.add(layers.Flatten())
    model.add(layers.Dense(1024))
    model.add(layers.Activation("relu"))
    model.add(layers.Dropout(0.5))
    model.add(layers.Dense(num_classes))
    model.add(layers.Activation("softmax", dtype="float32"))  # in mixed precision too: 16 bits are few for a loss
    model.summary()
    model.compile(loss="sparse_categorical_crossentropy", optimizer=keras.optimizers.Adam(learning_rate),
                  metrics=["accuracy"])
    return model


class Backup(keras.callbacks.Callback):
    """Save all that training is made of after every epoch, and continue from there.

    keras.callbacks.BackupAndRestore keeps weights and epoch number in two files, so a kill between the two trains an
    epoch twice, and knows nothing of the settings or the curves. Here one file holds everything: weights, optimizer,
    dropout's random state, settings and the history, from which the curves of a continued run are written anew.

    Args:
        path: Path of the backup, `*.npz`; the one of the epoch before is kept beside it.
        settings: dict of what must be the same when the run is continued.
        loggers: callbacks that are to see the epochs of the history too; they stand before this one in `fit`.
    """

    def __init__(self, path, settings, loggers):
        super().__init__()
        self.path, self.settings, self.loggers = path, settings, loggers
        self.previous = path.with_name("previous-" + path.name)
        self.history = []  # one dict of loss, accuracy, val_loss, val_accuracy an epoch

    def restore(self, model):
        """Put the newest backup that can be read into `model`; without one, leave the model as it is.

        Raises:
            Failure: the backup is of a run with other settings.
        """
        model.optimizer.build(model.trainable_variables)
        self.variables = model.variables + model.optimizer.variables
        for path in filter(Path.exists, (self.path, self.previous)):
            try:
                with np.load(path) as file:
                    settings, history = json.loads(str(file["settings"])), json.loads(str(file["history"]))
                    different = [key for key in self.settings if settings[key] != self.settings[key]]
                    if settings["epochs"] < self.settings["epochs"] and settings["learning rate"] == "constant":
                        different.remove("epochs")  # to go on for longer is no contradiction
                    values = [] if different else [file[f"arr_{index}"] for index in range(len(self.variables))]
            except Exception as error:  # whatever zipfile, json or NumPy make of a damaged file
                aside = path.with_name("unreadable-" + path.name)
                os.replace(path, aside)
                print(f"The backup {path} cannot be read ({type(error).__name__}); it is now {aside}", flush=True)
                continue
            if different:
                raise Failure(f"{path} is the backup of an unfinished run with other {' and '.join(different)}.\n"
                              "Give the same options to continue it, --restart to discard it, or another --name.")
            for variable, value in zip(self.variables, values):
                variable.assign(value)
            self.history = history
            return

    def on_train_begin(self, logs=None):
        steps = self.model.optimizer.iterations
        done = int(steps)
        for epoch, row in enumerate(self.history):
            steps.assign(done * (epoch + 1) // len(self.history))  # TensorBoard asks for the learning rate of the step
            for logger in self.loggers:
                logger.on_epoch_end(epoch, dict(row))

    def on_epoch_begin(self, epoch, logs=None):
        global stopped
        stopped = f"Stopped in epoch {epoch + 1} of {self.settings['epochs']}; the same command continues."

    def on_epoch_end(self, epoch, logs=None):
        self.history.append({key: float(value) for key, value in logs.items()})
        replace_whole(self.path, self.write, self.previous)

    def write(self, part):
        np.savez(part, *[variable.numpy() for variable in self.variables],
                 settings=json.dumps(self.settings), history=json.dumps(self.history))

    def discard(self):
        self.previous.unlink(missing_ok=True)
        self.path.unlink(missing_ok=True)


def keep_earlier_run(results, logs, name):
    """Keep the model, curves and logs of an earlier run under a dated name; leave an empty folder for new logs.

    The model is copied, not moved: it stays in use until the new one is there.
    """
    model_file = results / f"{name}.h5"
    if model_file.exists():
        dated = name + time.strftime("-%Y%m%d-%H%M%S", time.localtime(model_file.stat().st_mtime))
        for suffix in ".h5", ".png":
            old, kept = results / (name + suffix), results / (dated + suffix)
            if old.exists() and not kept.exists():
                replace_whole(kept, lambda part: shutil.copy2(old, part))
        if not (logs / dated).exists():  # otherwise the logs are those of a newer run, which was given up
            os.replace(logs / name, logs / dated)
        print(f"The earlier run is kept as {results / dated}.h5 and {logs / dated}", flush=True)
    shutil.rmtree(logs / name, ignore_errors=True)
    (logs / name).mkdir()


def save(model, path):
    """Save a model as HDF5, to be used in float32 on any machine, however it was trained.

    First the room on the disk is made sure of: without it HDF5 ends the process.
    """
    for layer in model, *model.layers:
        layer.dtype_policy = "float32"  # the weights are float32 in every case
    path.write_bytes(bytes(3 * 4 * model.count_params() + 1_000_000))  # float32 weights, Adam's two moments, the rest
    model.save(path)


def plot_curves(history, path):
    """Draw loss and accuracy over the epochs, for training and validation.

    Args:
        history: one dict of loss, accuracy, val_loss and val_accuracy an epoch.
        path: Path of the picture.
    """
    figure = Figure(figsize=(10, 4), layout="constrained")
    for axes, key in zip(figure.subplots(1, 2), ("loss", "accuracy")):
        numbers = range(1, len(history) + 1)
        axes.plot(numbers, [row[key] for row in history], "o-", color="#0072B2", markersize=3, label="training")
        axes.plot(numbers, [row[f"val_{key}"] for row in history], "s--", color="#D55E00", markersize=3,
                  label="validation")  # two of Okabe and Ito's colours, told apart by every kind of eye
        axes.set(xlabel="epoch", ylabel=key, title=key.capitalize())
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
        axes.legend()
    replace_whole(path, lambda part: figure.savefig(part, dpi=150))


def run(main):
    """Call a script's main, but put what its user can cause into a few lines and exit code 1."""
    absl_logging.set_verbosity(absl_logging.ERROR)  # no advice against HDF5: the tutorial's model file is one
    try:
        main()
    except Failure as failure:
        sys.exit(f"\n{failure}")
    except (tf.errors.DataLossError, tf.errors.NotFoundError, tf.errors.PermissionDeniedError,
            tf.errors.FailedPreconditionError, tf.errors.InvalidArgumentError) as error:
        sys.exit("\n" + damaged(error.message))
    except OSError as error:
        sys.exit(f"\n{error.filename or 'A file'}: {os.strerror(error.errno) if error.errno else error}.\n"
                 "What was saved before is intact. Once this is mended, run the same command again.")


def parse_args():
    """Return the options of the command line; end with exit code 2 where they are out of range."""
    def whole(low, high):
        def number(text):
            if not (text.isdecimal() and low <= int(text) <= high):
                raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {low} to {high}")
            return int(text)
        return number

    def name(text):
        if not re.fullmatch(r"\w[\w.-]{0,99}", text):
            raise argparse.ArgumentTypeError(f"{text!r} is not made of letters, digits, '_', '-' and '.'")
        return text

    parser = argparse.ArgumentParser(
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        description="Train the tutorial's CNN on CIFAR-10. The same command continues a run that was interrupted.")
    parser.add_argument("--epochs", type=whole(1, 10_000), default=epochs, metavar="N", help="passes over the images")
    parser.add_argument("--batch-size", type=whole(1, 50_000), default=batch_size, metavar="N", help="images a step")
    parser.add_argument("--seed", type=whole(0, 2**32 - 1), metavar="N", help="the same number, the same losses")
    parser.add_argument("--cosine", action="store_true", help="let the learning rate fall to 0 over the run")
    parser.add_argument("--augment", action="store_true", help="mirror training images at random")
    parser.add_argument("--mixed-precision", action="store_true", help="compute in 16 bits where that is faster")
    parser.add_argument("--name", type=name, default=model_name, help="of results/NAME.h5 and logs/NAME")
    parser.add_argument("--restart", action="store_true", help="discard an unfinished run of this name")
    return parser.parse_args()


def main():
    global stopped
    args = parse_args()
    results, logs = Path("results"), Path("logs")
    model_file, log_dir = results / f"{args.name}.h5", logs / args.name
    picture = results / f"{args.name}.png"
    for folder in results, log_dir:  # better found now than after an hour
        try:
            folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=folder).close()
        except OSError as error:
            raise Failure(f"{folder} cannot be used as a folder to write to: {error.strerror}.") from error
    if model_file.is_dir():
        raise Failure(f"{model_file} is a folder, but the model is to be saved there.")

    ds_train, ds_test, info = load_data(args.batch_size, args.seed, args.augment)
    steps = info.splits["train"].num_examples // args.batch_size
    if not steps:
        raise Failure(f"--batch-size {args.batch_size}: there are fewer training images than that.")
    if args.seed is not None:
        keras.utils.set_random_seed(args.seed)
    gpus = tf.config.list_physical_devices("GPU")
    device = tf.config.experimental.get_device_details(gpus[0]).get("device_name", "GPU") if gpus else "CPU"
    print(f"Training on: {device}", flush=True)
    precision = faster_policy(gpus) if args.mixed_precision else "float32"
    keras.config.set_dtype_policy(precision)
    if args.mixed_precision:
        print(f"Mixed precision: {precision.removeprefix('mixed_')}" if precision != "float32" else
              "Mixed precision: this CPU is no faster in bfloat16; going on in float32", flush=True)
    schedule = keras.optimizers.schedules.CosineDecay(0.001, args.epochs * steps) if args.cosine else 0.001
    model = create_model(info.features["image"].shape, schedule)

    csv = keras.callbacks.CSVLogger(log_dir / "epochs.csv")
    tensorboard = keras.callbacks.TensorBoard(log_dir=log_dir)
    settings = {"epochs": args.epochs, "batch size": args.batch_size, "seed": args.seed, "augmentation": args.augment,
                "learning rate": "cosine" if args.cosine else "constant", "precision": precision,
                "network": model.to_json()}
    backup = Backup(results / f"{args.name}.backup.npz", settings, [csv, tensorboard])
    if args.restart:
        backup.discard()
    backup.restore(model)
    done = len(backup.history)
    if done:
        print(f"Continuing after epoch {done} of {args.epochs}", flush=True)
        for part in "train", "validation":  # written anew from the backup, so that no epoch is there twice
            shutil.rmtree(log_dir / part, ignore_errors=True)
    else:
        keep_earlier_run(results, logs, args.name)
    if args.seed is not None:
        ds_train = ds_train.skip(done * steps)  # the order of images that an undisturbed run would have seen
    model.fit(ds_train, initial_epoch=done, epochs=args.epochs, steps_per_epoch=steps, validation_data=ds_test,
              shuffle=False,  # load_data has shuffled
              callbacks=[csv, tensorboard, backup])  # the backup last: what it holds, the others have logged

    stopped = "Stopped after the last epoch; the same command saves the model."
    plot_curves(backup.history, picture)
    replace_whole(model_file, lambda part: save(model, part))
    backup.discard()
    print(f"The model is in {model_file}, its curves are in {picture}\n"
          f"Next: python test.py{'' if args.name == model_name else f' {model_file}'}\n"
          "and:  tensorboard --logdir=logs")


if __name__ == "__main__":
    run(main)
