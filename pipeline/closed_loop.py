"""The order of the closed loop: look at what was rendered, make anew what fails, leave out what still does.

What is measured, and what it means, is in ``verification``.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa

from facecrowd.pipeline import plan as planning
from facecrowd.pipeline import ray_data, rendering, steps, verification, witnesses
from facecrowd.pipeline.errors import NotMetError
from facecrowd.pipeline.perturbation import Perturbations
from facecrowd.pipeline.record import predictions, released_faces
from facecrowd.pipeline.run import Run
from facecrowd.pipeline.schema import (
    FACES,
    JUDGED,
    ORIGINALS,
    PERTURBATION,
    PLAN,
    RENDERED,
    RENDERED_PHOTOS,
    SURROGATES,
)
from facecrowd.pipeline.storage import fingerprint
from facecrowd.pipeline.verification import Verified


def verify(run: Run, plan: planning.Plan) -> tuple[planning.Plan, Verified | None]:
    """Hold what was rendered against the tolerances; render anew what fails, then leave it out.

    Returns the plan of what is left, and what was done; None where no tolerance was asked. Raises NotMetError.
    """
    c = run.config
    if not c.verify.on:
        return plan, None
    recogniser, judge = run.prepared.verifier, run.prepared.predictors.judge
    rounds: list[tuple[dict[str, Any], ...]] = []

    def look(what: str, seen: verification.Seen | None = None) -> tuple[verification.Seen, list[verification.Found]]:
        seen = seen or _seen(run, plan, recogniser)
        found = _measured(run, plan, seen)
        rounds.append(tuple(one.as_dict() for one in found))
        told = ", ".join(f"{verification.NAMES[o.name]} {o.share:.1%} (at most {o.asked:.1%})" for o in found)
        run.progress.say(f"verify, {what}: {told}")
        return seen, found

    seen, found = look("as rendered")
    anew, tries = 0, c.verify.retries if _varies(run) else 0
    while not all(one.met for one in found) and run.again < tries:
        run.again += 1
        anew += _render_anew(run, plan, seen.row[verification.failing(found)])
        seen, found = look(f"rendered anew, {run.again} of {tries}")
    gone: dict[int, str] = {}
    while not all(one.met for one in found) and len(seen.row):
        gone |= _failures(run, plan, seen, found)
        plan = verification.without(plan, gone)
        seen = verification.of(seen, np.flatnonzero(~np.isin(seen.row, list(gone))))
        found = _measured(run, plan, seen)
    if not len(seen.row):
        raise NotMetError(
            "nothing released: no faces are left that are within the tolerance: "
            + ", ".join(
                f"{verification.NAMES[one['name']]} {one['share']:.1%}, at most {one['asked']:.1%} asked"
                for one in rounds[-1]
            )
        )
    if gone:
        _leave_out(run, plan, gone)
        # A photo shows several faces, and is another picture where one of them is not replaced.
        look("what is left", seen if c.output == "crop" else None)
    reasons = Counter(gone.values())
    return plan, Verified(
        recogniser,
        judge.name if judge and c.verify.attributes is not None else None,
        tuple(rounds),
        anew,
        reasons[verification.LEFT_OUT],
        reasons[verification.BROKEN],
    )


def _varies(run: Run) -> bool:
    """Whether other draws make other faces. One vector for all is fitted once."""
    perturbed = run.config.perturb.name
    return perturbed != "universal" and (run.config.method.drawn or perturbed in ("tip-im", "advnoise"))


def _seen(run: Run, plan: planning.Plan, recogniser: str | None) -> verification.Seen:
    c = run.config
    crop, faces, rendered = c.output == "crop", run.parts(FACES, "faces"), run.parts(RENDERED, "rendered")
    now = released_faces(plan, rendered if crop else run.parts(JUDGED, "rendered"), run.batches, None)
    judge = run.prepared.predictors.judge
    shows = known = None
    if c.verify.attributes is not None and judge is not None and now.attributes is not None:
        shows = judge.values(now.attributes)
        known = judge.values(predictions(run.parts(ORIGINALS, "originals"), run.batches))
    then: dict[str, np.ndarray] = {}
    if c.perturb.on:
        done = Perturbations.read(run.workspace, run.names["rendered"], run.batches, c.perturb)
        then = {"before": done.embedding[now.row]}
        if judge is not None and shows is not None:
            then["shows_before"] = judge.values(done.attributes[now.row])
    if recogniser is None:
        return verification.Seen(now.row, shows=shows, known=known, **then)
    blended = steps.BlendedSource(faces, rendered, run.parts(RENDERED_PHOTOS, "rendered"))
    todo: tuple[tuple[Any, ray_data.Source, str], ...] = (
        (
            ("rendered", run.names["rendered"]),
            steps.ImageSource(rendered) if crop else blended,
            "image" if crop else "photo",
        ),
        (("originals", run.names["faces"]), steps.OriginalSource(faces), "crop"),
    )
    after, before = (
        witnesses.look(run.workspace, of, source, column, run.batches, c.detect, (recogniser,), run.work)
        for of, source, column in todo
    )
    at = {face: i for i, face in enumerate(after.face_id)}
    chosen = [at[face] for face in plan.face_id[now.row]]
    vectors = (after.embeddings[recogniser][chosen], before.embeddings[recogniser])
    return verification.Seen(now.row, *vectors, shows, known, **then)


def _measured(run: Run, plan: planning.Plan, seen: verification.Seen) -> list[verification.Found]:
    return verification.measure(run.config.verify, plan, seen, run.key.generator("verify", "recognition"))


def _failures(
    run: Run, plan: planning.Plan, seen: verification.Seen, found: list[verification.Found]
) -> dict[int, str]:
    """Rows of the plan to leave out, each with its reason: those that fail, and classes that break without them."""
    unit = plan.class_id[seen.row] if run.config.method.of_class else seen.row
    out = verification.fewest(found, unit, lambda rest: _measured(run, plan, verification.of(seen, rest)))
    gone = dict.fromkeys(seen.row[out].tolist(), verification.LEFT_OUT)
    broken = verification.broken(run.config, verification.without(plan, gone))
    return gone | dict.fromkeys(broken.tolist(), verification.BROKEN)


def _render_anew(run: Run, plan: planning.Plan, rows: np.ndarray) -> int:
    """Render the faces of these rows anew, or of their classes; all else is taken over. Returns how many."""
    method, before = run.config.method, run.names["rendered"]
    if method.of_class:
        classes = {str(c) for c in plan.class_id[rows]}
        picks = tuple(pick for pick in rendering.class_rows(run, plan) if pick[2] in classes)
    else:
        picks = tuple(sorted((int(plan.part[r]), int(plan.row[r]), str(plan.subject_id[r])) for r in rows))
    anew = fingerprint(before, "anew", run.again, picks)
    run.names["rendered"] = fingerprint(anew, "alone")
    step, manifest, count = rendering.making(run, plan, run.predictor("judge", "rendered"), picks)
    alone = run.parts(manifest, "rendered")
    run.made(alone, count, step)
    run.names["rendered"] = anew
    fresh = alone.read_all(count)
    place = {pick[:2]: i for i, pick in enumerate(picks)}

    def changed(part: int, table: pa.Table) -> pa.Table:
        index = [place[part, row] + len(table) if (part, row) in place else row for row in range(len(table))]
        return pa.concat_tables([table, fresh]).take(index)

    run.take_over(manifest, before, changed)
    rendering.spread(run, plan)
    rendering.blend(run, run.predictor("judge", "rendered"))
    return len(picks)


def _leave_out(run: Run, plan: planning.Plan, gone: dict[int, str]) -> None:
    """Write the plan and what is rendered without these rows."""
    before, told = run.names["rendered"], sorted(gone.items())
    run.names["plan"] = fingerprint(run.names["plan"], "left out", told)
    run.names["rendered"] = fingerprint(before, "left out", told)
    run.written(run.parts(PLAN, "plan"), run.batches, plan.part_columns)
    reasons = {(int(plan.part[row]), int(plan.row[row])): why for row, why in gone.items()}

    def changed(part: int, table: pa.Table) -> pa.Table:
        cells = {name: table[name].to_pylist() for name in ("status", "reason", "image")}
        for row in range(len(table)):
            if (part, row) in reasons:
                cells["status"][row], cells["reason"][row] = planning.SUPPRESSED, reasons[part, row]
                cells["image"][row] = None
        for name, values in cells.items():
            at = table.column_names.index(name)
            table = table.set_column(at, table.schema.field(name), pa.array(values, table.schema.field(name).type))
        return table

    if run.config.method.of_class:
        run.take_over(SURROGATES, before, lambda part, table: table)
    if run.config.perturb.name == "universal":
        run.take_over(PERTURBATION, before, lambda part, table: table)
    run.take_over(RENDERED, before, changed)
    rendering.blend(run, run.predictor("judge", "rendered"))
    run.progress.say(f"verify: {len(gone)} faces left out")
