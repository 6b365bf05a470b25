r"""k-same on a table: people microaggregated by their attributes, every class showing what most of its people have.

Newton, Sweeney, Malin: Preserving privacy by de-identifying face images, IEEE TKDE 17(2), 2005, on attribute vectors
instead of pixels; the classes are those of ``microaggregation.microaggregate`` on ``attribute_points``, so k, l and t
hold together. Unlike a generalisation it changes values: a person may be shown with one that is not theirs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from facecrowd.privacy.cells import CellPlan, Cells
from facecrowd.privacy.microaggregation import attribute_points, microaggregate
from facecrowd.privacy.policy import Policy
from facecrowd.privacy.randomisation import cell_of_subject, recoded, subject_codes
from facecrowd.privacy.requirements import Requirements

NOTE = "a class shows the value that most of its people have, so some are shown with a value not theirs"


@dataclass(frozen=True, eq=False)
class KSame:
    """``cells``: the table's, people of different classes apart; ``plan``: of these."""

    cells: Cells
    plan: CellPlan


def k_same(cells: Cells, policy: Policy, *, reference: Mapping[Any, float] | None = None) -> KSame:
    """Plan a table by k-same.

    Parameters
    ----------
    cells : Cells
        One vector per subject.
    policy : Policy
        k (at least 2 people; 1 where it asks for none), l and t.
    reference : mapping, optional
        The public distribution for t (``t_closeness``).

    Raises
    ------
    PolicyError
        If a subject has several vectors.
    TooFewSubjectsError, UnreachableError
        If there are fewer than k people, or no partition meets l and t.
    """
    codes = subject_codes(cells)
    points = attribute_points(codes, cells.attributes)
    if policy.l is None and policy.t is None:
        found = microaggregate(points, policy.k or 1)
    else:
        people = recoded(cells, codes, apart=np.arange(len(codes)))
        # A cell per person: its weights are the person's own, shared among the values of their photos.
        weights = people.histogram.weights.toarray()[cell_of_subject(people)]
        needs = Requirements(people.histogram.values, people.histogram.reference, policy, reference)
        found = microaggregate(points, policy.k or 1, sensitive=weights, requirements=needs)
    apart = recoded(cells, codes, apart=found.ids)
    class_of_cell = np.empty(len(apart), dtype=np.int64)
    class_of_cell[cell_of_subject(apart)] = found.ids
    sizes = [attribute.size for attribute in cells.attributes]
    shown = np.stack([_majority(codes[:, a].astype(np.int64), found.ids, size) for a, size in enumerate(sizes)], axis=1)
    shown = shown.astype(np.int32)
    return KSame(apart, CellPlan(class_of_cell, shown, shown, "k-same", (NOTE,)))


def _majority(code: Any, class_id: Any, size: int) -> Any:
    """The value of most people in each class, (C,); among equals the first."""
    classes = int(class_id.max()) + 1
    return np.bincount(class_id * size + code, minlength=classes * size).reshape(classes, size).argmax(axis=1)
