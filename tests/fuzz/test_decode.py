"""Claims of stages/decode.py: whatever bytes call themselves a photo, they are pixels or a reason, at little memory."""

from __future__ import annotations

import io
import json
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image, TiffImagePlugin

from facecrowd.stages.decode import FORMATS, ReadPhotos, Undecodable, decode

FUZZ = settings.get_profile("fuzz")
Mutated = Callable[[bytes], st.SearchStrategy[bytes]]

MAX_PIXELS = 1_000_000


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)  # type: ignore[arg-type]
    return out.getvalue()


def seeds() -> dict[str, bytes]:
    """Small sound photos of every kind, mode and trick that is read."""
    rng = np.random.default_rng(0)
    rgb = Image.fromarray(cv2.resize(rng.integers(0, 256, (4, 5, 3), np.uint8), (20, 16)))
    grey = rgb.convert("L")
    deep = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    alpha = rgb.copy()
    alpha.putalpha(grey)
    frames = [rgb.rotate(90 * i).resize((20, 16)) for i in range(3)]
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010E] = "a description " * 5
    found = {
        "jpeg": saved(rgb, "JPEG"),
        "jpeg grey": saved(grey, "JPEG"),
        "jpeg progressive": saved(rgb, "JPEG", progressive=True),
        "jpeg cmyk": saved(rgb.convert("CMYK"), "JPEG"),
        "jpeg exif": saved(rgb, "JPEG", exif=exif),
        "png": saved(rgb, "PNG"),
        "png palette": saved(rgb.quantize(16), "PNG", transparency=3),
        "png alpha": saved(alpha, "PNG", exif=exif),
        "png grey alpha": saved(alpha.convert("LA"), "PNG"),
        "png deep": saved(deep, "PNG"),
        "png bits": saved(grey.convert("1"), "PNG"),
        "png animated": saved(frames[0], "PNG", save_all=True, append_images=frames[1:]),
        "gif": saved(frames[0], "GIF", save_all=True, append_images=frames[1:]),
        "bmp": saved(rgb, "BMP"),
        "bmp palette": saved(rgb.quantize(16), "BMP"),
        "tiff": saved(rgb, "TIFF"),
        "tiff lzw": saved(rgb, "TIFF", compression="tiff_lzw"),
        "tiff deflate": saved(deep, "TIFF", compression="tiff_adobe_deflate"),
        "tiff jpeg": saved(rgb, "TIFF", compression="jpeg"),
        "tiff cmyk": saved(rgb.convert("CMYK"), "TIFF", exif=exif),
        "tiff float": saved(grey.convert("F"), "TIFF"),
        "tiff integers": saved(grey.convert("I"), "TIFF"),
        "tiff pages": saved(frames[0], "TIFF", save_all=True, append_images=frames[1:]),
        "ppm": saved(rgb, "PPM"),
        "pgm": saved(grey, "PPM"),
        "pgm plain": b"P2\n4 2\n255\n" + b"0 255 128 3 4 5 6 7\n",
        "pfm": b"Pf\n2 2\n-1.0\n" + np.array([0.1, np.nan, np.inf, -np.inf], "<f4").tobytes(),
        "webp": saved(rgb, "WEBP", exif=exif),
        "webp lossless": saved(alpha, "WEBP", lossless=True),
        "webp animated": saved(frames[0], "WEBP", save_all=True, append_images=frames[1:]),
        "jpeg2000": saved(rgb, "JPEG2000"),
        "jpeg2000 stream": saved(grey, "JPEG2000", no_jp2=True),
    }
    if "AVIF" in FORMATS:
        found["avif"] = saved(rgb, "AVIF")
    return found


SEEDS = seeds()


def pixels_or_reason(data: bytes, max_pixels: int = MAX_PIXELS) -> None:
    reason = None
    try:
        photo = decode(data, max_pixels)
    except Undecodable as error:
        reason = error.reason
    if reason is not None:
        assert 0 < len(reason) < 300
        assert reason.isprintable()
        return
    assert photo.dtype == np.uint8
    assert photo.ndim == 3
    assert photo.shape[2] == 3
    assert 0 < photo.shape[0] * photo.shape[1] <= max_pixels


@pytest.mark.parametrize("kind", SEEDS)
def test_every_seed_is_a_photo(kind: str) -> None:
    assert decode(SEEDS[kind]).size


@pytest.mark.parametrize("kind", SEEDS)
@FUZZ
@given(data=st.data())
def test_a_damaged_photo_is_pixels_or_a_reason(kind: str, data: st.DataObject, mutated: Mutated) -> None:
    pixels_or_reason(data.draw(mutated(SEEDS[kind])))


@FUZZ
@given(data=st.binary(max_size=200), head=st.sampled_from([b"", *(seed[:24] for seed in SEEDS.values())]))
def test_any_bytes_behind_any_head_are_pixels_or_a_reason(data: bytes, head: bytes) -> None:
    pixels_or_reason(head + data)


@FUZZ
@given(orientation=st.integers(0, 65535), kind=st.sampled_from(["JPEG", "PNG", "WEBP", "TIFF"]))
@example(orientation=0, kind="JPEG")
def test_an_orientation_of_no_sense_costs_no_photo(orientation: int, kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    photo = decode(saved(Image.new("RGB", (6, 4)), kind, exif=exif))
    assert photo.shape == ((6, 4, 3) if orientation in (5, 6, 7, 8) else (4, 6, 3))


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("value", [b"6\0", "six", 2**31, (6, 6), 1.5])
def test_an_orientation_of_a_wrong_type_costs_no_photo(value: object) -> None:
    exif = Image.Exif()
    exif[0x0112] = value
    out = io.BytesIO()
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    kinds = {bytes: 7, str: 2, int: 4, tuple: 3, float: 12}
    tags.tagtype[0x0112] = kinds[type(value)]
    tags[0x0112] = value
    tags.save(out)
    image = Image.new("RGB", (6, 4))
    for kind in ("JPEG", "PNG", "WEBP"):
        photo = decode(saved(image, kind, exif=b"Exif\0\0" + out.getvalue()))
        assert sorted(photo.shape) == [3, 4, 6]


@FUZZ
@given(
    kind=st.sampled_from(sorted(SEEDS)), suffix=st.sampled_from([".jpg", ".png", ".gif", ".webp", ".tif", ".txt", ""])
)
def test_a_wrong_extension_costs_no_photo(tmp_path: Path, kind: str, suffix: str) -> None:
    file = tmp_path / f"photo{suffix}"
    file.write_bytes(SEEDS[kind])
    out = ReadPhotos()({"path": np.array([str(file)], dtype=object)})
    assert list(out["status"]) == ["ok"]


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, depth: int, colour: int, data: bytes, more: bytes = b"") -> bytes:
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + more + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def tiff(**tags: int) -> bytes:
    """A deflated grey TIFF with these numbers in its header; its data is zeros of that many bytes (``zeros``)."""
    data = zlib.compress(bytes(tags.pop("zeros")), 9)
    codes = {"width": 256, "height": 257, "tile_width": 322, "tile_height": 323, "rows": 278, "bits": 258}
    fields = {258: 8, 259: 8, 262: 1, 277: 1} | {codes[name]: value for name, value in tags.items()}
    tiled = 322 in fields
    fields |= {324 if tiled else 273: 8, 325 if tiled else 279: len(data)}
    entries = b"".join(struct.pack("<HHII", code, 4, 1, fields[code]) for code in sorted(fields))
    end = 8 + len(data)
    return b"II*\0" + struct.pack("<I", end) + data + struct.pack("<H", len(fields)) + entries + bytes(4)


def huge_frame(kind: str, at: bytes, offset: int, size: bytes) -> bytes:
    data = bytearray(SEEDS[kind])
    place = data.index(at) + offset if at else offset
    data[place : place + len(size)] = size
    return bytes(data)


def zeros(count: int) -> bytes:
    return zlib.compress(bytes(count), 9)


WIDE = struct.pack("<HH", 65535, 65535)
ONE = zlib.compress(bytes(6))
BOMBS: dict[str, Callable[[], bytes]] = {
    "png of a huge size": lambda: png(2**31 - 1, 2**31 - 1, 8, 2, zeros(50_000_000)),
    "png of a size at the limit, 16 bits": lambda: png(10_000, 10_000, 16, 0, zeros(10_000 * 20_001)),
    "png of a size at the limit, with alpha": lambda: png(10_000, 10_000, 8, 6, zeros(10_000 * 40_001)),
    "png with a deflated text": lambda: png(2, 2, 8, 0, ONE, chunk(b"zTXt", b"a\0\0" + zeros(200_000_000))),
    "png with a deflated profile": lambda: png(2, 2, 8, 0, ONE, chunk(b"iCCP", b"a\0\0" + zeros(200_000_000))),
    "png with more data than pixels": lambda: png(2, 2, 8, 0, zeros(50_000_000)),
    "jpeg of a huge size": lambda: huge_frame("jpeg", b"\xff\xc0", 5, struct.pack(">HH", 65500, 65500)),
    "gif of a huge screen": lambda: huge_frame("gif", b"", 6, WIDE),
    "gif of a huge frame": lambda: huge_frame("gif", b"\x2c\0\0\0\0", 5, WIDE),
    "webp of a huge size": lambda: huge_frame("webp lossless", b"", 21, b"\xff\xff\xff\x0f"),
    "tiff of a huge size": lambda: tiff(width=2**20, height=2**20, rows=2**20, zeros=1000),
    "tiff of one pixel in a huge tile": lambda: tiff(
        width=1, height=1, tile_width=15_008, tile_height=15_008, zeros=15_008**2
    ),
    "tiff of one row in a huge strip": lambda: tiff(width=9, height=1, rows=2**31, zeros=50_000_000),
    "bmp of a huge size": lambda: huge_frame("bmp", b"", 18, struct.pack("<ii", 2**30, 2**30)),
    "ppm of a huge size": lambda: b"P6\n99999999 99999999\n255\n" + bytes(100),
}
"""Small files that say, or unpack to, a lot."""


MEASURE = """
import json, sys, time
from pathlib import Path
from facecrowd.stages.decode import Undecodable, decode

def high():
    line = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024

decode(Path(sys.argv[1]).read_bytes())
data = Path(sys.argv[2]).read_bytes()
before, started, reason = high(), time.process_time(), ""
try:
    decode(data, 100_000_000)
except Undecodable as error:
    reason = error.reason
print(json.dumps([high() - before, time.process_time() - started, reason]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_takes_no_more_memory_than_a_photo_of_the_largest_size(
    name: str, tmp_path: Path, off_guard: None
) -> None:
    """100 megapixels of RGB are 300 MB; what is decoded may be there four times, what is refused hardly at all."""
    (tmp_path / "sound").write_bytes(SEEDS["png"])
    (tmp_path / "bomb").write_bytes(BOMBS[name]())
    files = [str(tmp_path / "sound"), str(tmp_path / "bomb")]
    done = subprocess.run([sys.executable, "-c", MEASURE, *files], capture_output=True, check=True, timeout=120)
    memory, seconds, reason = json.loads(done.stdout)
    assert memory < (1.2e9 if "limit" in name else 1.5e8), reason
    assert seconds < 15
    assert reason or "size at the limit" in name or "more data" in name
