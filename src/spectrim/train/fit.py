"""A small training loop for classifiers: baselines, controls, distortion training, one-shot fine-tuning.

Everything random in a step is a function of seed, step and process, so a run that was interrupted goes on exactly.
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from spectrim.network.accuracy import check_labels
from spectrim.network.calling import call, evaluation_mode, tensors_of, unwrap
from spectrim.train.batches import Tensors, augment, check_batch, place, tell_epoch
from spectrim.train.distort import Distortion

FORMAT = "spectrim-training-2"
SAVE_SECONDS = 60.0
DIVERGED = 100.0  # nats; guessing among a thousand classes costs 7
RANGES = {
    "epochs": (1, 10**6),
    "batch": (1, 10**6),
    "rate": (1e-8, 1e3),
    "rise": (0.0, 1.0),
    "weight_decay": (0.0, 1e3),
    "smoothing": (0.0, 0.99),
    "crop": (0, 10**4),
    "distill": (0.0, 1.0),
    "temperature": (1e-3, 1e3),
}
TICK = 20  # steps between two looks at the loss, which wait for the device


@dataclass(frozen=True)
class Recipe:
    """How to train.

    Attributes:
        epochs: Times the data is read.
        batch: Images of one step, of all processes together.
        optimizer: `sgd` (Nesterov momentum 0.9), `adamw`, or a function from the trained parameters to an optimizer.
        rate: Largest learning rate; it rises to it and falls to nothing in one cycle.
        rise: Share of the steps in which the rate rises.
        weight_decay: On all parameters.
        smoothing: Label smoothing.
        crop: Pixels by which images are shifted at most.
        flip: Whether images are mirrored at random.
        distill: Share of the loss that is KL divergence from a teacher's outputs.
        temperature: Of that divergence.
        precision: `auto` is bfloat16 autocast where the device is fast at it.
        seed: Of order, crops and flips.
        checkpoint: File that keeps the state, so that the same call goes on where it was interrupted.
        progress: Called with the name of the stage and the share of it that is done.
    """

    epochs: int = 10
    batch: int = 128
    optimizer: Literal["sgd", "adamw"] | Callable[[list[nn.Parameter]], torch.optim.Optimizer] = "sgd"
    rate: float = 0.02
    rise: float = 0.2
    weight_decay: float = 1e-4
    smoothing: float = 0.0
    crop: int = 4
    flip: bool = True
    distill: float = 0.0
    temperature: float = 2.0
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    seed: int = 0
    checkpoint: str | os.PathLike[str] | None = None
    progress: Callable[[str, float], None] | None = None

    def __post_init__(self) -> None:
        """Check the values."""
        for name, (low, high) in RANGES.items():
            kind = int if isinstance(low, int) else (int, float)
            if not isinstance(getattr(self, name), kind) or isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} is {getattr(self, name)!r}; it must be a {'whole ' if kind is int else ''}number")
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be between {low} and {high}")
        for name, allowed in (("optimizer", ("sgd", "adamw")), ("precision", ("auto", "float32", "bfloat16"))):
            if getattr(self, name) not in allowed and not callable(getattr(self, name)):
                raise ValueError(f"{name} is {getattr(self, name)!r}; allowed are {', '.join(allowed)}")
        if not isinstance(self.seed, int) or not isinstance(self.flip, bool):
            raise ValueError(f"seed is {self.seed!r} and flip {self.flip!r}; it must be a whole number, and True or False")

    def words(self) -> dict[str, Any]:
        """Return what decides the result, JSON-ready."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("checkpoint", "progress")}
        if callable(self.optimizer):
            values["optimizer"] = getattr(self.optimizer, "__qualname__", type(self.optimizer).__name__)
        return values


@dataclass
class History:
    """What a training run did.

    Attributes:
        steps: Optimizer steps done.
        loss: Mean training loss of each epoch.
        seconds: Wall-clock time, over all sessions of a resumed run.
        images: How many images one epoch has.
        distortions: How often kernels were distorted.
        distortion_seconds: Part of the seconds that went into that.
    """

    steps: int
    loss: list[float]
    seconds: float
    images: int = 0
    distortions: int = 0
    distortion_seconds: float = 0.0


def fit(
    model: nn.Module,
    data: tuple[Tensor, Tensor] | Iterable[tuple[Tensor, Tensor]],
    *,
    recipe: Recipe | None = None,
    teacher: nn.Module | None = None,
    twist: Distortion | None = None,
) -> History:
    """Train a classifier in place. Under `torch.distributed` (torchrun) every process trains on its part of each batch.

    Args:
        model: The network; it is trained where it is and comes back in the mode it had.
        data: Images (N, C, H, W) and labels (N,), shuffled here; or a sized iterable of batches that shuffles itself, by
            torch's own random numbers, which are seeded before each batch, or by `set_epoch(epoch)` of it or of its sampler.
        recipe: How.
        teacher: With `Recipe.distill`, the network whose outputs are imitated; with the same input.
        twist: Its `step()` is called after every step of the optimizer; `finish()` is left to the caller.

    Raises:
        ValueError: If the recipe asks for a teacher that is not given, images, labels or weights cannot be trained on, the
            run ends before the first distortion or before the ranks are the plan's, `twist` is of another network, or the
            checkpoint is of another run.
        FloatingPointError: If the loss has grown beyond all bounds.
    """
    recipe = recipe or Recipe()
    if recipe.distill and teacher is None:
        raise ValueError(f"distill is {recipe.distill}, but there is no teacher to imitate; give one, or leave distill at 0")
    batches: Any = Tensors(*data, size=recipe.batch, seed=recipe.seed) if _is_pair(data) else data
    if not hasattr(batches, "__len__") or not len(batches):
        raise ValueError("the training data has no length or is empty; give images and labels, or a loader with a length")
    run = _Run(model, recipe, batches, twist)
    run.load()
    modes = [(module, module.training) for module in unwrap(model).modules()]
    try:
        run.network.train()
        used = {parameter.device for parameter in run.model.parameters()} if torch.cuda.is_available() else set()
        with torch.random.fork_rng([device for device in used if device.type == "cuda"]), run.interruptible():
            for epoch in range(run.steps // run.length, recipe.epochs):
                tell_epoch(batches, epoch)
                run.epoch(batches, teacher)
    finally:
        for module, mode in modes:
            module.training = mode
    return run.history()


class _Run:
    """The state of one training run, and what is saved of it."""

    def __init__(self, model: nn.Module, recipe: Recipe, batches: Any, twist: Distortion | None) -> None:
        self.model, self.recipe, self.length, self.twist = unwrap(model), recipe, len(batches), twist
        self.device = next(self.model.parameters()).device
        self.network: nn.Module = model
        if place()[1] > 1 and not isinstance(model, DistributedDataParallel):
            self.network = DistributedDataParallel(self.model)
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimizer = _optimizer(recipe, trained)
        self.total = recipe.epochs * self.length
        self._check(trained, batches)
        self.about = {
            "recipe": recipe.words(),
            "batches in an epoch": self.length,
            "data": batches.digest() if isinstance(batches, Tensors) else "",
            "distortion": None if twist is None else asdict(twist.schedule),
        }
        self.interrupted = False
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, self._share)
        self.steps = 0
        self.seen = 0
        self.losses: list[float] = []
        self.sum = torch.zeros((), device=self.device)
        self.seconds = 0.0
        self.saved = time.perf_counter()

    def _check(self, trained: list[nn.Parameter], batches: Any) -> None:
        """Refuse what cannot end well, before anything is changed."""
        if not trained:
            raise ValueError("the network has no parameter that requires a gradient, so there is nothing to train")
        for name, value in self.model.named_parameters():
            if not value.isfinite().all():
                raise ValueError(f"the network's {name!r} holds NaN or infinity; give weights that are finite")
        if isinstance(batches, Tensors):
            with evaluation_mode(self.model), torch.no_grad():
                check_labels(batches.labels, tensors_of(call(self.model, batches.images[:1].to(self.device)))[0])
        if self.twist is None:
            return
        if not isinstance(self.twist, Distortion) or unwrap(self.twist.model) is not self.model:
            raise ValueError("the twist is not a Distortion of this network; make it with the network that is trained")
        schedule, wanted = self.twist.schedule, max(1, self.twist.schedule.tighten)
        needed = schedule.warmup + sum(schedule.interval(done) for done in range(wanted))
        if self.twist.steps == 0 and self.total < needed:
            what = "the first distortion is" if wanted == 1 else f"the ranks are the plan's (tighten={wanted}), and that is"
            raise ValueError(
                f"{what} due after {needed} steps, but {self.recipe.epochs} epochs are {self.total} steps; "
                "distort more often (every) or train longer"
            )

    def _share(self, step: int) -> float:
        """Return the learning rate as a share of the largest: one cycle of two half cosines."""
        peak = self.recipe.rise * self.total
        if step < peak:
            return 0.04 + 0.96 * (1 - math.cos(math.pi * step / peak)) / 2
        return 1e-3 + 0.999 * (1 + math.cos(math.pi * min(1.0, (step - peak) / max(self.total - peak, 1)))) / 2

    def epoch(self, batches: Iterable[tuple[Tensor, Tensor]], teacher: nn.Module | None) -> None:
        """Train on what is left of an epoch."""
        done = self.steps % self.length
        begin = time.perf_counter()
        for index, (inputs, labels) in enumerate(self._seeded(batches, self.steps - done)):
            if index < done:
                continue
            if not isinstance(batches, Tensors):
                check_batch(inputs, labels)
            self.seen += len(inputs) * place()[1]
            loss = self._step(inputs.to(self.device), labels.to(self.device).long(), teacher)
            self.sum += loss.detach()
            if self.steps % TICK == 0 or self.steps % self.length == 0:
                self._look()
            if self.steps % self.length == 0:
                self.losses.append(float(self.sum) / self.length)
                self.sum.zero_()
            now = time.perf_counter()
            self.seconds, begin = self.seconds + now - begin, now
            if now - self.saved > SAVE_SECONDS or self.steps == self.total or self.interrupted:
                self.save()
            if self.interrupted:
                raise KeyboardInterrupt
            if self.steps % self.length == 0:
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
        seed = (self.recipe.seed * 1_000_003 + step) * 4096 + place()[0]
        torch.manual_seed(seed)
        return seed

    def _step(self, inputs: Tensor, labels: Tensor, teacher: nn.Module | None) -> Tensor:
        recipe = self.recipe
        seed = self._seed(self.steps)  # for dropout
        if inputs.ndim == 4:
            inputs = augment(inputs, recipe.crop, recipe.flip, torch.Generator().manual_seed(seed))
        with self._autocast():
            outputs = tensors_of(call(self.network, inputs))[0]
            if labels.device.type == "cpu":  # elsewhere each look waits for the device
                check_labels(labels, outputs)
            loss = functional.cross_entropy(outputs.float(), labels, label_smoothing=recipe.smoothing)
            if teacher is not None and recipe.distill:
                with torch.no_grad(), evaluation_mode(teacher):
                    wanted = tensors_of(call(teacher, inputs))[0].float() / recipe.temperature
                told = functional.kl_div(
                    (outputs.float() / recipe.temperature).log_softmax(1),
                    wanted.log_softmax(1),
                    log_target=True,
                    reduction="batchmean",
                )
                loss = (1 - recipe.distill) * loss + recipe.distill * recipe.temperature**2 * told
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        self.schedule.step()
        self.steps += 1
        if self.twist is not None:
            self.twist.step()
        return loss

    def _autocast(self) -> Any:
        wanted = self.recipe.precision
        fast = self.device.type == "cpu" and torch.cpu._is_avx512_bf16_supported()
        if self.device.type == "cuda" and wanted == "auto":  # older ones, such as T4 and V100, emulate it
            fast = torch.cuda.get_device_capability(self.device) >= (8, 0)
        if wanted == "float32" or (wanted == "auto" and not fast):
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16)

    @contextlib.contextmanager
    def interruptible(self) -> Iterator[None]:
        """Let Ctrl-C wait for the end of the step, so that what is kept is whole; a second one does not wait."""
        if self.recipe.checkpoint is None or threading.current_thread() is not threading.main_thread():
            yield
            return

        def remember(number: int, frame: Any) -> None:
            if self.interrupted:
                raise KeyboardInterrupt
            self.interrupted = True

        before = signal.signal(signal.SIGINT, remember)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    def _look(self) -> None:
        mean = float(self.sum) / ((self.steps - 1) % self.length + 1)
        if not mean < DIVERGED:
            raise FloatingPointError(
                f"the training loss has grown to {mean:.3g} by step {self.steps}; lower the rate (now {self.recipe.rate:g})"
            )
        if self.recipe.progress is not None and place()[0] == 0:
            self.recipe.progress("training", self.steps / self.total)

    def save(self) -> None:
        """Keep everything that goes on from here; the file is whole or not there."""
        self.saved = time.perf_counter()
        if self.recipe.checkpoint is None or place()[0]:
            return
        path = Path(self.recipe.checkpoint)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        state = {
            "format": FORMAT,
            "about": self.about,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "twist": None if self.twist is None else self.twist.state_dict(),
            "numbers": {
                "steps": self.steps,
                "losses": self.losses,
                "sum": float(self.sum),
                "seconds": self.seconds,
                "seen": self.seen,
            },
        }
        torch.save(state, partial)
        partial.replace(path)

    def load(self) -> None:
        """Go on from the checkpoint, if there is one."""
        if self.recipe.checkpoint is None or not Path(self.recipe.checkpoint).is_file():
            return
        state = torch.load(self.recipe.checkpoint, map_location=self.device, weights_only=True)
        about = state.get("about", {}) if isinstance(state, dict) and state.get("format") == FORMAT else {}
        others = [name for name, value in self.about.items() if about.get(name) != value]
        if others:
            path, what = str(self.recipe.checkpoint), ", ".join(others)
            raise ValueError(f"the checkpoint {path!r} is of another run (other {what}); remove it to begin anew")
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        if self.twist is not None and state["twist"] is not None:
            self.twist.load_state_dict(state["twist"])
        numbers = state["numbers"]
        self.steps, self.losses, self.seconds = numbers["steps"], numbers["losses"], numbers["seconds"]
        self.seen = numbers["seen"]
        self.sum.fill_(numbers["sum"])

    def history(self) -> History:
        """Return the account."""
        distorted = (0, 0.0) if self.twist is None else (self.twist.distortions, self.twist.seconds)
        images = round(self.seen * self.length / max(self.steps, 1))
        return History(self.steps, self.losses, self.seconds, images, *distorted)


def _optimizer(recipe: Recipe, trained: list[nn.Parameter]) -> torch.optim.Optimizer:
    if callable(recipe.optimizer):
        return recipe.optimizer(trained)
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(trained, recipe.rate, momentum=0.9, nesterov=True, weight_decay=recipe.weight_decay)
    return torch.optim.AdamW(trained, recipe.rate, weight_decay=recipe.weight_decay)


def _is_pair(data: Any) -> bool:
    return isinstance(data, (tuple, list)) and len(data) == 2 and all(isinstance(part, Tensor) for part in data)
