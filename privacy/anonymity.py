"""k-anonymity: how many people a class hides its members among [1]_; k-map: how many of a whole population [2]_.

.. [1] L. Sweeney, "k-anonymity: a model for protecting privacy", Int. J. Uncertainty, Fuzziness and Knowledge-Based
   Systems 10(5), 2002.
.. [2] L. Sweeney, "Computational disclosure control", PhD thesis, MIT, 2001; K. El Emam, F. K. Dankar, "Protecting
   privacy using k-anonymity", J. Am. Med. Inform. Assoc. 15(5), 2008.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike, NDArray

from facecrowd.privacy.cells import CellPlan, Cells
from facecrowd.privacy.classes import Histogram, equivalence_classes
from facecrowd.privacy.errors import ColumnError, LengthError, PopulationError
from facecrowd.privacy.measure import Measure, smallest

Unit = Literal["subjects", "rows"]

BLOCK_CELLS = 4 * 2**20
"""Classes × cells of a population made dense at once."""


@dataclass(frozen=True, eq=False)
class ClassSizes:
    """How class sizes are distributed.

    Attributes
    ----------
    size : ndarray of int64, shape (U,)
        The sizes that occur, ascending.
    classes, rows : ndarray of int64, shape (U,)
        Classes, and faces in classes, of each size.
    """

    size: NDArray[np.int64]
    classes: NDArray[np.int64]
    rows: NDArray[np.int64]

    @property
    def minimum(self) -> int:
        """The smallest class."""
        return int(self.size[0])

    @property
    def maximum(self) -> int:
        """The largest class."""
        return int(self.size[-1])

    @property
    def mean(self) -> float:
        """The mean size over classes."""
        return float((self.size * self.classes).sum() / self.classes.sum())

    @property
    def median(self) -> int:
        """The (lower) median size over classes."""
        cumulative = np.cumsum(self.classes)
        return int(self.size[np.searchsorted(cumulative, (cumulative[-1] + 1) // 2)])

    def rows_below(self, k: int) -> int:
        """Faces in classes smaller than ``k``: what suppression to ``k`` would cost."""
        return int(self.rows[self.size < k].sum())


def k_anonymity(histogram: Histogram, unit: Unit = "subjects") -> Measure:
    r"""The size of each class and of the smallest.

    .. math:: k = \min_c k_c, \qquad k_c = |\{s : n_{c,s} > 0\}|

    Parameters
    ----------
    histogram : Histogram
    unit : {"subjects", "rows"}
        What is counted. ``rows`` is what table tools do, :math:`\sum_s n_{c,s}`, and is here for comparison: ten photos
        of one person are no crowd.

    Returns
    -------
    Measure
        ``per_class`` in subjects (or rows); the worst class is the smallest.
    """
    return smallest(histogram.subjects if unit == "subjects" else histogram.rows)


def effective_k(histogram: Histogram) -> Measure:
    r"""One over the largest share of a class's faces that belongs to one subject.

    .. math:: k^{\text{eff}}_c = \left( \max_s \frac{n_{c,s}}{n_{c,\cdot}} \right)^{-1} \le k_c

    An adversary who names the most-photographed subject of the class for every face is right this often; it equals
    :math:`k_c` exactly when all its subjects have equally many faces.

    Returns
    -------
    Measure
        ``per_class`` in subjects, real-valued; the worst class is the smallest.
    """
    return smallest(1.0 / histogram.largest_share)


def class_sizes(histogram: Histogram, unit: Unit = "subjects") -> ClassSizes:
    """The distribution of class sizes, in subjects (or rows)."""
    per_class = k_anonymity(histogram, unit).per_class
    size, slot, classes = np.unique(per_class, return_inverse=True, return_counts=True)
    rows: NDArray[Any] = np.bincount(slot, weights=histogram.rows)
    return ClassSizes(size.astype(np.int64), classes.astype(np.int64), rows.astype(np.int64))


def k_map(released: Histogram, population: Histogram | ArrayLike, unit: Unit = "subjects") -> Measure:
    r"""The people of the population whom each class fits, and the fewest.

    .. math:: k^{\text{map}} = \min_c F_c

    with :math:`F_c` the people of the population whose vector is what class *c* shows.

    Never below k-anonymity, as the released people are part of the population. It protects against an adversary who
    does not know who is in the release, and not against one who does.

    Parameters
    ----------
    released : Histogram
    population : Histogram or array, shape (C,)
        The classes of a population table, matched to those of the release by what they show; or the people of the
        population per class (for a generalised release: ``population_of_plan``).
    unit : {"subjects", "rows"}
        What is counted in both; ``rows`` for comparison with table tools.

    Returns
    -------
    Measure
        ``per_class`` in people of the population; the worst class is the smallest.

    Raises
    ------
    PopulationError
        If a class holds more people of the release than of the population.
    ColumnError
        If the population table lacks an attribute of the release or has it in another type.
    LengthError
        If there is not one count per class.
    """
    return smallest(population_counts(released, population, unit))


def population_counts(
    released: Histogram, population: Histogram | ArrayLike, unit: Unit = "subjects"
) -> NDArray[np.int64]:
    """The population of each class of a release, (C,), checked to include the people released: see ``k_map``."""
    here = k_anonymity(released, unit).per_class
    if isinstance(population, Histogram):
        names = released.classes.column_names
        for name in names:
            if name not in population.classes.column_names:
                raise ColumnError(f"the population has no column {name!r}; it has {population.classes.column_names}")
        try:
            both = pa.concat_tables([released.classes, population.classes.select(names)])
        except pa.ArrowInvalid as error:
            raise ColumnError(f"the population's columns have other types than the release's: {error}") from error
        ids = equivalence_classes(both).ids
        size = np.bincount(ids[len(here) :], weights=k_anonymity(population, unit).per_class, minlength=ids.max() + 1)
        counts = size[ids[: len(here)]].astype(np.int64)
    else:
        counts = np.asarray(population)
        if counts.shape != here.shape or not np.issubdtype(counts.dtype, np.integer):
            raise LengthError(
                f"the population has {counts.dtype} counts of shape {counts.shape} where there are {len(here)} "
                "classes; give one whole number per class"
            )
    short = np.flatnonzero(counts < here)
    if len(short):
        c = int(short[0])
        raise PopulationError(
            f"the class {released.describe(c)} has {here[c]} {unit} in the release and {counts[c]} in the population; "
            "a population includes the people released"
        )
    return counts.astype(np.int64)


def population_of_plan(cells: Cells, plan: CellPlan, population: Cells) -> NDArray[np.int64]:
    """The people of a population whom each class of a generalised release fits.

    Parameters
    ----------
    cells, plan : Cells, CellPlan
        The release.
    population : Cells
        Of the population, one cell per subject, with the attributes of ``cells``. A value that the release's domain
        lacks fits only where the attribute shows ``*``.

    Returns
    -------
    ndarray of int64, shape (C,)
        In distinct subjects. Classes may overlap, so the sum may exceed the population.

    Raises
    ------
    ColumnError
        If the population lacks an attribute of the release.
    PopulationError
        If subjects of the population have several cells, so that they cannot be counted by adding cells up.
    """
    if not population.additive:
        raise PopulationError("people of the population have several vectors; give each one (per_subject)")
    columns = {attribute.name: a for a, attribute in enumerate(population.attributes)}
    people = population.histogram.subjects.astype(np.float64)
    # One bit per cell of the population and interval that occurs; a class is the "and" over its attributes.
    masks, which = [], []
    for a, attribute in enumerate(cells.attributes):
        if attribute.name not in columns:
            raise ColumnError(f"the population has no column {attribute.name!r}; it has {list(columns)}")
        theirs = columns[attribute.name]
        code_of = {value: code for code, value in enumerate(attribute.values)}
        known = np.array([code_of.get(value, -1) for value in population.attributes[theirs].values])
        codes = known[population.codes[:, theirs]]
        pairs, slot = np.unique(np.stack([plan.low[:, a], plan.high[:, a]], 1), axis=0, return_inverse=True)
        whole = (pairs[:, 0] == 0) & (pairs[:, 1] == attribute.size - 1) & (attribute.size > 1)
        inside = (codes >= pairs[:, :1]) & (codes <= pairs[:, 1:]) | whole[:, None]
        if not inside.all():
            masks.append(np.packbits(inside, axis=1))
            which.append(slot.reshape(-1))
    found = np.full(plan.classes, population.histogram.total_subjects, dtype=np.int64)
    if masks:
        height = max(1, BLOCK_CELLS // len(people))
        for start in range(0, plan.classes, height):
            rows = slice(start, min(start + height, plan.classes))
            fits = np.bitwise_and.reduce([mask[slot[rows]] for mask, slot in zip(masks, which, strict=True)])
            found[rows] = np.rint(np.unpackbits(fits, axis=1, count=len(people)) @ people)
    return found
