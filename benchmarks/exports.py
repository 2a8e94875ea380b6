r"""Files for devices: eight compressed networks in four formats, float and int8, each beside PyTorch and the original.

    python benchmarks/exports.py --models ../shared/models --data ../shared/data/cifar10-jpeg --samples SAMPLES \
        --mobilenet mobilenet_v2.pth --vgg vgg16.safetensors

SAMPLES is a folder of photographs, one of each class, as for benchmarks/imagenet.py; without `--vgg` VGG-16-BN has random
weights. Every network is compressed by `Knapsack` to half of its MACs (MobileNetV2 to 0.9), written by `st.export`, and run by
the format's own runtime on inputs that neither fits nor ranges have seen. Networks without trained weights have random ones,
with norms of the statistics of their inputs, and are compressed without data: they tell how exact a file is, and no top-1.
Files are timed in turn with the original's float file: CPU time of one thread, batch 1. Writes benchmarks/results/exports.json
and .md after every cell; resumable (`--only`, `--redo`). Needs torchvision and the extras export, openvino, nncf, executorch.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from common.compression import kept
from common.images import photographs, read, share
from common.networks import Unet, audio, checkpoint, pyramid, torchvision_models, vgg16
from common.runner import Jobs, Protocol
from pages.exports import markdown
from torch import Tensor, nn

import spectrim as st
from spectrim.cli.models import load_weights
from spectrim.network.calling import tensors_of
from spectrim.pipeline.export import FORMATS
from spectrim.targets.base import Session
from spectrim.targets.files import Format, size
from spectrim.targets.timing import interleaved, latency, verdict

BASES = (st.PivotSVD(), st.ChannelSVD(), st.SpatialSVD(), st.SpatialSVD(axis=1))  # the default menu without CP, slow on noise
FEW = 32  # inputs to compress and to quantize with, and as many to compare on, of networks with random weights
SECONDS = 0.5  # of timing each file
Inputs = tuple[Tensor, Tensor]  # what fits and ranges see, and what files and networks are compared on


@dataclass(frozen=True)
class Network:
    """What is compressed, and on which inputs.

    Attributes:
        make: From the arguments to the network, and whether it is trained.
        inputs: From the arguments to its inputs.
        keep: Fraction of the MACs.
        methods: Of `Config`.
    """

    make: Callable[[argparse.Namespace], tuple[nn.Module, bool]]
    inputs: Callable[[argparse.Namespace], Inputs]
    keep: float = 0.5
    methods: tuple[st.Factorization, ...] = st.Config().methods


def cifar(arguments: argparse.Namespace) -> Inputs:
    """Return training and test images of CIFAR-10."""
    given, other = (share(count, arguments.part) for count in (256, 1000))
    return read(arguments.data, "train", stop=given)[0], read(arguments.data, "test", stop=other)[0]


def samples(arguments: argparse.Namespace) -> Inputs:
    """Return photographs with even numbers (2nd, 10th, ...) and odd ones (1st, 5th, ...): 125 and 250."""
    given, other = (photographs(arguments.samples, which) for which in (slice(1, None, 8), slice(0, None, 4)))
    return given[: share(len(given), arguments.part)], other[: share(len(other), arguments.part)]


def few(arguments: argparse.Namespace, side: int = 224) -> Inputs:
    """Return some photographs in another size."""
    count = share(FEW, arguments.part)
    found = photographs(arguments.samples, slice(0, None, 15), side)
    return found[:count], found[count : 2 * count]


def noise(arguments: argparse.Namespace) -> Inputs:
    """Return white noise as sound."""
    given, other = torch.randn(2, share(FEW, arguments.part), 1, 8000, generator=torch.Generator().manual_seed(0))
    return given, other


def random(make: Callable[[], nn.Module]) -> Callable[[argparse.Namespace], tuple[nn.Module, bool]]:
    """Return what makes a network with random weights."""
    return lambda arguments: (make(), False)


def mobilenet(arguments: argparse.Namespace) -> tuple[nn.Module, bool]:
    """Return torchvision's MobileNetV2 with weights of ImageNet."""
    model = torchvision_models().mobilenet_v2()
    load_weights(model, str(arguments.mobilenet))
    return model, True


NETWORKS = {
    "ResNet-20": Network(lambda arguments: (checkpoint(arguments.models, "resnet20-cifar10jpeg"), True), cifar),
    "VGG-16-BN": Network(lambda arguments: (vgg16(arguments.vgg), arguments.vgg is not None), cifar, methods=BASES),
    "ResNet-18": Network(random(lambda: torchvision_models().resnet18()), few, methods=BASES),
    "MobileNetV2": Network(mobilenet, samples, keep=0.9),
    "SqueezeNet 1.1": Network(random(lambda: torchvision_models().squeezenet1_1()), few),
    "U-Net": Network(random(Unet), partial(few, side=96), methods=BASES),
    "ResNet-18 with feature pyramid": Network(random(pyramid), few, methods=BASES),
    "M5 (1-D audio)": Network(random(audio), noise),
}


@torch.no_grad()
def settled(model: nn.Module, inputs: Tensor) -> nn.Module:
    """Give a network random weights that keep the size of what goes through (He et al. 2015), and its norms statistics."""
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.modules.conv._ConvNd)):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        elif isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = None  # the mean of what is seen
    model.train()(inputs)
    return model.eval()


@dataclass(frozen=True)
class Pair:
    """A network and its compressed one.

    Attributes:
        model, result: They.
        given, other: Inputs, as in `Inputs`.
        wanted: For each of the others what the compressed network answers in PyTorch.
        trained: Whether top-1 means something.
    """

    model: nn.Module
    result: st.Result
    given: Tensor
    other: Tensor
    wanted: list[list[Tensor]]
    trained: bool


class Bench:
    """The networks, one at a time in memory, and their files."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        """Make nothing yet."""
        self.arguments = arguments
        self.pair = functools.lru_cache(1)(self._pair)

    def _pair(self, name: str) -> Pair:
        """Compress a network."""
        network = NETWORKS[name]
        given, other = network.inputs(self.arguments)
        torch.manual_seed(0)
        model, trained = network.make(self.arguments)
        model = model.eval() if trained else settled(model, given)
        config = st.Config(search=st.Knapsack(), methods=network.methods)
        data = given.split(64) if trained else None  # fits to random weights are of no use, and take minutes
        result = st.compress(model, given[:1], budget=st.Keep(network.keep), calibration=data, config=config)
        with torch.no_grad():
            wanted = [tensors_of(result.model(example)) for example in other.split(1)]
        return Pair(model, result, given, other, wanted, trained)

    def cell(self, name: str, suffix: str) -> dict[str, Any]:
        """One network in one format: its files, and how they answer and what they take beside the original's."""
        pair, form = self.pair(name), FORMATS[suffix]
        row: dict[str, Any] = {**kept(pair.result.plan), "trained": pair.trained, "input": list(pair.given.shape[1:])}
        with tempfile.TemporaryDirectory() as folder:
            paths = {word: Path(folder) / f"{word}{suffix}" for word in ("original", "float", "int8")}
            for word, path in paths.items():
                model = pair.model if word == "original" else pair.result.model
                options: dict[str, Any] = {"calibration": [pair.given], "quantize": "int8" if word == "int8" else None}
                try:
                    st.export(model, pair.given[:1], path, **options)
                except ValueError as error:
                    row[word] = {"refused": str(error)}
            files = {word: path for word, path in paths.items() if word not in row}
            for word, path in files.items():
                row[word] = {"bytes": size(form, path)} | ({} if word == "original" else answers(form.open(path), pair))
            if "original" in files:
                for word, times in timed(form, files, pair.other[:1]).items():
                    row[word] |= times
        return {**row, "inputs": len(pair.other), "runtime": form.target.describe()}


def answers(run: Callable[[Tensor], list[Tensor]], pair: Pair) -> dict[str, float]:
    """Return how far a file's outputs are from those of the network at most, relative to the largest of these.

    With it the share of inputs that have the network's top-1, where the network is trained. One input at a time.
    """
    rows = ([run(example) for example in pair.other.split(1)], pair.wanted)
    pairs = list(zip(*([torch.cat(each) for each in zip(*row, strict=True)] for row in rows), strict=True))
    row = {"difference": max(float((found - wanted).abs().max() / wanted.abs().max()) for found, wanted in pairs)}
    if pair.trained:
        found, wanted = pairs[0]
        row["agreement"] = float((found.argmax(1) == wanted.argmax(1)).double().mean())
    return row


def timed(form: Format, files: dict[str, Path], example: Tensor) -> dict[str, dict[str, float]]:
    """Return milliseconds of files, run in turn, and the ratio to the first, the original's, with its interval."""
    sessions = []
    for path in files.values():
        fresh = partial(_ready, form, path, example)
        sessions.append(Session(fresh(), size(form, path), form.target.clock, fresh))
    times = interleaved(sessions, seconds=SECONDS)
    rows = {word: {"ms": latency(taken, 1).median_ms} for word, taken in zip(files, times, strict=True)}
    for word, taken in itertools.islice(zip(files, times, strict=True), 1, None):
        found = verdict(times[0], taken)
        rows[word] |= {"ratio": found.ratio, "low": found.low, "high": found.high}
    return rows


def _ready(form: Format, path: Path, example: Tensor) -> Callable[[], Any]:
    return partial(form.open(path), example)


def jobs(bench: Bench) -> Jobs:
    """Return the cells by name."""
    pairs = itertools.product(NETWORKS, FORMATS)
    return {f"{name} | {FORMATS[suffix].word}": partial(bench.cell, name, suffix) for name, suffix in pairs}


PROTOCOL = Protocol(
    "exports",
    "python benchmarks/exports.py --models ../shared/models --data ../shared/data/cifar10-jpeg --samples SAMPLES "
    "--mobilenet mobilenet_v2.pth --vgg vgg16.safetensors",
    markdown,
    needed={
        "models": "folder of checkpoints",
        "samples": "folder of photographs",
        "mobilenet": "weights of torchvision's mobilenet_v2",
    },
)


def main() -> None:
    """Run the command line."""
    parser = PROTOCOL.parser(__doc__)
    parser.add_argument("--vgg", type=Path, help="weights of examples/cifar_vgg.py, such as train_vgg.py writes; else random")
    arguments = PROTOCOL.parse(parser)
    torch.set_num_threads(1)
    PROTOCOL.run(arguments, lambda cells: jobs(Bench(arguments)))


if __name__ == "__main__":
    main()
