"""`spectrim compress`."""

from __future__ import annotations

import dataclasses
import shutil
from typing import Annotated, Any

from cyclopts import Parameter
from torch import nn

from spectrim.cli.splits import Sources, training_data
from spectrim.network.accuracy import Accuracy
from spectrim.cli.shared import HELD, Choice, Json, Source, Training, Whole, begin, look, progress, show, unfinished
from spectrim.pipeline.compress import compress as run
from spectrim.core.cost import Budget, Keep, MaxDrop
from spectrim.pipeline.result import Result
from spectrim.train import Recipe, fit


def compress(
    model: str,
    *,
    source: Source,
    out_dir: Annotated[str, Parameter(name="--out")],
    keep: float | None = None,
    max_drop: float | None = None,
    metric: str = "macs",
    choice: Choice = Choice(),
    refit: bool = True,
    batchnorm: bool = False,
    finetune_epochs: Whole = 0,
    training: Training = Training(),
    resume: bool = False,
    as_json: Json = False,
) -> None:
    """Compress a network to a budget and write the result to a folder.

    Parameters
    ----------
    model
        torchvision:NAME, timm:NAME, module.path:callable or file.py:callable.
    source
        The network and the images.
    out_dir
        Folder to write; it must be new or empty.
    keep
        Fraction that may remain, such as 0.5.
    max_drop
        Points of top-1 that may be lost, such as 1.5; before fine-tuning.
    metric
        params or macs.
    choice
        What may be chosen for each layer.
    refit
        Fit each layer again to what the compressed prefix gives it.
    batchnorm
        Re-estimate BatchNorm statistics at the end.
    finetune_epochs
        Train the compressed network for so many epochs on the calibration source.
    training
        How to fine-tune.
    resume
        Go on where an interrupted run with the same arguments stopped.
    as_json
        Print the report as JSON.
    """
    budget = _budget(keep, max_drop, metric)
    if finetune_epochs and source.calibration is None:
        raise ValueError("--finetune-epochs needs labelled training images: give them with --calibration")
    if training != Training() and not finetune_epochs:
        raise ValueError("--distill, --rate and other words about training need --finetune-epochs N")
    target, partial = begin(out_dir, resume)
    network = source.network(model)
    sources = source.open(choice, held=HELD if finetune_epochs else 1.0 if isinstance(budget, MaxDrop) else 0.0)
    words = {"source": source, "choice": choice, "keep": keep, "max-drop": max_drop, "metric": metric, "refit": refit}
    words |= {"batchnorm": batchnorm, "finetune-epochs": finetune_epochs, "training": training, "model": model}
    with progress(as_json) as tell, unfinished(partial, resume, words):
        config = dataclasses.replace(choice.config(source.seed, partial, tell), refit=refit, batchnorm=batchnorm)
        one = sources.selection is sources.test and isinstance(budget, MaxDrop)  # what is decided on is no test
        scorer = look(network, sources, tell, as_json, test=not one, training=training.batch if finetune_epochs else 0)
        evaluate = Accuracy(sources.selection) if isinstance(budget, MaxDrop) else None
        result = run(
            network,
            sources.example.to(source.device),
            budget=budget,
            calibration=sources.calibration,
            evaluate=evaluate,
            config=config,
        )
        trained, seconds = {}, dict(result.report.seconds)
        if finetune_epochs:
            recipe = training.recipe("adamw", finetune_epochs, source.seed, partial, tell)
            trained = _fine_tuned(result.model, network, sources, recipe)
            seconds["fine-tuning"] = trained["seconds"]
        tell("test images", 0.0)
        score = scorer.score(result.model) if scorer is not None else None
        tell("test images", 1.0)
    notes = filter(None, (result.report.settings.get("note"), source.note()))
    settings = {**result.report.settings, "source": source.words(model), "note": "; ".join(notes)}
    report = dataclasses.replace(result.report, test=score, settings=settings, training=trained, seconds=seconds)
    Result(result.model, result.plan, report).save(target)
    shutil.rmtree(partial, ignore_errors=True)
    show(report, str(target), as_json)


def _fine_tuned(small: nn.Module, network: nn.Module, sources: Sources, recipe: Recipe) -> dict[str, Any]:
    """Train the small network, and return what the report tells of it."""
    looked = Accuracy(sources.selection)
    accuracy = {"on the selection images before fine-tuning": looked(small)}
    history = fit(small, training_data(sources.training, recipe.batch, recipe.seed), recipe=recipe, teacher=network)
    accuracy["on the selection images after fine-tuning"] = looked(small.eval())
    return {"recipe": recipe.words(), **dataclasses.asdict(history), "accuracy": accuracy}


def _budget(keep: float | None, max_drop: float | None, metric: str) -> Budget:
    if (keep is None) == (max_drop is None):
        raise ValueError("give exactly one budget: --keep FRACTION or --max-drop POINTS")
    return Keep(keep, metric) if keep is not None else MaxDrop(max_drop or 0.0, metric)  # type: ignore[arg-type]
