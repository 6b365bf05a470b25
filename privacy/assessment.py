"""Is it private now, how private is it, and can it be more private?

The three questions of AnonymousNet [1]_, answered for a table or for a plan of it: ``Verdict`` holds the policy against
the worst class of each requirement, ``Level`` says the strictest value of each model that holds, beside the risks of
the classical adversaries, and ``Cost`` what each stricter policy takes. Every plan on the cost curve is measured here,
independently of the planner that made it.

.. [1] T. Li, L. Lin, "AnonymousNet: natural face de-identification with measurable privacy", CVPR Workshops 2019.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import numpy as np

from facecrowd.privacy.anonymity import effective_k, k_anonymity, k_map, population_of_plan
from facecrowd.privacy.cells import CellPlan, Cells, planned
from facecrowd.privacy.classes import Histogram
from facecrowd.privacy.closeness import Ground, class_distances, t_closeness, transport_bounds
from facecrowd.privacy.diversity import distinct_l, entropy_l, recursive_c
from facecrowd.privacy.errors import EmptyTableError, PlanError, PrivacyError
from facecrowd.privacy.likeness import beta_likeness, delta_disclosure
from facecrowd.privacy.loss import Loss, information_loss
from facecrowd.privacy.measure import Measure, figure
from facecrowd.privacy.policy import Closeness, Diversity, Policy
from facecrowd.privacy.risk import THRESHOLD, Risk, journalist_risk, marketer_risk, prosecutor_risk
from facecrowd.privacy.uniqueness import Uniqueness, uniqueness
from facecrowd.privacy.verdict import Verdict, WorstClass, judge

Planner: TypeAlias = Callable[[Cells, Policy], CellPlan]
"""Anything that plans: raises a ``PrivacyError`` where it cannot reach the policy."""

FORMAT = 1
"""Of ``Assessment.as_dict``. Keys are added, never renamed or given another meaning, while this stays the same."""

K_GRID = (2, 3, 5, 10, 20, 50, 100)
T_GRID = (0.5, 0.4, 0.3, 0.2, 0.15, 0.1, 0.05)
C_GRID = (10.0, 5.0, 3.0, 2.0, 1.5, 1.0)
L_GRID = (1.1, 1.25, 1.5, 1.75, 2.0, 2.5, 3.0, 4.0, 5.0, 8.0)


@dataclass(frozen=True)
class Level:
    """The strictest value of one model that the table satisfies.

    Attributes
    ----------
    name : str
        ``k``, ``l (entropy) of Attractive``, ``t (hamming)``, ``delta of Attractive``, ``epsilon``.
    value : float
        Infinite where no value is satisfied.
    better : {"larger", "smaller"}
        Which way is more private.
    worst_class : WorstClass, optional
        The class that decides; None where none does.
    note : str
    """

    name: str
    value: float
    better: Literal["larger", "smaller"]
    worst_class: WorstClass | None = None
    note: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Plain values; None stands for infinity, so for "no value is satisfied"."""
        return {
            "name": self.name,
            "value": figure(self.value),
            "better": self.better,
            "worst_class": self.worst_class and self.worst_class.as_dict(),
            "note": self.note,
        }

    def __str__(self) -> str:
        if not np.isfinite(self.value):
            return f"{self.name}: holds for no value" + (f" ({self.worst_class.size})" if self.worst_class else "")
        remarks = [self.worst_class.size] if self.worst_class else []
        remarks += [self.note] if self.note else []
        return f"{self.name}: {self.value:.4g}" + (f" ({'; '.join(remarks)})" if remarks else "")


@dataclass(frozen=True)
class Cost:
    """One point of the cost curve.

    Attributes
    ----------
    asked : str
        The policy in words.
    policy : Policy
    reached : bool
        Whether the planner found a plan, and the plan met the policy when measured here.
    why : str
        Why not.
    classes : int
    loss : Loss, optional
        Of the plan, also of one that fell short; None where there is none.
    """

    asked: str
    policy: Policy
    reached: bool
    why: str
    classes: int
    loss: Loss | None

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        p = self.policy
        return {
            "asked": self.asked,
            "k": p.k,
            "l": p.l and {"kind": p.l.kind, "value": p.l.value, "c": p.l.c},
            "t": p.t and {"value": p.t.value, "ground": _ground_name(p.t.ground)},
            "reached": self.reached,
            "why": self.why,
            "classes": self.classes,
            "loss": self.loss and self.loss.as_dict(),
        }

    def __str__(self) -> str:
        if self.loss is None:
            return f"{self.asked}: not reached: {self.why}"
        changed = self.loss.rows_changed / self.loss.rows
        line = (
            f"{self.asked}: {self.classes:,} classes, {changed:.1%} of rows changed, "
            f"{self.loss.suppressed:.2%} suppressed, {self.loss.ncp:.2%} of information lost"
        )
        return line if self.reached else f"{line}; NOT reached: {self.why}"


@dataclass(frozen=True)
class Assessment:
    """The three answers.

    Attributes
    ----------
    verdict : Verdict
        Is it private now?
    levels, uniqueness, risks
        How private is it?
    loss : Loss, optional
        What the assessed plan cost; None for a table as it is.
    curve : tuple of Cost
        Can it be more private? Empty where no planner was given.
    """

    verdict: Verdict
    levels: tuple[Level, ...]
    uniqueness: Uniqueness
    risks: tuple[Risk, ...]
    loss: Loss | None
    curve: tuple[Cost, ...]

    @property
    def met(self) -> bool:
        """Whether the policy is met now."""
        return self.verdict.met

    def as_dict(self) -> dict[str, Any]:
        """Plain values, as JSON holds them; None stands for infinity and for what was not asked."""
        return {
            "format": FORMAT,
            "met": self.met,
            "verdict": self.verdict.as_dict(),
            "levels": [level.as_dict() for level in self.levels],
            "uniqueness": self.uniqueness.as_dict(),
            "risks": [risk.as_dict() for risk in self.risks],
            "loss": self.loss and self.loss.as_dict(),
            "curve": [cost.as_dict() for cost in self.curve],
        }

    def lines(self) -> list[str]:
        """The three answers as a person reads them."""
        head, *requirements = self.verdict.lines()
        v = self.verdict
        lines = [f"{v.rows:,} rows of {v.subjects:,} subjects in {v.classes:,} classes"]
        lines += [f"is it private now? {head}", *requirements, "how private is it? the strictest values that hold:"]
        lines += [f"  {level}" for level in self.levels]
        lines += [f"  {_uniqueness_line(self.uniqueness)}", *(f"  {_risk_line(risk)}" for risk in self.risks)]
        if self.loss is not None:
            lines.append(
                f"what it cost: {self.loss.rows_changed:,} of {self.loss.rows:,} rows changed, "
                f"{self.loss.rows_suppressed:,} of them suppressed, {self.loss.ncp:.2%} of information lost"
                + (f", {self.loss.changed:.2%} of values replaced by others" if self.loss.changed else "")
            )
        if self.curve:
            lines += ["can it be more private? what each policy takes:", *(f"  {cost}" for cost in self.curve)]
        return lines


def assess(
    table: Cells | Histogram,
    policy: Policy,
    *,
    plan: CellPlan | None = None,
    planner: Planner | None = None,
    grid: Sequence[Policy] | None = None,
    population: Cells | None = None,
    population_size: int | None = None,
    epsilon: float | None = None,
    reference: Mapping[Any, float] | None = None,
    clustered: bool = False,
    threshold: float = THRESHOLD,
) -> Assessment:
    """Answer the three questions.

    Parameters
    ----------
    table : Cells or Histogram
        The table; only cells can be planned.
    policy : Policy
    plan : CellPlan, optional
        Assess the table as this plan releases it, and say what it cost. Default: the table as it is.
    planner : callable, optional
        ``(cells, policy) -> plan``, for the cost curve.
    grid : sequence of Policy, optional
        The policies of the curve. Default: ``stricter``.
    population : Cells, optional
        A table of the population, one cell per subject, for k-map and the journalist.
    population_size : int, optional
        For population uniqueness. Default: that of ``population``.
    epsilon : float, optional
        The total per subject that randomisation has spent.
    reference : mapping, optional
        The public distribution for t, delta and beta. Default: the released table's subjects. It must fit every
        sensitive attribute, so it is of use with one.
    clustered : bool
        Whether subjects come from clustering.
    threshold : float
        Of the share of people at risk.

    Raises
    ------
    EmptyTableError
        If the plan suppresses everything.
    PlanError
        If the plan is of other cells, or a plan or planner is given for a table that is no cells.
    TooFewSubjectsError, ColumnError, GroundDistanceError, ReferenceDistributionError, PopulationError, PolicyError
    """
    if isinstance(table, Histogram):
        if plan is not None or planner is not None:
            raise PlanError("classes were given, and only cells can be planned; give cells, or leave the planner out")
        released, loss, suppressed = table, None, 0
    elif plan is None:
        released, loss, suppressed = table.histogram, None, 0
    else:
        loss = information_loss(table, plan)
        found = planned(table, plan)
        if found is None:
            raise EmptyTableError("the plan suppresses every row, so nothing is released; relax the policy")
        released, suppressed = found, loss.rows_suppressed
    people: Any = None
    if population is not None:
        population_size = population_size or population.histogram.total_subjects
        people = population.histogram
        if plan is not None and isinstance(table, Cells):
            people = population_of_plan(table, plan, population)
    risks = [prosecutor_risk(released, threshold=threshold), marketer_risk(released, people)]
    if people is not None:
        risks.insert(1, journalist_risk(released, people, threshold=threshold))
    verdict = judge(
        released,
        policy,
        suppressed_rows=suppressed,
        epsilon=epsilon,
        reference=reference,
        clustered=clustered,
    )
    held = levels(released, policy, reference=reference, epsilon=epsilon)
    if people is not None:
        held = (*held[:3], _level("k-map", k_map(released, people), "larger", released), *held[3:])
    curve: tuple[Cost, ...] = ()
    if planner is not None and isinstance(table, Cells):
        curve = cost_curve(table, stricter(policy, table.histogram) if grid is None else grid, planner, reference)
    return Assessment(verdict, held, uniqueness(released, population_size), tuple(risks), loss, curve)


def levels(
    released: Histogram,
    policy: Policy | None = None,
    *,
    reference: Mapping[Any, float] | None = None,
    epsilon: float | None = None,
) -> tuple[Level, ...]:
    """How private: the strictest value of every model that the table satisfies.

    Always: k in subjects, k in rows (for comparison) and effective k. For each sensitive attribute: distinct and
    entropy l, recursive c at l = 2, t under the equal distance and, with more than two values, the ordered one (the
    order of the values themselves), delta, basic and enhanced beta. For several: t under the Hamming distance of their
    joint distribution. And whatever else the policy names: its l for recursive c, its ground distance.

    Parameters
    ----------
    released : Histogram
    policy : Policy, optional
    reference : mapping, optional
        The public distribution for t, delta and beta.
    epsilon : float, optional
        The total per subject that randomisation has spent.

    Raises
    ------
    GroundDistanceError, ReferenceDistributionError
    """

    def level(name: str, found: Measure, better: Literal["larger", "smaller"], note: str = "") -> Level:
        return _level(name, found, better, released, note)

    held = [
        level("k", k_anonymity(released), "larger"),
        level("k (rows)", k_anonymity(released, "rows"), "larger", "rows counted, not people; for comparison only"),
        level("effective k", effective_k(released), "larger"),
    ]
    asked_l = policy.l if policy is not None else None
    at = int(asked_l.value) if asked_l is not None and asked_l.kind == "recursive" else 2
    ground = policy.t.ground if policy is not None and policy.t is not None else "equal"
    joint = isinstance(ground, np.ndarray) or (isinstance(ground, str) and ground == "hamming")
    for name in released.sensitive:
        one = released.marginal([name])
        held.append(level(f"l (distinct) of {name}", distinct_l(one), "larger"))
        held.append(level(f"l (entropy) of {name}", entropy_l(one), "larger"))
        for l in sorted({2, at}):  # noqa: E741 the field's name
            note = f"holds for every larger c, at l = {l}"
            held.append(level(f"c (recursive, l = {l}) of {name}", recursive_c(one, l), "smaller", note))
        grounds: list[Ground] = ["equal"]
        grounds += ["ordered"] if one.values.num_rows > 2 else []
        grounds += [ground] if not joint and not isinstance(ground, str) else []
        for distance in grounds:
            found = t_closeness(one, distance, reference=reference)
            held.append(level(f"t ({_ground_name(distance)}) of {name}", found, "smaller"))
        delta = delta_disclosure(one, reference=reference)
        held.append(level(f"delta of {name}", delta, "smaller", "in nats; holds for every larger delta"))
        held.append(level(f"beta of {name}", beta_likeness(one, reference=reference), "smaller"))
        enhanced = beta_likeness(one, reference=reference, enhanced=True)
        held.append(level(f"beta (enhanced) of {name}", enhanced, "smaller"))
    if len(released.sensitive) > 1 and (joint or reference is None):
        distances: list[Ground] = ["hamming"]
        distances += [ground] if isinstance(ground, np.ndarray) else []
        for distance in distances:
            found = _worst_transport(released, distance, reference)
            held.append(level(f"t ({_ground_name(distance)})", found, "smaller", "joint distribution"))
    if epsilon is not None:
        note = "total per subject, of the released attributes"
        held.append(Level("epsilon", float(epsilon), "smaller", None, note))
    return tuple(held)


def stricter(policy: Policy, table: Histogram) -> tuple[Policy, ...]:
    """The policy itself and, one requirement at a time, every stricter one of a grid.

    k always (up to the number of subjects); l, c and t where the policy asks for them (without a sensitive attribute
    they cannot be asked). For a ground matrix, whose unit is its own, t is halved thrice.
    """
    found = [policy]
    found += [replace(policy, k=k) for k in K_GRID if (policy.k or 1) < k <= table.total_subjects]
    if policy.l is not None:
        asked = policy.l
        values = min(len(table.values[name].unique()) for name in policy.sensitive)
        if asked.kind == "recursive":
            found += [replace(policy, l=replace(asked, c=c)) for c in C_GRID if c < float(asked.c or 0)]
        elif asked.kind == "distinct":
            found += [replace(policy, l=Diversity("distinct", n)) for n in range(int(asked.value) + 1, values + 1)]
        else:
            found += [replace(policy, l=Diversity("entropy", n)) for n in L_GRID if asked.value < n <= values]
    if policy.t is not None:
        t, ground = policy.t.value, policy.t.ground
        steps = [t / 2, t / 4, t / 8] if isinstance(ground, np.ndarray) else [x for x in T_GRID if x < t]
        found += [replace(policy, t=Closeness(x, ground)) for x in steps]
    return tuple(found)


def cost_curve(
    cells: Cells,
    policies: Sequence[Policy],
    planner: Planner,
    reference: Mapping[Any, float] | None = None,
) -> tuple[Cost, ...]:
    """What each policy takes: rows changed, rows suppressed, information lost.

    Parameters
    ----------
    cells : Cells
    policies : sequence of Policy
    planner : callable
        ``(cells, policy) -> plan``. A ``PrivacyError`` is a point that is not reached; any other error is raised.
    reference : mapping, optional
        The public distribution for t.

    Raises
    ------
    PlanError
        If the planner returns a plan of other cells.
    """
    return tuple(_cost(cells, policy, planner, reference) for policy in policies)


def _cost(cells: Cells, policy: Policy, planner: Planner, reference: Mapping[Any, float] | None) -> Cost:
    asked = _in_words(policy)
    try:
        plan = planner(cells, policy)
    except PrivacyError as error:
        return Cost(asked, policy, False, str(error), 0, None)
    loss = information_loss(cells, plan)
    released = planned(cells, plan)
    if released is None:
        return Cost(asked, policy, False, "the plan suppresses every row", 0, loss)
    # epsilon is spent by randomisation, not by a plan
    verdict = judge(released, replace(policy, epsilon=None), suppressed_rows=loss.rows_suppressed, reference=reference)
    why = "; ".join(f"{r.name} is {r.found:.4g} where {r.asked:.4g} is asked" for r in verdict.failures)
    return Cost(asked, policy, verdict.met, why, verdict.classes, loss)


def _level(
    name: str, found: Measure, better: Literal["larger", "smaller"], released: Histogram, note: str = ""
) -> Level:
    return Level(name, found.value, better, WorstClass.of(released, found.worst_class), note)


def _worst_transport(released: Histogram, ground: Ground, reference: Mapping[Any, float] | None) -> Measure:
    """``t_closeness`` of the worst class, solving only the transport problems whose bound says they may be worst."""
    bounds = transport_bounds(released.values, released.reference, ground, reference)
    if bounds is None:
        return t_closeness(released, ground, reference=reference)
    distances = class_distances(released.values, released.reference, ground, reference)
    lower, upper = bounds(released.subjects, released.weights)
    found = lower.copy()
    order = np.argsort(-upper, kind="stable")
    best, start, width = -1.0, 0, 16
    while start < len(order) and upper[order[start]] >= best * (1 - 1e-12):
        some = order[start : start + width]
        found[some] = distances(released.subjects[some], released.weights[some])
        best = max(best, float(found[some].max()))
        start, width = start + width, 2 * width
    solved = order[:start]
    worst = int(solved[found[solved] >= best].min())
    return Measure(found, worst)


def _ground_name(ground: Ground) -> str:
    return ground if isinstance(ground, str) else type(ground).__name__.replace("ndarray", "matrix").lower()


def _in_words(policy: Policy) -> str:
    parts = [f"k = {policy.k}"] if policy.k is not None else []
    if policy.l is not None:
        kind = policy.l.kind if policy.l.c is None else f"recursive, c = {policy.l.c:g}"
        parts.append(f"l ({kind}) = {policy.l.value:g}")
    if policy.t is not None:
        parts.append(f"t ({_ground_name(policy.t.ground)}) = {policy.t.value:g}")
    return ", ".join(parts) or "nothing"


def _uniqueness_line(found: Uniqueness) -> str:
    line = f"alone in their class: {found.uniques:,} of {found.sample:,} {found.unit} ({found.sample_share:.1%})"
    if found.population_share is None:
        return line
    return (
        f"{line}; by estimate ({found.model}), {found.population_share:.1%} of the population of "
        f"{found.population:,} are"
    )


def _risk_line(risk: Risk) -> str:
    line = f"{risk.adversary} risk: {risk.average:.2%} on average"
    if risk.maximum is None:
        return line
    return f"{line}, {risk.maximum:.1%} at most; {risk.at_risk:.1%} of people above {risk.threshold:.0%}"
