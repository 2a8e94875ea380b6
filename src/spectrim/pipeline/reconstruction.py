"""Block-wise reconstruction as a step: which blocks are taken, what is kept of them, and what the report says of it."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from spectrim.core.plan import Plan
from spectrim.network.calling import Example, batch_size, count, cuda_devices, head, tail
from spectrim.pipeline.cache import Entry, Ledger
from spectrim.pipeline.fitted import scaled
from spectrim.pipeline.prepare import Prepared
from spectrim.refit.blocks import Block, find_blocks
from spectrim.refit.reconstruct import Task, fit_block
from spectrim.refit.regression import refit
from spectrim.sensitivity.measured import batch_harms

PART = 8  # images whose harms are one observation
BACK = "reconstruction kept back: unseen images disagreed"


@dataclass(frozen=True)
class Reconstructed:
    """What was done to the blocks of a network.

    Attributes:
        decisions: Layer name to what became of it.
        scales: Layer name to the factor of its answers, where the steps made one more worth having.
        notes: What a reader of the report must know.
    """

    decisions: Mapping[str, str]
    scales: Mapping[str, float]
    notes: tuple[str, ...]


def reconstruct(
    prepared: Prepared, plan: Plan, small: nn.Module, ledger: Ledger, name: str, dense: Sequence[str] = ()
) -> Reconstructed:
    """Refit the layers of each block to the blocks before it, and take gradient steps on them, in order of execution.

    A block's steps stay if its error falls on unseen images, too; all of it stays unless in the end the network's harm on these
    is higher by more than the standard error of the difference: the plan and its ridges were chosen on the same images, so what
    was there before looks a little too good on them. That harm cannot judge one block: the layers behind it are fitted to what
    it gave before, until their turn comes.

    Args:
        prepared: The original network and its images.
        plan: Of the compressed network.
        small: The compressed network, of which the parameters of small layers change.
        ledger: Takes the time, and keeps every finished block.
        name: Of the network's pieces in the cache.
        dense: Layers that stay dense and were refitted.
    """
    options, config = prepared.config.reconstruct, prepared.config
    if options is None or not plan:
        return Reconstructed({}, {}, ())
    images = (prepared.calibration, prepared.unseen)
    task = Task(prepared.model, small, *images, options, config.memory, config.seed, prepared.unit)
    last = prepared.survey.layers[-1].name
    before, said, kept = parameters(small, list({*plan, last})), dict[Block, str](), list[Block]()
    with ledger.stage("reconstruct"), torch.random.fork_rng(cuda_devices(prepared.example)):
        torch.manual_seed(config.seed)
        blocks = find_blocks(small, list(plan), prepared.calibration[0], prepared.unit)
        for done, block in enumerate(blocks.found, 1):
            with ledger.piece(f"{name} block {block.name}") as piece:
                if piece.entry is None:
                    again = _refitted(prepared, plan, small, block, dense) if kept and config.refit else {}
                    put(small, again)
                    piece.entry = _block(task, block, again)
                    ledger.passed(**_passes(task, piece.entry.numbers["images"], done / len(blocks.found), len(blocks.found)))
            put(small, piece.entry.tensors)
            said[block] = piece.entry.numbers["said"]
            kept += [block] if piece.entry.numbers["kept"] else []
            ledger.tick("reconstruct", done / (len(blocks.found) + 1))
        scales = scaled(prepared, small, plan) if kept else {}
        harms = _judged(prepared, small, before, ledger, name)
    what = f"gradient steps were taken, without labels: {options.steps} of Adam on each of {len(blocks.found)} blocks"
    before_it, after_it, error = harms
    if kept and after_it < before_it + error:
        note = f"{what}; {len(kept)} were kept, and the harm on unseen images went from {before_it:.3g} to {after_it:.3g}"
    else:
        put(small, before)
        said |= dict.fromkeys(kept, BACK)
        scales = {}
        note = f"{what}, and taken back: the harm on unseen images went from {before_it:.3g} to {after_it:.3g}"
    decisions = {layer: f"{text} (block {block.name})" for block, text in said.items() for layer in block.layers}
    decisions |= {layer: f"not reconstructed: {why}" for layer, why in blocks.left.items()}
    return Reconstructed(decisions, scales, (note,))


def _refitted(prepared: Prepared, plan: Plan, small: nn.Module, block: Block, dense: Sequence[str]) -> dict[str, Tensor]:
    """Return the parameters of a block's layers, fitted again to what the blocks before it give them by now."""
    assert prepared.moments is not None
    given = {name: small.get_submodule(name) for name in (*plan, *dense) if name not in block.layers}
    settings, found = prepared.refit_settings, dict[str, nn.Module]()
    with contextlib.closing(
        refit(prepared.model, plan, prepared.calibration, prepared.moments, given=given, **settings)
    ) as layers:
        for layer in layers:
            found[layer.name] = layer.module
            if len(found) == len(block.layers):
                break
    return {f"{name}.{key}": value for name, module in found.items() for key, value in module.state_dict().items()}


def _block(task: Task, block: Block, again: Mapping[str, Tensor]) -> Entry:
    """Return a block's parameters after its gradient steps if unseen images agree, and what is said of it."""
    fitted = fit_block(task, block)
    kept = not fitted.reason and all(after < before for before, after in zip(fitted.before, fitted.after, strict=True))
    said = f"reconstructed on {fitted.images:,} images{' and their mirror images' * task.options.mirror}"
    said = f"not reconstructed: {fitted.reason}" if fitted.reason else said if kept else BACK
    return Entry({**again, **(fitted.tensors if kept else {})}, {"said": said, "kept": kept, "images": fitted.images})


def _judged(
    prepared: Prepared, small: nn.Module, before: Mapping[str, Tensor], ledger: Ledger, name: str
) -> tuple[float, float, float]:
    """Return the harm on the unseen images before and after the reconstruction, and the standard error of the difference."""
    with ledger.piece(f"{name} judged") as piece:
        if piece.entry is None:
            step = max(1, PART // prepared.unit) * prepared.unit
            parts = [part for batch in prepared.unseen for part in _cut(batch, step)]
            sizes, values, after = np.array([batch_size(part) for part in parts]), [], parameters(small, before)
            for tensors in (before, after):
                put(small, tensors)
                values.append(np.array(batch_harms(prepared.model, small, parts, prepared.harm)))
            gaps = values[1] - values[0]
            error = float(gaps.std(ddof=1)) / math.sqrt(len(parts)) if len(parts) > 1 else 0.0
            harms = [*(float((sizes * each).sum() / sizes.sum()) for each in values), error]
            ledger.passed(forward=4 * count(prepared.unseen) / count(prepared.calibration))
            piece.entry = Entry({}, {"harms": harms})
    old, new, error = piece.entry.numbers["harms"]
    return old, new, error


def _cut(batch: Example, step: int) -> list[Example]:
    """Return a batch in parts of so many images."""
    size = batch_size(batch)
    return [head(tail(batch, size - start), step) for start in range(0, size, step)]


def parameters(small: nn.Module, names: Sequence[str] | Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return copies of the parameters and buffers of some modules, or of those with such names."""
    if isinstance(names, Mapping):
        return {name: _tensor(small, name).detach().clone() for name in names}
    return {f"{name}.{key}": value.clone() for name in names for key, value in small.get_submodule(name).state_dict().items()}


def put(small: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Give parameters and buffers of these names other values."""
    with torch.no_grad():
        for name, value in tensors.items():
            _tensor(small, name).copy_(value)


def _tensor(small: nn.Module, name: str) -> Tensor:
    """Return the parameter or buffer of this name."""
    place, _, own = name.rpartition(".")
    found: Tensor = getattr(small.get_submodule(place), own)
    return found


def _passes(task: Task, images: int, share: float, blocks: int) -> dict[str, float]:
    """Return the passes that a block took over the calibration images, if all blocks are the same part of the network.

    Args:
        task: How.
        images: How many it was fitted to.
        share: Of the network up to its end.
        blocks: How many there are.
    """
    every, options = count(task.batches), task.options
    seen = (1 + options.mirror) * images + min(images, count(task.unseen))
    steps = options.steps * min(options.batch, images) / every / blocks
    captured = (2 * share - 1 / blocks + 2 / blocks) * seen / every
    return {"forward": 2 * share + captured + steps, "backward": steps}
