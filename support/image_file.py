"""A picture from a file, of nearly any format that Pillow knows, as the model gets it and as it is shown.
Without this, photos from a telephone lie on their side, and many formats come out wrong."""
import contextlib
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from support.errors import one_line

shown_size = 400  # longest side, in pixels, of a user's picture in the picture of all answers


def turn_upright(image):
    """Turn a loaded picture upright, as its camera noted. Damaged metadata make Pillow fail after it has turned the
    pixels; that does no harm here."""
    with contextlib.suppress(Exception):  # each way to damage metadata has an exception of its own
        ImageOps.exif_transpose(image, in_place=True)


def load(path, size):
    """Read a picture of any format that Pillow knows, but EPS; Pillow raises many kinds of errors. Return two RGB
    PIL.Images: its middle, reduced with antialiasing to `size`, (width, height) in pixels; and the upright picture, at
    most 400 pixels wide and high."""
    if Path(path).is_dir():
        raise ValueError("it is a folder; only files that are directly in a folder count")
    Image.MAX_IMAGE_PIXELS = 100_000_000  # Pillow refuses more than twice this; telephones take 200 megapixels
    Image.init()
    formats = [name for name in Image.OPEN if name != "EPS"]  # EPS is a program, for which it starts Ghostscript
    with Image.open(path, formats=formats) as image:
        side = max(shown_size, *size)
        image.draft(None, (side, side))  # of a JPEG, only a smaller copy is read, which needs less memory
        image.load()
        turn_upright(image)
        if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
            values = np.asarray(image) / 257  # 16 bits of grey, which convert() would cut off at 255
            image = Image.fromarray(values.astype(np.uint8))
        elif image.mode in ("I", "F"):
            raise ValueError("it has 32 bits of grey, and only 8 or 16 are read")
        if image.has_transparency_data:
            image = image.convert("RGBA")
            white = Image.new("RGBA", image.size, "white")
            image = Image.alpha_composite(white, image)
        image = image.convert("RGB")
    small = ImageOps.fit(image, size, Image.Resampling.BICUBIC)
    image.thumbnail((shown_size, shown_size))
    return small, image


def why_not_read(error):
    """Return why load() could not read a picture, in a few words."""
    if isinstance(error, UnidentifiedImageError):  # its text is the path again
        return "cannot be read: it is not a picture, or of a format that Pillow lacks (save it as JPEG or PNG)"
    return f"cannot be read as a picture: {getattr(error, 'strerror', None) or one_line(error)}"
