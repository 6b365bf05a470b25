"""What can go wrong, by name. ``jobs/command.py`` turns each into one sentence and the exit code it carries."""

from __future__ import annotations


class FacecrowdError(Exception):
    """Something the user can mend; the message says what is wrong, where, and what to do.

    It is one line: what moves a terminal's cursor or turns its text around, as a file's name may, is written out.
    """

    exit_code = 2

    def __init__(self, message: str = "") -> None:
        super().__init__(printable(message))


def printable(text: str) -> str:
    """Text on one line: characters that are no print become escapes."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def reason(error: BaseException) -> str:
    """The first line of what an error says; its name where it says nothing."""
    said = str(error).strip()
    return said.splitlines()[0] if said else type(error).__name__


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
