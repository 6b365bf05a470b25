"""``facecrowd audit --table`` and ``facecrowd plan``: a table of people and attributes, measured and planned whole.

What a plan folder holds:

plan.parquet     one row per subject (per row of the table with ``per_subject: false``): the subject, its class, what is
                 released of each quasi-identifier, and whether and why it is suppressed; sorted by subject (in the
                 order of the table)
classes.parquet  one row per class: what it shows, its rows, subjects and largest share of one subject (and in its
                 metadata what a later plan needs to go on from it)
verdict.json     the verdict and every other figure that is printed

An audit measures the rows as they are, or as a plan releases them: quasi-identifiers from the plan's released values,
never from its class numbers, subjects and sensitive values from the table.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from facecrowd.jobs.earlier import figures, intervals, published, written_here
from facecrowd.jobs.earlier import lines as earlier_lines
from facecrowd.pipeline import histogram, planners, ray_data
from facecrowd.pipeline.config import EVERY, TablePolicy
from facecrowd.pipeline.errors import ConfigError, InputError
from facecrowd.pipeline.histogram import CLASS, Classes, Roles, Table
from facecrowd.pipeline.photos import objects, read_table
from facecrowd.pipeline.planners import METHODS, Made
from facecrowd.pipeline.progress import Progress
from facecrowd.pipeline.storage import Folder, Workspace, to_parquet
from facecrowd.privacy import assessment, closeness
from facecrowd.privacy import policy as policies
from facecrowd.privacy.attributes import Hierarchy
from facecrowd.privacy.cells import SUPPRESSED, CellPlan, Cells
from facecrowd.privacy.classes import Histogram, equivalence_classes, regrouped
from facecrowd.privacy.misprediction import ConfusionError, Rates, misprediction
from facecrowd.privacy.updates import Published, check_updates
from facecrowd.privacy.verdict import Requirement

PLAN, CLASSES, VERDICT = "plan.parquet", "classes.parquet", "verdict.json"
COLUMNS = ("class_id", "suppressed", "reason")
"""What a plan adds to the subject and the released values."""

NOTE = b"facecrowd"
"""Key of the plan file's metadata."""

INTERSECTED_ROWS = 5_000_000
"""Rows up to which the classes of every person are intersected: it takes the square of a person's photos."""

SEED = 0
"""Of the draws that say how wrong predictions move the audit's figures, so that it can be repeated."""

NO_CLASS = "no class that meets the policy takes its vector in"


@dataclass(frozen=True)
class Asked:
    """A policy held against the columns of one table.

    policy : as configured, ``all`` resolved; roles : its columns; limits : what ``privacy/`` is asked; public : the
    reference distribution; hierarchies : read from their files
    """

    policy: TablePolicy
    roles: Roles
    limits: policies.Policy
    public: dict[Any, float] | None
    hierarchies: dict[str, Hierarchy]


# ------------------------------------------------------------------------------------------------------------ audit


def audit_table(
    path: str,
    policy: TablePolicy,
    progress: Progress,
    *,
    base: Path = Path(),
    plan: str | None = None,
    earlier: Sequence[str] = (),
    curve: bool = False,
    output: str | None = None,
    address: str | None = None,
    confusion: str | None = None,
) -> tuple[dict[str, Any], list[str]]:
    """Measure a table, or a plan of it, against a policy. Returns the report and its lines for a person.

    base : where the files that the policy names lie; earlier : plan folders of earlier releases, which together with
    ``plan`` must leave everybody a crowd of k; curve : also what stricter policies cost, by the mondrian planner;
    output : folder for classes.parquet and verdict.json; address : Ray cluster to count on, None for this process;
    confusion : file of a predictor's error rates (``FILE#PREDICTOR`` in a report of several), to say beside the verdict
    what holds of the true attributes

    Raises ConfigError, InputError, or an error of ``privacy/``.
    """
    if earlier and plan is None:
        raise ConfigError("--earlier needs --plan: what is held against earlier releases is a plan")
    table = Table(path, subject=policy.subject)
    asked = ask(table, policy, base)
    kept = _kept([*earlier, plan] if earlier and plan else [], table, asked)
    predictor, rates = ("", {}) if confusion is None else _confusion(confusion, asked.roles)
    with _session(address) as ray:
        layout = histogram.layout_of(table, asked.roles, progress, ray)
        overlay, shown, note = (None, None, {}) if plan is None else _laid(plan, asked, table)
        if overlay is None:
            released_layout, seen = layout, table
        else:
            seen = replace(table, classes=overlay)
            roles = Roles(asked.roles.subject, (CLASS,), asked.roles.sensitive)
            released_layout = histogram.layout_of(seen, roles, progress, ray)
        released = histogram.measured(seen, released_layout, progress, ray)
        if shown is not None:
            released = replace(released, classes=shown.take(released.classes[CLASS]))
        found = assessment.assess(
            released, asked.limits, epsilon=note.get("epsilon"), reference=asked.public
        )  # rows that a plan leaves out are counted below
        requirements = [r for r in found.verdict.requirements if r.name != "suppression"]
        left_out = table.rows - released.total_rows
        requirements += _suppression(asked.limits, left_out, table.rows)
        requirements += _one_vector(policy, released)
        over_time = None
        if kept:
            over_time = figures(check_updates(kept[:-1], kept[-1], asked.limits.k or 1))
            requirements.append(_over_time(over_time))
        found = replace(found, verdict=replace(found.verdict, requirements=tuple(requirements)))
        if curve:
            cells = _cells(table, layout, asked, progress, ray)
            planner = planners.planner("mondrian", asked.public)
            found = replace(found, curve=_curve(cells, asked, planner, progress))
        crossed = _intersection(seen, released_layout, released, asked.limits, progress, ray)
    mispredicted = None
    if rates:
        rng = np.random.default_rng(SEED)
        mispredicted = misprediction(released, asked.limits, rates, rng, predictor=predictor, public=asked.public)
    report = {
        "table": {"rows": table.rows, "columns": len(table.schema.names)},
        "policy": _policy_dict(policy),
        "plan": None if plan is None else {"method": note.get("method"), "suppressed_rows": left_out},
        **found.as_dict(),
        "intersection": crossed,
        "earlier": over_time,
        "misprediction": mispredicted and mispredicted.as_dict(),
    }
    if output is not None:
        _write(output, released, report)
    shown_lines = [*_head(path, asked, plan), *found.lines(), *_crossed_lines(crossed, asked.limits.k)]
    shown_lines += mispredicted.lines() if mispredicted else []
    return report, shown_lines + (earlier_lines(over_time) if over_time else [])


def _confusion(path: str, roles: Roles) -> tuple[str, dict[str, Rates]]:
    """A predictor's name and its rates for the attributes of the table, from its file or from what ``evaluate
    attributes --json`` writes, there ``FILE#PREDICTOR`` where the report is of several.

    Raises InputError, naming the file and the attribute, or the predictors there are.
    """
    path, _, wanted = path.partition("#")
    try:
        found = json.loads(Folder(path).read())
        if "predictors" in found:
            found = _judged(path, {str(row["predictor"]): row for row in found["predictors"]}, wanted)
        found = found.get("confusion", found)
        predictor, given = str(found.get("predictor", "")), dict(found["attributes"])
    except (FileNotFoundError, IsADirectoryError):
        raise InputError(f"confusion {path}: no such file") from None
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError):
        raise InputError(
            f'confusion {path}: not of the form {{"predictor": name, "attributes": {{name: {{"tpr": …, "tnr": …}}}}}}'
        ) from None
    rates = {}
    for attribute in (*roles.quasi_identifiers, *roles.sensitive):
        if attribute not in given:
            continue
        try:
            values = {key: float(value) for key, value in given[attribute].items() if value is not None}
            rates[attribute] = Rates(values["tpr"], values["tnr"], values.get("prevalence"))
        except ConfusionError as error:
            raise InputError(f"confusion {path}: {attribute}: {error}") from None
        except (AttributeError, KeyError, TypeError, ValueError, OverflowError):
            raise InputError(f"confusion {path}: {attribute}: give tpr and tnr as numbers") from None
    if not rates:
        raise InputError(f"confusion {path}: it has rates of no attribute that the policy gives a role")
    return predictor, rates


def _judged(path: str, rows: Mapping[str, Any], wanted: str) -> Any:
    """The row of a report that is asked for."""
    if wanted not in rows and (wanted or len(rows) != 1):
        there = ", ".join(f"'{path}#{name}'" for name in rows) or "none"
        raise InputError(
            f"confusion {path}: {f'no predictor {wanted!r}' if wanted else 'name one predictor'} of: {there}"
        )
    return rows[wanted] if wanted else next(iter(rows.values()))


def _kept(folders: Sequence[str], table: Table, asked: Asked) -> list[Published]:
    kind = table.schema.field(asked.roles.subject).type
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return [published(folder, asked.roles.subject, kind, asked.hierarchies) for folder in folders]


def _over_time(found: Mapping[str, Any]) -> Requirement:
    """Everybody's crowd over all releases, as a requirement."""
    note = f"people in all the same classes, over all releases; {found['below_k']} people are below"
    return Requirement("k over all releases", found["k"], found["smallest_crowd"] or 0, found["holds"], note=note)


def _head(path: str, asked: Asked, plan: str | None) -> list[str]:
    roles = asked.roles
    what = f"table {path}" + (f" as {plan} releases it" if plan else "")
    return [f"{what}: {len(roles.quasi_identifiers)} quasi-identifiers, {len(roles.sensitive)} sensitive attributes"]


def _suppression(limits: policies.Policy, left_out: int, rows: int) -> list[Requirement]:
    if limits.max_suppression is None:
        return []
    share = left_out / rows
    note = f"{left_out:,} of {rows:,} rows"
    return [Requirement("suppression", limits.max_suppression, share, share <= limits.max_suppression, note=note)]


def _one_vector(policy: TablePolicy, released: Histogram) -> list[Requirement]:
    """``per_subject: true`` asks for one released vector per subject; several can be intersected."""
    if not policy.per_subject:
        return []
    mean = float(released.subjects.sum() / released.total_subjects)
    note = "" if mean == 1 else "on average; who knows several photos of a person intersects their classes"
    return [Requirement("vectors per subject", 1, mean, mean == 1, note=note)]


def _intersection(
    table: Table, layout: Any, released: Histogram, limits: policies.Policy, progress: Progress, ray: bool
) -> dict[str, Any] | None:
    """What is left of a crowd when photos of one person are put together; None where everybody has one vector."""
    if int(released.subjects.sum()) == released.total_subjects:
        return None
    if released.total_rows > INTERSECTED_ROWS:
        return {"not_measured": f"more than {INTERSECTED_ROWS:,} rows"}
    return _crossed(histogram.cells(table, layout, progress, per_subject=False, ray=ray).partial, limits)


def _crossed(classes: Any, limits: policies.Policy) -> dict[str, Any]:
    from facecrowd.privacy.intersection import intersection

    k = limits.k or 2
    found = intersection(classes, most=2)
    return {
        "k": k,
        "smallest": int(found.all.min()),
        "alone_with_all_photos": found.alone(),
        "under_k_with_one_photo": found.under(k, 1),
        "under_k_with_two_photos": found.under(k, 2),
        "under_k_with_all_photos": found.under(k),
    }


def _crossed_lines(crossed: dict[str, Any] | None, k: int | None) -> list[str]:
    if crossed is None:
        return []
    if "not_measured" in crossed:
        return [f"classes of one person intersected: not measured ({crossed['not_measured']})"]
    return [
        f"classes of one person intersected: {crossed['alone_with_all_photos']:.1%} of people are alone when all their "
        f"photos are known; under {crossed['k']} candidates: {crossed['under_k_with_one_photo']:.1%} with one photo, "
        f"{crossed['under_k_with_two_photos']:.1%} with two, {crossed['under_k_with_all_photos']:.1%} with all"
    ]


# ------------------------------------------------------------------------------------------------------------- plan


def plan_table(
    path: str,
    policy: TablePolicy,
    method: str,
    output: str,
    progress: Progress,
    *,
    base: Path = Path(),
    earlier: Sequence[str] = (),
    curve: bool = False,
    workspace: str | None = None,
    address: str | None = None,
) -> tuple[dict[str, Any], list[str]]:
    """Choose the released attributes and write the plan. Returns the report and its lines for a person.

    earlier : plan folders of earlier releases, the last one last: their classes are kept, grown or united, never cut;
    workspace : private folder of the run key, for methods that draw; default OUTPUT.workspace. Others as in
    ``audit_table``.

    Raises ConfigError, InputError, or an error of ``privacy/``; UnreachableError where no plan meets the policy.
    """
    if method not in METHODS:
        raise ConfigError(f"--method {method}: use {', '.join(METHODS)}")
    table = Table(path, subject=policy.subject)
    asked = ask(table, policy, base)
    if earlier and not policy.per_subject:
        raise ConfigError("--earlier needs per_subject: true, one vector per subject")
    if earlier and method not in ("mondrian", "suppress"):
        raise ConfigError(f"--earlier goes with mondrian or suppress; {method} chooses classes anew")
    kept = _kept(earlier, table, asked)
    clash = [name for name in COLUMNS if name in asked.roles.columns]
    if clash:
        raise ConfigError(f"column {clash[0]!r} has the name of a column of {PLAN}; rename it in the table")
    with _session(address) as ray:
        layout = histogram.layout_of(table, asked.roles, progress, ray)
        cells = _cells(table, layout, asked, progress, ray)
        progress.say(f"plan: {len(cells):,} vectors of {cells.histogram.total_subjects:,} subjects by {method}")
        chosen = made(method, cells, asked, workspace or f"{output.rstrip('/')}.workspace", kept)
        found = assessment.assess(
            chosen.cells, asked.limits, plan=chosen.plan, epsilon=chosen.epsilon, reference=asked.public
        )
        if curve:
            found = replace(
                found, curve=_curve(cells, asked, planners.planner(_curve_method(method), asked.public), progress)
            )
        crossed = None
        if not policy.per_subject and table.rows <= INTERSECTED_ROWS:
            crossed = _crossed(regrouped(chosen.cells.partial, chosen.plan.class_of_cell), asked.limits)
        note = {"method": method, "per_subject": policy.per_subject, "epsilon": chosen.epsilon}
        released = chosen.released
        over_time = None if chosen.updates is None else figures(chosen.updates)
        _write_plan(output, table, layout, asked, cells, chosen, note, progress)
    report = {
        "table": {"rows": table.rows, "columns": len(table.schema.names)},
        "policy": _policy_dict(policy),
        "plan": {
            "method": method,
            "epsilon": chosen.epsilon,
            "notes": list(chosen.plan.notes),
            "choices": list(chosen.choices),
        },
        **found.as_dict(),
        "intersection": crossed,
        "earlier": over_time,
    }
    _write(output, released, report, intervals(chosen.cells.attributes, chosen.plan))
    lines = [*_head(path, asked, None), f"plan by {method}", *(f"  {line}" for line in chosen.plan.notes)]
    lines += [*found.lines(), *_crossed_lines(crossed, asked.limits.k)]
    lines += [*(earlier_lines(over_time) if over_time else []), f"plan: {output}"]
    return report, lines


def made(method: str, cells: Cells, asked: Asked, workspace: str, earlier: Sequence[Published] = ()) -> Made:
    """The plan of a method, kept to what was released earlier. Raises ConfigError, or an error of ``privacy/``."""
    digest = None if asked.limits.epsilon is None else _digest(workspace)
    return planners.made(method, cells, asked.limits, digest, asked.public, earlier)


def _digest(workspace: str) -> Callable[[str, bytes], bytes]:
    place = Workspace(workspace)
    with place.locked():
        return place.create().digest


def _curve_method(method: str) -> str:
    """Who plans the points of a curve: PPAS leaves classes to mondrian."""
    return "suppress" if method == "suppress" else "mondrian"


def _curve(
    cells: Cells, asked: Asked, planner: Callable[[Cells, policies.Policy], CellPlan], progress: Progress
) -> tuple[assessment.Cost, ...]:
    points = assessment.stricter(asked.limits, cells.histogram)
    found: list[assessment.Cost] = []
    with progress.step("curve", len(points)) as advance:
        for point in points:
            found += assessment.cost_curve(cells, [point], planner, asked.public)
            advance(int(cells.histogram.total_rows))
    return tuple(found)


def _cells(table: Table, layout: Any, asked: Asked, progress: Progress, ray: bool) -> Cells:
    return histogram.cells(
        table,
        layout,
        progress,
        per_subject=asked.policy.per_subject,
        kinds={n: kind for n, kind in asked.policy.kinds.items() if n in asked.roles.quasi_identifiers},
        hierarchies={n: h for n, h in asked.hierarchies.items() if n in asked.roles.quasi_identifiers},
        ray=ray,
    )


# ------------------------------------------------------------------------------------------------- policy and files


def ask(table: Table, policy: TablePolicy, base: Path = Path()) -> Asked:
    """Hold a policy's names against a table's columns and read the files it names.

    Raises ConfigError or InputError, naming the column or file.
    """
    if policy.quasi_identifiers == (EVERY,):
        taken = {policy.subject, *policy.sensitive, *policy.identifiers, *policy.insensitive}
        every = tuple(name for name in table.schema.names if name not in taken)
        policy = policy.model_copy(update={"quasi_identifiers": every})
    if not policy.quasi_identifiers:
        raise ConfigError(
            "policy: quasi_identifiers is empty; name the attributes that an adversary may know, or 'all'"
        )
    roles = Roles(policy.subject, policy.quasi_identifiers, policy.sensitive)
    table.need((*roles.columns, *policy.identifiers, *policy.insensitive))
    hierarchies = {name: Hierarchy.read(base / file) for name, file in policy.hierarchies.items()}
    diversity, near = policy.l, policy.t
    limits = policies.Policy(
        roles.subject,
        roles.quasi_identifiers,
        roles.sensitive,
        policy.k,
        None if diversity is None else policies.Diversity(diversity.kind, diversity.value, diversity.c),
        None if near is None else policies.Closeness(near.value, _ground(policy, hierarchies)),
        policy.epsilon,
        policy.max_suppression,
    )
    return Asked(policy, roles, limits, _public(policy, base), hierarchies)


def _ground(policy: TablePolicy, hierarchies: Mapping[str, Hierarchy]) -> closeness.Ground:
    assert policy.t is not None
    if policy.t.ground != "hierarchy":
        return policy.t.ground
    if len(policy.sensitive) != 1 or policy.sensitive[0] not in hierarchies:
        raise ConfigError(
            "policy: t.ground: hierarchy is the distance of one sensitive attribute with a file under hierarchies"
        )
    levels = hierarchies[policy.sensitive[0]].levels
    return closeness.Hierarchy({line[0]: line[1:] for line in levels})


def _public(policy: TablePolicy, base: Path) -> dict[Any, float] | None:
    if policy.reference is None:
        return None
    if len(policy.sensitive) > 1 and not (policy.t and policy.t.ground == "hamming"):
        raise ConfigError("policy: a reference for several sensitive attributes is a joint one: use t.ground: hamming")
    path = str(base / policy.reference) if "://" not in policy.reference else policy.reference
    table = read_table(path, "policy.reference", [*policy.sensitive, "share"])
    try:
        shares = table["share"].cast(pa.float64()).to_pylist()
    except pa.ArrowException:
        shares = [None]
    if not all(share is not None and math.isfinite(share) for share in shares):
        raise InputError(f"policy.reference {path}: column 'share' holds something that is no number")
    if nested := [name for name in policy.sensitive if pa.types.is_nested(table.schema.field(name).type)]:
        raise InputError(f"policy.reference {path}: column {nested[0]!r} holds several values a row; give it one")
    values = [tuple(row.values()) for row in objects(table, policy.sensitive, f"policy.reference {path}")]
    found: dict[Any, float] = {}
    for value, share in zip(values, shares, strict=True):
        key = value if len(value) > 1 else value[0]
        found[key] = found.get(key, 0.0) + share
    return found


def _policy_dict(policy: TablePolicy) -> dict[str, Any]:
    return {k: v for k, v in policy.model_dump(mode="json").items() if k not in ("hierarchies", "reference")}


@contextmanager
def _session(address: str | None) -> Iterator[bool]:
    with ray_data.session(address) if address else nullcontext():
        yield bool(address)


def _write(
    output: str, released: Histogram, report: Mapping[str, Any], metadata: Mapping[bytes, bytes] | None = None
) -> None:
    folder = Folder(output)
    counts = {"rows": released.rows, "subjects": released.subjects, "largest_share": released.largest_share}
    taken = [name for name in counts if name in released.classes.column_names]
    columns = {f"{name} (count)" if name in taken else name: pa.array(values) for name, values in counts.items()}
    shown = {name: released.classes[name] for name in released.classes.column_names}
    classes = pa.table({**shown, **columns}).replace_schema_metadata(metadata)
    folder.write(to_parquet(classes, row_group=2**20), CLASSES)
    folder.write((json.dumps(report, indent=1, sort_keys=True, default=str) + "\n").encode(), VERDICT)


def _write_plan(
    output: str,
    table: Table,
    layout: Any,
    asked: Asked,
    cells: Cells,
    made: Made,
    note: Mapping[str, Any],
    progress: Progress,
) -> None:
    """plan.parquet, row group by row group."""
    labels = made.plan.labels(made.cells.attributes)
    shown = {n: labels[n].combine_chunks().dictionary_encode() for n in labels.column_names}
    folder = Folder(output)
    out = io.BytesIO() if folder.local is None else None
    if folder.local is not None:
        folder.local.mkdir(parents=True, exist_ok=True)
    temporary = None if folder.local is None else folder.local / f".{PLAN}.tmp"
    writer: pq.ParquetWriter | None = None
    try:
        for subjects, class_id in _assigned(table, layout, asked, cells, made, progress):
            kept = class_id != SUPPRESSED
            at = pa.array(class_id, mask=~kept)
            columns = {
                asked.roles.subject: subjects,
                "class_id": at.cast(pa.int32()),
                **{name: values.take(at) for name, values in shown.items()},
                "suppressed": pa.array(~kept),
                "reason": pa.array(np.where(kept, "", NO_CLASS)).dictionary_encode(),
            }
            rows = pa.table(columns).replace_schema_metadata({NOTE: json.dumps(note).encode()})
            if writer is None:
                writer = pq.ParquetWriter(out if out is not None else str(temporary), rows.schema, compression="zstd")
            writer.write_table(rows)
    finally:
        if writer is not None:
            writer.close()
    if temporary is not None and folder.local is not None:
        temporary.replace(folder.local / PLAN)
    elif out is not None:
        folder.write(out.getvalue(), PLAN)


def _assigned(
    table: Table, layout: Any, asked: Asked, cells: Cells, made: Made, progress: Progress
) -> Iterator[tuple[pa.Array, np.ndarray]]:
    """Subjects (or the rows' subjects) and their classes."""
    if asked.policy.per_subject:
        people = made.cells.partial
        cell = np.empty(len(people.subjects), dtype=np.int64)
        cell[people.cell_subject] = people.cell_class
        class_id = made.plan.class_of_cell[cell]
        for start in range(0, len(cell), 2**20):
            yield people.subjects.slice(start, 2**20), class_id[start : start + 2**20]
        return
    with progress.step("write", -(-table.rows // layout.batch_rows)) as advance:
        for batch, cell in histogram.cell_of_rows(table, layout, cells):
            yield batch.column(0), made.plan.class_of_cell[cell]
            advance(batch.num_rows)


def _laid(plan: str, asked: Asked, table: Table) -> tuple[Classes, pa.Table, dict[str, Any]]:
    """A plan's classes for the rows of the table, what each shows, and what the plan says of itself.

    Raises InputError when the folder holds no plan, or that of another table or policy.
    """
    path = f"{plan.rstrip('/')}/{PLAN}"
    rows = read_table(path, "plan", [asked.roles.subject, *asked.roles.quasi_identifiers, *COLUMNS])
    with written_here(f"plan {path}"):
        return _overlaid(path, rows, asked, table)


def _overlaid(path: str, rows: pa.Table, asked: Asked, table: Table) -> tuple[Classes, pa.Table, dict[str, Any]]:
    note = dict(json.loads((rows.schema.metadata or {})[NOTE]))
    kept = np.flatnonzero(~rows["suppressed"].cast(pa.bool_()).to_numpy())
    if not len(kept):
        raise InputError(f"plan {path}: it suppresses every row, so nothing is released")
    shown = rows.select(list(asked.roles.quasi_identifiers))
    groups = equivalence_classes(shown.take(pa.array(kept)))
    class_id = np.full(len(rows), SUPPRESSED, dtype=np.int32)
    class_id[kept] = groups.ids
    if not note["per_subject"]:
        if len(rows) != table.rows:
            raise InputError(f"plan {path}: it has {len(rows)} rows and the table {table.rows}; plan this table again")
        return Classes(None, None, class_id), groups.vectors, note
    subjects = rows[asked.roles.subject].combine_chunks()
    if pc.count_distinct(subjects).as_py() < len(subjects):
        raise InputError(f"plan {path}: a subject has two rows in it")
    kind = table.schema.field(asked.roles.subject).type
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return Classes(asked.roles.subject, subjects.cast(kind), class_id), groups.vectors, note
