"""Tests hw.data.photos: it reads known formats in bounded memory and refuses any other file in one line."""

import os
import socket
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from hw.cli import UserError
from hw.data import photos
from tests import processes

FORMATS = {
    "PNG": "png",
    "JPEG": "jpg",
    "WebP": "webp",
    "GIF": "gif",
    "BMP": "bmp",
    "TIFF": "tif",
    "PPM": "ppm",
}


def noise(width: int, height: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), np.uint8)


def exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


def simply(path: Path, *, rows_first: bool = False) -> np.ndarray:
    """Returns Pillow's result for an 8-bit image without bands, in Pillow's order or with rows first."""
    # If Pillow opens the file itself, it maps some TIFFs into memory and then does not rotate them.
    with path.open("rb") as file, Image.open(file) as image:
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) / 257).clip(0, 255).astype(np.uint8))
    image = image.convert("RGBA")
    page = Image.new("RGBA", image.size, "white")
    page.alpha_composite(image)
    image, (width, height) = page.convert("RGB"), page.size
    if rows_first:
        side = min(width, height)
        left, top = (width - side) / 2, (height - side) / 2
        image = image.resize((32, height), Image.Resampling.LANCZOS, (left, 0, left + side, height))
        return np.asarray(image.resize((32, 32), Image.Resampling.LANCZOS, (0, top, 32, top + side)))
    return np.asarray(ImageOps.fit(image, (32, 32), Image.Resampling.LANCZOS))


def refusal(path: Path) -> str:
    """Returns the one-line error of reading a file."""
    with pytest.raises(UserError) as caught:
        photos.read_image(path)
    assert "\n" not in str(caught.value) and str(caught.value).startswith(f"cannot read {path}: ")
    return str(caught.value).removeprefix(f"cannot read {path}: ")


# --- Sound images ---


def test_an_image_of_the_networks_own_size_is_not_touched(tmp_path):
    pixels = noise(32, 32)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    np.testing.assert_array_equal(photos.read_image(tmp_path / "a.png"), pixels)


@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "I;16", "I", "F"]
)
@pytest.mark.parametrize("size", [(1, 1), (3, 200), (640, 480)])
def test_any_mode_and_size(tmp_path, mode, size):
    Image.new(mode, size).save(tmp_path / "a.tiff")
    image = photos.read_image(tmp_path / "a.tiff")
    assert image.shape == (32, 32, 3) and image.dtype == np.uint8


SAVED = [
    *(
        (mode, "png")
        for mode in ("1", "L", "LA", "P", "P transparent", "L transparent", "RGB", "RGBA", "I;16")
    ),
    *((mode, "jpg") for mode in ("L", "RGB", "YCbCr", "CMYK")),
    *((mode, "tif") for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "F")),
    *((mode, "webp") for mode in ("RGB", "RGBA")),
    *((mode, "gif") for mode in ("L", "P", "P transparent")),
    *((mode, "bmp") for mode in ("1", "L", "P", "RGB")),
    *((mode, "ppm") for mode in ("1", "L", "RGB")),
]


@pytest.mark.parametrize(("mode", "ending"), SAVED)
@pytest.mark.parametrize("size", [(1, 1), (33, 32), (3, 200), (97, 64), (201, 310)])
def test_the_same_numbers_as_pillow_alone_makes(tmp_path, monkeypatch, mode, ending, size):
    monkeypatch.setattr(photos, "BAND_PIXELS", 5000)
    image, options = Image.fromarray(noise(*size, 4)), {}
    if "transparent" in mode:
        options["transparency"] = 3
    mode = mode.removesuffix(" transparent")
    if mode == "I;16":
        image = Image.fromarray(noise(2 * size[0], size[1], 1)[..., 0].view(np.uint16))
    elif mode == "F":
        image = Image.fromarray(noise(*size, 1)[..., 0].astype(np.float32))
    elif mode == "LAB":
        image = Image.frombytes("LAB", size, noise(*size).tobytes())
    else:
        image = image.convert("RGB").convert(mode) if mode in ("P", "CMYK", "YCbCr") else image.convert(mode)
    path = tmp_path / f"a.{ending}"
    for orientation in range(1, 9) if ending in ("png", "jpg", "tif", "webp") else [1]:
        turned = {"exif": exif(orientation)} if orientation > 1 else {}
        image.save(path, **turned, **options)
        for whole in (True, False):
            monkeypatch.setattr(photos, "WHOLE_PIXELS", 10**9 if whole else 0)
            expected = simply(path, rows_first=not whole)
            np.testing.assert_array_equal(photos.read_image(path), expected, err_msg=f"{orientation} {whole}")


def test_transparency_is_white_and_the_centre_is_kept(tmp_path):
    image = Image.new("RGBA", (96, 32), (200, 0, 0, 255))
    image.paste((0, 0, 0, 0), (32, 0, 64, 16))
    image.paste((0, 0, 255, 255), (32, 16, 64, 32))
    image.save(tmp_path / "a.png")
    expected = np.full((32, 32, 3), 255)
    expected[16:] = 0, 0, 255
    np.testing.assert_array_equal(photos.read_image(tmp_path / "a.png"), expected)


@pytest.mark.parametrize("mode", ["La", "PA", "LA"])
def test_transparency_of_rare_modes(tmp_path, mode):
    image = Image.fromarray(np.dstack([np.full((32, 32), 40), np.full((32, 32), 255)]).astype(np.uint8), "LA")
    image.paste((0, 0), (0, 0, 32, 16))
    if mode == "PA":
        palette = Image.new("P", (32, 32), 1)
        palette.putpalette([0, 0, 0, 40, 40, 40])
        palette = palette.convert("PA")
        palette.putalpha(image.getchannel("A"))
        image = palette
    if mode == "La":  # Pillow can read this mode but not write it
        image.save(tmp_path / "a.tif")
        content = (tmp_path / "a.tif").read_bytes()
        extra_samples = struct.pack("<HHIH", 338, 3, 1, 2)
        assert extra_samples in content
        (tmp_path / "a.tif").write_bytes(content.replace(extra_samples, struct.pack("<HHIH", 338, 3, 1, 1)))
    else:
        image.save(tmp_path / "a.tif")
    read = photos.read_image(tmp_path / "a.tif")
    assert set(read[:16].flat) == {255} and set(read[16:].flat) == {40}


@pytest.mark.parametrize("adobe", [True, False])
def test_cmyk_is_not_a_negative(tmp_path, adobe):
    """Checks that no ink is white: Adobe's JPEGs store ink inverted, and TIFFs do not."""
    path = tmp_path / ("a.jpg" if adobe else "a.tif")
    Image.new("CMYK", (40, 40), (0, 255, 255, 0)).save(path)
    red, green, blue = photos.read_image(path)[5, 5].astype(int)
    assert red > 245 and green < 10 and blue < 10


def test_the_first_frame_of_an_animation_and_the_first_page(tmp_path):
    frames = [Image.new("RGB", (40, 40), color) for color in ("red", "blue", "green")]
    for ending in ("gif", "webp", "png", "tif"):
        frames[0].save(tmp_path / f"a.{ending}", save_all=True, append_images=frames[1:])
        red, _, blue = photos.read_image(tmp_path / f"a.{ending}")[9, 9].astype(int)
        assert red > 200 and blue < 50, ending


# --- Numbers of 16 and 32 bits ---


def test_sixteen_bits_are_scaled_not_clipped(tmp_path):
    Image.fromarray(np.full((32, 32), 0x80FF, np.uint16)).save(tmp_path / "a.png")
    assert set(photos.read_image(tmp_path / "a.png").flat) == {0x80}


def tiff(path: Path, values: np.ndarray, *, bits: int, sample_format: int, photometric: int = 1) -> Path:
    """Writes a TIFF of one number per pixel by hand, because Pillow can write few kinds of them."""
    height, width = values.shape
    tags = {256: width, 257: height, 258: bits, 259: 1, 262: photometric, 273: 8, 277: 1, 278: height}
    tags |= {279: values.nbytes, 339: sample_format}
    directory = struct.pack("<H", len(tags))
    directory += b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(tags.items()))
    content = values.tobytes()
    path.write_bytes(b"II*\0" + struct.pack("<I", 8 + len(content)) + content + directory + bytes(4))
    return path


RAMP = np.linspace(0, 1, 32 * 32).reshape(32, 32)


@pytest.mark.parametrize(
    ("dtype", "white"),
    [("<f4", v) for v in (1, 1.4, 255, 4095, 65535, 2.0**24 - 1)]
    + [("<i4", v) for v in (255, 4095, 65535, 2**20 - 1, 2**31 - 1)]
    + [("<u4", v) for v in (255, 65535, 2**32 - 1)],
)
def test_float_and_32_bits_are_scaled_and_never_black(tmp_path, dtype, white):
    """Checks that a grey ramp in any usual range becomes the 8-bit ramp, up to rounding and some clipping."""
    sample_format = {"f": 3, "i": 2, "u": 1}[dtype[1]]
    values = (RAMP * white).astype(dtype)
    read = photos.read_image(tiff(tmp_path / "a.tif", values, bits=32, sample_format=sample_format))[..., 0]
    expected = np.minimum(RAMP * (1.4 if white == 1.4 else 1), 1) * 255
    assert np.abs(read - expected).max() <= 1.1


def test_a_float_tiff_and_the_same_in_eight_bits_are_one_image(tmp_path):
    pixels = noise(32, 32, 1)[..., 0]
    Image.fromarray((pixels / 255).astype(np.float32)).save(tmp_path / "float.tif")
    Image.fromarray(pixels).save(tmp_path / "same8.png")
    a, b = (photos.read_image(tmp_path / name).astype(int) for name in ("float.tif", "same8.png"))
    np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("value", [0, 1])
def test_black_and_white_floats(tmp_path, value):
    Image.fromarray(np.full((9, 9), value, np.float32)).save(tmp_path / "a.tif")
    assert set(photos.read_image(tmp_path / "a.tif").flat) == {255 * value}


@pytest.mark.parametrize("values", [(0, np.nan), (0, np.inf), (-1, 1), (-40, 200), (0, 7)])
def test_numbers_that_are_no_image(tmp_path, values):
    Image.fromarray(np.array([values] * 2, np.float32)).save(tmp_path / "a.tif")
    assert "0 … 255" in refusal(tmp_path / "a.tif")


def test_white_that_is_zero(tmp_path):
    values = np.full((9, 9), 65535, "<u2")
    path = tiff(tmp_path / "a.tif", values, bits=16, sample_format=1, photometric=0)
    assert set(photos.read_image(path).flat) == {0}


def test_greymap_of_16_bits_that_is_dark(tmp_path):
    (tmp_path / "a.pgm").write_bytes(b"P5 32 32 65535\n" + b"\x00\xc8" * 1024)  # 200 of 65,535
    assert set(photos.read_image(tmp_path / "a.pgm").flat) == {0}


# --- EXIF data ---


def with_exif(path: Path, *entries: tuple[int, int, int, bytes], cut: int = 0) -> Path:
    """Writes a JPEG of 48 x 32 pixels, red on the left and blue on the right, with these EXIF entries."""
    image = Image.new("RGB", (48, 32), "red")
    image.paste("blue", (24, 0, 48, 32))
    image.save(path, quality=95)
    directory = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHI4s", *e) for e in entries)
    data = b"Exif\0\0II*\0\x08\0\0\0" + directory + bytes(4)
    data = data[: len(data) - cut]
    content = path.read_bytes()
    path.write_bytes(content[:2] + b"\xff\xe1" + struct.pack(">H", len(data) + 2) + data + content[2:])
    return path


TURNED = (0x0112, 3, 1, b"\x06\0\0\0")


@pytest.mark.parametrize(
    "entries",
    [
        [TURNED],
        [(0x0100, 2, 4, b"640\0"), TURNED],  # ImageWidth as text
        [TURNED, (0xA005, 2, 4, b"abc\0")],  # InteroperabilityIFD as text
        [TURNED, (0x8769, 2, 4, b"abc\0")],  # the offset of further EXIF data as text
        [TURNED, (0x8769, 4, 1, b"\xff\xff\xff\xff")],  # an offset behind the end of the file
        [TURNED, (0x8825, 12, 1, b"\xff\xff\xff\xff")],
        [TURNED, (0x011A, 2, 2, b"7\0\0\0"), (0x0128, 3, 1, b"\x02\0\0\0")],  # XResolution as text
        [TURNED, (0x010F, 99, 9, b"abcd")],  # a type that does not exist
    ],
)
@pytest.mark.parametrize("jfif", [True, False])
def test_orientation_among_damaged_tags(tmp_path, capfd, entries, jfif):
    """Checks that a clockwise rotation moves red from the left to the top."""
    path = with_exif(tmp_path / "a.jpg", *entries)
    if not jfif:  # without JFIF, Pillow looks for the resolution in the EXIF data
        content = path.read_bytes()
        start = content.index(b"\xff\xe0")
        path.write_bytes(content[:start] + content[start + 18 :])
    read = photos.read_image(path).astype(int)
    assert read[2, 16, 0] > 200 > 50 > read[2, 16, 2] and read[29, 16, 2] > 200 > 50 > read[29, 16, 0]
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("cut", [1, 4, 5, 12, 17, 20, 26])
def test_exif_cut_short_makes_no_noise(tmp_path, capfd, cut):
    path = with_exif(tmp_path / "a.jpg", (0x010F, 2, 400, b"\xff\0\0\0"), cut=cut)
    assert photos.read_image(path)[16, 2, 0] > 200
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("value", [(0x0112, 2, 2, b"6\0\0\0"), (0x0112, 3, 1, b"\x09")])
def test_an_orientation_that_is_none(tmp_path, value):
    assert photos.read_image(with_exif(tmp_path / "a.jpg", value))[16, 2, 0] > 200


@pytest.mark.parametrize("how", ["exif", "xmp"])
def test_orientation_of_a_png(tmp_path, how):
    pixels = noise(32, 32)
    if how == "exif":
        Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif(6))
    else:
        from PIL.PngImagePlugin import PngInfo

        info = PngInfo()
        info.add_itxt("XML:com.adobe.xmp", '<x tiff:Orientation="6"/>')
        Image.fromarray(pixels).save(tmp_path / "a.png", pnginfo=info)
    np.testing.assert_array_equal(photos.read_image(tmp_path / "a.png"), np.rot90(pixels, -1))


# --- What is refused ---


@pytest.mark.parametrize("name", ["a.eps", "a.jpg", "a.png"])
def test_a_postscript_file_starts_no_program(tmp_path, monkeypatch, name):
    from PIL import EpsImagePlugin

    started = []
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *a, **k: started.append("Ghostscript"))
    for call in ("Popen", "run", "call", "check_call", "check_output"):
        monkeypatch.setattr(f"subprocess.{call}", lambda *a, **k: started.append(a))
    monkeypatch.setattr(os, "system", started.append)
    content = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 32 32\n%%EndComments\nshowpage\n%%EOF\n"
    for start in (b"", b"\xc5\xd0\xd3\xc6" + struct.pack("<7I", 30, len(content), 0, 0, 0, 0, 0)[:26]):
        (tmp_path / name).write_bytes(start + content)
        assert "a PostScript file" in refusal(tmp_path / name)
    assert started == []


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC"),
        (b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic", "HEIC"),
        (b"\0\0\0\x1cftypavif\0\0\0\0avifmif1", "AVIF"),
        (b"\0\0\0\x1cftypmif1\0\0\0\0mif1avif", "AVIF"),
        (b"\0\0\0\x20ftypisom\0\0\2\0isomiso2", "video"),
        (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "SVG"),
        (b'<?xml version="1.0"?>\n<!-- x -->\n<svg/>', "SVG"),
        (b"<!DOCTYPE html><html></html>", "web page"),
        (b"%PDF-1.7\n", "PDF"),
        (b"8BPS\0\1", "Photoshop"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"),
        (b"\0\0\1\0\1\0", "icon"),
        (b"hello\n", "not an image in a known format"),
        (b"", "empty"),
        (b"\0" * 5000, "not an image in a known format"),
    ],
)
def test_other_formats_are_named_with_those_that_are_read(tmp_path, content, what):
    (tmp_path / "a.jpg").write_bytes(content)
    message = refusal(tmp_path / "a.jpg")
    assert (
        what in message
        and all(name in message for name in FORMATS)
        and "convert it to PNG or JPEG" in message
    )


def test_formats_that_pillow_reads_and_we_do_not(tmp_path):
    for name in ("ICO", "ICNS", "PCX", "TGA", "SGI", "DDS", "PDF", "EPS", "JPEG2000", "AVIF", "XBM"):
        image = Image.new("1" if name == "XBM" else "RGB", (32, 32))
        try:
            image.save(tmp_path / "a.jpg", name)
        except (OSError, KeyError, ValueError):
            continue  # this version of Pillow cannot write it
        assert "hw.predict reads PNG, JPEG, WebP, GIF, BMP, TIFF and PPM" in refusal(tmp_path / "a.jpg"), name


@pytest.mark.parametrize("name", FORMATS)
def test_truncated_files(tmp_path, capfd, name):
    path = tmp_path / f"a.{FORMATS[name]}"
    Image.fromarray(noise(64, 64)).save(path)
    whole = path.read_bytes()
    for part in (0.05, 0.5, 0.9):
        path.write_bytes(whole[: int(len(whole) * part)])
        assert "damaged, truncated" in refusal(path)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_deflate", "jpeg", "packbits"])
def test_truncated_and_altered_tiffs_make_no_noise(tmp_path, capfd, compression):
    path = tmp_path / "a.tif"
    Image.fromarray(noise(64, 64)).save(path, compression=compression)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert "damaged, truncated" in refusal(path)
    for place in range(8, len(whole), len(whole) // 9):
        path.write_bytes(whole[:place] + b"\xff\xff\xff" + whole[place + 3 :])
        try:
            photos.read_image(path)
        except UserError:
            continue
    assert capfd.readouterr() == ("", "")


def test_what_is_no_regular_file(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe.png")
    with socket.socket(socket.AF_UNIX) as server:
        monkeypatch.chdir(tmp_path)  # a socket's path must be short
        server.bind("socket.png")
        (tmp_path / "folder.png").mkdir()
        for name in ("pipe.png", "socket.png", "folder.png", "missing.png"):
            refusal(tmp_path / name)
    refusal(Path("/dev/zero"))


# --- Bounds ---


def png(path: Path, width: int, height: int, *, depth: int = 1, color: int = 0) -> Path:
    """Writes a PNG of zeros row by row; even a large image gives a small file."""
    bytes_of_row = 1 + (width * depth * {0: 1, 2: 3, 6: 4}[color] + 7) // 8
    packed = zlib.compressobj(1)
    data = b"".join(packed.compress(bytes(bytes_of_row)) for _ in range(height)) + packed.flush()
    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", data), (b"IEND", b"")]
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + b"".join(
            struct.pack(">I", len(c)) + kind + c + struct.pack(">I", zlib.crc32(kind + c))
            for kind, c in chunks
        )
    )
    return path


def test_400_megapixels_are_too_large(tmp_path):
    message = refusal(png(tmp_path / "a.png", 20_000, 20_000))
    assert "too large" in message and "20,000 x 20,000" in message and "200 million" in message


def test_headers_that_promise_too_much(tmp_path):
    """Checks that a file with a huge size in its header is refused before memory is allocated."""
    Image.fromarray(noise(64, 64)).save(tmp_path / "a.webp", lossless=True)
    content = bytearray((tmp_path / "a.webp").read_bytes())
    content[21:25] = struct.pack("<I", 0x0FFFFFFF)  # VP8L's width and height: 16,384 x 16,384
    (tmp_path / "a.webp").write_bytes(content)
    Image.fromarray(noise(64, 64)).save(tmp_path / "a.jpg")
    content = bytearray((tmp_path / "a.jpg").read_bytes())
    at = content.index(b"\xff\xc0") + 5
    content[at : at + 4] = struct.pack(">HH", 65_000, 65_000)
    (tmp_path / "a.jpg").write_bytes(content)
    (tmp_path / "a.ppm").write_bytes(b"P6 99999 99999 255\n")
    (tmp_path / "a.bmp").write_bytes(
        b"BM" + bytes(8) + struct.pack("<IIiiHHIIiiII", 54, 40, 60_000, 60_000, 1, 24, 0, 0, 0, 0, 0, 0)
    )
    (tmp_path / "a.gif").write_bytes(
        b"GIF89a\xff\xff\xff\xff\0\0\0" + b",\0\0\0\0\xff\xff\xff\xff\x80\0\0\0\xff\xff\xff\x02\x00;"
    )
    values = np.zeros((1, 1), np.uint8)
    path = tiff(tmp_path / "a.tif", values, bits=8, sample_format=1)
    content = path.read_bytes()
    size = struct.pack("<HHII", 256, 4, 1, 1), struct.pack("<HHII", 257, 4, 1, 1)
    for entry in size:
        content = content.replace(entry, entry[:8] + struct.pack("<I", 60_000))
    path.write_bytes(content)
    for name in ("a.webp", "a.jpg", "a.ppm", "a.bmp", "a.gif", "a.tif"):
        assert "too large" in refusal(tmp_path / name), name


def test_what_pillow_decodes_in_python_has_a_lower_bound(tmp_path):
    (tmp_path / "a.ppm").write_bytes(b"P6 3000 1000 100\n" + bytes(9_000_000))
    assert "2 million pixels of a file of this kind" in refusal(tmp_path / "a.ppm")


@pytest.mark.parametrize("kind", ["PNG", "PPM"])
def test_a_file_of_very_many_parts(tmp_path, monkeypatch, kind):
    # Pillow would need minutes for 300 MB of them.
    monkeypatch.setattr(photos, "MAX_READINGS", 1000)
    path = tmp_path / "image"
    Image.fromarray(noise(8, 8)).save(path, kind)
    photos.read_image(path)
    content = path.read_bytes()
    if kind == "PNG":
        comment = b"\0\0\0\3tEXta\0b" + zlib.crc32(b"tEXta\0b").to_bytes(4, "big")
        path.write_bytes(content[:33] + 1000 * comment + content[33:])
    else:
        path.write_bytes(b"P6\n#" + b"x" * 1000 + content[2:])
    with pytest.raises(UserError, match="too many parts"):
        photos.read_image(path)


def test_a_large_jpeg_is_decoded_at_a_lower_size(tmp_path, monkeypatch):
    pixels = np.kron(noise(40, 40), np.ones((16, 16, 1), np.uint8))
    path = tmp_path / "a.jpg"
    Image.fromarray(pixels).save(path, quality=95)
    whole = photos.read_image(path).astype(int)
    monkeypatch.setattr(photos, "MAX_MEMORY", 500_000)  # less than 640 x 640 x 4 bytes
    assert np.abs(photos.read_image(path) - whole).mean() < 3
    # libjpeg keeps the coefficients of the whole image if later scans refine earlier ones.
    Image.fromarray(pixels).save(path, quality=95, progressive=True)
    assert "too large" in refusal(path)


@pytest.mark.parametrize("size", [(1, 40_000), (40_000, 1), (1, 300_000)])
def test_thin_images(tmp_path, size):
    assert photos.read_image(png(tmp_path / "a.png", *size)).shape == (32, 32, 3)


MEASURE = """
import resource, sys, time
from pathlib import Path
from hw.data import photos
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for name in sys.argv[1:]:
    photos.read_image(Path(name))
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


def test_memory_of_the_largest_that_are_read(tmp_path):
    """Checks the limit of 650 MiB for decoding plus 50 MiB: with JAX loaded, about a gigabyte in all."""
    one_bit = png(tmp_path / "a.png", 13_000, 13_000)
    color = png(tmp_path / "b.png", 12_000, 9_000, depth=8, color=2)
    done = processes.run(processes.python("-c", MEASURE, one_bit, color))
    assert done.returncode == 0 and done.stderr == "" and int(done.stdout) < 700


# --- Anything at all ---


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_altered_files_end_in_an_image_or_in_one_line(tmp_path, data):
    name = data.draw(st.sampled_from(sorted(FORMATS)))
    path = tmp_path / f"a.{FORMATS[name]}"
    Image.fromarray(noise(40, 30)).save(
        path, **({"exif": exif(6)} if name in ("JPEG", "PNG", "TIFF") else {})
    )
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        # Most changes hit the header.
        last = data.draw(st.sampled_from([40, 200, len(content) - 1]))
        content[data.draw(st.integers(0, min(last, len(content) - 1)))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.sampled_from([len(content), len(content) - 9, 60]))])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            assert photos.read_image(path).shape == (32, 32, 3)
        except UserError as error:
            assert "\n" not in str(error)
