"""Reads a user's image files for the networks, in a fixed list of formats and in bounded memory.

An image file may come from anybody. So we never let Pillow detect the format: for a PostScript file it would
start Ghostscript. We check the size in the header before we decode a pixel. We convert a large image in bands
to avoid a second copy of it.
"""

import contextlib
import logging
import math
import os
import re
import warnings
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageFile,
    ImageOps,
    JpegImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from hw import files
from hw.cli import UserError

SIZE = 32  # pixels of a side, as in CIFAR-10
MAX_BYTES = 300 * 2**20  # of a file: 100 megapixels in colour without compression
MAX_PIXELS = 200_000_000
MAX_MEMORY = 650 * 2**20  # bytes that decoding may take
# Pillow decodes some rare formats in Python, at about a million pixels in two seconds.
MAX_SLOW_PIXELS = 2_000_000
# Pillow reads the parts of a file one by one: comments, tags, blocks. Ten million reads would take minutes. A
# PNG file of 300 MB in blocks of 8 KB needs 150,000 reads.
MAX_READINGS = 400_000
WHOLE_PIXELS = 2**25  # an image of more pixels is converted in bands
BAND_PIXELS = 2**21  # pixels of a band
LANCZOS_RADIUS = 3  # the radius of Pillow's filter in pixels of the smaller image

# Pillow reports damaged tags to a logger, and a logger without a handler writes to standard error.
logging.getLogger("PIL").setLevel(logging.CRITICAL + 1)


class _Jpeg(JpegImagePlugin.JpegImageFile):
    def _read_dpi_from_exif(self) -> None:
        """Does nothing: we do not use the resolution, and Pillow fails if EXIF stores it as text."""


class _Tiff(TiffImagePlugin.TiffImageFile):
    def load_end(self) -> None:
        """Keeps the EXIF data while the file is open.

        Pillow would also rotate the image here, which makes a second copy, and would fail on damaged tags.
        """
        with contextlib.suppress(Exception):  # damaged EXIF data may raise anything, see `_orientation`
            self.getexif()


# For each format: a pattern of its first bytes, and Pillow's class, which accepts any readable object.
_FORMATS: dict[str, tuple[bytes, Callable[[Any], ImageFile.ImageFile]]] = {
    "PNG": (rb"\x89PNG\r\n\x1a\n", PngImagePlugin.PngImageFile),
    "JPEG": (rb"\xff\xd8\xff", _Jpeg),
    "WebP": (rb"RIFF.{4}WEBP", WebPImagePlugin.WebPImageFile),
    "GIF": (rb"GIF8[79]a", GifImagePlugin.GifImageFile),
    "BMP": (rb"BM", BmpImagePlugin.BmpImageFile),
    "TIFF": (rb"(II|MM)(\*\0|\0\*|\+\0|\0\+)", _Tiff),
    "PPM": (rb"P[1-6f]\s", PpmImagePlugin.PpmImageFile),
}
_READ = "PNG, JPEG, WebP, GIF, BMP, TIFF and PPM"
# Formats that we do not read but can name in the message, with a pattern of their first bytes.
_OTHERS = {
    "an AVIF image": rb".{4}ftyp(avi[fs]|.{8,40}avif)",
    "a HEIC image": rb".{4}ftyp(hei|hev|mif1|msf1)",
    "a video": rb".{4}ftyp|RIFF.{4}AVI |\x1aE\xdf\xa3",
    "an SVG drawing": rb"\s*<(svg|(\?xml|!--|!DOCTYPE).{0,4000}<svg)",
    "a web page": rb"\s*<(!DOCTYPE )?html",
    "a PostScript file": rb"\s*%!|\xc5\xd0\xd3\xc6",
    "a PDF file": rb"\s*%PDF",
    "a Photoshop file": rb"8BPS",
    "a JPEG XL image": rb"\xff\x0a|\0\0\0\x0cJXL ",
    "a JPEG 2000 image": rb"\0\0\0\x0cjP|\xff\x4f\xff\x51",
    "an icon": rb"\0\0[\1\2]\0|icns",
}

# Bytes that Pillow stores per pixel; 4 for every other mode.
_BYTES = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16B": 2, "I;16L": 2, "I;16N": 2}
_ORIENTATION = 0x0112  # EXIF's tag for the rotation or reflection that makes the stored image upright
_TRANSPOSED = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class _Refused(Exception):
    """An exception that says why an image is not read."""


class _Counted:
    """A file that is read at most MAX_READINGS times."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._left = MAX_READINGS

    def read(self, size: int = -1) -> bytes:
        self._left -= 1
        if self._left < 0:
            raise _Refused("the file has too many parts or comments; save it again as PNG or JPEG")
        return self._file.read(size)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def read_image(path: Path) -> np.ndarray:
    """Reads an image file and returns it in the networks' input format, uint8 [32, 32, 3].

    The image is rotated as its EXIF data says, and transparent parts become white. The largest centred square
    is scaled down or up with an antialiasing filter. Only the first frame or page is read. Values of 16 bits,
    of 32 bits and floating-point values are scaled to 8 bits (`_values`).

    Raises:
      UserError: the file cannot be read, is of another format, is damaged, or is too large.
    """
    mend = "give a PNG or JPEG file of moderate size"
    with files.open_regular(path, MAX_BYTES, mend=mend) as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # warnings would show Pillow's source code on standard error
        kind = "image"
        try:
            kind, image = _open(file)
            return _centred_square(image)
        except _Refused as error:
            raise UserError(f"cannot read {path}: {error}") from error
        except (MemoryError, Image.DecompressionBombError) as error:
            raise UserError(f"cannot read {path}: the image is too large; {mend}") from error
        except Exception as error:  # a decoder may raise anything on a damaged file
            raise UserError(
                f"cannot read {path}: the {kind} file is damaged, truncated or of an unusual kind; save it "
                "again as PNG or JPEG"
            ) from error


def _open(file: BinaryIO) -> tuple[str, Image.Image]:
    """Decodes the first image of a file; returns (name of the format, image in its stored orientation)."""
    beginning = file.read(4096)
    file.seek(0)
    for name, (magic, of_format) in _FORMATS.items():
        if re.match(magic, beginning, re.DOTALL):
            image = of_format(_Counted(file))
            _bound(image, file)
            with _libtiff_silenced() if isinstance(image, _Tiff) else contextlib.nullcontext():
                image.load()
            return name, image
    what = "it is not an image in a known format" if beginning else "it is empty"
    for name, magic in _OTHERS.items():
        if re.match(magic, beginning, re.DOTALL | re.IGNORECASE):
            what = f"it looks like {name}"
            break
    raise _Refused(f"{what}; hw.predict reads {_READ}: convert it to PNG or JPEG first")


@contextlib.contextmanager
def _libtiff_silenced() -> Generator[None]:
    """Discards standard error, because libtiff writes its warnings there and Pillow cannot stop it."""
    try:
        kept = os.dup(2)
    except OSError:  # standard error is closed
        yield
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _bound(image: ImageFile.ImageFile, file: BinaryIO) -> None:
    """Refuses an image that needs too much memory or time, and makes Pillow decode a large JPEG smaller."""
    width, height = image.size
    pixels = width * height
    slow = any(tile[0] in Image.DECODERS for tile in image.tile)
    limit = MAX_SLOW_PIXELS if slow else MAX_PIXELS
    if pixels > limit:
        kind = " of a file of this kind" if slow else ""
        raise _Refused(
            f"the image is too large, {width:,} x {height:,} pixels: at most {limit // 10**6} million pixels"
            f"{kind} are read; save it smaller"
        )
    memory = pixels * _BYTES.get(image.mode, 4)
    if isinstance(image, WebPImagePlugin.WebPImageFile):
        memory = pixels * 16  # libwebp's canvas, the previous canvas, the bytes returned, and the image
    elif isinstance(image, _Tiff) and image.tile and image.tile[0][0] == "libtiff":
        # A compressed strip is decoded as a whole, and the whole image may be one strip.
        memory += pixels * sum(image.tag_v2.get(TiffImagePlugin.BITSPERSAMPLE, (8,))) // 8
    elif isinstance(image, _Jpeg):
        scans = _coefficient_bytes(image, file)
        for scale in (1, 2, 4, 8):  # libjpeg can decode at these fractions of the size
            memory = scans + 4 * pixels // scale**2
            if memory <= MAX_MEMORY:
                break
        if scale > 1:
            image.draft(None, (width // scale, height // scale))
    if memory > MAX_MEMORY:
        raise _Refused(
            f"the image is too large, {width:,} x {height:,} pixels: decoding would take "
            f"{memory // 10**6:,} MB, and the limit is {MAX_MEMORY // 10**6} MB; save it smaller, as JPEG"
        )


def _coefficient_bytes(image: _Jpeg, file: BinaryIO) -> int:
    """Returns the bytes that libjpeg keeps as coefficients: 0 for one scan, all for several scans."""
    # The file position is after the header of the first scan, which holds marker, length, number of
    # components, two bytes for each component, and three more bytes.
    position, length = file.tell(), 2 * image.layers + 8
    file.seek(max(0, position - length))
    whole = file.read(5) == b"\xff\xda" + (length - 2).to_bytes(2, "big") + bytes([image.layers])
    file.seek(position)
    if whole and not image.info.get("progressive"):
        return 0
    across, down = max(layer[2] for layer in image.layer), max(layer[1] for layer in image.layer)
    samples = sum(layer[1] * layer[2] for layer in image.layer) / max(1, across * down)
    return int(2 * samples * image.width * image.height)


def _orientation(image: Image.Image) -> int:
    """Returns EXIF's orientation, 1 … 8; 1 if it is missing or unreadable."""
    try:
        value = image.getexif().get(_ORIENTATION)
    except Exception:  # a sound image may have damaged EXIF data
        return 1
    return value if isinstance(value, int) and value in _TRANSPOSED else 1


def _centred_square(image: Image.Image) -> np.ndarray:
    """Scales the largest centred square of an image to 32 x 32 pixels, uint8 [32, 32, 3].

    The bands give the result that Pillow gives for the whole image. It filters along rows, rounds to 8 bits,
    then filters along columns. (Pillow 13 filters the columns of some tall images first, and may round
    differently.)
    """
    orientation = _orientation(image)
    method = _TRANSPOSED.get(orientation)
    stored = image.im.size  # Pillow has already swapped a TIFF's `size` for its orientation
    width, height = stored[::-1] if orientation >= 5 else stored
    if width * height <= WHOLE_PIXELS:
        upright = image if method is None else image.transpose(method)
        opaque = _opaque(upright, _values(image, iter([upright])))
        fitted = ImageOps.fit(opaque, (SIZE, SIZE), Image.Resampling.LANCZOS)
        return np.asarray(fitted.convert("RGB"))
    side = min(width, height)
    margin = int(LANCZOS_RADIUS * max(side / SIZE, 1)) + 2
    left, top = (width - side) / 2, (height - side) / 2
    first_x, last_x = max(0, int(left) - margin), min(width, int(left) + side + 1 + margin)
    first_y, last_y = max(0, int(top) - margin), min(height, int(top) + side + 1 + margin)

    def bands() -> Iterator[Image.Image]:
        """Yields the part of the upright image that the square needs, some rows at a time."""
        rows = max(1, BAND_PIXELS // (last_x - first_x))
        for y in range(first_y, last_y, rows):
            x_range, y_range = (first_x, last_x), (y, min(y + rows, last_y))
            # Find this part in the stored image, from the effect of the orientation on x and y.
            if orientation in (2, 3, 6, 7):
                x_range = width - x_range[1], width - x_range[0]
            if orientation in (3, 4, 7, 8):
                y_range = height - y_range[1], height - y_range[0]
            across, down = (y_range, x_range) if orientation >= 5 else (x_range, y_range)
            band = image.crop((across[0], down[0], across[1], down[1]))
            yield band if method is None else band.transpose(method)

    values = _values(image, bands())
    parts = []
    for band in bands():
        band = _opaque(band, values)
        box = (left - first_x, 0, left - first_x + side, band.height)
        parts.append(np.asarray(band.resize((SIZE, band.height), Image.Resampling.LANCZOS, box)))
    rows = Image.fromarray(np.concatenate(parts))
    box = (0, top - first_y, SIZE, top - first_y + side)
    return np.asarray(rows.resize((SIZE, SIZE), Image.Resampling.LANCZOS, box).convert("RGB"))


def _opaque(band: Image.Image, values: "_Values | None") -> Image.Image:
    """Converts a part of an image to RGB or grey (L) on a white ground; `values` comes from `_values`."""
    if values is not None:
        band = Image.fromarray(values.eight_bits(band))
    if band.mode == "La":  # Pillow can convert this mode to LA only
        band = band.convert("LA")
    if not band.has_transparency_data:
        return band.convert("L" if band.mode in ("1", "L") else "RGB")
    band = band if band.mode == "RGBA" else band.convert("RGBA")
    if band.getchannel("A").getextrema()[0] == 255:
        return band.convert("RGB")
    page = Image.new("RGBA", band.size, "white")
    page.alpha_composite(band)
    return page.convert("RGB")


@dataclass(frozen=True)
class _Values:
    """A scale that says which numbers are black and white, for 16-bit, 32-bit and floating-point images.

    Attributes:
      white: the number for white; 0 is black.
      inverted: whether black and white are exchanged.
      unsigned: whether 32-bit numbers are unsigned; Pillow reads them as signed.
    """

    white: int
    inverted: bool
    unsigned: bool

    def numbers(self, band: Image.Image) -> np.ndarray:
        """Returns the numbers of a part of the image, [height, width]."""
        numbers = np.asarray(band)
        return numbers.view(np.uint32) if self.unsigned else numbers

    def eight_bits(self, band: Image.Image) -> np.ndarray:
        """Returns the numbers scaled to 0 … 255, uint8 [height, width]."""
        scaled = self.numbers(band).astype(np.float64) / (self.white / 255)
        if self.white == 1:
            scaled = scaled.round()  # k / 255 is not exact: without rounding some values would become k − 1
        return (255 - scaled if self.inverted else scaled).clip(0, 255).astype(np.uint8)


def _values(image: Image.Image, bands: Iterator[Image.Image]) -> _Values | None:
    """Finds the scale of an image with one number per pixel; returns None for an 8-bit mode.

    White is 65,535 for 16 bits, and 4,095 for a TIFF of 12 bits. For 32-bit and floating-point numbers the
    largest value decides. If it is at most 255, white is 255. Otherwise white is the largest number with as
    many bits; 13 to 15 bits count as 16. For floating-point numbers up to 1, or a little above, white is 1.

    Raises:
      _Refused: a value is not finite, or the values fit none of these ranges.
    """
    if image.mode[0] not in "IF":
        return None
    tags = getattr(image, "tag_v2", {})
    bits = tags.get(TiffImagePlugin.BITSPERSAMPLE, (16,))[0]
    inverted = tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0
    if image.mode.startswith("I;16"):
        return _Values(4095 if bits == 12 else 65535, inverted, False)
    if isinstance(image, PpmImagePlugin.PpmImageFile) and image.mode == "I":
        return _Values(65535, False, False)  # Pillow has already scaled the numbers
    unsigned = image.mode == "I" and bits == 32 and tags.get(TiffImagePlugin.SAMPLEFORMAT, (1,))[0] == 1
    mend = "scale its values to 0 … 255 and save it as PNG"
    lowest, highest = math.inf, -math.inf
    for band in bands:
        numbers = _Values(1, inverted, unsigned).numbers(band)
        if not np.isfinite(numbers).all():
            raise _Refused(f"some of its values are not finite; {mend}")
        lowest, highest = min(lowest, float(numbers.min())), max(highest, float(numbers.max()))
    width = int(highest).bit_length()
    white = 65535 if 12 < width <= 16 else 2 ** max(8, width) - 1
    if image.mode == "F" and highest <= 2:
        white = 1
    elif image.mode == "F" and highest <= 510:
        white = 255
    # Image filters can produce values a little below black.
    if lowest < -0.05 * white or (white == 255 and image.mode == "F" and highest < 16):
        raise _Refused(
            f"its values run from {lowest:g} to {highest:g}, which is not the range of an image; {mend}"
        )
    return _Values(white, inverted, unsigned)
