"""The manifests: declared, versioned Arrow schemas. ``docs/data-dictionary.md`` is made from this file.

Workspace tables are private and become Iceberg tables; ``RELEASED`` is what a release publishes. A change of a column's
name, type or meaning raises ``VERSION``.

    python -m facecrowd.pipeline.schema > docs/data-dictionary.md
"""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa

VERSION = 7
ATTRIBUTES = 40


@dataclass(frozen=True)
class Column:
    name: str
    type: pa.DataType
    meaning: str


@dataclass(frozen=True)
class Manifest:
    """One table: its name, what a row is, and its columns."""

    name: str
    row: str
    columns: tuple[Column, ...]

    @property
    def arrow(self) -> pa.Schema:
        return pa.schema([pa.field(c.name, c.type) for c in self.columns])


_STATUS = (
    Column("status", pa.string(), "ok, or why later steps leave the row alone"),
    Column("reason", pa.string(), "the status in words, for a person; empty when ok"),
)
_RUN = Column(
    "run", pa.string(), "hash of all that decides this table's content; a re-run with the same hash is the same"
)
_EMBEDDING = pa.list_(pa.float32())
_PROBABILITIES = pa.list_(pa.float32(), ATTRIBUTES)

_PERTURBED = (
    Column("detected_before", pa.bool_(), "as detected, before the face was perturbed; null where it was not"),
    Column("embedding_before", _EMBEDDING, "as embedding, before the face was perturbed; null where it was not"),
    Column("attributes_before", _PROBABILITIES, "as attributes, before the face was perturbed; null where it was not"),
    Column("target", pa.int16(), "tip-im: which target, counted from 0, the last step took it towards; else null"),
    Column("linf", pa.int16(), "largest change by the perturbation before encoding, in grey levels; null without one"),
    Column("rms", pa.float32(), "root mean square of these changes, in grey levels; null without one"),
)

PHOTOS = Manifest(
    "photos",
    "one input file",
    (
        _RUN,
        Column("photo", pa.string(), "path relative to the input"),
        Column("path", pa.string(), "where the bytes are: local path or URL"),
        Column("bytes", pa.int64(), "size of the file"),
        Column("subject", pa.string(), "the person the input names, empty when it names none"),
        Column("attributes", pa.map_(pa.string(), pa.string()), "attributes that came with the input"),
    ),
)

FACES = Manifest(
    "faces",
    "one detected face, or one photo without a usable face",
    (
        _RUN,
        Column("face_id", pa.string(), "HMAC of the photo and the face's number under the run key"),
        Column("photo", pa.string(), "path relative to the input"),
        Column("part", pa.int32(), "micro-batch that made the row; the file part-<part>.parquet holds it"),
        Column("face_index", pa.int32(), "0 for the photo's most prominent face, counting up; -1 without a face"),
        Column("faces_in_photo", pa.int32(), "detections in the photo, weak ones included"),
        *_STATUS,
        Column("photo_width", pa.int32(), "px, upright"),
        Column("photo_height", pa.int32(), "px, upright"),
        Column("box", pa.list_(pa.float32(), 4), "x1, y1, x2, y2 in px of the upright photo"),
        Column(
            "landmarks", pa.list_(pa.float32(), 10), "x, y of eyes, nose and mouth corners, in px of the upright photo"
        ),
        Column("score", pa.float32(), "detection score in 0..1"),
        Column("matrix", pa.list_(pa.float32(), 6), "2x3 similarity from photo to crop, row by row"),
        Column("crop", pa.binary(), "the aligned face as JPEG"),
        Column("embedding", _EMBEDDING, "unit vector of the recogniser; in one run all are as long"),
        Column(
            "attributes",
            _PROBABILITIES,
            "probability of each attribute in the order of predictors; null where none was predicted",
        ),
    ),
)

PREDICTORS = Manifest(
    "predictors",
    "one attribute of a predictor that spoke in a run of faces (predictor) or of rendered (judge)",
    (
        _RUN,
        Column("purpose", pa.string(), "predictor or judge"),
        Column("file", pa.string(), "name of a shipped predictor, or the user's file"),
        Column("sha256", pa.string(), "hash of its file"),
        Column("backbone", pa.string(), "the model it builds on; empty for none"),
        Column("backbone_sha256", pa.string(), "hash of that model's file"),
        Column("attribute", pa.string(), "the attribute; the rows are in the order of the probabilities"),
        Column("threshold", pa.float32(), "probability from which it is taken as true"),
    ),
)

ORIGINALS = Manifest(
    "originals",
    "one row of faces as the judge of attributes sees the original crop",
    (
        _RUN,
        Column("face_id", pa.string(), "as in faces"),
        *_STATUS,
        Column("attributes", _PROBABILITIES, "the judge's probabilities; null in rows that are not ok"),
    ),
)

PLAN = Manifest(
    "plan",
    "one row of faces: what will be released for it",
    (
        _RUN,
        Column("face_id", pa.string(), "as in faces"),
        Column("photo", pa.string(), "as in faces"),
        Column("part", pa.int32(), "as in faces"),
        Column("row", pa.int32(), "row within that part"),
        *_STATUS,
        Column("subject_id", pa.string(), "the person: the unit of privacy; empty for rows without one"),
        Column("class_id", pa.int32(), "equivalence class; -1 for none"),
        Column(
            "originals",
            pa.map_(pa.string(), pa.string()),
            "the original's attributes that the policy names, as the input has them, else as predicted; unknown ones "
            "are left out",
        ),
        Column("released", pa.map_(pa.string(), pa.string()), "the attribute values the release shows; * for any"),
    ),
)

MEMBERS = Manifest(
    "members",
    "one face in its class: what a class's surrogate is made from",
    (
        _RUN,
        Column("class_id", pa.int32(), "as in plan; the rows are sorted by it, and a class is never cut"),
        Column("subject_id", pa.string(), "as in plan"),
        Column("part", pa.int32(), "as in plan"),
        Column("row", pa.int32(), "as in plan"),
    ),
)

SURROGATES = Manifest(
    "surrogates",
    "one face that stands for a class, or for one face of it",
    (
        _RUN,
        Column("class_id", pa.int32(), "as in plan"),
        Column("variant", pa.int32(), "0 … surrogates - 1: which of the class's faces"),
        Column("face_id", pa.string(), "the one face it stands for, where keep lets it depend on that; else empty"),
        Column("subjects", pa.int32(), "people averaged"),
        Column("faces", pa.int32(), "faces averaged"),
        *_STATUS,
        Column("image", pa.binary(), "the surrogate as released (JPEG)"),
        Column("detected", pa.bool_(), "whether the detector finds a face in it"),
        Column("embedding", _EMBEDDING, "unit vector of the recogniser; in one run all are as long"),
        Column("attributes", _PROBABILITIES, "the judge's probabilities; null where none was asked"),
        *_PERTURBED,
        Column(
            "realised",
            pa.map_(pa.string(), pa.bool_()),
            "attributes that the face was edited to show: whether the steering predictor sees them in it",
        ),
    ),
)

SAMPLE = Manifest(
    "sample",
    "one rendered face, not perturbed, that the universal perturbation of a release is fitted on",
    (
        _RUN,
        Column("person", pa.string(), "whom it shows: a subject, or a class's number"),
        *_STATUS,
        Column("image", pa.binary(), "the face as JPEG; null in rows that are not ok"),
    ),
)

PERTURBATION = Manifest(
    "perturbation",
    "the universal perturbation of a release; never leaves the workspace: whoever has it can take it off again",
    (
        _RUN,
        Column("side", pa.int32(), "S, px: it is (3, S, S)"),
        Column("norm", pa.string(), "linf or l2, of the ball it lies in"),
        Column("xi", pa.float64(), "radius of the ball in grey levels: largest value, or root of the sum of squares"),
        Column("vector", pa.binary(), "the whole grey levels that are added, RGB, as little-endian int16"),
        Column("about", pa.string(), "how it was made, as JSON: targets with their hashes, fooling rates, sample"),
    ),
)

RENDERED = Manifest(
    "rendered",
    "one row of plan with the pixels that will be released",
    (
        _RUN,
        Column("face_id", pa.string(), "as in faces"),
        Column("photo", pa.string(), "as in faces"),
        *_STATUS,
        Column("image", pa.binary(), "the released face as JPEG; null when suppressed or in photo output"),
        Column("width", pa.int32(), "px"),
        Column("height", pa.int32(), "px"),
        Column("detected", pa.bool_(), "whether the detector finds a face in the released pixels"),
        Column("embedding", _EMBEDDING, "unit vector of the recogniser on the released pixels"),
        Column(
            "attributes",
            _PROBABILITIES,
            "the judge's probabilities on the released pixels; null where none was asked",
        ),
        *_PERTURBED,
        Column("search_loss", pa.float32(), "deepblur, inpaint: loss of the latent search at its end; else null"),
        Column(
            "search_steps", pa.int32(), "deepblur, inpaint: steps the search took (inpaint: its second half); else null"
        ),
        Column("converged", pa.bool_(), "deepblur, inpaint: whether the search ended by itself; else null"),
        Column(
            "wanted",
            pa.map_(pa.string(), pa.bool_()),
            "translation: what the face shall show of what the translator can change, draws for * among it",
        ),
        Column(
            "realised",
            pa.map_(pa.string(), pa.bool_()),
            "translation, identity-preserving: of the attributes to be shown, whether the steering predictor sees them",
        ),
        Column(
            "passes",
            pa.int32(),
            "translation, identity-preserving: passes taken; 0 where the face was left as it was",
        ),
        Column(
            "obfuscated",
            pa.list_(pa.string()),
            "identity-preserving: parts whose attribute was turned into its opposite; else null",
        ),
        Column(
            "activation",
            pa.list_(pa.float32(), 5),
            "identity-preserving: how much of a recogniser's evidence lies in hair, eyebrows, eyes, nose and lips, per "
            "area, in units of the whole face's; NaN for a part that is absent; else null",
        ),
    ),
)

RENDERED_PHOTOS = Manifest(
    "rendered_photos",
    "one photo with all its faces replaced or covered",
    (
        _RUN,
        Column("photo", pa.string(), "as in faces"),
        *_STATUS,
        Column("image", pa.binary(), "the released photo as JPEG; null when suppressed"),
        Column("width", pa.int32(), "px"),
        Column("height", pa.int32(), "px"),
        Column("replaced", pa.int32(), "faces that show a surrogate"),
        Column("covered", pa.int32(), "faces that are covered"),
    ),
)

JUDGED = Manifest(
    "judged",
    "one row of rendered as seen in the released photo (photo output)",
    RENDERED.columns,
)

WITNESSED = Manifest(
    "witnessed",
    "one face, original or released, as the recognisers of an audit saw it",
    (
        _RUN,
        Column("face_id", pa.string(), "as in faces"),
        *_STATUS,
        Column("detected", pa.bool_(), "whether the detector finds a face in it"),
        Column("landmarks", pa.list_(pa.float32(), 10), "x and y of five points, px of the crop; NaN without a face"),
        Column("embeddings", pa.map_(pa.string(), pa.list_(pa.float32())), "recogniser → unit vector"),
    ),
)

LINK = Manifest(
    "link",
    "one released face, the image that shows it and the source it stands for; never leaves the workspace",
    (
        _RUN,
        Column("name", pa.string(), "name of the image in the release"),
        Column("file", pa.string(), "as in manifest"),
        Column("sha256", pa.string(), "as in manifest"),
        Column("face_id", pa.string(), "as in faces"),
        Column("photo", pa.string(), "as in faces"),
        Column("part", pa.int32(), "as in plan"),
        Column("row", pa.int32(), "as in plan"),
    ),
)

RELEASED = Manifest(
    "manifest",
    "one released image",
    (
        Column("name", pa.string(), "random name, drawn from the run key; the rows are sorted by it"),
        Column("file", pa.string(), "file or shard that holds the image, relative to the release"),
        Column("width", pa.int32(), "px"),
        Column("height", pa.int32(), "px"),
        Column("sha256", pa.string(), "hash of the image's bytes"),
        Column("identity", pa.string(), "class or pseudonym, as release.identity says; empty for none"),
    ),
)
"""Released attributes follow as further string columns, one per quasi-identifier, constant within a class."""

SHARD = Manifest(
    "shard",
    "one released image of a Parquet shard",
    (
        Column("name", pa.string(), "as in manifest"),
        Column("image", pa.binary(), "the image's JPEG bytes"),
    ),
)

WORKSPACE = (
    PHOTOS,
    FACES,
    PREDICTORS,
    PLAN,
    MEMBERS,
    SAMPLE,
    PERTURBATION,
    SURROGATES,
    RENDERED,
    RENDERED_PHOTOS,
    JUDGED,
    ORIGINALS,
    WITNESSED,
    LINK,
)


def dictionary() -> str:
    """The data dictionary in Markdown."""
    lines = [
        "# Data dictionary",
        "",
        f"Schema version {VERSION}. Made from `pipeline/schema.py`; `tests/pipeline/test_schema.py` keeps them equal.",
    ]
    for title, manifests in (("Release (public)", (RELEASED, SHARD)), ("Workspace (private)", WORKSPACE)):
        lines += ["", f"## {title}"]
        for manifest in manifests:
            lines += [
                "",
                f"### `{manifest.name}`: {manifest.row}",
                "",
                "| column | type | meaning |",
                "| --- | --- | --- |",
            ]
            lines += [f"| `{c.name}` | {c.type} | {c.meaning} |" for c in manifest.columns]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(dictionary(), end="")
