"""Weight distortion in a Hugging Face `Trainer`."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from spectrim.factorize import Moments
from spectrim.plan import Plan
from spectrim.train import Distortion, Schedule

try:
    from transformers import TrainerCallback
except ImportError as error:
    raise ImportError("the Trainer callback needs the extra: pip install 'spectrim[train]'") from error

FILE = "distortion.json"


class DistortionCallback(TrainerCallback):  # type: ignore[misc,unused-ignore]
    """Distorts the planned kernels during `trainer.train()`; its state is a file in the Trainer's checkpoints.

    Args:
        plan: Which layers, methods and ranks, by their names in the network.
        network: Attribute of the model that holds the network, such as "backbone"; empty for the model itself.
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

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Begin, or go on from the checkpoint.

        Raises:
            ValueError: If training is resumed from a checkpoint without the state of the distortion.
        """
        found = model.get_submodule(self.network)
        self.twist = Distortion(found, self.plan, every=self.every, replan=self.replan, moments=self.moments)
        if state.global_step:
            file = self._folder(args, state) / FILE
            if not file.is_file():
                raise ValueError(f"training is resumed at step {state.global_step}, but there is no {str(file)!r}")
            self.twist.load_state_dict(json.loads(file.read_text()))

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Count an optimizer step."""
        assert self.twist is not None
        self.twist.step()

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write the state into the checkpoint."""
        if self.twist is not None and state.is_world_process_zero:
            (self._folder(args, state) / FILE).write_text(json.dumps(self.twist.state_dict()))

    def finish(self) -> nn.Module:
        """Distort a last time and return the factorized network.

        Raises:
            RuntimeError: If nothing was trained yet.
        """
        if self.twist is None:
            raise RuntimeError("finish() was called before trainer.train()")
        return self.twist.finish()

    @staticmethod
    def _folder(args: Any, state: Any) -> Path:
        return Path(args.output_dir) / f"checkpoint-{state.global_step}"
