"""Asymmetric refit: each layer fitted, in execution order, to the original's outputs given what the compressed prefix gives it.

After Zhang et al. 2016, section 3.3, with reduced-rank regression. With C the covariance of the compressed stream's lowered
input and K its cross-covariance with the targets, the regression W* = (K + d W)(C + d I)^-1 with a small ridge d towards
W is the dense kernel that pays back the drift; the method then factorizes W* in the norm of (C + d I, G). Layers whose
lowered input is too large are regressed on their own dense response instead (T x T).
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from spectrim.core.factorization import Moments
from spectrim.core.layer import Layer
from spectrim.core.plan import Plan
from spectrim.factorize.algebra import eye_like, ridge
from spectrim.network.build import Target, factorized, original_bias, own_target, replacement, working_weight
from spectrim.network.calling import Example, batch_size, count, head
from spectrim.network.copying import duplicate
from spectrim.network.surgery import module_of
from spectrim.refit.stream import Arrival, TwinStream
from spectrim.refit.trace import trace
from spectrim.sensitivity.covariance import Covariance
from spectrim.sensitivity.moments import Sampler, grouped, lowered, spatial_shape

RIDGE = 0.01  # towards the original kernel, relative to the mean diagonal of C
MEMORY = 4 << 30  # bytes of live activations that the twin stream may hold
TWICE = "one forward calls it more than once"
POOLED = "it has too many groups for a covariance of each one's inputs"
LIVE = 6  # live activations of one forward, in units of its largest one (a residual block holds about as many)


@dataclass(frozen=True)
class RefittedLayer:
    """One layer of the compressed network.

    Attributes:
        name: The layer.
        module: What stands in its place.
        target: What it was fitted to; other options of the layer can be fitted to the same.
        images: How many images the regression saw; 0 where the layer was fitted to the original network's own inputs.
        reason: Why it was, then.
    """

    name: str
    module: nn.Module
    target: Target
    images: int
    reason: str = ""


def refit(  # noqa: PLR0913
    model: nn.Module,
    plan: Plan,
    batches: Sequence[Example],
    moments: Mapping[str, Moments],
    *,
    seed: int = 0,
    memory: int = MEMORY,
    unit: int = 1,
    given: Mapping[str, nn.Module] | None = None,
) -> Generator[RefittedLayer, None, None]:
    """Yield the planned layers, each fitted to inputs as the layers yielded before make them.

    It costs about two forward passes over the images used. Layers that one forward calls more than once are fitted to
    their own original inputs, and come first.

    Args:
        model: The original network; it is not changed.
        plan: What to do.
        batches: Calibration inputs; as many of them are used as `memory` has room for.
        moments: Layer name to moments.
        seed: Of sampled positions.
        memory: Bytes that the live activations may take.
        unit: Batches are cut to multiples of this only, for networks whose examples belong together, such as frames of clips.
        given: Planned layers that are fitted already, and what stands in their place: they are not fitted and not yielded.

    Raises:
        RuntimeError: If the forward takes another path for other inputs.
    """
    given = given or {}
    if not plan.keys() - given.keys():
        return
    original = duplicate(model).eval()
    found = trace(original, list(plan), head(batches[0], max(2, unit)))
    found = replace(found, additions={i: each for i, each in found.additions.items() if each.layer not in given})
    batches = _fitting(batches, found.bytes_per_example, memory, unit)
    images = count(batches)
    sampler = Sampler(seed, images)
    modules = {name: module_of(model, option) for name, option in plan.items()}
    names = [name for name in plan if name not in given]
    alone = [name for name in names if name in found.once and not moments[name].pooled]
    fixed = {name: factorized(plan[name], modules[name], moments[name]) for name in names if name not in alone}
    for name, new in fixed.items():
        reason = POOLED if moments[name].pooled else TWICE
        yield RefittedLayer(name, new, own_target(plan[name].layer, modules[name], moments[name]), 0, reason)
    stream = TwinStream(original, found, {**fixed, **given})
    for arrived in stream.arrivals(alone, batches):
        name = arrived[0].name
        option, module = plan[name], modules[name]
        assert option.method is not None
        with torch.no_grad():
            target = regressed(option.layer, module, moments[name], sampler, arrived)
            factors = option.method.factors(target.kernel, option.rank, target.moments)
            new = replacement(option, module, target, factors)
        stream.modules[name] = new
        yield RefittedLayer(name, new, target, images)


def regressed(layer: Layer, module: nn.Module, moments: Moments, sampler: Sampler, arrived: Sequence[Arrival]) -> Target:
    """Return the dense kernel W* that pays back the drift, in which norm it is to be factorized, and its mean answer.

    Args:
        layer: The layer.
        module: The original layer.
        moments: Gives G, and says in which space to regress.
        sampler: Draws positions.
        arrived: What every chunk brings.
    """
    in_inputs = moments.covariance is not None
    sums = Covariance()  # of the input (or the dense response), and of the target with it
    for chunk in arrived:
        index = sampler.draw(layer, len(chunk.target), spatial_shape(layer, chunk.target))
        seen = lowered(layer, chunk.x, index) if in_inputs else grouped(layer, chunk.response, index)
        sums.add(seen.float(), grouped(layer, chunk.target, index).float())
    weight, bias = working_weight(layer, module), original_bias(module)
    c, k = sums.covariance.to(weight), sums.cross.to(weight)
    mean, wanted = sums.mean.to(weight), sums.other_mean.to(weight)
    flat, eye = weight.flatten(2), eye_like(c.shape[1], weight)
    damped = c + ridge(c, RIDGE) * eye
    start = flat if in_inputs else eye.expand_as(c)
    best = start + _solved(damped, (k - start @ c).mT).mT  # W*, or the map from the dense response
    response = best @ damped @ best.mT
    norm = replace(moments, response=(response + response.mT) / 2, response_mean=wanted, gradient=moments.gradient.to(weight))
    if in_inputs:
        norm, kernel = replace(norm, covariance=damped, mean=mean), best
    else:
        kernel = best @ flat
        mean = mean if bias is None else mean - bias.to(mean).reshape(mean.shape)
    return Target(kernel.reshape(weight.shape), norm, (best @ mean[..., None])[..., 0])


def _solved(matrix: Tensor, right: Tensor) -> Tensor:
    """Return the inverse of a covariance times something; where rounding has made it indefinite, by LU factors."""
    factor, failed = torch.linalg.cholesky_ex(matrix)
    solution: Tensor = torch.linalg.solve(matrix, right) if bool(failed.any()) else torch.cholesky_solve(right, factor)
    return solution


def _fitting(batches: Sequence[Example], bytes_per_example: int, memory: int, unit: int) -> list[Example]:
    """Return as many batches as the twin stream can hold at once, at least `unit` examples."""
    room = max(unit, memory // max(1, 2 * LIVE * bytes_per_example) // unit * unit)
    chosen: list[Example] = []
    for batch in batches:
        size = batch_size(batch)
        if room < unit:
            break
        chosen.append(batch if size <= room else head(batch, room))
        room -= size
    return chosen
