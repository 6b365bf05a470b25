"""What can go wrong, by name. ``jobs/cli.py`` turns each into one sentence and the exit code it carries."""

from __future__ import annotations


class FacecrowdError(Exception):
    """Something the user can mend; the message says what is wrong, where, and what to do."""

    exit_code = 2


class ConfigError(FacecrowdError):
    """The config or a flag is wrong."""


class InputError(FacecrowdError):
    """The photos, the input manifest or the attribute table cannot be used."""


class PolicyError(FacecrowdError):
    """The policy contradicts itself or cannot be reached with these subjects."""


class ReleaseError(FacecrowdError):
    """A release folder is missing something, or was changed after it was made."""


class NotMetError(FacecrowdError):
    """Nothing that was rendered holds up to the tolerances asked; nothing was published."""

    exit_code = 1


class LeakError(FacecrowdError):
    """Something in the finished pixels or tables leads back to a source; nothing was published."""

    exit_code = 1


class WorkspaceError(FacecrowdError):
    """The workspace is locked, broken or not ours."""

    exit_code = 3


class StoreError(FacecrowdError):
    """An object store does not answer, or not to us."""

    exit_code = 3


class UnfinishedError(FacecrowdError):
    """The job could not finish; starting it again resumes it."""

    exit_code = 3
