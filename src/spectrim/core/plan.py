"""What was chosen for each layer: the artefact between all jobs, readable and editable as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any

from spectrim.core.cost import Cost
from spectrim.core.factorization import Factorization, Rank, describe, parse
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
        """Return the plan as indented JSON. Ranks and methods may be edited by hand; costs are derived when it is read."""
        rows = {
            name: {
                "method": type(option.method).__name__,
                **_module(option.method),
                **({"options": asdict(option.method)} if asdict(option.method) else {}),  # type: ignore[call-overload]
                "rank": list(option.rank) if isinstance(option.rank, tuple) else option.rank,
                "bias": option.bias,
                "harm": option.harm,
                "layer": option.layer.to_dict(),
            }
            for name, option in self.choices.items()
        }
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
            choices = {name: _option(row) for name, row in data["layers"].items()}
            return Plan(choices, Cost(**data["original"]))
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"the plan is incomplete or has a field of the wrong kind: {error!r}") from error


def _module(method: Factorization | None) -> dict[str, str]:
    """Return where the class of a third party's method is defined."""
    module = type(method).__module__
    return {} if module.startswith("spectrim.") else {"module": module}


def _option(row: dict[str, Any]) -> Option:
    method = parse(row["method"], row.get("options"), row.get("module", ""))
    rank = tuple(row["rank"]) if isinstance(row["rank"], list) else row["rank"]
    option = Option(Layer.from_dict(row["layer"]), method, rank, float(row.get("harm", 0.0)), bool(row.get("bias", False)))
    method.check(option.layer.convolution, rank)
    return option
