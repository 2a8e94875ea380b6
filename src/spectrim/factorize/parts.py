"""The small layers that decompositions put in a layer's place, and grids of ranks to try."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from spectrim.core.layer import Layer


def pointwise(layer: Layer, inputs: int, outputs: int, after: Layer | None) -> Layer:
    """Return the 1 x 1 convolution (or linear layer) from `inputs` to `outputs` channels, all groups together.

    It has no bias; give the last part its own: `replace(part, bias=layer.bias)`. Ranks are those of one group, so between two
    parts there are `rank * layer.groups` channels.

    Args:
        layer: The layer being replaced; gives kind and groups.
        inputs: Input channels.
        outputs: Output channels.
        after: The part before it; None if it comes first.
    """
    shapes = layer.inputs if after is None else after.outputs
    if layer.kind == "Linear":
        return Layer(layer.name, "Linear", (outputs, inputs), shapes)
    ones = (1,) * len(layer.kernel)
    kind = layer.kind.replace("ConvTranspose", "Conv")
    weight = (outputs, inputs // layer.groups, *ones)
    return Layer(layer.name, kind, weight, shapes, ones, (0,) * len(ones), (), ones, "zeros", layer.groups)


def spatial(layer: Layer, channels: tuple[int, int], axes: Sequence[int], after: Layer | None) -> Layer:
    """Return a convolution like `layer` between other channels that acts along some of its spatial axes only.

    It has no bias; give the last part its own: `replace(part, bias=layer.bias)`. Ranks are those of one group, so between two
    parts there are `rank * layer.groups` channels.

    Args:
        layer: The layer being replaced; gives kind, groups and the geometry along `axes`.
        channels: Input and output channels, all groups together; the other way round than `Layer.channels`, which has the
            outputs first.
        axes: The spatial axes along which it has the layer's kernel, stride, padding and dilation.
        after: The part before it; None if it comes first.
    """

    def along(values: Sequence[int], other: int) -> tuple[int, ...]:
        return tuple(value if axis in axes else other for axis, value in enumerate(values))

    (inputs, outputs), g = channels, layer.groups
    head = (inputs, outputs // g) if layer.transposed else (outputs, inputs // g)
    return replace(
        layer,
        weight=(*head, *along(layer.kernel, 1)),
        inputs=layer.inputs if after is None else after.outputs,
        stride=along(layer.stride, 1),
        padding=layer.padding if isinstance(layer.padding, str) else along(layer.padding, 0),
        output_padding=along(layer.output_padding, 0),
        dilation=along(layer.dilation, 1),
        bias=False,
    )


def grid(limit: int, steps: int) -> list[int]:
    """Return at most `steps` whole numbers from 1 to `limit`, about geometric, both ends included."""
    return sorted({max(1, round(limit ** (i / max(steps - 1, 1)))) for i in range(steps)} | {1, limit})
