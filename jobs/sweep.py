"""``facecrowd sweep CONFIG.yaml``: search policies, methods and their strengths for what protects most and costs least.

    base: release.yaml                        # what all trials share: a release's config, a file or its keys
    output: sweeps/first                      # everything the sweep makes, private
    space: {policy.k: {grid: [2, 5, 10]}}     # any key of a release's config, for every method
    methods:                                  # names of ``compare.METHODS``, or keys of one's own
      k-same: {}
      blur: {policy.k: null, method.sigma: {loguniform: [1, 32]}}
    objectives: {rank1: {min: identity.rank1.sface.originals}, fid: {min: utility.fid}}
    search: optuna                            # or grid, random
    samples: 40
    held_out: {subjects: 0.5, recognisers: [edgeface-s]}
    pick: rank1<=0.02

A value that is a mapping of one of ``grid``, ``choice``, ``uniform``, ``loguniform``, ``integers`` and ``subsets`` (of
names, for lists such as ``policy.quasi_identifiers``) is searched; any other is set. An objective is a figure of an
audit, or of ``whatif``'s table as ``plan.NAME``.

Whole trials release and attack, one after the other in one workspace, so faces are found, embedded and read once. Tune
runs them; a trial takes next to no CPU of its own, and Ray Data has the rest. ``table: true`` plans only, from what the
workspace keeps of a finished ``release:``, in this process, and opens no picture.

The search sees one part of the people, and not all recognisers. What is picked is measured on the others too: the best
of many trials is better by luck than it will be again.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from facecrowd.jobs.space import ATTACKED, FULL, Point, Sweep
from facecrowd.jobs.swept import Swept, pareto, pick, write
from facecrowd.jobs.trials import (
    FAILED,
    STOPPED,
    Job,
    Log,
    Trial,
    evidence_of,
    measured,
    optuna_here,
    prepared,
    released,
    split,
    trial_of,
)
from facecrowd.pipeline.config import ReleaseConfig
from facecrowd.pipeline.progress import Progress
from facecrowd.pipeline.schema import VERSION
from facecrowd.pipeline.storage import Workspace, fingerprint, held

TRIAL_CPUS = 0.01
"""Of a whole trial: it waits for Ray Data, which takes ``ray_data.CPU_HEADROOM`` of all CPUs."""


def sweep(asked: Sweep, progress: Progress) -> Swept:
    """Search, pick, and write trials.parquet, pareto.parquet, picked.yaml and sweep.html into the output.

    A sweep that was killed goes on: what was finished is not made again. Raises as ``prepared``, before any work.
    """
    start = time.monotonic()
    job = prepared(asked)
    busy = f"output {asked.folder}: another sweep is using it; wait for it or stop it"
    with held(asked.folder / "lock", busy), Workspace(asked.workspace_path).used(make=not asked.table):
        found = searched(job, progress)
        swept = Swept(asked, found, pareto(found, asked.goals))
        at = pick(swept)
        if at is not None:
            swept = replace(swept, picked=at, again=held_out(job, found[at], progress))
        swept = replace(swept, seconds=time.monotonic() - start)
        write(swept)
    return swept


def searched(job: Job, progress: Progress) -> tuple[Trial, ...]:
    """All trials."""
    found = _loop(job, progress) if job.sweep.table else _tune(job, progress)
    return tuple({trial.key: trial for trial in found}.values())


def _loop(job: Job, progress: Progress) -> list[Trial]:
    """One after the other, here: Tune takes longer to start a trial than a plan takes."""
    asked, known, found = job.sweep, job.log.read(), []
    points = asked.points()
    study = None if points is not None else _study(asked)
    with progress.step("sweep", asked.samples if points is None else len(points), "trials") as advance:
        for at in range(asked.samples if points is None else len(points)):
            draw = study.ask() if study is not None else None
            point = points[at] if points is not None else asked.suggested(draw)
            (trial,) = job.run(point, known)
            found.append(trial)
            if study is not None:
                values = [trial.value(goal) for goal in asked.goals]
                state = optuna_here().trial.TrialState.FAIL if None in values else None
                study.tell(draw, None if state else values, state=state)
            advance(1)
    return found


def _study(asked: Sweep) -> Any:
    optuna = optuna_here()
    directions = ["minimize" if goal.goal == "min" else "maximize" for goal in asked.goals]
    return optuna.create_study(sampler=optuna.samplers.TPESampler(seed=asked.seed), directions=directions)


TUNE = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
}
"""One file of trials is written, by the trials; a trial without figures is none that lacks metrics by mistake."""


def _tune(job: Job, progress: Progress) -> list[Trial]:
    """By Ray Tune, one trial at a time: a workspace is for one job, and Ray Data uses all CPUs for it."""
    asked = job.sweep
    name = fingerprint(asked.asks(), job.about)
    marker = asked.folder / "tune" / f"{name}.json"
    known = job.log.read()
    if marker.exists():
        points = [Point(**one) for one in json.loads(marker.read_text())]
        if all(_last(job, point, known) for point in points):
            progress.say("sweep: all trials were made before")
            return [_found(job, point, known, "") for point in points]
    for key, value in TUNE.items():
        os.environ.setdefault(key, value)
    from ray import tune

    from facecrowd.pipeline import ray_data

    # What a trial raised is in its row; Tune's own account of it would only stand above it.
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)

    with ray_data.session(job.compute.address, job.compute.cpus):
        # Ray takes a relative path for a URL without a scheme.
        tuner = _tuner(job, tune, marker.with_suffix("").resolve(), progress)
        grid = tuner.fit()
    known = job.log.read()
    points_of = asked.points()
    found = []
    for result in grid:
        config = result.config or {}
        point = points_of[config["point"]] if points_of is not None else asked.recovered(config)
        why = "" if result.error is None else _last_line(ray_data.root_cause(result.error))
        found.append(_found(job, point, known, why))
    if not any(trial.status == FAILED for trial in found):
        marker.write_text(json.dumps([trial.point.as_dict() for trial in found]))
    return found


def _last_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[-1].strip()


def _tuner(job: Job, tune: Any, place: Path, progress: Progress) -> Any:
    asked, stop, home = job.sweep, job.sweep.early_stopping, os.getcwd()

    def trial(config: dict[str, Any]) -> None:
        os.chdir(home)  # Tune gives every trial a folder, and the paths of a config are as seen from here
        points = asked.points()
        point = points[config["point"]] if points is not None else asked.recovered(config)
        for rung, one in enumerate(job.run(point)):
            values = {goal.name: one.value(goal) for goal in asked.goals}
            told = {name: value for name, value in values.items() if value is not None}
            at = stop.factor**rung if stop and one.status == STOPPED else stop.factor**stop.rungs if stop else 1
            tune.report({**told, "people": at, "status": one.status})

    runnable = tune.with_resources(trial, {"cpu": TRIAL_CPUS})
    if tune.Tuner.can_restore(str(place)):
        progress.say("sweep: going on where it stopped")
        return tune.Tuner.restore(str(place), runnable, resume_unfinished=True, restart_errored=True)
    points = asked.points()
    settings: dict[str, Any] = {"max_concurrent_trials": 1, "reuse_actors": True}
    if stop is not None:
        goal = asked.goal(stop.by)
        from ray.tune.schedulers import AsyncHyperBandScheduler

        settings["scheduler"] = AsyncHyperBandScheduler(
            "people",
            metric=goal.name,
            mode=goal.goal,
            max_t=stop.factor**stop.rungs,
            grace_period=1,
            reduction_factor=stop.factor,
        )
    if points is None:
        settings |= {"search_alg": _search(asked), "num_samples": asked.samples}
    run = tune.RunConfig(
        name=place.name, storage_path=str(place.parent), verbose=0, callbacks=[_say(tune, job, progress)]
    )
    space = {} if points is None else {"point": tune.grid_search(list(range(len(points))))}
    return tune.Tuner(runnable, param_space=space, tune_config=tune.TuneConfig(**settings), run_config=run)


def _search(asked: Sweep) -> Any:
    optuna_here()
    from ray.tune.search.optuna import OptunaSearch

    class Search(OptunaSearch):
        def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
            # A trial without figures is told as one that failed: Ray's own hands Optuna a list of None.
            if result is not None and any(result.get(name) is None for name in self.metric):
                result, error = None, True
            super().on_trial_complete(trial_id, result, error)

    space, goals = partial(_suggest, asked), asked.goals  # Ray pickles it, so it is no closure
    return Search(space, metric=[goal.name for goal in goals], mode=[goal.goal for goal in goals], seed=asked.seed)


def _suggest(asked: Sweep, trial: Any) -> None:
    asked.suggested(trial)


def _say(tune: Any, job: Job, progress: Progress) -> Any:
    asked, points = job.sweep, job.sweep.points()
    known = {key for key, _ in job.log.read()}
    before = len(known) if points is None else sum(job.key(point) in known for point in points)
    count = asked.samples if points is None else len(points)

    class Say(tune.Callback):
        made = before

        def on_trial_start(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
            Progress(quiet).say(f"sweep: trial {min(self.made + 1, count)} of {count} begins")

        def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
            self.made += 1
            told = trial.last_result or {}
            figures = [f"{name} {told[name]:.4g}" for name in names if told.get(name) is not None]
            said = [f"trial {self.made} of {count}", str(told.get("status")), *figures]
            Progress(quiet).say(f"sweep: {', '.join(said)}")

        def on_trial_error(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
            self.made += 1
            Progress(quiet).say(f"sweep: trial {self.made} of {count}, failed")

    quiet, names = progress.quiet, list(asked.objectives)
    return Say()


def _last(job: Job, point: Point, known: Mapping[tuple[str, float], dict[str, Any]]) -> dict[str, Any] | None:
    """What was found of a trial on most people."""
    key = job.key(point)
    rows = [known[key, rung] for rung in (FULL, *reversed(job.sweep.rungs)) if (key, rung) in known]
    return rows[0] if rows else None


def _found(job: Job, point: Point, known: Mapping[tuple[str, float], dict[str, Any]], why: str) -> Trial:
    row = _last(job, point, known)
    if row is None or why:
        return Trial(job.key(point), point, FAILED, 0.0, why=why or "interrupted")
    key = job.key(point)
    seconds = sum(known[key, rung]["seconds"] for rung in job.sweep.rungs if (key, rung) in known)
    return replace(trial_of(row, point), seconds=round(seconds, 3))


# ----------------------------------------------------------------------------------------------------------- held out


def held_out(job: Job, trial: Trial, progress: Progress) -> tuple[dict[str, Any], ...]:
    """Every objective of a trial where the search looked and where it did not: other people, other recognisers.

    Nothing for a table sweep, whose figures are of all people and measured by nobody.
    """
    asked = job.sweep
    log = Log(asked.folder / "held-out.jsonl")
    hidden = list(asked.held_out.recognisers)
    key = fingerprint(trial.key, asked.asks(), VERSION)
    if asked.table:
        return ()
    if (key, FULL) in (known := log.read()):
        return tuple(known[key, FULL]["rows"])
    progress.say("sweep: what was picked, on people and by recognisers that the search never saw")
    config = asked.config(trial.point, job.place(trial.point))
    rows = _again(asked, trial, config, hidden)
    log.append({"key": key, "share": FULL, "rows": rows})
    return tuple(rows)


def _again(asked: Sweep, trial: Trial, config: ReleaseConfig, hidden: Sequence[str]) -> list[dict[str, Any]]:
    from facecrowd.pipeline import ray_data

    outcome = released(config)
    evidence, plan = evidence_of(asked, config)
    seen, others = split(evidence.subject.tolist(), asked.held_out.subjects, asked.seed)
    found: dict[str, tuple[list[dict[str, Any]], list[dict[str, Any]]]] = {"search": (list(trial.figures), [])}
    with ray_data.session(config.compute.address, config.compute.cpus):
        for where, people in (("search", seen), ("held out", others)):
            if len(people) < 2:
                continue
            own = found[where][0] if where in found else measured(asked, evidence, outcome.audit, people) + plan
            by = measured(asked, evidence, outcome.audit, people, hidden) if hidden else []
            found[where] = (own, by)
    return list(compared(asked, found, hidden))


def compared(
    asked: Sweep, found: Mapping[str, tuple[Sequence[Mapping[str, Any]], Sequence[Mapping[str, Any]]]], hidden: Any
) -> Iterator[dict[str, Any]]:
    """A row per objective, people and recogniser. found : people → figures by the search's recognisers, by others."""
    for goal in asked.goals:
        swapped = goal.selector.section in ATTACKED
        for people, (own, by) in found.items():
            asks = [("", goal, own)]
            if swapped:
                asks += [(n, replace(goal, selector=replace(goal.selector, by=n)), by) for n in hidden if by]
            for name, one, figures in asks:
                worst = one.worst(figures)
                row = {"objective": goal.name, "people": people, "unseen": bool(name), "by": name or "as searched"}
                kept = ("value", "low", "high", "chance", "subjects")
                told = {k: None if worst is None else worst[k] for k in kept}
                by_whom = {"by": worst["by"]} if worst is not None and swapped else {}
                yield {**row, **by_whom, **told}
