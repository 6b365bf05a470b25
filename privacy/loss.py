r"""Information loss: what a plan costs the table.

A face is in cell *v*, with the value :math:`x_{v,a}` of attribute *a*, and its class shows the interval
:math:`I_{c,a} = [\text{low}, \text{high}]` (``privacy/cells.py``). Let :math:`n_v` be the faces of a cell,
:math:`N = \sum_v n_v`, and *A* the number of quasi-identifiers. Suppressed faces lose everything. What is lost is lost
per face, so rows are counted here, and subjects beside them only where class sizes are meant.

.. [1] R. J. Bayardo, R. Agrawal, "Data privacy through optimal k-anonymization", ICDE 2005.
.. [2] J. Xu, W. Wang, J. Pei, X. Wang, B. Shi, A. W.-C. Fu, "Utility-based anonymization using local recoding", KDD
   2006.
.. [3] T. de Waal, L. Willenborg, "Information loss through global recoding and local suppression", Netherlands Official
   Statistics 14, 1999; A. Gionis, T. Tassa, "k-Anonymization with minimal loss of information", IEEE TKDE 21(2), 2009.
.. [4] K. LeFevre, D. J. DeWitt, R. Ramakrishnan, "Mondrian multidimensional k-anonymity", ICDE 2006.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from facecrowd.privacy.anonymity import Unit, k_anonymity
from facecrowd.privacy.cells import SUPPRESSED, CellPlan, Cells
from facecrowd.privacy.classes import Histogram
from facecrowd.privacy.errors import PlanError


@dataclass(frozen=True)
class Loss:
    """What a plan costs. All shares are of the input's rows (or rows × quasi-identifiers), suppressed ones included.

    Attributes
    ----------
    rows, rows_changed, rows_suppressed : int
        Faces of the input; those that show anything but their own vector, suppressed ones included; those left out.
    generalised : float
        Share of quasi-identifier cells that are released as an interval or not at all.
    changed : float
        Share of quasi-identifier cells released as an interval without, or a value other than, their own.
    ncp : float
        Normalised certainty penalty, from 0 (nothing) to 1 (every cell is ``*``).
    entropy : float
        Non-uniform entropy, as a share of what suppressing everything loses: 0 to 1.
    entropy_bits : float
        The same in bits, in total.
    discernibility : int
        Pairs of rows that cannot be told apart, in rows squared.
    discernibility_share : float
        The same over N squared: 0 to 1.
    average_class : float, optional
        Mean class size in subjects; None where everything is suppressed.
    by_attribute : mapping of str to float
        The normalised certainty penalty of each quasi-identifier.
    """

    rows: int
    rows_changed: int
    rows_suppressed: int
    generalised: float
    changed: float
    ncp: float
    entropy: float
    entropy_bits: float
    discernibility: int
    discernibility_share: float
    average_class: float | None
    by_attribute: Mapping[str, float]

    @property
    def suppressed(self) -> float:
        """The share of rows left out."""
        return self.rows_suppressed / self.rows

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self), "by_attribute": dict(self.by_attribute), "suppressed": self.suppressed}


def information_loss(cells: Cells, plan: CellPlan) -> Loss:
    r"""Everything that ``Loss`` holds, in one pass over cells × attributes.

    The normalised certainty penalty [2]_ is the mean of ``Attribute.loss`` over rows and quasi-identifiers, 1 where
    suppressed. Non-uniform entropy [3]_ is

    .. math::
        - \sum_v n_v \sum_a \log_2 \frac{n_a(x_{v,a})}{n_a(I_{c(v),a})}

    with :math:`n_a(I)` the rows of the input whose value lies in *I*: rare values hidden among frequent ones lose most.
    A suppressed cell, or an interval without the own value (a class that shows its majority), counts as the whole
    domain. The certainty penalty sees only widths, so a changed value costs it nothing: read it beside ``changed``.

    Parameters
    ----------
    cells : Cells
    plan : CellPlan
        Of the same cells.

    Raises
    ------
    PlanError
        If the plan is not one of these cells.
    """
    _check(cells, plan)
    histogram, rows = cells.histogram, cells.histogram.rows
    total, width = histogram.total_rows, len(cells.attributes)
    kept = plan.class_of_cell != SUPPRESSED
    of_class = np.where(kept, plan.class_of_cell, 0)
    shown_low, shown_high = plan.low.astype(np.int64), plan.high.astype(np.int64)
    touched = ~kept
    generalised = changed = bits = most = 0.0
    penalty = {}
    for a, attribute in enumerate(cells.attributes):
        code = cells.codes[:, a].astype(np.int64)
        if plan.classes:
            low, high = shown_low[of_class, a], shown_high[of_class, a]
            lost = np.where(kept, attribute.loss(shown_low[:, a], shown_high[:, a])[of_class], 1.0)
        else:
            low, high, lost = code, code, np.ones(len(code))
        wide, away = kept & (low < high), kept & ((code < low) | (code > high))
        touched = touched | wide | away
        generalised += float(rows[wide | ~kept].sum())
        changed += float(rows[away].sum())
        penalty[attribute.name] = float((lost * rows).sum() / total)
        below = np.concatenate(([0.0], np.cumsum(np.bincount(code, weights=rows, minlength=attribute.size))))
        own, inside = below[code + 1] - below[code], below[high + 1] - below[low]
        bits += float((rows * np.log2(np.where(kept & ~away, inside, total) / own)).sum())
        most += float((rows * np.log2(total / own)).sum())
    released = np.bincount(plan.class_of_cell[kept], weights=rows[kept], minlength=plan.classes)
    suppressed = int(rows[~kept].sum())
    pairs = int(np.rint(released).astype(np.int64) @ np.rint(released).astype(np.int64)) + suppressed * total
    grouped = cells.regroup(plan.class_of_cell)
    return Loss(
        rows=total,
        rows_changed=int(rows[touched].sum()),
        rows_suppressed=suppressed,
        generalised=generalised / (total * width),
        changed=changed / (total * width),
        ncp=sum(penalty.values()) / width,
        entropy=bits / most if most else 0.0,
        entropy_bits=bits,
        discernibility=pairs,
        discernibility_share=pairs / total**2,
        average_class=None if grouped is None else float(grouped.subjects.mean()),
        by_attribute=penalty,
    )


def discernibility(released: Histogram, suppressed_rows: int = 0) -> int:
    r"""Pairs of rows that cannot be told apart [1]_.

    .. math:: \sum_c n_c^2 + N_{\text{suppressed}} \, N

    Parameters
    ----------
    released : Histogram
    suppressed_rows : int
        Rows that were left out; each is taken to be indistinguishable from all.

    Returns
    -------
    int
        In rows squared, from N to N².
    """
    rows = released.rows.astype(np.int64)
    return int(rows @ rows) + suppressed_rows * (released.total_rows + suppressed_rows)


def average_class_size(released: Histogram, k: int | None = None, unit: Unit = "subjects") -> float:
    r"""How much larger classes are than they must be [4]_.

    .. math:: C_{\text{avg}} = \frac{n / C}{k}

    Parameters
    ----------
    released : Histogram
    k : int, optional
        What was asked; without it the k found.
    unit : {"subjects", "rows"}

    Returns
    -------
    float
        At least 1 where k is met; 1 when all classes have exactly k members.

    Raises
    ------
    PlanError
        If k is smaller than 1.
    """
    if k is not None and k < 1:
        raise PlanError(f"k is {k}; a class has at least 1 member")
    size: NDArray[Any] = k_anonymity(released, unit).per_class
    return float(size.mean() / (size.min() if k is None else k))


def _check(cells: Cells, plan: CellPlan) -> None:
    if plan.class_of_cell.shape != (len(cells),):
        raise PlanError(f"the plan is of {len(plan.class_of_cell)} cells and the table has {len(cells)}; plan this one")
    shape = (plan.classes, len(cells.attributes))
    if plan.low.shape != shape or plan.high.shape != shape:
        raise PlanError(f"the plan shows {plan.low.shape[1]} attributes and the table has {shape[1]}; plan this table")
    if plan.class_of_cell.min() < SUPPRESSED or plan.class_of_cell.max() >= plan.classes:
        raise PlanError(f"the plan puts cells in classes that it has not: {plan.classes} are described")
    used = np.bincount(plan.class_of_cell[plan.class_of_cell != SUPPRESSED], minlength=plan.classes)
    if not used.all():
        raise PlanError(f"the plan describes class {int(np.argmin(used))} and puts no cell in it; leave it out")
    sizes = np.array([attribute.size for attribute in cells.attributes])
    if (plan.low < 0).any() or (plan.high >= sizes).any() or (plan.low > plan.high).any():
        raise PlanError("the plan shows an interval that is empty or outside its attribute's values")
