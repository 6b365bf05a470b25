"""Released pictures: JPEG files that hold pixels and nothing else, and the check that they do."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import simplejpeg

from facecrowd.stages.batch import explain, outcomes
from facecrowd.stages.stage import Batch, Resources, Stage, live

Subsampling = Literal["444", "422", "420"]


def encode(image: np.ndarray, quality: int = 92, subsampling: Subsampling = "420") -> bytes:
    """A baseline JPEG file of (H, W, 3) uint8 RGB pixels, with no metadata of any kind.

    quality : 1 to 100
    subsampling : of the colour channels; 444 keeps them whole, 420 halves both directions
    """
    return bytes(
        simplejpeg.encode_jpeg(
            np.ascontiguousarray(image), quality=quality, colorspace="RGB", colorsubsampling=subsampling
        )
    )


@dataclass(frozen=True)
class Metadata:
    """Something in an image file beside its pixels: ``kind`` (EXIF, ICC, XMP, …) and its ``size`` in bytes."""

    kind: str
    size: int

    def __str__(self) -> str:
        return f"{self.kind} ({self.size} bytes)"


def metadata(data: bytes) -> list[Metadata]:
    """What an image file holds beside its pixels, in the order of the file; empty for a clean one.

    JPEG, PNG and WebP are read marker by marker, so that what no decoder shows (thumbnails, comments, unknown segments,
    bytes after the end of the picture) is found too. For other kinds: what Pillow reports. A file that cannot be read
    is itself reported, as ``unreadable``.
    """
    try:
        if data[:2] == b"\xff\xd8":
            return list(_jpeg(data))
        if data[:8] == b"\x89PNG\r\n\x1a\n":
            return list(_png(data))
        if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
            return list(_webp(data))
        return list(_other(data))
    except (struct.error, IndexError, ValueError, OSError):
        return [Metadata("unreadable", len(data))]


_JPEG_PICTURE = (*range(0xC0, 0xC8), *range(0xC9, 0xD0), *range(0xDA, 0xE0))
"""Markers of what a picture is decoded from: frames, tables, scans."""

_PLAIN = b"\x00\x00\x01\x00\x01"
"""Unit and densities of a JFIF header that states no resolution."""

_JPEG_SEGMENTS = (
    (0xE1, b"Exif\x00", "EXIF"),
    (0xE1, b"http://ns.adobe.com/xap/", "XMP"),
    (0xE1, b"http://ns.adobe.com/xmp/", "XMP"),
    (0xE2, b"ICC_PROFILE\x00", "ICC"),
    (0xE2, b"MPF\x00", "MPF"),
    (0xED, b"Photoshop", "Photoshop/IPTC"),
    (0xEE, b"Adobe", "Adobe"),
    (0xE0, b"JFXX\x00", "thumbnail"),
)


def _jpeg(data: bytes) -> Iterator[Metadata]:
    at, scanned = 2, False
    while True:
        if at >= len(data):
            # No end marker: truncated, and whatever was there is part of no picture.
            yield Metadata("unreadable", len(data))
            return
        if data[at] != 0xFF:
            skipped = data.find(b"\xff", at)
            end = len(data) if skipped < 0 else skipped
            yield Metadata("stray bytes", end - at)
            at = end
            continue
        marker = data[at + 1]
        if marker == 0xFF:
            at += 1
        elif marker == 0xD9:
            if not scanned:
                yield Metadata("unreadable", len(data))
            if len(data) > at + 2:
                yield Metadata("trailing data", len(data) - at - 2)
            return
        elif marker == 0x01 or 0xD0 <= marker <= 0xD8:
            at += 2
        else:
            (length,) = struct.unpack_from(">H", data, at + 2)
            body = data[at + 4 : at + 2 + length]
            if 0xE0 <= marker <= 0xEF or marker == 0xFE:
                yield from _segment(marker, body)
            elif marker not in _JPEG_PICTURE:
                # Decoders skip what no standard uses, so anything may lie there.
                yield Metadata(f"reserved segment {marker:02X}", len(body))
            at += 2 + length
            if marker == 0xDA:
                scanned = True
                at = _after_scan(data, at)


def _segment(marker: int, body: bytes) -> Iterator[Metadata]:
    if marker == 0xFE:
        yield Metadata("comment", len(body))
        return
    if marker == 0xE0 and body.startswith(b"JFIF\x00") and len(body) >= 14:
        # The header every JPEG has; a thumbnail may follow it.
        if len(body) > 14:
            yield Metadata("thumbnail", len(body) - 14)
        if body[7:12] != _PLAIN:
            yield Metadata("resolution", len(_PLAIN))
        return
    for known, prefix, kind in _JPEG_SEGMENTS:
        if marker == known and body.startswith(prefix):
            yield Metadata(kind, len(body))
            return
    yield Metadata(f"APP{marker - 0xE0}", len(body))


def _after_scan(data: bytes, at: int) -> int:
    """The position of the first marker after entropy-coded data (stuffed zeros and restarts belong to it)."""
    while True:
        at = data.find(b"\xff", at)
        if at < 0 or at + 1 >= len(data):
            return len(data)
        if data[at + 1] == 0 or 0xD0 <= data[at + 1] <= 0xD7:
            at += 2
        else:
            return at


_PNG_PICTURE = (b"IHDR", b"PLTE", b"IDAT", b"IEND", b"tRNS", b"gAMA", b"sRGB", b"cHRM", b"sBIT", b"bKGD")
_PNG_KINDS = {b"eXIf": "EXIF", b"iCCP": "ICC", b"tEXt": "text", b"zTXt": "text", b"iTXt": "text", b"tIME": "time"}


def _png(data: bytes) -> Iterator[Metadata]:
    at = 8
    while at < len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        if kind not in _PNG_PICTURE:
            label = _PNG_KINDS.get(kind, kind.decode("latin-1"))
            yield Metadata("XMP" if b"XML:com.adobe.xmp" in data[at + 8 : at + 30] else label, length)
        at += 12 + length
        if kind == b"IEND":
            if len(data) > at:
                yield Metadata("trailing data", len(data) - at)
            return
    yield Metadata("unreadable", len(data))


def _webp(data: bytes) -> Iterator[Metadata]:
    (size,) = struct.unpack_from("<I", data, 4)
    at, end = 12, 8 + size
    while at + 8 <= end:
        kind, length = struct.unpack_from("<4sI", data, at)
        if kind not in (b"VP8 ", b"VP8L", b"VP8X", b"ALPH", b"ANIM", b"ANMF"):
            yield Metadata({b"EXIF": "EXIF", b"XMP ": "XMP", b"ICCP": "ICC"}.get(kind, kind.decode("latin-1")), length)
        at += 8 + length + length % 2
    if len(data) > end:
        yield Metadata("trailing data", len(data) - end)


def _other(data: bytes) -> Iterator[Metadata]:
    from PIL import Image

    from facecrowd.stages.decode import FORMATS

    known = {"exif": "EXIF", "icc_profile": "ICC", "xmp": "XMP", "comment": "comment", "photoshop": "Photoshop/IPTC"}
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        for key, kind in known.items():
            if image.info.get(key):
                yield Metadata(kind, len(image.info[key]))
        # Beside the picture's own layout (tags 254 to 284 and the like), TIFF tags are text, dates and places.
        texts = [value for value in dict(image.getexif()).values() if isinstance(value, str | bytes)]
        if texts and "exif" not in image.info:
            yield Metadata("EXIF", sum(len(value) for value in texts))


class Encode(Stage):
    """Pixels to JPEG files.

    image : bytes, a JPEG without metadata; None in rows that are not ``ok``
    """

    name = "encode"
    outputs = ("image", "status", "reason")

    def __init__(
        self,
        column: str = "rendered",
        quality: int = 92,
        subsampling: Subsampling = "420",
        resources: Resources | None = None,
    ) -> None:
        """``column`` holds the (H, W, 3) uint8 RGB pixels; ``quality`` and ``subsampling`` as in ``encode``."""
        if not 1 <= quality <= 100:
            raise ValueError(f"JPEG quality is {quality}, but lies between 1 and 100")
        self.column, self.quality, self.subsampling = column, quality, subsampling
        self.resources = resources or Resources()

    def __call__(self, batch: Batch) -> Batch:
        status, reason = outcomes(batch)
        images: list[bytes | None] = [None] * len(status)
        for i in live({"status": status}):
            try:
                images[i] = encode(batch[self.column][i], self.quality, self.subsampling)
            except Exception as error:
                status[i], reason[i] = "failed", explain(self.name, error)
        return {**batch, "image": images, "status": status, "reason": reason}
