"""One figure of an audit: what was measured, by whom, on how many people, and how sure it is.

Every section of an audit is a list of these, so a report, a Parquet table and a comparison of releases read all of
them alike, whoever measured them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

import pyarrow as pa

from facecrowd.privacy.measure import figure

Section = Literal["identity", "trained", "linkage", "table", "inference", "membership", "utility"]
"""identity: recognisers that know originals or released faces. trained: attackers trained for the purpose (DeepBlur's
T1 to T3). linkage: released faces with each other. table: singling out, linking and inferring from the released
attributes. inference: attributes of the originals from released pixels. membership: is a person in the release.
utility: what the release is still good for."""


NAMES: dict[str, tuple[str, ...]] = {
    "identity": ("rank1", "rank5", "tar", "p-value"),
    "trained": ("top1", "top5", "top1 per face", "top5 per face", "people left out"),
    "linkage": ("auc", "eer", "tar"),
    "table": ("singling_out", "linkability", "inference"),
    "inference": ("accuracy", "balanced_accuracy", "auc"),
    "membership": ("auc", "tpr"),
    "utility": (
        *("psnr", "ssim", "ms_ssim", "lpips", "fid", "kid", "detected", "landmark_distance", "pose_difference"),
        *("pose_correlation", "agreement", "shown", "downstream_accuracy", "downstream_balanced_accuracy"),
        *("downstream_auc", "downstream_loss"),
    ),
}
"""What an audit measures, by section."""


@dataclass(frozen=True)
class Figure:
    """A figure.

    section : see ``Section``
    name : what it is, one word or two: rank1, rank5, tar, auc, psnr, lpips, agreement, …
    by : who measured it: a recogniser, an attacker, a predictor, a network; "" for arithmetic alone
    setting : against what: a gallery ("originals", "released"), a threat ("T1"), an attribute ("Male"), …
    at : a parameter that it is taken at, such as the false-accept rate; None without
    value : None where it could not be measured; then ``note`` says why
    low, high : its 95 % interval, by bootstrap over subjects where there are some; None without
    chance : what guessing achieves; None where that makes no sense
    faces, subjects : how many it was taken over; 0 where it has no such unit
    better : which way is better for whom the section protects or serves: privacy, or for ``utility`` use
    group : "" for everybody, else "Male = 1", the part of the people that it is of
    note : a sentence, or ""
    """

    section: Section
    name: str
    by: str = ""
    setting: str = ""
    at: float | None = None
    value: float | None = None
    low: float | None = None
    high: float | None = None
    chance: float | None = None
    faces: int = 0
    subjects: int = 0
    better: Literal["lower", "higher", ""] = ""
    group: str = ""
    note: str = ""

    def as_dict(self) -> dict[str, Any]:
        """As in audit.json: numbers rounded to six digits."""
        return {name: figure(round(v, 6)) if isinstance(v, float) else v for name, v in asdict(self).items()}


_TYPES = {"str": pa.string(), "float | None": pa.float64(), "int": pa.int64()}
SCHEMA = pa.schema([(f.name, _TYPES.get(str(f.type), pa.string())) for f in fields(Figure)])


def to_table(figures: Sequence[Figure]) -> pa.Table:
    """The figures as a table, a row each, in the columns of ``Figure``."""
    return pa.Table.from_pylist([one.as_dict() for one in figures], schema=SCHEMA)


def from_table(table: pa.Table) -> list[Figure]:
    """The figures of such a table."""
    return [Figure(**row) for row in table.to_pylist()]
