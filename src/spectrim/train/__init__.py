"""Training for low rank: occasional weight distortion, a training loop, and how flat the minimum is that was found."""

from spectrim.train.distort import Distortion, Schedule
from spectrim.train.fit import History, Recipe, fit
from spectrim.train.flatness import loss_along

__all__ = ["Distortion", "History", "Recipe", "Schedule", "fit", "loss_along"]
