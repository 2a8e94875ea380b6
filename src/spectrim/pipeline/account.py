"""Step four, account: what was done, what it cost and what it took. The one place where reports are put together."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

import torch
from torch import nn

from spectrim.core.cost import Budget, written
from spectrim.core.figures import Curve, Try
from spectrim.core.plan import Option, Plan
from spectrim.core.progress import Spent
from spectrim.core.records import Interactions, Report, Row, Source, Training
from spectrim.core.score import Score
from spectrim.network.accuracy import Evaluate, Scorer
from spectrim.network.build import factorized
from spectrim.network.calling import Example, count, undisturbed
from spectrim.network.counting import counted, stored
from spectrim.network.reorder import reordered
from spectrim.network.survey import Survey, survey
from spectrim.pipeline.config import Config
from spectrim.pipeline.details import Times, limits, machine, row_times, spectra
from spectrim.pipeline.prepare import Prepared, target_of
from spectrim.pipeline.probe import network_probe
from spectrim.pipeline.realize import Realized
from spectrim.sensitivity.measured import measured_harm
from spectrim.sensitivity.sketch import quadratic_model
from spectrim.targets.base import Target
from spectrim.targets.timing import interleaved, latency, verdict
from spectrim.version import __version__


@undisturbed()
def account(
    prepared: Prepared,
    plan: Plan,
    realized: Realized,
    evaluate: Evaluate | Scorer | Score | None = None,
    *,
    budget: Budget | None = None,
    tries: Sequence[Try] = (),
) -> Report:
    """Compare a compressed network with the original: costs, harm, interactions, scores, time.

    Args:
        prepared: From `prepare`.
        plan: From `choose`.
        realized: From `realize`.
        evaluate: From a network to its score, as in `compress`; or the score, if it is known already.
        budget: What was asked; None for a plan of one's own.
        tries: Budgets tried on the way.

    Raises:
        ValueError: If evaluate fails, or returns no finite number.
    """
    small, ledger = realized.model, prepared.ledger()
    after = counted(small, prepared.example).cost
    if after != plan.cost and not prepared.varying:
        raise AssertionError(f"the built network costs {after}, the plan says {plan.cost}; please report this")
    score = evaluate if isinstance(evaluate, Score) else None
    if not isinstance(evaluate, Score) and evaluate is not None:
        with ledger.stage("evaluate"):
            score = Scorer.of(evaluate, prepared.model).score(small)
    harm, joint = None, None
    if prepared.moments is not None:
        seen = prepared.unseen or prepared.calibration
        with ledger.stage("report"):
            harm = measured_harm(prepared.model, small, seen, prepared.harm)
            if plan and prepared.config.gradient:
                alone = [
                    (name, factorized(option, prepared.model.get_submodule(name), prepared.moments[name]))
                    for name, option in plan.items()
                ]
                joint = interactions(prepared, alone, small, seen)
    models = prepared.model, reordered(small, prepared.example)
    target = target_of(prepared.config, prepared.example)
    with ledger.stage("latency"):
        timed, times, untimed = _timed(target, models, prepared.survey, plan, prepared.example)
    spent = prepared.spent + plan.spent + realized.spent + ledger.spent
    return Report(
        written(budget) if budget is not None else "the given plan",
        prepared.original,
        after,
        _rows(prepared.survey, plan, realized.decisions, times),
        prepared.survey.skipped,
        plan.harm,
        harm,
        prepared.harm_unit,
        interactions=joint,
        selection=score,
        **timed,
        seconds=spent.seconds,
        passes=spent.passes,
        tries=tuple(tries),
        images=count(prepared.calibration),
        notes=(*prepared.notes, *_notes(prepared), *realized.notes, *untimed),
        config=prepared.config.settings(),
        **_made(models, budget),
        spectra=spectra(prepared.menu, plan),
    )


@dataclass(frozen=True, eq=False)
class Trained:
    """What a training made, for its report.

    Attributes:
        original: The network before it.
        model: The network after it, and after the decomposition.
        plan: What was decomposed; empty for ordinary training.
        training: What the training did.
        curves: Loss towards low rank, before and after.
        test: Score on data read once.
        spent: What choosing the plan took.
    """

    original: nn.Module
    model: nn.Module
    plan: Plan
    training: Training
    curves: tuple[Curve, ...]
    test: Score
    spent: Spent


@undisturbed()
def account_training(trained: Trained, example: Example, config: Config, *, budget: Budget | None = None) -> Report:
    """Compare a trained network with the one before; nothing was predicted of it.

    Args:
        trained: What there is.
        example: A batch of inputs.
        config: How the plan was chosen.
        budget: What was asked; None for a given plan, and for ordinary training.
    """
    found, plan = survey(trained.original, example), trained.plan
    models = trained.original, trained.model
    timed, times, untimed = _timed(target_of(config, example), models, found, plan, example) if plan else ({}, {}, [])
    return Report(
        written(budget) if budget is not None else "the given plan" if plan else "ordinary training",
        plan.original,
        counted(trained.model, example).cost,
        _rows(found, plan, {}, times),
        found.skipped,
        None,
        None,
        "nats",
        task="trained for low rank" if plan else "trained",
        test=trained.test,
        **timed,
        seconds={**trained.spent.seconds, "training": trained.training.seconds},
        passes=trained.spent.passes,
        training=trained.training,
        flatness=trained.curves,
        notes=tuple(untimed),
        config=config.settings(),
        **_made(models, budget),
    )


def complete(
    report: Report,
    *,
    test: Score | None = None,
    training: Training | None = None,
    source: Source | None = None,
    notes: Sequence[str] = (),
    arguments: Mapping[str, Any] | None = None,
) -> Report:
    """Return a report with what only its caller knows.

    Args:
        report: From `account` or `account_training`.
        test: Score on data read once.
        training: Fine-tuning after the compression.
        source: Where the network and the images came from.
        notes: What a reader must know.
        arguments: Of the command line.
    """
    seconds = report.seconds if training is None else {**report.seconds, "fine-tuning": training.seconds}
    return replace(
        report,
        test=test or report.test,
        training=training or report.training,
        source=source,
        notes=(*report.notes, *notes),
        seconds=seconds,
        arguments=arguments or {},
    )


def interactions(
    prepared: Prepared, alone: Sequence[tuple[str, nn.Module]], small: nn.Module, batches: Sequence[Example]
) -> Interactions:
    """Return what interactions say of a plan: predicted around the original network, the rest around the compressed one.

    Args:
        prepared: The original network.
        alone: Planned layers, and what would take the place of each if it alone were replaced.
        small: The compressed network.
        batches: Inputs.
    """
    model, harm, names = prepared.model, prepared.harm, [name for name, _ in alone]
    ahead = quadratic_model(model, model, alone, batches, harm=harm)
    back = quadratic_model(model, small, [(name, model.get_submodule(name)) for name in names], batches, harm=harm)
    return Interactions(
        ahead.harm(range(len(names))),
        tuple(names),
        tuple(back.base - back.harm([index]) for index in range(len(names))),
        tuple(tuple(float(value) for value in row) for row in back.gram),
    )


def _timed(
    target: Target, models: tuple[nn.Module, nn.Module], found: Survey, plan: Plan, example: Example
) -> tuple[dict[str, Any], Times, list[str]]:
    """Return the report's fields on time, of both networks in turn, and the layers' times; or why there are none.

    Args:
        target: Where.
        models: Both.
        found: Of the original.
        plan: What was replaced.
        example: One batch.
    """
    try:
        sessions = [target.load(model, example) for model in models]
    except ValueError as error:  # work of hours is not lost for it
        return {}, {}, [f"there are no times: {error}"]
    clock = sessions[0].clock
    old, new = interleaved(sessions)
    both = (latency(old, target.threads, clock), latency(new, target.threads, clock))
    times, how = row_times(target, models, layers=found.layers, plan=plan, example=example, whole=both[0].median_ms)
    fields = {"latency": both, "verdict": verdict(old, new, clock), "target": target.describe(), "row_times": how}
    return fields, times, []


def _rows(found: Survey, plan: Plan, decisions: Mapping[str, str], times: Times) -> tuple[Row, ...]:
    """Return a row per layer, in order of execution."""
    rows = []
    for layer in found.layers:
        option = plan.choices.get(layer.name, Option(layer))
        costs = (layer.cost.params, option.cost.params, layer.cost.macs, option.cost.macs)
        what = (layer.name, layer.kind, layer.weight, option.title, option.rank)
        rows.append(Row(*what, *costs, option.harm, decisions.get(layer.name, ""), times.get(layer.name)))
    return tuple(rows)


def _notes(prepared: Prepared) -> tuple[str, ...]:
    """Return what the user should know about the rank selection."""
    search, found = prepared.config.search, count(prepared.further)
    if not search.images or prepared.moments is None or network_probe(prepared, prepared.ledger()) is not None:
        return ()
    return (
        f"{search.title} had too little to measure on and chose by predictions alone: it wants {search.images:,} images beyond "
        f"the calibration's {count(prepared.calibration):,}, and found {found:,}",
    )


def _made(models: tuple[nn.Module, nn.Module], budget: Budget | None) -> dict[str, Any]:
    """Return the report's fields on what it is about, when and with what it was made.

    Args:
        models: The original network and the compressed one.
        budget: What was asked.
    """
    return {
        "network": type(models[0]).__name__,
        "date": datetime.now().astimezone().isoformat(timespec="seconds"),
        "machine": machine(),
        "versions": {"spectrim": __version__, "torch": torch.__version__, "python": platform.python_version()},
        "limits": limits(budget),
        "stored": (stored(models[0]), stored(models[1])),
    }
