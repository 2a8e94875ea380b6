"""How well networks do on labelled images: top-1, paired drops with their standard error, divergence of the outputs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from common.images import LabelledImages


def mean_and_error(values: Tensor) -> tuple[float, float]:
    """Return the mean of values (N,), and its standard error."""
    return float(values.double().mean()), float(values.double().std()) / len(values) ** 0.5


def top_1(hits: Tensor, control: Tensor | None = None) -> dict[str, float]:
    """Return top-1 in per cent from which images a network gets right, (N,), and the paired difference from a control's."""
    mean, error = mean_and_error(100 * hits)
    row = {"top-1": mean, "error": error}
    if control is not None:
        row["less control"], row["gap error"] = mean_and_error(100 * (hits - control))
    return row


class Judge:
    """Compares networks with an original one on labelled images; drops are points of top-1, divergences nats.

    Args:
        original: Its answers are remembered.
        batches: Images and labels.
    """

    def __init__(self, original: nn.Module, batches: Sequence[LabelledImages]) -> None:
        """Run the original network."""
        self.batches = batches
        self.labels = torch.cat([labels.cpu() for _, labels in batches])
        self.reference = self.answers(original)

    @torch.no_grad()
    def answers(self, model: nn.Module) -> Tensor:
        """Return the outputs (N, K) of a network in eval mode, on the CPU."""
        device = next(model.parameters()).device
        return torch.cat([model.eval()(images.to(device)).float().cpu() for images, _ in self.batches])

    def hits(self, answers: Tensor) -> Tensor:
        """Return 1.0 or 0.0 for every image, (N,)."""
        return (answers.argmax(1) == self.labels).double()

    def harm(self, answers: Tensor) -> Tensor:
        """Return the KL divergence from the original's answers for every image, (N,)."""
        found, reference = answers.log_softmax(1), self.reference.log_softmax(1)
        return functional.kl_div(found, reference, log_target=True, reduction="none").sum(1)

    def compare(self, model: nn.Module) -> dict[str, float]:
        """Return top-1 fractions before and after, the paired drop and the divergence, with standard errors."""
        return self.row(self.answers(model))

    def row(self, answers: Tensor) -> dict[str, float]:
        """Return what `compare` does of a network's outputs."""
        before, after = self.hits(self.reference), self.hits(answers)
        drop, error = mean_and_error(100 * (before - after))
        harm, harm_error = mean_and_error(self.harm(answers))
        row = {"before": float(before.mean()), "after": float(after.mean()), "drop": drop, "standard error": error}
        return row | {"KL": harm, "KL standard error": harm_error, "test images": len(self.labels)}

    def gain(self, model: nn.Module, other: nn.Module) -> dict[str, float]:
        """Return by how much a network is better than another, paired."""
        return self.paired(self.answers(model), self.answers(other))

    def paired(self, first: Tensor, second: Tensor) -> dict[str, float]:
        """Return what `gain` does of the outputs of two networks."""
        points, points_error = mean_and_error(100 * (self.hits(first) - self.hits(second)))
        nats, nats_error = mean_and_error(self.harm(second) - self.harm(first))
        return {"gain": points, "gain error": points_error, "KL gain": nats, "KL gain error": nats_error}
