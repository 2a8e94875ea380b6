"""Training for low rank: occasional weight distortion, a training loop, and how flat the minimum is that was found."""

from __future__ import annotations

import warnings
from typing import Any

from spectrim.core.records import Training
from spectrim.train.distort import Distortion
from spectrim.train.fit import fit
from spectrim.train.flatness import loss_along
from spectrim.train.recipe import Recipe
from spectrim.train.schedule import Schedule

__all__ = ["Distortion", "Recipe", "Schedule", "Training", "fit", "loss_along"]


def __getattr__(name: str) -> Any:
    """Return what has a new name by its old one."""
    if name == "History":
        warnings.warn("spectrim.train.History is now spectrim.train.Training", DeprecationWarning, stacklevel=2)
        return Training
    raise AttributeError(f"module 'spectrim.train' has no attribute {name!r}")
