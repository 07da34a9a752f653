"""Everything there is to look at: the user's pictures, the report, the sample picture and its window."""
import io
import os
import re
import shutil
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from conftest import (
    environment,
    name,
    posix,
    rare,
    reader,
    root,
    run,
    run_after,
    size_and_colours,
    start,
    without_privileges,
)
from small_cifar10 import labels, make_images


@pytest.fixture(scope="module")
def model(trained):
    import keras
    return keras.models.load_model(trained / f"results/{name}.h5", compile=False)


def classify(folder, *files, code=0, model=f"results/{name}.h5"):
    """`test.py --image`, without any data set; return its lines, by file, and its errors."""
    out, err = run("test.py", model, "--image", *files, cwd=folder, data=folder / "no data", code=code)
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


def test_bad_files_do_not_stop_the_good_ones(folder, photo, tmp_path):
    photo.save(tmp_path / "good.png")
    photo.resize((800, 800)).save(tmp_path / "whole.jpg")
    (tmp_path / "truncated.jpg").write_bytes((tmp_path / "whole.jpg").read_bytes()[:5000])
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.jpg").write_text("no picture at all")
    (tmp_path / "folder.png").mkdir()
    Image.new("1", (16_000, 16_000)).save(tmp_path / "large.png")
    Image.new("F", (40, 40), 0.5).save(tmp_path / "32-bits.tif")
    bad = ["missing.png", "truncated.jpg", "empty.png", "text.jpg", "folder.png", "large.png", "32-bits.tif"]
    found, err = classify(folder, *[tmp_path / file for file in [*bad, "good.png"]], code=1)
    assert list(found) == [(tmp_path / "good.png").as_posix()]
    lines = err.strip().split("\n")
    assert "8 or 16" in lines[-1]
    assert len(lines) == len(bad) and all((tmp_path / file).as_posix() in line for file, line in zip(bad, lines))


def test_a_folder_and_a_pattern_are_all_their_pictures(folder, photo, tmp_path):
    """The shell of Windows does not replace photos/*.jpg; a file may have such a name, too."""
    (tmp_path / "photos/album").mkdir(parents=True)
    for file in "a.jpg", "b.png", "c.jpg", "[d].jpg", ".hidden.jpg":
        photo.save(tmp_path / "photos" / file)
    found, err = classify(tmp_path, "photos", "photos/?.jpg", "photos/[d].jpg", model=folder / f"results/{name}.h5")
    files = [Path(file).name for file in found]
    assert sorted(files) == ["[d].jpg", "a.jpg", "b.png", "c.jpg"] and err == ""
    out, err = run("test.py", folder / f"results/{name}.h5", "--image", "photos/?.jpg", "photos", cwd=tmp_path,
                   data=tmp_path)
    assert out.count("a.jpg: ") == 2 and out.count("b.png: ") == 1
    found, err = classify(tmp_path, "photos/*.bmp", "photos/album", model=folder / f"results/{name}.h5", code=1)
    assert found == {} and "*.bmp: cannot be read" in err
    assert "photos/album: cannot be read as a picture: it is a folder; only" in err.replace("\\", "/")


def test_what_is_no_picture_in_a_folder_is_said_and_left_out(folder, photo, tmp_path):
    """It is no failure, unless it was named, or nothing else is there. A pattern may have folders in it."""
    for album in "a", "b":
        (tmp_path / "photos" / album).mkdir(parents=True)
        photo.save(tmp_path / "photos" / album / "1.png")
    (tmp_path / "photos/a/notes.txt").write_text("no picture")
    (tmp_path / "photos/c").mkdir()
    (tmp_path / "photos/c/notes.txt").write_text("no picture")
    model = folder / f"results/{name}.h5"
    found, err = classify(tmp_path, "photos/*/1.png", "photos/?", model=model)
    assert [file.replace("\\", "/") for file in found] == ["photos/a/1.png", "photos/b/1.png"]
    assert err.count("\n") == 2 and err.count("notes.txt: cannot be read: it is not a picture") == 2
    for named in "photos/a/notes.txt", "photos/c", "photos":  # the last one has only folders
        found, err = classify(tmp_path, named, model=model, code=1)
        assert found == {} and err.count("\n") == 1 and (tmp_path / named).as_posix() in err


def test_a_picture_of_an_iphone(folder, tmp_path):
    (tmp_path / "phone.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100))
    found, err = classify(folder, tmp_path / "phone.heic", code=1)
    assert "(save it as JPEG or PNG)" in err and err.count("phone.heic") == 1


def test_a_model_among_the_pictures(folder, tmp_path):
    out, err = run("test.py", "--image", "a.png", f"results/{name}.h5", cwd=folder, data=tmp_path, code=2)
    assert f"results/{name}.h5 is a model, not a picture. Name it before --image" in err and out == ""


def test_a_photo_with_odd_metadata_is_turned_and_answered(folder):
    from support import image_file
    file = root / "tests/data/photo-odd-exif.jpg"
    found, err = classify(folder, file)
    assert list(found) == [file.as_posix()] and err == ""
    with Image.open(file) as stored:
        assert image_file.load(file, (32, 32))[1].size == stored.size[::-1]


def test_any_name_is_printed_and_drawn(folder, photo, tmp_path):
    names = ["$.png", "$a_$b$.png", "_^{}%&#~.png", "ß 写真.png"]
    if os.name != "nt":
        names.append("$\\frac$.png")
    if sys.platform == "linux":  # elsewhere, all names are Unicode
        names.append(os.fsdecode(b"\xff\xfe.png"))
    files = [tmp_path / file for file in names]
    for file in files:
        photo.save(file)
    found, err = classify(folder, *files, files[-1].with_suffix(".missing"), code=1)
    printed = [file.as_posix().encode(errors="backslashreplace").decode() for file in files]
    assert list(found) == printed and (folder / f"results/{name}-images.png").exists()
    assert err == f"{printed[-1][:-4]}.missing: cannot be read as a picture: No such file or directory\n"


@rare
def test_a_hundred_of_many_pictures_are_drawn(folder, photo, tmp_path):
    small = photo.resize((8, 8))
    files = []
    for number in range(103):
        files.append(tmp_path / f"{number}.png")
        small.save(files[-1])
    files[50].write_bytes(b"")
    out, err = run("test.py", "--image", *files, cwd=folder, data=folder / "no data", code=1)
    lines = out.strip().replace("\\", "/").split("\n")
    good = [file.as_posix() for file in files if file != files[50]]
    assert [line.rsplit(": ", 1)[0] for line in lines[:-2]] == good
    assert lines[-2:] == ["The picture shows the first 100 of 102.", f"Picture saved as results/{name}-images.png"]
    assert err.count("\n") == 1 and files[50].as_posix() in err
    size, colours = size_and_colours(folder / f"results/{name}-images.png")
    assert size == (1000, 14_500)


@posix
def test_answers_come_before_the_last_file_is_there(folder, photo, tmp_path):
    photo.save(tmp_path / "photo.png")
    os.mkfifo(tmp_path / "late.png")
    script = start("test.py", "--image", tmp_path / "photo.png", tmp_path / "late.png", cwd=folder,
                   data=folder / "no data")
    deadline = time.monotonic() + 120
    while "photo.png: " not in script.output()[0]:
        assert script.poll() is None and time.monotonic() < deadline, script.output()
        time.sleep(0.01)
    (tmp_path / "late.png").write_bytes((tmp_path / "photo.png").read_bytes())
    out, err = script.wait()
    assert script.returncode == 0 and err == "" and f"{tmp_path / 'late.png'}: " in out


@pytest.mark.parametrize("count", [1, 3])
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
    assert size == (1700, 800) and colours > 200
    events = reader(folder / "logs" / name / "report")
    (tag,) = events.Tags()["tensors"]
    (event,) = events.Tensors(tag)
    width, height, logged = event.tensor_proto.string_val
    assert (int(width), int(height)) == size
    with Image.open(io.BytesIO(logged)) as logged, Image.open(picture) as saved:
        assert np.array_equal(np.asarray(logged.convert("RGB")), np.asarray(saved.convert("RGB")))


def test_confusion_matrix(tmp_path, monkeypatch, capsys):
    import keras
    import matplotlib.pyplot as plt
    import tensorflow as tf

    from support import pictures
    monkeypatch.chdir(tmp_path)
    true = np.array([0, 0, 0, 3, 5, 5])  # the other classes have no test images
    predicted = np.array([0, 0, 8, 3, 3, 5])
    highest = np.float32([0.5, 0.5, 0.6, 0.5, 0.9, 0.5])
    images = np.zeros((6, 32, 32, 3), np.float32)
    answers = images.reshape(6, -1)  # the model's answers are the first ten values of an image
    answers[:, :10] = (1 - highest[:, None]) / 9
    answers[range(6), predicted] = highest
    model = keras.Sequential([keras.Input((32, 32, 3)), keras.layers.Flatten(), keras.layers.Dense(10, use_bias=False)])
    model.layers[-1].kernel.assign(np.eye(3072, 10))
    ds_test = tf.data.Dataset.from_tensor_slices((images, true)).batch(4)
    pictures.report(tmp_path / "other.h5", model, ds_test, dict(enumerate(labels)))
    out = capsys.readouterr().out
    assert re.search(r"^airplane +2 +3 +66\.7%$", out, re.M) and re.search(r"^truck +0 +0 +-$", out, re.M)
    left, right = plt.gcf().subfigs
    cells = {text.get_position(): text.get_text() for text in left.axes[0].texts}
    assert {cell: text for cell, text in cells.items() if text != "0"} == {
        (0, 0): "2", (8, 0): "1", (3, 3): "1", (3, 5): "1", (5, 5): "1"}  # x is predicted, y is true
    assert [axes.get_title() for axes in right.axes if axes.get_title()] == [
        "cat 90.0%\ntrue: dog", "ship 60.0%\ntrue: airplane"]
    for ticks in left.axes[0].get_xticklabels(), left.axes[0].get_yticklabels():
        assert [tick.get_text() for tick in ticks] == labels


def test_preprocessing_that_does_not_fit_the_model(small_model):
    import keras
    import tensorflow as tf

    from support import pictures
    from support.errors import UserError
    model = keras.models.load_model(small_model, compile=False)
    with pytest.raises(UserError) as error:
        pictures.as_batch(Image.new("RGB", (32, 32)), model,
                         lambda image, label: (tf.image.rgb_to_grayscale(image), label))
    assert "images of shape (32, 32, 1),\nbut the model takes (32, 32, 3)" in str(error.value)


@posix
def test_a_picture_that_cannot_be_saved(small_model, tmp_path, tiny):
    """It is shown all the same."""
    (tmp_path / "others").mkdir()
    shutil.copy(small_model, tmp_path / "others/model.h5")
    (tmp_path / "others").chmod(0o555)
    out, err = run_after(without_privileges, "test.py", "others/model.h5", "--report", cwd=tmp_path, data=tiny)
    assert out.count(f"The picture cannot be saved: {tmp_path}/others/model-") == 2 and err == ""
    assert "Permission denied" in out and re.search("^all ", out, re.M)
    (tmp_path / "others").chmod(0o755)


def test_pictures_stay_beside_their_models(small_model, tmp_path, tiny):
    for person in "anna", "ben":
        (tmp_path / person).mkdir()
        shutil.copy(small_model, tmp_path / person / "model.h5")
        out, err = run("test.py", f"{person}/model.h5", cwd=tmp_path, data=tiny)
        assert f"Picture saved as {person}/model-sample.png" in out and err == ""
    assert size_and_colours(tmp_path / "anna/model-sample.png")[0] == (400, 440)


no_window = """
from matplotlib.backends.backend_agg import *
def show(*arguments, **options):
    raise AttributeError("'FigureCanvasInterAgg' object has no attribute 'tostring_rgb'")
"""


@rare
def test_a_window_that_cannot_be_shown(folder, data):
    """As in a PyCharm that is older than its Matplotlib."""
    (folder / "no_window.py").write_text(no_window)
    env = environment(data, MPLBACKEND="module://no_window", PYTHONPATH=str(folder))
    out, err = run("test.py", "--report", cwd=folder, data=data, env=env, plain=True)
    assert err == "" and out.count("The window cannot be shown: 'FigureCanvasInterAgg' object has no") == 2
    for kind in "sample", "report":
        assert size_and_colours(folder / f"results/{name}-{kind}.png")[1] > 100


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


def test_a_window_where_there_is_a_display(display, small_model, tiny, tmp_path):
    (tmp_path / "window.py").write_text(window)
    (tmp_path / "matplotlibrc").write_text("figure.hooks: window:close_soon")
    env = environment(tiny, MPLBACKEND="", DISPLAY=display, PYTHONPATH=str(tmp_path))
    out, err = run("test.py", small_model, cwd=tmp_path, data=tiny, env=env, plain=True)
    assert "Picture saved as" in out and err == ""
    assert (tmp_path / "window.txt").read_text().lower() in ("tkagg", "macosx", "qtagg", "gtk4agg", "gtk3agg")
