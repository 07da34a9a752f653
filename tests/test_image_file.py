"""Pictures of every kind are read upright, in the right colours, whatever their metadata."""
import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, UnidentifiedImageError

from conftest import posix


def load_image(path):
    """What the model sees of a picture, int (32, 32, 3), and the picture as it is drawn."""
    from support import image_file
    small, shown = image_file.load(path, (32, 32))
    return np.asarray(small).astype(int), shown


def seen(image, path, **options):
    """What the model sees of an image that was saved at `path`, as uint8."""
    image.save(path, **options)
    pixels, shown = load_image(path)
    assert pixels.shape == (32, 32, 3) and shown.mode == "RGB"
    return pixels


def test_pixels_of_every_mode(photo, tmp_path):
    square = photo.resize((32, 32))
    grey = np.asarray(square.convert("L"))
    np.testing.assert_array_equal(seen(square, tmp_path / "a.png"), np.asarray(square))
    three = np.repeat(grey[..., None], 3, axis=-1)
    np.testing.assert_array_equal(seen(Image.fromarray(grey), tmp_path / "grey.png"), three)
    np.testing.assert_array_equal(seen(Image.fromarray(grey.astype(np.uint16) * 257), tmp_path / "16.png"), three)
    clear = square.copy()
    clear.putalpha(0)
    assert (seen(clear, tmp_path / "clear.png") == 255).all(), "what is transparent is white"
    cmyk = seen(square.convert("CMYK"), tmp_path / "cmyk.tif")
    assert abs(cmyk - np.asarray(square).astype(int)).mean() < 3


def test_middle_square_turned_as_the_camera_was_held(tmp_path):
    stripes = np.zeros((60, 100, 3), np.uint8)
    stripes[:, :20, 0] = stripes[:, 80:, 0] = 255  # outside the middle square
    stripes[:30, 20:80, 1] = 255  # its upper half
    picture = Image.fromarray(stripes)
    pixels = seen(picture, tmp_path / "wide.png")
    assert pixels[..., 0].max() < 30 and pixels[:14, :, 1].min() > 225 and pixels[18:, :, 1].max() < 30
    exif = picture.getexif()
    exif[0x0112] = 3  # upside down
    pixels = seen(picture, tmp_path / "turned.jpg", exif=exif, quality=100)
    assert pixels[:14, :, 1].max() < 60 and pixels[18:, :, 1].min() > 195


@posix
def test_a_program_is_no_picture(tmp_path, monkeypatch):
    """For EPS, Pillow would start Ghostscript."""
    mark = tmp_path / "mark"
    (tmp_path / "gs").write_text(f"#!/bin/sh\ntouch '{mark}'\n")
    (tmp_path / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    (tmp_path / "photo.jpg").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n")
    with pytest.raises(UnidentifiedImageError):
        load_image(tmp_path / "photo.jpg")
    assert not mark.exists()


def test_reduced_with_antialiasing(tmp_path):
    checkers = (np.indices((640, 640)).sum(axis=0) % 2 * 255).astype(np.uint8)
    pixels = seen(Image.fromarray(checkers), tmp_path / "checkers.png")
    assert 120 < pixels.min() and pixels.max() < 135, "single pixels were picked"


def tags(*entries, prefix=b"Exif\0\0"):
    """An EXIF block of entries (number, type, count, value); its values are not looked at, unlike Pillow's."""
    block = prefix + b"II*\0\x08\0\0\0" + struct.pack("<H", len(entries))
    long_values = b""
    for number, kind, count, value in entries:
        if len(value) > 4:
            offset = 8 + 2 + 12 * len(entries) + 4 + len(long_values)
            long_values += value
            value = struct.pack("<L", offset)
        block += struct.pack("<HHL", number, kind, count) + value.ljust(4, b"\0")
    return block + bytes(4) + long_values


turned = (0x0112, 3, 1, b"\6\0")  # to be turned by 90 degrees

odd_metadata = {  # key: what is odd; value: the metadata, and whether to turn the picture
    "-1/0, unsigned by the standard": (tags(turned, (0x011b, 10, 1, struct.pack("<2l", -1, 0))), True),  # Pillow 8965
    "cut off": (tags(turned)[:18], False),
    "orientation as text": (tags((0x0112, 2, 2, b"6")), False),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", odd_metadata)
def test_odd_metadata_do_no_harm(photo, tmp_path, kind):
    block, upright = odd_metadata[kind]
    for file in "photo.jpg", "photo.webp", "photo.png":
        photo.save(tmp_path / file, **({} if file == "photo.png" else {"exif": block, "quality": 95}))
    chunk = b"eXIf" + block[6:]  # which Pillow would write in its own way
    whole = (tmp_path / "photo.png").read_bytes()
    (tmp_path / "photo.png").write_bytes(whole[:33] + struct.pack(">L", len(chunk) - 4) + chunk
                                         + struct.pack(">L", zlib.crc32(chunk)) + whole[33:])
    for file in "photo.jpg", "photo.webp", "photo.png":
        pixels, shown = load_image(tmp_path / file)
        assert shown.size == ((120, 200) if upright else (200, 120))
        straight = np.asarray(shown if shown.width == 200 else shown.transpose(Image.Transpose.ROTATE_90)).astype(int)
        assert abs(straight - np.asarray(photo)).mean() < 5


@pytest.mark.filterwarnings("ignore")
def test_other_oddities_of_cameras(photo, tmp_path):
    photo.save(tmp_path / "two.mpo", save_all=True, append_images=[photo.rotate(180)], quality=95)
    two = (tmp_path / "two.mpo").read_bytes()
    photo.save(tmp_path / "one.jpg", quality=95)
    one = (tmp_path / "one.jpg").read_bytes()
    profile = photo.getexif()
    profile[0x0112] = 6
    photo.save(tmp_path / "turned.jpg", exif=profile, quality=95)
    index = two.index(b"MPF\0") + 4
    files = {"two pictures": two,
             "the second one is missing": two[:two.index(b"\xff\xd8\xff", 3)],
             "their index is damaged": two[:index] + b"\xff" * 20 + two[index + 20:],
             "something behind the picture": one + bytes(5000) + b"SEFT",
             "another kind of metadata": one[:2] + b"\xff\xe1\0\x10" + b"no EXIF at all" + one[2:]}
    for file, content in files.items():
        (tmp_path / file).write_bytes(content)
        pixels, shown = load_image(tmp_path / file)
        assert abs(np.asarray(shown).astype(int) - np.asarray(photo)).mean() < 5, file


@pytest.mark.parametrize("file", ["a.jpg", "a.png", "a.webp", "a.tif"])
def test_every_orientation(photo, tmp_path, file):
    for orientation in range(1, 9):
        exif = photo.getexif()
        exif[0x0112] = orientation
        photo.save(tmp_path / file, exif=exif)
        upright = np.asarray(photo).astype(int)
        if orientation >= 5:
            upright = upright.swapaxes(0, 1)
        if orientation in (2, 3, 6, 7):
            upright = upright[:, ::-1]
        if orientation in (3, 4, 7, 8):
            upright = upright[::-1]
        pixels, shown = load_image(tmp_path / file)
        assert shown.size == upright.shape[1::-1] and abs(np.asarray(shown).astype(int) - upright).mean() < 5


def test_16_bits_are_not_stretched(tmp_path):
    dark = (np.arange(32 * 32).reshape(32, 32) * 20).astype(np.uint16)
    Image.fromarray(dark).save(tmp_path / "a.png")
    Image.fromarray(dark).save(tmp_path / "a.tif")
    (tmp_path / "a.pgm").write_bytes(b"P5 32 32 65535\n" + dark.astype(">u2").tobytes())
    for file in "a.png", "a.tif", "a.pgm":
        pixels, shown = load_image(tmp_path / file)
        assert (pixels[..., 0] == dark // 257).all(), file


def test_a_phone_s_200_megapixels(tmp_path):
    large = Image.new("L", (16_320, 12_240), 200)
    large.paste(50, (0, 0, 16_320, 6_120))
    exif = large.getexif()
    exif[0x0112] = 6
    pixels = seen(large, tmp_path / "large.jpg", exif=exif, quality=50)
    assert abs(pixels[:, :15] - 200).max() < 3 and abs(pixels[:, 17:] - 50).max() < 3


def test_a_jpeg_read_smaller_looks_the_same(photo, tmp_path):
    for mode in "RGB", "L", "CMYK":
        large = photo.resize((3333, 2001)).convert(mode)
        pixels = seen(large, tmp_path / "large.jpg", quality=95)
        assert abs(pixels - seen(large, tmp_path / "large.tif")).mean() < 2
