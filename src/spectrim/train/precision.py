"""Which number format the forward pass of a training step computes in."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any, Literal

import torch

Precision = Literal["auto", "float32", "bfloat16"]


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager[Any]:
    """Return the context to compute outputs and loss in.

    Args:
        device: Where the network is.
        precision: `float32`, `bfloat16` autocast, or `auto`, which is the latter where the device is fast at it.
    """
    if precision == "float32" or (precision == "auto" and not has_fast_bfloat16(device)):
        return contextlib.nullcontext()
    return torch.autocast(device.type, torch.bfloat16)


def has_fast_bfloat16(device: torch.device) -> bool:
    """Return whether a device computes bfloat16 products itself rather than emulating them.

    CPUs do with AVX-512 BF16, CUDA devices from compute capability 8.0 (not T4 and V100). What a CPU has is public since a
    later torch than the oldest supported one; before that, a CPU is taken for slow.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    capabilities: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return device.type == "cpu" and bool(capabilities.get("avx512_bf16", False))
