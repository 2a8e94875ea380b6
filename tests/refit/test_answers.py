"""The scale of a classifier's answers: the best one, of every form that a layer can have, or nothing changes."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

import spectrim as st
from nets import Residual, layer_and_input, settle
from spectrim.refit.answers import scale_answers
from spectrim.sensitivity.divergence import output_harm
from tables import fitting, pair

SHAPES = "plain", "groups", "no bias", "transposed", "linear", "linear tokens"


class Head(nn.Module):
    """A layer whose answers, averaged over positions and times a number, are logits."""

    def __init__(self, layer, factor=1.0, then=None):
        super().__init__()
        self.layer, self.factor, self.then, self.last = layer, factor, then, isinstance(layer, nn.Linear)

    def forward(self, x):
        y = self.layer(x)
        y = y.movedim(-1, 1) if self.last else y
        y = self.factor * (y if y.ndim == 2 else y.flatten(2).mean(2))
        return y if self.then is None else self.then(y)


def unchanged(module, state):
    return all(torch.equal(value, state[name]) for name, value in module.state_dict().items())


def halved(network, x, method):
    (layer,) = st.find_layers(network, x)
    rank = method.candidates(layer.convolution)[0]
    return st.apply(st.plan_from(network, x, {layer.name: (method, rank)}), network)


@pytest.mark.parametrize(("method", "geometry"), fitting(geometries=SHAPES), ids=pair)
def test_every_decomposition_is_scaled(method, geometry):
    module, x = layer_and_input(geometry, batch=40)
    small = halved(Head(module), x[:1], method).eval()
    model = copy.deepcopy(small)
    model.factor = 1.4
    with torch.no_grad():
        before, wanted = small(x), model(x)
    assert scale_answers(model, small, "layer", [x[:25], x[25:]]) == pytest.approx(1.4, rel=1e-3)
    with torch.no_grad():
        torch.testing.assert_close(small(x), wanted, rtol=1e-3, atol=1e-3)
    assert torch.equal(before.argmax(1), small(x).argmax(1))


@pytest.mark.parametrize("then", [None, nn.LogSoftmax(1)], ids=["logits", "log-probabilities"])
def test_the_factor_is_the_best_one(then):
    torch.manual_seed(0)
    model, x = Head(nn.Linear(8, 6), 2.0, then), torch.randn(200, 8)
    small = copy.deepcopy(model)
    with torch.no_grad():
        small.layer.weight.mul_(0.7).add_(0.03 * torch.randn(6, 8))
    harms = {}
    for factor in np.linspace(0.5, 2, 301):
        with torch.no_grad():
            harms[factor] = float(output_harm(factor * small(x), model(x)))
    factor = scale_answers(model, small, "layer", [x])
    assert factor == pytest.approx(min(harms, key=harms.get), abs=0.006) and factor > 1.2
    with torch.no_grad():
        assert float(output_harm(small(x), model(x))) == pytest.approx(min(harms.values()), rel=1e-2)


def linear(factor):
    """A classifier whose logits are those of another, times a factor."""
    torch.manual_seed(0)
    small = Head(nn.Linear(8, 6))
    model = copy.deepcopy(small)
    model.factor = factor
    return model, small


@pytest.mark.parametrize(
    ("then", "batches"),
    [
        (lambda y: y + 1, [torch.randn(30, 8)]),  # adding a number to all logits changes nothing
        (lambda y: y * torch.arange(6), [torch.randn(30, 8)]),
    ],
)
def test_what_is_linear_in_the_answers_is_scaled_too(then, batches):
    model, small = linear(1.5)
    model.then = small.then = then
    assert scale_answers(model, small, "layer", batches) > 1.1


@pytest.mark.parametrize(
    ("then", "factor", "batches"),
    [
        (None, 1.0, [torch.randn(30, 8)]),  # nothing to gain
        (None, 1.5, []),
        (None, 1.5, [torch.randn(1, 8)]),  # no error to compare with
        (lambda y: y[:, None], 1.5, [torch.randn(30, 8)]),  # no logits
        (lambda y: {"a": y, "b": 2 * y}, 1.5, [torch.randn(30, 8)]),
        (torch.tanh, 1.5, [torch.randn(30, 8)]),  # the answers are not the layer's
        (lambda y: y + y.square(), 1.5, [torch.randn(30, 8)]),
        (lambda y: y + torch.arange(6), 1.5, [torch.randn(30, 8)]),
    ],
)
def test_else_nothing_changes(then, factor, batches):
    model, small = linear(factor)
    model.then = small.then = then
    before = copy.deepcopy(small.state_dict())
    assert scale_answers(model, small, "layer", batches) == 1 and unchanged(small, before)


@pytest.mark.parametrize(
    "settings", [{}, {"exclude": ("head",)}, {"refit": False}, {"harm": lambda a, b: (a - b).square().mean()}]
)
def test_a_compressed_classifier_says_so(settings):
    """By default only: a layer that is excluded, and answers whose harm is the user's own, stay as they are."""
    torch.manual_seed(2)
    x = torch.randn(96, 3, 8, 8)
    model = settle(Residual(width=12), x)
    config = st.Config(methods=(st.ChannelSVD(),), search=st.Knapsack(), **settings)
    prepared = st.prepare(model, x[:1], calibration=[x], config=config)
    plan = st.choose(prepared, st.Keep(0.5))
    assert "head" not in plan
    realized = st.realize(prepared, plan)
    told = realized.decisions.get("head", "")
    assert ("answers scaled by 1." in told) == (not settings)
    weight, before = realized.model.head.weight, model.head.weight
    factor = (weight[0, 0] / before[0, 0]).item()
    torch.testing.assert_close(weight, factor * before)
    assert told == f"dense; answers scaled by {factor:.2f}" if not settings else factor == 1
