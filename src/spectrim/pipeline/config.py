"""How to compress: one frozen record of every choice that `compress` leaves to the user."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from typing import Any

from spectrim.core.factorization import Factorization, describe, flaw
from spectrim.core.progress import Progress
from spectrim.core.search import Search
from spectrim.factorize import USUAL as USUAL_METHODS
from spectrim.refit.reconstruct import Reconstruct
from spectrim.search import USUAL as USUAL_SEARCH
from spectrim.sensitivity.divergence import Harm
from spectrim.sensitivity.options import Multiple
from spectrim.targets.base import Target
from spectrim.targets.torch import Torch


@dataclass(frozen=True)
class Config:
    """How to compress.

    Attributes:
        methods: The decompositions that compete for every layer.
        search: The rank selection.
        exclude: Name patterns of layers to leave alone, such as `("head*",)`: neither replaced nor refitted.
        multiple_of: Only ranks that are multiples of this. None: of what the target likes, by its `multiple` (4), since ranks
            of any number can make a network of half the MACs slower; where a rank has no room for two such multiples, any.
        refit: Fit every layer again to the inputs that the compressed prefix gives it; of layers that stay dense the weights,
            where unseen images say that it is better.
        batchnorm: Re-estimate BatchNorm statistics on the calibration images at the end.
        reconstruct: Gradient steps without labels, block after block, at the very end; None takes none.
        gradient: Weigh outputs by the loss gradient; False never goes backward.
        harm: What a change of the outputs costs, `harm(outputs, reference)`: a number, the mean over the batch, zero where both
            are equal, twice differentiable and growing with the square of the difference. None is KL divergence for class
            logits, and squared error relative to the output's mean square for others.
        images: How many calibration images the fits see at most. More are read to judge by, and more still for a rank selection
            that measures; where there are no more, they are taken from these.
        judging: How many as a share of them (16 to 512) judge options, ridges and the result: no fit sees these. Up to 512
            do where there are more than the fits and the rank selection want.
        batch: Images that go through the network at once.
        memory: Bytes. Half of it is for the activations of one batch going back, a quarter for those that wait in the refit,
            an eighth for the moments of one layer; layers and images beyond it are left out, batches made smaller.
        target: What times are of: `OnnxRuntime()`, `OpenVINO()`, `Torch(...)`, ...; None is PyTorch on the network's device, on
            one thread.
        seed: Of random vectors and positions.
        cache: Folder that keeps finished pieces of work, so that the same call goes on where it was interrupted. Nothing is
            kept where it cannot be told what `harm` depends on.
        progress: Called with the name of the stage and the share of it that is done.
    """

    methods: tuple[Factorization, ...] = USUAL_METHODS
    search: Search = USUAL_SEARCH
    exclude: tuple[str, ...] = ()
    multiple_of: int | None = None
    refit: bool = True
    batchnorm: bool = False
    reconstruct: Reconstruct | None = None
    gradient: bool = True
    harm: Harm | None = None
    images: int = 1024
    judging: float = 0.125
    batch: int = 128
    memory: int = 4 << 30
    target: Target | None = None
    seed: int = 0
    cache: str | os.PathLike[str] | None = None
    progress: Progress | None = None

    def __post_init__(self) -> None:
        """Check the values."""
        if isinstance(self.methods, Factorization):
            raise TypeError(f"methods is {self.methods!r}; it must be a tuple of decompositions, such as ({self.methods!r},)")
        if not isinstance(self.search, Search):
            raise TypeError(f"search is {self.search!r}; it must be a rank selection, such as Knapsack() or Interaction()")
        if not self.methods or not all(isinstance(method, Factorization) for method in self.methods):
            raise TypeError(f"methods is {self.methods!r}; it must hold decompositions, such as (ChannelSVD(), SpatialSVD())")
        for method in self.methods:
            if wrong := flaw(method):
                raise TypeError(f"methods: {wrong}")
        if isinstance(self.exclude, str):
            raise TypeError(
                f"exclude is the string {self.exclude!r}; it must be a tuple of patterns, such as ({self.exclude!r},)"
            )
        if self.harm is not None and not callable(self.harm):
            raise TypeError(f"harm is {self.harm!r}; it must be a function of (outputs, reference), or None")
        self._check_options()

    def _check_options(self) -> None:
        """Check the numbers, and what is a record of its own."""
        if self.reconstruct is not None and not isinstance(self.reconstruct, Reconstruct):
            raise TypeError(f"reconstruct is {self.reconstruct!r}; it must be Reconstruct(...), or None for no gradient steps")
        if self.target is not None and not isinstance(self.target, Target):
            raise TypeError(f"target is {self.target!r}; it must be a runtime, such as OnnxRuntime() or Torch(), or None")
        if not isinstance(self.judging, (int, float)) or not 0 < self.judging < 1:
            raise ValueError(f"judging is {self.judging!r}; it must be a share between 0 and 1, such as 0.125")
        for name in ("multiple_of", "images", "batch", "memory"):
            value = getattr(self, name)
            if (value is not None or name != "multiple_of") and (not isinstance(value, int) or value < 1):
                raise ValueError(f"{name} is {getattr(self, name)}; it must be a whole number of at least 1")

    @property
    def multiples(self) -> Multiple:
        """The number that ranks are multiples of, the user's or the one that the target likes."""
        return self.multiple_of or (self.target or Torch()).multiple

    def settings(self) -> dict[str, Any]:
        """Return the settings that decide the result, JSON-ready."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in ("cache", "progress")}
        values["methods"] = [describe(method) for method in self.methods]
        values["search"] = repr(self.search)
        values["harm"] = None if self.harm is None else getattr(self.harm, "__qualname__", type(self.harm).__name__)
        values["reconstruct"] = None if self.reconstruct is None else dataclasses.asdict(self.reconstruct)
        values["target"] = None if self.target is None else repr(self.target)
        values["exclude"] = list(self.exclude)
        return values
