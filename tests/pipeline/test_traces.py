"""Claims of pipeline/traces.py: chance accuses nobody, and what follows from the source is found beyond all chance."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import pytest
from scipy import stats

from facecrowd.pipeline import traces
from facecrowd.pipeline.config import Method
from facecrowd.pipeline.traces import DECLARED, Declared, Known, Original, columns, copied, declared, names, orders
from facecrowd.stages.decode import decode
from facecrowd.stages.encode import encode

Settings = Callable[..., Any]
NOTHING = Declared("nothing", False, "")
ALTERED = Declared("altered", True, "")
OWN = Declared("own", True, "")


def objects(values: list[Any]) -> np.ndarray:
    out = np.empty(len(values), dtype=object)
    out[:] = values
    return out


def known_of(subjects: int, photos: int, rng: np.random.Generator, crowd: int = 5) -> tuple[pa.Table, Known]:
    """A release as it should be: random names in their order, classes of ``crowd`` people, a value of each class."""
    n = subjects * photos
    person = np.repeat(np.arange(subjects), photos)
    name = [rng.bytes(16).hex() for _ in range(n)]
    photo = [f"{who:05d}/{i:03d}.jpg" for i, who in enumerate(person)]
    class_id = (person // crowd).astype(np.int32)
    known = Known(
        name=objects(name),
        face_id=objects([f"face {i}" for i in range(n)]),
        photo=objects(photo),
        subject=objects([f"{who:05d}" for who in person]),
        path=objects([f"/photos/{one}" for one in photo]),
        place=np.arange(n),
        size=rng.integers(10_000, 1_000_000, n),
        class_id=class_id,
        shown={"hat": objects([str(c % 2) for c in class_id])},
    )
    table = pa.table(
        {
            "name": name,
            "file": [f"images/{one}.jpg" for one in name],
            "width": np.full(n, 256),
            "sha256": [rng.bytes(32).hex() for _ in range(n)],
            "identity": [""] * n,
            "hat": known.shown["hat"].tolist(),
        }
    )
    return table.sort_by("name"), known


def of_rows(table: pa.Table, known: Known, values: np.ndarray) -> list[Any]:
    """Values of the known faces, in the order of the manifest's rows."""
    value = dict(zip(known.name, values.tolist(), strict=True))
    return [value[name] for name in table["name"].to_pylist()]


@pytest.fixture
def config(settings: Settings) -> Any:
    return settings("release", **{"policy.quasi_identifiers": ["hat"], "input.attributes": "table.csv"})


# ------------------------------------------------------------------------------------------------------ false alarms


@pytest.mark.parametrize("subjects, each", [(3, 2), (6, 2), (40, 5), (2, 100), (500, 1), (200, 10)])
def test_random_releases_are_accused_of_nothing(subjects: int, each: int, config: Any) -> None:
    rng = np.random.default_rng(0)
    for _ in range(5):
        table, known = known_of(subjects, each, rng)
        assert [*orders(table, known), *names(table, known), *columns(table, known, config)] == []


def test_how_often_chance_looks_like_an_order_is_what_is_said() -> None:
    """The chances of shuffled releases are at most uniform: below x in at most a share x of them."""
    rng = np.random.default_rng(1)
    chances = []
    for _ in range(500):
        order = rng.permutation(60)
        person = np.array([str(at // 3) for at in order])
        trend = traces._trend(np.arange(60.0), order.astype(float))
        chances.append((trend, traces._neighbours(person.tolist()), traces._successors(order + 1.0)))
    for of_test in np.array(chances).T:
        for limit in (0.3, 0.05, 0.01):
            assert (of_test <= limit).mean() <= limit + 3 * np.sqrt(limit / 500)


# ------------------------------------------------------------------------------------------------------------ orders


@pytest.mark.parametrize(
    "key, said",
    [
        (lambda known: known.place, "follow the order of the source"),
        (lambda known: -known.place, "follow the order of the source"),
        (lambda known: known.size, "follow the sizes of the source's files"),
        (lambda known: known.place % 10, "put images of one person together"),  # then sorted by person, shuffled
        (lambda known: (known.place + 100) % 200, "keep neighbours of the source together"),  # begun in the middle
    ],
)
def test_an_order_of_the_source_is_found_beyond_chance(key: Callable[[Known], Any], said: str) -> None:
    rng = np.random.default_rng(2)
    table, known = known_of(40, 5, rng)
    values = np.asarray(key(known))
    if "one person" in said:
        shuffled = rng.permutation(40)
        values = shuffled[known.place // 5] * 5 + known.place % 5
    order = np.argsort(of_rows(table, known, values))
    leaks = orders(table.take(pa.array(order)), known)
    assert any("the rows" in leak.what and said in leak.what for leak in leaks), leaks


def test_a_half_sorted_release_is_found() -> None:
    """Places with noise as large as a third of their range: no row is where it was, and the order is."""
    rng = np.random.default_rng(3)
    table, known = known_of(40, 5, rng)
    noisy = known.place + rng.normal(0, len(known.place) / 3, len(known.place))
    leaks = orders(table.take(pa.array(np.argsort(of_rows(table, known, noisy)))), known)
    assert any("follow the order of the source" in leak.what for leak in leaks)
    assert stats.kendalltau(noisy, known.place).statistic < 0.7


# ------------------------------------------------------------------------------------------------------------- names


@pytest.mark.parametrize(
    "made",
    [
        lambda known, i: hashlib.sha256(known.photo[i].encode()).hexdigest()[:32],
        lambda known, i: hashlib.md5(known.path[i].encode()).hexdigest(),
        lambda known, i: hashlib.sha1(known.photo[i].split("/")[1].encode()).hexdigest(),
        lambda known, i: str(uuid.uuid5(uuid.NAMESPACE_URL, known.path[i])),
        lambda known, i: f"{i:026x}" + known.photo[i][-7:-4],  # ends in its photo's number, which is hexadecimal too
        lambda known, i: f"blurred-{known.subject[i]}-{i:03d}",
    ],
)
def test_names_that_follow_from_the_source_are_found(made: Callable[[Known, int], str]) -> None:
    _, known = known_of(40, 5, np.random.default_rng(4))
    name = objects([made(known, i) for i in range(len(known.name))])
    known = Known(**{**vars(known), "name": name})
    table = pa.table({"name": name.tolist(), "identity": [""] * len(name)})
    assert any("column name" in leak.what for leak in names(table, known))


def test_one_label_that_is_a_persons_hash_is_enough() -> None:
    table, known = known_of(40, 5, np.random.default_rng(5))
    labels = ["", *(np.random.default_rng(6).bytes(8).hex() for _ in range(199))]
    place = table.column_names.index("identity")
    assert names(table.set_column(place, "identity", pa.array(labels)), known) == []
    labels[0] = hashlib.sha256(b"00007").hexdigest()[:16]
    (leak,) = names(table.set_column(place, "identity", pa.array(labels)), known)
    assert leak.what == "column identity holds the SHA256 of a source's name"


# ----------------------------------------------------------------------------------------------------------- columns


def test_a_pseudonym_or_a_class_may_be_told_where_it_is_declared(settings: Settings) -> None:
    table, known = known_of(40, 5, np.random.default_rng(7))
    place = table.column_names.index("identity")
    for identity, values in (("pseudonym", known.subject), ("class", known.class_id)):
        labels = [hashlib.sha256(f"{identity} {value}".encode()).hexdigest() for value in values]
        labelled = table.set_column(place, "identity", pa.array(of_rows(table, known, objects(labels))))
        asked = {"policy.quasi_identifiers": ["hat"], "input.attributes": "table.csv"}
        assert columns(labelled, known, settings("release", **asked, **{"release.identity": identity})) == []
        said = [leak.what for leak in columns(labelled, known, settings("release", **asked))]
        assert "200 images carry a label, and the release declares none" in said
        # A pseudonym tells people apart whom a class leaves alike; a class does not.
        assert any(text.startswith("tells people apart") for text in said) == (identity == "pseudonym")


def test_a_column_that_nearly_always_tells_the_person_is_found(config: Any) -> None:
    rng = np.random.default_rng(8)
    table, known = known_of(40, 5, rng)
    widths = np.array([hash(int(who)) % 97 for who in known.subject])
    widths[rng.permutation(200)[:8]] = 0
    place = table.column_names.index("width")
    leaks = columns(table.set_column(place, "width", pa.array(of_rows(table, known, widths))), known, config)
    assert [leak.where for leak in leaks] == ["width"]
    photo = config.model_copy(update={"output": "photo"})
    assert columns(table.set_column(place, "width", pa.array(of_rows(table, known, widths))), known, photo) == []


# ------------------------------------------------------------------------------------------------------------ pixels


@pytest.fixture(scope="module")
def crops(photos: Path) -> list[bytes]:
    return [encode(decode(file.read_bytes()), 92) for file in sorted(photos.rglob("*.jpg"))]


def pictured(crops: list[bytes]) -> tuple[Known, list[Original]]:
    _, known = known_of(6, 2, np.random.default_rng(9))
    return known, [Original(f"face {i}", crop, True) for i, crop in enumerate(crops)]


def test_what_a_method_declares_is_no_leak_and_what_it_does_not_is(crops: list[bytes]) -> None:
    known, originals = pictured(crops)
    again = [encode(decode(crop), 60) for crop in crops]
    own = list(zip(known.name, again, strict=True))
    assert len(copied(own, originals, known, NOTHING)) == len(copied(own, originals, known, ALTERED)) == 12
    assert copied(own, originals, known, OWN) == []
    swapped = [(known.name[0], again[3]), *own[1:]]
    assert [leak.where for leak in copied(swapped, originals, known, OWN)] == [known.name[0]]


def test_a_photo_that_the_input_holds_twice_is_no_leak_of_the_other(crops: list[bytes]) -> None:
    known, originals = pictured([*crops[:11], crops[0]])
    assert copied([(known.name[0], encode(decode(crops[0]), 60))], originals, known, OWN) == []


def test_a_box_over_the_eyes_is_an_alteration_and_its_want_a_leak(crops: list[bytes]) -> None:
    known, originals = pictured(crops)
    pictures = [decode(crop) for crop in crops]
    masked = [picture.copy() for picture in pictures]
    for picture in masked:
        side = len(picture)
        picture[side * 2 // 5 : side // 2, side // 4 : 3 * side // 4] = 0
    images = [(name, encode(picture)) for name, picture in zip(known.name, masked, strict=True)]
    assert copied(images, originals, known, ALTERED) == []
    images[5] = (known.name[5], encode(pictures[5]))
    assert [leak.where for leak in copied(images, originals, known, ALTERED)] == [known.name[5]]


def test_a_photo_file_is_a_leak_of_every_method_and_names_may_be_no_hash_of_it(crops: list[bytes]) -> None:
    known, originals = pictured(crops)
    photo = Original(known.photo[0], crops[0], False)
    for allowed in (NOTHING, ALTERED, OWN):
        (leak,) = copied([(known.name[0], crops[0])], [photo], known, allowed)
        assert leak.what == "the file equals an original, byte for byte"
    assert copied([(known.name[0], crops[0])], originals[:1], known, OWN) == []  # a face that was encoded anew, alike
    digest = hashlib.md5(crops[3]).hexdigest()
    (leak,) = copied([], originals, known, OWN, [digest, known.name[1]])
    assert (leak.kind, leak.where) == ("source name", digest)


def test_many_pieces_find_the_same(crops: list[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    known, originals = pictured(crops)
    images = [(name, encode(decode(crop), 60)) for name, crop in zip(known.name, crops, strict=True)]
    whole = copied(images, originals, known, NOTHING)
    monkeypatch.setattr(traces, "BLOCK", 5)
    assert copied(images, originals, known, NOTHING) == whole


def test_what_is_no_picture_is_left_to_the_scan_of_the_files(crops: list[bytes]) -> None:
    known, originals = pictured(crops)
    assert copied([("x", b"no picture")], [*originals, Original("y", b"none either", True)], known, NOTHING) == []


def test_a_face_that_a_recogniser_takes_for_an_original_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(10)
    originals = rng.standard_normal((300, 64)).astype(np.float32)
    originals /= np.linalg.norm(originals, axis=1, keepdims=True)
    means = originals[:200].reshape(100, 2, 64).mean(axis=1)
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    name = [f"image {i}" for i in range(100)]
    monkeypatch.setattr(traces, "BLOCK", 7)
    assert traces.resembling(means, name, originals, NOTHING) == []
    means[42] = originals[250]
    (leak,) = traces.resembling(means, name, originals, NOTHING)
    assert (leak.kind, leak.where, "1.000" in leak.what) == ("original face", "image 42", True)
    # A recompressed original is not quite itself: a cosine of 0.98 is enough.
    other = rng.standard_normal(64)
    other -= other @ originals[250] * originals[250]
    for cosine, hits in ((0.981, 1), (0.979, 0)):
        means[42] = cosine * originals[250] + np.sqrt(1 - cosine**2) * other / np.linalg.norm(other)
        assert len(traces.resembling(means, name, originals, NOTHING)) == hits
    assert traces.resembling(means, name, originals, ALTERED) == []


# ---------------------------------------------------------------------------------------------------------- declared


def test_every_method_declares_what_it_carries_over_and_why() -> None:
    assert set(DECLARED) == set(get_args(Method.model_fields["name"].annotation))
    assert all(one.why for one in DECLARED.values())
    assert DECLARED["k-same"].pixels == DECLARED["k-same-select"].pixels == "nothing"


def test_photos_keep_their_background_and_their_faces_cut_out_do_not(settings: Settings) -> None:
    photo = settings("release", output="photo")
    assert declared(photo).pixels == "own"
    assert declared(photo, cut=True) == DECLARED["k-same"]
    assert not declared(photo).likeness


@pytest.mark.parametrize(
    "weak, strong",
    [
        ({"method.name": "blur", "method.sigma": 2}, {"method.name": "blur"}),
        ({"method.name": "pixelate", "method.blocks": 64}, {"method.name": "pixelate"}),
        ({"method.name": "noise", "method.gamma": 0.1, "method.noise_sigma": 8}, {"method.name": "noise"}),
    ],
)
def test_a_method_too_weak_to_alter_a_picture_says_so(
    settings: Settings, weak: dict[str, Any], strong: dict[str, Any]
) -> None:
    assert declared(settings("release", **{"policy.k": None}, **weak)).pixels == "own"
    assert declared(settings("release", **{"policy.k": None}, **strong)).pixels == "altered"
