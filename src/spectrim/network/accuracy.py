"""Scores of networks: `Accuracy`, which also tells which examples are right, and what any `evaluate` of a user gives."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from spectrim.core.score import POINTS, Measurement, Score
from spectrim.network.calling import call, evaluation_mode, first_line, place, tensors_of

Evaluate = Callable[[nn.Module], Any] | Mapping[str, Callable[[nn.Module], Any]]  # see `Scorer`


class Accuracy:
    """Callable from a network to its top-1 or top-k fraction on labelled batches.

    Args:
        batches: Pairs (inputs, labels); read anew at each call, so a list or a loader, no generator.
        topk: An example counts if its label is among so many largest logits; less than there are classes.

    Raises:
        ValueError: If topk is no whole number of at least 1.
    """

    unit, larger_is_better = POINTS, True

    def __init__(self, batches: Iterable[tuple[Tensor, Tensor]], topk: int = 1) -> None:
        """Store the arguments."""
        if not isinstance(topk, int) or isinstance(topk, bool) or topk < 1:
            raise ValueError(f"topk is {topk!r}; it must be a whole number of at least 1, such as 5")
        self.batches, self.topk = batches, topk

    @property
    def name(self) -> str:
        """What the report calls it."""
        return f"top-{self.topk}"

    def __call__(self, model: nn.Module) -> float:
        """Return the fraction of examples whose label is among the largest logits."""
        return float(self.per_example(model).mean())

    def per_example(self, model: nn.Module) -> Tensor:
        """Return 1.0 or 0.0 for every example, in order, (N,).

        Raises:
            ValueError: If there is no example, a batch is no pair of inputs and one class number per example, or it does not
                go through the network.
        """
        device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
        hits = []
        with evaluation_mode(model), torch.no_grad():
            for batch in self.batches:
                if not isinstance(batch, (tuple, list)) or len(batch) != 2:
                    raise ValueError(f"a batch is {type(batch).__name__}; Accuracy needs pairs (inputs, labels)")
                inputs, labels = batch
                logits = logits_of(model, inputs.to(device))
                if labels.shape != logits.shape[:1]:
                    raise ValueError(f"labels have shape {tuple(labels.shape)}; Accuracy needs one class number per example")
                check_labels(labels, logits)
                if self.topk >= logits.shape[1]:
                    raise ValueError(f"topk is {self.topk}, and the network has {logits.shape[1]} outputs; it must be fewer")
                largest = logits.argmax(1, keepdim=True) if self.topk == 1 else logits.topk(self.topk, 1).indices
                hits.append((largest.cpu() == labels.cpu()[:, None]).any(1).double())
        if not hits:
            raise ValueError("there is nothing to evaluate on: the batches are empty (a generator can be read only once)")
        return torch.cat(hits)


def logits_of(model: nn.Module, inputs: Tensor) -> Tensor:
    """Return the first tensor that a network returns for inputs.

    Raises:
        ValueError: If the inputs do not go through it, or it returns no tensor.
    """
    try:
        outputs = call(model, inputs)
    except Exception as error:
        shape = " x ".join(map(str, inputs.shape))
        raise ValueError(f"inputs of {shape} do not go through the network: {first_line(error)}{place(error)}") from error
    tensors = tensors_of(outputs)
    if not tensors:
        raise ValueError(f"the network returns {type(outputs).__name__}; top-1 needs logits of two classes or more, N x K")
    return tensors[0]


def check_labels(labels: Tensor, logits: Tensor) -> None:
    """Raise a ValueError if the outputs are no logits (N, K) of two classes or more, or a label (N,) is none of these."""
    if logits.ndim != 2 or logits.shape[1] < 2:
        shape = " x ".join(map(str, logits.shape))
        raise ValueError(f"the network's output is {shape}; top-1 needs logits of two classes or more, N x K")
    if labels.is_floating_point() or labels.is_complex():
        raise ValueError(f"labels are {str(labels.dtype).removeprefix('torch.')}; they must be whole class numbers")
    low, high, classes = int(labels.min()), int(labels.max()), logits.shape[1]
    if not 0 <= low <= high < classes:
        raise ValueError(
            f"labels are from {low} to {high}, but the network has {classes} outputs; it must be 0 to {classes - 1}"
        )


class Scorer:
    """Calls the user's evaluate safely, and remembers what it gave for the original network.

    Args:
        evaluate: From a network to its score: a number, a `Measurement`, or a dict of these by name; or a dict of such
            functions. The first score decides, the others are reported. A function may carry `name`, `unit` and
            `larger_is_better`, which mean what they mean in `Measurement`. If it has a method
            `per_example(model) -> Tensor (N,)` whose mean is the score, drops get a paired standard error.
        original: The original network.
    """

    def __init__(self, evaluate: Evaluate, original: nn.Module) -> None:
        """Evaluate the original network."""
        self.evaluate = evaluate
        self.before = self._run(original)

    @classmethod
    def of(cls, evaluate: Evaluate | Scorer, original: nn.Module) -> Scorer:
        """Return a scorer, which may be given already."""
        return evaluate if isinstance(evaluate, Scorer) else cls(evaluate, original)

    @property
    def mean(self) -> float:
        """Deciding score of the original network."""
        return self.before[0].mean

    @property
    def unit(self) -> str:
        """Unit of what the deciding score loses."""
        return self.before[0].shown_unit

    def check_drop(self, allowed: float) -> None:
        """Check that a bound on the drop means something: the score is a fraction, or its unit was given.

        Args:
            allowed: The bound, in the unit of the score.

        Raises:
            ValueError: If not.
        """
        first = self.before[0]
        if first.undeclared:
            raise ValueError(
                f"evaluate returned {first.mean:g}; MaxDrop needs a fraction between 0 and 1, such as 0.917, or the unit of "
                "the score: return spectrim.Measurement(value, name, unit)"
            )
        if self.unit == POINTS and allowed >= 100:
            raise ValueError(f"MaxDrop was given {allowed:g}; of {first.name}, allowed are points in [0, 100), such as 1.5")

    def score(self, model: nn.Module) -> Score:
        """Return the scores of the original and of this network.

        Raises:
            ValueError: If evaluate raises, returns no finite number, other scores or the scores of another number of examples
                than before.
        """
        found = self._run(model)
        kinds = [[(each.name, each.unit, each.larger_is_better) for each in side] for side in (self.before, found)]
        if kinds[0] != kinds[1]:
            old, new = (", ".join(f"{name} ({unit})" if unit else name for name, unit, _ in side) for side in kinds)
            raise ValueError(
                f"evaluate gave {old} for the original network and {new} for this one; it must give the same scores in the "
                "same order, with the same units, each time"
            )
        first, *others = (_compared(*pair) for pair in zip(self.before, found, strict=True))
        return replace(first, also=tuple(others))

    def _run(self, model: nn.Module) -> tuple[Measurement, ...]:
        """Return every score of a network, the deciding one first."""
        found: list[Measurement] = []
        for name, function in self.evaluate.items() if isinstance(self.evaluate, Mapping) else [(None, self.evaluate)]:
            found += _measured(function, model, name)
        names = [each.name for each in found]
        twice = [name for name in names if names.count(name) > 1]
        if not found or twice:
            what = f"two scores of the name {twice[0]!r}" if twice else "no score"
            raise ValueError(f"evaluate gave {what}; it must give one or more, each under its own name")
        return tuple(found)


def _measured(function: Any, model: nn.Module, name: str | None) -> list[Measurement]:
    """Return the scores that one function gives.

    Args:
        function: The user's.
        model: The network.
        name: Of the score, if it has one from outside.

    Raises:
        ValueError: If it fails, or returns something else.
    """
    try:
        with evaluation_mode(model), torch.no_grad():
            each = getattr(function, "per_example", None)
            value = function(model) if each is None else each(model)
    except Exception as error:
        if isinstance(function, Accuracy) and isinstance(error, ValueError):
            raise
        raise ValueError(f"evaluate raised {type(error).__name__}: {error}") from error
    if isinstance(value, Mapping):
        return [_checked(each if isinstance(each, Measurement) else Measurement(each), key) for key, each in value.items()]
    if not isinstance(value, Measurement):
        own = {key: getattr(function, key) for key in ("name", "unit", "larger_is_better") if hasattr(function, key)}
        value = Measurement(value, **own)
    return [_checked(value, name)]


def _checked(found: Measurement, name: str | None) -> Measurement:
    """Return a measurement under its name, its value a float or the scores of two examples or more.

    Raises:
        ValueError: If the value is no finite number, or no fraction although its unit is points.
    """
    found, value = found if name is None else replace(found, name=name), found.value
    try:
        if isinstance(value, str | bytes):
            raise TypeError
        number = float(value.double().mean()) if isinstance(value, Tensor) else float(value)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"evaluate returned {type(value).__name__}; it must return a number, larger is better, a spectrim.Measurement, or "
            "a dict of these by name"
        ) from error
    if not math.isfinite(number):
        raise ValueError(f"evaluate returned {number}; it must return a finite number, larger is better")
    if found.unit == POINTS and not 0 <= number <= 1:
        raise ValueError(
            f"evaluate gave {number:g} for {found.name} in points; it must be a fraction between 0 and 1, such as 0.917"
        )
    several = isinstance(value, Tensor) and value.ndim == 1 and len(value) > 1
    return replace(found, value=value.double() if several else number)  # type: ignore[union-attr]


def _compared(before: Measurement, after: Measurement) -> Score:
    """Return the score of two networks.

    Raises:
        ValueError: If they were scored on other numbers of examples.
    """
    known = {"name": before.name, "unit": before.shown_unit, "larger_is_better": before.larger_is_better}
    old, new = before.value, after.value
    if not isinstance(old, Tensor) or not isinstance(new, Tensor):
        return Score(before.mean, after.mean, **known)  # type: ignore[arg-type]
    if len(old) != len(new):
        raise ValueError(
            f"per_example gave {len(old)} values for the original network and {len(new)} for this one; it must score the same "
            "examples each time"
        )
    found = Score(before.mean, after.mean, None, len(old), **known)  # type: ignore[arg-type]
    return replace(found, standard_error=found.scale * float((old.cpu() - new.cpu()).std()) / math.sqrt(len(old)))
