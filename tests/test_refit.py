import pytest
import torch
from torch import nn

import spectrim as st
from nets import Odd, Residual, settle
from spectrim import refit as module_under_test
from spectrim.refit import reestimate_batchnorm, refit
from spectrim.score import measured_harm
from spectrim.statistics import statistics
from spectrim.twin import trace


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


def prepared(model, x, parts=3):
    batches = list(x.chunk(parts))
    return batches, statistics(model, st.find_layers(model, x[:1]), batches)


@pytest.mark.parametrize("method", [st.ChannelSVD(), st.SpatialSVD(), st.Tucker2(), st.InputSVD()])
@pytest.mark.parametrize("inplace", [True, False])
def test_full_rank_gives_the_network_back(method, inplace):
    x = torch.randn(30, 3, 8, 8, dtype=torch.float64)
    model = settle(Residual(inplace=inplace).double(), x)
    batches, moments = prepared(model, x)
    small = refit(model, everything(model, x, method), batches, moments).model
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


@pytest.mark.parametrize("method", [st.ChannelSVD(), st.SpatialSVD(axis=1)])
def test_chunks_in_lock_step_equal_one_batch(method):
    x = torch.randn(24, 3, 8, 8, dtype=torch.float64)
    model = settle(Residual().double(), x)
    plan = everything(model, x, method, 0.5)
    _, moments = prepared(model, x)
    one = refit(model, plan, [x], moments).model
    many = refit(model, plan, list(x.split(5)), moments).model
    torch.testing.assert_close(one(x), many(x), rtol=1e-4, atol=1e-5)
    again = refit(model, plan, list(x.split(5)), moments).model
    assert all(torch.equal(a, b) for a, b in zip(many.state_dict().values(), again.state_dict().values(), strict=True))


def test_refit_and_its_targets_lower_the_measured_harm(monkeypatch):
    x = torch.randn(200, 3, 8, 8)
    model = settle(Residual(width=12), x)
    batches, moments = prepared(model, x)
    for share in (0.3, 0.5):
        plan = everything(model, x, st.ChannelSVD(), share)
        plain = measured_harm(model, st.apply(plan, model, moments=moments), batches)
        block = measured_harm(model, refit(model, plan, batches, moments).model, batches)
        assert block < 0.9 * plain

    class NoAdditions:
        def __call__(self, model, names, batch):
            found = trace(model, names, batch)
            return type(found)(found.once, {}, found.bytes_per_example)

    monkeypatch.setattr(module_under_test, "trace", NoAdditions())
    assert block < measured_harm(model, refit(model, plan, batches, moments).model, batches)


def test_any_graph():
    """Two inputs, a dict out, a layer called twice, a module under two names, branches joined by cat."""
    x = torch.randn(40, 3, 6, 6), torch.rand(40, 8)
    model = Odd().eval()
    batches = [tuple(part) for part in zip(*(tensor.split(11) for tensor in x), strict=True)]
    moments = statistics(model, st.find_layers(model, x), batches)
    plan = everything(model, x, st.ChannelSVD(), 1.0)
    small = refit(model, plan, batches, moments).model
    torch.testing.assert_close(small(*x)["logits"], model(*x)["logits"], rtol=1e-3, atol=1e-4)
    assert small.alias is small.right and isinstance(small.right[1], nn.Sequential)
    lossy = everything(model, x, st.ChannelSVD(), 0.5)
    assert st.cost(refit(model, lossy, batches, moments).model, x) == lossy.cost


def test_wide_layers_are_regressed_on_their_response(monkeypatch):
    monkeypatch.setattr("spectrim.statistics.LARGEST", 30)
    x = torch.randn(200, 3, 8, 8)
    model = settle(Residual(width=12), x)
    batches, moments = prepared(model, x)
    assert moments["conv2"].covariance is None and moments["stem"].covariance is not None
    plan = everything(model, x, st.ChannelSVD(), 0.5)
    plain = measured_harm(model, st.apply(plan, model, moments=moments), batches)
    assert measured_harm(model, refit(model, plan, batches, moments).model, batches) < plain
    full = refit(model, everything(model, x, st.ChannelSVD()), batches, moments).model
    torch.testing.assert_close(full(x), model(x), rtol=1e-3, atol=1e-3)


def test_memory_bound_uses_fewer_images(monkeypatch):
    x = torch.randn(24, 3, 8, 8)
    model = settle(Residual(), x)
    batches, moments = prepared(model, x)
    seen = []
    handle = model.stem.register_forward_hook(lambda m, a, y: seen.append(len(a[0])))
    monkeypatch.setattr(module_under_test, "MEMORY", 2 * module_under_test.LIVE * 8 * 64 * 4 * 10)
    plan = everything(model, x, st.ChannelSVD(), 0.5)
    seen.clear()
    refit(model, st.Plan({k: v for k, v in plan.items() if k != "stem"}, plan.original), batches, moments)
    handle.remove()
    assert seen[0] == 2 and sum(seen[1:]) == 2 * 10


def test_a_forward_that_takes_other_paths_is_refused():
    class Fickle(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 8, 3), nn.Conv2d(3, 8, 3)
            self.head = nn.Linear(8, 4)

        def forward(self, x):
            y = self.a(x) if x.mean() > 0 else self.b(x)
            return self.head(y.mean((2, 3)))

    model = Fickle().eval()
    batches = [torch.rand(4, 3, 6, 6), -torch.rand(4, 3, 6, 6)]
    layers = {
        **{l.name: l for l in st.find_layers(model, batches[0])},
        **{l.name: l for l in st.find_layers(model, batches[1])},
    }
    moments = statistics(model, list(layers.values()), batches)
    plan = st.Plan({n: st.Option(l, st.ChannelSVD(), 2, 0.0, True) for n, l in layers.items()}, st.cost(model, batches[0]))
    with pytest.raises(RuntimeError, match="takes another path"):
        refit(model, plan, batches, moments)


def test_batchnorm_is_reestimated():
    x = torch.randn(64, 3, 8, 8)
    model = settle(Residual(), x)
    with torch.no_grad():
        model.bn1.running_mean += 3
    fresh = reestimate_batchnorm(model, list(x.split(16)))
    assert (fresh.bn1.running_mean - model.bn1.running_mean).abs().min() > 2
    assert not fresh.bn1.training and fresh.bn1.momentum == model.bn1.momentum


class Pooled(nn.Module):
    """A norm of one value per image, and one that is never called."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.unused = nn.Conv2d(3, 4, 3), nn.BatchNorm1d(4), nn.BatchNorm2d(4)

    def forward(self, x):
        return self.norm(self.conv(x).mean((2, 3)))


@pytest.mark.parametrize("sizes", [(4, 4, 1), (1, 1, 1), (1, 4)], ids=str)
def test_batchnorm_of_single_images_and_of_none(sizes):
    x = torch.randn(sum(sizes), 3, 8, 8)
    model = Pooled().eval()
    with torch.no_grad():
        model.unused.running_mean += 3
        model.unused.num_batches_tracked += 5
    fresh = reestimate_batchnorm(model, x.split(list(sizes)))
    assert fresh.norm.running_mean.any() and torch.isfinite(fresh(x)).all()
    for other in (reestimate_batchnorm(model, [x[:1]]), nn.ModuleDict({"unused": fresh.unused})):
        assert all(torch.equal(value, model.state_dict()[name]) for name, value in other.state_dict().items())
    (joined,) = module_under_test._joined([{"x": x[:2]}, {"x": x[2:3]}])
    assert torch.equal(joined["x"], x[:3])


def test_a_branch_that_its_batchnorm_silences():
    """Zero scale before the addition (zero-initialised residual branches): nothing can be paid back, nothing breaks."""
    x = torch.randn(24, 3, 8, 8)
    model = settle(Residual(), x)
    with torch.no_grad():
        model.bn2.weight.zero_()
        model.bns.weight[3] = 0
    batches, moments = prepared(model, x)
    small = refit(model, everything(model, x, st.SpatialSVD()), batches, moments).model
    torch.testing.assert_close(small(x), model(x), rtol=1e-3, atol=1e-3)
    assert torch.isfinite(refit(model, everything(model, x, st.ChannelSVD(), 0.5), batches, moments).model(x)).all()
