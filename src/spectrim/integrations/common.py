"""What the callbacks of all frameworks hold: the settings of a `Distortion`, and the distortion once training has begun."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import nn

from spectrim.core.factorization import Moments
from spectrim.core.plan import Plan
from spectrim.train import Distortion, Schedule


class Held:
    """A `Distortion` that begins when the framework hands over the network.

    Args:
        plan: Which layers, methods and ranks, by their names in the network.
        network: Attribute of the framework's module that holds the network, such as "model"; empty for the module itself.
        every, replan, moments: See `Distortion`.
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
        """Store the arguments."""
        self.plan, self.network, self.every, self.replan, self.moments = plan, network, every, replan, moments
        self.twist: Distortion | None = None

    def begin(self, module: nn.Module) -> Distortion:
        """Make the distortion of the network inside the framework's module."""
        network = module.get_submodule(self.network)
        self.twist = Distortion(network, self.plan, every=self.every, replan=self.replan, moments=self.moments)
        return self.twist

    def finish(self) -> nn.Module:
        """Distort a last time and return the factorized network.

        Raises:
            RuntimeError: If nothing was trained yet.
        """
        if self.twist is None:
            raise RuntimeError("finish() was called before training")
        return self.twist.finish()
