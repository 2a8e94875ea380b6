"""What replacing layers does to the outputs: predicted from one sweep, against networks that were built and measured."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

import spectrim as st
from nets import Residual, settle
from spectrim.core.search import QuadraticModel
from spectrim.network.copying import duplicate
from spectrim.network.surgery import replace_module
from spectrim.pipeline.probe import network_probe
from spectrim.search.interaction import neighbours
from spectrim.sensitivity.divergence import output_harm
from spectrim.sensitivity.measured import measured_harm
from spectrim.sensitivity.sketch import quadratic_model, quadratic_models


def quartic(outputs, reference):
    return (outputs - reference).square().sum(1).mean() + (outputs - reference).pow(4).sum(1).mean()


class Part(nn.Module):
    """A tenth of the way from one module to another, so that second order is nearly all there is."""

    def __init__(self, new, old):
        super().__init__()
        self.new, self.old = new, duplicate(old)

    def forward(self, x):
        return self.old(x) + 0.1 * (self.new(x) - self.old(x))


@pytest.fixture(scope="module")
def refitted():
    """A network of half the cost, and its layers' neighbouring options fitted to its own inputs."""
    torch.manual_seed(0)
    x = 2 * functional.avg_pool2d(torch.randn(512, 3, 8, 8), 3, 1, 1)
    model = settle(Residual(), x)
    config = st.Config(methods=(st.ChannelSVD(),), search=st.Interaction(images=128), images=320, batch=64, multiple_of=1)
    prepared = st.prepare(model, x[:1], calibration=[x], config=config)
    chosen = st.Knapsack().select(prepared.menu, st.Keep(0.7))
    probe = network_probe(prepared, prepared.ledger())
    fitted = probe.fitted(prepared.menu.plan(chosen))
    alternatives = neighbours(prepared.menu, chosen, "macs")
    modules = [probe._module(fitted, layer, index) for layer, index in alternatives]
    modules = [(name, Part(module, fitted.model.get_submodule(name))) for name, module in modules]
    return model, fitted.model, modules, prepared.calibration


@pytest.mark.parametrize("harm", [output_harm, quartic])
def test_predicted_changes_are_the_measured_ones(refitted, harm):
    """Singly and jointly, around a network other than the original."""
    model, small, modules, batches = refitted
    found = quadratic_model(model, small, modules, batches, harm=harm)
    assert found.base == pytest.approx(measured_harm(model, small, batches, harm), rel=1e-5)
    np.testing.assert_allclose(found.gram, found.gram.T)
    assert np.linalg.eigvalsh(found.gram).min() > -1e-9
    owners = [name for name, _ in modules]
    random = np.random.default_rng(0)
    predicted, measured = [], []
    for _ in range(10):
        chosen = [int(random.choice([i for i, o in enumerate(owners) if o == name])) for name in dict.fromkeys(owners)]
        changed = duplicate(small)
        for index in chosen:
            replace_module(changed, *modules[index])
        predicted.append(found.harm(chosen) - found.base)
        measured.append(measured_harm(model, changed, batches, harm) - found.base)
    assert np.corrcoef(predicted, measured)[0, 1] > 0.98
    np.testing.assert_allclose(predicted, measured, atol=0.15 * np.abs(measured).max())


def test_finished_pieces_come_batch_by_batch_and_the_last_is_the_whole(refitted):
    model, small, modules, batches = refitted
    pieces = list(quadratic_models(model, small, modules[:3], batches[:3]))
    assert len(pieces) == 3 and all(isinstance(piece, QuadraticModel) for piece in pieces)
    for piece, whole in ((pieces[0], batches[:1]), (pieces[2], batches[:3])):
        again = quadratic_model(model, small, modules[:3], whole)
        np.testing.assert_array_equal(piece.gram, again.gram)
        np.testing.assert_array_equal(piece.linear, again.linear)


@pytest.mark.parametrize("draws", [1, 2, 4])
def test_each_draw_is_one_more_direction_in_which_an_example_curves(refitted, draws):
    model, small, modules, batches = refitted
    (one,) = quadratic_models(model, small, modules, [batches[0][:1]])
    (found,) = quadratic_models(model, small, modules, [batches[0][:1]], draws=draws)
    assert np.linalg.matrix_rank(found.gram, hermitian=True) == draws
    np.testing.assert_allclose(found.linear, one.linear, rtol=1e-3, atol=1e-8)
    assert found.base == pytest.approx(one.base)


def test_nothing_is_changed_and_no_hook_is_left(refitted):
    model, small, modules, batches = refitted
    before = [{name: value.clone() for name, value in network.state_dict().items()} for network in (model, small)]
    quadratic_model(model, small, modules, batches[:1])
    for network, state in zip((model, small), before, strict=True):
        assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())
        assert not any(module._forward_hooks for module in network.modules())
        assert all(parameter.grad is None for parameter in network.parameters())


@pytest.mark.parametrize("chosen", [[], [0], [2, 0], [0, 1, 2]])
def test_a_quadratic_model_is_what_its_formula_says(chosen):
    random = np.random.default_rng(0)
    root, linear = random.normal(size=(3, 5)), random.normal(size=3)
    model = QuadraticModel(2.0, linear, root @ root.T)
    inside = np.isin(range(3), chosen).astype(float)
    assert model.harm(chosen) == pytest.approx(2 + linear @ inside + 0.5 * inside @ model.gram @ inside)
    assert model.additive(chosen) == pytest.approx(2 + linear @ inside + 0.5 * np.diag(model.gram) @ inside)


class Frames(nn.Module):
    """Clips, frame by frame or at once."""

    def __init__(self, apart):
        super().__init__()
        self.apart, self.head = apart, nn.Linear(8, 5)
        self.conv = nn.Conv2d(3, 8, 3) if apart else nn.Conv3d(3, 8, (1, 3, 3))

    def forward(self, x):  # (N, 3, frames, height, width)
        if self.apart:
            frames = self.conv(x.transpose(1, 2).flatten(0, 1)).relu().mean((2, 3)).unflatten(0, (len(x), -1)).mean(1)
            return self.head(frames)
        return self.head(self.conv(x).relu().mean((2, 3, 4)))


def test_frames_of_a_clip_belong_to_one_example():
    x, found = torch.randn(6, 3, 4, 5, 5), []
    weights = Frames(True).state_dict()
    for apart in (True, False):
        model, changed = Frames(apart), Frames(apart)
        for network, share in ((model, 1.0), (changed, 0.9)):
            shape = network.conv.weight.shape
            network.load_state_dict(
                {key: share * value for key, value in weights.items()}
                | {"conv.weight": share * weights["conv.weight"].view(shape)}
            )
        alternatives = [("conv", changed.conv), ("head", changed.head)]
        found.append(quadratic_model(model, model, alternatives, [x[:4], x[4:]]))
        assert {layer.name for layer in st.find_layers(model, x)} == {"conv", "head"}
    np.testing.assert_allclose(found[0].gram, found[1].gram, rtol=1e-4)
    np.testing.assert_allclose(found[0].linear, found[1].linear, atol=1e-6)
