"""Rows of a batch: their outcome, and how to repeat them. What every stage needs and none should write again."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from facecrowd.stages.stage import OK, Batch, rows

FAILED = "failed"
"""The status of a row in which a stage met an error of its own; ``reason`` names the stage and the error."""


def outcomes(batch: Batch) -> tuple[np.ndarray, np.ndarray]:
    """Copies of the columns ``status`` and ``reason``: two (n,) object arrays a stage may write into.

    A batch that has neither yet starts as ``ok`` with an empty reason.
    """
    n = rows(batch)
    status, reason = np.full(n, OK, dtype=object), np.full(n, "", dtype=object)
    if "status" in batch:
        status[:] = batch["status"]
    if "reason" in batch:
        reason[:] = ["" if value is None else value for value in batch["reason"]]
    return status, reason


def explain(stage: str, error: BaseException) -> str:
    """The ``reason`` of a row that failed in ``stage``: one line of at most 300 characters."""
    return " ".join(f"{stage}: {type(error).__name__}: {error}".split())[:300]


def take(batch: Batch, positions: Sequence[int] | np.ndarray) -> Batch:
    """The rows of ``batch`` at ``positions`` (repeats allowed). Cells of lists are shared, never copied."""
    index = np.asarray(positions, dtype=np.int64)
    return {
        name: column[index] if isinstance(column, np.ndarray) else [column[i] for i in index]
        for name, column in batch.items()
    }


def concatenate(batches: Sequence[Batch]) -> Batch:
    """Batches of the same columns, one below the other."""
    out: Batch = {}
    for name, first in batches[0].items():
        columns = [batch[name] for batch in batches]
        if isinstance(first, np.ndarray):
            out[name] = np.concatenate(columns)
        else:
            out[name] = [cell for column in columns for cell in column]
    return out


def without(batch: Batch, *columns: str) -> Batch:
    """``batch`` less ``columns``: for dropping pixels before a batch leaves its process."""
    return {name: column for name, column in batch.items() if name not in columns}
