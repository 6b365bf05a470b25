"""What can be wrong with the data or the wishes given to ``privacy/``: one named, one-line error each.

Every message says what is wrong, where, and what to do. All derive from ``PrivacyError`` (a ``ValueError``), so a
caller that only wants to show the sentence catches one name.
"""

from __future__ import annotations


class PrivacyError(ValueError):
    """Base of the errors of this package."""


class EmptyTableError(PrivacyError):
    """There is no row to measure."""


class LengthError(PrivacyError):
    """Columns that describe the same rows have different lengths or shapes."""


class ColumnError(PrivacyError):
    """A column is unknown, named twice, or of a type that cannot be grouped."""


class NullValueError(PrivacyError):
    """A subject, quasi-identifier or sensitive value is null or NaN."""


class EmbeddingError(PrivacyError):
    """Embeddings are not a finite, non-zero (N, D) array of numbers."""


class TooFewSubjectsError(PrivacyError):
    """There are fewer subjects than a class must have."""


class GroundDistanceError(PrivacyError):
    """A ground distance, hierarchy or order does not fit the sensitive values."""


class ReferenceDistributionError(PrivacyError):
    """A public reference distribution does not fit the sensitive values."""


class PopulationError(PrivacyError):
    """A population is smaller than the table drawn from it, or lacks people whom the table shows."""


class PlanError(PrivacyError):
    """A plan does not fit the cells it is said to be of."""


class PolicyError(PrivacyError):
    """A policy contradicts itself or the table it is asked of."""


class HierarchyError(PrivacyError):
    """A value generalisation hierarchy is no tree, or lacks a value of its attribute."""


class UnreachableError(PrivacyError):
    """No plan reaches the policy; the message says which requirement fails, by how much, and what would reach it."""
