"""Weight distortion in a Lightning `Trainer`."""

from __future__ import annotations

from typing import Any

from spectrim.integrations.common import DistortionHolder

try:
    from lightning.pytorch import Callback
except ImportError as error:
    raise ImportError("the Lightning callback needs Lightning: pip install lightning") from error


class DistortionCallback(DistortionHolder, Callback):  # type: ignore[misc,unused-ignore]
    """Distorts the planned kernels during `trainer.fit`; its state goes into Lightning's checkpoints.

    Arguments are those of `DistortionHolder`; call `finish()` after training.
    """

    _resumed: dict[str, Any] | None = None  # state from a checkpoint, until training begins
    _counted = 0  # optimizer steps

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Begin, or go on from the checkpoint."""
        distortion = self.begin(pl_module)
        if self._resumed is not None:
            distortion.load_state_dict(self._resumed)
        self._counted = distortion.steps

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Count an optimizer step if this batch made one (with gradient accumulation not every one does)."""
        assert self.distortion is not None
        while self._counted < trainer.global_step:
            self.distortion.step()
            self._counted += 1

    def state_dict(self) -> dict[str, Any]:
        """Return the state for a checkpoint; nothing before training."""
        return {} if self.distortion is None else self.distortion.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Remember the state of a checkpoint until training begins."""
        self._resumed = state_dict or None
