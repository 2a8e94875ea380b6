"""The order of a Pivot's channels moves into the layers behind it, or stays where that would change something."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

import spectrim as st
from nets import Residual, settle
from spectrim.network import reorder
from spectrim.network.pivot import Pivot
from spectrim.network.reorder import reordered

METHOD = st.PivotSVD()


class Forward(nn.Module):
    """A convolution with 12 outputs, what a test does with them, and a layer that reads them."""

    def __init__(self, behind, last=None, inputs=None):
        super().__init__()
        self.conv = nn.Conv2d(6, 12, 3, padding=1)
        self.last = nn.Conv2d(12, 5, 1) if last is None else last
        self.behind, self.inputs = behind, inputs

    def forward(self, x):
        return self.behind(self, self.conv(x))


def depthwise(**options):
    return nn.Conv2d(12, 12, 3, groups=12, **options)


def stack(*modules):
    """A network of the first convolution and what stands behind it."""
    return lambda: nn.Sequential(nn.Conv2d(6, 12, 3, padding=1), *modules)


def norm_activate(activation):
    return stack(nn.BatchNorm2d(12), activation, nn.Conv2d(12, 5, 3))


MOVED = {
    "plain": stack(nn.Conv2d(12, 5, 3)),
    **{
        type(activation).__name__ + str(getattr(activation, "inplace", "")): norm_activate(activation)
        for activation in (
            *(nn.ReLU(), nn.ReLU(inplace=True), nn.ReLU6(inplace=True), nn.SiLU(), nn.Hardswish(inplace=True), nn.GELU()),
            *(nn.LeakyReLU(), nn.Sigmoid(), nn.Mish(), nn.Dropout(), nn.Dropout2d(), nn.Identity(), nn.Hardsigmoid()),
        )
    },
    "mobile": stack(
        *(
            nn.BatchNorm2d(12),
            nn.ReLU6(inplace=True),
            depthwise(padding=1, stride=2),
            nn.BatchNorm2d(12),
            nn.ReLU6(inplace=True),
        ),
        nn.Conv2d(12, 5, 1, bias=False),
    ),
    "pooled": stack(nn.MaxPool2d(2), nn.ReLU(), nn.AvgPool2d(2), nn.Conv2d(12, 5, 1)),
    "head": stack(nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(), nn.Linear(12, 5)),
    "head without a bias": stack(nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(12, 5, bias=False)),
    "mean": lambda: Forward(lambda net, y: net.last(y.mean((2, 3))), nn.Linear(12, 5)),
    "padded": stack(nn.ZeroPad2d((1, 2, 0, 1)), nn.ReflectionPad2d(1), nn.Upsample(scale_factor=2), nn.Conv2d(12, 5, 3)),
    "transposed": stack(nn.ConvTranspose2d(12, 5, 2, stride=2)),
    "transposed depthwise": stack(nn.ConvTranspose2d(12, 12, 2, groups=12), nn.Conv2d(12, 5, 1)),
    "norm without statistics": stack(nn.BatchNorm2d(12, track_running_stats=False), nn.Conv2d(12, 5, 1)),
    "norm without weights": stack(nn.BatchNorm2d(12, affine=False), nn.Conv2d(12, 5, 1)),
    "activation by hand": lambda: Forward(lambda net, y: net.last(y * functional.relu6(y + 3) / 6)),
    "sum with itself": lambda: Forward(lambda net, y: net.last(y + net.inputs(y)), inputs=depthwise(padding=1)),
    "two readers": lambda: Forward(lambda net, y: net.last(y.relu()) + net.inputs(y), inputs=nn.Conv2d(12, 5, 1)),
    "channels behind": lambda: Forward(
        lambda net, y: net.last(net.inputs(y.permute(0, 2, 3, 1))), nn.Linear(12, 5), nn.LayerNorm(12)
    ),
}


def hooked():
    model = stack(nn.ReLU(), nn.Conv2d(12, 5, 1))()
    model[0].register_forward_hook(lambda *args: None)
    return model


def tied():
    model = Forward(lambda net, y: net.last(net.inputs(y)), inputs=nn.Conv2d(12, 12, 1))
    model.last = nn.Conv2d(12, 12, 1)
    model.last.weight = model.inputs.weight
    return model


KEPT = {
    "output": stack(nn.BatchNorm2d(12), nn.ReLU()),
    "also an output": lambda: Forward(lambda net, y: (net.last(y), y.relu())),
    "residual": lambda: Forward(lambda net, y: net.last(y + net.inputs(y)), inputs=nn.Conv2d(12, 12, 1)),
    "scaled by their mean": lambda: Forward(lambda net, y: net.last(y * y.mean((2, 3), keepdim=True))),
    "concatenation": lambda: Forward(lambda net, y: net.last(torch.cat([y, y], 1)), nn.Conv2d(24, 5, 1)),
    "flattened map": stack(nn.Flatten(), nn.Linear(12 * 64, 5)),
    "groups": stack(nn.Conv2d(12, 12, 1, groups=3), nn.Conv2d(12, 5, 1)),
    "depthwise multiplier": stack(nn.Conv2d(12, 24, 1, groups=12), nn.Conv2d(24, 5, 1)),
    "group norm": stack(nn.GroupNorm(3, 12), nn.Conv2d(12, 5, 1)),
    "instance norm": stack(nn.InstanceNorm2d(12, affine=True), nn.Conv2d(12, 5, 1)),
    "channel shuffle": stack(nn.ChannelShuffle(3), nn.Conv2d(12, 5, 1)),
    "prelu": stack(nn.PReLU(12), nn.Conv2d(12, 5, 1)),
    "softmax": stack(nn.Softmax(1), nn.Conv2d(12, 5, 1)),
    "slice": lambda: Forward(lambda net, y: net.last(y[:, :6]), nn.Conv2d(6, 5, 1)),
    "scaled": lambda: Forward(lambda net, y: net.last(y * net.inputs), inputs=nn.Parameter(torch.rand(12, 1, 1))),
    "computed weight": lambda: Forward(lambda net, y: functional.conv2d(y, net.last.weight.tanh())),
    "weight norm": stack(nn.utils.parametrizations.weight_norm(nn.Conv2d(12, 5, 1))),
    "tied": tied,
    "read twice": lambda: Forward(lambda net, y: net.last(net.last(y)), nn.Conv2d(12, 12, 1)),
    "hooked": hooked,
    "number of the channel": lambda: Forward(lambda net, y: net.last(y) * (y[0, 3, 0, 0].item() + 1)),
    "also read in training": lambda: Forward(lambda net, y: net.last(y), inputs=nn.Conv2d(12, 3, 1)),
}


def compressed(make):
    """Return a network whose first convolution is a Pivot, and inputs."""
    torch.manual_seed(0)
    model, x = make(), torch.randn(4, 6, 8, 8)
    settle(model, x)
    name = "conv" if isinstance(model, Forward) else "0"
    return st.apply(st.plan_from(model, x, {name: (METHOD, 5)}), model), x


def orders(model):
    return [module.order for module in model.modules() if isinstance(module, Pivot)]


@pytest.mark.parametrize("name", MOVED)
def test_it_moves(name):
    small, x = compressed(MOVED[name])
    y, before = small(x), copy.deepcopy(small.state_dict())
    moved = reordered(small, x)
    assert orders(moved) == [None] and all(torch.equal(before[key], value) for key, value in small.state_dict().items())
    torch.testing.assert_close(moved(x), y, rtol=1e-4, atol=1e-5)
    if "Dropout" not in str(small):
        torch.testing.assert_close(moved.train()(x[:3]), small.train()(x[:3]), rtol=1e-4, atol=1e-4)
    assert st.cost(moved, x) == st.cost(small, x) and {key for key in before if "order" not in key} == set(moved.state_dict())
    assert reordered(moved, x) is moved


@pytest.mark.parametrize("name", KEPT)
def test_it_stays(name):
    small, x = compressed(KEPT[name])
    moved = reordered(small, x)
    (order,) = orders(moved)
    assert order is not None
    for first, second in zip(small.state_dict().values(), moved.state_dict().values(), strict=True):
        assert torch.equal(first, second)


@pytest.mark.parametrize("layer", [nn.Conv2d(6, 12, 3, bias=False), nn.Conv2d(6, 12, 3, groups=2), nn.Linear(8, 12)], ids=str)
def test_layers_without_bias_compute_what_was_moved(layer):
    x, model = torch.randn(7, 6, 8, 8), nn.Sequential(layer, nn.ReLU())
    small = st.apply(st.plan_from(model, x, {"0": (METHOD, 2)}), model).eval()
    if layer.bias is not None:
        assert reorder.unmoved(small) is small
        nn.init.zeros_(small[0][1].rest.bias)
    still = reorder.unmoved(small)
    assert orders(small) != [None] and orders(still) == [] and reorder.unmoved(still) is still
    torch.testing.assert_close(still(x), small(x))


def test_a_network_that_answers_otherwise_is_left_alone(monkeypatch):
    small, x = compressed(MOVED["plain"])
    monkeypatch.setitem(reorder.STEPS, "convolution", lambda *_: reorder._Step(None))  # as if there were nothing to move
    assert reordered(small, x) is small and orders(small) != [None]


def test_states_say_whether_there_is_an_order():
    small, x = compressed(MOVED["plain"])
    y, moved = small(x), reordered(small, x)
    for source in (moved, small):
        target = copy.deepcopy(small if source is moved else moved)
        target.load_state_dict(source.state_dict())
        torch.testing.assert_close(target(x), y, rtol=1e-4, atol=1e-5)
        assert (orders(target)[0] is None) == (source is moved)
    script = torch.jit.script(moved)
    torch.testing.assert_close(script(x), moved(x))
    torch.testing.assert_close(torch.export.export(moved, (x,)).module()(x), moved(x))


def test_compressed_networks_are_saved_without_orders(tmp_path):
    torch.manual_seed(0)
    x = torch.randn(64, 3, 8, 8)
    model = settle(Residual(width=12), x)
    config = st.Config(methods=(METHOD,), images=48)
    result = st.compress(model, x[:1], budget=st.Keep(0.6), calibration=[x], config=config)
    kept = {name.rpartition(".")[0] for name in result.model.state_dict() if name.endswith("order")}
    assert "conv1.1" in dict(result.model.named_modules()) and "conv1.1" not in kept  # bn, relu, conv2
    assert {name for name in kept if name.startswith(("conv2", "conv3"))}  # to residual additions
    again = st.load(result.save(tmp_path / "out"), Residual(width=12))
    assert torch.equal(again(x), result.model(x))
    prepared = st.prepare(model, x[:1], calibration=[x], config=config)
    torch.testing.assert_close(st.realize(prepared, result.plan).model(x), result.model(x), rtol=1e-4, atol=1e-4)
