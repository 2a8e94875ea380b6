"""Thirteen widely used CNNs, compressed at under 1.5 points of accuracy: without retraining, and with one-shot fine-tuning.

    python benchmarks/thirteen.py --data ../shared/data/cifar10-jpeg --state runs/thirteen
    python benchmarks/thirteen.py --data /usr/share/datasets/fashion-mnist --state runs/thirteen

What is done to each network, and why, is in docs/thirteen.md. Needs torchvision. The data are a folder with train.parquet and
test.parquet, or with the four files of Fashion-MNIST (28-pixel images get a border of 2). Writes
benchmarks/results/thirteen.json and .md after every cell; resumable: finished cells are kept, baselines lie in `--state`
(16-bit weights, files under 16 MB), and an interrupted training goes on at its step, an interrupted search with the layer or
the network it was at, so that

    timeout -s INT 540 python benchmarks/thirteen.py ... --only "ResNet-18"

run again and again does it in pieces of nine minutes. For a small machine: `--scale 0.1` is a tenth of the training steps;
`--grow` begins with images of 16 and 24 pixels; `--part 0.1` uses a tenth of the calibration, selection and test images (and
wants another `--target`). `--tables` measures nothing, and writes the tables of results, README and docs anew.
"""

from __future__ import annotations

import argparse
import copy
import functools
import shutil
from collections import Counter
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from common import weights
from common.compression import kept, milliseconds, most_compressed
from common.images import batches, bordered, read, share
from common.networks import NETWORKS, load_weights
from common.runner import Jobs, Protocol
from common.scores import Judge, top_1
from common.training import BATCH, fit, printed
from pages.thirteen import METRICS, markdown, plot, update_pages
from torch import nn

import spectrim as st
from spectrim.core.records import Training
from spectrim.core.score import Score
from spectrim.network.accuracy import Scorer
from spectrim.pipeline.identity import fingerprint

POINTS = 1.5
SELECTION = 5000
CALIBRATION = 2048
FINE_TUNING = 0.1  # of the baseline's steps
TRIES = 3  # budgets tried with fine-tuning; if none holds, what is reached without is fine-tuned
LEFT = 0.5  # share of the drop that fine-tuning is expected to leave, for the first of them


class Noting(Scorer):
    """Scores networks on the selection images, and remembers by how many points each was worse."""

    def __init__(self, evaluate: st.Accuracy, original: nn.Module) -> None:
        """Evaluate the original network."""
        super().__init__(evaluate, original)
        self.drops: list[float] = []

    def score(self, model: nn.Module) -> Score:
        """Return the scores of the original and of this network."""
        found = super().score(model)
        self.drops.append(found.drop)
        return found


class Subject:
    """A network with its trained weights, and what its cells share, each made when it is first needed."""

    def __init__(self, bench: Bench, name: str) -> None:
        """Store the arguments."""
        self.bench, self.name = bench, name
        self.cache = Path(bench.arguments.state) / f"searches {bench.arguments.data.name}" / name

    @cached_property
    def model(self) -> nn.Module:
        """The baseline."""
        model = NETWORKS[self.name].build(self.bench.channels)
        if self.name in self.bench.loaded:
            load_weights(model, self.bench.loaded[self.name])
        else:
            weights.load(model, self.bench.file(self.name))
        return model.eval().to(self.bench.device)

    @cached_property
    def prepared(self) -> st.Prepared:
        """Moments and menu, which all budgets share."""
        config = st.Config(images=share(CALIBRATION, self.bench.arguments.part), cache=self.cache)
        return st.prepare(self.model, self.bench.example, calibration=self.bench.calibration, config=config)

    @cached_property
    def judge(self) -> Judge:
        """What compares with the baseline on the test images."""
        return Judge(self.model, self.bench.test)

    @cached_property
    def scorer(self) -> Noting:
        """What compares with the baseline on the selection images."""
        return Noting(st.Accuracy(self.bench.selection), self.model)


class Bench:
    """The images, and one network at a time; each step returns a JSON-ready dictionary."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        """Read the images."""
        self.arguments = arguments
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.loaded = dict(text.split("=", 1) for text in arguments.weights)
        (x, y), test = (self.images(split) for split in ("train", "test"))
        used = [share(count, arguments.part) for count in (SELECTION, len(test[0]))]
        self.train = x[:-SELECTION], y[:-SELECTION]
        self.selection = batches((x[-SELECTION:][: used[0]], y[-SELECTION:][: used[0]]))
        self.test = batches((test[0][: used[1]], test[1][: used[1]]))
        self.calibration = x[: share(CALIBRATION, arguments.part)]
        self.example, self.channels = x[:1], x.shape[1]
        self.last: Subject | None = None

    def images(self, split: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the images of a split at 32 pixels."""
        x, y = read(self.arguments.data, split)
        return bordered(x).to(self.device), y.to(self.device)

    @property
    def steps(self) -> int:
        """Optimizer steps of a baseline."""
        return max(1, round(self.arguments.epochs * self.arguments.scale * (len(self.train[0]) // BATCH)))

    @property
    def fewer_steps(self) -> int:
        """Optimizer steps of a fine-tuning."""
        return max(1, round(FINE_TUNING * self.steps))

    def file(self, name: str) -> Path:
        """Return the path of a name in the state folder, without an ending."""
        return Path(self.arguments.state) / "".join(c if c.isalnum() else "-" for c in f"{self.arguments.data.name} {name}")

    def subject(self, name: str) -> Subject:
        """Return a network; the one before it is let go, with what was kept in case of an interruption."""
        if self.last is None or self.last.name != name:
            self.forget()
            self.last = Subject(self, name)
        return self.last

    def forget(self) -> None:
        """Let go of the network."""
        if self.last is not None:
            shutil.rmtree(self.last.cache, ignore_errors=True)
        self.last = None

    def fit(self, model: nn.Module, name: str, steps: int, *, teacher: nn.Module | None = None, grow: bool = False) -> Training:
        """Train for about that many steps; its checkpoint is kept until `finished`."""
        recipe: dict[str, Any] = {"rate": NETWORKS[name.split(" | ")[0]].rate, "weight_decay": 5e-4, "progress": printed(name)}
        recipe["checkpoint"] = self.file(name).with_suffix(".partial.pt")
        if teacher is not None:
            recipe |= {"optimizer": "adamw", "rate": 0.001, "distill": 0.5}
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        found = fit(model, self.train, steps, recipe, grow=grow, teacher=teacher)
        model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        return found

    def finished(self, name: str) -> None:
        """Remove the checkpoints of trainings whose names begin so: they have served."""
        path = self.file(name)
        for file in path.parent.glob(f"{path.name}*.partial.pt"):
            file.unlink()

    def baseline(self, name: str) -> dict[str, Any]:
        """Train one network, round it to 16 bits, keep it."""
        row: dict[str, Any] = {"source": "loaded", "epochs": None}
        if name not in self.loaded:
            torch.manual_seed(0)
            model = NETWORKS[name].build(self.channels).to(self.device)
            grow = self.arguments.grow and NETWORKS[name].grows
            training = self.fit(model, name, self.steps, grow=grow)
            row = {"source": "trained, growing images" if grow else "trained", "seconds": training.seconds}
            row["epochs"] = self.steps / (len(self.train[0]) // BATCH)
            weights.save(model, self.file(name))
            self.finished(name)
        self.forget()
        model = self.subject(name).model
        cost = st.cost(model, self.example)
        hits = st.Accuracy(self.test).per_example(model)
        score = top_1(hits)
        return row | {
            "top-1": score["top-1"],
            "top-1 error": score["error"],
            "held-out top-1": 100 * st.Accuracy(self.selection)(model),
            "params": cost.params,
            "macs": cost.macs,
            "test images": len(hits),
        }

    def compressed(self, name: str, metric: Any) -> dict[str, Any]:
        """Compress as far as MaxDrop(1.5) allows."""
        subject = self.subject(name)
        row, plan, small = most_compressed(subject.prepared, st.MaxDrop(POINTS, metric), subject.scorer, subject.judge)
        self.file(f"{name} | {metric}").with_suffix(".plan.json").write_text(plan.to_json())
        row["passes"] = row.pop("forward passes") + row.pop("backward passes")
        return self.told(subject, row, small, plan)

    def fine_tuned(self, name: str, metric: Any, cells: dict[str, Any]) -> dict[str, Any]:
        """Cut deeper, fine-tune once, at three budgets; return the smallest network that holds the bound."""
        subject, trainings, tried = self.subject(name), list[Training](), list[float]()
        cell, steps = f"{name} | {metric}", self.fewer_steps
        prepared, scorer = subject.prepared, subject.scorer
        scorer.drops.clear()

        def recover(small: nn.Module) -> nn.Module:
            tried.append(st.cost(small, self.example).of(metric) / prepared.original.of(metric))
            trainings.append(self.fit(small, f"{cell} {fingerprint(small, [], '')}", steps, teacher=subject.model))
            return small

        reached = cells[f"{self.arguments.data.name} | {cell}"][f"{metric} kept"]
        plan = st.choose(prepared, st.Keep(reached, metric), measure=False)
        try:
            start = st.Try(reached, POINTS * LEFT, plan.harm)
            found = st.maxdrop(prepared, st.MaxDrop(POINTS, metric), scorer, recover, start=start, most=TRIES)
            small, plan, score = found.model, found.plan, found.report.selection
        except st.BudgetError:  # no smaller budget holds
            small = recover(st.realize(prepared, plan).model)
            score = scorer.score(small)
        row: dict[str, Any] = {
            "budgets tried": {f"{fraction:.4f}": drop for fraction, drop in zip(tried, scorer.drops, strict=True)},
            "fine-tuning seconds": sum(training.seconds for training in trainings),
            "steps": steps,
        }
        assert score is not None
        row["held-out drop"] = score.drop
        self.finished(cell)
        if row["held-out drop"] > POINTS + 1e-9:
            return {"missed": True, **row}
        return self.told(subject, row | kept(plan) | subject.judge.compare(small), small, plan)

    def control(self, name: str) -> dict[str, Any]:
        """Fine-tune the baseline itself in the same way."""
        subject, steps = self.subject(name), self.fewer_steps
        small, training_name = copy.deepcopy(subject.model), f"{name} | control"
        seconds = self.fit(small, training_name, steps, teacher=subject.model).seconds
        self.finished(training_name)
        return {**percent(subject.judge.compare(small)), "fine-tuning seconds": seconds, "steps": steps}

    def told(self, subject: Subject, row: dict[str, Any], small: nn.Module, plan: st.Plan) -> dict[str, Any]:
        """Return a row with what else is told of a compressed network."""
        methods = Counter(option.method.title for option in plan.values() if option.method is not None)
        hardest = sorted(plan.values(), key=lambda option: -option.harm)[:3]
        return {
            **percent(row),
            "decompositions": dict(methods.most_common()),
            "layers of most harm": {option.layer.name: option.harm for option in hardest},
            **self.latency(subject.model, small),
        }

    def latency(self, model: nn.Module, small: nn.Module) -> dict[str, float]:
        """Return milliseconds on one thread at batch 1, and on the GPU at batch 256 where there is one."""
        pair = [copy.deepcopy(network).cpu().eval() for network in (model, small)]
        old, new = milliseconds(pair, self.example.cpu(), st.Torch(), 1.0)
        row = {"CPU ms before": old, "CPU ms after": new}
        if self.device == "cuda":
            many = self.example.expand(256, -1, -1, -1).contiguous()
            old, new = milliseconds([model, small], many, st.Torch(device="cuda"), 1.0)
            row |= {"GPU ms before": old, "GPU ms after": new}
        return row


def percent(score: dict[str, Any]) -> dict[str, Any]:
    """Return a row with its scores in per cent."""
    return score | {name: 100 * score[name] for name in ("before", "after")}


def jobs(bench: Bench, cells: dict[str, Any]) -> Jobs:
    """Return every cell by name, a network at a time."""
    found: dict[str, Any] = {}
    for name in NETWORKS:
        row = f"{bench.arguments.data.name} | {name}"
        found[f"{row} | baseline"] = functools.partial(bench.baseline, name)
        for metric in METRICS:
            found[f"{row} | {metric}"] = functools.partial(bench.compressed, name, metric)
        found[f"{row} | control, fine-tuned"] = functools.partial(bench.control, name)
        for metric in METRICS:
            found[f"{row} | {metric}, fine-tuned"] = functools.partial(bench.fine_tuned, name, metric, cells)
    return found


COMMAND = "python benchmarks/thirteen.py --data FOLDER --state runs/thirteen"
PROTOCOL = Protocol("thirteen", COMMAND, markdown, plot, {"state": "folder for baselines, plans and interrupted trainings"})


def main() -> None:
    """Measure the cells that are not there yet."""
    parser = PROTOCOL.parser(__doc__)
    parser.add_argument("--epochs", type=float, default=30.0, help="of a baseline")
    parser.add_argument("--scale", type=float, default=1.0, help="share of all training steps that is done")
    parser.add_argument("--grow", action="store_true", help="train on smaller images first")
    parser.add_argument("--weights", action="append", default=[], help="NAME=FILE: a baseline that is loaded, not trained")
    arguments = PROTOCOL.parse(parser)
    bench = None if arguments.tables else Bench(arguments)
    PROTOCOL.run(arguments, lambda cells: jobs(bench, cells))
    if bench is None:
        update_pages(PROTOCOL.read(arguments.target)["cells"])
    else:
        bench.forget()


if __name__ == "__main__":
    main()
