r"""PPAS, the privacy-preserving attribute selection of AnonymousNet [1]_: as printed, and verified.

**As printed** (algorithm 1). For each attribute *E* of the set, with *S* the distribution of the sensitive values among
everybody and :math:`S_E` that among those who show *E*: keep *E* if :math:`d(S, S_E) < t`, else take :math:`\neg E`;
then perturb the whole set with epsilon. The paper leaves open what is compared and for whom; the reading here:

- :math:`S_E` is taken over the *originals'* sensitive values, one weight per subject, of the subjects whose released
  vector has *E* (the second value of a binary attribute: true, 1);
- the choice is one per attribute, for everybody: :math:`\neg E` swaps its two values in the whole table;
- *d* is the Earth Mover's Distance of the policy's ground (equation 5); of several sensitive attributes the largest;
- Perturbation(A', epsilon) is randomised response for a total of epsilon per subject (``randomisation.py``).

**What is wrong with it**, and measured beside it. With n people, :math:`n_E` of them showing *E*,

.. math:: n_E \, d(S, S_E) = (n - n_E) \, d(S, S_{\neg E})

(both sides are the same mass, moved between the two groups), so a swap lowers the distance only where *E* is the rarer
value, and raises it elsewhere. A swap is a bijection of vectors: classes, and with them k, l and t, stay as they were.
What is close attribute by attribute need not be close class by class. And whoever knows the algorithm swaps back.

**Verified.** Randomise once per subject, if epsilon is asked; then choose, a swap only where it lowers the distance;
then hand everything to a planner that unites or suppresses until every class meets the policy, and judge its plan anew.
Since closeness is convex, a table whose classes are t-close is t-close for every attribute it shows, which is the
paper's aim (equation 5): :math:`d(S, S_E) \le t` for all *E*.

**What epsilon covers.** As printed and without ``choice_epsilon`` or ``public``, only the perturbation: the choices are
computed on the very table, and one person can swap a column for everybody. With ``public`` the choices depend on nobody
here; with ``choice_epsilon`` each is drawn with its share of it, and ``Ppas.epsilon``, the sum, then covers the
sensitive values too. In ``ppas_verified`` everything after the randomisation is post-processing of the randomised
vectors *and of the sensitive values*: epsilon covers the vectors; where l or t is asked, not the sensitive values.

.. [1] T. Li, L. Lin, "AnonymousNet: natural face de-identification with measurable privacy", CVPR workshops 2019,
   section 4 and algorithm 1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import scipy.sparse
from numpy.typing import NDArray

from facecrowd.privacy.cells import SUPPRESSED, CellPlan, Cells, planned
from facecrowd.privacy.classes import Histogram
from facecrowd.privacy.errors import ColumnError, PolicyError, UnreachableError
from facecrowd.privacy.mondrian import mondrian
from facecrowd.privacy.policy import Policy
from facecrowd.privacy.randomisation import Digest, private_choice, randomise, recoded, subject_codes, words
from facecrowd.privacy.requirements import Requirements
from facecrowd.privacy.verdict import Verdict, judge

Planner: TypeAlias = Callable[[Cells, Policy], CellPlan]
"""What finds classes that meet a policy, or raises UnreachableError."""


@dataclass(frozen=True)
class Choice:
    """What was decided about one attribute.

    Attributes
    ----------
    attribute : str
    flipped : bool
        Whether its values are swapped.
    showing : int
        Subjects who showed it when it was decided.
    before, other : float
        The distance among those who showed it, and among those who did not, when it was decided.
    after : float
        The distance among those who show it in the release; 0 where nobody does.
    """

    attribute: str
    flipped: bool
    showing: int
    before: float
    other: float
    after: float


@dataclass(frozen=True, eq=False)
class Ppas:
    """What is released, and what was decided on the way.

    Attributes
    ----------
    cells : Cells
        The same people and sensitive values under the released vectors, before classes.
    plan : CellPlan
        Classes of these cells.
    choices : tuple of A Choice
    epsilon : float or None
        Spent in total per subject, choices included; None where nothing was randomised.
    verdict : Verdict
        Of the policy, on the released classes.
    """

    cells: Cells
    plan: CellPlan
    choices: tuple[Choice, ...]
    epsilon: float | None
    verdict: Verdict

    @property
    def flipped(self) -> tuple[str, ...]:
        """The attributes whose values are swapped."""
        return tuple(choice.attribute for choice in self.choices if choice.flipped)

    @property
    def k(self) -> int:
        """The smallest class as released, in subjects."""
        released = planned(self.cells, self.plan)
        return 0 if released is None else int(released.subjects.min())

    def vectors(self) -> pa.Table:
        """What is released of each subject, in words: ``subject`` and one column per attribute, null if left out."""
        cell = np.empty(len(self.cells.partial.subjects), dtype=np.int64)
        cell[self.cells.partial.cell_subject] = self.cells.partial.cell_class
        of_class = self.plan.class_of_cell[cell]
        shown = self.plan.labels(self.cells.attributes).take(pa.array(of_class, mask=of_class == SUPPRESSED))
        return shown.add_column(0, "subject", self.cells.partial.subjects)


def ppas(
    cells: Cells,
    policy: Policy,
    *,
    digest: Digest | None = None,
    choice_epsilon: float | None = None,
    public: Cells | None = None,
    reference: Mapping[Any, float] | None = None,
) -> Ppas:
    """Algorithm 1 as printed; it may leave the policy unmet, as ``verdict`` then says.

    Parameters
    ----------
    cells : Cells
        Binary quasi-identifiers, one vector per subject.
    policy : Policy
        Its t decides; its epsilon, if any, is spent on the perturbation; k and l are only measured.
    digest : Digest, optional
        Needed for epsilon.
    choice_epsilon : float, optional
        Draw the choices with this epsilon in all, instead of deciding them.
    public : Cells, optional
        Decide the choices on this table instead, which no subject of ``cells`` is in.
    reference : mapping, optional
        A public S (``t_closeness``). Default: the table's own.

    Raises
    ------
    PolicyError
        If t is missing, a subject has several vectors, or randomness is asked without a digest.
    ColumnError
        If an attribute has more than two values, or ``public`` has other attributes.
    """
    t = _limit(policy)
    if (policy.epsilon or choice_epsilon) and digest is None:
        raise PolicyError("epsilon is asked and there is no run key to draw from; give a digest")
    asked = _sides(cells, policy, reference)
    decided = asked if public is None else _sides(public, policy, reference)
    if [side.attribute for side in decided] != [side.attribute for side in asked]:
        raise ColumnError("the public table has other attributes than this one; give the same, in the same order")
    if choice_epsilon is None or digest is None:
        flips = [not side.distance[1] < t for side in decided]
    else:
        each = choice_epsilon / len(decided)
        flips = [not _drawn(side, t, each, digest) for side in decided]
    released, epsilon = recoded(cells, _swapped(cells, flips)), None
    if policy.epsilon is not None and digest is not None:
        randomised = randomise(released, policy.epsilon, digest)
        released, epsilon = randomised.cells, randomised.epsilon + (choice_epsilon or 0.0)
    plan = CellPlan(
        np.arange(len(released), dtype=np.int64),
        released.codes,
        released.codes,
        "ppas",
        _notes(policy, choice_epsilon, public is not None),
    )
    return _result(released, plan, policy, asked, flips, epsilon, reference)


def ppas_verified(
    cells: Cells,
    policy: Policy,
    *,
    digest: Digest | None = None,
    planner: Planner = mondrian,
    reference: Mapping[Any, float] | None = None,
) -> Ppas:
    """Randomise, choose, plan, verify: the policy holds of every class of what is returned.

    Parameters
    ----------
    cells : Cells
        One vector per subject; attributes that are not binary are never swapped.
    policy : Policy
    digest : Digest, optional
        Needed for epsilon.
    planner : callable
        (cells, policy) to a plan; what unites and suppresses. Give one bound to ``reference`` where that is given.
    reference : mapping, optional
        A public S (``t_closeness``). Default: the table's own.

    Raises
    ------
    UnreachableError
        If no plan meets the policy, or the planner's does not when judged here.
    PolicyError, ColumnError
    """
    epsilon = None
    if policy.epsilon is not None:
        if digest is None:
            raise PolicyError("epsilon is asked and there is no run key to draw from; give a digest")
        randomised = randomise(cells, policy.epsilon, digest)
        cells, epsilon = randomised.cells, randomised.epsilon
    sides = _sides(cells, policy, reference, others=True) if policy.t is not None else []
    flips = [
        side.binary
        and policy.t is not None
        and side.distance[1] >= policy.t.value
        and side.distance[0] < side.distance[1]
        for side in sides
    ]
    released = recoded(cells, _swapped(cells, flips)) if any(flips) else cells
    found = planner(released, policy)
    plan = replace(found, method="ppas-verified", notes=(*found.notes, *_verified_notes(policy)))
    result = _result(released, plan, policy, sides, flips, epsilon, reference)
    if not result.verdict.met:
        lacks = "; ".join(f"{r.name} = {r.asked:g} is asked, {r.found:.4g} found" for r in result.verdict.failures)
        raise UnreachableError(f"the plan found does not meet the policy: {lacks}; relax it, or use another planner")
    return result


@dataclass(frozen=True, eq=False)
class _Side:
    """One attribute as PPAS sees it: people and distance of those without and with it."""

    attribute: str
    binary: bool
    subjects: NDArray[np.int64]
    distance: NDArray[np.float64]


def _limit(policy: Policy) -> float:
    if policy.t is None:
        raise PolicyError("PPAS compares distances with t and the policy has none; give t and a sensitive attribute")
    return policy.t.value


def _sides(cells: Cells, policy: Policy, reference: Mapping[Any, float] | None, *, others: bool = False) -> list[_Side]:
    """Per attribute the distance of the sensitive values of both groups; (2,) each, 0 for a group without people."""
    subject_codes(cells)  # refuses several vectors per subject
    table = cells.histogram
    sides = []
    for a, attribute in enumerate(cells.attributes):
        if attribute.size > 2 and not others:
            raise ColumnError(
                f"attribute {attribute.name!r} has {attribute.size} values and algorithm 1 is for binary ones; "
                "leave it out, or use ppas-verified"
            )
        group = cells.codes[:, a].astype(np.int64)
        subjects, distance = _by_group(table, group, max(attribute.size, 2), policy, reference)
        sides.append(_Side(attribute.name, attribute.size == 2, subjects, distance))
    return sides


def _by_group(
    table: Histogram, group: NDArray[np.int64], groups: int, policy: Policy, reference: Mapping[Any, float] | None
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Subjects and distance of each group of classes."""
    subjects = np.bincount(group, weights=table.subjects, minlength=groups).astype(np.int64)
    weights = np.zeros((groups, table.weights.shape[1]))
    np.add.at(weights, group, table.weights.toarray())
    closeness = Requirements(
        table.values, table.reference, replace(policy, k=None, l=None, epsilon=None, max_suppression=None), reference
    )
    distance = np.zeros(groups)
    some = np.flatnonzero(subjects)
    for condition in closeness.conditions:
        found = condition.found(subjects[some], scipy.sparse.csr_array(weights[some]))
        distance[some] = np.maximum(distance[some], found)
    return subjects, distance


def _drawn(side: _Side, t: float, epsilon: float, digest: Digest) -> bool:
    """Whether to keep, with its own epsilon.

    The score is n_E (t - d). One subject who changes in any way moves n_E d by at most 2 (by Kantorovich duality: 1 for
    joining, leaving or changing the group, 1 for the change of S) and n_E t by at most t. The word is drawn for the
    score, so that a grown table gets another one.
    """
    score = float(side.subjects[1] * (t - side.distance[1]))
    (word,) = words(digest, "ppas choice", [repr((side.attribute, score, t, epsilon)).encode()], 1)[0]
    return private_choice(score, 2.0 + t, epsilon, int(word))


def _swapped(cells: Cells, flips: Sequence[bool]) -> NDArray[np.int32]:
    codes = subject_codes(cells).copy()
    for a, flip in enumerate(flips):
        if flip and cells.attributes[a].size == 2:
            codes[:, a] = 1 - codes[:, a]
    return codes


def _result(
    released: Cells,
    plan: CellPlan,
    policy: Policy,
    sides: Sequence[_Side],
    flips: Sequence[bool],
    epsilon: float | None,
    reference: Mapping[Any, float] | None,
) -> Ppas:
    table = planned(released, plan)
    if table is None:
        raise UnreachableError("every class is left out, so nothing is released; relax the policy")
    choices = []
    for a, (side, flip) in enumerate(zip(sides, flips, strict=True)):
        # 0 does not show it, 1 shows it, 2 is generalised and says nothing
        shows = np.where(plan.low[:, a] == plan.high[:, a], np.minimum(plan.low[:, a], 1), 2).astype(np.int64)
        after = _by_group(table, shows, 3, policy, reference)[1][1]
        choices.append(
            Choice(
                side.attribute,
                flip,
                int(side.subjects[1]),
                float(side.distance[1]),
                float(side.distance[0]),
                float(after),
            )
        )
    left_out = int(released.histogram.rows[plan.class_of_cell == SUPPRESSED].sum())
    verdict = judge(table, policy, suppressed_rows=left_out, epsilon=epsilon, reference=reference)
    return Ppas(released, plan, tuple(choices), epsilon, verdict)


def _notes(policy: Policy, choice_epsilon: float | None, public: bool) -> tuple[str, ...]:
    notes = ["k, l and t are measured on what came out; algorithm 1 does not enforce them"]
    if policy.epsilon is not None:
        if public:
            notes.append("epsilon covers the released vectors; the choices come from public data")
        elif choice_epsilon:
            notes.append("epsilon covers the released vectors and the choices, of both kinds of attributes")
        else:
            notes.append("epsilon covers the perturbation only: the choices were computed on this table")
    return tuple(notes)


def _verified_notes(policy: Policy) -> tuple[str, ...]:
    if policy.epsilon is None:
        return ()
    if policy.l is None and policy.t is None:
        return ("epsilon covers the released vectors: classes are made of randomised vectors alone",)
    return ("epsilon covers the quasi-identifiers; that classes meet l and t depends on the sensitive values",)
