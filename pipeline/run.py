"""A run: what decides the content of each of its tables, and how a table is made, once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import pyarrow as pa

from facecrowd.pipeline import attributes, perturbation, preflight, ray_data, steps
from facecrowd.pipeline.attributes import Predictors
from facecrowd.pipeline.config import ReleaseConfig
from facecrowd.pipeline.photos import Listing
from facecrowd.pipeline.preflight import Network
from facecrowd.pipeline.progress import Progress
from facecrowd.pipeline.schema import PREDICTORS, VERSION, Manifest
from facecrowd.pipeline.storage import Folder, Parts, Workspace, fingerprint
from facecrowd.stages.runkey import RunKey


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


Execute = Callable[[ray_data.Step, Sequence[int], Progress], None]
"""Works off the given micro-batches of a step."""


@dataclass
class Run:
    """What a release is made of and where; ``names`` and ``again`` follow what the closed loop makes anew."""

    prepared: Prepared
    workspace: Workspace
    key: RunKey
    progress: Progress
    execute: Execute | None = None
    again: int = field(default=0, init=False)
    _session: Any = field(default=None, init=False)

    @property
    def config(self) -> ReleaseConfig:
        return self.prepared.config

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
        draws, bits = (self.salt, self.rendering().bits) if c.neural else ("", None)
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
        return [(network.name, network.sha256) for network in self.networks]

    @property
    def networks(self) -> tuple[Network, ...]:
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
        return self.drawn(self.again)

    def drawn(self, again: int) -> RunKey:
        return RunKey(self.key.digest("draws", f"{self.salt} again {again}" if again else self.salt))

    def parts(self, manifest: Manifest, run: str) -> Parts:
        return self.workspace.parts(manifest, self.names[run])

    @property
    def batches(self) -> int:
        return -(-len(self.prepared.listing.photos) // self.config.compute.micro_batch)

    def table(self, parts: Parts, count: int, make: Callable[[list[int]], None]) -> None:
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

    def written(self, parts: Parts, count: int, columns: Callable[[int], dict[str, Any]]) -> None:
        """A table that the driver writes: the columns of each part."""

        def make(missing: list[int]) -> None:
            for part in missing:
                parts.write(part, columns(part))

        self.table(parts, count, make)

    def made(self, parts: Parts, count: int, step: ray_data.Step) -> None:
        """A table that a step fills."""
        self.table(parts, count, partial(self.work, step))

    def work(self, step: ray_data.Step, missing: list[int]) -> None:
        """Work off these micro-batches of a step."""
        if missing and self.execute:
            self.execute(step, missing, self.progress)
        elif missing:
            self._open()
            ray_data.run(step, missing, self.progress)

    def _open(self) -> None:
        if self._session is None:
            self._session = ray_data.session(self.config.compute.address, self.config.compute.cpus)
            self._session.__enter__()

    def close(self) -> None:
        if self._session is not None:
            self._session.__exit__(None, None, None)
            self._session = None

    def predictor(self, purpose: str, run: str) -> str | None:
        """The predictor that speaks in a step, written down; None where none does."""
        found = {"predictor": self.prepared.predictors.steer, "judge": self.prepared.predictors.judge}[purpose]
        if found is None:
            return None
        rows = attributes.columns(found, purpose)
        self.written(self.parts(PREDICTORS, run), 1, lambda part: rows)
        return found.file

    def rendering(self) -> steps.Rendering:
        c = self.config
        steering = preflight.steering(c) if c.method.of_class or c.method.translated else None
        return steps.Rendering(
            c.method, self.draws, c.detect.crop_size, c.detect.models, steering, c.compute.gpus_per_worker
        )

    def take_over(self, manifest: Manifest, before: str, changed: Callable[[int, pa.Table], pa.Table]) -> None:
        """A table of the run before, as it is now."""
        old, new = self.workspace.parts(manifest, before), self.parts(manifest, "rendered")

        def columns(part: int) -> dict[str, Any]:
            table = changed(part, old.read(part))
            return {name: table[name] for name in table.column_names}

        self.written(new, len(old.there()), columns)
