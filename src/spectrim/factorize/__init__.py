"""The decompositions, one a file, and the literal table of their names for plans and the command line."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, fields
from typing import Any

from spectrim.factorize._base import Factorization, Fit, Moments, Rank
from spectrim.factorize.channel import ChannelSVD
from spectrim.factorize.cp import CP
from spectrim.factorize.input import InputSVD
from spectrim.factorize.spatial import SpatialSVD
from spectrim.factorize.tiled import TiledSVD
from spectrim.factorize.tt import TensorTrain
from spectrim.factorize.tucker import Tucker2

FACTORIZATIONS: dict[str, type[Factorization]] = {
    "ChannelSVD": ChannelSVD,
    "InputSVD": InputSVD,
    "SpatialSVD": SpatialSVD,
    "Tucker2": Tucker2,
    "CP": CP,
    "TensorTrain": TensorTrain,
    "TiledSVD": TiledSVD,
}


def describe(method: Factorization) -> str:
    """Return the method as written in code, such as `SpatialSVD(axis=1)`; default options are left out."""
    values = asdict(method)  # type: ignore[call-overload]
    options = [f"{f.name}={values[f.name]!r}" for f in fields(method) if values[f.name] != f.default]  # type: ignore[arg-type]
    return f"{type(method).__name__}({', '.join(options)})" if options else type(method).__name__


def parse(name: str, options: dict[str, Any] | None = None) -> Factorization:
    """Return the method of this name: one of ours, or a subclass of `Factorization` that is in memory.

    Raises:
        ValueError: If there is no such method or it does not take the options.
    """
    table = FACTORIZATIONS | {kind.__name__: kind for kind in _subclasses(Factorization)}
    if name not in table:
        raise ValueError(f"there is no decomposition {name!r}; allowed are {', '.join(FACTORIZATIONS)}")
    try:
        return table[name](**options or {})
    except TypeError as error:
        raise ValueError(f"{name} does not take the options {options}") from error


def _subclasses(kind: Any) -> Iterator[type[Factorization]]:
    for below in kind.__subclasses__():
        yield below
        yield from _subclasses(below)


__all__ = [
    "CP",
    "FACTORIZATIONS",
    "ChannelSVD",
    "Factorization",
    "Fit",
    "InputSVD",
    "Moments",
    "Rank",
    "SpatialSVD",
    "TensorTrain",
    "TiledSVD",
    "Tucker2",
    "describe",
    "parse",
]
