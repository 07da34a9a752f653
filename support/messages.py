"""What a user can cause is answered in a few lines and an exit code: 1 a failure, 2 a bad command line, 130 Ctrl-C.
Without it, a misspelt option, a full disk or Ctrl-C ends in a traceback."""
import argparse
import logging
import os
import re
import signal
import sys
import warnings

console = os.dup(2)  # standard error, also while start.py silences it


class UserError(Exception):
    """Something that the user can correct; the text says what happened and what to do."""


def stop(where=""):
    """Answer Ctrl-C at once; a normal exit would wait for the threads of a download."""
    os.write(console, f"\nStopped{where}.\n".encode())
    os._exit(130)


def run(main):
    """Call a script's main function; answer what its user can cause with a short message and the right exit code."""
    from tensorflow import errors  # here, because start.py needs this module before TensorFlow
    sys.stdout.reconfigure(errors="replace", line_buffering=True)  # a Windows console may lack a file name's character
    logging.disable(logging.WARNING)  # no advice against HDF5, the tutorial's format, nor on GPUs under Windows
    warnings.simplefilter("ignore")  # of Pillow on odd metadata, and of Matplotlib where there is no display
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        main()
    except KeyboardInterrupt:
        stop()
    except BrokenPipeError:  # `python test.py | head` has read enough
        os._exit(1)
    except UserError as error:
        sys.exit(f"\n{error}")
    except (errors.DataLossError, errors.NotFoundError, errors.PermissionDeniedError, errors.FailedPreconditionError,
            errors.InvalidArgumentError) as error:
        sys.exit("\n" + corrupt_data(error.message))
    except OSError as error:
        hint = " Is it open elsewhere (TensorBoard)?" if os.name == "nt" and isinstance(error, PermissionError) else ""
        sys.exit(f"\n{error.filename or 'A file'}: {os.strerror(error.errno) if error.errno else error}.{hint}\n"
                 "What was saved before is intact. Once this is mended, run the same command again.")


def one_line(error, length=200):
    """Return the text of an error, or its kind if it has none, as one line of that length at most."""
    return " ".join(str(error).split())[:length] or type(error).__name__


def corrupt_data(reason):
    """Return the message for a prepared data set that cannot be read."""
    return (f"The prepared CIFAR-10 cannot be read: {one_line(reason)}\n"
            "Delete the folder cifar10 in your TensorFlow Datasets folder (TFDS_DATA_DIR, or ~/tensorflow_datasets)\n"
            "and run the same command again; it will be prepared anew.")


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
        raise argparse.ArgumentTypeError(f"{text!r} is not made of letters, digits, '_', '-' and '.'")
    return text
