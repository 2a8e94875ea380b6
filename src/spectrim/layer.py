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
from torch.nn.parameter import UninitializedParameter
from torch.nn.utils import parametrize
from torch.optim.swa_utils import AveragedModel
from torch.utils._pytree import tree_map_only
from torch.utils.hooks import RemovableHandle

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


@dataclass(frozen=True)
class Survey:
    """The layers that can be factorized, and the weighted modules that cannot, each with its reason."""

    layers: tuple[Layer, ...]
    skipped: dict[str, str]


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


def survey(model: nn.Module, example: Example) -> Survey:
    """List what can be factorized, in order of execution, and what cannot, with the reason.

    Args:
        model: Any eager network; wrappers are looked through. It is not changed.
        example: A batch of inputs, or a tuple or dict of tensors for several inputs.

    Returns:
        The layers in the order of their first call, and a reason for every other module with a weight matrix.

    Raises:
        TypeError: If the model is no eager `nn.Module`.
        ValueError: If the example does not go through the model.
    """
    model = unwrap(model)
    batch = batch_size(example)
    seen: dict[str, list[Shape]] = {}
    images: dict[str, list[Shape]] = {}
    refused: dict[str, str] = {}
    candidates = {name: module for name, module in model.named_modules() if _has_matrix(module)}
    owners: dict[int, list[str]] = {}
    for name, module in candidates.items():
        for parameter in module._parameters.values():
            if parameter is not None:
                owners.setdefault(id(parameter), []).append(name)
    handles = []
    for name, module in candidates.items():
        reason = _refusal(module) or _sharing(name, module, owners)
        if reason:
            refused[name] = reason
        else:
            handles.append(module.register_forward_hook(_recorder(name, batch, seen, refused), with_kwargs=True))
    handles += _watched(model, {name for name, module in candidates.items() if isinstance(module, nn.Linear)}, images)
    try:
        with evaluation_mode(model), torch.no_grad():
            call(model, example)
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        raise ValueError(f"the example does not go through the model: {_first_line(error)}") from error
    finally:
        for handle in handles:
            handle.remove()
    for name in candidates:
        if name not in seen and name not in refused:
            refused[name] = "the forward of the example never calls it (its weight may be read directly, or not at all)"
    layers = tuple(_describe(name, candidates[name], seen[name], images) for name in seen if name not in refused)
    return Survey(layers, {name: refused[name] for name in candidates if name in refused})


def find_layers(model: nn.Module, example: Example) -> tuple[Layer, ...]:
    """Return the layers that can be factorized, in order of execution; see `survey` for the others."""
    return survey(model, example).layers


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _has_matrix(module: nn.Module) -> bool:
    if isinstance(module, STOCK) or parametrize.is_parametrized(module):
        return True
    return any(p is not None and (isinstance(p, UninitializedParameter) or p.ndim >= 2) for p in module._parameters.values())


def _refusal(module: nn.Module) -> str:
    """Return why the module can never be replaced, or nothing."""
    base = next((kind for kind in STOCK if isinstance(module, kind)), None)
    if base is None:
        return f"{type(module).__name__} is neither a convolution nor a linear layer"
    if parametrize.is_parametrized(module):
        return "its weight is parametrized; torch.nn.utils.parametrize.remove_parametrizations makes it plain"
    weight = module._parameters.get("weight")
    if weight is None:
        return "its weight is computed by a hook (such as the old weight_norm); remove the hook to make it plain"
    if isinstance(weight, UninitializedParameter):
        return "it is lazy and has no weight yet; run the model once"
    if not weight.is_floating_point():
        return f"its weight is {weight.dtype}; only real floating-point weights can be factorized"
    for method in ("forward", "_conv_forward"):
        if getattr(type(module), method, None) is not getattr(base, method, None):
            return f"{type(module).__name__} overrides {base.__name__}.{method}, so a stock layer may not equal it"
    return ""


def _sharing(name: str, module: nn.Module, owners: dict[int, list[str]]) -> str:
    others = [other for other in owners[id(module.weight)] if other != name]
    return f"it shares its weight with {others[0]}" if others else ""


def _recorder(name: str, batch: int, seen: dict[str, list[Shape]], refused: dict[str, str]) -> Any:
    def record(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if len(args) != 1 or kwargs or not isinstance(args[0], Tensor):
            refused[name] = "it is called with more than its input (such as output_size)"
            return
        shape = tuple(args[0].shape)
        unbatched = isinstance(module, (*CONVOLUTIONS, *TRANSPOSED)) and len(shape) == len(module.kernel_size) + 1
        if unbatched or len(shape) < 2 or shape[0] % batch:
            refused[name] = f"its input {shape} does not have the batch of {batch} in dimension 0"
            return
        seen.setdefault(name, []).extend([shape[1:]] * (shape[0] // batch))

    return record


def _watched(model: nn.Module, names: set[str], images: dict[str, list[Shape]]) -> list[RemovableHandle]:
    """Note, of each call of the linear layers of these names, the feature map that was flattened into its input, or ()."""
    last: list[Shape] = [()]  # what the last module has returned, with the batch

    def note(name: str, args: tuple[Any, ...]) -> None:
        x = args[0] if args and isinstance(args[0], Tensor) else torch.empty(0)
        maps = [tuple(x._base.shape)] if x._base is not None else []  # what it is a view of
        fitting = [shape for shape in (*maps, last[0]) if 2 < len(shape) < 6 and math.prod(shape[2:]) > 1]
        fitting = [shape for shape in fitting if x.ndim == 2 and shape[0] == len(x) and math.prod(shape[1:]) == x.shape[1]]
        images.setdefault(name, []).append(fitting[0][1:] if fitting else ())

    def keep(module: nn.Module, args: Any, output: Any) -> None:
        if isinstance(output, Tensor) and output.ndim > 2:
            last[0] = tuple(output.shape)

    handles = []
    for name, module in model.named_modules():
        if name in names:
            handles.append(module.register_forward_pre_hook(lambda module, args, name=name: note(name, args)))
        handles.append(module.register_forward_hook(keep))
    return handles


def _describe(name: str, module: nn.Module, inputs: list[Shape], images: dict[str, list[Shape]]) -> Layer:
    weight, bias = tuple(module.weight.shape), module.bias is not None  # type: ignore[arg-type]
    if isinstance(module, nn.Linear):
        image = images[name][0] if len(set(images[name])) == 1 else ()
        return Layer(name, "Linear", weight, tuple(inputs), bias=bias, image=image)
    assert isinstance(module, (*CONVOLUTIONS, *TRANSPOSED))
    kind = next(base.__name__ for base in STOCK if isinstance(module, base))
    padding = module.padding
    if isinstance(padding, str):
        padding = "same" if padding == "same" else (0,) * len(module.kernel_size)
    return Layer(
        name,
        kind,
        weight,
        tuple(inputs),
        tuple(module.stride),
        padding if isinstance(padding, str) else tuple(padding),
        tuple(module.output_padding) if isinstance(module, TRANSPOSED) else (),
        tuple(module.dilation),
        module.padding_mode,
        module.groups,
        bias,
    )
