"""The harm that was done, measured: how far the compressed network's outputs are from the original's."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from spectrim.layer import Example, call, evaluation_mode, tensors_of
from spectrim.statistics import is_logits


def measured_harm(model: nn.Module, small: nn.Module, batches: Sequence[Example]) -> float:
    """Return the mean KL divergence in nats of class logits, or for other outputs the relative squared error.

    Args:
        model: The original network.
        small: The compressed network.
        batches: Inputs; no labels are needed.
    """
    total, count = 0.0, 0
    with evaluation_mode(model), evaluation_mode(small), torch.no_grad():
        for batch in batches:
            reference, outputs = call(model, batch), call(small, batch)
            size = len(tensors_of(batch)[0])
            total += size * _distance(reference, outputs)
            count += size
    return max(0.0, total / max(count, 1))  # rounding can make a divergence of zero negative


def _distance(reference: object, outputs: object) -> float:
    expected = [tensor.float() for tensor in tensors_of(reference) if tensor.is_floating_point()]
    found = [tensor.float() for tensor in tensors_of(outputs) if tensor.is_floating_point()]
    if is_logits(reference):
        return float(
            functional.kl_div(found[0].log_softmax(1), expected[0].log_softmax(1), log_target=True, reduction="batchmean")
        )
    errors: list[Tensor] = [
        (a - b).square().mean() / b.square().mean().clamp_min(1e-30) for a, b in zip(found, expected, strict=True)
    ]
    return float(torch.stack(errors).mean())
