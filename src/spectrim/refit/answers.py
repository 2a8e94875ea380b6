"""The scale of a classifier's answers, the last step of the refit.

Least squares answers with the mean of what the original network may have said, and a mean varies less: logits are drawn
together, and the compressed network is less sure than the original. One factor pays that back and leaves the largest class
the largest. It is the temperature of Guo et al. 2017, fitted to the original network in place of labels.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from spectrim.network.calling import Example, call, evaluation_mode
from spectrim.sensitivity.divergence import floats, is_logits

RANGE = 0.5, 2.0
ROUNDING = 1e-3  # of the largest logarithm of a probability


@torch.no_grad()
def scale_answers(model: nn.Module, small: nn.Module, name: str, batches: Sequence[Example]) -> float:
    """Scale the layer that answers so that the logits come closest to the original network's, in KL divergence.

    Args:
        model: The original network.
        small: The compressed network, of which the layer's parameters change.
        name: The layer.
        batches: Inputs that no fit has seen.

    Returns:
        The factor; 1 where the answers are no logits or not the layer's own, and where the gain is not more than its standard
        error over images.
    """
    with evaluation_mode(model), evaluation_mode(small):
        pairs = [(call(model, batch), call(small, batch)) for batch in batches]
        if not pairs or not is_logits(pairs[0][0]):
            return 1.0
        wanted, found = (torch.cat([floats(pair[side])[0] for pair in pairs]).double() for side in (0, 1))
        factor = _closest(wanted, found)
        module = small.get_submodule(name)
        before = copy.deepcopy(module.state_dict())
        if factor == 1 or not scale(module, factor):
            return 1.0
        scaled, plain = floats(call(small, batches[0]))[0].log_softmax(1), factor * floats(pairs[0][1])[0]
        rounding = max(ROUNDING, 4 * torch.finfo(plain.dtype).eps) * scaled.abs().max()
        if bool((scaled - plain.log_softmax(1)).abs().max() <= rounding):
            return factor
        module.load_state_dict(before)
    return 1.0


def _closest(wanted: Tensor, found: Tensor) -> float:
    """Return the factor of logits (N, K) that brings them closest to others; 1 where that gains no more than its error."""
    from scipy.optimize import minimize_scalar  # takes a second to import

    target = wanted.log_softmax(1)

    def harms(factor: float) -> Tensor:
        return functional.kl_div((factor * found).log_softmax(1), target, log_target=True, reduction="none").sum(1)

    factor = float(minimize_scalar(lambda each: float(harms(each).mean()), bounds=RANGE, method="bounded").x)  # it is convex
    gains = harms(1.0) - harms(factor)
    return factor if len(gains) > 1 and float(gains.mean()) > float(gains.std()) / math.sqrt(len(gains)) else 1.0


@torch.no_grad()
def scale(module: nn.Module, factor: float) -> bool:
    """Scale what a chain of linear layers answers: its first weight, and every bias. False where it has no weight."""
    named = [(name.rpartition(".")[2], parameter) for name, parameter in module.named_parameters()]
    weights = [parameter for name, parameter in named if name == "weight"]
    for parameter in (*weights[:1], *(parameter for name, parameter in named if name == "bias")):
        parameter.mul_(factor)
    return bool(weights)
