"""What is there to look at: own pictures, the report, the curves."""
import io
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from conftest import environment, message, name, reader, run, size_and_colours
from small_cifar10 import labels, make_images


@pytest.fixture(scope="module")
def model(trained):
    import keras
    return keras.models.load_model(trained / f"results/{name}.h5", compile=False)


@pytest.fixture(scope="module")
def photo():
    """A picture that is no square, with a different colour in each corner."""
    rows, columns = np.mgrid[:120, :200]
    return Image.fromarray(np.stack([rows * 2, columns, 255 - rows * 2], axis=-1).astype(np.uint8))


def classify(folder, *files, code=0):
    """`test.py --image`, without any data set; return its lines, by file, and its errors."""
    out, err = run("test.py", "--image", *files, cwd=folder, data=folder / "no data", code=code)
    lines = [line for line in out.split("\n") if line and not line.startswith("Picture saved as")]
    for line in lines:
        assert re.fullmatch(r".+: (\w+) \(\1 [\d.]+%, \w+ [\d.]+%, \w+ [\d.]+%\)", line), line
    return {line.rsplit(": ", 1)[0]: line.rsplit(": ", 1)[1] for line in lines}, err


def expected(model, pixels):
    probabilities = model.predict(np.float32(pixels)[None] / 255, verbose=0)[0]
    best = np.argsort(-probabilities)[:3]
    return labels[best[0]], [labels[label] for label in best], probabilities[best]


def test_same_as_the_model_on_the_same_pixels(folder, model, tmp_path):
    images, classes = make_images(1, seed=5)
    files = []
    for number, image in enumerate(images):
        files.append(tmp_path / f"{number}.png")
        Image.fromarray(image).save(files[-1])
    found, err = classify(folder, *files)
    assert err == "" and list(found) == [file.as_posix() for file in files]
    for file, image in zip(files, images):
        label, three, probabilities = expected(model, image)
        assert found[file.as_posix()].startswith(label + " (")
        shown = re.findall(r"(\w+) ([\d.]+)%", found[file.as_posix()])
        assert [word for word, number in shown] == three
        assert [float(number) / 100 for word, number in shown] == pytest.approx(probabilities, abs=1e-4)
    size, colours = size_and_colours(folder / f"results/{name}-images.png")
    assert size[0] == 1000 and size[1] > 1000 and colours > 1000


def test_formats_and_modes(folder, photo, tmp_path):
    grey = photo.convert("L")
    sixteen = Image.fromarray((np.asarray(grey).astype(np.uint16) * 257))
    half = photo.copy()
    half.putalpha(128)
    variants = {"a.png": photo, "b.bmp": photo, "c.jpg": photo, "d.webp": photo, "e.gif": photo.convert("P"),
                "palette.png": photo.convert("P"), "grey.png": grey, "grey.jpg": grey, "alpha.png": half,
                "grey-alpha.png": half.convert("LA"), "16.png": sixteen, "16.tif": sixteen,
                "cmyk.jpg": photo.convert("CMYK"), "cmyk.tif": photo.convert("CMYK"), "bits.png": grey.convert("1"),
                "tall.png": photo.resize((3, 500)), "dot.png": photo.resize((1, 1)),
                "wide.jpg": photo.resize((3000, 40))}
    for file, image in variants.items():
        image.save(tmp_path / file)
    frames = [photo, photo.rotate(90)]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    found, err = classify(folder, *[tmp_path / file for file in [*variants, "moving.gif"]])
    assert err == "" and len(found) == len(variants) + 1


def seen(image, path, **options):
    """What the model sees of an image that was saved at `path`, as uint8."""
    from support.pictures import load_image
    image.save(path, **options)
    pixels, shown = load_image(path)
    assert pixels.shape == (32, 32, 3) and pixels.dtype == np.float32 and shown.mode == "RGB"
    return np.round(pixels * 255).astype(int)


def test_pixels_of_every_mode(photo, tmp_path):
    square = photo.resize((32, 32))
    grey = np.asarray(square.convert("L"))
    np.testing.assert_array_equal(seen(square, tmp_path / "a.png"), np.asarray(square))
    three = np.repeat(grey[..., None], 3, axis=-1)
    np.testing.assert_array_equal(seen(Image.fromarray(grey), tmp_path / "grey.png"), three)
    np.testing.assert_array_equal(seen(Image.fromarray(grey.astype(np.uint16) * 257), tmp_path / "16.png"), three)
    clear = square.copy()
    clear.putalpha(0)
    assert (seen(clear, tmp_path / "clear.png") == 255).all(), "what is transparent is white"
    cmyk = seen(square.convert("CMYK"), tmp_path / "cmyk.tif")
    assert abs(cmyk - np.asarray(square).astype(int)).mean() < 3


def test_middle_square_turned_as_the_camera_was_held(tmp_path):
    stripes = np.zeros((60, 100, 3), np.uint8)
    stripes[:, :20, 0] = stripes[:, 80:, 0] = 255  # outside the middle square
    stripes[:30, 20:80, 1] = 255  # its upper half
    picture = Image.fromarray(stripes)
    pixels = seen(picture, tmp_path / "wide.png")
    assert pixels[..., 0].max() < 30 and pixels[:14, :, 1].min() > 225 and pixels[18:, :, 1].max() < 30
    exif = picture.getexif()
    exif[0x0112] = 3  # upside down
    pixels = seen(picture, tmp_path / "turned.jpg", exif=exif, quality=100)
    assert pixels[:14, :, 1].max() < 60 and pixels[18:, :, 1].min() > 195


def test_reduced_with_antialiasing(tmp_path):
    checkers = (np.indices((640, 640)).sum(axis=0) % 2 * 255).astype(np.uint8)
    pixels = seen(Image.fromarray(checkers), tmp_path / "checkers.png")
    assert 120 < pixels.min() and pixels.max() < 135, "single pixels were picked"


def test_bad_files_do_not_stop_the_good_ones(folder, photo, tmp_path):
    photo.save(tmp_path / "good.png")
    photo.resize((800, 800)).save(tmp_path / "whole.jpg")
    (tmp_path / "truncated.jpg").write_bytes((tmp_path / "whole.jpg").read_bytes()[:5000])
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.jpg").write_text("no picture at all")
    (tmp_path / "folder.png").mkdir()
    Image.new("1", (16_000, 16_000)).save(tmp_path / "large.png")
    bad = ["missing.png", "truncated.jpg", "empty.png", "text.jpg", "folder.png", "large.png"]
    found, err = classify(folder, *[tmp_path / file for file in [*bad, "good.png"]], code=1)
    assert list(found) == [(tmp_path / "good.png").as_posix()]
    lines = err.strip().split("\n")
    assert len(lines) == len(bad) and all((tmp_path / file).as_posix() in line for file, line in zip(bad, lines))
    found, err = classify(folder, tmp_path / "missing.png", code=1)
    assert found == {} and "missing.png" in message(err)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_no_caption_is_cut_off(folder, photo, tmp_path, count):
    photo.save(tmp_path / "photo.png")
    classify(folder, *[tmp_path / "photo.png"] * count)
    with Image.open(folder / f"results/{name}-images.png") as picture:
        assert (np.asarray(picture.convert("RGB"))[:3] == 255).all()  # the captions stand at the top


def test_report(folder, data):
    import tensorflow as tf
    with tf.summary.create_file_writer(str(folder / "logs" / name / "report")).as_default():
        tf.summary.image("report", np.zeros((1, 8, 8, 3)), step=0)  # of an earlier report
    out, err = run("test.py", "--report", cwd=folder, data=data)
    assert err == ""
    accuracy = float(re.search(r"^Test accuracy: ([\d.]+) %$", out, re.M)[1])
    rows = re.findall(r"^(\w+) +(\d+) +(\d+) +([\d.]+)%$", out, re.M)
    assert [row[0] for row in rows] == labels + ["all"]
    correct, total = [int(row[1]) for row in rows], [int(row[2]) for row in rows]
    assert total == [40] * 10 + [400] and sum(correct[:10]) == correct[10]
    assert correct[10] / 400 == pytest.approx(accuracy / 100, abs=1e-6)
    percent = [number / 40 * 100 for number in correct[:10]]
    assert [float(row[3]) for row in rows[:10]] == pytest.approx(percent, abs=0.051)
    picture = folder / f"results/{name}-report.png"
    size, colours = size_and_colours(picture)
    assert size == (1700, 800) and colours > 500
    events = reader(folder / "logs" / name / "report")
    (tag,) = events.Tags()["tensors"]
    (event,) = events.Tensors(tag)
    width, height, logged = event.tensor_proto.string_val
    assert (int(width), int(height)) == size
    with Image.open(io.BytesIO(logged)) as logged, Image.open(picture) as saved:
        assert np.array_equal(np.asarray(logged.convert("RGB")), np.asarray(saved.convert("RGB")))


def test_confusion_matrix(tmp_path, monkeypatch, capsys):
    from support import pictures
    drawn = []
    monkeypatch.setattr(pictures, "show", lambda figure, path: drawn.append(figure))
    true = np.array([0, 0, 0, 3, 5, 5])
    predicted = np.array([0, 0, 8, 3, 3, 5])
    probabilities = np.full((6, 10), 0.01, np.float32)
    probabilities[range(6), predicted] = [0.5, 0.5, 0.6, 0.5, 0.9, 0.5]
    pictures.report(np.zeros((6, 32, 32, 3)), true, probabilities, dict(enumerate(labels)), tmp_path / "report.png")
    left, right = drawn[0].subfigs
    cells = {text.get_position(): text.get_text() for text in left.axes[0].texts}
    assert {cell: text for cell, text in cells.items() if text != "0"} == {
        (0, 0): "2", (8, 0): "1", (3, 3): "1", (3, 5): "1", (5, 5): "1"}  # x is predicted, y is true
    assert [axes.get_title() for axes in right.axes if axes.get_title()] == [
        "cat 90.0%\ntrue: dog", "ship 60.0%\ntrue: airplane"]
    for ticks in left.axes[0].get_xticklabels(), left.axes[0].get_yticklabels():
        assert [tick.get_text() for tick in ticks] == labels


def test_sample_picture(folder, data):
    run("test.py", cwd=folder, data=data)
    size, colours = size_and_colours(folder / f"results/{name}-sample.png")
    assert size == (400, 440) and colours > 100


window = """
import os
from pathlib import Path

import matplotlib.pyplot as plt


def close_soon(figure):
    def close():
        Path("window.txt").write_text(plt.get_backend())
        plt.close(figure)
    figure.timer = figure.canvas.new_timer(interval=1000)
    figure.timer.add_callback(close)
    figure.timer.start()
"""


@pytest.fixture
def display():
    """DISPLAY, of Xvfb if there is no other; Windows and macOS need none."""
    if os.environ.get("DISPLAY") or sys.platform in ("win32", "darwin"):
        yield os.environ.get("DISPLAY", "")
    elif not shutil.which("Xvfb"):
        pytest.skip("there is no display, and no Xvfb to make one")
    else:
        pytest.importorskip("tkinter", reason="this Python has no windows")
        theirs, ours = os.pipe()
        screen = subprocess.Popen(["Xvfb", "-displayfd", str(ours)], pass_fds=[ours], stderr=subprocess.DEVNULL)
        yield ":" + os.read(theirs, 10).decode().strip()
        screen.terminate()
        screen.wait()


def test_a_window_where_there_is_a_display(display, small_model, tiny, tmp_path):
    (tmp_path / "window.py").write_text(window)
    (tmp_path / "matplotlibrc").write_text("figure.hooks: window:close_soon")
    env = environment(tiny, MPLBACKEND="", DISPLAY=display, PYTHONPATH=str(tmp_path))
    out, err = run("test.py", small_model, cwd=tmp_path, data=tiny, env=env, plain=True)
    assert "Picture saved as" in out and err == ""
    assert (tmp_path / "window.txt").read_text().lower() in ("tkagg", "macosx", "qtagg", "gtk4agg", "gtk3agg")
