"""Occasional weight distortion during ordinary training (DeepTwist).

The network keeps its structure. Every S_D-th step each planned kernel is overwritten by its low-rank reconstruction and
training goes on. A minimum that is not flat in the low-rank direction is left by that, a flat one is kept; so at the end
the last distortion, which is the decomposition itself, costs little.

Reference: Lee, Kwon, Kim, Wei: Learning low-rank approximation for CNNs (arXiv 1905.10145), sections 2 and 3.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor, distributed, nn

from spectrim.core.factorization import Moments
from spectrim.core.plan import Option, Plan
from spectrim.network.build import build, original_bias, working_weight
from spectrim.network.calling import unwrap
from spectrim.network.copying import duplicate
from spectrim.network.surgery import module_of, replace_module
from spectrim.train.batches import rank_and_world
from spectrim.train.kernel import check_plan, factor_shapes, is_product, moments_of, overwrite, relaxed_rank
from spectrim.train.schedule import Schedule

FORMAT = "spectrim-distortion-2"


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
        moments: From `gather_moments`, for every planned layer: distort in the response norm instead of the weight norm. A
            function from the network to them is called at every distortion, since they age as the network learns.

    Attributes:
        steps: Optimizer steps counted so far.
        distortions: How often the kernels were distorted.
        due: Count of steps at which they will be distorted next.
        seconds: Wall-clock time that distortions took.
        written: Factors that the last distortion made of each layer, by its name.

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
        check_plan(plan, model)
        self.steps = 0
        self.distortions = 0
        self.due = self.schedule.warmup + self.schedule.interval(0)
        self.seconds = 0.0
        self.written: dict[str, tuple[Tensor, ...]] = {}

    def step(self) -> bool:
        """Count one optimizer step, and distort if it is time.

        Returns:
            Whether the kernels were distorted: the moment at which the accuracy of the decomposed network can be read.
        """
        self.steps += 1
        if self.steps < self.due:
            return False
        if self.replan is not None and self.distortions and self.distortions % self.schedule.replan == 0:
            self.plan = self._replanned(self.replan)
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
        moments = self._current_moments(network)
        rank, world = rank_and_world()
        planned = [(option, module_of(network, option)) for option in self.options()]
        found = {option.layer.name: self._factors(module, option, moments) for option, module in planned[rank::world]}
        for index, (option, module) in enumerate(planned):
            name = option.layer.name
            if name in found:
                overwrite(module, option, found[name])
            if world > 1:
                if name not in found:
                    weight = working_weight(option.layer, module)
                    found[name] = tuple(weight.new_empty(shape) for shape in factor_shapes(option))
                for tensor in (module.weight.data, *found[name]):
                    distributed.broadcast(tensor, src=index % world)  # type: ignore[arg-type]
        self.written = found
        self.seconds += time.perf_counter() - start

    @torch.no_grad()
    def finish(self, model: nn.Module | None = None) -> nn.Module:
        """Distort a last time, at the plan's ranks, and return the factorized network, which computes the same.

        Kernels that still are what the last distortion wrote keep its factors: the network just measured is the one returned.

        Args:
            model: Another network of the same structure, such as an averaged copy; by default the one in training.

        Returns:
            A network of stock modules, and `Pivot` where PivotSVD is used, with the structure of `spectrim.apply(plan, model)`,
            in train or eval mode as the network is. The network's own kernels are overwritten by what it computes.
        """
        start = time.perf_counter()
        network = unwrap(self.model if model is None else model)
        moments = self._current_moments(network)
        small = duplicate(network)
        for name, option in self.plan.items():
            module = module_of(network, option)
            factors = self._last_factors(option, working_weight(option.layer, module))
            if not factors or not is_product(module, option, factors):
                factors = self.written[name] = self._factors(module, option, moments)
            replace_module(small, name, build(option, module, factors, original_bias(module)))
            overwrite(module, option, factors)
        if rank_and_world()[1] > 1:
            for tensor in (*network.state_dict().values(), *small.state_dict().values()):
                distributed.broadcast(tensor, src=0)
        self.seconds += time.perf_counter() - start
        return small

    @torch.no_grad()
    def reconstructions(self, model: nn.Module | None = None) -> dict[str, Tensor]:
        """Return the kernels that `finish()` would write now; nothing is changed.

        Args:
            model: Another network of the same structure; by default the one in training.

        Returns:
            Canonical kernels (g, T, S, *kernel) by layer name: g groups of T output and S input channels.
        """
        network = unwrap(self.model if model is None else model)
        moments = self._current_moments(network)
        kernels = {}
        for name, option in self.plan.items():
            assert option.method is not None
            kernels[name] = option.method.merge(self._factors(module_of(network, option), option, moments))
        return kernels

    def options(self) -> Iterator[Option]:
        """Yield what the next distortion does to each layer: the plan's options, at larger ranks while they tighten."""
        share = min(1.0, (self.distortions + 1) / max(self.schedule.tighten, 1))
        for option in self.plan.values():
            yield option if share == 1.0 else replace(option, rank=relaxed_rank(option, share))

    def state_dict(self) -> dict[str, Any]:
        """Return counts, plan and last factors as numbers, text and tensors: `torch.load` reads them without pickle."""
        counts = {"steps": self.steps, "distortions": self.distortions, "due": self.due, "seconds": self.seconds}
        settings = {"schedule": asdict(self.schedule), "plan": self.plan.text()}
        written = {name: list(factors) for name, factors in self.written.items()}
        return {"format": FORMAT, **counts, **settings, "written": written}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken.

        Args:
            state: What it returned, of a distortion with the same schedule.

        Raises:
            ValueError: If this is no such state, of another schedule, or its plan does not fit the network.
        """
        if not isinstance(state, Mapping) or state.get("format") != FORMAT:
            raise ValueError(f"this is no state of a Distortion: its 'format' must be {FORMAT!r}")
        missing = [name for name in self.state_dict() if name not in state]
        if missing:
            raise ValueError(f"the state is incomplete: it lacks {', '.join(missing)}")
        if state["schedule"] != asdict(self.schedule):
            raise ValueError(f"the state is of another schedule, {state['schedule']}; this Distortion has {self.schedule}")
        plan = Plan.from_json(state["plan"])
        check_plan(plan, self.model)
        self.plan = plan
        self.steps, self.distortions, self.due = (int(state[name]) for name in ("steps", "distortions", "due"))
        self.seconds = float(state["seconds"])
        self.written = {name: tuple(factors) for name, factors in state["written"].items()}

    def _factors(self, module: nn.Module, option: Option, moments: Mapping[str, Moments] | None) -> tuple[Tensor, ...]:
        """Return the factors of a layer's present kernel, from those of the last distortion where there are any."""
        assert option.method is not None
        weight = working_weight(option.layer, module)
        if not weight.isfinite().all():
            raise ValueError(f"the weight of {option.layer.name!r} holds NaN or infinity; was the learning rate too large?")
        norm = None if moments is None else moments_of(option, weight, moments)
        last = self._last_factors(option, weight)
        if last:
            factors = option.method.followed(weight, option.rank, last, norm)
        else:
            factors = option.method.factors(weight, option.rank, norm)
        return tuple(factor.contiguous() for factor in factors)

    def _last_factors(self, option: Option, weight: Tensor) -> tuple[Tensor, ...]:
        """Return the factors of the last distortion, where the weight is; nothing if there are none of these shapes."""
        factors = self.written.get(option.layer.name, ())
        fitting = [factor.shape for factor in factors] == factor_shapes(option)
        return tuple(factor.to(weight) for factor in factors) if fitting else ()

    def _replanned(self, replan: Callable[[nn.Module], Plan]) -> Plan:
        """Return the new plan: that of the first process, in every process."""
        rank, world = rank_and_world()
        texts: list[Any] = [None]
        if rank == 0:
            plan = replan(unwrap(self.model))
            check_plan(plan, self.model)
            if world == 1:
                return plan
            texts = [plan.text()]
        distributed.broadcast_object_list(texts, src=0)
        return Plan.from_json(texts[0])

    def _current_moments(self, network: nn.Module) -> Mapping[str, Moments] | None:
        """Return the moments, measured anew where they are a function; None where kernels are distorted in the weight norm."""
        if not callable(self.moments):
            return self.moments
        with torch.enable_grad():
            moments = self.moments(network)
        if not isinstance(moments, Mapping):
            raise TypeError(
                f"moments gave {type(moments).__name__}; it must be a mapping from layer names, as from `gather_moments`"
            )
        return moments
