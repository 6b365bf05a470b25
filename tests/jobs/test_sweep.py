"""Claims of jobs/sweep.py and what it is made of: the space, trials that resume, the front, the pick, the files."""

from __future__ import annotations

import importlib.util
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml

from facecrowd.jobs import sweep as sweeps
from facecrowd.jobs import trials as trialled
from facecrowd.jobs.figures import Figure
from facecrowd.jobs.space import Limit, Objective, Point, Selector, Sweep, load
from facecrowd.jobs.swept import Swept, lines, page, pareto, pick, released_as, to_table, write
from facecrowd.jobs.trials import DONE, FULL, REFUSED, STOPPED, UNMET, Job, Log, Trial, among, share_of, split
from facecrowd.pipeline import config as configs
from facecrowd.pipeline.errors import ConfigError, NotMetError, PolicyError, UnfinishedError, WorkspaceError
from facecrowd.pipeline.progress import Progress
from facecrowd.pipeline.release import Outcome
from facecrowd.pipeline.storage import held

QUIET = Progress(quiet=True)
GOALS = {"rank1": {"min": "identity.rank1.sface.originals"}, "psnr": {"max": "utility.psnr"}}
TABLE = {"lost": {"min": "plan.lost"}, "smallest": {"max": "plan.smallest"}}


def made_for_whatif() -> Any:
    """The workspaces of ``test_whatif``: what a plan needs, crops that are no pictures, models nowhere."""
    spec = importlib.util.spec_from_file_location("whatif_workspaces", Path(__file__).with_name("test_whatif.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.Made


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Any:
    secret = {"policy.sensitive": ["Chubby"]}
    return made_for_whatif()(tmp_path_factory.mktemp("stored"), **secret)


def asked(output: Path, **changes: Any) -> Sweep:
    values = {"output": str(output), "base": {"input": {"path": "photos"}}, "objectives": GOALS, **changes}
    return Sweep.model_validate(values)


def of_table(stored: Any, output: Path, **changes: Any) -> Sweep:
    values = {"table": True, "release": stored.url, "workspace": str(stored.folder), "objectives": TABLE, **changes}
    return Sweep.model_validate({"output": str(output), **values})


def figures(rank1: float, psnr: float, by: str = "sface") -> list[dict[str, Any]]:
    one = Figure("identity", "rank1", by, "originals", value=rank1, better="lower", subjects=9)
    return [one.as_dict(), Figure("utility", "psnr", "", "originals", value=psnr, better="higher").as_dict()]


def trial(rank1: float, psnr: float, at: int = 0, status: str = DONE, method: str = "blur") -> Trial:
    point = Point(method, {"method.sigma": at}, {"method.name": "blur", "method.sigma": at + 1})
    return Trial(f"key {at}", point, status, figures=tuple(figures(rank1, psnr)))


def job(sweep: Sweep, measure: Any) -> Job:
    sweep.folder.mkdir(parents=True, exist_ok=True)
    about = {arm.method: ("input", "measure") for arm in sweep.arms}
    return Job(sweep, about, measure, Log(sweep.folder / "trials.jsonl"), configs.Compute(cpus=2))


# -------------------------------------------------------------------------------------------------------------- space


def test_a_grid_has_every_combination_of_every_method_and_what_is_no_axis_is_set(tmp_path: Path) -> None:
    sweep = asked(
        tmp_path,
        space={"policy.k": {"grid": [2, 5]}},
        methods={
            "k-same": {"policy.l": {"kind": "entropy", "value": 1.5}},
            "blur": {"policy.k": None, "method.sigma": {"integers": [4, 6]}},
        },
    )
    points = sweep.points()
    assert points is not None
    assert [(p.method, p.set.get("policy.k"), p.set.get("method.sigma")) for p in points] == [
        ("k-same", 2, None),
        ("k-same", 5, None),
        *[("blur", None, sigma) for sigma in (4, 5, 6)],
    ]
    assert points[0].set["policy.l"] == {"kind": "entropy", "value": 1.5}
    assert points[0].chosen == {"policy.k": 2}


def test_subsets_search_which_attributes_are_quasi_identifiers(tmp_path: Path) -> None:
    points = asked(tmp_path, space={"policy.quasi_identifiers": {"subsets": ["Male", "Young", "Bald"]}}).points()
    assert points is not None
    found = {tuple(p.set["policy.quasi_identifiers"]) for p in points}
    names = ("Male", "Young", "Bald")
    assert found == {some for n in range(4) for some in itertools.combinations(names, n)}
    for p in points:
        assert p.set["policy.quasi_identifiers"] == [n for n in names if p.chosen[f"policy.quasi_identifiers[{n}]"]]


def test_random_search_draws_within_its_ranges_and_the_same_for_the_same_seed(tmp_path: Path) -> None:
    space = {"method.sigma": {"loguniform": [0.5, 32]}, "method.gamma": {"uniform": [0, 1]}}
    draws = [asked(tmp_path, space=space, search="random", samples=300, seed=s).points() for s in (1, 1, 2)]
    assert draws[0] == draws[1] != draws[2]
    sigma = np.array([p.set["method.sigma"] for p in draws[0] or []])
    assert len(sigma) == 300
    assert ((sigma >= 0.5) & (sigma <= 32)).all()
    # evenly by their logarithms: half lie below the geometric mean of the ends
    assert abs((sigma < 4).mean() - 0.5) < 0.1


def test_a_trial_that_optuna_suggests_is_recovered_from_what_tune_hands_on(tmp_path: Path) -> None:
    optuna = pytest.importorskip("optuna")
    both = {"k-same": {}, "blur": {"policy.k": None, "method.sigma": {"uniform": [1, 9]}}}
    sweep = asked(tmp_path, space={"policy.k": {"choice": [2, 5, 10]}}, methods=both, search="optuna")
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=3))
    points = []
    for _ in range(20):
        draw = study.ask()
        points.append(sweep.suggested(draw))
        assert sweep.recovered(draw.params) == points[-1]
        study.tell(draw, 0.0)
    assert {p.method for p in points} == {"k-same", "blur"}
    assert all(("method.sigma" in p.chosen) == (p.method == "blur") for p in points)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"spice": 1}, "spice: no such key"),
        ({"objectives": {}}, "name at least one"),
        ({"objectives": {"rank1": {"least": "identity.rank1"}}}, "objectives.rank1.least"),
        ({"utility": "fid"}, "utility: fid is none of the objectives rank1, psnr"),
        ({"early_stopping": {"by": "fid"}}, "early_stopping.by: fid"),
        ({"held_out": {"subjects": 1.5}}, "held_out.subjects"),
        ({"table": True}, "give release, and no base"),
        ({"base": {}}, "give base"),
        ({"samples": 0}, "samples"),
        ({"output": "s3://bucket/sweep"}, "output: a sweep keeps its files on this machine"),
    ],
)
def test_a_wrong_sweep_is_one_sentence_that_names_the_key(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    file = tmp_path / "sweep.yaml"
    values = {"output": str(tmp_path / "out"), "base": {"input": {"path": "photos"}}, "objectives": GOALS}
    file.write_text(yaml.safe_dump({**values, **changes}, sort_keys=False))
    with pytest.raises(ConfigError, match=said.replace(".", r"\.")) as error:
        load(file)
    assert str(error.value).startswith(f"sweep {file}: ")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"space": {"policy.q": {"grid": [1]}}}, "methods.base: no trial of it can be made: policy.q: no such key"),
        ({"space": {"method.sigma": {"uniform": [1, 9]}}}, "method.sigma: a range has no grid"),
        ({"space": {"method.sigma": {"uniform": [9, 1]}}}, r"uniform: expected \[low, high\]"),
        ({"space": {"method.sigma": {"loguniform": [0, 1]}}}, "numbers above 0"),
        ({"space": {"policy.k": {"grid": 5}}}, "expected a list, found 5"),
        ({"methods": {"magic": {}}}, "methods: magic is none of blur"),
        ({"objectives": {"a": {"min": "identty.rank1"}}}, "is not like identity.rank1.sface.originals"),
        ({"objectives": {"a": {"min": "plan.beauty"}}}, "a plan has classes"),
        ({"objectives": {"a": {"min": "utility.fidd"}}}, "utility has psnr, ssim, ms_ssim, lpips, fid"),
        ({"objectives": {"a": {"min": "identity.tar.sface.originals@x"}}}, "'x' behind @ is no number"),
        ({"pick": "fid<=2"}, "none of the objectives rank1, psnr"),
        ({"pick": "rank1"}, "is not like 'rank1<=0.02'"),
        ({"space": {"policy.k": {"integers": [2, 999_999]}}}, "the grid has 999,998 points"),
    ],
)
def test_a_sweep_that_cannot_be_made_is_refused_before_any_work(
    tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        trialled.prepared(asked(tmp_path / "out", **changes))
    assert not (tmp_path / "out").exists()


def test_a_figure_is_named_by_its_selector_and_of_several_the_worst_counts() -> None:
    rows = figures(0.1, 30) + figures(0.4, 20, by="edgeface-s")
    tar = Figure("identity", "tar", "sface", "originals", at=0.01, value=0.7)
    rows += [tar.as_dict(), Figure("identity", "rank1", "sface", "originals", value=0.9, group="Male = 1").as_dict()]
    rows += [Figure("identity", "rank1", "blind", "originals", note="no model").as_dict()]

    def value(text: str, goal: Any = "min") -> Any:
        found = Objective("x", Selector.read(text), goal).worst(rows)
        return None if found is None else found["value"]

    assert value("identity.rank1.sface.originals") == 0.1
    assert value("identity.rank1") == value("identity.rank1.*.originals") == 0.4
    assert value("utility.psnr", "max") == 20
    assert value("identity.tar.sface.originals@0.01") == 0.7
    assert value("identity.tar.sface.originals@0.1") is None
    assert value("identity.rank1.blind") is None


# -------------------------------------------------------------------------------------------------------------- trials


def counted(made: list[Any], fail: Callable[[Point], Exception | None] = lambda _: None) -> Any:
    def measure(point: Point, place: Path, shares: Sequence[float]) -> Iterator[tuple[float, list[dict[str, Any]]]]:
        sigma = point.set["method.sigma"]
        if error := fail(point):
            raise error
        for share in shares:
            made.append((sigma, share))
            yield share, figures(1 / sigma, 40 - sigma)

    return measure


BLURS = {"methods": {"blur": {"method.sigma": {"grid": [2, 4, 8]}}}}


def test_what_was_finished_is_read_and_not_made_again(tmp_path: Path) -> None:
    sweep, made = asked(tmp_path, **BLURS), []
    one = job(sweep, counted(made))
    points = sweep.points() or []
    first = [list(one.run(point)) for point in points]
    assert made == [(2, FULL), (4, FULL), (8, FULL)]
    again = [list(one.run(point)) for point in points]
    assert len(made) == 3
    assert first == again
    wider = asked(tmp_path, methods={"blur": {"method.sigma": {"grid": [4, 8, 16]}}})
    for point in wider.points() or []:
        list(job(wider, counted(made)).run(point))
    assert made[3:] == [(16, FULL)]


def test_a_line_that_a_kill_cut_short_costs_its_own_trial_alone(tmp_path: Path) -> None:
    sweep, made = asked(tmp_path, **BLURS), []
    one = job(sweep, counted(made))
    points = sweep.points() or []
    for point in points:
        list(one.run(point))
    text = one.log.file.read_text()
    one.log.file.write_text(text[:-40])
    for point in points:
        list(one.run(point))
    assert made[3:] == [(8, FULL)]
    assert len(one.log.read()) == 3
    assert one.log.file.stat().st_mode & 0o077 == 0


def test_what_never_will_go_is_a_row_that_says_why_and_what_may_is_tried_again(tmp_path: Path) -> None:
    errors: dict[int, Exception] = {2: NotMetError("k does not hold"), 4: PolicyError("k = 9 cannot be reached")}
    sweep, made = asked(tmp_path, **BLURS), []
    one = job(sweep, counted(made, lambda p: errors.get(p.set["method.sigma"])))
    points = sweep.points() or []
    found = [next(one.run(point)) for point in points]
    assert [(t.status, t.why) for t in found[:2]] == [(UNMET, "k does not hold"), (REFUSED, "k = 9 cannot be reached")]
    errors.clear()
    assert next(one.run(points[0])).status == UNMET
    unlucky = job(sweep, counted(made, lambda _: UnfinishedError("a worker died")))
    fresh = Point("blur", {}, {"method.sigma": 99})
    with pytest.raises(UnfinishedError):
        next(unlucky.run(fresh))
    assert next(one.run(fresh)).status == DONE


def test_an_early_stopped_trial_was_measured_on_fewer_people_and_goes_on_from_there(tmp_path: Path) -> None:
    sweep, made = asked(tmp_path, **BLURS, early_stopping={"by": "rank1", "rungs": 2, "factor": 2}), []
    assert sweep.rungs == (0.25, 0.5, 1.0)
    one = job(sweep, counted(made))
    point = (sweep.points() or [])[0]
    first = next(one.run(point))
    assert (first.status, first.share) == (STOPPED, 0.25)
    assert [t.share for t in one.run(point)] == [0.25, 0.5, 1.0]
    assert made == [(2, 0.25), (2, 0.5), (2, 1.0)]
    assert [t.status for t in one.run(point)] == [DONE]


# --------------------------------------------------------------------------------------------------------- held out


def test_people_are_searched_or_held_out_and_never_both(tmp_path: Path) -> None:
    people = [f"person {i}" for i in range(400)]
    seen, others = split(people, 0.3, seed=0)
    assert not set(seen) & set(others)
    assert sorted(seen + others) == sorted(people)
    assert 0.22 < len(others) / 400 < 0.38
    assert split(people[::-1], 0.3, seed=0) == (seen, others)
    assert split(people, 0.3, seed=1)[1] != others
    # who is where is told by the name alone, whoever else is there
    assert set(split(people[:50], 0.3, seed=0)[1]) == set(others) & set(people[:50])
    assert split(people, 0.0, seed=0)[1] == []


def test_a_growing_share_keeps_the_people_it_had() -> None:
    people = split([f"p{i}" for i in range(90)], 0.5, 0)[0]
    small, large = share_of(people, 0.25), share_of(people, 0.5)
    assert large[: len(small)] == small
    assert share_of(people, FULL) == people
    assert len(share_of(people, 0.001)) == 2


def test_evidence_of_some_people_holds_no_face_of_the_others(released: Outcome) -> None:
    from facecrowd.jobs.evidence import Evidence

    whole = Evidence(released.release.url, released.workspace.url)
    people = sorted(set(whole.subject) - {""})[:3]
    some = among(whole, people)
    assert set(some.subject) - {""} == set(people)
    assert set(some.subject[some.row]) == set(people)
    assert 0 < len(some) < len(whole)
    assert some.released([0]) == whole.released([int(some.at[0])])
    assert [link["name"] for link in some.links] == some.name.tolist()


# --------------------------------------------------------------------------------------------------- front and pick


def test_the_front_is_what_comparing_every_pair_finds() -> None:
    rng = np.random.default_rng(0)
    goals = asked(Path("nowhere")).goals
    for size in (1, 7, 60):
        found = [trial(float(a), float(b), i) for i, (a, b) in enumerate(rng.integers(0, 9, (size, 2)))]
        found += [trial(-1, 99, 100, status=STOPPED)]

        def beats(a: Trial, b: Trial) -> bool:
            (r, p), (r2, p2) = ((t.value(goals[0]) or 0, t.value(goals[1]) or 0) for t in (a, b))
            return r <= r2 and p >= p2 and (r, p) != (r2, p2)

        brute = [i for i, t in enumerate(found[:-1]) if not any(beats(other, t) for other in found[:-1])]
        assert list(pareto(found, goals)) == brute


def test_a_pick_is_the_most_useful_trial_that_meets_every_limit(tmp_path: Path) -> None:
    found = (trial(0.5, 40, 0), trial(0.02, 20, 1), trial(0.01, 20, 2), trial(0.0, 10, 3), trial(0, 50, 4, STOPPED))

    def picked(text: str, **changes: Any) -> int | None:
        sweep = asked(tmp_path, pick=text, **changes)
        return pick(Swept(sweep, found, pareto(found, sweep.goals)))

    assert picked("rank1<=0.02") == 2  # as useful as 1, and more private
    assert picked("rank1<0.01") == 3
    assert picked("rank1<=1") == 0
    assert picked("rank1<=1, psnr<30 and psnr>15") == 2
    assert picked("identity.rank1.sface<=0.02") == 2
    assert picked("rank1<=0.02,psnr>=30") is None
    assert picked("rank1<=0.6", privacy="psnr", utility="rank1") == 3
    with pytest.raises(ConfigError, match="--pick"):
        Limit.read("rank1=0.02")


def test_the_picked_config_is_read_by_a_release_as_it_is(tmp_path: Path) -> None:
    base = {"input": {"path": "photos"}, "detect": {"min_face": 30}, "policy": {"quasi_identifiers": ["Male"]}}
    sweep = asked(tmp_path, base=base, methods={"blur": {}}, pick="rank1<=1")
    found = (trial(0.1, 20, 6),)
    write(Swept(sweep, found, (0,), picked=0))
    config = configs.load(tmp_path / "picked.yaml")
    assert config == sweep.config(found[0].point)
    assert (config.method.name, config.method.sigma, config.detect.min_face) == ("blur", 7, 30)
    assert config.release.path == str(tmp_path / "picked")
    assert config.workspace_path == str(tmp_path / "workspace")
    assert not {"compute", "perturb", "verify"} & set(yaml.safe_load((tmp_path / "picked.yaml").read_text()))


# ------------------------------------------------------------------------------------------------------------- files


def test_the_tables_hold_every_trial_its_parameters_objectives_and_figures(tmp_path: Path) -> None:
    sweep = asked(tmp_path, pick="rank1<=0.3")
    found = (trial(0.5, 40, 0), trial(0.6, 30, 1), trial(0.2, 20, 2), Trial("x", trial(0, 0).point, UNMET, why="no"))
    swept = Swept(sweep, found, pareto(found, sweep.goals), picked=2)
    write(swept)
    table = pq.read_table(tmp_path / "trials.parquet").to_pylist()
    assert [row["objective rank1"] for row in table] == [0.5, 0.6, 0.2, None]
    assert [row["param method.sigma"] for row in table] == [0, 1, 2, 0]
    assert [row["front"] for row in table] == [True, False, True, False]
    assert [row["picked"] for row in table] == [False, False, True, False]
    assert table[3]["why"] == "no"
    assert table[0]["figures"][0]["by"] == "sface"
    front = pq.read_table(tmp_path / "pareto.parquet").to_pylist()
    assert [row["trial"] for row in front] == ["key 0", "key 2"]
    json.dumps(swept.as_dict(), allow_nan=False)


def test_a_pick_that_is_no_more_leaves_no_config_behind(tmp_path: Path) -> None:
    found = (trial(0.5, 40, 0),)
    write(Swept(asked(tmp_path, pick="rank1<=1"), found, (0,), picked=0))
    none = Swept(asked(tmp_path, pick="rank1<=0.1"), found, (0,))
    write(none)
    assert not (tmp_path / "picked.yaml").exists()
    assert not none.met
    assert "nothing meets rank1<=0.1; the best rank1 is 0.5" in "\n".join(lines(none))


def test_parameters_of_several_kinds_are_a_column_of_json(tmp_path: Path) -> None:
    def at(i: int, **chosen: Any) -> Trial:
        return Trial(str(i), Point("m", chosen, {}), DONE)

    found = (at(0, a=[1], b=1, c=True), at(1, a=None, b=1.5, c=False), at(2, a="x"))
    table = to_table(Swept(asked(tmp_path), found, ()))
    assert table["param a"].to_pylist() == ["[1]", None, '"x"']
    assert table["param b"].to_pylist() == [1.0, 1.5, None]
    assert table["param c"].to_pylist() == [True, False, None]


def test_the_page_has_no_script_and_nothing_from_elsewhere_and_marks_the_pick(tmp_path: Path) -> None:
    sweep = asked(tmp_path, pick="rank1<=0.3")
    evil = trial(0.1, 10, 3, method="<script>alert(1)</script>")
    found = (trial(0.5, 40, 0), trial(0.2, 20, 2), evil)
    again = {"objective": "rank1", "people": "held out", "unseen": True, "by": "edgeface-s", "value": 0.31}
    again |= {"low": 0.2, "high": 0.4, "chance": 0.1, "subjects": 12}
    text = page(Swept(sweep, found, pareto(found, sweep.goals), picked=1, again=(again,)))
    assert "<script" not in text
    assert "&lt;script&gt;" in text
    assert "http" not in text.replace('http-equiv="Content-Security-Policy"', "")
    assert "picked (rank1&lt;=0.3): blur, method.sigma = 2" in text
    assert text.count("<polyline") == 2  # a line per method
    # Above all that is drawn, and around it: no line hides which one was picked.
    assert text.rindex('class="ring"') > text.rindex("<polyline")
    assert "0.31" in text
    assert "[0.2, 0.4]" in text
    assert "{{" not in text


def test_every_method_has_a_line_of_its_own_look(tmp_path: Path) -> None:
    names = [f"method {at}" for at in range(9)]
    found = tuple(trial(0.1 + at / 100, 10 + at, at, method=name) for at, name in enumerate(names))
    sweep = asked(tmp_path, pick="rank1<=0.3")
    text = page(Swept(sweep, found, pareto(found, sweep.goals), picked=8))
    looks = re.findall(r'<polyline[^>]*class="([^"]*)"', text)
    assert len(looks) == len(set(looks)) == len(names)


def test_a_pick_that_does_not_hold_where_the_search_did_not_look_is_said_not_to(tmp_path: Path) -> None:
    sweep, found = asked(tmp_path, pick="rank1<=0.3"), (trial(0.2, 20),)
    row = {"objective": "rank1", "by": "edgeface-s", "low": 0.2, "high": 0.5, "chance": 0.1, "subjects": 12}
    inside = {**row, "people": "search", "unseen": False, "value": 0.31}
    good, bad = ({**row, "people": "held out", "unseen": True, "value": value} for value in (0.29, 0.31))
    for again, broken in (((inside, good), False), ((inside, bad), True)):
        swept = Swept(sweep, found, (0,), picked=0, again=again)
        told = "rank1<=0.3 does not hold on people held out, edgeface-s: 0.31"
        assert (f"BUT {told}" in lines(swept)) == broken
        assert ("does not hold everywhere" in page(swept)) == broken


def test_a_folder_of_a_sweep_is_for_one_sweep_at_a_time(stored: Any, tmp_path: Path) -> None:
    sweep = of_table(stored, tmp_path, space={"policy.k": {"grid": [3]}})
    with held(tmp_path / "lock", "held"), pytest.raises(WorkspaceError, match="another sweep is using it"):
        sweeps.sweep(sweep, QUIET)
    assert sweeps.sweep(sweep, QUIET).trials


def test_the_page_of_a_sweep_without_a_figure_says_so(tmp_path: Path) -> None:
    nothing = Swept(asked(tmp_path), (Trial("x", Point("blur", {}, {}), UNMET, why="k does not hold"),), ())
    assert "No trial was measured in full." in page(nothing)


# -------------------------------------------------------------------------------------------------------------- tables


def test_a_table_sweep_opens_no_picture_no_model_and_starts_no_ray(
    stored: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from facecrowd.pipeline import ray_data
    from facecrowd.pipeline import release as releases
    from facecrowd.stages import decode, models

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("opened")

    for module, name in ((models, "path"), (models, "resolve"), (decode, "decode"), (ray_data, "session")):
        monkeypatch.setattr(module, name, refuse)
    monkeypatch.setattr(releases, "release", refuse)
    space = {"policy.k": {"grid": [2, 4, 8, 99]}, "policy.t": {"grid": [None, {"value": 0.2}]}}
    sweep = of_table(stored, tmp_path, space=space, pick="smallest>=4")
    swept = sweeps.sweep(sweep, QUIET)
    assert len(swept.trials) == 8
    by_k = {(t.point.set["policy.k"], t.point.set["policy.t"] is None): t for t in swept.trials}
    assert by_k[99, True].status == REFUSED
    assert "k = 99 cannot be reached: 48 people" in by_k[99, True].why
    assert [by_k[k, True].value(sweep.goal("smallest")) for k in (2, 4, 8)] == [2.0, 4.0, 8.0]
    assert swept.picked is not None
    assert swept.again == ()
    assert "there is nothing to hold out" in (tmp_path / "sweep.html").read_text()


def test_a_table_sweep_says_what_whatif_says(stored: Any, tmp_path: Path) -> None:
    swept = sweeps.sweep(of_table(stored, tmp_path, space={"policy.k": {"grid": [3, 6]}}), QUIET)
    rows = {row["asked"]["k"]: row for row in stored.whatif(k="3,6")}
    for one in swept.trials:
        row = rows[one.point.set["policy.k"]]
        said = {f["name"]: f["value"] for f in one.figures}
        assert said["lost"] == row["lost"]
        assert said["member_cosine"] == row["member_cosine"]


def test_a_table_sweep_may_change_the_method_and_which_attributes_are_released(stored: Any, tmp_path: Path) -> None:
    sweep = of_table(
        stored,
        tmp_path,
        space={"policy.quasi_identifiers": {"subsets": ["Male", "Young"]}},
        methods={
            "k-same": {},
            "translation": {"method.name": "translation", "method.planner": "mondrian"},
        },
        pick="smallest>=2",
    )
    swept = sweeps.sweep(sweep, QUIET)
    status = {(t.point.method, tuple(t.point.set["policy.quasi_identifiers"])): t.status for t in swept.trials}
    assert status["translation", ()] == REFUSED
    assert {s for key, s in status.items() if key[1]} == {DONE}
    text = released_as(sweep, next(t for t in swept.trials if t.point.method == "translation" and t.status == DONE))
    (tmp_path / "again.yaml").write_text(text)
    config = configs.load(tmp_path / "again.yaml")
    assert (config.method.planner, config.workspace_path) == ("mondrian", str(stored.folder))
    assert config.release.path == str(tmp_path / "picked")
    assert config.input.path == stored.config.input.path


def test_a_method_that_a_table_sweep_names_starts_from_its_defaults(tmp_path: Path) -> None:
    translated = {"method.name": "translation", "method.planner": "mondrian"}
    stored = made_for_whatif()(tmp_path, **translated)
    swept = sweeps.sweep(of_table(stored, tmp_path / "out", methods={"k-same": {}, "none yet": translated}), QUIET)
    assert [(t.status, t.why) for t in swept.trials] == [(DONE, ""), (DONE, "")]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"objectives": GOALS}, "objectives.rank1: a table sweep renders nothing"),
        ({"space": {"detect.min_face": {"grid": [9]}}}, "detect.min_face: a table sweep plans only"),
        ({"space": {"policy.quasi_identifiers": {"subsets": ["Eyeglasses"]}}}, "Eyeglasses: the workspace has no"),
        ({"space": {"policy.sensitive": {"grid": [["Bald"]]}}}, "Bald: the workspace has no"),
    ],
)
def test_what_a_table_sweep_cannot_plan_is_refused_before_any_work(
    stored: Any, tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        sweeps.sweep(of_table(stored, tmp_path / "out", **changes), QUIET)
    assert not (tmp_path / "out").exists()


def test_optuna_searches_a_table_by_its_seed_and_a_resumed_search_ends_as_one_that_was_never_killed(
    stored: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("optuna")
    values = {"space": {"policy.k": {"integers": [2, 60]}}, "search": "optuna", "samples": 14, "seed": 5}
    whole = sweeps.sweep(of_table(stored, tmp_path / "whole", **values), QUIET)
    assert {t.status for t in whole.trials} >= {DONE}
    append, left = Log.append, [6]

    def killed(self: Log, row: Any) -> None:
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        append(self, row)

    monkeypatch.setattr(Log, "append", killed)
    with pytest.raises(KeyboardInterrupt):
        sweeps.sweep(of_table(stored, tmp_path / "killed", **values), QUIET)
    made: list[Any] = []
    monkeypatch.setattr(Log, "append", lambda self, row: (made.append(row["key"]), append(self, row)))
    again = sweeps.sweep(of_table(stored, tmp_path / "killed", **values), QUIET)
    assert [(t.key, t.figures) for t in again.trials] == [(t.key, t.figures) for t in whole.trials]
    assert len(made) == len(whole.trials) - 6


# ---------------------------------------------------------------------------------------------------------------- Tune


def stub(folder: str, sleep: float = 0.0) -> Any:
    """A measure that workers can be sent, which writes down what it made."""

    def measure(point: Any, place: Any, shares: Any) -> Any:
        import time as clock
        from pathlib import Path as Folder

        from facecrowd.jobs.figures import Figure as Row
        from facecrowd.pipeline.errors import UnfinishedError as Unfinished

        sigma = point.set["method.sigma"]
        if sigma == 3:
            raise Unfinished("a worker died")
        for share in shares:
            clock.sleep(sleep)
            with open(Folder(folder) / "made", "a") as file:
                file.write(f"{sigma} {share}\n")
            one = Row("identity", "rank1", "sface", "originals", value=sigma / 100)
            yield share, [one.as_dict(), Row("utility", "psnr", value=float(sigma)).as_dict()]

    return measure


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_tune_runs_trials_of_which_one_fails_and_another_start_tries_that_one_alone(tmp_path: Path) -> None:
    sweep = asked(tmp_path, methods={"blur": {"method.sigma": {"grid": [2, 3, 8]}}})
    first = sweeps.searched(job(sweep, stub(str(tmp_path))), QUIET)
    assert [t.status for t in first] == [DONE, "failed", DONE]
    assert first[1].why == "a worker died"
    sweeps.searched(job(sweep, stub(str(tmp_path))), QUIET)
    assert (tmp_path / "made").read_text().split("\n")[:-1] == ["2 1.0", "8 1.0"]


@pytest.mark.usefixtures("ray_session")
def test_a_sweep_keeps_its_files_in_a_folder_named_from_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    sweep = asked(Path("sweeps/first"), methods={"blur": {"method.sigma": {"grid": [2]}}})
    assert [t.status for t in sweeps.searched(job(sweep, stub(str(tmp_path))), QUIET)] == [DONE]
    assert (tmp_path / "sweeps" / "first" / "tune").is_dir()


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_asha_stops_the_hopeless_after_a_look_at_few_people(tmp_path: Path) -> None:
    stop = {"by": "rank1", "rungs": 1, "factor": 2}
    grid = {"method.sigma": {"grid": [2, 4, 90, 80]}}
    sweep = asked(tmp_path, methods={"blur": grid}, early_stopping=stop)
    found = sweeps.searched(job(sweep, stub(str(tmp_path))), QUIET)
    assert [t.status for t in found] == [DONE, STOPPED, STOPPED, STOPPED]
    assert "90 1.0" not in (tmp_path / "made").read_text()
    assert [t.share for t in found] == [1.0, 0.5, 0.5, 0.5]


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_tune_searches_by_optuna_with_several_objectives(tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    sweep = asked(tmp_path, methods={"blur": {"method.sigma": {"integers": [2, 9]}}}, search="optuna", samples=5)
    found = sweeps.searched(job(sweep, stub(str(tmp_path))), QUIET)
    assert {t.status for t in found} <= {DONE, "failed"}
    assert 1 <= len(found) <= 5
    assert all(2 <= t.point.set["method.sigma"] <= 9 for t in found)


KILLED = """
import sys
sys.path.insert(0, {tests!r})
import importlib.util
spec = importlib.util.spec_from_file_location("sweep_tests", {file!r})
tests = importlib.util.module_from_spec(spec); sys.modules["sweep_tests"] = tests; spec.loader.exec_module(tests)
from pathlib import Path
sweep = tests.asked(Path({folder!r}), methods={{"blur": {{"method.sigma": {{"grid": [2, 4, 6, 8]}}}}}})
tests.sweeps.searched(tests.job(sweep, tests.stub({folder!r}, sleep=2.0)), tests.QUIET)
"""


@pytest.mark.slow
def test_a_sweep_whose_driver_was_killed_goes_on_and_makes_nothing_twice(tmp_path: Path) -> None:
    script = KILLED.format(tests=str(Path(__file__).parent), file=__file__, folder=str(tmp_path))
    log = Log(tmp_path / "trials.jsonl")
    process = subprocess.Popen([sys.executable, "-c", script], cwd=tmp_path, start_new_session=True)
    try:
        end = time.monotonic() + 240
        while len(log.read()) < 2:
            assert process.poll() is None
            assert time.monotonic() < end
            time.sleep(0.2)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    before = set(log.read())
    assert len(before) < 4
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True, timeout=300)
    made = (tmp_path / "made").read_text().split("\n")[:-1]
    # The trial that was under way may have been noted and not yet logged; whatever was logged was made once.
    assert sorted(set(made)) == ["2 1.0", "4 1.0", "6 1.0", "8 1.0"]
    assert len(made) <= 5
    sigma = {key: row["point"]["set"]["method.sigma"] for key, row in log.read().items()}
    assert len(sigma) == 4
    assert all(made.count(f"{sigma[key]} 1.0") == 1 for key in before)


@pytest.mark.slow
def test_two_whole_trials_share_faces_and_the_winner_is_measured_where_the_search_did_not_look(
    photos: Path, model_folder: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from facecrowd.pipeline.storage import Workspace

    base = {
        "input": {"path": str(photos)},
        "detect": {"models": model_folder},
        "compute": {"cpus": 2, "micro_batch": 6},
    }
    goals = {"rank1": {"min": "identity.rank1.arcface-mobilefacenet.originals"}, "people": {"max": "plan.faces"}}
    values = {"methods": {"blur": {"method.sigma": {"grid": [1, 20]}}}, "objectives": goals, "pick": "rank1<=1"}
    sweep = asked(tmp_path / "out", base=base, **values)
    swept = sweeps.sweep(sweep, QUIET)
    assert [t.status for t in swept.trials] == [DONE, DONE]
    assert all(0 <= (t.value(sweep.goal("rank1")) or 0) <= 1 for t in swept.trials)
    assert len(list((Path(Workspace(sweep.workspace_path).folder.root) / "tables" / "faces").iterdir())) == 1
    assert swept.picked is not None
    assert {row["people"] for row in swept.again} == {"search", "held out"}
    made = SimpleNamespace(fail=AssertionError)
    monkeypatch.setattr(sweeps, "_tuner", lambda *_: (_ for _ in ()).throw(made.fail("made again")))
    assert sweeps.sweep(sweep, QUIET).trials == swept.trials


def test_the_pick_of_the_file_holds_where_the_command_line_names_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from typer.testing import CliRunner

    from facecrowd.jobs import cli
    from facecrowd.jobs import sweep as job

    text = {"base": {"input": {"path": "p"}}, "output": "o", "objectives": {"rank1": {"min": "identity.rank1"}}}
    file = tmp_path / "sweep.yaml"
    file.write_text(yaml.safe_dump({**text, "pick": "rank1<=0.5"}))
    asked = []

    def stop(sweep: Any, progress: Any) -> Any:
        asked.append(sweep.pick)
        raise KeyboardInterrupt

    monkeypatch.setattr(job, "sweep", stop)
    for flags in ([], ["--pick", "rank1<=0.1"]):
        CliRunner().invoke(cli.app, ["sweep", str(file), *flags])
    assert asked == ["rank1<=0.5", "rank1<=0.1"]
