"""From an option to the small layers that replace a module: their weights, in which norm, and their bias."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from spectrim.core.factorization import Moments, by_groups
from spectrim.core.layer import Layer
from spectrim.core.plan import Option
from spectrim.factorize.algebra import canonical_shape, from_canonical, map_between, to_canonical
from spectrim.network.disguise import effective_weight
from spectrim.network.pivot import Pivot, units

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


@dataclass(frozen=True)
class Target:
    """What the replacement of a layer is fitted to.

    Attributes:
        kernel: The dense kernel to approximate, canonical (g, T, S, *kernel), in double precision.
        moments: Norm, mean input and wanted mean output; None approximates the weight itself.
        linear: Mean of kernel times input, without bias, (g, T); used where the mean input was not kept.
    """

    kernel: Tensor
    moments: Moments | None = None
    linear: Tensor | None = None


def own_target(layer: Layer, module: nn.Module, moments: Moments | None) -> Target:
    """Return what a layer's replacement is fitted to when its inputs are the original network's own.

    Args:
        layer: The layer.
        module: It, with its weight.
        moments: From calibration data, on any device; None without.
    """
    kernel = working_weight(layer, module)
    if moments is None:
        return Target(kernel)
    values: list[Any] = [value.to(kernel.device) if isinstance(value, Tensor) else value for value in vars(moments).values()]
    moments, bias = Moments(*values), original_bias(module)
    base = kernel.new_zeros(kernel.shape[:2]) if bias is None else bias.to(kernel).reshape(kernel.shape[:2])
    if moments.mean is not None:
        moments = replace(moments, response_mean=(kernel.flatten(2) @ moments.mean.to(kernel)[..., None])[..., 0] + base)
    return Target(kernel, moments, moments.response_mean.to(kernel) - base)


def factorized(option: Option, module: nn.Module, moments: Moments | None) -> nn.Sequential:
    """Return what replaces a layer when its inputs are the original network's own; arguments as in `own_target`."""
    assert option.method is not None
    target = own_target(option.layer, module, moments)
    parts = [option.method.factors(kernel, option.rank, norm) for kernel, norm in by_groups(target.kernel, target.moments)]
    factors = parts[0] if len(parts) == 1 else [torch.cat(factor) for factor in zip(*parts, strict=True)]
    return replacement(option, module, target, factors)


def replacement(option: Option, module: nn.Module, target: Target, factors: Sequence[Tensor]) -> nn.Sequential:
    """Return the small layers with these weights, and a bias that keeps the mean output.

    Args:
        option: Method and rank.
        module: The layer that is replaced.
        target: What the factors were fitted to.
        factors: Canonical weight of each weighted part.
    """
    assert option.method is not None
    moments = target.moments
    if moments is None or not option.target.bias:
        return build(option, module, factors, original_bias(module) if moments is None else None)
    check_factors(option, factors)
    merged = option.method.merge(factors)
    check_merged(option, merged, target.kernel)
    old, new = target.kernel.flatten(2), merged.flatten(2)
    if moments.mean is not None:
        kept = new @ moments.mean[..., None]
    else:  # the map N with N W = W_r, applied to the mean of W x
        assert target.linear is not None
        kept = map_between(old, new) @ target.linear[..., None]
    return build(option, module, factors, (moments.response_mean - kept[..., 0]).flatten())


def working_weight(layer: Layer, module: nn.Module) -> Tensor:
    """Return the layer's weight, canonical and in double precision, where linear algebra can be done."""
    weight = effective_weight(module, layer.inputs[0]) if layer.baked else module.weight
    assert isinstance(weight, Tensor)
    return to_canonical(layer, weight.detach()).to(device=algebra_device(weight), dtype=torch.float64)


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

    Raises:
        ValueError: If the factors do not have the shapes of the parts.
    """
    if factors is not None:
        check_factors(option, factors)
    old = module.weight
    assert isinstance(old, Tensor)
    parts = _with_biases(option.parts)
    modules = [_module(part, old) for part in parts]
    weighted = [(part, new) for part, new in zip(parts, modules, strict=True) if part.weighted]
    with torch.no_grad():
        if factors is not None:
            _fill(weighted, balanced(parts, factors), bias)
    bias_grad = module.bias.requires_grad if isinstance(module.bias, Tensor) else old.requires_grad
    sequence = nn.Sequential(*modules).train(module.training)
    for name, parameter in sequence.named_parameters():
        parameter.requires_grad_(bias_grad if name.endswith("bias") else old.requires_grad)
    for hooks in HOOKS:
        if hasattr(module, hooks):
            getattr(sequence, hooks).update(getattr(module, hooks))
    sequence._is_full_backward_hook = module._is_full_backward_hook  # how its backward hooks are called
    return sequence


def _with_biases(parts: Sequence[Layer]) -> list[Layer]:
    """Return the parts; the one before a `Pivot` has the biases of the outputs that are passed on."""
    following = [*parts[1:], parts[-1]]
    return [
        replace(part, bias=part.bias or (after.kind == "Pivot" and after.bias))
        for part, after in zip(parts, following, strict=True)
    ]


def _fill(weighted: Sequence[tuple[Layer, Any]], factors: Sequence[Tensor], bias: Tensor | None) -> None:
    """Copy the factors and the bias (T,), None for zeros, into the modules of the parts that have a weight."""
    for (part, new), factor in reversed(list(zip(weighted, factors, strict=True))):
        if part.kind == "Pivot":
            whole = bias if bias is not None or not part.bias else factor.new_zeros(part.channels[0])
            bias = new.fill(factor, whole)
        else:
            new.weight.copy_(from_canonical(part, factor))
            if part.bias:
                new.bias.zero_() if bias is None else new.bias.copy_(bias)
            bias = None


def check_factors(option: Option, factors: Sequence[Tensor]) -> None:
    """Check that the factors of a method, a third party's perhaps, have the shapes of the parts that have a weight.

    Raises:
        ValueError: If they do not.
    """
    assert option.method is not None
    parts = option.method.parts(option.target.convolution, option.rank)
    wanted = [canonical_shape(part) for part in parts if part.weighted]
    given = [tuple(factor.shape) for factor in factors]
    if given != wanted:
        returned, canonical = (", ".join(map(str, shapes)) for shapes in (given, wanted))
        raise ValueError(f"{_what(option, 'factors')} weights of shapes {returned}; parts() has, canonical, {canonical}")
    for part, factor in zip((part for part in parts if part.weighted), factors, strict=True):
        if part.kind == "Pivot" and not units(factor.flatten(2)).any(1).all():
            raise ValueError(
                f"{_what(option, 'factors')} for its Pivot a weight in which no row is exactly the unit vector of some column"
            )


def check_merged(option: Option, merged: Tensor, kernel: Tensor) -> None:
    """Check that what a method, a third party's perhaps, multiplies its factors out to has the shape of the kernel.

    Raises:
        ValueError: If it has not.
    """
    if merged.shape != kernel.shape:
        raise ValueError(f"{_what(option, 'merge')} a kernel of shape {tuple(merged.shape)}; it is {tuple(kernel.shape)}")


def _what(option: Option, function: str) -> str:
    """Return the beginning of a sentence about what a method returned."""
    return f"{type(option.method).__name__}.{function}() returned for layer {option.layer.name!r} at rank {option.rank}"


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
    kinds = [part.kind for part in parts if part.weighted]
    for _ in range(0 if reshaped else BALANCING):
        for index in range(1, len(scaled)):
            if kinds[index] == "Pivot":  # what it passes on has its scale
                continue
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
    if part.kind.startswith("ZeroPad"):
        around: nn.Module = getattr(nn, part.kind)([number for pair in reversed(part.pad) for number in pair])
        return around
    if part.kind == "Unflatten":
        return nn.Unflatten(1, part.weight)
    if part.kind == "Flatten":
        return nn.Flatten(part.start_dim)
    outputs, inputs = part.channels
    options = {"bias": part.bias, "device": old.device, "dtype": old.dtype}
    if part.kind == "Pivot":
        computed = (part.weight[0] - part.weight[1] * part.groups, *part.weight[1:])
        rest = replace(part, kind=f"Conv{len(part.kernel)}d" if part.kernel else "Linear", weight=computed)
        return Pivot(_module(rest, old), part, old.device)
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
