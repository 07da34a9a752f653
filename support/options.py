"""What the options of the command line may be, and what can be logged.
Without this, a name that is no file's name fails after the training, and a wrong number in TensorFlow."""
import argparse
import re
import sys
from numbers import Real
from pathlib import Path


def given():
    """Return the options that were given to the script, a list. A notebook's kernel has others, which are not ours."""
    if Path(sys.argv[0]).stem.endswith("kernel_launcher"):
        return []
    return sys.argv[1:]


def whole_number(low, high):
    """Return a type for argparse: a whole number in this range."""
    def convert(text):
        if not re.fullmatch(r"-?[0-9]+", text) or not low <= int(text) <= high:
            raise argparse.ArgumentTypeError(f"{text} is not a whole number from {low} to {high}")
        return int(text)
    return convert


def run_name(text):
    """Return the name of a run, if it can be part of a file's name on every system; a type for argparse."""
    if not re.fullmatch(r"\w([\w.-]{0,48}[\w-])?", text, re.ASCII):  # TensorFlow garbles other letters on Windows
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a valid name. Use up to 50 English letters, digits, '_', '-' and '.', with no '-' or '.' "
            "at the beginning and no '.' at the end")
    if re.fullmatch(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", text, re.IGNORECASE):
        raise argparse.ArgumentTypeError(f"{text!r} is the name of a device on Windows. Use another one")
    if re.fullmatch(".*-(sample|images|report)", text):
        raise argparse.ArgumentTypeError(f"{text!r} ends like the pictures of test.py. Use another one")
    return text


def picture(text):
    """Return the name of a picture; a type for argparse. After --image, a model would be taken for a picture, and the
    default model would answer."""
    if Path(text).suffix in (".h5", ".keras"):
        raise argparse.ArgumentTypeError(f"{text} is a model, not a picture. Name it before --image")
    return text


def as_logged(args):
    """Return the options that matter for the result, a dict, as the checkpoint and TensorBoard can keep them: None, a
    Path, or a value of another such kind, as text."""
    kept = {key: value for key, value in vars(args).items() if key not in ("name", "restart")}
    return {key: value if isinstance(value, (bool, int, float, str)) else str(value) for key, value in kept.items()}


def numbers(logs):
    """Return the metrics of an epoch that are numbers, a dict; a learner's own may be arrays or texts."""
    return {key: float(value) for key, value in logs.items() if isinstance(value, Real)}
