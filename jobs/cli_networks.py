"""The commands about networks: ``facecrowd train``, ``facecrowd evaluate`` and ``facecrowd sheet``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from facecrowd.jobs.command import JsonFile, speaking, write_json
from facecrowd.pipeline import config as configs
from facecrowd.pipeline.progress import Progress

if TYPE_CHECKING:
    from facecrowd.jobs.labelled import Faces

train_app = typer.Typer(
    help="Train what facecrowd ships, or your own; a killed training resumes.", no_args_is_help=True
)
evaluate_app = typer.Typer(help="Measure the shipped networks on labelled faces.", no_args_is_help=True)

DataFolder = Annotated[Path, typer.Option(help="Folder of photos as PERSON/PHOTO, or a file that --pack wrote.")]
AttributeTable = Annotated[
    Path | None,
    typer.Option(
        help="Parquet or CSV with image_id and the 40 attributes [default: celeba-attributes.parquet beside DATA]."
    ),
]
FaceCache = Annotated[
    Path | None,
    typer.Option(
        help="Keeps aligned faces, which show people, for their owner's eyes alone; none keeps nothing "
        "[default: the user's cache]."
    ),
]
ModelsFolder = Annotated[str | None, typer.Option(help="Folder of model files, or an insightface root.")]
Checkpoints = Annotated[Path | None, typer.Option(help="Folder of checkpoints [default: beside the output].")]
Workers = Annotated[int, typer.Option(min=0, help="Ray Train workers (0: plain torch in this process).")]
Every = Annotated[int, typer.Option(min=1, help="Steps between checkpoints.")]


@train_app.command(
    "attributes",
    epilog="Example: `facecrowd train attributes --data celeba-faces --kind arcface --output steer.safetensors`",
)
@speaking
def train_attributes(
    data: DataFolder,
    kind: Annotated[str, typer.Option(help="arcface, bisenet, mobilenetv2 (probes), googlenet or googlenet-forest.")],
    output: Annotated[Path, typer.Option(help="The predictor to write (.safetensors).")],
    table: AttributeTable = None,
    split: Annotated[str, typer.Option(help="Whose faces to learn from: steer, judge, test or all.")] = "steer",
    preset: Annotated[str, typer.Option(help="googlenet: adamw, paper or smoke.")] = "adamw",
    steps: Annotated[int | None, typer.Option(min=1, help="googlenet: steps instead of the preset's.")] = None,
    unlabelled: Annotated[
        Path | None, typer.Option(help="googlenet: further faces, labelled by --teacher; a folder as --data.")
    ] = None,
    teacher: Annotated[
        str, typer.Option(help="googlenet: predictor that labels the unlabelled.")
    ] = "attributes-arcface",
    base: Annotated[
        str, typer.Option(help="googlenet-forest: predictor whose features to use.")
    ] = "attributes-googlenet",
    forest: Annotated[str, typer.Option(help="googlenet-forest: per-attribute or multi-output.")] = "per-attribute",
    work: Annotated[
        Path | None, typer.Option(help="googlenet: folder of checkpoints [default: beside the output].")
    ] = None,
    workers: Annotated[
        int, typer.Option(min=0, help="googlenet: Ray Train workers (0: plain torch in this process).")
    ] = 0,
    address: Annotated[str, typer.Option(help="Ray cluster of the workers: local, auto or an address.")] = "local",
    every: Annotated[
        int | None, typer.Option(min=1, help="googlenet: steps between checkpoints [default: the preset's].")
    ] = None,
    pack: Annotated[
        Path | None, typer.Option(help="Also write the aligned faces into this file, to train elsewhere.")
    ] = None,
    cache: FaceCache = None,
    models: ModelsFolder = None,
) -> None:
    """Train a predictor of the 40 CelebA attributes on the people of one split."""
    from facecrowd.jobs import train_attributes as recipes
    from facecrowd.jobs.labelled import CACHE

    order = recipes.Order(
        data=data,
        kind=kind,
        output=output,
        table=table,
        split=split,
        preset=preset,
        steps=steps,
        unlabelled=unlabelled,
        teacher=teacher,
        base=base,
        forest=forest,  # type: ignore[arg-type]
        work=work,
        workers=workers,
        address=address,
        every=every,
        pack=pack,
        cache=cache or CACHE,
        models=models,
    )
    recipes.run(order, Progress().say)


@train_app.command("heads", epilog="Example: `facecrowd train heads --output heads.safetensors`")
@speaking
def train_heads(
    output: Annotated[Path, typer.Option(help="The heads to write (.safetensors).")],
    pictures: Annotated[int, typer.Option(min=16, help="Generated pictures to learn from.")] = 120,
    steps: Annotated[int, typer.Option(min=1, help="Optimiser steps, for each head.")] = 1000,
    work: Checkpoints = None,
    json_file: JsonFile = None,
) -> None:
    """Make the generator's image heads for 256 and 128 pixels against its full picture."""
    from facecrowd.jobs import train_heads as heads

    write_json(json_file, heads.run(output, pictures, steps, work, Progress().say))


@train_app.command("encoder", epilog="Example: `facecrowd train encoder --data lfw --output encoder.safetensors`")
@speaking
def train_encoder(
    output: Annotated[Path, typer.Option(help="The encoder to write (.safetensors).")],
    data: Annotated[
        list[Path] | None, typer.Option(help="Folder PERSON/PHOTO of real faces; again for more, none for none.")
    ] = None,
    preset: Annotated[str, typer.Option(help="cpu, gpu or smoke.")] = "cpu",
    work: Checkpoints = None,
    workers: Workers = 0,
    every: Every = 100,
    cache: FaceCache = None,
    models: ModelsFolder = None,
) -> None:
    """Train the encoder that finds a face's latent, on generated faces and, where given, on real ones."""
    from facecrowd.jobs import train_encoder as encoder

    encoder.run(output, data or [], preset, work, workers, every, cache, models, Progress().say)


@train_app.command(
    "stargan", epilog="Example: `facecrowd train stargan --data lfw --data celeba-faces --output stargan.safetensors`"
)
@speaking
def train_stargan(
    output: Annotated[Path, typer.Option(help="The translator to write (.safetensors).")],
    data: Annotated[
        list[Path] | None,
        typer.Option(help="Folder PERSON/PHOTO of faces; again for more, none for generated faces alone."),
    ] = None,
    preset: Annotated[str, typer.Option(help="cpu, gpu, anonymousnet, adaptive, identity or smoke.")] = "cpu",
    attributes: Annotated[
        str, typer.Option(help="What it translates, comma-separated [default: the shipped ones].")
    ] = "",
    start: Annotated[Path | None, typer.Option(help="Weights to begin with.")] = None,
    work: Checkpoints = None,
    workers: Workers = 0,
    every: Every = 100,
    cache: FaceCache = None,
    models: ModelsFolder = None,
) -> None:
    """Train the network that translates attributes; samples.jpg and log.jsonl in the work folder show how it goes."""
    from facecrowd.jobs import train_stargan as recipe

    names = tuple(name.strip() for name in attributes.split(",") if name.strip()) or recipe.SHOWN
    recipe.run(output, data or [], preset, names, start, work, workers, every, cache, models, Progress().say)


@train_app.command(
    "directions",
    epilog="Example: `facecrowd train directions --samples 1500 --output directions.safetensors`",
)
@speaking
def train_directions(
    output: Annotated[Path, typer.Option(help="The directions to write (.safetensors).")],
    samples: Annotated[int, typer.Option(min=100, help="Generated faces to learn from.")] = 1500,
    size: Annotated[int, typer.Option(help="Their side in pixels: 128, 256, 512 or 1024.")] = 128,
    overlap: Annotated[
        float, typer.Option(min=0, help="How far correlated attributes may move along: 0 is not at all.")
    ] = 0.1,
    faces: Annotated[int, typer.Option(min=0, help="Faces to choose rows of w+ on (0: edit all rows).")] = 0,
    measure: Annotated[int, typer.Option(min=0, help="Fresh faces to flip each attribute on (0: none).")] = 0,
    work: Annotated[Path | None, typer.Option(help="Keeps faces looked at [default: beside the output].")] = None,
    models: ModelsFolder = None,
    json_file: JsonFile = None,
) -> None:
    """Find the directions of the generator's latent space that change attributes, pose and light."""
    from facecrowd.jobs import train_directions as recipe

    say = Progress().say
    found = recipe.run(output, samples, size, overlap, faces, work, models, say)
    flips = recipe.measure(found, faces=measure, size=size, folder=models, say=say) if measure else []
    read = dict(zip(found.names, found.about["variance_read"], strict=True))
    write_json(json_file, {"variance_read": read, "rows": found.rows.tolist(), "flips": flips})


def _labelled(data: Path, table: Path | None, cache: Path | None, models: str | None) -> Faces:
    """The faces of a collection, found and embedded once."""
    from facecrowd.jobs.labelled import CACHE, faces

    return faces(data, table, cache or CACHE, models, Progress().say)


@evaluate_app.command(
    "attributes", epilog="Example: `facecrowd evaluate attributes --data celeba-faces --json figures.json`"
)
@speaking
def evaluate_attributes(
    data: DataFolder,
    table: AttributeTable = None,
    predictors: Annotated[
        str, typer.Option(help="Shipped predictors or files, comma-separated.")
    ] = "attributes-arcface,attributes-bisenet,attributes-googlenet,googlenet-forest",
    probes: Annotated[
        str, typer.Option(help="Probe recipes to cross-validate over all people, comma-separated; 'none' skips them.")
    ] = "arcface,bisenet,mobilenetv2",
    detailed: Annotated[str, typer.Option(help="Whose 40 attributes to print, comma-separated, or all.")] = "",
    speed: Annotated[bool, typer.Option("--speed", help="Also measure faces per second.")] = False,
    cache: FaceCache = None,
    models: ModelsFolder = None,
    json_file: JsonFile = None,
) -> None:
    """Accuracy, balanced accuracy, AUC and calibration of the attribute predictors, on people none was trained on."""
    from facecrowd.jobs import evaluate_attributes as evaluation

    say = Progress().say
    chosen, kinds = (
        [n.strip() for n in names.split(",") if n.strip() not in ("", "none")] for names in (predictors, probes)
    )
    wanted = evaluation.detailed(detailed, chosen, kinds)
    found = _labelled(data, table, cache, models)
    rows = evaluation.evaluate(found, chosen, kinds, models, say)
    evaluation.show(rows, wanted)
    report: dict[str, Any] = {"predictors": rows}
    if speed:
        report["faces_per_second"] = evaluation.throughput(found, chosen, models)
        evaluation.show_throughput(report["faces_per_second"])
    write_json(json_file, report)


Encoder = Annotated[Path | None, typer.Option(help="Encoder file [default: the shipped one].")]
WorkFolder = Annotated[
    Path | None, typer.Option(help="Keeps latents, embeddings and pictures [default: the user's cache].")
]


def _numbers(flag: str, text: str) -> tuple[int, ...]:
    """A comma-separated list of whole numbers; 'none' is empty."""
    try:
        return tuple(int(part) for part in text.split(",") if part.strip() not in ("", "none"))
    except ValueError:
        raise configs.ConfigError(f"{flag} {text}: give whole numbers, as in 2,5,10, or none") from None


@evaluate_app.command(
    "generator",
    epilog="Example: `facecrowd evaluate generator --data celeba-faces --reidentify 2,5,10 --speed 1 --json f.json`",
)
@speaking
def evaluate_generator(
    data: DataFolder,
    table: AttributeTable = None,
    faces: Annotated[int, typer.Option(min=0, help="Faces of test people to invert; 0 skips it.")] = 32,
    search: Annotated[str, typer.Option(help="Steps to invert them by; 0 is the encoder alone.")] = "0,10,30,100",
    size: Annotated[int, typer.Option(help="Pixels at which a search compares: 128 or 256.")] = 128,
    optimisers: Annotated[int, typer.Option(min=0, help="Faces to compare the optimisers on; 0 skips it.")] = 0,
    optimiser_steps: Annotated[int, typer.Option(min=1, help="How many steps each optimiser gets.")] = 50,
    reidentify: Annotated[str, typer.Option(help="Values of k whose surrogates are attacked, or none.")] = "none",
    recognisers: Annotated[
        str, typer.Option(help="Who attacks: registry names or .onnx files, comma-separated; 'all' for the five.")
    ] = "all",
    variants: Annotated[int, typer.Option(min=0, help="Faces drawn per class; 0 is the class mean itself.")] = 0,
    compare: Annotated[int, typer.Option(min=0, help="Faces of --altered that are attacked too; 0 skips it.")] = 0,
    altered: Annotated[
        str, typer.Option(help="Methods for --compare: reconstruction, deepblur:SIGMA, inpaint, inpaint:average.")
    ] = "reconstruction,deepblur:0.5,deepblur:1,inpaint,inpaint:average",
    fid: Annotated[int, typer.Option(min=0, help="Surrogates whose FID is taken; 0 skips it.")] = 0,
    edits: Annotated[int, typer.Option(min=0, help="Faces edited per attribute; 0 skips it.")] = 0,
    speed: Annotated[str, typer.Option(help="Batches that every method is timed with, or none.")] = "none",
    plot_folder: Annotated[
        Path | None, typer.Option(help="Folder for the optimisers' curves (needs facecrowd[plots]).")
    ] = None,
    encoder: Encoder = None,
    work: WorkFolder = None,
    cache: FaceCache = None,
    models: ModelsFolder = None,
    json_file: JsonFile = None,
) -> None:
    """How well the generator shows faces, and how well its surrogates hide people. A killed run goes on."""
    from facecrowd.jobs import evaluate_generator as evaluation
    from facecrowd.jobs.renditions import SHIPPED_ENCODER, WORK, Networks

    if plot_folder is not None:
        evaluation.can_plot()
    order = evaluation.Order(
        faces=faces,
        search=_numbers("--search", search),
        size=size,  # type: ignore[arg-type]
        optimisers=optimisers,
        optimiser_steps=optimiser_steps,
        reidentify=_numbers("--reidentify", reidentify),
        recognisers=evaluation.RECOGNISERS if recognisers == "all" else tuple(recognisers.split(",")),
        variants=variants,
        compare=compare,
        altered=tuple(altered.split(",")),
        fid=fid,
        edits=edits,
        speed=_numbers("--speed", speed),
        work=work or WORK,
    )
    networks = Networks(encoder or SHIPPED_ENCODER, models)
    found = evaluation.evaluate(networks, _labelled(data, table, cache, models), order, Progress().say)
    evaluation.show(found)
    if plot_folder is not None and "optimisers" in found:
        print(f"plot: {evaluation.plot(found['optimisers'], plot_folder)}")
    write_json(json_file, found)


@evaluate_app.command(
    "translation", epilog="Example: `facecrowd evaluate translation --data celeba-faces --json figures.json`"
)
@speaking
def evaluate_translation(
    data: DataFolder,
    table: AttributeTable = None,
    flips: Annotated[int, typer.Option(min=0, help="Test faces on which each attribute is flipped; 0 skips it.")] = 48,
    quality: Annotated[int, typer.Option(min=0, help="Test faces translated to a plan; 0 skips it.")] = 200,
    parts: Annotated[int, typer.Option(min=0, help="Test faces whose parts are obfuscated; 0 skips it.")] = 900,
    speed: Annotated[int, typer.Option(min=0, help="Faces to time; 0 skips it.")] = 32,
    inpaint: Annotated[int, typer.Option(min=0, help="Faces inpainted beside them, some 3 s each.")] = 16,
    translators: Annotated[
        str, typer.Option(help="stargan, stargan-identity, latent or files, comma-separated: of flips and quality.")
    ] = "stargan",
    keeper: Annotated[str, typer.Option(help="The translator whose parts are obfuscated.")] = "stargan-identity",
    strength: Annotated[
        float | None, typer.Option(min=0, help="Of the keeper's change [default: what its weights say].")
    ] = None,
    recognisers: Annotated[
        str, typer.Option(help="Who verifies, comma-separated [default: sface,facex-zoo-1,facex-zoo-2,edgeface-s].")
    ] = "",
    work: WorkFolder = None,
    cache: FaceCache = None,
    models: ModelsFolder = None,
    json_file: JsonFile = None,
) -> None:
    """Does a translated face show what it should, what else changes, and do recognisers match. A killed run goes on."""
    from facecrowd.jobs import evaluate_translation as evaluation
    from facecrowd.jobs.renditions import WORK, Networks

    order = evaluation.Order(
        flips=flips,
        quality=quality,
        parts=parts,
        speed=speed,
        inpaint=inpaint,
        translators=tuple(translators.split(",")),
        keeper=keeper,
        strength=strength,
        recognisers=tuple(recognisers.split(",")) if recognisers else evaluation.RECOGNISERS,
        work=work or WORK,
    )
    faces = _labelled(data, table, cache, models)
    found = evaluation.evaluate(Networks(folder=models), faces, order, Progress().say)
    evaluation.show(found)
    write_json(json_file, found)


@evaluate_app.command(
    "perturbation", epilog="Example: `facecrowd evaluate perturbation --data lfw --grid reduced --json figures.json`"
)
@speaking
def evaluate_perturbation(
    data: DataFolder,
    grid: Annotated[str, typer.Option(help="paper (for a GPU), reduced (an hour on two cores) or smoke.")] = "reduced",
    surrogates: Annotated[
        str,
        typer.Option(help="Recognisers that masks are made against, comma-separated, a+b for both [default: grid]."),
    ] = "",
    recognisers: Annotated[str, typer.Option(help="Who judges, comma-separated [default: all five].")] = "",
    targets: Annotated[str, typer.Option(help="generated, or people of the collection as in the paper.")] = "generated",
    size: Annotated[
        int, typer.Option(help="Pixels of what is masked: 112 as in the paper, 256 as in a release.")
    ] = 112,
    in_loop: Annotated[
        bool, typer.Option("--in-loop/--no-in-loop", help="Whether masks are made for the JPEG file they end in.")
    ] = True,
    diversity: Annotated[float, typer.Option(min=0, help="Input diversity: spread of an affine jitter.")] = 0.0,
    parts: Annotated[str, typer.Option(help="masks, counts, universal, speed; comma-separated [default: all].")] = "",
    plot_folder: Annotated[
        Path | None, typer.Option(help="Folder for the curves of figures 4 and 6 (needs facecrowd[plots]).")
    ] = None,
    work: WorkFolder = None,
    cache: FaceCache = None,
    models: ModelsFolder = None,
    json_file: JsonFile = None,
) -> None:
    """Do masked faces lead recognisers astray, in files as released, and how natural are they. A killed run goes on."""
    from dataclasses import replace

    from facecrowd.jobs import evaluate_generator
    from facecrowd.jobs import evaluate_perturbation as evaluation
    from facecrowd.jobs.renditions import WORK, Networks

    if plot_folder is not None:
        evaluate_generator.can_plot()
    if grid not in evaluation.GRIDS:
        raise configs.ConfigError(f"--grid {grid}: none of {', '.join(evaluation.GRIDS)}")
    chosen = evaluation.GRIDS[grid]
    order = evaluation.Order(
        replace(chosen, surrogates=tuple(surrogates.split(","))) if surrogates else chosen,
        grid,
        size=size,
        in_loop=in_loop,
        diversity=diversity,
        targets=targets,  # type: ignore[arg-type]
        recognisers=tuple(recognisers.split(",")) if recognisers else evaluation.RECOGNISERS,
        parts=tuple(parts.split(",")) if parts else evaluation.PARTS,
        work=work or WORK,
    )
    say = Progress().say
    found = evaluation.evaluate(
        evaluation.Makers(Networks(folder=models), order.work),
        _labelled(data, None, cache, models),
        order,
        say,
    )
    evaluation.show(found)
    if plot_folder is not None and "masks" in found:
        print(f"plot: {evaluation.plot(found, plot_folder)}")
    write_json(json_file, found)


@speaking
def sheet(
    data: DataFolder,
    output: Annotated[Path, typer.Option(help="The picture to write: .png or .jpg.")],
    rows: Annotated[int, typer.Option(min=1, help="People, one face of each.")] = 6,
    columns: Annotated[
        str,
        typer.Option(
            help="original, reconstruction, deepblur:SIGMA, k-same[:K], inpaint, inpaint:average, flip:ATTRIBUTE, "
            "planned, heatmap or parts:N."
        ),
    ] = "original,reconstruction,deepblur:0.5,deepblur:1,deepblur:2,deepblur:5,deepblur:100,k-same,inpaint",
    k: Annotated[int, typer.Option(min=2, help="People in a class of k-same.")] = 5,
    steps: Annotated[int, typer.Option(min=1, help="Steps of the latent searches.")] = 10,
    size: Annotated[int, typer.Option(help="Pixels at which a search compares: 128 or 256.")] = 128,
    tile: Annotated[int, typer.Option(min=32, help="Side of a face on the sheet, in pixels.")] = 128,
    encoder: Encoder = None,
    work: WorkFolder = None,
    cache: FaceCache = None,
    models: ModelsFolder = None,
) -> None:
    """What each method makes of some people's faces, side by side in one picture."""
    from facecrowd.jobs import sheet as sheets
    from facecrowd.jobs.renditions import SHIPPED_ENCODER, WORK, Networks

    if size not in (128, 256):
        raise configs.ConfigError(f"--size {size}: a search compares pictures at 128 or 256")
    chosen = [column.strip() for column in columns.split(",")]
    sheets.checked(output, chosen)
    networks = Networks(encoder or SHIPPED_ENCODER, models)
    say = Progress().say
    found = _labelled(data, None, cache, models)
    picture = sheets.sheet(networks, found, rows, chosen, k, steps, size, tile, work or WORK, say)  # type: ignore[arg-type]
    sheets.write(picture, output)
    print(f"picture: {output}")
