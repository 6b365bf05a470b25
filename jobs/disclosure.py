"""The section ``table`` of an audit: what the released attributes alone give away (``privacy/disclosure.py``).

Everything is taken per subject: what most of their faces show, and what most of their originals have. With people who
are not in the release the figure is what the attack gains on those; without, what it achieves, general knowledge
included. Both are said in the note.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from facecrowd.jobs.figures import NAMES, Figure
from facecrowd.privacy.attributes import ANY
from facecrowd.privacy.disclosure import (
    GUESSES,
    Risk,
    Tables,
    inference,
    linkability,
    of_subjects,
    singling_out,
    tables,
)
from facecrowd.privacy.errors import EmptyTableError

WIDTHS = (1, 3, 8)
"""Attributes in a predicate; beside these, all of them."""
SPLITS = 5
"""Ways in which the attributes are dealt out to two datasets; the worst is reported."""
NOTHING_SHOWN = "the release shows no attributes"


def table_figures(
    subject: Sequence[str] | NDArray[Any],
    shown: Mapping[str, NDArray[Any]],
    originals: Mapping[str, NDArray[Any]],
    rng: np.random.Generator,
    *,
    outside_subject: Sequence[str] | NDArray[Any] = (),
    outside: Mapping[str, NDArray[Any]] | None = None,
    groups: Mapping[str, NDArray[Any]] | None = None,
    guesses: int = GUESSES,
) -> list[Figure]:
    """Singling out, linkability and inference of a release.

    Parameters
    ----------
    subject : (n,) of the released faces
    shown : attribute → (n,) str, what is released; ``*`` for any value
    originals : attribute → (n,) str, or int with 1, 0 and -1 for unknown; with at least the attributes of ``shown``
    rng : draws predicates, targets and splits
    outside_subject, outside : (m,) and attribute → (m,), people who are not in the release; may be none
    groups : attribute → (n,) str, the parts of the people for which linkability, and the inference that is the greatest
        risk, are taken again; of people outside those are compared with who are in the same part, where ``outside`` has
        the attribute
    guesses : subjects attacked at most, for each figure

    Raises
    ------
    LengthError, ColumnError, EmptyTableError
    """
    faces = len(subject)
    if not shown:
        return [Figure("table", name, faces=faces, better="lower", note=NOTHING_SHOWN) for name in NAMES["table"]]
    truth = of_subjects(subject, _words(originals, shown))
    others = of_subjects(outside_subject, _words(outside, shown)) if outside and len(outside_subject) else None
    table = tables(of_subjects(subject, _words(shown, shown)), truth, others)
    found = _singled_out(table, rng, faces, guesses)
    found += _linked(table, rng, faces, guesses)
    inferred = [_inferred(table, name, rng, faces, guesses) for name in table.names]
    found += inferred
    worst = max(inferred, key=lambda figure: figure.value if figure.value is not None else -1.0)
    for name, values in (groups or {}).items():
        own = of_subjects(subject, {name: pa.array(_text(values))})[name].to_numpy()
        theirs = None
        if others is not None and outside and name in outside:
            theirs = of_subjects(outside_subject, {name: pa.array(_text(outside[name]))})[name].to_numpy()
        for value in sorted(set(own.tolist()) - {ANY}):
            everybody = None if table.control is None else np.ones(len(table.control), dtype=bool)
            part = table.only(own == value, everybody if theirs is None else theirs == value)
            group = f"{name} = {value}"
            found += _linked(part, rng, faces, guesses, group)
            if worst.setting != name:
                found.append(_inferred(part, worst.setting, rng, faces, guesses, group))
    return found


def _singled_out(table: Tables, rng: np.random.Generator, faces: int, guesses: int) -> list[Figure]:
    found = []
    for width in sorted({min(width, len(table.names)) for width in (*WIDTHS, len(table.names))}):
        risk = singling_out(table, rng=rng, width=width, guesses=guesses)
        setting = "univariate" if width == 1 else "multivariate"
        note = ""
        if not risk.attack.guesses:
            of = "one attribute" if width == 1 else f"{width} attributes"
            note = f"nothing that can be said of {of} was found to hold of a single released subject"
        found.append(_figure("singling_out", setting, risk, table, faces, note, at=float(width)))
    return found


def _linked(table: Tables, rng: np.random.Generator, faces: int, guesses: int, group: str = "") -> list[Figure]:
    if len(table.names) < 2:
        note = "the release shows one attribute, and two datasets need one each"
        return [Figure("table", "linkability", faces=faces, better="lower", group=group, note=note)]
    risks = []
    for _ in range(SPLITS):
        names = rng.permutation(table.names).tolist()
        risks.append(linkability(table, (names[: len(names) // 2], names[len(names) // 2 :]), rng=rng, guesses=guesses))
    worst = max(risks, key=lambda risk: risk.value)
    return [_figure("linkability", "halves", worst, table, faces, f"worst of {SPLITS} splits", group=group)]


def _inferred(
    table: Tables, secret: str, rng: np.random.Generator, faces: int, guesses: int, group: str = ""
) -> Figure:
    note = "the release shows no other attribute to infer it from"
    if len(table.names) > 1:
        try:
            risk = inference(table, secret, rng=rng, guesses=guesses)
            return _figure("inference", secret, risk, table, faces, group=group)
        except EmptyTableError as error:
            note = str(error)
    return Figure("table", "inference", setting=secret, faces=faces, better="lower", group=group, note=note)


def _figure(
    name: str,
    setting: str,
    risk: Risk,
    table: Tables,
    faces: int,
    note: str = "",
    at: float | None = None,
    group: str = "",
) -> Figure:
    low, high = risk.interval or (None, None)
    notes = [note] if note else []
    if risk.attack.guesses:
        said = f"{risk.attack.share:.1%} of guesses right"
        if risk.control is not None:
            said += f", {risk.control.share:.1%} about people who are not in the release"
        elif table.control is None:
            said += "; no people outside the release to compare with, so general knowledge counts too"
        notes.append(said)
    if risk.naive_wins:
        notes.append("guessing without looking does as well, so this figure says little")
    return Figure(
        "table",
        name,
        setting=setting,
        at=at,
        value=risk.value,
        low=low,
        high=high,
        chance=risk.naive.share,
        faces=faces,
        subjects=risk.attack.guesses or len(table.released),
        better="lower",
        group=group,
        note="; ".join(notes),
    )


def _words(columns: Mapping[str, NDArray[Any]] | None, names: Mapping[str, Any]) -> dict[str, pa.Array]:
    """The named columns as text."""
    return {name: pa.array(_text(values)) for name, values in (columns or {}).items() if name in names}


def _text(values: NDArray[Any] | Sequence[Any]) -> list[str]:
    """Values as a release has them: ``*`` for unknown, which is -1 of numbers and None of text."""
    column = np.asarray(values)
    if column.dtype.kind == "b":
        column = column.astype(np.int8)
    if column.dtype.kind in "iu":
        return [ANY if value < 0 else str(value) for value in column.tolist()]
    return [ANY if value is None else str(value) for value in column.tolist()]
