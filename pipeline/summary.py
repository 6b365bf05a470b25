"""An audit in words: the verdict on a terminal, the README and the licences that travel with a release."""

from __future__ import annotations

from typing import Any

from facecrowd.pipeline import perturbation, translation
from facecrowd.pipeline.config import CLOAK
from facecrowd.pipeline.errors import printable

Audit = dict[str, Any]


def verdict_lines(audit: Audit) -> list[str]:
    """What a person wants to know, a line each."""
    counts = audit["counts"]
    subjects = f"{counts['subjects']} subjects (from {counts['subjects_from']})"
    lines = [
        f"{counts['photos']} photos, {counts['faces']} faces, {subjects}, {counts['classes']} classes",
        f"released: {counts['released_images']} images ({counts['distinct_faces']} distinct faces) "
        f"of {counts['subjects_released']} subjects",
    ]
    if counts["subjects_merged"]:
        lines.append(f"{counts['subjects_merged']} names look like people of another name and count as them")
    if counts["split_rate"] is not None:
        lines.append(f"subjects are clusters: an estimated {counts['split_rate']:.1%} are pieces of a person")
    if counts["not_released"]:
        left = ", ".join(f"{n} {status}" for status, n in counts["not_released"].items())
        lines.append(f"not released: {left}")
    for r in audit["requirements"]:
        mark = "met" if r["met"] else "NOT MET"
        note = f" - {r['note']}" if r["note"] else ""
        lines.append(
            f"{r['name']}: asked {_figure(r['asked'])}, found {_figure(r['found'])}: {mark} ({r['kind']}){note}"
        )
    lines += class_lines(audit)
    lines += _label_lines(audit)
    for attack in audit["reidentification"]:
        lines.append(attack_line(attack))
    lines += attribute_lines(audit)
    lines += translation.lines(audit.get("translation"))
    lines += perturbation.lines(audit.get("perturbation"))
    lines += [f"LEAK {leak_lines([leak])}" for leak in audit["leaks"] or ()]
    return [*lines, conclusion(audit)]


def conclusion(audit: Audit) -> str:
    """The verdict in one sentence."""
    if not audit["met"]:
        return "verdict: NOT as the policy asks"
    if audit["guarantee"]["kind"] == "formal":
        k, effective = audit["policy"]["k"], audit["classes"]["effective_k"]
        bound = f"verdict: as the policy asks; the bound of 1/{k} per subject is formal, under a uniform prior"
        return bound + (f"; 1/{effective:.3g} for who knows photo counts" if effective < k else "")
    if audit.get("recognisers"):
        return (
            "verdict: what the policy asks holds; recognisers are MEANT to match these faces, so this is no "
            "de-identification"
        )
    if audit["method"] == CLOAK:
        return (
            "verdict: what the policy asks holds; these are original faces, which people know as before: what hides "
            "them from recognisers is measured, not guaranteed"
        )
    if audit["method"] == "translation":
        return (
            "verdict: what the policy asks holds of the released attributes; identity is not guaranteed: the figures "
            "above are measured"
        )
    return "verdict: what the policy asks holds, and nothing is guaranteed: the figures above are measured"


def class_lines(audit: Audit) -> list[str]:
    """The smallest crowd, whether or not a policy asked for one."""
    found = (audit["classes"] or {}).get("smallest")
    return [] if found is None else [f"smallest class: {found} people (k as it came out)"]


def _label_lines(audit: Audit) -> list[str]:
    label = audit["identity"]
    if label["label"] == "none":
        return []
    alone = label.get("alone_by_photo_count")
    share = "" if alone is None else f"; alone by photo count: {alone:.1%} of subjects"
    return [f"identity label: {label['label']}, which gives an adversary {label['gain']}{share}"]


def attack_line(attack: dict[str, Any]) -> str:
    head = f"rank-1 by {attack['recogniser']}, gallery: {attack['gallery']}"
    head += " (intended: recognisers are meant to match)" if attack.get("intended") else ""
    head += f", {attack['when']}" if "when" in attack else ""
    if "not_measured" in attack:
        return f"{head}: not measured ({attack['not_measured']})"
    return (
        f"{head}: {attack['rank1_per_subject']:.1%} of subjects [{attack['low']:.1%}, {attack['high']:.1%}], "
        f"{attack['rank1_per_face']:.1%} of faces, chance {attack['chance']:.2%} "
        f"({attack['probes']} probes, {attack['gallery_subjects']} people)"
    )


def attribute_lines(audit: Audit) -> list[str]:
    """What predictors say of the attributes; an audit made before there were any has none."""
    found = audit.get("attributes")
    if found is None:
        return []
    lines = []
    if found["predicted"]:
        unknown = [f"{name} of {share:.1%}" for name, share in found["unknown"].items() if share]
        left = f"; unknown: {', '.join(unknown)} of faces" if unknown else ""
        lines.append(f"attributes predicted by {found['predictor']}: {', '.join(found['predicted'])}{left}")
    for row in found["disagreement"]:
        said = "nothing to compare" + (": the input's values are not yes and no" if row["neither"] else "")
        if row["faces"]:
            said = (
                f"differs from the input's for {row['share_of_faces']:.1%} of {row['faces']} faces, "
                f"{row['share_of_subjects']:.1%} of {row['subjects']} subjects"
                + (f"; {row['neither']:.1%} of the input's values are neither yes nor no" if row["neither"] else "")
            )
        lines.append(f"{row['attribute']} by predictor {found['predictor']}: {said}")
    for row in found["shown"]:
        predicted = row["attribute"] in found["predicted"]
        value = f"the value predicted by {found['predictor']}" if predicted else "their own value"
        when = f", {row['when']}" if "when" in row else ""
        lines.append(
            f"{row['attribute']} shown, measured against predictor {found['judge']}{when}: {_shown(row, value)}"
        )
    return lines


def _shown(row: dict[str, Any], value: str) -> str:
    """``value``: what the originals' value is called."""
    if "not_measured" in row:
        return f"not measured ({row['not_measured']})"
    left = f"; {row['left_open']:.1%} left open (*)" if row["left_open"] else ""
    left += f"; {row['neither']:.1%} neither yes nor no" if row["neither"] else ""
    if not row["released_pictures"]:
        return f"nothing to compare: {'its values are not yes and no' if row['neither'] else LEFT_OPEN}"
    originals = row.get("originals_agreement")
    beside = "" if originals is None else f" (of originals and {value}: {originals:.1%})"
    return (
        f"{row['released_agreement']:.1%} [{row['low']:.1%}, {row['high']:.1%}] of {row['released_pictures']} distinct "
        f"pictures show the released value, over {row['groups']} {row['over']}{beside}{left}"
    )


LEFT_OPEN = "the release leaves it open (*)"


def leak_lines(leaks: list[dict[str, str]]) -> str:
    shown = "; ".join(f"{leak['kind']} in {leak['where']}: {leak['what']}" for leak in leaks[:3])
    return shown + (f"; and {len(leaks) - 3} more" if len(leaks) > 3 else "")


def description(audit: Audit) -> str:
    counts = audit["counts"]
    how = _kind(audit)[1]
    return (
        f"{counts['released_images']} images of {counts['subjects_released']} people, "
        f"{how} {made_by(audit)}. {audit['guarantee']['text']}"
    )


def _kind(audit: Audit) -> tuple[str, str]:
    """What released faces are, and how they became it, in words that promise no more than the method does."""
    if audit.get("recognisers") or audit["method"] == CLOAK:
        return "Altered faces of recognisable people", "altered, not anonymised, by"
    if audit["method"] == "translation":
        return "Faces with translated attributes", "altered by"
    return "Anonymised faces", "anonymised by"


def made_by(audit: Audit) -> str:
    """The method, and what perturbed its faces."""
    perturbed = audit.get("perturbation")
    methods = [audit["method"]] if audit["method"] != CLOAK else []
    return " + ".join([*methods, *([perturbed["name"]] if perturbed else [])])


def readme(audit: Audit, form: str) -> str:
    """README.md of a release."""
    counts = audit["counts"]
    stored = {
        "files": "`images/<name>.jpg`, one JPEG file each",
        "parquet": "`images/shard-*.parquet`, columns `name` and `image` (JPEG bytes)",
        "webdataset": "`images/shard-*.tar` (WebDataset: `<name>.jpg` and `<name>.json`)",
    }[form]
    what = "aligned faces" if audit["output"] == "crop" else "whole photos with their faces replaced or covered"
    table = ["| requirement | asked | found | met | kind | |", "| --- | --- | --- | --- | --- | --- |"]
    table += [
        f"| {cell(r['name'])} | {_figure(r['asked'])} | {_figure(r['found'])} | {'yes' if r['met'] else '**no**'} "
        f"| {cell(r['kind'])} | {cell(r['note'])} |"
        for r in audit["requirements"]
    ]
    return "\n".join(
        [
            f"# {_kind(audit)[0]} ({made_by(audit)})",
            "",
            *([] if audit["met"] else ["**This release does NOT meet its own policy; see the table.**", ""]),
            f"{counts['released_images']} images ({what}) of {counts['subjects_released']} people in "
            f"{counts['classes']} classes; {counts['distinct_faces']} distinct faces. Made with facecrowd.",
            "",
            "## What is guaranteed",
            "",
            audit["guarantee"]["text"],
            "",
            *table,
            "",
            "## What was measured",
            "",
            *[f"- {line}" for line in [*class_lines(audit), *_label_lines(audit)]],
            *[f"- {attack_line(a)}" for a in audit["reidentification"]],
            *[f"- {line}" for line in attribute_lines(audit)],
            *[f"- {line}" for line in translation.lines(audit.get("translation"))],
            *[f"- {line}" for line in perturbation.lines(audit.get("perturbation"))],
            "",
            "## What is here",
            "",
            f"- {stored}, under random names",
            "- `manifest.parquet`: one row per image, sorted by name",
            "- `audit.json`: every figure of this page and more",
            "- `release.yaml`: the settings of the release",
            "- `metadata.json`: Croissant description with the hash of every file",
            "- `LICENCES.md`: the terms of the models that were used",
            "",
        ]
    )


def licences(audit: Audit) -> str:
    """LICENCES.md: the terms of third-party models that a release inherits."""
    lines = [
        "# Licences of the models used",
        "",
        "Weights have terms of their own, whatever the software around them says. These were used for this release.",
        "",
        "| model | used as | licence | sha256 |",
        "| --- | --- | --- | --- |",
    ]
    for m in audit["models"]:
        lines.append(f"| {cell(m['name'])} | {cell(m['purpose'])} | {cell(m['licence'])} | `{m['sha256']}` |")
    return "\n".join(lines) + "\n"


def cell(value: Any) -> str:
    """Text that stays in its cell of a Markdown table, whatever an attribute or a file is called."""
    return printable(str(value)).replace("|", "\\|").replace("<", "\\<")


def _figure(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value)
