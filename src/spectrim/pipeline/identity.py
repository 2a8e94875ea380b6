"""What a function, an object or a network depends on, as text that is the same in every process as long as it does the same.

A cache keyed by less would lie: two harms that differ in a tensor that they close over, or in a number of their module that
they read, are two harms.
"""

from __future__ import annotations

import builtins
import dis
import functools
import hashlib
import sys
import types
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from spectrim.network.calling import Example, tensors_of

PLAIN = (type(None), bool, int, float, complex, str, bytes, type(Ellipsis), torch.dtype, torch.device, torch.Size, np.generic)
CALLABLE = (type, types.FunctionType, types.BuiltinFunctionType, types.MethodDescriptorType)
OBJECT_REDUCE: Any = object.__reduce__  # of objects that are their attributes and nothing else
DEEPEST = 60  # levels of objects within objects; what lies deeper cannot be told


class UnknownIdentityError(ValueError):
    """What the value depends on cannot be told."""


def identity(value: Any) -> str:
    """Return a digest of what a value depends on: code, closed-over values, defaults, globals that it reads, attributes.

    Functions and classes of installed packages are known by name and version; those of a user by all of these.

    Raises:
        UnknownIdentityError: If it holds something of which that cannot be told, such as an open file.
    """
    return hashlib.blake2b(_text(value, {}, 0).encode(), digest_size=16).hexdigest()


def fingerprint(model: nn.Module, batches: Iterable[Example], settings: str) -> str:
    """Return a digest of the network (weights, structure and code), the calibration inputs and the settings."""
    digest = hashlib.blake2b(f"{settings} {model!r}".encode(), digest_size=16)
    for kind in sorted({type(module) for module in model.modules()}, key=lambda kind: f"{kind.__module__} {kind.__qualname__}"):
        try:
            digest.update(identity(kind).encode())
        except UnknownIdentityError:
            digest.update(f"{kind.__module__} {kind.__qualname__}".encode())
    for name, value in model.state_dict().items():
        if isinstance(value, Tensor):
            digest.update(f"{name} {_tensor(value)}".encode())
    for batch in batches:
        for tensor in tensors_of(batch):
            digest.update(_tensor(tensor).encode())
    return digest.hexdigest()


def _tensor(value: Tensor) -> str:
    data = value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
    return f"{value.dtype} {tuple(value.shape)} {hashlib.blake2b(data, digest_size=16).hexdigest()}"


def _text(value: Any, seen: dict[int, Any], depth: int) -> str:
    """Return the identity in full; `seen` holds the objects on the way, since they may contain themselves."""
    if isinstance(value, PLAIN):
        return repr(value)
    if id(value) in seen:
        return f"the one above: {type(value).__qualname__}"
    if depth > DEEPEST:
        raise UnknownIdentityError("it is nested too deeply")
    if isinstance(value, Tensor):
        return _tensor(value)
    if isinstance(value, np.ndarray) and not value.dtype.hasobject:
        return f"{value.dtype} {value.shape} {hashlib.blake2b(np.ascontiguousarray(value).tobytes()).hexdigest()}"
    if isinstance(value, types.ModuleType) and _packaged(value.__name__):
        return _named(value.__name__, "")
    if isinstance(value, CALLABLE) and _packaged(getattr(value, "__module__", None) or "builtins"):
        return _named(str(getattr(value, "__module__", "")), value.__qualname__)
    parts, seen = _parts(value), {**seen, id(value): value}
    texts = [_text(part, seen, depth + 1) for part in parts]
    return f"{type(value).__qualname__} {sorted(texts) if isinstance(value, (set, frozenset, Mapping)) else texts}"


def _parts(value: Any) -> Iterable[Any]:
    """Return what a value is made of.

    Raises:
        UnknownIdentityError: If that cannot be told.
    """
    if isinstance(value, Mapping):
        return list(value.items())
    if isinstance(value, (tuple, list, set, frozenset)):
        return list(value)
    if isinstance(value, functools.partial):
        return value.func, value.args, value.keywords
    if isinstance(value, types.MethodType):
        return value.__func__, value.__self__
    if isinstance(value, (staticmethod, classmethod)):
        return (value.__func__,)
    if isinstance(value, property):
        return value.fget, value.fset
    if isinstance(value, types.CodeType):
        return value.co_code, value.co_names, value.co_varnames, value.co_consts
    if isinstance(value, (type, types.FunctionType)):
        return value.__qualname__, _inside(value)
    if hasattr(value, "__dict__") and not isinstance(value, types.ModuleType) and type(value).__reduce__ is OBJECT_REDUCE:
        return type(value), vars(value)
    raise UnknownIdentityError(f"it holds a {type(value).__qualname__}")


def _inside(value: Any) -> dict[str, Any]:
    """Return what a user's function or class is made of."""
    if isinstance(value, type):
        skipped = ("__dict__", "__weakref__", "__doc__", "__module__", "_abc_impl", "__annotations__", "__abstractmethods__")
        own = {name: item for name, item in vars(value).items() if name not in skipped and not _is_slot(item)}
        return {"bases": value.__bases__, "own": own}
    cells = [cell.cell_contents for cell in value.__closure__ or () if _is_filled(cell)]
    defaults = {"defaults": value.__defaults__, "keywords": value.__kwdefaults__}
    return {"code": value.__code__, "cells": cells, **defaults, "globals": dict(_globals(value.__code__, value.__globals__))}


def _is_slot(value: Any) -> bool:
    return isinstance(value, (types.MemberDescriptorType, types.GetSetDescriptorType, types.WrapperDescriptorType))


def _is_filled(cell: Any) -> bool:
    try:
        _ = cell.cell_contents
    except ValueError:
        return False
    return True


def _globals(code: types.CodeType, names: Mapping[str, Any]) -> Iterable[tuple[str, Any]]:
    """Yield the globals that a function's code reads, with attributes of modules followed to what is used of them."""
    instructions = list(dis.get_instructions(code))
    for place, instruction in enumerate(instructions):
        if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME") and instruction.argval in names:
            path, found = str(instruction.argval), names[instruction.argval]
            for following in instructions[place + 1 :]:
                if following.opname not in ("LOAD_ATTR", "LOAD_METHOD") or not isinstance(found, types.ModuleType):
                    break
                path, found = f"{path}.{following.argval}", getattr(found, str(following.argval), None)
            yield path, found
        elif instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME") and not hasattr(builtins, str(instruction.argval)):
            yield str(instruction.argval), "not there"
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _globals(constant, names)


def _packaged(module: str | None) -> bool:
    """Return whether a module belongs to Python, to an installed package or to this one, whose code is in every key."""
    top = (module or "").partition(".")[0]
    if top in sys.stdlib_module_names and top != "__main__":
        return True
    file = str(getattr(sys.modules.get(top), "__file__", "") or "")
    return top in ("builtins", "spectrim") or "site-packages" in file or "dist-packages" in file


def _named(module: str, name: str) -> str:
    top = sys.modules.get(module.partition(".")[0])
    return f"{module}.{name} {getattr(top, '__version__', '')}"
