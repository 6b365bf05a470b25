"""``facecrowd whatif RELEASE``: what another k, l, t or epsilon would cost, without rendering anything.

The plan is made again for each policy from what the workspace stores of the release (who is on each face, their
attributes and embeddings), by the planner of the release itself and with its run key, so what is read here is what a
release with that policy would start from. Nothing is written, no picture decoded, no network loaded. What a release
does after its plan is not in it: how faces come out, and whom verification leaves out.

The figures are of the private data: they are for whoever decides on a release, not for its readers.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa

from facecrowd.pipeline import config as configs
from facecrowd.pipeline import plan as planning
from facecrowd.pipeline import publish
from facecrowd.pipeline.audit import crowded, left_out
from facecrowd.pipeline.config import ReleaseConfig
from facecrowd.pipeline.errors import ConfigError, PolicyError, ReleaseError
from facecrowd.pipeline.progress import Progress
from facecrowd.pipeline.record import Record
from facecrowd.pipeline.schema import FACES, PHOTOS, PLAN
from facecrowd.pipeline.storage import Folder, Workspace
from facecrowd.pipeline.subjects import subject_means
from facecrowd.privacy.anonymity import effective_k
from facecrowd.privacy.assessment import C_GRID, K_GRID, L_GRID, T_GRID
from facecrowd.privacy.attributes import ANY
from facecrowd.privacy.disclosure import of_subjects
from facecrowd.privacy.errors import PrivacyError
from facecrowd.privacy.measure import figure
from facecrowd.privacy.policy import Closeness, Diversity, Policy
from facecrowd.privacy.verdict import judge
from facecrowd.stages.runkey import RunKey
from facecrowd.stages.stage import OK

EPSILON_GRID = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
NOBODY = "nobody's face "
"""Of the photos of people without a usable face, who count where shares of the people are taken."""

COLUMNS = {
    "policy": "policy",
    "reached": "reached",
    "classes": "classes",
    "smallest": "smallest class",
    "effective_k": "effective k",
    "l": "l",
    "t": "t",
    "epsilon": "epsilon",
    "people": "people",
    "left_out": "left out",
    "lost": "attributes lost",
    "distinct_faces": "distinct faces",
    "bound": "rank-1 bound",
    "member_cosine": "member to class mean",
}
"""What a table shows of the rows, and how it is headed."""

SHARES = ("left_out", "lost", "bound")


@dataclass(frozen=True)
class Wishes:
    """What to try, as it was typed; empty for a grid around the release's own policy.

    k, epsilon : numbers; l : ``2``, ``entropy:1.5``, ``recursive:3:2``; t : ``0.2``, ``0.2:ordered``. A bare number has
    the kind, or the ground, that the release asks for (of a recursive l it is c). product : every combination,
    instead of one change at a time
    """

    k: tuple[str, ...] = ()
    l: tuple[str, ...] = ()  # noqa: E741 the field's name
    t: tuple[str, ...] = ()
    epsilon: tuple[str, ...] = ()
    product: bool = False

    @classmethod
    def read(cls, k: str = "", l: str = "", t: str = "", epsilon: str = "", product: bool = False) -> Wishes:  # noqa: E741
        """From comma-separated lists."""

        def listed(text: str) -> tuple[str, ...]:
            return tuple(part.strip() for part in text.split(",") if part.strip())

        return cls(listed(k), listed(l), listed(t), listed(epsilon), product)

    @property
    def empty(self) -> bool:
        return not (self.k or self.l or self.t or self.epsilon)


@dataclass(frozen=True, eq=False)
class Stored:
    """What a workspace keeps of a release that a plan needs.

    photos, faces : as ``plan.make`` takes them, a photo per face; people : whom the input names, once each
    """

    record: Record
    key: RunKey
    photos: pa.Table
    faces: pa.Table
    people: int

    @property
    def config(self) -> ReleaseConfig:
        return self.record.config


def whatif(
    url: str, workspace: str, wishes: Wishes | None = None, progress: Progress | None = None
) -> list[dict[str, Any]]:
    """A row for each policy, the release's own first (``row`` has its keys).

    Raises ReleaseError when the folder is no release, ConfigError when the workspace did not make it or a wish cannot
    be read. A policy that cannot be reached, or asked of this method, is a row that says why.
    """
    stored = read(url, workspace)
    points = policies(stored, wishes or Wishes())
    progress = progress or Progress(quiet=True)
    rows: list[dict[str, Any]] = []
    with progress.step("whatif", len(points)) as advance:
        for policy in points:
            rows.append(row(stored, policy, own=not rows))
            advance(1)
    return rows


def read(url: str, workspace: str) -> Stored:
    """What is stored of a release. Raises as ``whatif``."""
    release = Folder(url)
    if not release.exists(publish.CARD):
        raise ReleaseError(f"release {url}: no {publish.CARD} in it, so this is no release, or was not finished")
    place = Workspace(workspace)
    key = place.key()
    record = Record.of(place.folder, hashlib.sha256(release.read(publish.CARD)).hexdigest())
    plan = place.parts(PLAN, record.runs["plan"]).read_all(record.parts)
    faces = place.parts(FACES, record.runs["faces"]).read_all(record.parts, ["embedding"])
    people = record.counts.named - record.merged
    return Stored(record, key, _photos(plan, people), _faces(plan, faces), people)


def _photos(plan: pa.Table, people: int) -> pa.Table:
    """A photo for every face, named by its row, of the person that the plan says; and one of everybody else."""
    schema = pa.schema([PHOTOS.arrow.field(name) for name in ("photo", "subject", "attributes")])
    subjects = plan["subject_id"].to_pylist()
    missing = max(0, people - len({subject for subject in subjects if subject}))
    rows = [plan["originals"].combine_chunks(), pa.nulls(missing, schema.field("attributes").type)]
    names = [f"{NOBODY}{i}" for i in range(missing)]
    columns = [[*map(str, range(len(plan))), *names], [*subjects, *names]]
    arrays = [pa.array(column, pa.string()) for column in columns]
    return pa.Table.from_arrays([*arrays, pa.chunked_array(rows)], schema=schema)


def _faces(plan: pa.Table, faces: pa.Table) -> pa.Table:
    """The faces before anybody was suppressed by a plan."""
    status, reason = plan["status"].to_pylist(), plan["reason"].to_pylist()
    taken = [one == planning.SUPPRESSED for one in status]
    return pa.table(
        {
            "face_id": plan["face_id"],
            "photo": [str(i) for i in range(len(plan))],
            "part": plan["part"],
            "face_index": np.zeros(len(plan), dtype=np.int32),
            "status": [OK if out else one for one, out in zip(status, taken, strict=True)],
            "reason": ["" if out else one for one, out in zip(reason, taken, strict=True)],
            "embedding": faces["embedding"],
        }
    )


# --------------------------------------------------------------------------------------------------------- what to try


def policies(stored: Stored, wishes: Wishes) -> list[dict[str, Any]]:
    """The policies to try, as ``policy:`` of a config has them; the release's own first.

    Raises ConfigError where a wish cannot be read.
    """
    own = stored.config.policy.model_dump(mode="json")
    tried = _around(stored, own) if wishes.empty else _wished(wishes, own)
    found = [own]
    if wishes.product:
        values = [[own[name], *tried[name]] if tried[name] else [own[name]] for name in tried]
        found += [{**own, **dict(zip(tried, chosen, strict=True))} for chosen in itertools.product(*values)]
    else:
        found += [{**own, name: value} for name, values in tried.items() for value in values]
    return [policy for i, policy in enumerate(found) if policy not in found[:i]]


def _around(stored: Stored, own: dict[str, Any]) -> dict[str, list[Any]]:
    """A grid of everything that the method plans by."""
    method, policy = stored.config.method, stored.config.policy
    if not (method.of_class or method.name == "translation"):
        return {"k": []}
    tried: dict[str, list[Any]] = {"k": [k for k in K_GRID if k <= stored.people]}
    if policy.l is not None:
        distinct = min(len(set(_values(stored, name))) for name in policy.sensitive)
        kind = policy.l.kind
        grid = C_GRID if kind == "recursive" else range(2, distinct + 1) if kind == "distinct" else L_GRID
        at = "c" if kind == "recursive" else "value"
        tried["l"] = [{**own["l"], at: float(x)} for x in grid if kind == "recursive" or x <= distinct]
    if policy.sensitive:
        tried["t"] = [{"ground": "hamming", **(own["t"] or {}), "value": t} for t in T_GRID]
    if policy.epsilon is not None:
        tried["epsilon"] = list(EPSILON_GRID)
    return tried


def _values(stored: Stored, name: str) -> list[str]:
    """The values that people's originals have of an attribute."""
    held = [dict(cell or ()).get(name) for cell in stored.photos["attributes"].to_pylist()]
    return [value for value in held if value is not None]


def _wished(wishes: Wishes, own: dict[str, Any]) -> dict[str, list[Any]]:
    def read_l(text: str) -> dict[str, Any]:
        if ":" in text or own["l"] is None:
            return {"c": None, **configs.parse_diversity(text)}
        return {**own["l"], "c" if own["l"]["kind"] == "recursive" else "value": float(text)}

    def read_t(text: str) -> dict[str, Any]:
        ground = own["t"]["ground"] if own["t"] else "hamming"
        return {"ground": ground, **configs.parse_closeness(text)}

    found: dict[str, list[Any]] = {}
    readers = {"k": int, "l": read_l, "t": read_t, "epsilon": float}
    for name, reader in readers.items():
        found[name] = []
        for text in getattr(wishes, name):
            try:
                found[name].append(reader(text))  # type: ignore[operator]
            except (ValueError, IndexError):
                forms = {"k": "5", "l": "2, entropy:1.5 or recursive:3:2", "t": "0.2 or 0.2:ordered", "epsilon": "1.0"}
                raise ConfigError(f"--{name}: {text!r} is not like {forms[name]}") from None
    return found


# ------------------------------------------------------------------------------------------------------ what it costs


def row(stored: Stored, policy: dict[str, Any], own: bool = False) -> dict[str, Any]:
    """What a policy costs this release.

    policy : it in words; own : whether it is the release's; asked : its k, l, t and epsilon; reached, why : whether a
    plan meets it, or what stands in the way; classes, smallest, effective_k : of the plan, in people, None without
    classes; l, t : what the worst class has, by the kind and ground asked for (entropy, hamming), None without
    sensitive attributes; epsilon : spent; people, left_out : people released, and the share of the input's who are not;
    faces, faces_left_out, images : released faces, usable ones that are not, and the pictures that stand for them;
    left_open, changed, lost : of what is known of the usable people's quasi-identifiers the share released as ``*``,
    as another value, and not as it is, people left out included; distinct_faces : different pictures at most; bound :
    1/k of the smallest class, where the method has that guarantee; member_cosine : of a person's mean embedding and the
    mean of their class, on average: what a class's face can keep of its people at best; notes : of the planner
    """
    found: dict[str, Any] = {
        "policy": in_words(policy),
        "own": own,
        "asked": {name: policy[name] for name in ("k", "l", "t", "epsilon")},
        "reached": False,
        "why": "",
    }
    try:
        return found | _cost(stored, policy)
    except (ConfigError, PolicyError, PrivacyError) as error:
        return {**found, "why": " ".join(str(error).split())}


def _cost(stored: Stored, policy: dict[str, Any]) -> dict[str, Any]:
    # The people are those that the release took: they are not merged, or clustered, again.
    data = {**stored.config.model_dump(mode="json"), "policy": policy}
    config = configs.load(None, {**data, "input": {**data["input"], "same_person": 1.0}})
    plan = planning.make(config, "column", stored.photos, stored.faces, key=stored.key)
    kept, usable = plan.kept, np.flatnonzero(plan.subject_id != "")
    people = np.unique(plan.subject_id[kept].astype(str))
    gone = left_out(len(people), stored.people)
    failures = [f"{gone:.2%} of the people are left out"] if gone > config.policy.max_suppression else []
    classes = _classes(config, plan, failures)
    return {
        "reached": not failures,
        "why": "; ".join(failures),
        **classes,
        "people": len(people),
        "left_out": round(gone, 6),
        "faces": len(kept),
        "faces_left_out": len(usable) - len(kept),
        "images": int(plan.images.sum()),
        "distinct_faces": _pictures(config, plan),
        **_lost(config, plan, usable),
        **_likeness(config, plan, classes["smallest"], stored.record.subjects_from),
        "notes": list(plan.planned.notes) if plan.planned else [],
    }


def in_words(policy: dict[str, Any]) -> str:
    """``k = 10, l (entropy) = 1.5, t (hamming) = 0.2, epsilon = 1``."""
    parts = [f"k = {policy['k']}"] if policy["k"] is not None else []
    if asked := policy["l"]:
        c = "" if asked.get("c") is None else f", c = {asked['c']:g}"
        parts.append(f"l ({asked['kind']}{c}) = {asked['value']:g}")
    if asked := policy["t"]:
        parts.append(f"t ({asked['ground']}) = {asked['value']:g}")
    if policy["epsilon"] is not None:
        parts.append(f"epsilon = {policy['epsilon']:g}")
    return ", ".join(parts) or "nothing"


def _classes(config: ReleaseConfig, plan: planning.Plan, failures: list[str]) -> dict[str, Any]:
    """Of the classes; adds what fails to ``failures``."""
    spent = plan.planned.epsilon if plan.planned else None
    none = dict.fromkeys(("smallest", "effective_k", "l", "t"))
    if plan.classes == 0:
        failures += [f"{config.method.name} forms no classes"] if config.policy.k else []
        return {"classes": 0, **none, "epsilon": spent}
    table, limits = crowded(config, plan, plan.kept), planning.asked(config.policy)
    assert table is not None
    failures += [
        f"{r.name} is {r.found:.4g} where {r.asked:.4g} is asked"
        for r in judge(table, limits, epsilon=spent).requirements
        if not r.met
    ]
    # What was not asked for is measured by asking for what every class has.
    least = limits
    if config.policy.sensitive:
        least = replace(limits, l=limits.l or Diversity("entropy", 1.0), t=limits.t or Closeness(1.0, "hamming"))
    measured = judge(table, _only_values(least)).requirements
    images = crowded(config, plan, np.repeat(plan.kept, plan.images[plan.kept]))
    assert images is not None
    l_found = [r.found for r in measured if r.name.startswith("l ")]
    t_found = [r.found for r in measured if r.name.startswith("t ")]
    recursive = limits.l is not None and limits.l.kind == "recursive"
    return {
        "classes": len(table.subjects),
        "smallest": int(table.subjects.min()),
        "effective_k": round(effective_k(images).value, 6),
        "l": figure(round(max(l_found) if recursive else min(l_found), 6)) if l_found else None,
        "t": figure(round(max(t_found), 6)) if t_found else None,
        "epsilon": spent,
    }


def _only_values(policy: Policy) -> Policy:
    return replace(policy, k=None, epsilon=None, max_suppression=None)


def _pictures(config: ReleaseConfig, plan: planning.Plan) -> int:
    """Different pictures, at most: k-same shows a class by its surrogates, others alter each face."""
    if not config.method.of_class or config.method.keep or config.output != "crop":
        return int(plan.images.sum())
    images = np.bincount(plan.class_id[plan.kept], weights=plan.images[plan.kept])
    return int(np.minimum(images, config.method.surrogates).sum())


def _lost(config: ReleaseConfig, plan: planning.Plan, usable: np.ndarray) -> dict[str, Any]:
    """How much of people's attributes is not released as it is; None without attributes."""
    names = config.policy.quasi_identifiers
    if not names:
        return dict.fromkeys(("left_open", "changed", "lost"))
    who = plan.subject_id[usable].astype(str)
    truth = of_subjects(who, {name: pa.array(plan.originals[name][usable], pa.string()) for name in names})
    shown = of_subjects(
        plan.subject_id[plan.kept].astype(str), {n: pa.array(plan.released[n][plan.kept]) for n in names}
    )
    released = np.isin(np.unique(who), plan.subject_id[plan.kept].astype(str))
    known = told = left_open = changed = 0
    for name in names:
        own, seen = np.array(truth[name].to_pylist()), np.array(shown[name].to_pylist())
        is_known = own != ANY
        other = is_known[released] & (seen != own[released])
        value = np.isin(seen, np.unique(own[is_known]))  # neither * nor a range
        known, told = known + int(is_known.sum()), told + int(is_known[released].sum())
        changed, left_open = changed + int((other & value).sum()), left_open + int((other & ~value).sum())
    shares = {"left_open": left_open, "changed": changed, "lost": known - told + left_open + changed}
    return {name: round(count / max(known, 1), 6) for name, count in shares.items()}


def _likeness(config: ReleaseConfig, plan: planning.Plan, smallest: int | None, source: str) -> dict[str, Any]:
    """How near people are to the mean of their class, for methods that show it."""
    method = config.method
    if not method.of_class or not smallest:
        return {"bound": None, "member_cosine": None}
    rows = plan.kept
    _, first, person = np.unique(plan.subject_id[rows].astype(str), return_index=True, return_inverse=True)
    people = subject_means(plan.embedding[rows], person, len(first))
    of_person = plan.class_id[rows][first].astype(np.int64)
    means = subject_means(people, of_person, plan.classes)
    cosine = np.einsum("ij,ij->i", people.astype(np.float64), means[of_person].astype(np.float64))
    formal = not method.keep and config.output == "crop" and source != "clusters"
    return {"bound": round(1 / smallest, 6) if formal else None, "member_cosine": round(float(cosine.mean()), 6)}


# ------------------------------------------------------------------------------------------------------------- to read


def lines(rows: Sequence[dict[str, Any]]) -> list[str]:
    """The table, and below it why policies are not reached."""
    out = markdown(rows).splitlines()
    out += [f"{found['policy']}: not reached: {found['why']}" for found in rows if not found["reached"]]
    notes = dict.fromkeys(note for found in rows for note in found.get("notes", ()))
    return [*out, *(f"note: {note}" for note in notes)]


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as a Markdown table, without columns in which no row has anything."""
    shown = [name for name in COLUMNS if any(found.get(name) is not None for found in rows)]
    head = ["| " + " | ".join(COLUMNS[name] for name in shown) + " |", "| " + " | ".join("---" for _ in shown) + " |"]
    return "\n".join([*head, *("| " + " | ".join(_cell(found, name) for name in shown) + " |" for found in rows)])


def _cell(found: dict[str, Any], name: str) -> str:
    value = found.get(name)
    if name == "policy":
        return f"**{value}** (this release)" if found["own"] else str(value)
    if name == "reached":
        return "yes" if value else "no"
    if value is None:
        return "–"
    if name in SHARES:
        return f"{value:.1%}"
    return f"{value:,}" if isinstance(value, int) else f"{value:.3g}"
