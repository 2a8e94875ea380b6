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

from spectrim.network.calling import map_tensors, tensors_of

Harm = Callable[[Any, Any], Tensor]
ROOT_STEPS = 12  # of Lanczos iteration
ROOT_MEMORY = 1 << 29  # bytes of its vectors


def is_logits(outputs: Any) -> bool:
    """Return whether the outputs are class logits: one floating-point matrix with at least two columns."""
    tensors = floats(outputs)
    return len(tensors) == 1 and tensors[0].ndim == 2 and tensors[0].shape[1] >= 2


def floats(outputs: Any) -> list[Tensor]:
    """Return the floating-point tensors of an output, in order."""
    return [tensor for tensor in tensors_of(outputs) if tensor.is_floating_point()]


def detached(outputs: Any) -> Any:
    """Return the outputs, in the same nesting, without their graph."""
    return map_tensors(lambda tensor: tensor.detach(), outputs)


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
    return [torch.zeros_like(x) if g is None else len(x) * g for x, g in zip(found, gradients, strict=True)]


def that_count(outputs: Any, harm: Harm) -> list[Tensor]:
    """Return the floating-point tensors of an output that a harm looks at: all, or those that a user's depends on."""
    if harm is output_harm:
        return floats(outputs)
    found, value = _evaluated(outputs, detached(outputs), harm)
    used = torch.autograd.grad(value, found, allow_unused=True)
    return [x for x, g in zip(floats(outputs), used, strict=True) if g is not None]


def curvature_root(outputs: Any, reference: Any, harm: Harm, generator: torch.Generator) -> list[Tensor]:
    """Return random vectors v, one per example and output tensor, with E[v v^T] = H, the Hessian of the example's harm.

    Args:
        outputs: Where the curvature is wanted.
        reference: Of the original network.
        harm: `output_harm`, or the user's.
        generator: Of the normal noise e in v = S e; on the CPU, so that results do not depend on the device.
    """
    noise = [torch.randn(x.shape, generator=generator, device="cpu").to(x.device) for x in floats(outputs)]
    return root_times(outputs, reference, harm, noise)


def root_times(outputs: Any, reference: Any, harm: Harm, noise: list[Tensor]) -> list[Tensor]:
    """Return S e for each example and output tensor, where S S^T = H, the Hessian of the example's harm.

    KL divergence: S = diag(q^1/2) - q (q^1/2)^T, q the softmax of `outputs`. Squared error: a scale. A user's harm:
    S = H^1/2 by Lanczos iteration, exact where H has few distinct eigenvalues.

    Args:
        outputs: Where the curvature is wanted.
        reference: Of the original network.
        harm: `output_harm`, or the user's.
        noise: e, one tensor like each floating-point output, (N, ...).
    """
    if harm is not output_harm:
        found, value = _evaluated(outputs, reference, harm, create_graph=True)
        first = torch.autograd.grad(value, found, create_graph=True, allow_unused=True)
        used = [x for x, g in zip(found, first, strict=True) if g is not None]  # others may have no batch at all

        def bent(vectors: Tensor) -> Tensor:
            """Return H times one vector (D,) for each example."""
            terms = [(g * v).sum() for g, v in zip([g for g in first if g is not None], _split(vectors, used), strict=True)]
            total = torch.stack(terms).sum()
            if not total.requires_grad:
                return torch.zeros_like(vectors)
            second = torch.autograd.grad(total, used, retain_graph=True, allow_unused=True)
            return len(vectors) * _joined([torch.zeros_like(x) if h is None else h for x, h in zip(used, second, strict=True)])

        start = _joined([e for e, g in zip(noise, first, strict=True) if g is not None])
        roots = iter(_split(_lanczos(bent, start), used))
        return [torch.zeros_like(x) if g is None else next(roots) for x, g in zip(found, first, strict=True)]
    if is_logits(reference):
        q = floats(outputs)[0].detach().float().softmax(1)
        mixed = q.sqrt() * noise[0]
        return [mixed - q * mixed.sum(1, keepdim=True)]
    count = len(noise)
    return [e * (2 / (count * x[0].numel() * _power(x))).sqrt() for e, x in zip(noise, floats(reference), strict=True)]


def check(harm: Harm, outputs: Any) -> None:
    """Check that a user's harm can be worked with: zero, and curved upwards, where both outputs are equal.

    Raises:
        ValueError: If not; it says what is wrong.
    """
    reference = detached(outputs)
    _, value = _evaluated(outputs, reference, harm)
    if not abs(float(value.detach())) <= 1e-3:
        raise ValueError(f"harm is {float(value.detach()):g} where outputs and reference are equal; it must be zero there")
    root = torch.cat([x.flatten() for x in curvature_root(outputs, reference, harm, torch.Generator().manual_seed(0))])
    if not bool(torch.isfinite(root).all()) or not bool(root.any()):
        raise ValueError(
            "harm has no finite and positive second derivative where outputs and reference are equal; it must grow with the "
            "square of the difference, as squared error and KL divergence do (no absolute values, no root of the whole)"
        )


def _joined(tensors: list[Tensor]) -> Tensor:
    return torch.cat([x.flatten(1) for x in tensors], 1)


def _split(vectors: Tensor, like: list[Tensor]) -> list[Tensor]:
    parts = vectors.split([x[0].numel() for x in like], 1)
    return [part.reshape(x.shape) for part, x in zip(parts, like, strict=True)]


def _lanczos(product: Callable[[Tensor], Tensor], start: Tensor) -> Tensor:
    """Return H^1/2 times one vector for each example, (N, D), by Lanczos iteration with full orthogonalization."""
    length = start.norm(dim=1, keepdim=True)
    basis = [start / length.clamp_min(torch.finfo(start.dtype).tiny)]
    steps = min(start.shape[1], ROOT_STEPS, max(2, ROOT_MEMORY // (start.numel() * start.element_size())))
    small = start.new_zeros(len(start), steps, steps)
    for step in range(steps):
        turned = product(basis[-1])
        small[:, step, step] = (turned * basis[-1]).sum(1)
        for _ in range(2):
            for vector in basis:
                turned = turned - (turned * vector).sum(1, keepdim=True) * vector
        beta = turned.norm(dim=1)
        beta = torch.where(beta > 1e-5 * small.abs().amax((1, 2)), beta, torch.zeros_like(beta))
        if step + 1 < steps:
            small[:, step, step + 1] = small[:, step + 1, step] = beta
            basis.append(torch.where(beta[:, None] > 0, turned / beta.clamp_min(1e-30)[:, None], torch.zeros_like(turned)))
    if not bool(torch.isfinite(small).all()):
        return torch.full_like(start, torch.nan)
    values, vectors = torch.linalg.eigh(small.double())
    weights = (vectors * values.clamp_min(0).sqrt()[:, None]) @ vectors[:, 0, :, None]  # of the basis, (N, steps, 1)
    found = torch.stack([weight[:, None] * vector for weight, vector in zip(weights[..., 0].to(start).T, basis, strict=True)])
    result: Tensor = length * found.sum(0)
    return result


def _power(reference: Tensor) -> Tensor:
    return reference.detach().float().square().mean().clamp_min(1e-30)


def _evaluated(outputs: Any, reference: Any, harm: Harm, *, create_graph: bool = False) -> tuple[list[Tensor], Tensor]:
    """Return fresh leaves in place of the outputs, and the harm as a function of them."""
    leaves = [tensor.detach().float().requires_grad_() for tensor in floats(outputs)]
    remaining = iter(leaves)
    replaced = map_tensors(lambda tensor: next(remaining) if tensor.is_floating_point() else tensor, outputs)
    with torch.enable_grad():
        value = harm(replaced, reference)
    if not isinstance(value, Tensor) or value.numel() != 1:
        given = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(f"harm returned {given}; it must return one differentiable number, the batch's mean")
    if not value.requires_grad:
        raise ValueError("harm's answer does not depend differentiably on the outputs; use torch operations on them throughout")
    with torch.enable_grad():
        return leaves, value.reshape(())
