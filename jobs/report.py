"""The audit page: ``report.html``, one file that needs no network and no script, for a phone, a desk and paper.

``write`` puts an audit in words and charts and leaves the layout to ``report.html``. The page answers, in this order:
is the release as its policy asks, what of that is formal, how large are the crowds, what did attacks achieve, what is
left to use, for whom is it worse, what was found and not found, and how to measure all of it again. What is missing in
an audit is said to be not measured; no figure is made up for it.
"""

from __future__ import annotations

import base64
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count, groupby
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from facecrowd.jobs import charts, pages
from facecrowd.jobs.charts import Chart, Line, Mark, Point, exact, percent, plain
from facecrowd.jobs.figures import Figure
from facecrowd.pipeline import perturbation, summary, translation
from facecrowd.pipeline.config import CLOAK
from facecrowd.pipeline.verification import NAMES

MOST_FACES = 24
MOST_ROWS = 12
"""Rows of a table that stand open; the others unfold."""
MOST_LEAKS = 100
MOST_STEPS = 120
"""Points of a line."""

JPEG = b"\xff\xd8\xff"

BROKEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]")
"""What is no text, or turns the text around it: a name must not rearrange the page."""

ATTACKS: dict[str, tuple[str, str]] = {
    "identity": (
        "Recognition",
        "A recogniser that was trained elsewhere compares released faces with a gallery of known people, of original "
        "photos or of other released faces.",
    ),
    "trained": (
        "Attackers trained for the purpose",
        "T1 trains on originals and is shown released faces. T2 trains on released faces and is shown originals. T3 "
        "trains on released faces and is shown others of them. Originals on both sides say how good an attacker is "
        "where nothing was done.",
    ),
    "linkage": ("Linkage", "Released faces are compared with each other: which of them are the same person?"),
    "table": (
        "The released table",
        "No pixels: singling people out, linking and inferring from the released attributes alone.",
    ),
    "inference": (
        "Inference from pixels",
        "A classifier looks at released faces and guesses the attributes of the originals. Chance is the most frequent "
        "value.",
    ),
    "membership": ("Membership", "Is a person whose photo is at hand in the release at all?"),
}
UTILITY = ("Use", "What the released faces are still good for.")

LABELS = {
    "rank1": "Rank-1",
    "rank5": "Rank-5",
    "top1": "Top-1",
    "top5": "Top-5",
    "tar": "TAR",
    "tpir": "TPIR",
    "tpr": "TPR",
    "eer": "Equal-error rate",
    "auc": "AUC",
    "psnr": "PSNR, dB",
    "ssim": "SSIM",
    "ms_ssim": "MS-SSIM",
    "ms-ssim": "MS-SSIM",
    "lpips": "LPIPS",
    "fid": "FID",
    "kid": "KID",
    "p-value": "p-value of the bound",
}
RATES_AT = {"tar": "FAR", "tpir": "FPIR", "tpr": "FPR"}
PLAIN = re.compile(
    "auc|psnr|ssim|ms.ssim|lpips|fid|kid|p|epsilon|.*(p.value|advantage|distance|difference|correlation|error)"
)
"""Names that are no shares of anything, whatever their size."""

HEADLINE = ("rank1", "top1")

EVERY = "mean of attributes"
"""What a figure of use is called that is of all attributes."""

REFUTED = 0.05
RECORDED, MEASURED = "recorded when the release was made", "measured again, on the pixels of the released files"
"""A p-value under this refutes a bound; divided by the number of tests where there are several."""

WHY_NOT = "no figure of it in this audit"


@dataclass(frozen=True, eq=False)
class Page:
    """What the page shows beside the audit's figures.

    sizes : (C,) int, distinct subjects of each class; t : sensitive attribute → (C,) float, the class's distance;
    curves : attacker, threat, epoch, train_loss, train_top1, validation_top1; sheet : released faces, JPEG, of which at
    most 24 are drawn by ``seed``; originals : paired with ``sheet``, and then the page is private; baselines : other
    releases as (label, utility, privacy), measured as ``position`` does; snapshot : the Iceberg snapshot audited
    """

    sizes: NDArray[Any] | None = None
    t: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    curves: pa.Table | None = None
    sheet: Sequence[bytes] = ()
    originals: Sequence[bytes] | None = None
    baselines: Sequence[tuple[str, float, float]] = ()
    commands: Sequence[str] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    seed: int | None = None
    snapshot: int | str | None = None


@dataclass(frozen=True)
class Position:
    """Where a release lies between privacy and use.

    utility : in [0, 1], more is better; privacy : the strongest attacker's rate, less is better; measure, attack : the
    figures that they are of
    """

    measure: str
    attack: str
    utility: float
    privacy: float
    utility_interval: tuple[float, float] | None
    privacy_interval: tuple[float, float] | None


def strongest(figures: Sequence[Figure]) -> Figure | None:
    """The attack that names most people: the largest rank-1 or top-1 of everybody. None where there is none."""
    named = [f for f in figures if f.section in ("identity", "trained") and f.name in HEADLINE]
    found = [f for f in named if _known(f) and not f.group and f.better == "lower"]
    return max(found, key=lambda f: f.value or 0.0, default=None)


def position(figures: Sequence[Figure]) -> Position | None:
    """The release's point in the plane: use is 1 - LPIPS, else the mean agreement of attributes, else SSIM."""
    attack = strongest(figures)
    use = [f for f in figures if f.section == "utility" and _known(f) and not f.group]
    if attack is None or attack.value is None:
        return None
    for name in ("lpips", "agreement", "ssim"):
        found = [f for f in use if f.name == name]
        found = [f for f in found if f.setting == EVERY] or found
        if not found:
            continue
        turn: Callable[[float], float] = (lambda v: 1 - v) if name == "lpips" else float
        value = float(np.mean([turn(f.value) for f in found if f.value is not None]))
        only = _interval(found[0]) if len(found) == 1 else None
        between = None if only is None else (min(map(turn, only)), max(map(turn, only)))
        measure = {"lpips": "1 − LPIPS", "agreement": "agreement of attributes", "ssim": "SSIM"}[name]
        return Position(measure, _who(attack), value, attack.value, between, _interval(attack))
    return None


def write(report: Mapping[str, Any], figures: Sequence[Figure], extra: Page) -> str:
    """The page.

    report : the audit as in audit.json, of which any key may be missing; figures : of everything measured. Rank-1 that
    only ``report`` holds is shown as well. Raises ValueError where a face is no JPEG, or originals are not paired.
    """
    figures = [*figures, *_recorded(report, figures)]
    keys = (f"chart-{number}" for number in count(1))
    leads = {name: (title, lead + _bounded(report, name)) for name, (title, lead) in ATTACKS.items()}
    attacks = [_part(name, *leads[name], figures, keys) for name in ATTACKS]
    use = _part("utility", *UTILITY, figures, keys)
    private = extra.originals is not None
    values = {
        "private": private,
        "title": ("PRIVATE: " if private else "") + f"Privacy audit: {_method(report)}",
        "method": _method(report),
        "met": None if asks_nothing(report) else _met(report),
        "asked": not asks_nothing(report),
        "sentence": sentence(report),
        "numbers": _numbers(report, figures, extra),
        "requirements": [_requirement(r, report, figures) for r in report.get("requirements") or []],
        "guarantee": (report.get("guarantee") or {}).get("text"),
        "formal": _claims(report, formal=True),
        "empirical": _claims(report, formal=False),
        "sizes": _sizes(report, extra, keys),
        "closeness": _closeness(report, extra, keys),
        "plane": _plane(figures, extra, keys),
        "attacks": attacks,
        "curves": _curves(extra.curves, figures, keys),
        "use": use,
        "shown": _attributes_shown(report, keys),
        "said": _said(report),
        "groups": _groups(figures, keys),
        "faces": _faces(extra),
        "leaks": _leaks(report.get("leaks")),
        "more_leaks": max(len(report.get("leaks") or []) - MOST_LEAKS, 0),
        "not_measured": _not_measured(report, figures, extra),
        "models": report.get("models") or [],
        "policy": _flat(report.get("policy") or {}),
        "extra": extra,
        "open_rows": MOST_ROWS,
    }
    return BROKEN.sub("\ufffd", pages.page("report.html", values))


def _bounded(report: Mapping[str, Any], section: str) -> str:
    """What a bound means for the figures of a section, where there is one."""
    k = (report.get("policy") or {}).get("k")
    if section not in ("identity", "trained") or (report.get("guarantee") or {}).get("kind") != "formal" or not k:
        return ""
    return (
        f" Chance is a guess among everybody. Whoever knows who shares a class guesses right in 1/{k}: "
        "that is what the release allows, and figures between the two break no promise."
    )


def sentence(report: Mapping[str, Any]) -> str:
    """The verdict in one sentence, which stands on top of the page."""
    met = _met(report)
    if met is None:
        return "Not measured: this audit holds no verdict."
    if report.get("figures_origin") == RECORDED:
        now = sentence({**report, "figures_origin": None})
        return f"{now} So it was recorded when the release was made; nothing was measured again."
    if not met:
        failed = [
            f"{_named(r)} is {_value(r, r.get('found'))} where {_bound(r)} was asked"
            for r in report.get("requirements") or []
            if not r.get("met")
        ]
        if leaks := len(report.get("leaks") or []):
            failed.append(f"{leaks} leak{'s were' if leaks > 1 else ' was'} found")
        reasons = f": {'; '.join(failed)}" if failed else ""
        return f"This release is not as its policy asks{reasons}."
    kind, k = (report.get("guarantee") or {}).get("kind"), (report.get("policy") or {}).get("k")
    if kind == "formal" and k:
        effective = (report.get("classes") or {}).get("effective_k") or k
        tilt = f", and 1/{effective:.3g} for whoever knows photo counts" if effective < k else ""
        bound = f"at most 1/{k} per subject, which is formal under a uniform prior{tilt}"
        return f"This release is as its policy asks: {bound}."
    if report.get("recognisers"):
        return (
            "This release is as its policy asks, and no de-identification: recognisers are meant to match these faces."
        )
    if report.get("method") == CLOAK:
        return (
            "This release is as its policy asks; its faces are originals that people know as before, and what hides "
            "them from recognisers is measured, not guaranteed."
        )
    if report.get("method") == "translation":
        return (
            "The released attributes are as the policy asks; identity is not guaranteed, and all that is said of it "
            "here was measured."
        )
    if asks_nothing(report):
        return "No privacy was asked of this release, and none is guaranteed: all that is said here was measured."
    return "This release is as its policy asks, and nothing is guaranteed: all that is said here was measured."


def asks_nothing(report: Mapping[str, Any]) -> bool:
    """Whether no requirement of the policy is one of privacy: how many may be left out is none."""
    return bool(report.get("met")) and all("uppress" in _named(r) for r in report.get("requirements") or [])


# ------------------------------------------------------------------------------------------------- the words of figures


def _known(figure: Figure) -> bool:
    return figure.value is not None and math.isfinite(figure.value)


def _interval(figure: Figure) -> tuple[float, float] | None:
    return None if figure.low is None or figure.high is None else (figure.low, figure.high)


def _name(name: str) -> str:
    return LABELS.get(name) or (name[:1].upper() + name[1:]).replace("_", " ")


def _at(figure: Figure) -> str:
    if figure.at is None:
        return ""
    if figure.name in RATES_AT:
        return f"at {RATES_AT[figure.name]} {exact(figure.at)}"
    if figure.name == "singling_out":
        return f"by {plain(figure.at)} attribute{'s' if figure.at != 1 else ''}"
    return f"at {plain(figure.at)}"


def _what(figure: Figure) -> str:
    return " ".join(part for part in (_name(figure.name), _at(figure)) if part)


def _who(figure: Figure) -> str:
    """Who measured it, and against what."""
    at = _at(figure).removeprefix("at ")
    return ", ".join(part for part in (figure.by, figure.setting, at) if part) or _name(figure.name)


def _shares(figures: Iterable[Figure]) -> bool:
    """Whether these are shares of 1, to be written as percentages."""
    some = list(figures)
    numbers = [v for f in some for v in (f.value, f.low, f.high, f.chance) if v is not None]
    return all(not PLAIN.fullmatch(f.name) for f in some) and all(0 <= v <= 1 for v in numbers)


def _written(figure: Figure, word: Callable[[float], str]) -> str:
    """Value and interval."""
    if figure.value is None:
        return "not measured"
    between = _interval(figure)
    return word(figure.value) + (f" [{word(between[0])}, {word(between[1])}]" if between else "")


def _against(figure: Figure) -> str:
    """What the interval says of chance."""
    between, chance = _interval(figure), figure.chance
    if between is None or chance is None:
        return ""
    return "exceeded" if between[0] > chance else "not reached" if between[1] < chance else "in the interval"


def _recorded(report: Mapping[str, Any], figures: Sequence[Figure]) -> list[Figure]:
    """Rank-1 as the release's own record has it, where nobody measured the same again."""
    measured = {(f.by, f.setting) for f in figures if f.section == "identity" and f.name == "rank1"}
    out = []
    for row in report.get("reidentification") or []:
        by, setting = str(row.get("recogniser") or ""), str(row.get("gallery") or "")
        if (by, setting) in measured:
            continue
        why = row.get("not_measured")
        notes = [str(row[key]) for key in ("what", "when") if row.get(key)]
        notes += ["recognisers are meant to match these faces"] if row.get("intended") else []
        out.append(
            Figure(
                "identity",
                "rank1",
                by,
                setting,
                value=None if why else row.get("rank1_per_subject"),
                low=row.get("low"),
                high=row.get("high"),
                chance=row.get("chance"),
                faces=int(row.get("probes") or 0),
                subjects=int(row.get("subjects") or 0),
                better="higher" if row.get("intended") else "lower",
                note=str(why) if why else "; ".join(notes),
            )
        )
    return out


# ------------------------------------------------------------------------------------------------------------- verdict


def _method(report: Mapping[str, Any]) -> str:
    perturbed = (report.get("perturbation") or {}).get("name")
    named = [str(part) for part in (report.get("method"), perturbed) if part and part != CLOAK]
    return " + ".join(named) or "method not stated"


def _met(report: Mapping[str, Any]) -> bool | None:
    met = report.get("met")
    return None if met is None else bool(met)


def _numbers(report: Mapping[str, Any], figures: Sequence[Figure], extra: Page) -> list[tuple[str, str]]:
    """The figures that stand under the verdict, named."""
    counts, classes = report.get("counts") or {}, report.get("classes") or {}

    def many(key: str) -> str:
        return plain(counts[key]) if isinstance(counts.get(key), int) else "not measured"

    smallest = classes.get("smallest")
    if smallest is None and (sizes := _class_sizes(report, extra)) is not None:
        smallest = int(sizes.min())
    attack = strongest(figures)
    told = "not measured" if attack is None or attack.value is None else percent(attack.value)
    chance = "" if attack is None or attack.chance is None else f" (chance {percent(attack.chance)})"
    return [
        ("people released", many("subjects_released")),
        ("images", many("released_images")),
        ("distinct faces", many("distinct_faces")),
        ("smallest class, in people", "no classes" if smallest is None else plain(smallest)),
        (f"named by the strongest attacker{chance}", told),
    ]


def _named(requirement: Mapping[str, Any]) -> str:
    name = str(requirement.get("name") or "requirement")
    return "Suppression" if name in ("max_suppression", "suppression") else name


def _bound(requirement: Mapping[str, Any]) -> str:
    least = re.match(r"(k|l)\b", _named(requirement)) is not None
    return f"{'at least' if least else 'at most'} {_value(requirement, requirement.get('asked'))}"


def _value(requirement: Mapping[str, Any], value: Any) -> str:
    if value is None:
        return "not measured"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    shares = ("Suppression", *NAMES.values())
    return percent(value) if _named(requirement) in shares else plain(value)


@dataclass(frozen=True)
class _Said:
    """One of a requirement's three lines. met : None where this line alone decides nothing."""

    of: str
    kind: str
    text: str
    met: bool | None = None


@dataclass(frozen=True)
class _Requirement:
    name: str
    asked: str
    met: bool | None
    lines: tuple[_Said, ...]
    note: str


def _requirement(row: Mapping[str, Any], report: Mapping[str, Any], figures: Sequence[Figure]) -> _Requirement:
    kind, nothing = str(row.get("kind") or "kind not stated"), "does not apply"
    if _named(row) in NAMES.values():
        found = _Said(
            "Recognition" if _named(row) == NAMES["recognition"] else "Shown", kind, _value(row, row.get("found"))
        )
        others = [_Said(of, "", nothing) for of in ("Planned", "Shown", "Recognition") if of != found.of]
        lines = sorted([found, *others], key=lambda line: ("Planned", "Shown", "Recognition").index(line.of))
        return _Requirement(_named(row), _bound(row), row.get("met"), tuple(lines), str(row.get("note") or ""))
    planned = _Said("Planned", kind, _value(row, row.get("found")), row.get("met"))
    told = (planned, _shown(row, report), _recognition(row, report, figures))
    return _Requirement(_named(row), _bound(row), row.get("met"), told, str(row.get("note") or ""))


def _of_table(row: Mapping[str, Any]) -> bool:
    """Whether a requirement is of the released table alone: no pixels could show it."""
    return "uppress" in _named(row) or _named(row) == "vectors per subject"


def _shown(row: Mapping[str, Any], report: Mapping[str, Any]) -> _Said:
    """The requirement as a predictor sees it in the released pixels, its own error carried through."""
    found, looked = row.get("shown"), report.get("attributes") or {}
    if isinstance(found, Mapping) and found.get("found") is not None:
        text = f"{_value(row, found['found'])} as predicted"
        if found.get("corrected") is not None:
            text += f"; {_value(row, found['corrected'])} with the predictor's own error taken out"
        if found.get("low") is not None and found.get("high") is not None:
            text += f" [{_value(row, found['low'])}, {_value(row, found['high'])}]"
        note = f". {found['note']}" if found.get("note") else ""
        return _Said(
            "Shown", f"measured against predictor {found.get('by') or 'not named'}", text + note, found.get("met")
        )
    if _of_table(row):
        return _Said("Shown", "", "does not apply: it counts people, not what pixels show")
    loop = report.get("verification") or {}
    last = [one for one in (loop.get("rounds") or [[]])[-1] if one.get("name") == "attributes"]
    if _named(row) == "k" and last and last[0].get("share") is not None:
        text = f"{percent(last[0]['share'])} of planned values are not shown"
        if last[0].get("observed") is not None:
            text += f", the predictor's own errors taken off; with them {percent(last[0]['observed'])}"
        return _Said("Shown", f"measured against predictor {loop.get('judge') or 'not named'}", text)
    rows = [r for r in looked.get("shown") or [] if r.get("released_agreement") is not None]
    if _named(row) == "k" and rows:
        worst = min(rows, key=lambda r: float(r["released_agreement"]))
        text = f"{percent(worst['released_agreement'])}"
        if worst.get("low") is not None and worst.get("high") is not None:
            text += f" [{percent(worst['low'])}, {percent(worst['high'])}]"
        text += f" of distinct pictures show the released {worst.get('attribute')}, the least of {len(rows)} attributes"
        if worst.get("originals_agreement") is not None:
            text += f"; the same predictor is right about originals for {percent(worst['originals_agreement'])}"
        return _Said("Shown", f"measured against predictor {looked.get('judge') or 'not named'}", text)
    why = (found or {}).get("note") if isinstance(found, Mapping) else None
    return _Said("Shown", "", f"not measured{f': {why}' if why else ''}")


def _recognition(row: Mapping[str, Any], report: Mapping[str, Any], figures: Sequence[Figure]) -> _Said:
    """What recognisers, or classifiers for l and t, achieve against what the requirement promises."""
    name, policy, given = _named(row), report.get("policy") or {}, row.get("recognition")
    if isinstance(given, Mapping) and given.get("value") is not None:
        text = percent(given["value"])
        if given.get("low") is not None and given.get("high") is not None:
            text += f" [{percent(given['low'])}, {percent(given['high'])}]"
        if given.get("bound") is not None:
            text += f" where at most {percent(given['bound'])} is promised"
        note = f". {given['note']}" if given.get("note") else ""
        return _Said("Recognition", f"measured with {given.get('by') or 'not named'}", text + note, given.get("met"))
    if name == "k" and (attack := strongest(figures)) is not None and attack.value is not None:
        text = f"{_written(attack, percent)} of people named"
        bound, between = 1 / float(row["asked"]) if row.get("asked") else None, _interval(attack)
        if bound is not None and between is not None:
            way = "above" if between[0] > bound else "below" if between[1] < bound else "consistent with"
            text += f", {way} 1/{plain(float(row['asked']))} = {percent(bound)}"
        held = [f for f in figures if f.section == "identity" and f.name == "p-value" and f.value is not None]
        tests, least = [f.value for f in held if f.value is not None], [f.low for f in held if f.low is not None]
        if tests and min(tests) < REFUTED / len(tests):
            text += f"; the bound is refuted, p = {plain(min(tests))}"
        elif tests and min(least, default=0.0) > REFUTED:
            text += "; by wager the bound cannot be tested with so few classes"
        elif tests:
            of = f"smallest p of {len(tests)} tests" if len(tests) > 1 else "p ="
            text += f"; the bound is not refuted, {of} {plain(min(tests))}"
        return _Said("Recognition", f"measured with {_who(attack)}", text)
    secret = [str(s) for s in policy.get("sensitive") or []]
    if re.match(r"(l|t)\b", name):
        of = name.partition(" of ")[2]
        wanted = {of} if of else set(secret)
        seen = [f for f in figures if f.section == "inference" and _known(f) and not f.group and f.setting in wanted]
        if seen:
            worst = max(seen, key=lambda f: (f.value or 0) - (f.chance or 0))
            guess = "" if worst.chance is None else f", the most frequent value alone {percent(worst.chance)}"
            text = f"{worst.setting} inferred from pixels for {_written(worst, percent)}{guess}"
            return _Said("Recognition", f"measured with {worst.by or 'a classifier'}", text)
    if _of_table(row):
        return _Said("Recognition", "", "does not apply")
    return _Said("Recognition", "", "not measured")


def _claims(report: Mapping[str, Any], formal: bool) -> list[str]:
    """What is claimed, by its kind."""
    rows = [r for r in report.get("requirements") or [] if (r.get("kind") == "formal") == formal]
    out = [
        f"{_named(r)}: {_value(r, r.get('found'))}" + ("" if formal else f" ({r.get('kind') or 'kind not stated'})")
        for r in rows
    ]
    k = (report.get("policy") or {}).get("k")
    found = [r["found"] for r in rows if _named(r) == "k" and r.get("found")]
    k = min([k, *found]) if k else k
    if formal and (report.get("guarantee") or {}).get("kind") == "formal" and k:
        out.insert(
            0,
            f"naming the person behind a released face succeeds with probability at most 1/{plain(k)}, under a "
            "uniform prior over the class and without other knowledge",
        )
    if not formal:
        out.append(
            "every attack, with the recognisers, classifiers and people named beside it; others may achieve more"
        )
        out.append("every attribute that pixels show, as predictors see it")
        out.append("use, per demographic group too")
    return out


# --------------------------------------------------------------------------------------------------------------- table


def _class_sizes(report: Mapping[str, Any], extra: Page) -> NDArray[Any] | None:
    """(C,) distinct subjects of each class, from the classes themselves or from the audit's counts of them."""
    if extra.sizes is not None:
        sizes = np.asarray(extra.sizes)
    else:
        counted = (report.get("classes") or {}).get("sizes") or {}
        sizes = np.repeat([int(s) for s in counted], [int(n) for n in counted.values()]) if counted else np.array([])
    return sizes if len(sizes) else None


def _sizes(report: Mapping[str, Any], extra: Page, keys: Iterable[str]) -> Chart | None:
    sizes, asked = _class_sizes(report, extra), (report.get("policy") or {}).get("k")
    if sizes is None:
        return None
    finding = (
        f"{_many(len(sizes), 'class', 'classes')} of {plain(int(sizes.min()))} to {plain(int(sizes.max()))} people, "
        f"half of them of at most {plain(float(np.median(sizes)))}."
    )
    if len(set(sizes.tolist())) == 1:
        finding = f"All {_many(len(sizes), 'class', 'classes')} have {plain(int(sizes[0]))} people."
    if asked:
        under = int((sizes < asked).sum())
        finding += f" {'None is' if not under else f'{plain(under)} are' if under > 1 else 'One is'} smaller than the "
        finding += f"{plain(asked)} asked."
    return charts.histogram(_next(keys), "Class sizes in distinct people", finding, sizes, asked, "classes")


def _closeness(report: Mapping[str, Any], extra: Page, keys: Iterable[str]) -> Chart | None:
    """t of every class, from the lowest to the highest."""
    found = {str(name): np.sort(np.asarray(values, dtype=float)) for name, values in extra.t.items() if len(values)}
    found = {name: values[np.isfinite(values)] for name, values in found.items() if np.isfinite(values).any()}
    if not found:
        return None
    asked = next((r.get("asked") for r in report.get("requirements") or [] if re.match(r"t\b", _named(r))), None)
    ordered = sorted(found.items(), key=lambda item: -item[1][-1])
    drawn = []
    for name, values in ordered:
        at = np.unique(np.round(np.linspace(0, len(values) - 1, min(MOST_STEPS, len(values)))).astype(int))
        drawn.append(Line(name, at + 1, values[at]))
    worst, values = ordered[0]
    finding = f"The largest t is {plain(round(values[-1], 4))}, of {worst}; half of its classes are at most "
    finding += f"{plain(round(float(np.median(values)), 4))}."
    limit = None
    if asked is not None:
        over = sum(int((values > float(asked) + 1e-12).sum()) for values in found.values())
        finding += (
            f" {'No class is' if not over else _many(over, 'class is', 'classes are')} above the {plain(asked)} asked."
        )
        limit = ("asked", float(asked))
    axes = ("classes, from the lowest t to the highest", "t of the class")
    chart = charts.lines(
        _next(keys), "t of each class, per sensitive attribute", finding, drawn, axes, limit, rates=False
    )
    rows = [
        (name, plain(len(v)), *(f"{x:.4g}" for x in (np.median(v), np.quantile(v, 0.95), v[-1]))) for name, v in ordered
    ]
    return replace(chart, columns=("attribute", "classes", "median", "95 % of classes", "worst"), rows=tuple(rows))


def _plane(figures: Sequence[Figure], extra: Page, keys: Iterable[str]) -> Chart | None:
    own = position(figures)
    others = [Point(str(label), float(use), float(risk)) for label, use, risk in extra.baselines]
    others = [p for p in others if math.isfinite(p.x) and math.isfinite(p.y)]
    if own is None:
        return None
    here = Point("this release", own.utility, own.privacy, own.utility_interval, own.privacy_interval, own=True)
    finding = (
        f"This release: {own.measure} {plain(round(own.utility, 4))}, {percent(own.privacy)} named by the strongest "
    )
    finding += f"attacker ({own.attack})."
    if others:
        better = [p.label for p in others if p.x >= here.x and p.y <= here.y and (p.x, p.y) != (here.x, here.y)]
        finding += f" Of {_many(len(others), 'baseline', 'baselines')} as useful and as private, or more: "
        finding += f"{', '.join(better) or 'none'}."
    axes = (f"use: {own.measure}", "named by the strongest attacker")
    return charts.plane(_next(keys), "This release and its baselines", finding, [here, *others], axes)


# ------------------------------------------------------------------------------------------------------------- attacks


@dataclass(frozen=True)
class _Row:
    """A figure in words."""

    what: str
    setting: str
    by: str
    value: str
    chance: str
    against: str
    over: str
    note: str
    group: str = ""


@dataclass(frozen=True)
class _Part:
    """A section of figures. left : how many of them could not be measured."""

    key: str
    title: str
    lead: str
    charts: tuple[Chart, ...]
    rows: tuple[_Row, ...]
    left: int


def _row(figure: Figure) -> _Row:
    word = percent if _shares([figure]) else plain
    return _Row(
        _what(figure),
        figure.setting,
        figure.by,
        _written(figure, word),
        "–" if figure.chance is None else word(figure.chance),
        _against(figure),
        _over(figure),
        figure.note,
        figure.group,
    )


def _over(figure: Figure) -> str:
    """Over how many it was taken."""
    told = [_many(figure.faces, "face", "faces")] if figure.faces else []
    told += [_many(figure.subjects, "person", "people")] if figure.subjects else []
    return ", ".join(told) or "–"


def _part(section: str, title: str, lead: str, figures: Sequence[Figure], keys: Iterable[str]) -> _Part:
    """The figures of a section for everybody, with a chart of each name that can be drawn."""
    ours = [f for f in figures if f.section == section and not f.group]
    known = [f for f in ours if _known(f)]
    names = list(dict.fromkeys(f.name for f in known))
    known.sort(key=lambda f: (names.index(f.name), -(f.at or 0.0), -(f.value or 0.0)))
    drawn = []
    for (name, _), some in groupby(known, key=lambda f: (f.name, f.at if f.name in RATES_AT else None)):
        shown = [f for f in some if f.better]
        within = all(0 <= v <= 1 for f in shown for v in (f.value, f.low, f.high, f.chance) if v is not None)
        if within and len(shown) > (section == "utility") and not name.endswith(" per face"):
            drawn.append(_chart(title, shown, keys))
    return _Part(section, title, lead, tuple(drawn), tuple(map(_row, known)), len(ours) - len(known))


def _chart(title: str, figures: Sequence[Figure], keys: Iterable[str]) -> Chart:
    """Figures of one name, the worst for the people or the use first."""
    up = all(f.better == "higher" for f in figures)
    ordered = sorted(figures, key=lambda f: (f.value or 0.0) * (1 if up else -1))
    rates, same = _shares(figures), len({f.at for f in figures}) == 1
    name = _what(figures[0]) if same else _name(figures[0].name)
    if same:
        ordered = [replace(f, at=None) for f in ordered]
    marks = [_mark(f) for f in ordered]
    return charts.intervals(_next(keys), f"{title}: {name}", _finding(name, ordered, rates), marks, rates)


def _mark(figure: Figure, label: str | None = None) -> Mark:
    assert figure.value is not None
    return Mark(label or _who(figure), figure.value, figure.low, figure.high, figure.chance)


def _finding(name: str, ordered: Sequence[Figure], rates: bool) -> str:
    """What a chart of these says; the worst comes first."""
    word, worst = percent if rates else plain, ordered[0]
    last = ordered[-1]
    if worst.better == "higher":
        if len(ordered) == 1:
            return f"{name} is {_written(worst, word)} ({_who(worst)})."
        return (
            f"{name} is lowest for {_who(worst)} with {_written(worst, word)}, and highest for {_who(last)} "
            f"with {_written(last, word)}."
        )
    out = f"{name} is largest for {_who(worst)}: {_written(worst, word)}"
    if worst.chance and worst.value is not None and rates and worst.value >= 1.5 * worst.chance:
        out += f", {worst.value / worst.chance:.3g} times chance ({word(worst.chance)})"
    elif worst.chance is not None:
        out += f", where chance is {word(worst.chance)}"
    compared = [f for f in ordered if _against(f)]
    above = sum(_against(f) == "exceeded" for f in compared)
    if len(compared) > 1:
        out += f". In {above} of {len(compared)} cases the whole interval lies above chance"
    elif compared:
        out += ". The whole interval lies above chance" if above else ". The interval does not lie above chance"
    return out + "."


def _curves(table: pa.Table | None, figures: Sequence[Figure], keys: Iterable[str]) -> list[Chart]:
    """Learning curves, a chart per threat."""
    if table is None or table.num_rows == 0:
        return []
    rows = sorted(table.to_pylist(), key=lambda r: (str(r["threat"]), str(r["attacker"]), r["epoch"]))
    chance = {
        f.setting: f.chance for f in figures if f.section == "trained" and f.name == "top1" and f.chance is not None
    }
    out = []
    for threat, of_threat in groupby(rows, key=lambda r: str(r["threat"])):
        by = {name: list(some) for name, some in groupby(of_threat, key=lambda r: str(r["attacker"]))}
        drawn, best = [], (-1.0, "", 0)
        for name, some in by.items():
            epochs = np.array([r["epoch"] for r in some])
            for column, word in (("validation_top1", "validation"), ("train_top1", "training")):
                values = np.array([np.nan if r.get(column) is None else r[column] for r in some], dtype=float)
                if not np.isfinite(values).any():
                    continue
                if word == "validation":
                    at = int(np.nanargmax(values))
                    best = max(best, (float(values[at]), name, int(epochs[at])))
                keep = np.unique(np.round(np.linspace(0, len(some) - 1, min(MOST_STEPS, len(some)))).astype(int))
                drawn.append(Line(f"{name}, {word}", epochs[keep], values[keep], twin=word == "training"))
        if not drawn:
            continue
        level = chance.get(threat, chance.get(threat.partition(",")[0]))
        finding = f"{threat}: the best top-1 in validation is {percent(best[0])}, by {best[1]} after epoch {best[2]}"
        finding += f"; chance is {percent(level)}." if level is not None else "."
        limit = None if level is None else ("chance", level)
        caption = f"Learning curves under {threat}"
        axes, twins = ("epoch", "top-1"), "the same in training"
        out.append(charts.lines(_next(keys), caption, finding, drawn, axes, limit, twins=twins))
    return out


# ----------------------------------------------------------------------------------------------------- use, and groups


def _attributes_shown(report: Mapping[str, Any], keys: Iterable[str]) -> Chart | None:
    """How many released pictures show the attribute that the release states."""
    found = report.get("attributes") or {}
    rows = [r for r in found.get("shown") or [] if r.get("released_agreement") is not None]
    if not rows:
        return None
    rows = sorted(rows, key=lambda r: float(r["released_agreement"]))
    marks = [
        Mark(
            f"{r.get('attribute')}{', ' + str(r['when']) if r.get('when') else ''}",
            r["released_agreement"],
            r.get("low"),
            r.get("high"),
            r.get("originals_agreement"),
        )
        for r in rows
    ]
    worst = rows[0]
    finding = (
        f"As {found.get('judge') or 'the judge'} sees it, {worst.get('attribute')} is shown least, by "
        f"{percent(worst['released_agreement'])} of the distinct pictures that should."
    )
    caption = "Released attributes that pixels show"
    return charts.intervals(_next(keys), caption, finding, marks, reference="of originals")


def _said(report: Mapping[str, Any]) -> list[str]:
    """What translation and perturbation did, in the audit's own words."""
    out: list[str] = []
    if loop := report.get("verification"):
        rounds = _many(len(loop.get("rounds") or []), "look", "looks")
        left = (loop.get("left_out") or 0) + (loop.get("broken") or 0)
        anew = _many(loop.get("rendered_anew") or 0, "face", "faces")
        out.append(f"closed loop: {rounds} at the rendered faces, {anew} rendered anew, {left} left out for it")
    for say, found in (
        (translation.lines, report.get("translation")),
        (perturbation.lines, report.get("perturbation")),
    ):
        try:
            out += say(found)
        except (KeyError, TypeError, AttributeError):
            out.append("a part of this audit on translation or perturbation is incomplete and cannot be read")
    if report.get("attributes"):
        try:
            out += [line for line in summary.attribute_lines(dict(report)) if "shown, measured against" not in line]
        except (KeyError, TypeError, AttributeError):
            out.append("a part of this audit on attributes is incomplete and cannot be read")
    return out


@dataclass(frozen=True)
class _Worst:
    """The group for which a figure is worst."""

    side: Literal["Risk", "Use"]
    what: str
    group: str
    value: str
    everybody: str
    clear: str
    subjects: str


@dataclass(frozen=True)
class _Groups:
    charts: tuple[Chart, ...]
    worst: tuple[_Worst, ...]
    rows: tuple[_Row, ...]


def _groups(figures: Sequence[Figure], keys: Iterable[str]) -> _Groups | None:
    """Every figure that is known of groups: for which of them it is worst, and by how much."""

    def what(f: Figure) -> tuple[str, str, str, str, float]:
        return (f.section, f.name, f.by, f.setting, -1.0 if f.at is None else f.at)

    everybody = {what(f): f for f in figures if not f.group and _known(f)}
    grouped: dict[tuple[str, str, str, str, float], list[Figure]] = {}
    for f in figures:
        if f.group and _known(f):
            grouped.setdefault(what(f), []).append(f)
    if not grouped:
        return None
    worst, ranked = [], {}
    for key, some in grouped.items():
        if not some[0].better:
            continue
        lowest = some[0].better == "higher"
        ranked[key] = sorted(some, key=lambda f: (f.value or 0.0) * (1 if lowest else -1))
        worst.append(_worst(ranked[key][0], everybody.get(key)))
    drawn = []
    for section in ("risk", "utility"):
        candidates = [key for key in ranked if (key[0] == "utility") == (section == "utility")]
        candidates = [key for key in candidates if all(0 <= (f.value or 0) <= 1 for f in ranked[key])]
        headline = [key for key in candidates if key[1] in HEADLINE] or candidates
        if headline:
            key = max(
                headline, key=lambda k: (everybody[k].value or 0.0) if k in everybody and section == "risk" else 0.0
            )
            drawn.append(_group_chart(section, ranked[key], everybody.get(key), keys))
    rows = [_row(f) for some in grouped.values() for f in some]
    return _Groups(tuple(drawn), tuple(sorted(worst, key=lambda w: w.side != "Risk")), tuple(rows))


def _worst(figure: Figure, everybody: Figure | None) -> _Worst:
    word = percent if _shares([figure, *([everybody] if everybody else [])]) else plain
    between, clear = _interval(figure), "not known"
    if between is not None and everybody is not None and everybody.value is not None:
        apart = between[0] > everybody.value if figure.better == "lower" else between[1] < everybody.value
        clear = "yes" if apart else "no: within its interval"
    return _Worst(
        "Use" if figure.section == "utility" else "Risk",
        f"{_what(figure)} ({_who(figure)})",
        figure.group,
        _written(figure, word),
        "not measured" if everybody is None else _written(everybody, word),
        clear,
        plain(figure.subjects) if figure.subjects else "–",
    )


def _group_chart(side: str, ranked: Sequence[Figure], everybody: Figure | None, keys: Iterable[str]) -> Chart:
    worst = ranked[0]
    rates = _shares([*ranked, *([everybody] if everybody else [])])
    word = percent if rates else plain
    title = "Use by group" if side == "utility" else "Risk by group"
    finding = f"{_what(worst)} is worst for {worst.group}: {_written(worst, word)}"
    finding += f"; for everybody it is {_written(everybody, word)}." if everybody else "."
    marks = [_mark(f, f.group) for f in ranked[: charts.MOST_MARKS - 1]]
    marks = ([_mark(everybody, "everybody")] if everybody else []) + marks
    marks += [_mark(f, f.group) for f in ranked[charts.MOST_MARKS - 1 :]]
    return charts.intervals(_next(keys), f"{title}: {_what(worst)} ({_who(worst)})", finding, marks, rates)


# ------------------------------------------------------------------------------------------- faces, leaks, reproduction


@dataclass(frozen=True)
class _Face:
    number: int
    released: str
    original: str | None


def _faces(extra: Page) -> list[_Face]:
    """At most ``MOST_FACES``, drawn by the seed. Raises ValueError for what is no JPEG."""
    originals = extra.originals
    if originals is not None and len(originals) != len(extra.sheet):
        raise ValueError(f"{len(originals)} originals for {len(extra.sheet)} released faces; give one for each")
    drawn = list(range(len(extra.sheet)))
    if len(drawn) > MOST_FACES:
        drawn = np.random.default_rng(extra.seed or 0).choice(len(drawn), MOST_FACES, replace=False).tolist()
    return [
        _Face(n + 1, _picture(extra.sheet[i]), None if originals is None else _picture(originals[i]))
        for n, i in enumerate(drawn)
    ]


def _picture(data: bytes) -> str:
    if not data.startswith(JPEG):
        raise ValueError("a face of the contact sheet is no JPEG")
    return "data:image/jpeg;base64," + base64.b64encode(data).decode()


def _leaks(leaks: Sequence[Mapping[str, Any]] | None) -> list[dict[str, str]] | None:
    """None where nobody looked."""
    if leaks is None:
        return None
    return [{key: str(leak.get(key) or "–") for key in ("kind", "where", "what")} for leak in leaks[:MOST_LEAKS]]


def _not_measured(report: Mapping[str, Any], figures: Sequence[Figure], extra: Page) -> list[tuple[str, str]]:
    """What could not be measured, and why; each once."""
    out = [
        (
            f"{title}: {_what(f)}"
            + (f" ({_who(f)})" if f.by or f.setting else "")
            + (f", {f.group}" if f.group else ""),
            f.note.removeprefix("not measured: ") or "no reason given",
        )
        for f in figures
        if not _known(f)
        for title in [ATTACKS.get(f.section, UTILITY)[0]]
    ]
    for row in report.get("not_measured") or []:
        if isinstance(row, Mapping):
            out.append((str(row.get("what") or "–"), str(row.get("why") or "no reason given")))
        else:
            out.append((str(row), "no reason given"))
    sections = {f.section for f in figures}
    out += [(title, WHY_NOT) for name, (title, _) in {**ATTACKS, "utility": UTILITY}.items() if name not in sections]
    if not any(f.group for f in figures):
        out.append(("Risk and use per demographic group", WHY_NOT))
    if "trained" in sections and (extra.curves is None or not extra.curves.num_rows):
        out.append(("Learning curves", WHY_NOT))
    if not any(len(values) for values in extra.t.values()):
        out.append(("t per class", "no sensitive attributes, or no classes, or none given to the page"))
    if report.get("leaks") is None:
        out.append(("Leak scan", WHY_NOT))
    return list(dict.fromkeys(out))


def _flat(policy: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The policy, a line each."""
    out = []
    for name, value in policy.items():
        if isinstance(value, Mapping):
            value = ", ".join(f"{key} {v}" for key, v in value.items() if v is not None)
        elif isinstance(value, list | tuple):
            value = ", ".join(map(str, value))
        out.append((str(name), "–" if value in (None, "") else str(value)))
    return out


def _many(number: int, one: str, more: str) -> str:
    return f"{plain(number)} {one if number == 1 else more}"


def _next(keys: Iterable[str]) -> str:
    return next(iter(keys))
