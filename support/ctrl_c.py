"""Ctrl-C ends a script with one line, which says how to go on, and exit code 130.
Without this, it ends in a traceback; TensorFlow may lose it, or crash after it."""
import functools
import os
import shutil
import signal
import sys

from support import errors

unfinished = set()  # folders in which data are being prepared; Ctrl-C deletes them


def ends_the_script(main):
    """Decorate the main function of a script: end with a line if its user presses Ctrl-C."""
    @functools.wraps(main)
    def run():
        try:
            main()
        except KeyboardInterrupt:
            stop()
        except SystemError:  # TensorFlow sometimes makes this of it
            if was_pressed():
                stop()
            raise
    return run


def handle():
    """Let the first Ctrl-C raise KeyboardInterrupt, as Python does, and the second one end the process: TensorFlow
    sometimes loses the first. A run in the background, which ignores Ctrl-C, goes on doing so."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # in the background, it is SIG_IGN
        signal.signal(signal.SIGINT, first_ctrl_c)
        sys.unraisablehook = print_unless_lost


def first_ctrl_c(number, frame):
    """Raise KeyboardInterrupt; but end at once while data are prepared, and delete what is there of them."""
    signal.signal(signal.SIGINT, stop)  # for the second one
    if unfinished:  # TFDS is at work, which may lose a KeyboardInterrupt, and then waits for ever
        for folder in 3 * list(unfinished):  # three times, since its threads go on writing
            shutil.rmtree(folder, ignore_errors=True)
        stop()
    raise KeyboardInterrupt


def print_unless_lost(unraisable, print_error=sys.__unraisablehook__):  # when Python ends, `sys` is already gone
    """Print an error in a destructor, as Python does, unless it is a Ctrl-C that is lost there."""
    if unraisable.exc_type is not KeyboardInterrupt:
        print_error(unraisable)


def was_pressed():
    """Return whether the first Ctrl-C has come."""
    return signal.getsignal(signal.SIGINT) is stop


def stop(number=None, frame=None):
    """End the script with a line that says how far the training was, and how to go on. Its own process ends at once,
    since TensorFlow's threads take seconds to end, and sometimes crash."""
    where = ""
    if errors.training:
        where = f" {errors.training['where']}; to resume, {errors.again()}"
    print(f"\nStopped{where}.", file=sys.stderr, flush=True)
    if was_pressed():
        os._exit(130)
    sys.exit(130)
