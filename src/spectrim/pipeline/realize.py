"""Step three, realize: the network that a plan makes of the original."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from spectrim.core.plan import Plan
from spectrim.core.progress import Spent
from spectrim.network.apart import settled
from spectrim.network.calling import undisturbed
from spectrim.network.copying import duplicate
from spectrim.network.state import make_writable, tensors_of_state
from spectrim.network.surgery import skeleton
from spectrim.pipeline.cache import Entry, Ledger
from spectrim.pipeline.fitted import fitted, joined, network_name, of_scales
from spectrim.pipeline.identity import method_identity
from spectrim.pipeline.prepare import Prepared
from spectrim.pipeline.reconstruction import reconstruct
from spectrim.refit.batchnorm import reestimate_batchnorm


@dataclass(frozen=True, eq=False)
class Realized:
    """The compressed network.

    Attributes:
        model: The network, a copy of the original's with small layers in place of those that the plan names.
        decisions: Layer name to how it was fitted.
        spent: What it took.
        notes: What a reader of the report must know.
    """

    model: nn.Module
    decisions: Mapping[str, str]
    spent: Spent
    notes: tuple[str, ...] = ()


@undisturbed()
def realize(prepared: Prepared, plan: Plan) -> Realized:
    """Build the network of a plan: factorize each layer, fitted in order of execution to what the compressed prefix gives it.

    Args:
        prepared: From `prepare`, of the network that the plan was made for.
        plan: From `choose`, or one's own for which `prepare(..., plan=plan)` was called.

    Returns:
        The network, in the mode that the original is in.

    Raises:
        ValueError: If the plan does not fit the network.
        RuntimeError: If the forward takes another path for other inputs, so that layers cannot be refitted to one another.
    """
    ledger, config = prepared.ledger(), prepared.config
    methods = [method_identity(option.method) for option in plan.values() if option.method is not None]
    name = "network " + hashlib.blake2b(f"{plan.text()} {methods} {config.settings()}".encode()).hexdigest()
    with ledger.piece(name) as piece:
        if piece.entry is None:
            refits = prepared.moments is not None and config.refit
            stage = "refit" if refits else "factorize"
            with ledger.stage(stage):
                ledger.passed(forward=2.0 * (refits and network_name(prepared, plan) not in prepared.recent))
                made = fitted(prepared, plan, functools.partial(ledger.tick, stage))
            small = _batchnorm(prepared, duplicate(made.model), ledger)
            piece.entry = Entry(tensors_of_state(small), {"decisions": dict(made.decisions)})
        else:
            small = skeleton(plan, prepared.model)
            make_writable(small)
            small.load_state_dict({**small.state_dict(), **piece.entry.tensors})  # extra state is the original's
    decisions = dict(piece.entry.numbers["decisions"])
    dense = [layer for layer in decisions if layer not in plan]
    found = reconstruct(prepared, plan, small, ledger, name, dense)
    decisions = joined(joined(decisions, found.decisions), of_scales(found.scales))
    return Realized(settled(small), decisions, ledger.spent, found.notes)


def _batchnorm(prepared: Prepared, small: nn.Module, ledger: Ledger) -> nn.Module:
    """Return the network with BatchNorm statistics of its own, if that is wanted."""
    if not prepared.config.batchnorm or not prepared.calibration:
        return small
    with ledger.stage("batchnorm"):
        ledger.passed(forward=1.0)
        return reestimate_batchnorm(small, prepared.calibration)
