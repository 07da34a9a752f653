"""Your own classes: pictures in folders, read as test.py --image reads them; and whether the numbers of classes agree.
Without this, one odd file among thousands ends the training, and others are left out silently."""
import functools
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds
from tqdm import tqdm

from support import image_file
from support.messages import UserError, verbose

max_named = 3  # how many of the files that are left out are named


def categories(folder):
    """Return the name of each label, {0: "cat", 1: "dog"}, for pictures in FOLDER/train/cat, FOLDER/test/cat and so on.
    Hidden folders, such as .ipynb_checkpoints, are no classes."""
    found = [*Path(folder, "train").glob("[!.]*"), *Path(folder, "test").glob("[!.]*")]
    names = {path.name for path in found if path.is_dir()}
    return dict(enumerate(sorted(names)))


def from_folder(folder, size):
    """Read the pictures in FOLDER/train/CLASS and FOLDER/test/CLASS, of the formats that --image takes. The middle of
    each is reduced to `size`, (height, width) in pixels. Print how many each class has, and what is left out.
    Return ds_train and ds_test, tf.data.Datasets of images, uint8 (height, width, 3), and labels, int64, in a mixed
    order that is always the same; and info, with `name`, `features` and `splits` like a tfds.core.DatasetInfo.
    Raises UserError if there are no pictures to train on for a class, or none to test on."""
    names = tuple(categories(folder).values())
    if not names:
        raise UserError(f"There are no classes in {Path(folder).absolute()}.\n"
                        "For each class, it needs two folders of pictures, such as train/cat and test/cat.")
    images, labels = read(Path(folder, "train"), names, size)
    test_images, test_labels = read(Path(folder, "test"), names, size)
    for label, name in enumerate(names):
        if label not in labels:
            raise UserError(f"There are no pictures to train on in {Path(folder, 'train', name).absolute()}.\n"
                            "Put some there; a class has the same name in train and test.")
    if len(test_labels) == 0:
        raise UserError(f"There are no pictures to test on in {Path(folder, 'test').absolute()}.")
    info = SimpleNamespace(
        name=str(folder),
        features={"image": tfds.features.Image(shape=(*size, 3)), "label": tfds.features.ClassLabel(names=names)},
        splits={"train": SimpleNamespace(num_examples=len(labels)),
                "test": SimpleNamespace(num_examples=len(test_labels))},
    )
    ds_train = tf.data.Dataset.from_tensor_slices((images, labels))
    ds_test = tf.data.Dataset.from_tensor_slices((test_images, test_labels))
    return ds_train, ds_test, info


def read(folder, names, size):
    """Read the pictures in the folders of these classes. Return images, uint8 (n, height, width, 3), and labels, int64
    (n,), in a mixed order."""
    files = []
    for label, name in enumerate(names):
        if (folder / name).is_dir():
            files += [(path, label, path.lstat().st_mtime) for path in sorted((folder / name).iterdir())]
    files.sort(key=lambda file: file[0].name.startswith("."))  # others are named first
    return read_files(folder, names, size, tuple(files))


@functools.lru_cache(2)  # of both splits, since load_data() is called up to three times
def read_files(folder, names, size, files):
    """Read those of the `files`, (path, label, time of its last change), that are pictures; if one has changed, all are
    read again. Print how many each class has, and what is left out. Return the same as read()."""
    height, width = size
    images = []
    labels = []
    left_out = []
    for path, label, _ in tqdm(files, unit=" files", ncols=79, delay=1, disable=verbose() == 2):
        if path.name.startswith(".") or not path.is_file():
            left_out.append(f"{path}: it is hidden, or no file")
            continue
        try:
            small, _ = image_file.load(path, (width, height))
        except Exception as error:  # each of Pillow's readers has exceptions of its own
            left_out.append(f"{path}: {image_file.why_not_read(error)}")
            continue
        images.append(np.asarray(small))
        labels.append(label)
    counts = [f"{labels.count(label)} of {name}" for label, name in enumerate(names)]
    print(f"{folder}: {first_of(counts)}")
    if left_out:
        print(f"Left out: {len(left_out)}", *left_out[:max_named], sep="\n  ")
    if len(left_out) > max_named:
        print(f"  and {len(left_out) - max_named} more")
    order = np.random.default_rng(0).permutation(len(labels))  # they are sorted by class
    images = np.array(images, np.uint8).reshape(-1, height, width, 3)  # there may be none
    return images[order], np.array(labels, np.int64)[order]


def compare(num_classes, info):
    """Print a line if the network is to have another number of classes than the data set; `info` describes it."""
    if "label" not in info.features or not hasattr(info.features["label"], "names"):
        return
    names = info.features["label"].names
    if len(names) != num_classes:
        print(f"num_classes is {num_classes}, but {info.name} has {len(names)}: {first_of(names)}")


def first_of(words):
    """Return a text with the first twenty of the words."""
    more = [f"and {len(words) - 20} more"] if len(words) > 20 else []
    return ", ".join([*words[:20], *more])


def check_model(model, categories):
    """Raise UserError if the model does not have an output for each of the `categories` of test.py."""
    if model.output_shape != (None, len(categories)):
        raise UserError(f"This model does not classify into the {len(categories)} classes of test.py: its output is "
                        f"{model.output_shape}.\n"
                        'It should end in Dense(..., activation="softmax") with an output for each of `categories`.')
