"""What a translation did to a release's faces, and how far its attributes are seen in them.

Two predictors look: the one that steers, by which the translator itself decided whether to go on, and the judge, which
had no part in it. An attribute that a face shows anyway needs no translation, so whoever runs a release is also told of
the faces where it had to change. Those figures are published to nobody: they say how many hold the other value, and so
what PPAS swapped, and no epsilon covers exact counts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from facecrowd.pipeline.attributes import Predictor, share, truth
from facecrowd.pipeline.config import ReleaseConfig
from facecrowd.pipeline.presets import predictable
from facecrowd.pipeline.storage import Parts

COLUMNS = ("wanted", "realised", "passes", "obfuscated", "activation")


@dataclass(frozen=True)
class Translations:
    """Of the N rows of the plan, as in the manifest ``rendered``; passes : None where a face was not translated."""

    wanted: list[dict[str, bool]]
    realised: list[dict[str, bool]]
    passes: list[int | None]
    obfuscated: list[list[str] | None]
    activation: list[list[float] | None]

    @classmethod
    def read(cls, rendered: Parts, count: int) -> Self:
        table = rendered.read_all(count, list(COLUMNS))
        wanted, realised, *others = (table[name].to_pylist() for name in COLUMNS)
        return cls([dict(cell or ()) for cell in wanted], [dict(cell or ()) for cell in realised], *others)


def measured(
    config: ReleaseConfig,
    done: Translations,
    rows: np.ndarray,
    steering: str,
    judge: Predictor | None,
    before: np.ndarray | None,
    after: np.ndarray | None,
) -> dict[str, Any]:
    """What an audit says of a translation, for everybody to read.

    rows : (n,) positions of the released faces; steering : the
    predictor by which it was steered; before, after : the judge's probabilities of all originals, (N, 40), and of the
    released faces, (n, 40)
    """
    method = config.method
    faces = _faces(config, done, rows, judge, before, after)
    rows = np.unique(rows)
    changed = [face.name for face in faces]
    left = [done.realised[row] for row in rows if done.passes[row] == 0]
    out: dict[str, Any] = {
        "translator": _named(str(method.translator)),
        "steering": steering,
        "judge": judge.name if judge else None,
        "faces_by_passes": _counts([done.passes[row] for row in rows]),
        "unchanged": {
            "faces": len(left),
            "show_it": sum(bool(seen) and all(seen.values()) for seen in left),
            "but_for": "re-encoding and the perturbation" if config.perturb.on else "re-encoding",
        },
        "attributes": [face.shown() for face in faces],
        "not_translated": [name for name in config.policy.quasi_identifiers if name not in changed],
    }
    if method.keeps_identity:
        parts = [done.obfuscated[row] or [] for row in rows]
        out["parts"] = _counts([part for face in parts for part in face])
        out["faces_by_parts"] = _counts([len(face) for face in parts])
    return out


def to_change(
    config: ReleaseConfig,
    done: Translations,
    originals: dict[str, np.ndarray],
    rows: np.ndarray,
    steering: str,
    judge: Predictor | None,
    before: np.ndarray | None,
    after: np.ndarray | None,
) -> list[str]:
    """Of the faces where an attribute had to change, how many did: a line for each, for whoever runs a release alone.

    For the predictor that steers a face has to change where the plan's original has another value, for the judge where
    the judge saw another one. For identity-preserving all have to. originals : attribute → (N,) object values of the
    plan; the others as in ``measured``
    """
    out = []
    for face in _faces(config, done, rows, judge, before, after):
        off = face.asked
        if not config.method.keeps_identity:
            own = truth(originals[face.name][np.unique(rows)])
            off = off & (own >= 0) & (own != face.told)
        said = [f"as {steering} (which steers) sees it, {_of(share(face.seen[off]), int(off.sum()))}"]
        if judge is not None and face.was is not None and face.now is not None:
            turned = face.judged & (face.was != face.told)
            changed = share(face.now[turned] == face.told[turned])
            said.append(f"as {judge.name} sees it, {_of(changed, int(turned.sum()))}")
        out.append(f"{face.name} had to change and did: {'; '.join(said)}")
    return out


@dataclass(frozen=True)
class _Faces:
    """One attribute in n released faces: asked and seen as wanted by the predictor that steers, (n,) bool; told : what
    was wanted, (n,) int8; was, now : (n,) int8, what the judge reads of originals and released faces, where one did;
    judged : (n,) bool"""

    name: str
    asked: np.ndarray
    seen: np.ndarray
    told: np.ndarray
    judged: np.ndarray
    was: np.ndarray | None = None
    now: np.ndarray | None = None

    def shown(self) -> dict[str, Any]:
        """Seen as wanted in how many of the faces of which it was wanted."""
        out = {"attribute": self.name, "faces": int(self.asked.sum()), "realised": share(self.seen[self.asked])}
        if self.now is None:
            return out
        agreed = self.now[self.judged] == self.told[self.judged]
        return out | {"judged": int(self.judged.sum()), "judge_realised": share(agreed)}


def _faces(
    config: ReleaseConfig,
    done: Translations,
    rows: np.ndarray,
    judge: Predictor | None,
    before: np.ndarray | None,
    after: np.ndarray | None,
) -> list[_Faces]:
    """Of every attribute that was wanted of a released face."""
    rows, first = np.unique(rows, return_index=True)
    was = now = None
    if judge is not None and before is not None and after is not None:
        was, now = judge.values(before[rows]), judge.values(after[first])
    out = []
    for name in sorted({name for row in rows for name in done.realised[row]}, key=predictable().index):
        asked = np.array([name in done.realised[row] for row in rows])
        seen = np.array([done.realised[row].get(name, False) for row in rows])
        told = truth([done.wanted[row].get(name) for row in rows])
        if was is None or now is None:
            out.append(_Faces(name, asked, seen, told, np.zeros(len(rows), bool)))
            continue
        at = predictable().index(name)
        judged = asked & (now[:, at] >= 0) & (was[:, at] >= 0)
        if config.method.keeps_identity:
            # The judge's own reading of the original is what has to turn: it may have read it otherwise than the other.
            told = 1 - was[:, at]
        out.append(_Faces(name, asked, seen, told, judged, was[:, at], now[:, at]))
    return out


def _named(translator: str) -> str:
    """Never by a path of this machine."""
    from facecrowd.stages.translate import LATENT, SHIPPED

    return translator if translator in (*SHIPPED, LATENT) else "the user's own"


def _counts(values: Sequence[Any]) -> dict[str, int]:
    return {str(value): count for value, count in sorted(Counter(v for v in values if v is not None).items())}


# ------------------------------------------------------------------------------------------------------------ in words


def lines(found: dict[str, Any] | None) -> list[str]:
    """What ``measured`` found, a line each; nothing where nothing was translated."""
    if found is None:
        return []
    passes = found["faces_by_passes"]
    told = ", ".join(f"{count} in {number}" for number, count in passes.items() if number != "0")
    out = [f"translated by {found['translator']}: faces by passes: {told or 'none'}"]
    if left := unchanged(found):
        out.append(left)
    if "parts" in found:
        parts = ", ".join(f"{name} {count}" for name, count in found["parts"].items())
        faces = ", ".join(f"{number} in {count} faces" for number, count in found["faces_by_parts"].items())
        out.append(f"parts obfuscated: {parts or 'none'}; parts per face: {faces or 'none'}")
    for row in found["attributes"]:
        seen = [(f"{found['steering']} (which steers)", "realised", "faces")]
        if "judged" in row:
            when = f" {row['when']}" if "when" in row else ""
            seen.append((f"{found['judge']}{when}", "judge_realised", "judged"))
        said = [f"as {name} sees it, {_of(row[every], row[faces])} show it" for name, every, faces in seen]
        out.append(f"{row['attribute']} wanted by the translation: {'; '.join(said)}")
    if found["not_translated"]:
        names = ", ".join(found["not_translated"])
        out.append(f"not translated, and in the pixels as the originals have it whatever is released: {names}")
    return out


def unchanged(found: dict[str, Any]) -> str:
    """How many faces no translation touched, and whether they show what was wanted; empty where there are none."""
    left, show = found["unchanged"]["faces"], found["unchanged"]["show_it"]
    if not left:
        return ""
    faces, but = sum(found["faces_by_passes"].values()), found["unchanged"]["but_for"]
    out = f"{left} of {faces} faces are released unchanged but for {but}"
    if show == left:
        return f"{out}: their originals showed all that was wanted already"
    return f"{out}: {show} showed all that was wanted already, {left - show} do not, and the translator changed nothing"


def _of(value: float | None, faces: int) -> str:
    return "none of 0 faces" if value is None else f"{value:.1%} of {faces} faces"
