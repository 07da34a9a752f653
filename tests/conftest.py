"""What the tests share: a small CIFAR-10, a finished run on it, and the scripts run as a user runs them."""
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import time
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import processes
from processes import Script
from small_cifar10 import make_images

root = Path(__file__).parents[1]
sys.path.insert(0, str(root))
name = "cifar10-model-v1"
checkpoint = f"results/{name}.checkpoint.npz"
options = ["--epochs", 4, "--batch-size", 20, "--seed", 1]  # 3 steps an epoch on the tiny data set
in_one_go = ["--epochs", 1, "--batch-size", 70]
if platform.machine() in ("x86_64", "AMD64"):
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")  # as train.py does, whichever test imports TensorFlow first
os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")  # the workers share the cores
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell script that runs the tests with & ignores it

rare = pytest.mark.rare
posix = pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals, permissions or limits; Windows has others")

# Give up the capabilities that let root ignore permissions: Linux's 1 and 2, in version 3 of its calls.
without_privileges = """
import ctypes
if sys.platform == "linux":
    version, sets = (ctypes.c_uint32 * 2)(0x20080522), (ctypes.c_uint32 * 6)()
    assert ctypes.CDLL(None).capget(version, sets) == 0
    sets[0] &= ~0b110
    assert ctypes.CDLL(None).capset(version, sets) == 0
"""


def environment(data, **changes):
    """The environment of a machine without a display, with its data sets in `data`."""
    kept = {key: value for key, value in os.environ.items()
            if key not in ("DISPLAY", "WAYLAND_DISPLAY", "TF_CPP_MIN_LOG_LEVEL", "TF_ENABLE_ONEDNN_OPTS")}
    # Windows and macOS always have a display, where a window would wait for its user
    return {**kept, "TFDS_DATA_DIR": str(data), "PYTHONUTF8": "1", "MPLBACKEND": "Agg", **changes}


def plain(text):
    """Text as it stands on the screen in the end, line by line, without colours and overwritten progress."""
    if os.name == "nt":
        text = text.replace("\\", "/")  # as the tests write paths
    text = re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", text)
    text = text.replace("\b", "")  # Keras ends a bar's line by going back over it
    text = "\n".join(line.rstrip("\r").split("\r")[-1] for line in text.split("\n"))
    return re.sub(r"(?m)^ *\d+/(\d+) .*\n(?= *\d+/\1 )", "", text)


def start(script, *arguments, cwd, data, env=None, fast=False, **options):
    """Start a script of the pair, or another one by its whole path, in the folder `cwd`; return its Script."""
    env = env or environment(data)
    if "--fast" in arguments or fast:  # without bfloat16 instructions, it takes 32 bits however busy the machine is
        env = {"ONEDNN_MAX_CPU_ISA": "AVX2", **env}
    return Script([str(root / script), *map(str, arguments)], cwd, env, **options)


def run(script, *arguments, code=0, **options):
    """Run a script to its end; return its output and its errors, as seen on the screen."""
    script = start(script, *arguments, **options)
    out, err = map(plain, script.wait())
    assert script.returncode == code, f"exit code {script.returncode}\n{out[-2000:]}\n{err[-4000:]}"
    assert "Traceback" not in err, err
    return out, err


def run_after(preparation, script, *arguments, cwd, **options):
    """Run a script as run() does, in a process that runs the lines of `preparation` first."""
    program = cwd / "program.py"
    program.write_text(f"import runpy, sys\n{preparation}\ndel sys.argv[0]\nsys.path[0] = {str(root)!r}\n"
                       "runpy.run_path(sys.argv[0], run_name='__main__')")
    return run(program, root / script, *arguments, cwd=cwd, **options)


def edited(folder, *changes, script="train.py"):
    """Put the project into a folder, with changes (old, new) in a script; return the path of train.py."""
    if not (folder / "support").exists():
        shutil.copytree(root / "support", folder / "support")
        for file in "train.py", "test.py":
            shutil.copy(root / file, folder)
    path = folder / script
    source = path.read_text(encoding="utf-8")
    for old, new in changes:
        assert old in source, old
        source = source.replace(old, new)
    path.write_text(source, encoding="utf-8")
    return folder / "train.py"


smaller = "Dense(1024)", "Dense(32)"  # the edit for tests in which the network is not the point


def size_of(path):
    """The size of a file in bytes, -1 if there is none, or none that can be looked at now."""
    try:
        return path.stat().st_size
    except OSError:
        return -1


def wait_for_output(script, text):
    """Wait until a running script has put out this text."""
    while text not in script.output()[0]:
        assert script.poll() is None, script.output()
        time.sleep(0.005)


def start_until_written(path, *arguments, cwd, data):
    """Start train.py, and wait until it writes what will become the file at `path`; return its Script."""
    for left in path.parent.glob(f".{path.name}.*"):  # by an earlier kill
        left.unlink()
    script = start("train.py", *arguments, cwd=cwd, data=data)
    while script.poll() is None and not any(path.parent.glob(f".{path.name}.*")):
        time.sleep(0.002)
    return script


def wait_for(path, script, seconds=120, size=0):
    """Wait until `path` exists and has `size` bytes; False if the script ends first."""
    deadline = time.monotonic() + seconds
    while size_of(path) < size:
        if script.poll() is not None:
            return False
        assert time.monotonic() < deadline, f"{path} did not appear"
        time.sleep(0.002)
    return True


def interrupt(script):
    """Press Ctrl-C until the script ends, as a user would: TensorFlow loses one in places. Return what it put out."""
    for _ in range(10):
        script.send_signal(signal.SIGINT)
        deadline = time.monotonic() + 10
        while script.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        if script.poll() is not None:
            break
    return script.wait(60)


def message(err):
    """Assert that an error text is one to four lines; return it."""
    lines = err.strip().split("\n")
    assert 1 <= len(lines) <= 4 and lines[0], err
    assert max(map(len, lines)) < 400, err
    return err


def once(tmp_path_factory, key, make):
    """Call make(folder) in one of pytest-xdist's workers; return the folder in all of them, for reading only."""
    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent
    folder, done, failed = (base / (key + suffix) for suffix in ("", ".done", ".failed"))
    try:
        folder.mkdir()
    except FileExistsError:
        while not done.exists():
            time.sleep(0.1)
        assert not failed.exists(), f"{key} could not be made; another worker says why"
        return folder
    try:
        make(folder)
    except BaseException:
        failed.touch()
        raise
    finally:
        done.touch()
    return folder


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """TFDS_DATA_DIR with 1,000 training and 400 test images."""
    return once(tmp_path_factory, "data", lambda folder: run(
        "tests/small_cifar10.py", folder, cwd=folder, data=folder))


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """TFDS_DATA_DIR with 70 training and 40 test images, for runs that do not test learning."""
    return once(tmp_path_factory, "tiny", lambda folder: run(
        "tests/small_cifar10.py", folder, 7, 4, cwd=folder, data=folder))


@pytest.fixture(scope="session")
def trained(tmp_path_factory, data):
    """The folder of `python train.py --epochs 2 --batch-size 32 --seed 1`; what it printed is in the file out.txt."""
    def train(folder):
        out, err = run("train.py", "--epochs", 2, "--batch-size", 32, "--seed", 1, cwd=folder, data=data, plain=True)
        assert err == ""
        (folder / "out.txt").write_text(out, encoding="utf-8")
    return once(tmp_path_factory, "trained", train)


@pytest.fixture(scope="session", autouse=True)
def end_of_the_server():
    yield
    if processes.server.cache_info().currsize:
        processes.server().end()


def write_model(path, *layers, shape=(32, 32, 3)):
    """Save an untrained model, as a stranger would have made it."""
    import keras
    made = [eval(layer, {"L": keras.layers}) for layer in layers]
    model = keras.Sequential([keras.Input(shape), *made])
    model.save(path)
    return path


@pytest.fixture(scope="session")
def small_model(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "small.h5"
    return write_model(path, "L.Flatten()", "L.Dense(10, activation='softmax')")


@pytest.fixture
def folder(trained, tmp_path):
    """A copy of that folder, to be written to."""
    return shutil.copytree(trained, tmp_path / "trained")


@pytest.fixture(scope="session")
def photo():
    """A picture that is not square, with a different colour in each corner."""
    from PIL import Image
    rows, columns = np.mgrid[:120, :200]
    return Image.fromarray(np.stack([rows * 2, columns, 255 - rows * 2], axis=-1).astype(np.uint8))


def size_and_colours(path):
    """The size of a picture and the number of its colours."""
    from PIL import Image
    with Image.open(path) as picture:
        return picture.size, len(np.unique(np.asarray(picture.convert("RGB")).reshape(-1, 3), axis=0))


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


def hparams_of(log_dir):
    """The options in a run's event files: [(trial id, {option: value})], one for each row of the HPARAMS tab."""
    from google.protobuf import struct_pb2
    from tensorboard.plugins.hparams import plugin_data_pb2
    found = []
    events = reader(log_dir / "validation")
    for tag, content in events.summary_metadata.items():
        data = plugin_data_pb2.HParamsPluginData.FromString(content.plugin_data.content)
        if content.plugin_data.plugin_name == "hparams" and data.HasField("session_start_info"):
            assert len(events.Tensors(tag)) == 1, "two rows"
            values = {key: getattr(value, value.WhichOneof("kind")) for key, value in
                      data.session_start_info.hparams.items() if isinstance(value, struct_pb2.Value)}
            found.append((data.session_start_info.group_name, values))
    return found


def convolutions(log_dir):
    """The number of convolutions in a run's graph."""
    from tensorflow.core.framework import graph_pb2
    graph = graph_pb2.GraphDef.FromString(reader(log_dir / "train").Graph().SerializeToString())
    nodes = [*graph.node, *(node for function in graph.library.function for node in function.node_def)]
    return sum(node.op == "Conv2D" for node in nodes)


@pytest.fixture
def load(monkeypatch, data):
    """load_data, in this process, on the small data set."""
    import train
    monkeypatch.setattr(train, "data_dir", data)
    return train.load_data


def info_of(*classes):
    """As load_data() returns it, of a data set with these classes."""
    import tensorflow_datasets as tfds
    return SimpleNamespace(name="x", features={"label": tfds.features.ClassLabel(names=classes)} if classes else {})


def prepared(load, *layers, loss="sparse_categorical_crossentropy", epochs=2, batch_size=64, **arguments):
    """A network of these layers, prepared by --fast in 16 bits, and what it takes to restore it."""
    import keras

    from support import fast
    model = keras.Sequential([keras.Input((32, 32, 3)), *layers])
    model.compile(loss=loss, metrics=["accuracy"], **arguments)
    options = Namespace(epochs=epochs, batch_size=batch_size, augment=False)
    return model, fast.prepare(model, load()[0], 15, options, precision="mixed_bfloat16")


def keys(images, labels):
    """One bytes object an image, for comparing images as sets whatever their order."""
    return [bytes([label]) + image.tobytes() for image, label in zip(images, labels)]


def as_floats(images):
    """The images, uint8, as tf.image.convert_image_dtype makes them floats."""
    return images.astype(np.float32) * np.float32(1 / 255)


def source(count, seed):
    images, labels = make_images(count, seed)
    return sorted(keys(as_floats(images), labels))


def take(dataset, images):
    parts = zip(*dataset.unbatch().take(images).as_numpy_iterator())
    return tuple(np.stack(part) for part in parts)


@pytest.fixture(scope="module")
def undisturbed(request, tmp_path_factory, tiny):
    """The folder of a whole run of four epochs with the test module's `options`."""
    return once(tmp_path_factory, "undisturbed" + "".join(map(str, request.module.options)), lambda folder: run(
        "train.py", *request.module.options, cwd=folder, data=tiny))


@pytest.fixture(scope="module")
def half_done(request, tmp_path_factory, tiny):
    """The folder of the same run, killed after the second epoch or a moment later."""
    def half(folder):
        script = start("train.py", *request.module.options, cwd=folder, data=tiny)
        wait_for_output(script, "Epoch 3/4")
        script.kill()
    return once(tmp_path_factory, "half" + "".join(map(str, request.module.options)), half)


@pytest.fixture
def half(half_done, tmp_path):
    return shutil.copytree(half_done, tmp_path / "half")


def same_as_undisturbed(folder, undisturbed):
    """Assert that a folder holds the files of the undisturbed run, the model to the byte, every epoch once."""
    for files in "results", "logs":
        left, expected = ({path.name for path in (side / files).glob("[!.]*")} for side in (folder, undisturbed))
        assert left == expected  # a kill may leave a hidden file
    assert (folder / f"results/{name}.h5").read_bytes() == (undisturbed / f"results/{name}.h5").read_bytes()
    log_dir, expected = folder / "logs" / name, undisturbed / "logs" / name
    assert (log_dir / "epochs.csv").read_text() == (expected / "epochs.csv").read_text()
    assert curves(log_dir) == curves(expected)
    assert len(curves(log_dir)["train/epoch_loss"]) == 4


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
