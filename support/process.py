"""A run changes some settings of Python, Keras and the console. At its end, they are as they were before.
Without this, a second run in a notebook or in IDLE works with what the first one left."""
import contextlib
import ctypes
import logging
import os
import random
import signal
import sys
import threading
import warnings
from pathlib import Path

import keras
import matplotlib.pyplot as plt
import numpy as np
import pooch
import tensorflow as tf

# Here, each change notes how to undo it. The end of the run undoes them all, in reverse order.
at_end = contextlib.ExitStack()
ctrl_c = False  # whether it was pressed in this run


@contextlib.contextmanager
def guest():
    """Change the settings, streams and folder for a run, and restore them when the `with` block ends."""
    with at_end:
        keras_settings()
        signals()
        streams()
        folder()
        at_end.enter_context(plt.rc_context({"text.usetex": False}))  # whatever ~/.config/matplotlib/matplotlibrc says
        at_end.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")  # Pillow warns of odd metadata, Matplotlib where there is no display
        loggers = [logging.getLogger(name) for name in ("absl", "tensorflow", "urllib3")]
        for logger in [*loggers, pooch.get_logger()]:  # logging.getLogger() does not know Pooch's
            at_end.callback(logger.setLevel, logger.level)
            logger.setLevel(logging.ERROR)  # no advice against HDF5, the tutorial's format, for example
        yield


def keras_settings():
    """Compute with channels last and in 32 bits, whatever ~/.keras/keras.json or an earlier program says."""
    config = keras.config
    at_end.callback(config.set_image_data_format, config.image_data_format())
    at_end.callback(config.set_floatx, config.floatx())
    at_end.callback(config.set_dtype_policy, config.dtype_policy())
    config.set_image_data_format("channels_last")
    config.set_floatx("float32")
    config.set_dtype_policy("float32")  # the line before does not change it


def set_random_seed(seed):
    """Let this run, and no later one, draw the random numbers that belong to `seed`, an int; None draws any.
    TensorFlow has no call for reading its seed, so it has none afterwards."""
    if seed is None:
        return
    at_end.callback(random.setstate, random.getstate())
    at_end.callback(np.random.set_state, np.random.get_state())
    at_end.callback(tf.random.set_seed, None)
    keras.utils.set_random_seed(seed)


def signals():
    """Remember that Ctrl-C was pressed, besides raising KeyboardInterrupt: TensorFlow sometimes loses it, or turns it
    into another error."""
    global ctrl_c
    ctrl_c = False

    def interrupt(number, frame):
        global ctrl_c
        ctrl_c = True
        raise KeyboardInterrupt

    handler = signal.getsignal(signal.SIGINT)
    in_background = handler == signal.SIG_IGN  # `python train.py &` in a shell script
    in_main_thread = threading.current_thread() is threading.main_thread()  # no other can have handlers
    if in_main_thread and not in_background:
        at_end.callback(signal.signal, signal.SIGINT, handler)
        signal.signal(signal.SIGINT, interrupt)


def stop_if_interrupted():
    """Raise KeyboardInterrupt if Ctrl-C was pressed: TensorFlow may have lost the first one."""
    if ctrl_c:
        raise KeyboardInterrupt


def streams():
    """Put the null device in the place of closed streams; the console shows ? for a character that it lacks."""
    number = os.open(os.devnull, os.O_RDWR)  # takes the lowest free number
    while number <= 2:  # else the next file to be opened would take it, and get what TensorFlow writes to a stream
        at_end.callback(os.close, number)
        number = os.open(os.devnull, os.O_RDWR)
    os.close(number)
    null = at_end.enter_context(Path(os.devnull).open("w"))
    if sys.stdout is None:
        at_end.enter_context(contextlib.redirect_stdout(null))
    if sys.stderr is None:
        at_end.enter_context(contextlib.redirect_stderr(null))
    stdout = sys.stdout
    if hasattr(stdout, "reconfigure"):  # notebooks and IDLE have streams of their own
        at_end.callback(stdout.reconfigure, errors=stdout.errors, line_buffering=stdout.line_buffering)
        stdout.reconfigure(errors="replace", line_buffering=True)


def folder():
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
    at_end.callback(os.chdir, long)
    os.chdir(short.value)
