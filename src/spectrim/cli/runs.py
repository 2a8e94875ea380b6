"""The folder that a command writes, and the unfinished work beside it that `--resume` goes on with."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shlex
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spectrim.cli.models import is_file
from spectrim.cli.terminal import Output, err, show
from spectrim.core.records import Report
from spectrim.pipeline.result import check_output

ARGUMENTS = "arguments.json"  # in a folder of unfinished work
TYPED: ContextVar[Sequence[str]] = ContextVar("TYPED", default=())  # the words of the command line that runs
OPTIONS = {"input_shape": "--input", "model": "MODEL"}  # names on the command line that do not follow from those in the code


def typed() -> str:
    """Return the command line that runs, as it is typed; without `--resume`, since it begins anew where nothing is there."""
    return shlex.join(("spectrim", *(word for word in TYPED.get() if word != "--resume")))


def options_of(**values: Any) -> dict[str, Any]:
    """Return arguments by their names on the command line; groups of options are taken apart."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            found |= options_of(**{field.name: getattr(value, field.name) for field in dataclasses.fields(value)})
        else:
            found[OPTIONS.get(name, f"--{name.replace('_', '-')}")] = value
    return json.loads(json.dumps(found, default=str))  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Run:
    """One run of a command that writes a folder.

    Attributes:
        target: Where the result goes.
        partial: Where unfinished work is kept.
        arguments: What decides the result, by name on the command line.
        resume: Whether to go on with unfinished work.
    """

    target: Path
    partial: Path
    arguments: Mapping[str, Any]
    resume: bool

    @staticmethod
    def at(out_dir: str, arguments: Mapping[str, Any], resume: bool) -> Run:
        """Return a run that may begin, or go on, or is finished already.

        Raises:
            ValueError: If the folder holds something else; or unfinished work that is not to be resumed, or was begun with
                other arguments.
        """
        path = Path(out_dir).resolve()
        run = Run(path, path.with_name(path.name + ".partial"), arguments, resume)
        if resume and is_file(str(path / "report.json")):
            run._check_arguments(read_report(path / "report.json").arguments, "finished", path)
            return run
        check_output(out_dir, beside=".partial")
        if run.partial.exists() and any(run.partial.iterdir()) and not (run.partial / ARGUMENTS).is_file():
            raise ValueError(
                f"{str(run.partial)!r} is needed for unfinished work, but holds something else; move it away, or choose "
                "another --out"
            )
        if run._pieces():
            before = json.loads((run.partial / ARGUMENTS).read_text())
            run._check_arguments(before, "interrupted", run.partial)
            if not resume:
                raise ValueError(f"{str(run.partial)!r} holds an interrupted run; add --resume to go on with it, or remove it")
        return run

    @property
    def finished(self) -> bool:
        """Whether there is nothing left to do."""
        return self.resume and (self.target / "report.json").is_file()

    def show_finished(self, output: Output) -> str | None:
        """Say that the run was finished before, and show its report as `show` does."""
        err.print(f"{str(self.target)!r} is finished already; nothing was done", highlight=False, soft_wrap=True, markup=False)
        return show(read_report(self.target / "report.json"), str(self.target), output)

    @contextlib.contextmanager
    def working(self) -> Iterator[None]:
        """Note the arguments; leave nothing behind if they are wrong, else keep what was done and say so."""
        begun = bool(self._pieces())
        self.partial.mkdir(parents=True, exist_ok=True)
        (self.partial / ARGUMENTS).write_text(json.dumps(dict(self.arguments), indent=1))
        try:
            yield
        except (ValueError, TypeError, FloatingPointError):  # other arguments are needed, for which the work is of no use
            if not begun:
                self.clear()
            raise
        except BaseException as error:
            if self._pieces():
                error.add_note("what was done is kept, run the same command with --resume to go on")
            else:
                self.clear()
                error.add_note("nothing was finished yet, so nothing is kept")
            raise

    def clear(self) -> None:
        """Remove the unfinished work."""
        shutil.rmtree(self.partial, ignore_errors=True)

    def _pieces(self) -> list[Path]:
        """Return the finished pieces of unfinished work; what a failed start left behind is none."""
        if not (self.partial / ARGUMENTS).is_file():
            return []
        return [file for file in self.partial.iterdir() if file.name != ARGUMENTS and file.suffix != ".partial"]

    def _check_arguments(self, before: Mapping[str, Any], state: str, where: Path) -> None:
        """Raise a ValueError that names the arguments in which two runs differ."""
        names = [name for name in dict.fromkeys((*before, *self.arguments)) if before.get(name) != self.arguments.get(name)]
        if names and before:
            told = ", ".join(f"{name} {_text(before.get(name))}, now {_text(self.arguments.get(name))}" for name in names)
            raise ValueError(
                f"the {state} run in {str(where)!r} had other arguments ({told}); use the same, remove it, or choose "
                "another --out"
            )


def report_of(run: str) -> Report:
    """Return the report of a folder.

    Raises:
        ValueError: If it is no saved result, or one whose report cannot be read.
    """
    file = Path(run) / "report.json"
    if not is_file(str(file)):
        raise ValueError(f"{run!r} is no saved result: it has no report.json")
    return read_report(file)


def read_report(file: Path) -> Report:
    """Return the report in a file.

    Raises:
        ValueError: If it is none.
    """
    try:
        return Report.from_json(file.read_text())
    except ValueError as error:
        reason = "it is no text" if isinstance(error, UnicodeDecodeError) else error
        raise ValueError(f"the report {str(file)!r} cannot be used: {reason}") from error


def _text(value: Any) -> str:
    return "not given" if value is None or value == [] else str(value)


def free(name: str) -> str:
    """Return the name, or the first with a number that is not taken."""
    candidates = (name, *(f"{name}-{number}" for number in range(2, 1000)))
    return next(candidate for candidate in candidates if not os.path.exists(candidate))


def check_file(file: str | None, endings: Sequence[str]) -> None:
    """Raise a ValueError if a file cannot be written, before the long work."""
    if file is None:
        return
    if Path(file).suffix not in endings:
        raise ValueError(f"the output {file!r} has the ending {Path(file).suffix!r}; it must be {' or '.join(endings)}")
    if os.path.lexists(file):
        raise ValueError(f"the output {file!r} exists already; choose another name or remove it first")
    if not Path(file).parent.is_dir():
        raise ValueError(f"the output {file!r} cannot be written: its folder is not there")
