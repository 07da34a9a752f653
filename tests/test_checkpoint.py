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
    edited,
    hparams_of,
    info_of,
    interrupt,
    message,
    name,
    options,
    plain,
    posix,
    rare,
    root,
    run,
    run_after,
    same_as_undisturbed,
    start,
    start_until_written,
    wait_for_output,
)
from small_cifar10 import labels


def test_kills(undisturbed, tiny, tmp_path):
    """Two at random moments, and one while a checkpoint is written."""
    moments, done = random.Random(1), []
    for moment in "any", "write", "any":
        if moment == "write":
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


@rare
def test_with_augment_more_epochs_are_another_run(tmp_path, tiny):
    """Since the images of longer runs change more."""
    run_on = ["--augment", "--batch-size", 70, "--name", "a"]
    script = start("train.py", *run_on, "--epochs", 9, cwd=tmp_path, data=tiny)
    wait_for_output(script, "Epoch 3/9")
    script.kill()
    out, err = run("train.py", *run_on, "--epochs", 10, cwd=tmp_path, data=tiny, code=1)
    assert "an unfinished run with epochs 9, not 10." in message(err)


def test_other_options_are_no_continuation(half, tiny):
    before = (half / checkpoint).read_bytes()
    other = ["--batch-size", 25, "--epochs", 1, "--seed", 2, "--augment", "--fast"]  # two epochs are finished
    out, err = run("train.py", *options, *other, cwd=half, data=tiny, code=1)
    different = ("with fast False, not True; epochs 4, not 1; augment False, not True; batch size 20, not 25; "
                 "seed 1, not 2.")
    assert different in message(err) and "--restart" in err and str(half / checkpoint) in err
    assert out == "", "not refused at once"
    assert (half / checkpoint).read_bytes() == before


def test_fewer_epochs_make_a_model_of_what_is_finished(half, tiny):
    out, err = run("train.py", *options, "--epochs", 3, cwd=half, data=tiny)
    assert re.search(r"^Resuming after epoch [23] of 3$", out, re.M) and err == ""
    assert (half / f"results/{name}.h5").exists() and not (half / checkpoint).exists()
    assert len(curves(half / "logs" / name)["train/epoch_loss"]) == 3


code_changes = {  # key: a change of train.py; value: whether it makes another run
    "other images, other labels": ([(".map(preprocess_image)  # a batch", ".map(lambda image, label: preprocess_image("
                                     "255 - image, (label + 1) % 10))  # a batch")], True),
    "a function behind a name": ([("tf.image.convert_image_dtype(image, tf.float32)", "tf.cast(image, tf.float32)")],
                                 True),
    "another rate of dropout": ([("Dropout(0.25),\n        # second", "Dropout(0.3),\n        # second")], True),
    "another learning rate": ([('optimizer="adam"', "optimizer=keras.optimizers.Adam(0.0005)")], True),
    "another loss": ([("sparse_categorical_crossentropy", "poisson")], True),
    "a larger network": ([("Dense(1024)", "Dense(1030)")], True),
    "comments, spaces, epochs, a callback, an option": ([
        ("# hyper-parameters\n", "# the dials\n\n"), ("Dropout(0.5),", "Dropout( 0.5 ),  # half"),
        ("\nepochs = 30\n", "\nepochs = 31  # one more\n"),
        ("    callbacks = [tensorboard]\n", "    callbacks = [tensorboard, keras.callbacks.TerminateOnNaN()]\n"),
        ('help="random seed', 'help="a random seed')], False),
}


@pytest.mark.parametrize("change", code_changes)
def test_other_code_is_no_continuation(change, half, tiny):
    """It is said at once. What does not count may be changed."""
    changes, another = code_changes[change]
    train = edited(half, *changes)
    before = (half / checkpoint).read_bytes()
    out, err = run(train, *options, cwd=half, data=tiny, code=1 if another else 0)
    if another:
        assert "different code in train.py (main(), parse_args(), epochs and comments do not count)." in message(err)
        assert "--restart" in err and out == "" and (half / checkpoint).read_bytes() == before
    else:
        assert "Resuming after epoch" in out and err == ""


def test_the_line_of_epochs_counts_if_something_else_needs_it(tmp_path):
    """Such as a learning rate that falls over all epochs."""
    from support.checkpoint import code_of_script
    found = []
    for epochs, rate in ("3", "1"), ("4  # more\n", "1"), ("3", "1 / epochs"), ("4", "1 / epochs"):
        path = tmp_path / f"{len(found)}.py"
        text = f"epochs = {epochs}\nrate = {rate}\ndef main():\n    print(epochs, {len(found)})\n"
        path.write_text(text)
        names = {}
        exec(compile(text, path, "exec"), names)
        found.append(code_of_script(names["main"]))
    assert found[0] == found[1] and len(set(found)) == 3


def resume(folder, monkeypatch, model, steps=3, classes=labels, **changes):
    """Resume the interrupted run in a folder with this model, in this process; return the number of its epochs."""
    import tensorflow as tf

    import train
    from support.checkpoint import Checkpoint
    monkeypatch.chdir(folder)
    args = {"fast": False, "augment": False, "epochs": 4, "batch_size": 20, "seed": 1, "name": name, "restart": False}
    callback = Checkpoint(Namespace(**{**args, **changes}), train.main)
    stream = callback.begin_or_resume(model, tf.data.Dataset.range(100), steps, info_of(*classes))
    assert int(next(iter(stream))) == (0 if changes.get("restart") else callback.initial_epoch * 3)
    return callback.initial_epoch


def test_what_the_code_does_not_tell_is_compared_before_anything_is_changed(half, monkeypatch):
    """Layers of another file may have other shapes, and folders other images."""
    import keras

    import train
    from support.errors import UserError
    smaller = train.create_model((16, 16, 3))
    branches = keras.Sequential([keras.Input((32, 32, 3)), keras.layers.Flatten(), keras.layers.Dense(10)])
    branches.compile("sgd", "mse")
    for model in smaller, branches:
        before = model.get_weights()
        with pytest.raises(UserError, match="a network of different shapes") as error:
            resume(half, monkeypatch, model)
        assert "--restart" in message(str(error.value))
        assert all(np.array_equal(old, new) for old, new in zip(before, model.get_weights()))
    model = train.create_model((32, 32, 3))
    with pytest.raises(UserError, match="3 steps per epoch, not 4"):
        resume(half, monkeypatch, model, steps=4)
    with pytest.raises(UserError, match="different class names"):
        resume(half, monkeypatch, model, classes=[*labels[:-1], "zebra"])
    assert resume(half, monkeypatch, model) >= 2


def test_figures_that_are_no_numbers_are_not_in_the_history(half, monkeypatch):
    """Such as an array with one for each class, from a learner's own callback."""
    import train
    from support.checkpoint import Checkpoint
    monkeypatch.chdir(half)
    args = Namespace(fast=False, augment=False, epochs=4, batch_size=20, seed=1, name="a", restart=False)
    callback = Checkpoint(args, train.main)
    callback.begin_or_resume(train.create_model((32, 32, 3)), None, 3, info_of(*labels))
    callback.on_train_begin()
    callback.on_epoch_end(0, {"loss": 1.5, "f1": np.zeros(3), "rate": np.float32(0.5), "note": "good"})
    with np.load("results/a.checkpoint.npz") as saved:
        assert json.loads(str(saved["run"]))["history"] == [{"loss": 1.5, "rate": 0.5}]


@pytest.mark.parametrize("damage", [lambda whole: b"", lambda whole: whole[:-1000], lambda whole: b"garbage" * 1000,
                                    lambda whole: whole[:9_000_000] + b"\xff" * 64 + whole[9_000_064:]],
                         ids=["empty", "truncated", "garbage", "flipped bits"])
def test_damaged_checkpoint(damage, half, monkeypatch):
    import train
    from support.errors import UserError
    path = half / checkpoint
    damaged = damage(path.read_bytes())
    path.write_bytes(damaged)
    model = train.create_model((32, 32, 3))
    before = model.get_weights()
    with pytest.raises(UserError, match="cannot be read") as error:
        resume(half, monkeypatch, model)
    assert "--restart" in message(str(error.value)) and str(path) in str(error.value) and path.read_bytes() == damaged
    assert all(np.array_equal(old, new) for old, new in zip(before, model.get_weights()))
    assert resume(half, monkeypatch, model, restart=True) == 0 and path.read_bytes() != damaged


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


def test_the_code_of_the_script_counts_where_its_network_is_in_another_file(half, tiny):
    source = (root / "train.py").read_text(encoding="utf-8")
    function = source[source.index("def create_model"):source.index("@ctrl_c")]
    train = edited(half, (function, "from network import create_model\n\n\n"))
    (half / "network.py").write_text("import keras\nfrom keras.layers import *\nfrom keras.models import Sequential\n"
                                     f"num_classes = 10\n{function}", encoding="utf-8")
    script = start(train, *options, "--restart", cwd=half, data=tiny)
    wait_for_output(script, "Epoch 3/4")
    script.kill()
    edited(half, ("(image, tf.float32)", "(255 - image, tf.float32)"))
    out, err = run(train, *options, cwd=half, data=tiny, code=1)
    assert "different code in train.py" in message(err)


def test_values_of_16_bits_resume(half, monkeypatch):
    import keras
    import tensorflow as tf
    from keras.layers import Dense, Flatten

    import train
    from support.checkpoint import Checkpoint
    monkeypatch.chdir(half)

    def model_of(value):
        model = keras.Sequential([keras.Input((32, 32, 3)), Flatten(), Dense(10, dtype="bfloat16")])
        model.compile("sgd", "sparse_categorical_crossentropy")
        model.layers[-1].bias.assign(value * np.ones(10))
        return model
    args = Namespace(fast=False, augment=False, epochs=4, batch_size=20, seed=1, name="a", restart=False)
    saved, resumed = model_of(3), model_of(0)
    for model in saved, resumed:
        callback = Checkpoint(args, train.main)
        callback.begin_or_resume(model, tf.data.Dataset.range(100), 3, info_of(*labels))
        callback.on_train_begin()
        callback.on_epoch_end(0, {"loss": 1.0})
    assert callback.initial_epoch == 1 and (np.float32(resumed.layers[-1].bias) == 3).all()
