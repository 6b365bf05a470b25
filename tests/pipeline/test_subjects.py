"""Claims of pipeline/subjects.py: one subject per face or none, and who stands beside somebody is nobody."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from facecrowd.pipeline.subjects import BYSTANDER, NO_SUBJECT, Subjects, assign
from facecrowd.stages.stage import OK

PEOPLE = {name: np.eye(8, dtype=np.float32)[i] for i, name in enumerate(("ann", "bob", "eve", "stranger"))}


def assigned(*faces: tuple[str, str, str, str], source: str = "folder") -> Subjects:
    """``faces``: (photo, the person it is filed under, who the face really is, status)."""
    index: dict[str, int] = {}
    numbers = []
    for photo, *_ in faces:
        numbers.append(index.setdefault(photo, 0))
        index[photo] += 1
    columns: list[Any] = [np.array([face[i] for face in faces], dtype=object) for i in range(4)]
    embedding = np.array([PEOPLE.get(face[2], np.zeros(8)) for face in faces], dtype=np.float32)
    reason = np.array(["" if s == OK else "why" for s in columns[3]], dtype=object)
    return assign(source, columns[1], columns[0], np.array(numbers), columns[3], reason, embedding, 0.5)


def test_a_face_alone_on_a_photo_is_the_person_the_input_names() -> None:
    found = assigned(("1", "ann", "ann", OK), ("2", "bob", "stranger", OK))
    assert found.subject_id.tolist() == ["ann", "bob"]
    assert found.count == 2


def test_of_several_faces_the_one_like_the_persons_other_photos_is_theirs() -> None:
    # The stranger is the more prominent: first on the photo.
    found = assigned(("1", "ann", "ann", OK), ("2", "ann", "stranger", OK), ("2", "ann", "ann", OK))
    assert found.subject_id.tolist() == ["ann", "", "ann"]
    assert found.status.tolist() == [OK, BYSTANDER, OK]
    assert found.reason[1].startswith("another person on a photo of the subject")


def test_somebody_known_elsewhere_is_a_bystander_too() -> None:
    found = assigned(("1", "ann", "ann", OK), ("2", "bob", "bob", OK), ("2", "bob", "ann", OK))
    assert found.subject_id.tolist() == ["ann", "bob", ""]


def test_without_a_photo_of_their_own_the_most_prominent_face_is_theirs() -> None:
    found = assigned(("1", "ann", "ann", OK), ("1", "ann", "eve", OK), ("2", "bob", "bob", OK))
    assert found.subject_id.tolist() == ["ann", "", "bob"]


def test_weak_and_small_faces_beside_somebody_do_not_count_as_company() -> None:
    found = assigned(("1", "ann", "ann", OK), ("1", "ann", "eve", "low_score"), ("2", "bob", "bob", OK))
    assert found.subject_id.tolist() == ["ann", "", "bob"]
    assert found.status.tolist() == [OK, "low_score", OK]


def test_a_face_that_the_input_files_under_nobody_has_a_status_and_a_reason() -> None:
    found = assigned(("1", "ann", "ann", OK), ("2", "", "bob", OK), ("3", "", "eve", OK), ("3", "", "bob", OK))
    assert found.subject_id.tolist() == ["ann", "", "", ""]
    assert found.status.tolist() == [OK, NO_SUBJECT, NO_SUBJECT, NO_SUBJECT]
    assert all(found.reason[1:])


@pytest.mark.parametrize("source", ["folder", "clusters"])
def test_a_row_without_a_usable_face_has_no_subject(source: str) -> None:
    found = assigned(("1", "ann", "ann", OK), ("2", "ann", "", "no_face"), ("3", "bob", "bob", OK), source=source)
    assert found.subject_id[1] == ""
    assert (found.status[1], found.reason[1]) == ("no_face", "why")


def test_clusters_count_people_by_likeness_and_take_every_face() -> None:
    faces = [(f"{i}", "", who, OK) for i, who in enumerate(["ann", "bob", "ann", "eve", "bob", "ann"])]
    found = assigned(*faces, source="clusters")
    assert found.count == 3
    assert found.split_rate is not None
    ids = found.subject_id.tolist()
    assert ids[0] == ids[2] == ids[5] != ids[1] == ids[4]
    assert all(i.startswith("cluster-") for i in ids)


def test_the_input_is_not_changed() -> None:
    status = np.array([OK, OK], dtype=object)
    columns = [np.array(v, dtype=object) for v in (["ann", "ann"], ["1", "1"], ["", ""])]
    embedding = np.stack([PEOPLE["ann"], PEOPLE["bob"]])
    assign("folder", columns[0], columns[1], np.array([0, 1]), status, columns[2], embedding, 0.5)
    assert status.tolist() == [OK, OK]
