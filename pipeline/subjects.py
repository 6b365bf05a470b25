"""Who is on each face: the input's word for it, or clusters of embeddings; one subject per face or none.

A photo filed under a person may show others. The face most like that person (by their photos with a single face) is
theirs; the rest are bystanders: nobody knows whether they are someone else's subject, so they are never released and
never counted towards k.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from facecrowd.privacy.clusters import cluster_subjects
from facecrowd.stages.stage import OK

BYSTANDER = "bystander"
NO_SUBJECT = "no_subject"


@dataclass(frozen=True)
class Subjects:
    """subject_id : (N,) object, '' for none; status, reason : (N,) object; ``source``: folder, column or clusters;
    ``split_rate``: for clusters the estimated share of people who were cut in two, else None."""

    subject_id: np.ndarray
    status: np.ndarray
    reason: np.ndarray
    source: str
    split_rate: float | None

    @property
    def count(self) -> int:
        return len({s for s in self.subject_id if s})


def assign(
    source: str,
    named: np.ndarray,
    photo: np.ndarray,
    face_index: np.ndarray,
    status: np.ndarray,
    reason: np.ndarray,
    embedding: np.ndarray,
    threshold: float,
) -> Subjects:
    """Give every usable face its subject.

    named : (N,) the person the input names for the face's photo, '' for none; photo : (N,) its photo;
    face_index : (N,) int; embedding : (N, D) unit vectors (any value where status is not ok);
    threshold : cosine similarity for clusters.
    """
    status, reason = status.copy(), reason.copy()
    subject = np.full(len(named), "", dtype=object)
    usable = np.flatnonzero(status == OK)
    if source == "clusters":
        found = cluster_subjects(embedding[usable], threshold=threshold)
        width = len(str(found.count))
        subject[usable] = [f"cluster-{label:0{width}d}" for label in found.ids]
        return Subjects(subject, status, reason, source, found.split_rate)

    nobody = usable[named[usable] == ""]
    status[nobody], reason[nobody] = NO_SUBJECT, "the input names nobody for this photo: never released, not counted"
    usable = np.flatnonzero(status == OK)
    _, of_photo, faces = np.unique(photo[usable].astype(str), return_inverse=True, return_counts=True)
    alone = usable[faces[of_photo] == 1]
    subject[alone] = named[alone]
    several = usable[faces[of_photo] > 1]
    if len(several):
        centre = _centres(named, alone, several, face_index, embedding)
        for members in _by_photo(photo, several):
            likeness = embedding[members] @ centre[named[members[0]]]
            # The most alike; a tie goes to the more prominent face.
            best = members[np.lexsort((face_index[members], -likeness))[0]]
            subject[best] = named[best]
            for other in members[members != best]:
                status[other] = BYSTANDER
                reason[other] = "another person on a photo of the subject: never released, not counted"
    return Subjects(subject, status, reason, source, None)


def _by_photo(photo: np.ndarray, rows: np.ndarray) -> list[np.ndarray]:
    order = rows[np.argsort(photo[rows].astype(str), kind="stable")]
    names = photo[order].astype(str)
    cuts = np.flatnonzero(names[1:] != names[:-1]) + 1
    return np.split(order, cuts)


def _centres(
    named: np.ndarray, alone: np.ndarray, several: np.ndarray, face_index: np.ndarray, embedding: np.ndarray
) -> dict[str, np.ndarray]:
    """Each person's mean embedding over photos that show one face; else over their most prominent faces."""
    centres: dict[str, np.ndarray] = {}
    for person in sorted(set(named[several])):
        rows = alone[named[alone] == person]
        if not len(rows):
            rows = several[(named[several] == person) & (face_index[several] == 0)]
        if not len(rows):
            rows = several[named[several] == person]
        centres[person] = embedding[rows].mean(axis=0)
    return centres
