"""One trial of a sweep: a plan made again, or a release made and attacked, and the log of what was found.

The log is what makes a sweep resume: a trial whose hash is in it is read, not made. Whole trials look at one side of
the people only, as if the others were not there (``split``).
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from facecrowd.jobs.figures import Figure
from facecrowd.jobs.space import (
    ATTACKED,
    FULL,
    PLAN_FIGURES,
    Arm,
    Limit,
    Objective,
    Point,
    Sweep,
    drawn,
    figure_of,
    limits,
)
from facecrowd.pipeline import config as configs
from facecrowd.pipeline import presets
from facecrowd.pipeline.config import ReleaseConfig
from facecrowd.pipeline.errors import (
    ConfigError,
    InputError,
    LeakError,
    NotMetError,
    PolicyError,
    ReleaseError,
    WorkspaceError,
)
from facecrowd.pipeline.progress import Progress
from facecrowd.pipeline.schema import VERSION
from facecrowd.pipeline.storage import fingerprint
from facecrowd.privacy.errors import PrivacyError

DRAWN_TO_CHECK = 20
LOCK_S = 60
"""How long a trial waits for a workspace that a killed one may still hold."""
DONE, STOPPED, UNMET, REFUSED, FAILED = "done", "stopped", "not met", "refused", "failed"
"""done: measured in full. stopped: measured on fewer people, as hopeless. not met: the policy does not hold. refused:
the config contradicts itself, or no plan reaches the policy. failed: could not finish; another start tries again."""

FINAL = (DONE, UNMET, REFUSED)


# -------------------------------------------------------------------------------------------------------------- trials


@dataclass(frozen=True)
class Trial:
    """One trial, as far as it went.

    key : a hash of all that decides its figures; share : of the people it was measured on; why : where it is not done;
    figures : rows of ``Figure``
    """

    key: str
    point: Point
    status: str
    share: float = FULL
    seconds: float = 0.0
    why: str = ""
    figures: tuple[dict[str, Any], ...] = ()

    def value(self, objective: Objective) -> float | None:
        """Of an objective; None where it was not measured."""
        found = objective.worst(self.figures)
        return None if found is None else float(found["value"])


@dataclass(frozen=True)
class Log:
    """What trials found, a line of JSON each, on a disk that all workers see. A line that a kill cut short is passed
    over, and its trial made again."""

    file: Path

    def read(self) -> dict[tuple[str, float], dict[str, Any]]:
        """(key, share) → what was found."""
        found = {}
        for line in self.file.read_text(encoding="utf-8").splitlines() if self.file.exists() else []:
            try:
                row = json.loads(line)
                found[row["key"], float(row["share"])] = row
            except (ValueError, KeyError, TypeError):
                continue
        return found

    def append(self, row: Mapping[str, Any]) -> None:
        # The line before may have been cut short, so a line begins with its own break.
        line = f"\n{json.dumps(row, allow_nan=False)}".encode()
        handle = os.open(self.file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.write(handle, line)
            os.fsync(handle)
        finally:
            os.close(handle)


Measure = Callable[[Point, Path, Sequence[float]], Iterator[tuple[float, list[dict[str, Any]]]]]
"""Figures of a trial, released to a folder, on each share of the people, the shares rising. Raises NotMetError,
PolicyError, … for a trial that never will have any, UnfinishedError, WorkspaceError, … for one that may."""


@dataclass(frozen=True)
class Job:
    """What a worker needs to run a trial. about : method → hashes of all else that decides what is released, and what
    is measured of it; compute : of the release"""

    sweep: Sweep
    about: Mapping[str, tuple[str, str]]
    measure: Measure
    log: Log
    compute: configs.Compute

    def key(self, point: Point) -> str:
        return fingerprint(self.about[point.method], point.method, point.set)

    def place(self, point: Point) -> Path:
        """Where the trial is released: what it is measured by does not decide that."""
        return self.sweep.folder / "trials" / fingerprint(self.about[point.method][0], point.method, point.set)

    def run(self, point: Point, known: dict[tuple[str, float], dict[str, Any]] | None = None) -> Iterator[Trial]:
        """The trial, once for each share of the people that it is measured on; what was found before is not made
        again. Raises what may go better another time.

        known : of the log; what is found is added
        """
        key, known = self.key(point), self.log.read() if known is None else known
        spent, made = 0.0, None
        for rung in self.sweep.rungs:
            row = known.get((key, FULL)) or known.get((key, rung))
            if row is None or row["status"] not in FINAL:
                if made is None:
                    made = self.measure(point, self.place(point), [r for r in self.sweep.rungs if r >= rung])
                row = self._measured(key, point, rung, made)
                self.log.append(row)
                known[key, row["share"]] = row
            spent += row["seconds"]
            yield replace(trial_of(row, point), seconds=round(spent, 3))
            if row["share"] == FULL:
                return

    def _measured(self, key: str, point: Point, rung: float, made: Iterator[Any]) -> dict[str, Any]:
        start = time.monotonic()
        row: dict[str, Any] = {"key": key, "share": rung, "status": DONE, "why": "", "figures": []}
        try:
            share, row["figures"] = next(made)
            assert share == rung
        except NotMetError as error:
            row |= {"share": FULL, "status": UNMET, "why": one_line(error)}
        except (ConfigError, InputError, LeakError, PolicyError, PrivacyError, ReleaseError) as error:
            row |= {"share": FULL, "status": REFUSED, "why": one_line(error)}
        return {**row, "seconds": round(time.monotonic() - start, 3), "point": point.as_dict()}


def trial_of(row: Mapping[str, Any], point: Point) -> Trial:
    status = STOPPED if row["status"] == DONE and row["share"] < FULL else row["status"]
    figures = tuple(row["figures"])
    return Trial(row["key"], point, status, float(row["share"]), row["seconds"], row["why"], figures)


def one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


# -------------------------------------------------------------------------------------------------- table trials alone


def planned(stored: Any) -> Measure:
    """Trials that plan only, for ``whatif.Stored`` people."""
    from facecrowd.jobs import whatif

    def measure(point: Point, place: Path, shares: Sequence[float]) -> Iterator[tuple[float, list[dict[str, Any]]]]:
        config = replanned(stored.config, point)
        here = replace(stored, record=replace(stored.record, config=config))
        row = whatif.row(here, config.policy.model_dump(mode="json"))
        if not row["reached"]:
            raise PolicyError(row["why"])
        yield FULL, plan_figures(row)

    return measure


def replanned(config: ReleaseConfig, point: Point) -> ReleaseConfig:
    data = config.model_dump(mode="json")
    if "method.name" in point.set:
        data["method"] = {}  # what another method was told is nothing to this one
    return configs.load(None, {**data, **copy.deepcopy(point.set)})


def plan_figures(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What ``whatif.row`` says, as figures of a section ``plan``."""
    blank = Figure("table", "").as_dict()
    found = []
    for name in PLAN_FIGURES:
        value = row.get(name)
        if isinstance(value, int | float) and math.isfinite(value):
            found.append({**blank, "section": "plan", "name": name, "value": float(value)})
    return found


# -------------------------------------------------------------------------------------------------------- whole trials


def side(subject: str, seed: int) -> float:
    """Where a person stands, [0, 1), by a hash of their name: those under ``held_out.subjects`` are held out."""
    return int.from_bytes(hashlib.sha256(f"sweep {seed} {subject}".encode()).digest()[:6], "big") / 2**48


def split(subjects: Sequence[str], held_out: float, seed: int) -> tuple[list[str], list[str]]:
    """The people that the search sees, in the order in which a growing share takes them, and those that it never
    sees."""
    ordered = sorted({name for name in subjects if name}, key=lambda name: (side(name, seed), name))
    held = sum(side(name, seed) < held_out for name in ordered)
    return ordered[held:], ordered[:held]


def share_of(people: Sequence[str], share: float) -> list[str]:
    """The first of them, at least two where there are."""
    return list(people[: max(2, math.ceil(share * len(people)))])


def whole(sweep: Sweep) -> Measure:
    """Trials that release and attack."""

    def measure(point: Point, place: Path, shares: Sequence[float]) -> Iterator[tuple[float, list[dict[str, Any]]]]:
        config = sweep.config(point, place)
        outcome = released(config)
        if not outcome.met:
            failed = [r["name"] for r in outcome.audit["requirements"] if not r["met"]]
            raise NotMetError(f"{', '.join(map(str, failed)) or 'the policy'} does not hold in what was released")
        evidence, planned_for = evidence_of(sweep, config)
        seen, _ = split(evidence.subject.tolist(), sweep.held_out.subjects, sweep.seed)
        for share in shares:
            yield share, measured(sweep, evidence, outcome.audit, share_of(seen, share)) + planned_for

    return measure


def released(config: ReleaseConfig) -> Any:
    """The release of a trial, once nobody else holds the workspace."""
    from facecrowd.pipeline import release as releases

    prepared, until = releases.prepare(config), time.monotonic() + LOCK_S
    while True:
        try:
            return releases.release(prepared, Progress(quiet=True))
        except WorkspaceError:
            # Workers of a sweep that was killed a moment ago end a little later than it.
            if time.monotonic() > until:
                raise
            time.sleep(1)


def evidence_of(sweep: Sweep, config: ReleaseConfig) -> tuple[Any, list[dict[str, Any]]]:
    """What was released, and the figures of its plan where one is asked for."""
    from facecrowd.jobs import whatif
    from facecrowd.jobs.evidence import Evidence

    url, workspace = str(config.release.path), config.workspace_path
    if all(goal.selector.section != "plan" for goal in sweep.goals):
        return Evidence(url, workspace), []
    stored = whatif.read(url, workspace)
    return Evidence(url, workspace), plan_figures(whatif.row(stored, config.policy.model_dump(mode="json")))


def measured(
    sweep: Sweep, evidence: Any, report: dict[str, Any], people: Sequence[str], recognisers: Sequence[str] = ()
) -> list[dict[str, Any]]:
    """The sections that objectives and limits are of, as ``audit --depth quick`` measures them, for some of the people:
    the others are in no gallery either.

    recognisers : who attacks; none for those that the search may see
    """
    from facecrowd.jobs.audit import Order, Sections

    asked = tuple(recognisers) or attacking(sweep, evidence.config)
    order = Order(depth="quick", recognisers=asked, faces=sweep.faces)
    sections = Sections(among(evidence, people), order, report, Progress(quiet=True))
    found: list[dict[str, Any]] = []
    named = [figure_of(sweep, limit.name).selector for limit in limits(sweep)]
    asks = [*(goal.selector for goal in sweep.goals), *named]
    for name in dict.fromkeys(one.section for one in asks if one.section != "plan"):
        if recognisers and name not in ATTACKED:
            continue
        # Pixels take longest, and little of what is measured in them is asked for.
        more = ([one.name for one in asks if one.section == name],) if name == "utility" else ()
        made = getattr(sections, name)(*more)
        found += [one.as_dict() for one in (made if isinstance(made, list) else made[0])]
    return found


def attacking(sweep: Sweep, config: ReleaseConfig) -> tuple[str, ...]:
    """The recognisers that the search sees: those that objectives name, or all at hand, less those held out."""
    from facecrowd.jobs.evidence import RECOGNISERS
    from facecrowd.stages import models

    of = [goal.selector for goal in sweep.goals if goal.selector.section in ATTACKED]
    own = config.detect.recogniser
    named = [one.by for one in of if one.by]
    if not of or all(one.by for one in of):
        return tuple(dict.fromkeys(named or [own]))
    here = [name for name in RECOGNISERS if models.at_hand(name, "recognition", config.detect.models)]
    return tuple(name for name in dict.fromkeys([own, *named, *here]) if name not in sweep.held_out.recognisers)


def among(evidence: Any, people: Sequence[str]) -> Any:
    """The evidence as if these people were all there are."""
    from facecrowd.jobs.evidence import Evidence
    from facecrowd.pipeline.witnesses import Seen

    class Some(Evidence):
        def __init__(self) -> None:
            vars(self).update({k: v for k, v in vars(evidence).items() if k != "shown"})
            inside = np.isin(evidence.subject, list(people))
            self.subject = np.where(inside, evidence.subject, "")
            self.at = np.flatnonzero(inside[evidence.row])
            self.links = [evidence.links[i] for i in self.at]
            self.name, self.face_id, self.row = (x[self.at] for x in (evidence.name, evidence.face_id, evidence.row))

        def look(self, recognisers: Sequence[str], progress: Progress) -> tuple[Seen, Seen]:
            after, before = evidence.look(recognisers, progress)
            vectors = {name: values[self.at] for name, values in after.embeddings.items()}
            return Seen(after.face_id[self.at], after.detected[self.at], after.landmarks[self.at], vectors), before

    return Some()


# ------------------------------------------------------------------------------------------------------ before any work


def prepared(sweep: Sweep) -> Job:
    """The sweep as a job, all checked that can be before any work.

    Raises ConfigError, InputError, ModelError, PolicyError or ReleaseError.
    """
    Limit.read(sweep.pick) if sweep.pick else ()
    for limit in limits(sweep):
        figure_of(sweep, limit.name)
    points, goals = sweep.points(), sweep.goals
    if sweep.search == "optuna":
        optuna_here()
    rng = np.random.default_rng(sweep.seed)
    by_arm = {
        arm.method: [p for p in points if p.method == arm.method]
        if points is not None
        else [drawn(arm, rng) for _ in range(DRAWN_TO_CHECK)]
        for arm in sweep.arms
    }
    if sweep.table:
        if strange := [goal.name for goal in goals if goal.selector.section != "plan"]:
            raise ConfigError(f"objectives.{strange[0]}: a table sweep renders nothing, so it has plan.… figures alone")
        stored = _stored(sweep)
        first = _first(by_arm, partial(replanned, stored.config))
        about = dict.fromkeys(first, (fingerprint(VERSION, stored.record.card), "plan"))
        measure = planned(stored)
    else:
        # A place where nothing is: what was released to the pick's is no obstacle to another search.
        first = _first(by_arm, partial(sweep.config, place=sweep.folder / "trials" / "none"))
        about = {method: _looked_at(sweep, config) for method, config in first.items()}
        measure = whole(sweep)
    sweep.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    compute = next(iter(first.values())).compute
    return Job(sweep, about, measure, Log(sweep.folder / "trials.jsonl"), compute)


def optuna_here() -> Any:
    try:
        import optuna
    except ImportError:
        raise ConfigError("search: optuna needs the package optuna (pip install 'facecrowd[sweep]')") from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


def _first(by_arm: Mapping[str, Sequence[Point]], config: Callable[[Point], ReleaseConfig]) -> dict[str, ReleaseConfig]:
    """The first config of each method that is one. Raises ConfigError for a method that has none."""
    found = {}
    for method, points in by_arm.items():
        why: ConfigError | None = None
        for point in points:
            try:
                found[method] = config(point)
                break
            except ConfigError as error:
                why = why or error
        else:
            if why is not None:
                raise ConfigError(f"methods.{method}: no trial of it can be made: {why}")
    return found


def _stored(sweep: Sweep) -> Any:
    from facecrowd.jobs import whatif

    for arm in sweep.arms:
        keys = [*arm.constants, *(axis.key for axis in arm.axes)]
        if strange := [key for key in keys if key.split(".")[0] not in ("policy", "method")]:
            raise ConfigError(f"{strange[0]}: a table sweep plans only; it searches keys of policy and method")
    stored = whatif.read(str(sweep.release), sweep.workspace_path)
    policy = stored.config.policy
    known = {*policy.quasi_identifiers, *policy.sensitive}
    for arm in sweep.arms:
        for name in sorted(_attributes(arm) - known):
            raise ConfigError(
                f"{name}: the workspace has no values of it for this release, whose policy names "
                f"{', '.join(sorted(known)) or 'no attributes'}; a whole sweep, or a release that names it, does"
            )
    return stored


def _attributes(arm: Arm) -> set[str]:
    """The attributes that trials of a method may name."""
    found: set[str] = set()
    given = {**arm.constants, **{axis.key: list(axis.values) for axis in arm.axes}}
    for key, value in given.items():
        whole, _, name = key.rstrip("]").partition("[")
        if whole in ("policy.quasi_identifiers", "policy.sensitive"):
            lists = [[name]] if name else value if key not in arm.constants else [value]
            named = [one for some in lists for one in (some if isinstance(some, list) else [some])]
            found |= {each for one in named for each in (presets.names(one) if one in presets.PRESETS else (one,))}
    return found


def _looked_at(sweep: Sweep, config: ReleaseConfig) -> tuple[str, str]:
    """Look at the input and the models of a method; hashes of what of them decides the release, and the figures."""
    from facecrowd.pipeline import release as releases
    from facecrowd.stages import models

    ready, hidden = releases.prepare(config), set(sweep.held_out.recognisers)
    named = [goal for goal in sweep.goals if goal.selector.section in ATTACKED and goal.selector.by]
    asked = {goal.selector.by: f"objectives.{goal.name}" for goal in named}
    for name, key in sorted({**asked, **dict.fromkeys(hidden, "held_out.recognisers")}.items()):
        try:
            models.resolve(name, "recognition", folder=config.detect.models)
        except models.ModelError as error:
            raise ConfigError(f"{key}: {error}") from None
    used = {
        **dict.fromkeys(config.perturb.surrogates, "perturb.surrogates uses it"),
        **({ready.verifier: "verification asks it (set verify.recogniser)"} if ready.verifier else {}),
        **{goal.selector.by: f"objectives.{goal.name} is by it" for goal in named},
        config.detect.recogniser: "detect.recogniser is it",
    }
    if seen := sorted(hidden & set(used)):
        raise ConfigError(f"held_out.recognisers: {seen[0]} is not held out: {used[seen[0]]}")
    names = sorted({photo.subject for photo in ready.listing.photos if photo.subject})
    inside, outside = split(names, sweep.held_out.subjects, sweep.seed)
    few = len(inside) < 2 or (sweep.held_out.subjects and len(outside) < 2)
    if ready.listing.subjects != "clusters" and few:
        raise ConfigError(
            f"held_out.subjects {sweep.held_out.subjects:g}: of {len(names)} people {len(inside)} are left to the "
            f"search and {len(outside)} held out, and each side needs two"
        )
    base = sweep.base if isinstance(sweep.base, dict) else yaml.safe_load(Path(sweep.base).read_text())
    photos = [(p.photo, p.bytes, p.subject, p.attributes) for p in ready.listing.photos]
    sections = sorted({goal.selector.section for goal in sweep.goals})
    by = (sections, attacking(sweep, config), sweep.held_out.subjects, sweep.seed, sweep.faces)
    return fingerprint(VERSION, base, photos, sweep.workspace_path), fingerprint(by)
