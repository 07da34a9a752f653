"""An error that the user can cause ends in one to four lines and exit code 1; a mistake in the code, in a traceback.
Without this, a full disk or a failed download ends in a traceback of sixty lines."""
import errno
import functools
import os
import re
import sys
from pathlib import Path

training = {}  # "where": how far the training is, in words, once it has begun


class UserError(Exception):
    """Something that the user can correct; the text says what happened and what to do."""


def are_explained(main):
    """Decorate the main function of a script: end in a few plain lines if something fails that is no mistake in the
    code."""
    @functools.wraps(main)
    def run():
        training.clear()
        try:
            main()
        except BrokenPipeError:  # `python test.py | head` has read enough
            sys.stdout = None
            sys.exit(1)
        except Exception as error:
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
        return file_error(error.filename, error)
    if type(error).__module__.startswith("tensorflow."):  # if the disk was the reason, its text is "PATH; REASON"
        for number in disk:
            path, found, _ = one_line(error, 10_000).partition(f"; {os.strerror(number)}")
            if found:
                return file_error(path, OSError(number, os.strerror(number)))
    if isinstance(error, MemoryError) or type(error).__name__ == "ResourceExhaustedError":  # Python's, TensorFlow's
        return "There is not enough memory.\nClose other programs, or use a smaller --batch-size or network."
    return None


def file_error(path, error):
    """Return the message for an error where the file at `path`, which may be None, is written or read."""
    hint = ""
    if os.name == "nt" and isinstance(error, PermissionError):
        hint = " Is it open in another program, such as TensorBoard?"
    file = Path(path).absolute() if path else f"A file in {Path.cwd()}"
    reason = getattr(error, "strerror", None) or one_line(error)
    return (f"{file}: {reason}.{hint}\n"
            f"Files saved earlier are intact. Fix this, then {again()}.")


def again():
    """Return how to go on: with --restart, the same command would discard what is finished."""
    if training and "--restart" in sys.argv:
        return "run the same command again without --restart"
    return "run the same command again"


def one_line(error, length=200):
    """Return the text of an error, or its kind if it has none, as one line of that length at most."""
    text = re.sub(r"\x1b\[[\d;]*m", "", str(error))  # Keras colours some of its messages
    text = re.sub(r"{{.*?}}", "", text)  # TensorFlow names its own operations
    return " ".join(text.split())[:length] or type(error).__name__
