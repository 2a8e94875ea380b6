"""Harms of options on unseen images: against the network's exact derivative, and what is made of them."""

import itertools

import numpy as np
import pytest
import torch
from torch import nn

import spectrim as st
from nets import GEOMETRIES, Residual, layer_and_input, settle
from spectrim.factorize.algebra import from_canonical, harm
from spectrim.network.build import working_weight
from spectrim.network.copying import duplicate
from spectrim.sensitivity import unseen as module_under_test
from spectrim.sensitivity.covariance import Squares
from spectrim.sensitivity.divergence import curvature_root, output_harm
from spectrim.sensitivity.moments import gather_moments
from spectrim.sensitivity.unseen import (
    DRAWS,
    LEAST,
    RANKS,
    STANDS_OUT,
    Changes,
    OptionSketch,
    Sketched,
    cautious,
    corrected,
    spread,
)


class Twice(nn.Module):
    """One layer that a forward calls twice, followed by operations in place."""

    def __init__(self):
        super().__init__()
        self.layer, self.head = nn.Conv2d(4, 4, 3, padding=1), nn.Linear(4, 5)

    def forward(self, x):
        y = self.layer(x).relu_()
        y = self.layer(y)
        y += x
        return self.head(y.relu_().mean((2, 3)))


class Clips(nn.Module):
    """Three frames an example, which the layer sees one behind the other."""

    def __init__(self):
        super().__init__()
        self.layer, self.head = nn.Conv2d(2, 6, 3), nn.Linear(6, 5)

    def forward(self, x):
        return self.head(self.layer(x.flatten(0, 1)).relu_().mean((2, 3)).unflatten(0, (-1, 3)).mean(1))


def network_of(name):
    """A network whose layer `layer` has this geometry or use, and its inputs."""
    torch.manual_seed(0)
    if name == "twice":
        return Twice().double(), torch.randn(6, 4, 5, 5, dtype=torch.float64)
    if name == "clips":
        return Clips().double(), torch.randn(6, 3, 2, 5, 5, dtype=torch.float64)
    module, x = layer_and_input(name)
    head = nn.Linear(module(x)[0].numel(), 5).double()
    parts = {"layer": module, "relu": nn.ReLU(inplace=True), "flat": nn.Flatten(), "head": head}
    network = nn.Sequential()
    for key, part in parts.items():
        network.add_module(key, part)
    return network, x


def random_changes(network, x, inputs, number=3):
    layer = {layer.name: layer for layer in st.find_layers(network, x)}["layer"]
    weight = working_weight(layer, network.layer).flatten(2)
    g, t, n = weight.shape
    kernels = torch.randn(number, g, t, n if inputs else t, dtype=torch.float64)
    return Changes(layer, torch.randn(g, n if inputs else t, dtype=torch.float64), kernels.float(), inputs)


def what_changes(layer, module, changes, number):
    """Return what a change adds to the layer's answer, as a function of its input and answer."""
    kernel, mean = changes.kernels[number].double(), changes.mean
    shift = (kernel @ mean[..., None]).flatten()

    def shaped(values, y):
        return values if layer.kind == "Linear" else values.view(-1, *(1,) * (y.ndim - 2))

    if not changes.inputs:

        def of_outputs(x, y):
            rows = (y if layer.kind == "Linear" else y.movedim(1, -1)).unflatten(-1, mean.shape)
            moved = torch.einsum("gtu,...gu->...gt", kernel, rows).flatten(-2)
            return (moved if layer.kind == "Linear" else moved.movedim(-1, 1)) - shaped(shift, y)

        return of_outputs
    alone = duplicate(module)
    alone.weight = nn.Parameter(from_canonical(layer, kernel.reshape(working_weight(layer, module).shape)))
    alone.bias = None
    return lambda x, y: alone(x) - shaped(shift, y)


def derivative(network, x, added):
    """Return the exact derivative of the outputs along what is added to the layer's answers, (N, C)."""

    def run(step):
        hook = network.layer.register_forward_hook(lambda module, args, y: y + step * added(args[0], y))
        try:
            return network(x.clone())
        finally:
            hook.remove()

    zero = torch.zeros((), dtype=torch.float64)
    return torch.func.jvp(run, (zero,), (torch.ones_like(zero),))[1].detach()


def exact_harms(network, x, changes, seed):
    """Return 1/2 (v . J d)^2 of every image and change, over the v that the sketch draws, (N, K)."""
    noise, outputs = torch.Generator().manual_seed(seed), network(x.clone()).detach()
    drawn = [curvature_root(outputs, outputs, output_harm, noise).pop() for _ in range(DRAWS)]
    columns = []
    for number in range(len(changes.kernels)):
        along = derivative(network, x, what_changes(changes.layer, duplicate(network.layer), changes, number))
        columns.append(sum((v.double() * along).sum(1).square() / (2 * DRAWS) for v in drawn))
    return torch.stack(columns, 1)


@pytest.mark.parametrize("inputs", [True, False], ids=["inputs", "outputs"])
@pytest.mark.parametrize("name", [*GEOMETRIES, "twice", "clips"])
def test_the_sketch_is_the_second_order_of_the_network(name, inputs):
    network, x = network_of(name)
    changes = random_changes(network, x, inputs)
    sketch = OptionSketch({"layer": changes}, seed=5)
    sketch.add(network, x)
    found, wanted = sketch.harms()["layer"], exact_harms(network, x, changes, 5)
    assert found.shape == (len(x), 3) and wanted.min() > 0
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-5 * float(wanted.max()))


@pytest.mark.parametrize("inputs", [True, False], ids=["inputs", "outputs"])
@pytest.mark.parametrize("name", ["plain", "groups", "linear tokens", "clips"])
def test_a_few_rows_at_a_time(monkeypatch, name, inputs):
    network, x = network_of(name)
    changes, found = random_changes(network, x, inputs), []
    for numbers in (1 << 25, 1):
        monkeypatch.setattr(module_under_test, "AT_ONCE", numbers)
        sketch = OptionSketch({"layer": changes})
        sketch.add(network, x)
        found.append(sketch.harms()["layer"])
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-5)


def test_the_mean_over_draws_is_the_curvature(monkeypatch):
    """Of many v the mean is 1/2 (J d)^T H (J d), H the Fisher information of the logits."""
    monkeypatch.setattr(module_under_test, "DRAWS", 4000)
    network, x = network_of("plain")
    changes = random_changes(network, x, True, number=1)
    sketch = OptionSketch({"layer": changes})
    sketch.add(network, x)
    along = derivative(network, x, what_changes(changes.layer, duplicate(network.layer), changes, 0))
    q = network(x.clone()).detach().softmax(1)
    wanted = ((q * along.square()).sum(1) - (q * along).sum(1).square()) / 2
    torch.testing.assert_close(sketch.harms()["layer"][:, 0], wanted, rtol=5 * (2 / 4000) ** 0.5, atol=0)


def test_batches_follow_one_another_and_nothing_is_touched():
    network, x = network_of("twice")
    network.train()
    network.head.weight.requires_grad_(False)
    calls, flags = [], [parameter.requires_grad for parameter in network.parameters()]
    network.layer.register_forward_hook(lambda module, args, y: calls.append(len(y)))
    before, images = {key: value.clone() for key, value in network.state_dict().items()}, x.clone()
    sketch = OptionSketch({"layer": random_changes(network, x, True)})
    calls.clear()
    for part in x.split(4):
        sketch.add(network, part)
    assert calls == [4, 4, 2, 2]  # twice a batch, whatever the number of draws
    assert sketch.harms()["layer"].shape == (6, 3) and torch.equal(x, images) and network.training
    assert [parameter.requires_grad for parameter in network.parameters()] == flags
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())
    assert len(network.layer._forward_hooks) == 1


def test_it_agrees_with_the_closed_form_where_that_is_right(monkeypatch):
    """One position an image, as many images as it takes, a curvature that hardly depends on them, plain averages."""
    monkeypatch.setattr(Squares, "shrunk", lambda self, sample, target: sample)
    network = nn.Sequential(nn.Linear(12, 9), nn.Linear(9, 6)).double()
    with torch.no_grad():
        network[1].weight *= 0.1
        network[1].bias.zero_()
    x = torch.randn(6000, 12, dtype=torch.float64) @ torch.randn(12, 12, dtype=torch.float64)
    layers = st.find_layers(network, x)
    moments = gather_moments(network, layers, list(x[:3000].split(500)))
    weight = working_weight(layers[0], network[0])
    kernels = list(st.ChannelSVD().kernels(weight, [1, 2, 3], moments["0"]))
    closed = torch.tensor([harm(weight, kernel, moments["0"]) for kernel in kernels], dtype=torch.float64)
    sketch = OptionSketch({"0": Changes(layers[0], moments["0"].mean, torch.stack([weight - k for k in kernels]).float())})
    for part in x[3000:].split(500):
        sketch.add(network, part)
    found = sketch.harms()["0"]
    errors = found.std(0) / len(found) ** 0.5
    assert (errors < 0.05 * closed).all()
    assert ((found.mean(0) - closed).abs() < 4 * errors + 0.02 * closed).all()


# What is made of the sketches.


def sketched(closed, factor=1.0, images=64, spread_out=1.0, seed=0):
    """Harms on so many images whose mean is exactly the factor times the closed form."""
    closed = np.array(closed, dtype=float)
    drawn = np.random.default_rng(seed).gamma(1 / spread_out**2, size=(images, len(closed)))
    return Sketched(closed, drawn / drawn.mean(0) * closed * factor)


CLOSED = [0.001, 0.01, 0.03, 0.2]


def alone(function, sketches, harms):
    """Return what becomes of methods each of which is all that its layer is offered."""
    return [own for (own,) in function([[sketch] for sketch in sketches], [[given] for given in harms])]


@pytest.mark.parametrize("factor", [0.2, 1.0, 30.0])
def test_a_factor_common_to_all_is_found_and_one_leaves_everything(factor):
    """Also for options that were not sketched, and for methods of which none was."""
    sketches = [sketched(CLOSED, factor, seed=1), sketched(CLOSED[:2], factor, seed=2), sketched([], factor)]
    given = [[*CLOSED, 0.0001, 0.015, 7.0], CLOSED, [0.5, 0.3]]
    for found, harms in zip(alone(corrected, sketches, given), given, strict=True):
        np.testing.assert_allclose(found, factor * np.array(harms))


def test_noise_is_drawn_to_what_the_network_says():
    """Sixteen images of wide spread: twenty methods of one true factor; against one that is known well and differs."""
    random = np.random.default_rng(0)
    closed = np.array(CLOSED)
    noisy = [Sketched(closed, 3 * closed * random.gamma(0.3, 1 / 0.3, size=(16, 1))) for _ in range(20)]
    raw = np.array([sketch.factors[0] for sketch in noisy])
    found = alone(corrected, noisy, [CLOSED] * 20)
    drawn = np.log(np.array(found)[:, 0] / closed[0])
    assert drawn.std() < 0.5 * raw.std() and np.log(3) == pytest.approx(drawn.mean(), abs=0.4)
    assert ((drawn - raw) * (drawn.mean() - raw) >= -0.1).all()  # towards the middle
    known = sketched(CLOSED, 100.0, images=4000, spread_out=0.1)
    *_, last = alone(corrected, [*noisy, known], [CLOSED] * 21)
    np.testing.assert_allclose(last, 100 * closed, rtol=0.05)


def test_between_sketched_options_harms_follow_a_line_of_logarithms():
    sketch = Sketched(np.array([0.01, 1.0]), np.array([[0.02, 10.0]]) * np.array([[0.999], [1.001]]))
    given = [0.001, 0.01, 0.1, 1.0, 5.0]
    ((below, first, middle, last, above),) = alone(corrected, [sketch], [given])
    assert middle == pytest.approx((first * last) ** 0.5)
    assert below / 0.001 == pytest.approx(first / 0.01) and above / 5 == pytest.approx(last / 1)
    assert (first, last) == (pytest.approx(0.02, rel=0.01), pytest.approx(10, rel=0.01))
    steps = np.geomspace(0.01, 1, 30).tolist()
    (found,) = alone(corrected, [sketch], [steps])
    assert all(low < high for low, high in itertools.pairwise(found))


def careful(sketches, closed):
    return cautious(sketches, closed, corrected(sketches, closed))


@pytest.mark.parametrize("function", [corrected, careful])
def test_nothing_sketched_changes_nothing(function):
    assert alone(function, [sketched([]), sketched([])], [CLOSED, [0.0]]) == [CLOSED, [0.0]]
    assert function([], []) == [] and function([[]], [[]]) == [[]]


@pytest.mark.parametrize("function", [corrected, careful])
def test_a_harm_of_nothing_stays_and_what_does_no_harm_says_nothing_of_others(function):
    ((first, *_, last),) = alone(function, [sketched(CLOSED, 5.0)], [[0.0, *CLOSED]])
    assert first == 0 and last == pytest.approx(5 * CLOSED[-1])
    silent = Sketched(np.array([1e-38, 3e-38]), np.zeros((64, 2)))
    plain, others = sketched(CLOSED, 5.0, spread_out=3.0, seed=1), sketched(CLOSED, 2.0, spread_out=3.0, seed=2)
    without = alone(function, [plain, others], [CLOSED, CLOSED])
    *found, own = alone(function, [plain, others, silent], [CLOSED, CLOSED, [1e-38, 3e-38]])
    assert found == without and 0 < own[0] < own[1] < 1e-36


def test_methods_of_a_layer_are_put_right_each_by_its_own_sketch():
    layers = [[sketched(CLOSED, 2.0, spread_out=0.01), sketched(CLOSED[1:], 8.0, spread_out=0.01)], [sketched([])], []]
    (first, second), (third,), none = corrected(layers, [[CLOSED, CLOSED[1:]], [[0.1]], []])
    np.testing.assert_allclose(first, 2 * np.array(CLOSED), rtol=1e-2)
    np.testing.assert_allclose(second, 8 * np.array(CLOSED[1:]), rtol=1e-2)
    assert 0.2 < third[0] < 0.8 and none == []


def test_caution_puts_only_those_layers_right_that_stand_out():
    """The others keep their closed forms but for a factor common to all, the network's median one."""
    factors = [1.5, 2.0, 2.5, 2.0 * np.exp(1.5 * STANDS_OUT), 2.0 * np.exp(-1.5 * STANDS_OUT)]
    sketches = [sketched(CLOSED, factor, spread_out=0.1, seed=seed) for seed, factor in enumerate(factors)]
    given = [CLOSED] * len(factors)
    found, right = alone(careful, sketches, given), alone(corrected, sketches, given)
    for number in (0, 1, 2):
        np.testing.assert_allclose(found[number], 2 * np.array(CLOSED), rtol=1e-6)
        assert found[number] != right[number]
    assert found[3:] == right[3:]


def test_a_silenced_branch_leaves_the_other_layers_alone():
    """Its BatchNorm has a scale of zero: what the menu says of it is next to nothing, and of the others what it always says."""
    x = torch.randn(96, 3, 8, 8)
    model = settle(Residual(), x)
    with torch.no_grad():
        model.bn2.weight.zero_()
    config = st.Config(methods=(st.ChannelSVD(),))
    rows = {row.layer.name: row.scores for row in st.prepare(model, x[:1], calibration=[x], config=config).menu.layers}
    less = st.Config(methods=config.methods, exclude=("conv1", "conv2"))
    without = {row.layer.name: row.scores for row in st.prepare(model, x[:1], calibration=[x], config=less).menu.layers}
    assert rows.keys() - without.keys() == {"conv1", "conv2"}
    assert all(0 < scores["response"][1:].max() < 1e-30 for name, scores in rows.items() if name not in without)
    for name, scores in without.items():
        np.testing.assert_allclose(rows[name]["response"], scores["response"], rtol=1e-4)


@pytest.mark.parametrize("number", [0, 1, RANKS, RANKS + 1, 200])
@pytest.mark.parametrize("decades", [0.0, 3.0, 12.0])
def test_options_are_spread_over_the_logarithms_of_harms(number, decades):
    harms = 10 ** np.random.default_rng(number).uniform(-decades, 0, number)
    harms[::5] *= number > RANKS  # some do nothing
    found = spread(harms.tolist())
    alive = [index for index, value in enumerate(harms) if value > LEAST * harms.max()]
    assert found == sorted(set(found)) and set(found) <= set(alive) and len(found) <= RANKS
    assert len(found) == len(alive) or len(alive) > RANKS
    if alive:
        assert {min(harms[alive]), max(harms[alive])} <= set(harms[found])
    if decades == 3 and number == 200:
        assert np.diff(np.sort(np.log10(harms[found]))).max() < 2 * decades / (RANKS - 1)


def test_of_harms_that_are_all_nothing_none_is_sketched():
    assert spread([0.0, 0.0]) == [] and spread([]) == []
