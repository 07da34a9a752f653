"""What must happen before TensorFlow is imported. Without this, TensorFlow writes its log to the console, many CPUs
train more slowly, settings that other programs left break this one, and a missing package ends in a traceback."""
import contextlib
import importlib
import os
import sys
import warnings
from pathlib import Path

from support.messages import one_line

script = Path(sys.argv[0]).name
is_script = script in ("train.py", "test.py")


def import_packages():
    """Import the packages that take long or may fail: here, their messages are hidden and their errors explained."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tqdm warns in a notebook without widgets, for example
        for package in ("tensorflow", "keras", "matplotlib.pyplot", "pooch", "tensorboard.plugins.hparams.api",
                        "tensorflow_datasets", "tensorflow_datasets.public_api"):  # TFDS hides errors, this shows them
            importlib.import_module(package)


def without_stderr(function):
    """Call a function with standard error switched off: TensorFlow 2.21 writes to it before it reads the log level."""
    try:
        stderr = os.dup(2)
    except OSError:  # it is closed
        return function()
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    os.close(null)
    try:
        return function()
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)


def interrupted(error):
    """Return whether an error comes from Ctrl-C: TensorFlow turns a KeyboardInterrupt into a SystemError in places."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None


# TensorFlow, HDF5 and Keras read these while they are imported.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")  # faster convolutions; TensorFlow leaves them off without AVX-512
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("HDF5_USE_FILE_LOCKING", "FALSE")  # there are drives without locks, and nothing here needs one
os.environ["KERAS_BACKEND"] = "tensorflow"  # whatever ~/.keras/keras.json says
for limit in "KERAS_MAX_EPOCHS", "KERAS_MAX_STEPS_PER_EPOCH":  # left by a trial; Keras would end the training early
    os.environ.pop(limit, None)
os.environ["TF_USE_LEGACY_KERAS"] = "0"  # else TensorBoard asks for Keras 2

# Matplotlib reads MPLBACKEND while it is imported, and a wrong name would stop the program here. A Jupyter kernel
# passes its own backend to every program that it starts, but that backend draws nothing there.
in_ipython = "IPython" in sys.modules
backend = "" if in_ipython or not is_script else os.environ.pop("MPLBACKEND", "")
try:
    without_stderr(import_packages)
except BaseException as error:
    if not is_script:
        raise
    if interrupted(error):
        print("\nStopped.", file=sys.stderr)
        sys.exit(130)
    state = "missing" if isinstance(error, ModuleNotFoundError) else "broken"
    sys.exit(f"A package is {state}: {one_line(error)}\n"
             f"This is Python {sys.version.split()[0]}. To install the packages, with Python 3.10 to 3.13:"
             "  python -m pip install -r requirements.txt\n"
             "With uv, you do not have to install Python:"
             f"  uv run --python 3.13 --with-requirements requirements.txt {script}")
finally:
    if backend:
        os.environ["MPLBACKEND"] = backend
if backend and "inline" not in backend:
    # each backend has errors of its own; Matplotlib then chooses one when it draws
    with contextlib.suppress(Exception):
        importlib.import_module("matplotlib.pyplot").switch_backend(backend)
