"""Harm that was done, measured: how far a changed network's outputs, or a layer's, are from the original's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from spectrim.core.factorization import Moments
from spectrim.core.plan import Option
from spectrim.network.build import factorized
from spectrim.network.calling import Example, answer, batch_size, call, evaluation_mode
from spectrim.network.copying import duplicate
from spectrim.network.surgery import replace_module
from spectrim.sensitivity.divergence import Harm, output_harm

Rows = Sequence[Sequence[Option]]  # options of each layer, none of which leaves it alone


@dataclass(frozen=True)
class Data:
    """What harm is measured on.

    Attributes:
        batches: Inputs.
        moments: Layer name to moments, in whose norm single layers are fitted.
        harm: See `spectrim.sensitivity.divergence`.
    """

    batches: Sequence[Example]
    moments: Mapping[str, Moments]
    harm: Harm = output_harm


def measured_harm(model: nn.Module, small: nn.Module, batches: Sequence[Example], harm: Harm = output_harm) -> float:
    """Return the mean harm over all examples: nats for class logits, else as `harm` defines it.

    Args:
        model: The original network.
        small: The compressed network.
        batches: Inputs; no labels are needed.
        harm: See `spectrim.harm`.
    """
    sizes = [batch_size(batch) for batch in batches]
    values = batch_harms(model, small, batches, harm)
    total = sum(size * value for size, value in zip(sizes, values, strict=True))
    return max(0.0, total / max(sum(sizes), 1))  # rounding can make a divergence of zero negative


def batch_harms(model: nn.Module, small: nn.Module, batches: Sequence[Example], harm: Harm = output_harm) -> list[float]:
    """Return the mean harm of each batch; arguments as in `measured_harm`."""
    with evaluation_mode(model), evaluation_mode(small), torch.no_grad():
        return [float(harm(call(small, batch), call(model, batch))) for batch in batches]


def single_harms(model: nn.Module, rows: Rows, data: Data) -> Iterator[list[float]]:
    """Yield for each row the harm of the network in which that layer alone takes each of its options.

    One pass over the batches for each option, and one of the original network: what a greedy selection pays.
    """
    small = duplicate(model)
    with evaluation_mode(model), torch.no_grad():
        expected = [call(model, batch) for batch in data.batches]
    sizes = [batch_size(batch) for batch in data.batches]
    for row in rows:
        values = []
        for option, module in zip(row, _modules(model, row, data), strict=True):
            original = small.get_submodule(option.layer.name)
            replace_module(small, option.layer.name, module.eval())
            with evaluation_mode(small), torch.no_grad():
                found = [float(data.harm(call(small, x), y)) for x, y in zip(data.batches, expected, strict=True)]
            replace_module(small, option.layer.name, original)
            total = sum(size * value for size, value in zip(sizes, found, strict=True))
            values.append(max(0.0, total / max(sum(sizes), 1)))
        yield values


def similarity(model: nn.Module, rows: Rows, data: Data) -> list[list[float]]:
    """Return one less the cosine between the layer's output before and after, averaged over examples, for every option."""
    modules = {row[0].layer.name: _modules(model, row, data) for row in rows if row}
    sums = {name: torch.zeros(len(found), dtype=torch.float64, device="cpu") for name, found in modules.items()}
    seen = dict.fromkeys(modules, 0)

    def observe(name: str, x: Tensor, output: Tensor) -> None:
        for index, module in enumerate(modules[name]):
            cosine = functional.cosine_similarity(answer(module, x).flatten(1).float(), output.flatten(1).float())
            sums[name][index] += float((1 - cosine).double().sum())
        seen[name] += len(output)

    handles = [
        model.get_submodule(name).register_forward_hook(
            lambda module, args, output, name=name: observe(name, args[0], output), prepend=True
        )
        for name in modules
    ]
    try:
        with evaluation_mode(model), torch.no_grad():
            for batch in data.batches:
                call(model, batch)
    finally:
        for handle in handles:
            handle.remove()
    return [(sums[row[0].layer.name] / max(seen[row[0].layer.name], 1)).tolist() if row else [] for row in rows]


def _modules(model: nn.Module, row: Sequence[Option], data: Data) -> list[nn.Module]:
    """Return what each option would put in its layer's place."""
    return [factorized(o, model.get_submodule(o.layer.name), data.moments[o.layer.name]) for o in row]
