"""Own photographs as the model wants them, the report, and a window where there is a display.
Without it, the model can only be tried on CIFAR-10, and a picture is lost where there is no display."""
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import tensorflow as tf
from PIL import Image, ImageOps

from support import files, messages

empty = {"squeeze": False, "subplot_kw": {"frame_on": False, "xticks": [], "yticks": []}}  # cells of a figure


def show(figure, path):
    """Save a figure at `path`, say so, and open it in a window where there is a display."""
    path.parent.mkdir(exist_ok=True)
    files.write_atomically(path, lambda part: figure.savefig(part, dpi=100))
    print(f"Picture saved as {path}")
    plt.show()  # only warns where there is no display


def draw(axes, image, title, **style):
    """Show an image, or a PIL.Image, under its title and without axes."""
    axes.imshow(image)
    axes.set_anchor("N")  # at the top of its cell, or the layout takes the title for lower than it is and cuts it off
    axes.set_title(title, **style)
    axes.axis("off")


def load_image(path):
    """Read a picture of any format that Pillow knows, and of any size; Pillow raises many kinds of errors.
    Return what the model wants, float32 (32, 32, 3) in [0, 1], the middle square, reduced with antialiasing; and the
    upright picture as an RGB PIL.Image, at most 400 pixels wide and high."""
    with Image.open(path) as image:
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


def classify(model, paths, categories, path):
    """Print what the model takes the picture in each file for, and draw them all at `path`.
    `categories` has the name of each label. Return whether every file could be read."""
    shown = []
    for file in paths:
        try:
            seen, image = load_image(file)
        except Exception as error:  # each of Pillow's readers has exceptions of its own
            reason = getattr(error, "strerror", None) or messages.one_line(error)
            print(f"{file}: not readable as a picture: {reason}", file=sys.stderr, flush=True)
            continue
        probabilities = model(seen[None], training=False).numpy()[0]
        best = [f"{categories[label]} {probabilities[label]:.2%}" for label in np.argsort(-probabilities)[:3]]
        print(f"{file}: {categories[int(probabilities.argmax())]} ({', '.join(best)})")
        shown.append((file, image, seen, best))
    if shown:
        rows = (len(shown) + 1) // 2
        figure, grid = plt.subplots(rows, 4, figsize=(10, 2.9 * rows), layout="constrained", **empty)
        for (file, image, seen, best), left, right in zip(shown, grid.flat[::2], grid.flat[1::2]):
            draw(left, image, Path(file).name[-24:], fontsize=9)
            draw(right, seen, "\n".join(best), fontsize=9)
        show(figure, path)
    return len(shown) == len(paths)


def report(images, labels, probabilities, categories, path):
    """Print the accuracy of each class; draw the confusion matrix and the most confident mistakes at `path`.
    Images (n, 32, 32, 3) in [0, 1], labels int (n,) and probabilities (n, 10) are in the same order."""
    predicted = probabilities.argmax(axis=1)
    confusion = tf.math.confusion_matrix(labels, predicted, len(categories)).numpy()  # rows are the true classes
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
    axes.set_xticks(range(len(categories)), categories.values(), rotation=45, ha="right")
    axes.set_yticks(range(len(categories)), categories.values())
    axes.set(xlabel="predicted", ylabel="true", title=f"{confusion.trace()} of {confusion.sum()} test images are right")

    mistakes = np.flatnonzero(predicted != labels)
    mistakes = mistakes[np.argsort(-probabilities[mistakes].max(axis=1))][:20]
    right.suptitle("The most confident mistakes")
    for axes, index in zip(right.subplots(4, 5, **empty).flat, mistakes):
        draw(axes, images[index], f"{categories[int(predicted[index])]} {probabilities[index].max():.1%}\n"
             f"true: {categories[int(labels[index])]}", fontsize=9)
    show(figure, path)
