"""Test the model that train.py saved, or try it on pictures of your own: python test.py --help"""
import argparse
import math
import random
import shutil
import sys
import warnings
from pathlib import Path

# first, because it keeps TensorFlow's log off the console
from train import UserError, load_data, model_name, num_classes, run, write_atomically  # isort: skip

import h5py
import keras
import matplotlib.pyplot as plt
import numpy as np
import tensorflow as tf
from PIL import Image, ImageOps

categories = {
    0: "airplane",
    1: "automobile",
    2: "bird",
    3: "cat",
    4: "deer",
    5: "dog",
    6: "frog",
    7: "horse",
    8: "ship",
    9: "truck",
}


def main():
    args = parse_args()
    model = load_classifier(args.model)
    if args.image:
        if classify(model, args.image, Path("results", f"{args.model.stem}-images.png")):
            sys.exit(1)
        return

    ds_train, ds_test, info = load_data()
    loss, accuracy = model.evaluate(ds_test)
    print(f"Test accuracy: {accuracy * 100} %")

    index = random.randrange(info.splits["test"].num_examples)
    image, label = next(ds_test.unbatch().skip(index).as_numpy_iterator())
    probabilities = model(image[None], training=False).numpy()[0]
    predicted_label, true_label = categories[int(probabilities.argmax())], categories[int(label)]
    print(f"Predicted label: {predicted_label}")
    print(f"True label: {true_label}")
    figure, axes = plt.subplots(figsize=(4, 4.4), layout="constrained")
    draw(axes, image, f"Predicted label: {predicted_label} ({probabilities.max():.1%})\nTrue label: {true_label}")
    show(figure, Path("results", f"{args.model.stem}-sample.png"))

    if args.report:
        images, labels = (np.concatenate(part) for part in zip(*ds_test.as_numpy_iterator()))
        picture = Path("results", f"{args.model.stem}-report.png")
        report(images, labels, model.predict(ds_test), picture)
        log_dir = Path("logs", args.model.stem)
        if log_dir.is_dir() and args.model.resolve().parent == Path("results").resolve():
            log_picture(picture, log_dir / "report")


def parse_args():
    """Return the options of the command line; exit with code 2 if one is wrong."""
    parser = argparse.ArgumentParser(description="Evaluate a model on CIFAR-10's test images and show one of them.")
    parser.add_argument("model", nargs="?", type=Path, default=Path("results", f"{model_name}.h5"), metavar="MODEL",
                        help="model file (default: %(default)s)")
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument("--image", nargs="+", metavar="FILE",
                         help="classify these pictures instead; the answer is always one of the ten classes, whatever"
                              " they show, and only the middle square of a picture counts")
    instead.add_argument("--report", action="store_true", help="show where the model goes wrong, too")
    return parser.parse_args()


def load_classifier(path):
    """Load a model file; no code that it may hold is run.

    Args:
        path: Path of an HDF5 file that Keras saved.
    Returns:
        A compiled keras.Model from float32 (batch, 32, 32, 3) to the probabilities (batch, 10).
    Raises:
        UserError: the file is missing, corrupt, unsafe, or of another kind of model.
    """
    if not path.exists():
        raise UserError(f"There is no model at {path}.\nTrain one first: python train.py")
    try:
        with h5py.File(path) as file:
            unsafe = '"Lambda"' in str(file.attrs["model_config"])
        model = None if unsafe else keras.models.load_model(path, compile=False)  # in Keras' safe mode
    except Exception as error:  # whatever h5py, json or Keras make of a corrupt file
        reason = " ".join(str(error).split())[:120]
        raise UserError(f"{path} cannot be loaded as a Keras model ({reason}).\n"
                      "Is it whole, and saved as HDF5? python train.py makes a new one.") from error
    if unsafe:
        raise UserError(f"{path} holds code of its own (a Lambda layer); it was refused and nothing of it was run.")
    if model.input_shape != (None, 32, 32, 3) or model.output_shape != (None, num_classes):
        raise UserError(f"{path} is not a classifier of 32x32 colour images into {num_classes} classes:\n"
                      f"its input is {model.input_shape}, its output {model.output_shape}.")
    model.compile(loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def show(figure, path):
    """Save a figure at `path`, say so, and open it in a window where there is a display."""
    path.parent.mkdir(exist_ok=True)
    write_atomically(path, lambda part: figure.savefig(part, dpi=100))
    print(f"Picture saved as {path}", flush=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # where there is no display, show() only warns
        plt.show()


def draw(axes, image, title, **style):
    """Show an image, or a PIL.Image, under its title and without axes."""
    axes.imshow(image)
    axes.set_anchor("N")  # at the top of its cell, or the layout takes the title for lower than it is and cuts it off
    axes.set_title(title, **style)
    axes.axis("off")


# ---------------------------------------------------------------------------------------------------------------------
# Pictures of your own: python test.py --image FILE ...

most_pixels = 250_000_000  # a larger picture is refused unread: it would take over a gigabyte of memory


def load_image(path):
    """Read a picture of any common format and size as the model wants it.

    Args:
        path: file name; JPEG, PNG, GIF (its first frame), BMP, WebP and what else Pillow reads.
    Returns:
        seen: float32 (32, 32, 3) in [0, 1], the middle square, reduced with antialiasing.
        image: the upright picture as an RGB PIL.Image, at most 400 pixels wide and high.
    Raises:
        Exception: Pillow raises many kinds when a file is not a whole picture.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on odd metadata, or on a size that is checked below
        with Image.open(path) as image:
            if image.width * image.height > most_pixels:
                raise OSError(f"{image.width} x {image.height} pixels are too many")
            image = ImageOps.exif_transpose(image)  # cameras store how they were held, not upright pictures
    if image.mode.startswith("I"):  # 16 bits of grey, which convert() would cut off at 255
        image = Image.fromarray((np.asarray(image) / 257).clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = image.convert("RGB")
    seen = np.asarray(ImageOps.fit(image, (32, 32), Image.Resampling.BICUBIC), np.float32) / 255
    image.thumbnail((400, 400))
    return seen, image


def classify(model, files, path):
    """Print what the model takes the picture in each file for, and draw them all at `path`.

    Returns:
        The number of files that could not be read.
    """
    shown = []
    for file in files:
        try:
            seen, image = load_image(file)
        except Exception as error:  # each of Pillow's readers has exceptions of its own
            reason = getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
            print(f"{file}: not readable as a picture: {reason}", file=sys.stderr, flush=True)
            continue
        probabilities = model(seen[None], training=False).numpy()[0]
        best = [f"{categories[label]} {probabilities[label]:.2%}" for label in np.argsort(-probabilities)[:3]]
        print(f"{file}: {categories[int(probabilities.argmax())]} ({', '.join(best)})", flush=True)
        shown.append((file, image, seen, best))
    if shown:
        rows = math.ceil(len(shown) / 2)
        figure, grid = plt.subplots(rows, 4, figsize=(10, 2.9 * rows), squeeze=False, layout="constrained")
        for axes in grid.flat:
            axes.axis("off")
        for (file, image, seen, best), left, right in zip(shown, grid.flat[::2], grid.flat[1::2]):
            draw(left, image, Path(file).name[-24:], fontsize=9)
            draw(right, seen, "\n".join(best), fontsize=9)
        show(figure, path)
    return len(files) - len(shown)


# ---------------------------------------------------------------------------------------------------------------------
# Where the model goes wrong: python test.py --report

def report(images, labels, probabilities, path):
    """Print the accuracy of each class; draw the confusion matrix and the most confident mistakes at `path`.

    Args:
        images: (n, 32, 32, 3) in [0, 1]. labels: int (n,). probabilities: (n, 10). All in the same order.
        path: Path of the picture.
    """
    predicted = probabilities.argmax(axis=1)
    confusion = tf.math.confusion_matrix(labels, predicted, num_classes).numpy()  # rows are the true classes
    print("\nclass       correct    of  accuracy")
    for label, row in enumerate(confusion):
        print(f"{categories[label]:<11} {row[label]:>7} {row.sum():>5} {row[label] / max(row.sum(), 1):>9.1%}")
    print(f"{'all':<11} {confusion.trace():>7} {confusion.sum():>5} {confusion.trace() / confusion.sum():>9.2%}\n")

    figure = plt.figure(figsize=(17, 8), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(1, 1.05))
    axes = left.subplots()
    axes.imshow(confusion, cmap="Blues")
    for true, other in np.ndindex(confusion.shape):
        axes.text(other, true, confusion[true, other], ha="center", va="center", fontsize=11,
                  color="white" if confusion[true, other] > confusion.max() / 2 else "black")
    axes.set_xticks(range(num_classes), categories.values(), rotation=45, ha="right")
    axes.set_yticks(range(num_classes), categories.values())
    axes.set(xlabel="predicted", ylabel="true")
    axes.set_title(f"{confusion.trace()} of {confusion.sum()} test images are right")

    mistakes = np.flatnonzero(predicted != labels)
    mistakes = mistakes[np.argsort(-probabilities[mistakes].max(axis=1))][:20]
    right.suptitle("The most confident mistakes")
    grid = right.subplots(4, 5).flat
    for axes in grid:
        axes.axis("off")
    for axes, index in zip(right.axes, mistakes):
        draw(axes, images[index], f"{categories[int(predicted[index])]} {probabilities[index].max():.1%}\n"
             f"true: {categories[int(labels[index])]}", fontsize=9)
    show(figure, path)


def log_picture(picture, log_dir):
    """Put the picture of the report into TensorBoard's IMAGES tab, in place of an earlier one."""
    shutil.rmtree(log_dir, ignore_errors=True)
    with tf.summary.create_file_writer(str(log_dir)).as_default():
        tf.summary.image("report", tf.io.decode_png(picture.read_bytes())[None], step=0)


if __name__ == "__main__":
    run(main)
