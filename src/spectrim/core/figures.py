"""What the figures of a report are drawn from: budgets tried, bounds, spectra, and the loss on the way to low rank."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from spectrim.core.factorization import Rank


@dataclass(frozen=True)
class Curve:
    """Loss along W + t (W_r - W), the way from the kernels to their low-rank reconstructions.

    Attributes:
        label: What was measured, such as "before training".
        distance: Of the reconstructions, relative to the norm of all planned kernels.
        t: From 0, the network itself, to 1, all planned kernels at their low-rank reconstruction.
        loss: Mean cross-entropy in nats at each t.
        error: Standard error of each loss.
        accuracy: Top-1 fraction at each t.
        examples: How many images.
    """

    label: str
    distance: float
    t: tuple[float, ...]
    loss: tuple[float, ...]
    error: tuple[float, ...]
    accuracy: tuple[float, ...]
    examples: int


@dataclass(frozen=True)
class Try:
    """One budget that MaxDrop tried.

    Attributes:
        kept: Fraction of the budget's metric that the plan keeps.
        drop: What the deciding score lost, in its unit.
        harm: Predicted harm of the plan.
        error: Standard error of the drop, in its unit, paired; None where evaluate returns a number only.
        params, macs: Fractions of the whole network's that the plan keeps; None in reports of versions up to 0.1.
        time: Measured time over that of the original; None unless `Config.target` says where it counts.
    """

    kept: float
    drop: float
    harm: float
    error: float | None = None
    params: float | None = None
    macs: float | None = None
    time: float | None = None


@dataclass(frozen=True)
class Limit:
    """One bound of a budget, as `Keep`, `AtMost` and `MaxDrop` have it.

    Attributes:
        kind: Which of them.
        value: Fraction that may remain, what the network may cost, or what the score may lose.
        metric: Of `Keep` and `AtMost` what is bounded, of `MaxDrop` what is made small.
    """

    kind: Literal["Keep", "AtMost", "MaxDrop"]
    value: float
    metric: Literal["params", "macs", "bytes", "latency"]


@dataclass(frozen=True)
class Spectrum:
    """What one decomposition would lose of one layer at each rank that pays: predicted harm, before any refit.

    Attributes:
        layer: Name of the layer.
        method: The decomposition as written in code.
        full: The smallest rank at which nothing is lost.
        ranks: Ascending; a few of many.
        macs: MACs of one example that the layer takes at each.
        harms: Predicted harm at each, in the report's `harm_unit`.
    """

    layer: str
    method: str
    full: Rank
    ranks: tuple[Rank, ...]
    macs: tuple[int, ...]
    harms: tuple[float, ...]
