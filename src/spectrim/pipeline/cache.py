"""Work that survives an interruption: finished pieces under a key that says what they came from, and what they took."""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from spectrim.core.factorization import Moments
from spectrim.core.progress import Progress, Spent
from spectrim.targets.memory import give_back

LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Entry:
    """One finished piece: tensors, and numbers or text that JSON can hold. They are one file."""

    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    numbers: Mapping[str, Any] = field(default_factory=dict)


class Cache:
    """A folder of finished pieces of work; without a folder nothing is kept.

    Args:
        folder: Where; made when first written to.
        key: What everything here was computed from; another key, or another version of this package, finds nothing.
    """

    def __init__(self, folder: str | os.PathLike[str] | None, key: str) -> None:
        """Store the arguments."""
        self.folder = None if folder is None else Path(folder)
        self.key = key

    def read(self, name: str, device: torch.device) -> Entry | None:
        """Return the piece of this name, tensors on a device, or None where there is none or it is damaged."""
        path = self._path(name)
        if path is None or not path.exists():
            return None
        try:
            with safe_open(path, framework="pt", device=str(device)) as file:
                numbers = json.loads((file.metadata() or {})["numbers"])
                return Entry({key: file.get_tensor(key) for key in file.keys()}, numbers)  # noqa: SIM118
        except (SafetensorError, OSError, ValueError, KeyError):
            return None

    def write(self, name: str, entry: Entry) -> None:
        """Keep a piece under this name; the file is either whole or not there."""
        path = self._path(name)
        if path is None:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}.partial")
        tensors = {key: value.contiguous().clone() for key, value in entry.tensors.items()}
        save_file(tensors, partial, metadata={"numbers": json.dumps(dict(entry.numbers))})
        partial.replace(path)

    def _path(self, name: str) -> Path | None:
        if self.folder is None:
            return None
        digest = hashlib.blake2b(f"{_code()} {self.key} {name}".encode(), digest_size=12).hexdigest()
        return self.folder / f"{digest}.safetensors"


@dataclass
class Piece:
    """A piece of work: `entry` is what was found of it, or None; then whoever does the work puts it there."""

    entry: Entry | None


class Ledger:
    """What one step of the pipeline takes: seconds of its stages, passes over the calibration set; and its finished pieces.

    Args:
        cache: Keeps finished pieces.
        device: Where their tensors belong.
        progress: Called with a stage and the share of it that is done.
    """

    def __init__(self, cache: Cache, device: torch.device, progress: Progress | None) -> None:
        """Begin with nothing."""
        self.cache, self.device, self.progress = cache, device, progress
        self.seconds: dict[str, float] = {}
        self.passes: dict[str, float] = {}
        self.running: dict[str, float] = {}  # when the stages began that are not finished

    @contextmanager
    def piece(self, name: str) -> Iterator[Piece]:
        """Give a piece of work from the cache, which counts what it took when it was done; or have it done now, and kept."""
        piece, before = Piece(self.cache.read(name, self.device)), self.spent
        if piece.entry is not None:
            took = piece.entry.numbers["spent"]
            self.add(Spent(took["seconds"], took["passes"]))
            yield piece
            return
        yield piece
        if self.cache.folder is not None and piece.entry is not None:
            took = self.spent - before
            numbers = {**piece.entry.numbers, "spent": {"seconds": dict(took.seconds), "passes": dict(took.passes)}}
            self.cache.write(name, Entry(piece.entry.tensors, numbers))

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a stage and tell its beginning and end."""
        self.tick(name, 0.0)
        self.running[name] = time.perf_counter()
        try:
            yield
        finally:
            give_back()
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - self.running.pop(name)
        self.tick(name, 1.0)
        LOG.info("%s: %.1f s", name, self.seconds[name])

    def tick(self, stage: str, share: float) -> None:
        """Report progress."""
        if self.progress is not None:
            self.progress(stage, share)

    def passed(self, **passes: float) -> None:
        """Count passes over the calibration set, by direction."""
        self.add(Spent(passes=passes))

    def add(self, spent: Spent) -> None:
        """Count what something else took."""
        for total, more in ((self.seconds, spent.seconds), (self.passes, spent.passes)):
            for name, number in more.items():
                total[name] = total.get(name, 0.0) + number

    @property
    def spent(self) -> Spent:
        """What was taken so far, stages that are running included."""
        now = time.perf_counter()
        running = {name: self.seconds.get(name, 0.0) + now - start for name, start in self.running.items()}
        return Spent(self.seconds | running, dict(self.passes))


@functools.cache
def _code() -> str:
    """Return a digest of this package's code."""
    digest = hashlib.blake2b(digest_size=8)
    for file in sorted(Path(__file__).parents[1].rglob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def pack(moments: Mapping[str, Moments]) -> dict[str, Tensor]:
    """Return all moments as one flat dictionary of tensors."""
    flat = {}
    for name, moment in moments.items():
        for key, value in vars(moment).items():
            value = torch.tensor(value, device="cpu") if key == "count" else value
            if value is not None:
                flat[f"{name}/{key}"] = value
    return flat


def unpack(tensors: Mapping[str, Tensor]) -> dict[str, Moments]:
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
