"""``facecrowd study``: what people make of released faces, by a blinded page of questions, scored by command.

Three kinds of questions:

turing        one picture: photograph, or made by a computer? (AnonymousNet's visual Turing test; half are originals)
same-person   two pictures: the same person? (Adaptive attribute obfuscation, section 4.6 and Table 5). *Fake* pairs
              show an original and a released face, *Real* pairs two originals: what people manage without protection
parts         an original and what was released for it: which parts of the face differ? (the same section)

``make`` writes ``study.html``, one file that fetches nothing and holds only pictures and question ids, and the truth,
``key.json``; both are private. ``score`` holds the answers of any number of people against the key.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, TypeVar

import cv2
import numpy as np
import pyarrow as pa
from pydantic import BaseModel, ConfigDict, ValidationError
from scipy.stats import norm

from facecrowd.pipeline import publish
from facecrowd.pipeline.errors import ConfigError, InputError
from facecrowd.pipeline.photos import SUFFIXES
from facecrowd.pipeline.record import Record
from facecrowd.pipeline.schema import FACES, LINK, PLAN, RENDERED
from facecrowd.pipeline.storage import Folder, Workspace
from facecrowd.privacy.attributes import ANY
from facecrowd.stages import align
from facecrowd.stages.decode import Undecodable, decode
from facecrowd.stages.encode import encode
from facecrowd.stages.runkey import RunKey

Kind = Literal["turing", "same-person", "parts"]
KINDS: tuple[Kind, ...] = ("turing", "same-person", "parts")
"""In the order they are asked: a later kind shows side by side what would answer an earlier one."""

QUESTIONS = 40
SIDE = 256
LEAST_SIDE = 48
QUALITY = 92
SHRINK = 0.9
"""Pictures are shown smaller than the smallest of them: resampling takes off the traces of their earlier encodings."""
FRAMES_DIFFER = 0.02
"""Relative difference of aspect ratios from which an altered picture is framed otherwise than its original."""

MIRRORED = 0.02
"""Share of a crop's side that may lie beyond its photo before the mirrored edge is seen."""

PARTS = {
    "hairline": "Receding_Hairline",
    "eyebrows": "Bushy_Eyebrows",
    "eyes": "Narrow_Eyes",
    "nose": "Big_Nose",
    "lips": "Big_Lips",
}
"""The parts of the face, as the paper asked for them, and the attribute by which a plan changes each."""
_MANIFEST = {"hairline": "hair"}
"""Parts that the manifests call otherwise."""
MOST_PARTS = 4

PAPER_PARTS = {"hairline": 0.12, "eyebrows": 0.34, "eyes": 0.67, "nose": 0.38, "lips": 0.59}
PAPER_VERIFICATION = {"Real": 0.98, "Fake": 0.88}
"""Adaptive attribute obfuscation, Table 5: 25 volunteers, 200 faces and 200 pairs."""

CHANCE = 0.5
BOOTSTRAPS = 2000

PAGE, KEY = "study.html", "key.json"
TEMPLATE = Path(__file__).with_name(PAGE)

T = TypeVar("T", bound=Hashable)


# ----------------------------------------------------------------------------------------------------------- faces


@dataclass(frozen=True)
class Face:
    """A released face and the original it stands for.

    photo : of the original, below its subject or the input; shown : what tells the released picture from others;
    stands : faces with the same value stand for each other's people too, as all of a class of k-same do;
    changed : part of the face → whether it was changed, where that is known; whole : whether the original's crop lies
    inside its photo, with nothing mirrored at its edges; made : whether the released picture is more than its original
    encoded anew
    """

    subject: str
    photo: str
    shown: str
    stands: str
    changed: dict[str, bool] = field(default_factory=dict)
    whole: bool = True
    made: bool = True


class Picture(NamedTuple):
    """The original or the released picture of a face, by its position."""

    face: int
    released: bool


class Collection(Protocol):
    """Faces, and their pictures as (H, W, 3) uint8 RGB, original and released framed alike."""

    faces: list[Face]

    def fetch(self, pictures: Sequence[Picture]) -> None: ...
    def pixels(self, picture: Picture) -> np.ndarray: ...


class Folders:
    """Two folders ``<subject>/<file>``: originals, and altered pictures of the same names (the extension may differ).

    Raises InputError where there are no such pairs.
    """

    def __init__(self, originals: Path, altered: Path) -> None:
        before, after = _pictures(originals), _pictures(altered)
        self._paths: list[tuple[Path, Path]] = []
        self.faces: list[Face] = []
        for name in sorted(before.keys() & after.keys()):
            digest = hashlib.sha256(after[name].read_bytes()).hexdigest()
            self._paths.append((before[name], after[name]))
            self.faces.append(Face(name.split("/")[0], name, digest, digest))
        if not self.faces:
            raise InputError(f"no picture of {altered} is named as one of {originals}: both hold <person>/<file>")

    def fetch(self, pictures: Sequence[Picture]) -> None:
        """Raises InputError where an altered picture is framed otherwise than its original, which would tell them."""
        for face in sorted({picture.face for picture in pictures}):
            shapes = [self.pixels(Picture(face, released)).shape for released in (False, True)]
            (height, width, _), (tall, wide, _) = shapes
            if abs(width / height / (wide / tall) - 1) > FRAMES_DIFFER:
                raise InputError(
                    f"{self._paths[face][1]}: {wide} x {tall} pixels, its original {width} x {height}: pictures framed "
                    "in two ways would tell which is which; frame both alike"
                )

    def pixels(self, picture: Picture) -> np.ndarray:
        path = self._paths[picture.face][picture.released]
        return _decoded(path.read_bytes(), str(path))


def _pictures(folder: Path) -> dict[str, Path]:
    """Person/stem → file."""
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder")
    found: dict[str, Path] = {}
    for path in sorted(folder.glob("*/*")):
        if path.suffix.lower() not in SUFFIXES or path.name.startswith("."):
            continue
        name = f"{path.parent.name}/{path.stem}"
        if name in found:
            raise InputError(f"{folder}: {found[name].name} and {path.name} of {path.parent.name} have one name")
        found[name] = path
    return found


def _decoded(data: bytes, where: str) -> np.ndarray:
    try:
        return decode(data)
    except Undecodable as error:
        raise InputError(f"{where}: {error.reason}") from None


class Released:
    """A release and the originals in the workspace that made it, by the private link; both as aligned crops.

    Raises ConfigError where the workspace did not make it.
    """

    def __init__(self, url: str, workspace: str) -> None:
        self._release, space = Folder(url), Workspace(workspace)
        record = Record.of(space.folder, hashlib.sha256(self._release.read(publish.CARD)).hexdigest())
        self._crop = record.config.output == "crop"
        self._side = record.config.detect.crop_size
        self._originals = space.parts(FACES, record.runs["faces"])
        links = space.parts(LINK, record.runs["release"])
        self._links = [row for part in sorted(links.done()) for row in links.read(part).to_pylist()]
        columns = ["face_id", "subject_id", "class_id", "originals", "released"]
        planned = space.parts(PLAN, record.runs["plan"]).read_all(record.parts, columns).to_pylist()
        plan = {row["face_id"]: row for row in planned}
        rendered = space.parts(RENDERED, record.runs["rendered"])
        done: dict[str, dict[str, Any]] = {}
        # A workspace made before there was translation has no such columns.
        with contextlib.suppress(pa.ArrowInvalid):
            found = rendered.read_all(record.parts, ["face_id", "obfuscated", "wanted", "passes"]).to_pylist()
            done = {row["face_id"]: row for row in found}
        self.faces = []
        for row, whole in zip(self._links, self._whole(), strict=True):
            of = plan[row["face_id"]]
            # In a photo of several people the picture's hash is not the face's.
            shown = row["sha256"] if self._crop else f"{row['name']} {row['face_id']}"
            stands = f"class {of['class_id']}" if record.config.method.of_class else shown
            vectors = (dict(of["originals"] or ()), dict(of["released"] or ()))
            how = done.get(row["face_id"], {})
            made = how.get("passes") != 0 or record.config.perturb.on
            wanted = dict(how.get("wanted") or ()) if record.config.method.name == "translation" else None
            if wanted is not None and how["passes"] == 0:
                wanted = {}  # whatever was wanted of it, it was left as it was
            changed = _changed(*vectors, how.get("obfuscated"), wanted)
            self.faces.append(Face(of["subject_id"], row["photo"], shown, stands, changed, whole, made))
        self._bytes: dict[Picture, bytes] = {}
        self._landmarks: dict[int, list[float]] = {}

    def _whole(self) -> list[bool]:
        by_part: dict[int, list[int]] = {}
        for position, link in enumerate(self._links):
            by_part.setdefault(link["part"], []).append(position)
        corners, slack = np.array([[0, 0], [1, 0], [0, 1], [1, 1]]) * self._side, MIRRORED * self._side
        whole = [False] * len(self._links)
        for part, positions in by_part.items():
            rows = [self._links[i]["row"] for i in positions]
            found = self._originals.read_rows(part, rows, ["matrix", "photo_width", "photo_height"]).to_pylist()
            for position, row in zip(positions, found, strict=True):
                seen = align.apply(align.invert(row["matrix"]), corners)
                beyond = np.maximum(-seen, seen - [row["photo_width"], row["photo_height"]])
                whole[position] = bool(beyond.max() * align.scale(row["matrix"]) <= slack)
        return whole

    def fetch(self, pictures: Sequence[Picture]) -> None:
        released = sorted({p.face for p in pictures if p.released}, key=lambda i: self._links[i]["file"])
        images = publish.read_images(self._release, [self._links[i] for i in released])
        for face, (_, data) in zip(released, images, strict=True):
            self._bytes[Picture(face, True)] = data
        for face in sorted({p.face for p in pictures}):
            link = self._links[face]
            (row,) = self._originals.read_rows(link["part"], [link["row"]], ["crop", "landmarks"]).to_pylist()
            self._bytes[Picture(face, False)], self._landmarks[face] = row["crop"], row["landmarks"]

    def pixels(self, picture: Picture) -> np.ndarray:
        data = decode(self._bytes[picture])
        if self._crop or not picture.released:
            return data
        points = np.array(self._landmarks[picture.face], np.float64).reshape(1, 5, 2)
        return align.warp(data, align.similarity(points, align.template(self._side))[0], self._side)


def _changed(
    originals: dict[str, str],
    released: dict[str, str],
    obfuscated: Sequence[str] | None = None,
    wanted: dict[str, bool] | None = None,
) -> dict[str, bool]:
    """Part → whether it was obfuscated, or translated to another value than the original's, where that is known; else,
    whether the plan releases another value of its attribute."""
    if wanted is not None:
        values = {part: (wanted.get(name), originals.get(name)) for part, name in PARTS.items()}
        return {
            part: told is not None and told != (own == "1")
            for part, (told, own) in values.items()
            if told is None or own in ("0", "1")
        }
    if obfuscated is not None:
        return {part: _MANIFEST.get(part, part) in obfuscated for part in PARTS}
    known = {part: (originals.get(name), released.get(name)) for part, name in PARTS.items()}
    return {
        part: before != after
        for part, (before, after) in known.items()
        if before is not None and after not in (None, ANY)
    }


def collection(originals: Path | None, released: str, workspace: str | None) -> Collection:
    """The faces to ask about: of a release with its workspace, or of two folders. Raises ConfigError, InputError."""
    if Folder(released).exists(publish.CARD):
        if originals is not None:
            raise ConfigError(
                f"--originals {originals}: the originals of a release are in its --workspace; leave it out"
            )
        space = workspace or f"{released.rstrip('/')}.workspace"
        if not Folder(space).exists("run.key"):
            raise ConfigError(f"workspace {space}: not there; give --workspace, where this release was made")
        return Released(released, space)
    if workspace is not None:
        raise ConfigError(f"--released {released}: no release, so --workspace {workspace} says nothing of it")
    if originals is None:
        raise ConfigError(
            f"--released {released}: no release; give --originals, a folder with the same <person>/<file>"
        )
    return Folders(originals, Path(released))


# ------------------------------------------------------------------------------------------------------- questions


class Question(BaseModel):
    """A question of the key.

    group : what the answers are counted under; truth : the right answer, or for parts which are known to change;
    pictures : what they are, A first
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str
    kind: Kind
    group: str
    truth: str | dict[str, bool]
    pictures: list[dict[str, str]]


class Key(BaseModel):
    """What ``key.json`` holds: the truth, and the seed that everything was drawn by."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal["facecrowd study key"] = "facecrowd study key"
    version: Literal[1] = 1
    study: str
    seed: str
    side: int
    questions: list[Question]


class Asked(NamedTuple):
    """A question before it has an id and a place."""

    kind: Kind
    group: str
    truth: str | dict[str, bool]
    pictures: tuple[Picture, ...]


@dataclass
class _Draw:
    """Draws that use everything about equally often: of the least used, one at random."""

    rng: np.random.Generator
    used: Counter[Hashable] = field(default_factory=Counter)

    def take(self, options: Sequence[T]) -> T:
        least = min(self.used[option] for option in options)
        rest = [option for option in options if self.used[option] == least]
        return rest[int(self.rng.integers(len(rest)))]

    def shuffled(self, items: Sequence[T]) -> list[T]:
        return [items[i] for i in self.rng.permutation(len(items))]


def draw(kind: Kind, faces: Sequence[Face], questions: int, rng: np.random.Generator) -> list[Asked]:
    """At most ``questions`` questions of a kind in random order, fewer where there are not as many faces.

    Raises InputError where there is none.
    """
    how = {"turing": _turing, "same-person": _same_person, "parts": _parts}
    found = how[kind](faces, questions, _Draw(rng))
    if not found:
        wanted = "two people with distinct faces" if kind != "parts" else "a face"
        raise InputError(f"no question of the kind {kind} can be asked: that takes {wanted}")
    return [found[i] for i in rng.permutation(len(found))]


def _by(faces: Sequence[Face], key: Callable[[Face], str]) -> dict[str, list[int]]:
    """Key → the positions of its faces."""
    groups: dict[str, list[int]] = {}
    for position, face in enumerate(faces):
        groups.setdefault(key(face), []).append(position)
    return groups


def _in_turn(people: Sequence[list[int]]) -> list[int]:
    """The first of everybody, then the second of everybody who has one, …"""
    return [of[turn] for turn in range(max(map(len, people), default=0)) for of in people if turn < len(of)]


def _turing(faces: Sequence[Face], questions: int, draws: _Draw) -> list[Asked]:
    """Nobody is shown both ways, and no picture twice. What a translator left as it was is no released picture: it is a
    photograph. Mirrored edges, which a generated face has not and which look
    made, are left out where enough faces are without.
    """
    of = _by(faces, lambda face: face.subject)
    names = draws.shuffled(list(of))
    turned = {name: draws.shuffled(of[name]) for name in names}

    def among(fit: Callable[[Face], bool]) -> list[Asked]:
        people = [own for name in names if (own := [i for i in turned[name] if fit(faces[i])])]
        half = len(people) // 2
        originals = _distinct(_in_turn(people[:half]), lambda i: faces[i].photo)
        altered = [kept for own in people[half:] if (kept := [i for i in own if faces[i].made])]
        released = _distinct(_in_turn(altered), lambda i: faces[i].shown)
        count = min(questions // 2, len(originals), len(released))
        return [Asked("turing", "original", "photo", (Picture(i, False),)) for i in originals[:count]] + [
            Asked("turing", "released", "made", (Picture(i, True),)) for i in released[:count]
        ]

    return max((among(lambda face: face.whole), among(lambda face: True)), key=len)


def _distinct(positions: Sequence[int], key: Callable[[int], str]) -> list[int]:
    seen: set[str] = set()
    return [i for i in positions if not (key(i) in seen or seen.add(key(i)))]  # type: ignore[func-returns-value]


def _same_person(faces: Sequence[Face], questions: int, draws: _Draw) -> list[Asked]:
    """A quarter each: Fake and Real pairs, of one person and of two. As many of one as of two, so chance is 1/2."""
    pairs: list[Asked] = []
    for group in ("Fake", "Real"):
        cells = [_pairs(faces, group, truth, questions // 4, draws) for truth in ("same", "different")]
        count = min(map(len, cells))
        pairs += [pair for cell in cells for pair in cell[:count]]
    return pairs


def _pairs(faces: Sequence[Face], group: str, truth: str, count: int, draws: _Draw) -> list[Asked]:
    """Pairs of one cell, none twice; where people have several photos, always of two photos."""
    of = _by(faces, lambda face: face.subject)
    photos = {name: len({faces[i].photo for i in own}) for name, own in of.items()}
    people = [name for name in of if group == "Fake" or truth == "different" or photos[name] > 1]
    fits = {name: {faces[i].stands for i in own} for name, own in of.items()}
    found: dict[frozenset[tuple[str, str]], Asked] = {}
    for _ in range(10 * count if people and (truth == "same" or len(of) > 1) else 0):
        if len(found) == count:
            break
        person = draws.take(people)
        other = person if truth == "same" else draws.take([name for name in of if name != person])
        first = draws.take([Picture(i, group == "Fake") for i in of[person]])
        face = faces[first.face]
        candidates = [Picture(i, False) for i in of[other]]
        if truth == "same":
            elsewhere = [p for p in candidates if faces[p.face].photo != face.photo]
            candidates = elsewhere or candidates
        draws.used.update([person, other, first])
        # A released face may stand for several people; who it shows is then no question.
        if truth == "different" and group == "Fake" and face.stands in fits[other]:
            continue
        second = draws.take(candidates)
        draws.used[second] += 1
        key = frozenset({(face.shown if first.released else "", face.photo), ("", faces[second.face].photo)})
        shown = (first, second) if draws.rng.random() < 0.5 else (second, first)
        found.setdefault(key, Asked("same-person", group, truth, shown))
    return list(found.values())


def _parts(faces: Sequence[Face], questions: int, draws: _Draw) -> list[Asked]:
    of = _by(faces, lambda face: face.subject)
    chosen = _in_turn([draws.shuffled(of[name]) for name in draws.shuffled(list(of))])
    chosen = _distinct(chosen, lambda i: faces[i].photo)[:questions]
    sides = [(Picture(i, False), Picture(i, True)) for i in chosen]
    turned = draws.rng.random(len(sides)) < 0.5
    return [
        Asked("parts", "parts", faces[a.face].changed, (b, a) if turn else (a, b))
        for (a, b), turn in zip(sides, turned, strict=True)
    ]


# ------------------------------------------------------------------------------------------------------------ make


def make(
    source: Collection,
    output: Path,
    kinds: Sequence[Kind] = KINDS,
    questions: int = QUESTIONS,
    people: Sequence[str] | None = None,
    side: int = SIDE,
    seed: RunKey | None = None,
) -> Key:
    """Write ``study.html`` and ``key.json`` into ``output``, both for their owner alone.

    questions : of each kind; people : the only ones to show; side : of a picture in pixels, less where pictures are
    smaller; seed : what everything is drawn by, from the operating system by default

    Raises ConfigError where a study is there already: its key would be lost. InputError for people who are not there,
    and where nothing can be asked.
    """
    for name in (KEY, PAGE):
        if (output / name).exists():
            raise ConfigError(f"--output {output}: holds a study already ({name}); choose another folder")
    shown = list(range(len(source.faces)))
    if people is not None:
        missing = sorted(set(people) - {face.subject for face in source.faces})
        if missing:
            raise InputError(f"--people: {missing[0]} is nobody of these faces")
        shown = [i for i in shown if source.faces[i].subject in set(people)]
    faces = [source.faces[i] for i in shown]
    seed = seed or RunKey.draw()
    asked = [
        question._replace(pictures=tuple(Picture(shown[p.face], p.released) for p in question.pictures))
        for kind in KINDS
        if kind in kinds
        for question in draw(kind, faces, questions, seed.generator("study", kind))
    ]
    wanted = sorted({picture for question in asked for picture in question.pictures})
    source.fetch(wanted)
    side = _side(source, wanted, side)
    data = {picture: _data_uri(source.pixels(picture), side) for picture in wanted}
    key = Key(
        study=seed.token("study", "id", 16),
        seed=seed.secret.hex(),
        side=side,
        questions=[
            Question(
                id=seed.token("study", f"question {place}", 12),
                kind=question.kind,
                group=question.group,
                truth=question.truth,
                pictures=[_told(source.faces[p.face], p.released) for p in question.pictures],
            )
            for place, question in enumerate(asked)
        ],
    )
    page = [
        {"id": known.id, "kind": known.kind, "pictures": [data[p] for p in question.pictures]}
        for known, question in zip(key.questions, asked, strict=True)
    ]
    output.mkdir(mode=0o700, parents=True, exist_ok=True)
    _write_private(output / KEY, key.model_dump_json(indent=1) + "\n")
    _write_private(output / PAGE, _page({"study": key.study, "questions": page}))
    return key


def _told(face: Face, released: bool) -> dict[str, str]:
    return {"picture": "released" if released else "original", "subject": face.subject, "photo": face.photo}


def _side(source: Collection, pictures: Sequence[Picture], side: int) -> int:
    """The side that all pictures are shown at. Raises InputError where one is too small to judge."""
    smallest = min(pictures, key=lambda p: min(source.pixels(p).shape[:2]))
    side = min(side, int(SHRINK * min(source.pixels(smallest).shape[:2])))
    if side < LEAST_SIDE:
        face = source.faces[smallest.face]
        raise InputError(
            f"{face.photo}: too small to judge a face by ({side} pixels when shown, at least {LEAST_SIDE})"
        )
    return side


def _data_uri(pixels: np.ndarray, side: int) -> str:
    """The middle square at ``side`` pixels as a JPEG without metadata."""
    height, width = pixels.shape[:2]
    edge = min(height, width)
    top, left = (height - edge) // 2, (width - edge) // 2
    square = cv2.resize(pixels[top : top + edge, left : left + edge], (side, side), interpolation=cv2.INTER_AREA)
    return "data:image/jpeg;base64," + base64.b64encode(encode(square, QUALITY)).decode()


def _page(study: dict[str, Any]) -> str:
    """The template with the questions in it, and a policy that lets it run itself and nothing else."""
    text = TEMPLATE.read_text(encoding="utf-8")
    script, style = (_inside(text, f"<{tag}>", f"</{tag}>") for tag in ("script", "style"))
    policy = (
        f"default-src 'none'; img-src data:; script-src '{_sha256(script)}'; style-src '{_sha256(style)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    return text.replace("{{POLICY}}", policy).replace("{{STUDY}}", json.dumps(study, separators=(",", ":")))


def _inside(text: str, start: str, end: str) -> str:
    return text.split(start, 1)[1].split(end, 1)[0]


def _sha256(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _write_private(file: Path, text: str) -> None:
    with open(file, "x", encoding="utf-8", opener=lambda path, flags: os.open(path, flags, 0o600)) as stream:
        stream.write(text)


# ----------------------------------------------------------------------------------------------------------- score


class Answer(BaseModel):
    """turing: photo or made; same-person: same or different; parts: those that differ, none or up to four."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    question: str
    answer: Literal["photo", "made", "same", "different"] | list[str]


class Answers(BaseModel):
    """What the page saves."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal["facecrowd study answers"]
    version: Literal[1]
    study: str
    participant: str
    answers: list[Answer]


M = TypeVar("M", bound=BaseModel)

CHOICES: dict[str, tuple[str, ...]] = {"turing": ("photo", "made"), "same-person": ("same", "different")}


@dataclass(frozen=True)
class Rate:
    """A mean over answers and its 95 % interval."""

    value: float
    low: float
    high: float
    questions: int
    answers: int


def score(key_file: Path, files: Sequence[Path]) -> dict[str, Any]:
    """The answers held against the key: ``rates`` of right answers, ``parts`` named, and how many took part.

    Raises InputError for a file that is none, of another study, of a participant who is there twice, or with answers
    that are unknown, double or impossible.
    """
    key = _read(key_file, Key, "the key of a study")
    questions = {question.id: question for question in key.questions}
    seen: dict[str, Path] = {}
    given: list[dict[str, str | list[str]]] = []
    for file in files:
        answers = _read(file, Answers, "the answers of a study")
        if answers.study != key.study:
            raise InputError(f"{file}: answers of another study ({answers.study}, and the key is of {key.study})")
        if answers.participant in seen:
            raise InputError(f"{file}: the same participant as {seen[answers.participant]}; give each file once")
        seen[answers.participant] = file
        given.append(_checked(file, answers, questions))
    asked = list(questions.values())
    return {
        "study": key.study,
        "participants": len(given),
        "questions": len(asked),
        "answers": sum(map(len, given)),
        "rates": _rates(asked, given),
        "parts": _part_rates(asked, given),
    }


def _read(file: Path, kind: type[M], what: str) -> M:
    try:
        return kind.model_validate_json(file.read_bytes())
    except FileNotFoundError:
        raise InputError(f"{file}: no such file") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise InputError(f"{file}: not {what} ({f'{where}: ' if where else ''}{first['msg']})") from None


def _checked(file: Path, answers: Answers, questions: dict[str, Question]) -> dict[str, str | list[str]]:
    """Question → answer."""
    given: dict[str, str | list[str]] = {}
    for row in answers.answers:
        question = questions.get(row.question)
        if question is None:
            raise InputError(f"{file}: the question {row.question!r} is none of this study")
        if row.question in given:
            raise InputError(f"{file}: the question {row.question} is answered twice")
        if question.kind == "parts":
            named = row.answer if isinstance(row.answer, list) else [row.answer]
            fits = isinstance(row.answer, list) and len(named) <= MOST_PARTS and len(set(named)) == len(named)
            fits = fits and set(named) <= PARTS.keys()
        else:
            fits = row.answer in CHOICES[question.kind]
        if not fits:
            raise InputError(
                f"{file}: {row.answer!r} is no answer to {row.question}, a question of kind {question.kind}"
            )
        given[row.question] = row.answer
    if not given:
        raise InputError(f"{file}: holds no answers")
    return given


def _rates(asked: Sequence[Question], given: Sequence[dict[str, str | list[str]]]) -> list[dict[str, Any]]:
    """How often each group of questions was answered rightly. Only a group with as many of both truths has a chance."""
    groups: dict[tuple[str, str], list[Question]] = {}
    balanced: set[tuple[str, str]] = set()
    for question in asked:
        if question.kind == "turing":
            names, even = ["all", question.group], "all"
        elif question.kind == "same-person":
            names, even = [question.group, f"{question.group}, {_pair(question)}"], question.group
        else:
            continue
        balanced.add((question.kind, even))
        for name in names:
            groups.setdefault((question.kind, name), []).append(question)
    rows = []
    for (kind, group), members in sorted(groups.items(), key=lambda item: (KINDS.index(item[1][0].kind), item[0])):
        right = _matrix(members, given, lambda question, answer: float(answer == question.truth))
        rate = interval(right)
        if rate is None:
            continue
        row: dict[str, Any] = {"kind": kind, "group": group, **vars(rate), "chance": None}
        if (kind, group) in balanced:
            signal = "made" if kind == "turing" else "same"
            row |= {"chance": CHANCE, "against_chance": _against(rate), "d_prime": _d_prime(members, given, signal)}
        if kind == "same-person" and group in PAPER_VERIFICATION:
            row["paper"] = PAPER_VERIFICATION[group]
        rows.append(row)
    return rows


def _pair(question: Question) -> str:
    if question.truth == "different":
        return "two people"
    return "one person, " + (
        "one photo" if len({picture["photo"] for picture in question.pictures}) == 1 else "two photos"
    )


def _part_rates(asked: Sequence[Question], given: Sequence[dict[str, str | list[str]]]) -> list[dict[str, Any]]:
    """How often each part was named, and where the truth is known, also when it changed and when it did not."""
    rows = []
    members = [question for question in asked if question.kind == "parts"]
    for part in PARTS:
        named = _matrix(members, given, lambda _, answer, part=part: float(part in answer))  # type: ignore[misc]
        if (rate := interval(named)) is None:
            continue
        row: dict[str, Any] = {"part": part, **vars(rate), "paper": PAPER_PARTS[part]}
        for name, truth in (("named_when_changed", True), ("named_when_kept", False)):
            known = [q for q in range(len(members)) if dict(members[q].truth).get(part) is truth]  # type: ignore[arg-type]
            found = interval(named[:, known])
            row[name] = vars(found) if found else None
        rows.append(row)
    return rows


def _matrix(
    asked: Sequence[Question],
    given: Sequence[dict[str, str | list[str]]],
    value: Callable[[Question, str | list[str]], float],
) -> np.ndarray:
    """(participants, questions) float64, NaN where there is no answer."""
    return np.array(
        [[value(q, answers[q.id]) if q.id in answers else np.nan for q in asked] for answers in given], np.float64
    ).reshape(len(given), len(asked))


def interval(answers: np.ndarray) -> Rate | None:
    """The mean of the answers with its 95 % interval; None where there is no answer.

    answers : (participants, questions) in 0..1, NaN where there is none

    Bootstrap over questions and, where there are several, over participants at once, each answer weighing the product
    of how often its question and its participant were drawn (the pigeonhole bootstrap; Owen, Annals of Applied
    Statistics 1(2), 2007). Where all answers agree on 0 or 1 every resample does too; the exact (Clopper-Pearson) limit
    for as many trials as there are questions, 1 − 0.025^(1/Q), stands in.
    """
    answers = answers[:, ~np.isnan(answers).all(axis=0)]
    answers = answers[~np.isnan(answers).all(axis=1)]
    people, questions = answers.shape
    if not answers.size:
        return None
    there = ~np.isnan(answers)
    values = np.nan_to_num(answers)
    count = int(there.sum())
    mean = float(values.sum() / count)
    exact = 1.0 - 0.025 ** (1.0 / questions)
    if mean in (0.0, 1.0):
        low, high = (0.0, exact) if mean == 0.0 else (1.0 - exact, 1.0)
        return Rate(mean, low, high, questions, count)
    rng = np.random.default_rng(0)
    asked = rng.multinomial(questions, np.full(questions, 1 / questions), BOOTSTRAPS)
    asking = rng.multinomial(people, np.full(people, 1 / people), BOOTSTRAPS)
    weight = ((asking @ there) * asked).sum(axis=1)
    drawn = ((asking @ values) * asked).sum(axis=1)[weight > 0] / weight[weight > 0]
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Rate(mean, float(low), float(high), questions, count)


def _against(rate: Rate) -> str:
    if rate.low > CHANCE:
        return "above"
    return "below" if rate.high < CHANCE else "at"


def _d_prime(asked: Sequence[Question], given: Sequence[dict[str, str | list[str]]], signal: str) -> float | None:
    """z(hits) − z(false alarms) of all participants together; None where one of the two truths has no answer.

    Rates are (n + 1/2) / (N + 1), which no perfect score makes infinite (Hautus, Behavior Research Methods 27, 1995).
    """
    said = [(q.truth == signal, answers[q.id] == signal) for answers in given for q in asked if q.id in answers]
    hits, alarms = ([answer for truth, answer in said if truth is wanted] for wanted in (True, False))
    if not hits or not alarms:
        return None
    z = norm.ppf([(sum(part) + 0.5) / (len(part) + 1) for part in (hits, alarms)])
    return float(z[0] - z[1])


# ------------------------------------------------------------------------------------------------------------ show


def counts(key: Key) -> dict[str, int]:
    """Questions by kind and group."""
    found = Counter(f"{q.kind}, {q.group}" if q.kind != "parts" else q.kind for q in key.questions)
    return dict(found)


def lines(report: dict[str, Any]) -> list[str]:
    """A score as Markdown, for a person."""
    took_part = f"{report['participants']} participant{'s' if report['participants'] != 1 else ''}"
    out = [f"{took_part}, {report['answers']} answers to {report['questions']} questions"]
    if report["rates"]:
        out += ["", "| kind | questions | answers | right | 95 % | chance 50 % | d′ | paper |", "| --- " * 8 + "|"]
        for row in report["rates"]:
            against = {"above": "above", "below": "below", "at": "not told from it"}.get(row.get("against_chance"), "")
            d_prime = f"{row['d_prime']:.2f}" if row.get("d_prime") is not None else ""
            paper = f"{row['paper']:.2f}" if "paper" in row else ""
            cells = (f"{row['kind']}: {row['group']}", row["questions"], row["answers"], f"{row['value']:.2f}")
            out.append(_line(*cells, _range(row), against, d_prime, paper))
    if report["parts"]:
        out += ["", "| part | named | 95 % | paper | where changed | where kept |", "| --- " * 6 + "|"]
        for row in report["parts"]:
            known = [
                f"{found['value']:.2f} [{_range(found)}], {found['answers']} answers" if found else "–"
                for found in (row["named_when_changed"], row["named_when_kept"])
            ]
            out.append(_line(row["part"], f"{row['value']:.2f}", _range(row), f"{row['paper']:.2f}", *known))
    return out


def _line(*cells: object) -> str:
    return "| " + " | ".join(map(str, cells)) + " |"


def _range(row: dict[str, Any]) -> str:
    return f"{row['low']:.2f} to {row['high']:.2f}"
