"""The interface of every file format: a network written to a file, read again and run, quantized where that is there."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar

from torch import Tensor

from spectrim.network.calling import Example
from spectrim.targets.base import Target
from spectrim.targets.export import Program

Run = Callable[[Example], list[Tensor]]


class Format(ABC):
    """A kind of file.

    Attributes:
        title: In messages.
        word: On the command line.
        suffix: Of its files.
        target: What runs them.
        dynamic: Whether a file can take any number of examples.
        int8: The extra and the module that quantization needs beyond the target's; None where there is none.
    """

    title: ClassVar[str]
    word: ClassVar[str]
    suffix: ClassVar[str]
    target: ClassVar[Target]
    dynamic: ClassVar[bool] = True
    int8: ClassVar[tuple[str, str] | None] = None

    def check(self, quantize: str | None) -> None:
        """Check that what it takes is there.

        Raises:
            ImportError: If a module is not installed; the text says what installs it.
            ValueError: If it is to be quantized and cannot be.
        """
        self.target.check()
        if quantize is None:
            return
        if self.int8 is None:
            raise ValueError(f"int8 is for .onnx, .xml and .pte; a {self.suffix} file ({self.title}) is written in float only")
        extra, module = self.int8
        if find_spec(module) is None:
            raise ImportError(f'int8 for {self.title} needs {module}, which is not installed: pip install "spectrim[{extra}]"')

    def files(self, path: Path) -> list[Path]:
        """Return the files of a network whose first one has this path."""
        return [path]

    @abstractmethod
    def write(self, program: Program, path: Path, metadata: Mapping[str, str]) -> None:
        """Write a network in single precision.

        Args:
            program: The network.
            path: Of the file, which is not there.
            metadata: Texts by name, for formats that have room.

        Raises:
            ValueError: If the format lacks something.
        """

    @abstractmethod
    def open(self, path: Path) -> Run:
        """Return what runs a file."""

    def quantize(self, program: Program, path: Path, images: Sequence[Example], metadata: Mapping[str, str]) -> None:
        """Write a network in int8 beside its float file, at the path of which it then is.

        Args:
            program: The network.
            path: Of the float file.
            images: Batches to find the ranges of activations with.
            metadata: As in `write`.

        Raises:
            ValueError: If it fails.
        """
        raise NotImplementedError


def size(format: Format, path: Path) -> int:
    """Return the bytes of a network's files."""
    return sum(os.path.getsize(file) for file in format.files(path))
