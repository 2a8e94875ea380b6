"""Layers that do more: subclasses of a convolution that go on with a norm or an activation, taken apart where that is exact.

A copy of the network gets a container in their place: a stock convolution named `conv`, then the norm and the activation.
What a plan names `stem.conv` is so the convolution inside the layer `stem`.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from spectrim.network.calling import CONVOLUTIONS, Example, cuda_devices, same_outputs, seeded
from spectrim.network.copying import duplicate
from spectrim.network.disguise import close, look_inside, overridden

CONV = "conv"
ACTIVATIONS: tuple[nn.Module, ...] = (
    *(nn.ReLU(), nn.ReLU6(), nn.LeakyReLU(0.01), nn.LeakyReLU(0.1), nn.LeakyReLU(0.2), nn.ELU(), nn.SELU(), nn.SiLU()),
    *(nn.GELU(), nn.GELU(approximate="tanh"), nn.Hardswish(), nn.Hardsigmoid(), nn.Sigmoid(), nn.Tanh(), nn.Mish()),
    *(nn.Softplus(), nn.Softsign(), nn.LogSigmoid(), nn.Hardtanh()),
)


class Apart(nn.Sequential):
    """A layer in pieces; the whole is kept beside them, and shares their parameters."""

    def __init__(self, whole: nn.Module, pieces: Mapping[str, nn.Module]) -> None:
        super().__init__()
        for name, piece in pieces.items():
            self.add_module(name, piece)
        self.training = whole.training
        self.whole = (whole,)  # in a tuple, so that it is no module of the network
        self.stock = (pieces[CONV],)

    def settled(self) -> nn.Module:
        """Return the whole, or the pieces in an ordinary container if the convolution was factorized."""
        (whole,), (stock,) = self.whole, self.stock
        settled = whole if self._modules[CONV] is stock else nn.Sequential(OrderedDict(self.named_children()))
        settled.training = self.training
        return settled


def opened(model: nn.Module, example: Example) -> nn.Module:
    """Return a copy of the network in which layers that do more are taken apart, where its outputs stay what they are.

    Raises:
        TypeError: If the network cannot be copied.
        ValueError: If a forward was replaced by a function that holds the network.
    """
    model = duplicate(model)
    found = [(module, pieces) for module in model.modules() if module is not model and (pieces := pieces_of(module))]
    made = [Apart(module, pieces) for module, pieces in found]
    if not made:
        return model
    try:
        wanted = seeded(model, example)
    except Exception:  # the survey says so
        return model
    for apart in made:
        swap(model, *apart.whole, apart)
    if _gives(model, example, wanted):
        return model
    for apart in made:  # some layer is to blame: each alone
        swap(model, apart, *apart.whole)
    for apart in made:
        swap(model, *apart.whole, apart)
        if not _gives(model, example, wanted):
            swap(model, apart, *apart.whole)
    return model


def _gives(model: nn.Module, example: Example, wanted: Any) -> bool:
    """Return whether the network still returns this; it may not run, as where a forward asks a layer for its weight."""
    try:
        return same_outputs(wanted, seeded(model, example))
    except Exception:
        return False


def swap(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Put one module in the place of another, under every name that it has."""
    for parent in model.modules():
        for key, child in parent._modules.items():
            if child is old:
                parent._modules[key] = new


def settled(model: nn.Module) -> nn.Module:
    """Return the network itself, with every layer whole again whose convolution was not factorized."""
    for apart in [module for module in model.modules() if isinstance(module, Apart)]:
        swap(model, apart, apart.settled())
    return model


def whole_of(model: nn.Module, name: str) -> tuple[nn.Module, dict[str, nn.Module]] | None:
    """Return the layer that can be taken apart so that its convolution gets this name, and its pieces; or None."""
    outer, _, last = name.rpartition(".")
    if not outer or last != CONV:
        return None
    try:
        whole = model.get_submodule(outer)
    except AttributeError:
        return None
    pieces = pieces_of(whole)
    return (whole, pieces) if pieces else None


def pieces_of(module: nn.Module) -> dict[str, nn.Module]:
    """Return what a subclass of a convolution does, in order and by name: pads, convolves, norms, activates.

    Empty where that cannot be told, where its forward does something else as well, and for layers that only convolve.
    """
    if not isinstance(module, CONVOLUTIONS) or not overridden(module) or "forward" in vars(module):
        return {}
    plain = set(module._parameters) <= {"weight", "bias"} and not module._buffers
    hooked = any(value for name, value in vars(module).items() if name.endswith("_hooks") and name.startswith("_"))
    if not plain or hooked:
        return {}
    if parametrize.is_parametrized(module) or not isinstance(module._parameters.get("weight"), Tensor):
        return {}
    if isinstance(module.weight, nn.UninitializedParameter) or not module.weight.is_floating_point():
        return {}
    try:
        with torch.no_grad(), torch.random.fork_rng(cuda_devices(module.weight)):
            return _found(module)
    except Exception:  # whatever its forward says to numbers that it was not made for
        return {}


def _found(module: Any) -> dict[str, nn.Module]:
    """Return the pieces, compared with the layer on inputs of two sizes, in eval and in train mode."""
    whole = copy.deepcopy(module).eval()
    generator, inputs = torch.Generator().manual_seed(0), []
    for size, scale in ((2, 1), (3, 10)):  # the second beyond where a clamp does nothing
        reach = [d * (k - 1) + 1 for k, d in zip(module.kernel_size, module.dilation, strict=True)]
        spatial = [size * length + axis for axis, length in enumerate(reach)]
        x = scale * torch.randn(2, module.in_channels, *spatial, generator=generator, device="cpu")
        inputs.append(x.to(module.weight))
    called: list[tuple[str, Tensor]] = []
    answers: list[Tensor] = []

    def before(name: str, x: Tensor) -> Tensor:
        called.append((name, x.clone()))
        return x.clone()

    for name, child in whole.named_children():
        child.register_forward_pre_hook(lambda _, args, name=name: (before(name, *args),))
        child.register_forward_hook(lambda _, args, y: answers.append(y.clone()))
    seen = look_inside(whole, inputs[0])
    if isinstance(seen, str) or seen.layer.baked or not isinstance(seen.answer, Tensor):
        return {}
    stages = [(x, name, y) for (name, x), y in zip(called, answers, strict=True)]
    names = _between(seen.result, [*stages, (seen.answer, "", seen.answer)])
    children = [name for name in names if isinstance(name, str)]
    if not names or sorted(children) != sorted(whole._modules) or {CONV, "pad"} & set(children):
        return {}
    pieces = _pieces(module, seen.layer, names)
    for train in (False, True):
        first, second = copy.deepcopy(module).train(train), copy.deepcopy(nn.Sequential(*pieces.values())).train(train)
        for x in inputs:
            if not close(second(x.clone()), first(x.clone())):
                return {}
    return pieces


def _between(y: Tensor, stages: Sequence[tuple[Tensor, str, Tensor]]) -> list[str | nn.Module]:
    """Return the children, and the activations between them, from a convolution's output on; empty if there is no way."""
    names: list[str | nn.Module] = []
    for x, name, output in stages:
        if not close(x, y):
            fitting = [activation for activation in ACTIVATIONS if close(activation(y.clone()), x)]
            if not fitting:
                return []
            names.append(fitting[0])
        names += [name] if name else []
        y = output
    return names


def _pieces(module: Any, layer: Any, names: list[str | nn.Module]) -> dict[str, nn.Module]:
    """Return the pieces as modules, which share the layer's own parameters and children."""
    kind = next(base for base in CONVOLUTIONS if isinstance(module, base))
    around = [number for pair in reversed(layer.pad) for number in pair]
    padding: type[nn.Module] = getattr(nn, f"ZeroPad{len(module.kernel_size)}d")
    pieces: dict[str, nn.Module] = {"pad": padding(around).train(module.training)} if layer.pad else {}
    shape: Any = (module.in_channels, module.out_channels, module.kernel_size)
    stock = nn.utils.skip_init(
        kind, *shape, stride=module.stride, padding=layer.padding, dilation=module.dilation, groups=module.groups, bias=False
    )
    stock._parameters |= {name: module._parameters.get(name) for name in ("weight", "bias")}
    pieces[CONV] = stock.train(module.training)
    for number, name in enumerate(names):
        if isinstance(name, str):
            pieces[name] = module._modules[name]
        else:
            pieces[f"activation{number}"] = copy.deepcopy(name).train(module.training)
    return pieces
