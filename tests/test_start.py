"""Before TensorFlow: missing and broken packages, a quiet console, Ctrl-C while packages are imported. After it: a
process of the script's own is prepared for it; in notebooks, in IDLE and at Python's prompt, nothing is changed."""
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from functools import partial

import pytest
from PIL import Image

from conftest import (
    checkpoint,
    curves,
    edited,
    environment,
    hparams_of,
    interrupt,
    message,
    name,
    options,
    posix,
    rare,
    root,
    run,
    start,
    wait_for,
    wait_for_output,
)

one = "--epochs 1 --batch-size 70"


@pytest.mark.parametrize("script", ["train.py", "test.py"])
def test_packages_not_installed(script, tmp_path):
    project = edited(tmp_path / "project").parent  # a copy: beside the project itself, there may be a .venv
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    done = subprocess.run([sys.executable, "-E", "-s", "-S", project / script, "--help"], cwd=folder,
                          capture_output=True, encoding="utf-8", env=environment(tmp_path))
    assert done.returncode == 1 and done.stdout == ""
    version = ".".join(map(str, sys.version_info[:3]))
    for word in "tensorflow", version, "3.10 to 3.14", f"pip install -r {project / 'requirements.txt'}":
        assert word in message(done.stderr)
    assert list(folder.iterdir()) == []


def test_an_environment_that_is_not_activated(tmp_path):
    """The line that is printed helps, also in another folder and with a space in its path."""
    folder = edited(tmp_path / "my project").parent
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / ".venv"], check=True)
    activate = folder / ".venv" / ("Scripts/activate" if os.name == "nt" else "bin/activate")
    for script, cwd in (folder / "train.py", tmp_path), ("train.py", folder):
        done = subprocess.run([sys.executable, "-E", "-s", "-S", script, "--help"], cwd=cwd, capture_output=True,
                              encoding="utf-8", env=environment(tmp_path))
        assert done.returncode == 1 and "Activate it first:  " in message(done.stderr)
        command = done.stderr.strip().split("first:  ")[1]
        assert str(activate if cwd == tmp_path else activate.relative_to(folder)) in command
    if os.name == "posix":
        done = subprocess.run(f"{command} && python -c 'import sys; print(sys.prefix)'", shell=True, cwd=folder,
                              capture_output=True, encoding="utf-8", env=environment(tmp_path))
        assert done.stdout == f"{folder / '.venv'}\n"
    inside = activate.with_name("python.exe" if os.name == "nt" else "python")
    done = subprocess.run([inside, "train.py"], cwd=folder, capture_output=True, encoding="utf-8",
                          env=environment(tmp_path))
    assert "To install them:  " in message(done.stderr)


def test_a_broken_package_shows_its_own_error(tmp_path):
    (tmp_path / "tensorflow").mkdir()
    (tmp_path / "tensorflow/__init__.py").write_text("import no_such_module")
    done = subprocess.run([sys.executable, root / "train.py"], cwd=tmp_path, capture_output=True, encoding="utf-8",
                          env=environment(tmp_path, PYTHONPATH=str(tmp_path)))
    assert done.returncode == 1 and "No module named 'no_such_module'" in message(done.stderr)


@pytest.mark.parametrize("file", ["keras.py", pytest.param("tensorflow.py", marks=rare),
                                  pytest.param("numpy.py", marks=rare)])
def test_a_file_that_hides_a_package(file, tmp_path):
    edited(tmp_path)
    (tmp_path / "helpers.py").write_text("")
    (tmp_path / file).write_text("print('mine')")
    done = subprocess.run([sys.executable, "train.py"], cwd=tmp_path, capture_output=True, encoding="utf-8",
                          env=environment(tmp_path))
    assert done.returncode == 1 and f"Rename {file} beside train.py" in message(done.stderr)


@rare
def test_onednn_is_turned_on_for_x86_alone(tmp_path):
    """On ARM64, TensorFlow decides by itself."""
    for machine, setting in ("x86_64", "1"), ("AMD64", "1"), ("aarch64", "None"):
        program = tmp_path / "program.py"
        program.write_text(f"import os, platform, sys; platform.machine = lambda: {machine!r}\n"
                           "os.environ.pop('TF_ENABLE_ONEDNN_OPTS', None)\n"
                           f"sys.path[0] = {str(root)!r}; import support.start\n"
                           "print(os.environ.get('TF_ENABLE_ONEDNN_OPTS'))")
        out, err = run(program, cwd=tmp_path, data=tmp_path)
        assert out == setting + "\n"


def test_a_broken_tfds_is_not_taken_for_broken_data(tmp_path):
    """TFDS swallows an error of its own import, here that of a tensorflow-metadata for another protobuf."""
    (tmp_path / "tensorflow_metadata").mkdir()
    (tmp_path / "tensorflow_metadata/__init__.py").write_text("raise TypeError('built for another protobuf')")
    done = subprocess.run([sys.executable, root / "train.py"], cwd=tmp_path, capture_output=True, encoding="utf-8",
                          env=environment(tmp_path / "data", PYTHONPATH=str(tmp_path)))
    assert done.returncode == 1 and done.stdout == ""
    assert "A package is broken: built for another protobuf" in message(done.stderr)


@posix
@pytest.mark.parametrize("script, moment", [
    ("train.py", 1), pytest.param("test.py", 2.5, marks=rare), pytest.param("train.py", "data", marks=rare)])
def test_ctrl_c_before_training(script, moment, tmp_path, tiny):
    script = start(script, cwd=tmp_path, data=tiny, plain=True)
    if moment == "data":  # all packages are imported, and the network is not made yet
        wait_for_output(script, "cifar10 is in")
    else:
        time.sleep(moment)
    out, err = interrupt(script)
    if script.returncode == 130 or "There is no model" not in err:  # test.py may have been quicker
        stopped = re.search(r"(?m)^Stopped( in epoch 1 of 30; to resume, run the same command again)?\.$", err)
        assert script.returncode == 130 and stopped, err


@rare
def test_ctrl_c_that_a_package_swallows(tmp_path):
    (tmp_path / "pooch.py").write_text("import signal\n"
                                       "try: signal.raise_signal(signal.SIGINT)\n"
                                       "except KeyboardInterrupt: pass")
    done = subprocess.run([sys.executable, root / "train.py"], cwd=tmp_path, capture_output=True, encoding="utf-8",
                          env=environment(tmp_path / "data", PYTHONPATH=str(tmp_path)))
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "\nStopped.\n")


@posix
@rare
def test_ctrl_c_does_not_end_a_run_in_the_background(tmp_path, tiny):
    """In a shell script, `python train.py &` ignores Ctrl-C, which is for the program in the foreground."""
    ignore = partial(signal.signal, signal.SIGINT, signal.SIG_IGN)
    script = start("train.py", "--epochs", 3, cwd=tmp_path, data=tiny, preexec_fn=ignore)
    assert wait_for(tmp_path / checkpoint, script)
    script.send_signal(signal.SIGINT)
    out, err = script.wait()
    assert (script.returncode, err) == (0, "") and "The model is in" in out


@rare
def test_a_folder_with_a_space_and_letters_beyond_ascii(tmp_path, tiny):
    folder = tmp_path / "Übung mit Bildern"
    try:
        folder.mkdir()
    except OSError:
        pytest.skip("Wine cannot create such a folder unless LC_ALL=C.UTF-8 is set")
    shutil.copytree(tiny, folder / "Daten für alle")
    where = {"cwd": folder, "data": folder / "Daten für alle"}
    out, err = run("train.py", *one.split(), **where)
    assert err == "" and f"The model is in results/{name}.h5" in out
    shutil.copytree(folder / "logs", tmp_path / "logs")  # TensorFlow's own reader cannot read them there on Windows
    assert [step for step, value in curves(tmp_path / "logs" / name)["train/epoch_loss"]] == [0]
    out, err = run("test.py", "--report", **where)
    assert err == "" and (folder / f"results/{name}-report.png").exists()
    assert list((folder / f"logs/{name}/report").glob("*tfevents*"))
    Image.new("RGB", (40, 30)).save(folder / "Füße.png")
    out, err = run("test.py", "--image", "Füße.png", **where)
    assert err == "" and "Füße.png: " in out and (folder / f"results/{name}-images.png").exists()


@rare
def test_settings_that_other_programs_left(tmp_path, tiny, undisturbed):
    (tmp_path / "keras.json").write_text('{"image_data_format": "channels_first", "floatx": "float16"}')
    env = environment(tiny, KERAS_HOME=str(tmp_path), KERAS_BACKEND="jax", TF_USE_LEGACY_KERAS="1")
    out, err = run("train.py", *options, cwd=tmp_path, data=tiny, env=env, plain=True)
    assert err == ""
    csv = f"logs/{name}/epochs.csv"
    assert (tmp_path / csv).read_text() == (undisturbed / csv).read_text()


@rare
def test_a_notebooks_backend_is_not_inherited(small_model, tmp_path, tiny):
    """As in !python test.py, where it would draw nothing."""
    env = environment(tiny, MPLBACKEND="module://matplotlib_inline.backend_inline")
    out, err = run("test.py", small_model, cwd=tmp_path, data=tiny, plain=True, env=env)
    assert err == "" and "Figure(" not in out
    assert f"Picture saved as {small_model.with_name('small-sample.png').as_posix()}" in out


state = """
import gc, logging, os, pathlib, signal, sys, warnings
def state():
    return [signal.getsignal(signal.SIGINT), sys.stdout.errors, sys.stdout.line_buffering, os.getcwd(),
            logging.getLogger("absl").level, logging.getLogger("tensorflow").level, len(warnings.filters)]
def settings():
    import keras, matplotlib.pyplot
    return [keras.config.dtype_policy().name, keras.config.floatx(), keras.config.image_data_format(),
            matplotlib.get_backend(), sys.excepthook]
"""


def test_importing_changes_nothing(tmp_path):
    """Except the variables that TensorFlow, HDF5 and Keras read while they are imported."""
    program = tmp_path / "program.py"
    program.write_text(f"""{state}
sys.path[0] = {str(root)!r}
before = state()
variables = dict(os.environ)
import train, test
gc.collect()
assert state() == before, state()
changed = {{key for key in os.environ if os.environ[key] != variables.get(key)}}
changed |= variables.keys() - os.environ.keys()
print(sorted(key for key in changed if key.split("_")[0] not in ("TF", "TF2", "TPU", "KERAS", "HDF5", "ENABLE")))
""")
    done = subprocess.run([sys.executable, program], cwd=tmp_path, capture_output=True, text=True,
                          env=environment(tmp_path / "data"))
    assert (done.returncode, done.stderr) == (0, "") and done.stdout == "[]\n"
    assert [path.name for path in tmp_path.iterdir()] == ["program.py"]


def test_runs_in_somebodys_process_leave_it_as_it_was(tmp_path, tiny):
    """The second run computes in 32 bits."""
    program = tmp_path / "program.py"
    program.write_text(f"""{state}
sys.path[0] = {str(root)!r}
import train, test
train.machine.faster_precision = lambda: "mixed_bfloat16"  # whatever this computer is
before = state() + settings()
for arguments in "--fast {one} --name first", "{one} --name second":
    sys.argv = ["train.py", *arguments.split()]
    train.main()
    assert state() + settings() == before, state() + settings()
sys.argv = ["test.py", "results/first.h5"]
test.main()
assert state() + settings() == before, state() + settings()
""")
    out, err = run(program, cwd=tmp_path, data=tiny)
    assert "Fast recipe: 1 epoch\n  images as they are\n" in out and "  computed in mixed_bfloat16\n" in out
    assert [hparams_of(tmp_path / "logs" / name)[0][1]["precision"] for name in ("first", "second")] == [
        "mixed_bfloat16", "float32"]


@posix
@rare
def test_python_i_is_not_killed_by_a_later_ctrl_c(tmp_path, tiny):
    command = [sys.executable, "-u", "-i", root / "train.py", *one.split()]
    process = subprocess.Popen(command, cwd=tmp_path, text=True, env=environment(tiny), stdin=subprocess.PIPE,
                               stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    process.stdin.write("import signal\nfor _ in range(2):\n    try: signal.raise_signal(signal.SIGINT)\n"
                        "    except KeyboardInterrupt: print('INTER' + 'RUPTED')\n\n")
    out = process.communicate("print('policy', tf.keras.config.dtype_policy().name)\n", timeout=180)[0]
    assert out.count("INTERRUPTED") == 2 and "policy float32" in out and "Stopped" not in out
    assert "The model is in" in out


@rare
def test_pdb(tmp_path, tiny):
    done = subprocess.run([sys.executable, "-m", "pdb", root / "train.py", *one.split()], cwd=tmp_path, text=True,
                          env=environment(tiny), input="c\nq\n", capture_output=True)
    assert "The model is in" in done.stdout and "The program finished" in done.stdout, done


@pytest.fixture
def notebook(tmp_path, tiny, monkeypatch):
    """Return a function that runs cells in a Jupyter kernel, with the project's files in its folder, and returns the
    text that each cell put out."""
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    edited(tmp_path)
    monkeypatch.setenv("PATH", os.path.dirname(sys.executable) + os.pathsep + os.environ["PATH"])  # noqa: PTH120
    for key, value in environment(tiny).items():
        monkeypatch.setenv(key, value)
    for key in "MPLBACKEND", "DISPLAY", "TF_CPP_MIN_LOG_LEVEL":
        monkeypatch.delenv(key, raising=False)

    def execute(*cells):
        book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
        client = nbclient.NotebookClient(book, timeout=300, kernel_name="python3", allow_errors=True,
                                         resources={"metadata": {"path": str(tmp_path)}})
        client.execute()
        texts = []
        for cell in book.cells:
            parts = [output.get("text") or output.get("evalue") or str(output.get("data")) for output in cell.outputs]
            texts.append("".join(parts))
        return texts
    return execute


@rare
def test_run_in_jupyter(notebook, tmp_path):
    first, second, _, tested, shell, shown, setting = notebook(
        f"%run train.py --fast {one} --name first", f"%run train.py {one} --name second",
        "%run test.py results/first.h5", "%run test.py results/first.h5",  # Matplotlib 3.8 shows it the second time
        f"!python train.py {one} --name third", "!python test.py results/third.h5",
        "import keras; print(keras.config.dtype_policy().name)")
    assert "Fast recipe" in first and "The model is in results/first.h5" in first
    assert "The model is in results/second.h5" in second and "The earlier run" not in second
    assert "Predicted label" in tested and "image/png" in tested
    assert "The model is in results/third.h5" in shell
    assert "Picture saved as results/third-sample.png" in shown and "Figure(" not in shown
    assert setting == "float32\n"


@posix
@rare
def test_ctrl_c_in_jupyter_stops_the_run_and_not_the_kernel(notebook):
    later = ("import os, pathlib, signal, threading, time\n"
             "def wait():\n"  # until an epoch is finished: while TensorFlow makes its graphs, it may lose a Ctrl-C
             "    path = pathlib.Path('results/cifar10-model-v1.checkpoint.npz')\n"
             "    while not path.exists() or path.stat().st_size < 1_000_000: time.sleep(0.01)\n"
             "    time.sleep(1); os.kill(os.getpid(), signal.SIGINT)\n"
             "threading.Thread(target=wait, daemon=True).start()\n")
    stopped, alive, resumed = notebook(later + "%run train.py --epochs 300 --batch-size 70", "print(1 + 1)",
                                       f"%run train.py {one} --restart")
    assert re.search(r"Stopped in epoch \d+ of 300; to resume, run the same command again\.", stopped)
    assert "130" in stopped
    assert alive == "2\n" and "The model is in" in resumed


@rare
def test_idle(display, tmp_path, tiny):
    pytest.importorskip("tkinter", reason="this Python has no IDLE")
    edited(tmp_path, ("\nepochs = 30\n", "\nepochs = 1\n"))
    env = environment(tiny, DISPLAY=display, HOME=str(tmp_path))
    shell = subprocess.Popen([sys.executable, "-m", "idlelib", "-r", "train.py"], cwd=tmp_path, env=env)
    deadline = time.monotonic() + 120
    try:
        while not (tmp_path / f"results/{name}.h5").exists():
            assert shell.poll() is None and time.monotonic() < deadline
            time.sleep(0.2)
    finally:
        shell.kill()
        shell.wait()


no_locks = r"""
#include <errno.h>
#include <stdarg.h>
int flock(int number, int operation) { errno = ENOLCK; return -1; }
int lockf(int number, int command, long size) { errno = ENOLCK; return -1; }
"""


@rare
@pytest.mark.skipif(sys.platform != "linux" or not shutil.which("cc"), reason="needs Linux and a compiler")
def test_a_drive_without_locks(tmp_path, tiny):
    (tmp_path / "none.c").write_text(no_locks)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", "none.so", "none.c"], cwd=tmp_path, check=True)
    env = environment(tiny, LD_PRELOAD=str(tmp_path / "none.so"))
    for command in ["train.py", *one.split()], ["test.py"]:
        out, err = run(*command, cwd=tmp_path, data=tiny, env=env, plain=True)
        assert err == ""
