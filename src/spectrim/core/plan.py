"""What was chosen for each layer: the artefact between all jobs, readable and editable as JSON."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any

from spectrim.core.cost import Cost
from spectrim.core.factorization import Factorization, Rank, describe, flaw, is_rank, options, parse
from spectrim.core.layer import Layer, on_vectors
from spectrim.core.progress import Spent

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
        try:
            data = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"the plan is no JSON: {error}") from error
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise ValueError(f"the text is no plan: its 'format' must be {FORMAT!r}")
        try:
            rows = {name: _read(row) for name, row in data["layers"].items()}
            original = Cost(**data["original"])
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            raise ValueError(f"the plan is incomplete or has a field of the wrong kind: {error!r}") from error
        return Plan({name: _option(*row) for name, row in rows.items()}, original)


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


def _read(row: dict[str, Any]) -> tuple[Option, str, dict[str, Any], str]:
    """Return a row's option without its method, and of the method the name, options and module; nothing is asked of it yet.

    What is missing or of the wrong kind is a KeyError, TypeError, ValueError, AttributeError or IndexError.
    """
    rank = tuple(row["rank"]) if isinstance(row["rank"], list) else row["rank"]
    option = Option(Layer.from_dict(row["layer"]), None, rank, float(row.get("harm", 0.0)), bool(row.get("bias", False)))
    _ = option.layer.convolution, option.layer.cost  # the shapes go together
    return option, row["method"], dict(row.get("options") or {}), row.get("module", "")


def _option(option: Option, name: str, given: dict[str, Any], module: str) -> Option:
    """Return the option with its method, which must exist and take the options, the layer and the rank."""
    method = parse(name, given, module)
    if not is_rank(option.rank):
        raise ValueError(f"rank {option.rank!r} of layer {option.layer.name!r} is not a whole number or a tuple of them")
    method.check(option.layer.convolution, option.rank)
    return replace(option, method=method)
