"""Arrays of embeddings: what every function that takes one checks first."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from facecrowd.privacy.errors import EmbeddingError, EmptyTableError

PIECE = 16384
"""Rows converted to float64 at once, so that no float64 copy of a large input is made."""


def pieces(n: int) -> list[slice]:
    """Rows 0 … n - 1 in slices of at most ``PIECE``."""
    return [slice(start, min(start + PIECE, n)) for start in range(0, n, PIECE)]


def checked(embeddings: ArrayLike, what: str, first: int = 0) -> NDArray[Any]:
    """A finite (N, D) array of numbers, N and D at least 1; ``first`` is the number of its first row in messages.

    Raises
    ------
    EmbeddingError
        If it is not two-dimensional, not numeric, or has values that are not finite.
    EmptyTableError
        If there is none.
    """
    points = np.asarray(embeddings)
    if points.ndim != 2 or points.dtype.kind not in "fiu":
        raise EmbeddingError(
            f"{what} embeddings have shape {points.shape} and type {points.dtype}; give an (N, dimensions) array"
        )
    if points.shape[0] == 0 or points.shape[1] == 0:
        raise EmptyTableError(f"there are no {what} embeddings (shape {points.shape}); check the input and its filters")
    for rows in pieces(len(points)):
        finite = np.isfinite(points[rows]).all(axis=1)
        if not finite.all():
            raise EmbeddingError(
                f"{what} embeddings are not finite, first in row {first + rows.start + int(np.argmin(finite))}; "
                "leave those out"
            )
    return points


def unit(embeddings: ArrayLike, what: str, scale: float = 1.0, first: int = 0) -> NDArray[np.float32]:
    """Rows scaled to the length ``scale``, in a new float32 array; ``first`` as in ``checked``.

    Raises
    ------
    EmbeddingError
        Also if a row is zero and so has no direction.
    EmptyTableError
    """
    points = checked(embeddings, what, first)
    result = np.empty(points.shape, dtype=np.float32)
    for rows in pieces(len(points)):
        piece = points[rows].astype(np.float64)
        length = np.sqrt(np.einsum("ij,ij->i", piece, piece))
        if not length.all():
            raise EmbeddingError(
                f"{what} embeddings have length zero, first in row {first + rows.start + int(np.argmin(length))}; "
                "leave it out"
            )
        result[rows] = piece * (scale / length)[:, None]
    return result
