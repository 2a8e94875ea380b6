"""Small layers from factors: the scale is spread evenly over them."""

import itertools

import pytest
import torch
from torch import nn

import spectrim as st
from nets import layer_and_input
from spectrim.network.build import balanced, working_weight
from tables import fitting, pair

SCALES = (50.0, 0.1, 3.0)  # of the first factors, to put them out of balance


@pytest.mark.parametrize(("method", "geometry"), fitting(), ids=pair)
def test_factors_are_balanced_and_their_product_stays(method, geometry):
    module, x = layer_and_input(geometry)
    (found,) = st.find_layers(nn.Sequential(module), x)
    layer = found.convolution
    rank = (method.ranks(layer) or method.candidates(layer))[0]
    scales = itertools.cycle(SCALES)
    factors = [factor * next(scales) for factor in method.factors(working_weight(found, module), rank)]
    parts = st.Option(found, method, rank).parts
    even = balanced(parts, factors)
    torch.testing.assert_close(method.merge(even), method.merge(factors), rtol=1e-9, atol=1e-9)
    reshaped = any(part.kind == "Unflatten" for part in parts[1:])  # a TT-matrix does not pass channels on as they are
    before, after = ([float(factor.norm()) for factor in group] for group in (factors, even))
    if isinstance(method, st.PivotSVD):  # what it passes on has the scale of the layer's outputs
        assert after == before
        return
    assert after == before if reshaped else max(after) / min(after) <= 1.001 * max(before) / min(before)
    if not reshaped and not isinstance(method, st.TensorTrain):
        assert max(after) < 1.1 * min(after)
