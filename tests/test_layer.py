import warnings

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import spectrim as st
from nets import GEOMETRIES, Odd, Residual, layer_and_input
from spectrim.layer import Layer, survey, unwrap


@pytest.mark.parametrize("name", GEOMETRIES)
def test_shapes_and_costs_are_torchs_own(name):
    module, x = layer_and_input(name)
    (layer,) = st.find_layers(nn.Sequential(module), x)
    assert layer.outputs[0] == tuple(module(x).shape[1:])
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module(x)
    assert layer.cost.macs == counter.get_total_flops() // 2 // len(x)
    assert layer.cost.params == sum(p.numel() for p in module.parameters())
    assert Layer.from_dict(layer.to_dict()) == layer


def test_odd_network_every_layer_is_listed_or_has_a_reason():
    model = Odd().eval()
    found = survey(model, (torch.randn(2, 3, 6, 6), torch.ones(2, 8)))
    names = [layer.name for layer in found.layers]
    assert names == ["stem", "twice", "left", "right.1", "head"]
    assert {layer.name: layer.calls for layer in found.layers}["twice"] == 2
    assert "never calls" in found.skipped["unused"]
    assert "parametriz" in found.skipped["norm"]
    assert "shares its weight with tied1" in found.skipped["tied2"]
    assert "shares its weight with tied2" in found.skipped["tied1"]


def test_reasons():
    class Own(nn.Conv2d):
        def forward(self, x):
            return super().forward(x) * 2

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.own = Own(3, 4, 1)
            self.up = nn.ConvTranspose2d(4, 4, 2, stride=2)
            self.table = nn.Embedding(5, 4)
            self.attention = nn.MultiheadAttention(4, 1, batch_first=True)
            self.last = nn.Linear(4, 4)

        def forward(self, x):
            x = self.up(self.own(x), output_size=(9, 9))
            x = x.mean((2, 3))[:, None] + self.table.weight[:1]
            x, _ = self.attention(x, x, x)
            return self.last(x[0])

    found = survey(Net().eval(), torch.randn(2, 3, 4, 4))
    assert found.layers == ()
    assert "overrides Conv2d.forward" in found.skipped["own"]
    assert "output_size" in found.skipped["up"]
    assert "Embedding is neither" in found.skipped["table"]
    assert "neither a convolution" in found.skipped["attention"]
    assert "never calls it" in found.skipped["attention.out_proj"]
    assert "batch of 2" in found.skipped["last"]
    old = nn.Sequential(nn.Conv2d(3, 4, 1))
    with pytest.warns(FutureWarning):
        nn.utils.weight_norm(old[0])
    assert "hook" in survey(old, torch.randn(1, 3, 4, 4)).skipped["0"]
    assert "lazy" in survey(nn.Sequential(nn.Identity(), nn.LazyLinear(3)).eval(), torch.randn(2, 3)).skipped["1"]


def test_wrappers():
    model = nn.Sequential(nn.Conv2d(3, 4, 3))
    assert unwrap(nn.DataParallel(model)) is model
    assert unwrap(torch.compile(model)) is model
    with pytest.raises(TypeError, match="must be a torch.nn.Module"):
        unwrap(lambda x: x)
    with pytest.raises(TypeError, match="TorchScript"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        unwrap(torch.jit.trace(model, torch.randn(1, 3, 5, 5)))


def test_nothing_changes_and_bad_examples_get_a_sentence():
    model = Residual().train()
    model.bn1.eval()
    modes = [module.training for module in model.modules()]
    state = {name: value.clone() for name, value in model.state_dict().items()}
    st.find_layers(model, torch.randn(2, 3, 8, 8))
    st.cost(model, torch.randn(2, 3, 8, 8))
    st.inspect(model, torch.randn(2, 3, 8, 8))
    assert modes == [module.training for module in model.modules()]
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())
    with pytest.raises(ValueError, match="does not go through the model"):
        st.find_layers(model, torch.randn(2, 4, 8, 8))
    with pytest.raises(ValueError, match="batch dimension"):
        st.find_layers(model, torch.tensor(1.0))


def test_inspect_says_what_can_be_done():
    found = st.inspect(Residual().eval(), torch.randn(2, 3, 8, 8))
    assert found.total == st.cost(Residual().eval(), torch.randn(2, 3, 8, 8))
    view = {view.layer.name: view for view in found.layers}["short"]
    assert "SpatialSVD" in view.reasons and "cannot be split" in view.reasons["SpatialSVD"]
    assert "conv2" in str(found) and '"conv2"' in found.to_json()
    assert 1 <= view.rank_90 <= view.rank_99 <= view.full_rank == 8
