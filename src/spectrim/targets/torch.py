"""Eager PyTorch on the CPU or a GPU, and files of torch.export."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import nn

from spectrim.network.calling import Example, call, map_tensors, tensors_of
from spectrim.network.copying import duplicate
from spectrim.network.counting import stored
from spectrim.targets.base import Clock, Session, Target, checked
from spectrim.targets.export import Program, exporting
from spectrim.targets.files import Format, Run

PRECISIONS = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Torch(Target):
    """Eager PyTorch.

    Attributes:
        device: Such as "cpu" or "cuda"; None leaves the network where it is.
        precision: Of weights and inputs; None leaves both as they are.
        layout: Of four-dimensional tensors in memory.

    Example:
        >>> session = Torch().load(nn.Conv2d(3, 4, 3), torch.zeros(1, 3, 8, 8))
        >>> session.size, [tuple(tensor.shape) for tensor in session.outputs()]
        (448, [(1, 4, 6, 6)])
    """

    device: str | None = None
    precision: Literal["f32", "f16", "bf16"] | None = None
    layout: Literal["contiguous", "channels_last"] = "contiguous"
    title: ClassVar[str] = "PyTorch"
    word: ClassVar[str] = "torch"

    def __post_init__(self) -> None:
        """Check the values."""
        super().__post_init__()
        if self.precision not in (None, *PRECISIONS):
            raise ValueError(f"precision is {self.precision!r}; it must be one of {', '.join(PRECISIONS)}, or None")
        if self.layout not in ("contiguous", "channels_last"):
            raise ValueError(f"layout is {self.layout!r}; it must be 'contiguous' or 'channels_last'")

    def load(self, model: nn.Module, example: Example) -> Session:
        """Return a session on a copy of the network."""
        forward, devices, size = self._ready(model, example)
        clock: Clock = "wall" if devices else self.clock
        session = Session(forward, size, clock, None if devices else lambda: self._ready(model, example)[0])
        changed = self != Torch(self.threads)  # else it is the network itself
        return checked(session, model, example, self.precision or "f32") if changed else session

    def _ready(self, model: nn.Module, example: Example) -> tuple[Callable[[], Any], set[torch.device], int]:
        """Return what does one forward, the devices besides the CPU that take part, and the bytes of the weights."""
        network = duplicate(model).eval()
        given = map_tensors(partial(_moved, target=self), example)
        network.to(self.device, None if self.precision is None else PRECISIONS[self.precision])
        if self.layout == "channels_last":
            network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        weights = [*network.parameters(), *network.buffers()]
        devices = {tensor.device for tensor in tensors_of([given, weights]) if tensor.device.type != "cpu"}
        return partial(forward, network, given, devices, self.threads), devices, stored(network)

    def describe(self) -> dict[str, str]:
        """Return version, device, threads and precision."""
        device = None
        if self.device is not None and torch.device(self.device).type == "cuda":
            device = torch.cuda.get_device_name(self.device)
        precision = self.precision or "precision as given"
        layout = {} if self.layout == "contiguous" else {"layout": self.layout}
        return {**self._described(torch.__version__, precision, device), **layout}


def _moved(tensor: torch.Tensor, target: Torch) -> torch.Tensor:
    """Return a tensor of the example where and as the target has it."""
    precision = PRECISIONS.get(target.precision or "") if tensor.is_floating_point() else None
    new = tensor.to(target.device or tensor.device, precision or tensor.dtype)
    return new.contiguous(memory_format=torch.channels_last) if target.layout == "channels_last" and new.ndim == 4 else new


def forward(network: nn.Module, example: Example, devices: set[torch.device], threads: int) -> Any:
    """Return what the network returns, when every device that takes part has finished."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.no_grad():
            answer = call(network, example)
        if torch.accelerator.is_available():
            for device in devices:
                torch.accelerator.synchronize(device)
    finally:
        torch.set_num_threads(before)
    return answer


class Pt2(Format):
    """A program of torch.export, which `torch.export.load` reads; metadata are its extra file `spectrim.json`."""

    title = "torch.export"
    word = "pt2"
    suffix = ".pt2"
    target = Torch()

    def write(self, program: Program, path: Path, metadata: Mapping[str, str]) -> None:
        """Write one file."""
        with exporting(self.title, program.exported):
            torch.export.save(program.exported, path, extra_files={"spectrim.json": json.dumps(dict(metadata), indent=1)})

    def open(self, path: Path) -> Run:
        """Return what runs the file in PyTorch."""
        network = torch.export.load(path).module()
        return lambda example: tensors_of(forward(network, example, set(), self.target.threads))
