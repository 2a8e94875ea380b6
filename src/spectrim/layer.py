"""Which layers a network has, as plain data: shapes only, no module, no flags.

A `Layer` describes a layer of the user's network and, with the same words, each small layer that replaces it. Its kind
is the name of the torch class. Every shape is that of one example, without the batch dimension.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from torch.utils._pytree import tree_map_only

from spectrim.cost import Cost

Shape = tuple[int, ...]
Example = Tensor | tuple[Tensor, ...] | list[Tensor] | dict[str, Tensor]
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
STOCK: tuple[type[nn.Module], ...] = (*CONVOLUTIONS, *TRANSPOSED, nn.Linear)


@dataclass(frozen=True)
class Layer:
    """One convolution or linear layer (or a weightless reshape between two of them) as shapes.

    Attributes:
        name: Dotted name in the network.
        kind: Name of the torch class: `Conv2d`, `ConvTranspose1d`, `Linear`, ...
        weight: Shape of the weight as torch stores it; for `Unflatten` the sizes, for other reshapes empty.
        inputs: Shape of the input of one example, once for every call in one forward.
        stride, padding, output_padding, dilation: One number per spatial axis; `padding` may be `"same"`.
        padding_mode: `zeros`, `reflect`, `replicate` or `circular`.
        groups: Number of groups.
        bias: Whether there is a bias.
        image: Of a linear layer whose input is a flattened feature map: the shape of that map.
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

    @property
    def convolution(self) -> Layer:
        """What decompositions see: a linear layer on a flattened feature map is the convolution that covers the map."""
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
        return self.kind == "Linear" or self.kind.startswith("Conv")

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
        if self.kind == "Unflatten":
            return (*self.weight, *shape[1:])
        if self.kind == "Flatten":
            return (*shape[: self.groups - 1], math.prod(shape[self.groups - 1 :]))
        if self.kind == "Linear":
            return (*shape[:-1], self.weight[0])
        return (self.channels[0], *(self._length(size, axis) for axis, size in enumerate(shape[1:])))

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
        weights = math.prod(self.weight)
        sites = self.inputs if self.transposed else self.outputs
        positions = sum(math.prod(s[:-1] if self.kind == "Linear" else s[1:]) for s in sites)
        return Cost(weights + self.channels[0] * self.bias, weights * positions)

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary without the fields that are empty."""
        return {key: value for key, value in asdict(self).items() if value not in ((), "") or key == "padding"}

    @staticmethod
    def from_dict(data: dict[str, Any]) -> Layer:
        """Rebuild a layer from `to_dict`'s dictionary (or its JSON)."""
        values: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in data.items()}
        values["inputs"] = tuple(tuple(shape) for shape in data["inputs"])
        return Layer(**values)


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
        result.append(Layer(part.name, "Linear", (outputs, size), inputs, bias=part.bias, image=tuple(image)))
    return tuple(result)


def _covers(part: Layer) -> bool:
    return part.kernel == part.inputs[0][1:]


def unwrap(model: nn.Module) -> nn.Module:
    """Return the network inside DataParallel, DistributedDataParallel, AveragedModel or torch.compile wrappers.

    Raises:
        TypeError: If `model` is no eager `nn.Module`.
    """
    while True:
        if isinstance(model, torch.jit.ScriptModule):
            raise TypeError("the model is a TorchScript module; give the nn.Module it was made from")
        if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel, AveragedModel)):
            model = model.module
        elif isinstance(getattr(model, "_orig_mod", None), nn.Module):
            model = model._orig_mod  # type: ignore[assignment]
        elif isinstance(model, nn.Module):
            return model
        else:
            raise TypeError(f"the model is {type(model).__name__}; it must be a torch.nn.Module")


def call(model: nn.Module, example: Example) -> Any:
    """Call the model with copies (it may change them): a tensor as the one argument, a tuple as several, a dict as keywords."""
    example = tree_map_only(Tensor, _copied, example)
    if isinstance(example, dict):
        return model(**example)
    return model(*([example] if isinstance(example, Tensor) else example))


def _copied(tensor: Tensor) -> Tensor:
    """Return a copy; a flattened feature map stays a view of one, which `survey` looks at."""
    base = tensor._base
    if base is not None and tensor.ndim == 2 < base.ndim and tensor.numel() == base.numel():
        return tensor.reshape(base.shape).clone().reshape(tensor.shape)
    return tensor.clone()


def uncast(module: nn.Module, x: Tensor) -> Tensor:
    """Return a layer's answer where the autocast that the network may use around it is off."""
    weight = next(module.parameters())
    answer: Tensor = module(x.to(weight.dtype))
    return answer


def tensors_of(value: Any) -> list[Tensor]:
    """Return every tensor inside nested tuples, lists and dicts, in order."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (tuple, list)):
        return [tensor for item in value for tensor in tensors_of(item)]
    return []


def batch_size(example: Example) -> int:
    """Return the first dimension of the first tensor.

    Raises:
        ValueError: If there is no tensor with a batch dimension.
    """
    tensors = tensors_of(example)
    if not tensors or tensors[0].ndim == 0 or tensors[0].shape[0] == 0:
        raise ValueError("the example must be a tensor (or a tuple or dict of tensors) with a non-empty batch dimension first")
    return int(tensors[0].shape[0])


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Put the model in eval mode, and every module back as it was."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def doubled(example: Example) -> Example:
    """Return the batch twice, one behind the other."""
    if isinstance(example, Tensor):
        return torch.cat([example, example])
    if isinstance(example, dict):
        return {key: torch.cat([value, value]) for key, value in example.items()}
    return tuple(torch.cat([value, value]) for value in example)
