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
import uuid
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from spectrim.core.factorization import Factorization
from spectrim.core.search import Search
from spectrim.network.calling import Example, tensors_of
from spectrim.network.copying import closed_over

PLAIN = (type(None), bool, int, float, complex, str, bytes, type(Ellipsis), torch.dtype, torch.device, torch.Size, np.generic)
CALLABLE = (type, types.FunctionType, types.BuiltinFunctionType, types.MethodDescriptorType)
DEEPEST = 60  # levels of objects within objects; what lies deeper cannot be told


class UnknownIdentityError(ValueError):
    """What the value depends on cannot be told."""


def identity(value: Any) -> str:
    """Return a digest of what a value depends on: code, closed-over values, defaults, globals that it reads, attributes.

    Functions and classes of installed packages are known by name and version; those of a user by all of these.

    Raises:
        UnknownIdentityError: If it holds something of which that cannot be told, such as an open file.
    """
    return _digest(_text(value, {}, 0).encode())


def method_identity(method: Factorization | Search) -> str:
    """Return what a decomposition or rank selection depends on: its options, and its code where it is not ours."""
    try:
        return f"{type(method).__name__} {identity(method)}"
    except UnknownIdentityError:
        return f"{method!r} {uuid.uuid4()}"  # of which nothing is found in a cache


def fingerprint(model: nn.Module, batches: Iterable[Example], settings: str) -> str:
    """Return a digest of the network (weights, structure, attributes and code), the calibration inputs and the settings.

    Raises:
        UnknownIdentityError: If the network holds something of which it cannot be told what it depends on.
    """
    digest = hashlib.blake2b(f"{settings} {identity(model)}".encode(), digest_size=16)
    for batch in batches:
        for tensor in tensors_of(batch):
            digest.update(_tensor(tensor).encode())
    return digest.hexdigest()


def _tensor(value: Tensor) -> str:
    try:
        data = value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
    except (RuntimeError, TypeError) as error:  # sparse, quantized
        raise UnknownIdentityError(f"it holds a tensor of layout {value.layout} and dtype {value.dtype}") from error
    return f"{value.dtype} {tuple(value.shape)} {_digest(data)}"


def _text(value: Any, seen: dict[int, tuple[Any, str]], depth: int) -> str:
    """Return the identity as text, of things made of others a digest.

    Args:
        value: Anything.
        seen: Objects that were met, with their texts: so each is looked at once, also one that contains itself.
        depth: Of the value in what was asked for.
    """
    if isinstance(value, PLAIN) and not hasattr(value, "__dict__"):  # a subclass's attributes count
        return repr(value)
    if id(value) in seen:
        return seen[id(value)][1]
    if depth > DEEPEST:
        raise UnknownIdentityError("it is nested too deeply")
    if isinstance(value, Tensor):
        return _tensor(value)
    if isinstance(value, np.ndarray) and not value.dtype.hasobject:
        return f"{value.dtype} {value.shape} {_digest(np.ascontiguousarray(value).tobytes())}"
    if isinstance(value, types.ModuleType) and _packaged(value.__name__):
        return _named(value.__name__, "")
    if _is_named(value) and _packaged(getattr(value, "__module__", None) or "builtins"):
        return _named(str(getattr(value, "__module__", "")), value.__qualname__)
    seen[id(value)] = value, f"the one above: {type(value).__qualname__}"
    texts = [_text(part, seen, depth + 1) for part in _parts(value)]
    whole = f"{type(value).__qualname__} {sorted(texts) if isinstance(value, (set, frozenset, dict)) else texts}"
    seen[id(value)] = value, _digest(whole.encode())
    return seen[id(value)][1]


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def _parts(value: Any) -> Iterable[Any]:
    """Return what a value is made of.

    Raises:
        UnknownIdentityError: If that cannot be told.
    """
    if isinstance(value, (dict, types.MappingProxyType)) and not hasattr(value, "__dict__"):
        return list(value.items())
    if isinstance(value, (tuple, list, set, frozenset)) and not hasattr(value, "__dict__"):
        return list(value)
    if isinstance(value, functools.partial):
        return value.func, value.args, value.keywords, vars(value)
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
    return _reduced(value)


def _reduced(value: Any) -> Iterable[Any]:
    """Return what pickle would make an object again from: its class, attributes, slots and items, or state of compiled code.

    Raises:
        UnknownIdentityError: If it cannot be told, as of an open file or a generator.
    """
    try:
        made = value.__reduce_ex__(4)
    except Exception as error:
        raise UnknownIdentityError(f"it holds a {type(value).__qualname__}") from error
    if not isinstance(made, tuple):
        raise UnknownIdentityError(f"it holds a {type(value).__qualname__}")
    return [list(part) if isinstance(part, Iterator) else part for part in made]


def _is_named(value: Any) -> bool:
    """Return whether a value is a class or function, of whatever compiler: Cython's functions are of a type of their own."""
    if not isinstance(getattr(value, "__self__", None), (type(None), type, types.ModuleType)):
        return False  # bound to an object
    compiled = callable(value) and hasattr(value, "__qualname__") and not isinstance(value, types.MethodType)
    return isinstance(value, CALLABLE) or compiled


def _inside(value: Any) -> dict[str, Any]:
    """Return what a user's function or class is made of."""
    if isinstance(value, type):
        skipped: tuple[str, ...] = (
            "__dict__",
            "__weakref__",
            "__doc__",
            "__module__",
            "_abc_impl",
            "__annotations__",
            "__abstractmethods__",
        )
        skipped = (*skipped, "__dataclass_fields__", "__dataclass_params__")  # the methods made of them tell the same
        own = {name: item for name, item in vars(value).items() if name not in skipped and not _is_slot(item)}
        return {"bases": value.__bases__, "own": own}
    cells = list(closed_over(value))
    defaults = {"defaults": value.__defaults__, "keywords": value.__kwdefaults__}
    return {"code": value.__code__, "cells": cells, **defaults, "globals": dict(_globals(value.__code__, value.__globals__))}


def _is_slot(value: Any) -> bool:
    return isinstance(value, (types.MemberDescriptorType, types.GetSetDescriptorType, types.WrapperDescriptorType))


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
