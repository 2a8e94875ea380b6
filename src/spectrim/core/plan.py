"""What was chosen for each layer: the artefact between all jobs, readable and editable as JSON."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any

from spectrim.core.cost import Cost
from spectrim.core.factorization import Factorization, Rank, describe, flaw, is_rank, options, parse
from spectrim.core.layer import Layer, on_vectors
from spectrim.core.markup import html_table
from spectrim.core.progress import Spent
from spectrim.core.reading import parsed, read

FORMAT = "spectrim-plan-1"
FREE = Cost(0, 0)
NOTHING = Spent()


@dataclass(frozen=True)
class Option:
    """One thing that can be done to one layer; leaving it alone is one too (`method` None, `harm` 0).

    Attributes:
        layer: The layer as shapes.
        method: The decomposition, or None.
        rank: Its rank; 0 when the layer is left alone.
        harm: Predicted harm: nats of loss with calibration data, relative squared weight error without.
        bias: Whether the last part has a bias. A bias-corrected fit needs one even where the layer had none.
    """

    layer: Layer
    method: Factorization | None = None
    rank: Rank = 0
    harm: float = 0.0
    bias: bool = False

    @property
    def target(self) -> Layer:
        """The layer with the bias that its replacement has."""
        return replace(self.layer, bias=self.bias or self.layer.bias)

    @property
    def parts(self) -> tuple[Layer, ...]:
        """The layers that stand in its place."""
        if self.method is None:
            return (self.layer,)
        parts = self.method.parts(self.target.convolution, self.rank)
        if self.layer.pad:
            axes = len(self.layer.pad)
            return Layer(self.layer.name, f"ZeroPad{axes}d", (), self.layer.inputs, pad=self.layer.pad), *parts
        return on_vectors(parts) if self.layer.image else parts

    @cached_property
    def cost(self) -> Cost:
        """Cost of the parts."""
        return sum((part.cost for part in self.parts), Cost(0, 0))

    @property
    def title(self) -> str:
        """The method as written in code, or a dash."""
        return describe(self.method) if self.method is not None else "-"


@dataclass(frozen=True)
class Plan(Mapping[str, Option]):
    """Layer name to option, with the cost of the whole original network; layers that are not named are left alone.

    Attributes:
        choices: Layer name to option.
        original: Cost of the whole original network.
        spent: What choosing took; not part of what the plan is, and not saved with it.
    """

    choices: dict[str, Option] = field(default_factory=dict)
    original: Cost = FREE
    spent: Spent = field(default=NOTHING, compare=False, repr=False)

    def __getitem__(self, name: str) -> Option:
        """Return the option of this layer."""
        return self.choices[name]

    def __iter__(self) -> Iterator[str]:
        """Iterate over the layer names in order of execution."""
        return iter(self.choices)

    def __len__(self) -> int:
        """Return the number of layers that are replaced."""
        return len(self.choices)

    @property
    def cost(self) -> Cost:
        """Cost of the whole network with the plan applied."""
        return sum((option.cost - option.layer.cost for option in self.choices.values()), self.original)

    @property
    def harm(self) -> float:
        """Sum of the predicted harms."""
        return sum(option.harm for option in self.choices.values())

    def _repr_html_(self) -> str:
        """Return a plain table for notebooks."""
        rows = []
        for name, option in self.choices.items():
            (old, new), harm = (option.layer.cost, option.cost), f"{option.harm:.3g}"
            numbers = (old.params, new.params, old.macs, new.macs)
            rows.append((name, option.title, str(option.rank), *(f"{number:,}" for number in numbers), harm))
        head = ("layer", "method", "rank", "parameters", "after", "MACs", "after", "predicted harm")
        return html_table(f"Plan: {len(rows)} layer{'s' * (len(rows) != 1)} replaced", head, rows)

    def to_json(self) -> str:
        """Return the plan as indented JSON. Ranks and methods may be edited by hand; costs are derived when it is read.

        Warns if a method's class was defined in a script or a notebook itself, which no other program can import.

        Raises:
            TypeError: If a method is no frozen dataclass or has an option that JSON cannot hold.
        """
        kinds = {type(option.method) for option in self.choices.values() if option.method is not None}
        names = sorted(kind.__name__ for kind in kinds if kind.__module__ == "__main__")
        if names:
            warnings.warn(
                f"{' and '.join(names)} was defined in the program that runs (__main__), so no other program can read this "
                "plan; define it in a file of its own and import it from there",
                stacklevel=2,
            )
        return self.text()

    def text(self) -> str:
        """Return the text of `to_json`, for those who only compare it."""
        rows = {name: _row(option) for name, option in self.choices.items()}
        text = {"format": FORMAT, "original": asdict(self.original), "cost": asdict(self.cost), "layers": rows}
        return json.dumps(text, indent=1) + "\n"

    @staticmethod
    def from_json(text: str) -> Plan:
        """Read `to_json`'s text, also after editing.

        Raises:
            ValueError: If the text is no plan, or a method, an option or a rank is not possible.
        """
        data = parsed(text, "plan")
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise ValueError(f"the text is no plan: its 'format' must be {FORMAT!r}")
        try:
            file = read(_File, data, "")
            rows = {name: (row, _unmade(name, row)) for name, row in file.layers.items()}
        except ValueError as error:
            raise ValueError(f"the plan is incomplete or has a field of the wrong kind: {error}") from error
        return Plan({name: _option(option, row) for name, (row, option) in rows.items()}, file.original)


@dataclass(frozen=True)
class _Row:
    """A layer of a plan as JSON has it."""

    layer: Mapping[str, Any]
    method: str
    rank: Any
    options: Mapping[str, Any] | None = None
    module: str = ""
    harm: float = 0.0
    bias: bool = False


@dataclass(frozen=True)
class _File:
    """A plan as JSON has it."""

    layers: Mapping[str, _Row]
    original: Cost


def _row(option: Option) -> dict[str, Any]:
    """Return an option as JSON has it; of a third party's method also where its class is defined."""
    method, module = option.method, type(option.method).__module__
    assert method is not None
    if wrong := flaw(method):
        raise TypeError(wrong)
    given = options(method)
    return {
        "method": type(method).__name__,
        **({} if module.startswith("spectrim.") else {"module": module}),
        **({"options": given} if given else {}),
        "rank": list(option.rank) if isinstance(option.rank, tuple) else option.rank,
        "bias": option.bias,
        "harm": option.harm,
        "layer": option.layer.to_dict(),
    }


def _unmade(name: str, row: _Row) -> Option:
    """Return a row's option without its method, of which nothing is asked yet.

    Raises:
        ValueError: If a field is of the wrong kind, or the layer's shapes do not go together.
    """
    layer = replace(Layer.from_dict(row.layer), name=name)  # a row that was copied is about the layer that it stands at
    if not name or not layer.weighted:
        raise ValueError(f"the row of {name!r} describes {layer.kind!a}, which is no layer of a network with a weight")
    if not math.isfinite(row.harm):
        raise ValueError(f"the harm of {name!r} is {row.harm}")
    rank = tuple(row.rank) if isinstance(row.rank, list) else row.rank
    return Option(layer, None, rank, float(row.harm), row.bias)


def _option(option: Option, row: _Row) -> Option:
    """Return the option with its method, which must exist and take the options, the layer and the rank."""
    method = parse(row.method, row.options, row.module)
    if not is_rank(option.rank):
        raise ValueError(f"rank {option.rank!r} of layer {option.layer.name!r} is not a whole number or a tuple of them")
    method.check(option.layer.convolution, option.rank)
    return replace(option, method=method)
