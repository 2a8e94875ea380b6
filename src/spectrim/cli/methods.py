"""What --methods and --search mean: names of ours, and decompositions and rank selections of third parties to import."""

from __future__ import annotations

import contextlib
import difflib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypeVar

from spectrim.cli.models import import_callable, made
from spectrim.core.factorization import Factorization, flaw, known
from spectrim.core.plan import Plan
from spectrim.core.search import Search
from spectrim.factorize import CP, ChannelSVD, InputSVD, PivotSVD, SpatialSVD, TensorTrain, TiledSVD, Tucker2
from spectrim.pipeline.config import Config
from spectrim.search import ALDS, VBMF, Energy, Greedy, Interaction, Knapsack, Portfolio, Similarity, Uniform

Made = TypeVar("Made")
METHODS: dict[str, tuple[Factorization, ...]] = {
    "ChannelSVD": (ChannelSVD(),),
    "PivotSVD": (PivotSVD(),),
    "InputSVD": (InputSVD(),),
    "SpatialSVD": (SpatialSVD(), SpatialSVD(axis=1)),
    "Tucker2": (Tucker2(),),
    "CP": (CP(), CP(depthwise="kernel")),
    "TensorTrain": (TensorTrain(),),
    "TiledSVD": (TiledSVD(),),
}
SEARCHES: dict[str, Search] = {
    "ALDS": ALDS(),
    "Energy": Energy(),
    "Greedy": Greedy(),
    "Interaction": Interaction(),
    "Knapsack": Knapsack(),
    "Portfolio": Portfolio(),
    "Similarity": Similarity(),
    "Uniform": Uniform(),
    "VBMF": VBMF(),
}


def methods_of(text: str | None) -> tuple[Factorization, ...]:
    """Return the decompositions of a list of names, or of callables that make them."""
    if text is None:
        return Config().methods
    found: dict[Factorization, None] = {}
    for name in _words(text):
        if ":" in name:
            method = _made("--methods", name, Factorization)  # type: ignore[type-abstract]
            if wrong := flaw(method):
                raise ValueError(f"--methods: {wrong}")
            found[method] = None
        elif name in METHODS:
            found |= dict.fromkeys(METHODS[name])
        else:
            words = f"{_meant(name, METHODS, 'MyMethod')}; allowed are {', '.join(METHODS)} and my_module:MyMethod"
            raise ValueError(f"--methods: there is no decomposition {name!r}{words}")
    return tuple(found)


def search_of(name: str | None) -> Search:
    """Return the rank selection of this name, or of a callable that makes it."""
    if name is None:
        return Config().search
    if ":" in name:
        return _made("--search", name, Search)  # type: ignore[type-abstract]
    if name not in SEARCHES:
        words = f"{_meant(name, SEARCHES, 'MySearch')}; allowed are {', '.join(SEARCHES)} and my_module:MySearch"
        raise ValueError(f"--search: there is no rank selection {name!r}{words}")
    return SEARCHES[name]


def only_imports(text: str | None) -> bool:
    """Return whether every word of --methods, if there is one, is a callable to import."""
    return all(":" in name for name in _words(text or ""))


def plan_of(name: str, methods: str | None) -> Plan:
    """Return the plan in a file.

    Args:
        name: The file.
        methods: What --methods says; the classes that it names are imported, as the plan may need them.
    """
    try:
        text = Path(name).read_text()
        import_methods(text, methods)
        return Plan.from_json(text)
    except OSError as error:
        raise ValueError(f"the plan {name!r} cannot be read: {error.strerror}") from error
    except ValueError as error:
        reason = "it is no text" if isinstance(error, UnicodeDecodeError) else str(error)
        raise ValueError(f"the plan {name!r} cannot be used: {reason}") from error


def import_methods(plan: str, methods: str | None, recorded: Iterable[str] = ()) -> None:
    """Import the classes of a plan's decompositions that are third parties' and not in memory yet.

    Args:
        plan: Text of the plan, whose rows name the modules.
        methods: What --methods says.
        recorded: Specs that an earlier run had, which may not be there any more.

    Raises:
        ValueError: If one cannot be imported; the text says how to tell where it is.
    """
    for spec in _words(methods or ""):
        if ":" in spec:
            with named("--methods"):
                import_callable(spec)
    told = {kind.__name__ for kind in known().values()} if methods else set()
    missing = [
        (name, module) for name, module in _third_parties(plan) if f"{module}:{name}" not in known() and name not in told
    ]
    for spec in recorded if missing else ():
        _tried(spec)
    for name, module in missing:
        reason = "" if f"{module}:{name}" in known() else _tried(f"{module}:{name}")
        if not any(kind.__name__ == name for kind in known().values()):
            raise ValueError(
                f"there is no decomposition {name!r}; it was defined in the module {module!r} ({reason}); say where it is with "
                f"--methods my_module:{name} or --methods file.py:{name}"
            )


def _third_parties(plan: str) -> list[tuple[str, str]]:
    """Return name and module of each decomposition of a plan that is not ours; none of a text that is no plan."""
    try:
        rows = json.loads(plan)["layers"].values()
        return list(dict.fromkeys((str(row["method"]), str(row["module"])) for row in rows if row.get("module")))
    except (ValueError, KeyError, TypeError, AttributeError):
        return []


def _tried(spec: str) -> str:
    """Import a callable if it is there, and return why it is not."""
    try:
        import_callable(spec)
    except ValueError as error:
        return str(error)
    return "which has none that is a decomposition"


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",")] if text else []


@contextlib.contextmanager
def named(option: str) -> Iterator[None]:
    """Say in an error which option, or which option's images, it is about."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{option}: {error}") from error


def _made(flag: str, spec: str, kind: type[Made]) -> Made:
    """Return what `my_module:MyMethod` makes, a third party's decomposition or rank selection."""
    with named(flag):
        found = made(spec)
    if not isinstance(found, kind):
        raise ValueError(f"{flag}: {spec!r} made {type(found).__name__}; it must make a spectrim.{kind.__name__}")
    return found


def _meant(name: str, names: Iterable[str], example: str) -> str:
    """Return the suggestion for a name that is none of ours: one that is near, or what a module's is written like."""
    place, dot, last = name.rpartition(".")
    if dot:
        return f" (did you mean {name}:{example}?)" if last == "py" else f" (did you mean {place}:{last}?)"
    close = difflib.get_close_matches(name.lower(), [each.lower() for each in names], 1)
    return f" (did you mean {next(each for each in names if each.lower() == close[0])}?)" if close else ""
