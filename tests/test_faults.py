"""Every mistake is answered in one to four lines, with the right exit code, and damages nothing."""
import os
import shutil
import subprocess
import sys

import pytest

from conftest import environment, message, name, root, run, run_after

in_one_go = ["--epochs", 1, "--batch-size", 70]


@pytest.mark.parametrize("arguments", [
    ["--epochs", "0"], ["--epochs", "-3"], ["--epochs", "many"], ["--epochs", "1.5"], ["--batch-size", "0"],
    ["--batch-size", "50001"], ["--seed", "-1"], ["--seed", str(2**32)], ["--name", ""], ["--name", "../x"],
    ["--name", "/x"], ["--name", "a/b"], ["--name", "a\\b"], ["--name", ".."], ["--name", ".hidden"],
    ["--name", "dot."], ["--colour"]])
def test_bad_options(arguments, tmp_path, monkeypatch, capsys):
    import train
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train.py", *arguments])
    with pytest.raises(SystemExit) as stop:
        train.parse_args()
    out, err = capsys.readouterr()
    assert stop.value.code == 2 and out == "" and message(err) and arguments[0] in err
    assert list(tmp_path.iterdir()) == []


def test_bad_option_in_a_process(tmp_path, tiny):
    out, err = run("train.py", "--epochs", "0", cwd=tmp_path, data=tiny, code=2)
    assert out == "" and "--epochs" in message(err) and list(tmp_path.iterdir()) == []


def test_batch_larger_than_the_split(tmp_path, tiny):
    out, err = run("train.py", "--batch-size", 71, cwd=tmp_path, data=tiny, code=1)
    assert "--batch-size 71" in message(err)


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


# Root gives up what lets it pass over permissions: capabilities 1 and 2 of Linux, in version 3 of its calls.
without_privileges = """
import ctypes
if sys.platform == "linux":
    version, sets = (ctypes.c_uint32 * 2)(0x20080522), (ctypes.c_uint32 * 6)()
    assert ctypes.CDLL(None).capget(version, sets) == 0
    sets[0] &= ~0b110
    assert ctypes.CDLL(None).capset(version, sets) == 0
"""
needs_permissions = pytest.mark.skipif(os.name != "posix", reason="needs POSIX permissions")


@needs_permissions
@pytest.mark.parametrize("path", ["results", "logs"])
def test_not_writable(path, tmp_path, tiny):
    (tmp_path / path).mkdir()
    (tmp_path / path).chmod(0o555)
    out, err = run_after(without_privileges, "train.py", *in_one_go, cwd=tmp_path, data=tiny, code=1)
    assert path in message(err) and "Permission denied" in err and out == ""


@needs_permissions
def test_data_folder_not_writable(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data").chmod(0o555)
    out, err = run_after(without_privileges, "train.py", *in_one_go, cwd=tmp_path, data=tmp_path / "data", code=1)
    assert str(tmp_path / "data") in message(err) and "Permission denied" in err


def test_file_in_the_place_of_the_data_folder(tmp_path):
    (tmp_path / "file").write_text("")
    out, err = run("train.py", *in_one_go, cwd=tmp_path, data=tmp_path / "file", code=1)
    assert (tmp_path / "file").as_posix() in message(err)


def damage(folder, what):
    version = folder / "cifar10" / "3.0.2"
    if what == "no description":
        (version / "dataset_info.json").unlink()
    elif what == "garbage for a description":
        (version / "dataset_info.json").write_text("{garbage")
    for records in version.glob("*.tfrecord*"):
        content = records.read_bytes()
        if what == "unreadable":
            records.chmod(0)
        elif what == "gone":
            records.unlink()
        elif what == "empty":
            records.write_bytes(b"")
        elif what == "truncated":
            records.write_bytes(content[:len(content) // 2])
        elif what == "corrupted":
            middle = len(content) // 2
            records.write_bytes(content[:middle] + bytes(100) + content[middle + 100:])


@pytest.mark.parametrize("what", ["no description", "garbage for a description", "gone", "empty", "truncated",
                                  "corrupted", pytest.param("unreadable", marks=needs_permissions)])
def test_damaged_data(what, tmp_path, tiny, small_model):
    folder = shutil.copytree(tiny, tmp_path / "data")
    damage(folder, what)
    preparation = without_privileges if what == "unreadable" else ""
    for script, arguments in (("train.py", in_one_go), ("test.py", [small_model])):
        out, err = run_after(preparation, script, *arguments, cwd=tmp_path, data=folder, code=1)
        assert "Delete the folder" in message(err), err
        assert not list(tmp_path.glob("results/*.h5"))


def write_model(path, *layers, shape=(32, 32, 3)):
    """Save an untrained model, as a stranger would have made it."""
    import keras
    made = [eval(layer, {"L": keras.layers}) for layer in layers]
    keras.Sequential([keras.Input(shape), *made]).save(path)
    return path


def refusal(path, capsys):
    """What test.py says of a model file, without a process for each file."""
    import test
    with pytest.raises(test.UserError) as error:
        test.load_classifier(path)
    assert capsys.readouterr().out == ""
    return message(str(error.value))


@pytest.fixture(scope="session")
def small_model(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "small.h5"
    return write_model(path, "L.Flatten()", "L.Dense(10, activation='softmax')")


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
        assert path.as_posix() in message(err) and out == ""


@pytest.mark.parametrize("layers, shape", [(["L.Flatten()", "L.Dense(10)"], (28, 28, 1)),
                                           (["L.Flatten()", "L.Dense(100)"], (32, 32, 3)),
                                           (["L.Conv2D(10, 3)"], (32, 32, 3))])
def test_another_kind_of_model(layers, shape, tmp_path, capsys):
    path = write_model(tmp_path / "model.h5", *layers, shape=shape)
    assert "not a classifier of 32x32" in refusal(path, capsys)


@pytest.mark.parametrize("arguments", [[], ["--image", "photo.png"]])
def test_a_model_with_code_inside_is_refused(arguments, tmp_path, tiny):
    mark = tmp_path / "the code ran"
    path = write_model(tmp_path / "model.h5", f"L.Lambda(lambda x: (open({str(mark)!r}, 'w').close(), x)[1])",
                       "L.Flatten()", "L.Dense(10)")
    mark.unlink()  # making the model has run it
    out, err = run("test.py", path, *arguments, cwd=tmp_path, data=tiny, code=1)
    assert "it was refused and nothing of it was run" in message(err) and out == "" and not mark.exists()


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


def test_a_console_that_lacks_the_characters_of_the_bars(tmp_path, tiny):
    out, err = run_after("sys.stdout.reconfigure(encoding='cp1252', errors='strict')", "train.py", *in_one_go,
                         cwd=tmp_path, data=tiny)
    assert err == "" and "1/1 ???" in out and (tmp_path / f"results/{name}.h5").exists()


@pytest.mark.skipif(os.name != "posix", reason="Windows has no SIGPIPE")
def test_a_reader_that_has_read_enough(small_model, tmp_path, tiny):
    out, err = run_after("import os; ours, its = os.pipe(); os.dup2(its, 1); os.close(ours)", "test.py", small_model,
                         cwd=tmp_path, data=tiny, code=1)
    assert err == ""
