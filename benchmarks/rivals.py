"""Other tools, run side by side: Torch-Pruning at equal measured time, TensorLy-Torch and AIMET at equal MACs.

    pip install torch-pruning==1.6.1 tensorly-torch==0.5.0 aimet-torch==2.42.0
    python benchmarks/rivals.py --weights vgg16.safetensors --models ../shared/models --data ../shared/data/cifar10-jpeg

Writes benchmarks/results/rivals.json and .md; resumable (`--only`, `--redo`). CIFAR-10 (JPEG copy). Everyone has the same 1,024
training images (spectrim without their labels), and decides on the last 5,000 training images; each network reads the 10,000
test images once. Times are those of ONNX Runtime, one thread, batch 1, process CPU time, in turn with the original.

Torch-Pruning: global pruning in several ways, for each the ratio whose network takes as long as spectrim's (at most 1 %
longer), BatchNorm re-estimated; the best way on the 5,000 images is taken, and its ratio once more with all networks timed in
turn. Fine-tuned: the same steps of 128 of the first 45,000 images, the better of the same two learning rates for each.

TensorLy-Torch and AIMET: half of the MACs, BatchNorm re-estimated; AIMET's greedy selection scores on 500 images.
"""

from __future__ import annotations

import argparse
import copy
import functools
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from common.compression import kept
from common.factorizing import aimet, tensorly
from common.images import LabelledImages, batches, read, share
from common.networks import checkpoint, vgg16
from common.pruning import Slopes, Way, fitting, pruned, slopes, torch_pruning, with_convolutions
from common.runner import Jobs, Protocol
from common.scores import Judge
from common.training import fit, printed
from pages.rivals import OURS, PRUNING, markdown
from torch import Tensor, nn

import spectrim as st
from spectrim.network.reorder import reordered
from spectrim.refit.batchnorm import reestimate_batchnorm
from spectrim.targets.base import Session
from spectrim.targets.timing import interleaved, verdict

TARGET = st.OnnxRuntime()
SECONDS = 1.0  # of measuring each network
SEARCHING = 0.4  # of measuring each network while a ratio is looked for
LADDER = (0.76, 0.82, 0.86, 0.9, 0.92, 0.94, 0.96, 0.98, 1.0, 1.02, 1.05)  # of a ratio: pruned networks timed beside ours
BUDGETS = (0.5, 0.65, 0.8)
TUNED = (0.5, 0.65)
RATES = (0.01, 0.04)
RECIPE = {"weight_decay": 5e-4}
MACS = 0.5  # kept where tools that know no time are compared
Networks = dict[str, nn.Module]  # tool to its network


@dataclass(frozen=True)
class Case:
    """A network that is compressed.

    Attributes:
        load: From the arguments to the trained network.
        traced: From it to the same function as Torch-Pruning can follow it.
        leave: Scope to the name patterns of layers whose outputs are not pruned.
        ways: That are tried.
        steps: Of fine-tuning.
    """

    load: Callable[[argparse.Namespace], nn.Module]
    traced: Callable[[nn.Module], nn.Module]
    leave: Mapping[str, tuple[str, ...]]
    ways: tuple[Way, ...]
    steps: int


TRIED = ("Hessian", "Taylor", "magnitude")
INSIDE, ALL = "inside blocks", "all channels"
CASES = {
    "ResNet-20": Case(
        lambda arguments: checkpoint(arguments.models, "resnet20-cifar10jpeg"),
        with_convolutions,
        {INSIDE: ("conv1", "*.conv2", "*.shortcut", "linear"), ALL: ("linear",)},
        (*(Way(each, INSIDE, 4) for each in TRIED), Way("magnitude", ALL, 4)),
        351,
    ),
    "VGG-16-BN": Case(
        lambda arguments: vgg16(arguments.weights),
        lambda model: model,
        {ALL: ("classifier",)},
        (*(Way(each, ALL, 16) for each in TRIED), Way("Hessian", ALL, 4)),
        88,
    ),
}


class Subject:
    """One network, its images and its times."""

    def __init__(self, case: Case, arguments: argparse.Namespace, cache: Path) -> None:
        """Read the network and the images that decide."""
        self.case, self.arguments, self.cache = case, arguments, cache
        self.model = case.load(arguments).eval()
        self.calibration = self.images("train", stop=1024)
        self.example = self.calibration[0][:1]
        self.known: dict[Way, dict[float, float]] = {way: {} for way in case.ways}
        self.times: dict[Any, float] = {}  # by shapes

    def images(self, split: str, start: int = 0, stop: int | None = None) -> LabelledImages:
        """Return a part of some images."""
        x, y = read(self.arguments.data, split, start, stop)
        count = share(len(y), self.arguments.part)
        return x[:count], y[:count]

    @functools.cached_property
    def decider(self) -> Judge:
        """Compares networks on the last training images."""
        return Judge(self.model, batches(self.images("train", -5000), 500))

    @functools.cached_property
    def judge(self) -> Judge:
        """Compares networks on the test images."""
        return Judge(self.model, batches(self.images("test"), 500))

    @functools.cached_property
    def prepared(self) -> st.Prepared:
        """What spectrim knows of the network: all defaults."""
        config = st.Config(target=TARGET, cache=self.cache)
        return st.prepare(self.model, self.example, calibration=self.calibration[0], config=config)

    @functools.cached_property
    def traced(self) -> tuple[nn.Module, Slopes]:
        """The network as Torch-Pruning can follow it, and its gradients."""
        model = self.case.traced(self.model)
        return model, slopes(model, self.calibration)

    @functools.cached_property
    def session(self) -> Session:
        """The original, ready to be timed."""
        return TARGET.load(self.model, self.example)

    def held_out(self, model: nn.Module) -> float:
        """Return the fraction that a network gets right of the images that decide."""
        return float(self.decider.hits(self.decider.answers(model)).mean())

    def glance(self, model: nn.Module) -> float:
        """Return the fraction that a network gets right of the first batch of those."""
        images, labels = self.decider.batches[0]
        with torch.no_grad():
            return float((model.eval()(images).argmax(1) == labels).double().mean())

    def ours(self, budget: st.Keep) -> tuple[st.Plan, nn.Module]:
        """Return spectrim's plan and network, as `compress` does."""
        plan = st.choose(self.prepared, budget)
        return plan, reordered(st.realize(self.prepared, plan).model, self.example)

    def pruned(self, way: Way, ratio: float) -> nn.Module:
        """Return Torch-Pruning's network."""
        model, gradients = self.traced
        return pruned(model, self.example, way, ratio, slopes=gradients, leave=self.case.leave[way.scope])

    def normed(self, model: nn.Module) -> nn.Module:
        """Return a copy with BatchNorm statistics of the calibration images."""
        return reestimate_batchnorm(model, self.calibration[0].split(128))

    def ratio(self, model: nn.Module) -> float:
        """Return the time of a network, the original's being 1; one of the same shapes is timed once."""
        shapes = tuple((name, value.shape) for name, value in model.state_dict().items())
        if shapes not in self.times:
            self.times[shapes] = times({OURS: model}, self.session, self.example, SEARCHING)[OURS][0]
        return self.times[shapes]

    def candidates(self, limit: float) -> dict[Way, float]:
        """Return for each way the ratio whose network takes about that time, where there is one."""
        found = {}
        for way in self.case.ways:
            ratio = fitting(lambda ratio, way=way: self.ratio(self.pruned(way, ratio)), limit, self.known[way])  # type: ignore[misc]
            if ratio is not None:
                found[way] = ratio
        return found

    def told(self, way: Way, ratio: float) -> dict[str, float]:
        """Return time, size and score of what a way makes."""
        model = self.normed(self.pruned(way, ratio))
        return {"ratio": ratio, "time": self.ratio(model), "held-out": self.held_out(model), **cost_of(self, model)}

    def alike(self, way: Way, ratio: float, ours: nn.Module) -> tuple[float, nn.Module, dict[str, list[float]]]:
        """Return the ratio and the network of a way that takes as long as ours where all are timed in turn, and both times.

        The ratio that was found on its own is among those that are tried: load slows some networks down more than others.
        """
        networks = {str(each * ratio): self.pruned(way, each * ratio) for each in LADDER}
        found = times({OURS: ours, **networks}, self.session, self.example, SECONDS)
        chosen = min(networks, key=lambda name: abs(found[name][0] / found[OURS][0] - 1))
        return float(chosen), networks[chosen], {OURS: found[OURS], PRUNING: found[chosen]}

    def tuned(self, model: nn.Module, name: str) -> tuple[nn.Module, dict[str, float]]:
        """Return a network fine-tuned at the better of the rates, and what each rate gives on the images that decide."""
        x, y = self.training
        networks, told = {}, {}
        for rate in RATES:
            other = copy.deepcopy(model).requires_grad_(True).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            fit(other, (x, y), self.case.steps, {**RECIPE, "rate": rate, "progress": printed(f"{name}, rate {rate}")})
            networks[str(rate)], told[str(rate)] = other, self.held_out(other)
        best = max(told, key=lambda rate: told[rate])
        return networks[best], {f"held-out at {rate}": score for rate, score in told.items()} | {"rate": float(best)}

    @functools.cached_property
    def training(self) -> LabelledImages:
        """The images that fine-tuning sees."""
        return self.images("train", stop=45_000)


def times(models: Mapping[str, nn.Module], original: Session, example: Tensor, seconds: float) -> dict[str, list[float]]:
    """Return the ratio of each network's time to the original's, and its interval: all are timed in turn."""
    first, *others = interleaved([original, *(TARGET.load(model, example) for model in models.values())], seconds=seconds)
    found = {name: verdict(first, other) for name, other in zip(models, others, strict=True)}
    return {name: [each.ratio, each.low, each.high] for name, each in found.items()}


def told(judge: Judge, networks: Networks) -> dict[str, Any]:
    """Return how each network does on test images, and by how much the first is better, paired."""
    answers = {name: judge.answers(model) for name, model in networks.items()}
    rows: dict[str, Any] = {name: judge.row(answer) for name, answer in answers.items()}
    first, second = answers.values()
    return rows | {"paired": judge.paired(first, second)}


class Bench:
    """The networks, one at a time; each step returns a JSON-ready dictionary."""

    def __init__(self, arguments: argparse.Namespace, cells: dict[str, Any]) -> None:
        """Read nothing yet."""
        torch.set_num_threads(1)
        self.arguments, self.cells = arguments, cells
        self.cache = arguments.state or Path(tempfile.mkdtemp())
        self.subjects: dict[str, Subject] = {}
        self.others: dict[tuple[str, str], tuple[nn.Module, dict[str, Any]]] = {}  # networks of tools, and how they were made

    def subject(self, network: str) -> Subject:
        """Return what is known of a network; the last one is forgotten."""
        if network not in self.subjects:
            self.subjects = {network: Subject(CASES[network], self.arguments, self.cache)}
        return self.subjects[network]

    def pair(self, network: str, fraction: float) -> dict[str, Any]:
        """Compare spectrim with Torch-Pruning at equal time, nothing trained."""
        torch_pruning()
        subject = self.subject(network)
        plan, ours = subject.ours(st.Keep(fraction, "latency"))
        found = subject.candidates(subject.ratio(ours))
        tried = {way: subject.told(way, ratio) for way, ratio in found.items()}
        if not tried:
            raise SystemExit(f"no way of pruning makes {network} take at most {fraction} of its time")
        best = max(tried, key=lambda way: tried[way]["held-out"])
        ratio, theirs, intervals = subject.alike(best, found[best], ours)
        networks = {OURS: ours, PRUNING: subject.normed(theirs)}
        rows = told(subject.judge, networks)
        for name, interval in intervals.items():
            rows[name] |= {"time": interval, **cost_of(subject, networks[name])}
        way = {"way": str(best), "number": CASES[network].ways.index(best), "ratio": ratio}
        about = {"budget": fraction, "harm": kept(plan)["predicted"], "runtime": TARGET.describe()}
        named = {str(way): row for way, row in tried.items()}
        return about | rows | {"pruned": way, "tried": named, "torch-pruning": version("torch-pruning")}

    def fine_tuned(self, network: str, fraction: float) -> dict[str, Any]:
        """Compare both after the same fine-tuning."""
        subject, cell = self.subject(network), self.cells.get(f"{network} | {fraction}")
        if cell is None:
            raise SystemExit(f"fine-tuning goes on from the cell '{network} | {fraction}'; run it first")
        way = cell["pruned"]
        before = {
            OURS: subject.ours(st.Keep(fraction, "latency"))[1],
            PRUNING: subject.normed(subject.pruned(CASES[network].ways[way["number"]], way["ratio"])),
        }
        after = {name: subject.tuned(model, f"{network}, {name}") for name, model in before.items()}
        rows = told(subject.judge, {name: model for name, (model, _) in after.items()})
        for name, (_, rates) in after.items():
            rows[name] |= rates
        return {"budget": fraction, "steps": CASES[network].steps, **rows}

    def at_equal(self, metric: Any, network: str, tool: str) -> dict[str, Any]:
        """Compare spectrim with a tool that factorizes and knows MACs alone, at its MACs or at its time; nothing is trained."""
        subject = self.subject(network)
        if (network, tool) not in self.others:
            found, about = {"TensorLy-Torch": tensorly, "AIMET": aimet}[tool](
                subject.model, subject.example, MACS, subject.glance
            )
            self.others[network, tool] = subject.normed(found), about
        theirs, about = self.others[network, tool]
        fraction = subject.ratio(theirs) if metric == "latency" else cost_of(subject, theirs)["macs"]
        networks = {OURS: subject.ours(st.Keep(fraction, metric))[1], tool: theirs}
        rows = told(subject.judge, networks)
        for name, interval in times(networks, subject.session, subject.example, SECONDS).items():
            rows[name] |= {"time": interval, **cost_of(subject, networks[name])}
        return {**rows, **about, "runtime": TARGET.describe()}


def cost_of(subject: Subject, model: nn.Module) -> dict[str, float]:
    """Return the fractions of MACs and parameters that a network keeps."""
    whole, cost = st.cost(subject.model, subject.example), st.cost(model, subject.example)
    return {"macs": cost.macs / whole.macs, "params": cost.params / whole.params}


def jobs(bench: Bench) -> Jobs:
    """Return every cell by name, the most important first."""
    found: dict[str, Any] = {}
    for network in CASES:
        for fraction in BUDGETS:
            found[f"{network} | {fraction}"] = functools.partial(bench.pair, network, fraction)
            if fraction in TUNED:
                found[f"{network} | {fraction} | fine-tuned"] = functools.partial(bench.fine_tuned, network, fraction)
    for tool, metric in (("TensorLy-Torch", "macs"), ("AIMET", "macs"), ("AIMET", "latency")):
        found[f"ResNet-20 | {tool} | {metric}"] = functools.partial(bench.at_equal, metric, "ResNet-20", tool)
    return found


PROTOCOL = Protocol(
    "rivals",
    "python benchmarks/rivals.py --weights vgg16.safetensors --models ../shared/models --data ../shared/data/cifar10-jpeg",
    markdown,
    needed={"models": "folder of checkpoints", "weights": "of examples/cifar_vgg.py, such as train_vgg.py writes"},
)


def main() -> None:
    """Run the command line."""
    parser = PROTOCOL.parser(__doc__)
    parser.add_argument(
        "--state", type=Path, help="folder that keeps finished pieces of cells that are not; else they are lost"
    )
    arguments = PROTOCOL.parse(parser)
    PROTOCOL.run(arguments, lambda cells: jobs(Bench(arguments, cells)))


if __name__ == "__main__":
    main()
