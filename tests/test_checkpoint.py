"""However a run is cut short, the same command finishes it as if nothing had happened."""
import json
import random
import re
import shutil
import time

import numpy as np
import pytest

from conftest import (
    checkpoint,
    interrupt,
    message,
    name,
    options,
    plain,
    posix,
    run,
    run_after,
    same_as_undisturbed,
    start,
    wait_for,
)


def test_twenty_kills(undisturbed, tiny, tmp_path):
    moments, kills, done = random.Random(1), 0, []
    while kills < 20:
        part = tmp_path / f"results/part-{name}.checkpoint.npz"
        part.unlink(missing_ok=True)  # left by the previous kill
        script = start("train.py", *options, cwd=tmp_path, data=tiny)
        if kills % 2:  # while a checkpoint is written
            wait_for(part, script)
            time.sleep(moments.uniform(0, 0.05))
        else:
            deadline = time.monotonic() + moments.uniform(0, 3)
            while script.poll() is None and time.monotonic() < deadline:
                time.sleep(0.01)
        out, err = script.kill()
        kills += 1
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


def test_continues_after_the_last_finished_epoch(half, undisturbed, tiny):
    with np.load(half / checkpoint) as file:
        done = str(file["history"]).count("val_loss")
    out, err = run("train.py", *options, cwd=half, data=tiny)
    assert err == "" and f"Resuming after epoch {done} of 4" in out
    assert re.findall(r"^Epoch (\d)/4", out, re.M) == [str(epoch) for epoch in range(done + 1, 5)]
    same_as_undisturbed(half, undisturbed)


@posix
def test_ctrl_c(half, undisturbed, tiny):
    for moment in "while a checkpoint is written", 0, 0.05, 0.1:
        script = start("train.py", *options, cwd=half, data=tiny)
        while "\nEpoch" not in script.output()[0]:
            assert script.poll() is None
            time.sleep(0.005)
        if moment == "while a checkpoint is written":
            assert wait_for(half / f"results/part-{name}.checkpoint.npz", script)
        else:
            time.sleep(moment)
        out, err = interrupt(script)
        assert script.returncode == 130, err
        assert re.search(r"(?m)^Stopped in epoch [34] of 4; to resume, run the same command again\.$", plain(err))
    run("train.py", *options, cwd=half, data=tiny)
    same_as_undisturbed(half, undisturbed)


ctrl_c_itself = f"""
import pathlib, signal, threading, time
def wait():
    while not pathlib.Path("results/previous-{name}.checkpoint.npz").exists():
        time.sleep(0.001)
    signal.raise_signal(signal.SIGINT)
threading.Thread(target=wait, daemon=True).start()
"""


def test_ctrl_c_as_the_console_of_windows_raises_it(undisturbed, tmp_path, tiny):
    out, err = run_after(ctrl_c_itself, "train.py", *options, cwd=tmp_path, data=tiny, code=130)
    assert re.fullmatch(r"\nStopped in epoch [234] of 4; to resume, run the same command again\.\n", err)
    (tmp_path / "program.py").unlink()
    out, err = run("train.py", *options, cwd=tmp_path, data=tiny)
    assert "Resuming after epoch" in out and err == ""
    same_as_undisturbed(tmp_path, undisturbed)


@pytest.mark.parametrize("other", [["--batch-size", 25], ["--epochs", 3], ["--seed", 2]])
def test_other_options_are_no_continuation(other, half, tiny):
    before = (half / checkpoint).read_bytes()
    out, err = run("train.py", *options, *other, cwd=half, data=tiny, code=1)
    assert "--restart" in message(err) and other[0].strip("-").replace("-", " ") in err
    assert (half / checkpoint).read_bytes() == before


def test_another_network_is_no_continuation(half, tiny, monkeypatch):
    import conftest
    source = (conftest.root / "train.py").read_text().replace("Dense(1024)", "Dense(512)")
    (half / "train.py").write_text(source)
    shutil.copytree(conftest.root / "support", half / "support")
    monkeypatch.setattr(conftest, "root", half)
    out, err = run("train.py", *options, cwd=half, data=tiny, code=1)
    assert re.search(r"network [0-9a-f]{8}, not [0-9a-f]{8}\.", message(err)) and "--restart" in err


def test_restart_discards_nothing_before_the_data_are_there(half, tmp_path):
    before = (half / checkpoint).read_bytes()
    (tmp_path / "file").write_text("")
    run("train.py", *options, "--restart", cwd=half, data=tmp_path / "file", code=1)
    assert (half / checkpoint).read_bytes() == before


@posix
def test_ctrl_c_after_a_restart_does_not_ask_for_another(half, tiny):
    script = start("train.py", *options, "--epochs", 300, "--restart", cwd=half, data=tiny)
    while "\nEpoch 3/" not in script.output()[0]:
        assert script.poll() is None
        time.sleep(0.005)
    out, err = interrupt(script)
    assert "to resume, run the same command again without --restart." in err


def test_restart_and_more_epochs(half, tiny):
    out, err = run("train.py", *options, "--epochs", 5, cwd=half, data=tiny)
    assert "Resuming after" in out and "Epoch 5/5" in out
    out, err = run("train.py", "--epochs", 1, "--batch-size", 10, "--restart", cwd=half, data=tiny)
    assert "Resuming" not in out and re.search(r"^7/7 ", out, re.M)


@pytest.mark.parametrize("damage", [lambda whole: b"", lambda whole: whole[:-1000], lambda whole: b"garbage" * 1000,
                                    lambda whole: whole[:9_000_000] + b"\xff" * 64 + whole[9_000_064:]],
                         ids=["empty", "truncated", "garbage", "flipped bits"])
def test_damaged_checkpoint(damage, half, capsys, monkeypatch):
    import train
    from support.checkpoint import Checkpoint
    monkeypatch.chdir(half)
    monkeypatch.setattr("sys.argv", ["train.py"])
    path, previous = half / checkpoint, half / f"results/previous-{name}.checkpoint.npz"
    path.write_bytes(damage(path.read_bytes()))
    read = Checkpoint(train.parse_args(), []).read()
    assert "cannot be read" in capsys.readouterr().out
    with np.load(previous) as before:
        assert [json.dumps(read["options"]), json.dumps(read["history"])] == [before["options"], before["history"]]
        assert len(read["values"]) == len(before.files) - 2 > 0
        assert all(np.array_equal(value, before[f"arr_{index}"]) for index, value in enumerate(read["values"]))
    assert (half / f"results/unreadable-{name}.checkpoint.npz").exists() and not path.exists()


def test_damaged_checkpoint_then_the_one_before_it(half, undisturbed, tiny):
    (half / checkpoint).write_bytes((half / checkpoint).read_bytes()[:-1000])
    out, err = run("train.py", *options, cwd=half, data=tiny)
    assert "cannot be read" in out and "Resuming after" in out, "the checkpoint before it was not used"
    (half / f"results/unreadable-{name}.checkpoint.npz").unlink()
    same_as_undisturbed(half, undisturbed)


def test_both_checkpoints_damaged(half, undisturbed, tiny):
    for path in half / checkpoint, half / f"results/previous-{name}.checkpoint.npz":
        path.write_bytes(path.read_bytes()[:1000])
    out, err = run("train.py", *options, cwd=half, data=tiny)
    assert out.count("cannot be read") == 2 and "Epoch 1/4" in out
    for path in (half / "results").glob("unreadable-*"):
        path.unlink()
    same_as_undisturbed(half, undisturbed)
