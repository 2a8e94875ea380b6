"""Step one, prepare: everything that budgets share. A copy of the network, its layers, their moments, and the menu."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn

from spectrim.core.cost import Cost
from spectrim.core.factorization import Moments
from spectrim.core.layer import Layer
from spectrim.core.menu import RESPONSE, Menu
from spectrim.core.plan import Option, Plan
from spectrim.core.progress import Spent
from spectrim.network.apart import opened
from spectrim.network.calling import Example, batch_size, batched, count, cuda_devices, head, undisturbed
from spectrim.network.counting import counted
from spectrim.network.surgery import checked
from spectrim.network.survey import Survey, survey
from spectrim.pipeline.cache import Cache, Entry, Ledger, pack, unpack
from spectrim.pipeline.calibration import collect
from spectrim.pipeline.checks import check_norms, check_outputs, check_reconstruct, check_weights, examples_together, notes_of
from spectrim.pipeline.config import Config
from spectrim.pipeline.harms import menus
from spectrim.pipeline.identity import UnknownIdentityError, fingerprint, identity, method_identity
from spectrim.sensitivity.divergence import Harm, is_logits, output_harm
from spectrim.sensitivity.moments import Sweep
from spectrim.sensitivity.options import Offer, offers
from spectrim.targets.base import Target
from spectrim.targets.torch import Torch

SAVED = 12  # bytes that a backward pass keeps for each number that a layer sees or answers
MEMORY = 1 << 30  # bytes of images that a rank selection may have beyond the calibration's


@dataclass(frozen=True, eq=False)
class Prepared:
    """What `prepare` found, for any number of budgets.

    Attributes:
        model: A copy of the network.
        example: A batch of inputs.
        config: How to compress.
        survey: The layers that may be replaced, and the other weighted modules with reasons.
        original: Cost of the whole network.
        calibration: Batches for moments and refit; none without data.
        unseen: Batches that no fit sees, on which the report measures harm; none where there are too few images.
        further: Batches beyond them, on which a rank selection may measure.
        moments: Layer name to moments; None without data.
        menu: What can be done to every layer.
        harm: What a change of the outputs costs.
        harm_unit: The unit of the menu's harms.
        notes: What a reader of a report must know.
        unit: Batches are multiples of so many examples: 1, but for networks whose examples belong together, as frames of clips.
        varying: Whether the MACs depend on the input, so that those of a plan are the example's alone.
        key: What all of this was computed from, for the cache; None where that cannot be told, and nothing is cached.
        spent: What it took.
        recent: Refitted networks of the last plans, by plan and settings.
    """

    model: nn.Module
    example: Example
    config: Config
    survey: Survey
    original: Cost
    calibration: Sequence[Example]
    unseen: Sequence[Example]
    further: Sequence[Example]
    moments: Mapping[str, Moments] | None
    menu: Menu
    harm: Harm
    harm_unit: str
    notes: tuple[str, ...]
    unit: int
    varying: bool
    key: str | None
    spent: Spent
    recent: dict[str, Any] = field(default_factory=dict, repr=False)

    def ledger(self) -> Ledger:
        """Return a new ledger for a step that goes on from here."""
        return _ledger(self.config, self.key, self.example)

    @property
    def refit_settings(self) -> dict[str, Any]:
        """Settings of the refit."""
        return {"unseen": self.unseen, "seed": self.config.seed, "memory": self.config.memory, "unit": self.unit}


@undisturbed()
def prepare(
    model: nn.Module,
    example: Example,
    *,
    calibration: Iterable[Any] | None = None,
    config: Config | None = None,
    plan: Plan | None = None,
) -> Prepared:
    """Look at a network and its data once, for any number of budgets.

    Args:
        model: A trained network; never modified.
        example: A batch of inputs: a tensor, or a tuple or dict of tensors; costs are counted for one example of it.
        calibration: Iterable of inputs or (inputs, targets); no labels are needed. Without it weights are approximated
            without looking at data.
        config: How.
        plan: A plan of one's own: the menu then offers what it says, and nothing else.

    Returns:
        The copy of the network, its layers, moments and menu.

    Raises:
        ValueError: If something given is unusable; the text says what.
        TypeError: If something given is of the wrong kind.
    """
    config = config or Config()
    if config.target is not None:
        config.target.check()
    batch_size(example)
    model = opened(model, example)
    check_weights(model)
    if config.refit and calibration is not None:
        check_norms(model)
    together = examples_together(model, example)
    further = min(config.search.images, _held(example))  # for a given plan, too: what judges then is the same
    found = _allowed(survey(model, example), config)
    images = collect(calibration, example, config, _batch(found, config), further=further, unit=together)
    check_reconstruct(images, example, config, together)
    given = None if plan is None else checked(plan, found)
    harm = config.harm or output_harm
    outputs = check_outputs(model, images, config, together) if images.fitting else None
    key = _key(model, [*images.fitting, *images.unseen, *images.further], config)
    ledger = _ledger(config, key, example)
    moments = _moments(ledger, model, found, images.fitting, config) if images.fitting else None
    offered = {layer: _offers(layer, config, moments, given) for layer in found.layers}
    free = config if given is None else replace(config, multiple_of=1)
    rows = menus(ledger, model, offered, moments, images.unseen, free)
    original = counted(model, example)
    menu, unit = Menu(tuple(rows), original.cost), _unit(outputs, config)
    of_images = counted(model, head(images.fitting[0], batch_size(example))).cost if images.fitting else original.cost
    notes = notes_of(model, images, original, of_images, found)
    key = None if key is None else f"{key} {_menu_identity(menu)}"  # later steps depend on all of it
    inputs = (images.fitting, images.unseen, images.further)
    cost, varies = original.cost, of_images != original.cost
    return Prepared(
        model, example, config, found, cost, *inputs, moments, menu, harm, unit, notes, together, varies, key, ledger.spent
    )


def target_of(config: Config, example: Example) -> Target:
    """Return the user's target; else PyTorch on the one GPU that the example is on, or leaving the network where it is."""
    places = {str(device) for device in cuda_devices(example)}
    return config.target or (Torch(device=places.pop()) if len(places) == 1 else Torch())


def _held(example: Example) -> int:
    """Return how many examples of this size a rank selection may have beyond the calibration's."""
    return MEMORY // max(sum(x[:1].numel() * x.element_size() for x in batched(example)), 1)


def _batch(found: Survey, config: Config) -> int:
    """Return how many images go through the network at once: those whose activations half of the memory holds, going back."""
    numbers = sum(math.prod(shape) for layer in found.layers for shape in (*layer.inputs, *layer.outputs))
    return max(1, min(config.batch, config.memory // (2 * SAVED * max(numbers, 1))))


def _ledger(config: Config, key: str | None, example: Example) -> Ledger:
    cache = Cache(None if key is None else config.cache, key or "")
    return Ledger(cache, batched(example)[0].device, config.progress)


def _allowed(found: Survey, config: Config) -> Survey:
    """Return the survey without the layers that the configuration excludes."""
    names = [layer.name for layer in found.layers]
    for pattern in config.exclude:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ValueError(f"exclude has {pattern!r}, which matches no layer; the layers are {', '.join(names)}")
    out = {name for name in names if any(fnmatchcase(name, pattern) for pattern in config.exclude)}
    left = dict.fromkeys((name for name in names if name in out), "excluded by the configuration")
    return Survey(tuple(layer for layer in found.layers if layer.name not in out), found.skipped | left)


def _key(model: nn.Module, batches: Sequence[Example], config: Config) -> str | None:
    """Return what the moments and the menu depend on, besides what is in the name of each piece."""
    if config.cache is None:
        return None
    settings = (
        f"{config.seed} {config.gradient} {config.images} {config.batch} {config.memory} {config.exclude} {torch.__version__}"
    )
    try:
        harm = "" if config.harm is None else identity(config.harm)
        return fingerprint(model, batches, f"{settings} {harm}")
    except UnknownIdentityError:
        return None


def _moments(
    ledger: Ledger, model: nn.Module, found: Survey, batches: Sequence[Example], config: Config
) -> Mapping[str, Moments]:
    """Return the moments of every layer, from the cache or from one sweep over the batches."""
    with ledger.piece("moments") as piece:
        if piece.entry is None:
            with ledger.stage("statistics"):
                harm = (config.harm or output_harm) if config.gradient else None
                sweep = Sweep(found.layers, count(batches), seed=config.seed, harm=harm, memory=config.memory)
                for done, batch in enumerate(batches, 1):
                    sweep.add(model, batch)
                    ledger.tick("statistics", done / len(batches))
                ledger.passed(forward=1.0, backward=float(config.gradient))
                piece.entry = Entry(pack(sweep.moments(model)))
    return unpack(piece.entry.tensors)


def _menu_identity(menu: Menu) -> str:
    """Return what a menu depends on: its layers, methods with their code, ranks and predicted harms."""
    digest = hashlib.blake2b(str(menu.original).encode(), digest_size=16)
    for row in menu.layers:
        codes = {id(option.method): method_identity(option.method) for option in row.options if option.method is not None}
        options = [(codes.get(id(option.method)), option.rank, option.bias) for option in row.options]
        digest.update(f"{row.layer} {options} {row.scores[RESPONSE].tolist()}".encode())
    return digest.hexdigest()


def _offers(
    layer: Layer, config: Config, moments: Mapping[str, Moments] | None, given: Mapping[str, Option] | None
) -> list[Offer]:
    """Return the methods and ranks whose harms are wanted: all that pay, or the one that a given plan names."""
    own = None if moments is None else moments[layer.name]
    if given is None:
        return offers(layer, config.methods, own, multiple_of=config.multiples)
    option = given.get(layer.name)
    if option is None or option.method is None:
        return []
    if own is not None and own.covariance is None and not option.method.response_only:
        raise ValueError(
            f"the plan has {option.title} for layer {layer.name!r}, whose input is too large for the covariance that it needs; "
            "use ChannelSVD there"
        )
    return [(option.method, [option.rank])]


def _unit(outputs: Any, config: Config) -> str:
    """Return the unit of the menu's harms, for a network with such outputs; None says that there are no data."""
    if outputs is None:
        return "relative squared weight error"
    if config.harm is not None:
        return str(config.settings()["harm"])
    return "nats" if is_logits(outputs) else "relative squared error"
