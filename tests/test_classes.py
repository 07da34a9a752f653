"""Pictures in folders become classes, whatever else is in the folders."""
import os
import shutil

import numpy as np
import pytest
from PIL import Image

from conftest import message, posix


def picture(path, colour, size=(60, 40), **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path, **options)
    return path


@pytest.fixture
def folder(tmp_path):
    """Two classes, each with a picture to train on and one to test on."""
    for name, colour in ("cat", "red"), ("dog", "blue"):
        picture(tmp_path / "train" / name / "a.png", colour)
        picture(tmp_path / "test" / name / "a.png", colour)
    return tmp_path


def loaded(folder, size=(32, 32)):
    """The images and labels of both splits, and info."""
    from support import classes
    ds_train, ds_test, info = classes.from_folder(folder, size)
    assert len(ds_train) == info.splits["train"].num_examples  # Keras asks for it
    parts = []
    for dataset in ds_train, ds_test:
        images, labels = zip(*dataset.as_numpy_iterator())
        parts += [np.array(images), np.array(labels)]
    return *parts, info


def refusal(folder):
    from support.errors import UserError
    with pytest.raises(UserError) as error:
        loaded(folder)
    return message(str(error.value))


def test_what_comes_back(folder, capsys):
    from support import classes
    for number in range(20):
        picture(folder / f"train/dog/{number}.jpg", "blue", quality=95)
    images, labels, test_images, test_labels, info = loaded(folder, (24, 48))
    assert images.shape == (22, 24, 48, 3) and images.dtype == np.uint8 and labels.dtype == np.int64
    assert info.features["image"].shape == (24, 48, 3) and info.splits["train"].num_examples == 22
    assert info.features["label"].names == ["cat", "dog"] and classes.categories(folder) == {0: "cat", 1: "dog"}
    cats = images[labels == 0]
    assert len(cats) == 1 and (cats == [255, 0, 0]).all()
    assert abs(images[labels == 1].astype(int) - [0, 0, 255]).max() < 5
    assert sorted(test_labels) == [0, 1]
    printed = f"{folder / 'train'}: 1 of cat, 21 of dog\n{folder / 'test'}: 1 of cat, 1 of dog\n"
    assert capsys.readouterr().out == printed


def test_the_order_is_mixed_and_always_the_same(folder):
    from support import classes
    for number in range(40):
        picture(folder / f"train/{'cat' if number < 20 else 'dog'}/{number}.png", (number, 0, 0))
    first = loaded(folder)[1]
    assert list(first) != sorted(first)
    classes.read_files.cache_clear()
    assert list(loaded(folder)[1]) == list(first)


def test_the_pictures_are_in_memory_once(folder):
    """Besides the copy that train.py's cache() makes; and each is read once for both streams of a run."""
    import tracemalloc

    from support import classes
    for number in range(200):
        picture(folder / f"train/cat/{number}.png", (number, 0, 0))
    classes.read_files.cache_clear()
    tracemalloc.start()
    ds_train, ds_test, info = classes.from_folder(folder, (256, 256))
    again = classes.from_folder(folder, (256, 256))[0]
    size = 202 * 256 * 256 * 3
    current, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert size <= current and peak < 1.3 * size
    for one, other in zip(ds_train, again):
        assert np.array_equal(one[0], other[0]) and one[1] == other[1]


def test_every_format_counts_and_what_is_no_picture_is_named(folder, capsys):
    """The files that people have in such folders."""
    cat = folder / "train/cat"
    for file in "b.webp", "c.bmp", "d.gif", "e.tif", "F.JPG":
        picture(cat / file, "red")
    picture(cat / "x.webp", "red").rename(cat / "web.jpg")  # a WebP saved as .jpg
    Image.new("RGBA", (50, 50), (255, 0, 0, 128)).save(cat / "half.png")
    Image.new("L", (50, 50), 100).save(cat / "grey.png")
    (cat / "._a.jpg").write_bytes(b"\0\5\x16\7" + bytes(100))  # as Macs leave them in archives
    whole = picture(folder / "whole.jpg", "red", (400, 400)).read_bytes()
    (cat / "cut.jpg").write_bytes(whole[:len(whole) // 2])
    (cat / "phone.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100))
    (cat / "notes.txt").write_text("no picture")
    (cat / "album").mkdir()
    images, labels, *_, info = loaded(folder)
    assert (labels == 0).sum() == 9 and info.splits["train"].num_examples == 10
    out = capsys.readouterr().out
    assert "train: 9 of cat, 1 of dog\nLeft out: 4\n" in out
    assert f"  {cat / 'album'}: it is not a file" in out
    assert f"  {cat / 'cut.jpg'}: cannot be read as a picture: image file is truncated" in out
    assert f"  {cat / 'notes.txt'}: cannot be read: it is not a picture, or of a format that Pillow lacks" in out
    assert "  and 1 more\n" in out and "._a.jpg" not in out, "a hidden file is no picture, as with --image"


@posix
def test_a_pipe_is_not_waited_for(folder, capsys):
    os.mkfifo(folder / "train/cat/pipe.png")
    loaded(folder)
    assert "pipe.png: it is not a file" in capsys.readouterr().out


def test_hidden_folders_are_no_classes(folder):
    shutil.copytree(folder / "train/cat", folder / "train/.ipynb_checkpoints")
    (folder / "train/.DS_Store").touch()
    (folder / "train/readme.txt").touch()
    assert loaded(folder)[-1].features["label"].names == ["cat", "dog"]


def test_an_empty_class_is_said(folder):
    (folder / "test/bird").mkdir()
    assert f"There are no pictures to train on in {folder / 'train/bird'}." in refusal(folder)
    (folder / "train/bird").mkdir()
    (folder / "train/bird/text.jpg").write_text("no picture")
    assert f"There are no pictures to train on in {folder / 'train/bird'}." in refusal(folder)


def test_nothing_to_test_on(folder):
    shutil.rmtree(folder / "test")
    assert f"There are no pictures to test on in {folder / 'test'}." in refusal(folder)


def test_no_such_folder(tmp_path):
    from support import classes
    assert f"There are no classes in {tmp_path / 'pictures'}." in refusal(tmp_path / "pictures")
    assert classes.categories(tmp_path / "pictures") == {}


def test_pictures_are_read_once_and_new_ones_are_seen(folder, capsys):
    loaded(folder)
    loaded(folder)
    assert capsys.readouterr().out.count("of cat") == 2, "it was read twice"
    picture(folder / "train/cat/a.png", "yellow")
    os.utime(folder / "train/cat/a.png", (1, 1))
    images, labels, *_ = loaded(folder)
    assert (images[labels == 0] == [255, 255, 0]).all()
