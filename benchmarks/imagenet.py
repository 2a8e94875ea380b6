"""MobileNetV2 with its ImageNet weights, without labels and without training: what each step of the method is worth.

    python benchmarks/imagenet.py --weights mobilenet_v2.pth --data SAMPLES [--photographs FOLDER]

SAMPLES is a folder with one image of each class, whose sorted names are in the order of the classes. The 2nd, 4th, ... are for
fits and decisions, in an order drawn once; the 1st, 3rd, ... are the test images, read once for each network. Photographs
without labels can join the former. Writes benchmarks/results/imagenet.json and .md; resumable. Needs torchvision (extra `zoo`).
"""

from __future__ import annotations

import argparse
import functools
import time
from pathlib import Path
from typing import Any

import torch
from common.compression import compressed
from common.images import LabelledImages, batches, photographs, share
from common.networks import torchvision_models
from common.runner import Jobs, Protocol, Results
from common.scores import Judge
from common.tables import head, plus_minus, table

import spectrim as st
from spectrim.cli.models import load_weights
from spectrim.sensitivity.measured import measured_harm

BATCH = 50
CHANNEL = (st.ChannelSVD(),)
STEPS: dict[str, dict[str, Any]] = {  # each beside the one before it
    "closed forms": {"methods": CHANNEL, "search": st.Knapsack(score="closed"), "refit": False},
    "harms on unseen images": {"methods": CHANNEL, "search": st.Knapsack(), "refit": False},
    "refit": {"methods": CHANNEL, "search": st.Knapsack()},
    "pivot form": {"methods": (st.PivotSVD(),), "search": st.Knapsack()},
    "portfolio": {"methods": (st.PivotSVD(),)},
    "the whole menu (default)": {},
    "ranks of any number": {"multiple_of": 1},
    "interactions": {"search": st.Interaction()},
    "interactions, ranks of any number": {"search": st.Interaction(), "multiple_of": 1},
    "reconstruction": {"reconstruct": st.Reconstruct(rate=5e-4, steps=30)},  # about four epochs a block
}
BUDGETS = (("macs", 0.9), ("macs", 0.8), ("macs", 0.7), ("macs", 0.95), ("params", 0.9), ("params", 0.8), ("params", 0.7))
COUNTS = (64, 128, 256)  # images to fit and to judge, together
DEFAULT = "the whole menu (default)"


class Bench:
    """The network and the images."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        """Read them."""
        samples = photographs(arguments.data)
        labels = torch.arange(len(samples))
        test: LabelledImages = (samples[::2], labels[::2])
        count = share(len(test[0]), arguments.part)
        order = torch.randperm(len(samples[1::2]), generator=torch.Generator().manual_seed(0))
        self.calibration = samples[1::2][order][:count]
        self.photographs = None if arguments.photographs is None else photographs(arguments.photographs)
        self.model = torchvision_models().mobilenet_v2().eval()
        load_weights(self.model, str(arguments.weights))
        self.judge = Judge(self.model, batches((test[0][:count], test[1][:count]), BATCH))
        self.known: dict[str, tuple[st.Prepared, float]] = {}
        self.forward = self._seconds()

    def _seconds(self) -> float:
        """Return the process seconds of one forward of one image."""
        few = self.calibration[:64].split(16)
        with torch.no_grad():
            self.model(few[0])
            start = time.process_time()
            for batch in few:
                self.model(batch)
        return (time.process_time() - start) / sum(len(batch) for batch in few)

    def prepared(self, step: str, count: int | None, *, photographs: bool = False) -> tuple[st.Prepared, float]:
        """Return moments and menu, which the budgets share, and the process seconds that they took; one in memory."""
        name = f"{step} {count} {photographs}"
        if name not in self.known:
            self.known.clear()
            found = self.calibration[:count]
            if photographs and self.photographs is not None:
                found = torch.cat([found, self.photographs])
                found = found[torch.randperm(len(found), generator=torch.Generator().manual_seed(0))]
            start = time.process_time()
            prepared = st.prepare(self.model, found[:1], calibration=found.split(BATCH), config=st.Config(**STEPS[step]))
            self.known[name] = prepared, time.process_time() - start
        return self.known[name]

    def cell(
        self, step: str, metric: Any, fraction: float, count: int | None = None, *, photographs: bool = False
    ) -> dict[str, Any]:
        """One budget at one step."""
        prepared, before = self.prepared(step, count, photographs=photographs)
        start = time.process_time()
        row, plan, small = compressed(prepared, st.Keep(fraction, metric), self.judge)
        took = before + time.process_time() - start - 2 * len(self.judge.labels) * self.forward
        plain = self.judge.compare(st.apply(plan, self.model, moments=prepared.moments))
        fitting, unseen = (sum(len(batch) for batch in found) for found in (prepared.calibration, prepared.unseen))
        passes = took / self.forward / (fitting + unseen)
        harm = measured_harm(self.model, small, prepared.unseen)
        told = {"unrefitted KL": plain["KL"], "harm on unseen images": harm, "forwards of CPU time": passes}
        return {**row, **told, "images to fit": fitting, "images to judge": unseen}


def jobs(bench: Bench) -> Jobs:
    """Return the cells by name."""
    found: dict[str, Any] = {}
    for step in STEPS:
        for metric, fraction in BUDGETS:
            if step == DEFAULT or (metric == "macs" and fraction < 0.95):
                found[f"{100 * fraction:g} % of the {metric}, {step}"] = functools.partial(bench.cell, step, metric, fraction)
    for count in COUNTS:
        found[f"90 % of the macs, {count} images"] = functools.partial(bench.cell, DEFAULT, "macs", 0.9, count)
    if bench.photographs is not None:
        found["90 % of the macs, photographs too"] = functools.partial(bench.cell, DEFAULT, "macs", 0.9, photographs=True)
    return found


def markdown(results: Results) -> str:
    """Return the cells as a table."""
    cells, lines = results["cells"], head("MobileNetV2 on ImageNet samples", results)
    first = next(iter(cells.values()))
    lines += [
        f"{100 * first['before']:.1f} % of {first['test images']} test images before, no labels, no training but where it says "
        "so. Drop of top-1 in points with its paired standard error, KL in nats with its own. Predicted: the sum of the plan's "
        "harms, against the KL without the refit; harm on unseen images: what the report says, against the KL. Forwards: "
        "process time from statistics to the network, in evaluations of the original on the same images."
    ]
    rows = [
        [
            name,
            plus_minus(cell),
            f"{cell['KL']:.4f} +- {cell['KL standard error']:.4f}",
            f"{cell['predicted']:.4f}",
            f"{cell['unrefitted KL']:.4f}",
            f"{cell['harm on unseen images']:.4f}",
            f"{cell['forwards of CPU time']:.1f}",
            f"{cell['images to fit']} + {cell['images to judge']}",
        ]
        for name, cell in cells.items()
    ]
    columns = "budget, step | drop | KL | predicted | KL without refit | harm on unseen images | forwards | images"
    return "\n".join([*lines, "", *table(columns, rows)])


PROTOCOL = Protocol(
    "imagenet",
    "python benchmarks/imagenet.py --weights mobilenet_v2.pth --data SAMPLES --photographs FOLDER",
    markdown,
    needed={"weights": "of torchvision's mobilenet_v2"},
)


def main() -> None:
    """Run the command line."""
    parser = PROTOCOL.parser(__doc__)
    parser.add_argument("--photographs", type=Path, help="folder of further images without labels")
    arguments = PROTOCOL.parse(parser)
    PROTOCOL.run(arguments, lambda cells: jobs(Bench(arguments)))


if __name__ == "__main__":
    main()
