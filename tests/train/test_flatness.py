"""The loss along the low-rank direction."""

import pytest
import torch
from torch.nn import functional

import spectrim as st
from nets import InPlace
from training import network, plan_of, same


def test_the_ends_are_the_network_and_its_factorization():
    model, x, y = network()
    plan = plan_of(model, x)
    before = network()[0]
    with torch.no_grad():
        outputs = model(x), st.apply(plan, model)(x)
    curve = st.loss_along(model, plan, batches=[(x[:40], y[:40]), (x[40:], y[40:])], label="start", points=5)
    assert same(model, before)
    assert curve.t == (0.0, 0.25, 0.5, 0.75, 1.0) and curve.examples == 64 and curve.label == "start"
    for index, out in ((0, outputs[0]), (-1, outputs[1])):
        each = functional.cross_entropy(out, y, reduction="none")
        assert curve.loss[index] == pytest.approx(each.mean().item(), abs=1e-4)
        assert curve.error[index] == pytest.approx(each.std().item() / 63**0.5, rel=1e-3)
        assert curve.accuracy[index] == pytest.approx((out.argmax(1) == y).double().mean().item())
    st.Distortion(before, plan).distort()
    dense, low = (torch.cat([net.get_submodule(name).weight.detach().flatten() for name in plan]) for net in (model, before))
    assert curve.distance == pytest.approx(float((dense - low).norm() / dense.norm()), rel=1e-4)


def test_a_distortion_leads_to_what_it_will_return():
    model, x, y = network()
    distortion = st.Distortion(model, plan_of(model, x, st.CP()))
    distortion.distort()
    model.conv1.weight.data.add_(0.01 * model.conv1.weight.data.std())
    kernel = model.conv1.weight.detach().clone()
    curve = st.loss_along(model, distortion.plan, batches=[(x, y)], distortion=distortion)
    fresh = st.loss_along(model, distortion.plan, batches=[(x, y)])  # a fit from the beginning ends farther off
    assert torch.equal(kernel, model.conv1.weight) and curve.distance < 0.7 * fresh.distance
    small = distortion.finish()
    assert curve.loss[-1] == pytest.approx(functional.cross_entropy(small(x), y).item(), abs=1e-5)


def test_images_stay_as_they_are():
    model, x, y = network()
    before = x.clone()
    model = InPlace(model)
    st.loss_along(model, plan_of(model, x.clone(), layers=("network.conv1",)), batches=[(x, y)], points=2)
    assert torch.equal(x, before)


def test_what_cannot_be_measured():
    model, x, y = network()
    plan = plan_of(model, x)
    with pytest.raises(ValueError, match="at least 2"):
        st.loss_along(model, plan, batches=[(x, y)], points=1)
    with pytest.raises(ValueError, match="batches are empty"):
        st.loss_along(model, plan, batches=[])
    with pytest.raises(ValueError, match="labels are from 5"):
        st.loss_along(model, plan, batches=[(x, y * 0 + 5)])
    with pytest.raises(ValueError, match="another plan"):
        st.loss_along(model, plan, batches=[(x, y)], distortion=st.Distortion(model, plan_of(model, x, st.CP())))
