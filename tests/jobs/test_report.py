"""Claims of jobs/report.py and jobs/charts.py: one file that fetches nothing, says what was and was not measured, and
reads the same on a phone, at a desk, in the dark and on paper, whatever names it is given."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from facecrowd.jobs import charts, report
from facecrowd.jobs.figures import Figure
from facecrowd.jobs.report import Page, position, sentence, strongest, write

HOSTILE = (
    "</title></desc></svg><script>window.hit = 1</script>\"'><img src=x onerror=window.hit=1><style>*{display:none}"
    '</style><!-- {{ 7 * 7 }} {% raw %} =HYPERLINK("http://example.org") &lt; ünïcode 名前 \u202e\x00'
)


def audit() -> dict[str, Any]:
    """An audit as ``pipeline/audit.py`` makes it, of 40 people in 8 classes."""
    return {
        "schema": 2,
        "method": "k-same",
        "met": True,
        "policy": {
            "k": 5,
            "l": {"kind": "entropy", "value": 1.5},
            "quasi_identifiers": ["Male"],
            "sensitive": ["Smile"],
        },
        "requirements": [
            {"name": "k", "asked": 5.0, "found": 5.0, "met": True, "kind": "formal", "note": "effective k 5.00"},
            {"name": "t (hamming)", "asked": 0.2, "found": 0.18, "met": True, "kind": "formal", "note": ""},
            {"name": "max_suppression", "asked": 0.02, "found": 0.0, "met": True, "kind": "formal", "note": "people"},
        ],
        "guarantee": {"kind": "formal", "text": "At most 1/5 per subject."},
        "counts": {"subjects_released": 40, "released_images": 200, "distinct_faces": 8},
        "classes": {"smallest": 5, "effective_k": 5.0, "sizes": {"5": 8}},
        "attributes": {
            "predictor": "steer",
            "judge": "judge",
            "predicted": ["Male"],
            "unknown": {"Male": 0.0},
            "disagreement": [],
            "shown": [
                {"attribute": "Male", "released_agreement": 0.9, "low": 0.8, "high": 1.0, "originals_agreement": 0.95}
                | {"left_open": 0.0, "neither": 0.0, "released_pictures": 8, "groups": 8, "over": "classes"}
            ],
        },
        "reidentification": [
            {
                "gallery": "other originals",
                "recogniser": "arcface",
                "rank1_per_subject": 0.145,
                "low": 0.05,
                "high": 0.25,
            }
            | {"chance": 0.025, "probes": 200, "subjects": 40, "what": "without the released face's own source"}
        ],
        "leaks": [],
        "models": [{"name": "arcface", "purpose": "recogniser", "licence": "research", "sha256": "ab" * 32}],
    }


def figures() -> list[Figure]:
    def of(section: Any, name: str, by: str, setting: str, value: float, chance: float | None, **more: Any) -> Figure:
        low, high = max(value - 0.05, 0), min(value + 0.06, 1) if value <= 1 else value + 1
        rest: dict[str, Any] = {"better": "lower", "faces": 200, "subjects": 40, **more}
        return Figure(section, name, by, setting, value=value, low=low, high=high, chance=chance, **rest)

    return [
        of("identity", "rank1", "arcface", "originals", 0.15, 0.025),
        of("identity", "rank1", "arcface", "released", 0.2, 0.025, note="the paper's T3"),
        of("identity", "tar", "arcface", "originals", 0.3, 0.1, at=0.1),
        of("identity", "tar", "arcface", "originals", 0.1, 0.001, at=0.001),
        of("trained", "top1", "vgg", "T1", 0.04, 0.025),
        of("trained", "top1", "head", "T3", 0.19, 0.025),
        of("trained", "top1", "head", "originals", 0.99, 0.025, better=""),
        of("linkage", "auc", "arcface", "pairs", 0.9, 0.5),
        of("table", "singling_out", "", "univariate", 0.02, 0.01, at=1.0),
        of("inference", "accuracy", "head", "Smile", 0.6, 0.55),
        Figure("membership", "auc", "arcface", better="lower", note="nobody outside the release is at hand"),
        of("utility", "psnr", "", "originals", 14.2, None, better="higher"),
        of("utility", "lpips", "lpips-vgg16", "originals", 0.45, None),
        of("utility", "agreement", "judge", "Male", 0.9, 0.5, better="higher"),
        of("utility", "agreement", "judge", "Young", 0.8, 0.5, better="higher"),
        of("identity", "rank1", "arcface", "released", 0.33, 0.025, group="Pale_Skin = 1", subjects=12),
        of("identity", "rank1", "arcface", "released", 0.18, 0.025, group="Pale_Skin = 0", subjects=28),
        of("utility", "agreement", "judge", "Male", 0.7, 0.5, group="Young = 0", better="higher"),
        of("utility", "agreement", "judge", "Male", 0.95, 0.5, group="Young = 1", better="higher"),
    ]


@pytest.fixture(scope="module")
def sheet(people: list[Path]) -> list[bytes]:
    """30 small pictures of the demo's synthetic people."""
    out = []
    for file in [file for person in people for file in sorted(person.glob("*.jpg"))][:30]:
        buffer = io.BytesIO()
        Image.open(file).convert("RGB").resize((64, 64)).save(buffer, "JPEG")
        out.append(buffer.getvalue())
    return out


@pytest.fixture(scope="module")
def page(sheet: list[bytes]) -> Page:
    rng = np.random.default_rng(1)
    epochs = [
        {
            "attacker": name,
            "threat": "T1",
            "epoch": e,
            "train_loss": 1.0,
            "train_top1": e / 20,
            "validation_top1": e / 99,
        }
        for name in ("vgg", "resnet18")
        for e in range(1, 11)
    ]
    return Page(
        sizes=np.array([5, 5, 6, 7, 9, 5, 5, 4]),
        t={"Smile": rng.random(8) / 4},
        curves=pa.Table.from_pylist(epochs),
        sheet=sheet,
        baselines=[("blur", 0.8, 0.99), ("noise", 0.4, 0.1)],
        commands=["facecrowd audit release --workspace work"],
        versions={"facecrowd": "0.1.0"},
        seed=7,
        snapshot=8107316532176,
    )


@pytest.fixture(scope="module")
def html(page: Page) -> str:
    return write(audit(), figures(), page)


class Elements(HTMLParser):
    """The tags of a page in their order, its text, and what its attributes hold."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.words: list[str] = []
        self.feed(text)
        self.text = " ".join(" ".join(self.words).replace("\u00a0", " ").split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        self.tags.append("/" + tag)

    def handle_data(self, data: str) -> None:
        if self.tags[-1:] != ["style"]:
            self.words.append(data)


def section(text: str, name: str) -> str:
    """The words from the heading with this id to the next of its level."""
    found = re.search(rf'<h2 id="{name}">(.*?)(?=<h2 id=|</main>)', text, re.DOTALL)
    assert found is not None
    return Elements(found[1]).text


# ------------------------------------------------------------------------------------------------------------- content


def test_the_page_answers_in_the_promised_order(html: str) -> None:
    found = re.findall(r'<h2 id="([^"]+)"', html)
    order = ["requirements", "formal", "classes", "plane", "attacks", "use", "groups", "faces", "leaks"]
    assert found == [*order, "not-measured", "again"]
    assert html.index('id="verdict"') < html.index('<h2 id="requirements"')
    links = re.findall(r'href="#([^"]+)"', html)
    assert set(links) <= set(re.findall(r'id="([^"]+)"', html))
    assert set(found) <= set(links)


def test_the_verdict_says_in_one_sentence_what_holds_or_what_does_not() -> None:
    assert sentence(audit()) == (
        "This release is as its policy asks: at most 1/5 per subject, which is formal under a uniform prior."
    )
    failed = audit() | {"met": False, "leaks": [{"kind": "metadata", "where": "a.jpg", "what": "EXIF"}]}
    failed["requirements"][0] |= {"met": False, "found": 4.0}
    said = "This release is not as its policy asks: k is 4 where at least 5 was asked; 1 leak was found."
    assert sentence(failed) == said
    assert sentence({}) == "Not measured: this audit holds no verdict."
    kept = audit() | {"guarantee": {"kind": "identity kept"}, "recognisers": {"arcface": 1}}
    assert "no de-identification" in sentence(kept)
    text = Elements(write(failed, [], Page())).text
    assert said in text
    assert "✗ not met" in text


def test_a_release_of_which_no_privacy_was_asked_is_not_said_to_be_private() -> None:
    nothing = audit() | {"guarantee": {"kind": "measured"}, "policy": {}}
    nothing["requirements"] = [r for r in nothing["requirements"] if "uppress" in r["name"]]
    assert sentence(nothing).startswith("No privacy was asked of this release")
    text = Elements(write(nothing, [], Page())).text
    assert "nothing asked" in text
    assert "✓ met" not in text.partition("What was asked")[0]


def test_a_bound_stands_beside_chance_where_there_is_one(html: str) -> None:
    assert "guesses right in 1/5" in section(html, "attacks")
    unbounded = write(audit() | {"guarantee": {"kind": "measured"}}, figures(), Page())
    assert "guesses right in" not in section(unbounded, "attacks")


def test_a_requirement_has_a_line_planned_one_shown_and_one_of_recognition(html: str) -> None:
    said = section(html, "requirements")
    assert "Planned 5 formal Shown 90.0 % [80.0 %, 100 %] of distinct pictures show the released Male" in said
    assert "the same predictor is right about originals for 95.0 % measured against predictor judge" in said
    assert (
        "20.0 % [15.0 %, 26.0 %] of people named, consistent with 1/5 = 20.0 % measured with arcface, released" in said
    )
    assert "Smile inferred from pixels for 60.0 % [55.0 %, 66.0 %], the most frequent value alone 55.0 %" in said


def test_what_counts_people_is_not_said_to_be_unmeasured_in_pixels() -> None:
    one = {"name": "vectors per subject", "asked": 1, "found": 1, "met": True, "kind": "formal", "note": ""}
    said = section(write(audit() | {"requirements": [one]}, [], Page()), "requirements")
    assert "not measured" not in said
    assert said.count("does not apply") == 2


def test_what_a_predictor_sees_is_given_with_its_own_error_taken_out() -> None:
    found = audit()
    found["requirements"][0]["shown"] = {
        "by": "judge",
        "found": 3,
        "corrected": 4.8,
        "low": 4.1,
        "high": 5,
        "met": True,
    }
    said = section(write(found, figures(), Page()), "requirements")
    assert "3 as predicted; 4.8 with the predictor's own error taken out [4.1, 5] (met)" in said
    del found["requirements"][0]["shown"]
    rounds = [[{"name": "attributes", "share": 0.1, "observed": 0.16, "asked": 0.2, "met": True}]]
    found["verification"] = {"judge": "judge", "rounds": rounds}
    said = section(write(found, figures(), Page()), "requirements")
    assert "10.0 % of planned values are not shown, the predictor's own errors taken off; with them 16.0 %" in said


def test_the_test_of_k_sames_bound_stands_beside_the_rate_it_is_of() -> None:
    tests = [Figure("identity", "p-value", "arcface", "released", at=0.2, value=v, subjects=40) for v in (0.4, 0.9)]
    said = section(write(audit(), [*figures(), *tests], Page()), "requirements")
    assert "; the bound is not refuted, smallest p of 2 tests 0.4" in said
    tests = [replace(tests[0], value=0.003)]
    said = section(write(audit(), [*figures(), *tests], Page()), "requirements")
    assert "; the bound is refuted, p = 0.003" in said


def test_formal_and_empirical_claims_stand_apart(html: str) -> None:
    said = section(html, "formal")
    formal, empirical = said.split("Empirical: measured on these people")
    assert "at most 1/5, under a uniform prior" in formal
    assert "others may achieve more" in empirical
    weaker = audit()
    weaker["guarantee"] = {"kind": "measured", "text": "No guarantee."}
    weaker["requirements"] = [weaker["requirements"][0] | {"kind": "measured"}]
    formal, empirical = section(write(weaker, [], Page()), "formal").split("Empirical: measured on these people")
    assert "Nothing." in formal
    assert "k: 5 (measured)" in empirical


def test_an_attack_is_given_with_its_interval_its_chance_and_its_people(html: str) -> None:
    said = section(html, "attacks")
    assert "Rank-1 released the paper's T3 by arcface measured 20.0 % [15.0 %, 26.0 %] chance 2.5 % exceeded" in said
    assert "over 200 faces, 40 people" in said
    assert "TAR at FAR 0.1 % originals by arcface measured 10.0 %" in said
    assert "Rank-1 is largest for arcface, released: 20.0 % [15.0 %, 26.0 %], 8 times chance (2.5 %)." in said
    assert "AUC is largest for arcface, pairs: 0.9 [0.85, 0.96], where chance is 0.5. The whole interval lies" in said


def test_rank_one_of_the_releases_own_record_is_shown_unless_it_was_measured_again(html: str) -> None:
    assert "Rank-1 other originals without the released face's own source by arcface measured 14.5 %" in html_text(html)
    again = replace(figures()[0], setting="other originals", value=0.16)
    said = html_text(write(audit(), [again], Page()))
    assert "16.0 % [10.0 %, 21.0 %]" in said
    assert "14.5 %" not in said


def html_text(text: str) -> str:
    return Elements(text).text


def test_what_was_not_measured_is_listed_with_the_reason(html: str) -> None:
    said = section(html, "not-measured")
    assert "Membership: AUC (arcface) why nobody outside the release is at hand" in said
    found = audit() | {"not_measured": [{"what": "the moon", "why": "too far"}]}
    said = section(write(found, [], Page()), "not-measured")
    assert "the moon why too far" in said
    for title, _ in report.ATTACKS.values():
        assert (f"{title} why {report.WHY_NOT}" in said) == (title != "Recognition")


@pytest.mark.parametrize("key", [*audit(), "everything"])
def test_a_page_without_one_part_of_the_audit_is_still_a_page(key: str, page: Page) -> None:
    for without in ({k: v for k, v in audit().items() if key not in (k, "everything")}, audit() | {key: None}):
        text = html_text(write(without, figures(), page))
        assert "How to measure this again" in text
    bare = html_text(write({}, [], Page()))
    assert "not measured" in bare
    assert "None: the scan" not in bare


def test_the_worst_group_is_named_for_risk_and_for_use(html: str) -> None:
    said = section(html, "groups")
    assert "Rank-1 is worst for Pale_Skin = 1: 33.0 % [28.0 %, 39.0 %]; for everybody it is 20.0 %" in said
    assert "Risk: Rank-1 (arcface, released) worst group Pale_Skin = 1 there 33.0 % [28.0 %, 39.0 %]" in said
    assert "clearly apart yes people 12" in said
    assert "Use: Agreement (judge, Male) worst group Young = 0" in said


def test_leaks_are_listed_and_none_is_said_only_where_somebody_looked() -> None:
    leak = {"kind": "metadata", "where": "images/a.jpg", "what": "EXIF: GPSInfo"}
    assert "metadata where images/a.jpg what EXIF: GPSInfo" in html_text(write({"leaks": [leak]}, [], Page()))
    assert "and 50 more" in html_text(write({"leaks": [leak] * 150}, [], Page())).lower()
    assert "None: the scan" in html_text(write({"leaks": []}, [], Page()))
    assert section(write({}, [], Page()), "leaks") == "Leaks found Not measured."


def test_how_to_measure_again_names_commands_versions_seed_snapshot_and_models(html: str) -> None:
    said = section(html, "again")
    for part in ("facecrowd audit release --workspace work", "seed 7", "8107316532176", "0.1.0", "ab" * 32, "research"):
        assert part in said


# --------------------------------------------------------------------------------------------------------------- faces


def test_at_most_24_released_faces_are_drawn_by_the_seed(page: Page, sheet: list[bytes]) -> None:
    def drawn(seed: int) -> list[str]:
        return re.findall(r'src="data:image/jpeg;base64,([^"]+)"', write(audit(), [], replace(page, seed=seed)))

    assert len(drawn(7)) == 24 == len(set(drawn(7)))
    assert drawn(7) == drawn(7) != drawn(8)
    assert {base64.b64decode(face) for face in drawn(7)} <= set(sheet)


def test_originals_stamp_the_page_as_private_in_its_title_and_on_top(page: Page, html: str) -> None:
    assert "PRIVATE" not in html
    private = write(audit(), figures(), replace(page, originals=page.sheet))
    assert "<title>PRIVATE: Privacy audit: k-same</title>" in private
    assert private.index("PRIVATE: this page shows original photos") < private.index("<header>")
    assert private.count('alt="Original of face') == 24


def test_a_face_that_is_no_jpeg_or_has_no_pair_is_refused(page: Page) -> None:
    with pytest.raises(ValueError, match="no JPEG"):
        write(audit(), [], Page(sheet=[b"<svg onload=alert(1)>"]))
    with pytest.raises(ValueError, match="1 originals for 30 released faces"):
        write(audit(), [], replace(page, originals=page.sheet[:1]))


# -------------------------------------------------------------------------------------------------------------- charts


CHARTS = [
    "Class sizes in distinct people",
    "t of each class, per sensitive attribute",
    "This release and its baselines",
    "Recognition: Rank-1",
    "Recognition: TAR at FAR 10\u00a0%",
    "Recognition: TAR at FAR 0.1\u00a0%",
    "Attackers trained for the purpose: Top-1",
    "Learning curves under T1",
    "Linkage: AUC",
    "The released table: Singling out by 1 attribute",
    "Inference from pixels: Accuracy",
    "Use: Agreement",
    "Released attributes that pixels show",
    "Risk by group: Rank-1 (arcface, released)",
    "Use by group: Agreement (judge, Male)",
]


def test_every_chart_has_a_title_a_finding_and_its_numbers_in_a_table(html: str) -> None:
    drawn = re.findall(r'<figure class="drawn">(.*?)</figure>', html, re.DOTALL)
    assert len(drawn) == html.count("<svg")
    assert re.findall(r"<figcaption>([^<]+)</figcaption>\n<svg", html) == CHARTS
    for one in drawn:
        title, desc = re.findall(
            r'<title id="(chart-\d+-title)">[^<]+</title><desc id="(chart-\d+-desc)">[^<]+</desc>', one
        )[0]
        assert 'role="img" viewBox="0 0 320 ' in one
        assert f'aria-labelledby="{title} {desc}"' in one
        assert "<caption>" in one.split("<details")[1]
        assert one.count("<tr>") > 1
    ids = re.findall(r'id="([^"]+)"', html)
    assert len(ids) == len(set(ids))


def test_class_sizes_are_counted_and_those_under_k_are_said(html: str) -> None:
    sizes = np.concatenate([np.random.default_rng(0).integers(3, 40, 500), [900]])
    chart = charts.histogram("c", "caption", "finding", sizes, 5, "classes")
    assert sum(int(row[1]) for row in chart.rows) == 501
    assert chart.rows[-1] == ("49 or more", "1")
    assert str(chart.svg).count('class="bar s2"') == 1
    assert "8 classes of 4 to 9 people, half of them of at most 5. One is smaller than the 5 asked." in html_text(html)
    one = charts.histogram("c", "", "", np.array([7, 7]), 7, "classes")
    assert one.rows == (("7", "2"),)


def test_t_is_held_against_the_policy_class_by_class() -> None:
    text = html_text(write(audit(), [], Page(t={"Smile": np.array([0.1, 0.3, 0.05]), "Hat": np.array([0.01])})))
    assert (
        "The largest t is 0.3, of Smile; half of its classes are at most 0.1. 1 class is above the 0.2 asked." in text
    )
    assert "Smile 3 0.1 0.28 0.3" in text


def test_a_release_lies_in_the_plane_by_its_strongest_attacker_and_its_likeness() -> None:
    found = position(figures())
    assert found is not None
    assert (found.measure, found.attack) == ("1 − LPIPS", "arcface, released")
    assert (found.utility, found.privacy) == (pytest.approx(0.55), 0.2)
    assert found.utility_interval == pytest.approx((0.49, 0.6))
    best = strongest(figures())
    assert best is not None
    assert best.value == 0.2
    text = html_text(write(audit(), figures(), Page(baselines=[("better", 0.6, 0.1), ("worse", 0.5, 0.3)])))
    assert "Of 2 baselines as useful and as private, or more: better." in text
    assert position([f for f in figures() if f.section == "utility"]) is None


def test_learning_curves_name_the_best_epoch_and_chance(html: str) -> None:
    said = "T1: the best top-1 in validation is 10.1 %, by vgg after epoch 10; chance is 2.5 %."
    assert said in html_text(html)


@pytest.mark.parametrize("value", [0.0, 1.0, 1e-6])
def test_axes_hold_what_is_drawn_on_them(value: float) -> None:
    mark = charts.Mark("one", value, max(value - 0.1, 0), min(value + 0.1, 1), 0.5)
    svg = str(charts.intervals("c", "caption", "finding", [mark]).svg)
    for x in map(float, re.findall(r' (?:x|x1|x2|cx)="([^"]+)"', svg)):
        assert 0 <= x <= charts.WIDTH
    flat = charts.Line("flat", np.array([1]), np.array([value]))
    assert "nan" not in str(charts.lines("c", "", "", [flat], ("epoch", "top-1")).svg)


def test_labels_of_points_do_not_cover_each_other() -> None:
    points = [charts.Point(f"release {i}", 0.5 + i / 100, 0.5 + i / 100) for i in range(6)]
    svg = str(charts.plane("c", "caption", "finding", points, ("use", "risk")).svg)
    boxes = [
        (float(x), float(y) - 11, float(x) + charts._width(word), float(y) + 3)
        for x, y, word in re.findall(r'<text x="([^"]+)" y="([^"]+)" class="label">([^<]+)<', svg)
    ]
    assert len(boxes) >= 3
    for i, a in enumerate(boxes):
        for b in boxes[:i]:
            assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]


# -------------------------------------------------------------------------------------------------------------- safety


def named(word: str) -> tuple[dict[str, Any], list[Figure], dict[str, Any]]:
    """An audit in which everything that somebody may name is called ``word``."""
    found = audit() | {"met": False, "method": word, "leaks": [{"kind": word, "where": word, "what": word}]}
    found["guarantee"] = {"kind": "measured", "text": word}
    found["not_measured"] = [word, {"what": word, "why": word}]
    found["policy"] |= {"sensitive": [word], "quasi_identifiers": [word], word: word}
    found["models"] = [dict.fromkeys(("name", "purpose", "licence", "sha256"), word)]
    for row in found["requirements"]:
        row |= {"note": word, "kind": word}
    found["requirements"].append({"name": word, "asked": word, "found": word, "met": False, "kind": word, "note": word})
    found["attributes"] |= {"judge": word, "predictor": word, "predicted": [word], "unknown": {word: 0.1}}
    found["attributes"]["shown"][0] |= {"attribute": word, "when": word}
    found["reidentification"][0] |= {"recogniser": word, "gallery": word + "!", "what": word}
    free = [f.name for f in fields(Figure) if f.name in ("by", "setting", "note")]
    some = [replace(f, **dict.fromkeys(free, word), group=word if f.group else "") for f in figures()]
    epochs = [{"attacker": word, "threat": word, "epoch": e, "validation_top1": 0.1, "train_top1": 0.1} for e in (1, 2)]
    extra = {
        "t": {word: np.array([0.1])},
        "curves": pa.Table.from_pylist(epochs),
        "baselines": [(word, 0.5, 0.5)],
        "commands": [word],
        "versions": {word: word},
        "snapshot": word + "\ud800",
    }
    return found, some, extra


def test_names_cannot_break_out_of_the_page(page: Page) -> None:
    pages = []
    for word in ("x" * len(HOSTILE), HOSTILE):
        found, some, extra = named(word)
        pages.append(write(found, some, replace(page, **extra)))
    plain, hostile = map(Elements, pages)
    assert hostile.tags == plain.tags
    assert "script" not in hostile.tags
    assert not [name for _, name, _ in hostile.attributes if name.startswith("on")]
    assert "{{ 7 * 7 }} {% raw %}" in hostile.text
    assert "http://example.org" in hostile.text
    assert not re.search("[\x00-\x08\u202e\ud800-\udfff]", pages[1])
    pages[1].encode()


def test_the_file_fetches_nothing_and_runs_nothing(html: str) -> None:
    parsed = Elements(html)
    assert "script" not in parsed.tags
    assert "iframe" not in parsed.tags
    for tag, name, value in parsed.attributes:
        if name in ("src", "href", "srcset", "action", "data", "poster", "xlink:href"):
            assert value.startswith(("#", "data:")), (tag, name, value[:80])
        assert name != "style"
    assert "url(" not in html
    assert "@import" not in html
    policy = next(value for tag, name, value in parsed.attributes if tag == "meta" and "default-src" in value)
    style = re.search(r"<style>(.*?)</style>", html, re.DOTALL)
    assert style is not None
    digest = base64.b64encode(hashlib.sha256(style[1].encode()).digest()).decode()
    assert f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:" in policy


def test_colours_can_be_read_in_the_light_and_in_the_dark(html: str) -> None:
    def light(colour: str) -> float:
        digits = colour.lstrip("#")
        digits = "".join(2 * d for d in digits) if len(digits) == 3 else digits
        parts = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))

    def contrast(a: str, b: str) -> float:
        dark, bright = sorted((light(a), light(b)))
        return (bright + 0.05) / (dark + 0.05)

    themes = re.findall(r":root \{(.*?)\}", html, re.DOTALL)
    assert len(themes) == 3
    for theme in themes:
        colour = dict(re.findall(r"--([\w-]+): (#\w+)", theme))
        for ground in ("paper", "card"):
            for text in ("ink", "soft", "link"):
                assert contrast(colour[text], colour[ground]) >= 4.5, (text, ground)
            for mark in ("s1", "s2", "s3", "s4", "s5", "s6", "chance", "no"):
                assert contrast(colour[mark], colour[ground]) >= 3, (mark, ground)
        for mark in ("yes", "no", "open"):
            assert contrast(colour[mark], colour[f"{mark}-paper"]) >= 4.5, mark


# ------------------------------------------------------------------------------------------------------------- browser

BROWSER = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)

PIPES = """
import fcntl, os, sys
commands, answers = (fcntl.fcntl(int(fd), fcntl.F_DUPFD, 10) for fd in sys.argv[1:3])
os.dup2(commands, 3)
os.dup2(answers, 4)
os.execv(sys.argv[3], sys.argv[3:])
"""
"""Chromium reads what to do from descriptor 3, and answers on 4."""


class Browser:
    """Headless Chromium, spoken to in the DevTools protocol over pipes."""

    def __init__(self, profile: Path) -> None:
        commands, self._to = os.pipe()
        self._from, answers = os.pipe()
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--remote-debugging-pipe"]
        options += ["--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={profile}", "about:blank"]
        self.process = subprocess.Popen(
            [sys.executable, "-c", PIPES, str(commands), str(answers), str(BROWSER), *options],
            pass_fds=(commands, answers),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(commands)
        os.close(answers)
        self._rest, self._number, self._session = b"", 0, ""
        self.events: list[dict[str, Any]] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def _message(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            data = os.read(self._from, 1 << 20)
            assert data, "chromium ended"
            self._rest += data
        message, _, self._rest = self._rest.partition(b"\0")
        return dict(json.loads(message))

    def call(self, method: str, **values: Any) -> dict[str, Any]:
        self._number += 1
        message = {"id": self._number, "method": method, "params": values}
        message |= {"sessionId": self._session} if self._session else {}
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self._to, data) :]
        while (answer := self._message()).get("id") != self._number:
            self.events.append(answer)
        assert "error" not in answer, answer
        return dict(answer["result"])

    def open(self, file: Path, width: int, scheme: str) -> None:
        values = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
        self.call("Emulation.setDeviceMetricsOverride", **values)
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.events = []
        self.call("Page.navigate", url=file.as_uri())
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            self.events.append(self._message())

    def ask(self, script: str) -> Any:
        return self.call("Runtime.evaluate", expression=script, returnByValue=True)["result"].get("value")

    def troubles(self) -> list[str]:
        """What the console said, and every request for more than the file itself."""
        said = [e for e in self.events if e.get("method") in ("Log.entryAdded", "Runtime.exceptionThrown")]
        said += [e for e in self.events if e.get("method") == "Runtime.consoleAPICalled"]
        asked = [e["params"]["request"]["url"] for e in self.events if e.get("method") == "Network.requestWillBeSent"]
        files = [url for url in asked if not url.startswith("data:")]
        return [json.dumps(e["params"])[:300] for e in said] + files[1:]

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(30)
        os.close(self._to)
        os.close(self._from)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    if BROWSER is None:
        pytest.skip("no chromium here")
    found = Browser(tmp_path_factory.mktemp("profile"))
    yield found
    found.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [320, 1200])
def test_in_a_browser_every_chart_is_there_and_nothing_scrolls_sideways(
    browser: Browser, html: str, tmp_path: Path, width: int, scheme: str
) -> None:
    file = tmp_path / "report.html"
    file.write_text(html, encoding="utf-8")
    browser.open(file, width, scheme)
    assert browser.troubles() == []
    browser.ask("document.querySelectorAll('details').forEach(one => one.open = true)")
    assert browser.ask("document.documentElement.scrollWidth") == width
    size = (
        "Array.from(document.querySelectorAll('svg.chart'), c => [c.getBBox().width, c.getBoundingClientRect().height])"
    )
    drawn = browser.ask(size)
    assert len(drawn) == html.count("<svg")
    assert all(w > 100 and h > 50 for w, h in drawn)
    small = (
        "Math.min(...Array.from(document.querySelectorAll('svg.chart text'), t => t.getBoundingClientRect().height))"
    )
    assert browser.ask(small) > 9
    spill = (
        "Array.from(document.querySelectorAll('svg.chart')).flatMap(c => Array.from(c.querySelectorAll('text'),"
        "t => [t.textContent, t.getBoundingClientRect().right - c.getBoundingClientRect().right]))"
        ".filter(([_, over]) => over > 1)"
    )
    assert browser.ask(spill) == []
    assert browser.ask("Array.from(document.images).every(one => one.naturalWidth > 0)")
    ground = browser.ask("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", ground))) > 384) == (scheme == "light")


def test_in_a_browser_hostile_names_run_nothing_and_fit_the_phone(browser: Browser, page: Page, tmp_path: Path) -> None:
    found, some, extra = named(HOSTILE)
    file = tmp_path / "report.html"
    file.write_text(write(found, some, replace(page, **extra)), encoding="utf-8")
    browser.open(file, 320, "light")
    assert browser.troubles() == []
    assert browser.ask("window.hit") is None
    assert browser.ask("document.documentElement.scrollWidth") == 320


def test_on_paper_the_numbers_are_there_without_a_click(browser: Browser, html: str, tmp_path: Path) -> None:
    file = tmp_path / "report.html"
    file.write_text(html, encoding="utf-8")
    browser.open(file, 1200, "dark")
    browser.call("Emulation.setEmulatedMedia", media="print")
    hidden = (
        "Array.from(document.querySelectorAll('details:not(.repeated) table')).filter(t => !t.checkVisibility()).length"
    )
    assert browser.ask(hidden) == 0
    assert browser.ask("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    paper = base64.b64decode(browser.call("Page.printToPDF", preferCSSPageSize=True)["data"])
    assert paper.startswith(b"%PDF")
    assert len(re.findall(rb"/Type\s*/Page\b", paper)) > 3
