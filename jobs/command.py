"""What all commands share: how what went wrong is said, the exit codes, and figures as JSON.

0: it ran and what was asked holds; 1: it ran, and the policy or audit is not met; 2: bad usage, config or input; 3: it
could not finish.
"""

from __future__ import annotations

import functools
import json
import os
import select
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from facecrowd.pipeline import config as configs
from facecrowd.pipeline.errors import FacecrowdError

OK, NOT_MET, BAD_INPUT, UNFINISHED = 0, 1, 2, 3

JsonFile = Annotated[Path | None, typer.Option("--json", help="Write the same figures as JSON to this file.")]


def speaking(command: Callable[..., None]) -> Callable[..., None]:
    """Turn what a user can mend into one sentence and its exit code."""

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:
        from facecrowd.privacy.errors import PrivacyError
        from facecrowd.stages.models import ModelError

        try:
            _can_write(kwargs.get("json_file"))
            command(*args, **kwargs)
        except typer.Exit as done:
            _nobody_reads()
            raise typer.Exit(done.exit_code) from None
        except (typer.Abort, typer.BadParameter):
            raise
        except SystemExit:  # rich's word for a reader that went away
            raise typer.Exit(UNFINISHED) from None
        except FacecrowdError as error:
            raise _stop(error, error.exit_code) from None
        except (ModelError, PrivacyError) as error:
            raise _stop(error, BAD_INPUT) from None
        except KeyboardInterrupt:
            raise _stop("interrupted; start it again to go on", UNFINISHED) from None
        except OSError as error:
            if isinstance(error, BrokenPipeError) and _nobody_reads():
                raise typer.Exit(UNFINISHED) from None
            raise _stop(f"{error.filename or ''} {error.strerror or error}".strip(), UNFINISHED) from None
        except Exception as error:
            if os.environ.get("FACECROWD_DEBUG") == "1":
                traceback.print_exc()
            what = " ".join(str(error).split())[:500]
            raise _stop(f"unexpected: {type(error).__name__}: {what}; please report it", UNFINISHED) from None
        _nobody_reads()

    return run


def _nobody_reads() -> bool:
    """Send all output. Whether its reader has gone (``| head``): no failure of the job, and no more is tried."""
    try:
        sys.stdout.flush()
        gone = select.poll()
        gone.register(sys.stdout.fileno(), 0)
        if not gone.poll(0):
            return False
    except BrokenPipeError:
        pass
    except (OSError, ValueError):  # no file behind it
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return True


def _stop(what: object, code: int) -> typer.Exit:
    print(f"facecrowd: {what}", file=sys.stderr)
    return typer.Exit(code)


def _can_write(file: Path | None) -> None:
    """Refuse a --json file that could not be written, before the work whose figures it is for."""
    if file is None:
        return
    if file.is_dir():
        raise configs.ConfigError(f"--json {file}: a folder is in the way")
    parent = next(p for p in file.absolute().parents if p.exists())
    if not parent.is_dir():
        raise configs.ConfigError(f"--json {file}: {parent} is not a folder")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise configs.ConfigError(f"--json {file}: {parent} is not writable")


def write_json(file: Path | None, figures: Any) -> None:
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(figures, indent=1, sort_keys=True) + "\n", encoding="utf-8")
