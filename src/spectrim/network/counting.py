"""What a network costs, counted on the module itself."""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from spectrim.core.cost import Cost
from spectrim.network.calling import Example, batch_size, call, evaluation_mode, unwrap


def cost(model: nn.Module, example: Example) -> Cost:
    """Return what the module itself costs: all its parameters, and the multiply-adds that torch's flop counter sees.

    Args:
        model: Any network; it is not changed.
        example: A batch of inputs; the MACs returned are those of one example of it.

    Returns:
        Parameters (shared ones once) and MACs of one forward of one example.

    Raises:
        ValueError: If the example has no batch dimension.
    """
    model = unwrap(model)
    with evaluation_mode(model), torch.no_grad(), FlopCounterMode(display=False) as counter:
        call(model, example)
    params = sum(parameter.numel() for parameter in model.parameters())
    return Cost(params, round(counter.get_total_flops() / 2 / batch_size(example)))
