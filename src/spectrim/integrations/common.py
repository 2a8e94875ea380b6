"""What the callbacks of all frameworks have in common: the settings of a `Distortion`, made once training begins."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping

from torch import nn

from spectrim.core.factorization import Moments
from spectrim.core.plan import Plan
from spectrim.train import Distortion, Schedule


class DistortionHolder:
    """Holds the settings of a `Distortion`, and the distortion itself once the framework hands over its network.

    Args:
        plan: Which layers, methods and ranks, by their names in the network.
        network: Attribute of the framework's module that holds the network, such as "model"; empty for the module itself.
        every, replan, moments: See `Distortion`.

    Attributes:
        distortion: The distortion of the network in training; None before training.
    """

    def __init__(
        self,
        plan: Plan,
        *,
        network: str = "",
        every: int | Schedule = 200,
        replan: Callable[[nn.Module], Plan] | None = None,
        moments: Mapping[str, Moments] | Callable[[nn.Module], Mapping[str, Moments]] | None = None,
    ) -> None:
        """Store the settings."""
        self.plan, self.network, self.every, self.replan, self.moments = plan, network, every, replan, moments
        self.distortion: Distortion | None = None

    def begin(self, module: nn.Module) -> Distortion:
        """Make the distortion of the network inside the framework's module, and return it."""
        network = module.get_submodule(self.network)
        self.distortion = Distortion(network, self.plan, every=self.every, replan=self.replan, moments=self.moments)
        return self.distortion

    def finish(self) -> nn.Module:
        """Distort a last time and return the factorized network.

        Raises:
            RuntimeError: If nothing was trained yet.
        """
        if self.distortion is None:
            raise RuntimeError("finish() was called before training")
        return self.distortion.finish()

    @property
    def twist(self) -> Distortion | None:
        """The distortion. Deprecated: use `distortion`."""
        warnings.warn("the callback's `twist` is now its `distortion`", DeprecationWarning, stacklevel=2)
        return self.distortion
