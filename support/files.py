"""Files are never half written, and never overwrite an earlier run.
Without this, a crash or a full disk costs the old file as well as the new one."""
import contextlib
import os
import shutil
import tempfile
import time
from functools import partial
from pathlib import Path

import h5py

from support import portable, process
from support.messages import UserError, cannot_write, one_line

if os.name == "nt":
    import msvcrt
else:
    import fcntl


def model_file(name):
    """Return the Path of the model of the run with this name. The paths of its other files follow from it."""
    return Path("results", f"{name}.h5")


def checkpoint_files(name):
    """Return the Paths of the checkpoint of the run with this name, and of the previous one."""
    path = model_file(name).with_suffix(".checkpoint.npz")
    return path, path.with_name("previous-" + path.name)


def claim(name):
    """Make the folders of the run with this name, and lock it until its end. Raise UserError now if its files cannot be
    written, or if another process is training with this name."""
    for folder in Path("results"), Path("logs", name):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=folder).close()
        except OSError as error:
            raise UserError(f"Cannot write to the folder {folder}: {error.strerror}.") from error
    if model_file(name).is_dir():
        raise UserError(f"The model cannot be saved as {model_file(name)}: a folder has that name.")
    lock(model_file(name).with_suffix(".lock"))


def lock(path):
    """Create a file at `path` and lock it until the end of the run. The system releases the lock even if the process
    crashes. Raises UserError if another process has it."""
    try:
        file = process.at_end.enter_context(path.open("ab"))
    except OSError as error:
        raise UserError(cannot_write(path, error)) from error
    try:
        if os.name == "nt":
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError) as error:  # on POSIX, on Windows
        raise UserError(f"Another training run with this name is in progress (it holds {path}).\n"
                        "Wait until it ends, or choose another --name.") from error
    except OSError:  # a drive without locks
        pass
    if os.name != "nt":  # Windows cannot delete an open file; the empty file does no harm there
        process.at_end.callback(path.unlink, missing_ok=True)


def write_atomically(path, write, previous=None):
    """Call write(temporary path), then rename: `path` is always the whole old file or the whole new one.
    That holds after a crash and on a full disk, which raises UserError. `previous` is where to keep the old file; then
    there may be no file at `path` for a moment."""
    part = path.with_name("part-" + path.name)
    try:
        write(part)
        with part.open("rb+") as file:
            os.fsync(file.fileno())  # without it, a power cut after the rename can leave an empty file
        if previous and path.exists():
            rename(path, previous)
        rename(part, path)
    except OSError as error:
        raise UserError(cannot_write(path, error)) from error
    finally:
        part.unlink(missing_ok=True)


def rename(old, new):
    """Rename a file, over another one if need be. On Windows, a virus scanner may have it open for a moment."""
    for seconds in 0.1, 0.5, 2:
        try:
            return old.replace(new)
        except PermissionError:
            time.sleep(seconds)
    return old.replace(new)


@contextlib.contextmanager
def saving(model, path):
    """Give `with` a path to save the model to; then move that file to `path`, in its portable form if it is HDF5. The
    checkpoint is no longer needed then. Raises UserError on a full disk; the checkpoint is then still there."""
    draft = path.with_name("draft-" + path.name)
    try:
        draft.write_bytes(bytes(3 * 4 * model.count_params() + 1_000_000))  # on a full disk, HDF5 would crash
        yield draft
    except OSError as error:
        raise UserError(cannot_write(path, error)) from error
    else:
        write_atomically(path, lambda part: finish(draft, part))
    finally:
        draft.unlink(missing_ok=True)
    for file in reversed(checkpoint_files(path.stem)):  # the previous one first: alone, it would be resumed
        file.unlink(missing_ok=True)
    print(f"The model is in {path}, and its curves are in {path.with_suffix('.png')}\n"
          f"Next: python test.py {path}\n"
          "and:  tensorboard --logdir=logs")


def finish(draft, part):
    """Write the saved model in `draft` to `part`: in its portable form, or, if it has none, as it is."""
    if not h5py.is_hdf5(draft):
        shutil.copyfile(draft, part)
        return
    try:
        portable.write(draft, part)
    except OSError:
        raise
    except Exception as error:  # Keras raises many kinds
        print(f"Keras cannot open this network again from a .h5 file: {one_line(error, 100)}\n"
              "Its weights are saved. To save the network, too, replace .h5 by .keras at the end of train.py.")
        shutil.copyfile(draft, part)


def keep_earlier_run(name):
    """Add the date to the names of an earlier run's files. The model is copied: the old one stays until the new one is
    saved."""
    model, logs = model_file(name), Path("logs", name)
    curves = model.with_suffix(".png")
    written = [path.stat().st_mtime for path in [model, *logs.rglob("*")] if path.is_file()]
    if not written:
        return
    dated = name + time.strftime("-%Y%m%d-%H%M%S", time.localtime(written[0]))
    for old in model, curves:
        copy = old.with_name(dated + old.suffix)
        if old.exists() and not copy.exists():
            write_atomically(copy, partial(shutil.copyfile, old))
    if not logs.with_name(dated).exists():
        try:
            logs.rename(logs.with_name(dated))
        except OSError as error:  # on Windows, while TensorBoard shows it
            raise UserError(cannot_write(logs, error)) from error
    kept = f"{model_file(dated)} and " if model_file(dated).exists() else ""
    print(f"The earlier run is kept as {kept}{logs.with_name(dated)}")
