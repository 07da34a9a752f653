"""CIFAR-10, from the disk or from the first mirror that delivers the very same bytes. Without it, TFDS asks one server,
which gives 55 to 85 kB/s (pytorch/vision issue 9536): up to an hour for 162 MiB."""
import gc
import shutil
from pathlib import Path

import pooch
import requests
import tensorflow_datasets as tfds

from support.messages import UserError, corrupt_data, one_line

mirrors = [
    "https://storage.googleapis.com/s4tf-hosted-binaries/datasets/CIFAR10/cifar-10-binary.tar.gz",
    "https://mindspore-website.obs.cn-north-4.myhuaweicloud.com/notebook/datasets/cifar-10-binary.tar.gz",
]
archive_sha256 = "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"  # as registered in TFDS


def prepare_data():
    """Return the tfds.core.DatasetBuilder of `cifar10`, downloaded and prepared if need be; UserError says why not."""
    try:
        builder = tfds.builder("cifar10")
        folder, prepared = Path(builder.data_dir), builder.is_prepared()
    except Exception as error:  # json, protobuf and file errors, if its description is corrupt
        raise UserError(corrupt_data(error)) from error
    if prepared:
        print(f"CIFAR-10 is in {folder}")
        return builder
    if folder.exists():
        raise UserError(corrupt_data(f"{folder} is not complete"))
    downloads = folder.parents[1] / "downloads"
    print(f"CIFAR-10 (162 MiB) is being downloaded to {downloads / 'manual'}\nand prepared in {folder}, this once.")
    try:
        fetch_archive(downloads / "manual" / "cifar-10-binary.tar.gz", next(iter(builder.url_infos)))
        builder.download_and_prepare()
    except Exception as error:  # TFDS raises many kinds
        if isinstance(error, UserError) or getattr(error, "filename", None):  # run() explains a full disk, for example
            raise
        raise UserError(f"CIFAR-10 could not be downloaded and prepared: {one_line(error)}\n"
                        "Run the same command again.") from error
    finally:  # after Ctrl-C, too, and for an earlier run that was killed
        delete_incomplete(folder.parent, downloads)
    return builder


def fetch_archive(archive, original):
    """Download CIFAR-10 to the Path `archive`, if it is not there: from a mirror, or else from the URL `original`."""
    if archive.exists() and pooch.file_hash(archive) != archive_sha256:
        raise UserError(f"{archive} is not the archive of CIFAR-10:\n"
                        f"its SHA-256 should be {archive_sha256}. Replace it, or delete it.")
    get = pooch.HTTPDownloader(progressbar=True, chunk_size=1 << 16, timeout=(3, 10))  # seconds until it gives up
    for url in [*mirrors, original]:
        try:
            pooch.retrieve(url, archive_sha256, archive.name, archive.parent, downloader=get)
            return
        except (requests.RequestException, ValueError) as error:  # ValueError: of another hash
            reason = "no connection" if isinstance(error, requests.ConnectionError) else one_line(error, 80)
            print(f"Not downloaded from {url}: {reason}")
        gc.collect()  # or the bar of this download would end below a later message
    raise UserError("CIFAR-10 could not be downloaded. Try again later, or put cifar-10-binary.tar.gz\n"
                    f"into {archive.parent},\n"
                    "or set TFDS_DATA_DIR to a folder where TensorFlow Datasets has prepared cifar10.")


def delete_incomplete(prepared, downloads):
    """Delete what an interrupted download or preparation leaves in these two folders, up to 400 MB."""
    for folder in [*prepared.glob("incomplete.*"), *downloads.glob("extracted/incomplete.*")]:
        shutil.rmtree(folder, ignore_errors=True)
    for file in downloads.glob("manual/tmp????????"):  # pooch's
        file.unlink()
