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
    small = duplicate(model)
    with evaluation_mode(model), torch.no_grad():
        expected = [call(model, batch) for batch in batches]
    sizes = [len(tensors_of(batch)[0]) for batch in batches]

    def measured() -> float:
        with evaluation_mode(small), torch.no_grad():
            pairs = zip(sizes, batches, expected, strict=True)
            total = sum(size * float(harm(call(small, batch), wanted)) for size, batch, wanted in pairs)
        return max(0.0, total / max(sum(sizes), 1))

    found = []
    for row in rows:
        name = row[0].layer.name
        module = small.get_submodule(name)
        values = []
        for option in row[1:]:
            replace_module(small, name, factorized(option, module, moments[name]))
            values.append(measured())
        replace_module(small, name, module)
        found.append(values)
    return found


def similarity(
    model: nn.Module, rows: Rows, batches: Sequence[Example], moments: Mapping[str, Moments], harm: Harm
) -> list[list[float]]:
    """Return one less the cosine between the layer's output before and after, averaged over examples, for every option."""
    modules = {
        row[0].layer.name: [
            factorized(option, model.get_submodule(row[0].layer.name), moments[row[0].layer.name]) for option in row[1:]
        ]
        for row in rows
    }
    sums = {name: torch.zeros(len(found), dtype=torch.float64) for name, found in modules.items()}
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
