"""Claims of what is written about a release: no name that an input may have breaks out of a page or of a table."""

from __future__ import annotations

import importlib.util
import re
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from facecrowd.jobs import report
from facecrowd.pipeline.errors import InputError
from facecrowd.pipeline.summary import cell, licences

FUZZ = settings.get_profile("fuzz")
FEW = settings(FUZZ, max_examples=FUZZ.max_examples // 4)

PARTS = [
    "<script>alert(1)</script>",
    "<img src=x onerror=x>",
    "</title>",
    "</style>",
    "</svg>",
    '" onload="x',
    "'",
    "]]>",
]
PARTS += [
    "-->",
    "{{ 7 * 7 }}",
    "{% raw %}",
    "&lt;",
    "&",
    "\u202e",
    "\x1b[2J",
    "\x00",
    "\n",
    "\r\n",
    "|",
    "`",
    "\\",
    "\ud800",
]
PARTS += [
    "=cmd|' /C calc'!A0",
    "+1",
    "@SUM(A1)",
    "-2",
    "javascript:x",
    "url(x)",
    "e\u0301",
    "\u00e9",
    "\U0001f600",
    "x" * 500,
]
words = st.lists(st.sampled_from(PARTS) | st.text(max_size=3), min_size=1, max_size=3).map("".join)


@pytest.fixture(scope="module")
def pages() -> ModuleType:
    """The audits, of which every name can be chosen, of ``tests/jobs/test_report.py``."""
    file = Path(__file__).parents[1] / "jobs" / "test_report.py"
    spec = importlib.util.spec_from_file_location("report_tests", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@FEW
@given(word=words)
@example(word="".join(PARTS))
def test_no_name_breaks_out_of_a_report(word: str, pages: ModuleType) -> None:
    told, word = [], word.replace("\ud800", "x")  # in no table; the audit below has one beside
    for name in ("x" * len(word), word):
        found, some, extra = pages.named(name)
        told.append(report.write(found, some, replace(report.Page(), **extra)))
    plain, strange = map(pages.Elements, told)
    assert strange.tags == plain.tags
    assert not [name for _, name, _ in strange.attributes if name.startswith("on")]
    assert not re.search("[\x00-\x08\x1b\u202e\ud800-\udfff]", told[1])
    told[1].encode()


@FUZZ
@given(word=words)
@example(word="".join(PARTS))
def test_no_name_leaves_its_cell_of_markdown(word: str) -> None:
    shown = cell(word)
    assert shown.isprintable()
    assert not re.search(r"(?<!\\)(\\\\)*[|<]", shown.replace("\\|", "").replace("\\<", ""))
    told = licences({"models": [dict.fromkeys(("name", "purpose", "licence"), word) | {"sha256": "0"}]})
    assert len(told.splitlines()) == 7


@FUZZ
@given(word=words)
def test_no_name_moves_the_cursor_of_a_terminal(word: str) -> None:
    assert str(InputError(f"input {word}: no such file")).isprintable()
