"""Claims of stages/decode.py: every kind of photo becomes upright RGB, or a named reason; nothing kills a batch."""

from __future__ import annotations

import io
import struct
import time
import zlib

import cv2
import fsspec
import numpy as np
import pytest
from PIL import Image, ImageOps

from facecrowd.stages import decode as decode_module
from facecrowd.stages.decode import ORIENTATION, ReadPhotos, Undecodable, decode, upright


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def close(a: np.ndarray, b: np.ndarray, tolerance: float) -> bool:
    return a.shape == b.shape and float(np.abs(a.astype(float) - b.astype(float)).mean()) <= tolerance


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM"])
def test_lossless_kinds_come_back_exactly(texture, kind):
    assert np.array_equal(decode(saved(Image.fromarray(texture), kind)), texture)


@pytest.mark.parametrize("kind,options", [("JPEG", {"quality": 95}), ("WEBP", {"quality": 95}), ("JPEG2000", {})])
def test_lossy_kinds_come_back_closely(texture, kind, options):
    assert close(decode(saved(Image.fromarray(texture), kind, **options)), texture, 3)


def test_progressive_and_restart_jpegs_decode(texture):
    assert close(decode(saved(Image.fromarray(texture), "JPEG", quality=95, progressive=True)), texture, 3)
    assert close(decode(saved(Image.fromarray(texture), "JPEG", quality=95, restart_marker_rows=1)), texture, 3)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_every_exif_orientation_is_applied_as_pillow_does(texture, kind, orientation):
    image = Image.fromarray(texture)
    exif = image.getexif()
    exif[ORIENTATION] = orientation
    options = {"lossless": True} if kind == "WEBP" else {}
    data = saved(image, kind, exif=exif, **options)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))
    found = decode(data)
    assert close(found, expected, 1.0)
    assert (found.shape[0] == texture.shape[1]) == (orientation >= 5)
    assert found.flags.c_contiguous


def test_upright_takes_unknown_orientations_for_none(texture):
    assert upright(texture, 0) is not None
    assert np.array_equal(upright(texture, 9), texture)


def test_grey_is_repeated_in_the_three_channels(texture):
    grey = Image.fromarray(texture).convert("L")
    for data in (saved(grey, "PNG"), saved(grey, "JPEG", quality=100)):
        found = decode(data)
        assert (found[..., 0] == found[..., 1]).all()
        assert (found[..., 1] == found[..., 2]).all()
        assert close(found[..., 0], np.asarray(grey), 1)


def test_transparency_lies_over_white(texture):
    alpha = np.zeros(texture.shape[:2], np.uint8)
    alpha[:, 100:] = 255
    rgba = decode(saved(Image.fromarray(np.dstack([texture, alpha])), "PNG"))
    assert (rgba[:, :100] == 255).all()
    assert np.array_equal(rgba[:, 100:], texture[:, 100:])
    grey = Image.merge("LA", (Image.fromarray(texture[..., 0]), Image.fromarray(alpha)))
    assert (decode(saved(grey, "PNG"))[:, :100] == 255).all()


def test_palettes_decode_with_their_transparent_colour(texture):
    palette = Image.fromarray(texture).quantize(16)
    assert np.array_equal(decode(saved(palette, "PNG")), np.asarray(palette.convert("RGB")))
    clear = decode(saved(palette, "PNG", transparency=0))
    assert (clear[np.asarray(palette) == 0] == 255).all()
    one_bit = Image.fromarray(texture).convert("1")
    assert set(np.unique(decode(saved(one_bit, "PNG")))) == {0, 255}


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_cmyk_becomes_rgb(texture, kind):
    cmyk = Image.fromarray(texture).convert("CMYK")
    options = {"quality": 95} if kind == "JPEG" else {}
    assert close(decode(saved(cmyk, kind, **options)), texture, 5)


@pytest.mark.parametrize("extension", [".png", ".tiff"])
def test_sixteen_bits_are_scaled_to_eight(texture, extension):
    deep = texture.astype(np.uint16) * 257
    for source in (cv2.cvtColor(deep, cv2.COLOR_RGB2BGR), deep[..., 0]):
        encoded = cv2.imencode(extension, source)[1].tobytes()
        expected = texture if source.ndim == 3 else np.repeat(texture[..., :1], 3, 2)
        assert close(decode(encoded), expected, 0.5)


def test_floats_and_32_bits_are_scaled(texture):
    level = texture[..., 0].astype(np.float32)
    level[0, 0] = 255
    for image in (Image.fromarray(level / 255), Image.fromarray(level), Image.fromarray(level.astype(np.int32))):
        assert close(decode(saved(image, "TIFF"))[..., 0], level, 0.5)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_an_animation_gives_its_first_frame(texture, kind):
    frames = [Image.fromarray(texture), Image.fromarray(255 - texture)]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = saved(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert close(decode(data), texture, 12)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF"])
def test_one_pixel_is_a_photo(kind):
    assert decode(saved(Image.new("RGB", (1, 1), (200, 200, 200)), kind)).shape == (1, 1, 3)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "GIF", "BMP"])
def test_a_truncated_file_is_refused_wherever_it_breaks(texture, kind):
    data = saved(Image.fromarray(texture), kind)
    for share in (0.02, 0.3, 0.6, 0.9):
        with pytest.raises(Undecodable):
            decode(data[: int(len(data) * share)])


def test_what_is_no_image_is_refused_with_the_reason():
    for data, reason in (
        (b"", "empty"),
        (b"hello, this is a text file\n" * 20, "not an image"),
        (b"%PDF-1.4 ...", "not an image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "not an image"),
        (b"\xff\xd8\xff", ""),
        (b"\xff\xd8\xff\xe0" + b"\x00" * 200, ""),
        (b"II*\x00\xff\xff\xff\xff", "not an image"),
        (bytes(1000), "not an image"),
    ):
        with pytest.raises(Undecodable) as caught:
            decode(data)
        assert caught.value.reason
        assert reason in caught.value.reason


def png_header(width: int, height: int) -> bytes:
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    zeros = b"IDAT" + zlib.compress(bytes(1_000_000))
    chunks = b"".join(struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in (body, zeros))
    return b"\x89PNG\r\n\x1a\n" + chunks


def test_a_bomb_is_refused_from_its_header(texture):
    jpeg = bytearray(saved(Image.fromarray(texture), "JPEG"))
    at = jpeg.index(b"\xff\xc0")
    jpeg[at + 5 : at + 9] = struct.pack(">HH", 65000, 65000)
    deep = cv2.imencode(".tiff", np.zeros((100, 101, 3), np.uint16))[1].tobytes()
    started = time.perf_counter()
    for data in (png_header(60000, 60000), png_header(9500, 9500), bytes(jpeg)):
        with pytest.raises(Undecodable, match="too large"):
            decode(data)
    with pytest.raises(Undecodable, match="too large"):
        decode(deep, max_pixels=10_000)
    assert time.perf_counter() - started < 0.5


def test_the_limit_on_pixels_is_the_user_s(texture):
    data = saved(Image.fromarray(texture), "PNG")
    assert decode(data, max_pixels=texture.shape[0] * texture.shape[1]).shape == texture.shape
    with pytest.raises(Undecodable, match="too large"):
        decode(data, max_pixels=texture.shape[0] * texture.shape[1] - 1)


def test_twenty_megapixels_decode(texture):
    large = cv2.resize(texture, (5472, 3648))
    assert decode(cv2.imencode(".jpg", large)[1].tobytes()).shape == (3648, 5472, 3)


def test_rows_in_are_rows_out_whatever_lies_there(texture, tmp_path):
    good = saved(Image.fromarray(texture), "PNG")
    (tmp_path / "a.png").write_bytes(good)
    (tmp_path / "b.png").write_bytes(good[:200])
    (tmp_path / "c").mkdir()
    with fsspec.open("memory://photos/d.png", "wb") as stream:
        stream.write(good)
    paths = [str(tmp_path / n) for n in ("a.png", "b.png", "c", "none.jpg")] + ["memory://photos/d.png"]
    paths += [f"file://{tmp_path}/a.png", "memory://photos/none.png"]
    out = ReadPhotos()({"path": np.array(paths, dtype=object)})
    assert list(out["status"]) == ["ok", *["unreadable"] * 3, "ok", "ok", "unreadable"]
    assert [photo is not None for photo in out["photo"]] == [s == "ok" for s in out["status"]]
    assert out["reason"][3] == "no such file"
    assert all(bool(r) == (s != "ok") for r, s in zip(out["reason"], out["status"], strict=True))


def test_rows_that_are_not_ok_pass_through_unread(tmp_path):
    batch = {"path": ["nowhere"], "status": ["suppressed"], "reason": ["alone"]}
    out = ReadPhotos()(batch)
    assert (out["status"][0], out["reason"][0], out["photo"]) == ("suppressed", "alone", [None])


def test_storage_options_reach_the_file_system(monkeypatch):
    seen: list[dict] = []
    monkeypatch.setattr(
        fsspec.core,
        "url_to_fs",
        lambda url, **options: seen.append(options) or (_ for _ in ()).throw(FileNotFoundError("no")),
    )
    out = ReadPhotos(storage_options={"key": "k"})({"path": ["s3://bucket/a.jpg"]})
    assert seen == [{"key": "k"}]
    assert out["status"][0] == "unreadable"


def test_a_store_that_fails_for_a_while_makes_no_photo_unreadable(monkeypatch: pytest.MonkeyPatch) -> None:
    answers: list[bytes | Exception] = [OSError("503 slow down"), OSError("503 slow down"), _PNG]
    monkeypatch.setattr(decode_module, "RETRY_AFTER_S", (0.0, 0.0))
    monkeypatch.setattr(decode_module.fsspec.core, "url_to_fs", lambda url, **options: (_Store(answers), url))
    (row,) = ReadPhotos()({"path": ["s3://bucket/a.png"]})["status"]
    assert row == "ok"
    assert answers == []


def test_a_store_that_stays_away_stops_the_batch_instead_of_blaming_the_photo(monkeypatch: pytest.MonkeyPatch) -> None:
    answers: list[bytes | Exception] = [OSError("503 slow down")] * 3
    monkeypatch.setattr(decode_module, "RETRY_AFTER_S", (0.0, 0.0))
    monkeypatch.setattr(decode_module.fsspec.core, "url_to_fs", lambda url, **options: (_Store(answers), url))
    with pytest.raises(decode_module.StoreUnavailable, match="503"):
        ReadPhotos()({"path": ["s3://bucket/a.png"]})


class _Store:
    """A file system that answers what it is told, one call after the other."""

    def __init__(self, answers: list[bytes | Exception]) -> None:
        self.answers = answers

    def cat_file(self, path: str) -> bytes:
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


_PNG = cv2.imencode(".png", np.zeros((2, 2, 3), np.uint8))[1].tobytes()
