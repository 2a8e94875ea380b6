"""Layers as plain data, against torch's own counts and shapes."""

import itertools
import json

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import spectrim as st
from nets import GEOMETRIES, layer_and_input
from spectrim.core.layer import Layer
from tables import LAYERS, fitting, pair


@pytest.mark.parametrize("name", GEOMETRIES)
def test_shapes_and_costs_are_torchs_own(name):
    module, x = layer_and_input(name)
    (layer,) = st.find_layers(nn.Sequential(module), x)
    assert layer.outputs[0] == tuple(module(x).shape[1:])
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module(x)
    assert layer.cost.macs == counter.get_total_flops() // 2 // len(x)
    assert layer.cost.params == sum(p.numel() for p in module.parameters())
    assert layer.convolution.cost == layer.cost
    assert Layer.from_dict(json.loads(json.dumps(layer.to_dict()))) == layer


@pytest.mark.parametrize(("method", "geometry"), fitting(), ids=pair)
def test_parts_follow_one_another_and_come_back_from_json(method, geometry):
    layer = LAYERS[geometry]
    parts = method.parts(layer, method.full_rank(layer))
    assert parts[0].inputs == layer.inputs and parts[-1].outputs == layer.outputs
    assert all(first.outputs == second.inputs for first, second in itertools.pairwise(parts))
    assert [part.bias for part in parts if part.weighted] == [False] * (sum(p.weighted for p in parts) - 1) + [layer.bias]
    assert [Layer.from_dict(json.loads(json.dumps(part.to_dict()))) for part in parts] == list(parts)
