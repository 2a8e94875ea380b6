"""The main job on real checkpoints: accuracy at fixed budgets, what MaxDrop reaches, time, growth with depth, exactness.

    python benchmarks/foundations.py --models ../shared/models --data ../shared/data/cifar10-jpeg

Writes benchmarks/results/foundations.json and .md. Resumable: finished steps are kept; --redo NAME runs one again.
Images: CIFAR-10 (JPEG copy). Decisions use 1,024 calibration and 5,000 selection images of the training file; the test file
(10,000 images) is read once per network, for the report.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import statistics as numbers
import sys
import time
from typing import Any

import numpy as np
import torch
from common.compression import compressed, most_compressed
from common.images import batches, read, share
from common.networks import checkpoint
from common.provenance import HERE
from common.runner import Jobs, Protocol, Results
from common.scores import Judge
from common.tables import head, measured, rows_of, table
from scipy.optimize import LinearConstraint, milp
from scipy.sparse import csr_array
from torch import nn
from torch.nn import functional

import spectrim as st
from spectrim.core.cost import Metric
from spectrim.core.layer import Layer
from spectrim.search.knapsack import minimum
from spectrim.sensitivity.covariance import Covariance
from spectrim.sensitivity.moments import gather_moments, grouped

METHODS = (st.ChannelSVD(), st.InputSVD(), st.SpatialSVD(), st.Tucker2(), st.CP(), st.TensorTrain(), st.TiledSVD())
FIXED: tuple[tuple[float, Metric], ...] = ((0.5, "macs"), (0.35, "macs"), (0.25, "macs"), (0.5, "params"), (0.35, "params"))


class Bench:
    """The steps; each returns a JSON-ready dictionary."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        """Read the images."""
        self.models = arguments.models
        calibration, selection, test = (share(count, arguments.part) for count in (1024, 5000, 10000))
        self.calibration, _ = read(arguments.data, "train", stop=calibration)
        self.selection = batches(read(arguments.data, "train", 1024, 1024 + selection), 500)
        self.test = batches(read(arguments.data, "test", stop=test), 500)

    def keep(self, name: str) -> dict[str, Any]:
        """Accuracy lost at fixed budgets, no fine-tuning."""
        model = checkpoint(self.models, name)
        prepared, judge = self.prepared(model), Judge(model, self.test)
        budgets = [st.Keep(fraction, metric) for fraction, metric in FIXED]
        return {str(budget): compressed(prepared, budget, judge)[0] for budget in budgets}

    def max_drop(self, name: str, unseen: bool = False) -> dict[str, Any]:
        """Return the most that 1.5 points allow on the selection images; or, for unseen ones, on half of the test images."""
        half, model = len(self.test) // 2, checkpoint(self.models, name)
        selection, test = (self.test[:half], self.test[half:]) if unseen else (self.selection, self.test)
        prepared, judge, evaluate = self.prepared(model), Judge(model, test), st.Accuracy(selection)
        bounds = [st.MaxDrop(1.5, "params"), st.MaxDrop(1.5, "macs")]
        return {str(bound): most_compressed(prepared, bound, evaluate, judge)[0] for bound in bounds}

    def prepared(self, model: nn.Module, methods: tuple[st.Factorization, ...] = st.Config().methods) -> st.Prepared:
        """Return moments and menu of a network."""
        config = st.Config(methods=methods)
        return st.prepare(model, self.calibration[:1], calibration=self.calibration, config=config)

    def time(self, name: str) -> dict[str, Any]:
        """Seconds of each stage, and the total as a multiple of one forward pass over the calibration set (medians of 3)."""
        model, runs = checkpoint(self.models, name), []
        for _ in range(3):
            with torch.no_grad():
                start = time.perf_counter()
                for batch in self.calibration.split(128):
                    model(batch)
                forward = time.perf_counter() - start
            row = {"one forward pass": forward}
            for label, methods in (("", st.Config().methods), ("ChannelSVD alone: ", (st.ChannelSVD(),))):
                prepared = self.prepared(model, methods)
                plan = st.choose(prepared, st.Keep(0.5, "macs"))
                spent = prepared.spent + plan.spent + st.realize(prepared, plan).spent
                total = sum(spent.seconds.values())
                row |= {f"{label}{stage}": seconds for stage, seconds in spent.seconds.items()}
                row |= {f"{label}total": total, f"{label}total, forward passes": total / forward}
            runs.append(row)
        return {key: numbers.median(run[key] for run in runs) for key in runs[0]}


def channel_svd() -> dict[str, Any]:
    """Statistics and all ranks of ChannelSVD on a 512 x 512 x 3 x 3 layer: T x T against im2col covariance and eigh."""
    torch.manual_seed(0)
    layer = Layer("x", "Conv2d", (512, 512, 3, 3), ((512, 16, 16),), (1, 1), (1, 1), (), (1, 1))
    module = nn.Conv2d(512, 512, 3, padding=1, bias=False)
    mix = torch.randn(512, 512) * torch.logspace(0, -2, 512)
    x = torch.einsum("ts,nshw->nthw", mix, torch.randn(32, 512, 16, 16)).relu()
    with torch.no_grad():
        y = module(x)
    weight = module.weight.detach().double().flatten(1)
    ours, theirs, error = [], [], 0.0
    for _ in range(3):
        start = time.perf_counter()
        sums = Covariance()
        sums.add(grouped(layer, y))
        values = torch.linalg.eigvalsh(sums.covariance[0])
        ours.append(time.perf_counter() - start)
        start = time.perf_counter()
        patches = functional.unfold(x, 3, padding=1).transpose(1, 2).flatten(0, 1)
        patches -= patches.mean(0)
        roots, vectors = torch.linalg.eigh((patches.T @ patches).double() / len(patches))
        other = torch.linalg.svdvals(weight @ (vectors * roots.clamp_min(0).sqrt())).square()
        theirs.append(time.perf_counter() - start)
        tails = values.cumsum(0), other.flip(0).cumsum(0)
        error = float((tails[0] - tails[1]).abs().max() / tails[1][-1])
    ratios = [b / a for a, b in zip(ours, theirs, strict=True)]
    return {
        "T x T, s": numbers.median(ours),
        "im2col, s": numbers.median(theirs),
        "times faster": numbers.median(ratios),
        "spread": [min(ratios), max(ratios)],
        "largest relative difference of the predicted losses": error,
    }


def knapsack() -> dict[str, Any]:
    """Seconds on one thread and least harm of random classes: ours, and scipy's HiGHS (to 1e-6, 60 s at most)."""
    rows = {}
    for classes, options, fraction in ((13, 400, 0.5), (13, 400, 0.1), (50, 300, 0.5), (50, 300, 0.1), (150, 300, 0.5)):
        random = np.random.default_rng(classes)
        harms, costs = [], []
        for _ in range(classes):
            size = int(random.integers(20_000, 3_000_000))
            cost = np.sort(random.choice(size, options, replace=False))
            costs.append(cost.astype(np.int64))
            noise = np.exp(0.1 * random.normal(size=options))
            harms.append(np.minimum.accumulate(random.lognormal() * (1 - cost / size) ** 3 * noise) - 1e-12 * cost)
        limit = int(fraction * sum(cost[-1] for cost in costs))
        start = time.perf_counter()
        chosen = minimum(harms, costs, limit)
        middle = time.perf_counter()
        owner = np.repeat(np.arange(classes), options)
        one_each = csr_array((np.ones(len(owner)), (owner, np.arange(len(owner)))))
        bounds = [LinearConstraint(one_each, 1, 1), LinearConstraint((np.concatenate(costs) / limit)[None], -np.inf, 1)]
        settings = {"mip_rel_gap": 1e-6, "time_limit": 60.0}
        given = {"integrality": np.ones(len(owner)), "bounds": (0, 1), "constraints": bounds, "options": settings}
        least = float(milp(np.concatenate(harms), **given).fun)
        rows[f"{classes} classes of {options}, {fraction:.0%} of the cost"] = {
            "seconds": middle - start,
            "seconds, HiGHS": time.perf_counter() - middle,
            "harm": sum(float(harm[index]) for harm, index in zip(harms, chosen, strict=True)),
            "harm, HiGHS": least,
        }
    return rows


def exactness() -> dict[str, Any]:
    """Largest relative error at full rank, with the fit to data, by decomposition and geometry."""
    sys.path.append(str(HERE.parent / "tests"))
    from nets import GEOMETRIES, layer_and_input

    found: dict[str, dict[str, Any]] = {type(method).__name__: {} for method in METHODS}
    for method, geometry, dtype in itertools.product(METHODS, GEOMETRIES, (torch.float32, torch.float64)):
        torch.manual_seed(0)
        module, x = layer_and_input(geometry, dtype=dtype)
        network, row = nn.Sequential(module).eval(), found[type(method).__name__]
        (layer,) = st.find_layers(network, x)
        if not method.fits(layer.convolution):
            row[geometry] = "-"
            continue
        moments = gather_moments(network, [layer], [x])
        option = st.Option(layer, method, method.full_rank(layer.convolution), 0.0, True)
        plan = st.Plan({"0": option}, st.cost(network, x))
        with torch.no_grad():
            y, small = network(x), [st.apply(plan, network, moments=given)(x) for given in (None, moments)]
        row.setdefault(geometry, []).append(max(float((z - y).abs().max() / y.abs().max()) for z in small))
    return found


UNSEEN = "MaxDrop ResNet-20, decided on 5,000 test images, reported on the other 5,000"
STEPS: dict[str, tuple[Any, ...]] = {  # what is called, and with what behind the bench; with nothing, without it
    "accuracy ResNet-20": (Bench.keep, "resnet20-cifar10jpeg"),
    "accuracy ResNet-32": (Bench.keep, "resnet32-cifar10jpeg"),
    "time ResNet-20": (Bench.time, "resnet20-cifar10jpeg"),
    "time ResNet-32": (Bench.time, "resnet32-cifar10jpeg"),
    "time ResNet-44": (Bench.time, "resnet44-cifar10"),
    "MaxDrop ResNet-20": (Bench.max_drop, "resnet20-cifar10jpeg"),
    UNSEEN: (Bench.max_drop, "resnet20-cifar10jpeg", True),
    "512 x 512 x 3 x 3": (channel_svd,),
    "knapsack": (knapsack,),
    "full rank": (exactness,),
}


def jobs(bench: Bench) -> Jobs:
    """Return every step by name."""
    return {name: functools.partial(step, bench, *given) if given else step for name, (step, *given) in STEPS.items()}


def markdown(results: Results) -> str:
    """Return all results as tables."""
    lines = head("Foundations", results)
    lines += [
        "CIFAR-10 (JPEG copy), no fine-tuning; drops in points of top-1 on 10,000 test images, paired standard error.",
        "",
    ]
    for step in (step for step in STEPS if step in results["cells"]):
        rows = measured(results["cells"][step])
        if step == "full rank":
            lines += [
                f"## {step}",
                "",
                "Largest relative error, float32 / float64; `-`: the method does not fit, and says why.",
            ]
            lines.append("")
            found = [[geometry, *(errors(row[geometry]) for row in rows.values())] for geometry in next(iter(rows.values()))]
            lines += table(f"geometry | {' | '.join(rows)}", found)
        elif all(isinstance(row, dict) for row in rows.values()):
            columns, found = rows_of(rows, 4)
            lines += table(f"what | {columns}", found, step)
        else:
            found = [[name, value if isinstance(value, list) else f"{value:.4g}"] for name, value in rows.items()]
            lines += table("what | value", found, step)
    return "\n".join(lines)


def errors(pair: Any) -> str:
    """Return the errors in both precisions."""
    return "-" if pair == "-" else f"{pair[0]:.0e} / {pair[1]:.0e}"


PROTOCOL = Protocol(
    "foundations",
    "python benchmarks/foundations.py --models ../shared/models --data ../shared/data/cifar10-jpeg",
    markdown,
    needed={"models": "folder of checkpoints"},
)
main = functools.partial(PROTOCOL.main, __doc__, lambda arguments: jobs(Bench(arguments)))

if __name__ == "__main__":
    main()
