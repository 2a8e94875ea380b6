"""VGG-16-BN to a few per cent of its parameters, no fine-tuning.

    python benchmarks/train_vgg.py ../shared/data/cifar10-jpeg vgg16.safetensors
    python benchmarks/vgg.py --weights vgg16.safetensors --data ../shared/data/cifar10-jpeg

Writes benchmarks/results/vgg.json and .md; resumable, `--redo TEXT` runs again. 1,024 calibration images; MaxDrop decides on
the last 5,000 training images, which the network was not trained on; every network is then read once on 10,000 test images.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import runner
import torch

import spectrim as st
from spectrim.accuracy import Scorer
from spectrim.compress import Study
from spectrim.data import Batches, Form, open_images
from spectrim.zoo import load_weights, make_model

HERE = Path(__file__).parent
SEARCHES = {
    "menu": st.Config(),
    "ChannelSVD alone": st.Config(methods=(st.ChannelSVD(),)),
    "BALF's energies, ChannelSVD alone, no refit": st.Config(
        methods=(st.ChannelSVD(),), search=st.Knapsack(score="whitened"), gradient=False, refit=False
    ),
}


class Bench:
    """The network and the images."""

    def __init__(self, weights: Path, data: Path) -> None:
        """Read them."""
        self.model = make_model(f"{HERE.parent / 'examples/cifar_vgg.py'}:vgg16").eval()
        load_weights(self.model, str(weights))
        train, test = (open_images(f"parquet:{data / split}.parquet") for split in ("train", "test"))
        self.calibration = next(iter(Batches(train.part(range(1024)), Form(3, (32, 32)), 1024)))[0]
        self.held = list(Batches(train.part(range(45000, 50000)), Form(3, (32, 32)), 500))
        self.test = list(Batches(test.part(range(10000)), Form(3, (32, 32)), 500))
        self.studies: dict[str, Study] = {}
        self.scorer: Scorer | None = None

    def scores(self, small: torch.nn.Module) -> dict[str, Any]:
        """Return what the test images say."""
        self.scorer = self.scorer or Scorer(st.Accuracy(self.test), self.model)
        score = self.scorer.score(small)
        return {"before": score.before, "drop": score.drop, "standard error": score.standard_error}

    def study(self, config: str) -> Study:
        """Return statistics and menu, which the budgets share."""
        if config not in self.studies:
            self.studies = {config: Study(self.model, self.calibration[:1], self.calibration, SEARCHES[config])}
        return self.studies[config]

    def keep(self, config: str, fraction: float) -> dict[str, Any]:
        """One budget."""
        study = self.study(config)
        plan, small = study.shrink(st.Keep(fraction, "params"))
        kept = plan.cost.params / plan.original.params, plan.cost.macs / plan.original.macs
        return {**self.scores(small), "params kept": kept[0], "MACs kept": kept[1], "seconds": dict(study.seconds)}

    def max_drop(self, metric: Any) -> dict[str, Any]:
        """Return the most that 1.5 points on held-out images allow."""
        start = time.perf_counter()
        study = self.study("menu")
        result = study.most_compressed(st.MaxDrop(1.5, metric), Scorer(st.Accuracy(self.held), self.model))
        chosen = result.report.selection
        assert chosen is not None
        kept = result.report.kept
        row = {"params kept": kept[0], "MACs kept": kept[1], "held-out drop": chosen.drop}
        return {
            **self.scores(result.model),
            **row,
            "seconds": {"all": time.perf_counter() - start},
            "budgets tried": len(result.report.probes),
        }


def jobs() -> dict[str, Callable[[Bench], dict[str, Any]]]:
    """Return the steps by name."""
    found: dict[str, Callable[[Bench], dict[str, Any]]] = {}
    for config in SEARCHES:
        for fraction in (0.05, 0.03, 0.1, 0.08):
            found[f"{100 * fraction:g} % of the parameters, {config}"] = lambda b, c=config, f=fraction: b.keep(c, f)
    for metric in ("params", "macs"):
        found[f"MaxDrop(1.5, {metric!r})"] = lambda b, m=metric: b.max_drop(m)
    return found


def markdown(results: dict[str, Any]) -> str:
    """Return the cells as a table."""
    before = 100 * next(iter(results["cells"].values()))["before"]
    lines = ["# VGG-16-BN", "", f"`{results['command']}` on {results['machine']}", ""]
    lines += [
        f"CIFAR-10 (JPEG copy), {before:.2f} % before, no fine-tuning; drop on 10,000 test images, paired standard error."
    ]
    lines += ["", "| budget | drop | params kept | MACs kept |", "|---|---|---|---|"]
    for name, row in results["cells"].items():
        drop = f"{row['drop']:.2f} +- {row['standard error']:.2f}"
        lines.append(f"| {name} | {drop} | {100 * row['params kept']:.2f} % | {100 * row['MACs kept']:.2f} % |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run what is not done."""
    parser = runner.parser(__doc__)
    parser.add_argument("--weights", type=Path, required=True)
    arguments = parser.parse_args()
    target = runner.RESULTS / "vgg.json"
    results = runner.read(target, "python benchmarks/vgg.py --weights vgg16.safetensors --data ../shared/data/cifar10-jpeg")
    bench = Bench(arguments.weights, arguments.data)
    todo = {name: functools.partial(job, bench) for name, job in jobs().items()}
    runner.run(todo, results, arguments, target=target, write=lambda r: target.with_suffix(".md").write_text(markdown(r)))


if __name__ == "__main__":
    main()
