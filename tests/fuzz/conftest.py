"""What the fuzz tests share: how bytes are damaged, how many examples there are, and a guard around every test.

The fast profile is the gate's: few examples, always the same. ``FACECROWD_FUZZ=N`` (``make fuzz``) tries N new ones of
each claim.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

LONG = int(os.environ.get("FACECROWD_FUZZ", "0"))
settings.register_profile(
    "fuzz",
    max_examples=LONG or 40,
    derandomize=not LONG,
    database=None,
    deadline=None,
    print_blob=True,
    suppress_health_check=list(HealthCheck),
)


CACHES = {"__pycache__", ".hypothesis"}


class Escaped(BaseException):
    """A reader did what no input may make it do. Not an ``Exception``, so that no reader can take it for damage."""


class Guard:
    """Python's audit events while a test runs; it can be set up once per process and never be taken down."""

    REFUSED = ("pickle.find_class", "subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn")
    NETWORK = ("socket.connect", "socket.getaddrinfo", "urllib.Request")
    CHANGES = ("os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.chmod", "os.truncate")
    WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND

    def __init__(self) -> None:
        self.folder: Path | None = None
        self.seen: list[str] = []

    def __call__(self, event: str, args: tuple[Any, ...]) -> None:
        if self.folder is None:
            return
        if event in self.REFUSED or event in self.NETWORK:
            self.escape(f"{event} {args!r}")
        elif event in self.CHANGES:
            # A link may say what it likes; where it lies is what matters.
            below = args[-1] if event in ("os.mkdir", "os.remove", "os.rmdir") else -1
            folder = f"/proc/self/fd/{below}" if isinstance(below, int) and below >= 0 else ""
            for path in {"os.rename": args[:2], "os.symlink": args[1:2], "os.link": args[1:2]}.get(event, args[:1]):
                self.inside(event, os.path.join(os.path.realpath(folder), os.fsdecode(path)) if folder else path)
        elif event == "open" and isinstance(args[2], int) and args[2] & self.WRITING:
            self.inside(event, args[0])

    def inside(self, event: str, path: Any) -> None:
        if isinstance(path, int) or self.folder is None:
            return
        place = os.path.abspath(os.fsdecode(path))
        # The caches of Python and of hypothesis, and the sink that is no file.
        if place.startswith(f"{self.folder}/") or place == os.devnull or CACHES & {*Path(place).parts}:
            return
        self.escape(f"{event} {place!r}")

    def escape(self, what: str) -> None:
        self.seen.append(what)
        raise Escaped(what)


GUARD = Guard()
sys.addaudithook(GUARD)


@pytest.fixture(autouse=True)
def guarded(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No test may load a pickle, start a program, reach the network, or write outside the folder of temporary files."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path_factory.getbasetemp()))
    GUARD.seen, GUARD.folder = [], tmp_path_factory.getbasetemp()
    try:
        yield
    finally:
        GUARD.folder = None
    assert not GUARD.seen


@pytest.fixture
def off_guard(guarded: None) -> None:
    """For a test that starts a program itself."""
    GUARD.folder = None


@pytest.fixture(scope="session")
def mutated() -> Callable[[bytes], st.SearchStrategy[bytes]]:
    """``mutated(original)``: the bytes of a file, damaged in a few places or cut."""
    words = [b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\x00\x00\x00\x00", b"\x00\x00\xff\xff", b"\xff\xfe", b"\x80"]

    @st.composite
    def damage(draw: st.DrawFn, original: bytes) -> bytes:
        data = bytearray(original)
        for _ in range(draw(st.integers(1, 5))):
            at = draw(st.integers(0, max(len(data) - 1, 0)))
            kind = draw(st.sampled_from(("flip", "word", "set", "cut", "drop", "again", "insert")))
            if kind == "flip" and data:
                data[at] ^= 1 << draw(st.integers(0, 7))
            elif kind == "word":
                word = draw(st.sampled_from(words))
                data[at : at + len(word)] = word
            elif kind == "set" and data:
                data[at] = draw(st.integers(0, 255))
            elif kind == "cut":
                del data[at:]
            elif kind == "drop":
                del data[at : at + draw(st.integers(1, 64))]
            elif kind == "again":
                data[at:at] = data[at : at + draw(st.integers(1, 64))]
            elif kind == "insert":
                data[at:at] = draw(st.binary(max_size=16))
        return bytes(data)

    return damage


@pytest.fixture(scope="session")
def pickled() -> Callable[[Path], bytes]:
    """``pickled(file)``: a pickle that writes ``file`` when it is loaded."""

    def planted(file: Path) -> bytes:
        return b"cos\nsystem\n(S'touch %s'\ntR." % os.fsencode(file)

    return planted
