"""What a translation did to a release's faces, and how far its attributes are seen in them.

Two predictors look: the one that steers, by which the translator itself decided whether to go on, and the judge, which
had no part in it. An attribute that a face shows anyway needs no translation, so both are also asked about the faces
where it had to change.
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
    originals: dict[str, np.ndarray],
    rows: np.ndarray,
    steering: str,
    judge: Predictor | None,
    before: np.ndarray | None,
    after: np.ndarray | None,
) -> dict[str, Any]:
    """What an audit says of a translation.

    originals : attribute → (N,) object values of the plan; rows : (n,) positions of the released faces; steering : the
    predictor by which it was steered; before, after : the judge's probabilities of all originals, (N, 40), and of the
    released faces, (n, 40)
    """
    method = config.method
    rows, first = np.unique(rows, return_index=True)
    values: tuple[np.ndarray | None, np.ndarray | None] = (None, None)
    if judge is not None and before is not None and after is not None:
        values = judge.values(before[rows]), judge.values(after[first])
    changed = sorted({name for row in rows for name in done.realised[row]}, key=predictable().index)
    out: dict[str, Any] = {
        "translator": _named(str(method.translator)),
        "steering": steering,
        "judge": judge.name if judge else None,
        "faces_by_passes": _counts([done.passes[row] for row in rows]),
        "attributes": [_attribute(name, method.keeps_identity, done, originals, rows, values) for name in changed],
        "not_translated": [name for name in config.policy.quasi_identifiers if name not in changed],
    }
    if method.keeps_identity:
        parts = [done.obfuscated[row] or [] for row in rows]
        out["parts"] = _counts([part for face in parts for part in face])
        out["faces_by_parts"] = _counts([len(face) for face in parts])
    return out


def _attribute(
    name: str,
    opposite: bool,
    done: Translations,
    originals: dict[str, np.ndarray],
    rows: np.ndarray,
    values: tuple[np.ndarray | None, np.ndarray | None],
) -> dict[str, Any]:
    """One attribute: seen as wanted in how many of the faces of which it was wanted, and of those it had to change in.

    For the predictor that steers a face has to change where the plan's original has another value, for the judge where
    the judge saw another one. Where the ``opposite`` was wanted, all had to.
    """
    asked = np.array([name in done.realised[row] for row in rows])
    seen = np.array([done.realised[row].get(name, False) for row in rows])
    told = truth([None if opposite else done.wanted[row].get(name) for row in rows])
    off = asked
    if not opposite:
        own = truth(originals[name][rows])
        off = asked & (own >= 0) & (own != told)
    out = {
        "attribute": name,
        "faces": int(asked.sum()),
        "realised": share(seen[asked]),
        "to_change": int(off.sum()),
        "changed": share(seen[off]),
    }
    before, after = values
    if before is None or after is None:
        return out
    at = predictable().index(name)
    was, now = before[:, at], after[:, at]
    judged = asked & (now >= 0) & (was >= 0)
    if opposite:
        # The judge's own reading of the original is what has to turn: it may have read it otherwise than the other.
        told = 1 - was
    turned = judged & (was != told)
    return out | {
        "judged": int(judged.sum()),
        "judge_realised": share(now[judged] == told[judged]),
        "judge_to_change": int(turned.sum()),
        "judge_changed": share(now[turned] == told[turned]),
    }


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
    same = f"; {passes['0']} showed it all before and are their originals, encoded anew" if "0" in passes else ""
    out = [f"translated by {found['translator']}: faces by passes: {told or 'none'}{same}"]
    if "parts" in found:
        parts = ", ".join(f"{name} {count}" for name, count in found["parts"].items())
        faces = ", ".join(f"{number} in {count} faces" for number, count in found["faces_by_parts"].items())
        out.append(f"parts obfuscated: {parts or 'none'}; parts per face: {faces or 'none'}")
    for row in found["attributes"]:
        seen = [(f"{found['steering']} (which steers)", "realised", "faces", "changed", "to_change")]
        if "judged" in row:
            when = f" {row['when']}" if "when" in row else ""
            seen.append((f"{found['judge']}{when}", "judge_realised", "judged", "judge_changed", "judge_to_change"))
        said = [
            f"as {name} sees it, {_of(row[every], row[faces])} show it and {_of(row[new], row[these])} to change"
            for name, every, faces, new, these in seen
        ]
        out.append(f"{row['attribute']} wanted by the translation: {'; '.join(said)}")
    if found["not_translated"]:
        names = ", ".join(found["not_translated"])
        out.append(f"not translated, and in the pixels as the originals have it whatever is released: {names}")
    return out


def _of(value: float | None, faces: int) -> str:
    return "none of 0 faces" if value is None else f"{value:.1%} of {faces} faces"
