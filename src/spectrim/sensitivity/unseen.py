"""Harms of options on images that no fit has seen: all of them from one forward pass and a few backward ones.

What an option changes in a layer's kernel, D (T, n), changes the harm of one image by 1/2 (v^T J D x)^2 to second order, where
J is the derivative of the network's outputs by the layer's, x its lowered input and v random with E[v v^T] = H, the curvature
of the harm at the outputs. Summed over the positions of the image that is 1/2 <W', D>^2 with W' = sum J^T v (x - mean)^T, the
image's own gradient by the kernel: positions that add up do so here too. So an option costs one inner product an image,
whatever its method. A few ranks of each method are enough: what the closed form gets wrong, as a factor, is smooth in between.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from spectrim.core.layer import Layer
from spectrim.network.calling import Example, batch_size
from spectrim.sensitivity.divergence import Harm, output_harm
from spectrim.sensitivity.moments import awaiting, grouped, lowered, pulled_back

DRAWS = 4  # random vectors v of each image
RANKS = 8  # of each method, at which harms are sketched
AT_ONCE = 1 << 25  # numbers of lowered inputs, or of gradients, that are looked at together
STANDS_OUT = 1.2  # how far the logarithm of a layer's factor is from the other layers' then
LEAST = 1e-6  # of a method's largest harm: options below it are as good as exact

Harms = list[list[float]]  # of each method that a layer is offered, of each of its ranks


@dataclass(frozen=True, eq=False)
class Changes:
    """What the options of one layer change in its kernel.

    Attributes:
        layer: The layer.
        mean: Mean of the lowered input (g, n), or of the output (g, T).
        kernels: K changes D of the kernel, (K, g, T, n); or of the output's map to itself, (K, g, T, T).
        inputs: Whether `kernels` act on inputs, else on outputs.
    """

    layer: Layer
    mean: Tensor
    kernels: Tensor
    inputs: bool = True


class OptionSketch:
    """The harm of every option on every image, gathered a batch at a time.

    Args:
        changes: Layer name to its options' changes.
        harm: See `spectrim.sensitivity.divergence`.
        seed: Of the random vectors.
    """

    def __init__(self, changes: Mapping[str, Changes], *, harm: Harm = output_harm, seed: int = 0) -> None:
        """Begin with nothing."""
        self.changes, self.harm = changes, harm
        self.noise = torch.Generator().manual_seed(seed)
        self.found: dict[str, list[Tensor]] = {name: [] for name in changes}

    def add(self, model: nn.Module, batch: Example) -> None:
        """Run one batch forward, and back once for each random vector.

        Args:
            model: The network; it is not changed.
            batch: Inputs in the form of the example.
        """
        size = batch_size(batch)
        sums = {
            name: torch.zeros(size, len(each.kernels), dtype=torch.float64, device="cpu") for name, each in self.changes.items()
        }
        total = {name: torch.zeros_like(each) for name, each in sums.items()}
        hooks = {name: _observer(each, sums[name]) for name, each in self.changes.items()}
        for _ in pulled_back(model, batch, hooks, self.harm, self.noise, draws=DRAWS):
            for name, each in sums.items():
                total[name] += each.square() / (2 * DRAWS)
                each.zero_()
        for name, each in total.items():
            self.found[name].append(each)

    def harms(self) -> dict[str, Tensor]:
        """Return layer name to the harms of its options on each image, (N, K)."""
        return {name: torch.cat(parts) for name, parts in self.found.items()}


def _observer(changes: Changes, sums: Tensor) -> Callable[..., Tensor]:
    def observe(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        x = args[0].detach() if changes.inputs else output.detach()
        x = x.clone()  # what follows may change it in place

        def take(grad: Tensor) -> None:
            with torch.no_grad(), torch.autocast(grad.device.type, enabled=False):
                products = _products(changes, x, grad)  # (rows, K)
                sums.add_(products.double().unflatten(0, (len(sums), -1)).sum(1).cpu())

        return awaiting(changes.layer, output, take)

    return observe


def _products(changes: Changes, x: Tensor, grad: Tensor) -> Tensor:
    """Return <W', D> for every row of a batch and every change, (rows, K)."""
    layer, kernels = changes.layer, changes.kernels
    g, t, n = kernels.shape[1:]
    positions = max(1, grad[0].numel() // (g * t))
    step = max(1, AT_ONCE // (g * n * max(positions, t)))
    flat, mean = kernels.flatten(1).T, changes.mean[:, None, None].to(kernels)
    rows = []
    for start in range(0, len(x), step):
        part = x[start : start + step].float()
        seen = lowered(layer, part) if changes.inputs else grouped(layer, part)
        slope = grouped(layer, grad[start : start + step].float()).unflatten(1, (len(part), -1))  # (g, rows, positions, T)
        own = slope.mT @ (seen.unflatten(1, (len(part), -1)) - mean)  # (g, rows, T, n)
        rows.append(own.transpose(0, 1).flatten(1) @ flat)
    return torch.cat(rows)


def spread(harms: Sequence[float]) -> list[int]:
    """Return the numbers of at most `RANKS` options of a method, evenly spread over the logarithms of their harms."""
    values = np.array(harms)
    alive = np.flatnonzero(values > LEAST * values.max(initial=0))
    if len(alive) <= RANKS:
        return [int(index) for index in alive]
    logs = np.log(values[alive])
    wanted = np.linspace(logs.min(), logs.max(), RANKS)
    return sorted({int(alive[np.abs(logs - level).argmin()]) for level in wanted})


@dataclass(frozen=True)
class Sketched:
    """Harms of some options of one method on one layer, by closed form and on unseen images.

    Attributes:
        closed: The closed forms, (K,).
        harms: On each image, (N, K).
    """

    closed: np.ndarray
    harms: np.ndarray

    @property
    def factors(self) -> np.ndarray:
        """Logarithm of what the closed form is to be multiplied by, (K,)."""
        found: np.ndarray = np.log(self.harms.mean(0) / self.closed)
        return found

    @property
    def errors(self) -> np.ndarray:
        """Standard error of `factors`, (K,)."""
        found: np.ndarray = self.harms.std(0, ddof=1) / self.harms.mean(0) / math.sqrt(len(self.harms))
        return found

    @property
    def telling(self) -> Sketched:
        """The options that do any harm; those of a branch that its normalisation silences say nothing of others."""
        alive = (self.harms > 0).any(0) & (self.closed > 0)
        return Sketched(self.closed[alive], self.harms[:, alive])


def corrected(sketches: Sequence[Sequence[Sketched]], closed: Sequence[Harms]) -> list[Harms]:
    """Return closed forms multiplied by what unseen images say.

    A factor is drawn towards the network's mean one as far as its error is large against how factors differ (empirical Bayes).
    Between the options that were sketched its logarithm is linear in that of the closed form.

    Args:
        sketches: Of each layer, for each method that it is offered.
        closed: Closed forms of all options, for the same.
    """
    sketches = [[each.telling for each in layer] for layer in sketches]
    known = [each for layer in sketches for each in layer if len(each.closed)]
    if not known:
        return [[list(harms) for harms in own] for own in closed]
    logs, errors = np.concatenate([each.factors for each in known]), np.concatenate([each.errors for each in known])
    weights = 1 / (errors**2 + 1e-2)
    middle = float((weights * logs).sum() / weights.sum())
    between = max(float((weights * ((logs - middle) ** 2 - errors**2)).sum() / weights.sum()), 1e-4)

    def right(sketch: Sketched, harms: Sequence[float]) -> list[float]:
        values, order = np.array(harms, dtype=float), np.argsort(sketch.closed)
        trust = between / (between + sketch.errors**2)
        levels, factors = np.log(sketch.closed[order]), (middle + trust * (sketch.factors - middle))[order]
        if not len(levels):
            return list(values * math.exp(middle))
        return list(values * np.exp(np.interp(np.log(np.maximum(values, 1e-300)), levels, factors)))

    return [
        [right(sketch, harms) for sketch, harms in zip(layer, own, strict=True)]
        for layer, own in zip(sketches, closed, strict=True)
    ]


def cautious(sketches: Sequence[Sequence[Sketched]], closed: Sequence[Harms], right: Sequence[Harms]) -> list[Harms]:
    """Return closed forms times the network's own factor, and in layers that stand out what unseen images say.

    Args:
        sketches: Of each layer, for each method that it is offered.
        closed: Closed forms of all options, for the same.
        right: From `corrected`.
    """
    factors = [np.concatenate([np.zeros(0), *(each.telling.factors for each in layer)]) for layer in sketches]
    everything = np.concatenate([np.zeros(0), *factors])
    if not len(everything):
        return [[list(harms) for harms in own] for own in closed]
    middle, result = float(np.median(everything)), []
    for own, plain, seen in zip(factors, closed, right, strict=True):
        stands_out = len(own) > 0 and abs(float(np.median(own)) - middle) > STANDS_OUT
        result.append(seen if stands_out else [[harm * math.exp(middle) for harm in harms] for harms in plain])
    return result
