import copy
import json
import warnings

import pytest
import torch
from torch import nn

import spectrim as st
from nets import Odd, Residual
from spectrim.core.layer import Layer
from spectrim.network.calling import unwrap
from spectrim.network.survey import survey


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
    assert "does more than a convolution" in found.skipped["own"]
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


class Ways(nn.Module):
    """Layers that the forward reaches in ways of its own."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(6, 6)
        self.listed = nn.Linear(6, 6)
        self.chain = [self.listed]
        self.read = nn.Linear(6, 6)
        self.set = nn.Linear(6, 6)
        self.set.forward = lambda x: 2 * x
        self.bias1, self.bias2 = nn.Linear(6, 6), nn.Linear(6, 6)
        self.bias2.bias = self.bias1.bias
        self.encoder = nn.TransformerEncoderLayer(6, 2, 12, batch_first=True)

    def forward(self, x):
        for layer in self.chain:
            x = layer(self.first(x))
        x = self.bias2(self.bias1(self.set(self.read(x.to(self.read.weight.dtype)))))
        return self.encoder(x[:, None])[:, 0]


def test_layers_that_cannot_be_replaced_where_they_stand():
    model = Ways().eval()
    found = survey(model, torch.zeros(1, 6))
    assert [layer.name for layer in found.layers] == ["first"]
    assert "another way than its name" in found.skipped["listed"]
    for name in ("read", "encoder.linear1"):
        assert "does not run with another module in its place" in found.skipped[name]
    assert "its forward was set" in found.skipped["set"]
    assert "shares its bias with bias1" in found.skipped["bias2"]
    assert isinstance(model.read, nn.Linear) and model.chain[0] is model.listed
    assert "the whole network" in survey(nn.Linear(6, 6), torch.zeros(1, 6)).skipped[""]


@pytest.mark.parametrize("example", [torch.zeros(1, 4, 6), torch.zeros(2, 4, 6), torch.randn(3, 4, 6)])
def test_inputs_that_are_no_batches(example):
    """Sequences first, sequences flattened, a table that belongs to no example: the first dimension proves nothing."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.batched, self.steps, self.flat, self.table = (nn.Linear(6, 6) for _ in range(4))

        def forward(self, x):
            steps = self.steps(self.batched(x).transpose(0, 1))
            flat = self.flat(steps.flatten(0, 1)).view_as(steps)
            return (flat + self.table(torch.ones(12, 6))[:4, None]).transpose(0, 1)

    found = survey(Net().eval(), example)
    assert [layer.name for layer in found.layers] == ["batched"]
    assert all("dimension 0" in found.skipped[name] for name in ("steps", "flat", "table"))


def test_a_network_for_one_batch_size():
    class Net(nn.Sequential):
        def forward(self, x):
            return super().forward(x.view(2, 6))

    with pytest.raises(ValueError, match="the same batch twice does not"):
        survey(Net(nn.Linear(6, 6)), torch.zeros(2, 6))


def test_wrappers():
    model = nn.Sequential(nn.Conv2d(3, 4, 3))
    assert unwrap(torch.compile(model)) is model
    wrapped = nn.DataParallel(copy.deepcopy(model))  # moves the network to a GPU, if there is one
    assert unwrap(wrapped) is wrapped.module
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


class Mapped(nn.Module):
    """Two linear layers behind a feature map of (4, 3, 2) that is flattened in this way."""

    def __init__(self, flatten):
        super().__init__()
        self.conv, self.flatten = nn.Conv2d(3, 4, 3), flatten
        self.fc1, self.fc2 = nn.Linear(24, 6), nn.Linear(6, 24)

    def forward(self, x):
        return self.fc2(self.fc1(self.flatten(self.conv(x))))


@pytest.mark.parametrize(
    ("flatten", "image"),
    [
        (nn.Flatten(), (4, 3, 2)),
        (nn.Sequential(nn.ReLU(), nn.Flatten(), nn.Dropout()), (4, 3, 2)),
        (lambda y: torch.relu(y).flatten(1), (4, 3, 2)),
        (lambda y: torch.relu(y.to(memory_format=torch.channels_last)).flatten(1), (4, 3, 2)),
        (lambda y: torch.relu(y.flatten(1)), (4, 3, 2)),
        (nn.Sequential(nn.AvgPool2d((3, 1)), nn.Flatten(), nn.Linear(8, 24)), ()),
        (lambda y: y.flatten(1)[:, None], ()),  # more than one vector per example is possible
    ],
)
def test_linear_layers_on_flattened_maps(flatten, image):
    x = torch.randn(2, 3, 5, 4)
    *_, first, second = st.find_layers(Mapped(flatten), x)
    assert (first.name, first.image, second.image) == ("fc1", image, ())
    assert first.convolution.cost == first.cost
    assert Layer.from_dict(json.loads(json.dumps(first.to_dict()))) == first


KINDS = {
    st.ChannelSVD(): ["Linear", "Linear"],
    st.PivotSVD(): ["Linear"],  # at rank T the layer itself
    st.InputSVD(): ["Unflatten", "Conv2d", "Flatten", "Linear"],
    st.SpatialSVD(): ["Unflatten", "Conv2d", "Flatten", "Linear"],
    st.Tucker2(): ["Unflatten", "Conv2d", "Flatten", "Linear", "Linear"],
    st.CP(depthwise="kernel"): ["Unflatten", "Conv2d", "Conv2d", "Flatten", "Linear"],
    st.TiledSVD(): ["Unflatten", "Conv2d", "ChannelShuffle", "Conv2d", "Flatten"],
}


@pytest.mark.parametrize("method", KINDS, ids=repr)
def test_parts_on_flattened_maps_are_linear_where_they_can_be(method):
    model, x = Mapped(nn.Flatten()).eval(), torch.randn(2, 3, 5, 4)
    full = method.full_rank(st.find_layers(model, x)[1].convolution)
    plan = st.plan_from(model, x, {"fc1": (method, full)})
    small = st.apply(plan, model)
    assert [type(part).__name__ for part in small.fc1] == KINDS[method]
    torch.testing.assert_close(small(x), model(x), rtol=1e-4, atol=1e-5)
    assert st.Plan.from_json(plan.to_json()) == plan
