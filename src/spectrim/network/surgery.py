"""The only code that swaps modules: apply(plan, model), skeleton(plan, model), and the way between modules and records."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from spectrim.core.factorization import Factorization, Moments
from spectrim.core.layer import Layer
from spectrim.core.plan import Option, Plan
from spectrim.network.apart import CONV, opened, swap, whole_of
from spectrim.network.build import build, factorized
from spectrim.network.calling import Example
from spectrim.network.copying import duplicate
from spectrim.network.counting import counted
from spectrim.network.disguise import overridden
from spectrim.network.survey import Survey, geometry, survey


def apply(plan: Plan, model: nn.Module, *, moments: Mapping[str, Moments] | None = None) -> nn.Module:
    """Return a copy of the network with the plan's layers factorized, looking at weights only; the network given is untouched.

    Every layer is approximated by itself. `compress(..., plan=plan, calibration=...)` builds the same structure and also fits
    it to data, layer after layer, which loses much less accuracy.

    Args:
        plan: Which layers, methods and ranks.
        model: The network that the plan was made for.
        moments: Layer name to what calibration says of it, such as `prepare(...).moments`: fit each layer in its response norm.
            Without them the weight itself is approximated.

    Returns:
        A network of stock modules, and `Pivot` where PivotSVD is used.

    Raises:
        ValueError: If the plan does not fit the network.
    """
    small = duplicate(model)
    with torch.no_grad():
        for name, option in plan.items():
            assert option.method is not None
            module = module_of(small, option)
            replace_module(small, name, factorized(option, module, None if moments is None else moments.get(name)))
    return small


def skeleton(plan: Plan, model: nn.Module) -> nn.Module:
    """Return a copy of the network with the plan's structure and uninitialised small layers, ready to load weights.

    Raises:
        ValueError: If the plan does not fit the network.
    """
    small = duplicate(model)
    for name, option in plan.items():
        replace_module(small, name, build(option, module_of(small, option), None, None))
    return small


def plan_from(model: nn.Module, example: Example, choices: Mapping[str, tuple[object, object]]) -> Plan:
    """Make a plan by hand: every layer that is not named is left alone.

    Args:
        model: The network.
        example: A batch of inputs.
        choices: Layer name to (method, rank), such as `{"layer1.0.conv1": (SpatialSVD(), 12)}`.

    Raises:
        ValueError: If a layer is unknown or cannot be factorized, or the rank is out of range.
        TypeError: If a choice is not a pair of a method and a rank.
    """
    model = opened(model, example)
    found = survey(model, example)
    options = {}
    for name, choice in choices.items():
        layer = _layer(name, found)
        if not isinstance(choice, tuple) or len(choice) != 2 or not isinstance(choice[0], Factorization):
            raise TypeError(
                f"the choice for layer {name!r} is {choice!r}; it must be (method, rank), such as (SpatialSVD(), 12)"
            )
        method = choice[0]
        rank: Any = choice[1]  # anything at all; check says what is wrong with it
        method.check(layer.convolution, rank)
        options[name] = Option(layer, method, rank)
    ordered = {layer.name: options[layer.name] for layer in found.layers if layer.name in options}
    return Plan(ordered, counted(model, example).cost)


def checked(plan: Plan, found: Survey) -> dict[str, Option]:
    """Return the options of a plan, edited by hand perhaps, for the layers as they are in a network.

    Raises:
        ValueError: If a layer is not there, cannot be factorized or has another shape, or a rank is out of range.
    """
    options = {}
    for name, option in plan.items():
        layer, planned = _layer(name, found), option.layer
        if (layer.kind, layer.weight) != (planned.kind, planned.weight):
            raise ValueError(
                f"the plan does not fit the model: layer {name!r} is {layer.kind} {layer.weight}, the plan has {planned.kind} "
                f"{planned.weight}"
            )
        assert option.method is not None
        option.method.check(layer.convolution, option.rank)
        options[name] = replace(option, layer=layer)
    return options


def _layer(name: str, found: Survey) -> Layer:
    """Return the layer of this name, which may be factorized.

    Raises:
        ValueError: If there is none.
    """
    layers = {layer.name: layer for layer in found.layers}
    if name not in layers:
        reason = found.skipped.get(name, f"there is no such layer; the layers are {', '.join(layers)}")
        raise ValueError(f"layer {name!r} cannot be planned: {reason}")
    return layers[name]


def module_of(model: nn.Module, option: Option) -> nn.Module:
    """Return the module that an option is about.

    Raises:
        ValueError: If it is not there or has another kind or shape.
    """
    layer = option.layer
    try:
        module = model.get_submodule(layer.name)
    except AttributeError as error:
        inside = whole_of(model, layer.name)
        if inside is None:
            raise ValueError(f"the plan does not fit the model: it has no layer {layer.name!r}") from error
        module, _ = inside
    weight = getattr(module, "weight", None)
    kind: type[nn.Module] = getattr(nn, layer.kind)
    if not isinstance(module, kind) or not isinstance(weight, Tensor) or tuple(weight.shape) != layer.weight:
        found = f"{type(module).__name__} {tuple(weight.shape) if isinstance(weight, Tensor) else ''}".strip()
        raise ValueError(
            f"the plan does not fit the model: layer {layer.name!r} is {found}, the plan has {layer.kind} {layer.weight}"
        )
    for field, own in _own(module).items():
        if getattr(layer, field) != own:
            raise ValueError(
                f"the plan does not fit the model: the {field} of layer {layer.name!r} is {own!r}, the plan has "
                f"{getattr(layer, field)!r}"
            )
    return module


def _own(module: nn.Module) -> dict[str, Any]:
    """Return the fields of a `Layer` that its module alone decides, without running it."""
    shape = geometry(module) | {"bias": module.bias is not None}
    if not overridden(module):
        return shape | {"pad": (), "baked": False}
    return {field: value for field, value in shape.items() if not field.startswith("padding")}


def replace_module(model: nn.Module, name: str, new: nn.Module) -> None:
    """Put `new` in place of the module of this name, under every name that it has; what holds it is taken apart if need be."""
    found = whole_of(model, name)
    if found is None:
        swap(model, model.get_submodule(name), new)
    else:
        whole, pieces = found
        chain = nn.Sequential(OrderedDict({**pieces, CONV: new}))
        chain.training = whole.training
        swap(model, whole, chain)
