"""How much of the progress is shown.
Without this, a progress bar fills a file, or the window of IDLE, with thousands of lines."""
import sys


def verbose():
    """Return what `fit` should show: 1, a progress bar, on a screen; 2, a line per epoch, in a file and in IDLE."""
    in_notebook = "ipykernel" in sys.modules
    in_idle = "idlelib.run" in sys.modules
    if in_notebook or (sys.stdout.isatty() and not in_idle):
        return 1
    return 2
