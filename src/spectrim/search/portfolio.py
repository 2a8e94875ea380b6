"""A few additive optima, each built, refitted and measured: the one that does least harm on unseen images is taken."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from spectrim.core.cost import Keep
from spectrim.core.menu import CAUTIOUS, RESPONSE, Menu
from spectrim.core.search import Probe, Search
from spectrim.search.knapsack import Knapsack

MOST = 4.0  # the payback
STEPS = 4001
CERTAIN = 2.0  # standard errors
Choice = tuple[int, ...]


@dataclass(frozen=True)
class Portfolio(Search):
    """Three additive optima: by harms on unseen images, by closed forms that do not stand out, by what the refit leaves.

    What a refit pays back is no harm, and no prediction at the original network knows how much that is: where images suffice
    the plan by closed forms may do less harm in the end, where they do not it may destroy the network. So each plan whose
    predicted harm is at most `limit` times the least is built, refitted and measured on images that no fit has seen. If the
    best one does less harm than predicted, the refit has paid back the rest; as every later layer has its share in that, the
    harm of a layer at depth d (0 first, 1 last) is taken to be exp(-payback (1 - d)) of what is predicted, with the payback
    that explains the measured harm. The optimum by these is the third plan. One plan takes another's place if its gain is more
    than twice the gain's paired standard error: few images are no ground to leave the best prediction. Without a probe the
    first plan is taken.

    Args:
        limit: Plans that are predicted to do more harm than so many times the least are not built.

    Raises:
        ValueError: If the limit is below 1.
    """

    limit: float = 1.5
    title: ClassVar[str] = "Portfolio"
    reference: ClassVar[str] = "ours"
    measures: ClassVar[bool] = True
    several: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Check the limit."""
        if not self.limit >= 1:
            raise ValueError(f"Portfolio was given limit={self.limit}; it must be at least 1")

    def select(self, menu: Menu, budget: Keep, probe: Probe | None = None) -> Sequence[int]:
        """Return the choice that does least harm, measured."""
        choices = dict[tuple[int, ...], float]()
        for score in (RESPONSE, CAUTIOUS):
            if score != RESPONSE and (probe is None or any(score not in row.scores for row in menu.layers)):
                continue
            chosen = tuple(Knapsack(score=score).select(menu, budget))
            choices[chosen] = float(sum(row.scores[RESPONSE][index] for row, index in zip(menu.layers, chosen, strict=True)))
        likely = [chosen for chosen, harm in choices.items() if harm <= self.limit * min(choices.values())]
        if probe is None:
            return list(likely[0])
        best = _better(probe, likely[0], likely[1:])
        shares = refit_shares(menu, best, probe.harm(best))
        scores = [share * row.scores[RESPONSE] for share, row in zip(shares, menu.layers, strict=True)]
        other = tuple(Knapsack().select(menu.with_scores(RESPONSE, scores), budget))
        best = _better(probe, best, [other] if other not in likely else [])
        return list(best)


def _better(probe: Probe, best: Choice, others: Sequence[Choice]) -> Choice:
    """Return the choice that does less harm than those before it for certain, measured."""
    for other in others:
        gain, error = probe.gain(best, other)
        best = other if gain > CERTAIN * error else best
    return best


def refit_shares(menu: Menu, chosen: Sequence[int], measured: float) -> np.ndarray:
    """Return which share of each of L layers' predicted harm a refit leaves, if it is the same for each layer behind, (L,).

    Args:
        menu: Options of the L layers, in order of execution.
        chosen: One option's number for each.
        measured: Harm of the refitted network.
    """
    harms = np.array([row.scores[RESPONSE][index] for row, index in zip(menu.layers, chosen, strict=True)])
    behind = 1 - (np.arange(len(harms)) + 0.5) / len(harms)
    paybacks = np.linspace(0, MOST, STEPS)
    left = np.exp(-paybacks[:, None] * behind) @ harms  # falls
    shares: np.ndarray = np.exp(-np.interp(-measured, -left, paybacks) * behind)
    return shares
