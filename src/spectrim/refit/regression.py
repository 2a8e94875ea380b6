"""Asymmetric refit: each layer fitted, in execution order, to the original's outputs given what the compressed prefix gives it.

After Zhang et al. 2016, section 3.3, with reduced-rank regression. With C the covariance of the compressed stream's lowered
input and K its cross-covariance with the targets, the regression W* = W + (K - W C)(C + d I)^-1 with a ridge d towards W is the
dense kernel that pays back the drift; the method then factorizes W* in the norm of (C, G). Layers whose lowered input is too
large are regressed on their own dense response instead (T x T).

The ridge is the one that does best on images that no fit sees, which go through the stream beside the others. "No regression at
all" is among the choices, and so is the fit to the original network's own inputs: a refit that hurts there is not made.

Layers that stay dense pay drift back, too: behind the first layer that is replaced they take W* itself, where unseen images say
that it is better; all but the last, which answers.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor, nn

from spectrim.core.factorization import Moments
from spectrim.core.layer import Layer
from spectrim.core.plan import Option, Plan
from spectrim.factorize.algebra import eye_like, from_canonical, map_between, ridge
from spectrim.network.build import Target, factorized, original_bias, own_target, replacement, working_weight
from spectrim.network.calling import Example, batch_size, count, head
from spectrim.network.copying import duplicate
from spectrim.network.surgery import module_of
from spectrim.refit.stream import Arrival, TwinStream
from spectrim.refit.trace import Trace, trace
from spectrim.sensitivity.covariance import Covariance
from spectrim.sensitivity.moments import Sampler, grouped, lowered, spatial_shape

RIDGES = (0.03, 0.1, 0.3, 1.0, 3.0)  # towards the original kernel, relative to the mean diagonal of C
NOISE = 0.02  # of what the best ridge gains: a smaller ridge that gains as much but for this is taken
RIDGE = 0.1  # where there are no images to choose one by
MEMORY = 4 << 30  # bytes
PART = 4  # one part of the memory in so many is for activations that wait; one chunk's own and the sums need room, too
STREAMS = 2  # the original network's activations and the compressed one's
TWICE = "one forward calls it more than once"
POOLED = "it has too many groups for a covariance of each one's inputs"
HURTS = "unseen images did better without a refit"


@dataclass(frozen=True)
class RefittedLayer:
    """One layer of the compressed network.

    Attributes:
        name: The layer.
        module: What stands in its place; of a layer that stays dense a copy with other weights.
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
    unseen: Sequence[Example] = (),
    seed: int = 0,
    memory: int = MEMORY,
    unit: int = 1,
    given: Mapping[str, nn.Module] | None = None,
    kept: Sequence[Layer] = (),
) -> Generator[RefittedLayer, None, None]:
    """Yield the planned layers, each fitted to inputs as the layers yielded before make them, and dense ones that change.

    It costs about two forward passes over the images used. Layers that one forward calls more than once are fitted to
    their own original inputs, and come first.

    Args:
        model: The original network; it is not changed.
        plan: What to do.
        batches: Calibration inputs; at each layer as many of them are used as `memory` has room for there.
        moments: Layer name to moments.
        unseen: Other inputs, by which ridges are chosen.
        seed: Of sampled positions.
        memory: Bytes that the live activations may take.
        unit: How many examples belong together, such as frames of clips; a first run takes so many, two at least.
        given: Layers that are fitted already, and what stands in their place: they are not fitted and not yielded.
        kept: Layers that stay dense. Their weights may change where there are unseen inputs to judge it.

    Raises:
        RuntimeError: If the forward takes another path for other inputs.
    """
    given = given or {}
    if not plan.keys() - given.keys():
        return
    original = duplicate(model).eval()
    options = {**plan, **{layer.name: Option(layer) for layer in kept if unseen and _refittable(layer, moments)}}
    found = trace(original, list(options), head(batches[0], max(2, unit)))
    modules = {name: module_of(model, option) for name, option in options.items() if name not in given}
    alone = [name for name in _sites(found.once, plan) if name in modules and not moments[name].pooled]
    apart = [name for name in plan if name in modules and name not in alone]
    fixed = {name: factorized(plan[name], modules[name], moments[name]) for name in apart}
    found = replace(found, additions={i: each for i, each in found.additions.items() if each.layer in {*fixed, *alone}})
    sampler = Sampler(seed, count(batches))
    for name, new in fixed.items():
        reason = POOLED if moments[name].pooled else TWICE
        yield RefittedLayer(name, new, own_target(plan[name].layer, modules[name], moments[name]), 0, reason)
    stream = TwinStream(original, found, {**fixed, **given})
    chunks, judges = _mixed(batches, unseen, unit)
    for arrived in stream.arrivals(_rooms(found, alone, chunks, memory), chunks):
        name = arrived[0].name
        option, module = options[name], modules[name]
        with torch.no_grad():
            sums, judged = (
                gathered(option.layer, moments[name], sampler, [each for each in arrived if (each.chunk in judges) == judging])
                for judging in (False, True)
            )
            weight = working_weight(option.layer, module)
            regression = Regression(weight, original_bias(module), moments[name], sums, judged)
            layer = (best_fit if name in plan else dense_fit)(option, module, regression)
        stream.modules[name] = layer.module
        images = sum(len(arrival.x) for arrival in arrived if arrival.chunk not in judges)
        if name in plan or not layer.reason:
            yield layer if layer.reason else replace(layer, images=images)


def gathered(layer: Layer, moments: Moments, sampler: Sampler, arrived: Sequence[Arrival]) -> Covariance:
    """Return the covariance of the input (or the dense response) at drawn positions, and of the target with it.

    Args:
        layer: The layer.
        moments: Says in which space to regress.
        sampler: Draws positions.
        arrived: What every chunk brings.
    """
    sums = Covariance()
    for chunk in arrived:
        index = sampler.draw(layer, len(chunk.target), spatial_shape(layer, chunk.target))
        seen = lowered(layer, chunk.x, index) if moments.covariance is not None else grouped(layer, chunk.response, index)
        sums.add(seen.float(), grouped(layer, chunk.target, index).float(), blocks=sampler.blocks(len(chunk.x)))
    return sums


@dataclass(frozen=True, eq=False)
class Regression:
    """What a layer is regressed from, in its inputs (n) or, where these are too many, in the dense layer's answers (T).

    Attributes:
        weight: The original kernel, canonical, in double precision.
        bias: The original bias.
        moments: Gives G, and says in which space to regress.
        sums: From `gathered`, of the fitting images.
        judged: Of the judging images.
    """

    weight: Tensor
    bias: Tensor | None
    moments: Moments
    sums: Covariance
    judged: Covariance

    @property
    def in_inputs(self) -> bool:
        """Whether the regression is in the inputs."""
        return self.moments.covariance is not None

    @cached_property
    def start(self) -> Tensor:
        """The original kernel (g, T, n), or the identity (g, T, T)."""
        flat = self.weight.flatten(2)
        return flat if self.in_inputs else eye_like(flat.shape[1], flat).expand(len(flat), -1, -1)

    def maps(self, shares: Sequence[float]) -> list[Tensor]:
        """Return W* (g, T, n), or its map of the dense response (g, T, T), for ridges relative to the mean diagonal of C."""
        c, k = self.sums.covariance.to(self.weight), self.sums.cross.to(self.weight)
        damping = [float(each) for each in ridge(c, 1.0).flatten()]
        drift, c = (k - self.start @ c).mT.float(), c.float()  # a ridge makes it well enough conditioned
        found, added = [], 0.0
        for share in shares:
            for group, level in zip(c, damping, strict=True):
                group.diagonal().add_((share - added) * level)
            added = share
            found.append(self.start + _solved(c, drift).mT.to(self.weight))
        return found

    @cached_property
    def seen(self) -> tuple[Tensor, Tensor]:
        """C and K of the judging images."""
        return self.judged.covariance.to(self.weight), self.judged.cross.to(self.weight)

    def misfit(self, found: Tensor, *, own: bool = False, bias: Tensor | None = None) -> float:
        """Return the error of a map M on the judging images, up to a constant.

        1/2 tr G (M C M^T - 2 K M^T + e e^T), with C and K of the judging images and e the error of their mean answer.

        Args:
            found: M.
            own: Whether the bias is the one that the original network's inputs give it, not the fitting images'.
            bias: What it is (g, T) where it is given by neither; of a map of the inputs.
        """
        gradient, moments, judged = self.moments.gradient.to(self.weight), self.moments, self.judged
        mean, answer = (moments.mean, moments.response_mean) if own else (self.sums.mean, self.sums.other_mean)
        mean = moments.response_mean if mean is None else mean
        mean, answer = (mean, answer) if bias is None else (torch.zeros_like(mean), bias)
        c, k = self.seen
        moved = (found @ (judged.mean.to(found) - mean.to(found))[..., None])[..., 0]
        off = judged.other_mean.to(found) - answer.to(found) - moved
        square = ((found @ c - 2 * k) * (gradient @ found)).sum()
        return 0.5 * float(square + torch.einsum("gtu,gt,gu->", gradient, off, off))

    def best(self, bias: Tensor | None = None) -> Tensor:
        """Return the map of the smallest ridge that does nearly as well on the judging images as the best one.

        Args:
            bias: As in `misfit`.
        """
        maps = [*self.maps(RIDGES), self.start]
        errors = [self.misfit(each, bias=bias) for each in maps]
        enough = min(errors) + NOISE * (errors[-1] - min(errors))
        return next(each for each, error in zip(maps, errors, strict=True) if error <= enough)

    def map_of(self, kernel: Tensor) -> Tensor:
        """Return the map that a kernel, whose rows lie in those of the original, is."""
        return kernel.flatten(2) if self.in_inputs else map_between(self.weight.flatten(2), kernel.flatten(2))

    def target(self, found: Tensor) -> Target:
        """Return what a layer is to be factorized to: the kernel of a map, in which norm, and its mean answer."""
        norm, mean = self.sums.shrunk.to(found), self.sums.mean.to(found)
        response, gradient = found @ norm @ found.mT, self.moments.gradient.to(found)
        moments = replace(self.moments, response=(response + response.mT) / 2, gradient=gradient)
        moments = replace(moments, response_mean=self.sums.other_mean.to(found))
        if self.in_inputs:
            moments, kernel = replace(moments, covariance=norm, mean=mean), found
        else:
            kernel = found @ self.weight.flatten(2)
            mean = mean if self.bias is None else mean - self.bias.to(mean).reshape(mean.shape)
        return Target(kernel.reshape(self.weight.shape), moments, (found @ mean[..., None])[..., 0])


def best_fit(option: Option, module: nn.Module, regression: Regression) -> RefittedLayer:
    """Return the fit that does best on the judging images: by regression at the best ridge, or to the original's own inputs."""
    assert option.method is not None
    method, name = option.method, option.layer.name
    if not regression.judged.count:
        target = regression.target(regression.maps([RIDGE])[0])
        factors = method.factors(target.kernel, option.rank, target.moments)
        return RefittedLayer(name, replacement(option, module, target, factors), target, 0)
    best = regression.target(regression.best())
    own, found = own_target(option.layer, module, regression.moments), []
    for target in (best, own):
        factors = method.factors(target.kernel, option.rank, target.moments)
        error = regression.misfit(regression.map_of(method.merge(factors)), own=target is own)
        found.append((error, replacement(option, module, target, factors)))
    (refitted, new), (plain, old) = found
    return RefittedLayer(name, new, best, 0) if refitted <= plain else RefittedLayer(name, old, own, 0, HURTS)


@torch.no_grad()
def dense_fit(option: Option, module: nn.Module, regression: Regression) -> RefittedLayer:
    """Return a layer that stays dense: with the kernel W*, and a new bias if it has one, where unseen images say so.

    Args:
        option: The layer left alone.
        module: It.
        regression: In its inputs.
    """
    layer, zeros = option.layer, torch.zeros_like(regression.weight.flatten(2)[..., 0])
    before = zeros if regression.bias is None else regression.bias.to(zeros).reshape(zeros.shape)
    fixed = zeros if regression.bias is None else None  # the structure stays what it is
    if regression.judged.count:
        best = regression.best(fixed)
        if regression.misfit(best, bias=fixed) < regression.misfit(regression.start, bias=before):
            target, new = regression.target(best), duplicate(module)
            assert target.moments is not None and target.linear is not None
            put = {"weight": from_canonical(layer, target.kernel), "bias": target.moments.response_mean - target.linear}
            for name, value in put.items():
                if isinstance(parameter := getattr(new, name), Tensor):  # there may be no bias
                    parameter.copy_(value.reshape(parameter.shape))
            return RefittedLayer(layer.name, new, target, 0)
    return RefittedLayer(layer.name, module, own_target(layer, module, regression.moments), 0, HURTS)


def _refittable(layer: Layer, moments: Mapping[str, Moments]) -> bool:
    """Whether a dense layer can be given another kernel: one that is its own, regressed in the layer's inputs."""
    return not layer.baked and moments[layer.name].covariance is not None


def _sites(names: Sequence[str], plan: Plan) -> list[str]:
    """Return the layers, in order of execution, that the plan replaces, and those between whose inputs it may change.

    A dense layer that comes last is none: least squares draw logits together, which costs more than the drift.
    """
    first = min(names.index(name) for name in plan) if plan.keys() <= {*names} else 0
    return [name for number, name in enumerate(names) if name in plan or first < number < len(names) - 1]


def _solved(matrix: Tensor, right: Tensor) -> Tensor:
    """Return the inverse of a covariance times something; where rounding has made it indefinite, by LU factors."""
    factor, failed = torch.linalg.cholesky_ex(matrix)
    solution: Tensor = torch.linalg.solve(matrix, right) if bool(failed.any()) else torch.cholesky_solve(right, factor)
    return solution


def _mixed(batches: Sequence[Example], unseen: Sequence[Example], unit: int) -> tuple[list[Example], set[int]]:
    """Return fitting and judging batches evenly mixed, a fitting one first, and the numbers of the judging ones."""
    chunks: list[Example] = []
    judges: set[int] = set()
    for number, batch in enumerate(batches, 1):
        chunks.append(batch)
        while len(judges) < len(unseen) * number // len(batches):
            chunks.append(unseen[len(judges)])
            judges.add(len(chunks) - 1)
    return chunks, judges


def _rooms(found: Trace, sites: Sequence[str], chunks: Sequence[Example], memory: int) -> dict[str, int]:
    """Return at each site how many chunks may wait there, in two streams: never fewer than before."""
    sizes = list(itertools.accumulate(batch_size(chunk) for chunk in chunks))
    rooms, room = {}, len(chunks)
    for name in reversed(sites):  # what waits here waits behind, too
        images = memory // max(1, PART * STREAMS * found.waiting[name])
        room = min(room, max(1, bisect.bisect_right(sizes, images)))
        rooms[name] = room
    return dict(reversed(rooms.items()))
