"""Training for low rank on ResNet-32 and ResNet-20: the published tables of weight distortion, controls and rivals.

    python benchmarks/distortion.py --models ../shared/models --data ../shared/data/cifar10-jpeg

Writes benchmarks/results/distortion.json and .md after every cell. Resumable: finished cells are kept, and a cell that
was interrupted goes on from its checkpoint (`--state DIR`); `--redo TEXT` runs again the cells whose names contain the text,
`--only TEXT` runs no others. `--steps N` optimizer steps a run (batch 128; 390 are an epoch), `--every N` is S_D: the paper
trains for many epochs at S_D = 200; a short run needs a smaller one. `--seeds N` repeats the headline rows. All rows start
from the same checkpoint and see the same batches (CIFAR-10, JPEG copy); every network is read once on the 10,000 test images.
One cell trains with torchao's pruning, and needs that package.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import functools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from common.compression import milliseconds
from common.images import batches, read, share
from common.networks import checkpoint
from common.runner import Jobs, Protocol
from common.scores import top_1
from common.training import BATCH, fit
from pages.distortion import HEADLINE, LONGER, RATIOS, TECHNIQUES, TILES, WAYS, markdown, plot
from torch import Tensor, nn

import spectrim as st
from spectrim.core.menu import RESPONSE, Menu
from spectrim.core.records import Training
from spectrim.sensitivity.moments import gather_moments

FACTORS: dict[str, Any] = {"optimizer": "adamw", "rate": 0.002}  # suits factors of any scale
CP = st.CP(depthwise="kernel")
KINDS = (st.ChannelSVD(), st.SpatialSVD(), st.TiledSVD(2, 2), st.TiledSVD(4, 4), st.Tucker2(), CP)
METHODS: dict[str, st.Factorization] = dict(zip(TECHNIQUES, KINDS, strict=True))
UNTRAINED = Training({}, 0, (), 0.0)


class Bench:
    """Images, checkpoints, and one training run after another."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        """Read the images."""
        self.arguments, self.state = arguments, arguments.state
        self.state.mkdir(parents=True, exist_ok=True)
        self.share = functools.partial(share, part=arguments.part)
        parts = {}
        for split, count in (("train", 50000), ("test", 10000)):
            x, y = read(arguments.data, split, stop=self.share(count))
            parts[split] = nn.functional.adaptive_avg_pool2d(x, arguments.pixels), y
        self.train, self.test = parts["train"], batches(parts["test"])
        self.device = "cuda" if torch.cuda.is_available() else "cpu"

    def network(self, name: str = "resnet32", state: str = "start") -> nn.Module:
        """Return a checkpoint, or what a cell has kept of it."""
        model, kept = checkpoint(self.arguments.models, f"{name}-cifar10jpeg"), self.state / f"{state}.dense.pt"
        if name == "resnet32" and (state != "start" or kept.exists()):
            model.load_state_dict(torch.load(kept, weights_only=True))
        return model.to(self.device)

    def keep(self, name: str, model: nn.Module) -> None:
        """Keep a trained dense network, for the cells that look at it again."""
        torch.save(model.state_dict(), self.state / f"{name}.dense.pt")

    def fit(self, model: nn.Module, name: str, steps: int, recipe: dict[str, Any] | None = None, **given: Any) -> Training:
        """Train for a number of steps, on the same batches for the same seed."""
        state = self.state / f"{''.join(c if c.isalnum() else '-' for c in name)}.pt"
        found = fit(model, self.train, steps, {"rate": self.arguments.rate, "checkpoint": state, **(recipe or {})}, **given)
        state.unlink(missing_ok=True)
        return found

    def score(self, model: nn.Module, control: str = "", keep: str = "") -> dict[str, Any]:
        """Return top-1, and the paired difference from a control if one was kept of that name; `keep` keeps this one."""
        hits, file = st.Accuracy(self.test).per_example(model), self.state / f"{control}.hits.pt"
        if keep:
            torch.save(hits, self.state / f"{keep}.hits.pt")
        return top_1(hits, torch.load(file, weights_only=True) if control and file.exists() else None)

    def result(self, small: nn.Module, plan: st.Plan, training: Training, control: str) -> dict[str, Any]:
        """Return what is told of one trained, decomposed network."""
        cost = st.cost(small, self.train[0][:1].to(self.device))
        return {
            **self.score(small, control),
            "params kept": cost.params / plan.original.params,
            "MACs kept": cost.macs / plan.original.macs,
            "steps": training.steps,
            "seconds": training.seconds,
            "distortion share": training.distortion_seconds / max(training.seconds, 1e-9),
        }

    def moments(self, model: nn.Module) -> dict[str, st.Moments]:
        """Return what the layers of a network in training see and how much it matters, on 512 training images."""
        images = self.train[0][:512].to(self.device)
        return gather_moments(model, st.find_layers(model, images[:1]), images.split(128))

    def start(self) -> dict[str, Any]:
        """Train the checkpoint for two epochs on smaller images, where these are; every other row starts from there."""
        model = self.network()
        if self.arguments.pixels < 32:
            self.fit(model, "start", 780)
            self.keep("start", model)
        return self.score(model)

    def control(self, name: str, network: str = "resnet32", seed: int = 0, times: int = 1) -> dict[str, Any]:
        """Train without distortion."""
        model = self.network(network)
        training = self.fit(model, name, self.arguments.steps * times, {"seed": seed})
        if network == "resnet32":
            self.keep(name, model)
        return {**self.score(model, keep=name), "steps": training.steps, "seconds": training.seconds}

    def row(self, plan: st.Plan, way: str, name: str, seed: int = 0) -> dict[str, Any]:
        """Train one way to one plan."""
        times, control = (LONGER, f"control {seed} longer") if way.endswith("longer") else (1, f"control {seed}")
        model, steps, recipe = self.network(), self.arguments.steps * times, {"seed": seed}
        if way.startswith("distortion"):
            moments = self.moments if way.endswith("response norm") else None
            distortion = Watched(model, plan, every=self.arguments.every, moments=moments)
            training = self.fit(model, name, steps, recipe, distortion=distortion)
            small = distortion.finish()
            self.keep(name, distortion.before)
        elif way == "decomposed":
            small = st.apply(plan, model)
            training = self.fit(small, name, steps, recipe)
        elif way == "control, then cut":
            small, training = st.apply(plan, self.network(state=control)), UNTRAINED
        else:
            optimizer = functools.partial(pruned, model, plan, rate=self.arguments.rate)
            training = self.fit(model, name, steps, recipe | {"optimizer": optimizer})
            small = st.apply(plan, model)
        return self.result(small, plan, training, control)

    def plan(self, method: st.Factorization, ratio: float) -> st.Plan:
        """Return the plan of one common share of the full ranks that keeps 1 / ratio of all parameters."""
        model, example = self.network().cpu(), self.train[0][:1]
        layers, low, high, best = st.find_layers(model, example)[1:-1], 0.0, 1.0, None
        for _ in range(30):
            share = (low + high) / 2
            ranks = {layer.name: (method, rank_at(method, layer, share)) for layer in layers}
            plan = st.plan_from(model, example, ranks)
            low, high, best = (share, high, plan) if plan.cost.params <= plan.original.params / ratio else (low, share, best)
        assert best is not None, "there is no such plan"
        return best

    def tiles(self, width: int, ratio: float) -> st.Plan:
        """Return tiled SVD of the nine largest convolutions, 64 x 576, at the paper's ranks."""
        rows, columns = TILES[width]
        model, example = self.network().cpu(), self.train[0][:1]
        large = [layer.name for layer in st.find_layers(model, example) if layer.weight == (64, 64, 3, 3)]
        choice = (st.TiledSVD(rows, columns), int(width / (2 * ratio)))
        return st.plan_from(model, example, dict.fromkeys(large, choice))

    def cell(self, name: str) -> dict[str, Any]:
        """Return what a cell of this name holds."""
        what, *rest = name.split(" | ")
        if what == "ResNet-20":
            return self.control(name, "resnet20", times=6) if rest == ["control"] else self.beyond(rest[0])
        if what.startswith("control"):
            return self.control(name, seed=int(what.split()[1]), times=LONGER if "longer" in what else 1)
        if what == "technique":
            return self.technique(rest[0])
        kind, ratio = what.removesuffix("x").rsplit(" ", 1)
        if kind == "tiled":
            return self.row(self.tiles(int(rest[0]), float(ratio)), ", ".join(["distortion", *rest[1:]]), name)
        method = {"Tucker": st.Tucker2(), "lowered SVD": st.ChannelSVD(), "CP": CP}[kind]
        return self.row(self.plan(method, float(ratio)), rest[0], name, int(rest[1].split()[1]) if rest[1:] else 0)

    def technique(self, name: str) -> dict[str, Any]:
        """Weight error, accuracy after distortion training, MACs and latency of one 2-D technique at one ratio."""
        plan = self.plan(METHODS[name], HEADLINE)
        row = self.row(plan, "distortion", f"technique {name}")
        model = self.network().cpu()
        old, new = milliseconds([model, st.apply(plan, model)], self.train[0][:1], st.Torch())
        error = st.loss_along(model, plan, batches=self.test[:1], points=2).distance
        return {**row, "weight error": error, "ms": new, "ms before": old}

    def flatness(self) -> dict[str, Any]:
        """Loss towards the low-rank reconstruction: start, control, distorted, on 2,000 training images."""
        plan = self.plan(st.Tucker2(), HEADLINE)
        images = batches((self.train[0][-2000:], self.train[1][-2000:]))
        names = {"start": "start", "control": "control 0", "distorted": f"Tucker {HEADLINE}x | distortion | seed 0"}
        networks = {label: self.network(state=state) for label, state in names.items()}
        curves = [st.loss_along(model, plan, batches=images, label=label) for label, model in networks.items()]
        return {"curves": [dataclasses.asdict(curve) for curve in curves]}

    def beyond(self, way: str) -> dict[str, Any]:
        """ResNet-20 by system A's plan at 25 or 30 % of the params and at most 32 or 38 % of the MACs, trained."""
        model, steps, teacher = self.network("resnet20"), 6 * self.arguments.steps, self.network("resnet20").eval()
        plain, larger = "without CP" in way, "30 %" in way
        taught: dict[str, Any] = {"distill": 0.7, "temperature": 2.0} if "distilled" in way else {}
        kept = self.state / f"resnet20-plan{'-without-CP' if plain else ''}{'-30' if larger else ''}"
        if not kept.exists():
            methods = (st.ChannelSVD(), st.SpatialSVD(), st.SpatialSVD(axis=1), st.Tucker2())
            search = Both(0.38 if larger else 0.32)
            config = st.Config(search=search, methods=methods) if plain else st.Config(search=search)
            budget, images = st.Keep(0.30 if larger else 0.25, "params"), self.train[0][: self.share(1024)]
            st.compress(model, images[:1], budget=budget, calibration=images, config=config).save(kept)
        small, plan, training = st.load(kept, model), st.Plan.from_json((kept / "plan.json").read_text()), UNTRAINED
        if "distortion" in way:
            distortion = st.Distortion(model, plan, every=self.arguments.every)
            training = self.fit(model, way, steps, taught, distortion=distortion, teacher=teacher)
            small = distortion.finish()
        elif not way.startswith("no training"):
            training = self.fit(small, way, steps, FACTORS | taught, teacher=teacher)
        return self.result(small, plan, training, "ResNet-20 | control")


class Watched(st.Distortion):
    """Remembers the network as it was before the last distortion."""

    before: nn.Module

    def step(self) -> bool:
        """Copy it if a distortion is due."""
        if self.steps + 1 >= self.due:
            self.before = copy.deepcopy(self.model)
        return super().step()


@dataclasses.dataclass(frozen=True)
class Both(st.Search):
    """The exact knapsack under a bound on the MACs beside the one on the parameters, by a penalty that is bisected."""

    macs: float  # fraction that may remain
    title: ClassVar[str] = "Knapsack of two bounds"
    reference: ClassVar[str] = "none"

    def select(self, menu: Menu, budget: st.Keep, probe: st.Probe | None = None) -> Sequence[int]:
        """Return the best choice found whose MACs are within the bound too."""
        limit, chosen = self.macs * menu.original.macs, st.Knapsack().select(menu, budget)
        low, high, best = 0.0, 1.0, chosen if menu.cost(chosen, "macs") <= limit else None
        for _ in range(12 if best is None else 0):
            price = (low + high) / 2  # nats for all MACs of the network
            columns = [row.scores[RESPONSE] + price * row.costs["macs"] / menu.original.macs for row in menu.layers]
            chosen = st.Knapsack().select(menu.with_scores(RESPONSE, columns), budget)
            if menu.cost(chosen, "macs") <= limit:
                high, best = price, chosen
            else:
                low = price
        if best is None:
            raise st.BudgetError(f"no choice within {budget} was found that keeps {self.macs:g} of the MACs")
        return best


def tile_study() -> dict[str, Any]:
    """Return spread and shape of a Gaussian 1024 x 1024 matrix at 4x in tiles (the paper's study)."""
    torch.manual_seed(0)
    matrix, rows = torch.randn(1024, 1024), {}
    for count in (1, 16, 128):
        size = 1024 // count
        rank = max(1, size // 8)
        tiles = matrix.reshape(count, size, count, size).transpose(1, 2).reshape(-1, size, size)
        u, s, vt = torch.linalg.svd(tiles, full_matrices=False)
        back = (u[:, :, :rank] * s[:, None, :rank]) @ vt[:, :rank]
        values = back.flatten()
        density, edges = torch.histogram(values, 60, range=(-4.0, 4.0), density=True)
        rows[f"{count} x {count} tiles of {size}"] = {
            "rank": rank,
            "standard deviation": float(values.std()),
            "excess kurtosis": float((values / values.std()).pow(4).mean() - 3),
            "relative error": float((back - tiles).norm() / tiles.norm()),
            "edges": edges.tolist(),
            "density": density.tolist(),
        }
    return rows


def rank_at(method: st.Factorization, layer: st.Layer, share: float) -> Any:
    """Return the rank nearest a share of the largest that pays, per mode."""
    if isinstance(method, st.Tucker2):  # the paper's way: the same share of both channel modes
        outputs, inputs = layer.channels
        return max(1, round(share * inputs)), max(1, round(share * outputs))
    ranks: list[Any] = method.ranks(layer) or [1]
    return max(1, min(round(share * ranks[-1]), ranks[-1]))


def pruned(model: nn.Module, plan: st.Plan, trained: list[nn.Parameter], *, rate: float) -> torch.optim.Optimizer:
    """Return torchao's optimizer with a hard rank on each planned kernel, lowered: the same final ranks as the plan."""
    from torchao.prototype.pat.optim import PruneOptimizer

    hard = {"group_type": "SVDGrouper", "prox_type": "MinRankConstraint", "prox_freq": 1}
    groups: list[dict[str, Any]] = []
    for name, option in plan.items():
        weight: Tensor = model.get_submodule(name).weight  # type: ignore[assignment]
        share = 1 - option.rank / min(weight.shape[0], weight[0].numel())  # type: ignore[operator]
        groups.append({"params": [weight], "min_sparsity": share, **hard})
    planned = {id(group["params"][0]) for group in groups}
    rest = [parameter for parameter in trained if id(parameter) not in planned]
    return PruneOptimizer(torch.optim.SGD([{"params": rest}, *groups], rate, momentum=0.9, nesterov=True, weight_decay=1e-4))


def names(seeds: int) -> list[str]:
    """Return the cells, the most important first."""
    tuned, distorted = "one-shot fine-tuning, distilled", "distortion, distilled"
    beyond = ("control", "no training", tuned, "no training, without CP", f"{tuned}, without CP", f"{tuned}, at 30 %")
    again = [f"Tucker {HEADLINE}x | {way} | seed {{seed}}" for way in WAYS]
    return [
        "tile study",
        "start",
        "control 0",
        *(f"Tucker {ratio}x | {way} | seed 0" for ratio in RATIOS for way in WAYS),
        *(f"ResNet-20 | {way}" for way in (*beyond, distorted, f"{distorted}, at 30 %")),
        *(f"tiled {ratio}x | {width}" for ratio in (2, 4) for width in (64, 8, 32, 16)),
        "control 0 longer",
        *(f"tiled {ratio}x | 16 | {way}" for way in ("response norm", "longer") for ratio in (2, 4)),
        *(f"lowered SVD {HEADLINE}x | {way}" for way in (*WAYS, "torchao")),
        f"CP {HEADLINE}x | decomposed",
        "flatness",
        *(f"technique | {technique}" for technique in TECHNIQUES),
        *(name.format(seed=seed) for seed in range(1, seeds) for name in ("control {seed}", *again)),
    ]


def jobs(bench: Bench, seeds: int) -> Jobs:
    """Return every cell by name."""
    others = {"tile study": tile_study, "start": bench.start, "flatness": bench.flatness}
    return {name: others.get(name, functools.partial(bench.cell, name)) for name in names(seeds)}


COMMAND = "python benchmarks/distortion.py --models ../shared/models --data ../shared/data/cifar10-jpeg"
PROTOCOL = Protocol("distortion", COMMAND, markdown, plot, {"models": "folder of checkpoints"})


def about(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return what all cells of one file share.

    Raises:
        SystemExit: If the file holds cells of other settings.
    """
    setting = [arguments.steps, arguments.every, arguments.pixels, arguments.rate]
    before = PROTOCOL.read(arguments.target)
    if before["cells"] and before["setting"] != setting:
        other = before["setting"]
        sys.exit(f"{arguments.target} holds runs of other steps, S_D, pixels and rate ({other}): go on so, or move it away")
    first = "the checkpoint, after two epochs on such images" if arguments.pixels < 32 else "the checkpoint"
    words = (
        f"CIFAR-10 (JPEG copy) at {arguments.pixels} pixels, {arguments.steps} steps of {BATCH} images "
        f"({arguments.steps / 390:.1f} epochs; ResNet-20 six times as many) from {first}, SGD one cycle to {arguments.rate:g}, "
        f"S_D = {arguments.every}; one-shot fine-tuning with AdamW to {FACTORS['rate']:g}. Top-1 on 10,000 test images +- "
        "standard error; differences from the control are paired. "
        "One seed unless said otherwise. A dash: not run."
    )
    options = " ".join(f"--{option} {getattr(arguments, option)}" for option in ("steps", "every", "pixels", "rate"))
    return {"setting": setting, "words": words, "command": f"{COMMAND} {options} --target {arguments.target.name}"}


def main() -> None:
    """Measure the cells that are not there yet."""
    parser = PROTOCOL.parser(__doc__)
    parser.add_argument("--state", type=Path, default=Path("distortion-state"), help="checkpoints and trained networks")
    parser.add_argument("--pixels", type=int, default=32, help="smaller images for longer runs on a slow machine")
    parser.add_argument("--steps", type=int, default=390)
    parser.add_argument("--rate", type=float, default=0.02, help="largest learning rate of the cycle")
    parser.add_argument("--every", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=3)
    arguments = PROTOCOL.parse(parser)
    shared = {} if arguments.tables else about(arguments)
    PROTOCOL.run(arguments, lambda cells: jobs(Bench(arguments), arguments.seeds), shared)


if __name__ == "__main__":
    main()
