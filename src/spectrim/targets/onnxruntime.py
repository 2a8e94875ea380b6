"""ONNX Runtime on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

from torch import nn

from spectrim.network.calling import Example
from spectrim.targets.base import Clock, Session, Target, checked
from spectrim.targets.export import Exported, onnx


@dataclass(frozen=True)
class OnnxRuntime(Target):
    """ONNX Runtime on the CPU, in single precision, all of its graph optimizations on.

    Example:
        >>> OnnxRuntime(threads=2).word
        'onnxruntime'
    """

    title: ClassVar[str] = "ONNX Runtime"
    word: ClassVar[str] = "onnxruntime"
    modules: ClassVar[tuple[str, ...]] = ("onnx", "onnxruntime", "onnxscript")
    extra: ClassVar[str] = "export"

    def load(self, model: nn.Module, example: Example) -> Session:
        """Return a session of the network as an ONNX file."""
        self.check()
        file = onnx(model, example, self.title)
        clock: Clock = "process" if self.threads == 1 else "wall"
        session = Session(self._ready(file), len(file.data), clock, partial(self._ready, file))
        return checked(session, file.network, file.example)

    def _ready(self, file: Exported) -> Callable[[], Any]:
        """Return what does one forward."""
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        runtime = onnxruntime.InferenceSession(file.data, options, providers=["CPUExecutionProvider"])
        return partial(runtime.run, None, dict(zip(file.names, file.arrays, strict=True)))

    def describe(self) -> dict[str, str]:
        """Return version, CPU and threads."""
        self.check()
        import onnxruntime

        return self._described(onnxruntime.__version__, "f32")
