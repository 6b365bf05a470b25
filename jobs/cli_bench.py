"""The commands that measure speed: ``facecrowd bench``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from facecrowd.jobs.command import JsonFile, speaking, write_json
from facecrowd.pipeline import config as configs

bench_app = typer.Typer(help="How fast facecrowd is, measured against others in the same run.", no_args_is_help=True)


@bench_app.command("pipeline", epilog="Example: `facecrowd bench pipeline --photos 200 --deface none`")
@speaking
def bench_pipeline(
    photos: Annotated[int, typer.Option(min=10, help="Photos to make and release.")] = 2000,
    detector: Annotated[str, typer.Option(help="scrfd-500m, centerface or both.")] = "both",
    repeat: Annotated[int, typer.Option(min=1, help="Rounds; all candidates take turns, medians are shown.")] = 1,
    deface: Annotated[str, typer.Option(help="auto (installs it into --folder), none, or the command.")] = "auto",
    folder: Annotated[Path | None, typer.Option(help="Keeps photos and deface [default: the user's cache].")] = None,
    models: Annotated[str | None, typer.Option(help="Folder of model files, or an insightface root.")] = None,
    cpus: Annotated[int, typer.Option(min=0, help="CPUs to use (0: all).")] = 0,
    micro_batch: Annotated[int, typer.Option(min=1, help="Photos per unit of work.")] = 64,
    json_file: JsonFile = None,
) -> None:
    """Photos per second of a whole release, against a plain loop over its kernels and against deface."""
    from facecrowd.jobs import bench

    if detector not in ("both", *bench.DETECTORS):
        raise configs.ConfigError(f"--detector {detector}: neither {' nor '.join(bench.DETECTORS)} nor both")
    figures = bench.bench_pipeline(
        photos,
        bench.DETECTORS if detector == "both" else (detector,),
        repeat,
        folder or bench.CACHE,
        None if deface == "none" else deface,
        models,
        cpus,
        micro_batch,
    )
    bench.show(figures)
    write_json(json_file, figures)


@bench_app.command("table", epilog="Example: `facecrowd bench table --rows 1000000 --no-others`")
@speaking
def bench_table(
    rows: Annotated[
        list[int] | None,
        typer.Option(min=1000, help="Rows of a generated table; give it again for more [default: 10 and 100 million]."),
    ] = None,
    table: Annotated[str | None, typer.Option(help="Also this table: subject_id and boolean columns, Parquet.")] = None,
    share: Annotated[float, typer.Option(min=0.001, max=1, help="Distinct people per row of generated tables.")] = 0.02,
    methods: Annotated[str, typer.Option(help="Planners, comma-separated.")] = "mondrian,suppress,ppas,ppas-verified",
    others: Annotated[bool, typer.Option("--others/--no-others", help="Measure pycanon and anjana too.")] = True,
    cap: Annotated[float, typer.Option(min=1, help="Seconds after which a figure of theirs is given up.")] = 300.0,
    folder: Annotated[Path | None, typer.Option(help="Keeps generated tables and tools [default: the cache].")] = None,
    json_file: JsonFile = None,
) -> None:
    """Seconds and memory of measuring and planning whole tables, against the floor, pycanon and anjana."""
    from facecrowd.jobs import bench_table as tables

    figures = tables.bench_table(
        rows or ([10_000_000, 100_000_000] if table is None else []),
        table,
        share=share,
        methods=[name.strip() for name in methods.split(",") if name.strip()],
        others=others,
        cap=cap,
        folder=folder or tables.CACHE,
    )
    tables.show(figures)
    write_json(json_file, figures)


@bench_app.command(
    "recognition", epilog="Example: `facecrowd bench recognition --probes 20000 --subjects 10000 --json figures.json`"
)
@speaking
def bench_recognition(
    probes: Annotated[int, typer.Option(min=1000, help="Faces to name.")] = 1_000_000,
    subjects: Annotated[int, typer.Option(min=100, help="People in the gallery.")] = 100_000,
    photos: Annotated[int, typer.Option(min=1, help="Gallery faces of each.")] = 1,
    dim: Annotated[int, typer.Option(min=8, help="Of the embeddings.")] = 512,
    json_file: JsonFile = None,
) -> None:
    """Seconds and memory of rank 1, TAR and TPIR of generated embeddings, beside the products that they take."""
    from facecrowd.jobs import bench_recognition as recognition

    figures = recognition.bench_recognition(recognition.Size(probes, subjects, photos, dim))
    recognition.show(figures)
    write_json(json_file, figures)


@bench_app.command(
    "scale", epilog="Example: `facecrowd bench scale --images 2000 --rows 1000000 --stream 0 --json scale.json`"
)
@speaking
def bench_scale(
    json_file: Annotated[Path, typer.Option("--json", help="Keeps the figures; what it holds is not measured again.")],
    images: Annotated[str, typer.Option(help="Sizes of releases, comma-separated; empty for none.")] = (
        "10000,100000,1000000"
    ),
    rows: Annotated[str, typer.Option(help="Sizes of tables, comma-separated; empty for none.")] = (
        "10000000,100000000"
    ),
    stream: Annotated[int, typer.Option(min=0, help="Faces through a small object store (0: none).")] = 1_000_000,
    photos: Annotated[int, typer.Option(min=0, help="Photos that the real networks are timed on (0: none).")] = 200,
    micro_batch: Annotated[int, typer.Option(min=1, help="Photos per unit of work.")] = 512,
    width: Annotated[int, typer.Option(min=8, help="Numbers in an embedding.")] = 128,
    store: Annotated[int, typer.Option(min=80, help="Size of Ray's object store, in MiB.")] = 256,
    cpus: Annotated[int, typer.Option(min=0, help="CPUs to use (0: all).")] = 0,
    models: Annotated[str | None, typer.Option(help="Folder of model files, or an insightface root.")] = None,
    folder: Annotated[Path | None, typer.Option(help="For scratch [default: the cache].")] = None,
    markdown: Annotated[Path | None, typer.Option(help="Write the page here as well.")] = None,
) -> None:
    """Seconds, memory and bytes of releases and tables as they grow, and what 100 million images would take."""
    from facecrowd.jobs import bench, scale_page
    from facecrowd.jobs import bench_scale as scale

    sizes = []
    for name, given in (("images", images), ("rows", rows)):
        try:
            sizes.append([int(part) for part in given.split(",") if part.strip()])
        except ValueError:
            raise configs.ConfigError(f"--{name} {given}: whole numbers, comma-separated") from None
    settings = scale.Settings(width, micro_batch, cpus or len(os.sched_getaffinity(0)), store << 20)
    figures = scale.bench_scale(
        sizes[0],
        sizes[1],
        json_file,
        settings=settings,
        stream=stream,
        photos=photos,
        models=models,
        folder=folder or bench.CACHE,
    )
    page = scale_page.markdown(figures)
    print(page)
    if markdown is not None:
        markdown.write_text(page, encoding="utf-8")
