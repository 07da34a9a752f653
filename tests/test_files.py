"""Files: where they may go; none is half written, and none is overwritten."""
import contextlib
import re
import shutil
import time

import pytest

from conftest import (
    checkpoint,
    curves,
    in_one_go,
    message,
    name,
    options,
    posix,
    rare,
    run,
    run_after,
    same_as_undisturbed,
    start,
    start_until_written,
    wait_for,
    without_privileges,
)


def test_something_in_the_way(tmp_path, monkeypatch):
    from support import files
    from support.errors import UserError
    monkeypatch.chdir(tmp_path)
    for path in "results", "logs", f"logs/{name}":
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text("mine")
        with pytest.raises(UserError) as error:
            files.make_folders(name)
        assert path in message(str(error.value)).replace("\\", "/") and (tmp_path / path).read_text() == "mine"
        (tmp_path / path).unlink()
    (tmp_path / f"results/{name}.h5").mkdir(parents=True)
    with pytest.raises(UserError, match="a folder has that name"):
        files.make_folders(name)


@posix
def test_not_writable(tmp_path, tiny):
    for path in "results", "logs":
        (tmp_path / path).mkdir()
        (tmp_path / path).chmod(0o555)
        out, err = run_after(without_privileges, "train.py", *in_one_go, cwd=tmp_path, data=tiny, code=1)
        assert path in message(err) and "Permission denied" in err and out == "", "found before the data were loaded"
        (tmp_path / path).chmod(0o755)


def test_killed_while_the_model_is_written(half, undisturbed, tiny):
    old = (undisturbed / f"results/{name}.h5").read_bytes()
    for delay in 0, 0.02:
        script = start_until_written(half / f"results/{name}.h5", *options, cwd=half, data=tiny)
        time.sleep(delay)
        script.kill()
        if (half / f"results/{name}.h5").exists():  # it was done before its kill
            assert (half / f"results/{name}.h5").read_bytes() == old
            break
    if (half / checkpoint).exists():
        out, err = run("train.py", *options, cwd=half, data=tiny)
        assert "Epoch" not in out, "it was trained again"
    same_as_undisturbed(half, undisturbed)


def test_what_a_kill_left_is_deleted_when_it_is_old(tmp_path):
    import os

    from support import files
    path = tmp_path / "a.png"
    old, young, other = (tmp_path / left for left in (".a.png.1.png", ".a.png.2.png", ".ba.png.1.png"))
    for left in old, young, other:
        left.write_text("half")
        os.utime(left, (time.time() - 100 * (left != young) * 60,) * 2)
    with files.replacing(path) as part:
        part.write_text("whole")
    assert path.read_text() == "whole" and sorted(tmp_path.iterdir()) == sorted([path, young, other])


def test_a_clock_that_was_ahead_and_is_set_right(half, undisturbed, tiny):
    """An hour ahead while the first epochs were logged."""
    import tensorflow as tf
    from tensorboard.compat.proto.event_pb2 import Event
    for path in (half / "logs").rglob("*tfevents*"):
        with contextlib.suppress(tf.errors.DataLossError):  # the kill may have torn the last record
            records = []
            for record in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
                event = Event.FromString(record)
                event.wall_time += 3600
                records.append(event.SerializeToString())
        size = path.stat().st_size
        with tf.io.TFRecordWriter(str(path)) as writer:
            for record in records:
                writer.write(record)
        assert abs(path.stat().st_size - size) < 100
    out, err = run("train.py", *options, cwd=half, data=tiny)
    assert "Resuming after epoch" in out and err == ""
    same_as_undisturbed(half, undisturbed)


def test_logs_are_cut_back_to_their_sizes(tmp_path):
    """A file of a learner's own writer, too. One that a power cut has made shorter is not filled up."""
    from support import files
    for file, content in ("a/events.out.tfevents.1", b"12345"), ("epochs.csv", b"123"), ("notes.txt", b"mine"):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_bytes(content)
    sizes = files.log_sizes(tmp_path)
    assert sizes == {"a/events.out.tfevents.1": 5, "epochs.csv": 3}
    (tmp_path / "a/events.out.tfevents.1").write_bytes(b"123456789")
    (tmp_path / "b").mkdir()
    (tmp_path / "b/events.out.tfevents.2").write_bytes(b"later")
    (tmp_path / "epochs.csv").write_bytes(b"1")
    files.cut_back(tmp_path, sizes)
    found = {path.name: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert found == {"events.out.tfevents.1": b"12345", "events.out.tfevents.2": b"", "epochs.csv": b"1",
                     "notes.txt": b"mine"}


@posix
@rare
def test_disk_full(half, undisturbed, tiny):
    """A limit on the size of files stands for the disk: a checkpoint has 28.8 MB, what Keras first writes 29.7."""
    for limit in 5_000_000, 29_000_000:
        preparation = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))"
        out, err = run_after(preparation, "train.py", *options, cwd=half, data=tiny, code=1)
        assert "Epoch" in out and f"results/{name}." in message(err) and "run the same command again" in err
        assert not (half / f"results/{name}.h5").exists() and not list((half / "results").glob(".*"))
    out, err = run("train.py", *options, cwd=half, data=tiny)
    assert "Epoch" not in out, "the second limit left a whole checkpoint"
    (half / "program.py").unlink()
    same_as_undisturbed(half, undisturbed)


@posix
def test_training_again_keeps_the_earlier_run(undisturbed, tiny, tmp_path):
    """With its pictures. Also if the model is read-only."""
    folder = shutil.copytree(undisturbed, tmp_path / "again")
    old = (folder / f"results/{name}.h5").read_bytes()
    for picture in "sample", "report":
        (folder / f"results/{name}-{picture}.png").write_text(f"the {picture} of the earlier run")
    (folder / f"results/{name}.h5").chmod(0o444)
    out, err = run_after(without_privileges, "train.py", *options, "--seed", 2, cwd=folder, data=tiny)
    dated = re.search(rf"^The earlier run is kept:\n  logs/({name}-[\d-]+)\n  results/\1\.h5\n  results/\1\.png\n"
                      r"  results/\1-sample\.png\n  results/\1-report\.png$", out, re.M)[1]
    assert (folder / f"results/{dated}.h5").read_bytes() == old and err == ""
    for picture in "sample", "report":
        assert (folder / f"results/{dated}-{picture}.png").read_text() == f"the {picture} of the earlier run"
        assert not (folder / f"results/{name}-{picture}.png").exists(), "beside another model"
    first, second = curves(folder / "logs" / dated), curves(folder / "logs" / name)
    assert first == curves(undisturbed / "logs" / name)
    assert [step for step, value in second["train/epoch_loss"]] == [0, 1, 2, 3]
    for key in "train/epoch_loss", "validation/epoch_loss":
        assert second[key][0] != first[key][0], "another seed, the same numbers"
    assert (folder / f"results/{name}.h5").read_bytes() != old and loads(folder / f"results/{name}.h5")


def loads(path):
    import keras
    return keras.models.load_model(path, compile=False).count_params() == 2395434


@rare
def test_two_trainings_of_one_name(tmp_path, tiny):
    """The last one's model stays, and it is whole."""
    first = start("train.py", "--epochs", 6, cwd=tmp_path, data=tiny)
    assert wait_for(tmp_path / checkpoint, first)
    out, err = run("train.py", *in_one_go, "--restart", cwd=tmp_path, data=tiny)
    assert "The model is in" in out
    first.wait()
    assert first.returncode == 0, first.output()
    model, = (tmp_path / "results").glob("*.h5")
    assert loads(model)
