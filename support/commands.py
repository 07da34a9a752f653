"""Commands that the scripts print can be pasted into a terminal.
Without this, they fail in another folder, or in one with a space in its name."""
import os
import shlex
import subprocess
import sys
from pathlib import Path


def beside(file):
    """Return the path of a file beside the script, as its user would type it."""
    script = Path(sys.argv[0])
    if script.name in ("train.py", "test.py"):
        return quoted(script.with_name(file))
    return file


def quoted(path):
    """Return a path as it can be pasted into a command, with quotes if it has a space, for example."""
    return subprocess.list2cmdline([str(path)]) if os.name == "nt" else shlex.quote(str(path))
