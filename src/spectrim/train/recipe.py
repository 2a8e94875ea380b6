"""How to train: the settings of a run, its optimizer and its learning rate at each step."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, Literal

import torch
from torch import nn
from torch.optim.lr_scheduler import OneCycleLR

from spectrim.core.progress import Progress
from spectrim.train.precision import Precision

RANGES = {
    "epochs": (1, 10**6),
    "batch": (1, 10**6),
    "rate": (1e-8, 1e3),
    "rise": (0.0, 1.0),
    "weight_decay": (0.0, 1e3),
    "smoothing": (0.0, 0.99),
    "crop": (0, 10**4),
    "distill": (0.0, 1.0),
    "temperature": (1e-3, 1e3),
}
CHOICES = {"optimizer": ("sgd", "adamw"), "precision": ("auto", "float32", "bfloat16")}


@dataclass(frozen=True)
class Recipe:
    """How to train.

    Attributes:
        epochs: Times the data is read.
        batch: Images of one step, of all processes together.
        optimizer: `sgd` (Nesterov momentum 0.9), `adamw`, or a function from the trained parameters to an optimizer.
        rate: Largest learning rate. It rises from a 25th of this and falls to a thousandth, in one cycle of two half cosines.
            With an optimizer of your own its rates are the largest.
        rise: Share of the steps in which the rate rises; 0 begins at the largest.
        weight_decay: On all parameters.
        smoothing: Label smoothing.
        crop: Pixels by which images are shifted at most.
        flip: Whether images are mirrored at random.
        distill: Share of the loss that is KL divergence from a teacher's outputs.
        temperature: That divides outputs before that divergence.
        precision: `auto` is bfloat16 autocast where the device is fast at it.
        seed: Of order, crops and flips.
        checkpoint: File that keeps the state, so that the same call goes on where it was interrupted.
        progress: Called with the name of the stage and the share of it that is done, 0 to 1.

    Raises:
        ValueError: If a value is of the wrong kind or out of range.

    Example:
        >>> Recipe(epochs=3, rate=0.05).settings()["rate"]
        0.05
    """

    epochs: int = 10
    batch: int = 128
    optimizer: Literal["sgd", "adamw"] | Callable[[list[nn.Parameter]], torch.optim.Optimizer] = "sgd"
    rate: float = 0.02
    rise: float = 0.2
    weight_decay: float = 1e-4
    smoothing: float = 0.0
    crop: int = 4
    flip: bool = True
    distill: float = 0.0
    temperature: float = 2.0
    precision: Precision = "auto"
    seed: int = 0
    checkpoint: str | os.PathLike[str] | None = None
    progress: Progress | None = None

    def __post_init__(self) -> None:
        """Check the values."""
        for name, (low, high) in RANGES.items():
            kind = int if isinstance(low, int) else (int, float)
            if not isinstance(getattr(self, name), kind) or isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} is {getattr(self, name)!r}; it must be a {'whole ' if kind is int else ''}number")
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be between {low} and {high}")
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in allowed and not (name == "optimizer" and callable(self.optimizer)):
                raise ValueError(f"{name} is {getattr(self, name)!r}; allowed are {', '.join(allowed)}")
        if not isinstance(self.seed, int) or not isinstance(self.flip, bool):
            raise ValueError(f"seed is {self.seed!r} and flip {self.flip!r}; it must be a whole number, and True or False")

    def settings(self) -> dict[str, Any]:
        """Return the settings that decide the result, JSON-ready."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("checkpoint", "progress")}
        if callable(self.optimizer):
            values["optimizer"] = getattr(self.optimizer, "__qualname__", type(self.optimizer).__name__)
        return values

    def words(self) -> dict[str, Any]:
        """Return `settings()`. Deprecated."""
        warnings.warn("Recipe.words() is now Recipe.settings()", DeprecationWarning, stacklevel=2)
        return self.settings()


def make_optimizer(recipe: Recipe, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    """Return the recipe's optimizer of these parameters."""
    if callable(recipe.optimizer):
        return recipe.optimizer(parameters)
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(parameters, recipe.rate, momentum=0.9, nesterov=True, weight_decay=recipe.weight_decay)
    return torch.optim.AdamW(parameters, recipe.rate, weight_decay=recipe.weight_decay)


def one_cycle(optimizer: torch.optim.Optimizer, recipe: Recipe, steps: int) -> OneCycleLR:
    """Return the schedule of the learning rate: one cycle, whose peak is at step `rise * steps` and whose end is at `steps`.

    `OneCycleLR` puts the peak at step `pct_start * total_steps - 1` and the end at `total_steps - 1`, so both are moved by one.

    Args:
        optimizer: Its rates are the largest.
        recipe: For its `rise`.
        steps: Optimizer steps of the whole run.

    Reference:
        Smith, Topin: Super-convergence (arXiv 1708.07120).
    """
    peak = recipe.rise * steps
    return OneCycleLR(
        optimizer,
        [float(group["lr"]) for group in optimizer.param_groups],
        total_steps=steps + 1,
        pct_start=(peak + 1) / (steps + 1) if peak > 1e-9 else 0.0,  # a rise of no length divides by zero there
        cycle_momentum=False,
        div_factor=25,
        final_div_factor=40,
    )
