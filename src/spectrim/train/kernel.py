"""What a distortion does to one layer: which factors it has, and writing their product over its kernel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from spectrim.core.factorization import Moments, Rank, as_tuple
from spectrim.core.plan import Option, Plan
from spectrim.factorize.algebra import from_canonical, to_canonical
from spectrim.network.calling import unwrap
from spectrim.network.surgery import module_of


def check_plan(plan: Plan, model: nn.Module) -> None:
    """Check that every planned kernel of the network can be overwritten.

    Raises:
        ValueError: If the plan is empty or does not fit the network.
        TypeError: If it is no plan, or a weight is sharded or computed from others.
    """
    if not isinstance(plan, Plan):
        raise TypeError(f"the plan is {type(plan).__name__}; it must be a Plan, such as compress(...).plan")
    if not plan:
        raise ValueError("the plan replaces no layer, so there is nothing to distort; lower the budget or name layers")
    for name, option in plan.items():
        weight = module_of(unwrap(model), option)._parameters.get("weight")
        if weight is None:
            raise TypeError(f"the weight of {name!r} is computed, not stored; remove its parametrization before training")
        if type(weight.data) is not Tensor:
            raise TypeError(f"the weight of {name!r} is a {type(weight.data).__name__}; only whole, unsharded weights work")


def moments_of(option: Option, weight: Tensor, moments: Mapping[str, Moments]) -> Moments:
    """Return the moments of one layer, on the device of its weight.

    Args:
        option: The layer and what is planned for it.
        weight: Its canonical kernel (g, T, S, *kernel): g groups of T output and S input channels.
        moments: Of all planned layers, by name.

    Raises:
        ValueError: If there are none of this layer, or of another shape.
    """
    name, (groups, outputs) = option.layer.name, weight.shape[:2]
    found = moments.get(name)
    if not isinstance(found, Moments) or found.response.shape != (groups, outputs, outputs):
        raise ValueError(
            f"the moments have nothing that fits the planned layer {name!r}; give what `gather_moments` returns for it"
        )
    values: list[Any] = [value.to(weight.device) if isinstance(value, Tensor) else value for value in vars(found).values()]
    return Moments(*values)


def factor_shapes(option: Option) -> list[torch.Size]:
    """Return the shape of each canonical factor."""
    return [to_canonical(part, torch.empty(part.weight, device="meta")).shape for part in option.parts if part.weighted]


def overwrite(module: nn.Module, option: Option, factors: Sequence[Tensor]) -> None:
    """Write the product of the factors over the kernel, in place."""
    module.weight.copy_(_product(option, factors))  # type: ignore[operator]


def is_product(module: nn.Module, option: Option, factors: Sequence[Tensor]) -> bool:
    """Return whether the kernel still is, bit by bit, what `overwrite` made of these factors."""
    return torch.equal(module.weight, _product(option, factors).to(module.weight))  # type: ignore[arg-type]


def relaxed_rank(option: Option, share: float) -> Rank:
    """Return a rank on the straight way from the largest that pays to the option's own, rounded in each of its numbers.

    Args:
        option: The layer, its method and its final rank.
        share: Position on that way: 0 is the largest rank, 1 the option's own.
    """
    method, layer = option.method, option.layer.convolution
    assert method is not None
    start = as_tuple(max(method.ranks(layer) or [option.rank], key=lambda rank: method.cost(layer, rank).params))
    end = as_tuple(option.rank)
    between = tuple(max(last, round(first + share * (last - first))) for first, last in zip(start, end, strict=True))
    return between if isinstance(option.rank, tuple) else between[0]


def _product(option: Option, factors: Sequence[Tensor]) -> Tensor:
    assert option.method is not None
    return from_canonical(option.layer, option.method.merge(factors))
