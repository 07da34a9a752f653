"""Models, checkpoints and pictures are never half written. A run never overwrites the model, curves and logs of an
earlier one (two that train at the same time need two names).
Without this, a crash or a full disk costs the old file as well as the new one."""
import contextlib
import os
import tempfile
import time
from pathlib import Path

import tensorflow as tf
from tensorboard.compat.proto.event_pb2 import Event

from support.messages import UserError, cannot_write


def model_file(name):
    """Return the Path of the model of the run with this name."""
    return Path("results", f"{name}.h5")


def make_folders(name):
    """Make the folders of the run with this name. Raise UserError now if its files cannot be written."""
    for folder in Path("results"), Path("logs", name):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=folder).close()
        except OSError as error:
            raise UserError(f"Cannot write to the folder {folder.absolute()}: {error.strerror}.") from error
    if model_file(name).is_dir():
        raise UserError(f"The model cannot be saved as {model_file(name).absolute()}: a folder has that name.")


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
        rename(hidden, path)
    except OSError as error:
        raise UserError(cannot_write(path, error)) from error
    finally:
        hidden.unlink(missing_ok=True)


def rename(old, new):
    """Rename a file, over another one if need be. On Windows, a virus scanner may have it open for a moment."""
    for seconds in 0.1, 0.5, 2:
        try:
            return old.replace(new)
        except PermissionError:
            time.sleep(seconds)
    return old.replace(new)


def keep_earlier(name):
    """Rename what an earlier run with this name has left, its logs, curves and model: they get the date."""
    date = time.strftime("-%Y%m%d-%H%M%S")
    kept = []
    results = [Path("results", name + suffix) for suffix in (".png", ".h5", ".keras")]
    for path in [Path("logs", name), *results]:
        if not path.is_file() and not any(path.glob("*")):  # it is missing, or an empty folder
            continue
        dated = path.with_name(name + date + path.name.removeprefix(name))
        try:
            path.rename(dated)
        except OSError as error:  # on Windows, while TensorBoard shows it
            raise UserError(cannot_write(path, error)) from error
        kept.append(str(dated))
    if kept:
        print(f"The earlier run is kept as {', '.join(kept)}")


def cut_back(logdir, epochs, end):
    """Cut from the logs of an unfinished run, in the folder `logdir`, what it logged after its checkpoint, so that the
    resumed run logs each epoch once: in event files, what is younger than `end`, in seconds since 1970; in epochs.csv,
    all but this number of `epochs`. Files may become empty. Raises UserError if that fails."""
    try:
        for path in logdir.rglob("events.out.tfevents.*"):
            size = 0
            with contextlib.suppress(tf.errors.DataLossError):  # a kill may have torn the last record
                for record in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
                    if Event.FromString(record).wall_time > end:
                        break
                    size += len(record) + 16  # with its length and two checksums
            os.truncate(path, size)
        for path in logdir.glob("epochs.csv"):
            lines = path.read_bytes().splitlines(keepends=True)[:1 + epochs]  # the first one has the names
            os.truncate(path, len(b"".join(lines)) if epochs else 0)
    except OSError as error:  # on Windows, while TensorBoard shows it
        raise UserError(cannot_write(error.filename, error)) from error
