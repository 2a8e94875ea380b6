"""Old names that still work and say what they are called now."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

Parameters = ParamSpec("Parameters")
Returned = TypeVar("Returned")


def renamed(**names: str) -> Callable[[Callable[Parameters, Returned]], Callable[Parameters, Returned]]:
    """Make a decorator that accepts keyword arguments by their old names, with a DeprecationWarning.

    Args:
        names: From each old name to the present one.

    Returns:
        The decorator.

    Example:
        >>> @renamed(colour="color")
        ... def paint(*, color):
        ...     return color
        >>> with warnings.catch_warnings(record=True) as caught:
        ...     warnings.simplefilter("always")
        ...     paint(colour="red"), str(caught[0].message)
        ('red', 'paint(colour=...) is deprecated; write paint(color=...)')
    """

    def decorate(function: Callable[Parameters, Returned]) -> Callable[Parameters, Returned]:
        @functools.wraps(function)
        def wrapper(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Returned:
            given: dict[str, Any] = kwargs
            for old, new in names.items():
                if old not in given:
                    continue
                if new in given:
                    raise TypeError(f"{function.__name__} got both {old}= and {new}=, which are one argument; give {new}= only")
                message = f"{function.__name__}({old}=...) is deprecated; write {function.__name__}({new}=...)"
                warnings.warn(message, DeprecationWarning, stacklevel=2)
                given[new] = given.pop(old)
            return function(*args, **kwargs)

        return wrapper

    return decorate
