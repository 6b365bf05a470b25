"""Traces of the originals in a release, which only who holds the workspace can look for: pixels of an original, and
names, orders, times and columns that follow from the source. What leads to a source on its face is in ``leaks``.

Every test says what a release that leaks nothing looks like: names are drawn (32 hexadecimal digits), rows are sorted
by them, so any order is as likely as any other, and every column follows from the class and the label. A finding is a
release that by chance looks so in one of a million, or never.
"""

from __future__ import annotations

import hashlib
import math
import os
import posixpath
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from scipy import stats

from facecrowd.pipeline.config import CLASS_METHODS, CLOAK, TRANSLATING_METHODS, Method, ReleaseConfig
from facecrowd.pipeline.leaks import Leak, named
from facecrowd.pipeline.schema import FACES, LINK, PHOTOS, PLAN, RELEASED, SHARD
from facecrowd.pipeline.storage import Folder, Workspace
from facecrowd.stages import copies
from facecrowd.stages.decode import Undecodable, decode

CHANCE = 1e-6
"""Probability below which what was found is no chance."""

LIKE = 0.98
"""Cosine from which a recogniser takes a face for the very original. Other photos of a person stay well below it."""

FOLLOWS = 0.95
"""Share of faces whose value in a column follows from the person, from which the column tells people."""

BLOCK = 2_048
"""Originals compared at a time: 8 MiB of views."""


# --------------------------------------------------------------------------------------------- what may be carried over


@dataclass(frozen=True)
class Declared:
    """What released pictures carry over of originals by design.

    pixels : nothing; altered, where all of the original's picture was altered or some of it replaced; own, where a
    released picture may be its own original's, as it was; likeness : whether a recogniser may take a released face for
    its original; why : for a reader
    """

    pixels: Literal["nothing", "altered", "own"]
    likeness: bool
    why: str


_OF_CLASS = Declared("nothing", False, "a face of a whole class holds no original's picture")
_TRANSLATED = Declared("own", True, "a face keeps its original's pixels where no attribute of it was to change")
DECLARED = {
    **dict.fromkeys(CLASS_METHODS, _OF_CLASS),
    **dict.fromkeys(TRANSLATING_METHODS, _TRANSLATED),
    "deepblur": Declared("nothing", True, "a face is generated anew from its original's latent, so like it at will"),
    "inpaint": Declared("altered", False, "hair, neck, clothes and background are the original's, the face is not"),
    "blur": Declared("altered", True, "the original without its detail"),
    "pixelate": Declared("altered", True, "the original without its detail"),
    "mask": Declared("altered", True, "the original but for what the box covers"),
    "noise": Declared("altered", True, "the original under noise, some of its pixels inverted"),
    CLOAK: Declared("own", True, "originals are released as they are, but for the perturbation"),
}
"""For every method, of aligned faces. A perturbation changes none of it: it is too small to hide a copy."""


def declared(config: ReleaseConfig, cut: bool = False) -> Declared:
    """What a release declares that it carries over.

    cut : in photo output, whether what is looked at are the faces, cut where the originals lay. Whole photos keep their
    own background, so that a photo as a whole looks like its original.
    """
    of_faces = DECLARED[config.method.name]
    if config.output == "photo" and not cut:
        return Declared("own", of_faces.likeness, "in photo output all of a photo but its faces is the source's")
    if of_faces.pixels == "altered" and _weak(config.method):
        return Declared("own", True, f"{config.method.name} as weak as this leaves the original's picture as it was")
    return of_faces


def _weak(method: Method) -> bool:
    """Whether a method leaves more detail than ``copies.DETAIL``, in parts: the limits are half of what that takes."""
    if method.name == "blur":
        return method.sigma < 4
    if method.name == "pixelate":
        return method.blocks > 16
    if method.name == "noise":
        # Inverting a share g of the pixels leaves 1 - 2g of the contrast; noise of sigma s is s / 4 in a view.
        return method.noise_sigma * math.sqrt(method.gamma) < 40 and not (method.invert and method.gamma >= 0.25)
    return False


# ------------------------------------------------------------------------------------------------------ what is known


class Original(NamedTuple):
    """A picture that must not come back. ``crop``: whether an aligned face, kept in the workspace, else a photo."""

    name: str  # its face_id, or the photo's name
    data: bytes
    crop: bool


@dataclass(frozen=True)
class Known:
    """Whom and what every released face shows; (m,) each. In photo output an image shows several.

    name : of the image, str; face_id, photo, subject, path : str; place : int64, of the face in the source's order;
    size : int64, bytes of its photo; class_id : int32; shown : attribute → object, the value planned for release
    """

    name: np.ndarray
    face_id: np.ndarray
    photo: np.ndarray
    subject: np.ndarray
    path: np.ndarray
    place: np.ndarray
    size: np.ndarray
    class_id: np.ndarray
    shown: dict[str, np.ndarray]

    @classmethod
    def read(cls, workspace: Workspace, runs: Mapping[str, str], parts: int) -> Known:
        """From the workspace that made a release. ``runs`` and ``parts`` are its record's."""
        linked = workspace.parts(LINK, runs["release"])
        link = pa.concat_tables([linked.read(part, ["name", "face_id", "photo"]) for part in sorted(linked.done())])
        columns = ["face_id", "subject_id", "class_id", "released"]
        plan = workspace.parts(PLAN, runs["plan"]).read_all(parts, columns).to_pydict()
        photos = workspace.parts(PHOTOS, runs["photos"]).read_all(parts, ["photo", "path", "bytes"]).to_pydict()
        place_of = {face: at for at, face in enumerate(plan["face_id"])}
        photo_of = {photo: at for at, photo in enumerate(photos["photo"])}
        place = np.array([place_of[face] for face in link["face_id"].to_pylist()], dtype=np.int64)
        photo = [photo_of[one] for one in link["photo"].to_pylist()]
        released = [dict(plan["released"][at] or ()) for at in place]
        attributes = sorted({name for one in released for name in one})
        return cls(
            name=_text(link["name"].to_pylist()),
            face_id=_text(link["face_id"].to_pylist()),
            photo=_text(link["photo"].to_pylist()),
            subject=_text([plan["subject_id"][at] for at in place]),
            path=_text([photos["path"][at] for at in photo]),
            place=place,
            size=np.array([photos["bytes"][at] for at in photo], dtype=np.int64),
            class_id=np.array([plan["class_id"][at] for at in place], dtype=np.int32),
            shown={name: _text([one.get(name) for one in released]) for name in attributes},
        )

    @property
    def images(self) -> np.ndarray:
        """The rows of the images that show one face, which are those that carry a label."""
        _, first, count = np.unique(self.name.astype(str), return_index=True, return_counts=True)
        return np.sort(first[count == 1])

    @property
    def sources(self) -> set[str]:
        """Names of the source that must not turn up in a release."""
        paths = {*self.photo, *self.path}
        folders = {posixpath.dirname(path) for path in self.path}
        return paths | folders | set(self.subject) | {posixpath.basename(path) for path in paths}


def _text(values: Iterable[str | None]) -> np.ndarray:
    listed = list(values)
    out = np.empty(len(listed), dtype=object)
    out[:] = listed
    return out


def crops(workspace: Workspace, runs: Mapping[str, str], parts: int) -> Iterator[Original]:
    """The aligned faces of all photos, part by part."""
    for part in range(parts):
        rows = workspace.parts(FACES, runs["faces"]).read(part, ["face_id", "crop"]).to_pylist()
        yield from (Original(row["face_id"], row["crop"], True) for row in rows if row["crop"] is not None)


def photos(known: Known) -> Iterator[Original]:
    """The released people's photos as they came, as far as they are still where they were."""
    for photo, path in sorted(set(zip(known.photo, known.path, strict=True))):
        folder, name = posixpath.split(path)
        try:
            yield Original(photo, Folder(folder).read(name), False)
        except OSError:
            continue


# ----------------------------------------------------------------------------------------------------------- the scan


def scan(
    release: Folder,
    table: pa.Table,
    images: Iterable[tuple[str, bytes]],
    expected: set[str],
    known: Known,
    config: ReleaseConfig,
    originals: Iterable[Original],
) -> list[Leak]:
    """What a release shows of its source, beyond what its method declares.

    table : its manifest; images : as (name, bytes); expected : the files it should hold; originals : what its pictures
    are compared with, in pieces: ``crops`` and ``photos``
    """
    owners = dict(zip(known.name, known.subject, strict=True))
    return [
        *named(release, expected, known.sources, owners),
        *names(table, known),
        *orders(table, known, release),
        *columns(table, known, config),
        *(leak for file in sorted(expected) if file.endswith((".tar", ".parquet")) for leak in _shard(release, file)),
        *copied(images, originals, known, declared(config), table["name"].to_pylist()),
    ]


def copied(
    images: Iterable[tuple[str, bytes]],
    originals: Iterable[Original],
    known: Known,
    allowed: Declared,
    named_as: Sequence[str] = (),
) -> list[Leak]:
    """Released pictures that are an original's, byte for byte or recompressed, resized or mirrored, beyond ``allowed``;
    and names, of ``named_as``, that are a hash of an original's bytes.

    Originals are looked at one by one; of every distinct released picture 4 KiB are held.
    """
    own: dict[str, set[str]] = {}
    for name, face, photo in zip(known.name, known.face_id, known.photo, strict=True):
        own.setdefault(name, set()).update((face, photo))
    images_of, digests, released = _distinct(images)
    named_by = {_key(name): name for name in named_as}
    hashed: set[str] = set()
    equal: set[str] = set()
    alike: dict[str, str] = {}
    at_home: set[str] = set()

    def of_its_bytes(original: Original) -> None:
        found = [hashlib.new(kind, original.data).hexdigest() for kind in ("md5", "sha1", "sha256")]
        hashed.update(named_by[_key(digest)] for digest in found if _key(digest) in named_by)
        for name in images_of.get(found[-1], ()):
            if allowed.pixels != "own" or not original.crop or original.name not in own.get(name, ()):
                equal.add(name)

    for of, views in _views(originals, of_its_bytes):
        hits = copies.find(released, views)
        for first, second, detail, change, mirrored in zip(*vars(hits).values(), strict=True):
            if allowed.pixels == "altered" and change > copies.UNTOUCHED:
                continue
            how = "mirrored, " if mirrored else ""
            for name in images_of[digests[first]]:
                if allowed.pixels == "own" and of[second] in own.get(name, ()):
                    at_home.add(name)
                alike[name] = f"the picture is an original's, {how}encoded anew ({detail:.0%} of its detail is there)"
    # The input may hold a photo twice, so a picture that may be its own original's may look like others too.
    what = {name: text for name, text in alike.items() if name not in at_home}
    what |= dict.fromkeys(equal, "the file equals an original, byte for byte")
    return [
        *(Leak("source name", name, "the name is a hash of an original's file") for name in sorted(hashed)),
        *(Leak("original pixels", name, what[name]) for name in sorted(what)),
    ]


def _distinct(images: Iterable[tuple[str, bytes]]) -> tuple[dict[str, list[str]], list[str], copies.Prints]:
    """The names of each distinct file by its SHA-256; which of these are pictures, and their prints."""
    names_of: dict[str, list[str]] = {}
    digests, views = [], []
    for name, data in images:
        digest = hashlib.sha256(data).hexdigest()
        if digest not in names_of:
            try:
                views.append(copies.view(decode(data)))
                digests.append(digest)
            except Undecodable:
                pass  # the scan of the files says so
        names_of.setdefault(digest, []).append(name)
    return names_of, digests, copies.prints_of(views)


def _views(
    originals: Iterable[Original], each: Callable[[Original], None]
) -> Iterator[tuple[list[str], copies.Prints]]:
    """Names and prints of originals, BLOCK at a time; ``each`` sees every one with its bytes."""
    of: list[str] = []
    views: list[np.ndarray] = []
    for original in originals:
        each(original)
        try:
            views.append(copies.view(decode(original.data)))
            of.append(original.name)
        except Undecodable:
            continue  # a row with a reason, and nothing that could have been released
        if len(of) == BLOCK:
            yield of, copies.prints_of(views)
            of, views = [], []
    yield of, copies.prints_of(views)


def resembling(released: np.ndarray, name: Sequence[str], originals: np.ndarray, allowed: Declared) -> list[Leak]:
    """Released faces that a recogniser takes for an original, as if it were that picture.

    released : (m, D) unit vectors of the faces as released; name : (m,) of their images; originals : (N, D)
    """
    if allowed.likeness or not len(originals):
        return []
    leaks = []
    for start in range(0, len(released), BLOCK):
        block = released[start : start + BLOCK]
        most = np.full(len(block), -1.0)
        for other in range(0, len(originals), BLOCK * 8):
            most = np.maximum(most, (block @ originals[other : other + BLOCK * 8].T).max(axis=1))
        for at in np.flatnonzero(most >= LIKE):
            what = f"a recogniser takes the face for an original (cosine {most[at]:.3f})"
            leaks.append(Leak("original face", str(name[start + int(at)]), what))
    return leaks


# ------------------------------------------------------------------------------------------------------------- orders


def orders(table: pa.Table, known: Known, release: Folder | None = None) -> list[Leak]:
    """Orders of the release that follow one of the source: of the manifest's rows, of names, and of files' times.

    Against each order of the source, Kendall's tau (exact up to 33 distinct images, else normal); and how many
    neighbours show one person, or neighbours of the source, against Poisson, which is where shuffling leaves them.
    """
    place, subject, sources = _orders_of_source(known)
    rows = table["name"].to_pylist()
    sequences = {"the rows": ("manifest.parquet", np.arange(len(rows), dtype=float))}
    by_name = np.argsort(np.argsort(np.array(rows, dtype=str))).astype(float)
    if (by_name != sequences["the rows"][1]).any():
        sequences["the names"] = ("manifest.parquet", by_name)
    if release is not None and release.local is not None and "file" in table.column_names:
        when = {file: info.get("mtime") for file, info in release.files()}
        times = np.array([when.get(file) or 0.0 for file in table["file"].to_pylist()], dtype=float)
        if len(np.unique(times)) > 1:
            sequences["the modification times"] = (release.url, times)
    at = np.array([i for i, name in enumerate(rows) if name in place], dtype=np.int64)
    names_of = [rows[i] for i in at]
    leaks = []
    for what, (where, values) in sequences.items():
        mine = values[at]
        for kind, of in sources.items():
            theirs = np.array([of[name] for name in names_of])
            if (chance := _trend(mine, theirs)) < CHANCE:
                leaks.append(Leak("order", where, f"{what} follow {kind} (p = {chance:.1g})"))
        if len(np.unique(mine)) < len(mine):
            continue
        order = np.argsort(mine)
        if (chance := _neighbours([subject[names_of[i]] for i in order])) < CHANCE:
            leaks.append(Leak("order", where, f"{what} put images of one person together (p = {chance:.1g})"))
        ranks = stats.rankdata([place[name] for name in names_of], method="dense")[order]
        if (chance := _successors(ranks)) < CHANCE:
            leaks.append(Leak("order", where, f"{what} keep neighbours of the source together (p = {chance:.1g})"))
    return leaks


def _orders_of_source(known: Known) -> tuple[dict[str, float], dict[str, str], dict[str, dict[str, float]]]:
    """Of every image its place and person, and what the source may be sorted by."""
    sums: dict[str, list[float]] = {}
    for name, at in zip(known.name, known.place, strict=True):
        sums.setdefault(name, []).append(float(at))
    place = {name: float(np.mean(of)) for name, of in sums.items()}
    subject = dict(zip(known.name, known.subject.astype(str), strict=True))
    size = dict(zip(known.name, known.size.astype(float), strict=True))
    rank = {person: float(at) for at, person in enumerate(sorted(set(subject.values())))}
    found = {
        "the order of the source": place,
        "the names of people": {name: rank[person] for name, person in subject.items()},
        "the sizes of the source's files": size,
    }
    times = {path: os.stat(path).st_mtime for path in set(known.path) if os.path.isfile(path)}
    if len(set(times.values())) > 1 and len(times) == len(set(known.path)):
        found["the times of the source's files"] = {
            name: times[path] for name, path in zip(known.name, known.path, strict=True)
        }
    return place, subject, found


def _trend(values: np.ndarray, others: np.ndarray) -> float:
    """Two-sided p of Kendall's tau; 1 where one of the two is constant."""
    if len(values) < 3:
        return 1.0
    # Few and untied: exactly. Else SciPy takes the normal one, which with few is the larger.
    chance = float(stats.kendalltau(values, others, method="auto").pvalue)
    return 1.0 if math.isnan(chance) else chance


def _neighbours(people: Sequence[str]) -> float:
    """Chance of as many neighbours of one person, were the images shuffled."""
    _, person, counts = np.unique(np.array(people, dtype=str), return_inverse=True, return_counts=True)
    expected = float((counts * (counts - 1.0)).sum()) / max(len(person), 1)
    return float(stats.poisson.sf(int((person[1:] == person[:-1]).sum()) - 1, expected))


def _successors(ranks: np.ndarray) -> float:
    """Chance of as many neighbours that were neighbours, were the images shuffled; ranks : (n,), no ties but copies."""
    n = len(ranks)
    _, counts = np.unique(ranks, return_counts=True)
    expected = 2.0 * float((counts[1:] * counts[:-1]).sum()) / max(n, 1)
    return float(stats.poisson.sf(int((np.abs(np.diff(ranks)) == 1).sum()) - 1, expected))


# -------------------------------------------------------------------------------------------------------------- names


HEX = set("0123456789abcdef")
DIGITS = 16
"""Of a hash, how many are compared: all that a label has."""

HASHES = ("md5", "sha1", "sha224", "sha256", "sha512", "blake2b")


def names(table: pa.Table, known: Known) -> list[Leak]:
    """Names and labels that follow from the source: that hold what their own photo or person is called, or are a hash
    of it, plain or as a UUID."""
    rows = {name: i for i, name in enumerate(table["name"].to_pylist())}
    told = {
        column: ["" if cell is None else str(cell).lower() for cell in table[column].to_pylist()]
        for column in ("name", "identity")
        if column in table.column_names
    }
    keys = {column: {_key(cell) for cell in cells} for column, cells in told.items()}
    found = {
        (column, kind)
        for text in _called(known)
        for kind, digest in _digests(text)
        for column, of in keys.items()
        if _key(digest) in of
    }
    leaks = [
        Leak("source name", "manifest.parquet", f"column {column} holds the {kind} of a source's name")
        for column, kind in sorted(found)
    ]
    for column, cells in told.items():
        hits, expected = 0, 0.0
        for name, photo, subject in zip(known.name, known.photo, known.subject, strict=True):
            cell = cells[rows[name]] if name in rows else ""
            for token in {posixpath.splitext(posixpath.basename(photo))[0].lower(), str(subject).lower()} - {""}:
                hits += token in cell
                # What a drawn name of so many digits holds by chance.
                places = max(len(cell) - len(token) + 1, 0)
                expected += min(1.0, places * 16.0 ** -len(token)) if set(token) <= HEX else 0.0
        if hits and float(stats.poisson.sf(hits - 1, expected)) < CHANCE:
            what = f"column {column} holds the name of its own photo or person in {hits} images"
            leaks.append(Leak("source name", "manifest.parquet", what))
    return leaks


def _called(known: Known) -> set[str]:
    """What the released people's photos, and they themselves, are called, in every form."""
    paths = {*known.photo, *known.path}
    files = {posixpath.basename(path) for path in paths}
    return paths | files | {posixpath.splitext(file)[0] for file in (*files, *known.photo)} | set(known.subject)


def _digests(text: str) -> Iterator[tuple[str, str]]:
    for kind in HASHES:
        yield kind.upper(), hashlib.new(kind, text.encode()).hexdigest()
    for space in (uuid.NAMESPACE_URL, uuid.NAMESPACE_DNS, uuid.NAMESPACE_OID):
        yield "UUID", uuid.uuid3(space, text).hex
        yield "UUID", uuid.uuid5(space, text).hex


def _key(name: str) -> str:
    """What of a name is compared with hashes; whole where it is shorter."""
    return str(name).replace("-", "").lower()[:DIGITS]


# ------------------------------------------------------------------------------------------------------------ columns


def columns(table: pa.Table, known: Known, config: ReleaseConfig) -> list[Leak]:
    """Columns of the manifest that no release has, cells that are not what was planned, and columns that tell people
    apart whom the released class and label leave alike."""
    known_columns = {*(column.name for column in RELEASED.columns), *config.policy.quasi_identifiers}
    rows = {name: i for i, name in enumerate(table["name"].to_pylist())}
    one = np.array([i for i in known.images if known.name[i] in rows], dtype=np.int64)
    at = np.array([rows[name] for name in known.name[one]], dtype=np.int64)
    pseudonym = config.release.identity == "pseudonym"
    alike = known.subject[one].astype(str) if pseudonym else known.class_id[one].astype(str)
    # In photo output a picture has its photo's own size, as its background is.
    own_size = ("width", "height") if config.output == "photo" else ()
    leaks = []
    for column in table.column_names:
        cells = table[column].to_pylist()
        mine = [cells[i] for i in at]
        person, label = _follows(mine, known.subject[one].astype(str), alike)
        told = f"for {person:.0%} of the images it follows from the person, for {label:.0%} from what is released"
        if column not in known_columns:
            leaks.append(Leak("column", column, f"no column of a release; {told}"))
        elif column not in own_size and person >= FOLLOWS and 1 - person < (1 - label) / 2:
            leaks.append(Leak("column", column, f"tells people apart: {told}"))
        if column in known.shown:
            wrong = sum(a != b for a, b in zip(mine, known.shown[column][one], strict=True))
            if wrong:
                leaks.append(Leak("column", column, f"{wrong} cells are not the values that were planned"))
    if config.release.identity == "none" and "identity" in table.column_names:
        carry = sum(bool(cell) for cell in table["identity"].to_pylist())
        if carry:
            leaks.append(Leak("column", "identity", f"{carry} images carry a label, and the release declares none"))
    return leaks


def _follows(cells: Sequence[object], person: np.ndarray, alike: np.ndarray) -> tuple[float, float]:
    """For which share of images a column's value is the most frequent of their person's, and of what is released.

    Of people with several images, among others that are released alike: only there is there anything to tell; (1, 1)
    where there are none.
    """
    _, value = np.unique(np.array([repr(cell) for cell in cells], dtype=str), return_inverse=True)
    _, who, images = np.unique(person, return_inverse=True, return_counts=True)
    _, crowd = np.unique(alike, return_inverse=True)
    pairs = np.unique(np.stack([crowd, who]), axis=1)
    people = np.bincount(pairs[0], minlength=1) if len(crowd) else np.zeros(1, np.int64)
    here = np.flatnonzero((images[who] > 1) & (people[crowd] > 1)) if len(crowd) else np.zeros(0, np.int64)
    if not len(here):
        return 1.0, 1.0
    shares = []
    for unit in (who[here], crowd[here]):
        pair, count = np.unique(np.stack([unit, value[here]]), axis=1, return_counts=True)
        most = np.zeros(int(unit.max()) + 1, dtype=np.int64)
        np.maximum.at(most, pair[0], count)
        shares.append(float(most.sum()) / len(here))
    return shares[0], shares[1]


def _shard(release: Folder, file: str) -> list[Leak]:
    """Columns of a Parquet shard that no shard has."""
    if not file.startswith("images/") or not file.endswith(".parquet"):
        return []
    schema = pq.read_schema(pa.BufferReader(release.read(*file.split("/"))))
    strange = [name for name in schema.names if name not in {column.name for column in SHARD.columns}]
    return [Leak("column", file, f"{name}: no column of a shard") for name in strange]
