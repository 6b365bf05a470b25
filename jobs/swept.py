"""What a sweep found: the Pareto front, the pick, and the files that tell of them."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
import yaml

from facecrowd.jobs import charts, pages
from facecrowd.jobs.figures import SCHEMA
from facecrowd.jobs.space import Limit, Objective, Sweep, figure_of, limits
from facecrowd.jobs.trials import DONE, FAILED, REFUSED, STOPPED, UNMET, Trial, replanned
from facecrowd.pipeline.storage import to_parquet

MOST_ROWS = 200
"""Of the page's table of trials; all are in trials.parquet."""


@dataclass(frozen=True)
class Swept:
    """A finished sweep.

    trials : in the order they were asked for, each once; front : positions of those that no other beats in everything;
    picked : the position of the pick; None where nothing meets it, or nothing was asked; again : of the pick, each
    objective on people and by recognisers that the search never saw
    """

    sweep: Sweep
    trials: tuple[Trial, ...]
    front: tuple[int, ...]
    picked: int | None = None
    again: tuple[dict[str, Any], ...] = ()
    seconds: float = field(default=0.0, compare=False)

    @property
    def met(self) -> bool:
        """Whether there is what was asked for."""
        return not self.sweep.pick or self.picked is not None

    @property
    def broken(self) -> tuple[str, ...]:
        """Limits that do not hold on people, or by recognisers, that the search never saw, in words."""
        out = []
        for limit in limits(self.sweep):
            for row in self.again:
                there, value = row["people"] != "search" or row["unseen"], row["value"]
                if there and row["objective"] == limit.name and value is not None and not limit.holds(value):
                    out.append(f"{limit.text} does not hold on people {row['people']}, {row['by']}: {value:.4g}")
        return tuple(out)

    @property
    def failed(self) -> int:
        """Trials that could not finish."""
        return sum(trial.status == FAILED for trial in self.trials)

    def as_dict(self) -> dict[str, Any]:
        rows = [
            {
                "trial": trial.key,
                **trial.point.as_dict(),
                "status": trial.status,
                "why": trial.why,
                "share": trial.share,
                "seconds": trial.seconds,
                "objectives": {goal.name: trial.value(goal) for goal in self.sweep.goals},
                "front": at in self.front,
                "picked": at == self.picked,
            }
            for at, trial in enumerate(self.trials)
        ]
        return {"objectives": self.sweep.objectives, "pick": self.sweep.pick, "trials": rows, "again": list(self.again)}


# --------------------------------------------------------------------------------------------------------------- pick


def pareto(trials: Sequence[Trial], goals: Sequence[Objective]) -> tuple[int, ...]:
    """Positions of the trials, measured in full, that no other is as good as in everything and better in something."""
    values = [[trial.value(goal) for goal in goals] if trial.status == DONE else [None] for trial in trials]
    at = [i for i, row in enumerate(values) if None not in row]
    costs = np.array([[g.cost(float(v)) for g, v in zip(goals, values[i], strict=True)] for i in at])  # type: ignore[arg-type]
    found = []
    for i, own in zip(at, costs, strict=True):
        beaten = (costs <= own).all(1) & (costs < own).any(1)
        if not beaten.any():
            found.append(i)
    return tuple(found)


def pick(swept: Swept) -> int | None:
    """The trial that meets every limit at the best utility; among equals the most private. None where none does."""
    asked = swept.sweep
    if not asked.pick:
        return None
    privacy, utility = asked.axes
    wanted = [(limit, figure_of(asked, limit.name)) for limit in limits(asked)]
    best: tuple[float, float, int] | None = None
    for at, trial in enumerate(swept.trials):
        use, own = trial.value(utility), trial.value(privacy)
        if trial.status != DONE or use is None or own is None:
            continue
        if all(limit.holds(nearest(trial, figure, limit)) for limit, figure in wanted):
            here = (utility.cost(use), privacy.cost(own), at)
            best = here if best is None else min(best, here)
    return None if best is None else best[2]


def nearest(trial: Trial, figure: Objective, limit: Limit) -> float | None:
    """Of several figures that are meant, the one nearest to breaking the limit."""
    return trial.value(replace(figure, goal="min" if limit.sign.startswith("<") else "max"))


def released_as(asked: Sweep, trial: Trial) -> str:
    """The release's config of a trial as YAML that ``facecrowd release --config`` runs as it is."""
    if asked.table:
        from facecrowd.jobs import whatif

        stored = whatif.read(str(asked.release), asked.workspace_path)
        config = replanned(stored.config, trial.point)
        release = config.release.model_copy(update={"path": str(asked.folder / "picked")})
        # In the workspace it was planned in, by the same draws.
        workspace = config.workspace.model_copy(update={"path": asked.workspace_path})
        config = config.model_copy(update={"release": release, "workspace": workspace})
    else:
        config = asked.config(trial.point)
    text = yaml.safe_dump(config.model_dump(mode="json", exclude_unset=True), sort_keys=False, allow_unicode=True)
    return f"# facecrowd release --config {asked.folder / 'picked.yaml'}\n{text}"


# -------------------------------------------------------------------------------------------------------------- write


def write(swept: Swept) -> None:
    """The sweep's files, the page last."""
    asked, place = swept.sweep, swept.sweep.folder
    table = to_table(swept)
    (place / "trials.parquet").write_bytes(to_parquet(table))
    (place / "pareto.parquet").write_bytes(to_parquet(table.filter(table["front"])))
    if swept.picked is not None:
        (place / "picked.yaml").write_text(released_as(asked, swept.trials[swept.picked]), encoding="utf-8")
    else:
        (place / "picked.yaml").unlink(missing_ok=True)
    (place / "sweep.html").write_text(page(swept), encoding="utf-8")


def to_table(swept: Swept) -> pa.Table:
    """A row per trial: what it is, each searched key, each objective, and all figures."""
    trials, goals = swept.trials, swept.sweep.goals
    columns: dict[str, Any] = {
        "trial": [trial.key for trial in trials],
        "method": [trial.point.method for trial in trials],
        "status": [trial.status for trial in trials],
        "why": [trial.why for trial in trials],
        "share": pa.array([trial.share for trial in trials], pa.float64()),
        "seconds": pa.array([trial.seconds for trial in trials], pa.float64()),
        "front": pa.array([at in swept.front for at in range(len(trials))], pa.bool_()),
        "picked": pa.array([at == swept.picked for at in range(len(trials))], pa.bool_()),
    }
    for key in dict.fromkeys(key for trial in trials for key in trial.point.chosen):
        columns[f"param {key}"] = _column([trial.point.chosen.get(key) for trial in trials])
    for goal in goals:
        columns[f"objective {goal.name}"] = pa.array([trial.value(goal) for trial in trials], pa.float64())
    columns["config"] = [json.dumps(trial.point.set, sort_keys=True) for trial in trials]
    columns["figures"] = pa.array([list(t.figures) for t in trials], pa.list_(pa.struct(list(SCHEMA))))
    return pa.table(columns)


def _column(values: Sequence[Any]) -> pa.Array:
    """Of one type where they are, else as JSON."""
    kinds = {type(value) for value in values if value is not None}
    if kinds <= {bool} or kinds <= {str} or kinds <= {int, float}:
        return pa.array([float(v) if kinds == {int, float} and v is not None else v for v in values])
    return pa.array([None if value is None else json.dumps(value, sort_keys=True) for value in values], pa.string())


def lines(swept: Swept) -> list[str]:
    """What a person is told."""
    asked, tally = swept.sweep, dict.fromkeys((DONE, STOPPED, UNMET, REFUSED, FAILED), 0)
    for trial in swept.trials:
        tally[trial.status] += 1
    told = ", ".join(f"{number} {status}" for status, number in tally.items() if number)
    out = [f"{len(swept.trials)} trials: {told}; {len(swept.front)} on the Pareto front; {swept.seconds:.1f} s"]
    reasons = dict.fromkeys(trial.why for trial in swept.trials if trial.why)
    out += [f"  {why}" for why in itertools.islice(reasons, 5)]
    for goal in asked.goals:
        if tally[DONE] and all(trial.value(goal) is None for trial in swept.trials):
            out.append(f"  {goal.name}: no trial has a figure {goal.selector.text}")
    if not asked.pick:
        return [*out, f"page: {asked.folder / 'sweep.html'}"]
    if swept.picked is None:
        return [*out, f"nothing meets {asked.pick}; {_nearest(swept)}", f"page: {asked.folder / 'sweep.html'}"]
    trial = swept.trials[swept.picked]
    figures = ", ".join(f"{goal.name} {_number(trial.value(goal))}" for goal in asked.goals)
    out.append(f"picked ({asked.pick}): {named(trial)}: {figures}")
    for row in swept.again:
        if row["people"] == "search" and not row["unseen"]:
            continue
        out.append(f"  {row['objective']}, people {row['people']}, {row['by']}: {_number(row['value'])}")
    out += [f"BUT {broken}" for broken in swept.broken]
    return [*out, f"config: {asked.folder / 'picked.yaml'}", f"page: {asked.folder / 'sweep.html'}"]


def _nearest(swept: Swept) -> str:
    """What of the first limit came nearest to it."""
    limit = limits(swept.sweep)[0]
    figure = figure_of(swept.sweep, limit.name)
    values = [v for trial in swept.trials if trial.status == DONE and (v := nearest(trial, figure, limit)) is not None]
    if not values:
        return f"no trial has a figure {limit.name}"
    return f"the best {limit.name} is {_number(min(values) if limit.sign.startswith('<') else max(values))}"


def named(trial: Trial) -> str:
    """``blur, method.sigma = 8``."""
    parts = [f"{key} = {value:.4g}" if isinstance(value, float) else f"{key} = {value}" for key, value in _plain(trial)]
    return ", ".join([trial.point.method, *parts])


def _plain(trial: Trial) -> list[tuple[str, Any]]:
    found: dict[str, Any] = {}
    for key, value in trial.point.chosen.items():
        if key.endswith("]"):
            whole, _, name = key[:-1].partition("[")
            found[whole] = "+".join(filter(None, [found.get(whole, ""), name if value else ""]))
        else:
            found[key] = value
    return list(found.items())


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"


# --------------------------------------------------------------------------------------------------------------- page


def page(swept: Swept) -> str:
    """The page: no script, nothing from elsewhere."""
    asked = swept.sweep
    order = [*swept.front, *(i for i in range(len(swept.trials)) if i not in swept.front)]
    values = {
        "chart": _chart(swept, "chart-1"),
        "lines": lines(swept)[:-1],
        "goals": asked.goals,
        "met": None if not asked.pick else swept.picked is not None,
        "broken": swept.broken,
        "pick": asked.pick,
        "again": [
            {**row, "value": _number(row["value"]), "span": _span(row), "chance": _number(row["chance"])}
            for row in swept.again
        ],
        "rows": [_row(swept, at) for at in order[:MOST_ROWS]],
        "left": max(len(order) - MOST_ROWS, 0),
        "table": asked.table,
    }
    return pages.page("sweep.html", values)


def _span(row: Mapping[str, Any]) -> str:
    return "" if row["low"] is None or row["high"] is None else f"[{row['low']:.4g}, {row['high']:.4g}]"


def _row(swept: Swept, at: int) -> dict[str, Any]:
    trial = swept.trials[at]
    return {
        "name": named(trial),
        "values": [_number(trial.value(goal)) for goal in swept.sweep.goals],
        "status": trial.status,
        "why": trial.why,
        "seconds": f"{trial.seconds:.1f}",
        "front": at in swept.front,
        "picked": at == swept.picked,
    }


def _chart(swept: Swept, key: str) -> charts.Chart | None:
    """Privacy against use: of each method the trials that no other of it beats, as a line; the picked one marked."""
    privacy, utility = swept.sweep.axes
    drawn: list[charts.Line] = []
    for method in dict.fromkeys(trial.point.method for trial in swept.trials):
        own = [trial for trial in swept.trials if trial.point.method == method]
        best = pareto(own, (privacy, utility))
        places = sorted({(own[i].value(utility), own[i].value(privacy)) for i in best})
        if places:
            x, y = np.array(places, float).T
            drawn.append(charts.Line(method, x, y))
    if not drawn:
        return None
    if swept.picked is not None:
        trial = swept.trials[swept.picked]
        x, y = (np.array([trial.value(goal)], float) for goal in (utility, privacy))
        drawn.append(charts.Line(f"picked, of {trial.point.method}", x, y, ring=True))
    shares = all(0 <= v <= 1 for line in drawn for v in line.y)
    axes = (_axis(utility), _axis(privacy))
    finding = (
        f"{len(swept.front)} of {len(swept.trials)} trials are on the Pareto front. A line joins the trials of a "
        "method that no other of it beats."
    )
    return charts.lines(
        key, "Privacy against use, a line for each method", finding, drawn, axes, rates=shares, most=len(drawn)
    )


def _axis(goal: Objective) -> str:
    return f"{goal.name} ({'lower' if goal.goal == 'min' else 'higher'} is better)"
