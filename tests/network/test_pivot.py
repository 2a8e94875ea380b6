"""The module that passes some outputs on: what it has of the layer in whose place it stands, and where it goes."""

import copy
import io
from dataclasses import dataclass

import pytest
import torch
from torch import nn

import spectrim as st
from nets import GEOMETRIES, Odd, Residual, layer_and_input, settle
from spectrim.network.pivot import Pivot
from tables import LAYERS, fitting

METHOD = st.PivotSVD()
FITTING = [name for _, name in fitting((METHOD,))]


def halved(model, example, names=None):
    """Return the plan that gives every layer half of its full rank."""
    found = [layer for layer in st.find_layers(model, example) if METHOD.fits(layer.convolution)]
    ranks = {layer.name: max(1, METHOD.full_rank(layer.convolution) // 2) for layer in found}
    return st.plan_from(model, example, {name: (METHOD, rank) for name, rank in ranks.items() if name in (names or ranks)})


@pytest.fixture(scope="module")
def case():
    torch.manual_seed(0)
    x = torch.randn(64, 3, 8, 8)
    model = settle(Residual(width=12), x)
    return model, x


@pytest.mark.parametrize("geometry", FITTING)
def test_it_computes_the_kernel_with_the_bias(geometry):
    module, x = layer_and_input(geometry)
    network = nn.Sequential(module)
    plan = halved(network, x)
    (layer,) = st.find_layers(network, x)
    small = st.apply(plan, network)
    dense = copy.deepcopy(network)
    distortion = st.Distortion(dense, plan)
    distortion.distort()  # overwrites the kernel with the same product
    torch.testing.assert_close(small(x), dense(x), rtol=1e-9, atol=1e-9)
    assert any(isinstance(part, Pivot) for part in small.modules())
    assert st.cost(small, x) == plan.cost
    biases = sum(parameter.numel() for name, parameter in small.named_parameters() if name.endswith("bias"))
    assert biases == layer.channels[0] * layer.bias


def test_it_takes_after_the_layer():
    layer = nn.Conv2d(8, 12, 3, dtype=torch.float64).eval().to(memory_format=torch.channels_last)
    layer.weight.requires_grad_(False)
    seen = []
    layer.register_forward_hook(lambda *args: seen.append(args[0]))
    network, x = nn.Sequential(layer), torch.randn(2, 8, 7, 7, dtype=torch.float64)
    small = st.apply(halved(network, x), network)
    seen.clear()
    small(x)
    first, pivot = small[0]
    assert seen == [small[0]] and isinstance(pivot, Pivot) and not pivot.training and not pivot.rest.training
    assert first.weight.is_contiguous(memory_format=torch.channels_last)
    assert {parameter.dtype for parameter in small.parameters()} == {torch.float64}
    assert not first.weight.requires_grad and not pivot.rest.weight.requires_grad
    assert first.bias.requires_grad and pivot.rest.bias.requires_grad
    half = copy.deepcopy(small).to(torch.bfloat16)
    assert half[0][1].order.dtype == torch.long and half(x.bfloat16()).dtype == torch.bfloat16
    assert small.to("meta")(x.to("meta")).shape == (2, 12, 5, 5)


def test_gradients_and_training(case):
    model, x = case
    small = st.apply(halved(model, x[:1]), model).train()
    optimizer = torch.optim.SGD(small.parameters(), 0.01)
    losses = []
    for _ in range(8):
        optimizer.zero_grad()
        loss = small(x).square().mean()
        loss.backward()
        assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in small.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


def test_compressed_saved_and_loaded(case, tmp_path):
    model, x = case
    config = st.Config(methods=(METHOD,), images=48)
    result = st.compress(model, x[:1], budget=st.Keep(0.6), calibration=[x], config=config)
    assert result.plan and result.report.after == st.cost(result.model, x[:1]) == result.plan.cost
    again = st.load(result.save(tmp_path / "out"), Residual(width=12))
    assert torch.equal(again(x), result.model(x))
    plain = st.compress(
        model, x[:1], budget=st.Keep(0.6), calibration=[x], config=st.Config(methods=(st.ChannelSVD(),), images=48)
    )
    assert result.plan.harm < plain.plan.harm


def test_scripted_and_exported(case):
    model, x = case
    small = st.apply(halved(model, x[:1]), model)
    wanted, file = small(x), io.BytesIO()
    torch.jit.save(torch.jit.script(small), file)
    file.seek(0)
    torch.testing.assert_close(torch.jit.load(file)(x), wanted)
    exported = torch.export.export(small, (x[:2],), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},))
    torch.testing.assert_close(exported.module()(x), wanted)


def test_compressed_once_more():
    """The convolution inside is a layer like any other."""
    model = settle(nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3)), torch.randn(4, 3, 9, 9))
    x = torch.randn(4, 3, 9, 9)
    once = st.apply(halved(model, x), model)
    plan = halved(once, x, ("2.0", "2.1.rest"))
    twice = st.apply(plan, once)
    assert len(plan) == 2 and twice(x).shape == model(x).shape and st.cost(twice, x) == plan.cost


def test_odd_networks():
    torch.manual_seed(0)
    model, x = Odd().eval(), (torch.randn(4, 3, 6, 6), torch.rand(4, 8))
    plan = halved(model, x)
    small = st.apply(plan, model)
    assert small(*x)["logits"].isfinite().all() and st.cost(small, x) == plan.cost
    assert st.Plan.from_json(plan.to_json()) == plan


@dataclass(frozen=True)
class Unready(st.Factorization):
    """Says that it is a Pivot, but no row is a unit vector."""

    fits, full_rank, candidates = METHOD.fits, METHOD.full_rank, METHOD.candidates
    parts, merge, losses = METHOD.parts, METHOD.merge, METHOD.losses

    def factors(self, weight, rank, moments=None):
        first, last = METHOD.factors(weight, rank, moments)
        return first / 2, last * 2


def test_factors_without_unit_vectors_are_refused():
    module, x = layer_and_input("plain")
    network = nn.Sequential(module)
    plan = st.plan_from(network, x, {"0": (Unready(), 3)})
    with pytest.raises(
        ValueError, match=r"Unready.factors\(\) returned for layer '0' at rank 3 for its Pivot a weight in which"
    ):
        st.apply(plan, network)


def test_geometries_are_all_tried():
    assert len(FITTING) == len(GEOMETRIES) - 1 and len({LAYERS[name].kind for name in FITTING}) == 7
