"""Claims of stages/models.py: whatever an archive or a file of weights holds, only the pinned bytes are ever used."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import json
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from facecrowd.stages import models
from facecrowd.stages.models import Model, ModelError, Package, Part

FUZZ = settings.get_profile("fuzz")
FEW = settings(FUZZ, max_examples=FUZZ.max_examples // 2)
Mutated = Callable[[bytes], st.SearchStrategy[bytes]]

GOOD = b"the published bytes" * 100
MEMBER = "toy/data/toy.onnx"


def quiet(what: str, done: int, total: int | None) -> None:
    pass


def zipped(members: dict[str, bytes], links: tuple[str, ...] = ()) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            info = zipfile.ZipInfo(name)
            info.compress_type = zipfile.ZIP_DEFLATED
            info.external_attr = (0o120777 if name in links else 0o100644) << 16
            archive.writestr(info, data)
    return out.getvalue()


def tarred(members: dict[str, bytes], links: dict[str, str] | None = None, mode: str = "w:gz") -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode) as archive:  # type: ignore[call-overload]
        for name, target in (links or {}).items():
            link = tarfile.TarInfo(name)
            link.type, link.linkname = tarfile.SYMTYPE, target
            archive.addfile(link)
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("machine")


@pytest.fixture
def fetched(machine: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[bytes], bytes | None]:
    """``fetched(archive)``: the model that comes of an archive from the index, or None where it was refused."""
    monkeypatch.setenv("FACECROWD_MODELS", str(machine / "cache"))
    monkeypatch.setenv("HOME", str(machine))
    monkeypatch.delenv("INSIGHTFACE_HOME", raising=False)
    pinned = hashlib.sha256(GOOD).hexdigest()
    entry = Model("toy", "toy.onnx", pinned, "testing", "none", (Package("toy==1.0", MEMBER),))
    parts = (Part("toy.bin", pinned, (Package("toy==1.0", MEMBER),)),)
    monkeypatch.setitem(models.MODELS, "toy", entry)
    monkeypatch.setitem(models.MODELS, "made", Model("made", "made.onnx", "", "testing", "none", parts=parts))
    monkeypatch.setattr(models, "_download", lambda source, scratch: machine / "archive")

    def fetch(archive: bytes) -> bytes | None:
        (machine / "archive").write_bytes(archive)
        (machine / "cache" / "toy.onnx").unlink(missing_ok=True)
        found = None
        with contextlib.suppress(ModelError):
            found = models.path("toy", progress=quiet).read_bytes()
        with contextlib.suppress(ModelError):
            models._collect(models.MODELS["made"], machine / "cache", [], quiet)
        left = {file.name for file in (machine / "cache").iterdir()} - {".toy.onnx.lock", "toy.bin"}
        assert left == ({"toy.onnx"} if found else set())
        assert {file.name for file in machine.iterdir()} == {"cache", "archive"}
        return found

    return fetch


Fetched = Callable[[bytes], bytes | None]
EVIL = ["../../evil", "/tmp/evil", "..\\evil", "C:\\evil", "a/../../evil", "~/evil"]


def test_sound_archives_give_the_model(fetched: Fetched) -> None:
    assert fetched(zipped({MEMBER: GOOD})) == GOOD
    assert fetched(tarred({f"toy-1.0/{MEMBER}": GOOD})) == GOOD


@pytest.mark.parametrize("name", EVIL)
def test_members_that_lead_out_are_written_nowhere(name: str, fetched: Fetched) -> None:
    assert fetched(zipped({name: b"evil", MEMBER: GOOD}, links=(name,))) == GOOD
    assert fetched(tarred({name: b"evil", f"toy-1.0/{MEMBER}": GOOD})) == GOOD
    assert fetched(tarred({}, {f"toy-1.0/{MEMBER}": name})) is None
    assert fetched(zipped({MEMBER: name.encode()}, links=(MEMBER,))) is None
    # A link, and then a member through it.
    assert fetched(tarred({"toy-1.0/out/evil": b"evil"}, {"toy-1.0/out": "/tmp"})) is None


@pytest.mark.parametrize("make", [lambda: zipped({MEMBER: GOOD, "x": b"y"}), lambda: tarred({MEMBER: GOOD, "x": b"y"})])
@FUZZ
@given(data=st.data())
def test_a_damaged_archive_gives_the_model_or_one_line(
    make: Callable[[], bytes], data: st.DataObject, fetched: Fetched, mutated: Mutated
) -> None:
    assert fetched(data.draw(mutated(make()))) in (GOOD, None)


def test_archives_that_python_cannot_read_are_one_line(fetched: Fetched) -> None:
    sound = zipped({MEMBER: GOOD})
    at = sound.index(b"PK\x01\x02")
    unknown = bytearray(sound)
    unknown[8 + 0 : 10], unknown[at + 10 : at + 12] = struct.pack("<H", 99), struct.pack("<H", 99)
    locked = bytearray(sound)
    locked[6], locked[at + 8] = 1, 1
    packed = tarred({MEMBER: GOOD})
    for archive in (
        b"",
        b"PK",
        sound[:-30],
        bytes(unknown),
        bytes(locked),
        packed[:-200],
        gzip.compress(b"x"),
        b"\0" * 9**4,
    ):
        assert fetched(archive) is None


def test_an_archive_that_unpacks_to_too_much_is_given_up(fetched: Fetched, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "LARGEST", 5_000_000)
    assert fetched(zipped({MEMBER: bytes(50_000_000)})) is None
    assert fetched(tarred({MEMBER: bytes(50_000_000)})) is None


# ---------------------------------------------------------------------------------------------------------- weights


def header(about: Any, tensors: dict[str, Any] | None = None, body: bytes = b"") -> bytes:
    """A safetensors file with this in its header."""
    text = json.dumps({"__metadata__": {"facecrowd": about}, **(tensors or {})}).encode()
    return struct.pack("<Q", len(text)) + text + body


ABOUT = ["", "{", "[]", "5", "null", "[" * 100_000, "9" * 5000, '{"kind": []}', '{"kind": "attribute predictor"}', "{}"]
ABOUT += ['{"kind": "attribute predictor", "attributes": {}}', '{"kind": "stargan generator", "side": 1e9}', "\ud800"]


def refused(file: Path) -> None:
    """That no reader takes these weights, and each says so in a line."""
    from facecrowd.stages.attributes import Card
    from facecrowd.stages.networks.facexzoo import tensors
    from facecrowd.stages.networks.stargan import Generator
    from facecrowd.stages.networks.vgg import Lpips
    from facecrowd.stages.universal import Perturbation

    for read in (Card.read, Generator.load, Perturbation.load, tensors, Lpips.load):
        with pytest.raises(ModelError) as error:
            read(file)  # type: ignore[operator]
        assert "\n" not in str(error.value)


def planted(pickled: bytes) -> dict[str, bytes]:
    """Files that hold a pickle, in the forms in which weights come."""
    torch_zip = zipped({"archive/data.pkl": pickled, "archive/version": b"3\n", "archive/byteorder": b"little"})
    npy = b"\x93NUMPY\x01\x00" + struct.pack("<H", 70)
    npy += b"{'descr': '|O', 'fortran_order': False, 'shape': (1,), }".ljust(69) + b"\n" + pickled
    magic = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03." + pickled
    return {"pt": torch_zip, "pth": magic, "pkl": pickled, "npy": npy, "npz": zipped({"a.npy": npy}), "ckpt": pickled}


@pytest.mark.parametrize("kind", ["pt", "pth", "pkl", "npy", "npz", "ckpt", "onnx", "safetensors"])
def test_a_pickle_in_the_place_of_weights_is_never_loaded(
    kind: str, machine: Path, pickled: Callable[[Path], bytes]
) -> None:
    import torch

    files = planted(pickled(machine / "loaded"))
    for suffix in {kind, "safetensors", "onnx"}:
        file = machine / f"weights.{suffix}"
        file.write_bytes(files.get(kind, files["pkl"]))
        refused(file)
        with pytest.raises(models.WrongWeights):
            models.read_tensors(file, torch.nn.Linear(1, 1))
        if suffix == "onnx":
            with pytest.raises(models.WrongTask):
                models.check_task(file, "recognition")
        file.unlink()
    assert not (machine / "loaded").exists()


@pytest.mark.parametrize("about", ABOUT, ids=lambda about: ascii(about[:30]))
def test_a_header_that_says_anything_is_one_line(about: str, machine: Path) -> None:
    file = machine / "weights.safetensors"
    for tensors in ({}, {"temperature": {"dtype": "F32", "shape": [2**60], "data_offsets": [0, 4]}}):
        file.write_bytes(header(about, tensors, bytes(4)))
        refused(file)
    file.unlink()


@pytest.mark.filterwarnings("ignore::UserWarning")
@FEW
@given(data=st.data())
def test_a_damaged_state_of_weights_is_read_or_one_line(data: st.DataObject, machine: Path, mutated: Mutated) -> None:
    import torch

    out = io.BytesIO()
    torch.save(torch.nn.Linear(2, 2).state_dict(), out, _use_new_zipfile_serialization=data.draw(st.booleans()))
    file = machine / "weights.pt"
    file.write_bytes(data.draw(mutated(out.getvalue())))
    with contextlib.suppress(models.WrongWeights):
        models.read_tensors(file, torch.nn.Linear(2, 2))
    file.unlink()


@pytest.mark.parametrize(
    "name", ["../../etc/passwd", "a\0b", "", "x" * 5000, "buffalo_l/../../x", "\u202e", "pack.onnx"]
)
def test_a_name_of_no_model_is_one_line(name: str, machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(machine))
    monkeypatch.chdir(machine)
    for task in ("detection", "recognition"):
        with pytest.raises(ModelError):
            models.resolve(name, task, download=False)  # type: ignore[arg-type]
