"""Thirteen widely used CNNs, compressed at under 1.5 points of accuracy: without retraining, and with one-shot fine-tuning.

    python benchmarks/thirteen.py --data ../shared/data/cifar10-jpeg --state runs/thirteen
    python benchmarks/thirteen.py --data /usr/share/datasets/fashion-mnist --state runs/thirteen

Needs torchvision. The data are a folder with train.parquet and test.parquet, or with the four files of Fashion-MNIST (28-pixel
images get a border of 2). Writes benchmarks/results/thirteen.json, .md and .svg after every cell; resumable: finished cells are
kept, baselines lie in `--state` (16-bit weights, files under 16 MB), and an interrupted training goes on at its step, an
interrupted search with the layer or the network it was at, so that

    timeout -s INT 540 python benchmarks/thirteen.py ... --only "ResNet-18"

run again and again does it in pieces of nine minutes. One protocol for all:

- Baseline: `--epochs` over the training split without its last 5,000 images; SGD with Nesterov momentum, one cycle, weight
  decay 5e-4, batch 128, shifts of 4 pixels and flips. Nothing is tuned for compressibility. `--weights NAME=FILE` loads one.
- No retraining: 2,048 calibration images; the most that MaxDrop(1.5) allows, decided on those 5,000 images.
- One-shot fine-tuning: the same menu, cut deeper, then trained once for a tenth of the baseline's steps, AdamW to 0.001, half
  of the loss distillation from the baseline. Three budgets are tried; the 5,000 images decide. Control: the
  baseline itself trained like that.
- The test split is read once for each network that is reported.

For a small machine: `--scale 0.1` is a tenth of the training steps; `--grow` begins with images of 16 and 24 pixels;
`--part 0.1` uses a tenth of the calibration, selection and test images. Rows say what they were measured with.
"""

from __future__ import annotations

import argparse
import collections
import copy
import functools
import math
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import runner
import torch
from networks import NETWORKS
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

import spectrim as st
from spectrim.accuracy import Scorer
from spectrim.compress import Study
from spectrim.data import Batches, Form, open_images
from spectrim.latency import measure
from spectrim.maxdrop import Bracket
from spectrim.train.batches import Tensors, augment
from spectrim.zoo import load_weights

POINTS = 1.5
SELECTION = 5000
CALIBRATION = 2048
BATCH = 128
FINE_TUNING = 0.1  # of the baseline's steps
TRIES = 3  # budgets tried with fine-tuning; if none holds, what is reached without is fine-tuned
LEFT = 0.5  # share of the drop that fine-tuning is expected to leave, for the first of them
SHARD = 15_000_000  # bytes of a file of weights
PUBLISHED = {"params": 82.3, "macs": 59.6}  # mean reduction in per cent at under 1.5 points, DATE 2025
METRICS = ("params", "macs")


class Growing(Tensors):
    """Training batches, augmented at full size and then shrunk to 16 pixels, later 24, and 32 towards the end."""

    def __init__(self, images: Tensor, labels: Tensor, *, epochs: int, seed: int = 0) -> None:
        """Store the arguments."""
        super().__init__(images, labels, size=BATCH, seed=seed)
        self.epochs = epochs

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the batches."""
        share = (self.number + 0.5) / self.epochs
        side = 16 if share < 0.55 else 24 if share < 0.8 else 32
        for index, (images, labels) in enumerate(super().__iter__()):
            generator = torch.Generator().manual_seed(self.number * 1_000_003 + index)
            images = augment(images, 4, True, generator)
            yield functional.interpolate(images, size=(side, side), mode="area") if side < 32 else images, labels


class Bench:
    """The images and the networks; each step returns a JSON-ready dictionary."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        """Read the images."""
        self.arguments = arguments
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.loaded = dict(text.split("=", 1) for text in arguments.weights)
        (x, y), (test, labels) = (images(arguments.data, split) for split in ("train", "test"))
        self.channels = x.shape[1]
        self.train = x[:-SELECTION].to(self.device), y[:-SELECTION].to(self.device)
        self.calibration = list(self.train[0][: self.share(CALIBRATION)].split(256))
        self.held = self.batches(x[-SELECTION:], y[-SELECTION:])
        self.test = self.batches(test, labels)
        self.cache = Path(arguments.state) / f"searches {arguments.data.name}"
        self.studies: dict[str, Study] = {}
        self.shared = 0.0  # passes of the statistics
        self.scorers: dict[tuple[str, str], Scorer] = {}

    def share(self, count: int) -> int:
        """Return how many images are used where the protocol says `count`."""
        return max(16, round(count * self.arguments.part))

    def batches(self, x: Tensor, y: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Return images to evaluate on."""
        used = self.share(len(x))
        return [(a.to(self.device), b) for a, b in zip(x[:used].split(250), y[:used].split(250), strict=True)]

    @property
    def steps(self) -> int:
        """Optimizer steps of a baseline."""
        return max(1, round(self.arguments.epochs * self.arguments.scale * (len(self.train[0]) // BATCH)))

    def file(self, name: str) -> Path:
        """Return the path of a name in the state folder, without an ending."""
        return Path(self.arguments.state) / "".join(c if c.isalnum() else "-" for c in f"{self.arguments.data.name} {name}")

    def network(self, name: str) -> nn.Module:
        """Return a trained baseline.

        Raises:
            SystemExit: If it is not there.
        """
        model = NETWORKS[name].build(self.channels)
        if name in self.loaded:
            load_weights(model, self.loaded[name])
        else:
            load_shards(model, self.file(name))
        return model.eval().to(self.device)

    def fit(self, model: nn.Module, name: str, steps: int, *, teacher: nn.Module | None = None, grow: bool = False) -> float:
        """Train for about that many steps; return the seconds."""
        x, y = self.train
        epochs = max(1, math.ceil(steps / (len(x) // BATCH)))
        used = max(1, steps // epochs) * BATCH  # so that whole epochs make up the steps
        state = self.file(name).with_suffix(".partial.pt")
        rate = NETWORKS[name.split(" | ")[0]].rate
        recipe = st.Recipe(
            epochs=epochs,
            optimizer="sgd" if teacher is None else "adamw",
            rate=rate if teacher is None else 0.001,
            weight_decay=5e-4,
            distill=0.0 if teacher is None else 0.5,
            checkpoint=state,
            crop=0 if grow else 4,
            flip=not grow,
            progress=Told(name),
        )
        data: Any = Growing(x[:used], y[:used], epochs=epochs) if grow else (x[:used], y[:used])
        seconds = st.fit(model.to(memory_format=torch.channels_last), data, recipe=recipe, teacher=teacher).seconds  # type: ignore[call-overload]
        state.unlink(missing_ok=True)
        return seconds

    def baseline(self, name: str) -> dict[str, Any]:
        """Train one network, round it to 16 bits, keep it."""
        row: dict[str, Any] = {"source": "loaded", "epochs": None}
        if name not in self.loaded:
            torch.manual_seed(0)
            model = NETWORKS[name].build(self.channels).to(self.device)
            grow = self.arguments.grow and NETWORKS[name].grows
            seconds = self.fit(model, name, self.steps, grow=grow)
            row = {"source": "trained, growing images" if grow else "trained", "seconds": seconds}
            row["epochs"] = self.steps / (len(self.train[0]) // BATCH)
            save_shards(model, self.file(name))
        model = self.network(name)
        cost = st.cost(model, self.calibration[0][:1])
        hits = st.Accuracy(self.test).per_example(model)
        return row | {
            "top-1": 100 * float(hits.mean()),
            "top-1 error": 100 * float(hits.std()) / len(hits) ** 0.5,
            "held-out top-1": 100 * st.Accuracy(self.held)(model),
            "params": cost.params,
            "macs": cost.macs,
            "test images": len(hits),
        }

    def study(self, name: str) -> Study:
        """Return statistics and menu, which all budgets share; one network at a time in memory."""
        if name not in self.studies:
            self.forget()
            config = st.Config(images=self.share(CALIBRATION), cache=self.cache / name)
            self.studies[name] = Study(self.network(name), self.calibration[0][:1], self.calibration, config)
            self.shared = sum(self.studies[name].passes.values())
        return self.studies[name]

    def forget(self) -> None:
        """Let go of the network that was studied, and of what was kept in case of an interruption."""
        for name in self.studies:
            shutil.rmtree(self.cache / name, ignore_errors=True)
        self.studies, self.scorers = {}, {}

    def scorer(self, name: str, split: str) -> Scorer:
        """Return what compares with the baseline on held-out or test images."""
        self.scorers = {key: value for key, value in self.scorers.items() if key[0] == name}
        if (name, split) not in self.scorers:
            images = self.held if split == "held" else self.test
            self.scorers[name, split] = Scorer(st.Accuracy(images), self.network(name))
        return self.scorers[name, split]

    def compressed(self, name: str, metric: Any) -> dict[str, Any]:
        """Compress as far as MaxDrop(1.5) allows."""
        study = self.study(name)
        before, passes = dict(study.seconds), sum(study.passes.values())
        result = study.most_compressed(st.MaxDrop(POINTS, metric), self.scorer(name, "held"))
        shared = before["statistics"] + before["menu"]
        stages = {stage: seconds - before.get(stage, 0.0) for stage, seconds in study.seconds.items()}
        self.file(f"{name} | {metric}").with_suffix(".plan.json").write_text(result.plan.to_json())
        assert result.report.selection is not None
        return {
            **self.outcome(name, result.model, result.plan),
            "held-out drop": result.report.selection.drop,
            "search seconds": shared + sum(s for stage, s in stages.items() if stage not in ("evaluate", "latency", "report")),
            "evaluation seconds": stages.get("evaluate", 0.0),
            "passes": sum(study.passes.values()) - passes + self.shared,
            "budgets tried": len(result.report.probes),
        }

    def outcome(self, name: str, small: nn.Module, plan: st.Plan) -> dict[str, Any]:
        """Return what is told of a compressed network; its one look at the test images."""
        score = self.scorer(name, "test").score(small)
        cost = st.cost(small, self.calibration[0][:1])
        methods = collections.Counter(option.method.title for option in plan.values() if option.method is not None)
        hardest = sorted(plan.values(), key=lambda option: -option.harm)[:3]
        return {
            "before": 100 * score.before,
            "after": 100 * score.after,
            "drop": score.drop,
            "standard error": score.standard_error,
            "params kept": cost.params / plan.original.params,
            "macs kept": cost.macs / plan.original.macs,
            "decompositions": dict(methods.most_common()),
            "layers of most harm": {option.layer.name: option.harm for option in hardest},
            "test images": score.examples,
            **self.latency(self.study(name).model, small),
        }

    def latency(self, model: nn.Module, small: nn.Module) -> dict[str, float]:
        """Return milliseconds on one thread at batch 1, and on the GPU at batch 256 where there is one."""
        pair = [copy.deepcopy(network).cpu().eval() for network in (model, small)]
        old, new = measure(pair, self.calibration[0][:1].cpu(), seconds=1.0)
        row = {"CPU ms before": old.median_ms, "CPU ms after": new.median_ms}
        if self.device == "cuda":
            old, new = measure([model, small], self.calibration[0][:1].expand(256, -1, -1, -1).contiguous(), seconds=1.0)
            row |= {"GPU ms before": old.median_ms, "GPU ms after": new.median_ms}
        return row

    def fine_tuned(self, name: str, metric: Any, untrained: dict[str, Any]) -> dict[str, Any]:
        """Cut deeper, fine-tune once, at three budgets; return the smallest network that holds the bound."""
        study, model, whole = self.study(name), self.study(name).model, self.study(name).original.of(metric)
        high = untrained[f"{metric} kept"]

        def predicted(keep: float) -> float:
            return study.select(st.Keep(keep, metric), measure=False).harm

        bracket = Bracket(study.least(metric), POINTS, nats=True)
        bracket.high, bracket.held = high, (predicted(high), POINTS * LEFT)
        best: tuple[nn.Module, st.Plan, float] | None = None
        before, steps, tried = study.seconds.get("fine-tuning", 0.0), round(FINE_TUNING * self.steps), {}
        for number in range(TRIES + 1):
            last = high if best is None else None
            keep = bracket.next(predicted) if number < TRIES else last
            if keep is None:
                break
            plan, small = study.shrink(st.Keep(keep, metric))
            small = copy.deepcopy(small)  # the study may give the same one again

            def work(small: nn.Module = small, number: int = number) -> nn.Module:
                with study.stage("fine-tuning"):
                    self.fit(small, f"{name} | {metric} {number}", steps, teacher=model)
                return small

            small = study.once(f"{steps} steps {plan.to_json()}", work, _packed, functools.partial(_loaded, small))
            drop = self.scorer(name, "held").score(small).drop
            tried[f"{keep:.4f}"] = drop
            if bracket.add(keep, plan.cost.of(metric) / whole, plan.harm, drop):
                best = small, plan, drop
        row = {"budgets tried": tried, "fine-tuning seconds": study.seconds.get("fine-tuning", 0.0) - before, "steps": steps}
        if best is None:
            return {"missed": True, **row}
        small, plan, drop = best
        row["held-out drop"] = drop
        return {**self.outcome(name, small.to(memory_format=torch.contiguous_format), plan), **row}  # type: ignore[call-overload]

    def control(self, name: str) -> dict[str, Any]:
        """Fine-tune the baseline itself in the same way."""
        model, steps = self.network(name), round(FINE_TUNING * self.steps)
        small = copy.deepcopy(model)
        seconds = self.fit(small, f"{name} | control", steps, teacher=model)
        score = self.scorer(name, "test").score(small)
        return {
            "before": 100 * score.before,
            "after": 100 * score.after,
            "drop": score.drop,
            "standard error": score.standard_error,
            "fine-tuning seconds": seconds,
            "steps": steps,
        }


def _packed(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, Any]]:
    return dict(model.state_dict()), {}


def _loaded(model: nn.Module, kept: tuple[dict[str, Tensor], dict[str, Any]]) -> nn.Module:
    model.load_state_dict(kept[0])
    return model


class Told:
    """Prints a line for each tenth of a training run."""

    def __init__(self, name: str) -> None:
        """Store the name."""
        self.name, self.tenth, self.start = name, -1, time.perf_counter()

    def __call__(self, stage: str, share: float) -> None:
        """Print, if another tenth is done."""
        if int(10 * share) > self.tenth:
            self.tenth = int(10 * share)
            print(f"  {self.name}: {stage} {10 * self.tenth} %, {time.perf_counter() - self.start:.0f} s", flush=True)


def images(folder: Path, split: str) -> tuple[Tensor, Tensor]:
    """Return images (N, C, 32, 32), normalised, and labels (N,)."""
    parquet = folder / f"{split}.parquet"
    source = open_images(f"parquet:{parquet}" if parquet.exists() else f"fashion-mnist:{folder}", split=split)
    grey = source.read(0).ndim == 2
    side = source.read(0).shape[0]
    form = Form(1, (side, side), (0.5,), (0.5,)) if grey else Form(3, (side, side))
    found = list(Batches(source, form, 1000))
    x, y = torch.cat([x for x, _ in found]), torch.cat([y for _, y in found])
    border = (32 - side) // 2
    return functional.pad(x, (border,) * 4, value=float(x.min())) if border else x, y


def save_shards(model: nn.Module, path: Path) -> None:
    """Write the weights, rounded to 16 bits, into numbered files under 16 MB."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for old in path.parent.glob(f"{path.name}.*-of-*.safetensors"):
        old.unlink()
    shards: list[dict[str, Tensor]] = [{}]
    size = 0
    for name, value in model.state_dict().items():
        value = value.detach().cpu().contiguous()
        value = value.half() if value.is_floating_point() else value
        rows = max(1, math.ceil(value.nbytes / SHARD))
        for number, piece in enumerate(value.chunk(rows) if rows > 1 else [value]):
            if size + piece.nbytes > SHARD:
                shards.append({})
                size = 0
            shards[-1][f"{name}@{number}"] = piece.contiguous()
            size += piece.nbytes
    for number, shard in enumerate(shards):
        save_file(shard, path.with_suffix(f".{number}-of-{len(shards)}.safetensors"))


def load_shards(model: nn.Module, path: Path) -> None:
    """Read what `save_shards` wrote.

    Raises:
        SystemExit: If files are missing.
    """
    files = sorted(path.parent.glob(f"{path.name}.*-of-*.safetensors"))
    if not files or len(files) != int(files[0].name.rpartition("-of-")[2].split(".")[0]):
        raise SystemExit(f"the baseline {path.name!r} is not whole in {path.parent}; run its cell 'baseline' first (--redo)")
    pieces: dict[str, dict[int, Tensor]] = {}
    for file in files:
        for key, value in load_file(file).items():
            name, _, number = key.rpartition("@")
            pieces.setdefault(name, {})[int(number)] = value
    state = {
        name: parts[0] if len(parts) == 1 else torch.cat([parts[i] for i in sorted(parts)]) for name, parts in pieces.items()
    }
    model.load_state_dict(state)


def jobs(results: dict[str, Any], data: str) -> dict[str, Callable[[Bench], dict[str, Any]]]:
    """Return every cell by name, a network at a time."""
    found: dict[str, Callable[[Bench], dict[str, Any]]] = {}
    for name in NETWORKS:
        row = f"{data} | {name}"
        found[f"{row} | baseline"] = lambda bench, n=name: bench.baseline(n)
        for metric in METRICS:
            found[f"{row} | {metric}"] = lambda bench, n=name, m=metric: bench.compressed(n, m)
        found[f"{row} | control, fine-tuned"] = lambda bench, n=name: bench.control(n)
        for metric in METRICS:
            cell = f"{row} | {metric}"
            found[f"{cell}, fine-tuned"] = lambda bench, n=name, m=metric, c=cell: bench.fine_tuned(n, m, results["cells"][c])
    return found


def markdown(results: dict[str, Any]) -> str:
    """Return all results as tables."""
    cells = results["cells"]
    machines = sorted({cell["machine"] for cell in cells.values() if "machine" in cell})
    lines = ["# Thirteen CNNs", "", f"`{results['command']}` on {'; '.join(machines)}", ""]
    lines += [
        "Top-1 on test images; reductions, and in brackets the drop in points +- its paired standard error (negative: better "
        "than before). A network is compressed as far as 1.5 points on 5,000 held-out training images allow. The published "
        "means (DATE 2025) are of thirteen networks at under 1.5 points; the models, data and protocol are not public, "
        "so this is a comparison of magnitudes. A dash: not measured.",
        "",
    ]
    for data in dict.fromkeys(name.split(" | ")[0] for name in cells):
        lines += [f"## {data}", "", *summary(cells, data), "", "What was chosen without retraining, and what limits:", ""]
        columns = "decompositions | layers of most predicted harm, nats | budgets tried | passes | search seconds | ms"
        lines += [f"| network | metric | {columns} |", "|---|" + "---|" * 7]
        for name in NETWORKS:
            lines += [
                f"| {name} | {metric} | {_chosen(cells[cell])} |"
                for metric in METRICS
                if (cell := f"{data} | {name} | {metric}") in cells
            ]
        lines.append("")
    return "\n".join(lines)


def _chosen(cell: dict[str, Any]) -> str:
    methods = ", ".join(f"{count} {title}" for title, count in cell["decompositions"].items())
    hard = ", ".join(f"{layer} {harm:.4f}" for layer, harm in cell["layers of most harm"].items())
    times = [
        f"{d} {cell[f'{d} ms before']:.2f} -> {cell[f'{d} ms after']:.2f}" for d in ("CPU", "GPU") if f"{d} ms before" in cell
    ]
    numbers = f"{cell['budgets tried']} | {cell['passes']:.0f} | {cell['search seconds']:.0f}"
    return f"{methods} | {hard} | {numbers} | {', '.join(times)}"


def summary(cells: dict[str, Any], data: str) -> list[str]:
    """Return the table of the README: reductions, with the drop on test images in brackets, and what is not measured."""
    columns = [(f"{metric}{ending}", metric) for ending in ("", ", fine-tuned") for metric in METRICS]
    lines = [
        f"| {data} | top-1 | epochs | fewer parameters | fewer MACs | fine-tuned: fewer parameters | fewer MACs | control |",
        "|---|" + "---|" * 7,
    ]
    fewer: dict[str, dict[str, float]] = {cell: {} for cell, _ in columns}
    missing = []
    for name in NETWORKS:
        base = cells.get(f"{data} | {name} | baseline")
        if base is None:
            missing.append(name)
            continue
        row = [name, f"{base['top-1']:.2f}", base["source"] if base["epochs"] is None else f"{base['epochs']:.3g}"]
        for column, metric in columns:
            cell = cells.get(f"{data} | {name} | {column}", {})
            if "drop" in cell:
                fewer[column][name] = 100 * (1 - cell[f"{metric} kept"])
                row.append(f"{fewer[column][name]:.1f} % ({cell['drop']:.2f} +- {cell['standard error']:.2f})")
            else:
                row.append("missed" if cell else "-")
        control = cells.get(f"{data} | {name} | control, fine-tuned")
        row.append(f"{control['drop']:.2f} +- {control['standard error']:.2f}" if control else "-")
        lines.append(f"| {' | '.join(row)} |")
    for what, needed in (("", columns[:2]), (" that were fine-tuned", columns)):
        common = [name for name in NETWORKS if all(name in fewer[column] for column, _ in needed)]
        if len(common) > 1:
            means = [sum(fewer[column][name] for name in common) / len(common) for column, _ in needed]
            row = [f"mean of the {len(common)}{what}", "", "", *(f"{mean:.1f} %" for mean in means)]
            lines.append(f"| {' | '.join([*row, *[''] * (8 - len(row))])} |")
    if len(lines) > 3:
        lines.append(f"| published mean of thirteen others | | | {' % | '.join(map(str, PUBLISHED.values()))} % | | | |")
    return [*lines, "", f"Not measured: {', '.join(missing)}."] if missing else lines


def plot(results: dict[str, Any], target: Path) -> None:
    """Draw the reductions, without and with fine-tuning, beside the published means."""
    from matplotlib.figure import Figure

    cells = results["cells"]
    rows = [(data, name) for data, name in dict.fromkeys(tuple(cell.split(" | ")[:2]) for cell in cells)]
    figure = Figure(figsize=(10, 2 + 0.45 * len(rows)))
    for axis, metric in zip(figure.subplots(1, 2, sharey=True), METRICS, strict=True):
        for shift, ending, label in ((0.2, "", "no retraining"), (-0.2, ", fine-tuned", "one-shot fine-tuning")):
            found = [cells.get(f"{data} | {name} | {metric}{ending}", {}).get(f"{metric} kept") for data, name in rows]
            places = [index + shift for index, kept in enumerate(found) if kept is not None]
            axis.barh(places, [100 * (1 - kept) for kept in found if kept is not None], 0.38, label=label)
        axis.axvline(PUBLISHED[metric], color="black", linestyle=":", label="published mean of thirteen")
        axis.set_yticks(range(len(rows)), [f"{name}, {data}" for data, name in rows])
        axis.set_xlim(0, 100)
        axis.set_xlabel(f"fewer {'parameters' if metric == 'params' else 'MACs'}, % (at most 1.5 points)")
        axis.spines[["top", "right"]].set_visible(False)
    figure.legend(*axis.get_legend_handles_labels(), frameon=False, fontsize=8, loc="upper center", ncols=3)
    figure.tight_layout(rect=(0, 0, 1, 0.92))
    figure.savefig(target, metadata={"Date": None})


def retell(cells: dict[str, Any]) -> None:
    """Put the tables of the results into README and docs, in place of those that are there."""
    root = Path(__file__).parent.parent
    for page in (root / "README.md", root / "docs" / "thirteen.md"):
        text = page.read_text()
        for data in dict.fromkeys(name.split(" | ")[0] for name in cells):
            table = "\n".join(summary(cells, data))
            text = re.sub(
                rf"\| {data} \| top-1.*?\nNot measured: [^\n]*", lambda found, table=table: table, text, flags=re.DOTALL
            )
        page.write_text(text)


def main() -> None:
    """Run the cells that are not done."""
    measuring = "--tables" not in sys.argv
    parser = runner.parser(__doc__, measuring=measuring)
    parser.add_argument("--state", type=Path, required=measuring, help="folder for baselines, plans and interrupted trainings")
    parser.add_argument("--epochs", type=float, default=30.0, help="of a baseline")
    parser.add_argument("--scale", type=float, default=1.0, help="share of all training steps that is done")
    parser.add_argument("--part", type=float, default=1.0, help="share of calibration, selection and test images that is used")
    parser.add_argument("--grow", action="store_true", help="train on smaller images first")
    parser.add_argument("--weights", action="append", default=[], help="NAME=FILE: a baseline that is loaded, not trained")
    parser.add_argument("--target", type=Path, default=runner.RESULTS / "thirteen.json")
    parser.add_argument(
        "--tables", action="store_true", help="measure nothing: write .md and .svg anew, and the tables of README and docs"
    )
    arguments = parser.parse_args()
    results = runner.read(arguments.target, "python benchmarks/thirteen.py --data FOLDER --state runs/thirteen")

    def write(results: dict[str, Any]) -> None:
        arguments.target.with_suffix(".md").write_text(markdown(results))
        plot(results, arguments.target.with_suffix(".svg"))

    if arguments.tables:
        write(results)
        retell(results["cells"])
        return
    arguments.state.mkdir(parents=True, exist_ok=True)
    bench = Bench(arguments)
    todo = {name: functools.partial(job, bench) for name, job in jobs(results, arguments.data.name).items()}
    try:
        runner.run(todo, results, arguments, target=arguments.target, write=write)
    except KeyboardInterrupt:
        print("interrupted; finished pieces are kept, the same command goes on")
        raise SystemExit(130) from None
    bench.forget()


if __name__ == "__main__":
    main()
