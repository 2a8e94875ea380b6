"""`spectrim train`."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import torch
from cyclopts import Parameter
from safetensors.torch import save_model
from torch import distributed, nn

from spectrim.cli.options import (
    VALIDATION,
    Choice,
    Inputs,
    TrainingOptions,
    Whole,
    check_score,
    print_original,
    score_original,
)
from spectrim.cli.runs import Run, options_of
from spectrim.cli.splits import Sources, first_examples, training_data
from spectrim.cli.terminal import Output, Track, check_trackers, progress, show
from spectrim.core.cost import Keep, check_metric
from spectrim.core.plan import Plan
from spectrim.core.progress import Spent
from spectrim.network.accuracy import Accuracy, Scorer
from spectrim.network.copying import duplicate
from spectrim.network.counting import cost
from spectrim.pipeline.account import Trained, account_training, complete
from spectrim.pipeline.choose import choose
from spectrim.pipeline.config import Config
from spectrim.pipeline.prepare import prepare
from spectrim.pipeline.result import Result
from spectrim.train import Distortion, Recipe, Schedule, fit, loss_along

FLATNESS = 1000  # selection images on which the loss along the low-rank direction is measured


@Parameter(name="*")
@dataclasses.dataclass(frozen=True, kw_only=True)
class DistortionOptions:
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

    def schedule(self) -> Schedule:
        """Return the schedule."""
        return Schedule(self.every, warmup=self.warmup, tighten=self.tighten, replan=max(self.replan, 1))


def train(
    model: str,
    *,
    inputs: Inputs,
    out_dir: Annotated[str, Parameter(name="--out")],
    keep: float | None = None,
    metric: str = "macs",
    plan: str | None = None,
    choice: Choice = Choice(),
    epochs: Whole = 10,
    distortion: DistortionOptions = DistortionOptions(),
    training: TrainingOptions = TrainingOptions(),
    resume: bool = False,
    track: Track = (),
    output: Output = Output(),
) -> str | None:
    """Train a network so that it can be cut: ordinary training with occasional weight distortion, then the decomposition.

    Without --keep and --plan the network is trained ordinarily. Under torchrun every process takes its part of each batch.

    Parameters
    ----------
    model
        torchvision:NAME, timm:NAME, module.path:callable or file.py:callable.
    inputs
        The network and the images.
    out_dir
        Folder to write; it must be new or empty. dense.safetensors in it is the trained network in its old
        structure, its planned kernels at low rank.
    keep
        Fraction that may remain, such as 0.3; a rank selection makes the plan.
    metric
        Of --keep: params, macs, bytes or latency.
    plan
        A plan.json to train for, instead of --keep.
    choice
        What may be chosen for each layer.
    epochs
        Times the training images are read.
    distortion
        When kernels are distorted.
    training
        How to train.
    resume
        Go on where an interrupted run with the same arguments stopped.
    track
        Also write the run to a tracker: tensorboard:DIR or mlflow:URI.
    output
        What is printed.
    """
    check_metric(metric)
    check_trackers(track)
    _check_words(inputs, keep, plan, distortion)
    own = None if plan is None else choice.own(plan)
    if own is not None and not own:
        raise ValueError(
            f"the plan {plan!r} replaces no layer, so there is nothing to distort; leave --plan out to train ordinarily"
        )
    schedule = distortion.schedule()
    budget = {"keep": keep, "metric": metric, "plan": plan}
    settings = {"choice": choice, "epochs": epochs, "distortion": distortion, "training": training}
    arguments = options_of(model=model, inputs=inputs, **budget, **settings)
    choice = choice if own is None else dataclasses.replace(choice, methods=None)
    with _processes(inputs) as (first, here):
        run = Run.at(out_dir, arguments, resume)
        if run.finished:
            return run.show_finished(output) if first else None
        _wait()  # before anything is written there
        network = here.network(model)
        sources = here.open(choice, validation=VALIDATION)
        with progress(output if first else Output(quiet=True)) as advance, run.working() if first else contextlib.nullcontext():
            recipe = training.recipe("sgd", epochs, inputs.seed, run.partial, advance)
            scorer = score_original(network, sources, advance, training=training.batch)
            assert scorer is not None
            check_score(network, sources, None, deciding=False)
            if first and not output.quiet:
                print_original(sources, scorer)
            wanted = None if keep is None else Keep(keep, metric)  # type: ignore[arg-type]
            session = _Session(network, sources, choice.config(inputs.seed, run.partial, advance), wanted, scorer)
            result = session.train(session.plan(own, run.partial), recipe, schedule, replan=bool(distortion.replan))
        if not first:
            return None
        report = complete(result.report, source=inputs.source(model), notes=inputs.notes(), arguments=arguments)
        Result(result.model, result.plan, report).save(run.target)
        save_model(network.cpu(), str(run.target / "dense.safetensors"))
        (run.target / "dense.safetensors").chmod(0o644)
        run.clear()
        return show(report, str(run.target), output, track)


def _check_words(inputs: Inputs, keep: float | None, plan: str | None, distortion: DistortionOptions) -> None:
    """Raise a ValueError if options do not go together, or training images are missing."""
    if inputs.calibration is None:
        raise ValueError("train needs labelled training images: give them with --calibration")
    if keep is not None and plan is not None:
        raise ValueError("give at most one of --keep FRACTION and --plan FILE")
    if keep is None and plan is None and distortion != DistortionOptions():
        raise ValueError("--every, --warmup, --tighten and --replan distort kernels: give --keep FRACTION or --plan FILE")
    if distortion.replan and keep is None:
        raise ValueError("--replan chooses plans for a budget: give --keep FRACTION")


class _Session:
    """One training run: the network, its images, and the budget that plans are chosen for."""

    def __init__(self, network: nn.Module, sources: Sources, config: Config, budget: Keep | None, scorer: Scorer) -> None:
        self.network, self.sources, self.config, self.budget, self.scorer = network, sources, config, budget, scorer
        self.example = sources.example.to(next(network.parameters()).device)
        self.original = duplicate(network).eval()
        self.spent = Spent()

    def plan(self, own: Plan | None, partial: Path) -> Plan:
        """Return the plan: the user's own, that of the interrupted run, or one chosen now (by the first process for all)."""
        if own is not None:
            return own
        if self.budget is None:
            return Plan({}, cost(self.network, self.example))
        saved = partial / "plan.json"
        text: list[Any] = [saved.read_text() if saved.is_file() else None]
        if text[0] is None and _rank() == 0:
            text = [self.choose(self.network).to_json()]
            saved.write_text(text[0])
        if distributed.is_initialized():
            distributed.broadcast_object_list(text, src=0)
        return Plan.from_json(text[0])

    def choose(self, network: nn.Module) -> Plan:
        """Return the plan that the rank selection makes for the weights as they are."""
        assert self.budget is not None
        prepared = prepare(network, self.example, calibration=self.sources.calibration, config=self.config)
        plan = choose(prepared, self.budget)
        self.spent = self.spent + prepared.spent + plan.spent
        return plan

    def train(self, plan: Plan, recipe: Recipe, schedule: Schedule, *, replan: bool) -> Result:
        """Train, decompose, and account for it."""
        distortion, curves = None, []
        validation = list(first_examples(self.sources.selection, FLATNESS))
        if plan:
            distortion = Distortion(self.network, plan, every=schedule, replan=self.choose if replan else None)
            curves.append(loss_along(self.original, plan, batches=validation, label="before training"))
        data = training_data(self.sources.training, recipe.batch, recipe.seed)
        training = fit(self.network, data, recipe=recipe, teacher=self.original, distortion=distortion)
        small = self.network.eval()
        if distortion is not None:
            plan = distortion.plan
            after = loss_along(self.network, plan, batches=validation, label="after training", distortion=distortion)
            curves.append(after)
            images = f"on {after.examples:,} selection images"
            small = distortion.finish().eval()
            accuracy = {f"{images} as trained": after.accuracy[0], f"{images} decomposed": Accuracy(validation)(small)}
            training = dataclasses.replace(training, accuracy=accuracy, schedule=dataclasses.asdict(schedule))
        test = self.scorer.score(small)
        trained = Trained(self.original, small, plan, training, tuple(curves), test, self.spent)
        return Result(small, plan, account_training(trained, self.example, self.config, budget=self.budget))


@contextlib.contextmanager
def _processes(inputs: Inputs) -> Iterator[tuple[bool, Inputs]]:
    """Join the other processes of torchrun, if there are any; tell whether this is the first."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        yield True, inputs
        return
    cuda = inputs.device.startswith("cuda")
    if cuda:
        inputs = dataclasses.replace(inputs, device=f"cuda:{os.environ.get('LOCAL_RANK', '0')}")
        torch.cuda.set_device(inputs.device)
    distributed.init_process_group("nccl" if cuda else "gloo")
    try:
        yield distributed.get_rank() == 0, inputs
    finally:
        distributed.destroy_process_group()


def _wait() -> None:
    if distributed.is_initialized():
        distributed.barrier()


def _rank() -> int:
    return distributed.get_rank() if distributed.is_initialized() else 0
