"""What compress() returns, the folder it saves, and the way back: a plan, safetensors and a report; no pickle."""

from __future__ import annotations

import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError
from torch import nn

from spectrim.core.plan import Plan
from spectrim.core.records import Report
from spectrim.network.calling import first_line
from spectrim.network.state import load_weights, save_weights
from spectrim.network.surgery import skeleton
from spectrim.report import as_text, lines, page, table


@dataclass(frozen=True)
class Result:
    """The compressed network, the plan that made it, and the report; no reference back to what made it."""

    model: nn.Module
    plan: Plan
    report: Report

    def __str__(self) -> str:
        """Return the report as text: the layers in a table, and the findings."""
        return "\n".join((as_text(table(self.report)), *lines(self.report)))

    def _repr_html_(self) -> str:
        """Return plain tables for notebooks: the report's, and the plan's."""
        return self.report._repr_html_() + self.plan._repr_html_()

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write plan.json, model.safetensors, report.json and, with the `report` extra installed, report.html.

        A new folder appears whole or not at all; one that exists is filled in place, and gets report.json last.

        Args:
            folder: A path that does not exist yet, or an empty folder.

        Returns:
            The folder, as an absolute path.

        Raises:
            ValueError: If the folder exists and is not empty, or cannot be written.
        """
        target = check_output(folder)
        there = target.exists()
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target if there else target.parent))
        try:
            self._write(partial)
            if there:
                for file in sorted(partial.iterdir(), key=lambda file: file.name == "report.json"):
                    file.replace(target / file.name)
                partial.rmdir()
            else:
                partial.rename(target)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        return target

    def _write(self, folder: Path) -> None:
        (folder / "plan.json").write_text(self.plan.to_json())
        (folder / "report.json").write_text(self.report.to_json())
        save_weights(self.model, folder / "model.safetensors")
        try:
            (folder / "report.html").write_text(page(self.report))
        except ImportError as error:
            (folder / "report.html.txt").write_text(f"There is no HTML report: {error}\n")
        folder.chmod(0o755)
        for file in folder.iterdir():
            file.chmod(0o644)


def check_output(folder: str | os.PathLike[str], beside: str = "") -> Path:
    """Return the absolute path if a result can be written there.

    Args:
        folder: Where.
        beside: What is added to its name for a folder beside it.

    Raises:
        ValueError: If it exists and is not an empty folder, or it cannot be written.
    """
    try:
        return _checked_output(folder, beside)
    except OSError as error:
        raise ValueError(f"the output {str(folder)!r} cannot be written: {first_line(error)}; choose another place") from error


def _checked_output(folder: str | os.PathLike[str], beside: str) -> Path:
    path = Path(folder).resolve()
    if any(0xD800 <= ord(letter) < 0xE000 for letter in str(path)):
        raise ValueError(f"the output {str(folder)!r} has bytes that are no UTF-8; choose another name")
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ValueError(f"the output {str(folder)!r} exists already; choose another name or remove it first")
    place = next(place for place in (path, *path.parents) if place.exists())
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        what = "not writable" if place.is_dir() else "no folder"
        raise ValueError(f"the output {str(folder)!r} cannot be written, since {str(place)!r} is {what}; choose another place")
    longest = max(path.relative_to(place).parts, key=len, default=path.name)
    where = place if place != path else path.parent
    if place != path or beside:  # some places say that they can be written; nothing is put where another process may look
        Path(tempfile.mkdtemp(prefix=f".{longest}-", suffix=beside, dir=where)).rmdir()
    return path


def load(folder: str | os.PathLike[str], model: nn.Module) -> nn.Module:
    """Return the saved network in eval mode: the structure from the plan, the weights from the safetensors file.

    Args:
        folder: What `Result.save` wrote.
        model: The original network, newly made; its weights do not matter and it is not changed.

    Raises:
        ValueError: If a file is missing or damaged, or the plan does not fit the network.
    """
    path = Path(folder)
    for name in ("plan.json", "model.safetensors"):
        if not (path / name).is_file():
            raise ValueError(f"{str(path)!r} is no saved result: it has no {name}")
    small = skeleton(Plan.from_json((path / "plan.json").read_text()), model)
    try:
        load_weights(small, path / "model.safetensors")
    except SafetensorError as error:
        raise ValueError(f"{str(path / 'model.safetensors')!r} is damaged or no safetensors file: {error}") from error
    except RuntimeError as error:
        first = " ".join(str(error).split())
        raise ValueError(f"the weights in {str(path)!r} do not fit the model and plan: {first}") from error
    return small.eval()
