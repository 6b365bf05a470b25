"""Claims of jobs/table.py: what audit --table and plan say, write and exit with."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from typer.testing import CliRunner, Result

from facecrowd.jobs import bench_table, cli
from facecrowd.privacy.classes import histogram

Write = Callable[..., Path]
POLICY: dict[str, Any] = {
    "subject": "who",
    "quasi_identifiers": ["tall", "glasses", "hair"],
    "sensitive": ["sick"],
    "identifiers": ["photo"],
    "k": 4,
}


def invoke(*arguments: object) -> Result:
    """The command line in this process; an exception that would be a traceback fails the test."""
    result = CliRunner().invoke(cli.app, [str(argument) for argument in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), repr(result.exception)
    return result


def sentence(result: Result) -> str:
    (line,) = (line for line in result.stderr.splitlines() if line.startswith("facecrowd: "))
    return line.removeprefix("facecrowd: ")


def people(persons: int = 60, photos: int = 600, transient: float = 0.1) -> pa.Table:
    rng = np.random.default_rng(7)
    who = rng.integers(0, persons, photos)
    return pa.table(
        {
            "photo": [f"{i:06d}.jpg" for i in range(photos)],
            "who": who,
            "tall": who % 2 == 0,
            "glasses": (who % 5 == 0) ^ (rng.random(photos) < transient),
            "hair": np.array(["black", "brown", "grey"])[who % 7 % 3],
            "sick": rng.random(photos) < 0.4,
        }
    )


@pytest.fixture
def table(tmp_path: Path) -> Path:
    pq.write_table(people(), tmp_path / "people.parquet", row_group_size=100)
    return tmp_path / "people.parquet"


@pytest.fixture
def policy(tmp_path: Path) -> Write:
    """``policy(k=3, …)``: a policy file with these changes; None leaves a key out."""

    def write(**changes: Any) -> Path:
        values = {key: value for key, value in {**POLICY, **changes}.items() if value is not None}
        (tmp_path / "policy.yaml").write_text(yaml.safe_dump(values))
        return tmp_path / "policy.yaml"

    return write


# ------------------------------------------------------------------------------------------------------------ audit


def test_an_audit_says_what_is_not_met_and_exits_1(table: Path, policy: Write, tmp_path: Path) -> None:
    result = invoke("audit", "--table", table, "--policy", policy(k=10), "--json", tmp_path / "a.json", "--quiet")
    assert result.exit_code == 1
    assert "is it private now? no" in result.stdout
    assert "worst class" in result.stdout
    report = json.loads((tmp_path / "a.json").read_text())
    assert not report["met"]
    (k,) = (r for r in report["verdict"]["requirements"] if r["name"] == "k")
    data = people()
    expected = histogram(data["who"], quasi_identifiers=data.select(POLICY["quasi_identifiers"])).subjects.min()
    assert (k["found"], k["met"]) == (expected, False)
    (vectors,) = (r for r in report["verdict"]["requirements"] if r["name"] == "vectors per subject")
    assert vectors["found"] > 1
    assert report["intersection"]["under_k_with_all_photos"] >= report["intersection"]["under_k_with_one_photo"]


def test_an_audit_that_is_met_exits_0_and_writes_what_it_prints(tmp_path: Path, policy: Write) -> None:
    pq.write_table(people(transient=0), tmp_path / "steady.parquet")
    steady = {"k": 3, "quasi_identifiers": ["tall", "hair"], "insensitive": ["glasses"]}
    result = invoke(
        "audit", "--table", tmp_path / "steady.parquet", "--policy", policy(**steady), "--output", tmp_path / "out"
    )
    assert result.exit_code == 0, result.stdout
    assert "is it private now? yes" in result.stdout
    classes = pq.read_table(tmp_path / "out" / "classes.parquet")
    data = people(transient=0)
    expected = histogram(data["who"], quasi_identifiers=data.select(["tall", "hair"]))
    assert classes["subjects"].to_pylist() == expected.subjects.tolist()
    assert classes["rows"].to_pylist() == expected.rows.tolist()
    assert classes["hair"].to_pylist() == expected.classes["hair"].to_pylist()
    assert json.loads((tmp_path / "out" / "verdict.json").read_text())["met"]
    assert str(tmp_path) not in (tmp_path / "out" / "verdict.json").read_text()


def test_rows_may_have_vectors_of_their_own_where_the_policy_says_so(table: Path, policy: Write) -> None:
    result = invoke("audit", "--table", table, "--policy", policy(k=2, per_subject=False), "--quiet")
    assert "vectors per subject" not in result.stdout
    assert "classes of one person intersected" in result.stdout


def test_all_means_all_without_another_role(table: Path, policy: Write, tmp_path: Path) -> None:
    named = invoke("audit", "--table", table, "--policy", policy(), "--quiet")
    every = invoke("audit", "--table", table, "--policy", policy(quasi_identifiers="all"), "--quiet")
    flags = ["--subject", "who", "--quasi-identifiers", "all", "--sensitive", "sick", "--identifiers", "photo"]
    typed = invoke("audit", "--table", table, *flags, "--k", 4, "--quiet")
    assert named.stdout == every.stdout == typed.stdout


def test_csv_and_parquet_come_to_the_same(table: Path, policy: Write, tmp_path: Path) -> None:
    data = pq.read_table(table).to_pandas()
    data.to_csv(tmp_path / "people.csv", index=False)
    one = invoke("audit", "--table", table, "--policy", policy(), "--json", tmp_path / "1.json", "--quiet")
    two = invoke("audit", "--table", tmp_path / "people.csv", "--policy", policy(), "--json", tmp_path / "2.json")
    assert one.exit_code == two.exit_code == 1
    found = [json.loads((tmp_path / f"{i}.json").read_text()) for i in (1, 2)]
    requirements = [[r["found"] for r in report["verdict"]["requirements"]] for report in found]
    assert requirements[0] == requirements[1]


def test_the_curve_says_what_stricter_policies_cost(table: Path, policy: Write, tmp_path: Path) -> None:
    result = invoke("audit", "--table", table, "--policy", policy(), "--curve", "--json", tmp_path / "a.json")
    assert "can it be more private?" in result.stdout
    curve = json.loads((tmp_path / "a.json").read_text())["curve"]
    assert [point["k"] for point in curve] == [4, 5, 10, 20, 50]
    assert "curve: 5/5 parts" in result.stderr


def test_a_hierarchy_and_a_public_reference_come_from_files(table: Path, policy: Write, tmp_path: Path) -> None:
    (tmp_path / "hair.csv").write_text("black;dark;*\nbrown;dark;*\ngrey;light;*\n")
    (tmp_path / "public.csv").write_text("sick,share\nFalse,0.9\nTrue,0.1\n")
    data = pq.read_table(table)
    text = data.set_column(5, "sick", pa.array([str(v) for v in data["sick"].to_pylist()]))
    pq.write_table(text, table)
    asked = {"hierarchies": {"hair": "hair.csv"}, "t": {"value": 0.6, "ground": "equal"}}
    own = invoke("audit", "--table", table, "--policy", policy(**asked), "--quiet")
    public = invoke("audit", "--table", table, "--policy", policy(**asked, reference="public.csv"), "--quiet")
    assert "against the released table's subjects" in own.stdout
    assert "against a given public distribution" in public.stdout


# ------------------------------------------------------------------------------------------------------------- plan


@pytest.mark.parametrize("method", ["mondrian", "suppress", "ppas-verified"])
def test_a_plan_holds_when_audited_from_what_it_released(
    table: Path, policy: Write, tmp_path: Path, method: str
) -> None:
    file = policy(k=5, l={"kind": "entropy", "value": 1.2}, t={"value": 0.3, "ground": "equal"})
    made = invoke("plan", "--table", table, "--policy", file, "--method", method, "--output", tmp_path / "p")
    assert made.exit_code == 0, made.stderr
    found = json.loads((tmp_path / "p" / "verdict.json").read_text())
    audited = invoke(
        "audit", "--table", table, "--policy", file, "--plan", tmp_path / "p", "--json", tmp_path / "a.json", "--quiet"
    )
    assert audited.exit_code == 0, audited.stdout
    again = json.loads((tmp_path / "a.json").read_text())
    before = {r["name"]: r["found"] for r in found["verdict"]["requirements"]}
    after = {r["name"]: r["found"] for r in again["verdict"]["requirements"]}
    assert after.pop("vectors per subject") == 1
    assert after == pytest.approx(before)


def test_a_plan_has_one_row_per_subject_with_what_is_released(table: Path, policy: Write, tmp_path: Path) -> None:
    assert invoke("plan", "--table", table, "--policy", policy(k=8), "--output", tmp_path / "p").exit_code == 0
    rows = pq.read_table(tmp_path / "p" / "plan.parquet").to_pylist()
    assert [row["who"] for row in rows] == list(range(60))
    shown: dict[int, set[Any]] = {}
    for row in rows:
        assert row["suppressed"] == (row["class_id"] is None) == (row["hair"] is None) == bool(row["reason"])
        if not row["suppressed"]:
            shown.setdefault(row["class_id"], set()).add((row["tall"], row["glasses"], row["hair"]))
    assert all(len(vectors) == 1 for vectors in shown.values())
    members = [sum(row["class_id"] == c for row in rows) for c in shown]
    assert min(members) >= 8
    classes = pq.read_table(tmp_path / "p" / "classes.parquet")
    assert sorted(classes["subjects"].to_pylist()) == sorted(members)


def test_without_per_subject_a_plan_has_one_row_per_row(table: Path, policy: Write, tmp_path: Path) -> None:
    file = policy(k=8, per_subject=False)
    assert invoke("plan", "--table", table, "--policy", file, "--output", tmp_path / "p").exit_code == 0
    rows = pq.read_table(tmp_path / "p" / "plan.parquet")
    assert rows["who"].to_pylist() == people()["who"].to_pylist()
    audited = invoke("audit", "--table", table, "--policy", file, "--plan", tmp_path / "p", "--quiet")
    assert audited.exit_code == 0, audited.stdout


def test_epsilon_randomises_once_and_the_same_key_draws_the_same(table: Path, policy: Write, tmp_path: Path) -> None:
    file = policy(k=3, epsilon=3.0, max_suppression=0.5)
    words = ["plan", "--table", table, "--policy", file, "--workspace", tmp_path / "w", "--quiet"]
    first, second = (invoke(*words, "--output", tmp_path / name) for name in ("a", "b"))
    assert first.exit_code == second.exit_code
    one, two = (pq.read_table(tmp_path / name / "plan.parquet") for name in ("a", "b"))
    assert one.equals(two)
    verdict = json.loads((tmp_path / "a" / "verdict.json").read_text())
    assert verdict["plan"]["epsilon"] == pytest.approx(3.0)
    assert (tmp_path / "w" / "run.key").stat().st_mode & 0o077 == 0
    other = invoke(*words[:5], "--quiet", "--output", tmp_path / "c")
    assert other.exit_code in (0, 1)
    assert not pq.read_table(tmp_path / "c" / "plan.parquet").equals(one)


def test_ppas_as_printed_may_leave_the_policy_unmet_and_says_so(table: Path, policy: Write, tmp_path: Path) -> None:
    file = policy(k=10, quasi_identifiers=["tall", "glasses"], t={"value": 0.01, "ground": "equal"})
    result = invoke("plan", "--table", table, "--policy", file, "--method", "ppas", "--output", tmp_path / "p")
    assert result.exit_code == 1
    report = json.loads((tmp_path / "p" / "verdict.json").read_text())
    assert [choice["attribute"] for choice in report["plan"]["choices"]] == ["tall", "glasses"]


def test_the_example_of_plan_runs(table: Path, policy: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    policy()
    monkeypatch.chdir(table.parent)
    (example,) = (re.findall("`([^`]+)`", c.epilog)[0] for c in cli.app.registered_commands if c.callback is cli.plan)
    assert invoke(*shlex.split(example)[1:]).exit_code == 0
    assert sorted(path.name for path in Path("planned").iterdir()) == [
        "classes.parquet",
        "plan.parquet",
        "verdict.json",
    ]


# -------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"quasi_identifiers": ["tall", "beard"]}, "no column 'beard' (there are photo, who, tall"),
        ({"sensitive": ["fever"]}, "no column 'fever'"),
        ({"subject": "nobody"}, "no column 'nobody'"),
        ({"k": 61}, "k = 61 is asked of a table with 60 subjects"),
        ({"t": {"value": 0}}, "t.value: Input should be greater than 0 (given: 0)"),
        ({"sensitive": ["tall"]}, "tall: an attribute is either a quasi-identifier or sensitive, not both"),
        ({"identifiers": ["hair"]}, "hair is a quasi-identifier and an identifier; give it one role"),
        ({"quasi_identifiers": ["who", "tall"]}, "who is the subject and a quasi-identifier"),
        ({"quasi_identifiers": []}, "quasi_identifiers is empty"),
        ({"l": {"kind": "distinct", "value": 2}, "sensitive": None}, "l and t are about sensitive attributes"),
        ({"kay": 3}, "kay: no such key"),
        ({"hierarchies": {"hair": "nowhere.csv"}}, "nowhere.csv"),
        ({"kinds": {"beard": "ordered"}}, "kinds names beard"),
        ({"t": {"value": 0.1, "ground": "hierarchy"}}, "t.ground: hierarchy is the distance of one sensitive"),
    ],
)
@pytest.mark.parametrize("command", ["audit", "plan"])
def test_a_policy_that_cannot_be_asked_is_one_sentence(
    table: Path, policy: Write, tmp_path: Path, command: str, changes: dict[str, Any], said: str
) -> None:
    output = ["--output", tmp_path / "p"] if command == "plan" else []
    result = invoke(command, "--table", table, "--policy", policy(**changes), *output, "--quiet")
    if command == "plan" and changes == {"k": 61}:
        said = "k = 61 is asked and there are 60"  # the planner says what would be reached
    assert result.exit_code == 2
    assert said in sentence(result)
    assert result.stdout == ""
    assert not (tmp_path / "p").exists()


def test_a_null_an_empty_table_and_a_policy_out_of_reach_are_named(policy: Write, tmp_path: Path) -> None:
    data = people()
    hair = data["hair"].to_pylist()
    hair[417] = None
    pq.write_table(data.set_column(4, "hair", pa.array(hair)), tmp_path / "gap.parquet")
    result = invoke("audit", "--table", tmp_path / "gap.parquet", "--policy", policy(), "--quiet")
    assert (result.exit_code, sentence(result)[:33]) == (2, "column 'hair' is null in row 417 ")
    pq.write_table(data.slice(0, 0), tmp_path / "empty.parquet")
    result = invoke("audit", "--table", tmp_path / "empty.parquet", "--policy", policy(), "--quiet")
    assert result.exit_code == 2
    assert "the table is empty" in sentence(result)
    pq.write_table(data, tmp_path / "people.parquet")
    file = policy(l={"kind": "distinct", "value": 3})
    words = ["--table", tmp_path / "people.parquet", "--policy", file, "--output", tmp_path / "p", "--quiet"]
    result = invoke("plan", *words)
    assert result.exit_code == 2
    assert "no plan reaches the policy" in sentence(result)
    assert "l (distinct) of sick = 3 is asked" in sentence(result)


def test_usage_that_contradicts_itself_is_refused(table: Path, policy: Write, tmp_path: Path) -> None:
    assert "a RELEASE, a --snapshot or a --table" in sentence(invoke("audit"))
    assert "a RELEASE, a --snapshot or a --table" in sentence(invoke("audit", "released", "--table", table))
    assert "--k is about a --table" in sentence(invoke("audit", "released", "--k", 3))
    assert "--workspace belongs to a RELEASE" in sentence(invoke("audit", "--table", table, "--workspace", "w"))
    assert "nowhere.yaml: no such file" in sentence(invoke("audit", "--table", table, "--policy", "nowhere.yaml"))
    words = ["plan", "--table", table, "--policy", policy(), "--output", tmp_path / "p"]
    assert "--method guess" in sentence(invoke(*words, "--method", "guess"))
    assert "'facecrowd plan'" in sentence(
        invoke("audit", "--table", table, "--policy", policy(), "--plan", _other(table))
    )


def _other(table: Path) -> Path:
    """A folder with a plan.parquet that nobody planned."""
    folder = table.parent / "other"
    folder.mkdir()
    columns = {"who": [1], "tall": [True], "glasses": [True], "hair": ["grey"]}
    extra = {"class_id": [0], "suppressed": [False], "reason": [""]}
    pq.write_table(pa.table({**columns, **extra}), folder / "plan.parquet")
    return folder


def test_a_plan_of_another_table_is_refused(table: Path, policy: Write, tmp_path: Path) -> None:
    assert invoke("plan", "--table", table, "--policy", policy(), "--output", tmp_path / "p").exit_code == 0
    pq.write_table(people(persons=61), tmp_path / "more.parquet")
    words = ["audit", "--table", tmp_path / "more.parquet", "--policy", policy(), "--plan", tmp_path / "p", "--quiet"]
    result = invoke(*words)
    assert result.exit_code == 2
    assert "it does not know subject 60" in sentence(result)


# ------------------------------------------------------------------------------------------------------------ bench


def test_a_generated_table_is_the_same_everywhere_and_has_its_people(tmp_path: Path) -> None:
    one = bench_table.generated(20_000, 0.02, tmp_path / "a")
    two = bench_table.generated(20_000, 0.02, tmp_path / "b")
    assert one.read_bytes() == two.read_bytes()
    rows = pq.read_table(one)
    assert len(set(rows["subject_id"].to_pylist())) in range(380, 401)
    bits = np.stack([rows[name].to_numpy() for pair in bench_table.names() for name in pair]).astype(float)
    correlation = np.corrcoef(bits[bits.std(axis=1) > 0])
    assert (np.abs(correlation - np.eye(len(correlation))) > 0.1).mean() > 0.1


def test_a_small_benchmark_measures_the_floor_us_and_the_planner(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    figures = bench_table.bench_table([20_000], methods=("mondrian",), others=False, folder=tmp_path)
    floor, own, planned = figures["runs"]
    assert floor["what"] == "floor"
    assert own["k"] == floor["k"]
    assert own["classes"] == floor["classes"]
    assert planned["k"] >= 10
    assert all(run["seconds"] > 0 and run["peak_mb"] > 50 for run in figures["runs"])
    assert [ratio["text"] for ratio in figures["ratios"]] == [
        "measure / floor, seconds",
        "plan mondrian, seconds",
    ]
    bench_table.show(figures)
    assert "aim 2" in capsys.readouterr().out


def test_a_tool_that_does_not_finish_is_stopped_and_what_it_said_is_kept() -> None:
    code = 'import time; print(\'{"figure": "k", "seconds": 1.0}\', flush=True); time.sleep(60)'
    run = bench_table._process([bench_table.sys.executable, "-c", code], cap=1.0)
    assert run.failed == "stopped after 1 s"
    assert run.lines == ({"figure": "k", "seconds": 1.0},)
    assert run.wall_s < 30


# -------------------------------------------------------------------------------------------------- wrong predictions


@pytest.fixture
def rates(tmp_path: Path) -> Write:
    """``rates(tall=(0.9, 0.8), …)``: a predictor's error rates, as ``evaluate attributes --json`` writes them."""

    def write(**attributes: tuple[float, float]) -> Path:
        given = {name: {"tpr": tpr, "tnr": tnr} for name, (tpr, tnr) in attributes.items()}
        path = tmp_path / "rates.json"
        path.write_text(json.dumps({"accuracy": 0.9, "confusion": {"predictor": "X", "attributes": given}}))
        return path

    return write


def test_an_audit_says_what_wrong_predictions_would_do_and_keeps_the_verdict(table, policy, rates, tmp_path):
    asked = ("audit", "--table", table, "--policy", policy(k=2, t={"value": 0.5}), "--quiet")
    alone = invoke(*asked, "--json", tmp_path / "alone.json")
    confusion = rates(tall=(0.8, 0.8), glasses=(0.7, 0.9), sick=(0.7, 0.9), unheard=(0.1, 0.1))
    found = invoke(*asked, "--confusion", confusion, "--json", tmp_path / "found.json")
    again = invoke(*asked, "--confusion", confusion)
    assert found.exit_code == alone.exit_code
    assert found.stdout.startswith(alone.stdout)
    assert again.stdout == found.stdout
    section = found.stdout.removeprefix(alone.stdout).splitlines()
    assert section[0] == (
        "were the attributes predicted by X with these error rates (the verdict is of the table as it is; "
        "taken as exact: hair):"
    )
    report = json.loads((tmp_path / "found.json").read_text())
    said = report.pop("misprediction")
    before = json.loads((tmp_path / "alone.json").read_text())
    assert before.pop("misprediction") is None
    assert report == before
    assert f"{said['crowds']['right']:.1%} of people" in section[1]
    assert [r["name"] for r in said["requirements"]] == ["t (hamming)"]
    assert section[-1].strip().startswith(f"t (hamming): asked 0.5, found {said['requirements'][0]['found']:.4g}")


def test_a_plan_is_held_against_error_rates_as_it_releases_the_table(table, policy, rates, tmp_path):
    given = policy(k=10)
    assert invoke("plan", "--table", table, "--policy", given, "--output", tmp_path / "p", "--quiet").exit_code == 0
    asked = ("audit", "--table", table, "--policy", given, "--plan", tmp_path / "p", "--quiet")
    found = invoke(*asked, "--confusion", rates(tall=(0.9, 0.9)), "--json", tmp_path / "found.json")
    assert found.exit_code == 0, found.stderr
    crowds = json.loads((tmp_path / "found.json").read_text())["misprediction"]["crowds"]
    assert crowds["smallest_released"] >= 10
    assert crowds["people"] == 60


def test_what_evaluate_attributes_writes_is_taken_and_of_several_predictors_the_named_one(table, policy, tmp_path):
    def row(name: str, rate: float) -> dict[str, Any]:
        judged = {"predictor": name, "attributes": {"tall": {"tpr": rate, "tnr": rate}}}
        return {"predictor": name, "how": "…", "attributes": [{"attribute": "tall"}], "confusion": judged}

    def audit(rows: list[dict[str, Any]], name: str = "") -> Any:
        path = tmp_path / "figures.json"
        path.write_text(json.dumps({"predictors": rows, "faces_per_second": []}))
        return invoke("audit", "--table", table, "--policy", policy(k=2), "--confusion", f"{path}{name}", "--quiet")

    one, two = row("attributes-x", 0.9), row("probe y", 0.7)
    assert "were the attributes predicted by attributes-x" in audit([one]).stdout
    assert audit([one, two], "#attributes-x").stdout == audit([one]).stdout == audit([one], "#attributes-x").stdout
    assert "were the attributes predicted by probe y" in audit([one, two], "#probe y").stdout
    for name, says in (("", "name one predictor of"), ("#z", "no predictor 'z' of")):
        refused = audit([one, two], name)
        assert refused.exit_code == cli.BAD_INPUT
        assert f"{says}: '{tmp_path}/figures.json#attributes-x', '{tmp_path}/figures.json#probe y'" in refused.stderr


@pytest.mark.parametrize("words", [(False, True), (-1, 1), (0, 1), ("no", "yes"), ("a", "b"), ("b", "a")])
def test_of_two_values_the_later_counts_as_positive(table, policy, tmp_path, words):
    """With rates that prove the negative and say little of the positive: who shows the negative shows the truth."""
    read = pq.read_table(table)
    given = [words[who % 5 == 0] for who in read["who"].to_pylist()]
    pq.write_table(
        read.set_column(read.column_names.index("tall"), "tall", pa.array(given)), tmp_path / "words.parquet"
    )
    (tmp_path / "rates.json").write_text('{"attributes": {"tall": {"tpr": 1, "tnr": 0.5, "prevalence": 0.01}}}')
    asked = ("--policy", policy(k=2, quasi_identifiers=["tall"]), "--confusion", tmp_path / "rates.json", "--quiet")
    result = invoke("audit", "--table", tmp_path / "words.parquet", *asked, "--json", tmp_path / "found.json")
    right = json.loads((tmp_path / "found.json").read_text())["misprediction"]["crowds"]["right"]
    assert right == pytest.approx(0.8 if max(words) == words[True] else 0.2, abs=0.03), result.stderr


@pytest.mark.parametrize(
    "text, says",
    [
        (None, "no such file"),
        ("tall: 0.9", "not of the form"),
        ("[1]", "not of the form"),
        ('{"attributes": {"unheard": {"tpr": 0.9, "tnr": 0.9}}}', "no attribute that the policy gives a role"),
        ('{"attributes": {"tall": {"tpr": 0.9}}}', "tall: give tpr and tnr as numbers"),
        ('{"attributes": {"tall": {"tpr": 0.5, "tnr": 0.4}}}', "tall: tpr 0.5 and tnr 0.4 add up to no more than 1"),
        ('{"attributes": {"hair": {"tpr": 0.9, "tnr": 0.9}}}', "'hair' has error rates and 3 values"),
    ],
)
def test_error_rates_that_are_none_are_one_sentence(table, policy, tmp_path, text, says):
    path = tmp_path / "rates.json"
    if text is not None:
        path.write_text(text)
    result = invoke("audit", "--table", table, "--policy", policy(), "--confusion", path, "--quiet")
    assert result.exit_code == cli.BAD_INPUT
    assert says in sentence(result)


def test_error_rates_are_about_tables(rates):
    result = invoke("audit", "release", "--confusion", rates(tall=(0.9, 0.9)))
    assert result.exit_code == cli.BAD_INPUT
    assert "--confusion is about a --table" in sentence(result)
