"""Scripts in processes of their own, without the four seconds that each would need to import TensorFlow.

On Linux, a server imports the packages once and forks for every start. What it forks has run nothing of TensorFlow yet;
it becomes the script, from the first line on, as `python train.py` would. Elsewhere a fork of these packages is not
safe, and every start is an ordinary one.
"""
import functools
import gc
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

can_fork = sys.platform == "linux"


def serve():
    """Answer requests, one JSON line each: start a script, or tell whether one has ended."""
    import h5py  # noqa: F401
    import keras  # noqa: F401
    import matplotlib.pyplot  # noqa: F401
    import pooch  # noqa: F401
    import requests  # noqa: F401
    import tensorboard.plugins.hparams.api  # noqa: F401
    import tensorflow  # noqa: F401
    import tensorflow_datasets  # noqa: F401
    import tqdm  # noqa: F401
    gc.freeze()  # else each fork would copy the packages' memory when it looks for garbage, 1.1 s of CPU at its end
    for line in sys.stdin:
        request = json.loads(line)
        if "pid" in request:
            pid, status = os.waitpid(request["pid"], os.WNOHANG)
            answer = os.waitstatus_to_exitcode(status) if pid else None
        else:
            answer = os.fork()
            if not answer:
                return become(**request)
        print(json.dumps(answer), flush=True)


def become(command, cwd, env, out, err):
    """Be the process of `python COMMAND...`, with its output in two files."""
    for number, path in (0, os.devnull), (1, out), (2, err):
        os.dup2(os.open(path, os.O_RDWR), number)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    importlib.reload(sys.modules["tensorflow_datasets.core.constants"])  # reads TFDS_DATA_DIR
    sys.argv, sys.path[0] = command, str(Path(command[0]).parent)
    main = sys.modules["__main__"].__dict__
    main["__file__"] = command[0]
    exec(compile(Path(command[0]).read_bytes(), command[0], "exec"), main)


settings = {"PYTHONUTF8": "1", "TF_ENABLE_ONEDNN_OPTS": "1", "TF_CPP_MIN_LOG_LEVEL": "3"}  # the last two as in train.py


class Server:
    def __init__(self):
        self.process = subprocess.Popen([sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        stderr=subprocess.DEVNULL, encoding="utf-8", env={**os.environ, **settings})

    def ask(self, **request):
        print(json.dumps(request), file=self.process.stdin, flush=True)
        return json.loads(self.process.stdout.readline())

    def end(self):
        self.process.stdin.close()
        self.process.wait()


@functools.cache
def server():
    return Server()


class Script:
    """A script that is running: `python COMMAND...`; its standard input is empty.

    Args:
        command: list of str, the script's path and its arguments.
        cwd, env: as for subprocess.Popen.
        options: other arguments of subprocess.Popen; with any of them, or with `plain`, the process is an ordinary one.
    """

    def __init__(self, command, cwd, env, plain=False, **options):
        self.folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        self.files = [Path(self.folder.name, name) for name in ("out", "err")]
        self.returncode = self.process = None
        for file in self.files:
            file.touch()
        if plain or options or not can_fork:
            with self.files[0].open("wb") as out, self.files[1].open("wb") as err:
                self.process = subprocess.Popen([sys.executable, *command], cwd=cwd, env=env, stdin=subprocess.DEVNULL,
                                                stdout=out, stderr=err, **options)
            self.pid = self.process.pid
        else:
            self.pid = server().ask(command=command, cwd=str(cwd), env=env, out=str(self.files[0]),
                                    err=str(self.files[1]))

    def poll(self):
        """Return the exit code, or None."""
        if self.returncode is None:
            self.returncode = self.process.poll() if self.process else server().ask(pid=self.pid)
        return self.returncode

    def output(self):
        """Return what it has written so far: its output and its errors."""
        return tuple(file.read_text(encoding="utf-8") for file in self.files)

    def wait(self, timeout=600):
        """Wait for its end; return its output and its errors."""
        deadline = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > deadline:
                self.kill()
                raise TimeoutError(f"still running after {timeout} s:\n" + "\n".join(self.output()))
            time.sleep(0.005)
        return self.output()

    def send_signal(self, number):
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self):
        """End it at once, if it has not ended; return its output and its errors."""
        if self.process:
            self.process.kill()
        else:
            self.send_signal(signal.SIGKILL)
        return self.wait()


if __name__ == "__main__":
    serve()
