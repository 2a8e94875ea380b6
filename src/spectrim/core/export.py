"""What a file for a device is made with, and how it answers: records of `export`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from spectrim.core.markup import html_table


@dataclass(frozen=True)
class Preprocess:
    """What a file does to images before the network: x = (image / 255 - mean) / std.

    The file then takes uint8 (N, H, W, C), which is what decoders and cameras give: a quarter of the bytes of floats, and no
    doubt whether white is 1 or 255. Images must have the network's height and width: resizing is left to the device's image
    library, which smooths when it makes images smaller, as training did; an operator of the file would not.

    Attributes:
        mean, std: Per channel, or one number for all, of images from 0 to 1.

    Raises:
        ValueError: If a number is not finite, or a standard deviation not above 0.

    Example:
        >>> Preprocess(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)).text()
        '{"input": "uint8 NHWC", "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}'
    """

    mean: Sequence[float]
    std: Sequence[float]

    def __post_init__(self) -> None:
        """Check the numbers."""
        for name in ("mean", "std"):
            values = getattr(self, name)
            numbers = isinstance(values, (tuple, list)) and all(isinstance(x, (int, float)) for x in values)
            if not numbers or not values or not all(math.isfinite(x) and (name == "mean" or x > 0) for x in values):
                what = "finite numbers" if name == "mean" else "numbers above 0"
                raise ValueError(f"{name} is {values!r}; it must be a tuple of {what}, one for each channel, such as (0.5,)")
            object.__setattr__(self, name, tuple(map(float, values)))

    def text(self) -> str:
        """Return it as JSON, for the file."""
        mean, std = (f"[{', '.join(f'{x:g}' for x in values)}]" for values in (self.mean, self.std))
        return f'{{"input": "uint8 NHWC", "mean": {mean}, "std": {std}}}'


@dataclass(frozen=True)
class Match:
    """How a file answers beside the network, on the images that it was run on.

    Attributes:
        bytes: Of the file, weights included.
        difference: Norm of the difference of an output, relative to its norm: the largest over batches and outputs.
        agreement: Fraction of images with the same largest logit; None where the first output is not (N, K).
    """

    bytes: int
    difference: float
    agreement: float | None

    def text(self) -> str:
        """Return it in words."""
        same = "" if self.agreement is None else f", top-1 as the network's on {100 * self.agreement:.2f} %"
        return f"{self.bytes:,} bytes, outputs differ by {self.difference:.1e} of their norm{same}"


@dataclass(frozen=True)
class Export:
    """A file that was written, read again, run and compared with the network.

    Attributes:
        path: Of the file.
        title: The format in words.
        match: How it answers.
        tolerance: What `match.difference` may be at most.
        images: How many images it was compared on.
        unquantized: The same without quantization; None where there is none.
        inputs, outputs: Name, type and shape of each.
        versions: Of this package, torch and what the file was run with.
    """

    path: str
    title: str
    match: Match
    tolerance: float
    images: int
    unquantized: Match | None = None
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)

    @property
    def bytes(self) -> int:
        """Of the file, weights included."""
        return self.match.bytes

    @property
    def difference(self) -> float:
        """Largest difference of an output, relative to its norm."""
        return self.match.difference

    @property
    def agreement(self) -> float | None:
        """Fraction of images with the network's largest logit."""
        return self.match.agreement

    def __str__(self) -> str:
        """Return what a user of the file must know."""
        return "\n".join(f"{name:8}{value}" for name, value in self._cells())

    def _repr_html_(self) -> str:
        """Return a plain table for notebooks."""
        return html_table("", (), self._cells())

    def _cells(self) -> list[tuple[str, str]]:
        """Return names and values."""
        made = [("file", self.path), ("format", f"{self.title}{'' if self.unquantized is None else ', int8'}")]
        ends = [("input", text) for text in self.inputs] + [("output", text) for text in self.outputs]
        matches = [("float", self.unquantized), ("int8", self.match)] if self.unquantized else [("float", self.match)]
        found = [(name, match.text()) for name, match in matches if match is not None]
        count = f"{self.images:,} image{'' if self.images == 1 else 's'}"
        checked = f"read again and run on {count}; a difference of {self.tolerance:g} is allowed"
        versions = ", ".join(f"{name} {version}" for name, version in self.versions.items())
        return [*made, *ends, *found, ("checked", checked), ("made by", versions)]
