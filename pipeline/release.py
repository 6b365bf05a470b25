"""The order of a release. Reads like the picture in the design: photos → faces → plan → rendered → audit → publish."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from facecrowd.pipeline import (
    attributes,
    leaks,
    perturbation,
    preflight,
    presets,
    publish,
    ray_data,
    steps,
    summary,
    verification,
    witnesses,
)
from facecrowd.pipeline import plan as planning
from facecrowd.pipeline.attributes import Predictors
from facecrowd.pipeline.audit import CLOAKED, IDENTITY_KEPT, Counts, audit
from facecrowd.pipeline.config import CLOAK, ReleaseConfig
from facecrowd.pipeline.errors import (
    ConfigError,
    InputError,
    LeakError,
    NotMetError,
    PolicyError,
    ReleaseError,
    StoreError,
)
from facecrowd.pipeline.perturbation import Perturbations
from facecrowd.pipeline.photos import Listing, listing
from facecrowd.pipeline.preflight import Network
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
from facecrowd.pipeline.schema import (
    FACES,
    JUDGED,
    LINK,
    MEMBERS,
    ORIGINALS,
    PERTURBATION,
    PHOTOS,
    PLAN,
    PREDICTORS,
    RENDERED,
    RENDERED_PHOTOS,
    SAMPLE,
    SURROGATES,
    VERSION,
    Manifest,
)
from facecrowd.pipeline.storage import Folder, Parts, Workspace, fingerprint
from facecrowd.pipeline.verification import Verified
from facecrowd.stages.runkey import RunKey
from facecrowd.stages.stage import OK, Stage

if TYPE_CHECKING:
    from facecrowd.stages.universal import Perturbation


@dataclass(frozen=True)
class Prepared:
    """A release whose input, models, policy and target have been looked at. Nothing has been written yet."""

    config: ReleaseConfig
    listing: Listing
    hashes: dict[str, str]
    predictors: Predictors
    renderer: tuple[Network, ...] = ()
    perturber: tuple[Network, ...] = ()
    verifier: str | None = None

    def lines(self) -> list[str]:
        """What a dry run says."""
        c, photos = self.config, len(self.listing.photos)
        attributes = [self.predictors.line()] if self.predictors != Predictors() else []
        missing = [n.name for n in (*self.renderer, *self.perturber) if not n.sha256]
        fetched = f"; not here yet and fetched first: {', '.join(missing)}" if missing else ""
        made = [f"rendered by {self.renderer[0].name}"] if self.renderer else []
        made += [perturbation.asked(c.perturb)] if c.perturb.on else []
        renderer = ["; ".join(made) + fetched] if made else []
        named = "" if self.listing.subjects == "clusters" else f" ({self.listing.named_subjects()} people)"
        return [
            f"input: {photos} photos, subjects from {self.listing.subjects}{named}",
            f"method: {c.method.name}, k: {c.policy.k}, output: {c.output}",
            preflight.models_line(c.detect, self.hashes),
            *renderer,
            *attributes,
            f"release: {c.release.path}, workspace: {c.workspace_path}",
            "everything checked; nothing was written",
        ]

    @property
    def workspace(self) -> Workspace:
        return Workspace(self.config.workspace_path, self.config.workspace.catalog)

    @property
    def target(self) -> Folder:
        return Folder(str(self.config.release.path))


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
    return _Run(prepared, workspace, workspace.key(), Progress(quiet=True)).began()


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


Execute = Callable[[ray_data.Step, Sequence[int], Progress], None]
"""Works off the given micro-batches of a step."""


def release(prepared: Prepared, progress: Progress, execute: Execute | None = None) -> Outcome:
    """Run a release to its end, or on from where a killed one stopped.

    execute : what works off the micro-batches; by default Ray, in a session of this job's own

    Raises PolicyError, WorkspaceError, UnfinishedError, …; one that misses its policy is an Outcome, no error.
    """
    workspace = prepared.workspace
    with workspace.locked():
        return _Run(prepared, workspace, workspace.create(), progress, execute).all()


@dataclass
class _Run:
    prepared: Prepared
    workspace: Workspace
    key: RunKey
    progress: Progress
    execute: Execute | None = None
    _session: Any = field(default=None, init=False)
    _again: int = field(default=0, init=False)
    _verified: Verified | None = field(default=None, init=False)

    @property
    def config(self) -> ReleaseConfig:
        return self.prepared.config

    # ------------------------------------------------------------------------------------------ what decides what

    @cached_property
    def names(self) -> dict[str, str]:
        """The run of each table: a hash of all that decides its content. Equal hashes are never made twice."""
        c = self.config
        photos = fingerprint(
            VERSION,
            # Workspaces that share a catalog must not take each other's commits for their own.
            self.workspace.folder.root,
            self.key.token("run", "key"),
            c.compute.micro_batch,
            [(p.photo, p.path, p.bytes, p.subject, p.attributes, p.state) for p in self.prepared.listing.photos],
        )
        detect = c.detect.model_dump(exclude={"models", "detector", "recogniser"})
        steer, judge = self._digests
        faces = fingerprint(photos, detect, c.detect.detector, self.prepared.hashes, steer)
        policy = c.policy.model_dump()
        people = (c.input.cluster_threshold, c.input.same_person)
        predicted = (self.prepared.listing.brought, c.attributes.unknown_margin)
        method = (c.method.name, c.method.select, c.method.planner if c.method.name == "translation" else "")
        plan = fingerprint(faces, policy, *method, self.prepared.listing.subjects, *people, *predicted)
        draws, bits = (self.salt, self._rendering().bits) if c.neural else ("", None)
        asked = (c.method.model_dump(), c.perturb.model_dump(), c.output, c.release.quality)
        rendered = fingerprint(plan, *asked, judge, self._renderer, draws, bits)
        return {
            "photos": photos,
            "faces": faces,
            "originals": fingerprint(plan, judge),
            "plan": plan,
            "rendered": rendered,
            "release": fingerprint(rendered, c.public(), self._place()),
        }

    @property
    def _digests(self) -> list[tuple[str, str] | None]:
        """What tells the predictor and the judge from others."""
        speakers = self.prepared.predictors
        return [p.digest if p else None for p in (speakers.steer, speakers.judge)]

    @property
    def _renderer(self) -> list[tuple[str, str]]:
        """What tells the networks that render and perturb from others."""
        return [(network.name, network.sha256) for network in self._networks]

    @property
    def _networks(self) -> tuple[Network, ...]:
        return (*self.prepared.renderer, *self.prepared.perturber)

    def _place(self) -> str:
        """Where the release goes, however the path was written."""
        target = self.prepared.target
        return str(target.local.resolve()) if target.local is not None else target.url

    @cached_property
    def salt(self) -> str:
        """What tells this release from any other of the same people: names and labels drawn for one say nothing about
        those of another. It knows no path, so the same release made elsewhere, or stored in another form, draws the
        same."""
        told = {name: value for name, value in self.config.public().items() if name != "compute"}
        told["release"] = {"identity": self.config.release.identity, "quality": self.config.release.quality}
        photos = [(p.photo, p.bytes, p.subject, p.attributes) for p in self.prepared.listing.photos]
        return fingerprint("release", told, photos, self._digests, self._renderer)

    def token(self, purpose: str, name: str, length: int) -> str:
        """A random name in this release alone."""
        return self.key.token(f"{purpose} {self.salt}", name, length)

    @property
    def draws(self) -> RunKey:
        """What generated faces are drawn by: a key of this release alone. By the same draws a release whose faces keep
        something of their photos would tell which face of another release stands for the same photo. What is rendered
        anew is drawn anew."""
        return self._draws(self._again)

    def _draws(self, again: int) -> RunKey:
        return RunKey(self.key.digest("draws", f"{self.salt} again {again}" if again else self.salt))

    def parts(self, manifest: Manifest, run: str) -> Parts:
        return self.workspace.parts(manifest, self.names[run])

    @property
    def batches(self) -> int:
        return -(-len(self.prepared.listing.photos) // self.config.compute.micro_batch)

    # -------------------------------------------------------------------------------------------------- the order

    def all(self) -> Outcome:
        done = self._published()
        publish.check_target(self.config, ours=self.began())
        if done is not None:
            return done
        listed = self.prepared.listing
        self.progress.say(f"photos: {len(listed.photos)}, subjects from: {listed.subjects}")
        if listed.skipped:
            passed = ", ".join(f"{count} {kind}" for kind, count in listed.skipped.items())
            self.progress.say(f"passed over, no photos: {passed}")
        try:
            self._photos()
            self._faces()
            plan = self._plan()
            self._render(plan)
            plan = self._verify(plan)
        finally:
            self._close()
        return self._publish(plan)

    def _table(self, parts: Parts, count: int, make: Callable[[list[int]], None]) -> None:
        """Make the parts that are missing, then commit all of them, once."""
        if self.workspace.committed(parts.manifest, parts.run):
            # Taken away since, as a damaged one is: what is made anew in its place is the same.
            if gone := sorted(set(range(count)) - parts.there()):
                self.progress.say(f"{parts.manifest.name}: {len(gone)} of {count} parts are gone and made anew")
                make(gone)
            return
        missing = sorted(set(range(count)) - parts.done())
        if missing and len(missing) < count:
            self.progress.say(f"{parts.manifest.name}: resuming, {count - len(missing)} of {count} parts are there")
        make(missing)
        self.workspace.commit(parts, count)

    def _on_ray(self, step: ray_data.Step) -> Callable[[list[int]], None]:
        def make(missing: list[int]) -> None:
            if missing and self.execute:
                self.execute(step, missing, self.progress)
            elif missing:
                self._open()
                ray_data.run(step, missing, self.progress)

        return make

    def _open(self) -> None:
        if self._session is None:
            self._session = ray_data.session(self.config.compute.address, self.config.compute.cpus)
            self._session.__enter__()

    def _close(self) -> None:
        if self._session is not None:
            self._session.__exit__(None, None, None)
            self._session = None

    def _photos(self) -> None:
        parts, size = self.parts(PHOTOS, "photos"), self.config.compute.micro_batch

        def make(missing: list[int]) -> None:
            for part in missing:
                chunk = self.prepared.listing.photos[part * size : (part + 1) * size]
                columns: dict[str, Any] = {
                    name: [getattr(p, name) for p in chunk]
                    for name in ("photo", "path", "bytes", "subject", "attributes")
                }
                parts.write(part, columns)

        self._table(parts, self.batches, make)

    def _predictor(self, purpose: str, run: str) -> str | None:
        """The predictor that speaks in a step, written down; None where none does."""
        found = {"predictor": self.prepared.predictors.steer, "judge": self.prepared.predictors.judge}[purpose]
        if found is None:
            return None
        parts, rows = self.parts(PREDICTORS, run), attributes.columns(found, purpose)

        def write(missing: list[int]) -> None:
            for part in missing:
                parts.write(part, rows)

        self._table(parts, 1, write)
        return found.file

    def _faces(self) -> None:
        photos, faces = self.parts(PHOTOS, "photos"), self.parts(FACES, "faces")
        step = ray_data.Step(
            "detect",
            steps.PhotoSource(photos),
            steps.detect_stages(self.config.detect, self._predictor("predictor", "faces")),
            steps.FaceSink(faces, self.key),
            at_once=steps.PHOTOS_AT_ONCE,
        )
        self._table(faces, self.batches, self._on_ray(step))

    def _plan(self) -> planning.Plan:
        """Classes are a function of the committed faces, so a resumed job computes the same ones again."""
        columns = ["face_id", "photo", "part", "face_index", "status", "reason", "embedding"]
        faces = self.parts(FACES, "faces").read_all(self.batches, columns)
        photos = self.parts(PHOTOS, "photos").read_all(self.batches, ["photo", "subject", "attributes"])
        steer, inferred = self.prepared.predictors.steer, {}
        if steer is not None:
            found = predictions(self.parts(FACES, "faces"), self.batches)
            inferred = attributes.inferred(steer, found, self.config.policy, self.config.attributes.unknown_margin)
        plan = planning.make(self.config, self.prepared.listing.subjects, photos, faces, inferred, self.key)
        written, members = self.parts(PLAN, "plan"), self.parts(MEMBERS, "plan")

        def write_plan(missing: list[int]) -> None:
            for part in missing:
                written.write(part, plan.part_columns(part))

        def write_members(missing: list[int]) -> None:
            for part in missing:
                members.write(part, plan.members_columns(part, steps.CLASSES_PER_PART))

        self._table(written, self.batches, write_plan)
        if self.config.method.of_class:
            self._table(members, self._member_parts(plan), write_members)
        self.progress.say(
            f"plan: {plan.subjects.count} subjects, {plan.classes} classes, {len(plan.kept)} faces to release, "
            f"{len(plan.status) - len(plan.kept)} rows left out"
        )
        if left := preflight.untranslatable(self.config):
            self.progress.say(
                f"WARNING: the translator cannot change {', '.join(left)}: the pixels keep what the originals show, "
                "whatever is released"
            )
        if plan.planned and (swapped := [choice["attribute"] for choice in plan.planned.choices if choice["flipped"]]):
            self.progress.say(f"plan: swapped in everybody (keep it to yourself): {', '.join(swapped)}")
        return plan

    @staticmethod
    def _member_parts(plan: planning.Plan) -> int:
        return -(-plan.classes // steps.CLASSES_PER_PART)

    def _render(self, planned: planning.Plan) -> None:
        c = self.config
        judge = self._predictor("judge", "rendered")
        step, manifest, count = self._making(planned, judge)
        self._table(self.parts(manifest, "rendered"), count, self._on_ray(step))
        if c.method.of_class:
            made = self.parts(SURROGATES, "rendered").read_all(count, ["realised"])["realised"].to_pylist()
            self._say_realised(made)
        self._spread(planned)
        self._blend(judge)
        if judge is not None:
            originals = self.parts(ORIGINALS, "originals")
            look = ray_data.Step(
                "look",
                steps.LookSource(self.parts(PLAN, "plan"), self.parts(FACES, "faces")),
                steps.attributes(c.detect, judge, column="crop"),
                steps.LookSink(originals),
            )
            self._table(originals, self.batches, self._on_ray(look))

    def _making(
        self, planned: planning.Plan, judge: str | None, picks: tuple[tuple[int, int, str], ...] | None = None
    ) -> tuple[ray_data.Step, Manifest, int]:
        """The step that makes faces, the table it fills, and in how many parts; ``picks``: of some rows alone."""
        c = self.config
        # In photo output what is judged is the photo, later.
        judge = judge if c.output == "crop" else None
        if c.method.of_class:
            name, stages = "surrogates" if c.method.generated else "average", self._surrogates
            source, manifest, count = self._classes(), SURROGATES, self._member_parts(planned)
            sink: ray_data.Sink = steps.SurrogateSink(self.parts(SURROGATES, "rendered"))
        else:
            name, stages = "render", self._altered
            crops = steps.CropSource(self.parts(PLAN, "plan"), self.parts(FACES, "faces"))
            source = self._wanted(crops) if c.method.translated and not c.method.keeps_identity else crops
            manifest, count = RENDERED, self.batches
            sink = steps.RenderedSink(self.parts(RENDERED, "rendered"), c.detect.crop_size)
        if picks is not None:
            source, count = steps.SampleSource(source, picks), -(-len(picks) // steps.IMAGES_PER_PART)
        return self._drawing(name, source, stages, sink, judge, planned), manifest, count

    def _spread(self, planned: planning.Plan) -> None:
        """Give every face its class's, where faces are of classes."""
        c = self.config
        if not c.method.of_class:
            return
        surrogates, rendered = self.parts(SURROGATES, "rendered"), self.parts(RENDERED, "rendered")
        # Which variant stands for a face stays as it was when some are rendered anew.
        draws, variants, own = self._draws(0), c.method.surrogates, bool(c.method.keep)
        source = steps.SurrogateSource(self.parts(PLAN, "plan"), surrogates, draws, variants, own)
        sink = steps.RenderedSink(rendered, c.detect.crop_size)
        step = ray_data.Step("render", source, (), sink, at_once=steps.FACES_AT_ONCE)
        self._table(rendered, self.batches, self._on_ray(step))

    def _blend(self, judge: str | None) -> None:
        """Put every face into its photo, where photos are released."""
        c = self.config
        if c.output == "crop":
            return
        faces, rendered = self.parts(FACES, "faces"), self.parts(RENDERED, "rendered")
        photos = self.parts(RENDERED_PHOTOS, "rendered")
        blend = ray_data.Step(
            "blend",
            steps.BlendSource(self.parts(PHOTOS, "photos"), faces, rendered),
            steps.blend_stages(c.detect, c.release.quality, c.method),
            steps.PhotoSink(photos),
        )
        self._table(photos, self.batches, self._on_ray(blend))
        judged = self.parts(JUDGED, "rendered")
        look_again = ray_data.Step(
            "judge",
            steps.BlendedSource(faces, rendered, photos),
            steps.judge_photo_stages(c.detect, judge),
            steps.JudgedSink(judged, c.detect.crop_size),
        )
        self._table(judged, self.batches, self._on_ray(look_again))

    # ----------------------------------------------------------------------------------------------------- verify

    def _verify(self, plan: planning.Plan) -> planning.Plan:
        """Hold what was rendered against the tolerances; render anew what fails, then leave it out."""
        c = self.config
        if not c.verify.on:
            return plan
        recogniser, judge = self.prepared.verifier, self.prepared.predictors.judge
        rounds: list[tuple[dict[str, Any], ...]] = []

        def look(
            what: str, seen: verification.Seen | None = None
        ) -> tuple[verification.Seen, list[verification.Found]]:
            seen = seen or self._seen(plan, recogniser)
            found = self._measured(plan, seen)
            rounds.append(tuple(one.as_dict() for one in found))
            told = ", ".join(f"{verification.NAMES[o.name]} {o.share:.1%} (at most {o.asked:.1%})" for o in found)
            self.progress.say(f"verify, {what}: {told}")
            return seen, found

        seen, found = look("as rendered")
        anew, tries = 0, c.verify.retries if self._varies else 0
        while not all(one.met for one in found) and self._again < tries:
            self._again += 1
            anew += self._render_anew(plan, seen.row[verification.failing(found)])
            seen, found = look(f"rendered anew, {self._again} of {tries}")
        gone: dict[int, str] = {}
        while not all(one.met for one in found) and len(seen.row):
            gone |= self._failures(plan, seen, found)
            plan = verification.without(plan, gone)
            seen = verification.of(seen, np.flatnonzero(~np.isin(seen.row, list(gone))))
            found = self._measured(plan, seen)
        if not len(seen.row):
            raise NotMetError(
                "nothing released: no faces are left that are within the tolerance: "
                + ", ".join(
                    f"{verification.NAMES[one['name']]} {one['share']:.1%}, at most {one['asked']:.1%} asked"
                    for one in rounds[-1]
                )
            )
        if gone:
            self._leave_out(plan, gone)
            # A photo shows several faces, and is another picture where one of them is not replaced.
            look("what is left", seen if c.output == "crop" else None)
        reasons = Counter(gone.values())
        self._verified = verification.Verified(
            recogniser,
            judge.name if judge and c.verify.attributes is not None else None,
            tuple(rounds),
            anew,
            reasons[verification.LEFT_OUT],
            reasons[verification.BROKEN],
        )
        return plan

    @property
    def _varies(self) -> bool:
        """Whether other draws make other faces. One vector for all is fitted once."""
        perturbed = self.config.perturb.name
        return perturbed != "universal" and (self.config.method.drawn or perturbed in ("tip-im", "advnoise"))

    def _seen(self, plan: planning.Plan, recogniser: str | None) -> verification.Seen:
        c = self.config
        crop, faces, rendered = c.output == "crop", self.parts(FACES, "faces"), self.parts(RENDERED, "rendered")
        now = released_faces(plan, rendered if crop else self.parts(JUDGED, "rendered"), self.batches, None)
        judge = self.prepared.predictors.judge
        shows = known = None
        if c.verify.attributes is not None and judge is not None and now.attributes is not None:
            shows = judge.values(now.attributes)
            known = judge.values(predictions(self.parts(ORIGINALS, "originals"), self.batches))
        then: dict[str, np.ndarray] = {}
        if c.perturb.on:
            done = Perturbations.read(self.workspace, self.names["rendered"], self.batches, c.perturb)
            then = {"before": done.embedding[now.row]}
            if judge is not None and shows is not None:
                then["shows_before"] = judge.values(done.attributes[now.row])
        if recogniser is None:
            return verification.Seen(now.row, shows=shows, known=known, **then)
        blended = steps.BlendedSource(faces, rendered, self.parts(RENDERED_PHOTOS, "rendered"))
        todo: tuple[tuple[Any, ray_data.Source, str], ...] = (
            (
                ("rendered", self.names["rendered"]),
                steps.ImageSource(rendered) if crop else blended,
                "image" if crop else "photo",
            ),
            (("originals", self.names["faces"]), steps.OriginalSource(faces), "crop"),
        )
        after, before = (
            witnesses.look(self.workspace, run, source, column, self.batches, c.detect, (recogniser,), self._work)
            for run, source, column in todo
        )
        at = {face: i for i, face in enumerate(after.face_id)}
        chosen = [at[face] for face in plan.face_id[now.row]]
        vectors = (after.embeddings[recogniser][chosen], before.embeddings[recogniser])
        return verification.Seen(now.row, *vectors, shows, known, **then)

    def _measured(self, plan: planning.Plan, seen: verification.Seen) -> list[verification.Found]:
        return verification.measure(self.config.verify, plan, seen, self.key.generator("verify", "recognition"))

    def _failures(
        self, plan: planning.Plan, seen: verification.Seen, found: list[verification.Found]
    ) -> dict[int, str]:
        """Rows of the plan to leave out, each with its reason: those that fail, and classes that break without them."""
        unit = plan.class_id[seen.row] if self.config.method.of_class else seen.row
        out = verification.fewest(found, unit, lambda rest: self._measured(plan, verification.of(seen, rest)))
        gone = dict.fromkeys(seen.row[out].tolist(), verification.LEFT_OUT)
        broken = verification.broken(self.config, verification.without(plan, gone))
        return gone | dict.fromkeys(broken.tolist(), verification.BROKEN)

    def _render_anew(self, plan: planning.Plan, rows: np.ndarray) -> int:
        """Render the faces of these rows anew, or of their classes; all else is taken over. Returns how many."""
        method, before = self.config.method, self.names["rendered"]
        if method.of_class:
            classes = {str(c) for c in plan.class_id[rows]}
            picks = tuple(pick for pick in self._class_rows(plan) if pick[2] in classes)
        else:
            picks = tuple(sorted((int(plan.part[r]), int(plan.row[r]), str(plan.subject_id[r])) for r in rows))
        run = fingerprint(before, "anew", self._again, picks)
        self.names["rendered"] = fingerprint(run, "alone")
        step, manifest, count = self._making(plan, self._predictor("judge", "rendered"), picks)
        alone = self.parts(manifest, "rendered")
        self._table(alone, count, self._on_ray(step))
        self.names["rendered"] = run
        fresh = alone.read_all(count)
        place = {pick[:2]: i for i, pick in enumerate(picks)}

        def changed(part: int, table: pa.Table) -> pa.Table:
            index = [place[part, row] + len(table) if (part, row) in place else row for row in range(len(table))]
            return pa.concat_tables([table, fresh]).take(index)

        self._take_over(manifest, before, changed)
        self._spread(plan)
        self._blend(self._predictor("judge", "rendered"))
        return len(picks)

    def _leave_out(self, plan: planning.Plan, gone: dict[int, str]) -> None:
        """Write the plan and what is rendered without these rows."""
        before, told = self.names["rendered"], sorted(gone.items())
        self.names["plan"] = fingerprint(self.names["plan"], "left out", told)
        self.names["rendered"] = fingerprint(before, "left out", told)
        written = self.parts(PLAN, "plan")

        def write_plan(missing: list[int]) -> None:
            for part in missing:
                written.write(part, plan.part_columns(part))

        self._table(written, self.batches, write_plan)
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

        if self.config.method.of_class:
            self._take_over(SURROGATES, before, lambda part, table: table)
        if self.config.perturb.name == "universal":
            self._take_over(PERTURBATION, before, lambda part, table: table)
        self._take_over(RENDERED, before, changed)
        self._blend(self._predictor("judge", "rendered"))
        self.progress.say(f"verify: {len(gone)} faces left out")

    def _take_over(self, manifest: Manifest, before: str, changed: Callable[[int, pa.Table], pa.Table]) -> None:
        """A table of the run before, as it is now."""
        old, new = self.workspace.parts(manifest, before), self.parts(manifest, "rendered")

        def write(missing: list[int]) -> None:
            for part in missing:
                table = changed(part, old.read(part))
                new.write(part, {name: table[name] for name in table.column_names})

        self._table(new, len(old.there()), write)

    def _work(self, step: ray_data.Step, missing: list[int]) -> None:
        self._on_ray(step)(missing)

    def _say_realised(self, faces: list[list[tuple[str, bool]] | None]) -> None:
        """How often the class's released attributes could be given to its faces."""
        seen: dict[str, list[bool]] = {}
        for name, shows in (pair for face in faces for pair in face or ()):
            seen.setdefault(name, []).append(shows)
        told = ", ".join(f"{name} in {sum(shows)} of {len(shows)}" for name, shows in sorted(seen.items()))
        if told:
            self.progress.say(f"surrogates show, as the steering predictor sees them: {told}")

    def _classes(self) -> ray_data.Source:
        """The classes, a row for each face that is to be made of them."""
        c = self.config
        classes = steps.MemberSource(self.parts(MEMBERS, "plan"), self.parts(FACES, "faces"))
        if not c.method.generated:
            return classes
        return steps.LatentSource(
            classes,
            self.parts(PLAN, "plan"),
            self.key,
            c.method.surrogates,
            own=bool(c.method.keep),
            priors=attributes.priors(preflight.steering(c), c.policy.quasi_identifiers, c.detect.models),
        )

    def _surrogates(self, judge: str | None = None, perturb: Stage | None = None) -> tuple[Stage, ...]:
        """What makes the faces of the classes, each once."""
        c = self.config
        if c.method.generated:
            return steps.latent_stages(self._rendering(), c.detect, c.release.quality, judge, perturb)
        return steps.average_stages(c.detect, c.release.quality, judge, perturb)

    def _altered(self, judge: str | None = None, perturb: Stage | None = None) -> tuple[Stage, ...]:
        """What makes a face of each original."""
        c = self.config
        if c.method.translated:
            return steps.translate_stages(self._rendering(), c.detect, c.release.quality, judge, perturb)
        if c.method.generated:
            return steps.search_stages(self._rendering(), c.detect, c.release.quality, judge, perturb)
        return steps.obscure_stages(c.detect, c.method, c.release.quality, self.key, judge, perturb)

    def _drawing(
        self,
        name: str,
        source: ray_data.Source,
        stages: Callable[..., tuple[Stage, ...]],
        sink: ray_data.Sink,
        judge: str | None,
        plan: planning.Plan,
    ) -> ray_data.Step:
        """A step that makes faces, and perturbs them where that is asked for: those of a class once for all of it."""
        c = self.config
        perturb = None
        if c.perturb.on:
            vector = self._universal(source, stages(), plan) if c.perturb.name == "universal" else None
            rendering = self._rendering()
            perturb = steps.perturb_stage(c.perturb, rendering, c.release.quality, c.method.of_class, vector)
        made = steps.together(stages(judge, perturb), c.compute.gpus_per_worker)
        return ray_data.Step(name, source, made, sink, at_once=steps.FACES_AT_ONCE)

    def _universal(self, source: ray_data.Source, stages: tuple[Stage, ...], plan: planning.Plan) -> Perturbation:
        """The vector of this release, fitted once on a sample of its faces as they are rendered."""
        c = self.config
        sample, fitted = self.parts(SAMPLE, "rendered"), self.parts(PERTURBATION, "rendered")
        picks = self._picks(plan)
        if c.perturb.surrogates and len({person for _, _, person in picks}) < 2:
            raise ConfigError(
                f"perturb.surrogates: a universal vector makes recognisers take people for others, so its sample of "
                f"{len(picks)} faces needs two people, or classes, at least"
            )
        count = -(-len(picks) // steps.IMAGES_PER_PART)
        drawn = steps.together(steps.sample_stages(stages), c.compute.gpus_per_worker)
        taken = ray_data.Step(
            "sample", steps.SampleSource(source, picks), drawn, steps.SampleSink(sample), steps.FACES_AT_ONCE
        )
        self._table(sample, count, self._on_ray(taken))
        fit = steps.fit_stage(c.perturb, self._rendering(), c.release.quality, preflight.steering(c))
        work = steps.together((fit,), c.compute.gpus_per_worker)
        sink = steps.PerturbationSink(fitted)
        self._table(fitted, 1, self._on_ray(ray_data.Step("fit", steps.FitSource(sample, count), work, sink)))
        vector = steps.perturbation(fitted.read(0))
        self.progress.say(perturbation.fitted(vector.about))
        self._keep(vector)
        return vector

    def _picks(self, plan: planning.Plan) -> tuple[tuple[int, int, str], ...]:
        """The sample, drawn from all faces that are going to be perturbed: where their source has them, whom they show.
        Of classes, each is a person of its own."""
        out = self._class_rows(plan)
        if not self.config.method.of_class:
            out = [(int(plan.part[row]), int(plan.row[row]), str(plan.subject_id[row])) for row in plan.kept]
        count = min(self.config.perturb.sample, len(out))
        chosen = self.draws.generator("perturb", "sample").permutation(len(out))[:count]
        return tuple(out[at] for at in sorted(chosen))

    def _class_rows(self, plan: planning.Plan) -> list[tuple[int, int, str]]:
        """Where the source of the classes has the faces that are made of them: part, row and class."""
        method, out = self.config.method, []
        for part in range(self._member_parts(plan)) if method.of_class else ():
            classes = plan.members_columns(part, steps.CLASSES_PER_PART)["class_id"]
            shown = classes if method.keep else np.repeat(np.unique(classes), method.surrogates)
            out += [(part, row, str(class_id)) for row, class_id in enumerate(shown)]
        return out

    def _keep(self, vector: Perturbation) -> None:
        """The vector as files of the workspace, to be looked at and used elsewhere."""
        folder, name = self.workspace.folder.child("perturbations"), self.names["rendered"]
        if folder.exists(f"{name}.png"):
            return
        with tempfile.TemporaryDirectory(prefix="facecrowd-") as scratch:
            file = Path(scratch) / "vector.safetensors"
            vector.save(file)
            folder.write(file.read_bytes(), f"{name}.safetensors")
        folder.write(vector.picture(), f"{name}.png")

    def _wanted(self, crops: steps.CropSource) -> steps.WantedSource:
        """Faces with what they shall show, of what the translator can change."""
        c = self.config
        priors = attributes.priors(preflight.steering(c), c.policy.quasi_identifiers, c.detect.models)
        able = preflight.translatable(c)
        return steps.WantedSource(crops, self.draws, {n: share for n, share in priors.items() if n in able})

    def _rendering(self) -> steps.Rendering:
        c = self.config
        steering = preflight.steering(c) if c.method.of_class or c.method.translated else None
        return steps.Rendering(
            c.method, self.draws, c.detect.crop_size, c.detect.models, steering, c.compute.gpus_per_worker
        )

    # ---------------------------------------------------------------------------------------------------- publish

    def _record(self) -> str:
        return f"releases/{self.names['release']}.json"

    def began(self) -> bool:
        """Whether this very release reached its publication before."""
        return self.workspace.folder.exists(self._record())

    def _published(self) -> Outcome | None:
        """The finished release of this very run, where it still is as it was published."""
        folder = self.workspace.folder
        if not self.began():
            return None
        card = Record.read(folder, self._record()).card
        target = self.prepared.target
        if not card or not target.exists(publish.CARD):
            return None
        if hashlib.sha256(target.read(publish.CARD)).hexdigest() != card:
            raise ReleaseError(f"release {target.url}: changed since it was published; remove it to publish again")
        return Outcome(target, folder, json.loads(target.read(publish.AUDIT)), reused=True)

    def _publish(self, plan: planning.Plan) -> Outcome:
        target, config = self.prepared.target, self.config
        counts = Counts(len(self.prepared.listing.photos), self._named(plan))
        record = Record(
            "",
            self.config,
            self.names,
            self.batches,
            counts,
            plan.subjects.source,
            plan.subjects.split_rate,
            plan.subjects.merged,
            self.prepared.listing.brought,
            self._networks,
            plan.planned,
            self._verified,
        )
        record.write(self.workspace.folder, self._record())
        with tempfile.TemporaryDirectory(prefix="facecrowd-") as scratch:
            publication = publish.Publication(target, Path(scratch))
            form = publish.storage_format(config, int(plan.images.sum()))
            names: dict[str, list[str]] = {}
            images = self._images(plan, names)
            note = IDENTITY_KEPT if config.method.keeps_identity else CLOAKED if config.method.name == CLOAK else None
            publication.write_images(images, int(plan.images.sum()), form, config.release.shard_images, note)
            self.progress.say(f"publish: {len(publication.rows)} images as {form}")
            self._link(plan, names, publication.rows)
            seen = released_faces(
                plan,
                self.parts(RENDERED if config.output == "crop" else JUDGED, "rendered"),
                self.batches,
                rendered_hashes(self.parts(RENDERED, "rendered"), self.batches),
            ).repeated(plan.images)
            if not len(seen.row):
                raise ReleaseError(f"nothing could be released: {self._first_failure(plan)}")
            used = [*model_rows(config, self.prepared.hashes), *self.prepared.predictors.rows()]
            used += [asdict(network) for network in self._networks]
            looked = what_was_looked_at(record, self.workspace, self.prepared.predictors)
            report = audit(config, plan, seen, self.key, counts, len(publication.rows), used, looked)
            report = verification.stated(report, self._verified)
            for line in what_had_to_change(config, plan, seen, looked, report):
                self.progress.say(f"keep it to yourself: {line}")
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
                self._sources(plan),
                self._originals(),
                owners={name: str(plan.subject_id[row]) for row in plan.kept for name in names.get(ids[row], [])},
            )
            if config.method.of_class:
                # A perturbation hides a face from the very recogniser that would know it again.
                seen_by = "embedding_before" if config.perturb.on else "embedding"
                parts = self.parts(SURROGATES, "rendered").read_all(self._member_parts(plan), ["class_id", seen_by])
                surrogates = parts.rename_columns(["class_id", "embedding"])
                what = "the face of class {} is one member's, not a mean of several"
                hits += [
                    leaks.Leak("original pixels", "images", what.format(c)) for c in lone_surrogates(plan, surrogates)
                ]
            if hits:
                raise LeakError(f"release not published: {summary.leak_lines([asdict(hit) for hit in hits])}")
            title = f"facecrowd {summary.made_by(report)} release"
            card = publication.finish(config, title, summary.description(report))
        replace(record, card=card).write(self.workspace.folder, self._record())
        self._warn_of_others(plan)
        return Outcome(target, self.workspace.folder, report)

    def _first_failure(self, plan: planning.Plan) -> str:
        """Why a face that was to be released is not."""
        parts = self.parts(RENDERED if self.config.output == "crop" else JUDGED, "rendered")
        reasons = parts.read_all(self.batches, ["reason"])["reason"].to_pylist()
        return next((reasons[row] for row in plan.kept if reasons[row]), "no face was found in it")

    def _images(self, plan: planning.Plan, names: dict[str, list[str]]) -> Iterator[publish.Image]:
        """Every image to release under its random name; ``names`` gathers them by face id or photo."""
        crop = self.config.output == "crop"
        source, ids = ("face_id", plan.face_id) if crop else ("photo", plan.photo)
        rows_of: dict[str, list[int]] = {}
        for row in plan.kept:
            rows_of.setdefault(ids[row], []).append(int(row))
        parts = self.parts(RENDERED if crop else RENDERED_PHOTOS, "rendered")
        for part in range(self.batches):
            for image in parts.read(part, [source, "status", "image", "width", "height"]).to_pylist():
                rows = rows_of.get(image[source], [])
                # A photo without anybody's face is not released: nobody is known to be hidden in it.
                if image["status"] != OK or not rows:
                    continue
                # A photo of several people carries the label and the attributes of none.
                label, shown = self._label(plan, rows[0]) if len(rows) == 1 else ("", {})
                drawn = [image[source], *(f"{image[source]}#{i}" for i in range(1, plan.images[rows[0]]))]
                names[image[source]] = [self.token("name", d, 32) for d in drawn[: plan.images[rows[0]]]]
                for name in names[image[source]]:
                    yield publish.Image(name, image["image"], image["width"], image["height"], label, shown)

    def _label(self, plan: planning.Plan, row: int) -> tuple[str, dict[str, str]]:
        """The identity and the attributes that a released face carries."""
        identity = {
            "none": "",
            "class": self.token("class", str(plan.class_id[row]), 16),
            "pseudonym": self.token("pseudonym", plan.subject_id[row], 16),
        }[self.config.release.identity]
        return identity, {n: values[row] for n, values in plan.released.items() if values[row] is not None}

    def _link(self, plan: planning.Plan, names: dict[str, list[str]], images: list[dict[str, Any]]) -> None:
        """Keep, privately, which face every released image shows; ``images``: the rows of the release's manifest."""
        parts, size = self.parts(LINK, "release"), steps.IMAGES_PER_PART
        ids = plan.face_id if self.config.output == "crop" else plan.photo
        rows_of: dict[str, list[int]] = {}
        for row in plan.kept:
            for name in names.get(ids[row], []):
                rows_of.setdefault(name, []).append(int(row))

        def write(missing: list[int]) -> None:
            for part in missing:
                shown = [
                    (row, image) for image in images[part * size : (part + 1) * size] for row in rows_of[image["name"]]
                ]
                rows = [row for row, _ in shown]
                columns = {name: getattr(plan, name)[rows] for name in ("face_id", "photo", "part", "row")}
                public = {name: [image[name] for _, image in shown] for name in ("name", "file", "sha256")}
                parts.write(part, {**columns, **public})

        self._table(parts, -(-len(images) // size), write)

    def _warn_of_others(self, plan: planning.Plan) -> None:
        """Say what intersecting this release with others of the same people would leave of their crowds."""
        if self.config.method.name == "translation":
            self._warn_of_epsilons()
        if not self.config.method.of_class:
            return
        paths: dict[str, list[int]] = {}
        for subject, class_id in zip(plan.subject_id[plan.kept], plan.class_id[plan.kept], strict=True):
            paths.setdefault(subject, [int(class_id)])
        others = 0
        folder = self.workspace.folder.child("releases")
        for name in folder.names():
            record = Record.read(folder, name)
            if not record.card or not record.config.method.of_class or record.runs["plan"] == self.names["plan"]:
                continue
            others += 1
            rows = self.workspace.parts(PLAN, record.runs["plan"]).read_all(record.parts, ["subject_id", "class_id"])
            theirs = dict(zip(rows["subject_id"].to_pylist(), rows["class_id"].to_pylist(), strict=True))
            for subject, path in paths.items():
                path.append(theirs.get(subject, -1))
        crowds = Counter(tuple(path) for path in paths.values())
        below = sum(n for n in crowds.values() if n < (self.config.policy.k or 1))
        if others and below:
            self.progress.say(
                f"WARNING: {others} other k-same releases of these people were made from this workspace. Who holds all "
                f"of them and can tell people across them leaves {below} people a crowd under k (the smallest: "
                f"{min(crowds.values())}); the bound holds for each release alone"
            )

    def _warn_of_epsilons(self) -> None:
        """Say what several translations of the same people tell together."""
        folder = self.workspace.folder.child("releases")
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
        self.progress.say(
            f"WARNING: {len(spent)} different translations of these people were released from this workspace: {total}. "
            "Who holds several can join their rows by the pixels, whatever the identities say; k, l and t hold for "
            "each release alone"
        )

    def _named(self, plan: planning.Plan) -> int:
        listed = self.prepared.listing
        return plan.subjects.count if listed.subjects == "clusters" else listed.named_subjects()

    def _sources(self, plan: planning.Plan) -> set[str]:
        """Names that must not turn up in a release."""
        names = {p.photo for p in self.prepared.listing.photos} | {p.path for p in self.prepared.listing.photos}
        return names | set(plan.subject_id[plan.kept]) | {os.path.basename(name) for name in names}

    def _originals(self) -> set[str]:
        """Hashes of the crops kept in the workspace, less those of faces that a translator found nothing to change in:
        what is released of them is declared, and counted, as their originals encoded anew. With method none all are."""
        hashes: set[str] = set()
        if self.config.method.name == CLOAK:
            return hashes
        for part in range(self.batches):
            crops = self.parts(FACES, "faces").read(part, ["crop"])["crop"].to_pylist()
            passes = self.parts(RENDERED, "rendered").read(part, ["passes"])["passes"].to_pylist()
            pairs = zip(crops, passes, strict=True)
            hashes |= {hashlib.sha256(crop).hexdigest() for crop, taken in pairs if crop is not None and taken != 0}
        return hashes
