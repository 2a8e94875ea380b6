"""Weight distortion in a Hugging Face `Trainer`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from spectrim.integrations.common import DistortionHolder

try:
    from transformers import TrainerCallback
except ImportError as error:
    raise ImportError("the Trainer callback needs Transformers: pip install transformers accelerate") from error

FILE = "distortion.pt"


class DistortionCallback(DistortionHolder, TrainerCallback):  # type: ignore[misc,unused-ignore]
    """Distorts the planned kernels during `trainer.train()`; its state is a file `distortion.pt` in the checkpoints.

    Arguments are those of `DistortionHolder`; call `finish()` after training.
    """

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Begin, or go on from the checkpoint.

        Raises:
            ValueError: If training is resumed from a checkpoint without the state of the distortion.
        """
        distortion = self.begin(model)
        if state.global_step:
            file = self._checkpoint_file(args, state)
            if not file.is_file():
                raise ValueError(f"training is resumed at step {state.global_step}, but there is no {str(file)!r}")
            distortion.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Count an optimizer step."""
        assert self.distortion is not None
        self.distortion.step()

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write the state into the checkpoint."""
        if self.distortion is not None and state.is_world_process_zero:
            torch.save(self.distortion.state_dict(), self._checkpoint_file(args, state))

    @staticmethod
    def _checkpoint_file(args: Any, state: Any) -> Path:
        return Path(args.output_dir) / f"checkpoint-{state.global_step}" / FILE
