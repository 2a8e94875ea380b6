"""`spectrim compress`."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Annotated

from cyclopts import Parameter
from torch import nn

from spectrim.cli.methods import named
from spectrim.cli.options import (
    VALIDATION,
    BlockOptions,
    Choice,
    Inputs,
    TrainingOptions,
    Whole,
    check_score,
    print_original,
    score_original,
)
from spectrim.cli.runs import Run, options_of
from spectrim.cli.splits import Sources, training_data
from spectrim.cli.targets import RuntimeOptions
from spectrim.cli.terminal import Output, Track, check_trackers, progress, show
from spectrim.core.cost import AtMost, Bound, Budget, Keep, MaxDrop, check_metric
from spectrim.core.records import Training
from spectrim.network.accuracy import Accuracy, Scorer
from spectrim.pipeline.account import complete
from spectrim.pipeline.compress import compress as run_pipeline
from spectrim.pipeline.result import Result
from spectrim.train import Recipe, fit


def compress(
    model: str,
    *,
    inputs: Inputs,
    out_dir: Annotated[str, Parameter(name="--out")],
    keep: float | None = None,
    at_most: Sequence[str] = (),
    max_drop: float | None = None,
    metric: str = "macs",
    plan: str | None = None,
    choice: Choice = Choice(),
    refit: bool = True,
    batchnorm: bool = False,
    blocks: BlockOptions = BlockOptions(),
    runtime: RuntimeOptions = RuntimeOptions(),
    finetune_epochs: Whole = 0,
    training: TrainingOptions = TrainingOptions(),
    resume: bool = False,
    track: Track = (),
    output: Output = Output(),
) -> str | None:
    """Compress a network to a budget, or by a plan, and write the result to a folder.

    Parameters
    ----------
    model
        torchvision:NAME, timm:NAME, module.path:callable or file.py:callable.
    inputs
        The network and the images.
    out_dir
        Folder to write; it must be new or empty.
    keep
        Fraction that may remain, such as 0.5.
    at_most
        What may remain at most, a number and its metric: 4e6:bytes, 25:latency (milliseconds), 3e8:macs or 1e6:params. May be
        given several times, and beside --keep: then all hold.
    max_drop
        Points of top-1 that may be lost, such as 1.5; before fine-tuning.
    metric
        Of --keep and --max-drop: params, macs, bytes or latency.
    plan
        A plan.json of your own, such as an edited one: built and fitted as a chosen one; a budget given with it is checked.
    choice
        What may be chosen for each layer.
    refit
        Fit each layer again to what the compressed prefix gives it.
    batchnorm
        Re-estimate BatchNorm statistics at the end.
    blocks
        Whether to take gradient steps after the fits.
    runtime
        Where times are taken: of a budget in latency, and the report's.
    finetune_epochs
        Train the compressed network for so many epochs on the calibration source.
    training
        How to fine-tune.
    resume
        Go on where an interrupted run with the same arguments stopped.
    track
        Also write the run to a tracker: tensorboard:DIR or mlflow:URI.
    output
        What is printed.
    """
    budget = _budget(keep, at_most, max_drop, metric, given=plan is not None)
    own = None if plan is None else choice.own(plan)
    check_trackers(track)
    deciding, gradient, target = isinstance(budget, MaxDrop), blocks.options(), runtime.chosen()
    _check_words(finetune_epochs, inputs, training, deciding=deciding)
    steps = {"refit": refit, "batchnorm": batchnorm, "finetune_epochs": finetune_epochs, "training": training}
    budgets = {"keep": keep, "at_most": list(at_most), "max_drop": max_drop, "metric": metric, "plan": plan}
    arguments = options_of(model=model, inputs=inputs, **budgets, choice=choice, blocks=blocks, runtime=runtime, **steps)
    choice = choice if own is None else dataclasses.replace(choice, methods=None)
    run = Run.at(out_dir, arguments, resume)
    if run.finished:
        return run.show_finished(output)
    network = inputs.network(model)
    sources = inputs.open(choice, validation=VALIDATION if finetune_epochs else float(deciding))
    with progress(output) as advance, run.working():
        fits = {"refit": refit, "batchnorm": batchnorm, "reconstruct": gradient, "target": target}
        config = dataclasses.replace(choice.config(inputs.seed, run.partial, advance), **fits)  # type: ignore[arg-type]
        same = sources.selection is sources.test and deciding  # what is decided on is no test
        scorer = score_original(network, sources, advance, test=not same, training=training.batch if finetune_epochs else 0)
        with named("--selection" if inputs.selection else "--calibration" if inputs.calibration else "--data"):
            decider = Scorer(Accuracy(sources.selection), network) if deciding else None
        check_score(network, sources, decider or scorer, deciding=deciding)
        if not output.quiet:
            print_original(sources, scorer)
        example = sources.example.to(inputs.device)
        result = run_pipeline(
            network, example, budget=budget, plan=own, calibration=sources.calibration, evaluate=decider, config=config
        )
        recipe = training.recipe("adamw", finetune_epochs, inputs.seed, run.partial, advance) if finetune_epochs else None
        trained = None if recipe is None else _fine_tuned(result.model, network, sources, recipe)
        advance("test images", 0.0)
        score = scorer.score(result.model) if scorer is not None else None
        advance("test images", 1.0)
    known = {"source": inputs.source(model), "notes": inputs.notes(), "arguments": arguments}
    report = complete(result.report, test=score, training=trained, **known)  # type: ignore[arg-type]
    Result(result.model, result.plan, report).save(run.target)
    run.clear()
    return show(report, str(run.target), output, track)


def _check_words(epochs: int, inputs: Inputs, training: TrainingOptions, *, deciding: bool) -> None:
    """Raise a ValueError if options of training, and images for decisions, and what these need do not go together."""
    if inputs.selection is not None and not epochs and not deciding:
        raise ValueError("--selection has images for decisions: it needs --max-drop POINTS or --finetune-epochs N")
    if epochs and inputs.calibration is None:
        raise ValueError("--finetune-epochs needs labelled training images: give them with --calibration")
    if training != TrainingOptions() and not epochs:
        raise ValueError("--distill, --rate and other options of training need --finetune-epochs N")


def _fine_tuned(small: nn.Module, network: nn.Module, sources: Sources, recipe: Recipe) -> Training:
    """Train the small network."""
    evaluate = Accuracy(sources.selection)
    before = evaluate(small)
    training = fit(small, training_data(sources.training, recipe.batch, recipe.seed), recipe=recipe, teacher=network)
    accuracy = {
        "on the selection images before fine-tuning": before,
        "on the selection images after fine-tuning": evaluate(small.eval()),
    }
    return dataclasses.replace(training, accuracy=accuracy)


def _budget(keep: float | None, at_most: Sequence[str], max_drop: float | None, metric: str, *, given: bool) -> Budget | None:
    """Return the budget; with a given plan there may be none."""
    check_metric(metric)
    bounds: list[Bound] = [] if keep is None else [Keep(keep, metric)]  # type: ignore[arg-type]
    bounds += [_at_most(text) for text in at_most]
    if given and not bounds and max_drop is None:
        return None
    if bool(bounds) == (max_drop is not None):
        raise ValueError(
            "give exactly one budget: --keep FRACTION, --at-most NUMBER:METRIC (or several of these, which all hold) or "
            "--max-drop POINTS (none is needed with --plan FILE)"
        )
    if max_drop is None:
        return bounds
    if max_drop >= 100:
        raise ValueError(f"--max-drop is {max_drop:g}; of top-1, allowed are points in [0, 100), such as 1.5")
    return MaxDrop(max_drop, metric)  # type: ignore[arg-type]


def _at_most(text: str) -> AtMost:
    """Return the bound of a word such as 4e6:bytes."""
    number, _, metric = text.partition(":")
    with named("--at-most"):
        try:
            value = float(number)
        except ValueError:
            raise ValueError(f"{text!r} has no number before the colon; write it as 4e6:bytes or 25:latency") from None
        return AtMost(value, metric)  # type: ignore[arg-type]
