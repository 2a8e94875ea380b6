"""Measured time of whole models: interleaved, one thread, medians with their spread.

`torch.utils.benchmark` does not serve: its `Timer` runs one statement and warms up before each sample, so models cannot take
turns, and its `timer()` waits for the current device only, also where the example is on another.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence

import torch
from torch import nn

from spectrim.core.records import Latency
from spectrim.network.calling import Example, call, evaluation_mode, tensors_of


def measure(models: Sequence[nn.Module], example: Example, *, threads: int = 1, seconds: float = 1.5) -> list[Latency]:
    """Time several models on the same input, one after the other in turn, so that a drift of the machine hits all alike.

    Args:
        models: What to compare.
        example: One batch.
        threads: CPU threads used; restored afterwards.
        seconds: About how long to measure, per model; at least five runs each.

    Returns:
        One `Latency` per model, in order.
    """
    before = torch.get_num_threads()
    times: list[list[float]] = [[] for _ in models]
    torch.set_num_threads(threads)
    try:
        for model in models:
            _time_once(model, example)
        start = time.perf_counter()
        while len(times[0]) < 5 or (time.perf_counter() - start < seconds * len(models) and len(times[0]) < 200):
            for model, taken in zip(models, times, strict=True):
                taken.append(_time_once(model, example))
    finally:
        torch.set_num_threads(before)
    return [_summary(taken, threads) for taken in times]


def _time_once(model: nn.Module, example: Example) -> float:
    """Return the milliseconds of one forward pass, until every device that takes part has finished."""
    with evaluation_mode(model), torch.no_grad():
        start = time.perf_counter()
        answer = call(model, example)
        for device in {tensor.device for tensor in tensors_of([example, answer])}:
            if device.type != "cpu" and torch.accelerator.is_available():
                torch.accelerator.synchronize(device)
        return 1000 * (time.perf_counter() - start)


def _summary(taken: Sequence[float], threads: int) -> Latency:
    low, median, high = statistics.quantiles(taken, n=4)
    return Latency(median, low, high, len(taken), threads)
