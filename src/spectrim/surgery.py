"""The only code that swaps modules: apply(plan, model), skeleton(plan, model), and the way between modules and records."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from spectrim.cost import Cost
from spectrim.factorize import Factorization, Moments
from spectrim.factorize._base import eye_like, from_canonical, to_canonical
from spectrim.layer import Example, Layer, batch_size, call, evaluation_mode, unwrap
from spectrim.plan import Option, Plan
from spectrim.survey import survey

BALANCING = 20  # sweeps over the gaps between factors; one is exact for two factors
HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
)


def cost(model: nn.Module, example: Example) -> Cost:
    """Return what the module itself costs: all its parameters, and the multiply-adds that torch's flop counter sees.

    Args:
        model: Any network; it is not changed.
        example: A batch of inputs; the MACs returned are those of one example of it.

    Returns:
        Parameters (shared ones once) and MACs of one forward of one example.

    Raises:
        ValueError: If the example has no batch dimension.
    """
    model = unwrap(model)
    with evaluation_mode(model), torch.no_grad(), FlopCounterMode(display=False) as counter:
        call(model, example)
    params = sum(parameter.numel() for parameter in model.parameters())
    return Cost(params, round(counter.get_total_flops() / 2 / batch_size(example)))


def apply(plan: Plan, model: nn.Module, *, moments: Mapping[str, Moments] | None = None) -> nn.Module:
    """Return a factorized copy of the network; the network given is untouched.

    Args:
        plan: Which layers, methods and ranks.
        model: The network that the plan was made for.
        moments: From `statistics`: fit each layer in its response norm. Without them the weight itself is approximated.

    Returns:
        A network of stock modules only.

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
    found = survey(model, example)
    layers = {layer.name: layer for layer in found.layers}
    options = {}
    for name, choice in choices.items():
        if name not in layers:
            reason = found.skipped.get(name, f"there is no such layer; the layers are {', '.join(layers)}")
            raise ValueError(f"layer {name!r} cannot be planned: {reason}")
        if not isinstance(choice, tuple) or len(choice) != 2 or not isinstance(choice[0], Factorization):
            raise TypeError(
                f"the choice for layer {name!r} is {choice!r}; it must be (method, rank), such as (SpatialSVD(), 12)"
            )
        method = choice[0]
        rank: Any = choice[1]  # anything at all; check says what is wrong with it
        method.check(layers[name].convolution, rank)
        options[name] = Option(layers[name], method, rank)
    return Plan({name: options[name] for name in layers if name in options}, cost(model, example))


def duplicate(model: nn.Module) -> nn.Module:
    """Return a deep copy of the unwrapped network.

    Raises:
        TypeError: If it cannot be copied.
    """
    try:
        return copy.deepcopy(unwrap(model))
    except RuntimeError as error:
        raise TypeError(f"the model cannot be copied: {error}; it may hold tensors that are part of a graph") from error


def module_of(model: nn.Module, option: Option) -> nn.Module:
    """Return the module that an option is about.

    Raises:
        ValueError: If it is not there or has another kind or shape.
    """
    layer = option.layer
    try:
        module = model.get_submodule(layer.name)
    except AttributeError as error:
        raise ValueError(f"the plan does not fit the model: it has no layer {layer.name!r}") from error
    weight = getattr(module, "weight", None)
    kind: type[nn.Module] = getattr(nn, layer.kind)
    if not isinstance(module, kind) or not isinstance(weight, Tensor) or tuple(weight.shape) != layer.weight:
        found = f"{type(module).__name__} {tuple(weight.shape) if isinstance(weight, Tensor) else ''}".strip()
        raise ValueError(
            f"the plan does not fit the model: layer {layer.name!r} is {found}, the plan has {layer.kind} {layer.weight}"
        )
    return module


def working_weight(layer: Layer, module: nn.Module) -> Tensor:
    """Return the layer's weight, canonical and in double precision, where linear algebra can be done."""
    weight = module.weight
    assert isinstance(weight, Tensor)
    return to_canonical(layer, weight.detach()).to(device=algebra_device(weight), dtype=torch.float64)


def factorized(option: Option, module: nn.Module, moments: Moments | None) -> nn.Sequential:
    """Return what replaces a layer when its inputs are the original network's own."""
    assert option.method is not None
    weight, bias = working_weight(option.layer, module), original_bias(module)
    if moments is None:
        return build(option, module, option.method.factors(weight, option.rank), bias)
    base = weight.new_zeros(weight.shape[:2]) if bias is None else bias.to(weight).reshape(weight.shape[:2])
    if moments.mean is not None:
        moments = replace(moments, response_mean=(weight.flatten(2) @ moments.mean.to(weight)[..., None])[..., 0] + base)
    return fitted(option, module, weight, moments, linear=moments.response_mean.to(weight) - base)


def fitted(option: Option, module: nn.Module, kernel: Tensor, moments: Moments, *, linear: Tensor) -> nn.Sequential:
    """Factorize a kernel in the norm of its moments and keep the mean output.

    Args:
        option: Method and rank.
        module: The layer that is replaced.
        kernel: The dense kernel to approximate, canonical (g, T, S, *kernel).
        moments: Norm, mean input and wanted mean output.
        linear: Mean of kernel times input, without bias, (g, T); used where the mean input was not kept.
    """
    assert option.method is not None
    moved: list[Any] = [value.to(kernel.device) if isinstance(value, Tensor) else value for value in vars(moments).values()]
    moments = Moments(*moved)
    factors = option.method.factors(kernel, option.rank, moments)
    if not option.target.bias:
        return build(option, module, factors, None)
    old, new = kernel.flatten(2), option.method.merge(factors).flatten(2)
    if moments.mean is not None:
        kept = new @ moments.mean[..., None]
    else:  # the map N with N W = W_r, applied to the mean of W x
        gram = old @ old.mT
        ridge = 1e-10 * gram.diagonal(dim1=1, dim2=2).mean(1)[:, None, None] * eye_like(gram.shape[1], gram)
        kept = torch.linalg.solve(gram + ridge, old @ new.mT).mT @ linear[..., None]
    return build(option, module, factors, (moments.response_mean - kept[..., 0]).flatten())


def algebra_device(tensor: Tensor) -> torch.device:
    """Return where to factorize: on the tensor's own device if it has double precision, else on the CPU."""
    return tensor.device if tensor.device.type in ("cpu", "cuda") else torch.device("cpu")


def original_bias(module: nn.Module) -> Tensor | None:
    """Return the bias of a layer, or None."""
    return module.bias.detach() if isinstance(module.bias, Tensor) else None


def build(option: Option, module: nn.Module, factors: Sequence[Tensor] | None, bias: Tensor | None) -> nn.Sequential:
    """Return the small layers that replace a module.

    They take its device, dtype, memory format, train/eval mode, `requires_grad` and hooks.

    Args:
        option: Method and rank.
        module: What they replace.
        factors: Canonical weight of each weighted part; None leaves the weights uninitialised.
        bias: Bias of the last part, (T,); None means zeros where the option has a bias.
    """
    old = module.weight
    assert isinstance(old, Tensor)
    modules = [_module(part, old) for part in option.parts]
    weighted = [(part, new) for part, new in zip(option.parts, modules, strict=True) if part.weighted]
    with torch.no_grad():
        ready = balanced(option.parts, factors) if factors is not None else ()
        for (part, new), factor in zip(weighted, ready, strict=factors is not None):
            new.weight.copy_(from_canonical(part, factor))  # type: ignore[operator]
        last = weighted[-1][1]
        if isinstance(last.bias, Tensor):
            last.bias.zero_() if bias is None else last.bias.copy_(bias)
    bias_grad = module.bias.requires_grad if isinstance(module.bias, Tensor) else old.requires_grad
    for _, new in weighted:
        new.weight.requires_grad_(old.requires_grad)
        if isinstance(new.bias, Tensor):
            new.bias.requires_grad_(bias_grad)
    sequence = nn.Sequential(*modules)
    for new in (*modules, sequence):
        new.training = module.training
    for hooks in HOOKS:
        if hasattr(module, hooks):
            getattr(sequence, hooks).update(getattr(module, hooks))
    sequence._is_full_backward_hook = module._is_full_backward_hook  # how its backward hooks are called
    return sequence


def balanced(parts: Sequence[Layer], factors: Sequence[Tensor]) -> list[Tensor]:
    """Scale each channel between two factors so that what writes it and what reads it have the same norm.

    The product stays what it is. Decompositions leave all of the scale in one factor, and gradient descent at any one rate then
    moves one factor too far and another hardly at all. As for the two halves of an SVD that share the root of its
    singular values; in longer chains by alternation.

    Args:
        parts: The small layers; some have no weight.
        factors: Canonical weight (g, T, S, *kernel) of each that has.
    """
    scaled = [factor.clone() for factor in factors]
    gaps, between = [], False
    for part in parts:  # the reshapes before each weighted part
        if part.weighted:
            gaps.append(between)
        between = not part.weighted
    order = [part for part in parts if part.kind == "ChannelShuffle"]
    reshaped = any(part.kind == "Unflatten" for part in parts[1:])  # a TT-matrix: channels are not passed on as they are
    for _ in range(0 if reshaped else BALANCING):
        for index in range(1, len(scaled)):
            shuffle = order[0].groups if gaps[index] and order else 1
            _balance(scaled, index, shuffle)
    return scaled


def _balance(factors: list[Tensor], index: int, shuffle: int) -> None:
    """Balance the channels between factor `index` and the one before it, in place."""
    first, second = factors[index - 1], factors[index]
    writes = first.flatten(2).norm(dim=2).flatten()  # (g * T,)
    reads = second.transpose(1, 2).flatten(2).norm(dim=2).flatten()  # (g' * S',)
    reads = reads.reshape(-1, shuffle).mT.flatten()  # in the order in which they are written
    scale = torch.where((writes > 0) & (reads > 0), (reads / writes).sqrt(), 1.0)
    ones = (1,) * (first.ndim - 2)
    first *= scale.reshape(*first.shape[:2], *ones)
    back = scale.reshape(shuffle, -1).mT.flatten().reshape(second.shape[0], 1, second.shape[2], *(1,) * (second.ndim - 3))
    second /= back


def _module(part: Layer, old: Tensor) -> nn.Module:
    if part.kind == "ChannelShuffle":
        return nn.ChannelShuffle(part.groups)
    if part.kind == "Unflatten":
        return nn.Unflatten(1, part.weight)
    if part.kind == "Flatten":
        return nn.Flatten(part.groups)
    outputs, inputs = part.channels
    options = {"bias": part.bias, "device": old.device, "dtype": old.dtype}
    if part.kind == "Linear":
        linear: nn.Module = nn.utils.skip_init(nn.Linear, inputs, outputs, **options)
        return linear
    options |= {"stride": part.stride, "padding": part.padding, "dilation": part.dilation}
    options |= {"groups": part.groups, "padding_mode": part.padding_mode}
    if part.transposed:
        options["output_padding"] = part.output_padding
    module: nn.Module = nn.utils.skip_init(getattr(nn, part.kind), inputs, outputs, part.kernel, **options)
    if old.ndim == 4 == len(part.weight) and old.is_contiguous(memory_format=torch.channels_last) and not old.is_contiguous():
        module = module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return module


def replace_module(model: nn.Module, name: str, new: nn.Module) -> None:
    """Put `new` in place of the module of this name, under every name that it has."""
    old = model.get_submodule(name)
    for parent in model.modules():
        for key, child in parent._modules.items():
            if child is old:
                parent._modules[key] = new
