"""VGG-16-BN to a few per cent of its parameters, no fine-tuning.

    python benchmarks/train_vgg.py ../shared/data/cifar10-jpeg vgg16.safetensors
    python benchmarks/vgg.py --weights vgg16.safetensors --data ../shared/data/cifar10-jpeg

Writes benchmarks/results/vgg.json and .md; resumable, `--redo TEXT` runs again. 1,024 calibration images; MaxDrop decides on
the last 5,000 training images, which the network was not trained on; every network is then read once on 10,000 test images.
"""

from __future__ import annotations

import argparse
import functools
from typing import Any

from common.compression import compressed, most_compressed
from common.images import batches, read, share
from common.networks import vgg16
from common.runner import Jobs, Protocol, Results
from common.scores import Judge
from common.tables import head, plus_minus, table

import spectrim as st

ALONE = (st.ChannelSVD(),)
SETTINGS: dict[str, dict[str, Any]] = {
    "menu": {},
    "ChannelSVD alone": {"methods": ALONE},
    "BALF's energies, ChannelSVD alone, no refit": {
        "methods": ALONE,
        "search": st.Knapsack(score="whitened"),
        "gradient": False,
        "refit": False,
    },
}


class Bench:
    """The network and the images."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        """Read them."""
        calibration, selection, test = (share(count, arguments.part) for count in (1024, 5000, 10000))
        self.calibration, _ = read(arguments.data, "train", stop=calibration)
        self.selection = st.Accuracy(batches(read(arguments.data, "train", -5000, -5000 + selection or None), 500))
        self.model = vgg16(arguments.weights)
        self.judge = Judge(self.model, batches(read(arguments.data, "test", stop=test), 500))
        self.known: dict[str, st.Prepared] = {}

    def prepared(self, settings: str) -> st.Prepared:
        """Return moments and menu, which the budgets share; one at a time in memory."""
        if settings not in self.known:
            self.known.clear()
            config = st.Config(**SETTINGS[settings])
            self.known[settings] = st.prepare(self.model, self.calibration[:1], calibration=self.calibration, config=config)
        return self.known[settings]

    def keep(self, settings: str, fraction: float) -> dict[str, Any]:
        """One budget."""
        return compressed(self.prepared(settings), st.Keep(fraction, "params"), self.judge)[0]

    def max_drop(self, metric: Any) -> dict[str, Any]:
        """Return the most that 1.5 points on the selection images allow."""
        return most_compressed(self.prepared("menu"), st.MaxDrop(1.5, metric), self.selection, self.judge)[0]


def jobs(bench: Bench) -> Jobs:
    """Return the cells by name."""
    found: dict[str, Any] = {}
    for settings in SETTINGS:
        for fraction in (0.05, 0.03, 0.1, 0.08):
            found[f"{100 * fraction:g} % of the parameters, {settings}"] = functools.partial(bench.keep, settings, fraction)
    for metric in ("params", "macs"):
        found[f"MaxDrop(1.5, {metric!r})"] = functools.partial(bench.max_drop, metric)
    return found


def markdown(results: Results) -> str:
    """Return the cells as a table."""
    cells, lines = results["cells"], head("VGG-16-BN", results)
    before = 100 * next(iter(cells.values()))["before"]
    lines += [
        f"CIFAR-10 (JPEG copy), {before:.2f} % before, no fine-tuning; drop on 10,000 test images, paired standard error."
    ]
    left = [(cell["params kept"], cell.get("macs kept", cell.get("MACs kept"))) for cell in cells.values()]  # old ones say MACs
    kept = [[f"{100 * part:.2f} %" for part in parts] for parts in left]
    rows = [[name, plus_minus(cell), *shares] for (name, cell), shares in zip(cells.items(), kept, strict=True)]
    return "\n".join([*lines, "", *table("budget | drop | params kept | MACs kept", rows)])


PROTOCOL = Protocol(
    "vgg",
    "python benchmarks/vgg.py --weights vgg16.safetensors --data ../shared/data/cifar10-jpeg",
    markdown,
    needed={"weights": "of examples/cifar_vgg.py, such as train_vgg.py writes"},
)
main = functools.partial(PROTOCOL.main, __doc__, lambda arguments: jobs(Bench(arguments)))

if __name__ == "__main__":
    main()
