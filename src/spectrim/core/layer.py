"""Which layers a network has, as plain data: shapes only, no module, no flags.

A `Layer` describes a layer of the user's network and, with the same words, each small layer that replaces it. Its kind
is the name of the torch class. Every shape is that of one example, without the batch dimension.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from spectrim.core.cost import Cost
from spectrim.core.reading import read

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Layer:
    """One convolution or linear layer (or a weightless reshape between two of them) as shapes.

    Attributes:
        name: Dotted name in the network.
        kind: Name of the torch class: `Conv2d`, `ConvTranspose1d`, `Linear`, ...; of a part also `Pivot`: a 1 x 1 convolution
            or linear layer of which as many outputs are inputs passed on as there are inputs.
        weight: Shape of the weight as torch stores it; for `Unflatten` the sizes, for other reshapes empty.
        inputs: Shape of the input of one example, once for every call in one forward.
        stride, padding, output_padding, dilation: One number per spatial axis; `padding` may be `"same"`.
        padding_mode: `zeros`, `reflect`, `replicate` or `circular`.
        groups: Number of groups, of a convolution or of a channel shuffle.
        bias: Whether there is a bias.
        image: Of a linear layer whose input is a flattened feature map: the shape of that map.
        pad: Zeros put around the input first, (before, behind) on each spatial axis, where a stock padding cannot say it.
        baked: Whether the weight that counts is one that the module computes from its own.
        start_dim: Of a `Flatten`: the first dimension that it joins to the ones behind it, counted with the batch.
    """

    name: str
    kind: str
    weight: Shape
    inputs: tuple[Shape, ...]
    stride: Shape = ()
    padding: Shape | str = ()
    output_padding: Shape = ()
    dilation: Shape = ()
    padding_mode: str = "zeros"
    groups: int = 1
    bias: bool = False
    image: Shape = ()
    pad: tuple[tuple[int, int], ...] = ()
    baked: bool = False
    start_dim: int = 1

    @property
    def convolution(self) -> Layer:
        """What decompositions see: a stock convolution of what is padded, or one that covers a flattened feature map."""
        if self.pad or self.baked:
            return replace(self, inputs=tuple(self._padded(shape) for shape in self.inputs), pad=(), baked=False)
        if not self.image:
            return self
        axes = len(self.image) - 1
        ones, weight = (1,) * axes, (self.weight[0], *self.image)
        inputs = (self.image,) * self.calls
        return Layer(self.name, f"Conv{axes}d", weight, inputs, ones, (0,) * axes, (), ones, bias=self.bias)

    @property
    def transposed(self) -> bool:
        """Whether this is a transposed convolution, whose weight is stored (S, T / groups, kernel)."""
        return self.kind.startswith("ConvTranspose")

    @property
    def weighted(self) -> bool:
        """Whether the layer has a weight; reshapes have none."""
        return self.kind in ("Linear", "Pivot") or self.kind.startswith("Conv")

    @property
    def kernel(self) -> Shape:
        """Kernel size per spatial axis; empty for a linear layer."""
        return self.weight[2:]

    @property
    def channels(self) -> tuple[int, int]:
        """Output channels T and input channels S, of all groups together."""
        if self.transposed:
            return self.weight[1] * self.groups, self.weight[0]
        return self.weight[0], self.weight[1] * self.groups

    @property
    def matrix(self) -> tuple[int, int]:
        """Rows T and columns S * kernel of the lowered matrix of one group."""
        outputs, inputs = self.channels
        return outputs // self.groups, inputs // self.groups * math.prod(self.kernel)

    @property
    def calls(self) -> int:
        """How many times one forward calls the layer."""
        return len(self.inputs)

    @property
    def outputs(self) -> tuple[Shape, ...]:
        """Shape of the output of one example, once for every call."""
        return tuple(self._output(shape) for shape in self.inputs)

    def _output(self, shape: Shape) -> Shape:
        if self.kind == "ChannelShuffle":
            return shape
        if self.kind.startswith("ZeroPad"):
            return self._padded(shape)
        if self.kind == "Unflatten":
            return (*self.weight, *shape[1:])
        if self.kind == "Flatten":
            return (*shape[: self.start_dim - 1], math.prod(shape[self.start_dim - 1 :]))
        if not self.kernel:
            return (*shape[:-1], self.weight[0])
        return (self.channels[0], *(self._length(size, axis) for axis, size in enumerate(self._padded(shape)[1:])))

    def _padded(self, shape: Shape) -> Shape:
        """Return a shape with the zeros of `pad` around it."""
        return (shape[0], *(size + sum(pair) for size, pair in zip(shape[1:], self.pad, strict=True))) if self.pad else shape

    def _length(self, size: int, axis: int) -> int:
        if isinstance(self.padding, str):
            return size
        reach = self.dilation[axis] * (self.kernel[axis] - 1)
        if self.transposed:
            return (size - 1) * self.stride[axis] - 2 * self.padding[axis] + reach + self.output_padding[axis] + 1
        return (size + 2 * self.padding[axis] - reach - 1) // self.stride[axis] + 1

    @property
    def cost(self) -> Cost:
        """Parameters, and multiply-adds of all calls of one forward of one example."""
        if not self.weighted:
            return Cost(0, 0)
        passed = self.weight[1] * self.groups if self.kind == "Pivot" else 0
        weights = math.prod(self.weight) - passed * self.weight[1]
        sites = self.inputs if self.transposed else self.outputs
        positions = sum(math.prod(s[1:] if self.kernel else s[:-1]) for s in sites)
        return Cost(weights + self.channels[0] * self.bias, weights * positions)

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary without the fields that are empty."""
        usual = {"start_dim": 1, "baked": False}
        return {
            key: value
            for key, value in asdict(self).items()
            if (value not in ((), "") or key in ("weight", "padding")) and value != usual.get(key)
        }

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> Layer:
        """Rebuild a layer from `to_dict`'s dictionary (or its JSON).

        Raises:
            ValueError: If a field is missing, not known or of another kind, or the shapes do not go together.
        """
        unknown = sorted(set(data) - {field.name for field in fields(Layer)})
        if unknown:
            raise ValueError(f"a layer has no {unknown[0]!r}")
        layer: Layer = read(Layer, data, "layer")
        if layer.weighted and (wrong := _mismatch(layer)):
            raise ValueError(f"{wrong} of layer {layer.name!r} does not go with the rest of it")
        return layer


def _mismatch(layer: Layer) -> str:
    """Return the fields of a convolution or linear layer that do not go with the others, or nothing."""
    axes = len(layer.weight) - 2
    kinds = (f"Conv{axes}d", f"ConvTranspose{axes}d") if axes else ("Linear",)
    if axes not in range(4) or layer.kind not in kinds:
        return "kind"
    if min(*layer.weight, layer.groups) < 1 or layer.weight[0] % layer.groups or (not axes and layer.groups > 1):
        return "weight or groups"
    if not _geometric(layer, axes):
        return "stride, padding, output_padding, dilation, padding_mode or pad"
    if layer.image and (axes or math.prod(layer.image) != layer.weight[1] or len(layer.image) not in (2, 3, 4)):
        return "image"
    for shape in layer.inputs:
        if not shape or (axes and len(shape) != axes + 1) or shape[0 if axes else -1] != layer.channels[1] or min(shape) < 1:
            return "inputs"
    return "" if layer.inputs and all(min(shape) > 0 for shape in layer.outputs) else "inputs"


def _geometric(layer: Layer, axes: int) -> bool:
    """Return whether the numbers of each axis are as many as there are axes, and possible."""
    same = layer.padding == "same"
    padding: Any = (0,) * axes if same and not layer.transposed and set(layer.stride) == {1} else layer.padding
    out = layer.output_padding if layer.transposed else (*layer.output_padding, *(0,) * axes)
    if isinstance(padding, str) or any(len(given) != axes for given in (layer.stride, layer.dilation, padding, out)):
        return False
    pad = [side for pair in layer.pad for side in pair]
    positive = min((1, *layer.stride, *layer.dilation)) == 1 and min((0, *padding, *out, *pad)) == 0
    mode = layer.padding_mode in ("zeros", "reflect", "replicate", "circular")
    return positive and mode and (not pad or (len(layer.pad) == axes and not layer.transposed))


def on_vectors(parts: Sequence[Layer]) -> tuple[Layer, ...]:
    """Return what the parts of a `Layer.convolution` are on flattened inputs; those that cover the map end as linear layers."""
    start = len(parts)
    while start and parts[start - 1].weighted and parts[start - 1].groups == 1 and _covers(parts[start - 1]):
        start -= 1
    result: list[Layer] = []
    if start:
        first, last = parts[0], parts[start - 1]
        result.append(Layer(first.name, "Unflatten", first.inputs[0], tuple((math.prod(shape),) for shape in first.inputs)))
        result += [*parts[:start], Layer(last.name, "Flatten", (), last.outputs)]
    for part in parts[start:]:
        outputs, *image = part.weight
        size = math.prod(image)
        inputs = ((size,),) * part.calls
        kind = "Pivot" if part.kind == "Pivot" else "Linear"
        result.append(Layer(part.name, kind, (outputs, size), inputs, bias=part.bias, image=tuple(image)))
    return tuple(result)


def _covers(part: Layer) -> bool:
    return part.kernel == part.inputs[0][1:]
