"""What can be done to a network: every layer, its cost, its spectrum, which methods fit it, and why the others do not."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table
from torch import nn

from spectrim.core.cost import NANOSECONDS, Cost
from spectrim.core.deprecation import renamed
from spectrim.core.factorization import Factorization, describe, fit_of
from spectrim.core.layer import Layer, Shape
from spectrim.core.markup import html_table
from spectrim.core.menu import RESPONSE, LayerMenu, Menu
from spectrim.factorize import CP, ChannelSVD, InputSVD, PivotSVD, SpatialSVD, TensorTrain, TiledSVD, Tucker2
from spectrim.network.apart import opened
from spectrim.network.build import working_weight
from spectrim.network.calling import Example, batched
from spectrim.network.counting import counted
from spectrim.network.survey import survey
from spectrim.pipeline.cache import Cache, Ledger
from spectrim.pipeline.config import Config
from spectrim.pipeline.latency import latencies
from spectrim.pipeline.prepare import prepare, target_of
from spectrim.pipeline.stopwatch import Stopwatch
from spectrim.report.text import as_text, short
from spectrim.sensitivity.options import layer_menu, offers

ALL: tuple[Factorization, ...] = (
    ChannelSVD(),
    PivotSVD(),
    InputSVD(),
    SpatialSVD(),
    SpatialSVD(axis=1),
    Tucker2(),
    CP(),
    CP(depthwise="kernel"),
    TensorTrain(),
    TiledSVD(),
)


PLAIN = str.maketrans("", "", "() ")  # ranks in a table are without these
ABBREVIATED = {
    "ChannelSVD": "Chan",
    "PivotSVD": "Piv",
    "InputSVD": "Inp",
    "SpatialSVD": "Spat",
    "SpatialSVD(axis=1)": "Sp.1",
    "Tucker2": "Tuck",
    "CP(depthwise='kernel')": "CP.k",
    "TensorTrain": "TT",
    "TiledSVD": "Tile",
}


@dataclass(frozen=True)
class LayerView:
    """One layer.

    Attributes:
        layer: Its shapes.
        cost: Its cost for one example.
        rank_90, rank_99: Singular values of the lowered kernel (of one group) that hold 90 and 99 % of its energy.
        full_rank: All of them.
        methods: Method to the largest rank that pays.
        reasons: The other methods, and why they do not fit.
        share: Of the network's time on the target; None without a target.
        at_half: Method to which fraction of the layer's time it takes at half of the layer's MACs, or the next fewer that its
            ranks give; above 1 it is slower.
        at_most: Method to the least fraction of the layer's time that any of its ranks takes.
        harm_at_half: Least predicted harm at which the layer keeps half of its MACs, in the unit of `Inspection.harm_unit`;
            None without calibration data, and where no method reaches half.
    """

    layer: Layer
    cost: Cost
    rank_90: int
    rank_99: int
    full_rank: int
    methods: dict[str, str]
    reasons: dict[str, str]
    harm_at_half: float | None = None
    share: float | None = None
    at_half: dict[str, float] = field(default_factory=dict)
    at_most: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Inspection:
    """All layers, the modules that cannot be factorized with their reasons, the total cost, and the inputs it is of.

    `harm_unit` is the unit of the layers' harms, empty without calibration data. With a target `time_ms` is the time of the
    network, `untouched` the fraction of it that is of no layer, and `target` what it was measured on.
    """

    layers: tuple[LayerView, ...]
    skipped: dict[str, str]
    total: Cost
    inputs: tuple[Shape, ...]
    harm_unit: str = ""
    time_ms: float | None = None
    untouched: float = 0.0
    target: dict[str, str] = field(default_factory=dict)

    def tables(self) -> tuple[Table, ...]:
        """Return all terminal tables: the layers, the ranks that pay, and the times if there are any."""
        return (self.table(), self.ranks(), *((self.times(),) if self.time_ms is not None else ()))

    def table(self) -> Table:
        """Return a terminal table: what every layer costs, and how many singular values hold its energy."""
        shapes = " and ".join(" x ".join(map(str, shape)) for shape in self.inputs)
        title = f"{self.total.params:,} parameters, {self.total.macs:,} MACs of an input of {shapes}. " + (
            "Rank of the kernel, singular values that hold 90 and 99 % of its energy"
            + (f", and the least harm ({self.harm_unit}) at half of the MACs" if self.harm_unit else "")
        )
        harm = ("harm at half",) if self.harm_unit else ()
        rows = []
        for view in self.layers:
            shape = "x".join(map(str, view.layer.weight))
            ranks = map(str, (view.full_rank, view.rank_90, view.rank_99))
            lost = ("-" if view.harm_at_half is None else f"{view.harm_at_half:.2g}",) if self.harm_unit else ()
            rows.append((view.layer.name, shape, short(view.cost.params), short(view.cost.macs), *ranks, *lost))
        return _laid(title, ("weight", "params", "MACs", "rank", "90 %", "99 %", *harm), rows, dense=False)

    def ranks(self) -> Table:
        """Return a terminal table: for each layer and method the largest rank that pays."""
        names = list(dict.fromkeys(name for view in self.layers for name in view.methods))
        legend = ", ".join(f"{ABBREVIATED[name]} {name}" for name in names if name in ABBREVIATED)
        title = f"For each method the largest rank that pays{f' ({legend})' if legend else ''}"
        rows = [(view.layer.name, *(view.methods.get(name, "-").translate(PLAIN) for name in names)) for view in self.layers]
        return _laid(title, [ABBREVIATED.get(name, name) for name in names], rows, dense=True)

    def times(self) -> Table:
        """Return a terminal table: where the time goes, and what decompositions would leave of it.

        Raises:
            ValueError: If nothing was timed.
        """
        if self.time_ms is None:
            raise ValueError("no times are known; give inspect a target, such as Config(target=OnnxRuntime())")
        where = ", ".join(f"{name} {value}" if name == "threads" else value for name, value in self.target.items())
        title = (
            f"{self.time_ms:.2f} ms on {where}. Per cent of the network's time, and for each method "
            "which per cent of the layer's time is left at half of its MACs; least: at any rank of any method"
        )
        names = list(dict.fromkeys(name for view in self.layers for name in view.at_most))
        rows = []
        for view in self.layers:
            halves = (_percent(view.at_half.get(name)) for name in names)
            least = _percent(min(view.at_most.values(), default=None))
            rows.append((view.layer.name, f"{100 * (view.share or 0):.1f}", *halves, least))
        table = _laid(title, ("time", *(ABBREVIATED.get(name, name) for name in names), "least"), rows, dense=True)
        table.add_section()
        table.add_row("of no layer", f"{100 * self.untouched:.1f}")
        return table

    def to_json(self) -> str:
        """Return everything as indented JSON."""
        return json.dumps(asdict(self), indent=1) + "\n"

    def __str__(self) -> str:
        """Return the tables as text of 80 columns, and the layers left alone with their reasons."""
        return "\n".join((as_text(*self.tables()), *self.lines()))

    def _repr_html_(self) -> str:
        """Return a plain table for notebooks: what every layer costs, and the largest rank that pays."""
        names = list(dict.fromkeys(name for view in self.layers for name in view.methods))
        head = ("layer", "weight", "parameters", "MACs", "rank", "90 %", "99 %", *names)
        rows = []
        for view in self.layers:
            numbers = (view.cost.params, view.cost.macs, view.full_rank, view.rank_90, view.rank_99)
            cells = (view.layer.name, " x ".join(map(str, view.layer.weight)), *(f"{number:,}" for number in numbers))
            rows.append((*cells, *(view.methods.get(name, "") for name in names)))
        rows += [(name, reason) for name, reason in self.skipped.items()]
        return html_table(f"{self.total.params:,} parameters, {self.total.macs:,} MACs", head, rows)

    def lines(self) -> list[str]:
        """Return a line for each module that cannot be factorized, and one of the layers where nothing saves time."""
        timed = [view for view in self.layers if view.share is not None]
        slow = [view.layer.name for view in timed if min(view.at_most.values(), default=1.0) >= 1]
        lines = [f"left alone  {name}: {reason}" for name, reason in self.skipped.items()]
        return lines + ([f"nothing saves time on  {', '.join(slow)}"] if slow else [])


@renamed(methods="config")
def inspect(
    model: nn.Module,
    example: Example,
    *,
    calibration: Iterable[Any] | None = None,
    config: Config | Sequence[Factorization] | None = None,
) -> Inspection:
    """Look at a network without changing it.

    Args:
        model: Any eager network.
        example: A batch of inputs.
        calibration: Iterable of inputs; then every layer's predicted harm at half of its MACs is told too.
        config: Its decompositions are asked about; by default all. With a target the network is timed there, and each layer's
            share of the time is told.

    Raises:
        TypeError: If the model is no eager `nn.Module`.
        ValueError: If the example does not go through it.
    """
    config = config if isinstance(config, Config) else Config(methods=ALL if config is None else tuple(config))
    model = opened(model, example)
    found = survey(model, example)
    harms: dict[str, float] = {}
    unit = ""
    if calibration is not None:
        prepared = prepare(model, example, calibration=calibration, config=replace(config, reconstruct=None))
        harms, unit = {row.layer.name: _harm_at_half(row) for row in prepared.menu.layers}, prepared.harm_unit
    views = tuple(_view(model, layer, config.methods, harms.get(layer.name, math.inf)) for layer in found.layers)
    inputs = tuple(tuple(tensor.shape[1:]) for tensor in batched(example))
    seen = Inspection(views, found.skipped, counted(model, example).cost, inputs, unit)
    return seen if config.target is None else _timed(seen, model, example, config)


def _timed(seen: Inspection, model: nn.Module, example: Example, config: Config) -> Inspection:
    """Return what was seen with times: of the network, measured; of layers and what would stand in their place, predicted."""
    target = target_of(config, example)
    ledger = Ledger(Cache(None, ""), batched(example)[0].device, config.progress)
    menu = Menu(tuple(_bare(view.layer, config) for view in seen.layers), seen.total)
    whole, columns = latencies(menu, Stopwatch(model, example, target, ledger))
    views = []
    for view, row, column in zip(seen.layers, menu.layers, columns, strict=True):
        left, macs = column / max(int(column[0]), 1), row.costs["macs"]
        half, most = {}, {}
        for method in config.methods:
            numbers = [i for i, option in enumerate(row.options) if option.method == method]
            within = [i for i in numbers if 2 * macs[i] <= macs[0]]
            if numbers:
                most[describe(method)] = float(left[numbers].min())
            if within:
                half[describe(method)] = float(left[max(within, key=lambda i: int(macs[i]))])
        views.append(replace(view, share=float(column[0]) / whole, at_half=half, at_most=most))
    untouched = 1 - sum(int(column[0]) for column in columns) / whole
    return replace(seen, layers=tuple(views), time_ms=whole / NANOSECONDS, untouched=untouched, target=target.describe())


def _bare(layer: Layer, config: Config) -> LayerMenu:
    """Return the menu of a layer as `prepare` would offer it, with harms of no meaning."""
    offered = offers(layer, config.methods, None, multiple_of=config.multiples)
    falling = [[1 / (1 + number) for number in range(len(ranks))] for _, ranks in offered]
    return layer_menu(layer, offered, falling, bias=False, multiple_of=config.multiples)


def _laid(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], *, dense: bool) -> Table:
    """Return a terminal table: names of layers to the left, which may go on below, and numbers to the right."""
    padding = (0, 0 if dense else 1, 0, 0)
    table = Table(title=escape(title), title_justify="left", box=SIMPLE_HEAD, pad_edge=False, padding=padding)
    table.add_column("layer", overflow="fold", min_width=10)
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    for name, *cells in rows:
        table.add_row(escape(name), *cells)
    return table


def _percent(fraction: float | None) -> str:
    return "-" if fraction is None else f"{100 * fraction:.0f}"


def _harm_at_half(row: LayerMenu) -> float:
    """Return the least predicted harm among the options of at most half of the layer's MACs; infinite if there are none."""
    macs = row.costs["macs"]
    return float(row.scores[RESPONSE][2 * macs <= macs[0]].min(initial=math.inf))


def _view(model: nn.Module, layer: Layer, methods: Sequence[Factorization], harm: float) -> LayerView:
    weight = working_weight(layer, model.get_submodule(layer.name)).flatten(2)
    energy = torch.linalg.svdvals(weight.float()).square().sum(0).cumsum(0)
    share = energy / energy[-1].clamp_min(1e-30)
    ranks = [int((share < bound - 1e-6).sum()) + 1 for bound in (0.9, 0.99)]
    fitting: dict[str, str] = {}
    reasons: dict[str, str] = {}
    for method in methods:
        fit = fit_of(method, layer.convolution)
        paying = method.ranks(layer.convolution) if fit else []
        if paying:
            largest = max(paying, key=lambda rank: method.cost(layer.convolution, rank).macs)
            fitting[describe(method)] = str(largest)
        else:
            reasons[describe(method)] = fit.reason or "no rank pays"
    half = harm if math.isfinite(harm) else None
    return LayerView(layer, layer.cost, ranks[0], ranks[1], len(share), fitting, reasons, half)
