"""How the archive gets here: mirrors on 127.0.0.1 that fail in every way, and TFDS's own builder behind them."""
import hashlib
import http.server
import os
import shutil
import signal
import ssl
import subprocess
import tempfile
import threading
import time
from pathlib import Path

import pytest

from conftest import (
    environment,
    in_one_go,
    message,
    plain,
    posix,
    rare,
    root,
    run,
    run_after,
    start,
    without_privileges,
)
from small_cifar10 import make_archive

fetch = """
import pathlib, random, sys
sys.path[:0] = [{root!r}, {tests!r}]
import support.start, small_cifar10, train
from support import ctrl_c, download, errors
import tensorflow_datasets as tfds
small_cifar10.register(pathlib.Path({archive!r}))
known = tfds.builder_cls("cifar10").url_infos  # the original address is one of ours, too
known["http://127.0.0.1:{port}/{own}"] = known.pop(next(iter(known)))
tfds.builder_cls("cifar10")._cifar_info = property(
    lambda self, info=tfds.builder_cls("cifar10")._cifar_info.fget: info(self)._replace(url=next(iter(known))))
download.mirrors, download.archive_sha256 = {mirrors!r}, {sha256!r}
def main():
    state = random.getstate()
    images = sum(1 for _ in train.load_data()[1].unbatch())
    assert random.getstate() == state, "a seed would give another model after a download"
    print("test images:", images)
ctrl_c.ends_the_script(errors.are_explained(main))()
"""


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    path = tmp_path_factory.mktemp("archive") / "cifar-10-binary.tar.gz"
    make_archive(path, 20, 5)
    return path


@pytest.fixture
def server(archive):
    """A web server whose paths are the mirrors; `server.requests` lists what was asked of it."""
    content = archive.read_bytes()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            kind = self.path[1:]
            if self.command == "GET":
                self.server.requests.append(kind)
            if kind == "404":
                return self.send_error(404)
            if self.command == "CONNECT":
                return self.send_error(407)
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command == "HEAD":
                return None
            try:
                if kind == "stalls":
                    self.wfile.write(content[:1000])
                    time.sleep(60)
                elif kind == "slow":
                    for part in range(12):
                        self.wfile.write(content[len(content) * part // 12:len(content) * (part + 1) // 12])
                        time.sleep(1)
                elif kind == "cut":
                    self.wfile.write(content[:len(content) // 2])
                elif kind == "wrong":
                    self.wfile.write(bytes(len(content)))
                else:
                    self.wfile.write(content)
            except OSError:
                pass

        do_HEAD = do_CONNECT = do_GET

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.requests = []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def start_load(server, archive, folder, mirrors, own="404"):
    """Start load_data() in a new process, with these mirrors; return the processes.Script."""
    port = server.server_address[1]
    addresses = [f"http://127.0.0.1:{1 if mirror == 'dead' else port}/{mirror}" for mirror in mirrors]
    program = folder / "program.py"
    program.write_text(fetch.format(root=str(root), tests=str(root / "tests"), archive=str(archive), port=port, own=own,
                                    mirrors=addresses, sha256=hashlib.sha256(archive.read_bytes()).hexdigest()))
    env = environment(folder, NO_PROXY="127.0.0.1", no_proxy="127.0.0.1")
    return start(program, cwd=folder, data=folder, env=env)


def load(server, archive, folder, mirrors, own="404", code=0):
    """load_data() in a new process, with these mirrors; return its output and its errors."""
    script = start_load(server, archive, folder, mirrors, own)
    out, err = map(plain, script.wait(300))
    assert script.returncode == code, out[-2000:] + err[-4000:]
    assert "Traceback" not in err
    assert leftovers(folder) == []
    return out, err


def test_good_mirror(server, archive, tmp_path):
    out, err = load(server, archive, tmp_path, ["good", "second"])
    assert server.requests == ["good"] and "test images: 50" in out
    assert "MiB" in out and (tmp_path / "downloads").as_posix() in out
    out, err = load(server, archive, tmp_path, ["good"])
    assert server.requests == ["good"], "a request was made although the data are prepared"
    assert out == f"cifar10 is in {(tmp_path / 'cifar10' / '3.0.2').as_posix()}\ntest images: 50\n" and err == ""


@pytest.mark.parametrize("bad", [["dead", "404", "cut", "wrong"], pytest.param(["dead", "stalls"], marks=rare)])
def test_bad_mirrors_then_a_good_one(bad, server, archive, tmp_path):
    out, err = load(server, archive, tmp_path, [*bad, "good"])
    assert server.requests == [*bad[1:], "good"]
    dropped = [line for line in out.split("\n") if line.startswith("Could not download from ")]
    assert len(dropped) == len(bad) and all(f"/{kind}: " in line for kind, line in zip(bad, dropped))
    assert "test images: 50" in out
    assert (tmp_path / "downloads/manual/cifar-10-binary.tar.gz").read_bytes() == archive.read_bytes()


@rare
def test_a_slow_line_is_no_reason_to_drop_a_mirror(server, archive, tmp_path):
    out, err = load(server, archive, tmp_path, ["slow", "good"])
    assert server.requests == ["slow"] and "test images: 50" in out and "B/s" in err


def test_all_mirrors_bad_then_the_original(server, archive, tmp_path):
    out, err = load(server, archive, tmp_path, ["dead", "wrong"], own="cifar-10-binary.tar.gz")
    assert server.requests == ["wrong", "cifar-10-binary.tar.gz"] and "test images: 50" in out
    assert (tmp_path / "downloads/manual/cifar-10-binary.tar.gz").read_bytes() == archive.read_bytes()


def test_everything_bad(server, archive, tmp_path):
    out, err = load(server, archive, tmp_path, ["cut", "wrong"], own="404", code=1)
    assert "could not be downloaded" in message(err.split("\n\n")[-1]), err
    assert not (tmp_path / "cifar10" / "3.0.2").exists()
    out, err = load(server, archive, tmp_path, ["good"])
    assert "test images: 50" in out, "the failure broke the next run"


def test_another_data_set_without_a_network(tmp_path):
    """It is said before TFDS begins, which would go on trying for minutes."""
    program = tmp_path / "program.py"
    program.write_text(f"import sys\nsys.path.insert(0, {str(root)!r})\n"
                       "import support.start, tensorflow_datasets as tfds\n"
                       "from support import download, errors\n"
                       "known = tfds.builder_cls('mnist').url_infos\n"
                       "for url in list(known):\n"
                       "    known[url.replace('https://', 'http://127.0.0.1:1/')] = known.pop(url)\n"
                       "errors.are_explained(lambda: download.prepare('mnist'))()\n")
    out, err = run(program, cwd=tmp_path, data=tmp_path, code=1)
    assert "mnist could not be downloaded: no connection" in message(err) and "Getting mnist" in out


own_builder = """
import sys
sys.path.insert(0, {root!r})
import support.start
import numpy as np
import tensorflow_datasets as tfds
import train
from support import errors

class Squares(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name="small"), tfds.core.BuilderConfig(name="large")]

    def _info(self):
        image = tfds.features.Image(shape=(8, 8, 3) if self.builder_config.name == "small" else (16, 16, 3))
        features = tfds.features.FeaturesDict({{"image": image, "label": tfds.features.ClassLabel(num_classes=10)}})
        return tfds.core.DatasetInfo(builder=self, features=features, supervised_keys=("image", "label"))

    def _split_generators(self, dl_manager):
        return {{"train": self._generate_examples(), "test": self._generate_examples()}}

    def _generate_examples(self):
        for number in range(10):
            {line}
            yield number, {{"image": np.zeros(self.info.features["image"].shape, np.uint8), "label": number}}

train.dataset, train.data_dir = "squares/large", {data_dir!r}
errors.are_explained(lambda: print(train.load_data()[1].element_spec[0].shape))()
"""


def load_own(folder, line="pass", code=0, data_dir=None):
    """load_data() for a builder of a learner's own, with this line in it; return its output and its errors."""
    program = folder / "program.py"
    program.write_text(own_builder.format(root=str(root), line=line, data_dir=data_dir))
    env = environment(folder / "default", HOME=str(folder), USERPROFILE=str(folder))
    script = start(program, cwd=folder, data=folder / "default", env=env)
    out, err = map(plain, script.wait())
    assert script.returncode == code, err
    assert leftovers(folder) == []
    return out, err


@pytest.mark.parametrize("data_dir", ["my data", "~/my data"])
def test_a_builder_of_ones_own_in_a_folder_of_ones_own(data_dir, tmp_path):
    """It has no downloads, but two configurations."""
    for _ in range(2):
        out, err = load_own(tmp_path, data_dir=data_dir)
        assert "squares/large is in" in out and "(None, 16, 16, 3)" in out and "Traceback" not in err
    assert (tmp_path / "my data/squares/large/1.0.0").exists() and not (tmp_path / "default").exists()


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="needs another drive, here Linux's shared memory")
def test_folders_that_are_links_to_another_drive(server, archive, tmp_path):
    with tempfile.TemporaryDirectory(dir="/dev/shm") as drive:
        assert Path(drive).stat().st_dev != tmp_path.stat().st_dev
        for folder in "cifar10", "downloads":
            Path(drive, folder).mkdir()
            (tmp_path / folder).symlink_to(Path(drive, folder))
        out, err = load(server, archive, tmp_path, ["good"])
        assert "test images: 50" in out
        assert sorted(path.name for path in Path(drive).glob("*/*")) == ["3.0.2", "manual"]


@posix
def test_a_link_to_a_drive_that_is_not_there(tmp_path):
    for link in "squares", "squares/large":
        (tmp_path / "default" / link).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "default" / link).symlink_to(tmp_path / "drive")
        out, err = load_own(tmp_path, code=1)
        assert f"{tmp_path / 'default' / link} is a link to {tmp_path / 'drive'}, which is not there." in message(err)
        (tmp_path / "default" / link).unlink()


def test_a_mistake_in_a_builder_of_ones_own_is_shown(tmp_path):
    out, err = load_own(tmp_path, "undefined", code=1)
    assert "Traceback" in err and "NameError: name 'undefined' is not defined" in err and "later" not in err
    for line, reason in ("open('missing')", "FileNotFoundError"), ("from keras.layers import Conv3", "ImportError"), \
            ("open(sys.executable + '/x')", "NotADirectoryError"):
        out, err = load_own(tmp_path, line, code=1)
        assert "Traceback" in err and reason in err, err
    load_own(tmp_path)  # its data are there; then a mistake is made
    out, err = load_own(tmp_path, "pass\n\n    def _info(self):\n        undefined\n\n    def rest(self):\n"
                        "        for number in []:\n            pass", code=1)
    assert "Traceback" in err and "NameError" in err and "cannot be used" not in err


def test_a_package_that_a_data_set_needs(tmp_path):
    out, err = load_own(tmp_path, "tfds.core.lazy_imports_lib._try_import('no_such_package')", code=1)
    assert "squares/large needs another package: No module named 'no_such_package'.\nInstall it" in err
    assert "later" not in message(err.split("\n\n")[-1])


@rare
def test_the_network_of_a_company(server, archive, tmp_path):
    """A proxy that wants a password, and one that has a certificate of its own."""
    import requests

    from support import download
    proxy = f"http://127.0.0.1:{server.server_address[1]}"
    for proxies in {"https": proxy}, {"https": "http://127.0.0.1:1"}:
        with pytest.raises(requests.RequestException) as error:
            requests.get("https://mirror.invalid/good", proxies=proxies)
        assert download.cause(error.value).startswith("the proxy does not let it through")
    command = "openssl req -x509 -newkey rsa:2048 -nodes -keyout key.pem -out cert.pem -days 2 -subj /CN=127.0.0.1"
    subprocess.run(command.split(), cwd=tmp_path, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")
    server.socket = context.wrap_socket(server.socket, server_side=True)
    with pytest.raises(requests.RequestException) as error:
        requests.get(f"https://127.0.0.1:{server.server_address[1]}/good", proxies={"https": ""})
    assert "certificate" in download.cause(error.value)


def test_no_network(server, archive, tmp_path):
    server.shutdown()
    server.server_close()
    out, err = load(server, archive, tmp_path, ["dead", "dead"], code=1)
    for way_out in "Try again later", (tmp_path / "downloads" / "manual").as_posix(), "TFDS_DATA_DIR":
        assert way_out in message(err)


def test_archive_brought_by_hand(server, archive, tmp_path):
    manual = tmp_path / "downloads" / "manual"
    manual.mkdir(parents=True)
    shutil.copy(archive, manual)
    out, err = load(server, archive, tmp_path, ["good"])
    assert server.requests == [] and "test images: 50" in out


def test_wrong_archive_brought_by_hand(server, archive, tmp_path):
    manual = tmp_path / "downloads" / "manual"
    manual.mkdir(parents=True)
    (manual / archive.name).write_bytes(archive.read_bytes()[:-100])
    out, err = load(server, archive, tmp_path, ["good"], code=1)
    assert "SHA-256 should be" in message(err.split("\n\n")[-1]) and server.requests == []


def leftovers(folder):
    return [path for pattern in ("tmp????????", "*incomplete*", "*.tmp.*") for path in folder.rglob(pattern)]


def start_until_incomplete(pattern, server, archive, folder, mirrors):
    """Start load_data(), and wait until something incomplete has such a path in the data folder."""
    script = start_load(server, archive, folder, mirrors)
    deadline = time.monotonic() + 120
    while not list(folder.glob(pattern)):
        assert time.monotonic() < deadline and script.poll() is None
        time.sleep(0.001)
    return script


downloading = "downloads/manual/incomplete.*/tmp*"
preparing = "cifar10/incomplete.*/cifar10/incomplete.*"


@posix
def test_one_ctrl_c_is_enough_and_leaves_nothing(server, archive, tmp_path):
    """While the archive is downloaded, extracted and prepared; TFDS sometimes loses the KeyboardInterrupt."""
    for pattern, mirror, seconds in [(downloading, "slow", 0), ("cifar10/incomplete.*/extracted/*", "good", 0),
                                     (preparing, "good", 0.2)]:
        script = start_until_incomplete(pattern, server, archive, tmp_path, [mirror])
        time.sleep(seconds)
        script.send_signal(signal.SIGINT)
        out, err = script.wait(60)
        assert (script.returncode, plain(err).strip().split("\n")[-1]) == (130, "Stopped.")
        assert leftovers(tmp_path) == []
        time.sleep(1)  # what Python has to say of things left behind, a process of its own says now
        assert script.output()[1] == err


def test_what_a_kill_has_left_is_deleted_when_it_is_old(server, archive, tmp_path):
    """That of another process, which may go on, is not touched, and neither is what is not ours."""
    start_until_incomplete(preparing, server, archive, tmp_path, ["good"]).kill()
    killed, = tmp_path.glob("cifar10/incomplete.*")
    going_on = shutil.copytree(killed, tmp_path / "cifar10/incomplete.image-classifier.other")
    theirs = tmp_path / "downloads/extracted/incomplete.of-others"
    theirs.mkdir(parents=True)
    for path in [killed, *killed.rglob("*"), theirs]:
        os.utime(path, (time.time() - 4000,) * 2)
    script = start_load(server, archive, tmp_path, ["good"])
    out, err = script.wait()
    assert "test images: 50" in out and not killed.exists() and going_on.exists() and theirs.exists()


@posix
def test_data_folder_not_writable(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data").chmod(0o555)
    out, err = run_after(without_privileges, "train.py", *in_one_go, cwd=tmp_path, data=tmp_path / "data", code=1)
    assert str(tmp_path / "data") in message(err) and "Permission denied" in err


def test_file_in_the_place_of_the_data_folder(tmp_path):
    (tmp_path / "file").write_text("")
    out, err = run("train.py", *in_one_go, cwd=tmp_path, data=tmp_path / "file", code=1)
    assert (tmp_path / "file").as_posix() in message(err)


def damaged(version, what):
    """Damage the data set in the folder of its version."""
    description = version / "dataset_info.json"
    if what == "no description":
        description.unlink()
    elif what == "garbage for a description":
        description.write_text("{garbage")
    elif what == "another format":
        description.write_text(description.read_text().replace('"tfrecord"', '"array_record"'))
    for records in version.glob("*.tfrecord*"):
        content = records.read_bytes()
        if what == "gone":
            records.unlink()
        elif what == "empty":
            records.write_bytes(b"")
        elif what == "truncated":
            records.write_bytes(content[:len(content) // 2])
        elif what == "corrupted":
            middle = len(content) // 2
            records.write_bytes(content[:middle] + bytes(100) + content[middle + 100:])


def test_damaged_data(tmp_path, tiny):
    from support import download
    from support.errors import UserError
    reasons = {"no description": "no description", "garbage for a description": "JSON",
               "another format": "array_record", "gone": "No such file", "empty": "0 instead of 70 images",
               "truncated": "truncated record", "corrupted": "corrupted record"}
    for what, reason in reasons.items():
        shutil.copytree(tiny / "cifar10", tmp_path / "cifar10")
        damaged(tmp_path / "cifar10/3.0.2", what)
        with pytest.raises(UserError) as error:
            download.prepare.__wrapped__("cifar10", tmp_path)  # not what an earlier test had found
        text = message(str(error.value))
        assert f"{tmp_path / 'cifar10'} cannot be used" in text and reason in text and "TFDS_DATA_DIR" in text, what
        shutil.rmtree(tmp_path / "cifar10")


@posix
def test_data_that_cannot_be_read(tmp_path, tiny):
    folder = shutil.copytree(tiny, tmp_path / "data")
    for records in (folder / "cifar10").rglob("*.tfrecord*"):
        records.chmod(0)
    out, err = run_after(without_privileges, "train.py", *in_one_go, cwd=tmp_path, data=folder, code=1)
    assert str(folder / "cifar10") in message(err) and "Permission denied" in err


@pytest.mark.parametrize("data_folder", ["data [1]", "data ü"])
def test_a_data_folder_with_odd_letters(data_folder, server, archive, tmp_path):
    folder = tmp_path / data_folder
    folder.mkdir()
    out, err = load(server, archive, folder, ["good"])
    assert server.requests == ["good"] and "test images: 50" in out
    out, err = load(server, archive, folder, ["good"])
    assert server.requests == ["good"] and "test images: 50" in out
