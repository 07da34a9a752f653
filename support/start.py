"""What must happen before TensorFlow is imported. Without it, TensorFlow writes its log on the console, many CPUs train
slower, and Ctrl-C or a missing package ends in a traceback."""
import ctypes
import importlib
import os
import signal
import sys
from pathlib import Path

from support.messages import console, one_line, stop

script = Path(sys.argv[0]).name
is_script = script in ("train.py", "test.py")
if is_script:
    signal.signal(signal.SIGINT, lambda *_: stop())
folder, short = str(Path.cwd()), ctypes.create_unicode_buffer(1000)
if is_script and os.name == "nt" and not folder.isascii():  # TensorFlow garbles C:\Übung; its short name is C:\BUNG~1
    ctypes.windll.kernel32.GetShortPathNameW(folder, short, 1000)
    if not short.value.isascii():
        sys.exit(f"On Windows, TensorFlow cannot write into a folder with letters like those of {folder}.\n"
                 "Move this project to a folder such as C:\\cifar10, and run the same command there.")
    os.chdir(short.value)
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")  # faster convolutions; TensorFlow leaves them off without AVX-512
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # TensorFlow 2.21 writes before it reads the log level
try:
    for package in ("tensorflow", "keras", "matplotlib.figure", "pooch", "tensorboard.plugins.hparams.api",
                    "tensorflow_datasets", "tensorflow_datasets.public_api"):  # the last, because TFDS hides its errors
        importlib.import_module(package)
except Exception as error:
    if not is_script:
        raise
    state = "missing" if isinstance(error, ModuleNotFoundError) else "broken"
    sys.exit(f"A package is {state}: {one_line(error)}\n"
             f"This is Python {sys.version.split()[0]}; 3.10 to 3.13 can have it:  "
             "python -m pip install -r requirements.txt\n"
             f"For any other, there is uv:  uv run --python 3.13 --with-requirements requirements.txt {script}")
finally:
    os.dup2(console, 2)
