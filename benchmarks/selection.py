"""Every rank selection at one table, an ablation ladder, and how far predictions can be trusted.

    python benchmarks/selection.py --models ../shared/models --data ../shared/data/cifar10-jpeg

Writes benchmarks/results/selection.json, .md and .svg after every cell. Resumable: finished cells are kept; `--redo TEXT`
runs again the cells whose names contain the text, `--only TEXT` runs no others (a whole name means that cell
alone). CIFAR-10 (JPEG copy), no fine-tuning.
Decisions see training images only: 1,024 for statistics and refit, the next 4,608 for Interaction's measurements. Every
network is then read once on the 10,000 test images.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import math
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import runner
import torch
from scipy.stats import spearmanr
from torch import Tensor, nn
from torch.nn import functional

import spectrim as st
from spectrim.compress import Study
from spectrim.data import Batches, Form, open_images
from spectrim.probe import NetworkProbe
from spectrim.score.displacement import surroundings
from spectrim.score.measured import measured_harm
from spectrim.score.rescore import few
from spectrim.search.interaction import neighbours
from spectrim.surgery import duplicate, factorized, replace_module
from spectrim.zoo import load_weights, make_model

HERE = Path(__file__).parent
CHECKPOINTS = {"ResNet-20": "resnet20-cifar10jpeg", "ResNet-32": "resnet32-cifar10jpeg"}
METHODS: dict[str, st.Search] = {
    "Interaction": st.Interaction(),
    "Knapsack": st.Knapsack(),
    "Knapsack, normalised energies (BALF)": st.Knapsack(score="whitened"),
    "Greedy": st.Greedy(),
    "Similarity": st.Similarity(),
    "ALDS": st.ALDS(),
    "VBMF": st.VBMF(),
    "Energy": st.Energy(),
    "Uniform": st.Uniform(),
}
BUDGETS = (0.5, 0.35, 0.2, 0.65, 0.8)
RANGES = ((0.003, 0.03), (0.03, 0.1), (0.1, 0.3), (0.3, 1.0))
PLANS = 100  # random plans of each range
COLUMNS = ("drop", "standard error", "KL", "search seconds", "forward passes", "backward passes", "peak memory, MiB")


class Bench:
    """The images and the networks; each step returns a JSON-ready dictionary."""

    def __init__(self, models: Path, data: Path) -> None:
        """Read the images."""
        self.models = models
        form = Form(3, (32, 32))
        parts = {}
        for split, count in (("train", 8192), ("test", 10000)):
            images = open_images(f"parquet:{data / split}.parquet").part(range(count))
            found = list(Batches(images, form, 500))
            parts[split] = torch.cat([x for x, _ in found]), torch.cat([y for _, y in found])
        self.images = parts["train"][0]
        self.test = parts["test"]
        self.studies: dict[tuple[str, str], Study] = {}
        self.setups: dict[str, dict[str, float]] = {}
        self.originals: dict[str, Tensor] = {}

    def network(self, checkpoint: str) -> nn.Module:
        """Return a checkpoint."""
        name = CHECKPOINTS[checkpoint]
        model = make_model(f"{HERE.parent / 'examples/cifar_resnet.py'}:{name.split('-')[0]}")
        load_weights(model, str(self.models / f"{name}.safetensors"))
        return model.eval()

    def study(self, checkpoint: str, label: str = "", config: st.Config | None = None, *, data: bool = True) -> Study:
        """Return what is computed once for a checkpoint and configuration."""
        if (checkpoint, label) not in self.studies:
            config = config or st.Config(search=st.Interaction())
            self.studies.clear()  # one at a time in memory
            self.studies[checkpoint, label] = Study(
                self.network(checkpoint), self.images[:1], self.images if data else None, config
            )
        return self.studies[checkpoint, label]

    def scores(self, checkpoint: str, small: nn.Module) -> dict[str, float]:
        """Return the drop with its paired standard error, and the KL divergence from the original, on the test images."""
        x, y = self.test
        if checkpoint not in self.originals:
            self.originals[checkpoint] = logits(self.network(checkpoint), x)
        before, after = self.originals[checkpoint], logits(small, x)
        lost = (before.argmax(1) == y).double() - (after.argmax(1) == y).double()
        divergence = kl(before, after)
        return {
            "before": float((before.argmax(1) == y).double().mean()),
            "drop": 100 * float(lost.mean()),
            "standard error": 100 * float(lost.std()) / math.sqrt(len(lost)),
            "KL": float(divergence.mean()),
            "KL standard error": float(divergence.std()) / math.sqrt(len(lost)),
        }

    def cell(self, checkpoint: str, method: str, fraction: float, metric: str) -> dict[str, Any]:
        """One rank selection at one budget."""
        study = self.study(checkpoint)
        search = METHODS[method]
        shared = dict(study.seconds), dict(study.passes)  # before anything of this cell
        if f"{checkpoint} setup" not in self.setups:
            self.setups[f"{checkpoint} setup"] = {"seconds": study.seconds["statistics"] + study.seconds["menu"]}
        study.config = dataclasses.replace(study.config, search=search)
        study.refitted.clear()
        reset_peak()
        start = time.perf_counter()
        budget = st.Keep(fraction, metric)  # type: ignore[arg-type]
        plan, small = study.shrink(budget)
        seconds = time.perf_counter() - start
        scoring = f"{checkpoint} {search.score} {metric}"
        passes = {kind: number - shared[1].get(kind, 0.0) for kind, number in study.passes.items()}
        if search.score in ("measured", "similarity"):  # measured once, used at every budget: each cell is charged for it
            if scoring not in self.setups:
                self.setups[scoring] = {"seconds": study.seconds["search"] - shared[0].get("search", 0.0), **passes}
                self.setups[scoring]["forward"] = passes["forward"] - 2.0
            else:
                seconds += self.setups[scoring]["seconds"]
                passes["forward"] += self.setups[scoring]["forward"]
        return {
            **self.scores(checkpoint, small),
            **(self.gain(checkpoint, budget, plan, small) if method == "Interaction" else {}),
            "params kept": plan.cost.params / plan.original.params,
            "MACs kept": plan.cost.macs / plan.original.macs,
            "predicted": plan.harm,
            "search seconds": seconds + self.setups[f"{checkpoint} setup"]["seconds"],
            "forward passes": passes.get("forward", 0.0) + 1,
            "backward passes": passes.get("backward", 0.0) + 1,
            "peak memory, MiB": peak(),
        }

    def gain(self, checkpoint: str, budget: st.Keep, plan: st.Plan, small: nn.Module) -> dict[str, float]:
        """Return by how much a plan's network is better than the additive plan's, on the test images, paired."""
        study = self.study(checkpoint)
        study.config = dataclasses.replace(study.config, search=st.Knapsack())
        additive = study.select(budget)
        if additive == plan:
            return {"gain": 0.0, "gain error": 0.0, "KL gain": 0.0, "KL gain error": 0.0}
        x, y = self.test
        reference, both = self.originals[checkpoint], [logits(network, x) for network in (small, study.build(additive))]
        hits, lost = ([(out.argmax(1) == y).double() for out in both], [kl(reference, out).double() for out in both])
        points, nats = 100 * (hits[0] - hits[1]), lost[1] - lost[0]
        root = math.sqrt(len(y))
        return {
            "gain": float(points.mean()),
            "gain error": float(points.std()) / root,
            "KL gain": float(nats.mean()),
            "KL gain error": float(nats.std()) / root,
        }

    def rung(self, checkpoint: str, rung: str, fraction: float) -> dict[str, Any]:
        """One rung of the ablation ladder."""
        search, label, settings, data = LADDER[rung]
        study = self.study(checkpoint, f"ladder {label}", st.Config(search=st.Interaction(), **settings), data=data)
        study.config = dataclasses.replace(study.config, search=search, **settings)
        study.refitted.clear()
        budget = st.Keep(fraction, "macs")
        plan = study.select(budget)
        if "no bias" in label:
            plan = st.Plan({name: dataclasses.replace(o, bias=False) for name, o in plan.items()}, plan.original)
        if rung.startswith("local search"):
            plan = local_search(study, plan, budget)
        small = study.build(plan)
        if "last layer" in rung:
            small = last_layer(study, small)
        return {**self.scores(checkpoint, small), "MACs kept": plan.cost.macs / plan.original.macs}

    def prediction(self, checkpoint: str) -> dict[str, Any]:
        """Additive and interaction-aware predictions of random plans, against the measured KL, without refit."""
        study = self.study(checkpoint)
        model, batches = study.model, study.batches[:2]
        assert study.moments is not None
        rows = [few(row, "macs")[1:] for row in study.menu.options]
        rows = [row for row in rows if row]
        modules = {
            id(o): factorized(o, model.get_submodule(o.layer.name), study.moments[o.layer.name]) for row in rows for o in row
        }
        options = [option for row in rows for option in row]
        place = {id(option): index for index, option in enumerate(options)}
        found = surroundings(model, model, [(option, modules[id(option)]) for option in options], batches)
        random = np.random.default_rng(0)
        network = duplicate(model)
        table: dict[str, list[tuple[float, float, float, float]]] = {f"{low} to {high}": [] for low, high in RANGES}
        for tries in range(40 * PLANS):
            if all(len(cells) >= PLANS for cells in table.values()):
                break
            quality = random.uniform(0.2, 1.0)
            chosen = []
            for row in rows:
                ordered = sorted(row, key=lambda option: option.cost.macs)
                kept = random.random() < 0.3 * quality
                pick = None if kept else ordered[int((len(ordered) - 1e-9) * random.uniform(quality - 0.2, quality))]
                name = row[0].layer.name
                replace_module(network, name, model.get_submodule(name) if pick is None else modules[id(pick)])
                if pick is not None:
                    chosen.append(pick)
            index = [place[id(option)] for option in chosen]
            guess = found.harm(index)
            key = next((f"{low} to {high}" for low, high in RANGES if low / 3 <= guess < high * 3), None)
            if tries > 4 * PLANS and (key is None or all(len(table[k]) >= PLANS for k in _near(guess))):
                continue
            true = measured_harm(model, network, batches)
            for low, high in RANGES:
                if low <= true < high and len(table[f"{low} to {high}"]) < PLANS:
                    record = (true, sum(o.harm for o in chosen), found.additive(index), guess)
                    table[f"{low} to {high}"].append(record)
        return {f"KL {key}": agreement(cells) for key, cells in table.items() if len(cells) > 2}

    def steps(self, checkpoint: str) -> dict[str, Any]:
        """Compare predictions of random joint steps around the refitted network, where Interaction decides."""
        study = self.study(checkpoint)
        study.config = dataclasses.replace(study.config, search=st.Interaction())
        rows = {}
        for fraction in (0.5, 0.35):
            budget = st.Keep(fraction, "macs")
            plan = study.select(budget, measure=False)
            probe = study.probe()
            assert isinstance(probe, NetworkProbe)
            options = neighbours(study.menu, plan, "macs")
            refitted = study.fit(plan)
            modules = [probe.module(refitted, option) for option in options]
            batches = study.more[:2]
            found = surroundings(study.model, refitted.model, list(zip(options, modules, strict=True)), batches)
            owners = [option.layer.name for option in options]
            random = np.random.default_rng(0)
            network, cells = duplicate(refitted.model), []
            for _ in range(PLANS):
                chosen = []
                for name in dict.fromkeys(owners):
                    own = [index for index, owner in enumerate(owners) if owner == name]
                    pick = int(random.choice(own)) if random.random() < 0.5 else None
                    module = refitted.model.get_submodule(name) if pick is None else modules[pick]
                    replace_module(network, name, module)
                    chosen += [] if pick is None else [pick]
                true = measured_harm(study.model, network, batches)
                menu = sum(options[i].harm - plan[owners[i]].harm for i in chosen)
                cells.append((true, found.base + menu, found.additive(chosen), found.harm(chosen)))
            rows[f"around {100 * fraction:g} % of the MACs"] = agreement(cells)
        return rows


def _near(guess: float) -> list[str]:
    return [f"{low} to {high}" for low, high in RANGES if low / 3 <= guess < high * 3]


def agreement(cells: list[tuple[float, float, float, float]]) -> dict[str, float]:
    """Return rank correlation and mean absolute log error of each prediction."""
    true, *guesses = (np.array(column) for column in zip(*cells, strict=True))
    row: dict[str, float] = {"plans": len(true), "median KL": float(np.median(true))}
    for name, guess in zip(("menu", "additive", "interacting"), guesses, strict=True):
        row[f"{name}: Spearman"] = float(spearmanr(guess, true).statistic)
        row[f"{name}: log error"] = float(np.abs(np.log(np.maximum(guess, 1e-6) / true)).mean())
    return row


def local_search(study: Study, plan: st.Plan, budget: st.Keep, proposals: int = 8) -> st.Plan:
    """Propose random paired steps at constant budget; refit each and keep it if the held-out harm falls."""
    study.config = dataclasses.replace(study.config, search=st.Interaction())
    probe = study.probe()
    assert probe is not None
    random = np.random.default_rng(0)
    for _ in range(proposals):
        options = neighbours(study.menu, plan, budget.metric)
        first, second = (options[int(index)] for index in random.choice(len(options), 2, replace=False))
        moved = {**plan.choices, first.layer.name: first, second.layer.name: second}
        other = st.Plan({name: moved[name] for name in plan}, plan.original)
        slack = int(budget.fraction * plan.original.of(budget.metric)) - other.cost.of(budget.metric)
        if slack >= 0 and first.layer.name != second.layer.name and probe.gain(plan, other)[0] > 0:
            plan = other
    return plan


def last_layer(study: Study, small: nn.Module, ridge: float = 0.1) -> nn.Module:
    """Refit the last linear layer to the original logits by ridge regression of what is missing."""
    small = copy.deepcopy(small)
    last: nn.Linear = small.linear  # type: ignore[assignment]
    seen: list[Tensor] = []
    hook = last.register_forward_hook(lambda module, args, output: seen.append(args[0].detach()))
    images = torch.cat([batch for batch in study.batches if isinstance(batch, Tensor)])
    missing = (logits(study.model, images) - logits(small, images)).double()
    hook.remove()
    features = torch.cat(seen).double()
    mean = features.mean(0)
    gram = (features - mean).T @ (features - mean) / len(features)
    damped = gram + ridge * gram.diagonal().mean() * torch.eye(len(gram)).double()
    change = torch.linalg.solve(damped, (features - mean).T @ (missing - missing.mean(0)) / len(features)).T
    with torch.no_grad():
        last.weight += change.float()
        last.bias += (missing.mean(0) - change @ mean).float()
    return small


@torch.no_grad()
def logits(model: nn.Module, x: Tensor) -> Tensor:
    """Return the outputs of a network in eval mode."""
    return torch.cat([model.eval()(part) for part in x.split(250)])


def kl(reference: Tensor, outputs: Tensor) -> Tensor:
    """Return the divergence of each example in nats."""
    return functional.kl_div(outputs.log_softmax(1), reference.log_softmax(1), log_target=True, reduction="none").sum(1)


def reset_peak() -> None:
    """Forget the largest resident size so far, where the system can."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak() -> int:
    """Return the largest resident size in MiB, since `reset_peak` where the system can forget."""
    try:
        return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) // 1024
    except (OSError, IndexError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


BALF = st.Knapsack(score="whitened")
CHANNEL = (st.ChannelSVD(),)
SPATIAL = (*CHANNEL, st.SpatialSVD(), st.SpatialSVD(axis=1))
FULL = st.Config().methods
LADDER: dict[str, tuple[st.Search, str, dict[str, Any], bool]] = {  # selection, name of the study, configuration, data
    "plain SVD, uniform": (st.Uniform(), "plain", {"methods": CHANNEL, "refit": False}, False),
    "equal energy": (st.Energy(), "plain", {"methods": CHANNEL, "refit": False}, False),
    "input-whitened, normalised energies (BALF)": (
        BALF,
        "whitened, no bias",
        {"methods": CHANNEL, "refit": False, "gradient": False},
        True,
    ),
    "two-sided": (BALF, "channel, no bias", {"methods": CHANNEL, "refit": False}, True),
    "bias corrected": (BALF, "channel", {"methods": CHANNEL, "refit": False}, True),
    "exact knapsack in nats": (st.Knapsack(), "channel", {"methods": CHANNEL, "refit": False}, True),
    "menu: SpatialSVD too": (st.Knapsack(), "spatial", {"methods": SPATIAL, "refit": False}, True),
    "menu: CP too": (st.Knapsack(), "full", {"methods": FULL, "refit": False}, True),
    "asymmetric refit": (st.Knapsack(), "full", {"methods": FULL, "refit": True}, True),
    "interactions": (st.Interaction(), "full", {"methods": FULL, "refit": True}, True),
    "local search: 8 measured proposals": (st.Interaction(), "full", {"methods": FULL, "refit": True}, True),
    "beside asymmetric refit: interactions instead of it": (
        st.Interaction(),
        "full",
        {"methods": FULL, "refit": False},
        True,
    ),
    "beside asymmetric refit: last layer refitted too": (st.Knapsack(), "full", {"methods": FULL, "refit": True}, True),
    "beside asymmetric refit: ChannelSVD alone": (st.Knapsack(), "channel", {"methods": CHANNEL, "refit": True}, True),
    "beside asymmetric refit: without CP": (st.Knapsack(), "spatial", {"methods": SPATIAL, "refit": True}, True),
    "beside asymmetric refit: 4,096 images": (st.Knapsack(), "images", {"methods": FULL, "images": 4096}, True),
}


def jobs() -> dict[str, Callable[[Bench], dict[str, Any]]]:
    """Return every cell by name, the most important first."""
    found: dict[str, Callable[[Bench], dict[str, Any]]] = {}

    def add(checkpoint: str, metric: str, budgets: tuple[float, ...], methods: tuple[str, ...]) -> None:
        for fraction in budgets:
            for method in methods:
                name = f"{checkpoint} | {metric} | {fraction} | {method}"
                found[name] = lambda bench, a=(checkpoint, method, fraction, metric): bench.cell(*a)

    first, rest = BUDGETS[:3], BUDGETS[3:]
    quick = tuple(method for method in METHODS if method not in ("Interaction", "Greedy"))
    for checkpoint in CHECKPOINTS:
        add(checkpoint, "macs", (0.5, 0.35, 0.25, 0.2), ("Interaction", "Knapsack"))
        add(checkpoint, "macs", first, quick)
    for rung in LADDER:
        for fraction in (0.5, 0.35):
            name = f"ResNet-20 | ladder | {fraction} | {rung}"
            found[name] = lambda bench, a=("ResNet-20", rung, fraction): bench.rung(*a)
    for checkpoint in CHECKPOINTS:
        found[f"{checkpoint} | steps"] = lambda bench, c=checkpoint: bench.steps(c)
        found[f"{checkpoint} | prediction"] = lambda bench, c=checkpoint: bench.prediction(c)
        add(checkpoint, "params", first, quick)
    for checkpoint in CHECKPOINTS:
        add(checkpoint, "macs", first, ("Greedy",))
        add(checkpoint, "macs", rest, quick)
        add(checkpoint, "params", rest, quick)
        add(checkpoint, "params", BUDGETS, ("Interaction", "Greedy"))
        add(checkpoint, "macs", rest, ("Interaction", "Greedy"))
    return found


def markdown(results: dict[str, Any]) -> str:
    """Return all results as tables."""
    cells = results["cells"]
    lines = ["# Rank selections", "", f"`{results['command']}` on {results['machine']}", ""]
    lines += [
        "CIFAR-10 (JPEG copy), no fine-tuning. Drop: points of top-1 on 10,000 test images, +- paired standard error. KL: nats "
        "on the same images. Seconds and passes (over 1,024 images) include statistics, menu, selection and refit; other "
        "processes ran on the machine, so compare seconds with care. A dash: not run.",
        "",
    ]
    for checkpoint in CHECKPOINTS:
        for metric in ("macs", "params"):
            lines += [f"## {checkpoint}, {metric} kept: drop", ""]
            budgets = sorted((*BUDGETS, 0.25), reverse=True)
            lines += ["| selection | " + " | ".join(f"{100 * b:g} %" for b in budgets) + " |", "|---|" + "---|" * len(budgets)]
            for method in METHODS:
                row = [cells.get(f"{checkpoint} | {metric} | {b} | {method}") for b in budgets]
                text = [f"{c['drop']:.2f} +- {c['standard error']:.2f}" if c else "-" for c in row]
                lines.append(f"| {method} | " + " | ".join(text) + " |")
            lines.append("")
        lines += [f"## {checkpoint} at 35 % of the MACs: what it took", ""]
        lines += ["| selection | " + " | ".join(COLUMNS) + " |", "|---|" + "---|" * len(COLUMNS)]
        for method in METHODS:
            cell = cells.get(f"{checkpoint} | macs | 0.35 | {method}")
            if cell:
                lines.append(f"| {method} | " + " | ".join(f"{cell[c]:.4g}" for c in COLUMNS) + " |")
        lines.append("")
        for title, name in (
            ("random plans without refit: predictions against measured KL", "prediction"),
            ("random steps around the refitted network: predictions against measured KL", "steps"),
        ):
            rows = cells.get(f"{checkpoint} | {name}")
            if rows:
                columns = list(next(iter(rows.values())))
                lines += [f"## {checkpoint}, {title}", ""]
                lines += ["| | " + " | ".join(columns) + " |", "|---|" + "---|" * len(columns)]
                lines += [f"| {key} | " + " | ".join(f"{row[c]:.3g}" for c in columns) + " |" for key, row in rows.items()]
                lines.append("")
    lines += [
        "## ResNet-20, ablation ladder: drop and KL",
        "",
        "| rung | 50 % MACs | KL | 35 % MACs | KL |",
        "|---|---|---|---|---|",
    ]
    for rung in LADDER:
        row = [cells.get(f"ResNet-20 | ladder | {b} | {rung}") for b in (0.5, 0.35)]
        text = [f"{c['drop']:.2f} +- {c['standard error']:.2f} | {c['KL']:.4f}" if c else "- | -" for c in row]
        lines.append(f"| {rung} | " + " | ".join(text) + " |")
    return "\n".join(lines) + "\n"


def plot(results: dict[str, Any], target: Path) -> None:
    """Draw drop over kept fraction for every checkpoint and metric."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 8))
    axes = figure.subplots(2, 2)
    for row, checkpoint in enumerate(CHECKPOINTS):
        for column, metric in enumerate(("macs", "params")):
            here = axes[row][column]
            for index, method in enumerate(METHODS):
                found = [
                    (b, results["cells"].get(f"{checkpoint} | {metric} | {b} | {method}")) for b in sorted((*BUDGETS, 0.25))
                ]
                points = [(100 * b, max(c["drop"], 0.05)) for b, c in found if c]
                if points:
                    style = "o-" if index < 2 else ".--"
                    here.plot(*zip(*points, strict=True), style, label=method, linewidth=2 if index < 2 else 1)
            here.set_yscale("log")
            here.set_title(f"{checkpoint}, {metric}")
            here.set_xlabel("kept, %")
            here.set_ylabel("drop, points")
            here.spines[["top", "right"]].set_visible(False)
    axes[0][0].legend(frameon=False, fontsize=8)
    figure.tight_layout()
    figure.savefig(target, metadata={"Date": None})


def main() -> None:
    """Run the cells that are not done."""
    parser = runner.parser(__doc__)
    parser.add_argument("--models", type=Path, required=True)
    arguments = parser.parse_args()
    target = runner.RESULTS / "selection.json"
    results = runner.read(target, "python benchmarks/selection.py --models ../shared/models --data ../shared/data/cifar10-jpeg")
    bench = Bench(arguments.models, arguments.data)

    def write(results: dict[str, Any]) -> None:
        target.with_suffix(".md").write_text(markdown(results))
        plot(results, target.with_suffix(".svg"))

    todo = {name: functools.partial(job, bench) for name, job in jobs().items()}
    runner.run(todo, results, arguments, target=target, write=write)


if __name__ == "__main__":
    main()
