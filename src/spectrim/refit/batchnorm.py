"""BatchNorm re-estimation: statistics of the compressed network's own activations."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import nn

from spectrim.network.calling import Example, batch_size, call, evaluation_mode, joined
from spectrim.network.copying import duplicate


def reestimate_batchnorm(model: nn.Module, batches: Sequence[Example]) -> nn.Module:
    """Return a copy whose BatchNorm statistics are the averages over the batches; nothing else changes.

    Norms that the forward never calls keep their statistics, and all do where there is only one example.

    Args:
        model: The compressed network.
        batches: Calibration inputs; one example has no variance, so it joins the batch before it.
    """
    small = duplicate(model)
    norms = [module for module in small.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    norms = [norm for norm in norms if norm.track_running_stats]
    with evaluation_mode(small), torch.no_grad():
        before = [(norm.momentum, copy.deepcopy(norm.state_dict())) for norm in norms]
        for norm in norms:
            norm.train()
            norm.reset_running_stats()
            norm.momentum = None  # a cumulative average
        for batch in at_least_two(batches):
            call(small, batch)
        for norm, (momentum, state) in zip(norms, before, strict=True):
            norm.momentum = momentum
            if not norm.num_batches_tracked:
                norm.load_state_dict(state)
    return small


def at_least_two(batches: Sequence[Example]) -> list[Example]:
    """Return batches of at least two examples each; nothing if there is only one in all."""
    result: list[Example] = []
    for index, batch in enumerate(batches):
        single = batch_size(batch) == 1 and index == len(batches) - 1
        if result and (single or batch_size(result[-1]) == 1):
            result[-1] = joined([result[-1], batch])
        elif not single:
            result.append(batch)
    return result
