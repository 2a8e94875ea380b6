"""Subclasses of a convolution that do more: taken apart where that is exact, left alone with the reason where not."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

import spectrim as st
from spectrim.network.apart import Apart, opened

X, DATA = torch.randn(2, 3, 9, 8), torch.randn(64, 3, 9, 8)
METHODS = (st.ChannelSVD(), st.SpatialSVD())


class Wrapped(nn.Conv2d):
    """As detectron2 has it: an optional norm, and a function that activates."""

    def __init__(self, *args, norm=None, activation=None, **kwargs):
        super().__init__(*args, **kwargs)
        self.norm, self.activation = norm, activation

    def forward(self, x):
        x = functional.conv2d(x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)
        x = x if self.norm is None else self.norm(x)
        return x if self.activation is None else self.activation(x)


class InPlace(nn.Conv2d):
    def forward(self, x):
        return super().forward(x).relu_()


class Clamped(nn.Conv2d):
    def forward(self, x):
        return super().forward(x).clamp(-1, 1)


class Padding(Wrapped):
    """Pads on one side only."""

    def forward(self, x):
        return super().forward(functional.pad(x, (1, 0, 1, 0)))


class Scaled(nn.Conv2d):
    """A gain of its own beside the weight."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.gain = nn.Parameter(torch.rand(1))

    def forward(self, x):
        return torch.relu(super().forward(x) * self.gain)


class Mixed(nn.Conv2d):
    def forward(self, x):
        return super().forward(x).softmax(1)


class Noted(nn.Conv2d):
    """In training it does something else."""

    def forward(self, x):
        y = super().forward(x)
        return torch.relu(y) if not self.training else torch.tanh(y)


EXACT = {
    "norm and function": lambda: Wrapped(6, 8, 3, padding=1, norm=nn.BatchNorm2d(8), activation=functional.relu),
    "norm": lambda: Wrapped(6, 8, 3, padding=1, bias=False, norm=nn.BatchNorm2d(8)),
    "activation in place": lambda: Wrapped(6, 8, 3, stride=2, activation=nn.SiLU(inplace=True)),
    "groups": lambda: Wrapped(6, 8, 3, groups=2, norm=nn.GroupNorm(2, 8), activation=functional.hardswish),
    "one layer": lambda: Wrapped(6, 8, (1, 3), activation=nn.PReLU(8)),
    "in place": lambda: InPlace(6, 8, 3, padding=1),
    "clamp": lambda: Clamped(6, 8, 3, padding=1),
    "pads": lambda: Padding(6, 8, 3, norm=nn.BatchNorm2d(8), activation=functional.gelu),
}
LEFT = {
    "gain": (lambda: Scaled(6, 8, 3), "does more than a convolution"),
    "softmax": (lambda: Mixed(6, 8, 3), "does more than a convolution"),
    "training": (lambda: Noted(6, 8, 3), "does more than a convolution"),
}


def network(make):
    torch.manual_seed(0)
    layer = make()
    for module in layer.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 2)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.normal_(module.bias)
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), layer, nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(5)
    ).eval()
    model(X)
    return model


def error(model, other):
    with torch.no_grad():
        return (model(DATA) - other(DATA)).abs().max() / model(DATA).abs().max()


@pytest.mark.parametrize("name", EXACT)
def test_what_is_taken_apart_is_exact(name, tmp_path):
    model = network(EXACT[name])
    before, state = repr(model), copy.deepcopy(model.state_dict())
    (layer,) = (layer for layer in st.find_layers(model, X) if layer.name == "1.conv")
    method = next(method for method in METHODS if method.fits(layer.convolution))
    plan = st.plan_from(model, X, {"1.conv": (method, method.full_rank(layer.convolution))})
    result = st.compress(model, X, plan=st.Plan.from_json(plan.to_json()), calibration=[DATA])
    small = st.apply(plan, model)
    assert error(model, small) < 1e-5 and error(model, result.model) < 1e-4
    assert st.cost(result.model, X) == result.plan.cost
    again = st.load(result.save(tmp_path / "run"), copy.deepcopy(model))
    for other in (small, result.model):
        assert not [where for where, module in other.named_modules() if module.training]
    assert all(module.training for module in st.apply(plan, copy.deepcopy(model).train()).modules())
    assert torch.equal(again(DATA), result.model(DATA)) and type(again[1]) is nn.Sequential
    assert repr(model) == before and all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("name", LEFT)
def test_what_cannot_be_taken_apart_is_left_with_its_reason(name):
    make, reason = LEFT[name]
    assert reason in st.inspect(network(make), X).skipped["1"]


@pytest.mark.filterwarnings("ignore:.torch.jit")
def test_scripted_parts_are_looked_past():
    model = network(EXACT["norm"])
    model[3] = torch.jit.script(nn.Sequential(nn.ReLU(), nn.Conv2d(8, 8, 1)))
    names = [layer.name for layer in st.find_layers(model, X)]
    assert "1.conv" in names and not any(name.startswith("3") for name in names)


def test_many_layers_are_compared_at_once_and_random_numbers_go_on():
    def opening(count):
        """How often the network runs, where so many layers are taken apart."""
        calls = []
        model = nn.Sequential(nn.Conv2d(3, 6, 3), *(InPlace(6, 6, 3, padding=1) for _ in range(count)), nn.Flatten()).eval()
        model.register_forward_pre_hook(lambda *_: calls.append(1))
        before = torch.get_rng_state()
        assert sum(isinstance(module, Apart) for module in opened(model, X).modules()) == count
        assert torch.equal(torch.get_rng_state(), before)
        return len(calls)

    assert opening(1) == opening(4) == 2


def test_layers_that_a_plan_leaves_alone_stay_whole(tmp_path):
    model = network(EXACT["norm and function"])
    result = st.compress(model, X, budget=st.Keep(0.8), calibration=[DATA], config=st.Config(methods=METHODS, exclude=("1.*",)))
    assert type(result.model[1]) is Wrapped and result.plan
    again = st.load(result.save(tmp_path / "run"), copy.deepcopy(model))
    assert torch.equal(again(DATA), result.model(DATA))


def test_a_layer_that_the_forward_asks_for_its_weight_is_left_alone():
    class Asking(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.head = EXACT["norm"](), nn.Linear(8, 5)

        def forward(self, x):
            return self.head(self.layer(x.repeat(1, 2, 1, 1)).mean((2, 3)) + self.layer.weight.mean())

    found = st.inspect(Asking().eval(), X)
    assert [view.layer.name for view in found.layers] == ["head"] and "does not run with another module" in found.skipped[
        "layer"
    ]


def test_a_layer_under_two_names_is_one(tmp_path):
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Conv2d(3, 8, 3)
            self.layer = self.same = Wrapped(8, 8, 3, padding=1, norm=nn.BatchNorm2d(8), activation=functional.relu)
            self.head = nn.Linear(8, 5)

        def forward(self, x):
            return self.head(self.same(self.layer(self.stem(x))).mean((2, 3)))

    model = Twice().eval()
    found = [layer for layer in st.find_layers(model, X) if layer.name.endswith("conv")]
    assert len(found) == 1 and found[0].calls == 2
    plan = st.plan_from(model, X, {found[0].name: (st.ChannelSVD(), 8)})
    result = st.compress(model, X, plan=plan, calibration=[DATA])
    assert error(model, result.model) < 1e-4 and result.model.layer is result.model.same
    assert torch.equal(st.load(result.save(tmp_path / "run"), Twice())(DATA), result.model(DATA))


def test_training_by_distortion_and_its_end():
    model = network(EXACT["norm and function"]).train()
    plan = st.plan_from(model, X, {"1.conv": (st.ChannelSVD(), 3)})
    distortion = st.Distortion(model, plan, every=1)
    before = model[1].weight.detach().clone()
    distortion.step()
    assert not torch.equal(model[1].weight, before) and torch.linalg.matrix_rank(model[1].weight.flatten(1)) == 3
    small = distortion.finish()
    assert type(small[1]) is nn.Sequential and error(model.eval(), small.eval()) < 1e-5
