"""Claims of pipeline/config.py and jobs/space.py: whatever a YAML file holds, it is a config or one line, soon."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from facecrowd.jobs import space
from facecrowd.pipeline import config as configs
from facecrowd.pipeline.errors import ConfigError

FUZZ = settings.get_profile("fuzz")
Mutated = Callable[[bytes], st.SearchStrategy[bytes]]

CONFIG = """\
input: {path: photos, subjects: folder}
policy: &policy
  quasi_identifiers: [Male, Young]
  sensitive: [Attractive]
  k: 5
  l: {kind: entropy, value: 1.5}
  t: {value: 0.2, ground: hamming}
  epsilon: 1.0
method: {name: translation, planner: ppas-verified}
perturb: {name: universal, bound: 8.0}
release: {path: released, quality: 90}
"""
POLICY = """\
subject: subject_id
quasi_identifiers: [Male, Age]
sensitive: [Illness]
kinds: {Age: numeric}
hierarchies: {Male: sex.csv}
k: 5
"""
SWEEP = """\
output: swept
base: {policy: {quasi_identifiers: [Male, Young]}}
space:
  policy.k: {grid: [2, 5]}
  detect.threshold: {loguniform: [0.3, 0.9]}
  policy.quasi_identifiers: {subsets: [Male, Young]}
methods: {blur: {method.sigma: {uniform: [1, 9]}}, k-same: {policy.k: {integers: [2, 9]}}}
objectives: {rank1: {min: identity.rank1.sface.originals}, faces: {max: plan.faces}}
search: random
samples: 4
pick: rank1<=0.02
"""


def swept(sweep: space.Sweep) -> None:
    """All that a sweep is asked for before it starts."""
    space.limits(sweep)
    json.dumps(sweep.asks())
    assert sweep.goals
    assert sweep.axes
    for point in (sweep.points() or [])[:20]:
        json.dumps(point.as_dict())
        sweep.config(point)
    for arm in sweep.arms:
        space.drawn(arm, np.random.default_rng(0))


def one_line_or_config(text: bytes, folder: Path, kind: str = "") -> int:
    """Read a file as one kind of config, or each; how many of them it is."""
    (folder / "c.yaml").write_bytes(text)
    readers: dict[str, Callable[[Path], Any]] = {
        "config": lambda file: configs.load(file, {"input.path": "p"}).public(),
        "policy": configs.load_policy,
        "sweep": lambda file: swept(space.load(file)),
    }
    taken = 0
    for reader in [readers[kind]] if kind else readers.values():
        said, started = None, time.process_time()
        try:
            reader(folder / "c.yaml")
            taken += 1
        except ConfigError as error:
            said = str(error)
        assert time.process_time() - started < 5
        assert said is None or (said.isprintable() and 0 < len(said) < 5000), said
    return taken


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("yaml")


@pytest.mark.parametrize("text, kinds", [(CONFIG, {"config", "policy"}), (POLICY, {"policy"}), (SWEEP, {"sweep"})])
def test_every_seed_is_a_config(text: str, kinds: set[str], folder: Path) -> None:
    assert one_line_or_config(text.encode(), folder) == len(kinds)
    assert all(one_line_or_config(text.encode(), folder, kind) for kind in kinds)


@pytest.mark.parametrize("text", [CONFIG, POLICY, SWEEP])
@FUZZ
@given(data=st.data())
def test_a_damaged_config_is_a_config_or_one_line(
    text: str, data: st.DataObject, folder: Path, mutated: Mutated
) -> None:
    one_line_or_config(data.draw(mutated(text.encode())), folder)


VALUES = (
    "",
    "~",
    "[]",
    "{}",
    "[[]]",
    "[{}]",
    "{1: 2}",
    "{a: b}",
    "[~, 1, a]",
    "-1",
    "0",
    "1.5",
    ".nan",
    ".inf",
    "-.inf",
    "1e400",
    "9" * 400,
    "9" * 5000,
    "-" + "9" * 30,
    "0x" + "f" * 400,
    "1:59:59",
    "2020-13-45",
    "2020-01-01",
    "2020-01-01 00:00:00",
    "yes",
    "all",
    "'*'",
    "anonymousnet",
    "[anonymousnet, {a: 1}]",
    '"\\uD800"',
    '"a\\0b"',
    '"\\u202e\\e[2J"',
    '"' + "x" * 5000 + '"',
    "../../etc/passwd",
    "file:///etc/passwd",
    "simplecache::http://localhost/x",
    "=cmd|' /C calc'!A0",
    "!!python/object/apply:os.system ['touch pwned']",
    "!!python/name:os.system",
    "!!binary ////",
    "!!set {a, b}",
    "!!omap [a: 1]",
    "!!int ''",
    "!!float ''",
    "!!bool x",
    "!!timestamp x",
    "!!str {a: 1}",
    "*policy",
    "&x [*x]",
    "&x {a: *x}",
    "{grid: [1, 2]}",
    "{choice: [[], {}]}",
    "{subsets: [a, a]}",
    "{uniform: [0, .inf]}",
    "{uniform: [.nan, 1]}",
    "{uniform: [0, 1" + "0" * 400 + "]}",
    "{integers: [0, 1" + "0" * 30 + "]}",
    "{loguniform: [1e-320, 1e308]}",
    "{min: 1}",
    "{max: identity.rank1@nan}",
    "[" * 1200,
)
KEYS = {
    "config": ("input", "input.path", "policy.quasi_identifiers", "policy.k", "policy.l", "method.keep", "output"),
    "policy": ("subject", "quasi_identifiers", "sensitive", "k", "t", "kinds", "hierarchies", "reference"),
    "sweep": ("space", "methods", "objectives", "objectives.rank1", "samples", "seed", "base", "pick", "held_out"),
}


@pytest.mark.parametrize("kind, text", [("config", CONFIG), ("policy", POLICY), ("sweep", SWEEP)])
@FUZZ
@given(data=st.data())
def test_a_strange_value_anywhere_is_a_config_or_one_line(
    kind: str, text: str, data: st.DataObject, folder: Path
) -> None:
    value = data.draw(st.sampled_from(VALUES))
    section, _, leaf = data.draw(st.sampled_from(KEYS[kind])).partition(".")
    others = {key: inner for key, inner in yaml.safe_load(text).items() if key != section}
    lines = yaml.safe_dump(others) + (f"{section}:\n  {leaf}: {value}\n" if leaf else f"{section}: {value}\n")
    one_line_or_config(f"a: &policy {{k: 5}}\n{lines}".encode() if "*policy" in value else lines.encode(), folder, kind)


@pytest.mark.parametrize("value", VALUES, ids=lambda value: value[:20])
def test_a_strange_value_is_a_config_or_one_line(value: str, folder: Path) -> None:
    one_line_or_config(f"k: {value}\n".encode(), folder, "policy")


@FUZZ
@given(
    value=st.sampled_from(VALUES),
    key=st.sampled_from(["policy.k", "policy.k[a]", "policy.k]", "policy", "method.name", "a", "''", "'.'"]),
    place=st.sampled_from(["space:\n  policy.k: 5\n ", "methods:\n  blur:\n   "]),
    search=st.sampled_from(["random", "grid"]),
)
@example(value="{uniform: [0, .inf]}", key="policy.epsilon", place="space:\n ", search="random")
@example(value="{integers: [0, 1" + "0" * 30 + "]}", key="policy.k", place="space:\n ", search="grid")
@example(value="{grid: [yes]}", key="policy.k[a]", place="space:\n  policy.k: 5\n ", search="grid")
@example(value="{a: 1}}]", key="[{b", place="methods:", search="grid")
def test_a_strange_value_in_a_search_is_a_sweep_or_one_line(
    value: str, key: str, place: str, search: str, folder: Path
) -> None:
    text = f"output: o\nbase: {{policy: {{k: 5}}}}\nsearch: {search}\nobjectives: {{a: {{min: plan.k}}}}\n"
    one_line_or_config(f"{text}{place} {key}: {value}\n".encode(), folder, "sweep")


def billion(inner: str = "a") -> str:
    lines = [f"a0: &a0 [{', '.join([inner] * 9)}]"]
    return "\n".join([*lines, *(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12))])


@pytest.mark.parametrize("key", ["input", "policy", "quasi_identifiers", "space", "base", "methods", "objectives", "x"])
def test_a_billion_values_of_a_few_aliases_are_refused_at_once(key: str, folder: Path) -> None:
    started = time.process_time()
    assert one_line_or_config(f"{billion()}\n{key}: *a11\n".encode(), folder) == 0
    assert (
        one_line_or_config(f"{billion()}\n{key}: {{a: *a11, path: *a11, quasi_identifiers: *a11}}\n".encode(), folder)
        == 0
    )
    assert time.process_time() - started < 5


@pytest.mark.parametrize(
    "text", ["k: 5\nk: 2", "policy: {k: 5, k: 2}", "policy: {k: 5}\npolicy: {k: 2}", '{"k": 5, k: 2}']
)
def test_a_key_that_is_there_twice_is_refused(text: str, folder: Path) -> None:
    assert one_line_or_config(text.encode(), folder) == 0
    with pytest.raises(ConfigError, match="is there twice"):
        configs.load_policy(folder / "c.yaml")


def test_a_key_may_be_merged_over(folder: Path) -> None:
    (folder / "merged.yaml").write_text("input: {path: p}\nmethod: &m {name: blur, sigma: 3}\n")
    (folder / "merged.yaml").write_text("policy: {k: 3, <<: {k: 5, epsilon: 1.0}}\nmethod: {name: blur}\n")
    found = configs.read_yaml(folder / "merged.yaml", "config", "policy")
    assert found["policy"] == {"k": 3, "epsilon": 1.0}


@FUZZ
@given(text=st.text(max_size=40))
@example(text="rank1<=1e999")
@example(text="a<=,")
def test_a_pick_is_limits_or_one_line(text: str, folder: Path) -> None:
    (folder / "s.yaml").write_text(SWEEP)
    for pick in (text, f"rank1<={text}", f"{text}<0.5"):
        said = "x"
        try:
            sweep = space.load(folder / "s.yaml", pick)
            for limit in space.limits(sweep):
                space.figure_of(sweep, limit.name)
                limit.holds(0.5)
        except ConfigError as error:
            said = str(error)
        assert said.isprintable()


@pytest.mark.parametrize("there", ["missing", "folder", "pickle", "binary"])
def test_what_is_no_file_of_text_is_one_line(there: str, tmp_path: Path, pickled: Callable[[Path], bytes]) -> None:
    file = tmp_path / "c.yaml"
    if there == "folder":
        file.mkdir()
    elif there == "pickle":
        file.write_bytes(pickled(tmp_path / "loaded"))
    elif there == "binary":
        file.write_bytes(bytes(range(256)))
    for reader in (configs.load, configs.load_policy, space.load):
        with pytest.raises(ConfigError):
            reader(file)
    assert not (tmp_path / "loaded").exists()
