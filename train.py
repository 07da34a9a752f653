"""Train the tutorial's three-block CNN on CIFAR-10: python train.py --help
What comes from support/ adds safeguards and options. You can follow the tutorial's story without reading it."""
import support.start  # first: it prepares the import of TensorFlow

import argparse
from pathlib import Path

import keras
import tensorflow as tf
import tensorflow_datasets as tfds
from keras.callbacks import TensorBoard
from keras.layers import Activation, Conv2D, Dense, Dropout, Flatten, Input, MaxPooling2D
from keras.models import Sequential

from support import augment, checks, classes, ctrl_c, download, errors, fast, files, logs, machine, options, portable
from support.checkpoint import Checkpoint
from support.screen import verbose

# hyper-parameters
# images per training step
batch_size = 64
# number of classes; test.py has their names
num_classes = 10
# passes over the training images (--fast has its own, in support/fast.py)
epochs = 30

# the data set's name in TensorFlow Datasets
dataset = "cifar10"
# the folder for data sets; None is ~/tensorflow_datasets, or the one in the variable TFDS_DATA_DIR
data_dir = None
# the model is saved as results/cifar10-model-v1.h5, its logs are in logs/cifar10-model-v1
model_name = "cifar10-model-v1"


def preprocess_image(image, label):
    """Return a batch of images as the network gets them, float32 in [0, 1], from uint8 in 0..255; and their labels,
    unchanged. test.py --image prepares pictures with it, too."""
    image = tf.image.convert_image_dtype(image, tf.float32)
    return image, label


def load_data(batch_size=batch_size):
    """Load the data set in batches of images, float32 (batch, 32, 32, 3) in [0, 1], and labels, int64 (batch,).
    Raises errors.UserError if the data set is not there and cannot be downloaded, or if it is damaged.
    Returns ds_train, an endless stream that is reshuffled for every pass; ds_test, all test images once, in a fixed
    order, with a smaller last batch; and info, the tfds.core.DatasetInfo."""
    folder = download.prepare(dataset, data_dir)  # from a fast server; tfds.load alone may take an hour
    ds_train, info = tfds.load(dataset, data_dir=folder, with_info=True, split="train", as_supervised=True)
    ds_test = tfds.load(dataset, data_dir=folder, split="test", as_supervised=True)

    settings = tf.data.Options()
    settings.autotune.enabled = False  # else a thread that tunes tf.data may delay the end of the training by a minute

    ds_train = (
        ds_train
        .cache()  # images are decoded once, and kept as uint8
        .shuffle(10_000)  # 10,000 are enough, since TensorFlow Datasets has mixed all images when it wrote its files
        .batch(batch_size, drop_remainder=True)
        .repeat()  # after the shuffling and the batching, so an epoch is one pass over the images
        .map(preprocess_image)  # a batch at a time is quicker than an image at a time
        .prefetch(2)  # the next batches are made while the model trains on one
        .with_options(settings)
    )
    ds_test = (
        ds_test
        .batch(batch_size)  # neither shuffled nor repeated: every test image counts once
        .cache()
        .map(preprocess_image)
        .prefetch(2)
        .with_options(settings)
    )
    return ds_train, ds_test, info


def create_model(input_shape):
    """Print and return the tutorial's network, compiled. It has 2,395,434 parameters.
    It maps images in [0, 1], (batch, *input_shape), to probabilities, (batch, num_classes)."""
    model = Sequential([
        Input(input_shape),
        # first block
        Conv2D(32, (3, 3), padding="same"),
        Activation("relu"),
        Conv2D(32, (3, 3), padding="same"),
        Activation("relu"),
        MaxPooling2D((2, 2)),
        Dropout(0.25),
        # second block
        Conv2D(64, (3, 3), padding="same"),
        Activation("relu"),
        Conv2D(64, (3, 3), padding="same"),
        Activation("relu"),
        MaxPooling2D((2, 2)),
        Dropout(0.25),
        # third block
        Conv2D(128, (3, 3), padding="same"),
        Activation("relu"),
        Conv2D(128, (3, 3), padding="same"),
        Activation("relu"),
        MaxPooling2D((2, 2)),
        Dropout(0.25),
        # from features to classes
        Flatten(),
        Dense(1024),
        Activation("relu"),
        Dropout(0.5),
        Dense(num_classes, activation="softmax"),
    ])
    model.summary()
    model.compile(loss="sparse_categorical_crossentropy", optimizer="adam", metrics=["accuracy"])
    return model


@ctrl_c.ends_the_script
@errors.are_explained
def main():
    args = parse_args()
    files.make_folders(args.name)  # fails now, not after the training, if results/ or logs/ cannot be written
    checkpoint = Checkpoint(args, main)  # of an interrupted run with this code, if there is one
    if args.seed is not None:
        keras.utils.set_random_seed(args.seed)

    # load the data
    ds_train, ds_test, info = load_data(args.batch_size)
    steps_per_epoch = info.splits["train"].num_examples // args.batch_size  # 781
    if steps_per_epoch == 0:
        raise errors.UserError(f"--batch-size {args.batch_size} is larger than the number of training images.")

    # construct the model
    print(f"Training on: {machine.device_name()}")
    model = create_model(input_shape=info.features["image"].shape)
    if not model.built:  # it has no Input(...)
        model.build((None, *ds_train.element_spec[0].shape[1:]))
    checks.check_network(model, info)
    if args.fast:  # other settings for this training; a stream of its own, so that the order of ds_train stays
        own_settings = fast.prepare(model, load_data(args.batch_size)[0], steps_per_epoch, args, checkpoint.precision)

    # begin, or resume an interrupted run; an earlier run with this name is renamed
    ds_train = checkpoint.begin_or_resume(model, ds_train, steps_per_epoch, info)
    if args.augment:
        ds_train = augment.stream(ds_train, steps_per_epoch, args.epochs, checkpoint.initial_epoch)

    # some callbacks
    logdir = Path("logs", args.name)
    tensorboard = TensorBoard(log_dir=logdir)
    callbacks = [tensorboard]
    callbacks += [logs.RunLogger(logdir, tensorboard, checkpoint)]  # what Keras' callback leaves out
    callbacks += [checkpoint]  # the last one, so it also saves what the others have changed

    # make sure that the results folder exists
    Path("results").mkdir(exist_ok=True)

    # train the model
    model.fit(
        ds_train,
        epochs=args.epochs,
        validation_data=ds_test,  # without validation_steps: all of it, once
        verbose=verbose(),  # 1, a progress bar, where there is a screen
        steps_per_epoch=steps_per_epoch,
        callbacks=callbacks,
        initial_epoch=checkpoint.initial_epoch,
    )
    if args.fast:  # the network is saved as create_model() has made it
        fast.restore(model, own_settings)

    # save the model
    path = Path("results", f"{args.name}.h5")
    with portable.saving(model, path) as hidden:  # a hidden file, renamed when it is complete
        model.save(hidden)
    checkpoint.delete()


def parse_args():
    """Return the options of the command line; exit with code 2 if one is wrong."""
    parser = argparse.ArgumentParser(
        description="Train the tutorial's CNN on CIFAR-10, or resume an interrupted run.", allow_abbrev=False,
    )
    parser.add_argument(
        "--fast", action="store_true",
        help="beat the tutorial's accuracy in a few minutes, with a better recipe (see README.md)",
    )
    parser.add_argument(
        "--epochs", metavar="N", type=options.whole_number(1, 10_000),
        help=f"passes over the training images (default: {epochs}; with --fast: {fast.epochs})",
    )
    parser.add_argument(
        "--augment", action="store_true",
        help="flip and shift the training images, and hide a square of each, so that a long run does not learn them by "
             f"heart (--fast does so in runs of {fast.augmented_from} epochs or more)",
    )
    parser.add_argument(
        "--batch-size", metavar="N", type=options.whole_number(1, 50_000), default=batch_size,
        help="images per training step (default: %(default)s)",
    )
    parser.add_argument(
        "--seed", metavar="N", type=options.whole_number(0, 2**32 - 1),
        help="random seed; the same number gives the same model",
    )
    parser.add_argument(
        "--name", type=options.run_name, default=model_name,
        help="name of the run, for results/NAME.h5 and logs/NAME (default: %(default)s)",
    )
    parser.add_argument("--restart", action="store_true", help="discard an unfinished run with this name")
    args = parser.parse_args(options.given())
    if args.fast and args.epochs is None:
        args.epochs = fast.epochs
    if args.epochs is None:
        args.epochs = epochs
    if args.fast and args.epochs >= fast.augmented_from:
        args.augment = True
    return args


if __name__ == "__main__":
    main()
