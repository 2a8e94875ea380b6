"""The refitted network of a plan: made for rank selections that measure, and for whoever takes the plan."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import nn

from spectrim.core.plan import Plan
from spectrim.network.build import Target, factorized
from spectrim.network.copying import duplicate
from spectrim.network.surgery import module_of, replace_module
from spectrim.pipeline.prepare import Prepared
from spectrim.refit.answers import scale_answers
from spectrim.refit.regression import refit
from spectrim.sensitivity.divergence import output_harm

RECENT = 3  # networks that are remembered
DENSE = "dense"


@dataclass(frozen=True, eq=False)
class Fitted:
    """A network whose planned layers are replaced.

    Attributes:
        model: The network; whoever changes it works on a copy. Layers that stay dense may have other weights.
        targets: Layer name to what it was refitted to, for rank selections that measure other options; else empty.
        decisions: Layer name to how it was fitted.
        scales: Layer name to the factor of its answers, where there is one.
    """

    model: nn.Module
    targets: Mapping[str, Target]
    decisions: Mapping[str, str]
    scales: Mapping[str, float] = field(default_factory=dict)


def network_name(prepared: Prepared, plan: Plan) -> str:
    """Return what a refitted network is remembered by: its plan, and the settings, which others may have replaced."""
    return f"{plan.text()} {prepared.config.settings()}"


def fitted(prepared: Prepared, plan: Plan, tick: Callable[[float], None]) -> Fitted:
    """Return the network of a plan, refitted if the configuration says so; the last few are remembered.

    Args:
        prepared: From `prepare`.
        plan: What to do.
        tick: Called with the share that is done.
    """
    name, recent = network_name(prepared, plan), prepared.recent
    if name in recent:
        known: Fitted = recent.pop(name)
        recent[name] = known  # now the last
        return known
    small, targets, decisions, scales = duplicate(prepared.model), dict[str, Target](), dict[str, str](), dict[str, float]()
    if prepared.moments is not None and prepared.config.refit:
        kept = [layer for layer in prepared.survey.layers if layer.name not in plan]
        layers = refit(prepared.model, plan, prepared.calibration, prepared.moments, kept=kept, **prepared.refit_settings)
        for done, layer in enumerate(layers, 1):
            planned = layer.name in plan
            if planned:
                replace_module(small, layer.name, layer.module)
            else:
                small.get_submodule(layer.name).load_state_dict(layer.module.state_dict())
            if prepared.config.search.images:  # they are large
                targets[layer.name] = layer.target
            images = f"{'' if planned else f'{DENSE}, '}refitted on {layer.images:,} images"
            decisions[layer.name] = f"not refitted: {layer.reason}" if layer.reason else images
            tick(done / len(prepared.survey.layers))
        scales = scaled(prepared, small, plan)
        decisions = joined(decisions, of_scales(scales))
        tick(1.0)
    else:
        for done, (layer_name, option) in enumerate(plan.items(), 1):
            moments = None if prepared.moments is None else prepared.moments[layer_name]
            replace_module(small, layer_name, factorized(option, module_of(prepared.model, option), moments))
            decisions[layer_name] = "approximated by its weight" if moments is None else "fitted to its own inputs"
            tick(done / len(plan))
    made = Fitted(small, targets, decisions, scales)
    recent[name] = made
    for old in list(recent)[:-RECENT]:
        del recent[old]
    return made


def scaled(prepared: Prepared, small: nn.Module, plan: Plan) -> dict[str, float]:
    """Scale a classifier's answers, where that brings them closer to the original's on unseen images.

    Args:
        prepared: The original network and its images.
        small: The compressed network, of which the last layer's parameters change.
        plan: Of it.

    Returns:
        The last layer's name to the factor; nothing if it stays as it is.
    """
    layers, config = prepared.survey.layers, prepared.config
    if not plan or prepared.harm is not output_harm or not config.refit or (layers[-1].baked and layers[-1].name not in plan):
        return {}
    last = layers[-1]
    factor = scale_answers(prepared.model, small, last.name, prepared.unseen)
    return {} if factor == 1 else {last.name: factor}


def of_scales(scales: Mapping[str, float]) -> dict[str, str]:
    """Return what is to be said of layers whose answers were scaled."""
    return {layer: f"answers scaled by {factor:.2f}" for layer, factor in scales.items()}


def joined(decisions: Mapping[str, str], more: Mapping[str, str]) -> dict[str, str]:
    """Return what was said of layers with what else is to be said; a layer of which nothing was said has stayed dense."""
    return {**decisions, **{layer: f"{decisions.get(layer, DENSE)}; {text}" for layer, text in more.items()}}
