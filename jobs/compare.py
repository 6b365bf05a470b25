"""``facecrowd compare RELEASE…``: releases side by side, from the audits they carry."""

from __future__ import annotations

import json
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

    Raises ReleaseError for a folder without an audit.
    """
    return [_row(url, _audit(url)) for url in urls]


def markdown(rows: list[dict[str, Any]]) -> str:
    """The rows as a Markdown table."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "| " + " | ".join("---" for _ in COLUMNS) + " |"]
    lines += ["| " + " | ".join(_cell(row[column]) for column in COLUMNS) + " |" for row in rows]
    return "\n".join(lines)


def _audit(url: str) -> dict[str, Any]:
    folder = Folder(url)
    if not folder.exists(AUDIT):
        raise ReleaseError(f"release {url}: no {AUDIT} in it")
    audit: dict[str, Any] = json.loads(folder.read(AUDIT))
    return audit


def _row(url: str, audit: dict[str, Any]) -> dict[str, Any]:
    counts, classes = audit["counts"], audit["classes"]
    k = next((r["found"] for r in audit["requirements"] if r["name"] == "k"), None)
    row = {
        "release": url.rstrip("/").rsplit("/", 1)[-1],
        "method": audit["method"],
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
