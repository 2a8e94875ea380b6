import dataclasses

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

import spectrim as st
from nets import GEOMETRIES, Odd, Residual, layer_and_input
from spectrim.core.factorization import describe
from spectrim.factorize.algebra import harm
from spectrim.network.build import working_weight
from spectrim.sensitivity import moments as module_under_test
from spectrim.sensitivity.covariance import Covariance, gram
from spectrim.sensitivity.moments import Sampler, Sweep, gather_moments, grouped, lowered
from tables import PLANAR


@pytest.mark.parametrize("name", GEOMETRIES)
def test_lowered_input_times_kernel_is_the_layer(name):
    module, x = layer_and_input(name)
    (layer,) = st.find_layers(nn.Sequential(module), x)
    y = module(x)
    shape = y.shape[1:-1] if layer.kind == "Linear" else y.shape[2:]
    index = Sampler(0, len(x)).draw(layer, len(x), shape)
    patches = lowered(layer, x, index)  # (g, M, n)
    assert patches.shape[1] == y.numel() // layer.channels[0]
    found = (patches @ working_weight(layer, module).flatten(2).mT).transpose(0, 1).flatten(1)
    wanted = y.flatten(0, -2) if layer.kind == "Linear" else y.movedim(1, -1).flatten(0, -2)
    bias = 0 if module.bias is None else module.bias
    torch.testing.assert_close(found + bias, wanted)
    torch.testing.assert_close(grouped(layer, y).transpose(0, 1).flatten(1), wanted)


def drawn_to(sample, target, squares, counts):
    """Ledoit-Wolf by hand: `squares` are the second moments of each block, of so many observations each."""
    counts = np.array(counts, dtype=float)
    weights, whole = counts / counts.sum(), np.average(squares, axis=0, weights=counts)
    error = sum(w * ((block - whole) ** 2).sum() for w, block in zip(weights, squares, strict=True)) / (len(counts) - 1)
    share = min(1.0, error / ((sample - target) ** 2).sum())
    return (1 - share) * sample + share * target, share


def test_moments_are_shrunk_averages():
    """Against one example at a time, full gradients, unfold, and Ledoit-Wolf by hand: each of the few images is a block."""
    model, x = Residual().eval(), torch.randn(12, 3, 8, 8)
    layers = {layer.name: layer for layer in st.find_layers(model, x)}
    sweep = Sweep(list(layers.values()), len(x), seed=3)
    for part in x.split(5):
        sweep.add(model, part)
    moments = sweep.moments(model)
    for name in ("conv2", "conv3", "head"):
        module = model.get_submodule(name)
        seen = []
        handle = module.register_forward_hook(lambda m, a, y, seen=seen: seen.append((a[0], y)))
        logits = model(x)
        handle.remove()
        u, y = seen[0]
        u = u.detach()[:, None] if name == "head" else functional.unfold(u.detach(), 3, padding=1, stride=module.stride).mT
        u = u.double().numpy()  # (N, positions, n)
        moment, (sums,), flat = moments[name], sweep.sums[name].inputs, u.reshape(-1, u.shape[2])
        wanted = np.cov(flat.T, bias=True)
        np.testing.assert_allclose(sums.covariance[0], wanted, rtol=1e-4, atol=1e-5)
        near = flat - u[:5].mean((0, 1))  # squares are taken about the mean of the first batch
        blocks = [part.T @ part / len(part) for part in near.reshape(u.shape)]
        wanted, share = drawn_to(wanted, np.diag(np.diag(wanted)), blocks, [u.shape[1]] * len(u))
        assert 0.01 < share <= 1
        np.testing.assert_allclose(moment.covariance[0], wanted, rtol=1e-3, atol=1e-5)
        weight = working_weight(layers[name], module).flatten(2)
        torch.testing.assert_close(moment.response, weight @ moment.covariance @ weight.mT)
        np.testing.assert_allclose(moment.mean[0], flat.mean(0), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(moment.response_mean[0], y.detach().movedim(1, -1).flatten(0, -2).mean(0).double())
        # random vectors as drawn inside: the same generator over the same batches
        generator = torch.Generator().manual_seed(3)
        noise = torch.cat([torch.randn(part.shape, generator=generator) for part in logits.split(5)])
        q = logits.detach().softmax(1)
        v = q.sqrt() * noise - q * (q.sqrt() * noise).sum(1, keepdim=True)
        (gradient,) = torch.autograd.grad(logits, y, v)
        g = gradient.reshape(len(x), gradient.shape[1], -1).double().numpy()
        squares = np.einsum("btp,bup->btu", g, g) / g.shape[2]
        raw = squares.mean(0)
        wanted, _ = drawn_to(raw, np.diag(raw).mean() * np.eye(len(raw)), squares, [g.shape[2]] * len(x))
        np.testing.assert_allclose(moment.gradient[0] / g.shape[2], wanted, rtol=1e-3, atol=1e-6 * np.abs(raw).max())


def test_the_predicted_harm_is_the_loss_in_nats():
    """Predicted harm of a small change of one kernel against the measured KL divergence of the outputs."""
    model, x = Residual(width=16).eval(), torch.randn(400, 3, 8, 8)
    layers = st.find_layers(model, x[:1])
    moments = gather_moments(model, layers, list(x.split(100)))
    ratios = {}
    with torch.no_grad():
        before = model(x).log_softmax(1)
        for layer in layers:
            module, moment = model.get_submodule(layer.name), moments[layer.name]
            weight = working_weight(layer, module)
            change = 0.03 * weight.std() * torch.randn(weight.shape, dtype=torch.float64)
            second = moment.covariance + moment.mean[..., None] @ moment.mean[:, None]  # the mean is not corrected here
            predicted = harm(change, torch.zeros_like(change), dataclasses.replace(moment, covariance=second))
            kept = module.weight.clone()
            module.weight += change[0].reshape(module.weight.shape).float()
            measured = functional.kl_div(model(x).log_softmax(1), before, log_target=True, reduction="batchmean")
            module.weight.copy_(kept)
            ratios[layer.name] = float(predicted / measured)
    assert ratios["head"] == pytest.approx(1, abs=0.5)  # one position an example
    assert all(0.1 < ratio < 10 for ratio in ratios.values()), ratios  # positions of one example are not independent


def test_modes_without_gradient_and_with_other_outputs(monkeypatch):
    x = (torch.randn(8, 3, 6, 6), torch.ones(8, 8))
    odd = Odd().eval()
    layers = st.find_layers(odd, x)
    moments = gather_moments(odd, layers, [x])
    assert moments["twice"].count == 2 * 8 * 36 and torch.isfinite(moments["stem"].gradient).all()
    still = gather_moments(odd, layers, [x], harm=None)
    assert torch.equal(still["left"].gradient[0], torch.eye(4, dtype=torch.float64))
    dense = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(4, 2, 1))
    image = gather_moments(dense, st.find_layers(dense, x[0]), [x[0]])
    assert image["0"].gradient.diagonal(dim1=1, dim2=2).min() > 0
    words = nn.Sequential(nn.Embedding(9, 6), nn.Flatten(), nn.Linear(18, 4))
    tokens = torch.randint(9, (7, 3))
    assert gather_moments(words, st.find_layers(words, tokens), [tokens])["2"].count == 7
    monkeypatch.setattr(module_under_test, "LARGEST", 20)
    assert gather_moments(dense, st.find_layers(dense, x[0]), [x[0]])["0"].covariance is None
    with pytest.raises(ValueError, match="no floating-point tensor"):
        gather_moments(_Labels(), st.find_layers(_Labels(), x[0]), [x[0]])


class _Half(nn.Sequential):
    def forward(self, x):
        with torch.autocast("cpu", torch.bfloat16):
            return super().forward(x).float()


def test_sums_are_exact_where_the_forward_computes_in_half_precision():
    x = torch.randn(8, 3, 6, 6) + torch.tensor([0.0, 8, 80])[:, None, None]
    network = _Half(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(64, 5))
    sweep = Sweep(st.find_layers(network, x), len(x))
    sweep.add(network, x)
    covariance = sweep.sums["0"].inputs[0].covariance[0]
    wanted = torch.cov(functional.unfold(x, 3).transpose(1, 2).flatten(0, 1).double().T, correction=0)
    torch.testing.assert_close(covariance, wanted, rtol=1e-4, atol=1e-4)


class _Labels(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, x):
        return self.conv(x).mean((2, 3)).argmax(1)


def test_positions_are_sampled_in_bounded_number(monkeypatch):
    monkeypatch.setattr(module_under_test, "POSITIONS", 100)
    module, x = layer_and_input("plain", batch=10)
    network = nn.Sequential(module)
    layers = st.find_layers(network, x)
    first, again = (gather_moments(network, layers, list(x.split(5)), seed=1)["0"] for _ in range(2))
    assert first.count == 100 and torch.equal(first.covariance, again.covariance)


@pytest.mark.parametrize("name", ["plain", "groups", "transposed", "linear tokens"])
def test_drawn_positions_estimate_what_all_say(monkeypatch, name):
    """A third of the positions, of inputs, outputs and gradients; the gradient is summed over all of an image's positions."""
    module, x = layer_and_input(name, batch=300)
    network = nn.Sequential(module, nn.Flatten(), nn.Linear(module(x[:1]).numel(), 5).double())
    layers = [layer for layer in st.find_layers(network, x) if layer.name == "0"]
    whole = gather_moments(network, layers, list(x.split(60)))["0"]
    total = whole.count
    monkeypatch.setattr(module_under_test, "ENOUGH", (total // 3, 0))
    monkeypatch.setattr(module_under_test, "EACH", 1)
    part = gather_moments(network, layers, list(x.split(60)))["0"]
    monkeypatch.setattr(module_under_test, "LARGEST", 1)
    outputs = gather_moments(network, layers, list(x.split(60)))["0"]
    assert part.count == outputs.count and part.count == pytest.approx(total / 3, abs=10) and outputs.covariance is None
    for field in ("response", "gradient", "covariance"):
        wanted, found = getattr(whole, field), getattr(part, field)
        assert (found - wanted).norm() < 0.25 * wanted.norm() and found.norm() == pytest.approx(float(wanted.norm()), rel=0.15)
    assert (outputs.response - whole.response).norm() < 0.25 * whole.response.norm()
    assert torch.equal(outputs.gradient, part.gradient)


def test_positions_are_drawn_in_the_order_of_the_examples():
    """So that blocks are of images."""
    module, x = layer_and_input("plain", batch=500)
    (layer,) = st.find_layers(nn.Sequential(module), x)
    examples, *where = Sampler(0, 500).draw(layer, 500, (9, 8))
    assert (examples.diff() >= 0).all() and len(examples) < 500 * 72 and len(examples) == 256 * 54
    assert int(where[0].max()) == 8 and int(where[1].max()) == 7 and int(examples.max()) > 490
    assert torch.bincount(examples, minlength=500).double().std() < 10
    assert [Sampler(0, 500).blocks(images) for images in (1, 31, 32, 500)] == [1, 1, 2, 16]


@pytest.mark.parametrize("size", [1, 5, 6, 7, 64])
def test_gram_matrices_by_blocks(monkeypatch, size):
    monkeypatch.setattr("spectrim.sensitivity.covariance.BLOCKED", 1)
    x = torch.randn(3, 11, size, dtype=torch.float64)
    torch.testing.assert_close(gram(x), torch.einsum("gmi,gmj->gij", x, x))


def test_covariances_of_inputs_that_hardly_vary():
    """A mean ten thousand times the spread, in single precision, over several batches."""
    random = torch.Generator().manual_seed(0)
    x = 300 + 0.03 * torch.randn(1, 4000, 6, generator=random)
    y = x[:, :, :2] - 500 + 0.01 * torch.randn(1, 4000, 2, generator=random)
    found = Covariance()
    for part in range(0, 4000, 1000):
        found.add(x[:, part : part + 1000], y[:, part : part + 1000])
    x, y = x.double(), y.double()
    torch.testing.assert_close(found.mean, x.mean(1))
    torch.testing.assert_close(found.other_mean, y.mean(1))
    a, b = x - x.mean(1, keepdim=True), y - y.mean(1, keepdim=True)
    torch.testing.assert_close(found.covariance, a.mT @ a / 4000, rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(found.cross, b.mT @ a / 4000, rtol=1e-4, atol=1e-7)


@pytest.fixture(scope="module")
def partly_dead():
    """A grouped and a plain layer, with channels that are always zero."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(4, 12, 3, padding=1, groups=2), nn.ReLU(), nn.Conv2d(12, 8, 3, padding=1)).double()
    x = torch.randn(20, 4, 6, 6, dtype=torch.float64)
    x[:, 2:] = 0
    with torch.no_grad():
        network[0].bias[:6] = -100
    return network, x, st.find_layers(network, x)


@pytest.mark.parametrize("method", PLANAR, ids=describe)
def test_groups_that_see_nothing_do_no_harm(partly_dead, method):
    """Dead channels: every method still fits at every rank, and full rank keeps the network's answer."""
    network, x, layers = partly_dead
    for inputs in (x, torch.zeros_like(x)):
        moments = gather_moments(network, layers, [inputs])
        choices = {layer.name: (method, method.full_rank(layer)) for layer in layers if method.fits(layer)}
        assert "2" in choices
        small = st.apply(st.plan_from(network, x, choices), network, moments=moments)
        torch.testing.assert_close(small(inputs), network(inputs), rtol=1e-6, atol=1e-6)
        for name in choices:
            layer = next(layer for layer in layers if layer.name == name)
            weight, ranks = working_weight(layer, network.get_submodule(name)), method.candidates(layer)[::3]
            assert np.isfinite(method.losses(weight, ranks, moments[name])).all()
