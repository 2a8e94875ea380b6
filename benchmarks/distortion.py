"""Training for low rank on ResNet-32 and ResNet-20: the published tables of weight distortion, controls and rivals.

    python benchmarks/distortion.py --models ../shared/models --data ../shared/data/cifar10-jpeg

Writes benchmarks/results/distortion.json, .md and .svg after every cell. Resumable: finished cells are kept, and a cell that
was interrupted goes on from its checkpoint (`--state DIR`); `--redo TEXT` runs again the cells whose names contain the text,
`--only TEXT` runs no others. `--steps N` optimizer steps a run (batch 128; 390 are an epoch), `--every N` is S_D: the paper
trains for many epochs at S_D = 200; a short run needs a smaller one. `--seeds N` repeats the headline rows. All rows start
from the same checkpoint and see the same batches (CIFAR-10, JPEG copy); every network is read once on the 10,000 test images.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import functools
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import runner
import torch
from torch import Tensor, nn

import spectrim as st
from spectrim.data import Batches, Form, open_images
from spectrim.latency import measure
from spectrim.report import Curve
from spectrim.statistics import Moments, statistics
from spectrim.surgery import module_of, working_weight
from spectrim.survey import find_layers
from spectrim.zoo import load_weights, make_model

HERE = Path(__file__).parent
RATIOS = (6.7, 2.8, 1.6, 4.3, 2.1)  # the paper's, parameters before over after
PUBLISHED = {1.6: (92.92, 92.20), 2.1: (92.62, 92.09), 2.8: (92.43, 91.75), 4.3: (91.49, 90.96), 6.7: (90.43, 89.77)}
TILES = {64: (1, 8), 32: (2, 16), 16: (4, 32), 8: (8, 64)}  # width in the paper: rows and columns of tiles for 64 x 576
HEADLINE = 2.8
LONGER = 3  # times the steps, in the cells that show what longer training does
FACTORS: dict[str, Any] = {"optimizer": "adamw", "rate": 0.002}  # suits factors of any scale
TECHNIQUES: dict[str, st.Factorization] = {
    "lowered SVD (ChannelSVD)": st.ChannelSVD(),
    "spatial SVD": st.SpatialSVD(),
    "tiled SVD, 2 x 2": st.TiledSVD(2, 2),
    "tiled SVD, 4 x 4": st.TiledSVD(4, 4),
    "Tucker": st.Tucker2(),
    "CP, depthwise kernel": st.CP(depthwise="kernel"),
}

RIVALS = {  # cells that train the decomposed network of a technique at the same ranks
    "lowered SVD (ChannelSVD)": f"lowered SVD {HEADLINE}x | decomposed",
    "Tucker": f"Tucker {HEADLINE}x | decomposed | seed 0",
    "CP, depthwise kernel": f"CP {HEADLINE}x | decomposed",
}


class Bench:
    """Images, checkpoints, and one training run after another."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        """Read the images."""
        self.arguments = arguments
        form = Form(3, (32, 32))
        parts = {}
        for split in ("train", "test"):
            found = list(Batches(open_images(f"parquet:{arguments.data / split}.parquet"), form, 1000))
            x, y = torch.cat([x for x, _ in found]), torch.cat([y for _, y in found])
            parts[split] = nn.functional.adaptive_avg_pool2d(x, arguments.pixels), y
        self.train, test = parts["train"], parts["test"]
        self.test = list(zip(test[0].split(250), test[1].split(250), strict=True))
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.hits: dict[str, Tensor] = {}

    def network(self, name: str = "resnet32") -> nn.Module:
        """Return a checkpoint."""
        model = make_model(f"{HERE.parent / 'examples/cifar_resnet.py'}:{name}")
        load_weights(model, str(self.arguments.models / f"{name}-cifar10jpeg.safetensors"))
        start = self.arguments.state / "start.dense.pt"
        if name == "resnet32" and start.exists():
            model.load_state_dict(torch.load(start, weights_only=True))
        return model.to(self.device)

    def fit(self, model: nn.Module, name: str, seed: int = 0, **more: Any) -> st.train.History:
        """Train for the number of steps asked for, on the same batches for the same seed."""
        steps = self.arguments.steps * more.pop("times", 1)
        x, y = self.train
        epochs = max(1, math.ceil(steps / (len(x) // 128)))
        used = steps // epochs * 128  # so that whole epochs make up the steps
        state = self.arguments.state / f"{''.join(c if c.isalnum() else '-' for c in name)}.pt"
        settings = {"rate": self.arguments.rate, **more.pop("recipe", {})}
        recipe = st.Recipe(epochs=epochs, seed=seed, checkpoint=state, **settings)
        history = st.fit(model, (x[:used], y[:used]), recipe=recipe, **more)
        state.unlink(missing_ok=True)
        return history

    def score(self, model: nn.Module, control: str | None = None) -> dict[str, Any]:
        """Return top-1 on the test images, and the paired difference from the control if that was trained before."""
        hits = st.Accuracy(self.test).per_example(model)
        row: dict[str, Any] = {"top-1": 100 * float(hits.mean()), "error": 100 * float(hits.std()) / len(hits) ** 0.5}
        if control in self.hits:
            gap = hits - self.hits[control]
            row |= {"less control": 100 * float(gap.mean()), "gap error": 100 * float(gap.std()) / len(gap) ** 0.5}
        row["hits"] = hits
        return row

    def result(self, small: nn.Module, plan: st.Plan, history: st.train.History, control: str) -> dict[str, Any]:
        """Return what is told of one trained, decomposed network."""
        cost = st.cost(small, self.train[0][:1].to(self.device))
        return {
            **self.score(small, control),
            "params kept": cost.params / plan.original.params,
            "MACs kept": cost.macs / plan.original.macs,
            "steps": history.steps,
            "seconds": history.seconds,
            "distortion share": history.distortion_seconds / max(history.seconds, 1e-9),
        }

    def moments(self, model: nn.Module) -> dict[str, Moments]:
        """Return what the layers of a network in training see and how much it matters, on 512 training images."""
        images = self.train[0][:512].to(self.device)
        return statistics(model, find_layers(model, images[:1]), images.split(128))

    def control(self, seed: int, times: int = 1) -> dict[str, Any]:
        """Train without distortion."""
        model, name = self.network(), f"control {seed}" + (" longer" if times > 1 else "")
        history = self.fit(model, name, seed, times=times)
        self.keep(name, model)
        return {**self.score(model), "steps": history.steps, "seconds": history.seconds}

    def cell(self, name: str, job: Callable[[Bench], dict[str, Any]]) -> dict[str, Any]:
        """Run a cell; which images a control gets right is kept in a file, for paired comparisons in later sessions."""
        self.arguments.state.mkdir(parents=True, exist_ok=True)
        for file in self.arguments.state.glob("*.hits.pt"):
            self.hits[file.name.removesuffix(".hits.pt")] = torch.load(file, weights_only=True)
        found = dict(job(self))
        hits = found.pop("hits", None)
        if hits is not None and "control" in name and "cut" not in name:
            torch.save(hits, self.arguments.state / f"{name}.hits.pt")
        return found

    def start(self) -> dict[str, Any]:
        """Train the checkpoint for two epochs on the smaller images; every other row starts from there."""
        model = self.network()
        if self.arguments.pixels < 32:
            steps, self.arguments.steps = self.arguments.steps, 780
            self.fit(model, "start")
            self.arguments.steps = steps
            self.keep("start", model)
        return self.score(model)

    def keep(self, name: str, model: nn.Module) -> None:
        """Keep a trained dense network, for the cells that look at it again."""
        self.arguments.state.mkdir(parents=True, exist_ok=True)
        torch.save(model.state_dict(), self.arguments.state / f"{name}.dense.pt")

    def kept(self, name: str) -> nn.Module:
        """Return a trained dense network."""
        model = self.network()
        model.load_state_dict(torch.load(self.arguments.state / f"{name}.dense.pt", weights_only=True))
        return model

    def row(self, plan: st.Plan, way: str, name: str, seed: int) -> dict[str, Any]:
        """Train one way to one plan."""
        model, control = self.network(), f"control {seed}"
        if way.startswith("distortion"):
            moments = self.moments if way.endswith("response norm") else None
            twist = Watched(model, plan, every=self.arguments.every, moments=moments)
            times = LONGER if way.endswith("longer") else 1
            control += " longer" if times > 1 else ""
            history = self.fit(model, name, seed, twist=twist, times=times)
            small = twist.finish()
            self.keep(name, twist.before)
        elif way == "decomposed":
            small = st.apply(plan, model)
            history = self.fit(small, name, seed)
        elif way == "control, then cut":
            model = self.kept(control)
            small, history = st.apply(plan, model), st.train.History(self.arguments.steps, [], 0.0)
        else:
            history = self.fit(
                model, name, seed, recipe={"optimizer": lambda trained: pruned(model, plan, trained, self.arguments.rate)}
            )
            small = st.apply(plan, model)
        return self.result(small, plan, history, control)

    def plan(self, method: st.Factorization, ratio: float, names: Callable[[str], bool] | None = None) -> st.Plan:
        """Return the plan of one common share of the full ranks that keeps 1 / ratio of all parameters."""
        model = self.network().cpu()
        example = self.train[0][:1]
        layers = [layer for layer in find_layers(model, example)[1:-1] if names is None or names(layer.name)]
        low, high = 0.0, 1.0
        for _ in range(30):
            share = (low + high) / 2
            plan = st.plan_from(model, example, {layer.name: (method, rank_at(method, layer, share)) for layer in layers})
            low, high = (share, high) if plan.cost.params <= plan.original.params / ratio else (low, share)
        return st.plan_from(model, example, {layer.name: (method, rank_at(method, layer, low)) for layer in layers})

    def tiles(self, width: int, ratio: int) -> st.Plan:
        """Tiled SVD of the nine largest convolutions, 64 x 576, at the paper's ranks."""
        rows, columns = TILES[width]
        model = self.network().cpu()
        large = [layer.name for layer in find_layers(model, self.train[0][:1]) if layer.weight == (64, 64, 3, 3)]
        rank = width // (2 * ratio)
        return st.plan_from(model, self.train[0][:1], {name: (st.TiledSVD(rows, columns), rank) for name in large})

    def technique(self, name: str) -> dict[str, Any]:
        """Weight error, accuracy after distortion training, MACs and latency of one 2-D technique at one ratio."""
        plan = self.plan(TECHNIQUES[name], HEADLINE)
        row = self.row(plan, "distortion", f"technique {name}", 0)
        model = self.network().cpu()
        small = st.apply(plan, model)
        old, new = measure([model, small], self.train[0][:1])
        error = reconstruction_error(plan, model)
        return {**row, "weight error": error, "ms": new.median_ms, "ms before": old.median_ms}

    def flatness(self, name: str) -> dict[str, Any]:
        """Loss towards the low-rank reconstruction: start, control, distorted, on 2,000 training images."""
        plan = self.plan(st.Tucker2(), HEADLINE)
        x, y = (part[-2000:] for part in self.train)
        batches = list(zip(x.split(250), y.split(250), strict=True))
        networks = {"start": self.network(), "control": self.kept("control 0")}
        networks["distorted"] = self.kept(f"Tucker {HEADLINE}x | distortion | seed 0")
        curves = [st.loss_along(model, plan, batches=batches, label=label) for label, model in networks.items()]
        return {"curves": [dataclasses.asdict(curve) for curve in curves]}

    def study(self) -> dict[str, Any]:
        """Return spread and shape of a Gaussian 1024 x 1024 matrix at 4x in tiles (the paper's study)."""
        torch.manual_seed(0)
        matrix = torch.randn(1024, 1024)
        rows = {}
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

    def beyond(self, way: str) -> dict[str, Any]:
        """ResNet-20 by system A's plan at 25 or 30 % of the params and at most 32 or 38 % of the MACs, trained; the control."""
        model, control = self.network("resnet20"), "ResNet-20 | control"
        taught = {"distill": 0.7, "temperature": 2.0} if "distilled" in way else {}
        if way == "control":
            history = self.fit(model, control, times=6)
            return {**self.score(model), "steps": history.steps, "seconds": history.seconds}
        plain = "without CP" in way
        methods = {"methods": (st.ChannelSVD(), st.SpatialSVD(), st.SpatialSVD(axis=1), st.Tucker2())} if plain else {}
        share, macs = (0.30, 0.38) if "30 %" in way else (0.25, 0.32)
        kept = self.arguments.state / f"resnet20-plan{'-without-CP' if plain else ''}{'-30' if '30 %' in way else ''}"
        if not kept.exists():
            st.compress(
                model,
                self.train[0][:1],
                budget=st.Keep(share, "params"),
                calibration=self.train[0][:1024],
                config=st.Config(search=Both(macs), **methods),
            ).save(kept)
        small = st.load(kept, model)
        plan = st.Plan.from_json((kept / "plan.json").read_text())
        if way.startswith("no training"):
            history = st.train.History(0, [], 0.0)
        elif "distortion" in way:
            twist = st.Distortion(model, plan, every=self.arguments.every)
            history = self.fit(model, way, times=6, twist=twist, recipe=taught, teacher=self.network("resnet20"))
            small = twist.finish()
        else:
            history = self.fit(small, way, times=6, recipe={**FACTORS, **taught}, teacher=self.network("resnet20").eval())
        return self.result(small, plan, history, control)


class Watched(st.Distortion):
    """Remembers the network as it was before the last distortion."""

    before: nn.Module

    def step(self) -> bool:
        """Copy it if a distortion is due."""
        if self.steps + 1 >= self.due:
            self.before = copy.deepcopy(self.model)
        return super().step()


@dataclasses.dataclass(frozen=True)
class Both(st.Knapsack):
    """The exact knapsack under a bound on the MACs beside the one on the parameters, by a penalty that is bisected."""

    macs: float = 1.0

    def __init__(self, macs: float) -> None:
        """Take the fraction of the MACs that may remain."""
        super().__init__()
        object.__setattr__(self, "macs", macs)

    def select(self, menu: Any, budget: st.Keep, probe: Any = None) -> st.Plan:
        """Return the best plan found whose MACs are within the bound too."""
        low, high, best = 0.0, 1.0, None
        plan = super().select(menu, budget, probe)
        if plan.cost.macs <= self.macs * plan.original.macs:
            return plan
        for _ in range(12):
            price = (low + high) / 2  # nats for all MACs of the network
            rows = [
                tuple(dataclasses.replace(o, harm=o.harm + price * o.cost.macs / menu.original.macs) for o in row)
                for row in menu.options
            ]
            found = super().select(dataclasses.replace(menu, options=tuple(rows)), budget, probe)
            if found.cost.macs <= self.macs * found.original.macs:
                high, best = price, found
            else:
                low = price
        assert best is not None, "the bound on the MACs cannot be met"
        return best


def reconstruction_error(plan: st.Plan, model: nn.Module) -> float:
    """Return the distance of all planned kernels from their low-rank reconstructions, relative to their norm."""
    missed = total = 0.0
    for name, kernel in st.Distortion(model, plan).reconstructions().items():
        weight = working_weight(plan[name].layer, module_of(model, plan[name]))
        missed += float((weight - kernel).square().sum())
        total += float(weight.square().sum())
    return (missed / total) ** 0.5


def rank_at(method: st.Factorization, layer: st.Layer, share: float) -> Any:
    """Return the rank nearest a share of the largest that pays, per mode."""
    if isinstance(method, st.Tucker2):  # the paper's way: the same share of both channel modes
        outputs, inputs = layer.channels
        return max(1, round(share * inputs)), max(1, round(share * outputs))
    ranks = method.ranks(layer) or [1]
    return max(1, min(round(share * ranks[-1]), ranks[-1]))


def pruned(model: nn.Module, plan: st.Plan, trained: list[nn.Parameter], rate: float) -> torch.optim.Optimizer:
    """Return torchao's optimizer with a hard rank on each planned kernel, lowered: the same final ranks as the plan."""
    from torchao.prototype.pat.optim import PruneOptimizer

    groups, planned = [], set()
    for name, option in plan.items():
        weight = model.get_submodule(name).weight
        planned.add(id(weight))
        share = 1 - option.rank / min(weight.shape[0], weight[0].numel())
        groups.append(
            {
                "params": [weight],
                "group_type": "SVDGrouper",
                "prox_type": "MinRankConstraint",
                "min_sparsity": share,
                "prox_freq": 1,
            }
        )
    rest = [parameter for parameter in trained if id(parameter) not in planned]
    base = torch.optim.SGD([{"params": rest}, *groups], rate, momentum=0.9, nesterov=True, weight_decay=1e-4)
    return PruneOptimizer(base)


def jobs(seeds: int) -> dict[str, Callable[[Bench], dict[str, Any]]]:  # noqa: C901
    """Return every cell by name, the most important first."""
    found: dict[str, Callable[[Bench], dict[str, Any]]] = {
        "tile study": lambda b: b.study(),
        "start": lambda b: b.start(),
        "control 0": lambda b: b.control(0),
    }
    ways = ("distortion", "decomposed", "control, then cut")

    def tucker(ratio: float, way: str, seed: int) -> None:
        name = f"Tucker {ratio}x | {way} | seed {seed}"
        found[name] = lambda b: b.row(b.plan(st.Tucker2(), ratio), way, name, seed)

    for ratio in RATIOS:
        for way in ways:
            tucker(ratio, way, 0)
    tuned = "one-shot fine-tuning, distilled"
    cut = ("no training", tuned, "no training, without CP", f"{tuned}, without CP", f"{tuned}, at 30 %")
    for way in ("control", *cut, "distortion, distilled", "distortion, distilled, at 30 %"):
        found[f"ResNet-20 | {way}"] = lambda b, w=way: b.beyond(w)
    for ratio in (2, 4):
        for width in (64, 8, 32, 16):
            name = f"tiled {ratio}x | {width}"
            found[name] = lambda b, n=name, a=(width, ratio): b.row(b.tiles(*a), "distortion", n, 0)
    found["control 0 longer"] = lambda b: b.control(0, LONGER)
    for way in ("response norm", "longer"):
        for ratio in (2, 4):
            name = f"tiled {ratio}x | 16 | {way}"
            found[name] = lambda b, n=name, r=ratio, w=way: b.row(b.tiles(16, r), f"distortion, {w}", n, 0)
    for way in (*ways, "torchao"):
        name = f"lowered SVD {HEADLINE}x | {way}"
        found[name] = lambda b, n=name, w=way: b.row(b.plan(st.ChannelSVD(), HEADLINE), w, n, 0)
    name_cp = f"CP {HEADLINE}x | decomposed"
    found[name_cp] = lambda b: b.row(b.plan(TECHNIQUES["CP, depthwise kernel"], HEADLINE), "decomposed", name_cp, 0)
    found["flatness"] = lambda b: b.flatness("flatness")
    for technique in TECHNIQUES:
        found[f"technique | {technique}"] = lambda b, t=technique: b.technique(t)
    for seed in range(1, seeds):
        found[f"control {seed}"] = lambda b, s=seed: b.control(s)
        for way in ways:
            tucker(HEADLINE, way, seed)
    return found


def text(cell: dict[str, Any] | None, key: str = "top-1", error: str = "error", sign: str = "") -> str:
    """Return a number with its error, or a dash."""
    if not cell or key not in cell:
        return "-"
    return f"{cell[key]:{sign}.2f} +- {cell[error]:.2f}"


def head(title: str, columns: str) -> list[str]:
    """Return a heading and the first two lines of a table."""
    return ["", f"## {title}", "", f"| {columns} |", "|" + "---|" * (columns.count("|") + 1)]


def markdown(results: dict[str, Any]) -> str:
    """Return all results as tables."""
    cells = results["cells"]
    lines = ["# Training for low rank", "", f"`{results['command']}` on {results['machine']}", "", results["words"], ""]
    lines += [f"Start {text(cells.get('start'))}; control, equally trained, not decomposed: {text(cells.get('control 0'))}."]
    lines += head("ResNet-32, Tucker", "parameters | distortion | decomposed, trained | control, then cut | gap | published")
    for ratio in sorted(RATIOS):
        row = [cells.get(f"Tucker {ratio}x | {way} | seed 0") for way in ("distortion", "decomposed", "control, then cut")]
        gap = text(row[0], "less control", "gap error", "+")
        lines.append(
            f"| {ratio}x | " + " | ".join(map(text, row)) + f" | {gap} | {PUBLISHED[ratio][0]}, {PUBLISHED[ratio][1]} |"
        )
    seeds = [name for name in cells if name.startswith(f"Tucker {HEADLINE}x | distortion | seed")]
    if len(seeds) > 1:
        pairs = [(cells[name], cells.get(name.replace("distortion", "decomposed"))) for name in seeds]
        values = torch.tensor([one["top-1"] - other["top-1"] for one, other in pairs if other])
        lines += [
            "",
            f"{HEADLINE}x, {len(values)} seeds, distortion less decomposed: {values.mean():+.2f}, spread {values.std():.2f}.",
        ]
    lines += head("ResNet-32, tiled SVD of the nine largest convolutions, less the control", "tile | 2x | 4x")
    for width in TILES:
        row = [text(cells.get(f"tiled {ratio}x | {width}"), "less control", "gap error", "+") for ratio in (2, 4)]
        lines.append(f"| {width} | " + " | ".join(row) + " |")
    for way, words in (
        ("response norm", "distorted in the response norm"),
        ("longer", f"{LONGER} times the steps, control too"),
    ):
        row = [text(cells.get(f"tiled {ratio}x | 16 | {way}"), "less control", "gap error", "+") for ratio in (2, 4)]
        lines.append(f"| 16, {words} | " + " | ".join(row) + " |")
    lines += head(f"ResNet-32, lowered SVD at {HEADLINE}x, equal steps and final ranks", "way | top-1 | less control | seconds")
    for way in ("distortion", "torchao", "decomposed", "control, then cut"):
        cell = cells.get(f"lowered SVD {HEADLINE}x | {way}")
        if cell:
            lines.append(f"| {way} | {text(cell)} | {text(cell, 'less control', 'gap error', '+')} | {cell['seconds']:.0f} |")
    return "\n".join([*lines, *second_half(results)]) + "\n"


def cost_at(every: int, cell: dict[str, Any], measured_at: int) -> float:
    """Return the share of distortion in the training time at another S_D."""
    distorting = cell["distortion share"] * cell["seconds"]
    share = distorting * measured_at / every
    return share / (share + cell["seconds"] - distorting)


def second_half(results: dict[str, Any]) -> list[str]:
    """Return the tables beyond the paper's."""
    cells, lines = results["cells"], []
    columns = "technique | top-1 | decomposed, trained | weight error at first | params kept | MACs kept | ms (before) | cost"
    lines += head("ResNet-32, 2-D techniques after distortion training", columns)
    for name in TECHNIQUES:
        cell = cells.get(f"technique | {name}")
        if cell:
            kept = f"{100 * cell['params kept']:.1f} % | {100 * cell['MACs kept']:.1f} %"
            rival = text(cells.get(RIVALS.get(name, "")))
            time = f"{cell['ms']:.2f} ({cell['ms before']:.2f})"
            spent = f"{100 * cost_at(200, cell, results['setting'][1]):.2f} %"
            lines.append(f"| {name} | {text(cell)} | {rival} | {cell['weight error']:.3f} | {kept} | {time} | {spent} |")
    lines += ["", "Cost: share of distortion in the training time at S_D = 200, computed from the seconds measured here."]
    lines += head("ResNet-20, system A's plan", "way | top-1 | less control | params kept | MACs kept | steps")
    for name, cell in cells.items():
        if name.startswith("ResNet-20"):
            kept = f"{100 * cell.get('params kept', 1):.1f} % | {100 * cell.get('MACs kept', 1):.1f} %"
            lines.append(
                f"| {name[12:]} | {text(cell)} | {text(cell, 'less control', 'gap error', '+')} | {kept} | {cell['steps']} |"
            )
    if "flatness" in cells:
        lines += ["", f"## Loss on the way to the reconstruction (Tucker {HEADLINE}x, nats, 2,000 training images)", ""]
        curves = [Curve(**curve) for curve in cells["flatness"]["curves"]]
        lines += ["| t | " + " | ".join(curve.label for curve in curves) + " |", "|---|" + "---|" * len(curves)]
        for index, t in enumerate(curves[0].t):
            lines.append(f"| {t:g} | " + " | ".join(f"{c.loss[index]:.3f} +- {c.error[index]:.3f}" for c in curves) + " |")
    if "tile study" in cells:
        columns = "tiles | rank | standard deviation | excess kurtosis | relative error"
        lines += head("A Gaussian 1024 x 1024 matrix at 4x", columns)
        for name, row in cells["tile study"].items():
            numbers = (row["standard deviation"], row["excess kurtosis"], row["relative error"])
            lines.append(f"| {name} | {row['rank']} | " + " | ".join(f"{value:.3f}" for value in numbers) + " |")
    shares = [cell["distortion share"] for cell in cells.values() if cell.get("distortion share")]
    if shares:
        each = f"one in {results['setting'][1]} steps"
        lines += ["", f"Distortion takes {100 * max(shares):.2f} % of the training time at most, at {each}."]
    return lines


def plot(results: dict[str, Any], target: Path) -> None:
    """Draw accuracy over ratio, the flatness curves and the tile study."""
    from matplotlib.figure import Figure

    cells = results["cells"]
    figure = Figure(figsize=(14, 4))
    first, second, third = figure.subplots(1, 3)
    for way, style in (("distortion", "o-"), ("decomposed", "s--"), ("control, then cut", "^:")):
        found = [(ratio, cells.get(f"Tucker {ratio}x | {way} | seed 0")) for ratio in sorted(RATIOS)]
        points = [(ratio, cell["top-1"], cell["error"]) for ratio, cell in found if cell and cell["top-1"] > 60]
        if points:
            first.errorbar(*zip(*points, strict=True), fmt=style, label=way)
    if "control 0" in cells:
        first.axhline(cells["control 0"]["top-1"], color="grey", linewidth=1, label="control")
    first.set(xlabel="parameters before / after", ylabel="top-1, %", title="ResNet-32, Tucker")
    for curve in cells.get("flatness", {}).get("curves", ()):
        second.plot(curve["t"], curve["loss"], "o-", label=curve["label"])
    second.set(xlabel="t: from the weights to their reconstruction", ylabel="loss, nats", title=f"Tucker {HEADLINE}x")
    for name, row in cells.get("tile study", {}).items():
        middle = [(a + b) / 2 for a, b in zip(row["edges"], row["edges"][1:], strict=False)]
        third.plot(middle, row["density"], label=name)
    third.set(xlabel="reconstructed weight", ylabel="density", title="Gaussian matrix, 4x")
    for axes in (first, second, third):
        axes.spines[["top", "right"]].set_visible(False)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(frameon=False, fontsize=8)
    figure.tight_layout()
    figure.savefig(target, metadata={"Date": None})


def main() -> None:
    """Run the cells that are not done."""
    parser = runner.parser(__doc__)
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--state", type=Path, default=Path("distortion-state"), help="checkpoints and trained networks")
    parser.add_argument("--target", type=Path, default=runner.RESULTS / "distortion.json", help="where results go")
    parser.add_argument("--pixels", type=int, default=32, help="smaller images for longer runs on a slow machine")
    parser.add_argument("--steps", type=int, default=390)
    parser.add_argument("--rate", type=float, default=0.02, help="largest learning rate of the cycle")
    parser.add_argument("--every", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    target: Path = arguments.target
    setting = [arguments.steps, arguments.every, arguments.pixels, arguments.rate]
    command = "python benchmarks/distortion.py --models ../shared/models --data ../shared/data/cifar10-jpeg"
    for option in ("steps", "every", "pixels", "rate"):
        command += f" --{option} {getattr(arguments, option)}"
    results = runner.read(target, f"{command} --target {target.name}")
    if results["cells"] and results["setting"] != setting:
        sys.exit(f"{target} holds runs of other steps, S_D, pixels and rate ({results['setting']}): go on so, or move it away")
    results["setting"] = setting
    first = "the checkpoint, after two epochs on such images" if arguments.pixels < 32 else "the checkpoint"
    results["words"] = (
        f"CIFAR-10 (JPEG copy) at {arguments.pixels} pixels, {arguments.steps} steps of 128 images "
        f"({arguments.steps / 390:.1f} epochs; ResNet-20 six times as many) from {first}, SGD one cycle to {arguments.rate:g}, "
        f"S_D = {arguments.every}; one-shot fine-tuning with AdamW to {FACTORS['rate']:g}. Top-1 on 10,000 test images +- "
        "standard error; differences from the control are paired. "
        "One seed unless said otherwise. A dash: not run."
    )
    bench = Bench(arguments)

    def write(results: dict[str, Any]) -> None:
        target.with_suffix(".md").write_text(markdown(results))
        plot(results, target.with_suffix(".svg"))

    todo = {name: functools.partial(bench.cell, name, job) for name, job in jobs(arguments.seeds).items()}
    runner.run(todo, results, arguments, target=target, write=write)


if __name__ == "__main__":
    main()
