"""Files: where they may go; none is half written, and none is overwritten."""
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
    run,
    run_after,
    same_as_undisturbed,
    start,
    wait_for,
    without_privileges,
    write_model,
)


@pytest.mark.parametrize("path", ["results", "logs", f"logs/{name}"])
def test_a_file_in_the_way(path, tmp_path, tiny):
    (tmp_path / path).parent.mkdir(exist_ok=True)
    (tmp_path / path).write_text("mine")
    out, err = run("train.py", *in_one_go, cwd=tmp_path, data=tiny, code=1)
    assert path in message(err) and out == "", "not found before the data were loaded"
    assert (tmp_path / path).read_text() == "mine"


def test_a_folder_in_the_place_of_the_model(tmp_path, tiny):
    (tmp_path / f"results/{name}.h5").mkdir(parents=True)
    out, err = run("train.py", *in_one_go, cwd=tmp_path, data=tiny, code=1)
    assert f"results/{name}.h5" in message(err) and out == ""


@posix
@pytest.mark.parametrize("path", ["results", "logs"])
def test_not_writable(path, tmp_path, tiny):
    (tmp_path / path).mkdir()
    (tmp_path / path).chmod(0o555)
    out, err = run_after(without_privileges, "train.py", *in_one_go, cwd=tmp_path, data=tiny, code=1)
    assert path in message(err) and "Permission denied" in err and out == ""


def refusal(path, capsys):
    """What test.py says of a model file, without a process for each file."""
    from support.messages import UserError
    from support.models import check, find, load_model
    with pytest.raises(UserError) as error:
        find(path)
        check(load_model(path), dict.fromkeys(range(10)))
    assert capsys.readouterr().out == ""
    return message(str(error.value))


def test_a_folder_in_the_place_of_the_lock(tmp_path, tiny):
    (tmp_path / f"results/{name}.lock").mkdir(parents=True)
    out, err = run("train.py", *in_one_go, cwd=tmp_path, data=tiny, code=1)
    assert f"{name}.lock: " in message(err) and out == ""


def test_another_model_of_the_right_shape(small_model, tmp_path, tiny):
    out, err = run("test.py", small_model, cwd=tmp_path, data=tiny)
    assert "Test accuracy: " in out and err == ""


def test_no_model(tmp_path, tiny):
    out, err = run("test.py", cwd=tmp_path, data=tiny, code=1)
    assert f"results/{name}.h5" in message(err) and "python train.py" in err and out == ""


@pytest.mark.parametrize("what", ["missing", "empty", "garbage", "truncated", "half", "no model", "folder"])
def test_bad_model_file(what, small_model, tmp_path, tiny, capsys):
    path, whole = tmp_path / "model.h5", small_model.read_bytes()
    if what == "folder":
        path.mkdir()
    elif what == "no model":
        import h5py
        h5py.File(path, "w").close()
    elif what != "missing":
        path.write_bytes({"empty": b"", "garbage": b"garbage" * 5000, "truncated": whole[:-2000],
                          "half": whole[:len(whole) // 2]}[what])
    assert str(path) in refusal(path, capsys)
    if what in ("folder", "half"):  # one is enough to see that the message reaches the console
        out, err = run("test.py", path, cwd=tmp_path, data=tiny, code=1)
        assert path.as_posix() in message(err)


@pytest.mark.parametrize("layers, shape", [(["L.Flatten()", "L.Dense(10)"], (28, 28, 1)),
                                           (["L.Flatten()", "L.Dense(100)"], (32, 32, 3)),
                                           (["L.Conv2D(10, 3)"], (32, 32, 3))])
def test_another_kind_of_model(layers, shape, tmp_path, capsys):
    path = write_model(tmp_path / "model.h5", *layers, shape=shape)
    assert "does not classify 32x32" in refusal(path, capsys)


@pytest.mark.parametrize("arguments", [[], ["--image", "photo.png"]])
def test_a_model_with_code_inside_is_refused(arguments, tmp_path, tiny):
    mark = tmp_path / "the code ran"
    path = write_model(tmp_path / "model.h5", f"L.Lambda(lambda x: (open({str(mark)!r}, 'w').close(), x)[1])",
                       "L.Flatten()", "L.Dense(10)")
    mark.unlink()  # making the model has run it
    out, err = run("test.py", path, *arguments, cwd=tmp_path, data=tiny, code=1)
    assert "Lambda" in message(err) and not mark.exists()


def loads(path):
    import keras
    return keras.models.load_model(path, compile=False).count_params() == 2395434


def test_killed_while_the_model_is_written(half, undisturbed, tiny):
    old = (undisturbed / f"results/{name}.h5").read_bytes()
    (half / f"results/{name}.h5").write_bytes(b"old " + old)
    part = half / f"results/draft-{name}.h5"
    for delay in 0, 0.01, 0.03:
        part.unlink(missing_ok=True)  # left by the previous kill
        script = start("train.py", *options, cwd=half, data=tiny)
        wait_for(part, script)
        time.sleep(delay)
        script.kill()
        assert (half / f"results/{name}.h5").read_bytes() in (b"old " + old, old)
        if not (half / checkpoint).exists():  # it was done before its kill
            break
    else:
        out, err = run("train.py", *options, cwd=half, data=tiny)
        assert "Epoch" not in out, "it was trained again"
    same_as_undisturbed(half, undisturbed)


@posix
def test_disk_full(half, undisturbed, tiny):
    """A limit on the size of files stands for the disk: a checkpoint has 28.8 MB, what Keras first writes 29.7."""
    (half / f"results/{name}.h5").write_bytes(b"the earlier model")
    for limit in 5_000_000, 29_000_000:
        preparation = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))"
        out, err = run_after(preparation, "train.py", *options, cwd=half, data=tiny, code=1)
        assert "Epoch" in out and f"results/{name}." in message(err) and "run the same command again" in err
        assert (half / f"results/{name}.h5").read_bytes() == b"the earlier model"
        assert not list((half / "results").glob("part-*")) and not list((half / "results").glob("draft-*"))
    out, err = run("train.py", *options, cwd=half, data=tiny)
    assert "Epoch" not in out, "the second limit left a whole checkpoint"
    (half / "program.py").unlink()
    same_as_undisturbed(half, undisturbed)


def test_logs_without_a_model_are_kept(undisturbed, tiny, tmp_path):
    """For example, when someone has deleted the model but not its logs."""
    shutil.copytree(undisturbed / "logs", tmp_path / "logs")
    out, err = run("train.py", *in_one_go, cwd=tmp_path, data=tiny)
    dated = re.search(rf"^The earlier run is kept as logs/({name}-[\d-]+)$", out, re.M)[1]
    assert curves(tmp_path / "logs" / dated) == curves(undisturbed / "logs" / name)
    assert len(curves(tmp_path / "logs" / name)["train/epoch_loss"]) == 1


@posix
def test_an_earlier_model_that_is_read_only_is_kept(undisturbed, tiny, tmp_path):
    folder = shutil.copytree(undisturbed, tmp_path / "again")
    (folder / f"results/{name}.h5").chmod(0o444)
    out, err = run_after(without_privileges, "train.py", *in_one_go, cwd=folder, data=tiny)
    dated = re.search(rf"kept as (results/{name}-[\d-]+\.h5)", out)[1]
    assert (folder / dated).read_bytes() == (undisturbed / f"results/{name}.h5").read_bytes() and err == ""


def test_training_again_keeps_the_earlier_run(undisturbed, tiny, tmp_path):
    folder = shutil.copytree(undisturbed, tmp_path / "again")
    old = (folder / f"results/{name}.h5").read_bytes()
    out, err = run("train.py", *options, "--seed", 2, cwd=folder, data=tiny)
    dated = re.search(rf"kept as results/({name}-[\d-]+)\.h5 and logs/\1$", out, re.M)[1]
    assert (folder / f"results/{dated}.h5").read_bytes() == old
    assert (folder / f"results/{dated}.png").exists()
    first, second = curves(folder / "logs" / dated), curves(folder / "logs" / name)
    assert first == curves(undisturbed / "logs" / name)
    assert [step for step, value in second["train/epoch_loss"]] == [0, 1, 2, 3]
    for key in "train/epoch_loss", "validation/epoch_loss":
        assert second[key][0] != first[key][0], "another seed, the same numbers"
    assert (folder / f"results/{name}.h5").read_bytes() != old and loads(folder / f"results/{name}.h5")
