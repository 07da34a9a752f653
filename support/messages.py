"""An error that the user can cause ends in a few lines and an exit code: 1 for a failure, 2 for a bad command line, 130
for Ctrl-C. Without this, a failed download or Ctrl-C ends in a traceback. A mistake in the code keeps its traceback."""
import errno
import functools
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

progress = {}  # "where": how far the training is, in words; "incomplete": the folder in which data are prepared


class UserError(Exception):
    """Something that the user can correct; the text says what happened and what to do."""


def explain_errors(main):
    """Decorate the main function of a script: end in a few plain lines if something fails that is no mistake in the
    code, or if its user presses Ctrl-C."""
    @functools.wraps(main)
    def run():
        progress.clear()
        try:
            main()
        except KeyboardInterrupt:
            stop()
        except BrokenPipeError:  # `python test.py | head` has read enough
            sys.stdout = None
            sys.exit(1)
        except Exception as error:
            if isinstance(error, SystemError) and ctrl_c_was_pressed():  # TensorFlow sometimes makes this of it
                stop()
            explanation = explain(error)
            if explanation is None:
                raise
            sys.exit(f"\n{explanation}")
    return run


def explain(error):
    """Return the message for an error that the user's computer can cause; None for a mistake in the code."""
    if isinstance(error, UserError):
        return str(error)
    disk = errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO, errno.EACCES
    if isinstance(error, OSError) and error.errno in disk:
        return cannot_write(error.filename, error)
    if isinstance(error, MemoryError) or type(error).__name__ == "ResourceExhaustedError":  # Python's, TensorFlow's
        return "There is not enough memory.\nClose other programs, or use a smaller --batch-size or network."
    return None


def handle_ctrl_c():
    """Let the first Ctrl-C raise KeyboardInterrupt, as Python does, and the second one end the process: TensorFlow
    sometimes loses the first. A run in the background, which ignores Ctrl-C, goes on doing so."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # in the background, it is SIG_IGN
        signal.signal(signal.SIGINT, first_ctrl_c)
        sys.unraisablehook = print_unless_lost


def first_ctrl_c(number, frame):
    signal.signal(signal.SIGINT, second_ctrl_c)
    if "incomplete" in progress:  # TFDS is at work, which may lose a KeyboardInterrupt, and then waits for ever
        shutil.rmtree(progress["incomplete"], ignore_errors=True)
        stop()
    raise KeyboardInterrupt


def second_ctrl_c(number, frame):
    stop()


def print_unless_lost(unraisable, print_error=sys.__unraisablehook__):  # when Python ends, `sys` is already gone
    """Print an error in a destructor, as Python does, unless it is a Ctrl-C that is lost there."""
    if unraisable.exc_type is not KeyboardInterrupt:
        print_error(unraisable)


def ctrl_c_was_pressed():
    """Return whether the first Ctrl-C has come."""
    return signal.getsignal(signal.SIGINT) is second_ctrl_c


def stop():
    """End the script after Ctrl-C, with a line and the exit code. Its own process ends at once, since
    TensorFlow's threads take seconds to end, and sometimes crash."""
    print_stopped()
    if ctrl_c_was_pressed():
        os._exit(130)
    sys.exit(130)


def print_stopped():
    """Print how far the training was when Ctrl-C came, and how to go on."""
    where = ""
    if "where" in progress:
        where = f" {progress['where']}; to resume, {again()}"
    print(f"\nStopped{where}.", file=sys.stderr, flush=True)


def again():
    """Return how to go on: with --restart, the same command would discard what is finished."""
    if "where" in progress and "--restart" in sys.argv:
        return "run the same command again without --restart"
    return "run the same command again"


def beside(file):
    """Return the path of a file beside the script, as its user would type it."""
    script = Path(sys.argv[0])
    if script.name in ("train.py", "test.py"):
        return quoted(script.with_name(file))
    return file


def quoted(path):
    """Return a path as it can be pasted into a command, with quotes if it has a space, for example."""
    return subprocess.list2cmdline([str(path)]) if os.name == "nt" else shlex.quote(str(path))


def verbose():
    """Return what `fit` should show: 1, a progress bar, on a screen; 2, a line per epoch, in a file and in IDLE."""
    in_notebook = "ipykernel" in sys.modules
    in_idle = "idlelib.run" in sys.modules
    if in_notebook or (sys.stdout.isatty() and not in_idle):
        return 1
    return 2


def one_line(error, length=200):
    """Return the text of an error, or its kind if it has none, as one line of that length at most."""
    text = re.sub(r"\x1b\[[\d;]*m", "", str(error))  # Keras colours some of its messages
    text = re.sub(r"{{.*?}}", "", text)  # TensorFlow names its own operations
    return " ".join(text.split())[:length] or type(error).__name__


def cannot_write(path, error):
    """Return the message for an error of the system or of TensorFlow where `path` is written; it may be None."""
    hint = ""
    if os.name == "nt" and isinstance(error, PermissionError):
        hint = " Is it open in another program, such as TensorBoard?"
    file = Path(path).absolute() if path else "A file"
    reason = getattr(error, "strerror", None) or one_line(error)
    return (f"{file}: {reason}.{hint}\n"
            f"Files saved earlier are intact. Fix this, then {again()}.")
