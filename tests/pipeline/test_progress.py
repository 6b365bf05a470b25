"""Claims of pipeline/progress.py: a bar on a terminal, plain lines in a log, and nothing where it is quiet."""

from __future__ import annotations

import io
import re

import pytest

from facecrowd.pipeline import progress
from facecrowd.pipeline.progress import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_log_gets_one_plain_line_at_the_end_of_a_quick_step() -> None:
    out = io.StringIO()
    with Progress(stream=out).step("detect", 3) as advance:
        for rows in (2, 0, 5):
            advance(rows)
    assert re.fullmatch(r"detect: 3/3 parts, 7 rows, \d+\.\d s\n", out.getvalue())


def test_a_log_gets_a_line_now_and_then_on_the_way(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    out = io.StringIO()
    with Progress(stream=out).step("detect", 5) as advance:
        for _ in range(5):
            now[0] += 6
            advance(1)
    assert out.getvalue().splitlines() == [
        "detect: 2/5 parts, 2 rows, 12.0 s",
        "detect: 4/5 parts, 4 rows, 24.0 s",
        "detect: 5/5 parts, 5 rows, 30.0 s",
    ]
    assert "\x1b" not in out.getvalue()


def test_a_terminal_gets_a_bar() -> None:
    out = Terminal()
    with Progress(stream=out).step("detect", 2) as advance:
        advance(4)
        advance(3)
    assert "2/2" in out.getvalue()
    assert "7 rows" in out.getvalue()


@pytest.mark.parametrize("stream", [io.StringIO(), Terminal()])
def test_quiet_is_quiet(stream: io.StringIO) -> None:
    shown = Progress(quiet=True, stream=stream)
    shown.say("hello")
    with shown.step("detect", 1) as advance:
        advance(1)
    assert stream.getvalue() == ""


@pytest.mark.parametrize("stream", [io.StringIO(), Terminal()])
def test_what_is_raised_in_a_step_passes_through(stream: io.StringIO) -> None:
    with pytest.raises(KeyError), Progress(stream=stream).step("detect", 1):
        raise KeyError("x")
