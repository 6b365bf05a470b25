"""What a sweep searches, and for what: its YAML file, read into axes, trials and objectives.

A value of the space that is a mapping of one of ``KINDS`` is searched, any other is set. See ``jobs/sweep.py``.
"""

from __future__ import annotations

import copy
import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from facecrowd.jobs.compare import METHODS
from facecrowd.jobs.figures import NAMES, Section
from facecrowd.pipeline import config as configs
from facecrowd.pipeline.config import ReleaseConfig
from facecrowd.pipeline.errors import ConfigError

KINDS = ("grid", "choice", "uniform", "loguniform", "integers", "subsets")
PLAN_FIGURES = (
    *("classes", "smallest", "effective_k", "l", "t", "epsilon", "people", "left_out", "faces", "faces_left_out"),
    *("images", "left_open", "changed", "lost", "distinct_faces", "bound", "member_cosine"),
)
"""Of ``whatif.row``, what an objective may name as ``plan.NAME``."""
ATTACKED = ("identity", "linkage", "membership")
"""Sections whose figures are by a recogniser."""

MOST_POINTS = 100_000

LARGEST = 2**53
"""Up to which every whole number is a float."""

FULL = 1.0


# -------------------------------------------------------------------------------------------------------------- space


@dataclass(frozen=True)
class Axis:
    """What is searched of one key.

    values : to choose from; empty for a range; low, high : ends of a range; log : draw its logarithm evenly; whole :
    integers, both ends included
    """

    key: str
    values: tuple[Any, ...] = ()
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    whole: bool = False

    @classmethod
    def read(cls, key: str, value: Any) -> list[Axis] | None:
        """The axes that a value of the space means; None for one that is set. Raises ConfigError."""
        if "[" in key or "]" in key:
            raise ConfigError(f"{key}: no such key")
        if not (isinstance(value, dict) and len(value) == 1 and next(iter(value)) in KINDS):
            return None
        kind, given = next(iter(value.items()))
        said = f"{key}: {kind}"
        if not isinstance(given, list) or not given:
            raise ConfigError(f"{said}: expected a list, found {given!r}")
        if kind in ("grid", "choice"):
            return [cls(key, tuple(given))]
        if kind == "subsets":
            if not all(isinstance(name, str) for name in given):
                raise ConfigError(f"{said}: expected names, found {given!r}")
            return [cls(f"{key}[{name}]", (False, True)) for name in given]
        numbers = all(_number(end) for end in given)
        if len(given) != 2 or not numbers or not given[0] < given[1]:
            raise ConfigError(f"{said}: expected [low, high], found {given!r}")
        if kind == "loguniform" and given[0] <= 0:
            raise ConfigError(f"{said}: a logarithm needs numbers above 0, found {given!r}")
        if kind == "integers" and not all(isinstance(end, int) for end in given):
            raise ConfigError(f"{said}: expected integers, found {given!r}")
        return [cls(key, (), given[0], given[1], kind == "loguniform", kind == "integers")]

    def every(self) -> Sequence[Any]:
        """All that it can be. Raises ConfigError for a range of real numbers."""
        if self.values:
            return self.values
        if not self.whole:
            raise ConfigError(
                f"{self.key}: a range has no grid; name its values ({{grid: […]}}), or search by random or optuna"
            )
        return range(int(self.low), int(self.high) + 1)

    def draw(self, rng: np.random.Generator) -> Any:
        """One of it, by chance."""
        if self.values:
            return self.values[int(rng.integers(len(self.values)))]
        if self.whole:
            return int(rng.integers(int(self.low), int(self.high) + 1))
        if self.log:
            return float(math.exp(rng.uniform(math.log(self.low), math.log(self.high))))
        return float(rng.uniform(self.low, self.high))

    def suggest(self, trial: Any, name: str) -> Any:
        """One of it, as an Optuna trial suggests."""
        if self.values:
            return trial.suggest_categorical(name, list(range(len(self.values))))
        if self.whole:
            return trial.suggest_int(name, int(self.low), int(self.high))
        return trial.suggest_float(name, self.low, self.high, log=self.log)

    def meant(self, suggested: Any) -> Any:
        """The value that a suggestion stands for."""
        return self.values[int(suggested)] if self.values else suggested


def _number(end: Any) -> bool:
    """Whether an end of a range is a number that can be drawn up to."""
    return isinstance(end, int | float) and not isinstance(end, bool) and abs(end) <= LARGEST


@dataclass(frozen=True)
class Point:
    """A trial's place in the space. chosen : what was searched, as axes name it; set : all keys that it sets."""

    method: str
    chosen: dict[str, Any]
    set: dict[str, Any]

    def as_dict(self) -> dict[str, Any]:
        return {"method": self.method, "chosen": self.chosen, "set": self.set}


@dataclass(frozen=True)
class Arm:
    """A method of the sweep: what it sets, and what is searched of it."""

    method: str
    constants: dict[str, Any]
    axes: tuple[Axis, ...]

    def point(self, chosen: Mapping[str, Any]) -> Point:
        values = dict(self.constants)
        for key, value in chosen.items():
            if not key.endswith("]"):
                values[key] = value
                continue
            whole, _, name = key[:-1].partition("[")
            values[whole] = [*values.get(whole, []), *([name] if value else [])]
        return Point(self.method, dict(chosen), values)

    def suggested(self, trial: Any) -> Point:
        return self.point({axis.key: axis.meant(axis.suggest(trial, self.named(axis))) for axis in self.axes})

    def named(self, axis: Axis) -> str:
        """Optuna's name of an axis: what methods search of one key need not be alike."""
        return f"{self.method}: {axis.key}"


# --------------------------------------------------------------------------------------------------------- objectives


@dataclass(frozen=True)
class Selector:
    """Which figures of an audit are meant: ``section.name.by.setting@at``; what is left out, or ``*``, may be any."""

    text: str
    section: str
    name: str
    by: str = ""
    setting: str = ""
    at: float | None = None

    @classmethod
    def read(cls, text: str) -> Selector:
        """Raises ConfigError."""
        path, sign, at = str(text).partition("@")
        parts = path.split(".", 3)
        sections = (*get_args(Section), "plan")
        if len(parts) < 2 or not all(parts) or parts[0] not in sections:
            raise ConfigError(
                f"objective {text!r} is not like identity.rank1.sface.originals: a section ({', '.join(sections)}), a "
                "name, who measured it, against what"
            )
        if parts[0] == "plan" and (parts[1] not in PLAN_FIGURES or len(parts) > 2):
            raise ConfigError(f"objective {text!r}: a plan has {', '.join(PLAN_FIGURES)}")
        if parts[0] != "plan" and parts[1] not in NAMES[parts[0]]:
            raise ConfigError(f"objective {text!r}: {parts[0]} has {', '.join(NAMES[parts[0]])}")
        try:
            level = float(at) if sign else None
        except ValueError:
            raise ConfigError(f"objective {text!r}: {at!r} behind @ is no number") from None
        rest = [part if part != "*" else "" for part in parts[1:]]
        rest += [""] * (3 - len(rest))
        return cls(str(text), parts[0], rest[0], rest[1], rest[2], level)

    def of(self, figures: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        """Those of everybody that are meant and could be measured."""
        return [
            f
            for f in figures
            if (f["section"], f["name"], f["group"]) == (self.section, self.name, "")
            and f["value"] is not None
            and (not self.by or f["by"] == self.by)
            and (not self.setting or f["setting"] == self.setting)
            and (self.at is None or (f["at"] is not None and math.isclose(f["at"], self.at)))
        ]


@dataclass(frozen=True)
class Objective:
    """A figure to be made small or large. Where several are meant, the worst of them counts."""

    name: str
    selector: Selector
    goal: Literal["min", "max"]

    def worst(self, figures: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
        found = self.selector.of(figures)
        pick = max if self.goal == "min" else min
        return pick(found, key=lambda f: float(f["value"])) if found else None

    def cost(self, value: float) -> float:
        """Smaller is better."""
        return value if self.goal == "min" else -value


@dataclass(frozen=True)
class Limit:
    """A constraint of ``--pick``: a name of an objective, or a selector, and what it may be."""

    text: str
    name: str
    sign: str
    bound: float

    @classmethod
    def read(cls, text: str) -> tuple[Limit, ...]:
        """``rank1<=0.02``, several joined by a comma or ``and``. Raises ConfigError."""
        found = []
        for part in re.split(r",|\band\b", text):
            match = re.fullmatch(r"\s*([^<>=\s]+)\s*(<=|>=|<|>)\s*(\S+)\s*", part)
            try:
                if match is None:
                    raise ValueError
                found.append(cls(part.strip(), match[1], match[2], float(match[3])))
            except ValueError:
                raise ConfigError(f"--pick {text!r} is not like 'rank1<=0.02' or 'rank1<=0.02,fid<60'") from None
        return tuple(found)

    def holds(self, value: float | None) -> bool:
        if value is None:
            return False
        signs = {
            "<=": value <= self.bound,
            ">=": value >= self.bound,
            "<": value < self.bound,
            ">": value > self.bound,
        }
        return signs[self.sign]


# ------------------------------------------------------------------------------------------------------------- config


class _Keys(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class HeldOut(_Keys):
    """What the search never sees. subjects : share of the people, by a hash; recognisers : by name."""

    subjects: float = Field(default=0.5, ge=0, lt=1)
    recognisers: tuple[str, ...] = ()


class EarlyStopping(_Keys):
    """ASHA: a trial is measured on ``factor ** -rungs`` of the people first, and goes on to more of them only where it
    is among the best ``1 / factor`` so far by the objective ``by``."""

    by: str
    rungs: int = Field(default=1, ge=1, le=5)
    factor: int = Field(default=3, ge=2, le=10)


class Sweep(_Keys):
    """A sweep as it is asked for. base : a release's config, in a file (beside this one) or here; release : for
    ``table``, the finished release whose people are planned for; privacy, utility : the objectives that the page draws
    against each other and by the second of which a pick is cheapest (default: the first and the last)."""

    output: str
    base: str | dict[str, Any] = {}
    release: str | None = None
    workspace: str | None = None
    table: bool = False
    space: dict[str, Any] = {}
    methods: dict[str, dict[str, Any] | None] = {}
    objectives: dict[str, dict[Literal["min", "max"], str]]
    search: Literal["grid", "random", "optuna"] = "grid"
    samples: int = Field(default=20, ge=1, le=MOST_POINTS)
    seed: int = Field(default=0, ge=0)
    privacy: str | None = None
    utility: str | None = None
    early_stopping: EarlyStopping | None = None
    held_out: HeldOut = HeldOut()
    faces: int = Field(default=1000, ge=20)
    pick: str | None = None

    @field_validator("methods", mode="before")
    @classmethod
    def as_named(cls, given: Any) -> Any:
        named = isinstance(given, list) and all(isinstance(name, str) for name in given)
        return dict.fromkeys(given, None) if named else given

    @model_validator(mode="after")
    def fits_together(self) -> Sweep:
        if "://" in self.output:
            raise ValueError("output: a sweep keeps its files on this machine; give a local folder")
        if not self.objectives:
            raise ValueError("objectives: name at least one, such as rank1: {min: identity.rank1.sface.originals}")
        for name, one in self.objectives.items():
            if len(one) != 1:
                raise ValueError(f"objectives.{name}: give it one of min and max")
            if not re.fullmatch(r"\w+", name):
                raise ValueError(f"objectives.{name}: a name has letters, digits and _ alone")
        for key, asked in (("privacy", self.privacy), ("utility", self.utility)):
            if asked is not None and asked not in self.objectives:
                raise ValueError(f"{key}: {asked} is none of the objectives {', '.join(self.objectives)}")
        if self.early_stopping and self.early_stopping.by not in self.objectives:
            raise ValueError(f"early_stopping.by: {self.early_stopping.by} is none of the objectives")
        if self.early_stopping and self.table:
            raise ValueError("early_stopping is for whole trials; a plan is not stopped half-way")
        if self.table and (self.release is None or self.base):
            raise ValueError("table: true plans for the people of a finished release; give release, and no base")
        if not self.table and (self.release is not None or not self.base):
            raise ValueError("give base, a release's config; release is for table: true")
        return self

    # ---------------------------------------------------------------------------------------------- what it comes to

    @property
    def folder(self) -> Path:
        return Path(self.output)

    @property
    def workspace_path(self) -> str:
        if self.table:
            return self.workspace or f"{str(self.release).rstrip('/')}.workspace"
        return self.workspace or str(self.folder / "workspace")

    @cached_property
    def goals(self) -> tuple[Objective, ...]:
        """Raises ConfigError."""
        return tuple(
            Objective(name, Selector.read(text), goal)
            for name, one in self.objectives.items()
            for goal, text in one.items()
        )

    def goal(self, name: str) -> Objective:
        return next(one for one in self.goals if one.name == name)

    @property
    def axes(self) -> tuple[Objective, Objective]:
        """Privacy and utility."""
        return self.goal(self.privacy or self.goals[0].name), self.goal(self.utility or self.goals[-1].name)

    @cached_property
    def arms(self) -> tuple[Arm, ...]:
        """The methods. Raises ConfigError."""
        named = self.methods or {("policy" if self.table else "base"): {}}
        found = []
        for name, keys in named.items():
            known = dict(METHODS[name][0]) if name in METHODS else {}
            if self.methods and not known and not any(key.split(".")[0] == "method" for key in keys or {}):
                raise ConfigError(f"methods: {name} is none of {', '.join(METHODS)}, so say its method.name")
            constants: dict[str, Any] = {}
            axes: dict[str, list[Axis]] = {}
            for key, value in (known | self.space | (keys or {})).items():
                searched = Axis.read(key, value)
                if searched is None:
                    constants[key] = value
                else:
                    axes[key] = searched
            found.append(Arm(name, constants, tuple(itertools.chain(*axes.values()))))
        return tuple(found)

    @property
    def rungs(self) -> tuple[float, ...]:
        """Shares of the people that a trial is measured on, one after the other; the last is all."""
        stop = self.early_stopping
        return (FULL,) if stop is None else tuple(stop.factor ** -float(r) for r in range(stop.rungs, -1, -1))

    def points(self) -> list[Point] | None:
        """All trials, where they are known beforehand. Raises ConfigError for too many of them."""
        if self.search == "optuna":
            return None
        if self.search == "grid":
            size = sum(math.prod(len(axis.every()) for axis in arm.axes) for arm in self.arms)
            if size > MOST_POINTS:
                raise ConfigError(f"space: the grid has {size:,} points; search by random or optuna")
            return [
                arm.point(dict(zip((axis.key for axis in arm.axes), values, strict=True)))
                for arm in self.arms
                for values in itertools.product(*(axis.every() for axis in arm.axes))
            ]
        rng = np.random.default_rng(self.seed)
        return [drawn(self.arms[int(rng.integers(len(self.arms)))], rng) for _ in range(self.samples)]

    def suggested(self, trial: Any) -> Point:
        """A trial that Optuna suggests."""
        at = 0 if len(self.arms) == 1 else trial.suggest_categorical("method", list(range(len(self.arms))))
        return self.arms[at].suggested(trial)

    def recovered(self, suggested: Mapping[str, Any]) -> Point:
        """The trial that suggestions, as Tune hands them on, stand for."""
        arm = self.arms[int(suggested.get("method", 0))]
        return arm.point({axis.key: axis.meant(suggested[arm.named(axis)]) for axis in arm.axes})

    def config(self, point: Point, place: Path | None = None) -> ReleaseConfig:
        """The release's config of a whole trial, released to ``place``. Raises ConfigError."""
        places = {"workspace.path": self.workspace_path, "release.path": str(place or self.folder / "picked")}
        if isinstance(self.base, str):
            return configs.load(self.base, {**point.set, **places})
        return configs.load(None, {**copy.deepcopy(self.base), **copy.deepcopy(point.set), **places})

    def asks(self) -> dict[str, Any]:
        """All that decides which trials there are, and how they go."""
        return self.model_dump(mode="json", exclude={"pick", "privacy", "utility"})


def drawn(arm: Arm, rng: np.random.Generator) -> Point:
    return arm.point({axis.key: axis.draw(rng) for axis in arm.axes})


def load(file: str | Path, pick: str | None = None) -> Sweep:
    """A sweep from YAML; ``pick`` wins over the file's. Raises ConfigError, naming the file and the key."""
    data = configs.read_yaml(file, "sweep", "space")
    if isinstance(data.get("base"), str):
        data["base"] = str(Path(file).parent / data["base"])
    if pick is not None:
        data["pick"] = pick
    try:
        return Sweep.model_validate(data)
    except ValidationError as error:
        raise ConfigError(f"sweep {file}: " + "; ".join(map(_sentence, error.errors()[:5]))) from None


def _sentence(error: Any) -> str:
    key = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        return f"{key}: no such key"
    message = error["msg"].removeprefix("Value error, ")
    return f"{key}: {message}" if key else message


def limits(sweep: Sweep) -> tuple[Limit, ...]:
    return Limit.read(sweep.pick) if sweep.pick else ()


def figure_of(sweep: Sweep, name: str) -> Objective:
    """What a limit is of. Raises ConfigError for a name that is neither an objective nor a figure of one's section."""
    if name in sweep.objectives:
        return sweep.goal(name)
    if "." not in name:
        raise ConfigError(f"--pick {name}: none of the objectives {', '.join(sweep.objectives)}")
    selector = Selector.read(name)
    if selector.section not in {goal.selector.section for goal in sweep.goals}:
        raise ConfigError(f"--pick {name}: no objective is of section {selector.section}, so it is not measured")
    return Objective(name, selector, "min")
