"""A small training loop for classifiers: baselines, controls, distortion training, one-shot fine-tuning.

Everything random in a step is a function of seed, step and process, so a run that was interrupted goes on exactly.

The loop is our own and not Hugging Face Accelerate's or Lightning Fabric's, which would replace about 15 lines of it (the
wrapper for several processes, autocast, moving batches). Accelerate replaces `forward` of the network it is given and allows
one precision per Python process, Fabric wraps network and optimizer; crops, losses, distortions and the seed of each step
would stay, and the package would need them wherever it is installed. Those who train with them use `spectrim.integrations`.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from spectrim.core.deprecation import renamed
from spectrim.core.records import Training
from spectrim.network.accuracy import check_labels
from spectrim.network.calling import call, evaluation_mode, tensors_of, unwrap
from spectrim.train import checkpoint
from spectrim.train.batches import TensorBatches, augment, check_batch, rank_and_world, set_epoch
from spectrim.train.distort import Distortion
from spectrim.train.loss import training_loss
from spectrim.train.precision import autocast
from spectrim.train.recipe import Recipe, make_optimizer, one_cycle

LOG = logging.getLogger(__name__)
SAVE_SECONDS = 60.0  # between two checkpoints
DIVERGED = 100.0  # nats; guessing among a thousand classes costs 7
CHECK_EVERY = 20  # steps between two readings of the loss, which wait for the device


@renamed(twist="distortion")
def fit(
    model: nn.Module,
    data: tuple[Tensor, Tensor] | Iterable[tuple[Tensor, Tensor]],
    *,
    recipe: Recipe | None = None,
    teacher: nn.Module | None = None,
    distortion: Distortion | None = None,
) -> Training:
    """Train a classifier in place. Under `torch.distributed` (torchrun) every process trains on its part of each batch.

    Args:
        model: The network; it is trained where it is and comes back in the mode it had.
        data: Images (N, C, H, W) and labels (N,), shuffled here; or a sized iterable of batches that shuffles itself, by
            torch's own random numbers, which are seeded before each batch, or by `set_epoch(epoch)` of it or of its sampler.
        recipe: How.
        teacher: With `Recipe.distill`, the network whose outputs are imitated; with the same input.
        distortion: Its `step()` is called after every step of the optimizer; `finish()` is left to the caller.

    Returns:
        What the training did: its settings, steps, losses and times. Its `accuracy` is empty.

    Raises:
        ValueError: If the recipe asks for a teacher that is not given, images, labels or weights cannot be trained on, the
            run ends before the first distortion or before the ranks are the plan's, `distortion` is of another network, or
            the checkpoint is of another run.
        FloatingPointError: If the loss has grown beyond all bounds.

    Example:
        >>> network = nn.Sequential(nn.Flatten(), nn.Linear(48, 2))
        >>> training = fit(network, (torch.randn(8, 3, 4, 4), torch.arange(8) % 2), recipe=Recipe(epochs=2, batch=4))
        >>> training.steps, training.images, len(training.loss)
        (4, 8, 2)
    """
    recipe = recipe or Recipe()
    if recipe.distill and teacher is None:
        raise ValueError(f"distill is {recipe.distill}, but there is no teacher to imitate; give one, or leave distill at 0")
    batches: Any = TensorBatches(*data, size=recipe.batch, seed=recipe.seed) if _is_pair(data) else data
    if not hasattr(batches, "__len__") or not len(batches):
        raise ValueError("the training data has no length or is empty; give images and labels, or a loader with a length")
    run = _TrainingRun(model, recipe, batches, distortion)
    run.load()
    modes = [(module, module.training) for module in unwrap(model).modules()]
    try:
        run.network.train()
        used = {parameter.device for parameter in run.model.parameters()} if torch.cuda.is_available() else set()
        with torch.random.fork_rng([device for device in used if device.type == "cuda"]), run.interruptible():
            for epoch in range(run.steps // run.length, recipe.epochs):
                set_epoch(batches, epoch)
                run.train_epoch(batches, teacher)
    finally:
        for module, mode in modes:
            module.training = mode
    return run.record()


class _TrainingRun:
    """Network, optimizer, learning rate and counts of one training; what a checkpoint keeps of them; the loop of an epoch."""

    def __init__(self, model: nn.Module, recipe: Recipe, batches: Any, distortion: Distortion | None) -> None:
        self.model, self.recipe, self.length, self.distortion = unwrap(model), recipe, len(batches), distortion
        self.device = next(self.model.parameters()).device
        self.total = recipe.epochs * self.length
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self._check_network(trained, batches)
        self._check_distortion()
        self.network: nn.Module = model
        if rank_and_world()[1] > 1 and not isinstance(model, DistributedDataParallel):
            self.network = DistributedDataParallel(self.model)
        self.optimizer = make_optimizer(recipe, trained)
        self.cycle = one_cycle(self.optimizer, recipe, self.total)
        self.identity = {
            "recipe": recipe.settings(),
            "batches in an epoch": self.length,
            "data": batches.digest() if isinstance(batches, TensorBatches) else "",
            "distortion": None if distortion is None else asdict(distortion.schedule),
        }
        self.interruption = checkpoint.Interruption()
        self.steps = 0
        self.seen = 0  # images
        self.losses: list[float] = []  # mean of each epoch
        self.loss_sum = torch.zeros((), device=self.device)  # of this epoch's steps
        self.seconds = 0.0
        self.saved = time.perf_counter()

    def _check_network(self, trained: list[nn.Parameter], batches: Any) -> None:
        """Refuse a network that cannot be trained on these batches, before anything is changed."""
        if not trained:
            raise ValueError("the network has no parameter that requires a gradient, so there is nothing to train")
        for name, value in self.model.named_parameters():
            if not value.isfinite().all():
                raise ValueError(f"the network's {name!r} holds NaN or infinity; give weights that are finite")
        if isinstance(batches, TensorBatches):
            with evaluation_mode(self.model), torch.no_grad():
                check_labels(batches.labels, tensors_of(call(self.model, batches.images[:1].to(self.device)))[0])

    def _check_distortion(self) -> None:
        """Refuse a distortion of another network, or one that the run is too short for."""
        if self.distortion is None:
            return
        if not isinstance(self.distortion, Distortion) or unwrap(self.distortion.model) is not self.model:
            raise ValueError("this is no Distortion of the network; make it with the network that is trained")
        schedule = self.distortion.schedule
        needed = schedule.steps_needed()
        if self.distortion.steps == 0 and self.total < needed:
            tightened = f"the ranks are the plan's (tighten={schedule.tighten}), and that is"
            raise ValueError(
                f"{tightened if schedule.tighten > 1 else 'the first distortion is'} due after {needed} steps, but "
                f"{self.recipe.epochs} epochs are {self.total} steps; distort more often (every) or train longer"
            )

    def train_epoch(self, batches: Iterable[tuple[Tensor, Tensor]], teacher: nn.Module | None) -> None:
        """Train on what is left of an epoch."""
        done = self.steps % self.length
        begin = time.perf_counter()
        for index, (inputs, labels) in enumerate(self._seeded(batches, self.steps - done)):
            if index < done:
                continue
            if not isinstance(batches, TensorBatches):
                check_batch(inputs, labels)
            self.seen += len(inputs) * rank_and_world()[1]
            self.loss_sum += self._step(inputs.to(self.device), labels.to(self.device).long(), teacher)
            ended = self.steps % self.length == 0
            if ended or self.steps % CHECK_EVERY == 0:
                self._check_loss()
            if ended:
                self.losses.append(float(self.loss_sum) / self.length)
                self.loss_sum.zero_()
                LOG.info("epoch %d of %d: loss %.4f", len(self.losses), self.recipe.epochs, self.losses[-1])
            now = time.perf_counter()
            self.seconds, begin = self.seconds + now - begin, now
            if now - self.saved > SAVE_SECONDS or self.steps == self.total or self.interruption.requested:
                self.save()
            if self.interruption.requested:
                raise KeyboardInterrupt
            if ended:
                break

    def _seeded(self, batches: Iterable[tuple[Tensor, Tensor]], step: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the batches from a step on, so that what a loader draws at random does not depend on where a run began."""
        self._seed(step)
        source = iter(batches)
        while (batch := next(source, None)) is not None:
            yield batch
            step += 1
            self._seed(step)

    def _seed(self, step: int) -> int:
        """Seed torch for a step of this process; return the seed."""
        seed = (self.recipe.seed * 1_000_003 + step) * 4096 + rank_and_world()[0]
        torch.manual_seed(seed)
        return seed

    def _step(self, inputs: Tensor, labels: Tensor, teacher: nn.Module | None) -> Tensor:
        """Make one step of the optimizer; return the loss before it."""
        seed = self._seed(self.steps)  # for dropout
        if inputs.ndim == 4:
            inputs = augment(inputs, self.recipe.crop, self.recipe.flip, torch.Generator().manual_seed(seed))
        with autocast(self.device, self.recipe.precision):
            loss = training_loss(self.network, inputs, labels, self.recipe, teacher)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        self.cycle.step()
        self.steps += 1
        if self.distortion is not None:
            self.distortion.step()
        return loss.detach()

    def _check_loss(self) -> None:
        """Stop a training that diverges, and report the progress of one that does not."""
        mean = float(self.loss_sum) / ((self.steps - 1) % self.length + 1)
        if not mean < DIVERGED:
            raise FloatingPointError(
                f"the training loss has grown to {mean:.3g} by step {self.steps}; lower the rate (now {self.recipe.rate:g})"
            )
        if self.recipe.progress is not None and rank_and_world()[0] == 0:
            self.recipe.progress("training", self.steps / self.total)

    def interruptible(self) -> Any:
        """Return the context of the loop: with a checkpoint to go on from, Ctrl-C waits for the end of a step."""
        return self.interruption.awaited() if self.recipe.checkpoint is not None else contextlib.nullcontext()

    def save(self) -> None:
        """Write everything that the same call goes on from."""
        self.saved = time.perf_counter()
        if self.recipe.checkpoint is None or rank_and_world()[0]:
            return
        state = {
            "identity": self.identity,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "cycle": self.cycle.state_dict(),
            "distortion": None if self.distortion is None else self.distortion.state_dict(),
            "numbers": {
                "steps": self.steps,
                "seen": self.seen,
                "losses": self.losses,
                "loss_sum": float(self.loss_sum),
                "seconds": self.seconds,
            },
        }
        checkpoint.save(self.recipe.checkpoint, state)

    def load(self) -> None:
        """Go on from the checkpoint, if there is one."""
        if self.recipe.checkpoint is None:
            return
        state = checkpoint.load(self.recipe.checkpoint, self.identity, self.device)
        if state is None:
            return
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.cycle.load_state_dict(state["cycle"])
        if self.distortion is not None:
            self.distortion.load_state_dict(state["distortion"])
        numbers = state["numbers"]
        self.steps, self.seen, self.losses = numbers["steps"], numbers["seen"], numbers["losses"]
        self.loss_sum.fill_(numbers["loss_sum"])
        self.seconds = numbers["seconds"]

    def record(self) -> Training:
        """Return what was done."""
        images = round(self.seen * self.length / max(self.steps, 1))
        training = Training(self.recipe.settings(), self.steps, tuple(self.losses), self.seconds, images)
        if self.distortion is None:
            return training
        return replace(
            training,
            distortions=self.distortion.distortions,
            distortion_seconds=self.distortion.seconds,
            schedule=asdict(self.distortion.schedule),
        )


def _is_pair(data: Any) -> bool:
    return isinstance(data, (tuple, list)) and len(data) == 2 and all(isinstance(part, Tensor) for part in data)
