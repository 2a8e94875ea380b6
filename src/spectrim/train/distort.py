"""Occasional weight distortion during ordinary training (DeepTwist).

The network keeps its structure. Every S_D-th step each planned kernel is overwritten by its low-rank reconstruction and
training goes on. A minimum that is not flat in the low-rank direction is left by that, a flat one is kept; so at the end
the last distortion, which is the decomposition itself, costs little.

Reference: Lee, Kwon, Kim, Wei: Learning low-rank approximation for CNNs (arXiv 1905.10145), sections 2 and 3.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, distributed, nn

from spectrim.core.factorization import Moments, Rank, as_tuple
from spectrim.core.plan import Option, Plan
from spectrim.factorize.algebra import from_canonical, to_canonical
from spectrim.network.build import build, original_bias, working_weight
from spectrim.network.calling import unwrap
from spectrim.network.copying import duplicate
from spectrim.network.surgery import module_of, replace_module

FORMAT = "spectrim-distortion-2"


@dataclass(frozen=True)
class Schedule:
    """When to distort, and how hard.

    Attributes:
        every: S_D, optimizer steps between two distortions.
        warmup: Steps before the count begins.
        growth: Each interval is this many times as long as the one before (rounded); below 1 they shorten.
        tighten: Distortions over which the ranks fall from the largest that pay to the plan's; 0 uses the plan's at once.
        replan: Distortions between two calls of `replan`.
    """

    every: int = 200
    warmup: int = 0
    growth: float = 1.0
    tighten: int = 0
    replan: int = 5

    def __post_init__(self) -> None:
        """Check the numbers."""
        for name, least in (("every", 1), ("warmup", 0), ("tighten", 0), ("replan", 1)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ValueError(f"{name} is {value!r}; it must be a whole number of at least {least}")
        if not isinstance(self.growth, (int, float)) or not 0 < self.growth < math.inf:
            raise ValueError(f"growth is {self.growth!r}; it must be a number above 0, such as 1.0 for a constant interval")

    def interval(self, done: int) -> int:
        """Return the steps from distortion number `done` (counted from 0) to the next one."""
        return max(1, round(self.every * self.growth**done))


class Distortion:
    """Every S_D-th step, overwrite each planned kernel with its low-rank reconstruction.

    Call `step()` after each `optimizer.step()` and `finish()` at the end. Parameters keep their identity, keys, dtype and
    memory format, and the optimizer its state. An iterative method (CP) starts from what it found the last time. Under
    `torch.distributed` the layers are shared out, and every process ends with the same weights.

    Args:
        model: The network in training, or its wrapper (DistributedDataParallel, torch.compile); changed in place.
        plan: Which layers, methods and ranks; any decomposition.
        every: S_D in optimizer steps (100 to 5000 are customary), or a `Schedule`.
        replan: Called with the network every `Schedule.replan` distortions; returns the plan from there on.
        moments: From `statistics`, for every planned layer: distort in the response norm instead of the weight norm. A
            function from the network to them is called at every distortion, since they age as the network learns.

    Raises:
        ValueError: If the plan is empty or does not fit the network; later, if a kernel holds NaN or moments do not fit.
        TypeError: If a weight is sharded or computed, so that it cannot be overwritten.

    Reference:
        Lee, Kwon, Kim, Wei: Learning low-rank approximation for CNNs (arXiv 1905.10145), section 2.
    """

    def __init__(
        self,
        model: nn.Module,
        plan: Plan,
        *,
        every: int | Schedule = 200,
        replan: Callable[[nn.Module], Plan] | None = None,
        moments: Mapping[str, Moments] | Callable[[nn.Module], Mapping[str, Moments]] | None = None,
    ) -> None:
        """Check that the plan fits."""
        self.model = model
        self.schedule = every if isinstance(every, Schedule) else Schedule(every)
        self.replan = replan
        if moments is not None and not callable(moments) and not isinstance(moments, Mapping):
            raise TypeError(f"moments is {type(moments).__name__}; it must be a mapping from layer names, or a function")
        self.moments = moments
        self.plan = plan
        _check(plan, model)
        self.steps = 0
        self.distortions = 0
        self.due = self.schedule.warmup + self.schedule.interval(0)
        self.seconds = 0.0
        self.written: dict[str, tuple[Tensor, ...]] = {}  # factors of what the last distortion made of each layer

    def step(self) -> bool:
        """Count one optimizer step, and distort if it is time.

        Returns:
            Whether the kernels were distorted: the moment at which the accuracy of the decomposed network can be read.
        """
        self.steps += 1
        if self.steps < self.due:
            return False
        if self.replan is not None and self.distortions and self.distortions % self.schedule.replan == 0:
            self.plan = _agreed(lambda: self._replanned(self.replan))
        self.distort()
        self.distortions += 1
        self.due = self.steps + self.schedule.interval(self.distortions)
        return True

    @torch.no_grad()
    def distort(self, model: nn.Module | None = None) -> None:
        """Overwrite the planned kernels now, without counting.

        Args:
            model: Another network of the same structure, such as an averaged copy; by default the one in training.
        """
        start = time.perf_counter()
        network = unwrap(self.model if model is None else model)
        moments = self._moments(network)
        world = distributed.get_world_size() if _is_distributed() else 1
        here = distributed.get_rank() if world > 1 else 0
        planned = [(option, module_of(network, option)) for option in self.options()]
        made = {option.layer.name: self._factors(module, option, moments) for option, module in planned[here::world]}
        for index, (option, module) in enumerate(planned):
            name = option.layer.name
            if name in made:
                _overwrite(module, option, made[name])
            if world > 1:
                if name not in made:
                    weight = working_weight(option.layer, module)
                    made[name] = tuple(weight.new_empty(shape) for shape in _shapes(option))
                for tensor in (module.weight.data, *made[name]):
                    distributed.broadcast(tensor, src=index % world)  # type: ignore[arg-type]
        self.written = made
        self.seconds += time.perf_counter() - start

    @torch.no_grad()
    def finish(self, model: nn.Module | None = None) -> nn.Module:
        """Distort a last time, at the plan's ranks, and return the factorized network, which computes the same.

        Kernels that still are what the last distortion wrote keep its factors: the network just measured is the one returned.

        Args:
            model: Another network of the same structure, such as an averaged copy; by default the one in training.

        Returns:
            A network of stock modules only, with the structure of `spectrim.apply(plan, model)`, in train or eval mode as the
            network is. The network's own kernels are overwritten by what it computes.
        """
        start = time.perf_counter()
        network = unwrap(self.model if model is None else model)
        moments = self._moments(network)
        small = duplicate(network)
        for name, option in self.plan.items():
            module = module_of(network, option)
            factors = self._last(option, working_weight(option.layer, module))
            if not factors or not _is_product(module, option, factors):
                factors = self.written[name] = self._factors(module, option, moments)
            replace_module(small, name, build(option, module, factors, original_bias(module)))
            _overwrite(module, option, factors)
        if _is_distributed():
            for tensor in (*network.state_dict().values(), *small.state_dict().values()):
                distributed.broadcast(tensor, src=0)
        self.seconds += time.perf_counter() - start
        return small

    @torch.no_grad()
    def reconstructions(self, model: nn.Module | None = None) -> dict[str, Tensor]:
        """Return the canonical kernels (g, T, S, *kernel) that `finish()` would write now, by layer; nothing is changed.

        Args:
            model: Another network of the same structure; by default the one in training.
        """
        network = unwrap(self.model if model is None else model)
        moments = self._moments(network)
        found = {}
        for name, option in self.plan.items():
            assert option.method is not None
            found[name] = option.method.merge(self._factors(module_of(network, option), option, moments))
        return found

    def options(self) -> Iterator[Option]:
        """Yield what the next distortion does to each layer: the plan's options, at larger ranks while they tighten."""
        share = min(1.0, (self.distortions + 1) / max(self.schedule.tighten, 1))
        for option in self.plan.values():
            yield option if share == 1.0 else replace(option, rank=_looser(option, share))

    def state_dict(self) -> dict[str, Any]:
        """Return counts, plan and last factors as numbers, text and tensors: `torch.load` reads them without pickle."""
        counts = {"steps": self.steps, "distortions": self.distortions, "due": self.due, "seconds": self.seconds}
        words = {"schedule": asdict(self.schedule), "plan": self.plan.to_json()}
        return {"format": FORMAT, **counts, **words, "written": {name: list(made) for name, made in self.written.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken.

        Raises:
            ValueError: If this is no such state, of another schedule, or its plan does not fit the network.
        """
        if not isinstance(state, Mapping) or state.get("format") != FORMAT:
            raise ValueError(f"this is no state of a Distortion: its 'format' must be {FORMAT!r}")
        if state["schedule"] != asdict(self.schedule):
            raise ValueError(f"the state is of another schedule, {state['schedule']}; this Distortion has {self.schedule}")
        missing = [name for name in ("steps", "distortions", "due", "seconds", "plan", "written") if name not in state]
        if missing:
            raise ValueError(f"the state is incomplete: it lacks {', '.join(missing)}")
        plan = Plan.from_json(state["plan"])
        _check(plan, self.model)
        self.plan = plan
        self.steps, self.distortions, self.due = (int(state[name]) for name in ("steps", "distortions", "due"))
        self.seconds = float(state["seconds"])
        self.written = {name: tuple(made) for name, made in state["written"].items()}

    def _factors(self, module: nn.Module, option: Option, moments: Mapping[str, Moments] | None) -> tuple[Tensor, ...]:
        assert option.method is not None
        weight = working_weight(option.layer, module)
        if not weight.isfinite().all():
            raise ValueError(f"the weight of {option.layer.name!r} holds NaN or infinity; was the learning rate too large?")
        moment = None if moments is None else _moment(moments, option, weight)
        last = self._last(option, weight)
        if last:
            factors = option.method.followed(weight, option.rank, last, moment)
        else:
            factors = option.method.factors(weight, option.rank, moment)
        return tuple(factor.contiguous() for factor in factors)

    def _last(self, option: Option, weight: Tensor) -> tuple[Tensor, ...]:
        """Return the factors of the last distortion, where the weight is; nothing if there are none of these shapes."""
        factors = self.written.get(option.layer.name, ())
        return tuple(factor.to(weight) for factor in factors) if [f.shape for f in factors] == _shapes(option) else ()

    def _replanned(self, replan: Callable[[nn.Module], Plan] | None) -> Plan:
        assert replan is not None
        plan = replan(unwrap(self.model))
        _check(plan, self.model)
        return plan

    def _moments(self, network: nn.Module) -> Mapping[str, Moments] | None:
        if self.moments is None:
            return None
        moments = self.moments
        if callable(moments):
            with torch.enable_grad():
                moments = moments(network)
        if not isinstance(moments, Mapping):
            raise TypeError(
                f"moments gave {type(moments).__name__}; it must be a mapping from layer names, as from `statistics`"
            )
        return moments


def _check(plan: Plan, model: nn.Module) -> None:
    if not isinstance(plan, Plan):
        raise TypeError(f"the plan is {type(plan).__name__}; it must be a Plan, such as compress(...).plan")
    if not plan:
        raise ValueError("the plan replaces no layer, so there is nothing to distort; lower the budget or name layers")
    for name, option in plan.items():
        weight = module_of(unwrap(model), option)._parameters.get("weight")
        if weight is None:
            raise TypeError(f"the weight of {name!r} is computed, not stored; remove its parametrization before training")
        if type(weight.data) is not Tensor:
            raise TypeError(f"the weight of {name!r} is a {type(weight.data).__name__}; only whole, unsharded weights work")


def _moment(moments: Mapping[str, Moments], option: Option, weight: Tensor) -> Moments:
    name, (groups, outputs) = option.layer.name, weight.shape[:2]
    moment = moments.get(name)
    if not isinstance(moment, Moments) or moment.response.shape != (groups, outputs, outputs):
        raise ValueError(
            f"the moments have nothing that fits the planned layer {name!r}; give what `statistics` says of this network"
        )
    moved: list[Any] = [value.to(weight.device) if isinstance(value, Tensor) else value for value in vars(moment).values()]
    return Moments(*moved)


def _shapes(option: Option) -> list[torch.Size]:
    """Return the shapes of the factors."""
    return [to_canonical(part, torch.empty(part.weight, device="meta")).shape for part in option.parts if part.weighted]


def _overwrite(module: nn.Module, option: Option, factors: Sequence[Tensor]) -> None:
    """Write the factors' product over the kernel, in place."""
    assert option.method is not None
    module.weight.copy_(from_canonical(option.layer, option.method.merge(factors)))  # type: ignore[operator]


def _is_product(module: nn.Module, option: Option, factors: Sequence[Tensor]) -> bool:
    """Return whether the kernel still is what `_overwrite` made of these factors."""
    assert option.method is not None
    merged = from_canonical(option.layer, option.method.merge(factors))
    return torch.equal(module.weight, merged.to(module.weight))  # type: ignore[arg-type]


def _looser(option: Option, share: float) -> Rank:
    """Return a rank between the largest that pays (share 0) and the option's own (share 1), in each of its numbers."""
    assert option.method is not None
    paying = option.method.ranks(option.layer.convolution) or [option.rank]
    start = as_tuple(max(paying, key=lambda rank: option.method.cost(option.layer.convolution, rank).params))  # type: ignore[union-attr]
    end = as_tuple(option.rank)
    between = tuple(max(b, round(a + share * (b - a))) for a, b in zip(start, end, strict=True))
    return between if isinstance(option.rank, tuple) else between[0]


def _is_distributed() -> bool:
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def _agreed(make: Callable[[], Plan]) -> Plan:
    """Return the first process's plan in every process."""
    if not _is_distributed():
        return make()
    text: list[Any] = [make().to_json() if distributed.get_rank() == 0 else None]
    distributed.broadcast_object_list(text, src=0)
    return Plan.from_json(text[0])
