"""Get the complete data set, or say why that failed. CIFAR-10 comes from the first mirror that has the same bytes.
Without this, TFDS asks one server, which gives 55 to 85 kB/s (pytorch/vision issue 9536): up to an hour for 162 MiB."""
import contextlib
import functools
import random
import shutil
import tempfile
import time
from pathlib import Path

import pooch
import requests
import tensorflow as tf
import tensorflow_datasets as tfds
from tqdm import tqdm

from support import ctrl_c
from support.errors import UserError, file_error, one_line

mirrors = [
    "https://storage.googleapis.com/s4tf-hosted-binaries/datasets/CIFAR10/cifar-10-binary.tar.gz",
    "https://mindspore-website.obs.cn-north-4.myhuaweicloud.com/notebook/datasets/cifar-10-binary.tar.gz",
]
prefix = "incomplete.image-classifier."  # of the folders in which data are downloaded and prepared, up to 400 MB
network_errors = (requests.RequestException, tfds.core.download.util.DownloadError,
                  tfds.core.download.download_manager.NonMatchingChecksumError)
archive_sha256 = "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"  # as registered in TFDS


@functools.cache  # once in a process
def prepare(name, data_dir=None):
    """Download and prepare the data set of this name in TensorFlow Datasets, if need be; read it once, to see that it
    is whole (half a second for CIFAR-10). Return the folder for all data sets: `data_dir`, or that of TensorFlow
    Datasets if it is None. Raises UserError, which says what is wrong and what to do."""
    root = Path(data_dir or tfds.core.constants.DATA_DIR).expanduser()
    with explain_damage(root / name):
        builder = tfds.builder(name, data_dir=root)
    folder = Path(builder.data_dir)
    if not folder.exists():
        download(name, root, folder)
        builder = tfds.builder(name, data_dir=root)
    with explain_damage(root / name):
        check(builder)
    print(f"{name} is in {folder}")
    return root


@contextlib.contextmanager
def explain_damage(folder):
    """Raise UserError instead of an error for which the data set in the folder must be the reason."""
    try:
        yield
    except Exception as error:  # TensorFlow's, protobuf's, the system's
        mistakes = NameError, TypeError, AttributeError, LookupError  # in a builder of one's own
        if isinstance(error, mistakes) or isinstance(error.__cause__, mistakes) or not any(folder.glob("*")):
            raise
        raise UserError(f"The data set in {folder.absolute()} cannot be used: {one_line(error)}.\n"
                        "Delete it or move it elsewhere, or choose another folder (data_dir in train.py, or\n"
                        "TFDS_DATA_DIR); then run the same command again.") from error


def check(builder):
    """Read all files of the data set. Raise an error if they do not have all of its records."""
    if not builder.info.splits:
        raise ValueError("it has no description")
    for split in builder.info.splits.values():
        records = tf.data.TFRecordDataset([str(path) for path in split.filepaths])  # compares each one's checksum
        found = int(records.reduce(0, lambda count, record: count + 1))
        if found != split.num_examples:
            raise ValueError(f"{split.name} has {found} instead of {split.num_examples} images")


def download(name, root, folder):
    """Download the data set of this name and prepare it, in a folder of its own in the data folder `root`; then move it
    to `folder`. Raises UserError if the network or a package fails; other errors are raised as they are."""
    downloads = root.absolute() / "downloads"
    archive = downloads / "manual" / "cifar-10-binary.tar.gz"
    state = random.getstate()  # TFDS uses up random numbers; the same seed must give the same model after a download
    try:
        with incomplete_folder(folder.parent) as made:
            builder = tfds.builder(name, data_dir=made)
            urls = builder.url_infos or {}  # a builder of one's own may have none
            print(f"Getting {name} ({sum(info.size for info in urls.values()) / 2**20:.0f} MiB) into {downloads}\n"
                  f"and preparing it in {folder}. This happens only once.")
            if name == "cifar10":
                fetch_archive(archive, next(iter(urls)))
            elif urls:
                requests.head(next(iter(urls)), timeout=(10, 30))  # TFDS would try for minutes
            config = tfds.download.DownloadConfig(extract_dir=made / "extracted")
            builder.download_and_prepare(download_dir=downloads, download_config=config)
            if not folder.exists():  # else another process was quicker
                Path(builder.data_dir).rename(folder)
    except network_errors as error:
        raise UserError(f"{name} could not be downloaded: {cause(error)}\nTry again later.") from error
    except ModuleNotFoundError as error:
        reason = str(error).splitlines()[0]  # No module named 'scipy'
        raise UserError(f"{name} needs another package: {reason}.\n"
                        "Install it with pip, then run the same command again.") from error
    finally:
        random.setstate(state)


@contextlib.contextmanager
def incomplete_folder(place):
    """Give `with` the Path of a temporary folder inside the folder `place`, to which its content is moved when it is
    complete: so both are on the same drive. Raises UserError if it cannot be made."""
    place = place.absolute()
    try:
        for path in (place, *place.parents):
            if path.is_symlink() and not path.exists():
                raise UserError(f"{path} is a link to {path.readlink()}, which is not there.\n"
                                "Connect that drive, or delete the link; then run the same command again.")
        place.mkdir(parents=True, exist_ok=True)
        for left in place.glob(prefix + "*"):  # by processes that were killed, if all in it is older than an hour
            newest = max(path.stat().st_mtime for path in [left, *left.rglob("*")])
            if newest < time.time() - 3600:
                shutil.rmtree(left, ignore_errors=True)
        folder = tempfile.TemporaryDirectory(prefix=prefix, dir=place, ignore_cleanup_errors=True)
    except OSError as error:
        raise UserError(file_error(error.filename or place, error)) from error
    try:
        with folder as made:
            ctrl_c.unfinished.add(made)
            yield Path(made)
    finally:
        ctrl_c.unfinished.discard(made)


def fetch_archive(archive, original):
    """Download CIFAR-10 to the Path `archive`, if it is not there: from a mirror, or else from the URL `original`."""
    if archive.exists():
        if pooch.file_hash(archive) != archive_sha256:
            raise UserError(f"{archive} is not the archive of CIFAR-10:\n"
                            f"its SHA-256 should be {archive_sha256}. Replace it, or delete it.")
        return
    for url in [*mirrors, original]:
        try:
            with tqdm(total=1, unit="B", unit_scale=True, ncols=79, delay=0.5) as bar:  # pooch sets the real total
                get = pooch.HTTPDownloader(progressbar=bar, chunk_size=1 << 16, timeout=(3, 10))  # seconds
                with incomplete_folder(archive.parent) as made:
                    pooch.retrieve(url, archive_sha256, archive.name, made, downloader=get)
                    (made / archive.name).replace(archive)
            return
        except (requests.RequestException, ValueError) as error:  # ValueError: the hash is different
            print(f"Could not download from {url}: {cause(error)}")
    raise UserError("CIFAR-10 could not be downloaded. Try again later, or put cifar-10-binary.tar.gz\n"
                    f"into {archive.parent},\n"
                    "or set TFDS_DATA_DIR to a folder where TensorFlow Datasets has prepared cifar10.")


def cause(error):
    """Return why a download failed, in a few words."""
    if isinstance(error, requests.exceptions.SSLError):
        return "its certificate is not trusted (in a company's network, REQUESTS_CA_BUNDLE names the file with its own)"
    if isinstance(error, requests.exceptions.ProxyError):
        return "the proxy does not let it through (HTTPS_PROXY names it, with user and password if it wants them)"
    if isinstance(error, requests.ConnectionError):
        return "no connection"
    return one_line(error)
