"""What every command shares at the terminal: how an app is made, and how an error ends it."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable

import typer

from altermoma.errors import AltermomaError, StorageError
from altermoma.storage import WRITE_ONLY

INTERRUPTED = 130
"""Exit code after ctrl-C, as shells have it."""


def new_app(help_text: str) -> typer.Typer:
    """A typer app whose errors reach `run_app` as they are."""
    return typer.Typer(
        help=help_text,
        add_completion=False,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode="markdown",
        context_settings={"help_option_names": ["-h", "--help"]},
    )


def run_app(app: Callable[[], object]) -> None:
    """Runs a command; an error made on purpose is printed plainly and becomes the exit code.

    A programming error keeps its traceback: it is ours to read, not the user's to puzzle over.
    """
    # A polite kill unwinds like ctrl-C, so that drafts of files are removed.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        app()
    except AltermomaError as error:
        _fail(error)
    except OSError as error:
        _fail(_plain(error))
    except RuntimeError as error:
        # torch's; commands that do without torch do not load it to ask.
        if type(error).__name__ != "OutOfMemoryError":
            raise
        _fail(_too_large(error))
    except (KeyboardInterrupt, SystemExit) as ended:
        # typer turns an interrupt into its exit code without a word.
        if isinstance(ended, SystemExit) and ended.code != INTERRUPTED:
            raise
        print("stopped; run the same command again to continue", file=sys.stderr)
        sys.exit(INTERRUPTED)


def _too_large(error: RuntimeError) -> AltermomaError:
    return AltermomaError(
        f"the GPU has not enough memory: {str(error).partition('. ')[0]}",
        expected="a batch that fits",
        remedy="raise compute.accumulate, set compute.precision to bf16, or lower the batch size; a CPU has more",
    )


def _plain(error: OSError) -> StorageError:
    """What the system refused; a programming error is no such thing."""
    place, why = error.filename or "a file", error.strerror or str(error)
    if error.errno in WRITE_ONLY:
        return StorageError(
            f"cannot write {place}: {why}",
            expected="a writable place with room",
            remedy="free space or use another --out",
        )
    return StorageError(
        f"cannot use {place}: {why}",
        expected="files and folders that this user may read and write",
        remedy="check the path and its permissions",
    )


def _fail(error: AltermomaError) -> None:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(error.exit_code)
