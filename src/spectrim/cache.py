"""Work that survives an interruption: tensors and numbers under a key that says what they came from, and what they took."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from spectrim.factorize import Moments
from spectrim.layer import Example, tensors_of

T = TypeVar("T")
Kept = tuple[dict[str, Tensor], dict[str, Any]]  # tensors and numbers


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
        partial = path.with_suffix(f".{os.getpid()}.partial")
        save_file({key: value.contiguous().clone() for key, value in tensors.items()}, partial)
        partial.replace(path)

    def _path(self, name: str) -> Path | None:
        if self.folder is None:
            return None
        digest = hashlib.blake2b(f"{_code()} {self.key} {name}".encode(), digest_size=12).hexdigest()
        return self.folder / f"{digest}.safetensors"


class Ledger:
    """What a piece of work has taken, also before it was interrupted: seconds of its stages, passes over the calibration set.

    Args:
        cache: Keeps finished parts.
        device: Where their tensors belong.
        progress: Called with a stage and the share of it that is done.
    """

    def __init__(self, cache: Cache, device: torch.device, progress: Callable[[str, float], None] | None) -> None:
        """Begin with nothing."""
        self.cache, self.device, self.progress = cache, device, progress
        self.seconds: dict[str, float] = {}
        self.passes: dict[str, float] = {}
        self.running: dict[str, float] = {}  # when the stages began that are not finished
        self.counted: set[str] = set()  # pieces that are part of seconds and passes

    def once(self, name: str, work: Callable[[], T], packed: Callable[[T], Kept], unpacked: Callable[[Kept], T]) -> T:
        """Return a piece of work from the cache, counted at the seconds and passes it took when it was done, or do it now."""
        kept, new = self.cache.read(name, self.device), name not in self.counted
        self.counted.add(name)
        if kept is not None:
            for total, spent in zip((self.seconds, self.passes), kept[1]["spent"] if new else ({}, {}), strict=True):
                for key, value in spent.items():
                    total[key] = total.get(key, 0.0) + value
            return unpacked(kept)
        before = self._spent()
        found = work()
        if self.cache.folder is not None:
            pairs = zip(self._spent(), before, strict=True)
            spent = [{key: value - old.get(key, 0.0) for key, value in new.items()} for new, old in pairs]
            tensors, numbers = packed(found)
            self.cache.write(name, tensors, {**numbers, "spent": spent})
        return found

    def _spent(self) -> tuple[dict[str, float], dict[str, float]]:
        """Return seconds, running stages included, and passes so far."""
        now = time.perf_counter()
        running = {name: self.seconds.get(name, 0.0) + now - start for name, start in self.running.items()}
        return self.seconds | running, dict(self.passes)

    def passed(self, **passes: float) -> None:
        """Count passes over the calibration set, by kind."""
        for kind, number in passes.items():
            self.passes[kind] = self.passes.get(kind, 0.0) + number

    def tell(self, stage: str, share: float) -> None:
        """Report progress."""
        if self.progress is not None:
            self.progress(stage, share)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a stage and tell its beginning and end."""
        self.tell(name, 0.0)
        self.running[name] = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - self.running.pop(name)
        self.tell(name, 1.0)


@functools.cache
def _code() -> str:
    digest = hashlib.blake2b(digest_size=8)
    for file in sorted(Path(__file__).parent.rglob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()


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
                value = torch.tensor(value, device="cpu")
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
