"""A folder that compress or train wrote, opened again: the network, the original, and the images."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import nn

from spectrim.cli.methods import import_methods
from spectrim.cli.models import look_in, make_model
from spectrim.cli.options import device_of
from spectrim.cli.runs import report_of
from spectrim.cli.splits import Sources, Specs, split_data
from spectrim.core.records import Source
from spectrim.pipeline.result import load


@dataclass(frozen=True, eq=False)
class Saved:
    """A saved result.

    Attributes:
        original: The network before, newly made; its weights are not loaded.
        small: The saved network.
        source: Where the original and the images are.
    """

    original: nn.Module
    small: nn.Module
    source: Source

    def images(self, data: str, *, count: int = 1) -> Sources:
        """Return images as the run read them.

        Args:
            data: Their spec.
            count: How many are for calibration.
        """
        form = {"input_shape": self.source.input, "mean": self.source.mean, "std": self.source.std}
        return split_data(Specs(data=data, calibration=data, **form), images=(count, 0))


def reopened(run: str, methods: str | None, device: str) -> Saved:
    """Return what a folder holds.

    Args:
        run: The folder.
        methods: Where decompositions of others are defined; by default they are looked for as when the run was made.
        device: Where the networks run.

    Raises:
        ValueError: If it is no saved result, or one of which the original is not known or not there.
    """
    report = report_of(run)
    source = report.source
    if source is None:
        raise ValueError(f"{run!r} was not written by the command line, so its model is unknown; use spectrim.load in Python")
    look_in(source.folder)
    plan = Path(run) / "plan.json"
    if plan.is_file():
        recorded = str(report.arguments.get("--methods") or "").split(",")
        import_methods(plan.read_text(), methods, [found(spec, source) for spec in recorded if ":" in spec])
    original = make_model(found(source.model, source)).to(device_of(device))
    return Saved(original, load(run, original).to(device), source)


def found(spec: str, source: Source) -> str:
    """Return a spec whose path is there, as typed from here or from the folder in which the run was made."""
    kind, colon, rest = spec.partition(":")
    file = kind if kind.endswith(".py") else ""
    for head, path, tail in (("", file, f"{colon}{rest}"), (f"{kind}{colon}", rest, ""), ("", spec, "")):
        there = Path(source.folder) / path
        if path and source.folder and not Path(path).exists() and there.exists():
            return f"{head}{there}{tail}"
    return spec
