"""Work that survives an interruption: tensors and numbers under a key that says what they were computed from."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from spectrim.factorize import Moments
from spectrim.layer import Example, tensors_of

FORMAT = "spectrim-cache-2"  # what another version has written is not found
Kept = tuple[dict[str, Tensor], dict[str, Any]]  # tensors and numbers


class Cache:
    """A folder of finished pieces of work; without a folder nothing is kept.

    Args:
        folder: Where; made when first written to.
        key: What everything here was computed from; another key finds nothing.
    """

    def __init__(self, folder: str | os.PathLike[str] | None, key: str) -> None:
        """Store the arguments."""
        self.folder = None if folder is None else Path(folder)
        self.key = key

    def read(self, name: str, device: torch.device) -> Kept | None:
        """Return the tensors, on a device, and numbers of this name, or None where there are none or they are damaged."""
        path = self._path(name)
        if path is None or not path.exists():
            return None
        try:
            tensors = load_file(path, device=str(device))
            numbers = json.loads(path.with_suffix(".json").read_text())
        except (SafetensorError, OSError, ValueError):
            return None
        return tensors, numbers

    def write(self, name: str, tensors: dict[str, Tensor], numbers: dict[str, Any]) -> None:
        """Keep tensors and numbers under this name; a file is either whole or not there."""
        path = self._path(name)
        if path is None:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_suffix(".json").write_text(json.dumps(numbers))
        partial = path.with_suffix(".partial")
        save_file({key: value.contiguous().clone() for key, value in tensors.items()}, partial)
        partial.replace(path)

    def _path(self, name: str) -> Path | None:
        if self.folder is None:
            return None
        digest = hashlib.blake2b(f"{FORMAT} {self.key} {name}".encode(), digest_size=12).hexdigest()
        return self.folder / f"{digest}.safetensors"


def fingerprint(model: nn.Module, batches: Iterable[Example], words: str) -> str:
    """Return a hash of the weights, the calibration inputs and the settings that the statistics depend on."""
    digest = hashlib.blake2b(words.encode(), digest_size=16)
    for name, value in model.state_dict().items():
        digest.update(name.encode())
        digest.update(_bytes(value))
    for batch in batches:
        for tensor in tensors_of(batch):
            digest.update(_bytes(tensor))
    return digest.hexdigest()


def pack(moments: dict[str, Moments]) -> dict[str, Tensor]:
    """Return all moments as one flat dictionary of tensors."""
    flat = {}
    for name, moment in moments.items():
        for field, value in vars(moment).items():
            if field == "count":
                value = torch.tensor(value)
            if value is not None:
                flat[f"{name}/{field}"] = value
    return flat


def unpack(tensors: dict[str, Tensor]) -> dict[str, Moments]:
    """Return what `pack` was given."""
    names = dict.fromkeys(key.rsplit("/", 1)[0] for key in tensors)
    return {
        name: Moments(
            int(tensors[f"{name}/count"]),
            tensors[f"{name}/response"],
            tensors[f"{name}/gradient"],
            tensors.get(f"{name}/covariance"),
            tensors.get(f"{name}/mean"),
            tensors[f"{name}/response_mean"],
        )
        for name in names
    }


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()


def identity(value: Any) -> str:
    """Return what is the same in every process as long as a function does the same: its code and what it has closed over.

    What cannot be told so (an object that shows its address) is never the same twice.
    """
    if isinstance(value, functools.partial):
        return f"partial {identity(value.func)} {[identity(item) for item in value.args]} {_named(value.keywords)}"
    code = getattr(value, "__code__", None)
    if code is not None:
        held = [identity(cell.cell_contents) for cell in value.__closure__ or ()]
        constants = [item.co_code.hex() if hasattr(item, "co_code") else repr(item) for item in code.co_consts]
        defaults = [identity(item) for item in value.__defaults__ or ()] + [_named(value.__kwdefaults__ or {})]
        owner = identity(value.__self__) if hasattr(value, "__self__") else ""
        return f"{value.__qualname__} {owner} {code.co_code.hex()} {constants} {code.co_names} {held} {defaults}"
    text = repr(value)
    return f"{text} {uuid.uuid4()}" if " at 0x" in text else text


def _named(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={identity(value)}" for name, value in sorted(values.items()))
