"""What the options of the command line may be.
Without this, a name that is no file's name fails after the training, and a wrong number in TensorFlow."""
import argparse
import re
import sys
from pathlib import Path

from support.files import pictures_of_a_model


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
    if text.endswith(pictures_of_a_model):
        raise argparse.ArgumentTypeError(f"{text!r} ends like the pictures of test.py. Use another one")
    return text


def picture(text):
    """Return the name of a picture; a type for argparse. After --image, a model would be taken for a picture, and the
    default model would answer."""
    if Path(text).suffix in (".h5", ".keras"):
        raise argparse.ArgumentTypeError(f"{text} is a model, not a picture. Name it before --image")
    return text
