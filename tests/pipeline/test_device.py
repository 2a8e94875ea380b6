"""On a device: everything the library computes there, with the stand-in of accelerator.py. No real device is used here."""

import copy
import sys
from dataclasses import replace

import pytest
import torch
from spectrim.latency import measure
from test_factorize import METHODS

import spectrim as st
from accelerator import CPU, DEVICE, accelerator
from nets import Residual, settle
from spectrim.factorize import describe
from spectrim.search import SEARCHES

PLANAR = [method for method in METHODS if method != st.SpatialSVD(axis=2)]  # the networks here have two axes
CHOOSING = [kind(images=48) if name == "Interaction" else kind() for name, kind in SEARCHES.items()]
CHOOSING += [st.Knapsack(score="whitened")]


@pytest.fixture
def case():
    x = torch.randn(96, 3, 8, 8)
    model = settle(Residual(width=12), x)
    with torch.no_grad():
        labels = model(x).argmax(1)
    with accelerator():
        yield model.to(DEVICE), x.to(DEVICE), labels


def places(model):
    return {tensor.device for tensor in model.state_dict().values()}


def test_the_stand_in_refuses_what_a_device_refuses(case):
    model, x, _ = case
    assert x.device == DEVICE and x.cpu().device == CPU and (2 * x).device == DEVICE and x[:2].mT.device == DEVICE
    assert torch.zeros(2, device="cuda").device == DEVICE and torch.zeros(2).device == CPU
    assert places(model) == {DEVICE} and model(x).device == DEVICE
    assert torch.autograd.grad(model(x).sum(), next(model.parameters()))[0].device == DEVICE
    with pytest.raises(RuntimeError, match="same device"):
        model(x.cpu())
    with pytest.raises(RuntimeError, match="same device"):
        x + torch.ones(8)
    with pytest.raises(TypeError, match="numpy"):
        x.numpy()
    with pytest.raises(RuntimeError, match="generator"):
        torch.randn(2, generator=torch.Generator(), device="cuda")
    with pytest.raises(RuntimeError, match="generator"):
        x.abs()[0, 0].multinomial(1, generator=torch.Generator())
    with pytest.raises(RuntimeError, match="same device"):
        x[torch.tensor([0, 1])] = torch.zeros(2, *x.shape[1:])


@pytest.mark.parametrize("method", PLANAR, ids=describe)
def test_every_method_compresses_and_trains(case, method, tmp_path):
    model, x, labels = case
    config = st.Config(methods=(method,))
    result = st.compress(model, x[:1], budget=st.Keep(0.9), calibration=[x[:48], x[48:]], config=config)
    assert result.plan and places(result.model) == {DEVICE}
    twist = st.Distortion(model, result.plan, every=2)
    recipe = st.Recipe(epochs=1, batch=32, rate=0.01, precision="float32", checkpoint=tmp_path / "state.pt")
    st.fit(model, (x, labels), recipe=recipe, twist=twist)
    small = twist.finish()
    assert places(small) == places(model) == {DEVICE}
    torch.testing.assert_close(small.eval()(x).cpu(), model.eval()(x).cpu(), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("search", CHOOSING, ids=repr)
def test_every_search(case, search):
    model, x, labels = case
    config = st.Config(methods=(st.ChannelSVD(), st.SpatialSVD()), search=search, images=48)
    evaluate = st.Accuracy([(x.cpu(), labels)])
    result = st.compress(model, x[:1], budget=st.Keep(0.5), calibration=[x], evaluate=evaluate, config=config)
    assert places(result.model) == {DEVICE} and result.report.selection is not None


def test_a_search_goes_on_on_the_device(case, tmp_path, monkeypatch):
    model, x, labels = case

    def interrupt(stage, share):
        if stage == "budgets tried":
            raise KeyboardInterrupt

    methods = st.ChannelSVD(), st.Tucker2()
    config, budget = st.Config(methods=methods, cache=tmp_path / "cache"), st.MaxDrop(20, "macs")
    evaluate = st.Accuracy([(x.cpu(), labels)])
    with pytest.raises(KeyboardInterrupt):
        st.compress(model, x[:1], budget=budget, calibration=[x], evaluate=evaluate, config=replace(config, progress=interrupt))
    with monkeypatch.context() as kept:
        kept.delattr(sys.modules["spectrim.compress"], "statistics")  # they are read
        result = st.compress(model, x[:1], budget=budget, calibration=[x], evaluate=evaluate, config=config)
    folder = result.save(tmp_path / "small")
    small = st.load(folder, model)
    assert places(small) == {DEVICE}
    torch.testing.assert_close(small(x).cpu(), result.model(x).cpu())
    assert st.compress(model, x[:1], budget=st.Keep(0.5)).plan


def test_training_goes_on_on_the_device(case, tmp_path):
    model, x, labels = case
    plan = st.compress(model, x[:1], budget=st.Keep(0.5), calibration=[x], config=st.Config(methods=(st.SpatialSVD(),))).plan
    teacher = Residual(width=12).to(DEVICE).eval()
    recipe = st.Recipe(epochs=2, batch=32, rate=0.01, precision="float32", distill=0.5, checkpoint=tmp_path / "state.pt")
    trained = []
    for _ in range(2):  # the second time nothing is left to be done, whatever weights it begins with
        twist = st.Distortion(model, plan, every=2)
        st.fit(model, (x, labels), recipe=recipe, teacher=teacher, twist=twist)
        assert twist.steps == 6
        trained.append(torch.cat([value.cpu().flatten() for value in model.parameters()]))
        with torch.no_grad():
            model.stem.weight.mul_(2)
    assert torch.equal(*trained)
    assert places(twist.finish()) == {DEVICE}
    assert len(st.loss_along(model, plan, batches=[(x.cpu(), labels)], twist=twist).loss) == 9


def test_latency_waits_for_the_device_of_the_example(case, monkeypatch):
    model, x, _ = case
    waited = []
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "synchronize", waited.append)
    (found,) = measure([model], x[:1], seconds=0)
    assert found.runs == 5 and waited == 6 * [DEVICE]


@pytest.mark.parametrize("method", PLANAR, ids=describe)
def test_another_default_device(method, tmp_path):
    """As after torch.set_default_device("cuda"), where nothing can be made of what lies on it by mistake."""
    x = torch.randn(96, 3, 8, 8)
    model = settle(Residual(width=12), x)
    with torch.no_grad():
        labels = model(x).argmax(1)
    search = st.Interaction(images=32) if method == st.ChannelSVD() else st.Greedy() if method == st.CP() else st.Knapsack()
    config = st.Config(methods=(method,), images=48, batch=16, search=search, batchnorm=True, cache=tmp_path / "cache")
    found = []
    for device in ("meta", "cpu"):
        dense, evaluate = copy.deepcopy(model), st.Accuracy([(x, labels)])
        recipe = st.Recipe(epochs=1, batch=32, checkpoint=tmp_path / f"{device}.pt")
        with torch.device(device):
            result = st.compress(model, x[:1], budget=st.Keep(0.9), calibration=[x], evaluate=evaluate, config=config)
            small = st.load(result.save(tmp_path / device), model)
            twist = st.Distortion(dense, result.plan, every=2)
            st.fit(dense, (x, labels), recipe=recipe, twist=twist)
            curve = st.loss_along(dense, result.plan, batches=[(x, labels)], twist=twist)
        assert places(small) == places(twist.finish()) == {CPU}
        config = replace(config, cache=None)
        found.append((result.plan, result.report.measured_harm, curve))
    assert found[0] == found[1]
