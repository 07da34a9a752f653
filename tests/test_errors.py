"""Every mistake is answered in one to four lines, with the right exit code, and does no damage."""
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from conftest import edited, environment, message, rare, root, run, run_after


@pytest.mark.parametrize("arguments", [
    ["--epochs", "0"], ["--epochs", "-3"], ["--epochs", "many"], ["--epochs", "1.5"], ["--batch-size", "0"],
    ["--batch-size", "50001"], ["--seed", "-1"], ["--seed", str(2**32)], ["--name", ""], ["--name", "../x"],
    ["--name", "/x"], ["--name", "a/b"], ["--name", "a\\b"], ["--name", ".."], ["--name", ".hidden"],
    ["--name", "dot."], ["--name", 51 * "a"], ["--name", "übung"], ["--name", "NUL"], ["--name", "com1.x"],
    ["--name", "a-sample"], ["--colour"], ["--rest"]])
def test_bad_options(arguments, tmp_path, monkeypatch, capsys):
    import train
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train.py", *arguments])
    with pytest.raises(SystemExit) as stop:
        train.parse_args()
    out, err = capsys.readouterr()
    assert stop.value.code == 2 and out == "" and message(err) and arguments[0] in err
    assert list(tmp_path.iterdir()) == []


def test_batch_larger_than_the_split(tmp_path, tiny):
    out, err = run("train.py", "--batch-size", 71, cwd=tmp_path, data=tiny, code=1)
    assert "--batch-size 71" in message(err)


def test_a_console_that_lacks_the_characters_of_a_name(small_model, tmp_path):
    Image.new("RGB", (40, 30)).save(tmp_path / "日本.png")
    model = shutil.copy(small_model, tmp_path)
    out, err = run_after("sys.stdout.reconfigure(encoding='cp1252', errors='strict')", "test.py", model,
                         "--image", "日本.png", cwd=tmp_path, data=tmp_path)
    assert err == "" and "??.png: " in out


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has a file that is always full")
def test_a_full_disk_is_not_a_full_memory():
    """TensorFlow has the same class for both."""
    import tensorflow as tf

    from support import errors
    with pytest.raises(tf.errors.ResourceExhaustedError) as full:
        tf.io.write_file("/dev/full", "x")
    text = message(errors.explain(full.value))
    assert text.startswith("/dev/full: No space left on device.\n") and "memory" not in text
    memory = tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor with shape[1000000,1000000]")
    assert "not enough memory" in errors.explain(memory)


@pytest.mark.parametrize("launcher", ["ipykernel_launcher.py", "colab_kernel_launcher.py"])
def test_the_options_of_a_notebooks_kernel_are_not_ours(launcher, monkeypatch):
    import test
    import train
    monkeypatch.setattr(sys, "argv", [f"/usr/lib/{launcher}", "-f", "/tmp/kernel.json"])
    assert train.parse_args().epochs == 30 and test.parse_args().image is None


@rare
@pytest.mark.skipif(os.name != "posix", reason="the commands are for a POSIX shell")
def test_printed_commands_can_be_pasted(tmp_path, tiny):
    """In a folder with a space in its name, too."""
    project = edited(tmp_path / "My CIFAR").parent
    (project / "tests").mkdir()
    shutil.copy(root / "tests/small_cifar10.py", project / "tests")
    out, err = run(project / "tests/small_cifar10.py", "small data", 7, 4, cwd=project, data=tmp_path)
    env = environment(project / "small data", PATH=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    train = re.search("^Now run: (.*) --epochs 3$", out, re.M)[1]
    done = subprocess.run(f"{train} --epochs 1", shell=True, cwd=tmp_path, env=env, capture_output=True, text=True)
    test = re.search("^Next: (.*)$", done.stdout, re.M)[1]
    done = subprocess.run(test, shell=True, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert "Test accuracy: " in done.stdout and done.returncode == 0, done.stderr


def test_hints_name_the_scripts_as_they_were_typed(tmp_path, monkeypatch):
    from support import models
    from support.errors import UserError
    for typed, train in {"train.py": "train.py", "../a/test.py": "../a/train.py", "": "train.py",
                         "/usr/lib/ipykernel_launcher.py": "train.py"}.items():
        monkeypatch.setattr("sys.argv", [typed])
        with pytest.raises(UserError) as error:
            models.load_model(tmp_path / "none.h5")
        assert f"python {train} --fast" in message(str(error.value)).replace("\\", "/")


@pytest.mark.skipif(os.name != "posix", reason="Windows has no SIGPIPE")
def test_a_reader_that_has_read_enough(small_model, tmp_path, tiny):
    out, err = run_after("import os; ours, its = os.pipe(); os.dup2(its, 1); os.close(ours)", "test.py", small_model,
                         cwd=tmp_path, data=tiny, code=1)
    assert err == ""
