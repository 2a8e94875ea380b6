"""What rank selections may ask to have measured: networks are built, refitted and compared here, never in a search."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from torch import nn

from spectrim.core.plan import Plan
from spectrim.core.search import Probe, QuadraticModel
from spectrim.network.build import factorized, replacement
from spectrim.network.calling import Example, batch_size, count, portions
from spectrim.pipeline.cache import Ledger
from spectrim.pipeline.fitted import Fitted, fitted, network_name
from spectrim.pipeline.prepare import Prepared
from spectrim.refit.answers import scale
from spectrim.sensitivity.measured import batch_harms
from spectrim.sensitivity.sketch import quadratic_models

PORTIONS = 16  # batches of unseen images
FEW = 512  # with fewer images to measure displacements on, each serves `DRAWS` random vectors
DRAWS = 4


@dataclass(frozen=True, eq=False, repr=False)
class NetworkProbe(Probe):
    """Measures on images that the refit does not see.

    Attributes:
        prepared: The network, its menu and its images.
        ledger: Tells progress.
        moving: Inputs on which displacements are measured.
        judging: Other inputs, on which networks are compared.
        images: How many images went through a network so far, by direction.
    """

    prepared: Prepared
    ledger: Ledger
    moving: Sequence[Example]
    judging: Sequence[Example]
    images: dict[str, float] = field(default_factory=lambda: {"forward": 0.0, "backward": 0.0})
    _harms: dict[str, list[float]] = field(default_factory=dict)
    _told: list[float] = field(default_factory=lambda: [0.0])

    def __repr__(self) -> str:
        """Return how many images there are to measure on."""
        return f"NetworkProbe(moving={count(self.moving)}, judging={count(self.judging)})"

    def quadratic_model(self, chosen: Sequence[int], alternatives: Sequence[tuple[int, int]]) -> QuadraticModel:
        """Return what each alternative would do to the network of a choice."""
        plan = self.prepared.menu.plan(chosen)
        fitted = self.fitted(plan)
        modules = [self._module(fitted, layer, index) for layer, index in alternatives]
        draws = DRAWS if count(self.moving) < FEW else 1
        sweep = quadratic_models(self.prepared.model, fitted.model, modules, self.moving, harm=self.prepared.harm, draws=draws)
        found, start = next(sweep), self._told[-1]
        for done, found in enumerate(sweep, 2):  # noqa: B007
            self._tell(start, done / len(self.moving))
        self._count(self.moving, forward=2 + len(alternatives) / max(len(plan), 1), backward=1 + draws)
        return found

    def harm(self, chosen: Sequence[int]) -> float:
        """Return the harm of a choice, refitted, on the judging images."""
        sizes = [batch_size(batch) for batch in self.judging]
        harms = self._judged(chosen)
        return sum(size * harm for size, harm in zip(sizes, harms, strict=True)) / sum(sizes)

    def gain(self, chosen: Sequence[int], other: Sequence[int]) -> tuple[float, float]:
        """Return the fall of the harm on the judging images and its standard error over their batches."""
        differences = np.array(self._judged(chosen)) - np.array(self._judged(other))
        error = float(differences.std(ddof=1)) / math.sqrt(len(differences)) if len(differences) > 1 else math.inf
        return float(differences.mean()), error

    def fitted(self, plan: Plan) -> Fitted:
        """Return the refitted network of a plan."""
        if network_name(self.prepared, plan) not in self.prepared.recent and self.prepared.config.refit:
            self._count(self.prepared.calibration, forward=2)
        return fitted(self.prepared, plan, functools.partial(self._tell, self._told[-1]))

    def passed(self) -> dict[str, float]:
        """Return the passes so far, in units of the calibration set."""
        return {direction: number / max(count(self.prepared.calibration), 1) for direction, number in self.images.items()}

    def _judged(self, chosen: Sequence[int]) -> list[float]:
        plan = self.prepared.menu.plan(chosen)
        name = plan.text()
        if name not in self._harms:
            self._harms[name] = batch_harms(self.prepared.model, self.fitted(plan).model, self.judging, self.prepared.harm)
            self._count(self.judging, forward=2)
        return self._harms[name]

    def _module(self, found: Fitted, layer: int, index: int) -> tuple[str, nn.Module]:
        """Return an option's layer, and its module fitted to what the compressed prefix gives it."""
        option = self.prepared.menu.layers[layer].options[index]
        name, moments = option.layer.name, self.prepared.moments
        assert option.method is not None and moments is not None
        module, target = self.prepared.model.get_submodule(name), found.targets.get(name)
        if target is None:
            return name, factorized(option, module, moments[name])
        new = replacement(option, module, target, option.method.factors(target.kernel, option.rank, target.moments))
        scale(new, found.scales.get(name, 1.0))
        return name, new

    def _tell(self, start: float, share: float) -> None:
        """Tell progress: how much there is to do is not known, so each piece takes half of what is left."""
        self._told.append(start + 0.5 * (0.99 - start) * share)
        self.ledger.tick("search", self._told[-1])

    def _count(self, batches: Sequence[Example], *, forward: float = 0.0, backward: float = 0.0) -> None:
        self.images["forward"] += count(batches) * forward
        self.images["backward"] += count(batches) * backward


def network_probe(prepared: Prepared, ledger: Ledger) -> NetworkProbe | None:
    """Return what measures for the rank selection, or None if it wants nothing measured or there are too few images.

    Images beyond the calibration's serve a rank selection that wants them: two thirds measure displacements, one third
    compares networks. Where there are too few of them, the two halves of the images that no fit has seen do.
    """
    search, further, unseen = prepared.config.search, prepared.further, prepared.unseen
    if prepared.moments is None or not (search.images or search.measures):
        return None
    if search.images and 4 * count(further) >= search.images and len(further) > 1:
        cut = min(-(-2 * len(further) // 3), len(further) - 1)  # something is left to judge on
        return NetworkProbe(prepared, ledger, further[:cut], further[cut:])
    if not unseen or not search.measures:
        return None
    size = -(-count(unseen) // PORTIONS)  # so many that differences have an error
    parts = portions(unseen, -(-size // prepared.unit) * prepared.unit)
    if not search.images:
        return NetworkProbe(prepared, ledger, parts, parts)
    return NetworkProbe(prepared, ledger, parts[::2], parts[1::2]) if len(parts) > 3 else None
