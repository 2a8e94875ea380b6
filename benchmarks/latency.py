"""Time as a budget: what plans by latency take where they are run, and how accurate they are.

    python benchmarks/latency.py --models ../shared/models --data ../shared/data/cifar10-jpeg

Writes benchmarks/results/latency.json and .md after every cell; resumable (`--only`, `--redo`). One thread, batch 1; every
network is timed in a fresh process, in turn with the original (`st.bench`): median ratio of CPU time over pairs of runs.

Shares: networks with random weights at 224 pixels, planned by `Keep(f, "latency")` without data and without CP, whose fits to
random weights would take most of the time. Beside each the plans of the same MACs by `Keep(m, "macs")`, with ranks as the
target likes them and with any. Front: ResNet-20 and ResNet-32 on CIFAR-10
(JPEG copy), no fine-tuning, chosen by predicted harm (`Knapsack`); fits and decisions see training images, and each network
reads the test images once.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import tempfile
import time
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from common.compression import kept
from common.images import batches, read, share
from common.networks import EXAMPLES
from common.runner import Jobs, Protocol
from common.scores import Judge
from pages.latency import markdown, plot

import spectrim as st
from spectrim.cli.models import load_weights, make_model
from spectrim.network.reorder import reordered
from spectrim.pipeline.latency import formula
from spectrim.pipeline.prices import priced
from spectrim.pipeline.stopwatch import Stopwatch, stand_in
from spectrim.targets.base import Target

NETWORKS = {
    "ResNet-18": "torchvision:resnet18",
    "MobileNetV2": "torchvision:mobilenet_v2",
    "SqueezeNet 1.1": "torchvision:squeezenet1_1",
    "ResNet-50": "torchvision:resnet50",
    "VGG-16-BN": "torchvision:vgg16_bn",
    "DenseNet-121": "torchvision:densenet121",
    "EfficientNet-B0": "torchvision:efficientnet_b0",
    "ConvNeXt-atto": "timm:convnext_atto",
}
TARGETS: dict[str, Target] = {"onnxruntime": st.OnnxRuntime(), "openvino": st.OpenVINO(), "torch": st.Torch()}
BUDGETS, COMPACT = (0.5, 0.7), (0.7, 0.85, 0.5)  # compact networks cannot be halved: 0.5 tells how far they go
HALVES = ("ResNet-18", "SqueezeNet 1.1", "ResNet-50", "VGG-16-BN", "DenseNet-121")
SHAPE = (1, 3, 224, 224)
METHODS = (st.ChannelSVD(), st.SpatialSVD(), st.SpatialSVD(axis=1))
SECONDS = 2.0  # of measuring each network in the fresh process
CHECKPOINTS = {"ResNet-20": "resnet20-cifar10jpeg", "ResNet-32": "resnet32-cifar10jpeg"}
SMALL = (1, 3, 32, 32)
ALIGNED, ANY = "by MACs, aligned", "by MACs, any ranks"
LATENCY = "by latency"
FRONT = (  # the most important first
    (LATENCY, 0.65),
    (ALIGNED, 0.5),
    (LATENCY, 0.5),
    (ALIGNED, 0.35),
    (LATENCY, 0.8),
    (ALIGNED, 0.65),
    (LATENCY, 0.4),
    (ANY, 0.5),
    (ANY, 0.35),
    (ANY, 0.65),
)
IMAGES = 1024


def timed(spec: str, shape: tuple[int, ...], target: Target, texts: Mapping[str, str], seconds: float) -> dict[str, Any]:
    """Time networks of plans, with random weights, in turn with the original: in this process.

    Args:
        spec: Of the original, as on the command line.
        shape: Of the batch.
        target: Where.
        texts: Name to the plan as JSON.
        seconds: Of measuring each.

    Returns:
        Milliseconds of the original, and for each name the ratio of times with its interval.
    """
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model, example = make_model(spec), torch.randn(shape)
    networks = {name: reordered(stand_in(st.Plan.from_json(text), model), example) for name, text in texts.items()}
    original, *others = st.bench({"original": model, **networks}, example, targets=[target], seconds=seconds).rows
    found: dict[str, Any] = {"original ms": original.process.median_ms}
    for row in others:
        assert row.verdict is not None
        found[row.model] = [row.verdict.ratio, row.verdict.low, row.verdict.high]
    return found


def fresh(spec: str, shape: tuple[int, ...], target: Target, plans: Mapping[str, st.Plan]) -> dict[str, Any]:
    """Return what `timed` does in a fresh process."""
    texts = {name: plan.to_json() for name, plan in plans.items()}
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(timed, spec, shape, target, texts, SECONDS).result()


class Meter:
    """Process seconds of a stage, and how often it ran: a progress callback."""

    def __init__(self, stage: str) -> None:
        """Begin with nothing."""
        self.stage, self.seconds, self.count, self.start = stage, 0.0, 0, 0.0

    def __call__(self, stage: str, share: float) -> None:
        """Take the time of the stage's beginning and end."""
        if stage == self.stage and share == 0:
            self.start, self.count = time.process_time(), self.count + 1
        elif stage == self.stage and share == 1:
            self.seconds += time.process_time() - self.start


class Bench:
    """The networks and images; each step returns a JSON-ready dictionary."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        """Read nothing yet."""
        self.arguments, self.cache = arguments, arguments.state or Path(tempfile.mkdtemp())
        self.known: dict[Any, tuple[st.Prepared, float]] = {}  # of the network and settings that were last asked for
        self.judges: dict[str, Judge] = {}

    def bare(self, network: str, multiple: int | None = None) -> tuple[st.Prepared, float]:
        """Return a network of random weights with its menu, and the process seconds that it took."""
        if (network, multiple) not in self.known:
            self.known = {key: found for key, found in self.known.items() if key[0] == network}
            torch.manual_seed(0)
            model, start = make_model(NETWORKS[network]), time.process_time()
            settings: dict[str, Any] = {"search": st.Knapsack(), "refit": False, "multiple_of": multiple}
            config = st.Config(methods=METHODS, cache=self.cache, **settings)
            prepared = st.prepare(model, torch.randn(SHAPE), config=config)
            self.known[network, multiple] = prepared, time.process_time() - start
        return self.known[network, multiple]

    def cell(self, network: str, word: str, fraction: float) -> dict[str, Any]:
        """One network at one budget on one target."""
        target, meter = TARGETS[word], Meter("timing")
        prepared, before = self.bare(network)
        with tempfile.TemporaryDirectory() as folder:  # nothing is shared between cells, so that each has its whole price
            config = replace(prepared.config, target=target, cache=folder, progress=meter)
            prepared, start = replace(prepared, config=config), time.process_time()
            try:
                plan = st.choose(prepared, st.Keep(fraction, "latency"))
            except st.BudgetError as error:
                return {"missed": str(error), "timing": meter.seconds, "networks timed": meter.count}
            choosing, timing, count = time.process_time() - start, meter.seconds, meter.count
            start = time.process_time()
            told = predictions(prepared, plan)
        macs = plan.cost.macs / plan.original.macs
        plans = {LATENCY: plan, ALIGNED: st.choose(prepared, st.Keep(macs, "macs"))}
        plans[ANY] = st.choose(self.bare(network, 1)[0], st.Keep(macs, "macs"))
        ratios = fresh(NETWORKS[network], SHAPE, target, plans)
        cost = {"timing": timing, "networks timed": count, "everything": before + choosing}
        others = {f"MACs of {name}": other.cost.macs / other.original.macs for name, other in plans.items()}
        return {"budget": fraction, "MACs": macs, **ratios, **others, **told, **cost, "runtime": target.describe()}

    def prepared(self, network: str, multiple: int | None) -> st.Prepared:
        """Return what is prepared once for a checkpoint."""
        key = f"{network}, trained", multiple
        if key not in self.known:
            self.known.clear()
            images, _ = read(self.arguments.data, "train", stop=share(8192, self.arguments.part))
            model = make_model(spec_of(network))
            load_weights(model, str(self.arguments.models / f"{CHECKPOINTS[network]}.safetensors"))
            count = share(IMAGES, self.arguments.part)
            settings: dict[str, Any] = {"search": st.Knapsack(), "multiple_of": multiple, "cache": self.cache}
            config = st.Config(images=count, batch=min(128, count), **settings)
            self.known[key] = st.prepare(model, images[:1], calibration=images, config=config), 0.0
        if network not in self.judges:
            test = read(self.arguments.data, "test", stop=share(10000, self.arguments.part))
            self.judges[network] = Judge(self.known[key][0].model, batches(test))
        return self.known[key][0]

    def point(self, network: str, way: str, fraction: float, word: str) -> dict[str, Any]:
        """One trained network at one budget: its accuracy, and its time on a target."""
        prepared = self.prepared(network, 1 if way == ANY else None)
        prepared = replace(prepared, config=replace(prepared.config, target=TARGETS[word]))
        plan = st.choose(prepared, st.Keep(fraction, "latency" if way == LATENCY else "macs"))
        row = self.judges[network].compare(st.realize(prepared, plan).model)
        ratios = fresh(spec_of(network), SMALL, TARGETS[word], {"time": plan})
        return {"budget": fraction, **row, **kept(plan), **ratios, "runtime": TARGETS[word].describe()}


def predictions(prepared: st.Prepared, plan: st.Plan) -> dict[str, float]:
    """Return what a plan was thought to take: by the formula, the corrected column, and the loop's own measurement."""
    target, menu = prepared.config.target, priced(prepared, ["latency"]).menu
    assert target is not None
    chosen = menu.numbers(plan)
    units = [
        [formula(target, row.options[index]) for index in (0, each)] for row, each in zip(menu.layers, chosen, strict=True)
    ]
    whole = menu.whole("latency")
    return {
        "formula": sum(new for _, new in units) / sum(old for old, _ in units),
        "column": menu.cost(chosen, "latency") / whole,
        "loop": Stopwatch.of(prepared, prepared.ledger()).ratio(plan),
        "of no layer": 1 - sum(int(row.costs["latency"][0]) for row in menu.layers) / whole,
        "least": menu.least("latency") / whole,
    }


def spec_of(network: str) -> str:
    """Return what builds a network of examples/cifar_resnet.py."""
    return f"{EXAMPLES / 'cifar_resnet.py'}:{CHECKPOINTS[network].partition('-')[0]}"


def jobs(bench: Bench) -> Jobs:
    """Return every cell by name, the most important first."""
    found: dict[str, Any] = {}
    for network, word in itertools.product(NETWORKS, TARGETS):
        for fraction in BUDGETS if network in HALVES else COMPACT:
            found[f"{network} | {word} | {fraction}"] = functools.partial(bench.cell, network, word, fraction)
    for network, (way, fraction) in itertools.product(CHECKPOINTS, FRONT):
        name = f"front | {network} | {way} | {fraction}"
        found[name] = functools.partial(bench.point, network, way, fraction, "onnxruntime")
    return found


PROTOCOL = Protocol(
    "latency",
    "python benchmarks/latency.py --models ../shared/models --data ../shared/data/cifar10-jpeg",
    markdown,
    plot,
    {"models": "folder of checkpoints"},
)


def main() -> None:
    """Run the command line."""
    parser = PROTOCOL.parser(__doc__)
    parser.add_argument(
        "--state", type=Path, help="folder that keeps finished pieces of cells that are not; else they are lost"
    )
    arguments = PROTOCOL.parse(parser)
    PROTOCOL.run(arguments, lambda cells: jobs(Bench(arguments)))


if __name__ == "__main__":
    main()
