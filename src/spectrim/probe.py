"""What rank selections may ask to have measured: networks are built, refitted and compared here, never in a search."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from torch import nn

from spectrim.factorize import Moments
from spectrim.harm import Harm
from spectrim.layer import Example, tensors_of
from spectrim.plan import Option, Plan
from spectrim.refit import Refitted
from spectrim.report import Interactions
from spectrim.score.displacement import surroundings
from spectrim.score.measured import batch_harms
from spectrim.score.rescore import Data
from spectrim.search import Probe, Surroundings
from spectrim.surgery import factorized


@dataclass(frozen=True)
class NetworkProbe(Probe):
    """Measures on images that the refit does not see.

    Attributes:
        model: The original network.
        moments: From `statistics`, for layers that the refit could not follow.
        fit: From a plan to its refitted network.
        harm: See `spectrim.harm`.
        moving: Inputs on which displacements are measured.
        holding: Other inputs, on which networks are compared.
        passes: How many images went through a network so far, by direction.
        tell: Called with the share of a sweep that is done.
    """

    model: nn.Module
    moments: Mapping[str, Moments]
    fit: Callable[[Plan], Refitted]
    harm: Harm
    moving: Sequence[Example]
    holding: Sequence[Example]
    tell: Callable[[float], None] = lambda share: None
    passes: dict[str, float] = field(default_factory=lambda: {"forward": 0.0, "backward": 0.0})
    _known: dict[str, list[float]] = field(default_factory=dict)

    def surroundings(self, plan: Plan, alternatives: Sequence[Option]) -> Surroundings:
        """Return what each alternative would do to the plan's network."""
        refitted = self.fit(plan)
        modules = [self.module(refitted, option) for option in alternatives]
        found = surroundings(
            self.model,
            refitted.model,
            list(zip(alternatives, modules, strict=True)),
            self.moving,
            harm=self.harm,
            progress=self.tell,
        )
        images = count(self.moving)
        self.passes["forward"] += images * (2 + len(alternatives) / max(len(plan), 1))
        self.passes["backward"] += 2 * images
        return found

    def gain(self, plan: Plan, other: Plan) -> tuple[float, float]:
        """Return the fall of the harm on the held-out images and its standard error over their batches."""
        differences = np.array(self._harms(plan)) - np.array(self._harms(other))
        error = float(differences.std(ddof=1)) / math.sqrt(len(differences)) if len(differences) > 1 else math.inf
        return float(differences.mean()), error

    def _harms(self, plan: Plan) -> list[float]:
        name = plan.to_json()
        if name not in self._known:
            self._known[name] = batch_harms(self.model, self.fit(plan).model, self.holding, self.harm)
            self.passes["forward"] += 2 * count(self.holding)
        return self._known[name]

    def module(self, refitted: Refitted, option: Option) -> nn.Module:
        """Return the module of an option, fitted to what the compressed prefix gives it."""
        name = option.layer.name
        if name in refitted.sites:
            return refitted.sites[name].fit(option)
        return factorized(option, self.model.get_submodule(name), self.moments[name])


def account(model: nn.Module, small: nn.Module, plan: Plan, data: Data) -> Interactions:
    """Return what interactions say of a plan: the prediction around the original network, the rest around the compressed one.

    Args:
        model: The original network.
        small: The compressed network.
        plan: What was done.
        data: Images, moments and harm.
    """
    before = [(option, factorized(option, model.get_submodule(name), data.moments[name])) for name, option in plan.items()]
    after = [(option, model.get_submodule(name)) for name, option in plan.items()]
    ahead = surroundings(model, model, before, data.batches, harm=data.harm)
    back = surroundings(model, small, after, data.batches, harm=data.harm)
    every = range(len(plan))
    return Interactions(
        ahead.harm(every),
        tuple(plan),
        tuple(back.base - back.harm([index]) for index in every),
        tuple(tuple(float(value) for value in row) for row in back.gram),
    )


def count(batches: Sequence[Example]) -> int:
    """Return the number of examples."""
    return sum(len(tensors_of(batch)[0]) for batch in batches)
