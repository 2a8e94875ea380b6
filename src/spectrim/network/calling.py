"""Running a network that is not ours: its inputs, outputs and modes, whatever they are nested in."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from torch.utils._pytree import tree_map_only

Example = Tensor | tuple[Tensor, ...] | list[Tensor] | dict[str, Tensor]
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
STOCK: tuple[type[nn.Module], ...] = (*CONVOLUTIONS, *TRANSPOSED, nn.Linear)


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


def count(batches: Sequence[Example]) -> int:
    """Return the number of examples in all batches."""
    return sum(len(tensors_of(batch)[0]) for batch in batches)


@contextmanager
def undisturbed() -> Iterator[None]:
    """Switch off what the caller may have around: inference mode, `no_grad`, autocast. Also a decorator."""
    off = [torch.autocast(kind, enabled=False) for kind in ("cpu", "cuda")]
    with torch.inference_mode(False), torch.enable_grad(), off[0], off[1]:
        yield
