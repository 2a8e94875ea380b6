"""A finished run in an experiment tracker: TensorBoard or MLflow, each imported only when asked for."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from spectrim.core.records import Report
from spectrim.network.calling import first_line
from spectrim.report import lines

EXPERIMENT = "spectrim"  # of MLflow
LONGEST = 500  # characters of a parameter's value
REFUSED = re.compile(r"[^\w\-. /]", re.ASCII)  # characters that the name of a metric cannot have


def track(report: Report, sink: str, folder: str | os.PathLike[str] | None = None) -> None:
    """Write a run to a tracker: its numbers, every budget tried and every epoch as a step each, its settings and findings.

    Args:
        report: Of the run.
        sink: `tensorboard:DIR`, in which the run has a folder of its own; or `mlflow:URI`, such as `mlflow:http://localhost:5000`
            (MLflow takes a folder only with MLFLOW_ALLOW_FILE_STORE=true in the environment).
        folder: Where the result was saved: its name is that of the run, and MLflow keeps its files, too.

    Raises:
        ValueError: If there is no such tracker, or it cannot be written to.
        ImportError: If it is not installed.
    """
    kind, place = _parsed(sink)
    with _told(sink):
        WRITERS[kind](report, place, None if folder is None else Path(folder).resolve())


def check(sink: str) -> None:
    """Raise what `track` would raise, as far as that can be known before a run.

    Raises:
        ValueError: If there is no such tracker, or MLflow does not answer.
        ImportError: If it is not installed.
    """
    kind, place = _parsed(sink)
    if kind == "mlflow":
        with _told(sink):
            _experiment(place)


def _parsed(sink: str) -> tuple[str, str]:
    """Return the tracker, which is installed, and its place."""
    kind, _, place = sink.partition(":")
    if kind not in WRITERS or not place:
        raise ValueError(f"there is no tracker {sink!r}; allowed are tensorboard:DIR and mlflow:URI, such as tensorboard:runs")
    if importlib.util.find_spec(kind) is None:
        raise ImportError(f'the tracker needs {kind}: pip install "spectrim[track]"')
    return kind, place


@contextlib.contextmanager
def _told(sink: str) -> Iterator[None]:
    """Make a sentence of ours of every error of a tracker's."""
    try:
        yield
    except Exception as error:
        raise ValueError(f"the tracker {sink!r} cannot be used: {first_line(error)}") from error


def numbers(report: Report) -> dict[str, float]:
    """Return what a run ended with, by name: scores in their own unit, fractions of what is kept, milliseconds, seconds."""
    found: dict[str, float | None] = {"kept/params": report.kept[0], "kept/macs": report.kept[1]}
    for side, first in (("selection", report.selection), ("test", report.test)):
        for score in () if first is None else first.every:
            found |= {f"{side}/{score.name}/before": score.before, f"{side}/{score.name}/after": score.after}
            found[f"{side}/{score.name}/{score.direction}"] = score.drop
    found |= {"harm/predicted": report.predicted_harm, "harm/measured": report.measured_harm}
    if report.latency is not None:
        found |= {"latency/before": report.latency[0].median_ms, "latency/after": report.latency[1].median_ms}
    found |= {f"seconds/{name}": value for name, value in report.seconds.items()}
    return {name: value for name, value in found.items() if value is not None}


def steps(report: Report) -> dict[str, tuple[float, ...]]:
    """Return what has a value a step, by name: budgets tried, in order, and epochs."""
    tries = {
        f"budgets tried/{name}": tuple(getattr(found, name) for found in report.tries) for name in ("kept", "drop", "harm")
    }
    epochs = {} if report.training is None else {"training/loss": report.training.loss}
    return {name: values for name, values in (tries | epochs).items() if values}


def settings(report: Report) -> dict[str, str]:
    """Return what the run was asked for, as short texts."""
    recipe: Mapping[str, Any] = {} if report.training is None else report.training.recipe
    source = {} if report.source is None else {"model": report.source.model, "data": report.source.data}
    found = {"budget": report.budget, "task": report.task, **source, **report.config, **recipe}
    return {name: value if isinstance(value, str) else json.dumps(value, default=str) for name, value in found.items()}


def _tensorboard(report: Report, place: str, folder: Path | None) -> None:
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(Path(place) / folder.name if folder else Path(place))) as writer:
        for name, value in numbers(report).items():
            writer.add_scalar(name, value)
        for name, values in steps(report).items():
            for step, value in enumerate(values):
                writer.add_scalar(name, value, step)
        rows = (f"| {name} | {value.replace('|', '/')} |" for name, value in settings(report).items())
        writer.add_text("settings", "\n".join(("| | |", "|---|---|", *rows)))
        writer.add_text("report", "\n".join(f"    {line}" for line in lines(report)))


def _experiment(place: str) -> str:
    """Return MLflow's number of the experiment that runs go to; made where it is not there."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(place)
    known = client.get_experiment_by_name(EXPERIMENT)
    return str(client.create_experiment(EXPERIMENT) if known is None else known.experiment_id)


def _mlflow(report: Report, place: str, folder: Path | None) -> None:
    from mlflow.tracking import MlflowClient

    client, experiment = MlflowClient(place), _experiment(place)
    run = client.create_run(experiment, run_name=folder.name if folder else None).info.run_id
    for name, text in settings(report).items():
        client.log_param(run, REFUSED.sub("_", name), text[:LONGEST])
    series = {name: (value,) for name, value in numbers(report).items()} | steps(report)
    for name, values in series.items():
        for step, value in enumerate(values):
            client.log_metric(run, REFUSED.sub("_", name), value, step=step)
    client.log_text(run, report.to_json(), "report.json")
    if folder is not None:
        client.log_artifacts(run, str(folder))
    client.set_terminated(run)


WRITERS: dict[str, Callable[[Report, str, Path | None], None]] = {"tensorboard": _tensorboard, "mlflow": _mlflow}
