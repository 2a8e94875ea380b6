"""What --target and --threads mean: runtimes by their words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from cyclopts import Parameter

from spectrim.cli.options import Whole
from spectrim.targets.base import Target
from spectrim.targets.executorch import ExecuTorch
from spectrim.targets.onnxruntime import OnnxRuntime
from spectrim.targets.openvino import OpenVINO
from spectrim.targets.torch import Torch

TARGETS: dict[str, Target] = {
    "onnxruntime": OnnxRuntime(),
    "openvino": OpenVINO(),
    "torch": Torch(),
    "executorch": ExecuTorch(),
}


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class RuntimeOptions:
    """Where times are taken: of a budget in latency, and the report's.

    Attributes:
        target: Runtime that the network is for: onnxruntime, openvino, torch or executorch; by default torch.
        threads: CPU threads of one forward there.
    """

    target: str | None = None
    threads: Whole = 1

    def chosen(self) -> Target | None:
        """Return the target; None for PyTorch on one thread.

        Raises:
            ImportError: If its runtime is not installed.
            ValueError: If there is none of this name, or no thread.
        """
        if self.target is None and self.threads == 1:
            return None
        return targets_of(self.target or "torch", [self.threads])[0]


def targets_of(words: str, threads: Sequence[int]) -> list[Target]:
    """Return the targets of comma-separated words, each with each number of threads.

    Raises:
        ImportError: If a runtime is not installed.
        ValueError: If there is none of a name, or a number of threads is below 1.
    """
    found = []
    for word in words.split(","):
        if word.strip() not in TARGETS:
            raise ValueError(f"--target: there is no runtime {word.strip()!r}; allowed are {', '.join(TARGETS)}")
        found += [replace(TARGETS[word.strip()], threads=number) for number in threads]
    for target in found:
        target.check()
    return found


def numbers(option: str, text: str) -> list[int]:
    """Return the comma-separated whole numbers of an option.

    Raises:
        ValueError: If one is none, or below 1.
    """
    words = [word.strip() for word in text.split(",")]
    wrong = [word for word in words if not (word.isascii() and word.isdecimal() and 0 < int(word) < 1 << 20)]
    if wrong:
        raise ValueError(f"{option} is {text!r}; it must be whole numbers of at least 1 with commas, such as 1,8")
    return [int(word) for word in words]
