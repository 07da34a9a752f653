"""Models, checkpoints and pictures are never half written. A run never overwrites the model, curves and logs of an
earlier one (two that train at the same time need two names).
Without this, a crash or a full disk costs the old file as well as the new one."""
import contextlib
import os
import tempfile
import time
from pathlib import Path

from support.errors import UserError, file_error

pictures_of_a_model = "-sample", "-images", "-report"  # their names are the model's with one of these


def make_folders(name):
    """Make the folders of the run with this name. Raise UserError now if its files cannot be written."""
    for folder in Path("results"), Path("logs", name):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=folder).close()
        except OSError as error:
            raise UserError(f"Cannot write to the folder {folder.absolute()}: {error.strerror}.") from error
    model = Path("results", f"{name}.h5")
    if model.is_dir():
        raise UserError(f"The model cannot be saved as {model.absolute()}: a folder has that name.")


@contextlib.contextmanager
def replacing(path):
    """Give `with` a hidden path to write to, then rename that file to `path`: it is always the whole old file or the
    whole new one, even after a crash. Raises UserError if the disk is full, for example; the old file stays then."""
    hidden = path.with_name(f".{path.name}.{os.getpid()}{path.suffix}")  # two processes may write at once
    try:
        path.parent.mkdir(exist_ok=True)
        for old in path.parent.glob(f".{path.name}.*"):  # killed processes have left them
            if old.stat().st_mtime < time.time() - 3600:
                old.unlink()
        yield hidden
        if not hidden.exists():  # a learner's own line has saved the file somewhere else
            return
        with hidden.open("rb+") as file:
            os.fsync(file.fileno())  # without it, a power cut after the rename can leave an empty file
        move_into_place(hidden, path)
    except OSError as error:
        raise UserError(file_error(path, error)) from error
    finally:
        hidden.unlink(missing_ok=True)


def move_into_place(hidden, path):
    """Rename a complete file, over an older one. On Windows, a virus scanner may have it open for a moment."""
    for seconds in 0.1, 0.5, 2:
        try:
            return hidden.replace(path)
        except PermissionError:
            time.sleep(seconds)
    return hidden.replace(path)


def keep_earlier(name):
    """Rename what an earlier run with this name has left: its logs, model, curves and pictures get the date."""
    date = time.strftime("-%Y%m%d-%H%M%S")
    endings = ".h5", ".keras", ".png", *(f"{picture}.png" for picture in pictures_of_a_model)
    kept = []
    for path in [Path("logs", name), *(Path("results", name + ending) for ending in endings)]:
        if not path.is_file() and not any(path.glob("*")):  # it is missing, or an empty folder
            continue
        dated = path.with_name(name + date + path.name.removeprefix(name))
        path.rename(dated)
        kept.append(str(dated))
    if kept:
        print("The earlier run is kept:", *kept, sep="\n  ")


def log_sizes(logdir):
    """Return the sizes, in bytes, of the files that grow with every epoch: the event files and epochs.csv in a run's
    folder of logs. The keys of this dict are their paths in the folder."""
    files = [*logdir.rglob("events.out.tfevents.*"), *logdir.glob("epochs.csv")]
    return {file.relative_to(logdir).as_posix(): file.stat().st_size for file in files}


def cut_back(logdir, sizes):
    """Cut the logs of an unfinished run back to the sizes that they had when its checkpoint was written, so that the
    resumed run logs each epoch once. What came later becomes empty."""
    for file, size in log_sizes(logdir).items():
        if size > sizes.get(file, 0):
            os.truncate(logdir / file, sizes.get(file, 0))
