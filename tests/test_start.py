"""Before TensorFlow: missing and broken packages, a quiet console, Ctrl-C while packages are imported."""
import signal
import subprocess
import sys
import time

import pytest

from conftest import environment, message, posix, root, start


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
@pytest.mark.parametrize("script", ["train.py", "test.py"])
@pytest.mark.parametrize("seconds", [1, 2.5])
def test_ctrl_c_before_training(script, seconds, tmp_path, tiny):
    script = start(script, cwd=tmp_path, data=tiny, plain=True)
    time.sleep(seconds)
    script.send_signal(signal.SIGINT)
    out, err = script.wait(60)
    if script.returncode == 130 or "There is no model" not in err:  # test.py may have been quicker
        assert (script.returncode, err) == (130, "\nStopped.\n")
