"""How a script starts: what must happen before TensorFlow is imported, and what a process of its own needs, once.
Without this, TensorFlow writes its log to the console, training is slower on many computers, settings that other
programs left break this one, and a missing package ends in a traceback."""
import ctypes
import importlib.machinery
import io
import logging
import os
import platform
import sys
import threading
import warnings
from pathlib import Path

from support import commands, ctrl_c, errors

# A process may be the script's own. Or somebody works in it: at Python's prompt, in a notebook, in IDLE, or with a
# program that imports train.py. Then only the variables are set that the packages read while they are imported.
at_a_prompt = sys.flags.interactive or hasattr(sys, "ps1") or not isinstance(sys.stdout, io.TextIOWrapper)
is_imported = "train" in sys.modules or "test" in sys.modules
own_process = not at_a_prompt and not is_imported


def import_packages():
    """Import the packages that take long or may fail: here, their messages are hidden and their errors explained."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tqdm warns in a notebook without widgets, for example
        for package in ("tensorflow", "keras.callbacks", "matplotlib.pyplot", "pooch",
                        "tensorboard.plugins.hparams.api", "tensorflow_datasets",
                        "tensorflow_datasets.public_api"):  # TFDS hides errors, this shows them
            importlib.import_module(package)
            if ctrl_c.was_pressed():  # the package has swallowed the KeyboardInterrupt
                raise KeyboardInterrupt


def environment_beside():
    """Return the file that activates the environment .venv beside the script; None if there is none, or if this is its
    Python."""
    activate = Path(sys.argv[0]).with_name(".venv") / ("Scripts/activate" if os.name == "nt" else "bin/activate")
    if activate.exists() and not activate.parent.samefile(Path(sys.executable).parent):
        return activate
    return None


def files_that_hide_packages():
    """Return the files beside the script that have a package's name, such as keras.py: Python imports them instead."""
    found = []
    for file in Path(sys.path[0]).glob("*.py"):
        hidden = importlib.machinery.PathFinder.find_spec(file.stem, sys.path[1:])
        if hidden and file.stem not in ("train", "test"):
            found.append(file.name)
    return found


def without_stderr(function):
    """Call a function with standard error switched off: TensorFlow 2.21 writes to it before it reads the log level."""
    try:
        stderr = os.dup(2)
    except OSError:  # there is none, as in IDLE on Windows
        return function()
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    os.close(null)
    try:
        return function()
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)


def adjust_process():
    """Set the console, the warnings, Keras and the folder as the script needs them."""
    import keras
    import pooch
    import tqdm
    sys.stdout.reconfigure(errors="replace", line_buffering=True)  # ? for a character that the console lacks
    warnings.simplefilter("ignore")  # Pillow warns of odd metadata, Matplotlib where there is no display
    loggers = [logging.getLogger(name) for name in ("absl", "tensorflow", "urllib3", "matplotlib.image")]
    loggers.append(pooch.get_logger())  # logging.getLogger() does not know it
    for logger in loggers:
        logger.setLevel(logging.ERROR)  # no advice against HDF5, the tutorial's format, for example
    tqdm.tqdm.set_lock(threading.RLock())  # its own is for several processes, and from Python 3.14 on, Ctrl-C leaves it
    keras.config.set_floatx("float32")  # whatever ~/.keras/keras.json says: in float16, the loss becomes NaN
    keras.config.set_image_data_format("channels_last")
    use_short_folder_name()


def use_short_folder_name():
    """On Windows, work under the folder's short name, C:\\BUNG~1 for C:\\Übung, whose letters TensorFlow garbles."""
    long = str(Path.cwd())
    if os.name != "nt" or long.isascii():
        return
    short = ctypes.create_unicode_buffer(1000)
    ctypes.windll.kernel32.GetShortPathNameW(long, short, 1000)
    if not short.value or not short.value.isascii():
        sys.exit("On Windows, TensorFlow cannot write to this folder, since its path has letters that English lacks:\n"
                 f"{long}\n"
                 "Move this project to a folder such as C:\\cifar10, and run the same command there.")
    os.chdir(short.value)


# TensorFlow, HDF5 and Keras read these while they are imported.
if platform.machine() in ("x86_64", "AMD64"):  # on ARM64, TensorFlow knows better
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")  # faster convolutions, which it leaves off without AVX-512
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("HDF5_USE_FILE_LOCKING", "FALSE")  # there are drives without locks, and nothing here needs one
os.environ["KERAS_BACKEND"] = "tensorflow"  # whatever ~/.keras/keras.json says
os.environ["TF_USE_LEGACY_KERAS"] = "0"  # else TensorBoard asks for Keras 2
if own_process:
    ctrl_c.handle()
    if "inline" in os.environ.get("MPLBACKEND", ""):  # a notebook's, for its !python: it draws nothing here
        del os.environ["MPLBACKEND"]

try:
    without_stderr(import_packages)
except BaseException as error:
    if not own_process:
        raise
    if ctrl_c.was_pressed():  # whatever the packages have made of it
        ctrl_c.stop()
    state = "missing" if isinstance(error, ModuleNotFoundError) else "broken"
    reason = f"A package is {state}: {errors.one_line(error)}"
    hiding = files_that_hide_packages()
    if hiding:
        sys.exit(f"{reason}\n"
                 f"Rename {' and '.join(hiding)} beside {Path(sys.argv[0]).name}: Python takes it for the package.")
    activate = environment_beside()
    if activate and state == "missing":
        sys.exit(f"{reason}\n"
                 "The packages are in the environment .venv, which this terminal does not use. Activate it first:"
                 f"  {'' if os.name == 'nt' else '. '}{commands.quoted(activate)}")
    requirements = commands.beside("requirements.txt")
    sys.exit(f"{reason}\n"
             f"This is Python {sys.version.split()[0]}; the packages need 3.10 to 3.14. To install them:"
             f"  python -m pip install -r {requirements}\n"
             "With uv, you do not have to install Python:"
             f"  uv run --python 3.13 --with-requirements {requirements} {commands.quoted(sys.argv[0])}")
if own_process:
    adjust_process()
