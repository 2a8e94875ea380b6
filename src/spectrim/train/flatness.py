"""How flat a minimum is in the low-rank direction: the loss along the way from the weights to their reconstruction."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from spectrim.core.deprecation import renamed
from spectrim.core.figures import Curve
from spectrim.core.plan import Plan
from spectrim.factorize.algebra import from_canonical
from spectrim.network.accuracy import check_labels
from spectrim.network.build import working_weight
from spectrim.network.calling import call, evaluation_mode, tensors_of
from spectrim.network.copying import duplicate
from spectrim.network.surgery import module_of
from spectrim.train.distort import Distortion


@renamed(twist="distortion")
@torch.no_grad()
def loss_along(
    model: nn.Module,
    plan: Plan,
    *,
    batches: Iterable[tuple[Tensor, Tensor]],
    label: str = "",
    points: int = 9,
    distortion: Distortion | None = None,
) -> Curve:
    """Measure the loss on the straight way from the network to its low-rank reconstruction; the network is not changed.

    At t the planned kernels are W + t (W_r - W): W the network's own, W_r of the plan's ranks.

    Args:
        model: A classifier.
        plan: Which layers, methods and ranks.
        batches: Pairs of inputs (N, ...) and labels (N,); read once for each point, so a list or a loader, no generator.
        label: Name of the curve.
        points: How many values of t, at least 2, evenly from 0 to 1.
        distortion: That trained the network for this plan: the way then leads to what its `finish()` will return (for CP
            from the last factors). By default kernels are decomposed from the beginning, in the weight norm.

    Returns:
        The curve, with losses in nats.

    Raises:
        ValueError: If the plan is empty, does not fit the network or is not the distortion's, or there are no images.

    Reference:
        Lee, Kwon, Kim, Wei: Learning low-rank approximation for CNNs (arXiv 1905.10145), section 2, "flat minima".
    """
    if not isinstance(points, int) or points < 2:
        raise ValueError(f"points is {points}; it must be a whole number of at least 2: both ends of the way")
    if distortion is not None and distortion.plan != plan:
        raise ValueError("the distortion has another plan than the one given; give distortion.plan")
    moved = duplicate(model)
    kernels = (distortion or Distortion(moved, plan)).reconstructions(moved)
    starts = {name: module_of(moved, option).weight.detach().clone() for name, option in plan.items()}  # type: ignore[operator]
    ends = {name: from_canonical(option.layer, kernels[name]).to(starts[name]) for name, option in plan.items()}
    distance = _relative_distance(moved, plan, kernels)
    positions = tuple(index / (points - 1) for index in range(points))
    losses, hits = [], []
    for t in positions:
        for name, start in starts.items():
            moved.get_submodule(name).weight.copy_(torch.lerp(start, ends[name], t))  # type: ignore[operator]
        loss, hit = _loss_and_hit(moved, batches)
        losses.append(loss)
        hits.append(hit)
    count = len(losses[0])
    return Curve(
        label,
        distance,
        positions,
        tuple(float(loss.mean()) for loss in losses),
        tuple(float(loss.std()) / max(count - 1, 1) ** 0.5 for loss in losses),
        tuple(float(hit.mean()) for hit in hits),
        count,
    )


def _relative_distance(model: nn.Module, plan: Plan, kernels: Mapping[str, Tensor]) -> float:
    """Return the norm of what all reconstructions miss, relative to the norm of all planned kernels."""
    missed = total = 0.0
    for name, option in plan.items():
        weight = working_weight(option.layer, module_of(model, option))
        missed += float((weight - kernels[name]).square().sum())
        total += float(weight.square().sum())
    return (missed / total) ** 0.5 if total else 0.0


def _loss_and_hit(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Return the cross-entropy (N,) of every example in nats, and whether its label had the largest logit, 1 or 0 (N,)."""
    device = next(model.parameters()).device
    losses, hits = [], []
    with evaluation_mode(model):
        for inputs, labels in batches:
            logits = tensors_of(call(model, inputs.to(device)))[0]
            check_labels(labels, logits)
            losses.append(functional.cross_entropy(logits.float(), labels.to(device), reduction="none").cpu())
            hits.append((logits.argmax(1).cpu() == labels.cpu()).double())
    if not losses:
        raise ValueError("there is nothing to measure the loss on: the batches are empty (a generator can be read only once)")
    return torch.cat(losses), torch.cat(hits)
