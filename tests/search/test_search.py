"""What every rank selection promises, and what single ones minimise."""

import itertools
from dataclasses import dataclass

import numpy as np
import pytest
import torch

import spectrim as st
from nets import Residual, settle
from spectrim.core.menu import RESPONSE
from spectrim.search.level import equal_level
from spectrim.testing import brute_force, check_search, random_menu
from tables import SEARCHES

SCORED = [kind() for kind in SEARCHES] + [st.Knapsack(score="whitened"), st.Energy(score="whitened")]


@pytest.mark.parametrize("search", SCORED, ids=repr)
def test_every_rank_selection_keeps_its_contract(search):
    check_search(search, exact=search in (st.Knapsack(), st.Interaction()))  # without a probe these are the same
    assert search.reference and search.title == type(search).__name__


@dataclass(frozen=True)
class Broken(st.Search):
    """A third party's rank selection that breaks one promise."""

    how: str = ""
    title = reference = "Broken"

    def select(self, menu, budget, probe=None):
        chosen = list(st.Knapsack().select(menu, budget))
        if self.how == "too few":
            return chosen[1:]
        if self.how == "too dear":
            return [0] * len(chosen)
        raise st.BudgetError("it cannot be met")


@pytest.mark.parametrize(
    ("how", "words"),
    [("too few", "chose 3 options for 4 layers"), ("too dear", "breaks Keep"), ("gives up", "cannot be met, but it can")],
)
def test_the_contract_finds_broken_promises(how, words):
    with pytest.raises(AssertionError, match=words):
        check_search(Broken(how))


def test_the_exact_contract_finds_what_is_not_the_least():
    with pytest.raises(AssertionError, match="brute force"):
        check_search(st.Uniform(), exact=True)


@pytest.mark.parametrize("search", SCORED, ids=repr)
@pytest.mark.parametrize("metric", ["params", "macs"])
def test_options_without_a_score_are_never_chosen(search, metric):
    """Of each layer only the cheapest and two others have a score; the others have harms of nothing, to tempt."""
    menu, random = random_menu(5), np.random.default_rng(0)
    columns, known = [], []
    for row in menu.layers:
        few = {0, int(row.costs[metric].argmin()), *random.integers(1, len(row.options), 2).tolist()}
        columns.append(np.array([row.scores[RESPONSE][i] if i in few else np.nan for i in range(len(row.options))]))
        known.append(few)
    menu = menu.with_scores(search.score, columns)
    met = 0
    for fraction in np.linspace(0.1, 1.0, 19):
        budget = st.Keep(float(fraction), metric)
        try:
            chosen = search.select(menu, budget)
        except st.BudgetError:
            continue
        met += 1
        assert all(index in few for index, few in zip(chosen, known, strict=True))
        assert menu.cost(chosen, metric) <= fraction * menu.original.of(metric) + 1e-6
    assert met >= 10


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    x = torch.randn(32, 3, 8, 8)
    return settle(Residual(), x), x


@pytest.mark.parametrize("kind", SEARCHES)
def test_every_rank_selection_through_the_front_door(network, kind):
    model, x = network
    methods = (st.ChannelSVD(), st.SpatialSVD())
    prepared = st.prepare(model, x[:1], calibration=[x], config=st.Config(methods=methods, search=kind(), refit=False))
    harms = {}
    for fraction in (0.8, 0.4):
        plan = st.choose(prepared, st.Keep(fraction))
        best = prepared.menu.plan(st.Knapsack().select(prepared.menu, st.Keep(fraction)))
        assert plan.cost.macs <= fraction * plan.original.macs
        assert best.harm <= plan.harm * (1 + 1e-5)  # harms are nats whatever the search looks at
        harms[fraction] = plan.harm
    assert harms[0.8] < harms[0.4]


@pytest.mark.parametrize("metric", ["params", "macs"])
@pytest.mark.parametrize("fraction", [0.7, 0.4])
@pytest.mark.parametrize("seed", range(3))
def test_equal_levels_are_optimal_for_the_largest_score(seed, fraction, metric):
    """ALDS's criterion, against brute force over all choices."""
    menu, budget = random_menu(seed, layers=3), st.Keep(fraction, metric)
    scores = [row.scores[RESPONSE] for row in menu.layers]

    def largest(chosen):
        return max(column[index] for column, index in zip(scores, chosen, strict=True))

    every = itertools.product(*(range(len(row.options)) for row in menu.layers))
    best = min(largest(chosen) for chosen in every if menu.cost(chosen, metric) <= fraction * menu.original.of(metric) + 1e-6)
    assert largest(equal_level(menu, budget, RESPONSE)) == best
    assert largest(st.ALDS().select(menu.with_scores("spectral", scores), budget)) == best


@pytest.mark.parametrize("metric", ["params", "macs"])
@pytest.mark.parametrize("fraction", [0.7, 0.4])
@pytest.mark.parametrize("seed", range(3))
def test_uniform_takes_the_largest_common_fraction(seed, fraction, metric):
    """No larger fraction, were it kept by every layer that can, would meet the budget."""
    menu, limit = random_menu(seed), fraction * random_menu(seed).original.of(metric) + 1e-6
    chosen = st.Uniform().select(menu, st.Keep(fraction, metric))
    shares = np.unique(np.concatenate([row.costs[metric] / row.costs[metric][0] for row in menu.layers]))

    def within(share):
        """Return the least harmful option of each layer within a share of its cost, or the cheapest."""
        found = []
        for row in menu.layers:
            costs, harms = row.costs[metric], row.scores[RESPONSE]
            allowed = [i for i in range(len(costs)) if costs[i] <= max(share * costs[0], costs.min()) * (1 + 1e-12)]
            found.append(min(allowed, key=lambda i: (harms[i], costs[i])))
        return found

    best = max(share for share in shares if menu.cost(within(share), metric) <= limit)
    assert list(chosen) == within(best)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: st.Knapsack(score="loud"), "allowed are 'response', 'cautious', 'closed', 'whitened'"),
        (lambda: st.Energy(score="loud"), "allowed are 'energy' and 'whitened'"),
        (lambda: st.Interaction(rounds=-1), "they must be at least 0 and 1"),
        (lambda: st.Interaction(images=0), "they must be at least 0 and 1"),
    ],
)
def test_impossible_options_get_one_sentence(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_brute_force_knows_when_nothing_is_within_the_budget():
    assert brute_force(random_menu(0), st.Keep(0.01, "params")) is None
