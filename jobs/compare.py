"""``facecrowd compare``: releases side by side, from the audits they carry; or methods, on the same photos.

    facecrowd compare released released-blurred
    facecrowd compare --photos PHOTOS --output DIR --methods blur,k-same:5,deepblur:1

The first adds the attacks of audits that lie beside the releases (RELEASE-audit), in the layout of DeepBlur's table 2.
The second releases the same people by each method, into DIR/METHOD with one workspace for all, and attacks each
alike (``audit --depth full``). A release or audit that is done is not made again, so a killed comparison goes on.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from facecrowd.jobs.figures import Figure
from facecrowd.pipeline import config as configs
from facecrowd.pipeline import photos as inputs
from facecrowd.pipeline.errors import ConfigError, InputError, ReleaseError
from facecrowd.pipeline.progress import Progress
from facecrowd.pipeline.publish import AUDIT
from facecrowd.pipeline.storage import Folder
from facecrowd.pipeline.summary import cell

COLUMNS = (
    "release",
    "method",
    "guarantee",
    "images",
    "people",
    "distinct faces",
    "k",
    "effective k",
    "originals",
    "other originals",
    "released",
    "face found",
)


def compare(urls: list[str]) -> list[dict[str, Any]]:
    """One row per release: its table-level privacy, and rank-1 re-identification per subject for each gallery.

    Raises ReleaseError for a folder without an audit, or with one that is none.
    """
    rows = []
    for url in urls:
        audit = read_audit(Folder(url))
        with whole(url):
            rows.append(_row(url, audit))
    return rows


def markdown(rows: list[dict[str, Any]]) -> str:
    """The rows as a Markdown table."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "| " + " | ".join("---" for _ in COLUMNS) + " |"]
    lines += ["| " + " | ".join(_cell(row.get(column)) for column in COLUMNS) + " |" for row in rows]
    return "\n".join(lines)


KEYS: dict[str, type | tuple[type, ...]] = {
    "classes": (dict, type(None)),
    "counts": dict,
    "detection_rate": (int, float, type(None)),
    "guarantee": dict,
    "identity": dict,
    "leaks": list,
    "met": bool,
    "method": str,
    "reidentification": list,
    "requirements": list,
}
"""What every audit holds."""


def read_audit(release: Folder) -> dict[str, Any]:
    """The audit that a release carries. Raises ReleaseError where there is none, or where it is none."""
    if not release.exists(AUDIT):
        raise ReleaseError(f"release {release.url}: no {AUDIT} in it")
    with whole(release.url):
        audit: dict[str, Any] = json.loads(release.read(AUDIT))
        for key, kind in KEYS.items():
            if not isinstance(audit[key], kind):
                raise TypeError(f"{key} is {type(audit[key]).__name__}")
    return audit


@contextmanager
def whole(url: str) -> Iterator[None]:
    """Say of what is not as an audit has it that the file is no audit."""
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError) as error:
        what = f"no {error}" if isinstance(error, KeyError) else " ".join(str(error).split())
        raise ReleaseError(f"release {url}: {AUDIT} is not the audit of a release ({what})") from None


def _row(url: str, audit: dict[str, Any]) -> dict[str, Any]:
    counts, classes = audit["counts"], audit["classes"]
    k = next((r["found"] for r in audit["requirements"] if r["name"] == "k"), None)
    perturbed = audit.get("perturbation")
    row = {
        "release": url.rstrip("/").rsplit("/", 1)[-1],
        "method": " + ".join([audit["method"], *([perturbed["name"]] if perturbed else [])]),
        "guarantee": audit["guarantee"]["kind"] if classes else "none",
        "images": counts["released_images"],
        "people": counts["subjects_released"],
        "distinct faces": counts["distinct_faces"],
        "k": k,
        "effective k": classes["effective_k"] if classes else None,
        "face found": audit["detection_rate"],
    }
    for attack in audit["reidentification"]:
        row[attack["gallery"]] = attack.get("rank1_per_subject")
        row[f"{attack['gallery']} interval"] = [attack.get("low"), attack.get("high")]
    return row


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.1%}" if value <= 1 else f"{value:.4g}"
    return cell(value)


# ------------------------------------------------------------------------------------------------------------ methods

ANONYMOUSNET = {
    "method.name": "translation",
    "policy.quasi_identifiers": ["anonymousnet"],
    "policy.sensitive": ["Attractive"],
    "policy.k": 5,
    "policy.t": {"value": 0.2},
    "perturb.name": "universal",
}
METHODS: dict[str, tuple[dict[str, Any], str | None]] = {
    "blur": ({"method.name": "blur"}, "method.sigma"),
    "pixelate": ({"method.name": "pixelate"}, "method.blocks"),
    "mask": ({"method.name": "mask"}, None),
    "noise": ({"method.name": "noise"}, "method.gamma"),
    "inpaint": ({"method.name": "inpaint"}, "method.search_steps"),
    "k-same": ({"method.name": "k-same", "policy.k": 5}, "policy.k"),
    "k-same-average": ({"method.name": "k-same", "method.surrogate": "average", "policy.k": 5}, "policy.k"),
    "deepblur": ({"method.name": "deepblur"}, "method.latent_sigma"),
    "anonymousnet": (ANONYMOUSNET, "policy.k"),
    "advnoise": ({"method.name": "none", "perturb.name": "advnoise"}, "perturb.steps"),
    "tip-im": ({"method.name": "none", "perturb.name": "tip-im"}, "perturb.steps"),
    "universal": ({"method.name": "none", "perturb.name": "universal"}, "perturb.bound"),
    "identity-preserving": ({"method.name": "identity-preserving"}, "method.part_threshold"),
}
"""What a method of a comparison is, as a release's config, and what a number behind a colon sets; further colons set
keys of the config (``tip-im:10:perturb.targets=2``). ``anonymousnet`` is AnonymousNet's whole pipeline: prediction,
PPAS (verified), translation, one perturbation for all."""

ALL = (
    *("blur", "pixelate", "mask", "noise", "inpaint", "k-same:5", "k-same:10"),
    *("deepblur:0.5", "deepblur:1", "deepblur:2", "deepblur:5"),
    *("anonymousnet", "advnoise", "tip-im", "identity-preserving"),
)


@dataclass(frozen=True)
class Order:
    """A comparison of methods.

    data : folder of photos as PERSON/PHOTO, or a manifest; output : folder of the releases and their audits
    methods : names of ``METHODS``, some with a number or KEY=VALUE behind colons
    people, photos : how many, and how many of each
    config : a release's config that all share, beside what a method sets; depth, faces : as in ``audit``
    """

    data: str
    output: Path
    methods: tuple[str, ...] = ALL
    people: int = 100
    photos: int = 10
    config: Path | None = None
    models: str | None = None
    attributes: str | None = None
    depth: str = "full"
    faces: int = 1000

    def __post_init__(self) -> None:
        for method in self.methods:
            settings(self, method)
        if self.people < 2 or self.photos < 2:
            raise ConfigError("a comparison needs two people, and two photos of each, at least")


def _values(method: str) -> dict[str, Any]:
    """The config of a method as it is named. Raises ConfigError."""
    name, *more = method.split(":")
    if name not in METHODS:
        raise ConfigError(f"--methods {method}: none of {', '.join(METHODS)}")
    values, leaf = METHODS[name]
    given: dict[str, Any] = {}
    for part in more:
        key, equals, text = part.partition("=")
        if not equals:
            if leaf is None:
                raise ConfigError(f"--methods {method}: {name} takes no number")
            key, text = leaf, part
        given[key] = text
    return {**values, **given}


def settings(order: Order, method: str) -> configs.ReleaseConfig:
    """The release's config of a method. Raises ConfigError."""
    shared: dict[str, Any] = {
        "input.path": str(order.output / "photos"),
        "workspace.path": str(order.output / "workspace"),
        "release.path": str(order.output / method.replace(":", "-")),
        "detect.models": order.models,
        "input.attributes": order.attributes,
    }
    given = {name: value for name, value in shared.items() if value is not None}
    try:
        return configs.load(order.config, {**given, **_values(method)})
    except ConfigError as error:
        raise ConfigError(f"--methods {method}: {error}") from None


def chosen(order: Order) -> list[inputs.Photo]:
    """The photos of a comparison: of people with enough, those first by a hash of their names; of each the first by
    name. Raises InputError where nobody has as many."""
    found = inputs.listing(configs.load(None, {"input.path": order.data}).input, configs.Policy())
    by: dict[str, list[inputs.Photo]] = {}
    for photo in found.photos:
        if photo.subject:
            by.setdefault(photo.subject, []).append(photo)
    enough = [name for name, photos in by.items() if len(photos) >= order.photos]
    if len(enough) < 2:
        raise InputError(f"--photos {order.data}: fewer than two people with {order.photos} photos")
    drawn = sorted(enough, key=lambda name: hashlib.sha256(name.encode()).digest())[: order.people]
    return [photo for name in sorted(drawn) for photo in by[name][: order.photos]]


def _gather(photos: Sequence[inputs.Photo], folder: Path) -> None:
    """The photos as a folder of their own, for its owner's eyes alone: a release reads the whole of its input."""
    folder.mkdir(mode=0o700, exist_ok=True)
    wanted = {f"{photo.subject}/{Path(photo.path).name}": photo for photo in photos}
    if strange := [str(p.relative_to(folder)) for p in folder.glob("*/*") if str(p.relative_to(folder)) not in wanted]:
        raise ConfigError(f"--output: {folder} holds {strange[0]}, which is not compared now; give another folder")
    for name, photo in wanted.items():
        if not (folder / name).exists():
            (folder / name).parent.mkdir(exist_ok=True)
            Folder(str(folder)).write(
                Folder(str(Path(photo.path).parent)).read(Path(photo.path).name), *name.split("/")
            )


def methods(order: Order, progress: Progress) -> dict[str, Any]:
    """Release, attack, compare. Returns the rows of each method, and what was asked."""
    # Networks are loaded by what runs, not by who asks for a table.
    from facecrowd.jobs.audit import Order as Depth
    from facecrowd.jobs.audit import audit_release
    from facecrowd.pipeline import release as releases

    prepared = {method: settings(order, method) for method in order.methods}
    order.output.mkdir(parents=True, exist_ok=True)
    photos = chosen(order)
    _gather(photos, order.output / "photos")
    found: dict[str, Any] = {}
    people = {photo.subject for photo in photos}
    compared = {"people": len(people), "photos": len(photos), "depth": order.depth, "methods": found}
    for method, config in prepared.items():
        progress.say(f"compare: {method}")
        outcome = releases.release(releases.prepare(config), progress)
        url, workspace = outcome.release.url, str(config.workspace_path)
        before = tuple(f"{prepared[other].release.path}-audit" for other in found)
        depth: Any = order.depth
        asked = Depth(output=f"{url}-audit", depth=depth, faces=order.faces, baselines=before)
        report, _ = audit_release(url, workspace, progress, asked)
        found[method] = {"report": report, "figures": [Figure(**row) for row in report["figures"]]}
        # After each, so that who looks in meanwhile, or kills it, has what there is.
        (order.output / "compared.md").write_text(tables(compared) + "\n")
    return compared


Pick = Callable[[Figure], bool]


def _pick(section: str, name: str, by: str = "", setting: str = "", at: float | None = None) -> Pick:
    def pick(f: Figure) -> bool:
        same = (f.section, f.name, f.group) == (section, name, "") and (at is None or f.at == at)
        return same and (not by or f.by == by) and (not setting or f.setting == setting)

    return pick


HEADS: tuple[tuple[str, Pick, str], ...] = (
    *(
        (f"rank-1 {by.split('-')[0]}", _pick("identity", "rank1", by, "originals"), "share")
        for by in ("arcface-mobilefacenet", "sface", "edgeface-s")
    ),
    ("rank-1 released", _pick("identity", "rank1", "edgeface-s", "released"), "share"),
    ("TAR at FAR 1 %", _pick("identity", "tar", "edgeface-s", "originals", 0.01), "share"),
    ("member AUC", _pick("membership", "auc", "edgeface-s"), "number"),
    ("face found", _pick("utility", "detected"), "share"),
    ("PSNR", _pick("utility", "psnr"), "number"),
    ("SSIM", _pick("utility", "ssim"), "number"),
    ("LPIPS", _pick("utility", "lpips"), "number"),
    ("FID", _pick("utility", "fid"), "number"),
)
"""Columns of the table of methods: what each shows, and whether as a share; one that nothing was measured of is left
out. EdgeFace took part in no method."""


def tables(found: Mapping[str, Any]) -> str:
    """What was compared, and ``side_by_side`` of it."""
    what = f"{found['people']} people, {found['photos']} photos, attacks: {found['depth']}"
    return what + "\n\n" + side_by_side({name: one["figures"] for name, one in found["methods"].items()})


def side_by_side(figures: Mapping[str, Sequence[Figure]]) -> str:
    """Two tables in Markdown: recognition and use by method, and DeepBlur's table 2 beside the paper's figures."""
    from facecrowd.jobs.attackers import table2

    found = {
        head: [next((f.value for f in of if pick(f) and f.value is not None), None) for of in figures.values()]
        for head, pick, _ in HEADS
    }
    shown = [(head, kind) for head, _, kind in HEADS if any(value is not None for value in found[head])]
    lines = ["| method | " + " | ".join(head for head, _ in shown) + " |", "| --- |" + " --: |" * len(shown)]
    for at, method in enumerate(figures):
        cells = []
        for head, kind in shown:
            value = found[head][at]
            cells.append("–" if value is None else f"{value:.1%}" if kind == "share" else f"{value:.3g}")
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", "DeepBlur, table 2 (in brackets the paper's):", "", table2(figures)])


def attacked(urls: Sequence[str]) -> dict[str, list[Figure]]:
    """The figures of those releases that an audit lies beside (RELEASE-audit), by the releases' names."""
    found = {}
    for url in (url.rstrip("/") for url in urls):
        audit = Folder(f"{url}-audit")
        if audit.exists(AUDIT):
            with whole(audit.url):
                report = json.loads(audit.read(AUDIT))
                found[url.rsplit("/", 1)[-1]] = [Figure(**row) for row in report["figures"]]
    return found
