"""The predicted harm of every option: closed forms from moments, put right by images that no fit has seen."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import nn

from spectrim.core.factorization import Moments, by_groups
from spectrim.core.layer import Layer
from spectrim.core.menu import CAUTIOUS, CLOSED, LayerMenu
from spectrim.core.plan import Option
from spectrim.factorize.algebra import map_between
from spectrim.network.build import check_factors, check_merged, working_weight
from spectrim.network.calling import Example, count
from spectrim.pipeline.cache import Entry, Ledger
from spectrim.pipeline.config import Config
from spectrim.pipeline.identity import method_identity
from spectrim.sensitivity.divergence import output_harm
from spectrim.sensitivity.options import Offer, layer_menu, sound
from spectrim.sensitivity.unseen import Changes, Harms, OptionSketch, Sketched, cautious, corrected, spread


def menus(
    ledger: Ledger,
    model: nn.Module,
    offered: Mapping[Layer, Sequence[Offer]],
    moments: Mapping[str, Moments] | None,
    unseen: Sequence[Example],
    config: Config,
) -> list[LayerMenu]:
    """Return the menu of every layer.

    Args:
        ledger: Of this step.
        model: The network.
        offered: Layer to the methods and ranks that pay.
        moments: Layer name to moments; None without data.
        unseen: Batches that no fit sees; without them, or without gradients, the closed forms stand as they are.
        config: How to compress.
    """
    with ledger.stage("menu"):
        closed = [_closed_forms(ledger, model, layer, offers, moments) for layer, offers in _ticked(ledger, offered)]
    harms = plain = closed
    if moments is not None and unseen and config.gradient:
        with ledger.stage("unseen images"):
            harms, plain = _put_right(ledger, model, offered, closed, moments, unseen, config)
    rows = []
    for (layer, offers), *columns in zip(offered.items(), harms, plain, closed, strict=True):
        own, *others = columns
        more = dict(zip((CAUTIOUS, CLOSED), others, strict=True))
        rows.append(layer_menu(layer, offers, own, bias=moments is not None, multiple_of=config.multiples, more=more))
    return rows


def _ticked(ledger: Ledger, offered: Mapping[Layer, Sequence[Offer]]) -> Iterator[tuple[Layer, Sequence[Offer]]]:
    for done, (layer, offers) in enumerate(offered.items(), 1):
        yield layer, offers
        ledger.tick("menu", done / len(offered))


def _closed_forms(
    ledger: Ledger, model: nn.Module, layer: Layer, offers: Sequence[Offer], moments: Mapping[str, Moments] | None
) -> Harms:
    """Return the closed forms of a layer's options, from the cache or from its moments."""
    harms = []
    for method, ranks in offers:
        with ledger.piece(f"menu {layer.name} {method_identity(method)} {ranks}") as piece:
            if piece.entry is None:
                weight = working_weight(layer, model.get_submodule(layer.name))
                parts = by_groups(weight, None if moments is None else moments[layer.name])
                losses = [sound(method.losses(kernel, ranks, norm), method, layer, ranks) for kernel, norm in parts]
                piece.entry = Entry({}, {"harms": [sum(column) for column in zip(*losses, strict=True)]})
        harms.append(piece.entry.numbers["harms"])
    return harms


def _put_right(  # noqa: PLR0913, PLR0917
    ledger: Ledger,
    model: nn.Module,
    offered: Mapping[Layer, Sequence[Offer]],
    closed: Sequence[Harms],
    moments: Mapping[str, Moments],
    unseen: Sequence[Example],
    config: Config,
) -> tuple[list[Harms], list[Harms]]:
    """Return the harms of all options as unseen images have them, and closed forms put right where these stand out."""
    chosen = [[spread(harms) for harms in own] for own in closed]
    identities = "".join(
        f"{layer.name} {[method_identity(m) for m, _ in offers]} {numbers}"
        for (layer, offers), numbers in zip(offered.items(), chosen, strict=True)
    )
    found: dict[str, np.ndarray] = {}
    for names in _portions(offered, chosen, config.memory // 8):
        what = hashlib.blake2b(f"{identities} {sorted(names)}".encode()).hexdigest()
        with ledger.piece(f"unseen {what}") as piece:
            if piece.entry is None:
                changes = {
                    layer.name: _changes(model, layer, offers, numbers, moments[layer.name])
                    for (layer, offers), numbers in zip(offered.items(), chosen, strict=True)
                    if layer.name in names
                }
                sketch = OptionSketch(changes, harm=config.harm or output_harm, seed=config.seed)
                for done, batch in enumerate(unseen, 1):
                    sketch.add(model, batch)
                    ledger.tick("unseen images", 0.99 * (len(found) + len(names) * done / len(unseen)) / len(offered))
                piece.entry = Entry(sketch.harms())
        found |= {name: tensor.cpu().numpy() for name, tensor in piece.entry.tensors.items()}
    sketches: list[list[Sketched]] = []
    for layer, own, numbers in zip(offered, closed, chosen, strict=True):
        start = 0
        sketches.append([])
        for harms, indices in zip(own, numbers, strict=True):
            seen = found.get(layer.name, np.zeros((count(unseen), 0)))[:, start : start + len(indices)]
            sketches[-1].append(Sketched(np.array(harms)[indices], seen))
            start += len(indices)
    right = corrected(sketches, closed)
    return right, cautious(sketches, closed, right)


def _portions(
    offered: Mapping[Layer, Sequence[Offer]], chosen: Sequence[Sequence[Sequence[int]]], memory: int
) -> list[set[str]]:
    """Return the names of layers whose changes are in memory together."""
    portions: list[set[str]] = [set()]
    room = memory
    for layer, numbers in zip(offered, chosen, strict=True):
        options = sum(len(each) for each in numbers)
        size = 4 * options * math.prod(layer.weight)
        if not options:
            continue
        if size > room and portions[-1]:
            portions.append(set())
            room = memory
        portions[-1].add(layer.name)
        room -= size
    return [names for names in portions if names]


def _changes(
    model: nn.Module, layer: Layer, offers: Sequence[Offer], numbers: Sequence[Sequence[int]], moments: Moments
) -> Changes:
    """Return what the chosen options of a layer change in its kernel."""
    weight = working_weight(layer, model.get_submodule(layer.name))
    inputs = moments.covariance is not None
    found: list[list[torch.Tensor]] = []
    for kernel, norm in by_groups(weight, moments):
        own = []
        for (method, ranks), indices in zip(offers, numbers, strict=True):
            wanted = [ranks[index] for index in indices]
            try:
                kernels = list(method.kernels(kernel, wanted, norm)) if wanted else []
            except (RuntimeError, IndexError):  # of a third party's perhaps
                check_factors(Option(layer, method, wanted[0]), method.factors(kernel, wanted[0], norm))
                raise
            for rank, merged in zip(wanted, kernels, strict=True):
                check_merged(Option(layer, method, rank), merged, kernel)
                change = (kernel - merged).flatten(2)
                own.append((change if inputs else map_between(kernel.flatten(2), change)).float())
        found.append(own)
    mean = moments.mean if moments.mean is not None else moments.response_mean
    stacked = torch.stack([torch.cat(each) for each in zip(*found, strict=True)])
    return Changes(layer, mean, stacked, inputs)
