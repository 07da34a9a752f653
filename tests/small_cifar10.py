"""Make a small CIFAR-10 for trying everything offline: python tests/small_cifar10.py FOLDER [TRAIN TEST]

Ten classes of 32x32 pictures that can be told apart by colour and stripes, 100 a class for training (TRAIN) and 40 for
the test (TEST), in the binary format of the real archive, prepared by TensorFlow Datasets' own cifar10 builder.
Then train on them with the command that it prints.
"""
import contextlib
import hashlib
import io
import os
import sys
import tarfile
from pathlib import Path

import numpy as np

labels = "airplane automobile bird cat deer dog frog horse ship truck".split()
colours = np.array([(220, 60, 60), (60, 220, 60), (60, 60, 220), (220, 220, 60), (220, 60, 220),
                    (60, 220, 220), (230, 140, 40), (140, 40, 230), (230, 230, 230), (40, 40, 40)])


def make_images(count, seed):
    """Return `count` images a class, uint8 (10 * count, 32, 32, 3), and their labels, uint8, both in mixed order."""
    random = np.random.default_rng(seed)
    classes = random.permutation(np.repeat(np.arange(10, dtype=np.uint8), count))
    rows, columns = np.mgrid[:32, :32]
    angles = classes[:, None, None] * np.pi / 10
    shift = random.uniform(0, 2 * np.pi, (len(classes), 1, 1))
    stripes = np.sin((np.cos(angles) * rows + np.sin(angles) * columns) * 0.8 + shift)
    noise = random.normal(0, 40, (len(classes), 32, 32, 3))
    images = colours[classes][:, None, None, :] + 60 * stripes[..., None] + noise
    return images.clip(0, 255).astype(np.uint8), classes


def make_archive(path, train_count=100, test_count=40):
    """Write the images as `cifar-10-binary.tar.gz` at `path`; return its SHA-256."""
    path.parent.mkdir(parents=True, exist_ok=True)
    train, test = make_images(train_count, seed=0), make_images(test_count, seed=1)
    files = {"batches.meta.txt": "\n".join(labels).encode(), "test_batch.bin": as_records(*test)}
    for number, images, classes in zip(range(1, 6), np.split(train[0], 5), np.split(train[1], 5)):
        files[f"data_batch_{number}.bin"] = as_records(images, classes)
    with tarfile.open(path, "w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return hashlib.sha256(path.read_bytes()).hexdigest()


def as_records(images, classes):
    """Return the bytes of CIFAR-10's binary format: the label, then the red, the green and the blue plane."""
    planes = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
    return np.concatenate([classes[:, None], planes], axis=1).tobytes()


def register(archive, name="cifar10"):
    """Make TFDS's builder of this name accept this archive as the one it knows, in this process."""
    import tensorflow_datasets as tfds
    known = tfds.builder_cls(name).url_infos
    for url in known:
        known[url] = tfds.download.checksums.UrlInfo(size=archive.stat().st_size, filename=archive.name,
                                                     checksum=hashlib.sha256(archive.read_bytes()).hexdigest())


def prepare(folder, *counts):
    """Prepare the small data set in `folder`, a Path, as TFDS_DATA_DIR expects it; `counts` as for make_archive."""
    sys.path.insert(0, str(Path(__file__).parents[1]))
    import support.start  # quiets TensorFlow

    import tensorflow_datasets as tfds
    archive = folder / "downloads" / "manual" / "cifar-10-binary.tar.gz"
    make_archive(archive, *counts)
    register(archive)
    tfds.disable_progress_bar()
    with contextlib.redirect_stdout(io.StringIO()):
        tfds.builder("cifar10", data_dir=folder).download_and_prepare()


def command(folder):
    """Return the whole command that trains on the data set in this folder."""
    from support.commands import quoted
    train = f"python {quoted(Path(__file__).parents[1] / 'train.py')} --name small --epochs 3"
    if os.name == "nt":
        return f"$env:TFDS_DATA_DIR = \"{folder}\"; {train}"  # in PowerShell
    return f"TFDS_DATA_DIR={quoted(folder)} {train}"


if __name__ == "__main__":
    if len(sys.argv) not in (2, 4):
        sys.exit(__doc__)
    print(f"Making a small CIFAR-10 in {sys.argv[1]}")
    prepare(Path(sys.argv[1]), *map(int, sys.argv[2:]))
    print(f"Now run: {command(Path(sys.argv[1]).absolute())}")
