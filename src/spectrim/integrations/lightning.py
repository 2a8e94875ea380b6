"""Weight distortion in a Lightning `Trainer`."""

from __future__ import annotations

from typing import Any

from spectrim.integrations.common import Held

try:
    from lightning.pytorch import Callback
except ImportError as error:
    raise ImportError("the Lightning callback needs Lightning: pip install lightning") from error


class DistortionCallback(Held, Callback):  # type: ignore[misc,unused-ignore]
    """Distorts the planned kernels during `trainer.fit`; its state goes into Lightning's checkpoints. Arguments: see `Held`."""

    _state: dict[str, Any] | None = None
    _seen = 0

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Begin, or go on from the checkpoint."""
        twist = self.begin(pl_module)
        if self._state is not None:
            twist.load_state_dict(self._state)
        self._seen = twist.steps

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Count an optimizer step if this batch made one (with gradient accumulation not every one does)."""
        assert self.twist is not None
        while self._seen < trainer.global_step:
            self.twist.step()
            self._seen += 1

    def state_dict(self) -> dict[str, Any]:
        """Return the state for a checkpoint."""
        return {} if self.twist is None else self.twist.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Remember the state until training begins."""
        self._state = state_dict or None
