"""``facecrowd compare RELEASE…``: releases side by side, from the audits they carry."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from facecrowd.pipeline.errors import ReleaseError
from facecrowd.pipeline.publish import AUDIT
from facecrowd.pipeline.storage import Folder

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
    lines += ["| " + " | ".join(_cell(row[column]) for column in COLUMNS) + " |" for row in rows]
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
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
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
    return str(value)
