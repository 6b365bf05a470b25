"""Attacks with ready-made recognisers: who is it, are these two one person, is this person in the release?

Three sections of an audit, each a list of figures. They read arrays, not files:

``embedded``  recogniser → (released (n, D), originals (N, D)) float32 of any length; a row that is zero or not finite
              is a picture in which the recogniser found no face
``subject``   (N,) whose each original is; "" where it has no person
``row``       (n,) for each released face the position of its source among the originals
``groups``    attribute → (n,) str, "1", "0", "" where unknown, of the released faces' people
``classes``   (n,) the class of each released face, for methods that form them
``rng``       draws the bootstrap, and whom to ask where not everybody is

**Protocol.** The *probe* is a released face; its true name is its source's subject. The *gallery* is what the attacker
has enrolled under true names:

originals        all original faces of the people who have a released face, the probe's own source among them: an
                 attacker with the very dataset, and the upper bound
other originals  the same without the probe's own source photo: an attacker with other pictures of these people
released         the other released faces under their true names (DeepBlur's T3, its parrot attack, by embeddings): an
                 attacker who has seen the method at work on these people

People without a released face are in no gallery: the attacker knows who is in the release. A probe and a person are
compared by the person's best gallery face (cosine). The attacker names the best (rank 1) or the five best (rank 5);
among equals it guesses, and its expected success counts. Probes whose person has no face left in the gallery are left
out of these figures and say so.

*Verification.* The same scores as a claim "this is A": genuine where it is, impostor where it is not; tar is the share
of genuine claims accepted at a threshold that accepts a share ``at`` of the impostor ones (ISO/IEC 19795-1). Chance is
``at`` itself.

*Linkage.* Pairs of released faces: genuine of one person, impostor of two. The attacker needs nothing but the release.
"pairs of one class" are those whose faces are of one class, where the class itself tells nothing. Chance is an AUC and
an equal error rate of 0.5.

*Membership.* The attacker has photos of a person and asks whether the person is in the release: the score of a photo is
its cosine with the nearest released face. Members have a released face; non-members are people of the input who have
none, and any given outsiders. A photo of a member may be the source of a released face.

**Every person weighs the same**, however many photos: each figure is a mean over people of their means, with its 95 %
interval by bootstrap over people; thresholds are held. ``better`` is what protects the people.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from facecrowd.jobs.bootstrap import People, Statistic, auc, joined
from facecrowd.jobs.figures import Figure
from facecrowd.privacy.bound import bound_test
from facecrowd.privacy.embeddings import unit
from facecrowd.privacy.errors import PrivacyError
from facecrowd.privacy.openset import GRID, Recognition, ScoreCounts, levels, recognise

Embedded = Mapping[str, tuple[np.ndarray, np.ndarray]]

FARS = (0.1, 1e-2, 1e-3)
FPRS = (0.1, 1e-2)
GALLERIES = ("originals", "other originals", "released")
MOST = 20_000
"""Faces that are asked about, at most: whole people are drawn."""
FEW = 10
"""Non-members under whom membership is not measured."""
BLOCK = 1024


# --------------------------------------------------------------------------------------------------------- identity


def identity_figures(
    embedded: Embedded,
    subject: np.ndarray,
    row: np.ndarray,
    rng: np.random.Generator,
    *,
    groups: Mapping[str, np.ndarray] | None = None,
    classes: np.ndarray | None = None,
    bound: float | np.ndarray | None = None,
    most: int = MOST,
) -> list[Figure]:
    """Of each recogniser and gallery: rank1, rank5 and tar at each false-accept rate, and rank1 of each group.

    classes, bound : given both, for methods whose guarantee is formal, ``p-value`` of the hypothesis that the people of
        a class are named no more often than ``bound`` (1 / k, or (n,) that of each face's class), whose verdict is its
        note (``privacy.bound``), and whose ``low`` is the p-value that naming everybody would have
    most : probes at most; whole people are drawn
    """
    who = np.asarray(subject).astype(str)
    out: list[Figure] = []
    for by, (released, originals) in embedded.items():
        seen = _Seen.of(released, originals, who, row, rng, most)
        for gallery in GALLERIES:
            out += _of_gallery(by, gallery, seen, rng, groups or {}, classes, bound)
    return out


@dataclass(frozen=True, eq=False)
class _Seen:
    """Faces that a recogniser could look at: (n', D), (n',) positions of them among all released faces, and of the
    originals of released people, (M, D), (M,); name (N,); probe, positions among the n' of those that are asked about;
    note, on the rest."""

    released: np.ndarray
    face: np.ndarray
    originals: np.ndarray
    original: np.ndarray
    name: np.ndarray
    row: np.ndarray
    probe: np.ndarray
    note: str

    @classmethod
    def of(
        cls,
        released: np.ndarray,
        originals: np.ndarray,
        name: np.ndarray,
        row: np.ndarray,
        rng: np.random.Generator,
        most: int,
    ) -> _Seen:
        face = np.flatnonzero(_usable(released))
        known = np.isin(name, np.unique(name[row])) & (name != "")
        original = np.flatnonzero(_usable(originals) & known)
        probe = _drawn(name[row[face]], most, rng)
        notes = []
        if blind := len(row) - len(face):
            notes.append(f"no face found in {blind} of {len(row)} released pictures, which are left out")
        if len(probe) < len(face):
            notes.append(f"{len(probe)} of {len(face)} released faces, of people drawn at random")
        return cls(released[face], face, originals[original], original, name, row, probe, joined(*notes))

    def names(self) -> np.ndarray:
        """Whose each released face is, (n',)."""
        found: np.ndarray = self.name[self.row[self.face]]
        return found


def _of_gallery(
    by: str,
    gallery: str,
    seen: _Seen,
    rng: np.random.Generator,
    groups: Mapping[str, np.ndarray],
    classes: np.ndarray | None,
    bound: float | np.ndarray | None,
) -> list[Figure]:
    blank = Figure("identity", "", by, gallery, better="lower", note=seen.note)
    forms = [replace(blank, name=f"rank{rank}") for rank in (1, 5)]
    forms += [replace(blank, name="tar", at=far, chance=far) for far in FARS]
    try:
        found = _recognised(gallery, seen, rng)
    except PrivacyError as error:
        reason = f"not measured: {str(error).partition(';')[0]}"
        return [replace(form, chance=None, note=joined(reason, form.note)) for form in forms]
    here = seen.face[seen.probe]
    who, mated = seen.names()[seen.probe], found.search.mated
    people = People(who, {name: np.asarray(of)[here] for name, of in groups.items()}, rng)
    left = int((~mated).sum())
    alone = f"{left} of {len(mated)} faces left out, whose people have no other face there" if left else ""
    out: list[Figure] = []
    for form, rank in zip(forms[:2], (1, 5), strict=True):
        form = replace(form, note=joined(form.note, alone))
        success, guessed = np.full(len(who), np.nan), np.minimum(1.0, rank / np.maximum(1, found.search.candidates))
        success[mated] = found.search.success(rank)
        out += people.mean(form, success, rate=True, by_group=rank == 1, guessed=guessed)
    for form, (far, accepts) in zip(forms[2:], found.tar.items(), strict=True):
        accepted = np.full(len(who), np.nan)
        accepted[mated] = levels(found.search.score[mated]) > round((accepts.threshold + 1) * GRID)
        pairs = f"{found.impostor_pairs:,} impostor scores"
        few = "fewer than ten of them decide" if far * found.impostor_pairs < 10 else ""
        out += people.mean(replace(form, note=joined(pairs, few, form.note, alone)), accepted, rate=True)
    if classes is not None and bound is not None:
        limit = np.broadcast_to(np.asarray(bound, np.float64), np.shape(classes))[here][mated]
        test = bound_test(found.search.success(1), who[mated], np.asarray(classes)[here][mated], limit)
        note = joined(test.text, seen.note, alone)
        form = replace(blank, name="p-value", at=float(limit.max()), low=test.least, better="", note=note)
        out.append(replace(form, value=test.p, faces=int(mated.sum()), subjects=test.subjects))
    return out


def _recognised(gallery: str, seen: _Seen, rng: np.random.Generator) -> Recognition:
    probes, names = seen.released[seen.probe], seen.names()
    if gallery == "released":
        enrolled, whose, exclude = seen.released, names, seen.probe
    else:
        enrolled, whose = seen.originals, seen.name[seen.original]
        exclude = np.full(len(probes), -1)
        if gallery == "other originals":
            place = np.full(len(seen.name), -1)
            place[seen.original] = np.arange(len(seen.original))
            exclude = place[seen.row[seen.face[seen.probe]]]
    return recognise(probes, names[seen.probe], enrolled, whose, rng=rng, fars=FARS, ranks=(1, 5), exclude=exclude)


# ---------------------------------------------------------------------------------------------------------- linkage


def linkage_figures(
    embedded: Embedded,
    subject: np.ndarray,
    row: np.ndarray,
    rng: np.random.Generator,
    *,
    classes: np.ndarray | None = None,
    most: int = MOST // 2,
) -> list[Figure]:
    """Of each recogniser: auc, eer and tar at each false-accept rate of pairs of released faces; with ``classes`` also
    of pairs inside a class.

    most : released faces at most, whose pairs are all compared; whole people are drawn
    """
    who = np.asarray(subject).astype(str)
    out: list[Figure] = []
    for by, (released, originals) in embedded.items():
        seen = _Seen.of(released, originals, who, row, rng, most)
        names = seen.names()[seen.probe]
        crowd = None if classes is None else np.asarray(classes)[seen.face[seen.probe]]
        compared = {"released pairs": _compared(seen.released[seen.probe], names, np.zeros(len(names), np.int64))}
        if crowd is not None:
            compared["pairs of one class"] = _compared(seen.released[seen.probe], names, crowd)
        for setting, pairs in compared.items():
            out += _of_pairs(Figure("linkage", "", by, setting, note=seen.note), pairs, rng)
    return out


@dataclass(frozen=True, eq=False)
class _Pairs:
    """level (G,) of the genuine pairs, whose (G,) they are, the faces that they are made of, and the impostors."""

    level: np.ndarray
    whose: np.ndarray
    faces: int
    impostors: ScoreCounts


def _compared(faces: np.ndarray, who: np.ndarray, crowd: np.ndarray) -> _Pairs:
    """All pairs of faces (n, D) of one crowd (n,), each once."""
    level, whose, paired, impostors = [], [], np.zeros(len(faces), bool), ScoreCounts()
    person = np.unique(who, return_inverse=True)[1]
    group = np.unique(crowd, return_inverse=True)[1]
    order = np.argsort(group, kind="stable")
    for members in np.split(order, np.cumsum(np.bincount(group))[:-1]) if len(order) else ():
        vectors, own = unit(faces[members], "released"), person[members]
        for start in range(0, len(members), BLOCK):
            block = vectors[start : start + BLOCK] @ vectors[start:].T
            once = np.arange(len(block))[:, None] < np.arange(block.shape[1])
            same = own[start : start + BLOCK, None] == own[start:]
            impostors.add(block[once & ~same])
            first, second = np.nonzero(once & same)
            level.append(levels(block[first, second]))
            whose.append(own[start + first])
            paired[members[start + first]] = paired[members[start + second]] = True
    empty = np.zeros(0, np.int64)
    return _Pairs(np.concatenate([empty, *level]), np.concatenate([empty, *whose]), int(paired.sum()), impostors)


def _of_pairs(blank: Figure, pairs: _Pairs, rng: np.random.Generator) -> list[Figure]:
    forms = [replace(blank, name="auc", better="lower", chance=0.5), replace(blank, name="eer", better="higher")]
    forms[1] = replace(forms[1], chance=0.5)
    forms += [replace(blank, name="tar", at=far, better="lower", chance=far) for far in FARS]
    missing = "" if len(pairs.level) else "one person"
    missing = missing if pairs.impostors.total else joined(missing, "two people")
    if missing:
        reason = f"not measured: no pair of faces of {missing.replace('; ', ' or of ')}"
        return [replace(form, chance=None, note=joined(reason, form.note)) for form in forms]
    said = f"{len(pairs.level):,} pairs of one person, {pairs.impostors.total:,} of two"
    whose, person = np.unique(pairs.whose, return_inverse=True)
    count = np.bincount(person)
    everybody = np.ones(len(whose), bool)
    people = People(whose, {}, rng)

    def per_person(values: np.ndarray) -> np.ndarray:
        found: np.ndarray = np.bincount(person, weights=values) / count
        return found

    out = people.mean(forms[0], per_person(pairs.impostors.exceeded(pairs.level)), rate=True)
    out.append(people.figure(forms[1], _equal_error(pairs, person), everybody))
    for form in forms[2:]:
        accepted = pairs.level > pairs.impostors.threshold(form.at or 0.0)
        out += people.mean(form, per_person(accepted), rate=True)
    return [replace(one, faces=pairs.faces, note=joined(said, one.note)) for one in out]


def _equal_error(pairs: _Pairs, person: np.ndarray) -> Statistic:
    """The false-accept rate that equals the share of genuine pairs refused, where the ROC, its points joined, has it.

    The curve is taken at 512 false-accept rates; the statistic's weights are those of people, not of pairs.
    """
    at = np.unique(pairs.impostors.threshold(np.arange(1, 512) / 512))[::-1]
    far = np.concatenate([[0.0], pairs.impostors.above(at), [1.0]])
    # The first threshold, downward, that a pair passes; the last accepts everything.
    first = len(at) - np.searchsorted(at[::-1], pairs.level, side="left")
    hits = np.bincount(person * (len(at) + 1) + first, minlength=(person.max() + 1) * (len(at) + 1))
    hits = hits.reshape(-1, len(at) + 1)
    passed = np.cumsum(hits, axis=1) / hits.sum(axis=1, keepdims=True)
    passed = np.concatenate([np.zeros((len(passed), 1)), passed], axis=1)

    def statistic(w: np.ndarray) -> np.ndarray:
        gap = far + w @ passed / w.sum(1, keepdims=True) - 1.0
        after = np.argmax(gap >= 0, axis=1)
        rows = np.arange(len(gap))
        share = -gap[rows, after - 1] / (gap[rows, after] - gap[rows, after - 1])
        found: np.ndarray = far[after - 1] + share * (far[after] - far[after - 1])
        return found

    return statistic


# ------------------------------------------------------------------------------------------------------- membership


def membership_figures(
    embedded: Embedded,
    subject: np.ndarray,
    row: np.ndarray,
    rng: np.random.Generator,
    *,
    outsiders: Mapping[str, np.ndarray] | None = None,
    outsider: np.ndarray | None = None,
    most: int = MOST,
) -> list[Figure]:
    """Of each recogniser: auc and tpr at each false-positive rate, of photos of members against those of non-members.

    outsiders : recogniser → (O, D), photos of people who were never in the input; outsider : (O,) whose they are, by
        default a person each
    most : photos at most of each side; whole people are drawn
    """
    who = np.asarray(subject).astype(str)
    out: list[Figure] = []
    for by, (released, originals) in embedded.items():
        inside = np.isin(who, np.unique(who[row]))
        named, usable = who != "", _usable(originals)
        shown = released[_usable(released)]
        sides = {"people not released": (originals[usable & named & ~inside], who[usable & named & ~inside])}
        if outsiders is not None and by in outsiders:
            some = _usable(outsiders[by])
            whose = np.arange(len(some)) if outsider is None else np.asarray(outsider)
            sides["outsiders"] = (outsiders[by][some], whose[some].astype(str))
        members, names = originals[usable & named & inside], who[usable & named & inside]
        some = _drawn(names, most, rng)
        members, names = members[some], names[some]
        for setting, (others, strangers) in sides.items():
            some = _drawn(strangers, most, rng)
            out += _of_members(by, setting, shown, (members, names), (others[some], strangers[some]), rng)
    return out


def _of_members(
    by: str,
    setting: str,
    shown: np.ndarray,
    members: tuple[np.ndarray, np.ndarray],
    others: tuple[np.ndarray, np.ndarray],
    rng: np.random.Generator,
) -> list[Figure]:
    forms = [Figure("membership", "auc", by, setting, better="lower", chance=0.5)]
    forms += [Figure("membership", "tpr", by, setting, at=fpr, better="lower", chance=fpr) for fpr in FPRS]
    strangers = len(np.unique(others[1]))
    if strangers < FEW or not len(members[0]) or not len(shown):
        reason = f"not measured: {strangers} people who are not in the release are too few"
        reason = reason if strangers < FEW else "not measured: no face of a person in the release"
        return [replace(form, chance=None, note=reason) for form in forms]
    # A prefix keeps people apart whom two datasets call alike.
    subject = np.concatenate(
        [np.char.add(side, whose) for side, (_, whose) in zip("io", (members, others), strict=True)]
    )
    truth = np.arange(len(subject)) < len(members[0])
    gallery = unit(shown, "released")
    scores = np.concatenate([_nearest(vectors, gallery) for vectors, _ in (members, others)])
    people = People(subject, {}, rng)
    everybody = np.ones(len(subject), bool)
    said = f"{len(np.unique(members[1]))} people in the release, {strangers} not"
    out = [people.figure(forms[0], auc(scores, truth), everybody)]
    for form in forms[1:]:
        few = "fewer people than the rate can tell" if strangers * (form.at or 0.0) < 1 else ""
        out.append(people.figure(replace(form, note=few), _true_positives(scores, truth, form.at or 0.0), everybody))
    return [replace(one, note=joined(said, one.note)) for one in out]


def _nearest(faces: np.ndarray, gallery: np.ndarray) -> np.ndarray:
    """The level of the best cosine of each face (M, D) with unit vectors (n, D): (M,)."""
    vectors = unit(faces, "original")
    best = np.full(len(vectors), -1.0, np.float32)
    for start in range(0, len(vectors), BLOCK):
        block = vectors[start : start + BLOCK]
        for at in range(0, len(gallery), 4 * BLOCK):
            found = (block @ gallery[at : at + 4 * BLOCK].T).max(axis=1)
            best[start : start + BLOCK] = np.maximum(best[start : start + BLOCK], found)
    return levels(best)


def _true_positives(scores: np.ndarray, truth: np.ndarray, rate: float) -> Statistic:
    """The share of the true above the lowest threshold that at most a share ``rate`` of the others exceeds."""
    _, level = np.unique(scores, return_inverse=True)
    order = np.argsort(level, kind="stable")
    starts = np.flatnonzero(np.diff(level[order], prepend=-1))
    true = truth[order].astype(np.float64)

    def statistic(w: np.ndarray) -> np.ndarray:
        share = []
        for of in (true, 1 - true):
            upto = np.cumsum(np.add.reduceat(w[:, order] * of, starts, axis=1), axis=1)
            share.append(1 - upto / upto[:, -1:])
        threshold = np.argmax(share[1] <= rate + 1e-12, axis=1)
        found: np.ndarray = np.where(np.isnan(share[1][:, 0]), np.nan, share[0][np.arange(len(w)), threshold])
        return found

    return statistic


# ---------------------------------------------------------------------------------------------------------- selection


def _usable(vectors: np.ndarray) -> np.ndarray:
    """Rows of (n, D) that have a direction: (n,) bool."""
    return np.isfinite(vectors).all(axis=1) & (vectors != 0).any(axis=1)


def _drawn(who: Sequence[Any] | np.ndarray, most: int, rng: np.random.Generator) -> np.ndarray:
    """Positions of at most ``most`` faces, in order: whole people, drawn at random."""
    if len(who) <= most:
        return np.arange(len(who))
    people, person, count = np.unique(np.asarray(who), return_inverse=True, return_counts=True)
    order = rng.permutation(len(people))
    taken = order[np.cumsum(count[order]) <= most]
    return np.flatnonzero(np.isin(person, taken))
