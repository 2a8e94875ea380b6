"""Step one, prepare: everything that budgets share. A copy of the network, its layers, their moments, and the menu."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from spectrim.core.cost import Cost
from spectrim.core.factorization import Factorization, Moments
from spectrim.core.layer import Layer
from spectrim.core.menu import RESPONSE, Menu
from spectrim.core.plan import Option, Plan
from spectrim.core.progress import Spent
from spectrim.core.search import Search
from spectrim.network.build import working_weight
from spectrim.network.calling import Example, batch_size, call, count, evaluation_mode, tensors_of, undisturbed
from spectrim.network.counting import cost
from spectrim.network.surgery import checked, duplicate
from spectrim.network.survey import Survey, survey
from spectrim.pipeline.cache import Cache, Entry, Ledger, pack, unpack
from spectrim.pipeline.calibration import collect
from spectrim.pipeline.config import Config
from spectrim.pipeline.identity import UnknownIdentityError, fingerprint, identity
from spectrim.sensitivity.divergence import Harm, check, is_logits, output_harm
from spectrim.sensitivity.moments import Sweep
from spectrim.sensitivity.options import Offer, layer_menu, offers, sound

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
        further: Batches beyond them, on which a rank selection may measure.
        moments: Layer name to moments; None without data.
        menu: What can be done to every layer.
        harm: What a change of the outputs costs.
        harm_unit: The unit of the menu's harms.
        key: What all of this was computed from, for the cache; None where that cannot be told, and nothing is cached.
        spent: What it took.
    """

    model: nn.Module
    example: Example
    config: Config
    survey: Survey
    original: Cost
    calibration: Sequence[Example]
    further: Sequence[Example]
    moments: Mapping[str, Moments] | None
    menu: Menu
    harm: Harm
    harm_unit: str
    key: str | None
    spent: Spent

    def ledger(self) -> Ledger:
        """Return a new ledger for a step that goes on from here."""
        return _ledger(self.config, self.key, self.example)


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
    batch_size(example)
    model = duplicate(model)
    check_weights(model)
    if config.refit and calibration is not None:
        check_norms(model)
    size = sum(x[:1].numel() * x.element_size() for x in tensors_of(example))
    further = min(config.search.images, MEMORY // max(size, 1)) if plan is None else 0
    batches, more = collect(calibration, example, config.images, config.batch, more=further)
    found = _allowed(survey(model, example), config)
    given = None if plan is None else checked(plan, found)
    harm = config.harm or output_harm
    if batches and config.harm is not None and config.gradient:
        with torch.no_grad(), evaluation_mode(model):
            outputs = call(model, batches[0])
        check(harm, outputs)
    key = _key(model, [*batches, *more], config)
    ledger = _ledger(config, key, example)
    moments = _moments(ledger, model, found, batches, config) if batches else None
    offered = [_offers(layer, config, moments, given) for layer in found.layers]
    rows = []
    with ledger.stage("menu"):
        for done, (layer, offer) in enumerate(zip(found.layers, offered, strict=True), 1):
            harms = []
            for method, ranks in offer:
                with ledger.piece(f"menu {layer.name} {method_identity(method)} {ranks}") as piece:
                    if piece.entry is None:
                        weight = working_weight(layer, model.get_submodule(layer.name))
                        losses = method.losses(weight, ranks, None if moments is None else moments[layer.name])
                        piece.entry = Entry({}, {"harms": sound(losses, method, layer, ranks)})
                harms.append(piece.entry.numbers["harms"])
            multiple_of = config.multiple_of if given is None else 1
            rows.append(layer_menu(layer, offer, harms, bias=moments is not None, multiple_of=multiple_of))
            ledger.tick("menu", done / len(found.layers))
    original = cost(model, example)
    menu, unit = Menu(tuple(rows), original), _unit(model, example, config, bool(batches))
    key = None if key is None else f"{key} {_menu_identity(menu)}"  # later steps depend on all of it
    return Prepared(model, example, config, found, original, batches, more, moments, menu, harm, unit, key, ledger.spent)


def _ledger(config: Config, key: str | None, example: Example) -> Ledger:
    cache = Cache(None if key is None else config.cache, key or "")
    return Ledger(cache, tensors_of(example)[0].device, config.progress)


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
    settings = f"{config.seed} {config.gradient} {config.images} {config.batch} {config.exclude} {torch.__version__}"
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
                sweep = Sweep(found.layers, count(batches), seed=config.seed, harm=harm)
                for done, batch in enumerate(batches, 1):
                    sweep.add(model, batch)
                    ledger.tick("statistics", done / len(batches))
                ledger.passed(forward=1.0, backward=float(config.gradient))
                piece.entry = Entry(pack(sweep.moments()))
    return unpack(piece.entry.tensors)


def method_identity(method: Factorization | Search) -> str:
    """Return what a decomposition or rank selection depends on: its options, and its code where it is not ours."""
    try:
        return f"{type(method).__name__} {identity(method)}"
    except UnknownIdentityError:
        return f"{method!r} {uuid.uuid4()}"  # of which nothing is found in a cache


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
        return offers(layer, config.methods, own, multiple_of=config.multiple_of)
    option = given.get(layer.name)
    if option is None or option.method is None:
        return []
    if own is not None and own.covariance is None and not option.method.response_only:
        raise ValueError(
            f"the plan has {option.title} for layer {layer.name!r}, whose input is too large for the covariance that it needs; "
            "use ChannelSVD there"
        )
    return [(option.method, [option.rank])]


def _unit(model: nn.Module, example: Example, config: Config, data: bool) -> str:
    if not data:
        return "relative squared weight error"
    if config.harm is not None:
        return str(config.settings()["harm"])
    with torch.no_grad(), evaluation_mode(model):
        return "nats" if is_logits(call(model, example)) else "relative squared error"


def check_norms(model: nn.Module) -> None:
    """Check that no normalisation mixes the examples of a batch, of which the refit runs two streams.

    Raises:
        ValueError: If one does.
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is None:
            raise ValueError(
                f"the normalisation {name!r} has no running statistics, so it mixes the images of a batch and layers cannot be "
                "refitted to one another; use refit=False"
            )


def check_weights(model: nn.Module) -> None:
    """Check that every weight is finite.

    Raises:
        ValueError: If one is NaN or infinite.
    """
    for name, value in model.state_dict().items():
        if isinstance(value, Tensor) and value.is_floating_point() and not torch.isfinite(value).all():
            raise ValueError(f"the model's {name!r} holds NaN or infinite values; give a network that was trained to the end")
