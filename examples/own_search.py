"""A rank selection of your own beside the default.

python examples/own_search.py

CONTRIBUTING.md has a decomposition of your own, and the contract checks for both.
"""

from dataclasses import dataclass

import spectrim as st
from spectrim.demo import demo_images, demo_model


@dataclass(frozen=True)
class LargestFirst(st.Search):
    """Cut the layer that costs most by one option, again and again, until the budget is met."""

    def select(self, menu: st.Menu, budget: st.Keep, probe: st.Probe | None = None) -> list[int]:
        """Return the number of an option for every layer; number 0 leaves a layer alone."""
        allowed = menu.allowed(budget)  # what the chosen options may cost together
        left = [list(row.frontier(budget.metric, self.score)) for row in menu.layers]  # worth having, the cheapest first
        costs = [row.costs[budget.metric] for row in menu.layers]
        while sum(cost[options[-1]] for cost, options in zip(costs, left, strict=True)) > allowed:
            several = [i for i, options in enumerate(left) if len(options) > 1]
            left[max(several, key=lambda i: costs[i][left[i][-1]])].pop()
        return [int(options[-1]) for options in left]


def main(images: int = 512, methods: tuple[st.Factorization, ...] = (st.ChannelSVD(), st.SpatialSVD())) -> dict[str, float]:
    """Print the harm that each rank selection does at half of the MACs."""
    model, (calibration, _) = demo_model(), demo_images("calibration")
    harms = {}
    for search in (LargestFirst(), st.Portfolio()):
        config = st.Config(methods=methods, search=search)
        result = st.compress(model, calibration[:1], budget=st.Keep(0.5), calibration=calibration[:images], config=config)
        harms[search.title] = result.report.measured_harm
        print(f"{search.title}: {result.report.measured_harm:.4f} {result.report.harm_unit}")
    return harms


if __name__ == "__main__":
    main()
