"""Random small networks: residual, concatenating, splitting, sharing layers, with two inputs, of odd shapes, in two dtypes."""

import copy
import tempfile

import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as drawn
from torch import nn
from torch.nn import functional

import spectrim as st

KINDS = ("plain", "residual", "concatenate", "split", "shared", "grouped", "strided", "dense", "inplace")
METHODS = (st.ChannelSVD(), st.SpatialSVD(), st.Tucker2())


class Block(nn.Module):
    """One step of a random network, from `channels` to `out` channels."""

    def __init__(self, kind, channels, kernel, bias):
        super().__init__()
        self.kind, self.out = kind, {"concatenate": channels + 3, "grouped": 2 * channels, "dense": 7}.get(kind, channels)
        outputs = {"concatenate": 3, "split": channels - channels // 2}.get(kind, self.out)
        inputs = outputs if kind == "split" else channels
        options = {"grouped": {"groups": channels}, "strided": {"stride": 2}}.get(kind, {})
        self.layer = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=bias, **options)
        self.norm = nn.BatchNorm2d(outputs)

    def forward(self, x):
        if self.kind == "split":
            kept, changed = x.split((x.shape[1] // 2, x.shape[1] - x.shape[1] // 2), 1)
            return torch.cat((kept, functional.relu(self.norm(self.layer(changed)))), 1)
        found = self.norm(self.layer(x))
        if self.kind == "residual":
            return functional.relu(found + x)
        if self.kind == "concatenate":
            return torch.cat((x, functional.silu(found)), 1)
        if self.kind == "shared":
            return functional.gelu(self.layer(functional.relu(found)))
        if self.kind == "inplace":
            return found.relu_()
        return functional.relu(found)


class Network(nn.Module):
    """A stem for each input, blocks, and a head."""

    def __init__(self, blocks, channels, inputs):
        super().__init__()
        self.stems = nn.ModuleList(nn.Conv2d(3, channels, 3, padding=1) for _ in range(inputs))
        self.blocks = nn.Sequential()
        for kind, kernel, bias in blocks:
            self.blocks.append(Block(kind, channels, kernel, bias))
            channels = self.blocks[-1].out
        self.head = nn.Linear(channels, 5)

    def forward(self, *inputs):
        x = sum(stem(value) for stem, value in zip(self.stems, inputs, strict=True))
        return self.head(self.blocks(x).mean((2, 3)))


networks = drawn.fixed_dictionaries(
    {
        "blocks": drawn.lists(
            drawn.tuples(drawn.sampled_from(KINDS), drawn.sampled_from((1, 3, 5)), drawn.booleans()), min_size=1, max_size=5
        ),
        "channels": drawn.integers(2, 9),
        "inputs": drawn.integers(1, 2),
    }
)


def outputs(model, inputs):
    with torch.no_grad():
        return model(*inputs)


@settings(max_examples=8, phases=(Phase.generate,), deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    described=networks,
    size=drawn.tuples(drawn.integers(5, 13), drawn.integers(5, 13)),
    dtype=drawn.sampled_from((torch.float32, torch.float64)),
    fraction=drawn.sampled_from((0.9, 0.7)),
    metric=drawn.sampled_from(("params", "macs")),
    seed=drawn.integers(0, 99),
)
def test_random_networks(described, size, dtype, fraction, metric, seed):
    torch.manual_seed(seed)
    model = Network(**described).to(dtype).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 2)
            nn.init.normal_(module.bias)
    example, *batches = (
        tuple(torch.randn(count, 3, *size, dtype=dtype) for _ in range(described["inputs"])) for count in (2, 32, 32)
    )
    loader = [(*batch, torch.zeros(32)) for batch in batches]
    state, wanted = copy.deepcopy(model.state_dict()), outputs(model, batches[0])
    config = st.Config(methods=METHODS)

    layers = st.find_layers(model, example)
    whole = {}
    for number, layer in enumerate(layers):
        fitting = [method for method in METHODS if method.fits(layer.convolution)]
        if fitting:
            method = fitting[number % len(fitting)]
            whole[layer.name] = (method, method.full_rank(layer.convolution))
    exact = st.apply(st.plan_from(model, example, whole), model)
    assert (outputs(exact, batches[0]) - wanted).abs().max() <= 1e-4 * wanted.abs().max()

    try:
        result = st.compress(model, example, budget=st.Keep(fraction, metric), calibration=loader, config=config)
    except st.BudgetError as error:
        assert "keep" in str(error).lower()  # nothing below what was asked for exists, and that is said
        return
    finally:
        assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items()) and not model.training
        assert torch.equal(outputs(model, batches[0]), wanted)
    counted = st.cost(result.model, example)
    assert counted.of(metric) <= fraction * st.cost(model, example).of(metric) and counted.of(metric) == result.plan.cost.of(
        metric
    )
    with tempfile.TemporaryDirectory() as folder:
        again = st.load(result.save(folder), copy.deepcopy(model))
    found = outputs(result.model, batches[0])
    assert found.dtype == dtype and found.isfinite().all() and torch.equal(outputs(again, batches[0]), found)
