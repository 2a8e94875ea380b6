"""How flat a minimum is in the low-rank direction: the loss along the way from the weights to their reconstruction."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional

from spectrim.core.plan import Plan
from spectrim.core.records import Curve
from spectrim.factorize.algebra import from_canonical
from spectrim.network.accuracy import check_labels
from spectrim.network.build import working_weight
from spectrim.network.calling import call, evaluation_mode, tensors_of
from spectrim.network.copying import duplicate
from spectrim.network.surgery import module_of
from spectrim.train.distort import Distortion


@torch.no_grad()
def loss_along(
    model: nn.Module,
    plan: Plan,
    *,
    batches: Iterable[tuple[Tensor, Tensor]],
    label: str = "",
    points: int = 9,
    twist: Distortion | None = None,
) -> Curve:
    """Measure the loss on the straight way from the network to its low-rank reconstruction; the network is not changed.

    Args:
        model: A classifier.
        plan: Which layers, methods and ranks.
        batches: Pairs (inputs, labels); read once for each point, so a list or a loader, no generator.
        label: Name of the curve.
        points: How many values of t, at least 2.
        twist: The distortion that trained the network for this plan: the way then leads to what its `finish()` will return
            (for CP from the last factors). By default kernels are decomposed from the beginning, in the weight norm.

    Raises:
        ValueError: If the plan is empty, does not fit the network or is not the twist's, or there are no images.

    Reference:
        Lee, Kwon, Kim, Wei: Learning low-rank approximation for CNNs (arXiv 1905.10145), section 2, "flat minima".
    """
    if not isinstance(points, int) or points < 2:
        raise ValueError(f"points is {points}; it must be a whole number of at least 2: both ends of the way")
    if twist is not None and twist.plan != plan:
        raise ValueError("the twist has another plan than the one given; give twist.plan")
    walker = duplicate(model)
    reconstructed = (twist or Distortion(walker, plan)).reconstructions(walker)
    ends = {}
    missed = total = 0.0
    for name, option in plan.items():
        module, merged = module_of(walker, option), reconstructed[name]
        weight = working_weight(option.layer, module)
        start = module.weight.detach().clone()  # type: ignore[operator]
        ends[name] = start, from_canonical(option.layer, merged).to(start)
        missed += float((weight - merged).square().sum())
        total += float(weight.square().sum())
    ways = tuple(index / (points - 1) for index in range(points))
    rows = []
    for t in ways:
        for name, (start, end) in ends.items():
            walker.get_submodule(name).weight.copy_(torch.lerp(start, end, t))  # type: ignore[operator]
        rows.append(_measured(walker, batches))
    losses, hits = [row[0] for row in rows], [row[1] for row in rows]
    count = len(losses[0])
    return Curve(
        label,
        (missed / total) ** 0.5 if total else 0.0,
        ways,
        tuple(float(loss.mean()) for loss in losses),
        tuple(float(loss.std()) / max(count - 1, 1) ** 0.5 for loss in losses),
        tuple(float(hit.mean()) for hit in hits),
        count,
    )


def _measured(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Return cross-entropy and hit of every example."""
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
