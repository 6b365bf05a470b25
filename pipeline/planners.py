"""The planners of released attributes by name: what ``facecrowd plan`` and ``release --method translation`` share.

mondrian, suppress    classes of equal vectors, generalised or left out until every class meets the policy
k-same                classes of at least k by their vectors, each showing one of its people's
ppas, ppas-verified   AnonymousNet's attribute selection, as printed and repaired (``privacy/ppas.py``)
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from facecrowd.pipeline.errors import ConfigError
from facecrowd.privacy.cells import CellPlan, Cells, planned
from facecrowd.privacy.classes import Histogram
from facecrowd.privacy.errors import UnreachableError
from facecrowd.privacy.policy import Policy
from facecrowd.privacy.updates import Published, Updates, extend

METHODS = ("mondrian", "suppress", "k-same", "ppas", "ppas-verified")

Digest = Callable[[str, bytes], bytes]
Planner = Callable[[Cells, Policy], CellPlan]


@dataclass(frozen=True)
class Made:
    """A plan, the cells it plans (randomised ones where the method randomises first), the epsilon it spent, what PPAS
    chose for each attribute, and what the earlier releases and this one leave of everybody's crowd."""

    cells: Cells
    plan: CellPlan
    epsilon: float | None = None
    choices: tuple[dict[str, Any], ...] = ()
    updates: Updates | None = None

    @property
    def released(self) -> Histogram:
        """What the plan releases. Raises UnreachableError where that is nothing."""
        found = planned(self.cells, self.plan)
        if found is None:
            raise UnreachableError("the plan suppresses every row, so nothing is released; relax the policy")
        return found


def made(
    method: str,
    cells: Cells,
    limits: Policy,
    digest: Digest | None = None,
    reference: Mapping[Any, float] | None = None,
    earlier: Sequence[Published] = (),
) -> Made:
    """The plan of a method, kept to what was released earlier.

    digest : what epsilon is drawn by; needed where the policy asks for one

    Raises ConfigError, or an error of ``privacy/``: UnreachableError where no plan meets the policy.
    """
    if method.startswith("ppas"):
        from facecrowd.privacy.ppas import ppas, ppas_verified

        found = (
            ppas(cells, limits, digest=digest, reference=reference)
            if method == "ppas"
            else ppas_verified(
                cells, limits, digest=digest, planner=planner("mondrian", reference), reference=reference
            )
        )
        choices = tuple({**asdict(choice), "flipped": bool(choice.flipped)} for choice in found.choices)
        return Made(found.cells, found.plan, found.epsilon, choices)
    epsilon = None
    if limits.epsilon is not None and digest is not None:
        # What is planned on randomised vectors is post-processing: it spends nothing more.
        from facecrowd.privacy.randomisation import randomise

        randomised = randomise(cells, limits.epsilon, digest)
        cells, epsilon = randomised.cells, randomised.epsilon
    if method == "k-same":
        from facecrowd.privacy.ksame import k_same

        same = k_same(cells, limits, reference=reference)
        return Made(same.cells, same.plan, epsilon)
    if earlier:
        later = extend(earlier, cells, limits, planner=planner(method, reference), reference=reference)
        return Made(later.cells, later.plan, epsilon, updates=later.updates)
    return Made(cells, planner(method, reference)(cells, limits), epsilon)


def planner(method: str, reference: Mapping[Any, float] | None = None) -> Planner:
    """mondrian or suppress, bound to a public distribution. Raises ConfigError."""
    module, name = {"mondrian": ("mondrian", "mondrian"), "suppress": ("suppression", "suppress")}[method]
    try:
        found: Callable[..., CellPlan] = getattr(importlib.import_module(f"facecrowd.privacy.{module}"), name)
    except ModuleNotFoundError:
        raise ConfigError(f"--method {method}: not in this version") from None
    return partial(found, reference=reference)
