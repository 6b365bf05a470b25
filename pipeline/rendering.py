"""The faces of a release: of each class once or of each original, perturbed where asked, and put into photos."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from facecrowd.pipeline import attributes, perturbation, preflight, ray_data, steps
from facecrowd.pipeline import plan as planning
from facecrowd.pipeline.errors import ConfigError
from facecrowd.pipeline.run import Run
from facecrowd.pipeline.schema import (
    FACES,
    JUDGED,
    MEMBERS,
    ORIGINALS,
    PERTURBATION,
    PHOTOS,
    PLAN,
    RENDERED,
    RENDERED_PHOTOS,
    SAMPLE,
    SURROGATES,
    Manifest,
)
from facecrowd.stages.encode import Encode
from facecrowd.stages.stage import Stage

if TYPE_CHECKING:
    from facecrowd.stages.universal import Perturbation


def render(run: Run, planned: planning.Plan) -> None:
    """Make every face of the plan, and have the judge look at the originals beside."""
    c = run.config
    judge = run.predictor("judge", "rendered")
    step, manifest, count = making(run, planned, judge)
    run.made(run.parts(manifest, "rendered"), count, step)
    if c.method.of_class:
        made = run.parts(SURROGATES, "rendered").read_all(count, ["realised"])["realised"].to_pylist()
        _say_realised(run, made)
    spread(run, planned)
    blend(run, judge)
    if judge is not None:
        originals = run.parts(ORIGINALS, "originals")
        look = ray_data.Step(
            "look",
            steps.LookSource(run.parts(PLAN, "plan"), run.parts(FACES, "faces")),
            steps.attributes(c.detect, judge, column="crop"),
            steps.LookSink(originals),
        )
        run.made(originals, run.batches, look)


def making(
    run: Run, planned: planning.Plan, judge: str | None, picks: tuple[tuple[int, int, str], ...] | None = None
) -> tuple[ray_data.Step, Manifest, int]:
    """The step that makes faces, the table it fills, and in how many parts; ``picks``: of some rows alone."""
    c = run.config
    # In photo output what is judged is the photo, later.
    judge = judge if c.output == "crop" else None
    if c.method.of_class:
        name, render = "surrogates" if c.method.generated else "average", _surrogates(run)
        source, manifest, count = _classes(run), SURROGATES, member_parts(planned)
        sink: ray_data.Sink = steps.SurrogateSink(run.parts(SURROGATES, "rendered"))
    else:
        name, render = "render", _altered(run)
        crops = steps.CropSource(run.parts(PLAN, "plan"), run.parts(FACES, "faces"))
        source = _wanted(run, crops) if c.method.translated and not c.method.keeps_identity else crops
        manifest, count = RENDERED, run.batches
        sink = steps.RenderedSink(run.parts(RENDERED, "rendered"), c.detect.crop_size)
    if picks is not None:
        source, count = steps.SampleSource(source, picks), -(-len(picks) // steps.IMAGES_PER_PART)
    return _drawing(run, name, source, render, sink, judge, planned), manifest, count


def spread(run: Run, planned: planning.Plan) -> None:
    """Give every face its class's, where faces are of classes."""
    c = run.config
    if not c.method.of_class:
        return
    surrogates, rendered = run.parts(SURROGATES, "rendered"), run.parts(RENDERED, "rendered")
    # Which variant stands for a face stays as it was when some are rendered anew.
    draws, variants, own = run.drawn(0), c.method.surrogates, bool(c.method.keep)
    source = steps.SurrogateSource(run.parts(PLAN, "plan"), surrogates, draws, variants, own)
    sink = steps.RenderedSink(rendered, c.detect.crop_size)
    step = ray_data.Step("render", source, (), sink, at_once=steps.FACES_AT_ONCE)
    run.made(rendered, run.batches, step)


def blend(run: Run, judge: str | None) -> None:
    """Put every face into its photo, where photos are released."""
    c = run.config
    if c.output == "crop":
        return
    faces, rendered = run.parts(FACES, "faces"), run.parts(RENDERED, "rendered")
    photos = run.parts(RENDERED_PHOTOS, "rendered")
    put = ray_data.Step(
        "blend",
        steps.BlendSource(run.parts(PHOTOS, "photos"), faces, rendered),
        steps.blend_stages(c.detect, c.release.quality, c.method),
        steps.PhotoSink(photos),
    )
    run.made(photos, run.batches, put)
    judged = run.parts(JUDGED, "rendered")
    look_again = ray_data.Step(
        "judge",
        steps.BlendedSource(faces, rendered, photos),
        steps.judge_photo_stages(c.detect, judge),
        steps.JudgedSink(judged, c.detect.crop_size),
    )
    run.made(judged, run.batches, look_again)


def _say_realised(run: Run, faces: list[list[tuple[str, bool]] | None]) -> None:
    """How often the class's released attributes could be given to its faces."""
    seen: dict[str, list[bool]] = {}
    for name, shows in (pair for face in faces for pair in face or ()):
        seen.setdefault(name, []).append(shows)
    told = ", ".join(f"{name} in {sum(shows)} of {len(shows)}" for name, shows in sorted(seen.items()))
    if told:
        run.progress.say(f"surrogates show, as the steering predictor sees them: {told}")


def _classes(run: Run) -> ray_data.Source:
    """The classes, a row for each face that is to be made of them."""
    c = run.config
    classes = steps.MemberSource(run.parts(MEMBERS, "plan"), run.parts(FACES, "faces"))
    if not c.method.generated:
        return classes
    return steps.LatentSource(
        classes,
        run.parts(PLAN, "plan"),
        run.key,
        c.method.surrogates,
        own=bool(c.method.keep),
        priors=attributes.priors(preflight.steering(c), c.policy.quasi_identifiers, c.detect.models),
    )


def _surrogates(run: Run) -> tuple[Stage, ...]:
    """What makes the faces of the classes, each once."""
    c = run.config
    return steps.latent_stages(run.rendering()) if c.method.generated else steps.average_stages(c.detect)


def _altered(run: Run) -> tuple[Stage, ...]:
    """What makes a face of each original."""
    method = run.config.method
    if method.translated:
        return steps.translate_stages(run.rendering())
    return steps.search_stages(run.rendering()) if method.generated else steps.obscure_stages(method, run.key)


def _drawing(
    run: Run,
    name: str,
    source: ray_data.Source,
    render: tuple[Stage, ...],
    sink: ray_data.Sink,
    judge: str | None,
    plan: planning.Plan,
) -> ray_data.Step:
    """A step that makes faces, and perturbs them where that is asked for: those of a class once for all of it."""
    c = run.config
    perturb = None
    if c.perturb.on:
        vector = _universal(run, source, render, plan) if c.perturb.name == "universal" else None
        perturb = steps.perturb_stage(c.perturb, run.rendering(), c.release.quality, c.method.of_class, vector)
    stages = (*render, *steps.shown(c.detect, c.release.quality, judge, perturb))
    made = steps.together(stages, c.compute.gpus_per_worker)
    return ray_data.Step(name, source, made, sink, at_once=steps.FACES_AT_ONCE)


def _universal(run: Run, source: ray_data.Source, render: tuple[Stage, ...], plan: planning.Plan) -> Perturbation:
    """The vector of this release, fitted once on a sample of its faces as they are rendered."""
    c = run.config
    sample, fitted = run.parts(SAMPLE, "rendered"), run.parts(PERTURBATION, "rendered")
    picks = _picks(run, plan)
    if c.perturb.surrogates and len({person for _, _, person in picks}) < 2:
        raise ConfigError(
            f"perturb.surrogates: a universal vector makes recognisers take people for others, so its sample of "
            f"{len(picks)} faces needs two people, or classes, at least"
        )
    count = -(-len(picks) // steps.IMAGES_PER_PART)
    kept = Encode(column="rendered", quality=steps.CROP_QUALITY)
    drawn = steps.together((*render, kept), c.compute.gpus_per_worker)
    taken = ray_data.Step(
        "sample", steps.SampleSource(source, picks), drawn, steps.SampleSink(sample), steps.FACES_AT_ONCE
    )
    run.made(sample, count, taken)
    fit = steps.fit_stage(c.perturb, run.rendering(), c.release.quality, preflight.steering(c))
    work = steps.together((fit,), c.compute.gpus_per_worker)
    sink = steps.PerturbationSink(fitted)
    run.made(fitted, 1, ray_data.Step("fit", steps.FitSource(sample, count), work, sink))
    vector = steps.perturbation(fitted.read(0))
    run.progress.say(perturbation.fitted(vector.about))
    _keep(run, vector)
    return vector


def _picks(run: Run, plan: planning.Plan) -> tuple[tuple[int, int, str], ...]:
    """The sample, drawn from all faces that are going to be perturbed: where their source has them, whom they show.
    Of classes, each is a person of its own."""
    out = class_rows(run, plan)
    if not run.config.method.of_class:
        out = [(int(plan.part[row]), int(plan.row[row]), str(plan.subject_id[row])) for row in plan.kept]
    count = min(run.config.perturb.sample, len(out))
    chosen = run.draws.generator("perturb", "sample").permutation(len(out))[:count]
    return tuple(out[at] for at in sorted(chosen))


def class_rows(run: Run, plan: planning.Plan) -> list[tuple[int, int, str]]:
    """Where the source of the classes has the faces that are made of them: part, row and class."""
    method, out = run.config.method, []
    for part in range(member_parts(plan)) if method.of_class else ():
        classes = plan.members_columns(part, steps.CLASSES_PER_PART)["class_id"]
        shown = classes if method.keep else np.repeat(np.unique(classes), method.surrogates)
        out += [(part, row, str(class_id)) for row, class_id in enumerate(shown)]
    return out


def _keep(run: Run, vector: Perturbation) -> None:
    """The vector as files of the workspace, to be looked at and used elsewhere."""
    folder, name = run.workspace.folder.child("perturbations"), run.names["rendered"]
    if folder.exists(f"{name}.png"):
        return
    with tempfile.TemporaryDirectory(prefix="facecrowd-") as scratch:
        file = Path(scratch) / "vector.safetensors"
        vector.save(file)
        folder.write(file.read_bytes(), f"{name}.safetensors")
    folder.write(vector.picture(), f"{name}.png")


def _wanted(run: Run, crops: steps.CropSource) -> steps.WantedSource:
    """Faces with what they shall show, of what the translator can change."""
    c = run.config
    priors = attributes.priors(preflight.steering(c), c.policy.quasi_identifiers, c.detect.models)
    able = preflight.translatable(c)
    return steps.WantedSource(crops, run.draws, {n: share for n, share in priors.items() if n in able})


def member_parts(plan: planning.Plan) -> int:
    """In how many parts the classes of a plan are kept."""
    return -(-plan.classes // steps.CLASSES_PER_PART)
