"""Train the tutorial's three-block CNN on CIFAR-10: python train.py --help
Read it from the top: the dials, the data, the network, the training. What makes these dependable is in support/."""
from support import start  # noqa: F401, I001 (before TensorFlow: it keeps the console quiet, and answers Ctrl-C)

import argparse
import signal

import keras
import tensorflow as tf
from keras import layers

from support import download, files, logs, messages, recipe
from support.checkpoint import Checkpoint

# The dials of the tutorial. (Those of --fast are in support/recipe.py.)
batch_size = 64  # images per step
num_classes = 10
epochs = 30  # passes over the 50,000 training images, 781 steps each
model_name = "cifar10-model-v1"  # of results/NAME.h5 and logs/NAME


@tf.autograph.experimental.do_not_convert  # the functions below have nothing to convert; looking for it takes 0.2 s
def load_data(batch_size=batch_size, seed=None, augment=False, done=0):
    """Load CIFAR-10 as batches of images, float32 (batch, 32, 32, 3) in [0, 1], and labels, int64 (batch,).
    seed: int for the same order of training images in every run; None for another order each time.
    augment: True to flip training images horizontally and to shift them by up to 2 pixels, at random.
    done: finished epochs of a run that resumes; with a seed, the images that they have seen are skipped.
    Returns ds_train, an endless stream, where each pass has every training image once, shuffled over the whole split;
    ds_test, the test images once, in their own order, with a smaller last batch; and the tfds.core.DatasetInfo.
    Raises messages.UserError if the data set is not there and cannot be downloaded."""
    info = download.prepare_data().info
    train, test = info.splits["train"], info.splits["test"]

    def records(split):
        return tf.data.TFRecordDataset([str(path) for path in split.filepaths])

    def decode(record):
        example = info.features.deserialize_example(record)
        return example["image"], example["label"]  # uint8 (32, 32, 3), int64

    def decode_all(records, split):
        return records.map(decode, tf.data.AUTOTUNE).apply(tf.data.experimental.assert_cardinality(split.num_examples))

    def to_float(images, labels):
        return tf.cast(images, tf.float32) / 255.0, labels

    # The first pass shuffles the records before it decodes them, so the first batch comes at once. The decoded images
    # are cached as uint8, a quarter of float32; every later pass shuffles them anew.
    size = train.num_examples
    first_pass = decode_all(records(train).shuffle(size, seed=seed, reshuffle_each_iteration=False), train).cache()
    later_passes = first_pass.shuffle(size, seed=seed).repeat()
    seen = 0 if seed is None else done * (size // batch_size)  # batches
    ds_train = first_pass.concatenate(later_passes).skip(seen * batch_size).batch(batch_size)
    if augment:
        seeds = tf.data.Dataset.random(seed).batch(2).skip(seen)
        ds_train = tf.data.Dataset.zip(ds_train, seeds).map(recipe.flip_and_shift, tf.data.AUTOTUNE)
    ds_test = decode_all(records(test), test).batch(batch_size).cache()
    # the next batch is made while the model trains on one
    ds_train, ds_test = (ds.map(to_float, tf.data.AUTOTUNE).prefetch(tf.data.AUTOTUNE) for ds in (ds_train, ds_test))
    return ds_train, ds_test, info


def create_model(input_shape, optimizer="adam", loss="sparse_categorical_crossentropy"):
    """Return the tutorial's network, 2,395,434 parameters, compiled with that optimizer and loss; print its summary.
    The keras.Sequential maps images in [0, 1], (batch, *input_shape), to the probabilities of the ten classes."""
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
    model.compile(loss=loss, optimizer=optimizer, metrics=["accuracy"])
    return model


def main():
    args = parse_args()
    model_file, curves_file, log_dir = files.output_paths(args.name)
    checkpoint = Checkpoint(model_file.with_suffix(".checkpoint.npz"), args.restart)
    done = len(checkpoint.history)  # epochs of an interrupted run

    # the data
    ds_train, ds_test, info = load_data(args.batch_size, args.seed, args.augment, done)
    steps_per_epoch = info.splits["train"].num_examples // args.batch_size
    if not steps_per_epoch:
        raise messages.UserError(f"--batch-size {args.batch_size}: there are fewer training images than that.")

    # the network
    if args.seed is not None:
        keras.utils.set_random_seed(args.seed)
    print(f"Training on: {recipe.device_name()}")
    optimizer, loss = keras.optimizers.Adam(), "sparse_categorical_crossentropy"
    if args.fast:
        keras.config.set_dtype_policy(checkpoint.options.get("precision") or recipe.faster_precision())
        optimizer, loss = recipe.fast_optimizer(args.epochs, steps_per_epoch), recipe.smoothed_crossentropy
    model = create_model(info.features["image"].shape, optimizer, loss)
    if args.fast and not done:
        recipe.set_initial_values(model)

    # the training, from the start or from where it was interrupted
    options = {"epochs": args.epochs, "batch size": args.batch_size, "seed": args.seed, "augment": args.augment,
               "recipe": "fast-v2" if args.fast else "tutorial", "precision": keras.config.dtype_policy().name}
    loggers = [keras.callbacks.CSVLogger(log_dir / "epochs.csv"), logs.TensorBoard(log_dir, options)]
    checkpoint.restore(model, options, loggers)
    if not done:
        checkpoint.begin(model_file, curves_file, log_dir)
    signal.signal(signal.SIGINT, checkpoint.stop)
    model.fit(ds_train, epochs=args.epochs, initial_epoch=done, steps_per_epoch=steps_per_epoch, shuffle=False,
              validation_data=ds_test, callbacks=[*loggers, checkpoint])
    logs.plot_curves(checkpoint.history, curves_file)
    files.save_model(model, model_file)
    checkpoint.delete()
    print(f"The model is in {model_file}, its curves are in {curves_file}\n"
          f"Next: python test.py{'' if args.name == model_name else f' {model_file}'}\n"
          "and:  tensorboard --logdir=logs")


def parse_args():
    """Return the options of the command line; exit with code 2 if one is wrong."""
    parser = argparse.ArgumentParser(description="Train the tutorial's CNN on CIFAR-10, or resume an interrupted run.")
    parser.add_argument("--fast", action="store_true", help=f"pass the tutorial's accuracy in {recipe.fast_epochs}"
                        " epochs, by better initial values, another optimizer, smoothed labels and perhaps 16 bits")
    parser.add_argument("--augment", action="store_true", help="flip and shift images at random; pays in long runs")
    parser.add_argument("--epochs", type=messages.whole(1, 10_000), metavar="N",
                        help=f"passes over the training images (default: {epochs}; with --fast: {recipe.fast_epochs})")
    parser.add_argument("--batch-size", type=messages.whole(1, 50_000), default=batch_size, metavar="N",
                        help="images per step (default: %(default)s)")
    parser.add_argument("--seed", type=messages.whole(0, 2**32 - 1), metavar="N", help="same number, same model")
    parser.add_argument("--name", type=messages.name, default=model_name,
                        help="of results/NAME.h5 and logs/NAME (default: %(default)s)")
    parser.add_argument("--restart", action="store_true", help="discard an unfinished run of this name")
    args = parser.parse_args()
    if args.fast and args.batch_size != batch_size:
        parser.error(f"argument --batch-size: --fast has learning rates for batches of {batch_size} only")
    args.epochs = args.epochs or (recipe.fast_epochs if args.fast else epochs)
    return args


if __name__ == "__main__":
    messages.run(main)
