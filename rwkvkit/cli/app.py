"""The command group and the one place where errors become messages and exit codes."""

import contextlib
import json
import os
import signal
import sys
import traceback
from types import FrameType
from typing import NoReturn

import click

from rwkvkit import __version__
from rwkvkit.cli.generate import generate
from rwkvkit.cli.init_weights import init_weights
from rwkvkit.cli.inspect import inspect
from rwkvkit.cli.prepare import prepare
from rwkvkit.cli.recipes import recipes
from rwkvkit.cli.train import train
from rwkvkit.cli.verify import verify
from rwkvkit.errors import InterruptedRun, RwkvkitError, SetupError, UsageError

_BUG = 1


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="rwkvkit")
def app() -> None:
    """Prepare data for RWKV language models and train them.

    Start with `rwkvkit train quickstart`, or copy a recipe: `rwkvkit recipes`.

    Exit codes: 0 done, 1 a bug in rwkvkit, 2 usage, 3 recipe, 4 data, 5 machine, 6 diverged,
    130 interrupted.
    """


for command in (prepare, init_weights, train, generate, inspect, verify, recipes):
    app.add_command(command)


def main() -> NoReturn:
    """Run the command line and exit."""
    with contextlib.suppress(ValueError):
        signal.signal(signal.SIGTERM, _terminate)
    try:
        app.main(prog_name="rwkvkit", standalone_mode=False)
        sys.stdout.flush()
    except click.ClickException as error:
        _fail(UsageError(error.format_message(), hint=_usage_hint(error)))
    except RwkvkitError as error:
        _fail(error)
    except (KeyboardInterrupt, click.Abort):
        _fail(InterruptedRun("interrupted; run the same command to go on"))
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(_BUG)
    except OSError as error:
        where = str(error.filename) if error.filename else None
        _fail(SetupError(error.strerror or str(error), where=where, hint="mend it, then run again"))
    except MemoryError:
        _fail(SetupError("out of memory", hint="use a smaller model, ctx_len or micro_bsz"))
    except Exception as error:
        traceback.print_exc()
        _fail(RwkvkitError(f"{type(error).__name__}: {error}", hint="this is a bug in rwkvkit"))
    sys.exit(0)


def _terminate(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _usage_hint(error: click.ClickException) -> str | None:
    context = getattr(error, "ctx", None)
    return f"{context.command_path} --help" if context else None


def _fail(error: RwkvkitError) -> NoReturn:
    """Show an error and exit with its code."""
    label = "interrupted: " if isinstance(error, InterruptedRun) else "error: "
    plain = False if "NO_COLOR" in os.environ else None
    click.echo(click.style(label, fg="red", bold=True) + str(error), err=True, color=plain)
    if "--json" in sys.argv[1:]:
        facts = {"what": error.what, "where": error.where, "hint": error.hint}
        click.echo(json.dumps({"error": facts | {"exit_code": error.exit_code}}))
    sys.exit(error.exit_code)
