"""``facecrowd audit RELEASE``: a release checked again, from its files as they lie there, and attacked.

    integrity   every file against its hash, every image against its row, the leak scan
    requirements   measured again on the pixels of the released files, where the workspace is at hand
    attacks, use   every section of ``figures.Figure``: by all recognisers at hand, by trained attackers, and more

What is written: ``report.html``, ``audit.json`` and tables of every figure. What was measured is kept in the workspace
under a hash of all that it depends on, so an audit that was killed, or is asked for more, goes on.
"""

from __future__ import annotations

import hashlib
import json
import sys
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from facecrowd.jobs import attackers, attacks, disclosure
from facecrowd.jobs import report as page
from facecrowd.jobs import utility as use
from facecrowd.jobs.bootstrap import joined
from facecrowd.jobs.compare import read_audit, whole
from facecrowd.jobs.evidence import Evidence
from facecrowd.jobs.figures import Figure, from_table, to_table
from facecrowd.jobs.renditions import WORK, Networks
from facecrowd.pipeline import attributes, leaks, preflight, publish, ray_data, steps, summary, traces, verification
from facecrowd.pipeline.audit import Released, audit, crowded
from facecrowd.pipeline.errors import ConfigError, ReleaseError, reason
from facecrowd.pipeline.perturbation import BEFORE, Perturbations, against
from facecrowd.pipeline.plan import Plan
from facecrowd.pipeline.presets import predictable
from facecrowd.pipeline.progress import Progress
from facecrowd.pipeline.record import (
    model_rows,
    recorded_predictors,
    released_faces,
    rendered_hashes,
    what_was_looked_at,
)
from facecrowd.pipeline.schema import JUDGED, RENDERED, SURROGATES, VERSION
from facecrowd.pipeline.shown import shown
from facecrowd.pipeline.storage import Folder, Parts, Workspace, fingerprint, to_parquet
from facecrowd.pipeline.witnesses import Seen
from facecrowd.privacy.closeness import t_closeness
from facecrowd.stages import models

SCHEMA = 2
"""Of audit.json: the recorded audit's keys, and ``figures`` and ``not_measured`` (docs/audit.md)."""

GROUPS = ("Male", "Young", "Pale_Skin")
FILES = ("audit.json", "figures.parquet", "curves.parquet", "classes.parquet", "report.html")
HEAD = "arcface-mobilefacenet"
"""The recogniser whose embeddings a linear head is trained on."""
SHEET = 24


Depth = Literal["checks", "quick", "full", "paper"]


@dataclass(frozen=True)
class Order:
    """How thoroughly a release is attacked.

    output : folder of the report; None writes none
    depth : quick trains linear heads alone, full the networks of DeepBlur's T1 to T3 too, paper for its 500 epochs;
        checks attacks no further than the release itself did
    recognisers : who attacks; none for all that are at hand
    groups : attributes whose groups are looked at apart
    faces : most faces whose pixels are compared, whole people of them
    originals : show originals beside the released faces, in a page that is then private
    baselines : other audits, to stand beside this one on the plane of privacy and use
    """

    output: str | None = None
    depth: Depth = "checks"
    recognisers: tuple[str, ...] = ()
    groups: tuple[str, ...] = GROUPS
    faces: int = use.SAMPLE
    originals: bool = False
    baselines: tuple[str, ...] = ()

    @classmethod
    def read(
        cls,
        release: str,
        output: str | None,
        depth: str,
        recognisers: str,
        groups: str,
        faces: int,
        originals: bool,
        baselines: Sequence[str],
    ) -> Order:
        """As it was typed. Raises ConfigError."""
        if depth not in get_args(Depth):
            raise ConfigError(f"--depth {depth}: none of {', '.join(get_args(Depth))}")
        known = predictable()
        if strange := [name for name in _names(groups) if name not in known]:
            raise ConfigError(f"--groups: {strange[0]} is no attribute that is known of faces")
        private = "-audit-private" if originals else "-audit"
        where = output or (None if depth == "checks" else f"{release.rstrip('/')}{private}")
        for url in baselines:
            if not Folder(url).exists("audit.json"):
                raise ConfigError(f"--baselines {url}: no audit.json in it; give the folder of an audit")
            _baseline(url)
        asked: Any = depth
        named = (_names(recognisers), _names(groups))
        return cls(where, asked, *named, faces, originals, baselines=tuple(baselines))


def _names(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def audit_release(
    url: str, workspace: str | None, progress: Progress, order: Order | None = None, catalog: str | None = None
) -> tuple[dict[str, Any], list[str]]:
    """Audit a released folder. Returns the report and its lines for a person.

    Without the workspace: every file against the hash in the release's card, every image against its manifest row, and
    the leak scan; that proves integrity, not origin: who made the folder may have made up all of it. The recorded
    figures are repeated and said to be recorded. With it: the attacks are run again, on the
    pixels decoded from the released files. ``catalog``: what its PyIceberg catalog is called here, where that is not as
    the workspace's record has it.

    Raises ReleaseError when the folder is no whole release, ConfigError when the workspace did not make it, or what is
    asked for needs one and there is none.
    """
    with nullcontext() if workspace is None else Workspace(workspace).used():
        return _audited(url, workspace, progress, order or Order(), catalog)


def _audited(
    url: str, workspace: str | None, progress: Progress, order: Order, catalog: str | None
) -> tuple[dict[str, Any], list[str]]:
    release = Folder(url)
    if workspace is None and (order.originals or order.depth in ("full", "paper")):
        asked = "--with-originals" if order.originals else f"--depth {order.depth}"
        raise ConfigError(f"{asked} needs the originals; give the --workspace that made the release")
    rows, listed, expected, hits = _checked(release)
    report, evidence = read_audit(release), None
    found = Measured((), attackers.CURVES.empty_table())
    if workspace is None:
        origin = f"{page.RECORDED}; give --workspace to measure again"
    else:
        evidence = Evidence(url, workspace, catalog=catalog)
        report, seen, looked = _again(evidence, len(rows), progress)
        hits += _traces(evidence, release, expected, rows, seen, looked)
        origin = page.MEASURED
        if order.depth != "checks":
            found = measure(evidence, order, report, progress)
    lines = [f"{len(rows)} images, {listed} files: all as published", f"figures: {origin}"]
    if (times := leaks.times(release, expected)) > 1:
        lines.append(f"note: {times} different modification times among the files, as a copy may have")
    with whole(url):
        return _stated(report, hits, found, evidence, _Faces(release, rows, evidence), order, lines)


def audit_snapshot(
    workspace: str, snapshot: int, progress: Progress, order: Order | None = None, catalog: str | None = None
) -> tuple[dict[str, Any], list[str]]:
    """Audit what a snapshot of the workspace's tables says was published, wherever the release is now.

    The images are those that the workspace keeps; there is no folder to be scanned for leaks.

    Raises ConfigError for a snapshot that there is not.
    """
    with Workspace(workspace).used():
        return _snapshot(workspace, snapshot, progress, order or Order(), catalog)


def _snapshot(
    workspace: str, snapshot: int, progress: Progress, order: Order, catalog: str | None
) -> tuple[dict[str, Any], list[str]]:
    evidence = Evidence(None, workspace, snapshot, catalog)
    images = {row["name"]: row for row in evidence.links}
    report, _, _ = _again(evidence, len(images), progress)
    found = Measured((), attackers.CURVES.empty_table())
    if order.depth != "checks":
        found = measure(evidence, order, report, progress)
    lines = [f"snapshot {snapshot}: {len(images)} images, as the workspace keeps them; no folder was scanned for leaks"]
    return _stated(report, None, found, evidence, _Faces(None, [], evidence), order, lines)


def _stated(
    report: dict[str, Any],
    hits: Sequence[leaks.Leak] | None,
    found: Measured,
    evidence: Evidence | None,
    faces: _Faces,
    order: Order,
    lines: list[str],
) -> tuple[dict[str, Any], list[str]]:
    """The whole report, written where that is asked for, and its lines; ``hits``: None where nothing was scanned."""
    refuted = _refuted(found.figures)
    if refuted is not None:
        report["requirements"] = [*report["requirements"], refuted]
    report["leaks"] = None if hits is None else [asdict(hit) for hit in hits]
    report["met"] = report["met"] and not hits and refuted is None
    lines += summary.verdict_lines(report)
    if order == Order():
        return report, lines
    report |= {"schema": SCHEMA, "figures": [one.as_dict() for one in found.figures]}
    report["figures_origin"] = page.RECORDED if evidence is None else page.MEASURED
    report["not_measured"] = _not_measured(found.figures, evidence, order)
    if faces.release is None:
        report["not_measured"].append({"what": "leak scan", "why": "a snapshot has no folder; audit the release"})
    lines += told(found.figures)
    if order.output is not None:
        write(Folder(order.output), report, found, evidence, faces, order)
        lines.append(f"report: {Folder(order.output).at('report.html')}")
    return report, lines


def _refuted(figures: Sequence[Figure]) -> dict[str, Any] | None:
    """The claimed bound as a requirement that is not met, where an attack refutes it."""
    tests = [f for f in figures if (f.section, f.name) == ("identity", "p-value") and f.value is not None]
    level = page.REFUTED / max(len(tests), 1)
    worst = min(tests, key=lambda f: f.value or 0.0, default=None)
    if worst is None or worst.value is None or worst.value > level:
        return None
    kind = f"measured with {worst.by}, {worst.setting}"
    found = {"asked": level, "found": worst.value, "met": False, "kind": kind, "note": worst.note}
    return {"name": "p of the bound", **found}


def _checked(release: Folder) -> tuple[list[dict[str, Any]], int, set[str], list[leaks.Leak]]:
    """The rows of a release's manifest, how many files its card lists, the files it should hold, and what they leak.

    Raises ReleaseError where it is no whole release, or was changed.
    """
    url = release.url
    if not release.exists(publish.CARD):
        raise ReleaseError(
            f"release {url}: no {publish.CARD} in it, so this is no release, or one that was not finished"
        )
    listed = _listed(release.read(publish.CARD), url)
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
    except (LookupError, TypeError, ValueError, AttributeError, OSError, tarfile.TarError, pa.ArrowException) as error:
        raise ReleaseError(f"release {url}: an image of the manifest cannot be read: {reason(error)}") from None
    expected = {*listed, publish.CARD, *(row["file"] for row in rows)}
    hits = leaks.scan(release, publish.read_images(release, rows), expected, timestamps=False)
    return rows, len(listed), expected, hits


def _manifest(release: Folder) -> list[dict[str, Any]]:
    try:
        table = pq.read_table(pa.BufferReader(release.read(publish.MANIFEST)), use_threads=False, pre_buffer=False)
        table.validate(full=True)
        names = table.column_names
        rows: list[dict[str, Any]] = table.to_pylist()
    # On a damaged file Arrow raises whatever it stumbled over.
    except Exception as error:
        raise ReleaseError(f"release {release.url}: {publish.MANIFEST} is not readable: {reason(error)}") from None
    for column in ("name", "file", "sha256"):
        if names.count(column) != 1:
            raise ReleaseError(f"release {release.url}: {publish.MANIFEST} has no column {column}, or two")
    for number, row in enumerate(rows):
        _within(row["file"], release.url, publish.MANIFEST)
        if not isinstance(row["name"], str):
            raise ReleaseError(f"release {release.url}: {publish.MANIFEST}, row {number}: name is no text")
    return rows


def _within(name: Any, url: str, where: str) -> str:
    """A file's name, as a card or a manifest has it. Raises ReleaseError for one that would be read from elsewhere."""
    parts = name.split("/") if isinstance(name, str) else [""]
    if not all(parts) or {".", ".."} & {*parts} or "\0" in name:
        raise ReleaseError(f"release {url}: {where} names {name!r}, which is no file of a release")
    return str(name)


def _listed(card: bytes, url: str) -> dict[str, str]:
    """File → SHA-256 as the card lists them."""
    try:
        objects = json.loads(card)["distribution"]
        files = {o["contentUrl"]: str(o["sha256"]) for o in objects if o["@type"] == "cr:FileObject"}
    except (KeyError, TypeError, ValueError, RecursionError):
        raise ReleaseError(f"release {url}: {publish.CARD} is not the card of a release") from None
    return {_within(name, url, publish.CARD): digest for name, digest in files.items()}


def _broken(release: Folder, listed: dict[str, str]) -> list[str]:
    out = []
    for name, digest in sorted(listed.items()):
        try:
            if hashlib.sha256(release.read(*name.split("/"))).hexdigest() != digest:
                out.append(name)
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            out.append(name)
    return out


def _again(evidence: Evidence, images: int, progress: Progress) -> tuple[dict[str, Any], Released, attributes.Looked]:
    """The requirements and the run's own attacks, measured on the released pixels; what was seen in these, and what the
    run's predictors said of the originals."""
    record, workspace, config, planned = evidence.record, evidence.workspace, evidence.config, evidence.plan
    judged = workspace.parts(JUDGED, fingerprint("audit", VERSION, evidence.card))
    source = steps.ReleasedSource(evidence.images, evidence.link, evidence.faces)
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
    hashes = (
        _hashes(evidence.link, count, planned) if config.output == "crop" else rendered_hashes(rendered, record.parts)
    )
    seen = released_faces(planned, judged, count, hashes)
    used = [*model_rows(config, preflight.model_hashes(config.detect)), *predictors.rows()]
    used += [asdict(network) for network in record.renderer]
    looked = what_was_looked_at(record, workspace, predictors)
    report = audit(config, planned, seen, evidence.key, record.counts, images, used, looked)
    report = verification.stated(report, _verified(evidence, seen, looked, progress))
    _state_shown(report, evidence, seen, looked)
    return report, seen, looked


def _state_shown(report: dict[str, Any], evidence: Evidence, seen: Released, looked: attributes.Looked) -> None:
    """Of the requirement k, what the judge sees of it in the released pixels."""
    judge, k = looked.predictors.judge, evidence.config.policy.k
    if judge is None or seen.attributes is None or not k:
        return
    known = None if looked.judged is None else judge.values(looked.judged)
    faces = verification.Seen(seen.row, shows=judge.values(seen.attributes), known=known)
    for requirement in report["requirements"]:
        if requirement["name"] == "k":
            rng = evidence.key.generator("audit", "shown")
            requirement["shown"] = shown(evidence.plan, faces, k, seen.hashes, judge.name, rng)


def _verified(
    evidence: Evidence, faces: Released, looked: attributes.Looked, progress: Progress
) -> verification.Verified | None:
    """What the closed loop would find of the released files; None where nothing was asked of it."""
    record, asked, rows = evidence.record, evidence.config.verify, faces.row
    if record.verified is None or not asked.on:
        return None
    judge, recogniser = looked.predictors.judge, record.verified.recogniser
    values = [None if judge is None or p is None else judge.values(p) for p in (faces.attributes, looked.judged)]
    vectors: list[Any] = [None, None]
    if recogniser is not None:
        after, before = evidence.look((recogniser,), progress)
        at = {row: i for i, row in reversed(list(enumerate(evidence.row.tolist())))}
        vectors = [after.embeddings[recogniser][[at[row] for row in rows.tolist()]], before.embeddings[recogniser]]
    then: dict[str, np.ndarray] = {}
    if looked.perturbations is not None:
        then["before"] = looked.perturbations.embedding[rows]
        if judge is not None and faces.attributes is not None:
            then["shows_before"] = judge.values(looked.perturbations.attributes[rows])
    seen = verification.Seen(rows, *vectors, *values, **then)
    rng = evidence.key.generator("verify", "recognition")
    found = verification.measure(asked, evidence.plan, seen, rng)
    return replace(record.verified, rounds=(*record.verified.rounds, tuple(one.as_dict() for one in found)))


def _traces(
    evidence: Evidence,
    release: Folder,
    expected: set[str],
    rows: list[dict[str, Any]],
    seen: Released,
    looked: attributes.Looked,
) -> list[leaks.Leak]:
    """What the release shows of its source, which takes the workspace to see."""
    record, workspace = evidence.record, evidence.workspace
    known = traces.Known.read(workspace, record.runs, record.parts)
    table = pa.Table.from_pylist(rows)
    images = publish.read_images(release, rows)
    config, cut = evidence.config, traces.declared(evidence.config, cut=True)

    def originals() -> Iterator[traces.Original]:
        return chain(traces.crops(workspace, record.runs, record.parts), traces.photos(known))

    hits = traces.scan(release, table, images, expected, known, config, originals())
    if config.output == "photo":
        # A photo declares its background; of the faces in it, what their method does.
        faces = zip(map(str, evidence.name), evidence.all_released(), strict=True)
        hits += traces.copied(faces, originals(), known, cut)
    name_of = dict(zip(evidence.row.tolist(), evidence.name.tolist(), strict=True))
    names = [str(name_of[row]) for row in seen.row.tolist()]
    hits += _strangers(evidence, rows)
    then = looked.perturbations
    # A perturbation hides a face from the very recogniser that would know it again.
    faces_of = [seen.embedding, *([] if then is None else [then.embedding[seen.row]])]
    return hits + [leak for of in faces_of for leak in traces.resembling(of, names, evidence.plan.embedding, cut)]


def _strangers(evidence: Evidence, rows: list[dict[str, Any]]) -> list[leaks.Leak]:
    """Released images of k-same that are none of those rendered for their class, of which the bound is.

    rows : of the release's manifest, whose hashes were held against the files
    """
    config, record = evidence.config, evidence.record
    if not config.method.of_class or config.output != "crop":
        return []
    parts = evidence.workspace.parts(SURROGATES, record.runs["rendered"])
    made: dict[int, set[str]] = {}
    for part in sorted(parts.done()):
        for row in parts.read(part, ["class_id", "image"]).to_pylist():
            if row["image"] is not None:
                made.setdefault(row["class_id"], set()).add(hashlib.sha256(row["image"]).hexdigest())
    what = "the image is none of those that were rendered for its class"
    digest = {row["name"]: row["sha256"] for row in rows}
    return [
        leaks.Leak("not the class's face", str(name), what)
        for name, class_id in zip(evidence.name, evidence.plan.class_id[evidence.row].tolist(), strict=True)
        if digest.get(name) not in made.get(class_id, set())
    ]


def _same_judge(judge: attributes.Predictor | None, folder: str | None) -> str | None:
    """The judge of attributes to measure by again. Raises ConfigError where its file is another one now."""
    if judge is None:
        return None
    if attributes.find(judge.file, folder).digest != judge.digest:
        raise ConfigError(f"judge {judge.file}: not the file that judged this release (sha256 {judge.sha256})")
    return judge.file


def _hashes(link: Parts, parts: int, planned: Plan) -> list[str]:
    """The hash of the released image of every planned face; empty where it is not released."""
    table = link.read_all(parts, ["face_id", "sha256"])
    digest = dict(zip(table["face_id"].to_pylist(), table["sha256"].to_pylist(), strict=True))
    return [digest.get(face, "") for face in planned.face_id]


# ------------------------------------------------------------------------------------------------------------ measure


@dataclass(frozen=True)
class Measured:
    """figures : of all sections; curves : how trained attackers learned, see ``attackers.CURVES``"""

    figures: tuple[Figure, ...]
    curves: pa.Table


@dataclass(frozen=True)
class Sections:
    """The sections of an audit, each measured when it is asked for."""

    evidence: Evidence
    order: Order
    report: dict[str, Any]
    progress: Progress

    def identity(self) -> list[Figure]:
        e, formal = self.evidence, self.report["guarantee"]["kind"] == "formal"
        bound = None
        if formal and self.classes is not None:
            # Of a class of n people at most 1 / n are named; photo counts tilt faces, not people.
            member = np.unique(self.classes, return_inverse=True)[1]
            pairs = {*zip(member.tolist(), e.subject[e.row].tolist(), strict=True)}
            bound = 1 / np.bincount([at for at, _ in pairs])[member]
        found = attacks.identity_figures(
            {**self.embedded, **self.unperturbed},
            e.subject,
            e.row,
            self.rng("identity"),
            groups=self.groups,
            classes=self.classes,
            bound=bound,
        )
        if not e.config.method.keeps_identity:
            return found
        return [replace(one, better="higher") if one.better == "lower" else one for one in found]

    def linkage(self) -> list[Figure]:
        e = self.evidence
        return attacks.linkage_figures(self.embedded, e.subject, e.row, self.rng("linkage"), classes=self.classes)

    def membership(self) -> list[Figure]:
        e = self.evidence
        return attacks.membership_figures(self.embedded, e.subject, e.row, self.rng("membership"))

    def table(self) -> list[Figure]:
        e = self.evidence
        own = {name: e.labels[name][e.row] for name in e.shown if name in e.labels}
        shown = {name: values for name, values in e.shown.items() if name in own}
        outside = np.flatnonzero((e.subject != "") & ~np.isin(e.subject, e.subject[e.row]))
        others = {name: e.labels[name][outside] for name in own}
        return disclosure.table_figures(
            e.subject[e.row],
            shown,
            own,
            self.rng("table"),
            outside_subject=e.subject[outside],
            outside=others if len(outside) else None,
            groups=self.groups,
        )

    def inference(self) -> list[Figure]:
        return use.inference_figures(self.pairs, self.eyes, self.rng("inference"), **self.looking)

    def utility(self, names: Sequence[str] = ()) -> list[Figure]:
        """names : of the figures that are wanted; none for all."""
        return use.utility_figures(self.pairs, self.eyes, self.rng("utility"), **self.looking, names=names)

    def trained(self) -> tuple[list[Figure], pa.Table]:
        e = self.evidence
        preset = attackers.PRESETS["paper" if self.order.depth == "paper" else "cpu"]
        if self.order.depth == "quick":
            preset = replace(preset, networks=())
        heads = {name: (self.before.embeddings[name][e.row], self.after.embeddings[name]) for name in self.heads}
        rows = attackers.chosen(e.subject[e.row], preset, self.seed, self.classes)
        return attackers.trained_figures(
            e.originals(e.row[rows]),
            e.released(rows),
            e.subject[e.row][rows],
            {name: (a[rows], b[rows]) for name, (a, b) in heads.items()},
            preset,
            seed=self.seed,
            work=self.work,
            crowd=None if self.classes is None else self.classes[rows],
            say=self.progress.say,
        )

    def marked(self, one: Figure) -> Figure:
        """A figure that says of itself that it flatters, where it does."""
        if one.by.removesuffix(" head") not in self.white_box:
            return one
        return replace(one, note=joined(one.note, "white box: the faces were perturbed against this one"))

    # ------------------------------------------------------------------------------------------------ what they share

    @cached_property
    def _looked(self) -> tuple[Seen, Seen]:
        return self.evidence.look(self.recognisers, self.progress)

    @property
    def after(self) -> Seen:
        return self._looked[0]

    @property
    def before(self) -> Seen:
        return self._looked[1]

    @cached_property
    def recognisers(self) -> tuple[str, ...]:
        return self.evidence.recognisers(self.order.recognisers)

    @property
    def heads(self) -> tuple[str, ...]:
        """Whose embeddings a head is trained on: none that the faces were perturbed against, where there is another."""
        others = [name for name in self.recognisers if name not in self.white_box] or list(self.recognisers)
        return (HEAD if HEAD in others else others[0],)

    @cached_property
    def white_box(self) -> frozenset[str]:
        """The recognisers that the faces were perturbed against, themselves or through what builds on them."""
        folder, passed = self.evidence.config.detect.models, against(self.report["models"])
        digest = {n: models.sha256(models.resolve(n, "recognition", folder=folder)) for n in self.recognisers}
        return frozenset(name for name in self.recognisers if digest[name] in passed)

    @property
    def unperturbed(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """The faces before they were perturbed, as the release's own recogniser saw them: who takes a perturbation off
        again has these."""
        e = self.evidence
        if not e.config.perturb.on:
            return {}
        done = Perturbations.read(e.workspace, e.record.runs["rendered"], e.record.parts, e.config.perturb)
        return {f"{e.config.detect.recogniser}, {BEFORE}": (done.embedding[e.row], e.plan.embedding)}

    @property
    def embedded(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        return {name: (self.after.embeddings[name], self.before.embeddings[name]) for name in self.recognisers}

    @property
    def classes(self) -> np.ndarray | None:
        return self.evidence.plan.class_id[self.evidence.row] if self.evidence.plan.classes else None

    @cached_property
    def groups(self) -> dict[str, np.ndarray]:
        """Of the released faces."""
        return {name: values[self.evidence.row] for name, values in self.evidence.groups(self.order.groups).items()}

    @cached_property
    def pairs(self) -> use.Pairs:
        e = self.evidence
        rows = use.sampled(e.subject[e.row], self.order.faces)
        source = e.row[rows]
        return use.Pairs(
            e.originals(source),
            e.released(rows),
            e.subject[source],
            self.before.landmarks[source],
            self.after.landmarks[rows],
            {name: values[source] for name, values in e.labels.items()},
            {name: values[rows] for name, values in e.shown.items()},
            {name: values[rows] for name, values in self.groups.items()},
            out_of=len(e),
        )

    @cached_property
    def eyes(self) -> use.Eyes:
        return use.Eyes.load(Networks(folder=self.evidence.config.detect.models))

    @property
    def looking(self) -> dict[str, Any]:
        policy = self.evidence.config.policy
        asked = tuple(n for n in (*policy.quasi_identifiers, *policy.sensitive) if n in self.evidence.labels)
        return {"work": self.work, "attributes": asked, "say": self.progress.say}

    @property
    def work(self) -> Path:
        """Where features and trainings are kept: they show people, so beside them, or for this user alone."""
        local = self.evidence.workspace.folder.local
        return WORK if local is None else local / "audits" / "work"

    @property
    def seed(self) -> int:
        return int.from_bytes(self.evidence.key.digest("audit", "seed")[:4], "big")

    def rng(self, section: str) -> np.random.Generator:
        return self.evidence.key.generator("audit", section)


SECTIONS = ("identity", "linkage", "membership", "table", "utility", "inference", "trained")


def measure(evidence: Evidence, order: Order, report: dict[str, Any], progress: Progress) -> Measured:
    """Every section, as thoroughly as is asked; what was measured before is read again."""
    sections = Sections(evidence, order, report, progress)
    labels = [(name, hashlib.sha256(values.tobytes()).hexdigest()) for name, values in sorted(evidence.labels.items())]
    told = (SCHEMA, VERSION, version("facecrowd"), evidence.card, sections.recognisers, order.groups, order.faces)
    kept = evidence.workspace.folder.child("audits", fingerprint(*told, labels))
    figures: list[Figure] = []
    curves = attackers.CURVES.empty_table()
    for name in SECTIONS:
        # How long attackers learn decides nothing else.
        file = f"{name}-{order.depth}.parquet" if name == "trained" else f"{name}.parquet"
        if not kept.exists(file):
            progress.say(f"audit: {name}")
            made = getattr(sections, name)()
            found = made if isinstance(made, list) else made[0]
            if not isinstance(made, list):
                kept.write(to_parquet(made[1]), f"curves-{order.depth}.parquet")
            kept.write(to_parquet(to_table(found)), file)
        figures += [sections.marked(one) for one in from_table(_parquet(kept.read(file)))]
        if name == "trained":
            curves = _parquet(kept.read(f"curves-{order.depth}.parquet"))
    return Measured(tuple(figures), curves)


def _parquet(data: bytes) -> pa.Table:
    return pq.read_table(pa.BufferReader(data), use_threads=False, pre_buffer=False)


def _not_measured(figures: Sequence[Figure], evidence: Evidence | None, order: Order) -> list[dict[str, str]]:
    """What could not be measured, and why."""
    if evidence is None:
        needs = (*SECTIONS, "copies and likenesses of originals, orders, names and columns that lead to a person")
        return [{"what": name, "why": "needs the workspace (--workspace)"} for name in needs]
    if order.depth == "checks":
        return [{"what": name, "why": "not asked for (--depth)"} for name in SECTIONS]
    out = [{"what": "trained networks (T1 to T3)", "why": "--depth full"}] if order.depth == "quick" else []
    for one in figures:
        if one.value is None and not one.group:
            what = " ".join(part for part in (one.section, one.name, one.by, one.setting) if part)
            out.append({"what": what, "why": one.note or "no value"})
    return out


def told(figures: Sequence[Figure]) -> list[str]:
    """The strongest attack of each section, and what the release is good for, a line each."""
    lines = []
    best = page.strongest(figures)
    if best is not None and best.value is not None:
        span = "" if best.low is None or best.high is None else f" [{best.low:.1%}, {best.high:.1%}]"
        chance = "" if best.chance is None else f", by chance {best.chance:.1%}"
        lines.append(f"strongest attack: {best.by} {best.setting} {best.name} {best.value:.1%}{span}{chance}")
    for name in ("psnr", "ssim", "lpips", "fid", "detected"):
        found = [
            f for f in figures if f.section == "utility" and f.name == name and not f.group and f.value is not None
        ]
        if found:
            lines.append(f"use: {name} {found[0].value:.4g}")
    return lines


# -------------------------------------------------------------------------------------------------------------- write


def write(
    folder: Folder, report: dict[str, Any], found: Measured, evidence: Evidence | None, faces: _Faces, order: Order
) -> None:
    """The report's files, the page last. One that shows originals is for its owner's eyes alone."""
    classes, t = _classes(evidence)
    numbered = {"class": np.arange(len(classes)), "subjects": classes}
    crowds = pa.table({**numbered, **{f"t {name}": values for name, values in t.items()}})
    folder.write((json.dumps(report, indent=1, sort_keys=True) + "\n").encode(), "audit.json")
    folder.write(to_parquet(to_table(found.figures)), "figures.parquet")
    folder.write(to_parquet(found.curves), "curves.parquet")
    folder.write(to_parquet(crowds), "classes.parquet")
    sheet, originals = faces.some(order.originals)
    extra = page.Page(
        sizes=classes if len(classes) else None,
        t=t,
        curves=found.curves if len(found.curves) else None,
        sheet=sheet,
        originals=originals,
        baselines=[point for url in order.baselines for point in _baseline(url)],
        commands=[_command(order, evidence is not None)],
        versions={"facecrowd": version("facecrowd"), "python": sys.version.split()[0]}
        | {name: version(name) for name in ("torch", "numpy", "ray", "pyarrow", "onnxruntime")},
        snapshot=None if evidence is None else evidence.snapshot,
    )
    folder.write(page.write(report, found.figures, extra).encode(), "report.html")
    if originals is not None and folder.local is not None:
        folder.local.chmod(0o700)
        for name in FILES:
            (folder.local / name).chmod(0o600)


def _classes(evidence: Evidence | None) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Distinct people of each class that is released, and of each sensitive attribute the class's distance t."""
    if evidence is None:
        return np.empty(0, np.int64), {}
    plan: Plan = evidence.plan
    released = plan.kept[np.isin(plan.subject_id[plan.kept], np.unique(plan.subject_id[evidence.row].astype(str)))]
    table = crowded(evidence.config, plan, released)
    if table is None:
        return np.empty(0, np.int64), {}
    asked = evidence.config.policy
    ground: Any = asked.t.ground if asked.t else "equal"
    distances = {name: t_closeness(table, ground, attribute=name).per_class for name in asked.sensitive}
    return table.subjects, distances


@dataclass(frozen=True)
class _Faces:
    """Where released faces are to be had for the page: rows of a release's manifest, or the evidence."""

    release: Folder | None
    rows: list[dict[str, Any]]
    evidence: Evidence | None

    def some(self, originals: bool) -> tuple[list[bytes], list[bytes] | None]:
        """Some released faces, drawn by their random names, and where it is asked for their originals."""
        rng = np.random.default_rng(0)
        if self.evidence is not None:
            drawn = rng.permutation(len(self.evidence))[:SHEET]
            sheet = self.evidence.released(drawn)
            return sheet, self.evidence.originals(self.evidence.row[drawn]) if originals else None
        assert self.release is not None
        drawn = rng.permutation(len(self.rows))[:SHEET]
        return [data for _, data in publish.read_images(self.release, [self.rows[i] for i in drawn])], None


def _baseline(url: str) -> list[tuple[str, float, float]]:
    """Where another audit's release lies between privacy and use; nothing for an audit without such figures."""
    with whole(url):
        report = json.loads(Folder(url).read("audit.json"))
        place = page.position([Figure(**row) for row in report.get("figures", [])])
    label = url.rstrip("/").rsplit("/", 1)[-1].removesuffix("-audit")
    return [] if place is None else [(label, place.utility, place.privacy)]


def _command(order: Order, private: bool) -> str:
    parts = ["facecrowd audit RELEASE", *(["--workspace WORKSPACE"] if private else [])]
    if order.depth != "checks":
        parts.append(f"--depth {order.depth}")
    parts += [f"--recognisers {','.join(order.recognisers)}"] if order.recognisers else []
    return " ".join([*parts, "--output AUDIT"])
