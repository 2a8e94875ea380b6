"""CP remembers what it fitted in a norm, as long as the norm is in memory."""

from dataclasses import replace

import torch
from torch import nn

import spectrim as st
from spectrim.factorize import cp
from spectrim.network.build import working_weight
from spectrim.sensitivity.moments import gather_moments


def test_a_fit_is_made_once_for_a_kernel_and_a_norm(monkeypatch):
    network, x = nn.Sequential(nn.Conv2d(8, 8, 3)).eval(), torch.randn(32, 8, 6, 6)
    (layer,) = st.find_layers(network, x)
    moments, method, made = gather_moments(network, [layer], [x])["0"], st.CP(depthwise="kernel"), []
    weight, alternate = working_weight(layer, network[0]), cp._alternate
    monkeypatch.setattr(cp, "_alternate", lambda *args, **kwargs: made.append(1) or alternate(*args, **kwargs))
    first = method.factors(weight, 5, moments)
    other = replace(moments, covariance=2 * moments.covariance)
    method.factors(weight + 1, 5, other)  # as a refit does between
    again = method.factors(weight.clone(), 5, replace(moments, response_mean=moments.response_mean + 1))
    assert len(made) == 2
    torch.testing.assert_close(again, first, rtol=0, atol=0)
    method.factors(weight, 5, replace(moments, gradient=moments.gradient.clone()))
    method.factors(weight + 1, 5, moments)
    assert len(made) == 4
