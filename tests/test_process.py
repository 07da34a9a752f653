"""The scripts are guests: in notebooks, in IDLE, under pdb, twice in one process, without streams."""
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from functools import partial

import pytest

from conftest import (
    environment,
    hparams_of,
    in_one_go,
    message,
    name,
    options,
    posix,
    root,
    run,
    run_after,
    start,
    wait_for,
)

everything = """
import gc, logging, os, pathlib, signal, sys, threading, warnings
def state():
    numbers = sorted(os.listdir("/proc/self/fd")) if sys.platform == "linux" else []
    return [signal.getsignal(signal.SIGINT), sys.stdout.errors, sys.stdout.line_buffering, os.getcwd(),
            logging.getLogger("absl").level, logging.getLogger("tensorflow").level,
            [os.readlink(f"/proc/self/fd/{number}") for number in numbers if int(number) <= 2]]
def settings():
    import keras, matplotlib.pyplot
    return [keras.config.dtype_policy().name, keras.config.floatx(), keras.config.image_data_format(),
            matplotlib.get_backend(), matplotlib.pyplot.get_fignums(), list(warnings.filters), sys.excepthook]
"""


def test_importing_changes_nothing(tmp_path):
    """Except the variables that TensorFlow, HDF5 and Keras read while they are imported."""
    program = tmp_path / "program.py"
    program.write_text(f"""{everything}
sys.path[0] = {str(root)!r}
before, folders = state(), list(pathlib.Path().iterdir())
variables = dict(os.environ)
import train, test
gc.collect()
assert state() == before and list(pathlib.Path().iterdir()) == folders
changed = {{key for key in os.environ if os.environ[key] != variables.get(key)}}
changed |= variables.keys() - os.environ.keys()
print(sorted(key for key in changed if key.split("_")[0] not in ("TF", "TF2", "TPU", "KERAS", "HDF5", "ENABLE")))
""")
    done = subprocess.run([sys.executable, program], cwd=tmp_path, capture_output=True, text=True,
                          env=environment(tmp_path / "data"))
    assert (done.returncode, done.stderr) == (0, "") and done.stdout == "[]\n"
    assert [path.name for path in tmp_path.iterdir()] == ["program.py"]


def test_two_runs_in_one_process_leave_it_as_it_was(tmp_path, tiny):
    """The second run computes in 32 bits, and none has the seed of an earlier one."""
    program = tmp_path / "program.py"
    program.write_text(f"""{everything}
import runpy
sys.path[0] = {str(root)!r}
import train, test
train.machine.faster_precision = lambda: "mixed_bfloat16"  # whatever this computer is
before = state() + settings()
for arguments in "--fast --epochs 1 --name first", "--epochs 1 --name second", "--epochs 2 --name second --seed 1":
    sys.argv = ["train.py", *arguments.split()]
    train.main()
    assert state() + settings() == before, state() + settings()
import random, numpy, tensorflow
drawn = []
for _ in range(2):
    sys.argv = ["train.py", "--epochs", "1", "--seed", "1", "--name", "seeded"]
    train.main()
    drawn.append([random.random(), numpy.random.rand(), float(tensorflow.random.uniform(()))])
assert all(first != second for first, second in zip(*drawn)), "the seed is still set"
sys.argv = ["test.py", "results/first.h5"]
test.main()
assert state() + settings() == before, state() + settings()
""")
    out, err = run(program, cwd=tmp_path, data=tiny)
    assert err == "" and "Fast recipe: 1 epoch in mixed_bfloat16" in out
    assert [hparams_of(tmp_path / "logs" / name)[0][1]["precision"] for name in ("first", "second")] == [
        "mixed_bfloat16", "float32"]


def test_an_interrupted_run_is_resumed_in_a_process_that_made_a_model_before(half, tiny):
    preparation = f"sys.path.insert(0, {str(root)!r}); import train; train.create_model((32, 32, 3))"
    out, err = run_after(preparation, "train.py", *options, cwd=half, data=tiny)
    assert "Resuming after epoch" in out and err == "" and not (half / f"results/{name}.checkpoint.npz").exists()


@pytest.mark.skipif(sys.platform == "win32", reason="Windows always has standard streams here")
@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-", "<&-", "<&- >&- 2>&-"])
def test_closed_streams_do_no_harm(closed, tmp_path, tiny):
    for command in f"train.py --epochs 1 {closed}", f"test.py {closed}", f"train.py --epochs 0 {closed}":
        done = subprocess.run(f"exec '{sys.executable}' '{root}'/{command}", shell=True, cwd=tmp_path, text=True,
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment(tiny))
        assert done.returncode == (2 if "--epochs 0" in command else 0), done
        assert "Traceback" not in done.stderr
    assert (tmp_path / f"results/{name}.h5").exists() and (tmp_path / f"results/{name}-sample.png").exists()


@pytest.mark.parametrize("backend", ["module://matplotlib_inline.backend_inline", "module://no_such_module", "nonsense",
                                     "TkAgg"])
def test_a_backend_that_cannot_be_used_is_replaced(backend, small_model, tmp_path, tiny):
    env = environment(tiny, MPLBACKEND=backend)
    out, err = run("test.py", small_model, cwd=tmp_path, data=tiny, plain=True, env=env)
    assert err == "" and "Picture saved as results/small-sample.png" in out and "Figure(" not in out


def test_output_to_a_file_has_a_line_an_epoch(trained):
    out = (trained / "out.txt").read_bytes()
    assert b"\r" not in out and b"\b" not in out and b"\x1b" not in out
    assert len(re.findall(rb"(?m)^62/62 - ", out)) == 2


@posix
def test_python_i_is_not_killed_by_a_later_ctrl_c(tmp_path, tiny):
    command = [sys.executable, "-u", "-i", root / "train.py", "--epochs", "1"]
    process = subprocess.Popen(command, cwd=tmp_path, text=True, env=environment(tiny), stdin=subprocess.PIPE,
                               stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    process.stdin.write("import time\ntry: print('WAI' + 'TING'); [time.sleep(0.1) for _ in range(600)]\n"
                        "except KeyboardInterrupt: print('INTER' + 'RUPTED')\n\n")
    process.stdin.flush()
    out = ""
    while "WAITING" not in out:
        out += process.stdout.readline()
    process.send_signal(signal.SIGINT)
    out += process.communicate("print('policy', tf.keras.config.dtype_policy().name)\n", timeout=180)[0]
    assert "INTERRUPTED" in out and "policy float32" in out and "Stopped" not in out
    assert "The model is in" in out


@posix
def test_ctrl_c_does_not_end_a_run_in_the_background(tmp_path, tiny):
    """In a shell script, `python train.py &` ignores Ctrl-C, which is for the program in the foreground."""
    ignore = partial(signal.signal, signal.SIGINT, signal.SIG_IGN)
    script = start("train.py", "--epochs", 3, cwd=tmp_path, data=tiny, preexec_fn=ignore)
    assert wait_for(tmp_path / f"results/{name}.checkpoint.npz", script)
    script.send_signal(signal.SIGINT)
    out, err = script.wait()
    assert (script.returncode, err) == (0, "") and "The model is in" in out


def test_pdb(tmp_path, tiny):
    done = subprocess.run([sys.executable, "-m", "pdb", root / "train.py", "--epochs", "1"], cwd=tmp_path, text=True,
                          env=environment(tiny), input="c\nq\n", capture_output=True)
    assert "The model is in" in done.stdout and "The program finished" in done.stdout, done


@pytest.fixture
def notebook(tmp_path, tiny, monkeypatch):
    """Return a function that runs cells in a Jupyter kernel, with the project's files in its folder, and returns the
    text that each cell put out."""
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    for script in "train.py", "test.py":
        shutil.copy(root / script, tmp_path)
    shutil.copytree(root / "support", tmp_path / "support")
    monkeypatch.setenv("PATH", os.path.dirname(sys.executable) + os.pathsep + os.environ["PATH"])  # noqa: PTH120
    for key, value in environment(tiny).items():
        monkeypatch.setenv(key, value)
    for key in "MPLBACKEND", "DISPLAY", "TF_CPP_MIN_LOG_LEVEL":
        monkeypatch.delenv(key, raising=False)

    def execute(*cells, interrupt=None):
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


def test_run_in_jupyter(notebook, tmp_path):
    one = "--epochs 1 --batch-size 70"
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
def test_ctrl_c_in_jupyter_stops_the_run_and_not_the_kernel(notebook):
    later = ("import os, pathlib, signal, threading, time\n"
             "def wait():\n"
             "    while not pathlib.Path('results/cifar10-model-v1.checkpoint.npz').exists(): time.sleep(0.01)\n"
             "    time.sleep(1); os.kill(os.getpid(), signal.SIGINT)\n"
             "threading.Thread(target=wait, daemon=True).start()\n")
    stopped, alive, resumed = notebook(later + "%run train.py --epochs 300 --batch-size 70", "print(1 + 1)",
                                       "%run train.py --epochs 300 --batch-size 70 --restart --epochs 1")
    assert re.search(r"Stopped in epoch \d+ of 300; to resume, run the same command again\.", stopped)
    assert "130" in stopped
    assert alive == "2\n" and "The model is in" in resumed


def test_idle(display, tmp_path, tiny):
    pytest.importorskip("tkinter", reason="this Python has no IDLE")
    source = (root / "train.py").read_text(encoding="utf-8").replace("\nepochs = 30\n", "\nepochs = 1\n")
    (tmp_path / "train.py").write_text(source, encoding="utf-8")
    shutil.copytree(root / "support", tmp_path / "support")
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


@pytest.mark.parametrize("setting", [
    {"KERAS_BACKEND": "jax"}, {"KERAS_MAX_EPOCHS": "1"}, {"TF_USE_LEGACY_KERAS": "1"}, '{"backend": "torch"}',
    '{"image_data_format": "channels_first", "floatx": "float16"}'], ids=str)
def test_settings_that_other_programs_left(setting, tmp_path, tiny, undisturbed):
    env = environment(tiny, KERAS_HOME=str(tmp_path))
    if isinstance(setting, dict):
        env.update(setting)
    else:
        (tmp_path / "keras.json").write_text(setting)
    out, err = run("train.py", *options, cwd=tmp_path, data=tiny, env=env, plain=True)
    assert err == ""
    csv = f"logs/{name}/epochs.csv"
    assert (tmp_path / csv).read_text() == (undisturbed / csv).read_text()


def test_tex_in_the_settings_of_matplotlib(small_model, tmp_path, tiny):
    """TeX may be missing, and the names of files are not in its language."""
    (tmp_path / "matplotlibrc").write_text("text.usetex: True")
    env = environment(tiny, MATPLOTLIBRC=str(tmp_path))
    out, err = run("test.py", small_model, "--image", root / ".github/images.png", cwd=tmp_path, data=tiny, env=env,
                   plain=True)
    assert err == "" and "Picture saved as" in out


def test_two_trainings_of_one_name(tmp_path, tiny):
    first = start("train.py", "--epochs", 50, "--batch-size", 70, cwd=tmp_path, data=tiny)
    assert wait_for(tmp_path / f"results/{name}.checkpoint.npz", first)
    out, err = run("train.py", *in_one_go, cwd=tmp_path, data=tiny, code=1)
    assert "Another training run with this name is in progress" in message(err) and out == ""
    run("train.py", *in_one_go, "--name", "other", cwd=tmp_path, data=tiny)
    first.kill()
    out, err = run("train.py", *in_one_go, "--restart", cwd=tmp_path, data=tiny)
    assert "The model is in" in out and not list(tmp_path.glob("results/*.lock"))


no_locks = r"""
#include <errno.h>
#include <stdarg.h>
int flock(int number, int operation) { errno = ENOLCK; return -1; }
int lockf(int number, int command, long size) { errno = ENOLCK; return -1; }
"""


@pytest.mark.skipif(sys.platform != "linux" or not shutil.which("cc"), reason="needs Linux and a compiler")
def test_a_drive_without_locks(tmp_path, tiny):
    (tmp_path / "none.c").write_text(no_locks)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", "none.so", "none.c"], cwd=tmp_path, check=True)
    env = environment(tiny, LD_PRELOAD=str(tmp_path / "none.so"))
    for command in ["train.py", *in_one_go], ["test.py"]:
        out, err = run(*command, cwd=tmp_path, data=tiny, env=env, plain=True)
        assert err == ""
