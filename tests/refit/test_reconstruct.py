"""Blocks of any network, and gradient steps on one of them."""

import copy

import pytest
import torch
from torch import nn

import spectrim as st
from nets import Residual, settle
from spectrim.refit.blocks import FORM, NEVER, TWICE, find_blocks
from spectrim.refit.reconstruct import Task, _Pairs, captured, fit_block, mirrored

QUICK = st.Reconstruct(steps=30, batch=16, rate=3e-3)


class Basic(nn.Module):
    """A residual block with two convolutions."""

    def __init__(self, width):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        return self.relu(self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x))))) + x)


class Inverted(nn.Module):
    """An inverted residual block: wide, depthwise, narrow."""

    def __init__(self, width):
        super().__init__()
        wide = [nn.Conv2d(width, 3 * width, 1, bias=False), nn.BatchNorm2d(3 * width), nn.ReLU6(inplace=True)]
        deep = [nn.Conv2d(3 * width, 3 * width, 3, padding=1, groups=3 * width), nn.BatchNorm2d(3 * width), nn.ReLU6()]
        self.conv = nn.Sequential(nn.Sequential(*wide), nn.Sequential(*deep), nn.Conv2d(3 * width, width, 1))

    def forward(self, x):
        return x + self.conv(x)


def staged(block, width=12, blocks=3):
    """A stem, a stage of so many blocks, a head."""
    stage = nn.Sequential(*(block(width) for _ in range(blocks)))
    return nn.Sequential(nn.Conv2d(3, width, 3, padding=1), stage, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 5))


def plain():
    layers = [nn.Conv2d(3, 12, 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(12, 12, 3), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(432, 24), nn.ReLU(), nn.Linear(24, 5))


class Twice(nn.Module):
    """One layer that a forward calls twice, one in a block that does so, one whose forward is called past its hooks."""

    def __init__(self):
        super().__init__()
        self.stem, self.same = nn.Conv2d(3, 12, 3, padding=1), nn.Conv2d(12, 12, 3, padding=1)
        self.pair, self.past = _Pair(), nn.Conv2d(12, 12, 3, padding=1)
        self.tupled, self.head = _Tuple(), nn.Linear(12, 5)

    def forward(self, x):
        x = torch.relu(self.same(torch.relu(self.same(self.stem(x)))))
        x, _ = self.tupled(self.pair(self.past.forward(x)))
        return self.head(x.mean((2, 3)))


class _Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(12, 12, 3, padding=1)

    def forward(self, x):
        return torch.tanh(self.conv(torch.tanh(self.conv(x))))


class _Tuple(_Pair):
    def forward(self, x):
        return self.conv(x), None


def compressed(model, fraction=0.6):
    """A network, its factorized copy and inputs; the weights alone are approximated, so that much is left to gain."""
    x = torch.randn(80, 3, 8, 8)
    model = settle(model, x)
    method = st.ChannelSVD()
    layers = [layer for layer in st.find_layers(model, x[:1]) if method.fits(layer) and layer.weight[0] > 5]
    choices = {layer.name: (method, max(1, int(fraction * method.ranks(layer)[-1]))) for layer in layers}
    plan = st.plan_from(model, x[:1], choices)
    return model, st.apply(plan, model), plan, x


def task(model, small, x, options=QUICK, memory=1 << 30, unit=1):
    return Task(model, small, x[:64].split(32), [x[64:]], options, memory, 0, unit)


FOUND = {
    "ResNet-like": (lambda: staged(Basic), {"0": ["0"], "1.0": ["1.0.conv1", "1.0.conv2"], "1.1": 2, "1.2": 2}),
    "short stage": (lambda: staged(Basic, blocks=2), {"0": ["0"], "1": 4}),
    "MobileNetV2-like": (lambda: staged(Inverted), {"0": ["0"], "1.0": ["1.0.conv.0.0", "1.0.conv.2"], "1.1": 2, "1.2": 2}),
    "plain": (plain, {"0": ["0"], "2": ["2"], "5": ["5"]}),
    "no modules around": (lambda: Residual(width=12), {name: [name] for name in ("stem", "conv1", "conv2", "conv3", "short")}),
}


@pytest.mark.parametrize("name", FOUND)
def test_blocks_are_the_largest_modules_of_few_layers(name):
    make, wanted = FOUND[name]
    _, small, plan, x = compressed(make())
    blocks = find_blocks(small, list(plan), x)
    assert [block.name for block in blocks.found] == list(wanted) and not blocks.left
    for block, layers in zip(blocks.found, wanted.values(), strict=True):
        assert len(block.layers) == layers if isinstance(layers, int) else list(block.layers) == layers
    inside = [layer for block in blocks.found for layer in block.layers]
    assert sorted(inside) == sorted(plan) and len(set(inside)) == len(inside)


def test_layers_called_twice_are_only_in_blocks_that_hold_all_calls():
    _, small, plan, x = compressed(Twice())
    assert {"stem", "same", "pair.conv", "tupled.conv"} <= set(plan)
    blocks = find_blocks(small, [*plan], x)
    assert {block.name: block.layers for block in blocks.found if block.name != "past"} == {
        "stem": ("stem",),
        "pair": ("pair.conv",),
        "tupled.conv": ("tupled.conv",),
    }
    assert blocks.left["same"] == TWICE
    assert blocks.left.get("past", NEVER) == NEVER


def test_an_input_whose_batch_is_not_first_is_no_block():
    class TimeFirst(nn.Module):
        def __init__(self):
            super().__init__()
            self.lift, self.mix, self.head = nn.Linear(12, 24), nn.Linear(24, 24), nn.Linear(24, 5)

        def forward(self, x):
            return self.head(torch.relu(self.mix(torch.relu(self.lift(x.transpose(0, 1))))).transpose(0, 1).mean(1))

    x = torch.randn(8, 2, 12)
    small = TimeFirst().eval()
    small.mix = nn.Sequential(nn.Linear(24, 5), nn.Linear(5, 24))
    assert find_blocks(small, ["mix"], x).left == {"mix": FORM}  # two steps of time look like two examples, but not like three


CASES = {"ResNet-like": lambda: staged(Basic), "MobileNetV2-like": lambda: staged(Inverted), "plain": plain}


@pytest.mark.parametrize("name", CASES)
def test_the_error_of_every_block_falls_and_nothing_else_changes(name):
    model, small, plan, x = compressed(CASES[name]())
    before = copy.deepcopy((model.state_dict(), small.state_dict(), x))
    flags = [parameter.requires_grad for parameter in small.parameters()]
    for block in find_blocks(small, list(plan), x).found:
        fitted = fit_block(task(model, small, x), block)
        assert (
            fitted.after[0] < fitted.before[0]
            and fitted.after[1] != fitted.before[1]
            and fitted.images == 64
            and not fitted.reason
        )
        assert {key.rpartition(".")[0].rpartition(".")[0] for key in fitted.tensors} == set(block.layers)
        assert all(torch.isfinite(value).all() and not value.requires_grad for value in fitted.tensors.values())
    torch.testing.assert_close((model.state_dict(), small.state_dict(), x), before, rtol=0, atol=0)
    assert flags == [parameter.requires_grad for parameter in small.parameters()]
    assert not any(module._forward_hooks or module._forward_pre_hooks for net in (model, small) for module in net.modules())


def test_the_error_is_relative_to_the_variance_of_each_channel():
    """An answer of each channel's mean has the error 1, whatever the channels' scales."""
    y = torch.randn(32, 5, 4, 4) * torch.tensor([1.0, 2, 3, 4, 0.5])[:, None, None] + 7
    from spectrim.refit.reconstruct import _weight

    mean = y.mean((0, 2, 3), keepdim=True).expand_as(y[:1])
    pairs = _Pairs(y, y, _weight(y, nn.Conv2d(5, 5, 1), torch.float32), 1)
    assert pairs.whole(lambda x: mean.expand_as(x), 8) == pytest.approx(1, rel=1e-4)
    tokens = y.flatten(2).mT.contiguous()
    weight = _weight(tokens, nn.Sequential(nn.Linear(5, 5)), torch.float32)
    torch.testing.assert_close(weight.flatten(), pairs.weight.flatten())


def test_memory_bounds_the_images():
    model, small, plan, x = compressed(staged(Basic))
    block = find_blocks(small, list(plan), x).found[1]
    each = 2 * 12 * 64 * 4  # input and output
    assert fit_block(task(model, small, x, memory=40 * each), block).images == 40
    mirror = st.Reconstruct(steps=1, mirror=True)
    assert fit_block(task(model, small, x, mirror, memory=40 * each), block).images == 20
    assert fit_block(task(model, small, x, memory=1), block).images == 1
    assert fit_block(task(model, small, x, memory=41 * each, unit=4), block).images == 40


def test_what_belongs_together_stays_together():
    pairs = _Pairs(torch.zeros(24, 1), torch.zeros(24, 1), torch.ones(1), 4)
    drawn = list(pairs.drawn(st.Reconstruct(steps=9, batch=10), seed=0))
    assert {len(index) for index in drawn} == {8}
    assert all(torch.equal(index.view(-1, 4) - index[::4, None], torch.arange(4).expand(2, 4)) for index in drawn)
    for epoch in range(3):
        assert sorted(torch.cat(drawn[3 * epoch : 3 * epoch + 3]).tolist()) == list(range(24))


def test_the_forward_ends_where_it_was_to_be_looked_at():
    model, ran = staged(Basic), []
    model[4].register_forward_pre_hook(lambda module, args: ran.append(1))
    x = torch.randn(6, 3, 8, 8)
    found = list(captured(model.eval(), "1.1", x.split(3), output=True))
    torch.testing.assert_close(torch.cat(found), model[1][1](model[1][0](model[0](x))))
    assert not ran and len(found) == 2


def test_mirror_images_are_of_maps_alone():
    batch = {
        "image": torch.arange(24.0).view(2, 1, 3, 4),
        "size": torch.arange(6.0).view(2, 3),
        "table": torch.ones(3, 1, 1, 2),
    }
    found = mirrored(batch)
    assert torch.equal(found["image"], batch["image"].flip(-1)) and torch.equal(found["size"], batch["size"])
    assert found["table"] is batch["table"]


class Cut(nn.Module):
    """A block that no gradient goes through, or that does something else when it is called again."""

    calls = 0

    def __init__(self, kind):
        super().__init__()
        self.conv, self.kind = nn.Conv2d(12, 12, 3, padding=1), kind

    def forward(self, x):
        if self.kind == "detached":
            return self.conv(x).detach()
        Cut.calls += self.kind == "counting"
        return self.conv(x) * (Cut.calls if self.kind == "counting" else 1)


@pytest.mark.parametrize(("kind", "match"), [("detached", "no gradient"), ("counting", "by itself"), ("usual", "")])
def test_why_a_block_cannot_be_reconstructed(kind, match):
    model = nn.Sequential(nn.Conv2d(3, 12, 3, padding=1), Cut("usual"), nn.Flatten(), nn.Linear(768, 5))
    model, small, _, x = compressed(model)
    model[1].kind = small[1].kind = kind
    block = find_blocks(small, ["1.conv"], x).found[0]
    assert block.name == "1"
    fitted = fit_block(task(model, small, x), block)
    assert match in fitted.reason and bool(fitted.reason) == bool(match) == (not fitted.tensors)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"rate": 0}, "rate is 0; it must be a number above 0"),
        ({"rate": float("nan")}, "rate is nan"),
        ({"rate": "1e-3"}, "rate is '1e-3'"),
        ({"rate": True}, "rate is True"),
        ({"steps": 0}, "steps is 0; it must be a whole number of at least 1"),
        ({"steps": 1.5}, "steps is 1.5"),
        ({"batch": -1}, "batch is -1"),
        ({"mirror": 1}, "mirror is 1; it must be True or False"),
    ],
)
def test_bad_options_are_one_sentence(options, match):
    with pytest.raises((ValueError, TypeError)) as caught:
        st.Reconstruct(**options)
    assert match in str(caught.value) and "\n" not in str(caught.value) and str(caught.value).startswith("reconstruct: ")
