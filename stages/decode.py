"""Photos: from a path to upright RGB pixels, or to the reason why not.

Every kind of file a folder of photos holds becomes one (H, W, 3) uint8 array: EXIF orientation applied, the first frame
of an animation, transparency over white, grey repeated, CMYK and palettes converted, 16 bits scaled to 8. Colour
profiles are ignored: the numbers are taken as sRGB.
"""

from __future__ import annotations

import io
import time
import warnings
from collections.abc import Mapping
from typing import Any

import cv2
import fsspec
import numpy as np
import simplejpeg
from PIL import Image, ImageOps, TiffImagePlugin, UnidentifiedImageError

from facecrowd.stages.batch import outcomes
from facecrowd.stages.stage import Batch, Resources, Stage, live

MAX_PIXELS = 80_000_000
"""Larger photos are refused before they are decoded: 80 megapixels are 240 MB, more than any phone takes."""

BAND = 1 << 22
"""Pixels that are converted at a time."""

RETRY_AFTER_S = (0.5, 2.0, 8.0)
"""Waits before an object store that did not answer is asked again."""

Image.init()
FORMATS = tuple({"JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF"} & set(Image.OPEN))
"""What Pillow may open, where it was built with it. Not every plug-in of it: some start other programs."""

ORIENTATION = 0x0112
TILE_SIDES = (322, 323)
_EXIF = b"Exif\x00\x00"


class Undecodable(ValueError):
    """Bytes that are no photo. ``reason`` says why, in a few words."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def decode(data: bytes, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """The upright pixels of an image file.

    data : the file
    max_pixels : the largest width × height; read from the header, before anything is decoded

    Returns (H, W, 3) uint8 RGB. Raises ``Undecodable`` for an empty, truncated, unknown or oversized file.
    """
    if not data:
        raise Undecodable("empty file")
    if data[:3] == b"\xff\xd8\xff":
        pixels = _decode_jpeg(data, max_pixels)
        if pixels is not None:
            return pixels
    return _decode_other(data, max_pixels)


def upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Apply an EXIF orientation (1 to 8; others count as 1) to (H, W, …) pixels."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


def _decode_jpeg(data: bytes, max_pixels: int) -> np.ndarray | None:
    """The fast way for a sound JPEG in grey or colour; None hands the file to Pillow."""
    try:
        height, width, colorspace, _ = simplejpeg.decode_jpeg_header(data)
        _refuse_bomb(width, height, max_pixels)
        if colorspace not in ("YCbCr", "RGB", "Gray"):
            return None
        pixels = simplejpeg.decode_jpeg(data, "RGB")
    except Undecodable:
        raise
    except ValueError as error:
        # libjpeg would fill the rest with grey: half a face must not pass for a face.
        if "Premature end" in str(error):
            raise Undecodable("truncated JPEG") from None
        return None
    return upright(pixels, _exif_orientation(data)) if _EXIF in data else pixels


def _exif_orientation(data: bytes) -> int:
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
            return int(image.getexif().get(ORIENTATION, 1))
    # A broken EXIF block is no reason to lose the photo.
    except Exception:
        return 1


def _decode_other(data: bytes, max_pixels: int) -> np.ndarray:
    try:
        # Pillow warns of sizes that are within the caller's limit, and of damage that is reported here by name.
        with warnings.catch_warnings(action="ignore"), Image.open(io.BytesIO(data), formats=FORMATS) as image:
            _refuse_bomb(*image.size, max_pixels)
            if isinstance(image, TiffImagePlugin.TiffImageFile):
                # A tile is decoded whole, however little of it the image needs.
                width, height = (int(image.tag_v2.get(tag, 0)) for tag in TILE_SIDES)
                _refuse_bomb(width, height, max_pixels)
            image.load()
            ImageOps.exif_transpose(image, in_place=True)
            return _rgb(image)
    except Undecodable:
        raise
    except Image.DecompressionBombError:
        raise Undecodable(f"too large: more than {max_pixels} pixels") from None
    except UnidentifiedImageError:
        raise Undecodable("not an image of a known kind") from None
    # Pillow's plug-ins raise whatever they like on a damaged file.
    except Exception as error:
        text = " ".join(str(error).split())[:120]
        raise Undecodable(f"truncated file: {text}" if "truncated" in text else f"damaged: {text}") from None


def _refuse_bomb(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise Undecodable(f"too large: {width} × {height} is more than {max_pixels} pixels")


def _rgb(image: Image.Image) -> np.ndarray:
    """Any mode of Pillow's as (H, W, 3) uint8; a band at a time, since converting takes several times its memory."""
    (width, height), rows = image.size, max(1, BAND // image.width)
    bands = [(0, top, width, min(top + rows, height)) for top in range(0, height, rows)]
    white = _white(image, bands) if _deep(image.mode) else 255.0
    out = np.empty((height, width, 3), np.uint8)
    for band in bands:
        out[band[1] : band[3]] = _rgb_band(image.crop(band) if len(bands) > 1 else image, white)
    return out


def _rgb_band(image: Image.Image, white: float) -> np.ndarray:
    """(H, W, 3) uint8, or (H, W, 1) where it is grey."""
    if _deep(image.mode):
        levels = np.nan_to_num(np.asarray(image).astype(np.float64), posinf=white, neginf=0.0)
        return np.clip(levels * (255.0 / white) + 0.5, 0, 255).astype(np.uint8)[..., None]
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        # What a page shows: the transparent part of a portrait is its background.
        rgba = image.convert("RGBA")
        page = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return np.asarray(Image.alpha_composite(page, rgba).convert("RGB"))
    return np.asarray(image.convert("RGB"))


def _deep(mode: str) -> bool:
    """Grey of 16 or 32 bits or float."""
    return mode in ("I", "F") or mode.startswith("I;")


def _white(image: Image.Image, bands: list[tuple[int, int, int, int]]) -> float:
    """The level of a deep image that is white.

    Of ``I;16`` it is 65535. 32-bit and float files do not say theirs: the least of 1 (float only), 255, 65535 and the
    brightest pixel that holds them all.
    """
    if image.mode.startswith("I;16"):
        return 65535.0
    brightest = 0.0
    for band in bands:
        levels = np.asarray(image.crop(band))
        brightest = max(brightest, float(np.max(levels, where=np.isfinite(levels), initial=0)))
    tops = [1.0, 255.0, 65535.0] if image.mode == "F" else [255.0, 65535.0]
    return next((top for top in tops if brightest <= top), brightest)


class StoreUnavailable(OSError):
    """An object store did not give a photo that it may well hold, however often it was asked."""


class ReadPhotos(Stage):
    """Reads and decodes the photos of a batch.

    A row keeps its place: one that cannot be read gets the status ``unreadable`` and the reason.

    path : a local path or any URL that fsspec opens
    photo : (H, W, 3) uint8 RGB, upright; None where unreadable
    """

    name = "read"
    inputs = ("path",)
    outputs = ("photo", "status", "reason")
    transient = ("photo",)

    def __init__(
        self,
        storage_options: Mapping[str, Any] | None = None,
        max_pixels: int = MAX_PIXELS,
        resources: Resources | None = None,
    ) -> None:
        """``storage_options`` go to fsspec with every URL (keys, endpoint, …), ``max_pixels`` to ``decode``."""
        self.storage_options = dict(storage_options or {})
        self.max_pixels = max_pixels
        self.resources = resources or Resources()

    def setup(self) -> None:
        cv2.setNumThreads(1)

    def read(self, path: str) -> bytes:
        """The bytes of one file. Raises what the file system raises; ``StoreUnavailable`` when a store does not answer.

        A store that fails for a while says nothing about the photo, so it is asked again and then stops the batch: a
        row that said ``unreadable`` would stay so when the job is resumed.
        """
        if "://" not in path:
            with open(path, "rb") as stream:
                return stream.read()
        for wait in (*RETRY_AFTER_S, None):
            try:
                system, inner = fsspec.core.url_to_fs(path, **self.storage_options)
                return bytes(system.cat_file(inner))
            except (FileNotFoundError, PermissionError, IsADirectoryError):
                raise
            except Exception as error:
                if wait is None:
                    raise StoreUnavailable(f"{path}: {type(error).__name__}: {error}"[:300]) from error
                time.sleep(wait)
        raise AssertionError

    def __call__(self, batch: Batch) -> Batch:
        status, reason = outcomes(batch)
        photos: list[np.ndarray | None] = [None] * len(status)
        for i in live({"status": status}):
            path = str(batch["path"][i])
            if i and path == batch["path"][i - 1] and photos[i - 1] is not None:
                photos[i] = photos[i - 1]  # several faces of one photo
                continue
            try:
                photos[i] = decode(self.read(path), self.max_pixels)
            except Undecodable as error:
                status[i], reason[i] = "unreadable", error.reason
            except FileNotFoundError:
                status[i], reason[i] = "unreadable", "no such file"
            except StoreUnavailable:
                raise
            # One photo, whatever is wrong with it, never costs the batch.
            except Exception as error:
                status[i], reason[i] = "unreadable", f"{type(error).__name__}: {error}"[:300]
        return {**batch, "photo": photos, "status": status, "reason": reason}


class DecodeImages(Stage):
    """Decodes images that this project encoded before (crops, released faces or photos).

    image : bytes, or None
    <into> : (H, W, 3) uint8 RGB; None where the row is not ``ok`` or holds no image
    """

    name = "decode"

    def __init__(self, column: str = "image", into: str = "crop") -> None:
        self.column, self.into = column, into
        self.inputs, self.outputs, self.transient = (column,), (into,), (into,)  # type: ignore[misc]

    def setup(self) -> None:
        cv2.setNumThreads(1)

    def __call__(self, batch: Batch) -> Batch:
        pixels: list[np.ndarray | None] = [None] * len(batch[self.column])
        for i in live({"status": outcomes(batch)[0]}):
            if batch[self.column][i] is not None:
                pixels[i] = decode(batch[self.column][i])
        return {**batch, self.into: pixels}
