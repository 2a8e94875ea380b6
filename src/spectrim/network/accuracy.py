"""Top-1 accuracy as an `evaluate` function that also tells which examples it got right, so that drops have a standard error."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import replace

import torch
from torch import Tensor, nn

from spectrim.core.records import Score
from spectrim.network.calling import call, evaluation_mode, first_line, place, tensors_of

Evaluate = Callable[[nn.Module], float]


class Accuracy:
    """Callable from a network to its top-1 fraction on labelled batches.

    Args:
        batches: Pairs (inputs, labels); read anew at each call, so a list or a loader, no generator.
    """

    def __init__(self, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Store the batches."""
        self.batches = batches

    def __call__(self, model: nn.Module) -> float:
        """Return the fraction of examples whose largest logit is at the label."""
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
                hits.append((logits.argmax(1).cpu() == labels.cpu()).double())
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
    """Calls the user's evaluate safely, and remembers the original network's answer.

    Args:
        evaluate: Larger is better. If it has a method `per_example(model) -> Tensor (N,)` whose mean is the score, drops get
            a paired standard error.
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
        """Score of the original network."""
        return float(self.before.mean()) if isinstance(self.before, Tensor) else self.before

    def check_fraction(self) -> None:
        """Check that the original network's score is a fraction, so that drops in points mean something.

        Raises:
            ValueError: If it is not between -1 and 1.
        """
        if abs(self.mean) > 1:
            raise ValueError(f"evaluate returned {self.mean:g}; MaxDrop needs a fraction between 0 and 1, such as 0.917")

    def score(self, model: nn.Module) -> Score:
        """Return the scores of the original and of this network.

        Raises:
            ValueError: If evaluate raises, returns no finite number, or scores another number of examples than before.
        """
        before, after = self.before, self._run(model)
        if isinstance(before, float) or isinstance(after, float):
            return Score(float(before), float(after))
        if len(before) != len(after):
            raise ValueError(
                f"per_example gave {len(before)} values for the original network and {len(after)} for this one; it must score "
                "the same examples each time"
            )
        lost = before - after
        found = Score(float(before.mean()), float(after.mean()), None, len(lost))
        return replace(found, standard_error=found.scale * float(lost.std()) / math.sqrt(len(lost))) if len(lost) > 1 else found

    def _run(self, model: nn.Module) -> float | Tensor:
        try:
            with evaluation_mode(model), torch.no_grad():
                each = getattr(self.evaluate, "per_example", None)
                value = self.evaluate(model) if each is None else each(model)
        except Exception as error:
            if isinstance(self.evaluate, Accuracy) and isinstance(error, ValueError):
                raise
            raise ValueError(f"evaluate raised {type(error).__name__}: {error}") from error
        try:
            if isinstance(value, str | bytes):
                raise TypeError
            number = float(value.double().mean()) if isinstance(value, Tensor) else float(value)
        except (TypeError, ValueError) as error:
            raise ValueError(f"evaluate returned {type(value).__name__}; it must return a number, larger is better") from error
        if not math.isfinite(number):
            raise ValueError(f"evaluate returned {number}; it must return a finite number, larger is better")
        return value.double() if isinstance(value, Tensor) and value.ndim == 1 and len(value) > 1 else number
