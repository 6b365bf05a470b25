"""``facecrowd audit RELEASE``: a release checked again, from its files as they lie there."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from facecrowd.jobs.compare import read_audit, whole
from facecrowd.pipeline import attributes, leaks, plan, preflight, publish, ray_data, steps, summary
from facecrowd.pipeline.audit import audit
from facecrowd.pipeline.errors import ConfigError, ReleaseError
from facecrowd.pipeline.progress import Progress
from facecrowd.pipeline.release import (
    Record,
    model_rows,
    recorded_predictors,
    released_faces,
    rendered_hashes,
    what_was_looked_at,
)
from facecrowd.pipeline.schema import FACES, JUDGED, LINK, PLAN, RENDERED, VERSION
from facecrowd.pipeline.storage import Folder, Parts, Workspace, fingerprint


def audit_release(url: str, workspace: str | None, progress: Progress) -> tuple[dict[str, Any], list[str]]:
    """Audit a released folder. Returns the report and its lines for a person.

    Without the workspace: every file against the hash in the release's card, every image against its manifest row, and
    the leak scan; that proves integrity, not origin: who made the folder may have made up all of it. The recorded
    figures are repeated and said to be recorded. With it: the attacks are run again, on the
    pixels decoded from the released files.

    Raises ReleaseError when the folder is no whole release, ConfigError when the workspace did not make it.
    """
    release = Folder(url)
    if not release.exists(publish.CARD):
        raise ReleaseError(
            f"release {url}: no {publish.CARD} in it, so this is no release, or one that was not finished"
        )
    card = release.read(publish.CARD)
    listed = _listed(card, url)
    for name in (publish.MANIFEST, publish.AUDIT):
        if name not in listed:
            raise ReleaseError(f"release {url}: {publish.CARD} lists no {name}, so this is no whole release")
    broken = _broken(release, listed)
    if broken:
        raise ReleaseError(f"release {url}: {len(broken)} files are missing or changed, first {broken[0]}")
    rows = _manifest(release)
    try:
        for row, (name, data) in zip(rows, publish.read_images(release, rows), strict=True):
            if hashlib.sha256(data).hexdigest() != row["sha256"]:
                raise ReleaseError(f"release {url}: image {name} is not what its manifest row says")
    except FileNotFoundError as error:
        raise ReleaseError(f"release {url}: an image of the manifest is missing: {error.filename or error}") from None
    expected = {*listed, publish.CARD, *(row["file"] for row in rows)}
    hits = leaks.scan(release, publish.read_images(release, rows), expected, timestamps=False)
    report = read_audit(release)
    if workspace is None:
        origin = "recorded when the release was made; give --workspace to measure again"
    else:
        report = _again(release, Workspace(workspace), hashlib.sha256(card).hexdigest(), len(rows), progress)
        origin = "measured again, on the pixels of the released files"
    report["leaks"] = [asdict(hit) for hit in hits]
    report["met"] = report["met"] and not hits
    lines = [f"{len(rows)} images, {len(listed)} files: all as published", f"figures: {origin}"]
    if (times := leaks.times(release, expected)) > 1:
        lines.append(f"note: {times} different modification times among the files, as a copy may have")
    with whole(url):
        return report, lines + summary.verdict_lines(report)


def _manifest(release: Folder) -> list[dict[str, Any]]:
    try:
        table = pq.read_table(pa.BufferReader(release.read(publish.MANIFEST)), use_threads=False, pre_buffer=False)
    except (pa.ArrowInvalid, OSError) as error:
        what = str(error).splitlines()[0]
        raise ReleaseError(f"release {release.url}: {publish.MANIFEST} is not readable: {what}") from None
    for column in ("name", "file", "sha256"):
        if column not in table.column_names:
            raise ReleaseError(f"release {release.url}: {publish.MANIFEST} has no column {column}")
    rows: list[dict[str, Any]] = table.to_pylist()
    return rows


def _listed(card: bytes, url: str) -> dict[str, str]:
    """File → SHA-256 as the card lists them."""
    try:
        objects = json.loads(card)["distribution"]
        return {o["contentUrl"]: o["sha256"] for o in objects if o["@type"] == "cr:FileObject"}
    except (KeyError, TypeError, ValueError):
        raise ReleaseError(f"release {url}: {publish.CARD} is not the card of a release") from None


def _broken(release: Folder, listed: dict[str, str]) -> list[str]:
    out = []
    for name, digest in sorted(listed.items()):
        try:
            if hashlib.sha256(release.read(*name.split("/"))).hexdigest() != digest:
                out.append(name)
        except FileNotFoundError:
            out.append(name)
    return out


def _again(release: Folder, workspace: Workspace, card: str, images: int, progress: Progress) -> dict[str, Any]:
    key = workspace.key()
    record = Record.of(workspace.folder, card)
    config = record.config
    faces = workspace.parts(FACES, record.runs["faces"])
    link = workspace.parts(LINK, record.runs["release"])
    planned = plan.load(
        config,
        workspace.parts(PLAN, record.runs["plan"]).read_all(record.parts),
        faces.read_all(record.parts, ["embedding"]),
        record.subjects_from,
        record.split_rate,
        record.merged,
        record.planned,
    )
    judged = workspace.parts(JUDGED, fingerprint("audit", VERSION, card))
    source = steps.ReleasedSource(release, link, faces)
    predictors = recorded_predictors(record, workspace)
    judge = _same_judge(predictors.judge, config.detect.models)
    judging = steps.judges if config.output == "crop" else steps.judge_photo_stages
    stages = judging(config.detect, judge)
    count = -(-images // steps.IMAGES_PER_PART)
    step = ray_data.Step("audit", source, stages, steps.JudgedSink(judged, config.detect.crop_size))
    missing = sorted(set(range(count)) - judged.done())
    if missing:
        with ray_data.session(config.compute.address, config.compute.cpus):
            ray_data.run(step, missing, progress)
    # In photo output a face is part of a picture; which faces are alike, the rendered crops tell.
    rendered = workspace.parts(RENDERED, record.runs["rendered"])
    hashes = _hashes(link, count, planned) if config.output == "crop" else rendered_hashes(rendered, record.parts)
    seen = released_faces(planned, judged, count, hashes)
    used = [*model_rows(config, preflight.model_hashes(config.detect)), *predictors.rows()]
    used += [asdict(network) for network in record.renderer]
    looked = what_was_looked_at(record, workspace, predictors)
    return audit(config, planned, seen, key, record.counts, images, used, looked)


def _same_judge(judge: attributes.Predictor | None, folder: str | None) -> str | None:
    """The judge of attributes to measure by again. Raises ConfigError where its file is another one now."""
    if judge is None:
        return None
    if attributes.find(judge.file, folder).digest != judge.digest:
        raise ConfigError(f"judge {judge.file}: not the file that judged this release (sha256 {judge.sha256})")
    return judge.file


def _hashes(link: Parts, parts: int, planned: plan.Plan) -> list[str]:
    """The hash of the released image of every planned face; empty where it is not released."""
    table = link.read_all(parts, ["face_id", "sha256"])
    digest = dict(zip(table["face_id"].to_pylist(), table["sha256"].to_pylist(), strict=True))
    return [digest.get(face, "") for face in planned.face_id]
