"""Trained weights rounded to 16 bits, in numbered files that are small enough to be passed on."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

SHARD = 15_000_000  # bytes of a file


def save(model: nn.Module, path: Path) -> None:
    """Write the weights of a network, in place of what was there; the path has no ending."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for old in path.parent.glob(f"{path.name}.*-of-*.safetensors"):
        old.unlink()
    shards: list[dict[str, Tensor]] = [{}]
    for name, value in model.state_dict().items():
        value = value.detach().cpu().half() if value.is_floating_point() else value.cpu()
        parts = math.ceil(value.nbytes / SHARD)
        for number, piece in enumerate(value.chunk(parts) if parts > 1 else [value]):
            if sum(other.nbytes for other in shards[-1].values()) + piece.nbytes > SHARD:
                shards.append({})
            shards[-1][f"{name}@{number}"] = piece.contiguous()
    for number, shard in enumerate(shards):
        save_file(shard, path.with_suffix(f".{number}-of-{len(shards)}.safetensors"))


def load(model: nn.Module, path: Path) -> None:
    """Read what `save` wrote into a network.

    Raises:
        SystemExit: If files are missing.
    """
    files = sorted(path.parent.glob(f"{path.name}.*-of-*.safetensors"))
    if not files or len(files) != int(files[0].name.rpartition("-of-")[2].split(".")[0]):
        raise SystemExit(f"the baseline {path.name!r} is not whole in {path.parent}; run its cell 'baseline' first (--redo)")
    pieces: dict[str, dict[int, Tensor]] = {}
    for file in files:
        for key, value in load_file(file).items():
            name, _, number = key.rpartition("@")
            pieces.setdefault(name, {})[int(number)] = value
    whole = {
        name: torch.cat([parts[i] for i in sorted(parts)]) if len(parts) > 1 else parts[0] for name, parts in pieces.items()
    }
    model.load_state_dict(whole)
