"""The command line: ``facecrowd release|audit|plan|train|evaluate|study|models|bench|demo``.

The flags of ``release`` are made from ``pipeline/config.py``, so that a field of the config and its flag cannot part.
Exit codes: 0 it ran and what was asked holds; 1 it ran, and the policy or audit is not met; 2 bad usage, config or
input; 3 it could not finish.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import inspect
import json
import os
import select
import signal
import sys
import time
import traceback
import types
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from facecrowd.pipeline import config as configs
from facecrowd.pipeline.errors import FacecrowdError
from facecrowd.pipeline.progress import Progress

if TYPE_CHECKING:
    from facecrowd.jobs.labelled import Faces

OK, NOT_MET, BAD_INPUT, UNFINISHED = 0, 1, 2, 3

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
bench_app = typer.Typer(help="How fast facecrowd is, measured against others in the same run.", no_args_is_help=True)
app.add_typer(bench_app, name="bench")
train_app = typer.Typer(
    help="Train what facecrowd ships, or your own; a killed training resumes.", no_args_is_help=True
)
app.add_typer(train_app, name="train")
evaluate_app = typer.Typer(help="Measure the shipped networks on labelled faces.", no_args_is_help=True)
app.add_typer(evaluate_app, name="evaluate")
study_app = typer.Typer(
    help="Ask people what they see in released faces, and score their answers.", no_args_is_help=True
)
app.add_typer(study_app, name="study")

JsonFile = Annotated[Path | None, typer.Option("--json", help="Write the same figures as JSON to this file.")]


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


def speaking(command: Callable[..., None]) -> Callable[..., None]:
    """Turn what a user can mend into one sentence and its exit code."""

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:
        from facecrowd.privacy.errors import PrivacyError
        from facecrowd.stages.models import ModelError

        try:
            _can_write(kwargs.get("json_file"))
            command(*args, **kwargs)
        except typer.Exit as done:
            _nobody_reads()
            raise typer.Exit(done.exit_code) from None
        except (typer.Abort, typer.BadParameter):
            raise
        except SystemExit:  # rich's word for a reader that went away
            raise typer.Exit(UNFINISHED) from None
        except FacecrowdError as error:
            raise _stop(error, error.exit_code) from None
        except (ModelError, PrivacyError) as error:
            raise _stop(error, BAD_INPUT) from None
        except KeyboardInterrupt:
            raise _stop("interrupted; start it again to go on", UNFINISHED) from None
        except OSError as error:
            if isinstance(error, BrokenPipeError) and _nobody_reads():
                raise typer.Exit(UNFINISHED) from None
            raise _stop(f"{error.filename or ''} {error.strerror or error}".strip(), UNFINISHED) from None
        except Exception as error:
            if os.environ.get("FACECROWD_DEBUG") == "1":
                traceback.print_exc()
            what = " ".join(str(error).split())[:500]
            raise _stop(f"unexpected: {type(error).__name__}: {what}; please report it", UNFINISHED) from None
        _nobody_reads()

    return run


def _nobody_reads() -> bool:
    """Send all output. Whether its reader has gone (``| head``): no failure of the job, and no more is tried."""
    try:
        sys.stdout.flush()
        gone = select.poll()
        gone.register(sys.stdout.fileno(), 0)
        if not gone.poll(0):
            return False
    except BrokenPipeError:
        pass
    except (OSError, ValueError):  # no file behind it
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return True


def _stop(what: object, code: int) -> typer.Exit:
    print(f"facecrowd: {what}", file=sys.stderr)
    return typer.Exit(code)


def _can_write(file: Path | None) -> None:
    """Refuse a --json file that could not be written, before the work whose figures it is for."""
    if file is None:
        return
    if file.is_dir():
        raise configs.ConfigError(f"--json {file}: a folder is in the way")
    parent = next(p for p in file.absolute().parents if p.exists())
    if not parent.is_dir():
        raise configs.ConfigError(f"--json {file}: {parent} is not a folder")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise configs.ConfigError(f"--json {file}: {parent} is not writable")


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
        _write_json(json_file, forecast.as_dict())
        return
    outcome = releases.release(prepared, Progress(quiet))
    if outcome.reused:
        print("already released with these settings and inputs; nothing to do")
    for line in verdict_lines(outcome.audit):
        print(line)
    print(f"release: {outcome.release.url}\nworkspace (private): {outcome.workspace.url}")
    _write_json(json_file, outcome.audit)
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
    _write_json(json_file, report)
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
    _write_json(json_file, report)
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
        _write_json(json_file, rows)
        return
    if output is None:
        raise configs.ConfigError("--photos needs --output, a folder for the releases and their audits")
    named = tuple(name.strip() for name in methods.split(",") if name.strip()) or comparison.ALL
    order = comparison.Order(photos, output, named, people, photos_each, config, models, attributes, depth, faces)
    found = comparison.methods(order, Progress())
    print(comparison.tables(found))
    plain = {name: one["report"] for name, one in found["methods"].items()}
    _write_json(json_file, {**found, "methods": plain})


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
    _write_json(json_file, rows)


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
    _write_json(json_file, found.as_dict())
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
    _write_json(json_file, report)
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

    _write_json(json_file, run_demo(output, Progress(), methods, sheet))


# ------------------------------------------------------------------------------------------------ train, evaluate

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

    _write_json(json_file, heads.run(output, pictures, steps, work, Progress().say))


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
    _write_json(json_file, {"variance_read": read, "rows": found.rows.tolist(), "flips": flips})


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
    _write_json(json_file, report)


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
    _write_json(json_file, found)


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
    _write_json(json_file, found)


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
    _write_json(json_file, found)


@app.command(epilog="Example: `facecrowd sheet --data photos --output sheet.png --rows 6`")
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
    _write_json(json_file, {"study": key.study, "side": key.side, "questions": found})


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
    _write_json(json_file, report)


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
    _write_json(json_file, rows)


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
    _write_json(json_file, [state.row for state in states])
    wanted = "present" if names else "missing"
    bad = [s for s in states if s.state not in ("present", wanted)]
    raise typer.Exit(NOT_MET if bad else OK)


# ----------------------------------------------------------------------------------------------------------- bench


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
    _write_json(json_file, figures)


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
    _write_json(json_file, figures)


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
    _write_json(json_file, figures)


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


def _write_json(file: Path | None, figures: Any) -> None:
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(figures, indent=1, sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
