"""The command line: ``facecrowd release|audit|plan|compare|whatif|sweep|forget|demo|study|models``, and what
``cli_networks`` and ``cli_bench`` add.

The flags of ``release`` are made from ``pipeline/config.py``, so that a field of the config and its flag cannot part.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import inspect
import os
import signal
import sys
import time
import types
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from facecrowd.jobs.cli_bench import bench_app
from facecrowd.jobs.cli_networks import evaluate_app, sheet, train_app
from facecrowd.jobs.command import BAD_INPUT, NOT_MET, OK, UNFINISHED, JsonFile, speaking, write_json
from facecrowd.pipeline import config as configs
from facecrowd.pipeline.progress import Progress

app = typer.Typer(
    name="facecrowd",
    help="Release face-image datasets in which every person hides in a crowd of k.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)
models_app = typer.Typer(help="The models facecrowd uses: list, fetch and check them.", no_args_is_help=True)
app.add_typer(models_app, name="models")
app.add_typer(bench_app, name="bench")
app.add_typer(train_app, name="train")
app.add_typer(evaluate_app, name="evaluate")
study_app = typer.Typer(
    help="Ask people what they see in released faces, and score their answers.", no_args_is_help=True
)
app.add_typer(study_app, name="study")


def _version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        print(f"facecrowd {version('facecrowd')}")
        raise typer.Exit(OK)


@app.callback()
def _anywhere(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_version, help="Say which facecrowd this is.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """The console script.

    It ends without taking the process apart: Ray's threads in C++ now and then abort it while that goes on, when all
    is said and done.
    """
    code: Any = OK
    # Told to end, as by a scheduler, it ends as it does at Ctrl-C: with a sentence, and its processes.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        app()
    except SystemExit as done:
        code = done.code
    atexit._run_exitfuncs()
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code if isinstance(code, int) else OK if code is None else UNFINISHED)


# --------------------------------------------------------------------------------------------------------- release


def leaves() -> Iterator[tuple[str, str, Any, str]]:
    """Every config field that is a flag: (dotted path, flag, type, help)."""
    for name, field in configs.ReleaseConfig.model_fields.items():
        if inspect.isclass(field.annotation) and issubclass(field.annotation, configs.Section):
            for leaf, inner in field.annotation.model_fields.items():
                if isinstance(inner.json_schema_extra, dict):
                    yield f"{name}.{leaf}", _flag(leaf, inner), inner.annotation, _help(inner)
        elif isinstance(field.json_schema_extra, dict):
            yield name, _flag(name, field), field.annotation, _help(field)


def _flag(name: str, field: Any) -> str:
    return "--" + str(field.json_schema_extra.get("flag") or name).replace("_", "-")


def _help(field: Any) -> str:
    default = field.default
    shown = "" if default is None or default == () else f" [default: {default}]"
    return f"{field.description}{shown}"


def _option_type(kind: Any) -> Any:
    """What the command line takes for a field: lists come comma-separated, l and t in short form."""
    options = [a for a in typing.get_args(kind) if a is not type(None)]
    if isinstance(kind, types.UnionType) and options:
        kind = options[0]
    return kind if kind in (int, float, bool) or typing.get_origin(kind) is typing.Literal else str


def _parsed(dotted: str, value: Any) -> Any:
    if dotted in ("policy.quasi_identifiers", "policy.sensitive"):
        return [part.strip() for part in value.split(",") if part.strip()]
    try:
        if dotted == "policy.l":
            return configs.parse_diversity(value)
        if dotted == "policy.t":
            return configs.parse_closeness(value)
    except (ValueError, IndexError):
        forms = "2, entropy:1.5 or recursive:3:2" if dotted == "policy.l" else "0.2 or 0.2:ordered"
        raise configs.ConfigError(f"{dotted}: {value!r} is none of {forms}") from None
    return value


def with_config_flags(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command a flag for every config field; it gets those that were set as ``overrides``."""
    fields = {dotted.replace(".", "__"): (dotted, flag, kind, text) for dotted, flag, kind, text in leaves()}

    @functools.wraps(command)
    def run(**kwargs: Any) -> None:
        overrides = {}
        for name, (dotted, *_) in fields.items():
            value = kwargs.pop(name)
            if value is not None:
                overrides[dotted] = value
        command(overrides=overrides, **kwargs)

    own = [p for p in inspect.signature(command, eval_str=True).parameters.values() if p.name != "overrides"]
    flags = [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=None,
            annotation=Annotated[
                _option_type(kind) | None,
                typer.Option(
                    f"{flag}/--no-{flag[2:]}" if kind is bool else flag,
                    help=text,
                    show_default=False,
                    rich_help_panel=dotted.split(".")[0].capitalize() if "." in dotted else "Release",
                ),
            ],
        )
        for name, (dotted, flag, kind, text) in fields.items()
    ]
    run.__signature__ = inspect.Signature(own + flags)  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in own + flags}
    return run


@app.command(
    epilog="Example: `facecrowd release --input photos --output released --method k-same --k 5` "
    "(photos/PERSON/*.jpg; run it again after a crash and it goes on where it stopped)"
)
@speaking
@with_config_flags
def release(
    *,
    config: Annotated[Path | None, typer.Option(help="YAML file with the same keys; flags win over it.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything, fetch and write nothing.")] = False,
    plan_resources: Annotated[
        bool,
        typer.Option(
            "--plan-resources", help="Foretell time, memory and disk from a sample of 200 photos; publish nothing."
        ),
    ] = False,
    json_file: JsonFile = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress, only the verdict.")] = False,
    overrides: dict[str, Any],
) -> None:
    """Release an anonymised copy of a set of face photos, with its manifests and audit."""
    from facecrowd.pipeline import release as releases
    from facecrowd.pipeline.summary import verdict_lines

    settings = configs.load(config, {dotted: _parsed(dotted, value) for dotted, value in overrides.items()})
    if dry_run and plan_resources:
        raise configs.ConfigError("--dry-run fetches nothing, --plan-resources runs a sample; give one of them")
    begin = time.monotonic()
    prepared = releases.prepare(settings, dry=dry_run)
    if dry_run:
        for line in prepared.lines():
            print(line)
        return
    if plan_resources:
        from facecrowd.pipeline import resources

        forecast = resources.foretell(prepared, Progress(quiet), time.monotonic() - begin)
        for line in resources.lines(forecast):
            print(line)
        write_json(json_file, forecast.as_dict())
        return
    outcome = releases.release(prepared, Progress(quiet))
    if outcome.reused:
        print("already released with these settings and inputs; nothing to do")
    for line in verdict_lines(outcome.audit):
        print(line)
    print(f"release: {outcome.release.url}\nworkspace (private): {outcome.workspace.url}")
    write_json(json_file, outcome.audit)
    raise typer.Exit(OK if outcome.met else NOT_MET)


TableFile = typer.Option(help="Table of rows about people: Parquet (a file or a folder of parts) or CSV.")
PolicyFile = Annotated[Path | None, typer.Option(help="YAML file with the policy; flags win over it.")]
Address = Annotated[
    str | None,
    typer.Option(help="Count on a Ray cluster: 'local', 'auto' or ray://… (default: in this process)."),
]
Curve = Annotated[bool, typer.Option("--curve", help="Also what each stricter policy would cost.")]


def with_policy_flags(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command a flag for each requirement and role of a table's policy; it gets those set as ``overrides``."""
    kinds: dict[str, tuple[Any, str]] = {
        "subject": (str, "Column that names the person [default: subject_id]."),
        "quasi_identifiers": (str, "Columns an adversary may know, comma-separated; 'all': all without another role."),
        "sensitive": (str, "Columns that must not be inferred from a class, comma-separated."),
        "identifiers": (str, "Columns that name people and are never released, comma-separated."),
        "k": (int, "Distinct subjects that share what is released."),
        "l": (str, "Diversity of the sensitive values: 2, entropy:1.5 or recursive:3:2."),
        "t": (str, "Closeness of the sensitive values: 0.2 or 0.2:ordered."),
        "epsilon": (float, "Total privacy loss per subject of randomising the released attributes."),
        "max_suppression": (float, "Largest share of rows that may be left out [default: 0.02]."),
    }

    @functools.wraps(command)
    def run(**kwargs: Any) -> None:
        given = {name: kwargs.pop(f"policy_{name}") for name in kinds}
        lists = ("quasi_identifiers", "sensitive", "identifiers")
        overrides = {
            name: [part.strip() for part in value.split(",") if part.strip()]
            if name in lists
            else _parsed(f"policy.{name}", value)
            for name, value in given.items()
            if value is not None
        }
        command(overrides=overrides, **kwargs)

    own = [p for p in inspect.signature(command, eval_str=True).parameters.values() if p.name != "overrides"]
    flags = [
        inspect.Parameter(
            f"policy_{name}",
            inspect.Parameter.KEYWORD_ONLY,
            default=None,
            annotation=Annotated[
                kind | None,
                typer.Option(f"--{name.replace('_', '-')}", help=text, show_default=False, rich_help_panel="Policy"),
            ],
        )
        for name, (kind, text) in kinds.items()
    ]
    run.__signature__ = inspect.Signature(own + flags)  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in own + flags}
    return run


@app.command(
    epilog="Example: `facecrowd audit released --workspace released.workspace` or, of a table, "
    "`facecrowd audit --table people.parquet --policy policy.yaml`"
)
@speaking
@with_policy_flags
def audit(
    *,
    release: Annotated[str | None, typer.Argument(help="A released folder, local or any fsspec URL.")] = None,
    workspace: Annotated[
        str | None, typer.Option(help="Its workspace, for attacks that need the originals and the true names.")
    ] = None,
    catalog: Annotated[
        str | None,
        typer.Option(
            help="What the workspace's PyIceberg catalog is called here [default: as when it was made; an SQL catalog "
            "knows its tables by that name]."
        ),
    ] = None,
    table: Annotated[str | None, TableFile] = None,
    policy: PolicyFile = None,
    plan: Annotated[str | None, typer.Option(help="Audit the table as this folder of 'plan' releases it.")] = None,
    earlier: Annotated[
        list[str] | None, typer.Option(help="With --plan: folder of an earlier plan; the two must not undo each other.")
    ] = None,
    curve: Curve = False,
    confusion: Annotated[
        str | None, typer.Option(help="With --table: JSON of a predictor's error rates; how they move k, l and t.")
    ] = None,
    depth: Annotated[
        str,
        typer.Option(
            help="With --workspace: how a release is attacked. checks (as when it was made), quick (every recogniser "
            "at hand, linear heads, table, pixels), full (also VGG and ResNet18, trained for the purpose), or paper "
            "(for 500 epochs)."
        ),
    ] = "quick",
    recognisers: Annotated[
        str, typer.Option(help="Who attacks a release, comma-separated [default: all at hand].")
    ] = "",
    groups: Annotated[
        str, typer.Option(help="Attributes whose groups are looked at apart, comma-separated.")
    ] = "Male,Young,Pale_Skin",
    faces: Annotated[
        int, typer.Option(min=20, help="Most faces whose pixels are compared (LPIPS, FID, …), whole people of them.")
    ] = 1000,
    with_originals: Annotated[
        bool, typer.Option("--with-originals", help="Show originals in the page, which then is private.")
    ] = False,
    snapshot: Annotated[
        int | None,
        typer.Option(help="Instead of a RELEASE: what this snapshot of the workspace's table link says was published."),
    ] = None,
    baselines: Annotated[
        list[str] | None, typer.Option(help="Folder of another release's audit, to stand beside this one's.")
    ] = None,
    output: Annotated[
        str | None,
        typer.Option(
            help="Of a release: folder for report.html, audit.json and tables [default: RELEASE-audit]. Of a table: "
            "folder for classes.parquet and verdict.json."
        ),
    ] = None,
    address: Address = None,
    json_file: JsonFile = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress, only the verdict.")] = False,
    overrides: dict[str, Any],
) -> None:
    """Attack a release, measure its use, and say it on one page; or hold any table of people against a policy.

    Without --workspace this proves integrity, not origin: the files are those that the release's card lists, and the
    figures are the ones it came with. With it they are measured again, and the release is attacked.
    """
    if [release, table, snapshot].count(None) != 2:
        raise configs.ConfigError("audit checks a RELEASE, a --snapshot or a --table; give one of them")
    if catalog is not None and workspace is None:
        raise configs.ConfigError("--catalog is that of a --workspace, and none was given")
    if table is None:
        from facecrowd.jobs.audit import Order, audit_release, audit_snapshot

        about_tables = {
            "policy": policy,
            "plan": plan,
            "earlier": earlier,
            "confusion": confusion,
            "address": address,
            **overrides,
        }
        given = [name for name, value in about_tables.items() if value is not None] + ["curve"] * curve
        if given:
            raise configs.ConfigError(f"--{given[0].replace('_', '-')} is about a --table, and none was given")
        name = release if release is not None else f"snapshot-{snapshot}"
        order = Order.read(name, output, depth, recognisers, groups, faces, with_originals, baselines or [])
        if release is not None:
            report, lines = audit_release(release, workspace, Progress(quiet), order, catalog)
        elif snapshot is None or workspace is None:
            raise configs.ConfigError("--snapshot needs the --workspace whose table it is of")
        else:
            report, lines = audit_snapshot(workspace, snapshot, Progress(quiet), order, catalog)
    else:
        from facecrowd.jobs.table import audit_table

        if workspace is not None:
            raise configs.ConfigError("--workspace belongs to a RELEASE, and a --table was given")
        settings = configs.load_policy(policy, overrides)
        base = policy.parent if policy is not None else Path()
        report, lines = audit_table(
            str(table),
            settings,
            Progress(quiet),
            base=base,
            plan=plan,
            earlier=earlier or [],
            curve=curve,
            output=output,
            address=address,
            confusion=confusion,
        )
    for line in lines:
        print(line)
    write_json(json_file, report)
    raise typer.Exit(OK if report["met"] else NOT_MET)


@app.command(epilog="Example: `facecrowd plan --table people.parquet --policy policy.yaml --output planned`")
@speaking
@with_policy_flags
def plan(
    *,
    table: Annotated[str, TableFile],
    policy: PolicyFile = None,
    method: Annotated[str, typer.Option(help="mondrian, suppress, k-same, ppas or ppas-verified.")] = "mondrian",
    output: Annotated[str, typer.Option(help="Folder for plan.parquet, classes.parquet and verdict.json.")],
    earlier: Annotated[
        list[str] | None,
        typer.Option(help="Folder of an earlier plan whose release must not be undone; repeat it, the last one last."),
    ] = None,
    curve: Curve = False,
    workspace: Annotated[
        str | None, typer.Option(help="Private folder of the run key, for what is drawn [default: OUTPUT.workspace].")
    ] = None,
    address: Address = None,
    json_file: JsonFile = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress, only the verdict.")] = False,
    overrides: dict[str, Any],
) -> None:
    """Choose what a table releases of each person, so that a policy holds, at the least loss of information."""
    from facecrowd.jobs.table import plan_table

    settings = configs.load_policy(policy, overrides)
    base = policy.parent if policy is not None else Path()
    report, lines = plan_table(
        table,
        settings,
        method,
        output,
        Progress(quiet),
        base=base,
        earlier=earlier or [],
        curve=curve,
        workspace=workspace,
        address=address,
    )
    for line in lines:
        print(line)
    write_json(json_file, report)
    raise typer.Exit(OK if report["met"] else NOT_MET)


@app.command(
    epilog="Example: `facecrowd compare released released-blurred` or, of methods, "
    "`facecrowd compare --photos people --output compared --methods blur,k-same:5 --people 20`"
)
@speaking
def compare(
    releases: Annotated[list[str] | None, typer.Argument(help="Released folders, local or any fsspec URL.")] = None,
    photos: Annotated[
        str | None, typer.Option(help="Compare methods: folder of photos as PERSON/PHOTO to release by each.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="With --photos: folder of the releases, their workspace and audits.")
    ] = None,
    methods: Annotated[
        str,
        typer.Option(
            help="With --photos: comma-separated, some with a number or keys of the config behind colons (blur:8, "
            "k-same:10, tip-im:10:perturb.targets=2) [default: all]."
        ),
    ] = "",
    people: Annotated[int, typer.Option(min=2, help="With --photos: people, drawn by their names.")] = 100,
    photos_each: Annotated[int, typer.Option(min=2, help="With --photos: photos of each.")] = 10,
    config: Annotated[Path | None, typer.Option(help="With --photos: a release's config that all share.")] = None,
    models: Annotated[str | None, typer.Option(help="Folder of model files, or an insightface root.")] = None,
    attributes: Annotated[
        str | None, typer.Option(help="With --photos: table of attributes [default: predicted].")
    ] = None,
    depth: Annotated[str, typer.Option(help="With --photos: of the attacks, as in audit.")] = "full",
    faces: Annotated[int, typer.Option(min=20, help="With --photos: most faces whose pixels are compared.")] = 1000,
    json_file: JsonFile = None,
) -> None:
    """Releases side by side; or methods, each releasing the same photos and attacked alike."""
    from facecrowd.jobs import compare as comparison

    if (releases is None or not releases) == (photos is None):
        raise configs.ConfigError(
            "compare takes releases, or --photos to release by several methods; give one of the two"
        )
    if photos is None:
        rows = comparison.compare(releases or [])
        print(comparison.markdown(rows))
        if audits := comparison.attacked(releases or []):
            print(f"\n{comparison.side_by_side(audits)}")
        write_json(json_file, rows)
        return
    if output is None:
        raise configs.ConfigError("--photos needs --output, a folder for the releases and their audits")
    named = tuple(name.strip() for name in methods.split(",") if name.strip()) or comparison.ALL
    order = comparison.Order(photos, output, named, people, photos_each, config, models, attributes, depth, faces)
    found = comparison.methods(order, Progress())
    print(comparison.tables(found))
    plain = {name: one["report"] for name, one in found["methods"].items()}
    write_json(json_file, {**found, "methods": plain})


@app.command(epilog="Example: `facecrowd whatif released --workspace released.workspace --k 5,10,20`")
@speaking
def whatif(
    release: Annotated[str, typer.Argument(help="A released folder, local or any fsspec URL.")],
    workspace: Annotated[
        str | None, typer.Option(help="The workspace that made it [default: RELEASE.workspace].")
    ] = None,
    k: Annotated[str, typer.Option(help="Values of k to try, comma-separated.")] = "",
    l: Annotated[str, typer.Option(help="Of l: 2, entropy:1.5, recursive:3:2.")] = "",  # noqa: E741 the field's name
    t: Annotated[str, typer.Option(help="Of t: 0.2, 0.2:ordered.")] = "",
    epsilon: Annotated[str, typer.Option(help="Of epsilon.")] = "",
    grid: Annotated[bool, typer.Option("--grid", help="Every combination, not one change at a time.")] = False,
    json_file: JsonFile = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress, only the table.")] = False,
) -> None:
    """What other policies would cost this release: classes, people, information. Nothing is rendered or written."""
    from facecrowd.jobs import whatif as job

    space = workspace or f"{release.rstrip('/')}.workspace"
    rows = job.whatif(release, space, job.Wishes.read(k, l, t, epsilon, grid), Progress(quiet))
    print(job.markdown(rows))
    write_json(json_file, rows)


@app.command(epilog="Example: `facecrowd sweep sweep.yaml --pick 'rank1<=0.02'`")
@speaking
def sweep(
    config: Annotated[Path, typer.Argument(help="YAML: what to search, by what, and what to minimise or maximise.")],
    pick: Annotated[
        str, typer.Option(help="Write the release's config of the cheapest point that satisfies this (rank1<=0.02).")
    ] = "",
    json_file: JsonFile = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress, only the front.")] = False,
) -> None:
    """Search policies, methods and strengths for what protects most and costs least (needs facecrowd[sweep])."""
    from facecrowd.jobs import space, swept
    from facecrowd.jobs import sweep as job

    found = job.sweep(space.load(config, pick or None), Progress(quiet))
    for line in swept.lines(found):
        print(line)
    write_json(json_file, found.as_dict())
    raise typer.Exit(UNFINISHED if found.failed else OK if found.met else NOT_MET)


@app.command(epilog="Example: `facecrowd forget released.workspace --yes`")
@speaking
def forget(
    workspace: Annotated[str, typer.Argument(help="The workspace: a folder, or any fsspec URL.")],
    yes: Annotated[bool, typer.Option("--yes", help="Destroy it; without, say what would be, and exit 2.")] = False,
    catalog: Annotated[
        str | None,
        typer.Option(help="PyIceberg catalog outside that holds its tables; 'none': it is gone for good."),
    ] = None,
    json_file: JsonFile = None,
) -> None:
    """Destroy a workspace, run key first, so that nothing leads from its releases back to their sources."""
    from facecrowd.jobs.forget import forget as destroy

    report, lines = destroy(workspace, catalog, yes)
    for line in lines:
        print(line)
    write_json(json_file, report)
    raise typer.Exit(OK if report["met"] else NOT_MET if report["destroyed"] else BAD_INPUT)


@app.command(epilog="Example: `facecrowd demo --output demo-output`")
@speaking
def demo(
    output: Annotated[Path, typer.Option(help="Folder for the demo's release and workspace.")] = Path("demo-output"),
    methods: Annotated[bool, typer.Option("--methods", help="Release by every baseline too, and compare.")] = False,
    sheet: Annotated[Path | None, typer.Option(help="With --methods: write a picture of all of them here.")] = None,
    json_file: JsonFile = None,
) -> None:
    """Run the main job on the embedded set of synthetic people, and say where everything is."""
    from facecrowd.jobs.demo import run_demo

    write_json(json_file, run_demo(output, Progress(), methods, sheet))


app.command(epilog="Example: `facecrowd sheet --data photos --output sheet.png --rows 6`")(sheet)


# ----------------------------------------------------------------------------------------------------------- study


@study_app.command("make", epilog="Example: `facecrowd study make --released released --output study`")
@speaking
def study_make(
    released: Annotated[str, typer.Option(help="A release, or a folder of altered pictures as PERSON/PHOTO.")],
    output: Annotated[Path, typer.Option(help="Folder for study.html and key.json, both private.")],
    originals: Annotated[Path | None, typer.Option(help="Of a folder: the originals, named and framed alike.")] = None,
    workspace: Annotated[str | None, typer.Option(help="Of a release [default: RELEASED.workspace].")] = None,
    kind: Annotated[str, typer.Option(help="turing, same-person, parts or all.")] = "all",
    questions: Annotated[int, typer.Option(min=4, help="Questions of each kind.")] = 40,
    people: Annotated[
        str | None, typer.Option(help="Show only them: names, comma-separated, or a file with one per line.")
    ] = None,
    size: Annotated[int, typer.Option(min=48, max=1024, help="Largest side of a picture, in pixels.")] = 256,
    json_file: JsonFile = None,
) -> None:
    """A page that asks people about original and released faces without telling which is which, and its key."""
    from facecrowd.jobs import study

    if kind not in (*study.KINDS, "all"):
        raise configs.ConfigError(f"--kind {kind}: neither {' nor '.join(study.KINDS)} nor all")
    kinds = [known for known in study.KINDS if kind in (known, "all")]
    apart = [(path, Path(place).resolve()) for path in (output.resolve(),) for place in (originals, released) if place]
    if any(path.is_relative_to(place) for path, place in apart):
        raise configs.ConfigError(f"--output {output}: lies in a folder of pictures; the key would go where they go")
    only = None
    if people is not None:
        listed = Path(people).read_text("utf-8").splitlines() if Path(people).is_file() else people.split(",")
        only = [name.strip() for name in listed if name.strip()]
    key = study.make(study.collection(originals, released, workspace), output, kinds, questions, only, size)
    found = study.counts(key)
    for group, count in found.items():
        print(f"{count:4} {group}")
    print(f"page (private, for those who answer): {output / study.PAGE}\nkey (yours alone): {output / study.KEY}")
    write_json(json_file, {"study": key.study, "side": key.side, "questions": found})


@study_app.command("score", epilog="Example: `facecrowd study score study/key.json answers-*.json`")
@speaking
def study_score(
    key: Annotated[Path, typer.Argument(help="key.json, as 'make' wrote it.")],
    answers: Annotated[list[Path], typer.Argument(help="answers.json of each who took part.")],
    json_file: JsonFile = None,
) -> None:
    """How often people were right, with 95 % intervals, against chance and beside the papers' figures."""
    from facecrowd.jobs import study

    report = study.score(key, answers)
    for line in study.lines(report):
        print(line)
    write_json(json_file, report)


# ---------------------------------------------------------------------------------------------------------- models


@models_app.command("list", epilog="Example: `facecrowd models list`")
@speaking
def models_list(json_file: JsonFile = None) -> None:
    """Every model: what it is for, whether it is here, its licence and where it can be had."""
    from rich.console import Console
    from rich.table import Table

    from facecrowd.stages import models

    rows = models.listing()
    table = Table("model", "state", "used for", "licence")
    for row in rows:
        table.add_row(row["name"], row["state"], row["purpose"], row["licence"])
    Console(width=None if sys.stdout.isatty() else 200).print(table)
    write_json(json_file, rows)


@models_app.command("pull", epilog="Example: `facecrowd models pull scrfd-500m arcface-mobilefacenet`")
@speaking
def models_pull(
    names: Annotated[list[str] | None, typer.Argument(help="Models to fetch (default: all).")] = None,
) -> None:
    """Fetch models into the cache and check their hashes; what is there and whole is not fetched again."""
    from facecrowd.stages import models

    for path in models.pull(names or []):
        print(path)


@models_app.command("verify", epilog="Example: `facecrowd models verify`")
@speaking
def models_verify(
    names: Annotated[list[str] | None, typer.Argument(help="Models to check (default: all that are here).")] = None,
    json_file: JsonFile = None,
) -> None:
    """Check the hash of every model that is here; exit 1 if one is not what it should be."""
    from facecrowd.stages import models

    states = models.verify(names or [])
    for state in states:
        print(f"{state.state:8} {state.model.name}  {state.path or ''}")
    write_json(json_file, [state.row for state in states])
    wanted = "present" if names else "missing"
    bad = [s for s in states if s.state not in ("present", wanted)]
    raise typer.Exit(NOT_MET if bad else OK)


if __name__ == "__main__":
    main()
