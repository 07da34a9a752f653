"""Your own classes: pictures in folders, read as test.py --image reads them.
Without this, one odd file among thousands ends the training, and others are left out silently."""
import functools
from pathlib import Path
from textwrap import shorten
from types import SimpleNamespace

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds
from tqdm import tqdm

from support import image_file
from support.errors import UserError
from support.screen import verbose

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
    return stream(images, labels), stream(test_images, test_labels), info


def stream(images, labels):
    """Return the images and labels as a tf.data.Dataset. From arrays, TensorFlow would make two more copies of them."""
    one = tf.TensorSpec(images.shape[1:], tf.uint8), tf.TensorSpec((), tf.int64)
    dataset = tf.data.Dataset.from_generator(lambda: zip(images, labels), output_signature=one)
    return dataset.apply(tf.data.experimental.assert_cardinality(len(labels)))  # else Keras does not know its length


def read(folder, names, size):
    """Read the pictures in the folders of these classes. Return images, uint8 (n, height, width, 3), and labels, int64
    (n,), in a mixed order."""
    files = []
    for label, name in enumerate(names):
        for path in sorted(Path(folder, name).glob("[!.]*")):  # none if there is no such folder
            files.append((path, label, path.lstat().st_mtime))
    order = np.random.default_rng(0).permutation(len(files))  # they are sorted by class
    return read_files(folder, names, size, tuple(files[index] for index in order))


@functools.lru_cache(2)  # of both splits, since load_data() may be called twice
def read_files(folder, names, size, files):
    """Read those of the `files`, (path, label, time of its last change), that are pictures; if one has changed, all are
    read again. Print how many each class has, and what is left out. Return the same as read()."""
    images = np.empty((len(files), *size, 3), np.uint8)  # not a list, which would need as much again
    labels = []
    left_out = []
    for path, label, _ in tqdm(files, unit=" files", ncols=79, delay=1, disable=verbose() == 2):
        if not path.is_file():  # a folder; or a pipe, which would be waited for
            left_out.append(f"  {path}: it is not a file")
            continue
        try:
            small, _ = image_file.load(path, size[::-1])
        except Exception as error:  # each of Pillow's readers has exceptions of its own
            left_out.append(f"  {path}: {image_file.why_not_read(error)}")
            continue
        images[len(labels)] = small
        labels.append(label)
    counts = [f"{labels.count(label)} of {name}" for label, name in enumerate(names)]
    print(f"{folder}: {shorten(', '.join(counts), 400)}")
    if left_out:
        print(f"Left out: {len(left_out)}", *sorted(left_out)[:max_named], sep="\n")
    if len(left_out) > max_named:
        print(f"  and {len(left_out) - max_named} more")
    return images[:len(labels)], np.array(labels, np.int64)
