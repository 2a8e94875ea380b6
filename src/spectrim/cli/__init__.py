"""The command line: demo | inspect | compress | train | evaluate | bench | export | report, each a few lines over the library.

Exit codes: 0 done, 1 the budget cannot be met, 2 bad input (one sentence), 130 interrupted (compress and train keep what was
done, for --resume), 141 nobody reads the output any more.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import sys
import warnings
from collections.abc import Sequence

from cyclopts import App, CycloptsError

import spectrim
from spectrim.cli import bench, compress, demo, evaluate, export, inspect, report, train
from spectrim.cli.models import told
from spectrim.cli.runs import TYPED
from spectrim.cli.terminal import err
from spectrim.core.cost import BudgetError

UNREAD = 141  # exit code, 128 and the signal of a broken pipe
LONG = re.compile(r"\S{200,}")  # a word that would fill the screen

app = App(
    name="spectrim",
    version=spectrim.__version__,
    help="Make trained convolutional networks smaller and faster.",
    suppress_keyboard_interrupt=False,
)
COMMANDS = (
    demo.demo,
    inspect.inspect,
    compress.compress,
    train.train,
    evaluate.evaluate,
    bench.bench,
    export.export,
    report.report,
)
for command in COMMANDS:
    app.command(command)
app.register_install_completion_command(add_to_startup=False)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    warnings.simplefilter("ignore")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # of a name that the terminal cannot show
    words = list(sys.argv[1:] if arguments is None else arguments)
    TYPED.set(words)
    try:
        return _answer(words)
    except BudgetError as error:
        return _fail(str(error), 1)
    except KeyboardInterrupt as error:
        return _fail("interrupted", 130, error)
    except CycloptsError as error:
        return _fail(f"{error} (spectrim --help tells more)", 2)
    except (ValueError, TypeError, OSError, ImportError, RuntimeError, FloatingPointError) as error:
        return _fail(_text(error), 2, error)
    except SystemExit as error:
        return _fail(f"the code of the model or of the data ended the program: {told(error)}", 2, error)
    except Exception as error:  # of the user's own model or data code, or a mistake of ours
        if os.environ.get("SPECTRIM_TRACEBACK"):
            raise
        return _fail(f"{type(error).__name__}: {error} (SPECTRIM_TRACEBACK=1 shows where)", 2, error)


def _answer(words: list[str]) -> int:
    """Run a command, and print the document that it returns; what the user's own code prints is no part of that.

    A pipe that nobody reads any more is told nothing, also not when Python ends; the code is the one that shells know for it.
    """
    alone = contextlib.redirect_stdout(sys.stderr) if "--json" in words else contextlib.nullcontext()
    try:
        with alone:
            found = app(words, exit_on_error=False, print_error=False, result_action="return_value")
        if isinstance(found, str):
            sys.stdout.write(found)
        sys.stdout.flush()
    except (BrokenPipeError, SystemExit) as error:
        if not isinstance(error, BrokenPipeError) and not isinstance(error.__context__, BrokenPipeError):  # as rich ends
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return UNREAD
    return 0


def _text(error: Exception) -> str:
    """Return what an error says; of a file's, what the system says of it and its name."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror + (f": {str(error.filename)!r}" if error.filename else "")
    return str(error) or type(error).__name__


def _fail(sentence: str, code: int, error: BaseException | None = None) -> int:
    sentence = "; ".join([" ".join(sentence.split()), *getattr(error, "__notes__", ())])
    sentence = LONG.sub(lambda word: f"{word[0][:80]}...{word[0][-40:]}", sentence)
    if len(sentence) > 1000:
        sentence = f"{sentence[:700]} ... {sentence[-250:]}"
    err.print(f"spectrim: {sentence}", soft_wrap=True, highlight=False, markup=False)
    return code


if __name__ == "__main__":
    sys.exit(main())
