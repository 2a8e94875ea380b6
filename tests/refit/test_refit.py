"""The refit: exact at full rank on any graph, better than fits to own inputs below, the same however the images are cut."""

import math
import threading

import pytest
import torch
from torch import nn

import spectrim as st
from nets import Odd, Residual, settle
from spectrim.network.build import replacement
from spectrim.network.copying import duplicate
from spectrim.network.surgery import replace_module
from spectrim.refit import regression
from spectrim.refit.regression import refit
from spectrim.refit.trace import Trace, trace
from spectrim.sensitivity.covariance import Squares
from spectrim.sensitivity.measured import measured_harm
from spectrim.sensitivity.moments import gather_moments


def everything(model, x, method, share=1.0):
    """A plan that gives every layer that fits a share of its full rank."""
    choices = {}
    for layer in st.find_layers(model, x):
        if method.fits(layer):
            full = method.full_rank(layer)
            ranks = [max(1, int(share * number)) for number in (full if isinstance(full, tuple) else (full,))]
            choices[layer.name] = method, tuple(ranks) if isinstance(full, tuple) else ranks[0]
    plan = st.plan_from(model, x, choices)
    return st.Plan({n: st.Option(o.layer, o.method, o.rank, 0.0, True) for n, o in plan.items()}, plan.original)


def gathered(model, x, parts=3):
    batches = list(x.chunk(parts))
    return batches, gather_moments(model, st.find_layers(model, x[:1]), batches)


def built(model, plan, batches, moments):
    """Return the network of all refitted layers."""
    small = duplicate(model)
    for layer in refit(model, plan, batches, moments):
        replace_module(small, layer.name, layer.module)
    return small


@pytest.fixture
def unshrunk(monkeypatch):
    """Covariances as they are: how far they are shrunk depends on how images are cut into blocks."""
    monkeypatch.setattr(Squares, "share", lambda self, distance: torch.zeros_like(distance)[:, None, None])


@pytest.mark.parametrize("method", [st.ChannelSVD(), st.SpatialSVD(), st.Tucker2(), st.InputSVD()], ids=repr)
@pytest.mark.parametrize("inplace", [True, False])
def test_full_rank_gives_the_network_back(method, inplace):
    x = torch.randn(30, 3, 8, 8, dtype=torch.float64)
    model = settle(Residual(inplace=inplace).double(), x)
    batches, moments = gathered(model, x)
    small = built(model, everything(model, x, method), batches, moments)
    torch.testing.assert_close(small(x), model(x), rtol=1e-4, atol=1e-5)


def test_residual_additions_are_found_in_any_order_of_the_shortcut():
    x = torch.randn(4, 3, 8, 8)
    model = settle(Residual(), x)
    names = [layer.name for layer in st.find_layers(model, x)]
    found = trace(model, names, x[:2])
    assert sorted(addition.layer for addition in found.additions.values()) == ["conv2", "short"]
    addition = next(a for a in found.additions.values() if a.layer == "conv2")
    y = torch.randn(2, 8, 8, 8)
    torch.testing.assert_close(addition.scale.view(-1, 1, 1) * y + addition.shift.view(-1, 1, 1), model.bn2(y))
    without = trace(model, ["conv1"], x[:2])
    assert without.additions == {} and without.once == ("conv1",)


@pytest.mark.parametrize("method", [st.ChannelSVD(), st.SpatialSVD(axis=1)], ids=repr)
@pytest.mark.parametrize("size", [1, 5, 24])
def test_chunks_in_lock_step_equal_one_batch(unshrunk, method, size):
    x = torch.randn(24, 3, 8, 8, dtype=torch.float64)
    model = settle(Residual().double(), x)
    plan = everything(model, x, method, 0.5)
    _, moments = gathered(model, x)
    one, many, again = (built(model, plan, x.split(part), moments) for part in (24, size, size))
    torch.testing.assert_close(one(x), many(x), rtol=1e-4, atol=1e-5)
    assert all(torch.equal(a, b) for a, b in zip(many.state_dict().values(), again.state_dict().values(), strict=True))


@pytest.mark.parametrize("share", [0.3, 0.5])
def test_the_refit_and_its_targets_lower_the_measured_harm(monkeypatch, share):
    x = torch.randn(200, 3, 8, 8)
    model = settle(Residual(width=12), x)
    batches, moments = gathered(model, x)
    plan = everything(model, x, st.ChannelSVD(), share)
    plain = measured_harm(model, st.apply(plan, model, moments=moments), batches)
    block = measured_harm(model, built(model, plan, batches, moments), batches)
    assert block < 0.9 * plain

    def no_additions(model, names, batch):
        found = trace(model, names, batch)
        return Trace(found.once, {}, found.waiting)

    monkeypatch.setattr(regression, "trace", no_additions)
    assert block < measured_harm(model, built(model, plan, batches, moments), batches)


def odd_world():
    """Two inputs, a dict out, a layer called twice, a module under two names, branches joined by cat."""
    x = torch.randn(40, 3, 6, 6), torch.rand(40, 8)
    model = Odd().eval()
    batches = [tuple(part) for part in zip(*(tensor.split(11) for tensor in x), strict=True)]
    return model, x, batches, gather_moments(model, st.find_layers(model, x), batches)


def test_any_graph():
    model, x, batches, moments = odd_world()
    plan = everything(model, x, st.ChannelSVD())
    small = built(model, plan, batches, moments)
    torch.testing.assert_close(small(*x)["logits"], model(*x)["logits"], rtol=1e-3, atol=1e-4)
    assert small.alias is small.right and isinstance(small.right[1], nn.Sequential)
    lossy = everything(model, x, st.ChannelSVD(), 0.5)
    assert st.cost(built(model, lossy, batches, moments), x) == lossy.cost


def test_layers_come_in_order_and_say_what_they_were_fitted_to():
    model, x, batches, moments = odd_world()
    plan = everything(model, x, st.ChannelSVD(), 0.5)
    found = list(refit(model, plan, batches, moments))
    assert [layer.name for layer in found] == ["twice", "stem", "left", "right.1", "head"]  # what is called twice comes first
    assert [layer.images for layer in found] == [0, 40, 40, 40, 40]
    for layer in found:
        option = plan[layer.name]
        factors = option.method.factors(layer.target.kernel, option.rank, layer.target.moments)
        again = replacement(option, model.get_submodule(layer.name), layer.target, factors)
        assert all(torch.equal(a, b) for a, b in zip(again.parameters(), layer.module.parameters(), strict=True))


def test_nothing_to_do():
    model, x, batches, moments = odd_world()
    assert list(refit(model, st.Plan({}, st.cost(model, x)), batches, moments)) == []


def test_wide_layers_are_regressed_on_their_response(monkeypatch):
    monkeypatch.setattr("spectrim.sensitivity.moments.LARGEST", 30)
    x = torch.randn(200, 3, 8, 8)
    model = settle(Residual(width=12), x)
    batches, moments = gathered(model, x)
    assert moments["conv2"].covariance is None and moments["stem"].covariance is not None
    plan = everything(model, x, st.ChannelSVD(), 0.5)
    plain = measured_harm(model, st.apply(plan, model, moments=moments), batches)
    assert measured_harm(model, built(model, plan, batches, moments), batches) < plain
    full = built(model, everything(model, x, st.ChannelSVD()), batches, moments)
    torch.testing.assert_close(full(x), model(x), rtol=1e-3, atol=1e-3)


def without_stem(model, x, share=0.5):
    plan = everything(model, x, st.ChannelSVD(), share)
    return st.Plan({name: option for name, option in plan.items() if name != "stem"}, plan.original)


@pytest.mark.parametrize("size", [1, 4])
@pytest.mark.parametrize("room", [1, 6, 11, 100])
def test_memory_bounds_the_images_that_wait_at_each_layer(room, size):
    """As many chunks as fit, one at least, of two streams in a quarter of the memory; late layers, whose maps are small, see more."""
    x = torch.randn(24, 3, 8, 8)
    model = settle(Residual(), x)
    batches, moments = list(x.split(size)), gathered(model, x)[1]
    plan, seen = without_stem(model, x), []
    waiting = trace(model, list(plan), x[:2]).waiting
    memory = regression.PART * regression.STREAMS * waiting["conv1"] * room
    model.stem.register_forward_hook(lambda m, a, y: seen.append(len(a[0])))
    found = list(refit(model, plan, batches, moments, memory=memory))
    images, least = [layer.images for layer in found], 24
    for layer in reversed(found):  # what waits somewhere waits behind, too
        fit = memory // (regression.PART * regression.STREAMS * waiting[layer.name])
        least = min(least, max(size, fit // size * size))
        assert layer.images == least
    assert sum(seen) == 2 * min(2, size) + 2 * images[-1]  # two first runs, then both streams of all that wait anywhere
    if room == 11:
        assert images[0] < images[-1] < 24


def test_what_waits_is_at_least_what_a_layer_sees_and_answers():
    x = torch.randn(4, 3, 8, 8)
    model = settle(Residual(), x)
    layers = st.find_layers(model, x)
    found = trace(model, [layer.name for layer in layers], x[:2])
    assert found.waiting.keys() == {layer.name for layer in layers}
    for layer in layers:
        numbers = sum(math.prod(shape) for shape in (*layer.inputs, *layer.outputs))
        assert found.waiting[layer.name] >= 4 * numbers
    assert found.waiting["conv2"] >= 4 * 3 * 8 * 64  # at the addition the shortcut is there, too


def test_late_chunks_bring_what_they_would_have_brought(unshrunk):
    """Early layers are what the first chunks alone give; late ones what all give behind those."""
    x = torch.randn(24, 3, 8, 8, dtype=torch.float64)
    model = settle(Residual().double(), x)
    batches, moments = list(x.split(2)), gathered(model, x)[1]
    plan = without_stem(model, x)
    memory = regression.PART * regression.STREAMS * 6 * trace(model, list(plan), x[:2]).waiting["conv1"]
    found = {layer.name: layer for layer in refit(model, plan, batches, moments, memory=memory)}
    assert found["conv1"].images < found["head"].images
    before = {}
    for name, layer in found.items():
        alone = refit(model, plan, batches[: layer.images // 2], moments, given=before)
        again = next(iter(alone))
        alone.close()
        assert again.name == name and again.images == layer.images
        for a, b in zip(again.module.parameters(), layer.module.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-6)
        before[name] = layer.module


def test_given_layers_stand_as_they_are():
    x = torch.randn(24, 3, 8, 8)
    model = settle(Residual(), x)
    batches, moments = gathered(model, x)
    plan = everything(model, x, st.ChannelSVD(), 0.5)
    whole = {layer.name: layer.module for layer in refit(model, plan, batches, moments)}
    given = {name: whole[name] for name in ("stem", "conv2", "short")}
    rest = {layer.name: layer.module for layer in refit(model, plan, batches, moments, given=given)}
    assert list(rest) == [name for name in whole if name not in given]
    for name, module in rest.items():
        for a, b in zip(module.parameters(), whole[name].parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)
    assert list(refit(model, plan, batches, moments, given=whole)) == []


class Fickle(nn.Module):
    """Takes one of two paths."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3), nn.Conv2d(3, 8, 3)
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        y = self.a(x) if x.mean() > 0 else self.b(x)
        return self.head(y.mean((2, 3)))


def chunks_going():
    """Threads of the refit; torch has some of its own where there is a GPU."""
    return [thread for thread in threading.enumerate() if thread.name.startswith("chunk ")]


def test_a_forward_that_takes_other_paths_is_refused_and_its_threads_end():
    model = Fickle().eval()
    batches = [torch.rand(4, 3, 6, 6), -torch.rand(4, 3, 6, 6)]
    layers = {layer.name: layer for batch in batches for layer in st.find_layers(model, batch)}
    moments = gather_moments(model, list(layers.values()), batches)
    plan = st.Plan({n: st.Option(l, st.ChannelSVD(), 2, 0.0, True) for n, l in layers.items()}, st.cost(model, batches[0]))
    with pytest.raises(RuntimeError, match="takes another path for other inputs, so it cannot be refitted; use refit=False"):
        list(refit(model, plan, batches, moments))
    assert not chunks_going()


class Late(Residual):
    """Fails in the middle of the forward, for other inputs than the first few."""

    def forward(self, x):
        self.calls = getattr(self, "calls", 0) + 1
        return super().forward(x) if self.calls < 3 else self.head(self.conv1(self.stem(x)).sum((2, 3))[:, :3])


@pytest.mark.parametrize("stop", ["early", "error"])
def test_nothing_is_left_behind_when_the_refit_ends_early(stop):
    x = torch.randn(12, 3, 8, 8)
    model = settle(Residual(), x)
    batches, moments = gathered(model, x)
    plan = everything(model, x, st.ChannelSVD(), 0.5)
    if stop == "error":
        model = Late()
        model.load_state_dict(settle(Residual(), x).state_dict())
        with pytest.raises(RuntimeError, match="shapes|path"):
            list(refit(model.eval(), plan, batches, moments))
    else:
        layers = refit(model, plan, batches, moments)
        assert next(layers).name == "stem" and chunks_going()
        layers.close()
    assert not chunks_going()


def test_a_branch_that_its_batchnorm_silences():
    """Zero scale before the addition (zero-initialised residual branches): nothing can be paid back, nothing breaks."""
    x = torch.randn(24, 3, 8, 8)
    model = settle(Residual(), x)
    with torch.no_grad():
        model.bn2.weight.zero_()
        model.bns.weight[3] = 0
    batches, moments = gathered(model, x)
    small = built(model, everything(model, x, st.SpatialSVD()), batches, moments)
    torch.testing.assert_close(small(x), model(x), rtol=1e-3, atol=1e-3)
    assert torch.isfinite(built(model, everything(model, x, st.ChannelSVD(), 0.5), batches, moments)(x)).all()
