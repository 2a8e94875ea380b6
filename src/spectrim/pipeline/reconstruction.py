"""Block-wise reconstruction as a step: which blocks are taken, what is kept of them, and what the report says of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from spectrim.core.plan import Plan
from spectrim.network.calling import batch_size, count, cuda_devices
from spectrim.pipeline.cache import Entry, Ledger
from spectrim.pipeline.prepare import Prepared
from spectrim.refit.blocks import find_blocks
from spectrim.refit.reconstruct import Reconstruct, Task, fit_block
from spectrim.sensitivity.measured import batch_harms

BACK = "reconstruction kept back: unseen images disagreed"


@dataclass(frozen=True)
class Reconstructed:
    """What was done to the blocks of a network.

    Attributes:
        decisions: Layer name to what became of it.
        notes: What a reader of the report must know.
    """

    decisions: Mapping[str, str]
    notes: tuple[str, ...]


def reconstruct(prepared: Prepared, plan: Plan, small: nn.Module, ledger: Ledger, name: str) -> Reconstructed:
    """Take gradient steps on the small layers of each block in order of execution; unseen images must agree to each block.

    Args:
        prepared: The original network and its images.
        plan: Of the compressed network.
        small: The compressed network, of which the parameters of small layers change.
        ledger: Takes the time, and keeps every finished block.
        name: Of the network's pieces in the cache.
    """
    options = prepared.config.reconstruct
    if options is None or not plan:
        return Reconstructed({}, ())
    config, unit, decisions = prepared.config, prepared.unit, dict[str, str]()
    task = Task(prepared.model, small, prepared.calibration, options, config.memory, config.seed, unit)
    accepted, harm = 0, math.nan
    with ledger.stage("reconstruct"), torch.random.fork_rng(cuda_devices(prepared.example)):
        torch.manual_seed(config.seed)
        blocks = find_blocks(small, list(plan), prepared.calibration[0], unit)
        for done, block in enumerate(blocks.found, 1):
            with ledger.piece(f"{name} block {block.name}") as piece:
                if piece.entry is None:
                    before = judged(prepared, small) if math.isnan(harm) else harm
                    fitted = fit_block(task, block)
                    old = {key: small.get_parameter(key).detach().clone() for key in fitted.tensors}
                    put(small, fitted.tensors)
                    after = judged(prepared, small) if fitted.after < fitted.before else math.inf
                    if better := after < before:
                        said = f"reconstructed on {fitted.images:,} images{' and their mirror images' * options.mirror}"
                    else:
                        put(small, old)
                        said = f"not reconstructed: {fitted.reason}" if fitted.reason else BACK
                    told = {"harm": after if better else before, "said": said, "accepted": better}
                    piece.entry = Entry(fitted.tensors if better else {}, told)
                    ledger.passed(**_passes(prepared, options, done, len(blocks.found), fitted.images))
                put(small, piece.entry.tensors)
            numbers = piece.entry.numbers
            harm, accepted = numbers["harm"], accepted + numbers["accepted"]
            decisions |= dict.fromkeys(block.layers, f"{numbers['said']} (block {block.name})")
            ledger.tick("reconstruct", done / len(blocks.found))
    decisions |= {layer: f"not reconstructed: {reason}" for layer, reason in blocks.left.items()}
    return Reconstructed(decisions, (_note(options, accepted, len(blocks.found)),))


def judged(prepared: Prepared, small: nn.Module) -> float:
    """Return the mean harm on the unseen images; not a number if any is not."""
    sizes = [batch_size(batch) for batch in prepared.unseen]
    harms = batch_harms(prepared.model, small, prepared.unseen, prepared.harm)
    return sum(size * harm for size, harm in zip(sizes, harms, strict=True)) / sum(sizes)


def put(small: nn.Module, tensors: Mapping[str, torch.Tensor]) -> None:
    """Give parameters of these names other values."""
    with torch.no_grad():
        for name, value in tensors.items():
            small.get_parameter(name).copy_(value)


def _passes(prepared: Prepared, options: Reconstruct, number: int, blocks: int, images: int) -> dict[str, float]:
    """Return the passes that a block took over the calibration images, if all blocks are the same share of the network."""
    every = count(prepared.calibration)
    fitted, steps = (1 + options.mirror) * images / every, bool(images) * options.steps * options.batch / every
    captured = fitted * (2 * number - 1) + 2 * fitted
    return {"forward": (captured + steps) / blocks + 2 * count(prepared.unseen) / every, "backward": steps / blocks}


def _note(options: Reconstruct, accepted: int, blocks: int) -> str:
    """Return that gradient steps were taken."""
    return (
        f"gradient steps were taken, without labels: {options.steps} of Adam on each of {blocks} blocks. {accepted} were kept, "
        "as the unseen images agreed; these have decided, so the harm measured on them may be a little too low"
    )
