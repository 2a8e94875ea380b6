"""Which layers of a network can be factorized, and which cannot and why: found by running it, not by reading its code.

A first run, of two examples at least, notes what every layer is called with. In a second every layer stands in a container, as
its factors will, and the batch is there twice; it is compared with the network itself. A layer that is then not called, or
whose network no longer runs or answers otherwise, is reached by another way than its name, or asked for its class, length or
attributes; one whose input is not twice the same, one half behind the other, does not have the batch in dimension 0.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter
from torch.nn.utils import parametrize
from torch.utils.hooks import RemovableHandle

from spectrim.core.layer import Layer, Shape
from spectrim.network.apart import opened
from spectrim.network.calling import (
    CONVOLUTIONS,
    STOCK,
    TRANSPOSED,
    Example,
    batch_size,
    doubled,
    first_line,
    map_tensors,
    place,
    same_outputs,
    seeded,
    tensors_of,
    unwrap,
)
from spectrim.network.disguise import Unmasked, overridden, unmask

TWICE = "the example goes through the model, but the same batch twice does not"
BATCH = "its input {shape} does not have the batch of {batch} in dimension 0"
STREAMS = "its input joins {streams} streams of the batch along dimension 0 (such as both images of a pair, or frames)"
NOISE = "its input differs from run to run, since the forward draws random numbers in eval mode, so fits cannot be compared"
ASKED = "the network answers otherwise with another module in its place: the forward asks for its class, length or attributes"


@dataclass(frozen=True)
class Survey:
    """The layers that can be factorized, and the weighted modules that cannot, each with its reason."""

    layers: tuple[Layer, ...]
    skipped: dict[str, str]


class ExampleError(ValueError):
    """The example does not go through the network."""


def survey(model: nn.Module, example: Example) -> Survey:
    """List what can be factorized, in order of execution, and what cannot, with the reason.

    Args:
        model: Any eager network; wrappers are looked through. Buffers that its forward makes or changes do change: give a
            copy.
        example: A batch of inputs: a tensor, or tensors in a tuple (arguments) or a dict (keywords), in any nesting.

    Returns:
        The layers in the order of their first call, and a reason for every other module with a weight matrix.

    Raises:
        TypeError: If the model is no eager `nn.Module`.
        ExampleError: If the example, or the same batch twice, does not go through the model (a ValueError).
    """
    model = unwrap(model)
    base = _varied(example if batch_size(example) > 1 else doubled(example))
    batch = batch_size(base)
    seen: dict[str, list[Shape]] = {}
    images: dict[str, list[Shape]] = {}
    unmasked: dict[str, Unmasked] = {}
    refused: dict[str, str] = {}
    candidates = {name: module for name, module in model.named_modules() if _has_matrix(module)}
    owners = _owners(candidates)
    for name, module in candidates.items():
        reason = _refusal(module) or _sharing(name, module, owners) or ("" if name else "it is the whole network")
        if reason:
            refused[name] = reason
    _run(model, example, "the example does not go through the model")
    handles = []
    for name, module in candidates.items():
        if name in refused:
            continue
        hook = _recorder(name, batch, seen, refused)
        handles.append(module.register_forward_hook(hook, prepend=True, with_kwargs=True))
        if isinstance(module, CONVOLUTIONS) and overridden(module):
            handles.append(module.register_forward_hook(_unmasker(name, unmasked, refused), prepend=True))
    handles += _watched(model, {name for name, module in candidates.items() if isinstance(module, nn.Linear)}, images)
    try:
        _run(model, base, TWICE)
    finally:
        for handle in handles:
            handle.remove()
    for name in candidates:
        if name not in seen and name not in refused:
            refused[name] = "the forward of the example never calls it (its weight may be read directly, or not at all)"
    standing = {name: candidates[name] for name in seen if name not in refused}
    refused |= _misplaced(model, standing, base, {name: len(inputs) for name, inputs in seen.items()})
    names = [name for name in seen if name not in refused]
    layers = tuple(_describe(name, candidates[name], seen[name], images, unmasked.get(name)) for name in names)
    return Survey(layers, {name: refused[name] for name in candidates if name in refused})


def _owners(candidates: Mapping[str, nn.Module]) -> dict[int, list[str]]:
    """Return the names of the modules that have a parameter, by the parameter's identity."""
    owners: dict[int, list[str]] = {}
    for name, module in candidates.items():
        for parameter in module._parameters.values():
            if parameter is not None:
                owners.setdefault(id(parameter), []).append(name)
    return owners


def find_layers(model: nn.Module, example: Example) -> tuple[Layer, ...]:
    """Return the layers that can be factorized, in order of execution; see `survey` for the others. Changes nothing."""
    return survey(opened(model, example), example).layers


def _run(model: nn.Module, example: Example, what: str, seed: int = 0) -> Any:
    """Return the network's outputs, with torch's random numbers from a seed.

    Raises:
        ExampleError: If the forward raises, whatever its class.
    """
    try:
        return seeded(model, example, seed)
    except Exception as error:
        raise ExampleError(f"{what}: {first_line(error)}{place(error)}{_elsewhere(model, example)}") from error


def _elsewhere(model: nn.Module, example: Example) -> str:
    """Say that an example lies on another device than the whole network, if it does."""
    places = [{tensor.device for tensor in tensors} for tensors in (tensors_of(example), model.state_dict().values())]
    if max(map(len, places)) > 1 or places[0] == places[1]:
        return ""
    (given,), (wanted,) = places
    return f"; the example is on {given} and the network on {wanted}: give example.to({str(wanted)!r})"


def _has_matrix(module: nn.Module) -> bool:
    if isinstance(module, STOCK) or parametrize.is_parametrized(module):
        return True
    return any(p is not None and (isinstance(p, UninitializedParameter) or p.ndim >= 2) for p in module._parameters.values())


def _refusal(module: nn.Module) -> str:
    """Return why the module can never be replaced, or nothing."""
    base = next((kind for kind in STOCK if isinstance(module, kind)), None)
    if isinstance(module, torch.jit.ScriptModule):
        return "it is TorchScript, whose code cannot be changed"
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
    if "forward" in vars(module):
        return "its forward was set on the module itself, so a stock layer may not equal it"
    changed = overridden(module)
    if changed and not isinstance(module, CONVOLUTIONS):
        return f"{type(module).__name__} overrides {base.__name__}.{changed}, so a stock layer may not equal it"
    return ""


def _sharing(name: str, module: nn.Module, owners: dict[int, list[str]]) -> str:
    for kind, parameter in module._parameters.items():
        others = [other for other in owners.get(id(parameter), []) if other != name]
        if others:
            return f"it shares its {kind} with {others[0]}"
    return ""


class _StandIn(nn.Sequential):
    """Holds a layer as a factorized one's container will, and notes whether its inputs are the batch twice."""

    def __init__(self, layer: nn.Module, batch: int) -> None:
        super().__init__(layer)
        self.batch, self.calls, self.twice = batch, 0, True
        self.shape: Shape = ()

    def forward(self, x: Tensor) -> Tensor:
        """Note and answer."""
        self.shape = tuple(x.shape)
        self.calls += len(x) // self.batch
        if self.twice and len(x) % 2 == 0:
            first, second = x.detach().float().nan_to_num().chunk(2)
            known = len(x) == self.batch or bool(first.any())  # of zeros nobody can tell how they are joined
            self.twice = known and bool((first - second).norm() <= 1e-2 * first.norm())
        return super().forward(x)  # type: ignore[no-untyped-call,no-any-return]


def _misplaced(model: nn.Module, layers: Mapping[str, nn.Module], base: Example, calls: Mapping[str, int]) -> dict[str, str]:
    """Return the layers that cannot be replaced where they stand, or whose inputs are no batches, with the reason.

    Args:
        model: The network.
        layers: The layers in question.
        base: A batch.
        calls: How often each layer is called for one example of it.
    """
    twice = doubled(base)
    batch, plain = batch_size(twice), _run(model, twice, TWICE)
    refused: dict[str, str] = {}
    found = _stood_in(model, layers, twice, batch)
    if found is None or not same_outputs(plain, found[0]):  # some layer is to blame: each alone
        for name, module in layers.items():
            alone = _stood_in(model, {name: module}, twice, batch, refused)
            if alone is not None and not same_outputs(plain, alone[0]):
                refused[name] = ASKED
        found = _stood_in(model, {name: layers[name] for name in layers if name not in refused}, twice, batch)
        if found is None or not same_outputs(plain, found[0]):
            return {name: ASKED for name in layers} | refused
    random: bool | None = None
    for name, standin in found[1].items():
        if not standin.shape:
            refused[name] = "the forward calls it by another way than its name (such as a plain list), so it cannot be replaced"
        elif not standin.twice:
            random = not same_outputs(plain, _run(model, twice, TWICE, seed=1)) if random is None else random
            streams = standin.shape[0] // batch
            refused[name] = NOISE if random else STREAMS.format(streams=streams) if streams > 1 else ""
        elif standin.calls != calls[name]:
            refused[name] = ""
        if refused.get(name) == "":
            refused[name] = BATCH.format(shape=standin.shape, batch=batch)
    return refused


def _stood_in(
    model: nn.Module,
    layers: Mapping[str, nn.Module],
    example: Example,
    batch: int,
    refused: dict[str, str] | None = None,
) -> tuple[Any, dict[str, _StandIn]] | None:
    """Run the network with these layers in containers; put everything back as it was. None if it does not run."""
    standins = {name: _StandIn(layer, batch) for name, layer in layers.items()}
    inside = {id(layer): standins[name] for name, layer in layers.items()}
    places = [
        (parent, key, child) for parent in model.modules() for key, child in parent._modules.items() if id(child) in inside
    ]
    try:
        for parent, key, child in places:
            parent._modules[key] = inside[id(child)]
        return _run(model, example, "the network does not run with another module in its place"), standins
    except ValueError as error:
        if refused is not None:
            refused |= {name: str(error) for name in layers}
        return None
    finally:
        for parent, key, child in places:
            parent._modules[key] = child


def _varied(example: Example) -> Example:
    """Return the batch with other numbers in inputs that are constant or the same as another, which would hide their order."""
    seen: list[Tensor] = []

    def varied(x: Tensor) -> Tensor:
        alike = any(x.shape == other.shape and torch.equal(x, other) for other in seen)
        seen.append(x)
        if not x.is_floating_point() or x.numel() < 2 or not (alike or bool((x == x.flatten()[0]).all())):
            return x
        steps = torch.linspace(0, 1, x.numel(), device=x.device)
        return (steps if len(seen) == 1 else steps.roll(len(seen) * 7).square()).to(x.dtype).view(x.shape)

    return map_tensors(varied, example)


def _recorder(name: str, batch: int, seen: dict[str, list[Shape]], refused: dict[str, str]) -> Any:
    def record(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if len(args) != 1 or kwargs or not isinstance(args[0], Tensor):
            refused[name] = "it is called with more than its input (such as output_size)"
            return
        shape = tuple(args[0].shape)
        unbatched = isinstance(module, (*CONVOLUTIONS, *TRANSPOSED)) and len(shape) == len(module.kernel_size) + 1
        if unbatched or len(shape) < 2 or shape[0] % batch:
            refused[name] = BATCH.format(shape=shape, batch=batch)
            return
        seen.setdefault(name, []).extend([shape[1:]] * (shape[0] // batch))

    return record


def _unmasker(name: str, unmasked: dict[str, Unmasked], refused: dict[str, str]) -> Any:
    def look(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if name in refused or len(args) != 1 or not isinstance(args[0], Tensor):
            return
        found = unmask(module, args[0])
        known = unmasked.get(name)
        if isinstance(found, str):
            refused[name] = found
        elif known is not None and (known.padding, known.pad) != (found.padding, found.pad):
            refused[name] = f"{type(module).__name__} pads its inputs of several sizes otherwise, so no one layer equals it"
        else:
            unmasked[name] = found

    return look


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
        if isinstance(module, torch.jit.ScriptModule):
            continue
        if name in names:
            handles.append(module.register_forward_pre_hook(lambda module, args, name=name: note(name, args)))
        handles.append(module.register_forward_hook(keep))
    return handles


def _describe(
    name: str, module: nn.Module, inputs: list[Shape], images: dict[str, list[Shape]], unmasked: Unmasked | None
) -> Layer:
    weight, bias = tuple(module.weight.shape), module.bias is not None  # type: ignore[arg-type]
    if isinstance(module, nn.Linear):
        image = images[name][0] if len(set(images[name])) == 1 else ()
        return Layer(name, "Linear", weight, tuple(inputs), bias=bias, image=image)
    kind = next(base.__name__ for base in STOCK if isinstance(module, base))
    shape = geometry(module)
    if unmasked is not None:
        shape |= {"padding": unmasked.padding, "padding_mode": "zeros", "pad": unmasked.pad, "baked": unmasked.baked}
    return Layer(name, kind, weight, tuple(inputs), bias=bias, **shape)


def geometry(module: nn.Module) -> dict[str, Any]:
    """Return the fields of a `Layer` that a convolution's own attributes say; a linear layer has none of them."""
    if not isinstance(module, (*CONVOLUTIONS, *TRANSPOSED)):
        return {}
    padding: Any = module.padding
    if isinstance(padding, str):
        padding = "same" if padding == "same" else (0,) * len(module.kernel_size)
    return {
        "stride": tuple(module.stride),
        "padding": padding if isinstance(padding, str) else tuple(padding),
        "output_padding": tuple(module.output_padding) if isinstance(module, TRANSPOSED) else (),
        "dilation": tuple(module.dilation),
        "padding_mode": module.padding_mode,
        "groups": module.groups,
    }
