"""What was done and what it cost: rows, a table, JSON and one self-contained page. Reads records, computes nothing new."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from spectrim.cost import Budget, Cost
from spectrim.latency import Latency
from spectrim.plan import Option, Plan
from spectrim.survey import Survey


@dataclass(frozen=True)
class Row:
    """One layer: what was chosen, and its cost before and after (MACs of one example)."""

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


@dataclass(frozen=True)
class Score:
    """Scores between 0 and 1 before and after, and the drop in points.

    `standard_error` is that of the drop, in points, paired over the `examples`; None where evaluate returns a number only.
    """

    before: float
    after: float
    standard_error: float | None = None
    examples: int | None = None

    @property
    def drop(self) -> float:
        """Points lost."""
        return 100 * (self.before - self.after)

    def text(self) -> str:
        """Return the three numbers in words."""
        error = "" if self.standard_error is None else f" +- {self.standard_error:.2f}"
        count = "" if self.examples is None else f", {self.examples:,} images"
        return f"{100 * self.before:.2f} -> {100 * self.after:.2f} (drop {self.drop:.2f}{error} points{count})"


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
class Curve:
    """Loss along W + t (W_r - W), the way from the kernels to their low-rank reconstructions.

    Attributes:
        label: What was measured, such as "before training".
        distance: Of the reconstructions, relative to the norm of all planned kernels.
        t: From 0, the network itself, to 1, all planned kernels at their low-rank reconstruction.
        loss: Mean cross-entropy in nats at each t.
        error: Standard error of each loss.
        accuracy: Top-1 fraction at each t.
        examples: How many images.
    """

    label: str
    distance: float
    t: tuple[float, ...]
    loss: tuple[float, ...]
    error: tuple[float, ...]
    accuracy: tuple[float, ...]
    examples: int


@dataclass(frozen=True)
class Report:
    """The account of one compression.

    Attributes:
        budget: What was asked, in words.
        before, after: Cost of the whole network.
        rows: One per layer that could be factorized.
        skipped: The other weighted modules and why.
        predicted_harm: Sum of the chosen options' harms, without refit, in `harm_unit`; None if nothing was predicted.
        measured_harm: KL divergence of the outputs on calibration images (nats), or relative squared error; None without any.
        harm_unit: `nats`, `relative squared error`, the user's harm by name, or without data `relative squared weight error`.
        interactions: Prediction with interactions, marginal harms and partners; None without calibration data.
        selection: Score on the data that decisions were made on; None without evaluate.
        test: Score on data read once, for this report; None unless given.
        latency: Measured time before and after.
        seconds: Wall-clock time of each stage.
        passes: How often the network was run over the calibration set, by kind.
        probes: For MaxDrop, every budget tried: kept fraction and drop.
        training: Recipe, steps and losses, if the network was trained; `selection` is from before that.
        flatness: Loss along the way from the weights to their low-rank reconstruction, before and after training.
        settings: The configuration in words, and for the command line the model, weights and data.
    """

    budget: str
    before: Cost
    after: Cost
    rows: tuple[Row, ...]
    skipped: Mapping[str, str]
    predicted_harm: float | None
    measured_harm: float | None
    harm_unit: str
    interactions: Interactions | None = None
    selection: Score | None = None
    test: Score | None = None
    latency: tuple[Latency, Latency] | None = None
    seconds: Mapping[str, float] = field(default_factory=dict)
    passes: Mapping[str, float] = field(default_factory=dict)
    probes: tuple[tuple[float, float], ...] = ()
    training: Mapping[str, Any] = field(default_factory=dict)
    flatness: tuple[Curve, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def kept(self) -> tuple[float, float]:
        """Fractions of params and MACs that remain."""
        return self.after.params / self.before.params, self.after.macs / max(self.before.macs, 1)

    def to_json(self) -> str:
        """Return everything as indented JSON."""
        data = asdict(self)
        for name in ("selection", "test"):
            score = getattr(self, name)
            if score is not None:
                data[name]["drop"] = score.drop
        data["kept"] = {"params": self.kept[0], "macs": self.kept[1]}
        return json.dumps(data, indent=1) + "\n"

    def table(self) -> Table:
        """Return the layers as a terminal table of 80 columns for usual names, totals last."""
        table = Table(title=self.budget, title_justify="left", box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
        for name in ("layer", "method"):
            table.add_column(name, no_wrap=True)
        for name in ("rank", "params", "after", "MACs", "after"):
            table.add_column(name, justify="right", no_wrap=True)
        for row in self.rows:
            rank = "" if row.method == "-" else str(row.rank)
            method = "left alone" if row.method == "-" else row.method
            numbers = (row.params_before, row.params_after, row.macs_before, row.macs_after)
            table.add_row(row.layer, method, rank, *map(short, numbers), style="dim" if row.method == "-" else "")
        table.add_section()
        totals = (self.before.params, self.after.params, self.before.macs, self.after.macs)
        table.add_row("whole network", "", "", *map(short, totals))
        return table

    def lines(self) -> list[str]:
        """Return the findings below the table, a line each."""
        lines = [
            f"params {self.before.params:,} -> {self.after.params:,} ({100 * self.kept[0]:.1f} % kept), "
            f"MACs {self.before.macs:,} -> {self.after.macs:,} ({100 * self.kept[1]:.1f} % kept)"
        ]
        if self.selection is not None:
            lines.append(f"score on the selection images  {self.selection.text()}")
        if self.test is not None:
            lines.append(f"score on the test images       {self.test.text()}")
        if self.latency is not None:
            old, new = self.latency
            noisy = "" if new.high_ms < old.low_ms or new.low_ms > old.high_ms else "; no difference beyond the noise"
            quartiles = f"quartiles {old.low_ms:.2f}-{old.high_ms:.2f}, {new.low_ms:.2f}-{new.high_ms:.2f}"
            lines.append(
                f"latency, {old.threads} thread         {old.median_ms:.2f} -> {new.median_ms:.2f} ms "
                f"({quartiles}; {old.runs} runs each{noisy})"
            )
        if self.training:
            lines.extend(self._training())
        for curve in self.flatness:
            lines.append(
                f"loss on the way to low rank, {curve.label:16s} {curve.loss[0]:.3f} -> {curve.loss[-1]:.3f} nats "
                f"(kernels {100 * curve.distance:.1f} % away, {curve.examples:,} images)"
            )
        joint = "" if self.interactions is None else f", with interactions {self.interactions.predicted:.3g}"
        measured = "" if self.measured_harm is None else f"; measured after the refit {self.measured_harm:.3g}"
        if self.predicted_harm is not None:
            lines.append(f"harm, predicted layer by layer {self.predicted_harm:.3g} {self.harm_unit}{joint}{measured}")
        if self.interactions is not None and len(self.interactions.layers) > 1:
            pairs = [f"{first} and {second} {value:+.2g}" for first, second, value in self.interactions.strongest()]
            lines.append(f"interactions, strongest  {', '.join(pairs)}")
        lines.append("seconds  " + ", ".join(f"{name} {value:.1f}" for name, value in self.seconds.items()))
        if self.settings.get("note"):
            lines.append(f"note  {self.settings['note']}")
        for name, reason in self.skipped.items():
            lines.append(f"left alone  {name}: {reason}")
        return lines

    @property
    def title(self) -> str:
        """What was done, in words."""
        return (
            self.budget if "training" in self.budget else f"{'Trained for' if self.flatness else 'Compressed to'} {self.budget}"
        )

    def _training(self) -> list[str]:
        told = self.training
        loss = " -> ".join(f"{value:.3f}" for value in dict.fromkeys((told["loss"][0], told["loss"][-1])))
        lines = [f"trained  {told['steps']:,} steps on {told['images']:,} images, loss of an epoch {loss}"]
        if told["distortions"]:
            share = 100 * told["distortion_seconds"] / max(told["seconds"], 1e-9)
            lines[0] += f"; {told['distortions']} distortions, {share:.2g} % of the time"
        for name, value in told.get("accuracy", {}).items():
            lines.append(f"accuracy {name}  {100 * value:.2f}")
        return lines

    def to_html(self) -> str:
        """Return one self-contained page.

        Raises:
            ImportError: If the `report` extra (Jinja2, matplotlib) is not installed.
        """
        from spectrim.page import render

        return render(self)


def short(number: int) -> str:
    """Return a count in at most six characters, such as 147.5k."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.{2 if number < 10 * size else 1}f}{unit}"
    return str(number)


def make_rows(survey: Survey, plan: Plan) -> tuple[Row, ...]:
    """Return a row per layer, in order of execution."""
    rows = []
    for layer in survey.layers:
        option = plan.choices.get(layer.name, Option(layer))
        old, new = layer.cost, option.cost
        rows.append(
            Row(
                layer.name,
                layer.kind,
                layer.weight,
                option.title,
                option.rank,
                old.params,
                new.params,
                old.macs,
                new.macs,
                option.harm,
            )
        )
    return tuple(rows)


def budget_text(budget: Budget) -> str:
    """Return the budget as written in code."""
    value = getattr(budget, "fraction", None)
    return f"{type(budget).__name__}({value if value is not None else budget.points:g}, {budget.metric!r})"  # type: ignore[union-attr]
