"""What a release is measured by: its table against the policy, its released pixels against recognisers.

Every figure says what it is: ``formal`` follows from the plan alone and needs no attack to be true; ``measured`` is
what one attack achieved on these data. Nothing in an audit leads to a source: counts and rates only.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa

import facecrowd.privacy.anonymity as anonymity
import facecrowd.privacy.verdict as verdicts
from facecrowd.pipeline import perturbation
from facecrowd.pipeline.attributes import Looked, measured
from facecrowd.pipeline.config import CLOAK, PIXEL_METHODS, ReleaseConfig
from facecrowd.pipeline.plan import Plan, asked
from facecrowd.pipeline.preflight import STEERING
from facecrowd.pipeline.presets import predictable
from facecrowd.pipeline.translation import measured as translated
from facecrowd.pipeline.translation import unchanged
from facecrowd.privacy.classes import Histogram, equivalence_classes, histogram
from facecrowd.privacy.reidentification import Identification, identify
from facecrowd.stages.runkey import RunKey

SCHEMA = 1
ENCODER_BACKBONE = "arcface-mobilefacenet"
PROBES = 20_000
"""Faces attacked at most; more are sampled, whole subjects at a time, and the audit says how many."""

GUARANTEE = (
    "At most 1/{k} per subject: whoever is shown a released face names the person behind it with probability at most "
    "1/{k}, under a uniform prior over the class and without other knowledge. It holds because {why}."
)
AVERAGED = "a released face is the mean of its class's subjects and depends on nothing else"
RENDERED = (
    "a released face is rendered from the mean of its class's subjects, from the attributes that the whole class shows "
    "and from draws of the run key, and depends on nothing else"
)
VARIANTS = (
    "Each class shows up to {surrogates} faces, drawn around it by the run key, with pose, expression and light from "
    "the pool of its people's photos, shuffled; which of them stands for a photo is drawn too, whoever is on it, so it "
    "says nothing of who within the class, and the bound is the same."
)
SELECTED = "All people of a class have the same {select}, which is released, and so no secret of the class."
KEPT = (
    "Measured only: every released face keeps {kept} of its own photo, so it depends on more than its class, and no "
    "bound of 1/{k} covers what that tells of the person."
)
TILTED = (
    "Photo counts are other knowledge: the release shows how many photos its people have, and guessing the "
    "most-photographed person of a class is right for up to {share:.0%} of its faces (effective k {effective:.2f}); "
    "surrogates_per_subject evens the counts out."
)
NO_GUARANTEE = (
    "No guarantee: this method alters each photo on its own, and what is left may still identify the person. "
    "The figures below are what the attacks named here achieved; others may achieve more."
)
DEEPBLUR = (
    "No guarantee: a released face is rendered from the low-passed latent of its original (sigma {sigma:g}), and what "
    "is left may still identify the person. The figures below are what the attacks named here achieved; others may "
    "achieve more."
)
INFERRED = "That {select} was predicted, so that all of them have it is measured, not certain."
NOT_REALISED = (
    "Of {names}, which no predictor knows, faces show what their class's mean happens to show, whatever the release "
    "states: no stated value is realised, and nothing is drawn for one left open (*)."
)
INPAINT = (
    "No guarantee: the search never sees the old face, of which the new one knows the place alone (its landmarks, and "
    "what JPEG carried over its edge), but hair, neck, clothes and background are kept and may still identify the "
    "person. The figures below are what the attacks named here achieved; others may achieve more."
)
PIXELS = ", whose pixels are seen wherever no attribute changed"
GENERATED = ", found again by a generator"
TRANSLATION = (
    "No guarantee of identity: every released face is made from its own original{how}, and what is left may still "
    "identify the person. What the policy asks, it asks of the released attributes, planned by {planner}: one vector "
    "per person{notes}. The figures below are what the attacks named here achieved; others may achieve more."
)
NOT_TRANSLATED = (
    "The translator cannot change {names}: the pixels keep what the originals show, whatever the release states, so "
    "against whoever looks at the pixels the classes do not hold."
)
DRAWN = "Unknown values were drawn before the plan ({drawn}), and count as anybody's."
IDENTITY_KEPT = (
    "Recognisers are MEANT to match these faces: this is no de-identification, and no k is claimed. Whoever has a "
    "recogniser and a photo of a person finds them here. What is altered, measured and not guaranteed, is how people "
    "look to people: in each face the attributes of the parts least tied to its identity are turned into their "
    "opposite. The identity figures below say how well recognition survives, which is the purpose; they are no measure "
    "of protection."
)
CLOAKED = (
    "No guarantee: every released face is its own original, whose pixels are kept by design. People know these faces "
    "as before; all that hides them, and from recognisers alone, is the perturbation."
)
TAUGHT = (
    "The recogniser that was measured with also found the parts to alter, and may have taught the translator what to "
    "keep; others may match less."
)
INTENDED = "recognisers are meant to match"
SAME_NETWORK = "The recogniser that was attacked with is also the one the encoder looks through; others may see more."
PHOTO_OUTPUT = (
    "Measured only: in photo output the background, hair, clothes and placement of the original remain, so the bound "
    "of the class mean does not cover the release."
)
CLUSTERS = (
    "Subjects are clusters of face embeddings, not known people: a person split over clusters counts more than once "
    "(an estimated {split} of the clusters are pieces), so k is not formal."
)


@dataclass(frozen=True)
class Released:
    """The released faces as the judge saw them, decoded from their released bytes.

    row : (n,) positions in the plan; embedding : (n, D) unit vectors; detected : (n,) bool;
    hashes : (n,) of the released faces' images; attributes : (n, 40) the judge's probabilities, where there was one.
    """

    row: np.ndarray
    embedding: np.ndarray
    detected: np.ndarray
    hashes: np.ndarray
    attributes: np.ndarray | None = None

    def repeated(self, images: np.ndarray) -> Released:
        """Each face as often as images stand for its row of the plan (``images``: (N,) int)."""
        index = np.repeat(np.arange(len(self.row)), images[self.row])
        shown = None if self.attributes is None else self.attributes[index]
        return Released(self.row[index], self.embedding[index], self.detected[index], self.hashes[index], shown)


@dataclass(frozen=True)
class Counts:
    """Photos in the input, and the people it names (or clusters found)."""

    photos: int
    named: int


def audit(
    config: ReleaseConfig,
    plan: Plan,
    released: Released,
    key: RunKey,
    counts: Counts,
    images: int,
    models: list[dict[str, str]],
    looked: Looked,
) -> dict[str, Any]:
    """Everything the report says, as plain data; ``met`` is the verdict on the policy.

    images : images in the release; models : name, purpose, sha256 and licence of every model used; looked : what was
    predicted of the originals.
    """
    method = config.method
    formal = method.of_class and not method.keep and config.output == "crop" and plan.subjects.source != "clusters"
    rows = released.row
    people = np.unique(plan.subject_id[rows].astype(str))
    # k, l and t are of the people who are released, with the values of all their photos; what an adversary gains from
    # photo counts is of the images that are, which may be more or fewer of each.
    table = crowded(config, plan, plan.kept[np.isin(plan.subject_id[plan.kept].astype(str), people)])
    shown = crowded(config, plan, rows)
    requirements = _requirements(
        config,
        table,
        shown,
        left_out(len(people), counts.named - plan.subjects.merged),
        formal,
        looked,
        plan.planned.epsilon if plan.planned else None,
    )
    before = _before(released, looked)
    translation = _translation(config, plan, released, before, looked, models)
    now = _attacks(plan, released, key, models)
    attacks, perturbed = now, None
    if before is not None and looked.perturbations is not None:
        then = _attacks(plan, before, key, models)
        # Where recognisers are meant to match, less is worse.
        attacks = perturbation.worse(now, then, "rank1_per_subject", higher=not method.keeps_identity)
        judge, seen = looked.predictors.judge, (released.detected, released.attributes)
        perturbed = perturbation.measured(config, looked.perturbations, rows, *seen, judge, (now, then), models)
    return {
        "schema": SCHEMA,
        "method": method.name,
        "recognisers": INTENDED if method.keeps_identity else None,
        "rendering": _rendering(config, plan),
        "output": config.output,
        "policy": config.public()["policy"],
        "met": all(r["met"] for r in requirements),
        "requirements": requirements,
        "guarantee": {
            "kind": "formal" if formal else "identity kept" if method.keeps_identity else "measured",
            "text": " ".join(
                [
                    _guarantee(config, plan, shown, formal, looked.brought, translation),
                    *perturbation.claims(config, models),
                ]
            ),
        },
        "counts": {
            "photos": counts.photos,
            "rows": len(plan.status),
            "faces": int((plan.embedding != 0).any(axis=1).sum()),
            "subjects": plan.subjects.count,
            "subjects_named": counts.named,
            "subjects_merged": plan.subjects.merged,
            "subjects_released": len(people),
            "subjects_from": plan.subjects.source,
            "split_rate": plan.subjects.split_rate,
            "classes": plan.classes,
            "released_faces": len(rows),
            "released_images": images,
            "distinct_faces": len(set(released.hashes.tolist())),
            "not_released": dict(sorted(Counter(np.delete(plan.status, plan.kept).tolist()).items())),
        },
        "classes": _classes(shown),
        "identity": _label(config, plan, rows),
        "attributes": _attributes(config, plan, released, before, looked),
        "translation": translation,
        "perturbation": perturbed,
        "reidentification": [{**attack, "intended": True} if method.keeps_identity else attack for attack in attacks],
        "detection_rate": round(float(released.detected.mean()), 6) if len(rows) else None,
        "models": models,
    }


def _before(released: Released, looked: Looked) -> Released | None:
    """The released faces as the judge saw them before they were perturbed; None where they were not."""
    done, rows = looked.perturbations, released.row
    if done is None:
        return None
    shown = None if released.attributes is None else done.attributes[rows]
    return replace(released, embedding=done.embedding[rows], detected=done.detected[rows], attributes=shown)


def _attributes(
    config: ReleaseConfig, plan: Plan, released: Released, before: Released | None, looked: Looked
) -> dict[str, Any] | None:
    rows = released.row
    unit = ("classes", plan.class_id[rows]) if config.method.of_class else ("subjects", plan.subject_id[rows])
    table = (config.policy, looked, plan.subject_id, plan.originals, plan.released, rows)
    now = measured(*table, released.attributes, released.hashes, unit)
    if now is not None and before is not None:
        then = measured(*table, before.attributes, before.hashes, unit)
        assert then is not None
        now["shown"] = perturbation.worse(now["shown"], then["shown"], "released_agreement", higher=False)
    return now


def _translation(
    config: ReleaseConfig,
    plan: Plan,
    released: Released,
    before: Released | None,
    looked: Looked,
    models: list[dict[str, str]],
) -> dict[str, Any] | None:
    if looked.translations is None:
        return None
    steering = next(m["name"] for m in models if m["purpose"] == STEERING)
    faces = (config, looked.translations, released.row, steering)
    now, *then = (
        translated(*faces, looked.predictors.judge, looked.judged, seen.attributes)
        for seen in (released, before)
        if seen is not None
    )
    if then:
        now["attributes"] = perturbation.worse(now["attributes"], then[0]["attributes"], "judge_realised", higher=False)
    return now


def _guarantee(
    config: ReleaseConfig,
    plan: Plan,
    shown: Histogram | None,
    formal: bool,
    brought: Sequence[str],
    translation: dict[str, Any] | None = None,
) -> str:
    method, k = config.method, config.policy.k
    if method.name == CLOAK:
        return CLOAKED
    if method.name in PIXEL_METHODS:
        return NO_GUARANTEE
    if method.keeps_identity:
        return " ".join([IDENTITY_KEPT, *([TAUGHT] if config.detect.recogniser == ENCODER_BACKBONE else [])])
    if method.translated:
        return " ".join(_of_attributes(config, plan, translation))
    same = [SAME_NETWORK] if method.generated and config.detect.recogniser == ENCODER_BACKBONE else []
    if not method.of_class:
        text = INPAINT if method.name == "inpaint" else DEEPBLUR.format(sigma=method.latent_sigma)
        return " ".join([text, *same])
    parts = [GUARANTEE.format(k=k, why=RENDERED if method.generated else AVERAGED)] if formal else []
    if formal and method.surrogates > 1:
        parts.append(VARIANTS.format(surrogates=method.surrogates))
    if formal and method.select:
        parts.append(SELECTED.format(select=method.select))
        if method.select not in brought:
            parts.append(INFERRED.format(select=method.select))
    released = config.policy.quasi_identifiers if method.generated else ()
    if unknown := [name for name in released if name not in predictable()]:
        parts.append(NOT_REALISED.format(names=_and(unknown)))
    if method.keep:
        parts.append(KEPT.format(kept=_and(method.keep), k=k))
    effective = anonymity.effective_k(shown).value if shown is not None else 1.0
    if formal and effective < (config.policy.k or 1) - 1e-9:
        parts.append(TILTED.format(share=1 / effective, effective=effective))
    if config.output == "photo":
        parts.append(PHOTO_OUTPUT)
    if plan.subjects.source == "clusters":
        parts.append(CLUSTERS.format(split=f"{plan.subjects.split_rate or 0:.1%}"))
    return " ".join([*parts, *same])


def _of_attributes(config: ReleaseConfig, plan: Plan, translation: dict[str, Any] | None) -> list[str]:
    """What is claimed of a translation: a table, and no pixel."""
    planned = plan.planned
    notes = "".join(f"; {note}" for note in (planned.notes if planned else ()))
    how = GENERATED if config.method.generated else PIXELS
    parts = [TRANSLATION.format(how=how, planner=config.method.planner, notes=notes)]
    if translation and (left := unchanged(translation)):
        parts.append(f"{left}.")
    if translation and translation["not_translated"]:
        parts.append(NOT_TRANSLATED.format(names=_and(translation["not_translated"])))
    if planned and planned.drawn:
        drawn = [f"{name} of {count} people" for name, count in planned.drawn.items()]
        parts.append(DRAWN.format(drawn=", ".join(drawn)))
    if config.method.generated and config.detect.recogniser == ENCODER_BACKBONE:
        parts.append(SAME_NETWORK)
    if plan.subjects.source == "clusters":
        parts.append(CLUSTERS.format(split=f"{plan.subjects.split_rate or 0:.1%}"))
    return parts


def _and(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else names[0]


def _rendering(config: ReleaseConfig, plan: Plan) -> dict[str, Any] | None:
    """How k-same showed its classes, and what a translation was asked to show; None for other methods."""
    method = config.method
    if method.keeps_identity:
        return {"passes": method.passes, "parts": method.parts, "part_threshold": method.part_threshold}
    if method.translated:
        # What PPAS chose is for the workspace alone: whoever knows it swaps back.
        told = (
            {name: value for name, value in plan.planned.as_dict().items() if name != "choices"} if plan.planned else {}
        )
        return {"passes": method.passes, "planned": told}
    if not method.of_class:
        return None
    return {
        "surrogate": method.surrogate,
        "surrogates": method.surrogates,
        "select": method.select,
        "keep": list(method.keep),
    }


def crowds(plan: Plan, rows: np.ndarray) -> np.ndarray:
    """The class of each of these rows, as it is released: (m,) int. A class whose faces are released with different
    attributes is as many classes as these make of it."""
    told = {name: pa.array(values[rows], pa.string()).fill_null("") for name, values in plan.released.items()}
    if not told or not len(rows):
        return plan.class_id[rows]
    return equivalence_classes({**told, "": pa.array(plan.class_id[rows])}).ids


def crowded(config: ReleaseConfig, plan: Plan, rows: np.ndarray) -> Histogram | None:
    """Rows of the plan in their classes with the originals' sensitive values; None where nothing forms classes."""
    if plan.classes == 0:
        return None
    sensitive = {name: plan.originals[name][rows].tolist() for name in config.policy.sensitive}
    return histogram(
        plan.subject_id[rows].astype(str),
        class_ids=crowds(plan, rows),
        sensitive=pa.table(sensitive) if sensitive else None,
    )


def left_out(released: int, named: int) -> float:
    """The share of the named people that has no released face; exact where 1 - 7 / 10 is a little above 3 / 10."""
    return (named - released) / max(named, 1)


def _requirements(
    config: ReleaseConfig,
    table: Histogram | None,
    shown: Histogram | None,
    suppressed: float,
    formal: bool,
    looked: Looked,
    epsilon: float | None,
) -> list[dict[str, Any]]:
    policy = config.policy
    out: list[dict[str, Any]] = []
    if table is None or shown is None:
        if policy.k:
            note = f"{config.method.name} forms no classes: every released face stands for one person"
            out.append({"name": "k", "asked": policy.k, "found": 1, "met": False, "kind": "formal", "note": note})
    else:
        kind = "formal" if formal else "of the released attributes only"
        if config.method.of_class and not formal:
            kind = "measured"
        # l and t are of values that a network guessed, wherever the input did not bring them.
        steer = looked.predictors.steer if set(policy.sensitive) - set(looked.brought) else None
        tilt = f"effective k {anonymity.effective_k(shown).value:.2f} (1 / largest share of a class's released faces)"
        for r in verdicts.judge(table, asked(policy), epsilon=epsilon).requirements:
            note = tilt if r.name == "k" else r.note
            found = {"name": r.name, "asked": r.asked, "found": r.found, "met": r.met, "kind": kind, "note": note}
            if r.name not in ("k", "epsilon") and steer is not None:
                found["kind"] = f"measured against predictor {steer.name}"
            out.append(found)
        vectors = float(table.subjects.sum() / table.total_subjects)
        out.append(
            {
                "name": "vectors per subject",
                "asked": 1,
                "found": round(vectors, 6),
                "met": vectors == 1,
                "kind": "formal",
                "note": "" if vectors == 1 else "who knows several photos of a person intersects their classes",
            }
        )
    out.append(
        {
            "name": "max_suppression",
            "asked": policy.max_suppression,
            "found": round(suppressed, 6),
            "met": suppressed <= policy.max_suppression,
            "kind": "formal",
            "note": "share of the input's people without a released face",
        }
    )
    return out


def _label(config: ReleaseConfig, plan: Plan, rows: np.ndarray) -> dict[str, Any]:
    """The label that released faces carry, and what an adversary gains from it."""
    label = config.release.identity
    if label == "none":
        return {"label": label, "gain": "nothing beyond the pixels"}
    if label == "class":
        equal = config.method.of_class and config.method.surrogates == 1 and not config.method.keep
        known = "; k-same shows that anyway, by equal surrogates" if equal else ", which their pixels need not show"
        return {"label": label, "gain": f"which faces share a class{known}"}
    people, faces = np.unique(plan.subject_id[rows].astype(str), return_counts=True)
    crowd = dict(zip(plan.subject_id[rows].astype(str), plan.class_id[rows], strict=True))
    alike = Counter((crowd[person], int(count)) for person, count in zip(people, faces, strict=True))
    alone = sum(count for count in alike.values() if count == 1)
    return {
        "label": label,
        "gain": "which faces are one person's: whoever knows how many photos a person has in the input finds them "
        "where nobody else of the class has as many, and one face recognised is all of that person's recognised",
        "alone_by_photo_count": round(alone / max(len(people), 1), 6),
    }


def _classes(table: Histogram | None) -> dict[str, Any] | None:
    if table is None:
        return None
    sizes = anonymity.class_sizes(table)
    return {
        "smallest": int(anonymity.k_anonymity(table).value),
        "effective_k": round(float(anonymity.effective_k(table).value), 4),
        "sizes": {str(int(s)): int(c) for s, c in zip(sizes.size, sizes.classes, strict=True)},
    }


def _attacks(plan: Plan, released: Released, key: RunKey, models: list[dict[str, str]]) -> list[dict[str, Any]]:
    """Closed-set rank-1: the adversary has a gallery with names, and names the best match of every released face."""
    recogniser = next(m["name"] for m in models if m["purpose"] == "recogniser")
    gallery = plan.kept
    place = np.full(len(plan.status), -1, dtype=np.int64)
    place[gallery] = np.arange(len(gallery))
    subject = plan.subject_id.astype(str)
    probes = _sample(subject[released.row], key)
    rows, vectors = released.row[probes], released.embedding[probes]
    attacks = (
        ("originals", "all original faces, the released face's own source among them", plan.embedding[gallery], None),
        (
            "other originals",
            "original faces without the released face's own source",
            plan.embedding[gallery],
            place[rows],
        ),
        ("released", "the other released faces, enrolled under their true names", None, None),
    )
    out = []
    for name, what, enrolled, exclude in attacks:
        names = subject[gallery]
        if enrolled is None:
            enrolled, names, exclude = released.embedding, subject[released.row], probes
        rng = key.generator("audit", name)
        try:
            result = identify(vectors, subject[rows], enrolled, names, rng=rng, exclude=exclude)
        except ValueError as error:
            out.append(
                {"gallery": name, "what": what, "recogniser": recogniser, "not_measured": str(error).partition(";")[0]}
            )
            continue
        out.append(_attack(name, what, recogniser, result, sampled=len(probes) < len(released.row)))
    return out


def _attack(name: str, what: str, recogniser: str, result: Identification, sampled: bool) -> dict[str, Any]:
    rate = result.rates[1]
    return {
        "gallery": name,
        "what": what,
        "recogniser": recogniser,
        "rank1_per_subject": round(rate.per_subject, 6),
        "low": round(rate.low, 6),
        "high": round(rate.high, 6),
        "rank1_per_face": round(rate.per_face, 6),
        "chance": round(result.chance[1], 6),
        "probes": result.probes,
        "subjects": result.subjects,
        "gallery_faces": result.gallery_faces,
        "gallery_subjects": result.gallery_subjects,
        "sampled": sampled,
    }


def _sample(subject: np.ndarray, key: RunKey) -> np.ndarray:
    """Positions of at most PROBES faces: whole subjects, in an order drawn from the run key."""
    if len(subject) <= PROBES:
        return np.arange(len(subject))
    people, person, counts = np.unique(subject, return_inverse=True, return_counts=True)
    order = key.generator("audit", "sample").permutation(len(people))
    taken = order[np.cumsum(counts[order]) <= PROBES]
    return np.flatnonzero(np.isin(person, taken))
