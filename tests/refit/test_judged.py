"""A refit judged by images that no fit sees: what is built is the better of the two, layer by layer."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

import spectrim as st
from nets import Odd, Residual, layer_and_input, settle
from spectrim.core.plan import Option
from spectrim.factorize.algebra import ridge
from spectrim.network.build import factorized, own_target, replacement, working_weight
from spectrim.network.copying import duplicate
from spectrim.network.surgery import replace_module
from spectrim.refit import regression
from spectrim.refit.regression import HURTS, RIDGE, Regression, best_fit, dense_fit, refit
from spectrim.sensitivity.covariance import Covariance
from spectrim.sensitivity.measured import measured_harm
from spectrim.sensitivity.moments import Sampler, gather_moments, grouped, lowered

IMAGES = {"few": 3, "enough": 200}


def world(name, images, noise=0.3, largest=4608):
    """A layer, moments of its own inputs, and a regression from inputs that are not its own, with `images` and 40 judges."""
    generator = torch.Generator().manual_seed(images)
    module, x = layer_and_input(name, images + 40)
    network = nn.Sequential(module)
    (layer,) = st.find_layers(network, x)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("spectrim.sensitivity.moments.LARGEST", largest)
        moments = gather_moments(network, [layer], [x[:images]])["0"]
    target = module(x).detach()
    x = x + noise * torch.randn(x.shape, generator=generator, dtype=x.dtype) + 0.2  # what a compressed prefix makes of it
    sums = []
    for part in (slice(images), slice(images, None)):
        index = Sampler(0, len(x)).draw(layer, len(x[part]), target.shape[1:-1] if layer.kind == "Linear" else target.shape[2:])
        seen = lowered(layer, x[part], index)
        seen = seen if moments.covariance is not None else grouped(layer, module(x[part]).detach(), index)
        sums.append(Covariance())
        sums[-1].add(seen, grouped(layer, target[part], index), blocks=min(16, len(x[part])))
    bias = None if module.bias is None else module.bias.detach()
    method = st.ChannelSVD()
    option = Option(layer, method, max(1, method.full_rank(layer.convolution) // 2), bias=True)
    found = Regression(working_weight(layer, module), bias, moments, *sums)
    return option, module, found, (x[images:], target[images:])


def error(layer, module, moments, judges):
    """1/2 E[e^T G e] of what a module answers, over all positions."""
    with torch.no_grad():
        off = grouped(layer, module(judges[0]) - judges[1])
    return 0.5 * float(torch.einsum("gmt,gtu,gmu->", off, moments.gradient, off)) / off.shape[1]


@pytest.mark.parametrize("largest", [4608, 1], ids=["inputs", "outputs"])
@pytest.mark.parametrize("images", IMAGES)
@pytest.mark.parametrize("name", ["plain", "groups", "stride", "transposed", "linear", "linear tokens", "no bias"])
def test_what_is_built_is_the_better_of_refit_and_none(name, images, largest):
    """Measured with the modules themselves, biases included."""
    option, module, found, judges = world(name, IMAGES[images], largest=largest)
    assert found.in_inputs == (largest > 1)
    chosen = best_fit(option, module, found)
    plain = factorized(option, module, found.moments)
    best = found.target(found.best())
    refitted = replacement(option, module, best, option.method.factors(best.kernel, option.rank, best.moments))
    errors = [error(option.layer, network, found.moments, judges) for network in (chosen.module, plain, refitted)]
    assert errors[0] == pytest.approx(min(errors), rel=1e-5)
    assert chosen.reason == (HURTS if errors[1] < errors[2] * (1 - 1e-6) else "")


@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize("name", ["plain", "groups", "linear"])
def test_the_misfit_is_the_error_up_to_a_constant(name, own):
    """Of two dense maps the difference is that of the errors of layers that have them."""
    option, module, found, judges = world(name, 20)
    differences = []
    for scale in (0.5, 1.3):
        kernel = scale * found.start.reshape(found.weight.shape)
        target = own_target(option.layer, module, found.moments) if own else found.target(found.start)
        dense = dataclasses.replace(option, rank=option.method.full_rank(option.layer.convolution))
        built = replacement(dense, module, target, option.method.factors(kernel, dense.rank, None))
        differences.append((found.misfit(kernel.flatten(2), own=own), error(option.layer, built, found.moments, judges)))
    (low, first), (high, second) = differences
    assert high - low == pytest.approx(second - first, rel=1e-4)


@pytest.mark.parametrize("name", ["plain", "groups", "linear"])
def test_maps_are_ridge_regressions_towards_the_original(name):
    _, _, found, _ = world(name, 30)
    c, k = found.sums.covariance, found.sums.cross
    for share, kernel in zip((0.01, 1.0), found.maps([0.01, 1.0]), strict=True):
        for group in range(len(c)):
            level = share * float(c[group].trace()) / len(c[group])
            start, inverse = found.start[group].numpy(), np.linalg.inv(c[group].numpy() + level * np.eye(len(c[group])))
            wanted = start + (k[group].numpy() - start @ c[group].numpy()) @ inverse
            np.testing.assert_allclose(kernel[group], wanted, rtol=1e-4, atol=1e-6)
    assert torch.equal(ridge(c, 1.0), c.diagonal(dim1=1, dim2=2).mean(1)[:, None, None])
    far, near = ((kernel - found.start).norm() for kernel in found.maps([1e-3, 10.0]))
    assert near < 0.3 * far


def test_without_judging_images_the_ridge_is_fixed():
    option, module, found, _ = world("plain", 5)
    alone = dataclasses.replace(found, judged=Covariance())
    layer = best_fit(option, module, alone)
    assert layer.reason == ""
    torch.testing.assert_close(layer.target.kernel.flatten(2), found.maps([RIDGE])[0])
    torch.testing.assert_close(layer.target.moments.covariance, found.sums.shrunk)


def test_a_refit_is_made_where_it_helps_and_not_where_it_hurts():
    """A drift that is a scale is paid back; where target and input have nothing to do with each other nothing is."""
    option, module, found, judges = world("linear", 200, noise=0.0)
    made, plain = best_fit(option, module, found), factorized(option, module, found.moments)
    assert made.reason == "" and made.target.kernel.shape == found.weight.shape
    assert error(option.layer, made.module, found.moments, judges) < error(option.layer, plain, found.moments, judges)
    reasons = set()
    for images in range(3, 9):
        option, module, noise, _ = world("linear", images, noise=5.0)
        chosen, plain = best_fit(option, module, noise), factorized(option, module, noise.moments)
        reasons.add(chosen.reason)
        same = [torch.equal(a, b) for a, b in zip(chosen.module.parameters(), plain.parameters(), strict=True)]
        assert all(same) == (chosen.reason == HURTS)
    assert HURTS in reasons


class Deep(nn.Sequential):
    """Wide layers, each with more inputs than there are images."""

    def __init__(self):
        super().__init__(nn.Linear(40, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))


def halved(model, x):
    method = st.ChannelSVD()
    choices = {layer.name: (method, method.full_rank(layer) // 2) for layer in st.find_layers(model, x[:1])}
    plan = st.plan_from(model, x[:1], choices)
    return st.Plan({n: st.Option(o.layer, o.method, o.rank, 0.0, True) for n, o in plan.items()}, plan.original)


def test_with_few_images_it_is_no_worse_than_none():
    """Eight to fit and sixteen to judge: on fresh images, over some networks; one that nobody judges is."""
    harms = {"none": 0.0, "judged": 0.0, "fixed": 0.0}
    for seed in range(6):
        torch.manual_seed(seed)
        model, x, fresh = Deep().eval(), torch.randn(24, 40), torch.randn(1000, 40)
        with torch.no_grad():
            model[4].weight *= 3
        moments, plan = gather_moments(model, st.find_layers(model, x[:1]), [x[:8]]), halved(model, x)
        harms["none"] += measured_harm(model, st.apply(plan, model, moments=moments), [fresh])
        for key, unseen in (("judged", [x[8:]]), ("fixed", [])):
            small = duplicate(model)
            for layer in refit(model, plan, [x[:8]], moments, unseen=unseen):
                replace_module(small, layer.name, layer.module)
            harms[key] += measured_harm(model, small, [fresh])
    assert harms["judged"] <= 1.02 * harms["none"] and harms["fixed"] > 1.02 * harms["judged"]


@pytest.mark.parametrize("size", [1, 3, 8, 40])
def test_judging_images_go_through_the_stream_and_into_no_fit(size):
    """Batches of any size; an image is counted where it was fitted to, and the fitting ones come first."""
    x = torch.randn(40, 3, 8, 8)
    model = settle(Residual(), x)
    layers = st.find_layers(model, x[:1])
    moments, plan = gather_moments(model, layers, [x]), {}
    plan = st.plan_from(model, x[:1], {layer.name: (st.ChannelSVD(), 2) for layer in layers})
    found = list(refit(model, plan, list(x[:24].split(size)), moments, unseen=list(x[24:].split(size))))
    assert {layer.name for layer in found} == {layer.name for layer in layers}
    assert all(layer.images == (0 if layer.reason else 24) for layer in found)
    assert {layer.reason for layer in found} <= {"", HURTS}
    same = list(refit(model, plan, list(x[:24].split(size)), moments, unseen=[x[24:]] if size < 40 else list(x[24:].split(16))))
    for first, second in zip(found, same, strict=True):
        for a, b in zip(first.module.parameters(), second.module.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


def test_any_graph_is_judged():
    x = torch.randn(40, 3, 6, 6), torch.rand(40, 8)
    model = Odd().eval()
    batches = [tuple(part) for part in zip(*(tensor.split(10) for tensor in x), strict=True)]
    moments = gather_moments(model, st.find_layers(model, x), batches[:2])
    plan = st.plan_from(model, x, {"twice": (st.ChannelSVD(), 3), "left": (st.ChannelSVD(), 2), "head": (st.ChannelSVD(), 2)})
    found = {layer.name: layer for layer in refit(model, plan, batches[:2], moments, unseen=batches[2:])}
    assert found.keys() == plan.keys() and found["twice"].reason == regression.TWICE
    assert all(torch.isfinite(value).all() for layer in found.values() for value in layer.module.parameters())


@pytest.mark.parametrize("images", IMAGES)
@pytest.mark.parametrize("name", ["plain", "groups", "stride", "transposed", "linear", "no bias"])
def test_what_stays_dense_is_the_better_of_refit_and_none(name, images):
    """Measured with the modules themselves; a layer without a bias gets none."""
    option, module, found, judges = world(name, IMAGES[images])
    kept = dense_fit(Option(option.layer), module, found)
    before, after = (error(option.layer, network, found.moments, judges) for network in (module, kept.module))
    assert kept.module.state_dict().keys() == module.state_dict().keys()
    assert after < before if kept.reason == "" else kept.module is module
    if images == "enough":
        assert kept.reason == "" and after < 0.95 * before
    alone = dense_fit(Option(option.layer), module, dataclasses.replace(found, judged=Covariance()))
    assert alone.module is module and alone.reason == HURTS


def test_layers_that_stay_dense_pay_drift_back():
    """Behind a layer that is cut deeply; what is before it, what answers, what is excluded and the structure stay as they are."""
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Conv2d(3 if not i else 8, 8, 3, padding=1, bias=i != 2) for i in range(5)), nn.Flatten())
    x, fresh = torch.randn(128, 3, 6, 6), torch.randn(500, 3, 6, 6)
    plan, harms = st.plan_from(model, x[:1], {"1": (st.ChannelSVD(), 5)}), []
    for exclude in (("2", "3"), ()):
        config = st.Config(exclude=exclude, harm=lambda new, old: (new - old).square().mean())
        prepared = st.prepare(model, x[:1], calibration=x.split(32), config=config, plan=plan)
        small = st.realize(prepared, plan)
        harms.append(measured_harm(model, small.model, [fresh], prepared.harm))
        old, new = model.state_dict(), small.model.state_dict()
        changed = {name.split(".")[0] for name, value in old.items() if name not in new or not torch.equal(value, new[name])}
        assert changed == {"1", "2", "3"} - {*exclude} and small.decisions.keys() == changed
        assert old.keys() - new.keys() == {"1.weight", "1.bias"} and ("2.bias" in new) == ("2.bias" in old)
    assert harms[1] < 0.9 * harms[0]
    assert small.decisions["2"].startswith("dense, refitted on 112 images")
