"""The user's pictures, classified; the report; and a window where there is a display.
Without this, the model can only be tried on CIFAR-10, and a picture is lost where there is no display."""
import contextlib
import glob
import shutil
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import tensorflow as tf

from support import checks, files, image_file
from support.errors import UserError, one_line

no_frame = {"squeeze": False, "subplot_kw": {"frame_on": False, "xticks": [], "yticks": []}}  # cells of a figure
max_drawn = 100  # how many of the user's pictures are drawn; Matplotlib cannot save a figure of 460


def save_figure(model_path, kind):
    """Save the current figure of pyplot as MODEL-KIND.png, beside the model, and say so. Return its Path, or None if it
    cannot be saved."""
    path = model_path.with_name(f"{model_path.stem}-{kind}.png")
    try:
        with files.replacing(path) as hidden:
            plt.savefig(hidden, dpi=100)
    except UserError as error:  # there is still the window
        print(f"The picture cannot be saved: {str(error).splitlines()[0]}")
        return None
    print(f"Picture saved as {path}")
    return path


@contextlib.contextmanager
def explain_no_window():
    """Say in a line why a window cannot be shown, as in a PyCharm that is older than its Matplotlib; the picture is
    saved, anyway."""
    try:
        yield
    except Exception as error:  # each kind of window has exceptions of its own
        print(f"The window cannot be shown: {one_line(error)}")


def draw(axes, image, title, **style):
    """Show an image, or a PIL.Image, under its title."""
    axes.imshow(image, cmap="gray")  # used for grey images only
    axes.set_anchor("N")  # at the top of its cell; otherwise the layout expects a lower title and cuts it off
    axes.set_title(title, parse_math=False, **style)  # a file's name may have dollar signs, as formulas have


def as_batch(small, model, preprocess_image):
    """Prepare a picture, an RGB PIL.Image of the model's size, as the training images are. For a model of grey images,
    try it in colour first, since `preprocess_image` may turn it grey. Return it as a PIL.Image, and as a batch of one
    image that the model takes. Raises UserError if `preprocess_image` does not make such a batch."""
    modes = ["RGB", "L"] if model.input_shape[-1] == 1 else ["RGB"]
    for mode in modes:
        seen = small.convert(mode)
        pixels = tf.constant(np.asarray(seen), shape=(1, small.height, small.width, len(mode)))
        batch, *others = preprocess_image(pixels, tf.zeros(1, tf.int64))
        if tuple(batch.shape[1:]) == model.input_shape[1:]:
            return seen, batch
    raise UserError(f"preprocess_image() in train.py makes images of shape {tuple(batch.shape[1:])},\n"
                    f"but the model takes {model.input_shape[1:]}.")


def files_of(paths):
    """Return the files, and which of them were found in folders. A folder stands for the files in it, unless there
    are none; a pattern such as photos/*.jpg, which Windows leaves to the program, for what matches it. Hidden files are
    left out."""
    files = []
    in_folders = []
    for path in paths:
        matches = [path] if Path(path).exists() else sorted(glob.glob(path)) or [path]  # noqa: PTH207
        for match in matches:
            inside = sorted(str(file) for file in Path(match).glob("[!.]*") if file.is_file())  # none in a file
            in_folders += inside
            files += inside or [match]
    return files, in_folders


def classify(model_path, model, paths, preprocess_image, categories):
    """Print which class the model, from the file at `model_path`, gives each picture, and draw the first hundred.
    `paths` has the pictures' files, or folders of them; `preprocess_image` is that of the training, `categories` has
    the name of each label. Exit with code 1 if one that was named cannot be read, or none."""
    checks.check_pictures(model)
    height, width = model.input_shape[1:3]
    count = 0
    failed = False
    drawn = []
    paths, in_folders = files_of(paths)
    for path in paths:
        name = path.encode(errors="backslashreplace").decode()  # it may not be valid Unicode
        try:
            small, image = image_file.load(path, (width, height))
        except Exception as error:  # each of Pillow's readers has exceptions of its own
            print(f"{Path(name).absolute()}: {image_file.why_not_read(error)}", file=sys.stderr, flush=True)
            failed = failed or path not in in_folders
            continue
        seen, batch = as_batch(small, model, preprocess_image)
        probabilities = model.predict_on_batch(batch)[0]
        labels = np.argsort(-probabilities)[:3]
        best = [f"{categories[label]} {probabilities[label]:.2%}" for label in labels]
        print(f"{name}: {categories[labels[0]]} ({', '.join(best)})", flush=True)
        count += 1
        if len(drawn) < max_drawn:
            drawn.append((name, seen, image, best))
    if drawn:
        rows = (len(drawn) + 1) // 2
        figure, grid = plt.subplots(rows, 4, figsize=(10, 2.9 * rows), layout="constrained", **no_frame)
        cells = iter(grid.flat)
        for name, seen, image, best in drawn:
            draw(next(cells), image, Path(name).name[-24:], fontsize=9)
            draw(next(cells), seen, "\n".join(best), fontsize=9)
        if count > len(drawn):
            print(f"The picture shows the first {len(drawn)} of {count}.")
        save_figure(model_path, "images")
        with explain_no_window():
            plt.show()
    if failed or count == 0:
        sys.exit(1)


def report(model_path, model, ds_test, categories):
    """Print the accuracy of each class; draw the confusion matrix and the most confident mistakes, also in TensorBoard.
    `ds_test` has batches of images in [0, 1] and labels, in the same order each time."""
    images = np.concatenate([batch[0].numpy() for batch in ds_test])
    labels = np.concatenate([batch[1].numpy() for batch in ds_test])
    probabilities = model.predict(ds_test, verbose=0)
    predicted = probabilities.argmax(axis=1)
    confusion = tf.math.confusion_matrix(labels, predicted, len(categories)).numpy()  # rows are the true classes
    width = max(len(name) for name in categories.values())
    print(f"\n{'class':<{width}}  correct    of  accuracy")
    for label, row in enumerate(confusion):
        share = f"{row[label] / row.sum():.1%}" if row.sum() else "-"  # a class without test images
        print(f"{categories[label]:<{width}} {row[label]:>8} {row.sum():>5} {share:>9}")
    print(f"{'all':<{width}} {confusion.trace():>8} {confusion.sum():>5} {confusion.trace() / confusion.sum():>9.2%}\n")

    figure = plt.figure(figsize=(17, 8), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(1, 1.05))
    axes = left.subplots()
    axes.imshow(confusion, cmap="Blues")
    if len(categories) <= 20:  # there is no room for more names and numbers
        axes.set_xticks(range(len(categories)), categories.values(), rotation=45, ha="right")
        axes.set_yticks(range(len(categories)), categories.values())
        for true, other in np.ndindex(confusion.shape):
            axes.text(other, true, confusion[true, other], ha="center", va="center", fontsize=11,
                      color="white" if confusion[true, other] > confusion.max() / 2 else "black")
    axes.set(xlabel="predicted", ylabel="true")
    axes.set_title(f"{confusion.trace()} of {confusion.sum()} test images classified correctly")

    mistakes = np.flatnonzero(predicted != labels)
    mistakes = mistakes[np.argsort(-probabilities[mistakes].max(axis=1))][:20]
    right.suptitle("The most confident mistakes")
    for axes, index in zip(right.subplots(4, 5, **no_frame).flat, mistakes):
        draw(axes, images[index], f"{categories[int(predicted[index])]} {probabilities[index].max():.1%}\n"
             f"true: {categories[int(labels[index])]}", fontsize=9)
    path = save_figure(model_path, "report")
    with explain_no_window():
        plt.show()
    # also in TensorBoard's IMAGES tab, in place of an earlier one, if the logs of this model are there
    logdir = Path("logs", model_path.stem, "report")
    if path and logdir.parent.is_dir() and model_path.resolve().parent == Path("results").resolve():
        shutil.rmtree(logdir, ignore_errors=True)
        with tf.summary.create_file_writer(str(logdir)).as_default():
            tf.summary.image("report", tf.io.decode_png(path.read_bytes())[None], step=0)
