"""The harm that was done, measured: how far the compressed network's outputs are from the original's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from spectrim.factorize import Moments
from spectrim.harm import Harm, output_harm
from spectrim.layer import Example, call, evaluation_mode, tensors_of
from spectrim.plan import Option
from spectrim.surgery import duplicate, factorized, replace_module

Rows = Sequence[Sequence[Option]]


def measured_harm(model: nn.Module, small: nn.Module, batches: Sequence[Example], harm: Harm = output_harm) -> float:
    """Return the mean harm over all examples: nats for class logits, else as `harm` defines it.

    Args:
        model: The original network.
        small: The compressed network.
        batches: Inputs; no labels are needed.
        harm: See `spectrim.harm`.
    """
    sizes = [len(tensors_of(batch)[0]) for batch in batches]
    values = batch_harms(model, small, batches, harm)
    total = sum(size * value for size, value in zip(sizes, values, strict=True))
    return max(0.0, total / max(sum(sizes), 1))  # rounding can make a divergence of zero negative


def batch_harms(model: nn.Module, small: nn.Module, batches: Sequence[Example], harm: Harm = output_harm) -> list[float]:
    """Return the mean harm of each batch; arguments as in `measured_harm`."""
    with evaluation_mode(model), evaluation_mode(small), torch.no_grad():
        return [float(harm(call(small, batch), call(model, batch))) for batch in batches]


def single_harms(
    model: nn.Module, rows: Rows, batches: Sequence[Example], moments: Mapping[str, Moments], harm: Harm
) -> list[list[float]]:
    """Return the harm of the network in which one layer alone takes one option, for every option but the first of each row.

    One pass over the batches for each option, and one of the original network: what a greedy selection pays.
    """
    modules, small = _modules(model, rows, moments), duplicate(model)
    sums = {name: [0.0] * len(found) for name, found in modules.items()}
    seen = 0
    with evaluation_mode(model), evaluation_mode(small), torch.no_grad():
        for batch in batches:
            expected, size = call(model, batch), len(tensors_of(batch)[0])
            seen += size
            for name, found in modules.items():
                original = small.get_submodule(name)
                for index, module in enumerate(found):
                    replace_module(small, name, module.eval())
                    sums[name][index] += size * float(harm(call(small, batch), expected))
                replace_module(small, name, original)
    return [[max(0.0, value / max(seen, 1)) for value in values] for values in sums.values()]


def _modules(model: nn.Module, rows: Rows, moments: Mapping[str, Moments]) -> dict[str, list[nn.Module]]:
    """Return what each option but the first of each row would put in its layer's place, by layer."""
    return {
        row[0].layer.name: [
            factorized(option, model.get_submodule(row[0].layer.name), moments[row[0].layer.name]) for option in row[1:]
        ]
        for row in rows
    }


def similarity(
    model: nn.Module, rows: Rows, batches: Sequence[Example], moments: Mapping[str, Moments], harm: Harm
) -> list[list[float]]:
    """Return one less the cosine between the layer's output before and after, averaged over examples, for every option."""
    modules = _modules(model, rows, moments)
    sums = {name: torch.zeros(len(found), dtype=torch.float64, device="cpu") for name, found in modules.items()}
    seen = dict.fromkeys(modules, 0)

    def observe(name: str, x: Tensor, output: Tensor) -> None:
        for index, module in enumerate(modules[name]):
            cosine = functional.cosine_similarity(module(x).flatten(1).float(), output.flatten(1).float())
            sums[name][index] += float((1 - cosine).double().sum())
        seen[name] += len(output)

    handles = [
        model.get_submodule(name).register_forward_hook(lambda module, args, output, name=name: observe(name, args[0], output))
        for name in modules
    ]
    try:
        with evaluation_mode(model), torch.no_grad():
            for batch in batches:
                call(model, batch)
    finally:
        for handle in handles:
            handle.remove()
    return [(sums[name] / max(seen[name], 1)).tolist() for name in modules]
