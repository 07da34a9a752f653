"""However a run is cut short, the same command finishes it as if nothing had happened."""
import json
import random
import re
import shutil
import time
from argparse import Namespace

import numpy as np
import pytest

from conftest import (
    checkpoint,
    convolutions,
    curves,
    hparams_of,
    interrupt,
    load_from,
    message,
    name,
    options,
    plain,
    posix,
    rare,
    run,
    run_after,
    same_as_undisturbed,
    start,
    start_until_written,
    wait_for_output,
)


def test_six_kills(undisturbed, tiny, tmp_path):
    moments, done = random.Random(1), []
    for kill in range(6):
        if kill % 2:  # while a checkpoint is written
            script = start_until_written(tmp_path / checkpoint, *options, cwd=tmp_path, data=tiny)
            time.sleep(moments.uniform(0, 0.05))
        else:
            script = start("train.py", *options, cwd=tmp_path, data=tiny)
            deadline = time.monotonic() + moments.uniform(0, 3)
            while script.poll() is None and time.monotonic() < deadline:
                time.sleep(0.01)
        out, err = script.kill()
        assert err == ""
        done += [int(number) for number in re.findall(r"Resuming after epoch (\d) of 4", out)]
        if (tmp_path / f"results/{name}.h5").exists() and not (tmp_path / checkpoint).exists():
            # it was done before its kill: begin with the next
            same_as_undisturbed(tmp_path, undisturbed)
            shutil.rmtree(tmp_path / "results")
            shutil.rmtree(tmp_path / "logs")
            done = []
    assert done == sorted(done), "a finished epoch was lost"
    out, err = run("train.py", *options, cwd=tmp_path, data=tiny)
    same_as_undisturbed(tmp_path, undisturbed)


@posix
def test_ctrl_c_and_resuming(half, undisturbed, tiny):
    for moment in "in an epoch", "while a checkpoint is written":
        if moment == "while a checkpoint is written":
            script = start_until_written(half / checkpoint, *options, cwd=half, data=tiny)
        else:
            script = start("train.py", *options, cwd=half, data=tiny)
            wait_for_output(script, "\nEpoch 4/4")  # in the first epoch, TensorFlow makes its graphs, and may lose it
        out, err = interrupt(script)
        assert script.returncode == 130, err
        stopped = r"(?m)^Stopped (in|after) epoch [34] of 4; to resume, run the same command again\.$"
        assert re.search(stopped, plain(err))
    out, err = run("train.py", *options, cwd=half, data=tiny)
    done = int(re.search(r"^Resuming after epoch (\d) of 4$", out, re.M)[1])
    assert re.findall(r"^Epoch (\d)/4", out, re.M) == [str(epoch) for epoch in range(done + 1, 5)] and err == ""
    same_as_undisturbed(half, undisturbed)
    assert len(hparams_of(half / "logs" / name)) == 1 and convolutions(half / "logs" / name) == 6


ctrl_c_itself = f"""
import os, pathlib, signal, threading, time
def wait():
    path = pathlib.Path("results/{name}.checkpoint.npz")
    while not path.exists() or path.stat().st_size < 1_000_000:
        time.sleep(0.001)
    signal.raise_signal(signal.SIGINT)
threading.Thread(target=wait, daemon=True).start()
"""


@rare
def test_ctrl_c_as_the_console_of_windows_raises_it(undisturbed, tmp_path, tiny):
    out, err = run_after(ctrl_c_itself, "train.py", *options, cwd=tmp_path, data=tiny, code=130)
    assert re.fullmatch(r"\nStopped (in|after) epoch [1234] of 4; to resume, run the same command again\.\n", err)
    (tmp_path / "program.py").unlink()
    out, err = run("train.py", *options, cwd=tmp_path, data=tiny)
    assert "Resuming after epoch" in out and err == ""
    same_as_undisturbed(tmp_path, undisturbed)


def test_other_options_are_no_continuation(half, tiny):
    before = (half / checkpoint).read_bytes()
    other = ["--batch-size", 25, "--epochs", 1, "--seed", 2, "--augment", "--fast"]  # two epochs are finished
    out, err = run("train.py", *options, *other, cwd=half, data=tiny, code=1)
    different = ("with fast False, not True; augment False, not True; epochs 4, not 1; batch size 20, not 25; "
                 "seed 1, not 2.")
    assert different in message(err) and "--restart" in err and str(half / checkpoint) in err
    assert (half / checkpoint).read_bytes() == before


def test_fewer_epochs_make_a_model_of_what_is_finished(half, tiny):
    out, err = run("train.py", *options, "--epochs", 3, cwd=half, data=tiny)
    assert re.search(r"^Resuming after epoch [23] of 3$", out, re.M) and err == ""
    assert (half / f"results/{name}.h5").exists() and not (half / checkpoint).exists()
    assert len(curves(half / "logs" / name)["train/epoch_loss"]) == 3


def resume(folder, monkeypatch, model, load_data, steps=3, **changes):
    """Resume the interrupted run in a folder with this model, in this process; return the number of its epochs."""
    import tensorflow as tf

    from support.checkpoint import Checkpoint
    monkeypatch.chdir(folder)
    args = {"fast": False, "augment": False, "epochs": 4, "batch_size": 20, "seed": 1, "name": name, "restart": False}
    callback = Checkpoint(Namespace(**{**args, **changes}))
    stream = callback.begin_or_resume(model, tf.data.Dataset.range(100), steps, load_data)
    assert int(next(iter(stream))) == (0 if changes.get("restart") else callback.initial_epoch * 3)
    return callback.initial_epoch


@pytest.fixture
def load_data(tiny, monkeypatch):
    """That of the interrupted run."""
    return load_from(tiny, monkeypatch)


def changed(load_data, change):
    """load_data with test images that are changed."""
    return lambda batch_size: (None, load_data(batch_size)[1].map(change))


def test_another_network_is_no_continuation(half, monkeypatch, load_data):
    """Another model of the same network is, although Keras gives its layers other names."""
    import keras

    import train
    from support.messages import UserError
    for attribute, value, fits in ("rate", 0.3, False), ("dtype_policy", "mixed_bfloat16", False), ("rate", 0.25, True):
        model = train.create_model((32, 32, 3))
        setattr(model.layers[5], attribute, value)
        if fits:
            assert resume(half, monkeypatch, model, load_data) >= 2
        else:
            with pytest.raises(UserError, match="another network, optimizer or loss") as error:
                resume(half, monkeypatch, model, load_data)
            assert "--restart" in message(str(error.value))
    for optimizer, loss in (keras.optimizers.Adam(0.0005), model.loss), ("adam", "mse"):
        model = train.create_model((32, 32, 3))
        model.compile(optimizer, loss, metrics=["accuracy"])
        with pytest.raises(UserError, match="another network, optimizer or loss"):
            resume(half, monkeypatch, model, load_data)


def test_other_images_are_no_continuation(half, monkeypatch, load_data):
    """Of another data set, or prepared in another way."""
    import tensorflow as tf

    import train
    from support.messages import UserError
    model = train.create_model((32, 32, 3))
    smaller = train.create_model((16, 16, 3))
    for other, change in [(model, lambda image, label: (image * 2 - 1, label)),
                          (model, lambda image, label: (image, (label + 1) % 10)),
                          (model, lambda image, label: (tf.image.rgb_to_grayscale(image), label)),
                          (smaller, lambda image, label: (tf.image.resize(image, (16, 16)), label))]:
        with pytest.raises(UserError) as error:
            resume(half, monkeypatch, other, changed(load_data, change))
        reason = "other images or labels" if other is model else "another network"
        assert reason in message(str(error.value)) and "--restart" in str(error.value)
    with pytest.raises(UserError, match="other images or labels"):
        resume(half, monkeypatch, model, load_data, steps=4)
    assert resume(half, monkeypatch, model, load_data) >= 2


def test_figures_that_are_no_numbers_are_not_in_the_history(half, monkeypatch, load_data):
    """Such as an array with one for each class, from a learner's own callback."""
    import train
    from support.checkpoint import Checkpoint
    monkeypatch.chdir(half)
    callback = Checkpoint(Namespace(fast=False, epochs=4, batch_size=20, seed=1, name="a", restart=False))
    callback.begin_or_resume(train.create_model((32, 32, 3)), None, 3, load_data)
    callback.on_train_begin()
    callback.on_epoch_end(0, {"loss": 1.5, "f1": np.zeros(3), "rate": np.float32(0.5), "note": "good"})
    with np.load("results/a.checkpoint.npz") as saved:
        assert json.loads(str(saved["run"]))["history"] == [{"loss": 1.5, "rate": 0.5}]


def test_random_changes_of_the_images_are_no_other_images(load_data):
    import tensorflow as tf

    from support.checkpoint import checksum
    tf.random.set_seed(None)  # with a seed, they are the same each time
    brighter = changed(load_data, lambda image, label: (tf.image.random_brightness(image, 0.5), label))
    assert checksum(brighter, 20) is None
    assert checksum(load_data, 20) == checksum(load_data, 20) is not None


def test_the_same_network_has_the_same_description():
    """In one process, Keras gives the layers other names each time, those inside others, too. The same layers that are
    connected in another way are another network."""
    import keras

    from support.checkpoint import fingerprint
    layers = keras.layers
    texts = []
    for rate, in_a_row in (0.1, False), (0.1, False), (0.2, False), (0.1, True):
        inputs = keras.Input((32, 32, 3))
        first = layers.Conv2D(3, 1)(inputs)
        second = layers.Conv2D(3, 1)(first if in_a_row else inputs)
        branches = keras.Model(inputs, layers.Add()([first, second]))
        inner = keras.Sequential([keras.Input((32, 32, 3)), branches, layers.Dropout(rate)])
        model = keras.Sequential([keras.Input((32, 32, 3)), inner, layers.Flatten(), layers.Dense(10)])
        model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
        texts.append(fingerprint(model, model.variables))
    assert texts[0] == texts[1] and len(set(texts)) == 3


@pytest.mark.parametrize("damage", [lambda whole: b"", lambda whole: whole[:-1000], lambda whole: b"garbage" * 1000,
                                    lambda whole: whole[:9_000_000] + b"\xff" * 64 + whole[9_000_064:]],
                         ids=["empty", "truncated", "garbage", "flipped bits"])
def test_damaged_checkpoint(damage, half, monkeypatch, load_data):
    import train
    from support.messages import UserError
    path = half / checkpoint
    damaged = damage(path.read_bytes())
    path.write_bytes(damaged)
    model = train.create_model((32, 32, 3))
    before = model.get_weights()
    with pytest.raises(UserError, match="cannot be read") as error:
        resume(half, monkeypatch, model, load_data)
    assert "--restart" in message(str(error.value)) and str(path) in str(error.value) and path.read_bytes() == damaged
    assert all(np.array_equal(old, new) for old, new in zip(before, model.get_weights()))
    assert resume(half, monkeypatch, model, load_data, restart=True) == 0 and path.read_bytes() != damaged


def test_restart_discards_nothing_before_the_data_are_there(half, tmp_path):
    before = (half / checkpoint).read_bytes()
    (tmp_path / "file").write_text("")
    run("train.py", *options, "--restart", cwd=half, data=tmp_path / "file", code=1)
    assert (half / checkpoint).read_bytes() == before


@posix
def test_more_epochs_and_restart(half, tiny):
    for added, resumed, again in ([], True, "again."), (["--restart"], False, "again without --restart."):
        script = start("train.py", *options, "--epochs", 300, *added, cwd=half, data=tiny)
        wait_for_output(script, "\nEpoch 5/300" if resumed else "\nEpoch 2/300")
        out, err = interrupt(script)
        assert ("Resuming after epoch" in out) == resumed
        assert f"of 300; to resume, run the same command {again}" in err
