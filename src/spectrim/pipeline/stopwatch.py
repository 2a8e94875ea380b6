"""Measured time of plans: networks of their structure against the original, in turn, on the target."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import nn

from spectrim.core.cost import NANOSECONDS
from spectrim.core.factorization import describe
from spectrim.core.plan import Plan
from spectrim.network.calling import Example, batched
from spectrim.network.pivot import Pivot
from spectrim.network.reorder import reordered
from spectrim.network.surgery import skeleton
from spectrim.pipeline.cache import Entry, Ledger
from spectrim.pipeline.prepare import Prepared, target_of
from spectrim.targets.base import Session, Target
from spectrim.targets.timing import CLOCKS, interleaved

SECONDS = 1.0  # of measuring each network
ROUGH = 0.25  # the same where 1 % of noise does not matter
LEAST = 12  # runs of each at least


class Stopwatch:
    """Times plans on the target; each once, in pieces that the ledger keeps.

    Time does not depend on weights, so networks of random weights serve and nothing is fitted.

    Args:
        model: The original network.
        example: A batch of inputs.
        target: Where.
        ledger: Of the step that wants to know.
    """

    def __init__(self, model: nn.Module, example: Example, target: Target, ledger: Ledger) -> None:
        """Store the arguments; nothing is loaded yet."""
        self.model, self.example, self.target, self.ledger = model, example, target, ledger
        self._original: Session | None = None
        self._known: dict[str, tuple[float, int]] = {}

    @staticmethod
    def of(prepared: Prepared, ledger: Ledger) -> Stopwatch:
        """Return a stopwatch for plans of what was prepared."""
        return Stopwatch(prepared.model, prepared.example, target_of(prepared.config, prepared.example), ledger)

    def ratio(self, plan: Plan, *, seconds: float = SECONDS) -> float:
        """Return the time of a plan's network over that of the original: the median over pairs of runs.

        Args:
            plan: It.
            seconds: Of measuring each of both.
        """
        return self._timed(plan, seconds)[0]

    def whole(self) -> int:
        """Return the nanoseconds of one forward of the original network on the example: the median."""
        return self._timed(Plan(), SECONDS)[1]

    def _timed(self, plan: Plan, seconds: float) -> tuple[float, int]:
        """Return the ratio, and the original's nanoseconds beside it."""
        shapes = [tuple(tensor.shape) for tensor in batched(self.example)]
        name = f"time {self.target.describe()} {self.target!r} {shapes} {seconds} {_structure(plan)}"
        if name not in self._known:
            with self.ledger.piece(name) as piece:
                if piece.entry is None:
                    with self.ledger.stage("timing"):
                        ratio, whole = self._measured(plan, seconds)
                    piece.entry = Entry({}, {"ratio": ratio, "whole": whole})
            self._known[name] = piece.entry.numbers["ratio"], piece.entry.numbers["whole"]
        return self._known[name]

    def _measured(self, plan: Plan, seconds: float) -> tuple[float, int]:
        if self._original is None:
            self.target.check()
            self._original = self.target.load(self.model, self.example)
        sessions = [self._original]
        if plan:
            small = reordered(stand_in(plan, self.model), self.example)
            sessions.append(self.target.load(small, self.example))
        column = CLOCKS.index(self._original.clock)
        times = [taken[:, column] for taken in interleaved(sessions, seconds=seconds, least=LEAST)]
        return float(np.median(times[-1] / times[0])), round(NANOSECONDS * float(np.median(times[0])))


def stand_in(plan: Plan, model: nn.Module) -> nn.Module:
    """Return a network of a plan's structure whose small layers have random weights, on outputs of about the right scale.

    Args:
        plan: Which layers, methods and ranks.
        model: The network that it is for.
    """
    small = skeleton(plan, model)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, option in plan.items():
            old = model.get_submodule(name).weight
            assert isinstance(old, torch.Tensor)
            scale = float(old.float().norm()) / math.sqrt(option.layer.convolution.channels[0])
            for parameter in small.get_submodule(name).parameters():
                if parameter.ndim == 1:
                    parameter.zero_()
                    continue
                drawn = torch.randn(parameter.shape, generator=generator, device="cpu")
                parameter.copy_(drawn * scale / math.sqrt(parameter[0].numel()))
                scale = 1.0  # the others pass on what the first has made
            for module in small.get_submodule(name).modules():
                if isinstance(module, Pivot) and module.order is not None:
                    module.order.copy_(torch.randperm(len(module.order), generator=generator, device="cpu"))
    return small


def _structure(plan: Plan) -> list[tuple[str, str, object, bool]]:
    """Return what the time of a plan depends on."""
    return [
        (name, describe(option.method), option.rank, option.bias) for name, option in plan.items() if option.method is not None
    ]
