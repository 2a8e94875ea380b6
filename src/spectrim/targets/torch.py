"""Measured time of whole models: interleaved, one thread, medians with their spread."""

from __future__ import annotations

import statistics as numbers
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from spectrim.network.calling import Example, call, evaluation_mode, tensors_of


@dataclass(frozen=True)
class Latency:
    """Milliseconds of one forward of the example's batch: median and quartiles over the runs."""

    median_ms: float
    low_ms: float
    high_ms: float
    runs: int
    threads: int


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
            _once(model, example)
        start = time.perf_counter()
        while len(times[0]) < 5 or (time.perf_counter() - start < seconds * len(models) and len(times[0]) < 200):
            for model, taken in zip(models, times, strict=True):
                taken.append(_once(model, example))
    finally:
        torch.set_num_threads(before)
    return [_summary(taken, threads) for taken in times]


def _once(model: nn.Module, example: Example) -> float:
    with evaluation_mode(model), torch.no_grad():
        start = time.perf_counter()
        answer = call(model, example)
        for device in {tensor.device for tensor in tensors_of([example, answer])}:
            if device.type != "cpu" and torch.accelerator.is_available():
                torch.accelerator.synchronize(device)
        return 1000 * (time.perf_counter() - start)


def _summary(taken: list[float], threads: int) -> Latency:
    low, median, high = numbers.quantiles(taken, n=4)
    return Latency(median, low, high, len(taken), threads)
