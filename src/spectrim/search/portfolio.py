"""A few additive optima, each built, refitted and measured: the one that does least harm on unseen images is taken."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from spectrim.core.cost import Keep
from spectrim.core.menu import CAUTIOUS, RESPONSE, Menu
from spectrim.core.search import Probe, Search
from spectrim.search.knapsack import Knapsack


@dataclass(frozen=True)
class Portfolio(Search):
    """The additive optimum by harms on unseen images, and that by closed forms wherever these do not stand out as wrong.

    What a refit pays back is no harm, and no prediction at the original network knows how much that is: where images suffice
    the plan by closed forms may do less harm in the end, where they do not it may destroy the network. So each plan whose
    predicted harm is at most `limit` times the least is built, refitted and measured on images that no fit has seen. Without
    a probe the first one is taken.

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
        if probe is None or len(likely) == 1:
            return list(likely[0])
        harms = [probe.harm(chosen) for chosen in likely]
        return list(likely[harms.index(min(harms))])
