"""Claims of jobs/earlier.py: a later plan does not undo an earlier one, and an audit of both says when it does."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from typer.testing import CliRunner, Result

from facecrowd.jobs import cli


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


@pytest.fixture
def grown(tmp_path: Path) -> Path:
    """A table of 90 people, the first 60 of whom were in an earlier one, and the policy for both."""
    rng = np.random.default_rng(3)
    columns = {f"q{i}": rng.random(90) < 0.3 for i in range(6)}
    now = pa.table({"who": [f"person {i:02d}" for i in range(90)], **columns, "sick": rng.random(90) < 0.4})
    pq.write_table(now.slice(0, 60), tmp_path / "then.parquet")
    pq.write_table(now, tmp_path / "now.parquet")
    asked = {"subject": "who", "quasi_identifiers": list(columns), "sensitive": ["sick"], "k": 5}
    (tmp_path / "policy.yaml").write_text(yaml.safe_dump(asked))
    return tmp_path


def plan(folder: Path, table: str, output: str, *more: object) -> Result:
    return invoke(
        "plan", "--table", folder / table, "--policy", folder / "policy.yaml", "--output", folder / output, *more
    )


def crowds(folder: Path, *plans: str) -> dict[str, int]:
    """Reckoned from the plan files alone: people who show the same as one in every plan that has them."""
    shown: dict[str, list[str]] = {}
    for name in plans:
        released = {row["who"]: row for row in pq.read_table(folder / name / "plan.parquet").to_pylist()}
        for who in (f"person {i:02d}" for i in range(90)):
            row = released.get(who)
            kept = None if row is None or row["suppressed"] else {k: v for k, v in row.items() if k.startswith("q")}
            shown.setdefault(who, []).append(json.dumps(kept))
    count = Counter(tuple(path) for path in shown.values())
    return {who: count[tuple(path)] for who, path in shown.items() if json.loads(path[-1]) is not None}


def test_planning_anew_undoes_an_earlier_release_and_the_audit_says_so(grown: Path) -> None:
    assert plan(grown, "then.parquet", "first").exit_code == 0
    assert plan(grown, "now.parquet", "anew").exit_code == 0
    assert min(crowds(grown, "first", "anew").values()) < 5
    audit = ("audit", "--table", grown / "now.parquet", "--policy", grown / "policy.yaml", "--earlier", grown / "first")
    result = invoke(*audit, "--plan", grown / "anew", "--json", grown / "audit.json")
    assert result.exit_code == 1
    assert "k over all releases: asked 5" in result.stdout
    found = json.loads((grown / "audit.json").read_text())["earlier"]
    undone = [who for who, crowd in crowds(grown, "first", "anew").items() if crowd < 5]
    assert (found["holds"], found["below_k"]) == (False, len(undone))


def test_a_plan_with_an_earlier_one_leaves_everybody_a_crowd_over_both(grown: Path) -> None:
    assert plan(grown, "then.parquet", "first").exit_code == 0
    result = plan(grown, "now.parquet", "kept", "--earlier", grown / "first", "--json", grown / "plan.json")
    assert result.exit_code == 0, result.stderr
    assert min(crowds(grown, "first", "kept").values()) >= 5
    found = json.loads((grown / "plan.json").read_text())["earlier"]
    first = pq.read_table(grown / "first" / "plan.parquet")
    returning = int((~first["suppressed"].to_numpy()).sum())
    assert (found["returning"], found["new"], found["holds"]) == (returning, 90 - returning, True)
    audit = ("audit", "--table", grown / "now.parquet", "--policy", grown / "policy.yaml", "--earlier", grown / "first")
    assert invoke(*audit, "--plan", grown / "kept").exit_code == 0


def test_what_is_no_plan_cannot_be_kept(grown: Path) -> None:
    (grown / "nothing").mkdir()
    result = plan(grown, "now.parquet", "kept", "--earlier", grown / "nothing")
    assert result.exit_code == 2
    assert "no classes.parquet in it" in result.stderr
    assert not (grown / "kept").exists()
