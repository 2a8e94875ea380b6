"""Weight distortion in a Lightning `Trainer`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from spectrim.factorize import Moments
from spectrim.plan import Plan
from spectrim.train import Distortion, Schedule

try:
    from lightning.pytorch import Callback
except ImportError as error:
    raise ImportError("the Lightning callback needs the extra: pip install 'spectrim[train]'") from error


class DistortionCallback(Callback):  # type: ignore[misc,unused-ignore]
    """Distorts the planned kernels during `trainer.fit`; its state goes into Lightning's checkpoints.

    Args:
        plan: Which layers, methods and ranks, by their names in the network.
        network: Attribute of the LightningModule that holds the network, such as "model"; empty for the module itself.
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
        self._state: dict[str, Any] | None = None
        self._seen = 0

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Begin, or go on from the checkpoint."""
        model = pl_module.get_submodule(self.network)
        self.twist = Distortion(model, self.plan, every=self.every, replan=self.replan, moments=self.moments)
        if self._state is not None:
            self.twist.load_state_dict(self._state)
        self._seen = self.twist.steps

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Count an optimizer step if this batch made one (with gradient accumulation not every one does)."""
        assert self.twist is not None
        while self._seen < trainer.global_step:
            self.twist.step()
            self._seen += 1

    def finish(self) -> nn.Module:
        """Distort a last time and return the factorized network.

        Raises:
            RuntimeError: If nothing was trained yet.
        """
        if self.twist is None:
            raise RuntimeError("finish() was called before trainer.fit")
        return self.twist.finish()

    def state_dict(self) -> dict[str, Any]:
        """Return the state for a checkpoint."""
        return {} if self.twist is None else self.twist.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Remember the state until training begins."""
        self._state = state_dict or None
