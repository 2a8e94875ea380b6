"""Every rank selection at one table, an ablation ladder, and how far predictions can be trusted.

    python benchmarks/selection.py --models ../shared/models --data ../shared/data/cifar10-jpeg

Writes benchmarks/results/selection.json and .md after every cell. Resumable: finished cells are kept; `--redo TEXT`
runs again the cells whose names contain the text, `--only TEXT` runs no others (a whole name means that cell
alone). CIFAR-10 (JPEG copy), no fine-tuning.
Decisions see training images only: 1,024 for statistics and refit, 512 to judge by, the next 4,608 for Interaction's
measurements. Every network is then read once on the 10,000 test images.
"""

from __future__ import annotations

import argparse
import copy
import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
import torch
from common.compression import compressed, kept
from common.images import batches, read, share
from common.networks import checkpoint
from common.runner import Jobs, Protocol
from common.scores import Judge
from pages.selection import CHECKPOINTS, markdown, plot
from scipy.stats import spearmanr
from torch import Tensor, nn

import spectrim as st
from spectrim.core.menu import RESPONSE, Menu
from spectrim.network.surgery import duplicate, replace_module
from spectrim.pipeline.choose import scored
from spectrim.pipeline.probe import Fitted, NetworkProbe
from spectrim.search.interaction import neighbours
from spectrim.sensitivity.measured import measured_harm
from spectrim.sensitivity.scores import few
from spectrim.sensitivity.sketch import quadratic_model

IMAGES, FURTHER = 1024, 4608
METHODS: dict[str, st.Search] = {
    "Portfolio": st.Portfolio(),
    "Interaction": st.Interaction(images=FURTHER),
    "Knapsack": st.Knapsack(),
    "Knapsack, normalised energies (BALF)": st.Knapsack(score="whitened"),
    "Greedy": st.Greedy(),
    "Similarity": st.Similarity(),
    "ALDS": st.ALDS(),
    "VBMF": st.VBMF(),
    "Energy": st.Energy(),
    "Uniform": st.Uniform(),
}
RANGES = ((0.003, 0.03), (0.03, 0.1), (0.1, 0.3), (0.3, 1.0))  # of the divergence of random plans, nats
PLANS = 100  # random plans of each range
RIDGE = 0.1  # towards the last layer as it was, relative to the mean variance of what it sees


@dataclass(frozen=True)
class LocalSearch(st.Search):
    """Interaction's choice; then random paired steps at constant budget, each kept if the harm on further images falls."""

    proposals: int = 8
    images: int = FURTHER
    title: ClassVar[str] = "Local search"
    reference: ClassVar[str] = "none"

    def select(self, menu: Menu, budget: st.Keep, probe: st.Probe | None = None) -> Sequence[int]:
        """Return the choice that is left."""
        chosen, random = st.Interaction(images=self.images).select(menu, budget, probe), np.random.default_rng(0)
        for _ in range(self.proposals if probe is not None else 0):
            steps = neighbours(menu, chosen, budget.metric)
            first, second = (steps[int(number)] for number in random.choice(len(steps), 2, replace=False))
            other = list(chosen)
            other[first[0]], other[second[0]] = first[1], second[1]
            paid = menu.cost(other, budget.metric) <= int(budget.fraction * menu.original.of(budget.metric))
            if paid and first[0] != second[0] and probe is not None and probe.gain(chosen, other)[0] > 0:
                chosen = other
        return chosen


@dataclass(frozen=True)
class Rung:
    """One rung of the ladder: a rank selection, settings of `st.Config`, and what else is not as usual."""

    search: st.Search
    settings: dict[str, Any] = field(default_factory=dict)
    data: bool = True  # whether there are calibration images
    bias: bool = True  # whether replaced layers get a bias that keeps their mean output
    last: bool = False  # whether the last layer is refitted to the original outputs, too


BALF = st.Knapsack(score="whitened")
CHANNEL: dict[str, Any] = {"methods": (st.ChannelSVD(),)}
SPATIAL: dict[str, Any] = {"methods": (st.ChannelSVD(), st.SpatialSVD(), st.SpatialSVD(axis=1))}
ALONE = {"refit": False}  # every layer fitted to its own inputs
LADDER = {
    "plain SVD, uniform": Rung(st.Uniform(), CHANNEL | ALONE, data=False),
    "equal energy": Rung(st.Energy(), CHANNEL | ALONE, data=False),
    "input-whitened, normalised energies (BALF)": Rung(BALF, CHANNEL | ALONE | {"gradient": False}, bias=False),
    "two-sided": Rung(BALF, CHANNEL | ALONE, bias=False),
    "bias corrected": Rung(BALF, CHANNEL | ALONE),
    "exact knapsack in nats": Rung(st.Knapsack(), CHANNEL | ALONE),
    "menu: SpatialSVD too": Rung(st.Knapsack(), SPATIAL | ALONE),
    "menu: CP too": Rung(st.Knapsack(), ALONE),
    "asymmetric refit": Rung(st.Knapsack()),
    "interactions": Rung(st.Interaction(images=FURTHER)),
    "local search: 8 measured proposals": Rung(LocalSearch()),
    "beside asymmetric refit: interactions instead of it": Rung(st.Interaction(images=FURTHER), ALONE),
    "beside asymmetric refit: last layer refitted too": Rung(st.Knapsack(), last=True),
    "beside asymmetric refit: ChannelSVD alone": Rung(st.Knapsack(), CHANNEL),
    "beside asymmetric refit: without CP": Rung(st.Knapsack(), SPATIAL),
    "beside asymmetric refit: 4,096 images": Rung(st.Knapsack(), {"images": 4 * IMAGES}),
}


class Bench:
    """The images and the networks; each step returns a JSON-ready dictionary."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        """Read the images."""
        self.share = functools.partial(share, part=arguments.part)
        self.models = arguments.models
        self.images, _ = read(arguments.data, "train", stop=self.share(8192))
        self.test = batches(read(arguments.data, "test", stop=self.share(10000)))
        self.known: dict[Any, Any] = {}  # of the network and settings that were last asked for
        self.judges: dict[str, Judge] = {}
        self.plans = PLANS if arguments.part == 1 else 5

    def judge(self, network: str) -> Judge:
        """Return what compares with a checkpoint on the test images."""
        if network not in self.judges:
            self.judges[network] = Judge(checkpoint(self.models, CHECKPOINTS[network]), self.test)
        return self.judges[network]

    def prepared(self, network: str, rung: Rung, metric: str = "macs") -> st.Prepared:
        """Return what is prepared once for a checkpoint and settings, with what the rank selection looks at."""
        settings = {"images": IMAGES} | rung.settings
        settings["images"] = self.share(settings["images"])
        key = network, repr(settings), rung.data
        if key not in self.known:
            self.known.clear()
            model = checkpoint(self.models, CHECKPOINTS[network])
            search = st.Interaction(images=self.share(FURTHER))  # so that there are further images
            config = st.Config(search=search, batch=min(128, self.share(IMAGES)), **settings)
            calibration = self.images if rung.data else None
            self.known[key] = st.prepare(model, self.images[:1], calibration=calibration, config=config)
        found: st.Prepared = self.known[key]
        search = replace(rung.search, images=self.share(FURTHER)) if rung.search.images else rung.search  # type: ignore[type-var]
        column = search.score, metric
        if column not in self.known:  # measured scores are the same at every budget
            self.known[column] = scored(replace(found, config=replace(found.config, search=search)), metric)  # type: ignore[arg-type]
        found = self.known[column]
        return replace(found, config=replace(found.config, search=search))

    def cell(self, network: str, method: str, fraction: float, metric: Any) -> dict[str, Any]:
        """One rank selection at one budget."""
        budget, judge = st.Keep(fraction, metric), self.judge(network)
        row, plan, small = compressed(self.prepared(network, Rung(METHODS[method]), metric), budget, judge)
        if method != "Interaction":
            return row
        prepared = self.prepared(network, Rung(METHODS["Knapsack"]), metric)
        additive = st.choose(prepared, budget)
        return row | judge.gain(small, small if additive == plan else st.realize(prepared, additive).model)

    def rung(self, network: str, name: str, fraction: float) -> dict[str, Any]:
        """One rung of the ablation ladder."""
        rung = LADDER[name]
        prepared = self.prepared(network, rung)
        plan = st.choose(prepared, st.Keep(fraction, "macs"))
        if not rung.bias:
            plan = st.Plan({layer: replace(option, bias=False) for layer, option in plan.items()}, plan.original)
        small = st.realize(prepared, plan).model
        small = last_layer(prepared, small) if rung.last else small
        return self.judge(network).compare(small) | kept(plan)

    def prediction(self, network: str) -> dict[str, Any]:
        """Additive and interaction-aware predictions of random plans, against the measured KL, without refit."""
        prepared, random = self.prepared(network, Rung(METHODS["Knapsack"])), np.random.default_rng(0)
        layers = prepared.menu.layers
        options = [(layer, int(index)) for layer, row in enumerate(layers) for index in few(row, "macs")]
        start = Fitted(prepared.model, {})
        steps = Steps(prepared, start, [0] * len(layers), options, prepared.calibration[:2])
        costs = [layers[layer].costs["macs"][index] for layer, index in options]
        table: dict[tuple[float, float], list[tuple[float, ...]]] = {limits: [] for limits in RANGES}
        for tries in range(40 * self.plans):
            if all(len(cells) >= self.plans for cells in table.values()):
                break
            quality, taken = random.uniform(0.2, 1.0), []
            for own in steps.own:
                if random.random() >= 0.3 * quality:
                    place = int((len(own) - 1e-9) * random.uniform(quality - 0.2, quality))
                    taken.append(sorted(own, key=lambda number: costs[number])[place])
            guess = steps.model.harm(taken)
            near = [limits for limits in RANGES if limits[0] / 3 <= guess < limits[1] * 3]
            if tries > 4 * self.plans and all(len(table[limits]) >= self.plans for limits in near):
                continue
            found = steps.measured(taken)
            for limits in RANGES:
                if limits[0] <= found[0] < limits[1] and len(table[limits]) < self.plans:
                    table[limits].append(found)
        return {f"KL {low} to {high}": agreement(cells) for (low, high), cells in table.items() if len(cells) > 2}

    def steps(self, network: str) -> dict[str, Any]:
        """Compare predictions of random joint steps around the refitted network, where Interaction decides."""
        prepared, rows = self.prepared(network, Rung(METHODS["Knapsack"])), {}
        for fraction in (0.5, 0.35):
            chosen, images = st.Knapsack().select(prepared.menu, st.Keep(fraction, "macs")), prepared.further[:2]
            fitted = NetworkProbe(prepared, prepared.ledger(), images, images).fitted(prepared.menu.plan(chosen))
            steps = Steps(prepared, fitted, chosen, neighbours(prepared.menu, chosen, "macs"), images)
            random, cells = np.random.default_rng(0), []
            for _ in range(self.plans):
                cells.append(steps.measured([int(random.choice(own)) for own in steps.own if random.random() < 0.5]))
            rows[f"around {100 * fraction:g} % of the MACs"] = agreement(cells)
        return rows


class Steps:
    """Joint steps away from a network: what three predictions say of their harm, and what it is.

    Args:
        prepared: The original network and its menu.
        start: The network that the steps lead away from.
        chosen: The option of each layer that it has.
        options: The steps, pairs of a layer's number and an option's.
        images: Where harm is predicted and measured.
    """

    def __init__(
        self,
        prepared: st.Prepared,
        start: Fitted,
        chosen: Sequence[int],
        options: Sequence[tuple[int, int]],
        images: Sequence[Any],
    ) -> None:
        """Measure the quadratic model."""
        self.original, self.start, self.network, self.images = prepared.model, start.model, duplicate(start.model), images
        probe, harms = (
            NetworkProbe(prepared, prepared.ledger(), images, images),
            [r.scores[RESPONSE] for r in prepared.menu.layers],
        )
        self.alternatives = [probe._module(start, layer, index) for layer, index in options]  # names and modules
        self.prices = [harms[layer][index] - harms[layer][chosen[layer]] for layer, index in options]
        layers = dict.fromkeys(layer for layer, _ in options)
        self.own = [[number for number, (layer, _) in enumerate(options) if layer == each] for each in layers]
        self.model = quadratic_model(self.original, self.start, self.alternatives, images)

    def measured(self, taken: Sequence[int]) -> tuple[float, ...]:
        """Return the measured harm with some steps taken, and what the menu, single steps and interactions predict."""
        for name in {name for name, _ in self.alternatives}:
            replace_module(self.network, name, self.start.get_submodule(name))
        for number in taken:
            replace_module(self.network, *self.alternatives[number])
        true = measured_harm(self.original, self.network, self.images)
        menu = self.model.base + float(sum(self.prices[number] for number in taken))
        return true, menu, self.model.additive(taken), self.model.harm(taken)


def agreement(cells: Sequence[tuple[float, ...]]) -> dict[str, float]:
    """Return rank correlation and mean absolute log error of each prediction."""
    true, *guesses = (np.array(column) for column in zip(*cells, strict=True))
    row: dict[str, float] = {"plans": len(true), "median KL": float(np.median(true))}
    for name, guess in zip(("menu", "additive", "interacting"), guesses, strict=True):
        row[f"{name}: Spearman"] = float(spearmanr(guess, true).statistic)
        row[f"{name}: log error"] = float(np.abs(np.log(np.maximum(guess, 1e-6) / true)).mean())
    return row


@torch.no_grad()
def last_layer(prepared: st.Prepared, small: nn.Module) -> nn.Module:
    """Refit the last linear layer to the original logits by ridge regression of what is missing."""
    small, seen = copy.deepcopy(small), list[Tensor]()
    last: nn.Linear = small.linear  # type: ignore[assignment]
    hook = last.register_forward_hook(lambda module, args, output: seen.append(args[0]))
    missing = torch.cat([prepared.model(images) - small(images) for images in prepared.calibration]).double()
    hook.remove()
    features = torch.cat(seen).double()
    mean, centred = features.mean(0), features - features.mean(0)
    gram = centred.T @ centred / len(features)
    damped = gram + RIDGE * gram.diagonal().mean() * torch.eye(len(gram)).double()
    change = torch.linalg.solve(damped, centred.T @ (missing - missing.mean(0)) / len(features)).T
    last.weight += change.float()
    last.bias += (missing.mean(0) - change @ mean).float()
    return small


def jobs(bench: Bench) -> Jobs:
    """Return every cell by name, the most important first."""
    found: dict[str, Any] = {}
    first, rest, best, slow = (0.5, 0.35, 0.2), (0.65, 0.8), ("Portfolio", "Interaction", "Knapsack"), ("Interaction", "Greedy")
    quick = tuple(method for method in METHODS if method not in slow)

    def add(network: str, *groups: tuple[str, Sequence[float], Sequence[str]]) -> None:
        for metric, budgets, methods in groups:
            for fraction, method in itertools.product(budgets, methods):
                name = f"{network} | {metric} | {fraction} | {method}"
                found.setdefault(name, functools.partial(bench.cell, network, method, fraction, metric))

    for network in CHECKPOINTS:
        add(network, ("macs", (0.5, 0.35, 0.25, 0.2), best), ("macs", first, quick))
    for rung, fraction in itertools.product(LADDER, (0.5, 0.35)):
        found[f"ResNet-20 | ladder | {fraction} | {rung}"] = functools.partial(bench.rung, "ResNet-20", rung, fraction)
    for network in CHECKPOINTS:
        found[f"{network} | steps"] = functools.partial(bench.steps, network)
        found[f"{network} | prediction"] = functools.partial(bench.prediction, network)
        add(network, ("params", first, quick))
    for network in CHECKPOINTS:
        add(network, ("macs", first, ("Greedy",)), ("macs", rest, quick), ("params", rest, quick))
        add(network, ("params", (*first, *rest), slow), ("macs", rest, slow))
    return found


PROTOCOL = Protocol(
    "selection",
    "python benchmarks/selection.py --models ../shared/models --data ../shared/data/cifar10-jpeg",
    functools.partial(markdown, methods=list(METHODS), rungs=list(LADDER)),
    functools.partial(plot, methods=list(METHODS)),
    {"models": "folder of checkpoints"},
)
main = functools.partial(PROTOCOL.main, __doc__, lambda arguments: jobs(Bench(arguments)))

if __name__ == "__main__":
    main()
