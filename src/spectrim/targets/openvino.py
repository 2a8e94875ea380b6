"""OpenVINO on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

import numpy as np
from torch import nn

from spectrim.network.calling import Example
from spectrim.targets.base import Clock, Session, Target, checked
from spectrim.targets.export import Exported, onnx

TYPES = {"f32": "float32", "bf16": "bfloat16", "f16": "float16"}


@dataclass(frozen=True)
class OpenVINO(Target):
    """OpenVINO on the CPU: one stream, the latency hint.

    Attributes:
        precision: That layers compute in. OpenVINO itself would take bf16 on CPUs that have it, without saying so.

    Example:
        >>> OpenVINO(precision="bf16").threads
        1
    """

    precision: Literal["f32", "bf16", "f16"] = "f32"
    title: ClassVar[str] = "OpenVINO"
    word: ClassVar[str] = "openvino"
    modules: ClassVar[tuple[str, ...]] = ("onnx", "onnxscript", "openvino")
    extra: ClassVar[str] = "openvino"

    def __post_init__(self) -> None:
        """Check the values."""
        super().__post_init__()
        if self.precision not in TYPES:
            raise ValueError(f"precision is {self.precision!r}; it must be one of {', '.join(TYPES)}")

    def load(self, model: nn.Module, example: Example) -> Session:
        """Return a session of the network as an ONNX file.

        Raises:
            ValueError: Also if this CPU does not compute in the precision.
        """
        self.check()
        file = onnx(model, example, self.title)
        clock: Clock = "process" if self.threads == 1 else "wall"
        session = Session(self._ready(file), len(file.data), clock, partial(self._ready, file))
        return checked(session, file.network, file.example, self.precision)

    def _ready(self, file: Exported) -> Callable[[], Any]:
        """Return what does one forward.

        Raises:
            ValueError: If this CPU does not compute in the precision.
        """
        import openvino

        core = openvino.Core()
        settings = {
            "INFERENCE_NUM_THREADS": self.threads,
            "NUM_STREAMS": 1,
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": self.precision,
        }
        compiled = core.compile_model(core.read_model(file.data), "CPU", settings)
        used = compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
        if used != self.precision:
            raise ValueError(f"this CPU does not compute in {self.precision} in OpenVINO, but in {used}; ask for that")
        request = compiled.create_infer_request()
        for name, values in zip(file.names, file.arrays, strict=True):
            request.set_tensor(name, openvino.Tensor(values, shared_memory=False))
        return partial(_infer, request)

    def describe(self) -> dict[str, str]:
        """Return version, CPU, threads and precision."""
        self.check()
        import openvino

        return self._described(openvino.__version__.partition("-")[0], self.precision)


def _infer(request: Any) -> list[np.ndarray]:
    """Return the outputs of one forward."""
    request.infer()
    return [tensor.data for tensor in request.output_tensors]
