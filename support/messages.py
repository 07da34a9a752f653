"""An error that the user can cause ends in a few lines and an exit code: 1 for a failure, 2 for a bad command line, 130
for Ctrl-C. Without this, a failed download or Ctrl-C ends in a traceback. A mistake in the code keeps its traceback."""
import argparse
import errno
import functools
import os
import re
import sys

progress = ""  # how far the training is, shown after Ctrl-C; empty before its first epoch


class UserError(Exception):
    """Something that the user can correct; the text says what happened and what to do."""


def answered(main):
    """Decorate the main function of a script: answer what its user can cause, and leave the process as it was."""
    @functools.wraps(main)
    def run():
        from support import process  # here, because start.py needs this module before Keras
        global progress
        progress = ""
        with process.guest():
            try:
                main()
            except BaseException as error:
                answer = answer_to(error, process.ctrl_c)
                if answer is None:
                    raise
                sys.exit(answer)
    return run


def answer_to(error, ctrl_c):
    """Return what to give to sys.exit() for an error, a text or an exit code; None if it is a mistake in the code."""
    if isinstance(error, BrokenPipeError):  # `python test.py | head` has read enough
        sys.stdout = None
    if ctrl_c:  # whatever TensorFlow has made of the KeyboardInterrupt
        print(f"\nStopped{progress}.", file=sys.stderr)
        return 130
    if isinstance(error, BrokenPipeError):
        return 1
    if isinstance(error, UserError):
        return f"\n{error}"
    disk = errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO
    if isinstance(error, OSError) and error.errno in disk:
        return "\n" + cannot_write(error.filename or "A file", error)
    if isinstance(error, MemoryError) or type(error).__name__ == "ResourceExhaustedError":  # Python's, TensorFlow's
        return "\nThere is not enough memory.\nClose other programs, or use a smaller --batch-size or network."
    return None


def require(condition, text):
    """Raise UserError with this text if the condition is not true."""
    if not condition:
        raise UserError(text)


def verbose():
    """Return what `fit` should show: 1, a progress bar, on a screen; 2, a line per epoch, in a file and in IDLE."""
    in_notebook = "ipykernel" in sys.modules
    in_idle = "idlelib.run" in sys.modules
    if in_notebook or (sys.stdout.isatty() and not in_idle):
        return 1
    return 2


def again():
    """Return how to go on: with --restart, the same command would discard what is finished."""
    if progress and "--restart" in sys.argv:
        return "run the same command again without --restart"
    return "run the same command again"


def one_line(error, length=200):
    """Return the text of an error, or its kind if it has none, as one line of that length at most."""
    text = re.sub(r"\x1b\[[\d;]*m", "", str(error))  # Keras colours some of its messages
    return " ".join(text.split())[:length] or type(error).__name__


def cannot_write(path, error):
    """Return the message for an OSError where `path` is written."""
    hint = ""
    if os.name == "nt" and isinstance(error, PermissionError):
        hint = " Is it open in another program, such as TensorBoard?"
    return (f"{path}: {error.strerror or one_line(error)}.{hint}\n"
            f"Files saved earlier are intact. Fix this, then {again()}.")


def whole(low, high):
    """Return a type for argparse: a whole number from `low` to `high`."""
    def number(text):
        if not (text.isdecimal() and low <= int(text) <= high):
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {low} to {high}")
        return int(text)
    return number


def name(text):
    """A type for argparse: a name that can be part of a file's name on every system."""
    if not re.fullmatch(r"\w([\w.-]{0,98}[\w-])?", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a valid name. Use up to 100 letters, digits, '_', '-' and "
                                         "'.', with no '-' or '.' at the beginning and no '.' at the end")
    for kept in ("draft-", "part-", "previous-", "unreadable-"):
        if text.startswith(kept):
            raise argparse.ArgumentTypeError(f"{text!r} begins with {kept!r}, as temporary files do")
    return text


def picture(text):
    """A type for argparse: the file of a picture. A model after --image would be taken for one."""
    if text.endswith((".h5", ".keras")):
        raise argparse.ArgumentTypeError(f"{text} is a model; write it before --image")
    return text
