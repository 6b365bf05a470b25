"""What an audit looks at: the released faces, each beside the original it stands for, as recognisers see both.

Recognisers look once, over Ray Data, and what they saw is kept in the workspace: an audit that is asked for another
attack does not look again.
"""

from __future__ import annotations

import hashlib
import posixpath
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from facecrowd.pipeline import plan as planning
from facecrowd.pipeline import publish, ray_data, steps
from facecrowd.pipeline.attributes import truth
from facecrowd.pipeline.config import ReleaseConfig
from facecrowd.pipeline.errors import ConfigError, InputError
from facecrowd.pipeline.photos import read_table
from facecrowd.pipeline.presets import predictable
from facecrowd.pipeline.progress import Progress
from facecrowd.pipeline.record import Record, predictions, recorded_predictors
from facecrowd.pipeline.schema import FACES, LINK, PLAN, RENDERED, RENDERED_PHOTOS
from facecrowd.pipeline.storage import Folder, Parts, Workspace
from facecrowd.pipeline.witnesses import Seen, look
from facecrowd.stages import align, models
from facecrowd.stages.decode import decode
from facecrowd.stages.encode import encode
from facecrowd.stages.runkey import RunKey

RECOGNISERS = ("arcface-mobilefacenet", "sface", "facex-zoo-1", "facex-zoo-2", "edgeface-s")
"""Those that an audit asks, where their files are at hand."""

BLOCK = 1024
CUT_QUALITY = 95
"""Of the JPEG file of a face that is cut from a released photo."""


class Evidence:
    """A release and the workspace that made it.

    n released faces, in the order of the release's manifest; N originals: all faces of the workspace, released or not.

    name : (n,) of the released images; face_id : (n,) of the originals they stand for; row : (n,) int64, positions of
    these among the originals; subject : (N,) str, "" for faces without a person; plan : of the originals
    """

    def __init__(
        self, url: str | None, workspace: str, snapshot: int | None = None, catalog: str | None = None
    ) -> None:
        """
        url : the release's folder; None for what a snapshot of the workspace's tables says was published
        snapshot : of the Iceberg table ``link``, where ``url`` is None
        catalog : what the workspace's PyIceberg catalog is called here, where that is not as it was called there

        Raises ConfigError where the workspace did not make the release, or has no such snapshot.
        """
        self._catalog = catalog
        self.workspace = Workspace(workspace, catalog)
        if catalog is not None:
            self.workspace.check()
        self.key: RunKey = self.workspace.key()
        if url is not None:
            self.record = Record.of(self.workspace.folder, hashlib.sha256(Folder(url).read(publish.CARD)).hexdigest())
        else:
            self.record = self._recorded(snapshot)
        self.workspace = Workspace(workspace, catalog or self.config.workspace.catalog)
        photos = None if self.config.output == "crop" else self._of(RENDERED_PHOTOS, "rendered")
        kept = steps.Kept(self._of(RENDERED, "rendered"), photos)
        self.images = kept if url is None else steps.Published(Folder(url))
        self.link, self.faces = self._of(LINK, "release"), self._of(FACES, "faces")
        self.plan = planning.load(
            self.config,
            self._of(PLAN, "plan").read_all(self.record.parts),
            self.faces.read_all(self.record.parts, ["embedding"]),
            self.record.subjects_from,
            self.record.split_rate,
            self.record.merged,
            self.record.planned,
        )
        self.links = [row for part in sorted(self.link.done()) for row in self.link.read(part).to_pylist()]
        position = {face: row for row, face in enumerate(self.plan.face_id)}
        self.name = np.array([row["name"] for row in self.links], dtype=object)
        self.face_id = np.array([row["face_id"] for row in self.links], dtype=object)
        self.row = np.array([position[face] for face in self.face_id], dtype=np.int64)
        self.subject = np.array(["" if who is None else str(who) for who in self.plan.subject_id], dtype=str)

    def _recorded(self, snapshot: int | None) -> Record:
        folder = self.workspace.folder
        there: list[int] = []
        for name in folder.child("releases").names():
            record = Record.read(folder, f"releases/{name}")
            space = Workspace(self.workspace.url, self._catalog or record.config.workspace.catalog)
            space.check()
            runs = space.snapshots(LINK)
            if snapshot in runs and record.runs["release"] == runs[snapshot] and record.card:
                return record
            there += [at for at in runs if at not in there]
        if snapshot in there:
            raise ConfigError(f"--snapshot {snapshot}: the release that it was committed for was never finished")
        known = ", ".join(map(str, there)) or "none"
        raise ConfigError(f"--snapshot {snapshot}: not one of the table link in this workspace, which are: {known}")

    @property
    def card(self) -> str:
        """SHA-256 of the release's card."""
        return self.record.card

    def _of(self, manifest: Any, run: str) -> Parts:
        return self.workspace.parts(manifest, self.record.runs[run])

    @cached_property
    def snapshot(self) -> int | None:
        """The Iceberg snapshot by which the link from this release to its sources was committed; None where the catalog
        is out of reach from here."""
        try:
            self.workspace.check()
        except ConfigError:
            return None
        run = self.record.runs["release"]
        return next((at for at, of in self.workspace.snapshots(LINK).items() if of == run), None)

    @property
    def config(self) -> ReleaseConfig:
        return self.record.config

    def __len__(self) -> int:
        return len(self.row)

    # ------------------------------------------------------------------------------------------------------ pixels

    def released(self, which: Sequence[int] | np.ndarray) -> list[bytes]:
        """JPEG bytes of released faces, as they lie in the release; of photos, cut where the original lay."""
        positions = [int(i) for i in which]
        images = self.images([self.links[i] for i in positions])
        found = [images[self.links[i]["name"]] for i in positions]
        if self.config.output == "crop":
            return found
        points = self._cells(self.row[positions], "landmarks")
        return [self._cut(photo, point) for photo, point in zip(found, points, strict=True)]

    def all_released(self) -> Iterator[bytes]:
        """``released`` of each of the n faces, read a block at a time."""
        for start in range(0, len(self), BLOCK):
            yield from self.released(range(start, min(start + BLOCK, len(self))))

    def _cut(self, photo: bytes, landmarks: Sequence[float]) -> bytes:
        side = self.config.detect.crop_size
        points = np.array(landmarks, np.float64).reshape(1, 5, 2)
        crop = align.warp(decode(photo), align.similarity(points, align.template(side))[0], side)
        return encode(crop, quality=CUT_QUALITY)

    def originals(self, rows: Sequence[int] | np.ndarray) -> list[bytes]:
        """JPEG bytes of the aligned crops of originals."""
        return [bytes(crop) for crop in self._cells(np.asarray(rows), "crop")]

    def _cells(self, rows: np.ndarray, column: str) -> list[Any]:
        out: list[Any] = [None] * len(rows)
        parts = self.plan.part[rows]
        for part in np.unique(parts):
            where = np.flatnonzero(parts == part)
            places = self.plan.row[rows[where]].tolist()
            distinct = sorted(set(places))
            found = self.faces.read_rows(int(part), distinct, [column])[column].to_pylist()
            cells = dict(zip(distinct, found, strict=True))
            for at, place in zip(where, places, strict=True):
                out[at] = cells[place]
        return out

    # --------------------------------------------------------------------------------------------------- attributes

    @cached_property
    def labels(self) -> dict[str, np.ndarray]:
        """Attributes of the originals → (N,) int8: 1, 0, and -1 where unknown. What the input brought, whether or not
        the policy names it, and for the rest what the steering predictor took it for."""
        known: dict[str, np.ndarray] = {}
        predictors = recorded_predictors(self.record, self.workspace)
        if predictors.steer is not None:
            from facecrowd.stages.attributes import ATTRIBUTES as NAMES

            found = predictions(self.faces, self.record.parts)
            for at, name in enumerate(NAMES):
                p = found[:, at]
                known[name] = np.where(np.isnan(p), -1, p >= predictors.steer.threshold[at]).astype(np.int8)
        known |= self._of_the_table()
        return known | {name: truth(values) for name, values in self.plan.originals.items()}

    def _of_the_table(self) -> dict[str, np.ndarray]:
        """What the release's table of attributes says of the originals, where it is still to be had."""
        asked = self.config.input
        try:
            table = read_table(asked.attributes or "", "input.attributes") if asked.attributes else None
        except InputError:
            return {}
        if table is None or asked.attributes_key not in table.column_names:
            return {}
        keys = [str(key) for key in table[asked.attributes_key].to_pylist()]
        at = {key: row for row, key in enumerate(keys)}
        photos = [str(photo) for photo in self.plan.photo]
        rows = np.array([at.get(photo, at.get(posixpath.basename(photo), -1)) for photo in photos])
        found = {}
        for name in predictable():
            if name in table.column_names:
                values = truth(table[name].to_pylist())
                found[name] = np.where(rows >= 0, values[rows], -1).astype(np.int8)
        return found

    def groups(self, names: Sequence[str]) -> dict[str, np.ndarray]:
        """Demographic groups of the originals: attribute → (N,) str, "1", "0", "" where unknown."""
        words = np.array(["0", "1", ""])
        return {name: words[self.labels[name]] for name in names if name in self.labels}

    @cached_property
    def shown(self) -> dict[str, np.ndarray]:
        """What the release states: attribute → (n,) str."""
        return {name: values[self.row].astype(str) for name, values in self.plan.released.items()}

    # --------------------------------------------------------------------------------------------------- recognisers

    def recognisers(self, asked: Sequence[str] | None = None) -> tuple[str, ...]:
        """The recognisers that can be asked: those named, or all of ``RECOGNISERS`` whose files are here. The run's own
        comes first. Raises ModelError for a named one that is not here."""
        folder = self.config.detect.models
        own = self.config.detect.recogniser
        if asked:
            for name in asked:
                models.resolve(name, "recognition", folder=folder)
            return tuple(dict.fromkeys(asked))
        return tuple(
            dict.fromkeys([own, *(name for name in RECOGNISERS if models.at_hand(name, "recognition", folder))])
        )

    def look(self, recognisers: Sequence[str], progress: Progress) -> tuple[Seen, Seen]:
        """What recognisers see in the n released faces and in the N originals. Made once."""

        def work(step: ray_data.Step, missing: list[int]) -> None:
            with ray_data.session(self.config.compute.address, self.config.compute.cpus):
                ray_data.run(step, missing, progress)

        column = "image" if self.config.output == "crop" else "photo"
        released = steps.ReleasedSource(self.images, self.link, self.faces)
        detect, count = self.config.detect, len(self.link.done())
        after = look(self.workspace, ("released", self.card), released, column, count, detect, recognisers, work)
        originals, run = steps.OriginalSource(self.faces), ("originals", self.record.runs["faces"])
        before = look(self.workspace, run, originals, "crop", self.record.parts, detect, recognisers, work)
        return after, before
