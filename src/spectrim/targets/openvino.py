"""OpenVINO on the CPU, and its files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import nn

from spectrim.network.calling import Example, tensors_of
from spectrim.network.reorder import unmoved
from spectrim.targets.base import Session, Target, checked
from spectrim.targets.export import Exported, Program, array, exporting, model_proto, onnx, traced
from spectrim.targets.files import Format, Run

FLOAT = (
    "Concat",
)  # operators that stay in single precision: OpenVINO 2026.4 crashes where it compiles a `Pivot` with it in int8
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
        session = Session(self._ready(file), len(file.data), self.clock, partial(self._ready, file))
        return checked(session, file.network, file.example, self.precision)

    def _ready(self, file: Exported) -> Callable[[], Any]:
        """Return what does one forward.

        Raises:
            ValueError: If this CPU does not compute in the precision.
        """
        import openvino

        compiled = self.compiled(file.data)
        used = compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
        if used != self.precision:
            raise ValueError(f"this CPU does not compute in {self.precision} in OpenVINO, but in {used}; ask for that")
        request = compiled.create_infer_request()
        for name, values in zip(file.names, file.arrays, strict=True):
            request.set_tensor(name, openvino.Tensor(values, shared_memory=False))
        return partial(_infer, request)

    def compiled(self, file: bytes | str) -> Any:
        """Return a compiled network of a file, or of what is in it."""
        import openvino

        core = openvino.Core()
        settings = {
            "INFERENCE_NUM_THREADS": self.threads,
            "NUM_STREAMS": 1,
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": self.precision,
        }
        return core.compile_model(core.read_model(file), "CPU", settings)

    def describe(self) -> dict[str, str]:
        """Return version, CPU, threads and precision."""
        self.check()
        import openvino

        return self._described(openvino.__version__.partition("-")[0], self.precision)


def _infer(request: Any) -> list[np.ndarray]:
    """Return the outputs of one forward."""
    request.infer()
    return [tensor.data for tensor in request.output_tensors]


class OpenVinoIR(Format):
    """OpenVINO's two files, .xml and .bin, with weights in single precision; int8 by NNCF."""

    title = "OpenVINO IR"
    word = "openvino"
    suffix = ".xml"
    target: ClassVar[OpenVINO] = OpenVINO()
    int8 = ("nncf", "nncf")

    def files(self, path: Path) -> list[Path]:
        """Return both files."""
        return [path, path.with_suffix(".bin")]

    def write(self, program: Program, path: Path, metadata: Mapping[str, str]) -> None:
        """Write both files, by way of ONNX; metadata are below `spectrim` in the runtime information."""
        import openvino

        model, _ = model_proto(program, self.title)
        with exporting(self.title, program.exported):
            self._save(openvino.Core().read_model(model.SerializeToString()), path, metadata)

    def open(self, path: Path) -> Run:
        """Return what runs the files in single precision, also on CPUs that have half precision."""
        compiled = self.target.compiled(str(path))
        return lambda example: [
            torch.from_numpy(np.array(values)) for values in compiled([array(x) for x in tensors_of(example)]).values()
        ]

    def quantize(self, program: Program, path: Path, images: Sequence[Example], metadata: Mapping[str, str]) -> None:
        """Quantize weights and activations; weights use 7 bits, since CPUs without VNNI add in 16 bits and would overflow."""
        import nncf
        import openvino
        from nncf.quantization.advanced_parameters import OverflowFix

        network = unmoved(program.network)  # else 2026.4 wrongly scales what int8 layers without bias made and a Gather moved
        if network is not program.network:
            for file in self.files(path):
                file.unlink()
            self.write(traced(network, program.example, self.title, dynamic=program.dynamic), path, metadata)
        feeds = [[array(x) for x in tensors_of(example)] for example in images]
        with exporting(f"{self.title} in int8"):
            model = openvino.Core().read_model(path)
            small = nncf.quantize(
                model,
                nncf.Dataset(feeds),
                subset_size=len(feeds),
                preset=nncf.QuantizationPreset.MIXED,  # zero need not be in the middle of activations
                ignored_scope=nncf.IgnoredScope(types=list(FLOAT), validate=False),
                advanced_parameters=nncf.AdvancedQuantizationParameters(overflow_fix=OverflowFix.ENABLE),
            )
            del model  # which holds the file of weights that is written anew
            for file in self.files(path):
                file.unlink()
            self._save(small, path, metadata)

    def _save(self, model: Any, path: Path, metadata: Mapping[str, str]) -> None:
        import openvino

        for name, text in metadata.items():
            model.set_rt_info(text, ["spectrim", name])
        openvino.save_model(model, path, compress_to_fp16=False)
