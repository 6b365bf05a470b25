"""The plan: for every face its class and the attributes it will show, or why it is left out. Table level, one process.

k-same cuts the *subjects* into classes by their mean embedding; every class has at least k, and meets l and t where
they are asked: a policy that no partition can meet is refused before anything is rendered. The baselines alter each
face on its own: their classes are what the released attributes make them, and without released attributes there are
none. One attribute vector per subject is released, the majority of their photos' values; for k-same, the majority of
the class. Values that a predictor could not tell take no part; where there are no others, ``*`` is released.
k-same-select cuts within one attribute's value, which all of a class then share; people whose value is unknown, or held
by fewer than k, can be in no class and are left out, with a reason.

For translation a planner (``planners``) chooses the vectors, one per subject: it generalises, leaves out, and with PPAS
swaps and randomises them, by the run key. A class is what the released vectors make it. A value that is unknown is
drawn first, by the run key for that subject: planners know no such value, and what is released is the face's anyway.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from facecrowd.pipeline import planners
from facecrowd.pipeline.config import Policy, ReleaseConfig
from facecrowd.pipeline.errors import PolicyError
from facecrowd.pipeline.presets import predictable
from facecrowd.pipeline.steps import embedding_array
from facecrowd.pipeline.subjects import Subjects, assign, subject_means
from facecrowd.privacy import cells as planning
from facecrowd.privacy import policy as limits
from facecrowd.privacy.attributes import ANY, domain
from facecrowd.privacy.classes import equivalence_classes, histogram, per_subject_majority
from facecrowd.privacy.microaggregation import microaggregate
from facecrowd.privacy.requirements import Requirements
from facecrowd.stages.runkey import RunKey
from facecrowd.stages.stage import OK

NO_CLASS = -1
SUPPRESSED = "suppressed"
BOTH = ("0", "1")
"""What an attribute that predictors know can be."""
LEFT_OUT = "no class that meets the policy takes in the attributes of this person"


@dataclass(frozen=True)
class Planned:
    """How a planner of attributes came to its vectors.

    epsilon : spent in total per subject, None where nothing was randomised; choices : of PPAS, for each attribute;
    notes : what a reader must know; drawn : attribute → people whose unknown value was drawn
    """

    planner: str
    epsilon: float | None = None
    choices: tuple[dict[str, Any], ...] = ()
    notes: tuple[str, ...] = ()
    drawn: dict[str, int] | None = None

    def as_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        return {**asdict(self), "choices": list(self.choices), "notes": list(self.notes)}

    @classmethod
    def read(cls, data: Mapping[str, Any]) -> Self:
        return cls(**{**data, "choices": tuple(data["choices"]), "notes": tuple(data["notes"])})


@dataclass(frozen=True)
class Plan:
    """What will be released for each of the N rows of the faces manifest, in its order.

    face_id, photo, status, reason : (N,) object; part, row : (N,) where the face lies in the manifest;
    embedding : (N, D) float32, zeros without a face; class_id : (N,) int32, -1 for none;
    originals, released : attribute → (N,) object, None where the row has none; images : (N,) int, how many released
    images stand for the row; planned : how a planner chose the released attributes, where one did.
    """

    face_id: np.ndarray
    photo: np.ndarray
    part: np.ndarray
    row: np.ndarray
    embedding: np.ndarray
    subjects: Subjects
    class_id: np.ndarray
    originals: dict[str, np.ndarray]
    released: dict[str, np.ndarray]
    images: np.ndarray
    planned: Planned | None = None

    @property
    def subject_id(self) -> np.ndarray:
        return self.subjects.subject_id

    @property
    def status(self) -> np.ndarray:
        return self.subjects.status

    @property
    def classes(self) -> int:
        return int(self.class_id.max(initial=NO_CLASS)) + 1

    @property
    def kept(self) -> np.ndarray:
        """The rows that have a subject and are not left out, and so are released: (n,) int64."""
        return _kept(self.subjects)

    @cached_property
    def _by_class(self) -> tuple[np.ndarray, np.ndarray]:
        """All rows by class, and the class of each: looked through once, not once for every part."""
        rows = np.argsort(self.class_id, kind="stable")
        return rows, self.class_id[rows]

    def part_columns(self, part: int) -> dict[str, Any]:
        """The rows of one part of the plan manifest."""
        rows = np.arange(*np.searchsorted(self.part, [part, part + 1]))
        return {
            "face_id": self.face_id[rows],
            "photo": self.photo[rows],
            "part": self.part[rows],
            "row": self.row[rows],
            "status": self.status[rows],
            "reason": self.subjects.reason[rows],
            "subject_id": self.subject_id[rows],
            "class_id": self.class_id[rows],
            "originals": _maps(self.originals, rows),
            "released": _maps(self.released, rows),
        }

    def members_columns(self, part: int, classes_per_part: int) -> dict[str, Any]:
        """The rows of one part of the members manifest: whole classes, by class, subject and place."""
        low, high = part * classes_per_part, (part + 1) * classes_per_part
        in_order, classes = self._by_class
        rows = in_order[slice(*np.searchsorted(classes, [low, high]))]
        order = np.lexsort((self.row[rows], self.part[rows], self.subject_id[rows].astype(str), self.class_id[rows]))
        rows = rows[order]
        return {
            "class_id": self.class_id[rows],
            "subject_id": self.subject_id[rows],
            "part": self.part[rows],
            "row": self.row[rows],
        }


def load(
    config: ReleaseConfig,
    plan: pa.Table,
    faces: pa.Table,
    source: str,
    split_rate: float | None,
    merged: int,
    planned: Planned | None = None,
) -> Plan:
    """A plan as it was committed: its manifest and the embeddings of the faces manifest, both whole and in order."""
    subjects = Subjects(
        _objects(plan["subject_id"]), _objects(plan["status"]), _objects(plan["reason"]), source, split_rate, merged
    )
    return Plan(
        face_id=_objects(plan["face_id"]),
        photo=_objects(plan["photo"]),
        part=plan["part"].to_numpy(),
        row=plan["row"].to_numpy(),
        embedding=embedding_array(faces["embedding"]),
        subjects=subjects,
        class_id=plan["class_id"].to_numpy(),
        originals=_lookup(plan["originals"], (*config.policy.quasi_identifiers, *config.policy.sensitive)),
        released=_lookup(plan["released"], config.policy.quasi_identifiers),
        images=_images(subjects, config.method.surrogates_per_subject),
        planned=planned,
    )


def make(
    config: ReleaseConfig,
    source: str,
    photos: pa.Table,
    faces: pa.Table,
    inferred: Mapping[str, np.ndarray] | None = None,
    key: RunKey | None = None,
) -> Plan:
    """Assign subjects, cut classes, choose released attributes.

    source : where subjects come from (folder, column, clusters); photos : photo, subject and attributes of every photo;
    faces : the faces manifest without its crops; inferred : attribute → (N,) object, predicted values of every face,
    None where unknown. What the input brings wins; key : what planners draw by.

    Raises PolicyError when fewer than k people have a usable face, UnreachableError when no partition into classes can
    meet l and t, or no released vectors the policy.
    """
    photo = _objects(faces["photo"])
    of_photo = {name: i for i, name in enumerate(photos["photo"].to_pylist())}
    at = np.fromiter((of_photo[name] for name in photo), dtype=np.int64, count=len(photo))
    embedding = embedding_array(faces["embedding"])
    subjects = assign(
        source,
        named=_objects(photos["subject"])[at],
        photo=photo,
        face_index=faces["face_index"].to_numpy(),
        status=_objects(faces["status"]),
        reason=_objects(faces["reason"]),
        embedding=embedding,
        threshold=config.input.cluster_threshold,
        same_person=config.input.same_person,
    )
    policy = config.policy
    names = (*policy.quasi_identifiers, *policy.sensitive)
    originals = {name: values[at] for name, values in _lookup(photos["attributes"], names).items()}
    for name, values in (inferred or {}).items():
        originals[name] = np.where(_missing(originals[name]), values, originals[name])
    # The input's attributes describe its subject, so a bystander on the photo has none.
    nobody = subjects.subject_id == ""
    for values in originals.values():
        values[nobody] = None
    if config.method.select:
        _leave_out(config, subjects, originals[config.method.select])
    planned = None
    if config.method.name == "translation":
        named = {name for name in photos["subject"].to_pylist() if name}
        people = subjects.count if source == "clusters" else len(named) - subjects.merged
        class_id, released, planned = _vectors(config, subjects, originals, people, key or RunKey.draw())
    else:
        class_id, released = _classes(config, subjects, embedding, originals)
    part = faces["part"].to_numpy()
    start = np.searchsorted(part, part)
    return Plan(
        face_id=_objects(faces["face_id"]),
        photo=photo,
        part=part,
        row=np.arange(len(part)) - start,
        embedding=embedding,
        subjects=subjects,
        class_id=class_id,
        originals=originals,
        released=released,
        images=_images(subjects, config.method.surrogates_per_subject),
        planned=planned,
    )


def _people(config: ReleaseConfig, subjects: Subjects) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The rows that are kept, the people on them, and which of these each row shows. Raises PolicyError."""
    rows = _kept(subjects)
    people, person = np.unique(subjects.subject_id[rows].astype(str), return_inverse=True)
    k = config.policy.k or 1
    if not len(rows):
        raise PolicyError("no usable face in the input; the faces manifest in the workspace has the reasons")
    if len(people) < k:
        raise PolicyError(f"k = {k} cannot be reached: {len(people)} people have a usable face; lower k or add people")
    return rows, people, person


def _classes(
    config: ReleaseConfig, subjects: Subjects, embedding: np.ndarray, originals: dict[str, np.ndarray]
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    rows, people, person = _people(config, subjects)
    k = config.policy.k or 1
    class_id = np.full(len(subjects.subject_id), NO_CLASS, dtype=np.int32)
    names = config.policy.quasi_identifiers
    quasi = {name: originals[name][rows] for name in names}
    shown: dict[str, np.ndarray] = {}
    if config.method.of_class:
        means = subject_means(embedding[rows], person, len(people))
        sensitive = {name: originals[name][rows] for name in config.policy.sensitive}
        select = config.method.select
        within = _majority(person, {select: quasi[select]})[select] if select else None
        class_id[rows] = _partition(config.policy, k, means, person, sensitive, within)[person]
        if names:
            shown = _class_majority(class_id[rows], person, quasi)
    elif names:
        shown = {name: values[person] for name, values in _majority(person, quasi).items()}
        class_id[rows] = equivalence_classes(_table(shown)).ids
    released = {name: np.full(len(class_id), None, dtype=object) for name in names}
    for name in names:
        released[name][rows] = shown[name]
    return class_id, released


def _vectors(
    config: ReleaseConfig, subjects: Subjects, originals: dict[str, np.ndarray], named: int, key: RunKey
) -> tuple[np.ndarray, dict[str, np.ndarray], Planned]:
    """The classes and released attributes of a translation; whom no class takes in is suppressed, in place.

    named : people of the input, of whom ``max_suppression`` is a share
    """
    rows, people, person = _people(config, subjects)
    policy, names = config.policy, config.policy.quasi_identifiers
    own, drawn = _known(_majority(person, {name: originals[name][rows] for name in names}), people, policy, key)
    sensitive = _table({name: originals[name][rows] for name in policy.sensitive})
    cells = planning.cells(
        people[person],
        _table({name: values[person] for name, values in own.items()}),
        sensitive if policy.sensitive else None,
        per_subject=False,  # they are already one vector each
    )
    cells = _public_domains(cells)
    spare = max(0, int(policy.max_suppression * named + 1e-9) - (named - len(people)))
    share = spare / len(people)
    while True:
        wants = replace(asked(policy), max_suppression=share)
        made = planners.made(config.method.planner, cells, wants, key.digest)
        partial = made.cells.partial
        cell = np.empty(len(people), dtype=np.int64)
        cell[np.searchsorted(people, _objects(partial.subjects).astype(str))[partial.cell_subject]] = partial.cell_class
        of_person = made.plan.class_of_cell[cell]
        if (of_person == planning.SUPPRESSED).sum() <= spare:
            break
        # Planners count photos, a release people: where those left out have few photos, fewer of them may go.
        share = share / 2 if share * len(rows) >= 1 else 0.0
    out = of_person == planning.SUPPRESSED
    if out.all():
        raise PolicyError("the plan leaves out everybody, so nothing is released; relax the policy")
    subjects.status[rows[out[person]]], subjects.reason[rows[out[person]]] = SUPPRESSED, LEFT_OUT
    labels = made.plan.labels(made.cells.attributes).take(pa.array(of_person[~out]))
    class_id = np.full(len(subjects.subject_id), NO_CLASS, dtype=np.int32)
    in_plan = np.cumsum(~out) - 1
    shown = ~out[person]
    class_id[rows[shown]] = equivalence_classes(labels).ids[in_plan[person[shown]]]
    released = {name: np.full(len(class_id), None, dtype=object) for name in names}
    for name in names:
        released[name][rows[shown]] = _objects(labels[name])[in_plan[person[shown]]]
    notes = made.plan.notes
    return class_id, released, Planned(config.method.planner, made.epsilon, made.choices, tuple(notes), drawn)


def _public_domains(cells: planning.Cells) -> planning.Cells:
    """The cells with what an attribute can be taken from what is public, not from who is in the input.

    What predictors know is there or not there, whether or not these people show both: else an attribute in which they
    are all alike would be constant, released as it is whatever epsilon is asked.
    """
    attributes, codes = [], cells.codes.copy()
    for at, attribute in enumerate(cells.attributes):
        if _binary(attribute.name, attribute.values) and attribute.size == 1:
            codes[:, at] = BOTH.index(attribute.values[0])
            attribute = domain(attribute.name, BOTH)
        attributes.append(attribute)
    return replace(cells, attributes=tuple(attributes), codes=codes)


def _binary(name: str, values: Sequence[str]) -> bool:
    """Whether an attribute that has these values is one that predictors know, in their own words."""
    return name in predictable() and set(values) <= set(BOTH)


def _known(
    own: dict[str, np.ndarray], people: np.ndarray, policy: Policy, key: RunKey
) -> tuple[dict[str, np.ndarray], dict[str, int]]:
    """Everybody's values, those that are unknown drawn, and how many were.

    They are drawn as often as others have them; where epsilon is asked all alike, so that they tell of nobody else.
    """
    drawn = {}
    for name, values in own.items():
        unknown = np.flatnonzero(values == ANY)
        found, held = np.unique(values[values != ANY].astype(str), return_counts=True)
        if _binary(name, found.tolist()):
            found, held = np.array(BOTH), np.array([(values == value).sum() for value in BOTH])
        share = None if policy.epsilon else held / max(held.sum(), 1)
        # Where nobody's is known the release leaves it open; with epsilon that too would tell of who is in the input.
        if not len(unknown) or not len(found) or not (held.any() or policy.epsilon):
            continue
        drawn[name] = len(unknown)
        for at in unknown:
            values[at] = str(key.generator("unknown", f"{people[at]}/{name}").choice(found, p=share))
    return own, drawn


def asked(policy: Policy) -> limits.Policy:
    """What a release's policy asks of its table."""
    return limits.Policy(
        subject=policy.subject,
        quasi_identifiers=policy.quasi_identifiers,
        sensitive=policy.sensitive,
        k=policy.k,
        l=limits.Diversity(**policy.l.model_dump()) if policy.l else None,
        t=limits.Closeness(**policy.t.model_dump()) if policy.t else None,
        epsilon=policy.epsilon,
    )


def _kept(subjects: Subjects) -> np.ndarray:
    return np.flatnonzero((subjects.subject_id != "") & (subjects.status == OK))


def _leave_out(config: ReleaseConfig, subjects: Subjects, values: np.ndarray) -> None:
    """Suppress, in place, whoever k-same-select can put in no class. Raises PolicyError where they are too many."""
    rows, name, k = _kept(subjects), config.method.select, config.policy.k
    if not len(rows):
        return
    person = np.unique(subjects.subject_id[rows].astype(str), return_inverse=True)[1]
    own = _majority(person, {"own": values[rows]})["own"].astype(str)
    found, value, held = np.unique(own, return_inverse=True, return_counts=True)
    few = (held < (k or 1)) | (found == ANY)
    said = [
        f"{name} is unknown of {count} people" if shown == ANY else f"{name} = {shown} is held by {count} people"
        for shown, count in zip(found, held, strict=True)
    ]
    out = few[value]
    if out.mean() > config.policy.max_suppression:
        why = " and ".join(said[i] for i in np.flatnonzero(few))
        raise PolicyError(
            f"k-same-select cannot keep {name} with k = {k}: {why}, and leaving them out suppresses {out.mean():.1%} "
            f"of the people (max_suppression {config.policy.max_suppression:g}); lower k, raise it or select another "
            "attribute"
        )
    for at in np.flatnonzero(out[person]):
        subjects.status[rows[at]] = SUPPRESSED
        subjects.reason[rows[at]] = f"k-same-select: {said[value[person[at]]]}, fewer than can form a class"


def _partition(
    policy: Policy,
    k: int,
    means: np.ndarray,
    person: np.ndarray,
    sensitive: dict[str, np.ndarray],
    within: np.ndarray | None = None,
) -> np.ndarray:
    """The class of each subject, (people,), by k-same; of subjects with one value of ``within`` only."""
    within = None if within is None else within.astype(str)
    if not (policy.l or policy.t):
        return microaggregate(means, k, within=within).ids
    # one class per person: its weights are the person's own, shared among the values of their photos
    table = histogram(person, class_ids=person, sensitive=_table(sensitive))
    needs = Requirements(table.values, table.reference, asked(policy))
    return microaggregate(means, k, within=within, sensitive=table.weights.toarray(), requirements=needs).ids


def _images(subjects: Subjects, per_subject: int | None) -> np.ndarray:
    """Images per row: one for every face of a subject, or ``per_subject`` of each, dealt out over its faces."""
    rows, subject_id = _kept(subjects), subjects.subject_id
    images = np.zeros(len(subject_id), dtype=np.int64)
    if per_subject is None:
        images[rows] = 1
        return images
    _, person, faces = np.unique(subject_id[rows].astype(str), return_inverse=True, return_counts=True)
    order = np.argsort(person, kind="stable")
    number = np.empty(len(rows), dtype=np.int64)
    number[order] = np.arange(len(rows)) - np.repeat(np.cumsum(faces) - faces, faces)
    images[rows] = per_subject // faces[person] + (number < per_subject % faces[person])
    return images


def _majority(unit: np.ndarray, columns: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What most rows of each unit have, attribute by attribute: (units,) object each.

    unit : (n,) int, 0 …; columns : (n,) object each, None where unknown, which takes no part: ``*`` where a unit has
    nothing else.
    """
    found = {}
    for name, values in columns.items():
        known = np.flatnonzero(~_missing(values))
        found[name] = np.full(int(unit.max(initial=-1)) + 1, ANY, dtype=object)
        if len(known):
            vectors = per_subject_majority(unit[known], _table({name: values[known]}))
            found[name][vectors.subjects.to_numpy()] = _objects(vectors.vectors[name])
    return found


def _class_majority(class_id: np.ndarray, person: np.ndarray, quasi: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What the whole class of each row shows: the value most of its subjects have, each with their own majority.

    Where no two of them share a value, the most frequent one would be one member's own, so ``*`` is shown.
    """
    crowd = class_id[np.unique(person, return_index=True)[1]]
    people = _majority(person, quasi)
    for values in people.values():
        values[values == ANY] = None  # who has no known value has no vote
    shown = {}
    for name, values in _majority(crowd, people).items():
        votes = np.bincount(crowd, weights=people[name] == values[crowd], minlength=len(values))
        alone = (votes < 2) & (np.bincount(crowd) > 1)
        shown[name] = np.where(alone, ANY, values)[class_id]
    return shown


def _missing(values: np.ndarray) -> np.ndarray:
    """(N,) bool: where an object array holds None."""
    return np.fromiter((value is None for value in values), dtype=bool, count=len(values))


def _objects(column: pa.ChunkedArray) -> np.ndarray:
    out = np.empty(len(column), dtype=object)
    out[:] = column.to_pylist()
    return out


def _table(columns: dict[str, np.ndarray]) -> pa.Table:
    return pa.table({name: pa.array(values, type=pa.string()) for name, values in columns.items()})


def _maps(columns: dict[str, np.ndarray], rows: np.ndarray) -> list[dict[str, str]]:
    """One dict per row; values that are None are left out."""
    return [{name: values[row] for name, values in columns.items() if values[row] is not None} for row in rows]


def _lookup(column: pa.ChunkedArray, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Columns out of a map column: (N,) object each, None where a map lacks the name."""
    return {name: _objects(pc.map_lookup(column, pa.scalar(name), "first")) for name in names}
