"""What a perturbation did to a release's faces, and what recognisers and the judge made of them before and after it.

Whoever takes a perturbation off again sees the face from before it, so an audit states the worse of the two.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from facecrowd.pipeline import steps
from facecrowd.pipeline.attributes import Predictor, share
from facecrowd.pipeline.config import Perturb, ReleaseConfig
from facecrowd.pipeline.preflight import FOOLED, SURROGATE
from facecrowd.pipeline.presets import predictable
from facecrowd.pipeline.schema import PERTURBATION, RENDERED
from facecrowd.pipeline.storage import Workspace

BEFORE, AFTER = "before the perturbation", "after the perturbation"

PERTURBED = (
    "Every released face carries a perturbation ({name}) of at most {bound:g} grey levels ({norm}) before it is "
    "encoded, made with the gradients of {against} (white box). Success against these and others is measured, never "
    "guaranteed, and whoever takes it off again has the face from before it: the figures below are the worse of before "
    "and after."
)
ONCE = "It is made once for each face of a class, so files of one class stay alike and it tells no two people apart."
ONE_VECTOR = (
    "It is one vector for all faces, fitted on faces of the classes, so files of one class stay alike and it tells no "
    "two people of a class apart."
)
WHITE_BOX = "The recogniser of these figures is one that it was made against; others may see more."
NORMS = {"linf": "the largest change of a value", "l2": "the root mean square of a face's changes"}


@dataclass(frozen=True)
class Perturbations:
    """Of the N rows of the plan, as in the manifest ``rendered``.

    detected : (N,) object; embedding : (N, D), 0 in rows without; attributes : (N, 40), NaN in rows without: each as
    before the perturbation; target : per row, None without; linf, rms : (N,), NaN in rows without; universal : how the
    vector was made, where there is one
    """

    detected: np.ndarray
    embedding: np.ndarray
    attributes: np.ndarray
    target: list[int | None]
    linf: np.ndarray
    rms: np.ndarray
    universal: dict[str, Any] | None = None

    @classmethod
    def read(cls, workspace: Workspace, run: str, count: int, perturb: Perturb) -> Self:
        names = ["detected_before", "embedding_before", "attributes_before", "target", "linf", "rms"]
        table = workspace.parts(RENDERED, run).read_all(count, names)
        about = None
        if perturb.name == "universal":
            about = json.loads(workspace.parts(PERTURBATION, run).read(0, ["about"])["about"][0].as_py())
        return cls(
            np.array(table["detected_before"].to_pylist(), dtype=object),
            steps.embedding_array(table["embedding_before"]),
            steps.attribute_array(table["attributes_before"]),
            table["target"].to_pylist(),
            np.array(table["linf"].to_pylist(), dtype=np.float64),
            np.array(table["rms"].to_pylist(), dtype=np.float64),
            about,
        )


def worse(
    after: Sequence[dict[str, Any]], before: Sequence[dict[str, Any]], figure: str, higher: bool
) -> list[dict[str, Any]]:
    """Row by row the one whose figure is the worse, saying when it was measured; that of after where both are equal.

    higher : whether more is worse
    """
    out = []
    for row, old in zip(after, before, strict=True):
        found = [(r, when) for r, when in ((row, AFTER), (old, BEFORE)) if r.get(figure) is not None]
        if not found:
            out.append(row)
            continue
        chosen, when = (max if higher else min)(found, key=lambda pair: pair[0][figure])
        out.append({**chosen, "when": when})
    return out


def measured(
    config: ReleaseConfig,
    done: Perturbations,
    rows: np.ndarray,
    detected: np.ndarray,
    shown: np.ndarray | None,
    judge: Predictor | None,
    attacks: tuple[Sequence[dict[str, Any]], Sequence[dict[str, Any]]],
    models: Sequence[dict[str, str]],
) -> dict[str, Any]:
    """What an audit says of a perturbation.

    rows : (n,) positions of the released faces; detected : (n,) of them, as released; shown : (n, 40) the judge's
    probabilities of them; attacks : those on faces as released, and as they were before; models : of the audit
    """
    perturb = config.perturb
    out: dict[str, Any] = {
        "name": perturb.name,
        "bound": perturb.bound,
        "norm": perturb.norm,
        "surrogates": [m["name"] for m in models if m["purpose"] == SURROGATE],
        "recogniser_is_surrogate": white_box(models),
        "largest_change": int(np.nanmax(done.linf[rows])) if len(rows) else None,
        "root_mean_square": round(float(np.nanmean(done.rms[rows])), 4) if len(rows) else None,
        "detection_rate": {"before": share(done.detected[rows].astype(bool)), "after": share(detected)},
        "rank1_per_subject": [
            {
                "gallery": now["gallery"],
                "before": before.get("rank1_per_subject"),
                "after": now.get("rank1_per_subject"),
            }
            for now, before in zip(*attacks, strict=True)
        ],
        "attributes": [],
    }
    if perturb.name == "tip-im":
        targets = Counter(done.target[row] for row in rows if done.target[row] is not None)
        out["faces_by_target"] = {str(target): count for target, count in sorted(targets.items())}
    if done.universal:
        known = zip(done.universal["targets"], done.universal["fooling_rates"], strict=True)
        out["sample"] = done.universal["sample"]
        out["fooled_of_sample"] = [{"model": _model(of["name"]), "share": rate} for of, rate in known]
    if judge is not None and shown is not None:
        now, before = judge.values(shown), judge.values(done.attributes[rows])
        for name in perturb.attributes:
            at = predictable().index(name)
            both = (now[:, at] >= 0) & (before[:, at] >= 0)
            flipped = share(now[both, at] != before[both, at])
            out["attributes"].append({"attribute": name, "faces": int(both.sum()), "judge_flipped": flipped})
    return out


def white_box(models: Sequence[dict[str, str]]) -> bool:
    """Whether the recogniser by which a release is measured is one that it was perturbed against."""
    return bool({m["sha256"] for m in models if m["purpose"] == "recogniser"} & against(models))


def against(models: Sequence[dict[str, str]]) -> set[str]:
    """SHA-256 of the networks that the gradients of a perturbation went through: recognisers, and attribute predictors
    with what they build on."""
    return {m["sha256"] for m in models if m["purpose"] == SURROGATE or m["purpose"].endswith(FOOLED)}


# ------------------------------------------------------------------------------------------------------------ in words


def claims(config: ReleaseConfig, models: Sequence[dict[str, str]]) -> list[str]:
    """What the guarantee of a release says of its perturbation, a sentence or two each."""
    perturb = config.perturb
    if not perturb.on:
        return []
    against = [m["name"] for m in models if m["purpose"] == SURROGATE]
    against += [f"the attribute predictor ({', '.join(perturb.attributes)})"] if perturb.attributes else []
    said = {"name": perturb.name, "bound": perturb.bound, "norm": NORMS[perturb.norm]}
    out = [PERTURBED.format(**said, against=" and ".join(against))]
    if config.method.of_class:
        out.append(ONE_VECTOR if perturb.name == "universal" else ONCE)
    return [*out, WHITE_BOX] if white_box(models) else out


def asked(perturb: Perturb) -> str:
    """What a dry run says."""
    against = [_model(name) for name in perturb.surrogates] + list(perturb.attributes)
    return f"perturbed by {perturb.name}, at most {perturb.bound:g} grey levels, against {', '.join(against)}"


def fitted(about: dict[str, Any]) -> str:
    """What is said of a universal vector when it is there."""
    rates = zip(about["targets"], about["fooling_rates"], strict=True)
    told = ", ".join(f"{_model(target['name'])} {rate:.1%}" for target, rate in rates)
    return f"universal perturbation: fools of its own sample of {about['sample']} faces, before encoding: {told}"


def lines(found: dict[str, Any] | None) -> list[str]:
    """What ``measured`` found, a line each; nothing where nothing was perturbed."""
    if found is None:
        return []
    fooled = ", ".join([*found["surrogates"], *(row["attribute"] for row in found["attributes"])])
    mean = f"root mean square {found['root_mean_square']:.3g}"
    size = f"before encoding: largest change {found['largest_change']} grey levels, {mean}"
    out = [f"perturbed by {found['name']} against {fooled or 'an attribute predictor'}; {size}"]
    if "fooled_of_sample" in found:
        rates = ", ".join(f"{row['model']} {row['share']:.1%}" for row in found["fooled_of_sample"])
        out.append(f"fooled of the {found['sample']} faces that it was fitted on, before encoding: {rates}")
    for row in found["rank1_per_subject"]:
        if row["before"] is not None and row["after"] is not None:
            out.append(f"rank-1, gallery: {row['gallery']}: {row['before']:.1%} before, {row['after']:.1%} after it")
    rate = found["detection_rate"]
    out.append(f"face found: {rate['before']:.1%} before, {rate['after']:.1%} after it")
    for row in found["attributes"]:
        if row["judge_flipped"] is not None:
            out.append(
                f"{row['attribute']}: the judge sees another value after it in {row['judge_flipped']:.1%} of faces"
            )
    if found["recogniser_is_surrogate"]:
        out.append(WHITE_BOX)
    return out


def _model(name: str) -> str:
    """Never by a path of this machine."""
    return os.path.basename(name)
