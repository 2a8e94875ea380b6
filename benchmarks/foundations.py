"""The main job on real checkpoints: accuracy at fixed budgets, what MaxDrop reaches, time, growth with depth, exactness.

    python benchmarks/foundations.py --models ../shared/models --data ../shared/data/cifar10-jpeg

Writes benchmarks/results/foundations.json and .md. Resumable: finished steps are kept; --redo NAME runs one again.
Images: CIFAR-10 (JPEG copy). Decisions use 1,024 calibration and 5,000 selection images of the training file; the test file
(10,000 images) is read once per network, for the report.
"""

from __future__ import annotations

import functools
import resource
import statistics as numbers
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import runner
import torch
from scipy.optimize import LinearConstraint, milp
from scipy.sparse import csr_array
from torch import nn
from torch.nn import functional

import spectrim as st
from spectrim.accuracy import Scorer
from spectrim.compress import Study
from spectrim.data import Batches, Form, open_images
from spectrim.layer import Layer
from spectrim.search.knapsack import minimum
from spectrim.statistics import Covariance, grouped
from spectrim.zoo import load_weights, make_model

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests"))
FORM = Form(3, (32, 32))


def tensors(path: Path, start: int, stop: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return images (N, 3, 32, 32) and labels (N,)."""
    images = open_images(f"parquet:{path}")
    batches = list(Batches(images.part(range(start, min(stop, len(images)))), FORM, 500))
    return torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches])


class Bench:
    """The steps; each returns a JSON-ready dictionary."""

    def __init__(self, models: Path, data: Path) -> None:
        """Read the images."""
        self.models = models
        self.calibration, _ = tensors(data / "train.parquet", 0, 1024)
        self.selection = tensors(data / "train.parquet", 1024, 6024)
        self.test = tensors(data / "test.parquet", 0, 10000)

    def network(self, name: str) -> nn.Module:
        """Return a checkpoint."""
        model = make_model(f"{HERE.parent / 'examples/cifar_resnet.py'}:{name.split('-')[0]}")
        load_weights(model, str(self.models / f"{name}.safetensors"))
        return model

    def evaluate(self, part: tuple[torch.Tensor, torch.Tensor]) -> st.Accuracy:
        """Return top-1 on a part of the images."""
        return st.Accuracy(list(zip(part[0].split(500), part[1].split(500), strict=True)))

    def keep(self, name: str) -> dict[str, Any]:
        """Accuracy lost at fixed budgets, no fine-tuning."""
        model = self.network(name)
        study = Study(model, self.calibration[:1], self.calibration, st.Config())
        scorer = Scorer(self.evaluate(self.test), model)
        rows = {}
        for fraction, metric in ((0.5, "macs"), (0.35, "macs"), (0.25, "macs"), (0.5, "params"), (0.35, "params")):
            plan, small = study.shrink(st.Keep(fraction, metric))  # type: ignore[arg-type]
            score = scorer.score(small)
            rows[f"Keep({fraction}, {metric!r})"] = {
                "before": score.before,
                "drop": score.drop,
                "standard error": score.standard_error,
                "params kept": plan.cost.params / plan.original.params,
                "MACs kept": plan.cost.macs / plan.original.macs,
                "predicted harm": plan.harm,
            }
        return rows

    def max_drop_unseen(self, name: str) -> dict[str, Any]:
        """Decide on one half of the test images and report on the other: the network was trained on all training images."""
        halves = [tuple(part[half] for part in self.test) for half in (slice(0, 5000), slice(5000, 10000))]
        return self.max_drop(name, *halves)

    def max_drop(self, name: str, selection: Any = None, test: Any = None) -> dict[str, Any]:
        """Return the most that 1.5 points allow on the selection images, and the drop on the test images."""
        selection, test = selection or self.selection, test or self.test
        model = self.network(name)
        rows = {}
        for metric in ("params", "macs"):
            start = time.perf_counter()
            result = st.compress(
                model,
                self.calibration[:1],
                budget=st.MaxDrop(1.5, metric),  # type: ignore[arg-type]
                calibration=self.calibration,
                evaluate=self.evaluate(selection),
            )
            seconds = time.perf_counter() - start
            score = Scorer(self.evaluate(test), model).score(result.model)
            chosen = result.report.selection
            assert chosen is not None
            rows[f"MaxDrop(1.5, {metric!r})"] = {
                "fewer params": 1 - result.report.kept[0],
                "fewer MACs": 1 - result.report.kept[1],
                "selection drop": chosen.drop,
                "selection standard error": chosen.standard_error,
                "test drop": score.drop,
                "test standard error": score.standard_error,
                "budgets tried": len(result.report.probes),
                "seconds": seconds,
            }
        return rows

    def time(self, name: str) -> dict[str, Any]:
        """Seconds of each stage, and the total as a multiple of one forward pass over the calibration set (medians of 3)."""
        model = self.network(name)
        runs = []
        for _ in range(3):
            with torch.no_grad():
                start = time.perf_counter()
                for batch in self.calibration.split(128):
                    model(batch)
                forward = time.perf_counter() - start
            row = {"one forward pass": forward}
            for label, methods in (("", st.Config().methods), ("ChannelSVD alone: ", (st.ChannelSVD(),))):
                study = Study(model, self.calibration[:1], self.calibration, st.Config(methods=methods))
                study.shrink(st.Keep(0.5, "macs"))
                total = sum(study.seconds.values())
                row |= {f"{label}{stage}": seconds for stage, seconds in study.seconds.items()}
                row |= {f"{label}total": total, f"{label}total, forward passes": total / forward}
            runs.append(row)
        return {key: numbers.median(run[key] for run in runs) for key in runs[0]}

    def channel_svd(self, name: str) -> dict[str, Any]:
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
            covariance = (patches.T @ patches).double() / len(patches)
            roots, vectors = torch.linalg.eigh(covariance)
            half = vectors * roots.clamp_min(0).sqrt()
            other = torch.linalg.svdvals(weight @ half).square()
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

    def knapsack(self, name: str) -> dict[str, Any]:
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
            flat, weights = np.concatenate(harms), np.concatenate(costs) / limit
            bounds = [LinearConstraint(one_each, 1, 1), LinearConstraint(weights[None], -np.inf, 1)]
            settings = {"mip_rel_gap": 1e-6, "time_limit": 60.0}
            other = milp(flat, integrality=np.ones(len(flat)), bounds=(0, 1), constraints=bounds, options=settings)
            rows[f"{classes} classes of {options}, {fraction:.0%} of the cost"] = {
                "seconds": middle - start,
                "seconds, HiGHS": time.perf_counter() - middle,
                "harm": sum(float(harm[index]) for harm, index in zip(harms, chosen, strict=True)),
                "harm, HiGHS": float(other.fun),
            }
        return rows

    def exactness(self, name: str) -> dict[str, Any]:
        """Largest relative error at full rank, with the fit to data, by decomposition and geometry."""
        from nets import GEOMETRIES, layer_and_input
        from spectrim.factorize import FACTORIZATIONS
        from spectrim.statistics import statistics

        table: dict[str, dict[str, Any]] = {}
        for title, kind in FACTORIZATIONS.items():
            method = kind()
            for geometry in GEOMETRIES:
                for dtype in (torch.float32, torch.float64):
                    torch.manual_seed(0)
                    module, x = layer_and_input(geometry, dtype=dtype)
                    network = nn.Sequential(module).eval()
                    (layer,) = st.find_layers(network, x)
                    row = table.setdefault(title, {})
                    if not method.fits(layer):
                        row[geometry] = "-"
                        continue
                    moments = statistics(network, [layer], [x])
                    plan = st.Plan({"0": st.Option(layer, method, method.full_rank(layer), 0.0, True)}, st.cost(network, x))
                    with torch.no_grad():
                        y = network(x)
                        small = [st.apply(plan, network, moments=given)(x) for given in (None, moments)]
                    errors = [float((z - y).abs().max() / y.abs().max()) for z in small]
                    row.setdefault(geometry, []).append(max(errors))
        return table


STEPS: dict[str, tuple[Callable[..., dict[str, Any]], str]] = {
    "accuracy ResNet-20": (Bench.keep, "resnet20-cifar10jpeg"),
    "accuracy ResNet-32": (Bench.keep, "resnet32-cifar10jpeg"),
    "time ResNet-20": (Bench.time, "resnet20-cifar10jpeg"),
    "time ResNet-32": (Bench.time, "resnet32-cifar10jpeg"),
    "time ResNet-44": (Bench.time, "resnet44-cifar10"),
    "MaxDrop ResNet-20": (Bench.max_drop, "resnet20-cifar10jpeg"),
    "MaxDrop ResNet-20, decided on 5,000 test images, reported on the other 5,000": (
        Bench.max_drop_unseen,
        "resnet20-cifar10jpeg",
    ),
    "512 x 512 x 3 x 3": (Bench.channel_svd, ""),
    "knapsack": (Bench.knapsack, ""),
    "full rank": (Bench.exactness, ""),
}


def markdown(results: dict[str, Any]) -> str:
    """Return all results as tables."""
    lines = ["# Foundations", "", f"`{results['command']}` on {results['machine']}", ""]
    lines += [
        "CIFAR-10 (JPEG copy), no fine-tuning; drops in points of top-1 on 10,000 test images, paired standard error.",
        "",
    ]
    for step in STEPS:
        if step not in results["cells"]:
            continue
        lines += [f"## {step}", ""]
        rows = results["cells"][step]
        if step == "full rank":
            lines += ["Largest relative error, float32 / float64; `-`: the method does not fit, and says why.", ""]
            lines += ["| geometry | " + " | ".join(rows) + " |", "|---|" + "---|" * len(rows)]
            for geometry in next(iter(rows.values())):
                cells = [row[geometry] for row in rows.values()]
                texts = [cell if cell == "-" else f"{cell[0]:.0e} / {cell[1]:.0e}" for cell in cells]
                lines.append(f"| {geometry} | " + " | ".join(texts) + " |")
        elif all(isinstance(row, dict) for row in rows.values()):
            columns = list(next(iter(rows.values())))
            lines += ["| what | " + " | ".join(columns) + " |", "|---|" + "---|" * len(columns)]
            lines += [f"| {name} | " + " | ".join(f"{row[c]:.4g}" for c in columns) + " |" for name, row in rows.items()]
        else:
            lines += ["| what | value |", "|---|---|"]
            lines += [f"| {name} | {value if isinstance(value, list) else f'{value:.4g}'} |" for name, value in rows.items()]
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    """Run the steps that are not done."""
    parser = runner.parser(__doc__)
    parser.add_argument("--models", type=Path, required=True)
    arguments = parser.parse_args()
    target = runner.RESULTS / "foundations.json"
    results = runner.read(
        target, "python benchmarks/foundations.py --models ../shared/models --data ../shared/data/cifar10-jpeg"
    )
    bench = Bench(arguments.models, arguments.data)

    def write(results: dict[str, Any]) -> None:
        results["peak memory, MiB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        target.with_suffix(".md").write_text(markdown(results))

    todo = {step: functools.partial(job, bench, name) for step, (job, name) in STEPS.items()}
    runner.run(todo, results, arguments, target=target, write=write)


if __name__ == "__main__":
    main()
