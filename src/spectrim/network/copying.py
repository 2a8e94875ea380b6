"""Copies of a network on which all work happens, so that the user's own stays as it was."""

from __future__ import annotations

import contextlib
import copy
import functools
import sys
import types
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from spectrim.network.calling import first_line, unwrap

DEEPEST = 6  # levels of containers and functions that are searched


def duplicate(model: nn.Module) -> nn.Module:
    """Return a deep copy of the unwrapped network; activations that it keeps on itself are copied without their graph.

    Raises:
        TypeError: If it cannot be copied; the text names the attribute.
        ValueError: If a forward was replaced by a function that holds the network, so that a copy would run the original.
    """
    model = unwrap(model)
    check_forwards(model)
    memo: dict[int, Any] = {id(tensor): tensor.detach().clone() for tensor in _graph_tensors(model)}
    memo |= {id(module): module for module in sys.modules.values()}  # Python's, which a copy shares
    try:
        return copy.deepcopy(model, memo)
    except Exception as error:
        where = _culprit(model)
        raise TypeError(
            f"the model cannot be copied{f', because of its attribute {where!r}' if where else ''}: {first_line(error)}; "
            "remove the attribute, or make it copyable"
        ) from error


def check_forwards(model: nn.Module) -> None:
    """Check that no forward was replaced by a function that holds modules: copies share it and would run the original's.

    Raises:
        ValueError: If one was.
    """
    for name, module in model.named_modules():
        replaced = vars(module).get("forward")
        if replaced is not None and any(_held_modules(replaced, 0)):
            where = f"the module {name!r}" if name else "the model"
            raise ValueError(
                f"the forward of {where} was replaced by a function that holds the network itself, so a copy would run the "
                "original's layers; make it a method of a subclass, or bind it with types.MethodType"
            )


def _held_modules(value: Any, depth: int) -> Iterator[nn.Module]:
    """Yield the modules that a function shares with its copies: what it closes over, and the globals that it names."""
    if depth > DEEPEST:
        return
    if isinstance(value, functools.partial):  # modules among the arguments are copied with it
        for item in (value.func, *value.args, *value.keywords.values()):
            if isinstance(item, types.FunctionType):
                yield from _held_modules(item, depth + 1)
    elif isinstance(value, types.MethodType):
        yield from _held_modules(value.__func__, depth + 1)
    elif isinstance(value, types.FunctionType):
        for content in closed_over(value):
            yield from _modules_in(content, depth + 1)
        found = [value.__globals__.get(name) for name in value.__code__.co_names]
        yield from (item for item in found if isinstance(item, nn.Module))


def closed_over(function: types.FunctionType) -> Iterator[Any]:
    """Yield what a function closes over."""
    for cell in function.__closure__ or ():
        with contextlib.suppress(ValueError):  # not filled yet
            yield cell.cell_contents


def _modules_in(value: Any, depth: int) -> Iterator[nn.Module]:
    """Yield modules inside what a function closes over."""
    if depth > DEEPEST:
        return
    if isinstance(value, nn.Module):
        yield value
    elif isinstance(value, types.MethodType):
        if isinstance(value.__self__, nn.Module):
            yield value.__self__
    elif isinstance(value, (types.FunctionType, functools.partial)):
        yield from _held_modules(value, depth + 1)
    elif isinstance(value, (list, tuple, set)):
        for item in value:
            yield from _modules_in(item, depth + 1)
    elif isinstance(value, dict):
        for item in value.values():
            yield from _modules_in(item, depth + 1)


def _graph_tensors(model: nn.Module) -> Iterator[Tensor]:
    """Yield the tensors with a graph that modules hold, which cannot be copied as they are."""
    for module in model.modules():
        yield from _inside(vars(module), 0)


def _inside(value: Any, depth: int) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        if not value.is_leaf:
            yield value
    elif depth < DEEPEST and isinstance(value, (list, tuple, set)):
        for item in value:
            yield from _inside(item, depth + 1)
    elif depth < DEEPEST and isinstance(value, dict):
        for item in value.values():
            yield from _inside(item, depth + 1)


def _culprit(model: nn.Module) -> str:
    """Return the name of an attribute that cannot be copied, or nothing."""
    for name, module in model.named_modules():
        for key, value in vars(module).items():
            if key in ("_modules", "_parameters", "_buffers"):
                continue
            try:
                copy.deepcopy(value, {id(other): other for other in (*model.modules(), *sys.modules.values())})
            except Exception:
                return f"{name}.{key}" if name else key
    return ""
