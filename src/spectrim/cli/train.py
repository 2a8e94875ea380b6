"""`spectrim train`."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import torch
from cyclopts import Parameter
from safetensors.torch import save_model
from torch import distributed, nn

from spectrim.cli.splits import Sources, first_examples, training_data
from spectrim.network.accuracy import Accuracy, Scorer
from spectrim.cli.shared import HELD, Choice, Json, Source, Training, Whole, begin, look, plan_file, progress, show, unfinished
from spectrim.compress import Study
from spectrim.pipeline.config import Config
from spectrim.core.cost import Keep
from spectrim.targets.torch import measure
from spectrim.core.plan import Plan
from spectrim.core.records import Curve, Report, Score
from spectrim.report import budget_text, make_rows
from spectrim.pipeline.result import Result
from spectrim.network.counting import cost
from spectrim.network.surgery import duplicate
from spectrim.network.survey import survey
from spectrim.train import Distortion, Recipe, Schedule, fit, loss_along

FLATNESS = 1000  # selection images on which the loss along the low-rank direction is measured


@Parameter(name="*")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Twist:
    """When kernels are distorted.

    Attributes:
        every: S_D, steps between two weight distortions.
        warmup: Steps before the first interval.
        tighten: Distortions over which the ranks fall to the plan's.
        replan: Choose the plan anew after each so many distortions; 0 keeps it.
    """

    every: Whole = 200
    warmup: Whole = 0
    tighten: Whole = 0
    replan: Whole = 0


def train(
    model: str,
    *,
    source: Source,
    out_dir: Annotated[str, Parameter(name="--out")],
    keep: float | None = None,
    metric: str = "macs",
    plan: str | None = None,
    choice: Choice = Choice(),
    epochs: Whole = 10,
    twist: Twist = Twist(),
    training: Training = Training(),
    resume: bool = False,
    as_json: Json = False,
) -> None:
    """Train a network so that it can be cut: ordinary training with occasional weight distortion, then the decomposition.

    Without --keep and --plan the network is trained ordinarily. Under torchrun every process takes its part of each batch.

    Parameters
    ----------
    model
        torchvision:NAME, timm:NAME, module.path:callable or file.py:callable.
    source
        The network and the images.
    out_dir
        Folder to write; it must be new or empty. dense.safetensors in it is the trained network in its old
        structure, its planned kernels at low rank.
    keep
        Fraction that may remain, such as 0.3; a rank selection makes the plan.
    metric
        params or macs.
    plan
        A plan.json to train for, instead of --keep.
    choice
        What may be chosen for each layer.
    epochs
        Times the training images are read.
    twist
        When kernels are distorted.
    training
        How to train.
    resume
        Go on where an interrupted run with the same arguments stopped.
    as_json
        Print the report as JSON.
    """
    if source.calibration is None:
        raise ValueError("train needs labelled training images: give them with --calibration")
    if keep is not None and plan is not None:
        raise ValueError("give at most one of --keep FRACTION and --plan FILE")
    if keep is None and plan is None and twist != Twist():
        raise ValueError("--every, --warmup, --tighten and --replan distort kernels: give --keep FRACTION or --plan FILE")
    if twist.replan and keep is None:
        raise ValueError("--replan chooses plans for a budget: give --keep FRACTION")
    schedule = Schedule(twist.every, warmup=twist.warmup, tighten=twist.tighten, replan=max(twist.replan, 1))
    words = {"source": source, "choice": choice, "keep": keep, "metric": metric, "plan": plan, "twist": twist, "model": model}
    words |= {"epochs": epochs, "training": training}
    with _processes(source) as (first, place):
        target, partial = begin(out_dir, resume)
        _wait()  # before anything is written there
        network = place.network(model)
        sources = place.open(choice, held=HELD)
        with progress(as_json or not first) as tell, unfinished(partial, resume, words) if first else contextlib.nullcontext():
            recipe = training.recipe("sgd", epochs, source.seed, partial, tell)
            scorer = look(network, sources, tell, as_json or not first, training=training.batch)
            assert scorer is not None
            run = _Session(network, sources, choice.config(source.seed, partial, tell), keep, metric, scorer)
            data = training_data(sources.training, recipe.batch, recipe.seed)
            result = run.train(run.plan(plan, partial), data, recipe, schedule, bool(twist.replan))
        if not first:
            return
        settings = {**result.report.settings, "source": source.words(model), "note": source.note()}
        result = dataclasses.replace(result, report=dataclasses.replace(result.report, settings=settings))
        result.save(target)
        save_model(network.cpu(), str(target / "dense.safetensors"))
        (target / "dense.safetensors").chmod(0o644)
        shutil.rmtree(partial, ignore_errors=True)
        show(result.report, str(target), as_json)


class _Session:
    """One training run: the network, its images, and what is chosen and told of it."""

    def __init__(
        self, network: nn.Module, sources: Sources, config: Config, keep: float | None, metric: Any, scorer: Scorer
    ) -> None:
        self.network, self.sources, self.config, self.scorer = network, sources, config, scorer
        self.budget = Keep(keep, metric) if keep is not None else None
        self.example = sources.example.to(next(network.parameters()).device)
        self.given = duplicate(network).eval()
        self.seconds: dict[str, float] = {}

    def plan(self, file: str | None, partial: Path) -> Plan:
        """Return the plan: of the file, of the interrupted run, or chosen now (by the first process for all)."""
        if file is not None:
            found = plan_file(file)
            if not found:
                raise ValueError(
                    f"the plan {file!r} replaces no layer, so there is nothing to distort; leave --plan out to train ordinarily"
                )
            return found
        if self.budget is None:
            return Plan({}, cost(self.network, self.example))
        kept = partial / "plan.json"
        text: list[Any] = [kept.read_text() if kept.is_file() else None]
        if text[0] is None and _rank() == 0:
            text = [self.choose(self.network).to_json()]
            kept.write_text(text[0])
        if distributed.is_initialized():
            distributed.broadcast_object_list(text, src=0)
        return Plan.from_json(text[0])

    def choose(self, network: nn.Module) -> Plan:
        """Return the plan that the rank selection makes for the weights as they are."""
        assert self.budget is not None
        study = Study(network, self.example, self.sources.calibration, self.config)
        plan = study.select(self.budget)
        for stage, seconds in study.seconds.items():
            self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds
        return plan

    def train(self, plan: Plan, data: Any, recipe: Recipe, schedule: Schedule, replan: bool) -> Result:
        """Train, decompose, and account for it."""
        distortion = None
        curves = []
        looked = list(first_examples(self.sources.selection, FLATNESS))
        if plan:
            distortion = Distortion(self.network, plan, every=schedule, replan=self.choose if replan else None)
            curves.append(loss_along(self.given, plan, batches=looked, label="before training"))
        history = fit(self.network, data, recipe=recipe, teacher=self.given, twist=distortion)
        small = self.network.eval()
        trained: dict[str, Any] = {"recipe": recipe.words(), **dataclasses.asdict(history)}
        if distortion is not None:
            plan = distortion.plan
            after = loss_along(self.network, plan, batches=looked, label="after training", twist=distortion)
            curves.append(after)
            trained["schedule"] = dataclasses.asdict(schedule)
            images = f"on {after.examples:,} selection images"
            accuracy = {f"{images} as trained": after.accuracy[0]}
            small = distortion.finish().eval()
            trained["accuracy"] = {**accuracy, f"{images} decomposed": Accuracy(looked)(small)}
        score = self.scorer.score(small)
        return Result(small, plan, self._report(plan, small, score, trained, tuple(curves)))

    def _report(self, plan: Plan, small: nn.Module, score: Score, trained: dict[str, Any], curves: tuple[Curve, ...]) -> Report:
        found = survey(self.given, self.example)
        return Report(
            budget_text(self.budget) if self.budget else "the given plan" if plan else "Ordinary training",
            plan.original,
            cost(small, self.example),
            make_rows(found, plan),
            found.skipped,
            None,  # what was predicted was of the network before training
            None,
            "nats",
            test=score,
            latency=tuple(measure([self.given, small], self.example)) if plan else None,  # type: ignore[arg-type]
            seconds={**self.seconds, "training": trained["seconds"]},
            training=trained,
            flatness=curves,
            settings={"config": self.config.words(), "torch": torch.__version__},
        )


@contextlib.contextmanager
def _processes(source: Source) -> Iterator[tuple[bool, Source]]:
    """Join the other processes of torchrun, if there are any; tell whether this is the first."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        yield True, source
        return
    cuda = source.device.startswith("cuda")
    if cuda:
        source = dataclasses.replace(source, device=f"cuda:{os.environ.get('LOCAL_RANK', '0')}")
        torch.cuda.set_device(source.device)
    distributed.init_process_group("nccl" if cuda else "gloo")
    try:
        yield distributed.get_rank() == 0, source
    finally:
        distributed.destroy_process_group()


def _wait() -> None:
    if distributed.is_initialized():
        distributed.barrier()


def _rank() -> int:
    return distributed.get_rank() if distributed.is_initialized() else 0
