"""Who is on each face: the input's word for it, or clusters of embeddings; one subject per face or none.

Two names may mean one person: a person filed twice, or one photo under several names. People whose mean faces are as
alike as one person's count as one, because a crowd of names is no crowd.

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
    ``split_rate``: for clusters the estimated share of people who were cut in two, else None; ``merged``: names that
    were taken for another's."""

    subject_id: np.ndarray
    status: np.ndarray
    reason: np.ndarray
    source: str
    split_rate: float | None
    merged: int = 0

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
    same_person: float = 1.0,
) -> Subjects:
    """Give every usable face its subject.

    named : (N,) the person the input names for the face's photo, '' for none; photo : (N,) its photo;
    face_index : (N,) int; embedding : (N, D) unit vectors (any value where status is not ok);
    threshold : cosine similarity for clusters; same_person : that of two people's mean faces from which their names
    mean one person.
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
    return Subjects(subject, status, reason, source, None, _merge(subject, embedding, same_person))


def _merge(subject: np.ndarray, embedding: np.ndarray, same_person: float) -> int:
    """Give people who look like one the first of their names, in place. Returns how many names that spends."""
    rows = np.flatnonzero(subject != "")
    if not len(rows) or same_person >= 1:
        return 0
    people, person = np.unique(subject[rows].astype(str), return_inverse=True)
    alike = cluster_subjects(subject_means(embedding[rows], person, len(people)), threshold=same_person).ids
    # Clusters are numbered by their first member, and names are sorted: the first name is the cluster's.
    first = np.unique(alike, return_index=True)[1]
    subject[rows] = people.astype(object)[first[alike[person]]]
    return len(people) - len(first)


def subject_means(embedding: np.ndarray, person: np.ndarray, people: int) -> np.ndarray:
    """Mean embedding per subject, normalised: (people, D) float32. Sums run in row order, so they repeat exactly."""
    order = np.argsort(person, kind="stable")
    starts = np.searchsorted(person[order], np.arange(people))
    sums = np.add.reduceat(embedding[order].astype(np.float64), starts, axis=0)
    norms = np.linalg.norm(sums, axis=1, keepdims=True)
    return (sums / np.maximum(norms, 1e-12)).astype(np.float32)


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
