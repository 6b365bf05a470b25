"""The run key: 256 bits drawn once, from which every random choice of a release follows.

``digest(purpose, id)`` is HMAC-SHA256(key, purpose || 0x00 || id): it depends on what is drawn for whom, never on the
order of work, so a job that was killed and resumed draws the same values. Without the key the draws cannot be repeated.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from dataclasses import dataclass, field

import numpy as np

KEY_BYTES = 32


@dataclass(frozen=True)
class RunKey:
    """The secret of one workspace. ``repr`` never shows it."""

    secret: bytes = field(repr=False)

    def __post_init__(self) -> None:
        if len(self.secret) != KEY_BYTES:
            raise ValueError(f"a run key has {KEY_BYTES} bytes, not {len(self.secret)}")

    @classmethod
    def draw(cls) -> RunKey:
        """A fresh key from the operating system."""
        return cls(secrets.token_bytes(KEY_BYTES))

    def digest(self, purpose: str, name: str | bytes) -> bytes:
        """32 pseudo-random bytes for ``name`` under ``purpose``."""
        data = name.encode() if isinstance(name, str) else name
        return hmac.new(self.secret, purpose.encode() + b"\0" + data, hashlib.sha256).digest()

    def token(self, purpose: str, name: str | bytes, length: int = 20) -> str:
        """A name that says nothing: ``length`` hexadecimal digits (4 bits each, at most 64)."""
        return self.digest(purpose, name).hex()[:length]

    def generator(self, purpose: str, name: str | bytes) -> np.random.Generator:
        """A random generator of its own for ``name``, keyed with 128 bits of the digest."""
        key = np.frombuffer(self.digest(purpose, name)[:16], dtype=np.uint64)
        return np.random.Generator(np.random.Philox(key=key))
