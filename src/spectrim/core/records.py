"""What a report is made of: frozen records, written as JSON with a schema version, and read back."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from spectrim.core.bench import Latency, Verdict
from spectrim.core.cost import Cost
from spectrim.core.figures import Curve, Limit, Spectrum, Try
from spectrim.core.markup import html_table
from spectrim.core.reading import parsed, read
from spectrim.core.score import Score, with_units

MOVED: dict[str, Callable[[Any], Any]] = {}  # what were methods of `Report`; `spectrim.report`, above this file, puts them here
SCHEMA = 3  # of report.json; 1 is that of version 0.1.0, which did not say so; scores of 2 had no name and no unit


@dataclass(frozen=True)
class Row:
    """One layer: what was chosen, its cost before and after (MACs of one example), predicted harm, and how it was fitted.

    `time` is its milliseconds in one forward before and after; `Report.row_times` says whether measured or predicted.
    """

    layer: str
    kind: str
    shape: tuple[int, ...]
    method: str
    rank: int | tuple[int, ...]
    params_before: int
    params_after: int
    macs_before: int
    macs_after: int
    harm: float
    fitted: str = ""
    time: tuple[float, float] | None = field(default=None, compare=False)  # no two measurements are the same


@dataclass(frozen=True)
class Interactions:
    """How far the plan's prediction can be trusted, and which layers' harms belong together.

    Attributes:
        predicted: Harm of the chosen options before the refit, interactions included.
        layers: The replaced layers.
        marginal: Harm that restoring each layer alone would take away from the compressed network.
        partners: Matrix (layers x layers), symmetric: harm that two layers do together beyond what each does alone; negative
            where one pays back what the other does. The diagonal is what each does alone.
    """

    predicted: float
    layers: tuple[str, ...]
    marginal: tuple[float, ...]
    partners: tuple[tuple[float, ...], ...]

    def strongest(self, count: int = 3) -> list[tuple[str, str, float]]:
        """Return the pairs with the largest shared harm, by magnitude."""
        pairs = [
            (first, second, self.partners[i][j])
            for i, first in enumerate(self.layers)
            for j, second in enumerate(self.layers[:i])
        ]
        return sorted(pairs, key=lambda pair: -abs(pair[2]))[:count]


@dataclass(frozen=True)
class Source:
    """Where the command line had the network and the images from: what it takes to find them again.

    Attributes:
        model: Model spec.
        data: Data spec of the test images.
        weights: Weight file, or None.
        input, mean, std: Input shape and normalisation as typed, or None.
        calibration, selection: Data specs, or None where images of `data` served.
        folder: Folder that relative paths start from.
        images: What the images are called, where `data` does not say so.
        command: The command line as typed.
    """

    model: str
    data: str
    weights: str | None = None
    input: str | None = None
    mean: str | None = None
    std: str | None = None
    calibration: str | None = None
    selection: str | None = None
    folder: str = ""
    images: str = ""
    command: str = ""


@dataclass(frozen=True)
class Training:
    """What a training did.

    Attributes:
        recipe: How, as settings.
        steps: Optimizer steps.
        loss: Mean training loss of each epoch.
        seconds: Wall-clock time.
        images: How many images an epoch has.
        distortions: How often kernels were distorted.
        distortion_seconds: Part of the seconds that went into that.
        accuracy: Top-1 fractions by what they were measured on.
        schedule: When kernels were distorted, as settings.
    """

    recipe: Mapping[str, Any]
    steps: int
    loss: tuple[float, ...]
    seconds: float
    images: int = 0
    distortions: int = 0
    distortion_seconds: float = 0.0
    accuracy: Mapping[str, float] = field(default_factory=dict)
    schedule: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Report:
    """The account of one compression or training.

    Attributes:
        budget: What was asked, in words.
        before, after: Cost of the whole network.
        rows: One per layer that could be factorized.
        skipped: The other weighted modules and why.
        predicted_harm: Sum of the chosen options' harms, without refit, in `harm_unit`; None if nothing was predicted.
        measured_harm: KL divergence of the outputs (nats), or relative squared error, on calibration images that no fit saw
            (where these were too few, a note says so); None without any.
        harm_unit: `nats`, `relative squared error`, the user's harm by name, or without data `relative squared weight error`.
        task: What was done: `compressed`, `trained for low rank` or `trained`.
        interactions: Prediction with interactions, marginal harms and partners; None without calibration data.
        selection: Score on the data that decisions were made on, and the others with it; None without evaluate.
        test: Score on data read once, for this report; None unless given.
        latency: Measured time before and after, in turn.
        verdict: What the pairs of these runs say; None in reports of versions up to 0.2.
        target: What was timed on: runtime, version, device, threads, precision.
        seconds: Wall-clock time of each stage.
        passes: How often the network was run over the calibration set, by direction.
        tries: For MaxDrop, every budget tried.
        training: What a training did; `selection` is from before that.
        flatness: Loss along the way from the weights to their low-rank reconstruction, before and after training.
        images: How many calibration images statistics and refit used.
        notes: What a reader must know.
        config: The settings that decide the result.
        versions: Of this package, torch and Python.
        source: Where the command line had everything from; None in Python.
        arguments: Of the command line, by name.
        network: Name of the network's class.
        date: When the report was made, as ISO 8601 with seconds.
        machine: The CPU, its cores and the system.
        limits: The bounds of the budget; none for a plan of one's own.
        stored: Bytes of parameters and buffers, before and after.
        row_times: How the layers' times were found, in words.
        spectra: What each decomposition would lose of each layer, by rank; none of a given plan, whose menu has one rank.
    """

    budget: str
    before: Cost
    after: Cost
    rows: tuple[Row, ...]
    skipped: Mapping[str, str]
    predicted_harm: float | None
    measured_harm: float | None
    harm_unit: str
    task: Literal["compressed", "trained for low rank", "trained"] = "compressed"
    interactions: Interactions | None = None
    selection: Score | None = None
    test: Score | None = None
    latency: tuple[Latency, Latency] | None = None
    verdict: Verdict | None = None
    target: Mapping[str, str] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    passes: Mapping[str, float] = field(default_factory=dict)
    tries: tuple[Try, ...] = ()
    training: Training | None = None
    flatness: tuple[Curve, ...] = ()
    images: int = 0
    notes: tuple[str, ...] = ()
    config: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    source: Source | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    network: str = ""
    date: str = ""
    machine: str = ""
    limits: tuple[Limit, ...] = ()
    stored: tuple[int, int] | None = None
    row_times: str = ""
    spectra: tuple[Spectrum, ...] = ()

    @property
    def kept(self) -> tuple[float, float]:
        """Fractions of params and MACs that remain."""
        return self.after.params / max(self.before.params, 1), self.after.macs / max(self.before.macs, 1)

    @property
    def title(self) -> str:
        """What was done, in words."""
        if self.task == "compressed":
            return f"Compressed to {self.budget}"
        return f"Trained for {self.budget}" if self.task == "trained for low rank" else "Ordinary training"

    def to_json(self) -> str:
        """Return everything as indented JSON."""
        data = {"schema": SCHEMA, **asdict(self)}
        for name in ("selection", "test"):
            score = getattr(self, name)
            if score is not None:
                data[name] = score.as_dict()
        data["kept"] = {"params": self.kept[0], "macs": self.kept[1]}
        return json.dumps(data, indent=1) + "\n"

    @staticmethod
    def from_json(text: str) -> Report:
        """Read `to_json`'s text, also those of older schemas.

        Raises:
            ValueError: If the text is no report, or one of a newer version.
        """
        data = parsed(text, "report")
        schema = data.get("schema", 1) if isinstance(data, dict) else None
        if not isinstance(schema, int) or schema < 1 or "before" not in data:
            raise ValueError("the text is no report: it has no 'before'")
        if schema > SCHEMA:
            raise ValueError(f"the report has schema {schema}, and this version reads up to {SCHEMA}; install a newer spectrim")
        try:
            return _consistent(read(Report, data if schema == SCHEMA else _upgraded(data), ""))
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            what = error if isinstance(error, ValueError) else repr(error)
            raise ValueError(f"the report is incomplete or has a field of the wrong kind: {what}") from error

    def _repr_html_(self) -> str:
        """Return a plain table for notebooks."""
        rows = [
            ("parameters", f"{self.before.params:,}", f"{self.after.params:,}", f"{100 * self.kept[0]:.1f} % kept"),
            ("MACs", f"{self.before.macs:,}", f"{self.after.macs:,}", f"{100 * self.kept[1]:.1f} % kept"),
        ]
        for name, first in (("selection", self.selection), ("test", self.test)):
            for score in () if first is None else first.every:
                rows.append((f"{score.name}, {name}", *score.shown(), f"{score.amount(abs(score.drop))} {score.outcome}"))
        return html_table(self.title, ("", "before", "after", ""), rows)

    def lines(self) -> list[str]:
        """Return the findings, a line each. Deprecated: print the `Result`, or use `spectrim.report.lines`."""
        return _moved("lines")(self)  # type: ignore[no-any-return]

    def table(self) -> Any:
        """Return the layers as a terminal table. Deprecated: use `spectrim.report.table`."""
        return _moved("table")(self)

    def to_html(self) -> str:
        """Return one page. Deprecated: use `spectrim.report.page`."""
        return _moved("page")(self)  # type: ignore[no-any-return]

    @property
    def probes(self) -> tuple[tuple[float, float], ...]:
        """Kept fraction and drop of every budget tried. Deprecated: use `tries`."""
        warnings.warn("Report.probes is now Report.tries", DeprecationWarning, stacklevel=2)
        return tuple((found.kept, found.drop) for found in self.tries)

    @property
    def settings(self) -> dict[str, Any]:
        """Return what is now `config`, `versions`, `images`, `notes` and `source`. Deprecated."""
        warnings.warn(
            "Report.settings is now Report.config, versions, images, notes and source", DeprecationWarning, stacklevel=2
        )
        found = {"config": dict(self.config), "torch": self.versions.get("torch", ""), "calibration images": self.images}
        return found | {"note": "; ".join(self.notes)} | ({"source": asdict(self.source)} if self.source else {})


def _moved(name: str) -> Any:
    """Return a function that was a method of `Report`."""
    warnings.warn(f"this method of Report is now the function spectrim.report.{name}", DeprecationWarning, stacklevel=3)
    return MOVED[name]


def _consistent(report: Report) -> Report:
    """Return the report if its lists are as long as they must be.

    Raises:
        ValueError: If one is not.
    """
    for curve in report.flatness:
        if not len(curve.t) == len(curve.loss) == len(curve.error) == len(curve.accuracy) > 0:
            raise ValueError(f"the curve {curve.label!r} has lists of several lengths, or empty ones")
    if report.training is not None and not report.training.loss:
        raise ValueError("training.loss is empty")
    for spectrum in report.spectra:
        if not len(spectrum.ranks) == len(spectrum.macs) == len(spectrum.harms) > 0:
            raise ValueError(f"the spectrum of {spectrum.layer!r} has lists of several lengths, or empty ones")
    found = report.interactions
    if found is not None and {len(found.marginal), len(found.partners), *map(len, found.partners)} - {len(found.layers)}:
        raise ValueError("interactions has a list that does not go with its layers")
    return report


def _upgraded(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return data of an older schema as the present one has it."""
    data = {**data, **{name: with_units(data.get(name)) for name in ("selection", "test")}}
    if data.get("schema", 1) > 1:
        return data
    settings = data.get("settings", {})
    trained, told = "training" in data["budget"], data.get("training") or None
    task = "trained for low rank" if data.get("flatness") else "trained" if trained else "compressed"
    source = settings.get("source")
    if source is not None:
        missing = {"calibration": None} if source.get("calibration") == "from the data" else {}
        source = source | missing
    return {
        **data,
        "task": task,
        "tries": [{"kept": kept, "drop": drop, "harm": 0.0} for kept, drop in data.get("probes", ())],
        "training": told,
        "images": settings.get("calibration images", 0),
        "notes": [settings["note"]] if settings.get("note") else [],
        "config": settings.get("config", {}),
        "versions": {"spectrim": "0.1.0", "torch": settings.get("torch", "")},
        "source": source,
    }
