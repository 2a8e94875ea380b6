"""Asymmetric refit in execution order, and BatchNorm re-estimation.

Each layer is fitted to the original network's outputs given the inputs that the already compressed prefix gives it
(Zhang et al. 2016, section 3.3, with reduced-rank regression). With C the covariance of the compressed stream's lowered
input and K its cross-covariance with the targets, the regression W* = (K + d W)(C + d I)^-1 with a small ridge d towards
W is the dense kernel that pays back the drift; the method then factorizes W* in the norm of (C + d I, G). Layers whose
lowered input is too large are regressed on their own dense response instead (T x T).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map, tree_map_only

from spectrim.factorize import Moments
from spectrim.factorize._base import eye_like, ridge
from spectrim.layer import Example, call, evaluation_mode, tensors_of
from spectrim.plan import Option, Plan
from spectrim.statistics import Covariance, Sampler, lowered
from spectrim.surgery import duplicate, factorized, fitted, module_of, original_bias, replace_module, working_weight
from spectrim.twin import Site, TwinStream, trace

RIDGE = 0.01  # towards the original kernel, relative to the mean diagonal of C
MEMORY = 4 << 30  # bytes of live activations that the twin stream may hold
LIVE = 6  # live activations of one forward, in units of its largest one (a residual block holds about as many)


class Regression(Site):
    """The fit of one layer in the twin stream.

    Args:
        option: Method and rank.
        module: The original layer.
        moments: Gives G, and says in which space to regress.
        sampler: Draws positions.
    """

    def __init__(self, option: Option, module: nn.Module, moments: Moments, sampler: Sampler) -> None:
        """Store the arguments."""
        self.option, self.module, self.moments, self.sampler = option, module, moments, sampler
        self.sums = Covariance()  # of the input (or the dense response), and of the target with it
        self.regressed: tuple[Tensor, Moments, Tensor]  # the dense kernel W*, its norm, and its mean answer

    def observe(self, x: Tensor, target: Tensor, response: Tensor) -> None:
        """Add one chunk of the compressed stream's input and dense response (N, ...) and of the target."""
        layer = self.option.layer
        shape = target.shape[1:-1] if layer.kind == "Linear" else target.shape[2:]
        index = self.sampler.draw(layer, len(target), shape)
        wanted = _at(layer.kind, target, index).unflatten(1, (layer.groups, -1)).transpose(0, 1)
        if self.moments.covariance is not None:
            seen = lowered(layer, x, index)
        else:
            seen = _at(layer.kind, response, index).unflatten(1, (layer.groups, -1)).transpose(0, 1)
        self.sums.add(seen.float(), wanted.float())

    def solve(self) -> nn.Module:
        """Return the factorized layer."""
        weight, bias = working_weight(self.option.layer, self.module), original_bias(self.module)
        c, k = self.sums.covariance.to(weight), self.sums.cross.to(weight)
        mean, wanted = self.sums.mean.to(weight), self.sums.other_mean.to(weight)
        self.sums = Covariance()
        flat, seen = weight.flatten(2), c.shape[1]
        damped = c + ridge(c, RIDGE) * eye_like(seen, weight)
        in_inputs = self.moments.covariance is not None
        start = flat if in_inputs else eye_like(seen, weight).expand_as(c)
        best = start + _solved(damped, (k - start @ c).mT).mT  # W*, or the map from the dense response
        response = best @ damped @ best.mT
        norm = replace(self.moments, response=(response + response.mT) / 2, response_mean=wanted)
        if in_inputs:
            norm = replace(norm, covariance=damped, mean=mean)
            kernel = best
        else:
            kernel = best @ flat
            mean = mean if bias is None else mean - bias.to(mean).reshape(mean.shape)
        self.regressed = kernel.reshape(weight.shape), norm, (best @ mean[..., None])[..., 0]
        return self.fit(self.option)

    def fit(self, option: Option) -> nn.Module:
        """Return the layer at any rank of any method, after `solve`."""
        kernel, norm, linear = self.regressed
        return fitted(option, self.module, kernel, norm, linear=linear)


@dataclass(frozen=True)
class Refitted:
    """The compressed network, and the solved regressions by layer, which can fit other options to the same inputs."""

    model: nn.Module
    sites: dict[str, Regression]


def _solved(matrix: Tensor, right: Tensor) -> Tensor:
    """Return the inverse of a covariance times something; where rounding has made it indefinite, by LU factors."""
    factor, failed = torch.linalg.cholesky_ex(matrix)
    solution: Tensor = torch.linalg.solve(matrix, right) if bool(failed.any()) else torch.cholesky_solve(right, factor)
    return solution


def _at(kind: str, y: Tensor, index: tuple[Tensor, ...]) -> Tensor:
    """Return outputs at the drawn positions, (M, T)."""
    index = tuple(axis.to(y.device) for axis in index)
    where: tuple[Tensor | slice, ...] = index if kind == "Linear" else (index[0], slice(None), *index[1:])
    return y[where]


def refit(
    model: nn.Module,
    plan: Plan,
    batches: Sequence[Example],
    moments: Mapping[str, Moments],
    *,
    seed: int = 0,
    progress: Callable[[float], None] = lambda share: None,
) -> Refitted:
    """Return the factorized copy of the network whose layers are fitted one after the other, inputs as they will be.

    It costs about two forward passes over the images used. Layers that one forward calls more than once are fitted to
    their own original inputs.

    Args:
        model: The original network; it is not changed.
        plan: What to do.
        batches: Calibration inputs; as many of them are used as `MEMORY` has room for.
        moments: From `statistics`.
        seed: Of sampled positions.
        progress: Called with the share of layers fitted.

    Raises:
        RuntimeError: If the forward takes another path for other inputs.
    """
    small = duplicate(model)
    if not plan:
        return Refitted(small, {})
    original = duplicate(model).eval()
    found = trace(original, list(plan), _head(batches[0], 2))
    batches = _fitting(batches, found.bytes_per_example)
    sampler = Sampler(seed, sum(len(tensors_of(batch)[0]) for batch in batches))
    sites: dict[str, Regression] = {}
    fixed: dict[str, nn.Module] = {}
    for name, option in plan.items():
        module = module_of(small, option)  # free of the hooks that the stream adds
        if name in found.once:
            sites[name] = Regression(option, module, moments[name], sampler)
        else:
            fixed[name] = factorized(option, module, moments[name])
    stream = TwinStream(original, found, dict(sites), fixed, lambda done: progress(done / max(len(sites), 1)))
    for name, module in stream.run(batches).items():
        module.train(small.get_submodule(name).training)
        replace_module(small, name, module)
    return Refitted(small, sites)


def reestimate_batchnorm(model: nn.Module, batches: Sequence[Example]) -> nn.Module:
    """Return a copy whose BatchNorm statistics are the averages over the batches; nothing else changes.

    Norms that the forward never calls keep their statistics, and all do where there is only one example.

    Args:
        model: The compressed network.
        batches: Calibration inputs; one example has no variance, so it joins the batch before it.
    """
    small = duplicate(model)
    norms = [module for module in small.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    norms = [norm for norm in norms if norm.track_running_stats]
    with evaluation_mode(small), torch.no_grad():
        before = [(norm.momentum, copy.deepcopy(norm.state_dict())) for norm in norms]
        for norm in norms:
            norm.train()
            norm.reset_running_stats()
            norm.momentum = None  # a cumulative average
        for batch in _joined(batches):
            call(small, batch)
        for norm, (momentum, state) in zip(norms, before, strict=True):
            norm.momentum = momentum
            if not norm.num_batches_tracked:
                norm.load_state_dict(state)
    return small


def _joined(batches: Sequence[Example]) -> list[Example]:
    """Return batches of at least two examples each; nothing if there is only one in all."""
    result: list[Example] = []
    for index, batch in enumerate(batches):
        single = len(tensors_of(batch)[0]) == 1 and index == len(batches) - 1
        if result and (single or len(tensors_of(result[-1])[0]) == 1):
            result[-1] = tree_map(lambda *parts: torch.cat(parts), result[-1], batch)
        elif not single:
            result.append(batch)
    return result


def _fitting(batches: Sequence[Example], bytes_per_example: int) -> list[Example]:
    """Return as many batches as the twin stream can hold at once, at least one example."""
    room = max(1, MEMORY // max(1, 2 * LIVE * bytes_per_example))
    kept: list[Example] = []
    for batch in batches:
        size = len(tensors_of(batch)[0])
        if room <= 0:
            break
        kept.append(batch if size <= room else _head(batch, room))
        room -= size
    return kept


def _head(batch: Example, count: int) -> Example:
    """Return copies of the first examples, no views: a trace counts what is done to them."""
    head: Example = tree_map_only(Tensor, lambda value: value[:count].clone(), batch)
    return head
