"""What the tests share: a small CIFAR-10, a finished run on it, and the scripts run as a user runs them."""
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from small_cifar10 import make_images

root = Path(__file__).parents[1]
sys.path.insert(0, str(root))
name = "cifar10-model-v1"
checkpoint = f"results/{name}.checkpoint.npz"
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")  # as train.py sets it, whichever test imports TensorFlow first


def command(script, *arguments):
    return [sys.executable, str(root / script), *map(str, arguments)]


def environment(data, **changes):
    """The environment of a machine without a display, with its data sets in `data`."""
    kept = {key: value for key, value in os.environ.items()
            if key not in ("DISPLAY", "WAYLAND_DISPLAY", "MPLBACKEND", "TF_CPP_MIN_LOG_LEVEL", "TF_ENABLE_ONEDNN_OPTS")}
    # without bfloat16 instructions, --fast computes in float32 however busy the machine is
    return {**kept, "TFDS_DATA_DIR": str(data), "PYTHONUTF8": "1", "ONEDNN_MAX_CPU_ISA": "AVX2", **changes}


def plain(text):
    """Text as it stands on the screen in the end, line by line, without colours and overwritten progress."""
    if os.name == "nt":
        text = text.replace("\\", "/")  # as the tests write paths
    text = re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", text)
    text = text.replace("\b", "")  # Keras ends a bar's line by going back over it
    text = "\n".join(line.rstrip("\r").split("\r")[-1] for line in text.split("\n"))
    return re.sub(r"(?m)^ *\d+/(\d+) .*\n(?= *\d+/\1 )", "", text)


def run(script, *arguments, cwd, data, code=0, **options):
    """Run a script of the pair in the folder `cwd`; return its output and its errors, as seen on the screen."""
    options = {"env": environment(data), "timeout": 600, **options}
    done = subprocess.run(command(script, *arguments), cwd=cwd, capture_output=True, encoding="utf-8",
                          stdin=subprocess.DEVNULL, **options)
    out, err = plain(done.stdout), plain(done.stderr)
    assert done.returncode == code, f"exit code {done.returncode}\n{out[-2000:]}\n{err[-4000:]}"
    assert "Traceback" not in err, err
    return out, err


def start(folder, data, *arguments, **options):
    """Start train.py in a folder; return the process."""
    return subprocess.Popen(command("train.py", *arguments), cwd=folder, env=environment(data), encoding="utf-8",
                            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)


def wait_for(path, process, seconds=120):
    """Wait until `path` exists; False if the process ends first."""
    deadline = time.monotonic() + seconds
    while not path.exists():
        if process.poll() is not None:
            return False
        assert time.monotonic() < deadline, f"{path} did not come"
        time.sleep(0.002)
    return True


def message(err):
    """Assert that an error text is one to four lines; return it."""
    lines = err.strip().split("\n")
    assert 1 <= len(lines) <= 4 and lines[0], err
    assert max(map(len, lines)) < 400, err
    return err


def make_data(folder, *arguments):
    subprocess.run([sys.executable, str(root / "tests/small_cifar10.py"), str(folder), *arguments], check=True,
                   capture_output=True, timeout=300)
    return folder


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """TFDS_DATA_DIR with 1,000 training and 400 test images."""
    return make_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """TFDS_DATA_DIR with 200 training and 50 test images, for runs that are about something else than learning."""
    return make_data(tmp_path_factory.mktemp("tiny"), "20", "5")


@pytest.fixture(scope="session")
def trained(tmp_path_factory, data):
    """(folder, output) of `python train.py --epochs 2 --batch-size 16 --seed 1`."""
    folder = tmp_path_factory.mktemp("trained")
    out, err = run("train.py", "--epochs", 2, "--batch-size", 16, "--seed", 1, cwd=folder, data=data)
    assert err == ""
    return folder, out


def reader(folder):
    """TensorBoard's own reader of the event files in a folder, loaded."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    events = EventAccumulator(str(folder), size_guidance={"tensors": 0})
    events.Reload()
    return events


def curves(log_dir):
    """The scalars in a run's event files: {"train/epoch_loss": [(step, value)]}."""
    from tensorboard.util.tensor_util import make_ndarray
    found = {}
    for part in "train", "validation":
        events = reader(log_dir / part)
        for tag in events.Tags()["tensors"]:
            if tag.startswith("epoch_"):
                found[f"{part}/{tag}"] = [(event.step, float(make_ndarray(event.tensor_proto)))
                                          for event in events.Tensors(tag)]
    return found


@pytest.fixture
def load(monkeypatch, data):
    """load_data, in this process, on the small data set."""
    import tensorflow_datasets as tfds

    import train
    monkeypatch.setattr(train.tfds, "builder", lambda name: tfds.builder_cls(name)(data_dir=data))
    return train.load_data


def keys(images, labels):
    """One bytes object an image, for comparing images as sets whatever their order."""
    return [bytes([label]) + image.tobytes() for image, label in zip(images, labels)]


def source(count, seed):
    images, labels = make_images(count, seed)
    return sorted(keys(images.astype(np.float32) / 255, labels))


def take(dataset, images):
    parts = zip(*dataset.unbatch().take(images).as_numpy_iterator())
    return tuple(np.stack(part) for part in parts)


@pytest.fixture(scope="module")
def undisturbed(request, tmp_path_factory, tiny):
    """The folder of a whole run with the `options` of the module of tests, four epochs."""
    folder = tmp_path_factory.mktemp("undisturbed")
    run("train.py", *request.module.options, cwd=folder, data=tiny)
    return folder


@pytest.fixture(scope="module")
def half_done(request, tmp_path_factory, tiny):
    """The folder of the same run, killed after the second epoch or a moment later."""
    folder = tmp_path_factory.mktemp("half")
    process = start(folder, tiny, *request.module.options)
    assert wait_for(folder / f"results/previous-{name}.checkpoint.npz", process)
    assert wait_for(folder / checkpoint, process)
    process.kill()
    process.communicate()
    return folder


@pytest.fixture
def half(half_done, tmp_path):
    return shutil.copytree(half_done, tmp_path / "half")


def same_as_undisturbed(folder, undisturbed):
    """Assert that a folder holds the files of the undisturbed run, the model to the byte, every epoch once."""
    for files in "results", "logs":
        left, expected = ({path.name for path in (side / files).iterdir()} for side in (folder, undisturbed))
        assert left == expected
    assert (folder / f"results/{name}.h5").read_bytes() == (undisturbed / f"results/{name}.h5").read_bytes()
    log_dir, expected = folder / "logs" / name, undisturbed / "logs" / name
    assert (log_dir / "epochs.csv").read_text() == (expected / "epochs.csv").read_text()
    assert curves(log_dir) == curves(expected)
    assert len(curves(log_dir)["train/epoch_loss"]) == 4
