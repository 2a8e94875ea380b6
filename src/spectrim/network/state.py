"""A network's weights in a safetensors file, and back: shared tensors once, buffers of any kind, no pickle."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

BUFFERS = "spectrim: buffers"  # entry of the file's metadata: names of persistent buffers; the other entries are aliases


def tensors_of_state(model: nn.Module) -> dict[str, Tensor]:
    """Return the tensors of the state dict; extra state of another kind is left out, and stays what a new network has."""
    return {name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)}


def extra_state(model: nn.Module) -> list[str]:
    """Return the names of extra state that is no tensor, which no file of tensors can hold."""
    return [name for name, value in model.state_dict().items() if not isinstance(value, Tensor)]


def save_weights(model: nn.Module, file: Path) -> None:
    """Write the weights; a tensor under several names is written once."""
    first: dict[tuple[object, ...], str] = {}
    aliases: dict[str, str] = {}
    tensors: dict[str, Tensor] = {}
    for name, value in tensors_of_state(model).items():
        place = (value.device, value.data_ptr(), value.dtype, tuple(value.shape), value.stride())
        if value.numel() and place in first:
            aliases[name] = first[place]
        else:
            first[place] = name
            tensors[name] = value.detach().cpu().contiguous().clone()
    buffers = [name for name, _ in model.named_buffers(remove_duplicate=False) if name in tensors or name in aliases]
    save_file(tensors, file, metadata={**aliases, BUFFERS: json.dumps(buffers)})


def load_weights(model: nn.Module, file: Path) -> None:
    """Load what `save_weights` wrote, also version 0.1.0's files; buffers that only a forward makes are made here.

    Raises:
        RuntimeError: If the weights do not fit.
    """
    with safe_open(file, framework="pt") as opened:
        state = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        metadata = dict(opened.metadata() or {})
    buffers = json.loads(metadata.pop(BUFFERS, "[]"))
    state |= {name: state[target] for name, target in metadata.items() if target in state and name not in state}
    own = model.state_dict()
    for name in buffers:
        parent, _, key = name.rpartition(".")
        if name not in own and not hasattr(model.get_submodule(parent), key):
            device = next((value.device for value in own.values() if isinstance(value, Tensor)), torch.device("cpu"))
            model.get_submodule(parent).register_buffer(key, state[name].to(device))
    for name in extra_state(model):
        state[name] = own[name]
    complete(state, own)
    make_writable(model)
    model.load_state_dict(state)


def make_writable(model: nn.Module) -> None:
    """Give expanded buffers, whose elements share memory, memory of their own, so that values can be copied into them."""
    for module in model.modules():
        for key, buffer in module._buffers.items():
            if buffer is not None and any(
                not step and size > 1 for step, size in zip(buffer.stride(), buffer.shape, strict=True)
            ):
                module._buffers[key] = buffer.clone(memory_format=torch.contiguous_format)


def complete(state: dict[str, Tensor], own: Mapping[str, object]) -> None:
    """Add names that share a tensor with one that is there, since files of version 0.1.0 have each tensor once."""
    names: dict[int, list[str]] = {}
    for name, value in own.items():
        if isinstance(value, Tensor) and value.numel():
            names.setdefault(value.data_ptr(), []).append(name)
    for group in names.values():
        known = next((name for name in group if name in state), None)
        for name in group:
            if known is not None and name not in state and own[name].shape == state[known].shape:  # type: ignore[attr-defined]
                state[name] = state[known]
