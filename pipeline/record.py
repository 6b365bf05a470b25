"""What a release left in its workspace, read back: by the audits, and by the release itself when it publishes."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from facecrowd.pipeline import attributes, steps
from facecrowd.pipeline import plan as planning
from facecrowd.pipeline.attributes import Looked, Predictors
from facecrowd.pipeline.audit import Counts, Released
from facecrowd.pipeline.config import ReleaseConfig
from facecrowd.pipeline.errors import ConfigError, WorkspaceError
from facecrowd.pipeline.perturbation import Perturbations
from facecrowd.pipeline.preflight import Network
from facecrowd.pipeline.schema import FACES, ORIGINALS, PREDICTORS, RENDERED
from facecrowd.pipeline.storage import Folder, Parts, Workspace
from facecrowd.pipeline.traces import LIKE
from facecrowd.pipeline.translation import Translations, to_change
from facecrowd.pipeline.verification import Verified
from facecrowd.stages import models
from facecrowd.stages.stage import OK


@dataclass(frozen=True)
class Record:
    """What a workspace keeps of a release it made, to audit it again. ``card`` is empty until it is published."""

    card: str
    config: ReleaseConfig
    runs: dict[str, str]
    parts: int
    counts: Counts
    subjects_from: str
    split_rate: float | None
    merged: int
    brought: tuple[str, ...] = ()
    renderer: tuple[Network, ...] = ()
    planned: planning.Planned | None = None
    verified: Verified | None = None

    def write(self, folder: Folder, name: str) -> None:
        data = {**vars(self), "config": self.config.model_dump(mode="json"), "counts": asdict(self.counts)}
        data["renderer"] = [asdict(network) for network in self.renderer]
        data["planned"] = self.planned and self.planned.as_dict()
        data["verified"] = self.verified and self.verified.as_dict()
        folder.write(json.dumps(data, indent=1).encode(), *name.split("/"))

    @classmethod
    def read(cls, folder: Folder, name: str) -> Record:
        """A record as it was written. Raises WorkspaceError where the file is damaged."""
        written = folder.read(*name.split("/"))
        try:
            data = json.loads(written)
            config = ReleaseConfig.model_validate(data.pop("config"))
            listed = {
                "brought": tuple(data.get("brought", ())),
                "renderer": tuple(Network(**row) for row in data.get("renderer", ())),
                "planned": planning.Planned.read(data["planned"]) if data.get("planned") else None,
                "verified": Verified.read(data["verified"]) if data.get("verified") else None,
            }
            return cls(**{**data, **listed, "config": config, "counts": Counts(**data["counts"])})
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            what = f"{type(error).__name__}: {' '.join(str(error).split())[:100]}"
            raise WorkspaceError(
                f"{folder.url}/{name}: damaged ({what}); remove it and the release it was of, and start again"
            ) from None

    @classmethod
    def of(cls, folder: Folder, card: str) -> Record:
        """The record of the release whose card has this hash. Raises ConfigError where there is none."""
        for name in folder.child("releases").names():
            record = cls.read(folder, f"releases/{name}")
            if record.card == card:
                return record
        raise ConfigError(f"workspace {folder.url}: did not make this release, or the release was changed since")


def lone_surrogates(plan: planning.Plan, surrogates: pa.Table) -> list[int]:
    """Classes whose surrogate the recogniser takes for an original of one of its members, as if never averaged.

    surrogates : class_id and embedding of every surrogate
    """
    rows = plan.kept
    order = rows[np.argsort(plan.class_id[rows], kind="stable")]
    members = np.split(order, np.flatnonzero(np.diff(plan.class_id[order])) + 1)
    of_class = {int(plan.class_id[of[0]]): plan.embedding[of] for of in members}
    faces = zip(
        surrogates["class_id"].to_pylist(),
        steps.embedding_array(surrogates["embedding"], plan.embedding.shape[1]),
        strict=True,
    )
    # A class that was left out once it was rendered has no members any more.
    return sorted({c for c, face in faces if c in of_class and float((of_class[c] @ face).max()) >= LIKE})


def rendered_hashes(rendered: Parts, count: int) -> list[str]:
    """The hash of every rendered face, in the plan's order; empty where there is none."""
    hashes: list[str] = []
    for part in range(count):
        images = rendered.read(part, ["image"])["image"].to_pylist()
        hashes += [hashlib.sha256(image).hexdigest() if image is not None else "" for image in images]
    return hashes


def released_faces(plan: planning.Plan, parts: Parts, count: int, hashes: list[str] | None) -> Released:
    """The released faces as the judge saw them; ``hashes``: of every rendered face, in the plan's order, where they
    matter."""
    row_of = {face: row for row, face in enumerate(plan.face_id)}
    rows: list[int] = []
    vectors, detected, shown = [], [], []
    for part in range(count):
        table = parts.read(part, ["face_id", "status", "detected", "embedding", "attributes"])
        table = table.filter(pc.equal(table["status"], OK))
        rows += [row_of[face] for face in table["face_id"].to_pylist()]
        vectors.append(steps.embedding_array(table["embedding"], plan.embedding.shape[1]))
        detected += table["detected"].to_pylist()
        shown.append(steps.attribute_array(table["attributes"]))
    kept = np.array([hashes[row] if hashes else "" for row in rows], dtype=object)
    flags = np.array(detected, dtype=bool)
    return Released(np.array(rows, dtype=np.int64), np.concatenate(vectors), flags, kept, np.concatenate(shown))


def predictions(parts: Parts, count: int) -> np.ndarray:
    """The probabilities of a manifest's attributes, (N, 40) float32, NaN where it has none."""
    return steps.attribute_array(parts.read_all(count, ["attributes"])["attributes"])


def what_was_looked_at(record: Record, workspace: Workspace, predictors: Predictors) -> Looked:
    """What the run's predictors said of the originals, from its manifests."""
    margin = record.config.attributes.unknown_margin
    predicted, judged = (
        predictions(workspace.parts(manifest, record.runs[run]), record.parts) if speaks else None
        for manifest, run, speaks in (
            (FACES, "faces", predictors.steer),
            (ORIGINALS, "originals", predictors.judge),
        )
    )
    done = None
    if record.config.method.translated:
        done = Translations.read(workspace.parts(RENDERED, record.runs["rendered"]), record.parts)
    perturbed = None
    if record.config.perturb.on:
        perturbed = Perturbations.read(workspace, record.runs["rendered"], record.parts, record.config.perturb)
    return Looked(predictors, record.brought, margin, predicted, judged, done, perturbed)


def what_had_to_change(
    config: ReleaseConfig, plan: planning.Plan, seen: Released, looked: Looked, report: dict[str, Any]
) -> list[str]:
    """How many faces had to change and did, which is for whoever runs a translation and for nobody else."""
    if looked.translations is None:
        return []
    faces = (config, looked.translations, plan.originals, seen.row, report["translation"]["steering"])
    return to_change(*faces, looked.predictors.judge, looked.judged, seen.attributes)


def recorded_predictors(record: Record, workspace: Workspace) -> Predictors:
    """The predictors that spoke in a run, as its manifests have them."""
    found = {}
    for purpose, run in (("steer", "faces"), ("judge", "rendered")):
        parts = workspace.parts(PREDICTORS, record.runs[run])
        found[purpose] = attributes.read(parts.read(0)) if parts.done() else None
    return Predictors(**found)


def model_rows(config: ReleaseConfig, hashes: dict[str, str]) -> list[dict[str, str]]:
    """The models of a run as the audit names them."""
    names = {"detector": config.detect.detector, "recogniser": config.detect.recogniser}
    return [model_row(purpose, name, hashes[purpose]) for purpose, name in names.items()]


def model_row(purpose: str, name: str, digest: str) -> dict[str, str]:
    """A model as the audit names it: never by a path of this machine."""
    known = models.MODELS.get(name)
    return {
        "name": name if known else f"the user's own ({os.path.basename(name)})",
        "purpose": purpose,
        "sha256": digest,
        "licence": models.licence_of(name, digest),
    }
