"""Contract checks that any decomposition or rank selection must pass, also a third party's.

Each check raises an AssertionError that says which promise is broken. Our own tests run the same checks.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn

from spectrim.core.cost import BudgetError, Cost, Keep
from spectrim.core.factorization import Factorization, Moments
from spectrim.core.layer import Layer
from spectrim.core.menu import RESPONSE, LayerMenu, Menu
from spectrim.core.plan import Option, Plan
from spectrim.core.search import Search
from spectrim.factorize import ChannelSVD
from spectrim.factorize.algebra import harm, to_canonical
from spectrim.network.build import working_weight
from spectrim.network.counting import cost
from spectrim.network.surgery import apply, skeleton
from spectrim.network.survey import find_layers
from spectrim.sensitivity.moments import gather_moments


def check_factorization(
    method: Factorization, module: nn.Module, x: Tensor, *, tolerance: float = 1e-9, data: bool = True
) -> bool:
    """Check every promise of a decomposition on one layer.

    Args:
        method: The decomposition.
        module: One layer in double precision.
        x: A batch of its inputs, at least 4 examples.
        tolerance: Relative error allowed at full rank.
        data: Check the fit to calibration data too.

    Returns:
        False if the method does not fit the layer (then only that it says why is checked).

    Raises:
        AssertionError: If a promise is broken.
    """
    network = nn.Sequential(module).eval()
    (found,) = find_layers(network, x)
    layer = found.convolution
    fit = method.fits(layer)
    if not fit:
        assert fit.reason, "fits() says no and gives no reason"
        assert method.ranks(layer) == [], "ranks() offers ranks for a layer that does not fit"
        return False
    full = method.full_rank(layer)
    weight = working_weight(found, network.get_submodule(found.name))
    norms: list[Moments | None] = [None]
    if data:
        norms.append(gather_moments(network, [found], [x])[layer.name])
    with torch.no_grad():
        y = network(x)
    for moments in norms:
        named = None if moments is None else {layer.name: moments}
        plan = Plan({layer.name: Option(found, method, full, 0.0, moments is not None)}, cost(network, x))
        small = apply(plan, network, moments=named)
        with torch.no_grad():
            error = float((small(x) - y).abs().max() / y.abs().max())
        assert error <= tolerance, f"full rank {full} is not exact: relative error {error:.1e} ({'data' if named else 'plain'})"
        assert cost(small, x) == plan.cost, f"parts() says {plan.cost}, the built network costs {cost(small, x)}"
        skeleton(plan, network).load_state_dict(small.state_dict())
        _check_ranks(method, layer, weight, moments)
    _check_stock(small)
    return True


def _check_ranks(method: Factorization, layer: Layer, weight: Tensor, moments: Moments | None) -> None:
    candidates = method.candidates(layer)
    assert all(rank in candidates for rank in method.ranks(layer)), "ranks() offers what candidates() does not"
    if not candidates:
        return
    chosen = candidates[:: max(1, len(candidates) // 4)]
    losses = method.losses(weight, chosen, moments)
    assert len(losses) == len(chosen), "losses() must return one number per rank"
    ceiling = harm(weight, torch.zeros_like(weight), moments)
    for rank, loss in zip(chosen, losses, strict=True):
        factors = method.factors(weight, rank, moments)
        shapes = [to_canonical(part, torch.empty(part.weight)).shape for part in method.parts(layer, rank) if part.weighted]
        given = [factor.shape for factor in factors]
        assert given == shapes, f"rank {rank}: the factors have shapes {given}, the parts, canonical, {shapes}"
        merged = method.merge(factors)
        assert merged.shape == weight.shape, f"merge() returns {tuple(merged.shape)} for a kernel {tuple(weight.shape)}"
        found = harm(weight, merged, moments)
        assert abs(found - loss) <= 0.05 * found + 5e-3 * ceiling, f"rank {rank}: predicted harm {loss:.3e}, found {found:.3e}"


def _check_stock(model: nn.Module) -> None:
    for module in model.modules():
        assert type(module).__module__.startswith("torch.nn"), f"{type(module)} is no stock torch module"


def check_search(search: Search, *, exact: bool = False) -> None:
    """Check that a rank selection meets every budget or says that it cannot.

    Args:
        search: The rank selection. Whatever score it looks at, the menus here have one under its name.
        exact: Also compare the harm with brute force over all choices.

    Raises:
        AssertionError: If a promise is broken.
    """
    for seed, metric in itertools.product(range(4), ("params", "macs")):
        menu = random_menu(seed)
        if search.score != RESPONSE:
            menu = menu.with_scores(search.score, [row.scores[RESPONSE] for row in menu.layers])
        for fraction in (0.9, 0.6, 0.4, 0.25, 0.05):
            budget = Keep(fraction, metric)  # type: ignore[arg-type]
            best = brute_force(menu, budget)
            try:
                chosen = search.select(menu, budget, None)
            except BudgetError:
                assert best is None, f"{search} says that {budget} cannot be met, but it can"
                continue
            assert best is not None, f"{search} claims to meet {budget}, which cannot be met"
            assert len(chosen) == len(menu.layers), f"{search} chose {len(chosen)} options for {len(menu.layers)} layers"
            plan, limit = menu.plan(chosen), fraction * menu.original.of(budget.metric) + 1e-6
            assert plan.cost.of(budget.metric) <= limit, f"{search} breaks {budget}: {plan.cost}"
            if exact:
                assert plan.harm <= best + 1e-5 * max(best, 1e-9), f"{search}: harm {plan.harm}, brute force {best}"


def random_menu(seed: int, layers: int = 4) -> Menu:
    """Return a small menu with random harms that fall as the rank grows."""
    generator = torch.Generator().manual_seed(seed)
    method = ChannelSVD()
    rows = []
    for index in range(layers):
        width = 8 + 4 * index
        layer = Layer(f"layer{index}", "Conv2d", (width, 8, 3, 3), ((8, 9, 9),), (1, 1), (1, 1), (), (1, 1))
        ranks = method.ranks(layer)[:: 2 + seed % 2]
        steps = torch.rand(len(ranks), generator=generator, device="cpu").cumsum(0).flip(0)
        options = [Option(layer, method, rank) for rank in ranks]
        rows.append(LayerMenu.of([Option(layer), *options], [0.0, *steps.tolist()]))
    fixed = Cost(100, 5000)
    return Menu(tuple(rows), sum((row.layer.cost for row in rows), fixed))


def brute_force(menu: Menu, budget: Keep) -> float | None:
    """Return the least total harm within the budget over all choices, or None if none is within it."""
    limit = budget.fraction * menu.original.of(budget.metric) + 1e-6
    harms = [
        sum(float(row.scores[RESPONSE][index]) for row, index in zip(menu.layers, chosen, strict=True))
        for chosen in itertools.product(*(range(len(row.options)) for row in menu.layers))
        if menu.cost(chosen, budget.metric) <= limit
    ]
    return min(harms, default=None)
