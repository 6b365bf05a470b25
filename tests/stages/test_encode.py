"""Claims of stages/encode.py: released files hold pixels and nothing else, and the check finds whatever there is."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
from PIL import Image, ImageCms, PngImagePlugin

from facecrowd.stages.decode import decode
from facecrowd.stages.encode import Encode, Metadata, encode, metadata


def jpeg(texture: np.ndarray, **options: object) -> bytes:
    out = io.BytesIO()
    Image.fromarray(texture).save(out, "JPEG", **options)
    return out.getvalue()


def kinds(data: bytes) -> list[str]:
    return [found.kind for found in metadata(data)]


def with_segment(data: bytes, marker: int, body: bytes) -> bytes:
    return data[:2] + struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body + data[2:]


@pytest.mark.parametrize("subsampling", ["444", "422", "420"])
def test_an_encoded_file_is_clean_and_close_to_its_pixels(portrait, subsampling):
    data = encode(portrait, 95, subsampling)
    assert metadata(data) == []
    assert np.abs(decode(data).astype(int) - portrait).mean() < 4
    assert not Image.open(io.BytesIO(data)).getexif()
    assert set(Image.open(io.BytesIO(data)).info) <= {"jfif", "jfif_version", "jfif_unit", "jfif_density"}


def test_encoding_is_deterministic_and_takes_views(portrait):
    assert encode(portrait) == encode(portrait.copy())
    assert encode(portrait[:, ::-1]) == encode(portrait[:, ::-1].copy())


def test_quality_trades_size(portrait):
    assert len(encode(portrait, 50)) < len(encode(portrait, 92)) < len(encode(portrait, 92, "444"))
    with pytest.raises(ValueError, match="quality is 0"):
        Encode(quality=0)


@pytest.mark.parametrize("marker", [0xC8, 0xF0, 0xFD, 0x02])
def test_what_hides_in_a_segment_that_no_decoder_reads_is_found(texture, marker):
    data = with_segment(jpeg(texture), marker, b"who it is")
    assert kinds(data) == [f"reserved segment {marker:02X}"]


def test_the_resolution_of_a_scan_or_camera_is_found(texture):
    assert kinds(jpeg(texture, dpi=(300, 300))) == ["resolution"]


def test_exif_gps_icc_xmp_and_comments_of_a_jpeg_are_found(texture):
    exif = Image.Exif()
    exif[0x0110] = "a camera"
    exif.get_ifd(0x8825)[1] = "N"
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    data = jpeg(texture, exif=exif, icc_profile=profile, comment=b"by me", xmp=b"<x:xmpmeta/>")
    assert set(kinds(data)) == {"EXIF", "ICC", "XMP", "comment"}
    assert kinds(jpeg(texture, progressive=True)) == []
    assert kinds(jpeg(texture, restart_marker_rows=1)) == []


def test_thumbnails_vendor_segments_and_what_follows_the_end_are_found(texture):
    clean = encode(texture)
    assert kinds(with_segment(clean, 0xE0, b"JFXX\x00\x10" + b"x" * 50)) == ["thumbnail"]
    assert kinds(with_segment(clean, 0xE0, b"JFIF\x00\x01\x01\x00\x00\x01\x00\x01\x02\x02" + b"x" * 12)) == [
        "thumbnail"
    ]
    assert kinds(with_segment(clean, 0xED, b"Photoshop 3.0\x00")) == ["Photoshop/IPTC"]
    assert kinds(with_segment(clean, 0xE7, b"vendor")) == ["APP7"]
    assert metadata(clean + b"original.jpg") == [Metadata("trailing data", 12)]
    assert metadata(clean + clean)[0].kind == "trailing data"
    assert kinds(clean[:-2]) == ["unreadable"]
    assert kinds(clean[:100]) == ["unreadable"]


def test_png_and_webp_are_read_chunk_by_chunk(texture):
    image, out = Image.fromarray(texture), io.BytesIO()
    note = PngImagePlugin.PngInfo()
    note.add_text("Author", "me")
    note.add_itxt("XML:com.adobe.xmp", "<x/>")
    exif = Image.Exif()
    exif[0x0110] = "a camera"
    image.save(out, "PNG", pnginfo=note, exif=exif)
    assert set(kinds(out.getvalue())) == {"text", "XMP", "EXIF"}
    assert kinds(out.getvalue() + b"more")[-1] == "trailing data"
    out = io.BytesIO()
    image.save(out, "PNG")
    assert kinds(out.getvalue()) == []
    out = io.BytesIO()
    image.save(out, "WEBP", exif=exif, xmp=b"<x/>")
    assert set(kinds(out.getvalue())) == {"EXIF", "XMP"}
    out = io.BytesIO()
    image.save(out, "WEBP")
    assert kinds(out.getvalue()) == []
    assert kinds(out.getvalue() + b"more") == ["trailing data"]


def test_tiff_and_gif_are_asked_of_pillow(texture):
    out = io.BytesIO()
    Image.fromarray(texture).save(out, "TIFF", tiffinfo={270: "by me"})
    assert kinds(out.getvalue()) == ["EXIF"]
    out = io.BytesIO()
    Image.fromarray(texture).save(out, "GIF", comment=b"by me")
    assert kinds(out.getvalue()) == ["comment"]


@pytest.mark.parametrize("data", [b"", b"no image", b"\xff\xd8", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n123", b"RIFF"])
def test_what_cannot_be_read_is_never_called_clean(data):
    assert kinds(data) == ["unreadable"]


def test_the_stage_encodes_ok_rows_only(portrait):
    out = Encode("crop")({"crop": [portrait, None, None], "status": ["ok", "no_face", "ok"]})
    assert list(out["status"]) == ["ok", "no_face", "failed"]
    assert out["image"][0].startswith(b"\xff\xd8")
    assert out["image"][1:] == [None, None]
