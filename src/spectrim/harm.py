"""How far the compressed network's outputs are from the original's, and how that curves.

Class logits: KL divergence in nats. Any other output: squared error relative to the mean square of the original's output.
A user's own `harm(outputs, reference)` takes their place: a differentiable scalar, the mean over the batch's examples, zero
where both are equal.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from spectrim.layer import tensors_of

Harm = Callable[[Any, Any], Tensor]


def is_logits(outputs: Any) -> bool:
    """Return whether the outputs are class logits: one floating-point matrix with at least two columns."""
    tensors = floats(outputs)
    return len(tensors) == 1 and tensors[0].ndim == 2 and tensors[0].shape[1] >= 2


def floats(outputs: Any) -> list[Tensor]:
    """Return the floating-point tensors of an output, in order."""
    return [tensor for tensor in tensors_of(outputs) if tensor.is_floating_point()]


def detached(outputs: Any) -> Any:
    """Return the outputs, in the same nesting, without their graph."""
    return _mapped(outputs, lambda tensor: tensor.detach())


def output_harm(outputs: Any, reference: Any) -> Tensor:
    """Return the mean harm of a batch: KL divergence of logits in nats, else the relative squared error, a scalar.

    Args:
        outputs: Of the compressed network.
        reference: Of the original network on the same inputs.
    """
    found, expected = ([tensor.float() for tensor in floats(given)] for given in (outputs, reference))
    if is_logits(reference):
        return functional.kl_div(found[0].log_softmax(1), expected[0].log_softmax(1), log_target=True, reduction="batchmean")
    return torch.stack([((a - b).square().mean() / _power(b)) for a, b in zip(found, expected, strict=True)]).mean()


def slope(outputs: Any, reference: Any, harm: Harm) -> list[Tensor]:
    """Return the gradient of each example's harm by each output tensor, (N, ...)."""
    found, value = _evaluated(outputs, reference, harm)
    gradients = torch.autograd.grad(value, found, allow_unused=True)
    return [len(x) * (torch.zeros_like(x) if g is None else g) for x, g in zip(found, gradients, strict=True)]


def curvature_root(outputs: Any, reference: Any, harm: Harm, generator: torch.Generator) -> list[Tensor]:
    """Return random vectors v, one per example and output tensor, with E[v v^T] = H, the Hessian of the example's harm.

    KL divergence: v = S e with S = diag(q^1/2) - q (q^1/2)^T, q the softmax of `outputs`, e normal. Squared error: scaled
    noise. A user's harm: v = H e / c^1/2 with c = |H e|^2 / (e . H e), which is exact where H is a multiple of a projection.

    Args:
        outputs: Where the curvature is wanted.
        reference: Of the original network.
        harm: `output_harm`, or the user's.
        generator: Of e; on the CPU, so that results do not depend on the device.
    """
    noise = [torch.randn(x.shape, generator=generator).to(x.device) for x in floats(outputs)]
    if harm is not output_harm:
        found, value = _evaluated(outputs, reference, harm, create_graph=True)
        first = torch.autograd.grad(value, found, create_graph=True, allow_unused=True)
        total = torch.stack([(g * e).sum() for g, e in zip(first, noise, strict=True) if g is not None]).sum()
        second = torch.autograd.grad(total, found, allow_unused=True) if total.requires_grad else [None] * len(found)
        bent = [len(x) * (torch.zeros_like(x) if h is None else h) for x, h in zip(found, second, strict=True)]
        along = sum(float((h * e).sum()) for h, e in zip(bent, noise, strict=True))
        size = sum(float(h.square().sum()) for h in bent)
        return [h * (max(along, 0.0) / size) ** 0.5 if size else h for h in bent]
    if is_logits(reference):
        q = floats(outputs)[0].detach().float().softmax(1)
        mixed = q.sqrt() * noise[0]
        return [mixed - q * mixed.sum(1, keepdim=True)]
    count = len(noise)
    return [e * (2 / (count * x[0].numel() * _power(x))).sqrt() for e, x in zip(noise, floats(reference), strict=True)]


def _power(reference: Tensor) -> Tensor:
    return reference.detach().float().square().mean().clamp_min(1e-30)


def _evaluated(outputs: Any, reference: Any, harm: Harm, *, create_graph: bool = False) -> tuple[list[Tensor], Tensor]:
    """Return fresh leaves in place of the outputs, and the harm as a function of them."""
    leaves = [tensor.detach().float().requires_grad_() for tensor in floats(outputs)]
    remaining = iter(leaves)
    replaced = _mapped(outputs, lambda tensor: next(remaining) if tensor.is_floating_point() else tensor)
    with torch.enable_grad():
        value = harm(replaced, reference)
    if not isinstance(value, Tensor) or value.numel() != 1:
        raise ValueError(f"harm returned {type(value).__name__}; it must return one differentiable number, the batch's mean")
    if not value.requires_grad:
        raise ValueError("harm's answer does not depend differentiably on the outputs; use torch operations on them throughout")
    return leaves, value.reshape(())


def _mapped(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Return nested tuples, lists and dicts with every tensor changed."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, dict):
        return type(value)((key, _mapped(item, change)) for key, item in value.items())
    if isinstance(value, (list, tuple)):
        items = [_mapped(item, change) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    return value
