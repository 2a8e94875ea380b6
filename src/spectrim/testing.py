"""Contract checks that any decomposition or rank selection must pass, also a third party's.

Each check raises an AssertionError that says which promise is broken. Our own tests run the same checks.

    from spectrim.testing import check_factorization, check_search
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from spectrim.core.cost import BudgetError, Cost, Keep
from spectrim.core.factorization import Factorization, Moments, Rank, describe, fit_of, flaw
from spectrim.core.layer import Layer
from spectrim.core.menu import RESPONSE, LayerMenu, Menu
from spectrim.core.plan import Option, Plan
from spectrim.core.search import Search
from spectrim.factorize import ChannelSVD
from spectrim.factorize.algebra import harm
from spectrim.network.build import check_factors, check_merged, working_weight
from spectrim.network.counting import cost
from spectrim.network.pivot import Pivot
from spectrim.network.surgery import apply, skeleton
from spectrim.network.survey import survey
from spectrim.sensitivity.moments import gather_moments
from spectrim.sensitivity.options import sound
from spectrim.sensitivity.scores import NAMES

EXAMPLES = 4  # least number of inputs that a check is worth something with
ALLOWED = "call menu.allowed(budget) first: it raises BudgetError"


def check_factorization(
    method: Factorization, module: nn.Module, x: Tensor, *, tolerance: float = 1e-9, data: bool = True
) -> bool:
    """Check every promise of a decomposition on one layer.

    Args:
        method: The decomposition.
        module: One layer in double precision, such as `nn.Conv2d(8, 12, 3).double()`; for a linear layer on a flattened
            feature map `nn.Sequential(nn.Flatten(), nn.Linear(...)).double()`.
        x: A batch of its inputs in double precision, at least 4 examples.
        tolerance: Relative error allowed at full rank.
        data: Check the fit to calibration data too.

    Returns:
        False if the method does not fit the layer (then only that it offers no ranks is checked).

    Raises:
        AssertionError: If a promise is broken.
        TypeError: If the method is a class and no instance of it, or the layer or its inputs are of the wrong kind.
        ValueError: If there are too few examples, they are not in double precision, or the module is not one layer.
    """
    _check_instance(method, Factorization)
    wrong = flaw(method)
    assert not wrong, wrong
    network, found = _one_layer(module, x)
    layer = found.convolution
    with _promised():
        fit = fit_of(method, layer)
    if not fit:
        assert method.ranks(layer) == [], "ranks() offers ranks for a layer that does not fit"
        return False
    full = method.full_rank(layer)
    for rank in [full, *_checked_candidates(method, layer)[:1]]:
        _check_parts(method, layer, rank)
    weight = working_weight(found, network.get_submodule(found.name))
    norms: list[Moments | None] = [None]
    if data:
        norms.append(gather_moments(network, [found], [x])[layer.name])
    with torch.no_grad():
        y = network(x)
    for moments in norms:
        plan = Plan({layer.name: Option(found, method, full, 0.0, moments is not None)}, cost(network, x))
        with _promised():
            small = apply(plan, network, moments=None if moments is None else {layer.name: moments})
        kind = "plain" if moments is None else "data"
        with torch.no_grad():
            error = float((small(x) - y).abs().max() / y.abs().max())
        assert error <= tolerance, f"full rank {full} is not exact: relative error {error:.1e} ({kind})"
        assert cost(small, x) == plan.cost, f"parts() says {plan.cost}, the built network costs {cost(small, x)}"
        skeleton(plan, network).load_state_dict(small.state_dict())
        _check_json(plan, method)
        _check_ranks(method, layer, weight, moments)
    _check_stock(small)
    return True


@contextlib.contextmanager
def _promised() -> Iterator[None]:
    """Make an AssertionError of an error that says what a method returned, or what cannot be made of it."""
    try:
        yield
    except (ValueError, TypeError) as error:
        raise AssertionError(str(error)) from error


def _check_instance(given: Any, kind: type) -> None:
    if isinstance(given, type):
        raise TypeError(f"the check was given the class {given.__name__}; give an instance, such as {given.__name__}()")
    if not isinstance(given, kind):
        raise TypeError(f"the check was given {given!r}; it must be a spectrim.{kind.__name__}")


def _one_layer(module: nn.Module, x: Tensor) -> tuple[nn.Module, Layer]:
    """Return a network of one layer, and the layer."""
    if not isinstance(module, nn.Module) or not isinstance(x, Tensor):
        raise TypeError(f"the check was given {type(module).__name__} and {type(x).__name__}; give a layer and a tensor")
    kinds = {tensor.dtype for tensor in (x, *module.parameters())}
    if kinds != {torch.float64}:
        told = " and ".join(sorted(str(kind) for kind in kinds))
        raise ValueError(f"the layer and its inputs are {told}; both must be double: layer.double() and inputs.double()")
    if len(x) < EXAMPLES:
        raise ValueError(f"there are {len(x)} examples; the check needs at least {EXAMPLES}")
    network = nn.Sequential(module).eval()
    found = survey(network, x)
    if len(found.layers) != 1:
        names = ", ".join(f"{layer.kind} {layer.name!r}" for layer in found.layers)
        reasons = "; ".join(f"{name!r}: {reason}" for name, reason in found.skipped.items())
        told = f"{len(found.layers)}: {names}" if names else f"none; {reasons}".removesuffix("; ")
        raise ValueError(f"the check is of one layer that can be factorized, and the module has {told}")
    return network, found.layers[0]


def _checked_candidates(method: Factorization, layer: Layer) -> list[Rank]:
    """Return the candidates, which must be there, possible and ascending, and among which those that pay are."""
    candidates = method.candidates(layer)
    assert isinstance(candidates, list) and candidates, (
        f"candidates() returned {candidates!r}; it must be a list of at least one rank"
    )
    with _promised():
        for rank in candidates:
            method.check(layer, rank)
    assert candidates == sorted(candidates), f"candidates() are not ascending: {candidates}"
    assert all(rank in candidates for rank in method.ranks(layer)), "ranks() offers what candidates() does not"
    return candidates


def _check_parts(method: Factorization, layer: Layer, rank: Rank) -> None:
    """Check that one part reads what the one before it writes, and that the last alone has the bias."""
    parts = method.parts(layer, rank)
    what = f"parts() at rank {rank}"
    weighted = [part for part in parts if part.weighted]
    assert weighted, f"{what}: no part has a weight"
    assert weighted[-1].bias == layer.bias, (
        f"{what}: the last part has bias={weighted[-1].bias}, the layer has bias={layer.bias}; write "
        "replace(part, bias=layer.bias)"
    )
    assert not any(part.bias for part in weighted[:-1]), f"{what}: a part before the last has a bias; only the last may"
    if len(weighted) < len(parts):
        return  # reshapes between them change what a channel is
    (outputs, written), where = layer.channels, "the layer"
    for number, part in enumerate(parts):
        assert part.channels[1] == written, (
            f"{what}: part {number} reads {part.channels[1]} channels where {where} has {written}; channels are those of all "
            f"{layer.groups} groups together, ranks those of one group"
        )
        written, where = part.channels[0], f"part {number}"
    assert written == outputs, f"{what}: the last part writes {written} channels, the layer {outputs}"


def _check_json(plan: Plan, method: Factorization) -> None:
    """Check that a plan comes back from its JSON."""
    with _promised():
        again = Plan.from_json(plan.text())
    assert again == plan, (
        f"a plan with {describe(method)} comes back from its JSON as {describe(next(iter(again.values())).method)}; "  # type: ignore[arg-type]
        f"the options must be equal, and {type(method).__name__} the last class of its name in its module"
    )


def _check_ranks(method: Factorization, layer: Layer, weight: Tensor, moments: Moments | None) -> None:
    candidates = method.candidates(layer)
    chosen = candidates[:: max(1, len(candidates) // 4)]
    with _promised():
        losses = sound(method.losses(weight, chosen, moments), method, layer, chosen)
    ceiling, whole = harm(weight, torch.zeros_like(weight), moments), []
    for rank, loss in zip(chosen, losses, strict=True):
        option, factors = Option(layer, method, rank), method.factors(weight, rank, moments)
        with _promised():
            check_factors(option, factors)
            merged = method.merge(factors)
            check_merged(option, merged, weight)
        whole.append(merged)
        found = harm(weight, merged, moments)
        assert abs(found - loss) <= 0.05 * found + 5e-3 * ceiling, (
            f"rank {rank}: predicted harm {loss:.3e}, found {found:.3e}; losses() must return what harm(weight, "
            "self.merge(self.factors(weight, rank, moments)), moments) is"
        )
    kernels = list(method.kernels(weight, chosen, moments))
    assert len(kernels) == len(chosen), f"kernels() yielded {len(kernels)} kernels for {len(chosen)} ranks; each needs one"
    for rank, merged, kernel in zip(chosen, whole, kernels, strict=True):
        assert kernel.shape == merged.shape and bool((kernel - merged).abs().max() <= 1e-6 * weight.abs().max()), (
            f"rank {rank}: kernels() must yield what self.merge(self.factors(weight, rank, moments)) is"
        )


def _check_stock(model: nn.Module) -> None:
    for module in model.modules():
        stock = type(module).__module__.startswith("torch.nn") or isinstance(module, Pivot)
        assert stock, f"{type(module)} is neither a stock torch module nor a Pivot"


def check_search(search: Search, *, exact: bool = False) -> None:
    """Check that a rank selection meets every budget or says that it cannot.

    Args:
        search: The rank selection. Whichever of the known scores it looks at, the menus here have a column of that name.
        exact: Also compare the harm with brute force over all choices.

    Raises:
        AssertionError: If a promise is broken.
        TypeError: If it is a class and no instance of it.
    """
    _check_instance(search, Search)
    known = ", ".join(NAMES)
    assert search.score in NAMES, f"{search} looks at the score {search.score!r}, which nothing computes; there are {known}"
    others = ((), (Keep(0.5, "params"), Keep(0.7, "macs"))) if search.several else ((),)
    for seed, metric, also in itertools.product(range(4), ("params", "macs"), others):
        menu = dataclasses.replace(random_menu(seed), also=also)
        if search.score != RESPONSE:
            menu = menu.with_scores(search.score, [row.scores[RESPONSE] for row in menu.layers])
        for fraction in (0.9, 0.6, 0.4, 0.25, 0.05):
            budget = Keep(fraction, metric)  # type: ignore[arg-type]
            best = brute_force(menu, budget)
            chosen = _answer(search, menu, budget, possible=best is not None)
            if chosen is None or best is None:
                continue
            plan = menu.plan(chosen)
            for bound in (budget, *also):
                limit = bound.fraction * menu.original.of(bound.metric) + 1e-6
                assert plan.cost.of(bound.metric) <= limit, f"{search} breaks {bound}: {plan.cost}"
            if exact:
                assert plan.harm <= best + 1e-5 * max(best, 1e-9), f"{search}: harm {plan.harm}, brute force {best}"


def _answer(search: Search, menu: Menu, budget: Keep, *, possible: bool) -> list[int] | None:
    """Return the choice of a rank selection, None if it says that the budget cannot be met, which must be true."""
    try:
        answer: Any = search.select(menu, budget, None)
    except BudgetError:
        assert not possible, f"{search} says that {budget} cannot be met, but it can"
        return None
    except Exception as error:
        assert possible, f"{search} raised {type(error).__name__} for {budget}, which cannot be met ({error}); {ALLOWED}"
        raise
    assert possible, f"{search} claims to meet {budget}, which cannot be met; {ALLOWED}"
    chosen: list[Any] = list(answer) if isinstance(answer, Iterable) and not isinstance(answer, Mapping) else [None]
    assert all(isinstance(index, (int, np.integer)) for index in chosen), (
        f"{search} returned {answer!r}; select() must return a list with the number of one option for each layer of the menu"
    )
    assert len(chosen) == len(menu.layers), f"{search} chose {len(chosen)} options for {len(menu.layers)} layers"
    for row, index in zip(menu.layers, chosen, strict=True):
        last = len(row.options) - 1
        assert 0 <= index <= last, f"{search} chose option {index} of layer {row.layer.name!r}, which has options 0 to {last}"
    return [int(index) for index in chosen]


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
    """Return the least total harm within the budget, and `menu.also`, over all choices, or None if none is within it."""
    bounds = [(each.metric, each.fraction * menu.original.of(each.metric) + 1e-6) for each in (budget, *menu.also)]
    harms = [
        sum(float(row.scores[RESPONSE][index]) for row, index in zip(menu.layers, chosen, strict=True))
        for chosen in itertools.product(*(range(len(row.options)) for row in menu.layers))
        if all(menu.cost(chosen, metric) <= limit for metric, limit in bounds)
    ]
    return min(harms, default=None)
