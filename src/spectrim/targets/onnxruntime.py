"""ONNX Runtime on the CPU, and ONNX files."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from spectrim.network.calling import Example, tensors_of
from spectrim.targets.base import Session, Target, checked
from spectrim.targets.export import Exported, Program, array, exporting, model_proto, onnx
from spectrim.targets.files import Format, Run

FLOAT = frozenset({"Softmax", "LogSoftmax", "Sigmoid", "Cast"})  # operators that stay in single precision


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
        session = Session(self._ready(file), len(file.data), self.clock, partial(self._ready, file))
        return checked(session, file.network, file.example)

    def _ready(self, file: Exported) -> Callable[[], Any]:
        """Return what does one forward."""
        runtime = _session(file.data, self.threads)
        return partial(runtime.run, None, dict(zip(file.names, file.arrays, strict=True)))

    def describe(self) -> dict[str, str]:
        """Return version, CPU and threads."""
        self.check()
        import onnxruntime

        return self._described(onnxruntime.__version__, "f32")


class Onnx(Format):
    """ONNX, written by torch's exporter and run by ONNX Runtime; int8 by its static quantization, a scale a channel."""

    title = "ONNX"
    word = "onnx"
    suffix = ".onnx"
    target = OnnxRuntime()
    int8 = ("export", "onnxruntime")

    def write(self, program: Program, path: Path, metadata: Mapping[str, str]) -> None:
        """Write one file; metadata are its properties."""
        import onnx

        model, _ = model_proto(program, self.title)
        onnx.helper.set_model_props(model, dict(metadata))
        onnx.save(model, path)

    def open(self, path: Path) -> Run:
        """Return what runs a file in ONNX Runtime."""
        runtime = _session(str(path))
        names = [value.name for value in runtime.get_inputs()]
        return lambda example: _outputs(runtime, _feed(names, example))

    def quantize(self, program: Program, path: Path, images: Sequence[Example], metadata: Mapping[str, str]) -> None:
        """Quantize weights and activations; norms are put into the layers before them first.

        Weights use 7 bits, since CPUs without VNNI add in 16 bits and would overflow.
        """
        import onnx
        from onnxruntime.quantization import QuantType, quantize_static
        from onnxruntime.quantization.shape_inference import quant_pre_process

        names = [value.name for value in _session(str(path)).get_inputs()]
        with exporting(f"{self.title} in int8"), tempfile.TemporaryDirectory(dir=path.parent) as folder:
            ready, small = Path(folder) / "ready.onnx", Path(folder) / "int8.onnx"
            quant_pre_process(path, ready, skip_symbolic_shape=True)
            types = {node.op_type for node in onnx.load(ready).graph.node} - FLOAT
            kinds = {
                "activation_type": QuantType.QUInt8,
                "weight_type": QuantType.QInt8,
                "per_channel": True,
                "reduce_range": True,
            }
            quantize_static(ready, small, _Reader(names, images), op_types_to_quantize=sorted(types), **kinds)
            model = onnx.load(small)
            onnx.helper.set_model_props(model, dict(metadata))
            onnx.save(model, path)


class _Reader:
    """Batches as the quantizer asks for them; what it needs of its own `CalibrationDataReader` is `get_next`."""

    def __init__(self, names: Sequence[str], images: Sequence[Example]) -> None:
        self.feeds = (_feed(names, example) for example in images)

    def get_next(self) -> dict[str, np.ndarray] | None:
        """Return the next batch, or None."""
        return next(self.feeds, None)


def _session(file: bytes | str, threads: int = 1) -> Any:
    """Return a session of ONNX Runtime."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])


def _feed(names: Sequence[str], example: Example) -> dict[str, np.ndarray]:
    """Return a batch by the names of the inputs."""
    return dict(zip(names, map(array, tensors_of(example)), strict=True))


def _outputs(runtime: Any, feed: Mapping[str, np.ndarray]) -> list[Tensor]:
    """Return what came out."""
    return [torch.from_numpy(np.array(values)) for values in runtime.run(None, feed)]
