"""Claims of jobs/pages.py: one file, which takes no style but its own, runs nothing and escapes what it is given."""

from __future__ import annotations

import base64
import hashlib
import re
from typing import Any

import jinja2
import pytest

from facecrowd.jobs.pages import page

EMPTY: dict[str, Any] = {
    "chart": None,
    "lines": [],
    "goals": [],
    "met": None,
    "broken": (),
    "pick": "",
    "again": [],
    "rows": [],
    "left": 0,
    "table": False,
}


def test_a_page_takes_no_style_but_its_own_and_fetches_nothing() -> None:
    html = page("sweep.html", EMPTY)
    style = re.search(r"<style>(.*?)</style>", html, re.DOTALL)
    rules = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', html)
    assert style is not None
    assert rules is not None
    digest = base64.b64encode(hashlib.sha256(style[1].encode()).digest()).decode()
    assert f"style-src 'sha256-{digest}'" in rules[1].replace("&#39;", "'")
    assert rules[1].startswith("default-src ")
    assert "<script" not in html
    assert not re.search(r"""(?:src|href)=["']?(?:https?:)?//""", html)


def test_what_a_page_is_given_is_text_and_never_markup() -> None:
    html = page("sweep.html", {**EMPTY, "lines": ["<img src=x onerror=alert(1)>"]})
    assert "<img" not in html
    assert "&lt;img src=x" in html


def test_a_value_that_a_page_lacks_is_an_error_and_no_blank() -> None:
    with pytest.raises(jinja2.UndefinedError, match="lines"):
        page("sweep.html", {name: value for name, value in EMPTY.items() if name != "lines"})
