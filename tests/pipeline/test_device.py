"""On a device: everything the library computes there, with the stand-in of accelerator.py, and on a GPU where there is one."""

import copy
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch

import spectrim as st
from accelerator import CPU, DEVICE, accelerator
from nets import Residual, settle
from spectrim.core.factorization import describe
from spectrim.factorize import cp
from spectrim.targets.timing import LOADS, interleaved
from spectrim.targets.torch import Torch
from tables import PLANAR, SEARCHES

CHOOSING = [kind(images=24) if kind is st.Interaction else kind() for kind in SEARCHES] + [st.Knapsack(score="whitened")]
IMAGES = 48


@pytest.fixture(scope="module", autouse=True)
def _few_sweeps():
    """Where tensors are does not depend on how long alternating least squares goes on, and every operation is looked at."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cp, "SWEEPS", 3)
        patch.setattr(cp, "SWEEPS_NEAR", 2)
        yield


GPU = pytest.param(nullcontext, id="gpu", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here"))


@pytest.fixture(params=[pytest.param(accelerator, id="stand-in"), GPU])
def case(request):
    x = torch.randn(IMAGES, 3, 8, 8)
    model = settle(Residual(width=12), x)
    with torch.no_grad():
        labels = model(x).argmax(1)
    with request.param():
        yield model.to(DEVICE), x.to(DEVICE), labels


def places(model):
    return {tensor.device for tensor in model.state_dict().values()}


def test_the_device_refuses_tensors_of_another(case):
    model, x, _ = case
    assert x.device == DEVICE and x.cpu().device == CPU and (2 * x).device == DEVICE and x[:2].mT.device == DEVICE
    assert torch.zeros(2, device="cuda").device == DEVICE and torch.zeros(2).device == CPU
    assert places(model) == {DEVICE} and model(x).device == DEVICE
    assert torch.autograd.grad(model(x).sum(), next(model.parameters()))[0].device == DEVICE
    with pytest.raises(RuntimeError, match="same device|should be the same"):
        model(x.cpu())
    with pytest.raises(ValueError, match="the example is on cpu and the network on cuda:0: give example.to"):
        st.find_layers(model, x.cpu())
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
    config = st.Config(methods=(method,), exclude=("stem", "conv2", "short"))
    result = st.compress(model, x[:1], budget=st.Keep(0.95), calibration=[x[:24], x[24:]], config=config)
    assert result.plan and places(result.model) == {DEVICE}
    distortion = st.Distortion(model, result.plan, every=2)
    recipe = st.Recipe(epochs=1, batch=24, rate=0.01, precision="float32", checkpoint=tmp_path / "state.pt")
    st.fit(model, (x, labels), recipe=recipe, distortion=distortion)
    small = distortion.finish()
    assert places(small) == places(model) == {DEVICE}
    torch.testing.assert_close(small.eval()(x).cpu(), model.eval()(x).cpu(), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("search", CHOOSING, ids=repr)
def test_every_search(case, search):
    model, x, labels = case
    few = ("stem", "conv2", "short", "head")
    config = st.Config(methods=(st.ChannelSVD(),), exclude=few, search=search, images=24, batch=12)
    evaluate = st.Accuracy([(x.cpu(), labels)])
    result = st.compress(model, x[:1], budget=st.Keep(0.8), calibration=[x], evaluate=evaluate, config=config)
    assert places(result.model) == {DEVICE} and result.report.selection is not None


def test_a_search_goes_on_on_the_device(case, tmp_path):
    model, x, labels = case

    def interrupt(stage, share):
        if stage == "budgets tried":
            raise KeyboardInterrupt

    stages = []
    config = st.Config(methods=(st.ChannelSVD(),), exclude=("stem", "short", "head"), cache=tmp_path / "cache")
    budget, evaluate = st.MaxDrop(20, "macs"), st.Accuracy([(x.cpu(), labels)])
    given = {"budget": budget, "calibration": [x], "evaluate": evaluate}
    with pytest.raises(KeyboardInterrupt):
        st.compress(model, x[:1], **given, config=replace(config, progress=interrupt))
    result = st.compress(model, x[:1], **given, config=replace(config, progress=lambda stage, share: stages.append(stage)))
    assert "statistics" not in stages and "refit" in stages  # they were read, the later networks were not
    small = st.load(result.save(tmp_path / "small"), model)
    assert places(small) == {DEVICE}
    torch.testing.assert_close(small(x).cpu(), result.model(x).cpu())
    again = st.compress(model, x[:1], plan=result.plan, calibration=[x], config=config)
    torch.testing.assert_close(again.model(x).cpu(), result.model(x).cpu())
    assert places(st.compress(model, x[:1], budget=st.Keep(0.6), config=replace(config, cache=None)).model) == {DEVICE}


def test_training_goes_on_on_the_device(case, tmp_path):
    model, x, labels = case
    plan = st.plan_from(model, x[:1], {name: (st.SpatialSVD(), 3) for name in ("conv1", "conv2")})
    teacher = Residual(width=12).to(DEVICE).eval()
    recipe = st.Recipe(epochs=2, batch=24, rate=0.01, precision="float32", distill=0.5, checkpoint=tmp_path / "state.pt")
    trained = []
    for _ in range(2):  # the second time nothing is left to be done, whatever weights it begins with
        distortion = st.Distortion(model, plan, every=2)
        st.fit(model, (x, labels), recipe=recipe, teacher=teacher, distortion=distortion)
        assert distortion.steps == 4
        trained.append(torch.cat([value.cpu().flatten() for value in model.parameters()]))
        with torch.no_grad():
            model.stem.weight.mul_(2)
    assert torch.equal(*trained)
    assert places(distortion.finish()) == {DEVICE}
    assert len(st.loss_along(model, plan, batches=[(x.cpu(), labels)], distortion=distortion).loss) == 9


def test_latency_waits_for_the_device_of_the_example(case, monkeypatch):
    model, x, _ = case
    waited = []
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "synchronize", waited.append)
    (found,) = interleaved([Torch().load(model, x[:1])], seconds=0)
    assert found.shape == (8, 2) and waited == (8 + LOADS) * [DEVICE]


@pytest.mark.parametrize("method", (*PLANAR[:4], *PLANAR[5:10:2]), ids=describe)
def test_another_default_device(method, tmp_path):
    """As after torch.set_default_device("cuda"), where nothing can be made of what lies on it by mistake."""
    x = torch.randn(IMAGES, 3, 8, 8)
    model = settle(Residual(width=12), x)
    with torch.no_grad():
        labels = model(x).argmax(1)
    search = {st.ChannelSVD(): st.Interaction(images=16), st.InputSVD(): st.Greedy()}.get(method, st.Knapsack())
    config = st.Config(
        methods=(method,),
        exclude=("stem", "conv2", "short"),
        images=32,
        batch=8,
        search=search,
        batchnorm=True,
        cache=tmp_path / "cache",
    )
    found = []
    for device in ("meta", "cpu"):
        dense, evaluate = copy.deepcopy(model), st.Accuracy([(x, labels)])
        recipe = st.Recipe(epochs=1, batch=24, checkpoint=tmp_path / f"{device}.pt")
        with torch.device(device):
            result = st.compress(model, x[:1], budget=st.Keep(0.95), calibration=[x], evaluate=evaluate, config=config)
            small = st.load(result.save(tmp_path / device), model)
            distortion = st.Distortion(dense, result.plan, every=2)
            st.fit(dense, (x, labels), recipe=recipe, distortion=distortion)
            curve = st.loss_along(dense, result.plan, batches=[(x, labels)], distortion=distortion)
        assert result.plan and places(small) == places(distortion.finish()) == {CPU}
        config = replace(config, cache=None)
        found.append((result.plan, result.report.measured_harm, curve))
    assert found[0] == found[1]
