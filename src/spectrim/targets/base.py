"""The interface of every target: what makes a network ready to run on a runtime, and what the runtime likes."""

from __future__ import annotations

import math
import platform
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from spectrim.core.layer import Layer
from spectrim.network.calling import Example, seeded, tensors_of

Clock = Literal["process", "wall"]
MOVED = (
    64  # multiply-adds that moving one number of a Pivot's outputs takes as long as: copied, often reordered (by one ResNet-18)
)
MOST = 1024  # threads
TOLERANCE = {"f32": 1e-3, "f16": 0.03, "bf16": 0.1}  # of outputs: norm of the difference, relative to the norm


@dataclass(frozen=True, eq=False)
class Session:
    """A network that is ready to run on its example.

    Attributes:
        forward: Does one forward on the example and returns what came out; it has finished when it returns.
        size: Bytes of the exported file, or of parameters and buffers where there is none.
        clock: Which time counts: CPU time of this process on one CPU thread, else that of the wall.
        fresh: Makes another `forward` from the file, whose memory `memory.peak` measures; None where that is no CPU's.
    """

    forward: Callable[[], Any]
    size: int
    clock: Clock = "process"
    fresh: Callable[[], Callable[[], Any]] | None = None

    def run(self) -> Any:
        """Do one forward and return what came out."""
        return self.forward()

    def outputs(self) -> list[Tensor]:
        """Return what one forward gives as tensors on the CPU, in order."""
        found = self.run()
        arrays = found if isinstance(found, list) and all(isinstance(value, np.ndarray) for value in found) else None
        return [torch.from_numpy(array.copy()) for array in arrays] if arrays else [x.cpu() for x in tensors_of(found)]


@dataclass(frozen=True)
class Target(ABC):
    """A runtime on a device. Subclasses are frozen dataclasses; their fields are what a user may set.

    Attributes:
        threads: CPU threads that one forward uses.
        title: Name of the runtime in messages.
        word: The same on the command line.
        modules: What must be installed.
        extra: Of this package: what installs it.
    """

    threads: int = 1
    title: ClassVar[str]
    word: ClassVar[str]
    modules: ClassVar[tuple[str, ...]] = ()
    extra: ClassVar[str] = ""

    def __post_init__(self) -> None:
        """Check the number of threads."""
        if not isinstance(self.threads, int) or not 1 <= self.threads <= MOST:
            raise ValueError(f"threads is {self.threads!r}; it must be a whole number from 1 to {MOST}")

    @property
    def clock(self) -> Clock:
        """Which time counts on the CPU: that of this process on one thread, else that of the wall."""
        return "process" if self.threads == 1 else "wall"

    def check(self) -> None:
        """Check that the runtime is there.

        Raises:
            ImportError: If it is not; the text says what to install.
        """
        if missing := self.missing():
            raise ImportError(
                f"{self.title} needs {' and '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} not installed: "
                f'pip install "spectrim[{self.extra}]"'
            )

    def missing(self) -> list[str]:
        """Return the modules that are not installed."""
        return [name for name in self.modules if find_spec(name) is None]

    @abstractmethod
    def load(self, model: nn.Module, example: Example) -> Session:
        """Export a network (a copy of it, in eval mode), and make it ready to run on this example.

        Raises:
            ImportError: If the runtime is not installed.
            ValueError: If it cannot be exported, or answers otherwise than the network.
        """

    def multiple(self, width: int) -> int:
        """Return which multiple an inner width of a factorized layer likes.

        Args:
            width: Outer channels of the layer.
        """
        return 4

    def predict(self, part: Layer) -> float:
        """Return the time of a convolution or linear layer on one example, in units that all parts share.

        (Cin / groups * kernel + 20) * ceil16(Cout) * positions: channels are computed in blocks of 16. Mean error over whole
        networks 5 to 7 %. The outputs of a `Pivot` are moved; other weightless parts cost nothing.

        Args:
            part: As shapes; each call counts.
        """
        if not part.weighted:
            return 0.0
        outputs, inputs = part.channels
        passed, moved = (inputs, MOVED * outputs) if part.kind == "Pivot" else (0, 0)
        sites = part.inputs if part.transposed else part.outputs
        positions = sum(math.prod(shape[1:] if part.kernel else shape[:-1]) for shape in sites)
        each = (inputs / part.groups * math.prod(part.kernel) + 20) * 16 * math.ceil((outputs - passed) / 16)
        return (each + moved) * positions

    @abstractmethod
    def describe(self) -> dict[str, str]:
        """Return what times depend on: runtime, version, CPU, threads, precision. For records and names of cache entries."""

    def _described(self, version: str, precision: str, device: str | None = None) -> dict[str, str]:
        """Return `describe`'s dictionary."""
        given = {"target": self.title, "version": version, "device": device or processor()}
        return {**given, "threads": str(self.threads), "precision": precision}


@cache
def processor() -> str:
    """Return the name of the CPU, as the system tells it."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.is_file() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return (named or [platform.processor() or platform.machine() or "unknown"])[0]


def checked(session: Session, model: nn.Module, example: Example, precision: str = "f32") -> Session:
    """Return the session if it answers as the network does.

    Args:
        session: What was exported.
        model: What it was exported from.
        example: The batch that both get.
        precision: `f32`, `f16` or `bf16`: decides how far the outputs may be from each other (`TOLERANCE`).

    Raises:
        ValueError: If a floating-point output has another shape, or differs by more.
    """
    apart = difference(session.outputs(), [x.cpu() for x in tensors_of(seeded(model, example))])
    if not apart <= TOLERANCE[precision]:
        raise ValueError(
            f"the exported network answers otherwise than the network: outputs differ by {100 * apart:.2g} % of their "
            f"norm, and {100 * TOLERANCE[precision]:g} % is allowed in {precision} (do random numbers decide in eval mode?)"
        )
    return session


def difference(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> float:
    """Return the largest difference of floating-point outputs: its norm relative to that of the wanted one.

    Raises:
        ValueError: If outputs have other shapes.
    """
    return relative(squares(found, wanted))


def squares(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> Tensor:
    """Return (outputs, 2): squared norms of the differences and of the wanted ones, of outputs that are floating-point.

    Raises:
        ValueError: If outputs have other shapes.
    """
    if [x.shape for x in found] != [x.shape for x in wanted]:
        shapes = " and ".join(str([tuple(x.shape) for x in tensors]) for tensors in (found, wanted))
        raise ValueError(f"the exported network has outputs of other shapes than the network: {shapes}")
    pairs = [(x.double(), y.double()) for x, y in zip(found, wanted, strict=True) if y.is_floating_point()]
    norms = [[float((x - y).square().sum()), float(y.square().sum())] for x, y in pairs]
    return torch.tensor(norms, dtype=torch.float64).reshape(-1, 2)


def relative(squares: Tensor) -> float:
    """Return the largest relative difference of what `squares` returned, or sums of it; NaN if there is one."""
    apart = squares[:, 0].sqrt() / squares[:, 1].sqrt().clamp_min(1e-12)
    return float(apart.max()) if len(apart) else 0.0
