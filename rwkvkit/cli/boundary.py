"""The one place where errors become messages and exit codes."""

import contextlib
import io
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

from rwkvkit.errors import (
    FailedElsewhere,
    InterruptedRun,
    RwkvkitError,
    SetupError,
    StoppedAtOnce,
    UsageError,
)

if TYPE_CHECKING:
    import click

    from rwkvkit.train.place import Place

_BUG = 1


def main() -> NoReturn:
    """Run the command line and exit."""
    if error := outcome(sys.argv[1:]):
        _fail(error)
    sys.exit(0)


def outcome(arguments: Sequence[str], place: "Place | None" = None) -> RwkvkitError | None:
    """Run the command line and return the error that ended it, if one did.

    Args:
        arguments: of the command line.
        place: of this process among those of a run, if rwkvkit has started it as one of them.
    """
    return caught(lambda: _run(arguments, place))


def caught(work: Callable[[], None]) -> RwkvkitError | None:
    """Do some work and return the error that ended it, if one did; SIGTERM ends it as Ctrl-C."""
    _mend_streams()
    try:
        with contextlib.suppress(ValueError):  # outside the main thread there are no signals
            signal.signal(signal.SIGTERM, _terminate)
        work()
        sys.stdout.flush()
    except RwkvkitError as error:
        return error
    except KeyboardInterrupt:
        return StoppedAtOnce("stopped before the end", hint="run the same command to continue")
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(_BUG)
    except OSError as error:
        where = str(error.filename) if error.filename else None
        return SetupError(error.strerror or str(error), where=where, hint="fix it, then run again")
    except MemoryError:
        return SetupError("out of memory", hint="free some, or ask for less work at once")
    except Exception as error:
        if (missing := _missing_package(error)) is not None:
            hint = f"pip install {missing}; rwkvkit doctor checks what else is missing"
            return SetupError(f"the package {missing} is not installed", hint=hint)
        traceback.print_exc()
        return RwkvkitError(f"{type(error).__name__}: {error}", hint="this is a bug in rwkvkit")
    return None


def _run(arguments: Sequence[str], place: "Place | None") -> None:
    """Load the commands and run the one that was asked for; its mistakes become UsageErrors."""
    import click

    from rwkvkit.cli.app import app

    try:
        app.main(list(arguments), prog_name="rwkvkit", standalone_mode=False, obj=place)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        sys.exit(UsageError.exit_code)
    except click.ClickException as error:
        raise UsageError(error.format_message(), hint=_usage_hint(error)) from error
    except click.Abort as error:
        raise KeyboardInterrupt from error


def _mend_streams() -> None:
    """Let texts be written wherever this runs: to no stream at all, and in any encoding."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # closed by what has started this process
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_RDWR), mode))
    if isinstance(sys.stdout, io.TextIOWrapper):  # as Python does with stderr
        sys.stdout.reconfigure(errors="backslashreplace")


def _missing_package(error: Exception) -> str | None:
    """Return the package, not a part of rwkvkit, that an import did not find, if that failed."""
    name = (error.name or "") if isinstance(error, ModuleNotFoundError) else ""
    return None if name.partition(".")[0] in ("", "rwkvkit") else name


def _terminate(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _usage_hint(error: "click.ClickException") -> str | None:
    from rwkvkit.train.config import TrainConfig

    context = getattr(error, "ctx", None)
    if context is None:
        return None
    key = (getattr(error, "option_name", None) or "").removeprefix("--").replace("-", "_")
    if context.info_name == "train" and key in TrainConfig.model_fields:
        return f"a key of the recipe: --set train.{key}=VALUE"
    return f"{context.command_path} --help"


def _fail(error: RwkvkitError) -> NoReturn:
    """Show an error and exit with its code; another process shows what failed there."""
    if isinstance(error, FailedElsewhere):
        sys.exit(error.exit_code)
    label = "interrupted: " if isinstance(error, InterruptedRun) else "error: "
    if sys.stderr.isatty() and "NO_COLOR" not in os.environ:
        label = f"\033[1;31m{label}\033[0m"
    print(f"{label}{error}", file=sys.stderr, flush=True)  # noqa: T201
    if "--json" in sys.argv[1:]:
        facts = {"what": error.what, "where": error.where, "hint": error.hint}
        try:
            print(json.dumps({"error": facts | {"exit_code": error.exit_code}}), flush=True)  # noqa: T201
        except OSError:  # nobody reads it, or the disk is full: the exit code tells all the same
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(error.exit_code)
