"""The order of a release. Reads like the picture in the design: photos → faces → plan → rendered → audit → publish."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from facecrowd.pipeline import (
    attributes,
    closed_loop,
    leaks,
    preflight,
    presets,
    publish,
    ray_data,
    rendering,
    steps,
    summary,
    verification,
)
from facecrowd.pipeline import plan as planning
from facecrowd.pipeline.audit import CLOAKED, IDENTITY_KEPT, Counts, audit
from facecrowd.pipeline.config import CLOAK, ReleaseConfig
from facecrowd.pipeline.errors import (
    ConfigError,
    InputError,
    LeakError,
    PolicyError,
    ReleaseError,
    StoreError,
)
from facecrowd.pipeline.photos import listing
from facecrowd.pipeline.progress import Progress
from facecrowd.pipeline.record import (
    Record,
    lone_surrogates,
    model_rows,
    predictions,
    released_faces,
    rendered_hashes,
    what_had_to_change,
    what_was_looked_at,
)
from facecrowd.pipeline.run import Execute, Prepared, Run
from facecrowd.pipeline.schema import (
    FACES,
    JUDGED,
    LINK,
    MEMBERS,
    PHOTOS,
    PLAN,
    RENDERED,
    RENDERED_PHOTOS,
    SURROGATES,
)
from facecrowd.pipeline.storage import Folder
from facecrowd.pipeline.verification import Verified
from facecrowd.stages.stage import OK


@dataclass(frozen=True)
class Outcome:
    """A finished release. ``met``: whether everything the policy asks holds."""

    release: Folder
    workspace: Folder
    audit: dict[str, Any]
    reused: bool = False

    @property
    def met(self) -> bool:
        return bool(self.audit["met"])


def prepare(config: ReleaseConfig, dry: bool = False) -> Prepared:
    """Check everything that can be known before work starts; models that are missing are fetched, in a dry run not.

    Raises ConfigError, InputError, PolicyError or ModelError.
    """
    if not config.release.path:
        raise ConfigError("no output: give --output RELEASE, the folder to publish into")
    if config.detect.models and not os.path.isdir(os.path.expanduser(config.detect.models)):
        raise ConfigError(f"detect.models {config.detect.models}: no such folder")
    try:
        found = listing(config.input, config.policy, _predictable(config))
    except StoreError as error:
        raise InputError(f"input {error}") from None
    if found.subjects != "clusters" and found.named_subjects() < (config.policy.k or 1):
        raise PolicyError(
            f"k = {config.policy.k} cannot be reached: the input names {found.named_subjects()} people; "
            "lower k or add people"
        )
    hashes = preflight.model_hashes(config.detect, download=not dry)
    speakers = attributes.predictors(
        config.attributes,
        config.policy,
        found.brought,
        config.detect.models,
        not dry,
        (*(presets.FIVE_PARTS if config.method.keeps_identity else ()), *config.perturb.attributes),
    )
    preflight.graphics(config.compute)
    renderer = preflight.renderer(config, download=not dry)
    perturber = preflight.perturber(config, download=not dry)
    preflight.judged_by_another((*renderer, *perturber), speakers.judge, config.method.translator)
    verifier = None if config.verify.recognition is None else preflight.verifier(config, (*renderer, *perturber))
    if config.verify.attributes is not None and speakers.judge is None:
        raise ConfigError("verify.attributes needs a judge of attributes, and attributes.judge is none")
    prepared = Prepared(config, found, hashes, speakers, renderer, perturber, verifier)
    _apart(prepared)
    preflight.room(config, found.photos)
    if dry:
        preflight.cluster(config.compute)
    prepared.workspace.check()
    publish.check_target(config, ours=_began(prepared))
    return prepared


def _predictable(config: ReleaseConfig) -> tuple[str, ...]:
    """The attributes that the input need not bring."""
    named = config.policy.quasi_identifiers or config.policy.sensitive
    return presets.predictable() if named and config.attributes.predictor != "none" else ()


def _began(prepared: Prepared) -> bool:
    """Whether this very release began, or finished, in its workspace before."""
    workspace = prepared.workspace
    if not workspace.folder.exists("run.key"):
        return False
    return _reached(Run(prepared, workspace, workspace.key(), Progress(quiet=True)))


def _apart(prepared: Prepared) -> None:
    """Input, workspace and release must not lie inside each other."""
    places = {
        "input": prepared.config.input.path,
        "output": prepared.config.release.path,
        "workspace": prepared.config.workspace_path,
    }
    real = {name: os.path.realpath(f.local) for name, p in places.items() if (f := Folder(str(p))).local is not None}
    for a, first in real.items():
        for b, second in real.items():
            if a != b and os.path.commonpath([first, second]) == first:
                if a == "input" and not os.path.isdir(first):
                    continue
                raise ConfigError(f"{b} {places[b]} lies inside {a} {places[a]}; keep the two apart")


def release(prepared: Prepared, progress: Progress, execute: Execute | None = None) -> Outcome:
    """Run a release to its end, or on from where a killed one stopped.

    execute : what works off the micro-batches; by default Ray, in a session of this job's own

    Raises PolicyError, WorkspaceError, UnfinishedError, …; one that misses its policy is an Outcome, no error.
    """
    workspace = prepared.workspace
    with workspace.locked():
        return _all(Run(prepared, workspace, workspace.create(), progress, execute))


def _all(run: Run) -> Outcome:
    done = _published(run)
    publish.check_target(run.config, ours=_reached(run))
    if done is not None:
        return done
    listed = run.prepared.listing
    run.progress.say(f"photos: {len(listed.photos)}, subjects from: {listed.subjects}")
    if listed.skipped:
        passed = ", ".join(f"{count} {kind}" for kind, count in listed.skipped.items())
        run.progress.say(f"passed over, no photos: {passed}")
    try:
        _photos(run)
        _faces(run)
        plan = _plan(run)
        rendering.render(run, plan)
        plan, verified = closed_loop.verify(run, plan)
    finally:
        run.close()
    return _publish(run, plan, verified)


def _photos(run: Run) -> None:
    size = run.config.compute.micro_batch

    def columns(part: int) -> dict[str, Any]:
        chunk = run.prepared.listing.photos[part * size : (part + 1) * size]
        names = ("photo", "path", "bytes", "subject", "attributes")
        return {name: [getattr(photo, name) for photo in chunk] for name in names}

    run.written(run.parts(PHOTOS, "photos"), run.batches, columns)


def _faces(run: Run) -> None:
    photos, faces = run.parts(PHOTOS, "photos"), run.parts(FACES, "faces")
    step = ray_data.Step(
        "detect",
        steps.PhotoSource(photos),
        steps.detect_stages(run.config.detect, run.predictor("predictor", "faces")),
        steps.FaceSink(faces, run.key),
        at_once=steps.PHOTOS_AT_ONCE,
    )
    run.made(faces, run.batches, step)


def _plan(run: Run) -> planning.Plan:
    """Classes are a function of the committed faces, so a resumed job computes the same ones again."""
    columns = ["face_id", "photo", "part", "face_index", "status", "reason", "embedding"]
    faces = run.parts(FACES, "faces").read_all(run.batches, columns)
    photos = run.parts(PHOTOS, "photos").read_all(run.batches, ["photo", "subject", "attributes"])
    steer, inferred = run.prepared.predictors.steer, {}
    if steer is not None:
        found = predictions(run.parts(FACES, "faces"), run.batches)
        inferred = attributes.inferred(steer, found, run.config.policy, run.config.attributes.unknown_margin)
    plan = planning.make(run.config, run.prepared.listing.subjects, photos, faces, inferred, run.key)
    run.written(run.parts(PLAN, "plan"), run.batches, plan.part_columns)
    if run.config.method.of_class:
        members, count = run.parts(MEMBERS, "plan"), rendering.member_parts(plan)
        run.written(members, count, lambda part: plan.members_columns(part, steps.CLASSES_PER_PART))
    run.progress.say(
        f"plan: {plan.subjects.count} subjects, {plan.classes} classes, {len(plan.kept)} faces to release, "
        f"{len(plan.status) - len(plan.kept)} rows left out"
    )
    if left := preflight.untranslatable(run.config):
        run.progress.say(
            f"WARNING: the translator cannot change {', '.join(left)}: the pixels keep what the originals show, "
            "whatever is released"
        )
    if plan.planned and (swapped := [choice["attribute"] for choice in plan.planned.choices if choice["flipped"]]):
        run.progress.say(f"plan: swapped in everybody (keep it to yourself): {', '.join(swapped)}")
    return plan


def _record(run: Run) -> str:
    return f"releases/{run.names['release']}.json"


def _reached(run: Run) -> bool:
    """Whether this very release reached its publication before."""
    return run.workspace.folder.exists(_record(run))


def _published(run: Run) -> Outcome | None:
    """The finished release of this very run, where it still is as it was published."""
    folder = run.workspace.folder
    if not _reached(run):
        return None
    card = Record.read(folder, _record(run)).card
    target = run.prepared.target
    if not card or not target.exists(publish.CARD):
        return None
    if hashlib.sha256(target.read(publish.CARD)).hexdigest() != card:
        raise ReleaseError(f"release {target.url}: changed since it was published; remove it to publish again")
    return Outcome(target, folder, json.loads(target.read(publish.AUDIT)), reused=True)


def _publish(run: Run, plan: planning.Plan, verified: Verified | None) -> Outcome:
    target, config = run.prepared.target, run.config
    counts = Counts(len(run.prepared.listing.photos), _named(run, plan))
    record = Record(
        "",
        run.config,
        run.names,
        run.batches,
        counts,
        plan.subjects.source,
        plan.subjects.split_rate,
        plan.subjects.merged,
        run.prepared.listing.brought,
        run.networks,
        plan.planned,
        verified,
    )
    record.write(run.workspace.folder, _record(run))
    with tempfile.TemporaryDirectory(prefix="facecrowd-") as scratch:
        publication = publish.Publication(target, Path(scratch))
        form = publish.storage_format(config, int(plan.images.sum()))
        names: dict[str, list[str]] = {}
        images = _images(run, plan, names)
        note = IDENTITY_KEPT if config.method.keeps_identity else CLOAKED if config.method.name == CLOAK else None
        publication.write_images(images, int(plan.images.sum()), form, config.release.shard_images, note)
        run.progress.say(f"publish: {len(publication.rows)} images as {form}")
        _link(run, plan, names, publication.rows)
        seen = released_faces(
            plan,
            run.parts(RENDERED if config.output == "crop" else JUDGED, "rendered"),
            run.batches,
            rendered_hashes(run.parts(RENDERED, "rendered"), run.batches),
        ).repeated(plan.images)
        if not len(seen.row):
            raise ReleaseError(f"nothing could be released: {_first_failure(run, plan)}")
        used = [*model_rows(config, run.prepared.hashes), *run.prepared.predictors.rows()]
        used += [asdict(network) for network in run.networks]
        looked = what_was_looked_at(record, run.workspace, run.prepared.predictors)
        report = audit(config, plan, seen, run.key, counts, len(publication.rows), used, looked)
        report = verification.stated(report, verified)
        for line in what_had_to_change(config, plan, seen, looked, report):
            run.progress.say(f"keep it to yourself: {line}")
        # Whatever the scan finds stops the publication, so a report that is read lists none.
        report["leaks"] = []
        publication.write_text(publish.AUDIT, json.dumps(report, indent=1, sort_keys=True) + "\n")
        publication.write_text(publish.CONFIG, publish.config_text(config))
        publication.write_text(publish.LICENCES, summary.licences(report))
        publication.write_text(publish.README, summary.readme(report, form))
        publication.stamp()
        ids = plan.face_id if config.output == "crop" else plan.photo
        hits = leaks.scan(
            publication.staging,
            publication.images(),
            publication.expected(),
            _sources(run, plan),
            _originals(run),
            owners={name: str(plan.subject_id[row]) for row in plan.kept for name in names.get(ids[row], [])},
        )
        if config.method.of_class:
            # A perturbation hides a face from the very recogniser that would know it again.
            seen_by = "embedding_before" if config.perturb.on else "embedding"
            parts = run.parts(SURROGATES, "rendered").read_all(rendering.member_parts(plan), ["class_id", seen_by])
            surrogates = parts.rename_columns(["class_id", "embedding"])
            what = "the face of class {} is one member's, not a mean of several"
            hits += [leaks.Leak("original pixels", "images", what.format(c)) for c in lone_surrogates(plan, surrogates)]
        if hits:
            raise LeakError(f"release not published: {summary.leak_lines([asdict(hit) for hit in hits])}")
        title = f"facecrowd {summary.made_by(report)} release"
        card = publication.finish(config, title, summary.description(report))
    replace(record, card=card).write(run.workspace.folder, _record(run))
    _warn_of_others(run, plan)
    return Outcome(target, run.workspace.folder, report)


def _first_failure(run: Run, plan: planning.Plan) -> str:
    """Why a face that was to be released is not."""
    parts = run.parts(RENDERED if run.config.output == "crop" else JUDGED, "rendered")
    reasons = parts.read_all(run.batches, ["reason"])["reason"].to_pylist()
    return next((reasons[row] for row in plan.kept if reasons[row]), "no face was found in it")


def _images(run: Run, plan: planning.Plan, names: dict[str, list[str]]) -> Iterator[publish.Image]:
    """Every image to release under its random name; ``names`` gathers them by face id or photo."""
    crop = run.config.output == "crop"
    source, ids = ("face_id", plan.face_id) if crop else ("photo", plan.photo)
    rows_of: dict[str, list[int]] = {}
    for row in plan.kept:
        rows_of.setdefault(ids[row], []).append(int(row))
    parts = run.parts(RENDERED if crop else RENDERED_PHOTOS, "rendered")
    for part in range(run.batches):
        for image in parts.read(part, [source, "status", "image", "width", "height"]).to_pylist():
            rows = rows_of.get(image[source], [])
            # A photo without anybody's face is not released: nobody is known to be hidden in it.
            if image["status"] != OK or not rows:
                continue
            # A photo of several people carries the label and the attributes of none.
            label, shown = _label(run, plan, rows[0]) if len(rows) == 1 else ("", {})
            drawn = [image[source], *(f"{image[source]}#{i}" for i in range(1, plan.images[rows[0]]))]
            names[image[source]] = [run.token("name", d, 32) for d in drawn[: plan.images[rows[0]]]]
            for name in names[image[source]]:
                yield publish.Image(name, image["image"], image["width"], image["height"], label, shown)


def _label(run: Run, plan: planning.Plan, row: int) -> tuple[str, dict[str, str]]:
    """The identity and the attributes that a released face carries."""
    identity = {
        "none": "",
        "class": run.token("class", str(plan.class_id[row]), 16),
        "pseudonym": run.token("pseudonym", plan.subject_id[row], 16),
    }[run.config.release.identity]
    return identity, {n: values[row] for n, values in plan.released.items() if values[row] is not None}


def _link(run: Run, plan: planning.Plan, names: dict[str, list[str]], images: list[dict[str, Any]]) -> None:
    """Keep, privately, which face every released image shows; ``images``: the rows of the release's manifest."""
    size = steps.IMAGES_PER_PART
    ids = plan.face_id if run.config.output == "crop" else plan.photo
    rows_of: dict[str, list[int]] = {}
    for row in plan.kept:
        for name in names.get(ids[row], []):
            rows_of.setdefault(name, []).append(int(row))

    def columns(part: int) -> dict[str, Any]:
        shown = [(row, image) for image in images[part * size : (part + 1) * size] for row in rows_of[image["name"]]]
        rows = [row for row, _ in shown]
        private = {name: getattr(plan, name)[rows] for name in ("face_id", "photo", "part", "row")}
        public = {name: [image[name] for _, image in shown] for name in ("name", "file", "sha256")}
        return {**private, **public}

    run.written(run.parts(LINK, "release"), -(-len(images) // size), columns)


def _warn_of_others(run: Run, plan: planning.Plan) -> None:
    """Say what intersecting this release with others of the same people would leave of their crowds."""
    if run.config.method.name == "translation":
        _warn_of_epsilons(run)
    if not run.config.method.of_class:
        return
    paths: dict[str, list[int]] = {}
    for subject, class_id in zip(plan.subject_id[plan.kept], plan.class_id[plan.kept], strict=True):
        paths.setdefault(subject, [int(class_id)])
    others = 0
    folder = run.workspace.folder.child("releases")
    for name in folder.names():
        record = Record.read(folder, name)
        if not record.card or not record.config.method.of_class or record.runs["plan"] == run.names["plan"]:
            continue
        others += 1
        rows = run.workspace.parts(PLAN, record.runs["plan"]).read_all(record.parts, ["subject_id", "class_id"])
        theirs = dict(zip(rows["subject_id"].to_pylist(), rows["class_id"].to_pylist(), strict=True))
        for subject, path in paths.items():
            path.append(theirs.get(subject, -1))
    crowds = Counter(tuple(path) for path in paths.values())
    below = sum(n for n in crowds.values() if n < (run.config.policy.k or 1))
    if others and below:
        run.progress.say(
            f"WARNING: {others} other k-same releases of these people were made from this workspace. Who holds all "
            f"of them and can tell people across them leaves {below} people a crowd under k (the smallest: "
            f"{min(crowds.values())}); the bound holds for each release alone"
        )


def _warn_of_epsilons(run: Run) -> None:
    """Say what several translations of the same people tell together."""
    folder = run.workspace.folder.child("releases")
    spent: dict[str, float | None] = {}
    for name in folder.names():
        record = Record.read(folder, name)
        if record.card and record.config.method.name == "translation":
            spent[record.runs["plan"]] = record.planned.epsilon if record.planned else None
    if len(spent) < 2:
        return
    drawn = [epsilon for epsilon in spent.values() if epsilon is not None]
    total = f"their epsilons add up: {sum(drawn):.4g} in total"
    if len(drawn) < len(spent):
        total = f"{total}, and no epsilon covers the rest" if drawn else "no epsilon covers any of them"
    run.progress.say(
        f"WARNING: {len(spent)} different translations of these people were released from this workspace: {total}. "
        "Who holds several can join their rows by the pixels, whatever the identities say; k, l and t hold for "
        "each release alone"
    )


def _named(run: Run, plan: planning.Plan) -> int:
    listed = run.prepared.listing
    return plan.subjects.count if listed.subjects == "clusters" else listed.named_subjects()


def _sources(run: Run, plan: planning.Plan) -> set[str]:
    """Names that must not turn up in a release."""
    names = {p.photo for p in run.prepared.listing.photos} | {p.path for p in run.prepared.listing.photos}
    return names | set(plan.subject_id[plan.kept]) | {os.path.basename(name) for name in names}


def _originals(run: Run) -> set[str]:
    """Hashes of the crops kept in the workspace, less those of faces that a translator found nothing to change in:
    what is released of them is declared, and counted, as their originals encoded anew. With method none all are."""
    hashes: set[str] = set()
    if run.config.method.name == CLOAK:
        return hashes
    for part in range(run.batches):
        crops = run.parts(FACES, "faces").read(part, ["crop"])["crop"].to_pylist()
        passes = run.parts(RENDERED, "rendered").read(part, ["passes"])["passes"].to_pylist()
        pairs = zip(crops, passes, strict=True)
        hashes |= {hashlib.sha256(crop).hexdigest() for crop, taken in pairs if crop is not None and taken != 0}
    return hashes
