"""Before TensorFlow: missing and broken packages, a quiet console, Ctrl-C while packages are imported."""
import re
import shutil
import subprocess
import sys
import time

import pytest
from PIL import Image

from conftest import (
    checkpoint,
    curves,
    environment,
    interrupt,
    message,
    name,
    options,
    posix,
    root,
    run,
    start,
    wait_for,
)


@pytest.mark.parametrize("script", ["train.py", "test.py"])
@pytest.mark.parametrize("arguments", [[], ["--help"]])
def test_packages_not_installed(script, arguments, tmp_path):
    done = subprocess.run([sys.executable, "-E", "-s", "-S", root / script, *arguments], cwd=tmp_path,
                          capture_output=True, encoding="utf-8", env=environment(tmp_path))
    assert done.returncode == 1 and done.stdout == ""
    version = ".".join(map(str, sys.version_info[:3]))
    for word in "tensorflow", version, "3.10 to 3.13", "pip install -r requirements.txt":
        assert word in message(done.stderr)
    assert list(tmp_path.iterdir()) == []


def test_a_broken_package_shows_its_own_error(tmp_path):
    (tmp_path / "tensorflow").mkdir()
    (tmp_path / "tensorflow/__init__.py").write_text("import no_such_module")
    done = subprocess.run([sys.executable, root / "train.py"], cwd=tmp_path, capture_output=True, encoding="utf-8",
                          env=environment(tmp_path, PYTHONPATH=str(tmp_path)))
    assert done.returncode == 1 and "No module named 'no_such_module'" in done.stderr


def test_a_broken_tfds_is_not_taken_for_broken_data(tmp_path):
    """TFDS swallows an error of its own import, here that of a tensorflow-metadata for another protobuf."""
    (tmp_path / "tensorflow_metadata").mkdir()
    (tmp_path / "tensorflow_metadata/__init__.py").write_text("raise TypeError('built for another protobuf')")
    done = subprocess.run([sys.executable, root / "train.py"], cwd=tmp_path, capture_output=True, encoding="utf-8",
                          env=environment(tmp_path / "data", PYTHONPATH=str(tmp_path)))
    assert done.returncode == 1 and done.stdout == ""
    assert "A package is broken: built for another protobuf" in message(done.stderr)


@posix
@pytest.mark.parametrize("script, moment", [("train.py", 1), ("test.py", 1), ("test.py", 2.5), ("train.py", "data")])
def test_ctrl_c_before_training(script, moment, tmp_path, tiny):
    script = start(script, cwd=tmp_path, data=tiny, plain=True)
    if moment == "data":  # all packages are imported, and the network is not made yet
        while "cifar10 is in" not in script.output()[0]:
            assert script.poll() is None
            time.sleep(0.005)
    else:
        time.sleep(moment)
    out, err = interrupt(script)
    if script.returncode == 130 or "There is no model" not in err:  # test.py may have been quicker
        stopped = re.search(r"(?m)^Stopped( in epoch 1 of 30; to resume, run the same command again)?\.$", err)
        assert script.returncode == 130 and stopped, err


def test_a_folder_with_a_space_and_letters_beyond_ascii(tmp_path, tiny):
    folder = tmp_path / "Übung mit Bildern"
    try:
        folder.mkdir()
    except OSError:
        pytest.skip("Wine cannot create such a folder unless LC_ALL=C.UTF-8 is set")
    shutil.copytree(tiny, folder / "Daten für alle")
    where = {"cwd": folder, "data": folder / "Daten für alle"}
    script = start("train.py", *options, **where)
    assert wait_for(folder / checkpoint, script, size=1_000_000), script.output()
    script.kill()
    out, err = run("train.py", *options, **where)
    assert err == "" and "Resuming after epoch " in out and f"The model is in results/{name}.h5" in out
    shutil.copytree(folder / "logs", tmp_path / "logs")  # TensorFlow's own reader cannot read them there on Windows
    assert [step for step, value in curves(tmp_path / "logs" / name)["train/epoch_loss"]] == [0, 1, 2, 3]
    out, err = run("test.py", "--report", **where)
    assert err == "" and (folder / f"results/{name}-report.png").exists()
    assert list((folder / f"logs/{name}/report").glob("*tfevents*"))
    Image.new("RGB", (40, 30)).save(folder / "Füße.png")
    out, err = run("test.py", "--image", "Füße.png", **where)
    assert err == "" and "Füße.png: " in out and (folder / f"results/{name}-images.png").exists()
