"""Distortion training: properties over all decompositions and geometries, exact resumption, the loop, real libraries."""

import copy
import dataclasses
import io
import itertools
import signal
import sys

import pytest
import torch
from tests.nets import GEOMETRIES, InPlace, Residual, layer_and_input, settle
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

import spectrim as st
from spectrim.factorize._base import as_tuple
from spectrim.statistics import statistics
from spectrim.surgery import balanced, working_weight
from spectrim.train.batches import Tensors, augment

METHODS = (
    st.ChannelSVD(),
    st.InputSVD(),
    st.SpatialSVD(),
    st.SpatialSVD(axis=1),
    st.Tucker2(),
    st.CP(),
    st.CP(depthwise="kernel"),
    st.TensorTrain(),
    st.TiledSVD(),
)


def network():
    torch.manual_seed(0)
    x = torch.randn(64, 3, 8, 8)
    return settle(Residual(), x), x, torch.arange(64) % 5


def plan_of(model, x, method=None, layers=("conv1", "conv2", "conv3")):
    found = {layer.name: layer for layer in st.find_layers(model, x[:1])}
    method = method or st.ChannelSVD()
    ranks = {name: method.ranks(found[name]) for name in layers}
    return st.plan_from(model, x[:1], {name: (method, ranks[name][len(ranks[name]) // 2]) for name in layers})


def train(model, x, y, steps, twist=None, optimizer=None):
    optimizer = optimizer or torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    for _ in range(steps):
        optimizer.zero_grad()
        functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        if twist is not None:
            twist.step()
    return optimizer


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.title + str(dataclasses.astuple(m)))
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_distorted_equals_factorized_and_distorting_again_changes_nothing(method, geometry):
    module, x = layer_and_input(geometry)
    model = nn.Sequential(module)
    layer = st.find_layers(model, x)[0].convolution
    if not method.fits(layer):
        assert method.fits(layer).reason
        return
    full = as_tuple(method.full_rank(layer))
    rank = tuple(max(1, number // 2) for number in full)
    if isinstance(method, st.CP):
        rank = (min(3, full[0]),)
    if isinstance(method, st.Tucker2):
        taps = layer.matrix[1] // (layer.channels[1] // layer.groups)
        rank = (max(1, min(rank[0], taps * rank[1])), max(1, min(rank[1], taps * rank[0])))
    plan = st.plan_from(model, x, {"0": (method, rank if isinstance(method.full_rank(layer), tuple) else rank[0])})
    before = module.weight.detach().clone()
    twist = st.Distortion(model, plan, every=1)
    assert twist.step() and module.weight is model[0].weight
    distorted = module.weight.detach().clone()
    assert not torch.allclose(before, distorted) or torch.equal(before, before.flatten()[0].expand_as(before)) or full == rank
    small = twist.finish()
    torch.testing.assert_close(small(x), model(x), rtol=1e-6, atol=1e-6)
    assert torch.equal(module.weight, distorted)  # the network just measured is the one returned
    assert st.cost(small, x) == plan.cost
    again = st.Distortion(model, plan).finish()  # a projection, but for CP: exact the second time
    torch.testing.assert_close(again(x), small(x), rtol=1e-5, atol=1e-5) if not isinstance(method, st.CP) else None
    moved = (module.weight.detach() - distorted).norm() / distorted.norm()
    assert moved < (0.1 if isinstance(method, st.CP) else 1e-6)


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("depthwise", ["axes", "kernel"])
def test_cp_distorted_twice_stays_where_it_is(depthwise, geometry):
    """A fit from the beginning would end elsewhere; one from the last factors is a projection."""
    module, x = layer_and_input(geometry)
    method, model = st.CP(depthwise), nn.Sequential(module)
    layer = st.find_layers(model, x)[0].convolution
    if not method.fits(layer) or method.full_rank(layer) < 2:
        return
    plan = st.plan_from(model, x, {"0": (method, min(method.full_rank(layer) // 2, 12))})
    twist = st.Distortion(model, plan)
    twist.distort()
    first = module.weight.detach().clone()
    for _ in range(20):
        twist.distort()
    torch.testing.assert_close(module.weight.detach(), first, rtol=1e-6, atol=1e-6)
    change = 0.1 * torch.randn_like(first) * first.std()
    errors = []
    for fresh in (False, True):
        module.weight.data.copy_(first + change)
        (st.Distortion(model, plan) if fresh else twist).distort()
        errors.append(float((module.weight.detach() - first - change).norm()))
    assert errors[0] < 1.2 * errors[1]  # nor is it any worse for a kernel that has moved


def test_structure_identity_and_optimizer_state_stay():
    model, x, y = network()
    model.train().to(memory_format=torch.channels_last)
    plan = plan_of(model, x)
    twist = st.Distortion(model, plan, every=3)
    identities = {name: id(p) for name, p in model.named_parameters()}
    keys, strides = list(model.state_dict()), model.conv1.weight.stride()
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    for step in range(1, 10):
        train(model, x, y, 1, None, optimizer)
        momentum = optimizer.state[model.conv1.weight]["momentum_buffer"].clone()
        free = model.stem.weight.detach().clone()
        assert twist.step() == (step % 3 == 0)
        assert torch.equal(momentum, optimizer.state[model.conv1.weight]["momentum_buffer"])
        assert torch.equal(free, model.stem.weight)
    assert identities == {name: id(p) for name, p in model.named_parameters()}
    assert keys == list(model.state_dict()) and strides == model.conv1.weight.stride()
    assert twist.distortions == 3 and twist.seconds > 0
    small = twist.finish()
    small.eval(), model.eval()
    torch.testing.assert_close(small(x), model(x), rtol=1e-4, atol=1e-4)
    assert st.cost(small, x[:1]) == plan.cost


def test_training_with_distortion_loses_less_when_cut():
    """The claim of the paper on a toy: the distorted network is better after the cut than the equally trained control."""
    torch.manual_seed(1)
    x, y = torch.randn(256, 3, 8, 8), torch.randint(0, 5, (256,))
    base = settle(Residual(width=16), x)
    plan = st.plan_from(base, x[:1], {name: (st.ChannelSVD(), 2) for name in ("conv1", "conv2", "conv3")})
    cut = {}
    for every in (None, 10):
        model = copy.deepcopy(base).train()
        twist = st.Distortion(model, plan, every=every or 10**6)
        train(model, x, y, 120, twist)
        small = twist.finish()
        cut[every] = functional.cross_entropy(small.train()(x), y).item()
    assert cut[10] < 0.8 * cut[None]


def test_schedule():
    assert [st.Schedule(10, growth=2.0).interval(done) for done in range(3)] == [10, 20, 40]
    model, x, _ = network()
    twist = st.Distortion(model, plan_of(model, x), every=st.Schedule(3, warmup=4, growth=2.0))
    assert [step for step in range(1, 30) if twist.step()] == [7, 13, 25]
    for wrong in ({"every": 0}, {"warmup": -1}, {"replan": 0}, {"growth": 0.0}, {"tighten": True}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            st.Schedule(**wrong)


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.title + str(dataclasses.astuple(m)))
def test_ranks_tighten_to_the_plan(method):
    model, x, _ = network()
    plan = plan_of(model, x, method, ("conv3",))
    twist = st.Distortion(model, plan, every=st.Schedule(1, tighten=4))
    ranks = []
    for _ in range(6):
        ranks.append(as_tuple(next(iter(twist.options())).rank))
        twist.step()
    assert ranks[3:] == [as_tuple(plan["conv3"].rank)] * 3
    assert all(a >= b for first, second in itertools.pairwise(ranks) for a, b in zip(first, second, strict=True))
    assert ranks[0] > ranks[3]


def test_replan_and_response_norm():
    model, x, y = network()
    plans = [plan_of(model, x), plan_of(model, x, st.SpatialSVD(), ("conv2",))]
    asked, looked = [], []
    moments = {"conv2": None}

    def statistics(network):
        looked.append(network)
        from spectrim.statistics import statistics as measure

        return measure(network, st.find_layers(network, x[:1]), [x])

    def replan(network):
        asked.append(network)
        return plans[1]

    twist = st.Distortion(model, plans[0], every=st.Schedule(2, replan=2), replan=replan, moments=statistics)
    model.train()
    train(model, x, y, 8, twist)
    assert twist.distortions == 4 and len(asked) == 1 and asked[0] is model and len(looked) == 4
    assert list(twist.plan) == ["conv2"] and model.training
    small = twist.finish()
    torch.testing.assert_close(small.eval()(x), model.eval()(x), rtol=1e-4, atol=1e-4)
    assert moments == {"conv2": None}


def test_response_norm_projects_in_that_norm():
    model, x, _ = network()
    plan = plan_of(model, x, layers=("conv3",))
    from spectrim.statistics import statistics

    found = statistics(model, st.find_layers(model, x[:1]), [x])
    harms = {}
    for norm in (None, found):
        copied = copy.deepcopy(model)
        st.Distortion(copied, plan, moments=norm).distort()
        change = (copied.conv3.weight - model.conv3.weight).detach().flatten(1).double()
        moment = found["conv3"]
        harms[norm is None] = torch.einsum("tu,un,nm,tm->", moment.gradient[0], change, moment.covariance[0], change)
    assert harms[False] < harms[True]


@pytest.mark.parametrize("method", [st.ChannelSVD(), st.CP()], ids=["ChannelSVD", "CP"])
def test_state_is_resumed_exactly(method):
    model, x, y = network()
    model.train()
    plan = plan_of(model, x, method)
    whole, half = copy.deepcopy(model), copy.deepcopy(model)
    schedule = st.Schedule(3, growth=1.5, tighten=3)
    train(whole, x, y, 26, st.Distortion(whole, plan, every=schedule))
    twist = st.Distortion(half, plan, every=schedule)
    optimizer = train(half, x, y, 17, twist)
    file = io.BytesIO()
    torch.save((half.state_dict(), optimizer.state_dict(), twist.state_dict()), file)
    state = torch.load(io.BytesIO(file.getvalue()), weights_only=True)
    again = copy.deepcopy(model)
    again.load_state_dict(state[0])
    optimizer = torch.optim.SGD(again.parameters(), 0.05, momentum=0.9)
    optimizer.load_state_dict(state[1])
    twist = st.Distortion(again, plan_of(model, x, st.InputSVD()), every=schedule)
    twist.load_state_dict(state[2])
    train(again, x, y, 9, twist, optimizer)
    assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), again.state_dict().values(), strict=True))
    assert twist.distortions == 4
    small = twist.finish()
    other = st.Distortion(model, plan, every=schedule)
    other.load_state_dict(twist.state_dict())
    assert all(map(torch.equal, small.state_dict().values(), other.finish(again).state_dict().values()))
    with pytest.raises(ValueError, match="another schedule"):
        st.Distortion(model, plan, every=7).load_state_dict(state[2])
    with pytest.raises(ValueError, match="no state of a Distortion"):
        twist.load_state_dict({"steps": 3})


def test_averaged_copy_autocast_and_accumulation():
    model, x, y = network()
    model.train()
    average = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.5))
    twist = st.Distortion(model, plan_of(model, x), every=2)
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    for _ in range(4):
        for part in range(2):
            with torch.autocast("cpu", torch.bfloat16):
                loss = functional.cross_entropy(model(x[part::2]), y[part::2])
            (loss / 2).backward()
        optimizer.step()
        optimizer.zero_grad()
        twist.step()
        average.update_parameters(model)
    assert twist.steps == 4 and model.conv1.weight.dtype == torch.float32
    kept = model.conv1.weight.detach().clone()
    small = twist.finish(average)
    torch.testing.assert_close(small.eval()(x), average.module.eval()(x), rtol=1e-4, atol=1e-4)
    assert torch.equal(kept, model.conv1.weight)


def test_compiled_and_wrapped_networks():
    model, x, _ = network()
    plan = plan_of(model, x)
    alone = copy.deepcopy(model)
    st.Distortion(alone, plan).distort()
    st.Distortion(nn.DataParallel(model), plan).distort()
    assert torch.equal(alone.conv1.weight, model.conv1.weight)


def test_bad_input():
    model, x, y = network()
    plan = plan_of(model, x)
    with pytest.raises(ValueError, match="replaces no layer"):
        st.Distortion(model, st.Plan())
    with pytest.raises(TypeError, match="must be a Plan"):
        st.Distortion(model, {"conv1": 3})
    with pytest.raises(ValueError, match="does not fit"):
        st.Distortion(nn.Sequential(nn.Conv2d(3, 3, 3)), plan)
    whole = network()[0]
    nn.utils.parametrizations.weight_norm(model.conv1)
    with pytest.raises(TypeError, match="computed, not stored"):
        st.Distortion(model, plan)
    for wrong in (
        {"epochs": 0},
        {"batch": 1.5},
        {"rise": 2.0},
        {"rate": 0.0},
        {"crop": -1},
        {"crop": 1.5},
        {"epochs": True},
        {"rate": "fast"},
        {"optimizer": "magic"},
    ):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            st.Recipe(**wrong)
    with pytest.raises(ValueError, match="no teacher"):
        st.fit(model, (x, y), recipe=st.Recipe(distill=0.5))
    with pytest.raises(ValueError, match="no length"):
        st.fit(model, iter([(x, y)]))
    with pytest.raises(ValueError, match="64 images and 3 labels"):
        st.fit(model, (x, y[:3]))
    with pytest.raises(TypeError, match="moments is int"):
        st.Distortion(network()[0], plan, moments=3)
    with pytest.raises(ValueError, match="due after 200 steps"):
        st.fit(whole, (x, y), recipe=st.Recipe(epochs=1), twist=st.Distortion(whole, plan))
    with pytest.raises(ValueError, match=r"the ranks are the plan's \(tighten=9\), and that is due after 36 steps"):
        twist = st.Distortion(whole, plan, every=st.Schedule(4, tighten=9))
        st.fit(whole, (x, y), recipe=st.Recipe(epochs=8, batch=16), twist=twist)
    with pytest.raises(ValueError, match="not a Distortion of this network"):
        st.fit(whole, (x, y), twist=st.Distortion(network()[0], plan))
    with pytest.raises(ValueError, match="at least 2"):
        st.loss_along(network()[0], plan, batches=[(x, y)], points=1)
    with pytest.raises(ValueError, match="'steps' must|lacks steps, distortions, due"):
        twist.load_state_dict({"format": "spectrim-distortion-2", "schedule": dataclasses.asdict(twist.schedule)})


def test_what_cannot_be_trained_on_gets_one_sentence_and_leaves_the_network_alone(tmp_path):
    model, x, y = network()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    stranger = tmp_path / "other.pt"
    torch.save([105], stranger)
    recipe = st.Recipe(epochs=1, batch=16)
    for data, words in (
        ((x / 0, y), "NaN or infinity among them"),
        ((x, y + 1), r"labels are from \d to 5, but the network has 5 outputs"),
        ((x, y - 1), "labels are from -1 to"),
        ((x, y.float()), "one whole number per image"),
        ((x, functional.one_hot(y)), "one whole number per image"),
        ((x.byte(), y), "images are torch.uint8"),
        ([(x, y[:3])], "64 images and 3 labels"),
        ([(x, "cat")], "it must be two tensors"),
    ):
        with pytest.raises(ValueError, match=words):
            st.fit(model, data, recipe=recipe)
    with pytest.raises(ValueError, match="of another run"):
        st.fit(model, (x, y), recipe=dataclasses.replace(recipe, checkpoint=stranger))
    assert torch.load(stranger, weights_only=True) == [105]
    with pytest.raises(FloatingPointError, match="lower the rate"):
        st.fit(copy.deepcopy(model), (x, y), recipe=dataclasses.replace(recipe, epochs=20, rate=1e3))
    for bad in ({"seed": "a"}, {"flip": 3}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            st.Recipe(**bad)
    with pytest.raises(ValueError, match="growth is inf"):
        st.Schedule(growth=float("inf"))
    with pytest.raises(ValueError, match="labels are from 5"):
        st.loss_along(model, plan_of(model, x), batches=[(x, y * 0 + 5)])
    with pytest.raises(ValueError, match="labels are from 5"):
        st.Accuracy([(x, y * 0 + 5)]).per_example(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    model.conv2.weight.data[0] = torch.nan
    with pytest.raises(ValueError, match=r"'conv2.weight' holds NaN"):
        st.fit(model, (x, y), recipe=recipe)
    with pytest.raises(ValueError, match="weight of 'conv2' holds NaN"):
        st.Distortion(model, plan_of(model, x)).distort()


def test_moments_that_do_not_fit_are_refused():
    model, x, _ = network()
    plan = plan_of(model, x)
    moments = statistics(model, st.find_layers(model, x[:1]), [x])
    st.Distortion(model, plan, moments=moments).distort()
    small = dataclasses.replace(moments["conv2"], response=moments["conv2"].response[:, :2, :2])
    for wrong in ({}, {"conv1": 5}, {**moments, "conv2": small}):
        with pytest.raises(ValueError, match="nothing that fits the planned layer"):
            st.Distortion(model, plan, moments=wrong).distort()
    with pytest.raises(TypeError, match="moments gave NoneType"):
        st.Distortion(model, plan, moments=lambda net: None).distort()


def test_history_counts_the_images_of_any_loader():
    model, x, y = network()
    batches = [(x[:10], y[:10]), (x[10:30], y[10:30])]
    assert st.fit(model, batches, recipe=st.Recipe(epochs=2)).images == 30


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_fit_learns_and_leaves_the_rest_alone(optimizer):
    model, x, y = network()
    state = torch.get_rng_state()
    start = functional.cross_entropy(model(x), y)
    told = []
    recipe = st.Recipe(epochs=20, batch=32, optimizer=optimizer, rate=0.05 if optimizer == "sgd" else 0.005, crop=0, flip=False)
    recipe = dataclasses.replace(recipe, progress=lambda stage, share: told.append(share))
    history = st.fit(model, (x, y), recipe=recipe)
    assert functional.cross_entropy(model(x), y) < 0.75 * start and not model.training
    assert history.steps == 40 and len(history.loss) == 20 and history.loss[-1] < history.loss[0] and told[-1] == 1.0
    assert torch.equal(state, torch.get_rng_state())


def test_interrupted_fit_goes_on_exactly(tmp_path, monkeypatch):
    model, x, y = network()
    plan = plan_of(model, x)
    recipe = st.Recipe(epochs=3, batch=16, checkpoint=tmp_path / "state.pt")
    monkeypatch.setattr(sys.modules["spectrim.train.fit"], "SAVE_SECONDS", 0.0)
    whole = copy.deepcopy(model)
    history = st.fit(
        whole, (x, y), recipe=dataclasses.replace(recipe, checkpoint=None), twist=st.Distortion(whole, plan, every=2)
    )
    half = copy.deepcopy(model)
    twist = st.Distortion(half, plan, every=2)
    step, calls = twist.step, []

    def interrupting():
        calls.append(step())
        if len(calls) == 7:
            raise KeyboardInterrupt

    monkeypatch.setattr(twist, "step", interrupting)
    with pytest.raises(KeyboardInterrupt):
        st.fit(half, (x, y), recipe=recipe, twist=twist)
    again = copy.deepcopy(model)
    resumed = st.fit(again, (x, y), recipe=recipe, twist=st.Distortion(again, plan, every=2))
    assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), again.state_dict().values(), strict=True))
    assert resumed.loss == pytest.approx(history.loss) and resumed.steps == history.steps == 12
    assert st.fit(again, (x, y), recipe=recipe, twist=st.Distortion(again, plan, every=2)).steps == 12  # nothing left to do
    with pytest.raises(ValueError, match="another run \\(other recipe, distortion\\)"):
        st.fit(again, (x, y), recipe=dataclasses.replace(recipe, rate=0.5))
    with pytest.raises(ValueError, match="other data"):
        st.fit(again, (x + 1, y), recipe=recipe, twist=st.Distortion(again, plan, every=2))


class Watched(TensorDataset):
    """Images that are noisy at each look, and the numbers of those looked at."""

    def __init__(self, *tensors):
        super().__init__(*tensors)
        self.looks = []

    def __getitem__(self, index):
        image, label = super().__getitem__(index)
        self.looks.append(index)
        return image + 0.1 * torch.randn(image.shape), label


def test_a_shuffling_loader_goes_on_exactly(tmp_path, monkeypatch):
    model, x, y = network()
    recipe = st.Recipe(epochs=3, batch=16, checkpoint=tmp_path / "state.pt")
    monkeypatch.setattr(sys.modules["spectrim.train.fit"], "SAVE_SECONDS", 0.0)
    whole, half, again = copy.deepcopy(model), copy.deepcopy(model), copy.deepcopy(model)
    data = Watched(x, y)
    st.fit(whole, DataLoader(data, 16, shuffle=True), recipe=dataclasses.replace(recipe, checkpoint=None))
    looks, data.looks = data.looks, []
    epochs = [looks[:64], looks[64:128], looks[128:]]
    assert all(sorted(epoch) == list(range(64)) for epoch in epochs) and epochs[0] != epochs[1]
    count = itertools.count(1)
    hook = half.conv1.register_forward_hook(lambda *_: 1 / 0 if next(count) == 7 else None)  # in the third step of epoch 2
    with pytest.raises(ZeroDivisionError):
        st.fit(half, DataLoader(data, 16, shuffle=True), recipe=recipe)
    hook.remove()
    data.looks = []
    torch.manual_seed(7)
    st.fit(again, DataLoader(data, 16, shuffle=True), recipe=recipe)
    assert data.looks == looks[64:]
    assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), again.state_dict().values(), strict=True))


def test_bfloat16_where_it_is_fast(monkeypatch):
    model, x, y = network()
    fit = sys.modules["spectrim.train.fit"]
    run = fit._Run(model, st.Recipe(), Tensors(x, y, size=16), None)
    run.device = torch.device("cuda", 1)
    monkeypatch.setattr(torch, "autocast", lambda *given: given)
    for capability, fast in (((7, 5), False), ((8, 0), True)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, found=capability: found)
        assert (run._autocast() == ("cuda", torch.bfloat16)) == fast


def test_only_the_devices_in_use_are_looked_at(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    model, x, y = network()
    assert st.fit(model, (x, y), recipe=st.Recipe(epochs=1)).steps == 1


def test_images_stay_as_they_are():
    model, x, y = network()
    model = InPlace(model)
    plan = plan_of(model, x.clone(), layers=("network.conv1",))
    batches = list(zip(x.split(16), y.split(16), strict=True))
    kept = x.clone()
    recipe = st.Recipe(epochs=2, crop=0, flip=False, distill=0.5, rate=1e-8, smoothing=0)
    for data in (batches, (x, y)):
        trained = st.fit(copy.deepcopy(model), data, recipe=recipe, teacher=model)
        alone = st.fit(copy.deepcopy(model), data, recipe=dataclasses.replace(recipe, distill=0.0))
        assert trained.loss[0] == pytest.approx(alone.loss[0] / 2, rel=1e-2)  # the teacher sees what the network sees
    st.loss_along(model, plan, batches=batches)
    assert torch.equal(x, kept)


def test_samplers_are_told_the_epoch():
    model, x, y = network()
    sampler = DistributedSampler(TensorDataset(x, y), num_replicas=2, rank=1)
    st.fit(model, DataLoader(TensorDataset(x, y), 16, sampler=sampler), recipe=st.Recipe(epochs=3))
    assert sampler.epoch == 2


def test_a_signal_waits_for_the_step_and_keeps_it(tmp_path):
    model, x, y = network()
    recipe = st.Recipe(epochs=3, batch=16, checkpoint=tmp_path / "state.pt")
    whole, half, again = copy.deepcopy(model), copy.deepcopy(model), copy.deepcopy(model)
    st.fit(whole, (x, y), recipe=dataclasses.replace(recipe, checkpoint=None))
    handler = signal.getsignal(signal.SIGINT)
    hook = half.conv1.register_forward_hook(
        lambda *_: (
            signal.raise_signal(signal.SIGINT) if next(count) == 6 else None
        )  # in the sixth step: the first look is at one image
    )
    count = itertools.count()
    with pytest.raises(KeyboardInterrupt):
        st.fit(half, (x, y), recipe=recipe)
    hook.remove()
    assert signal.getsignal(signal.SIGINT) is handler
    assert torch.load(tmp_path / "state.pt", weights_only=True)["numbers"]["steps"] == 6
    st.fit(again, (x, y), recipe=recipe)
    assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), again.state_dict().values(), strict=True))


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.title + str(dataclasses.astuple(m)))
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_factors_are_balanced_and_their_product_stays(method, geometry):
    module, x = layer_and_input(geometry)
    (found,) = st.find_layers(nn.Sequential(module), x)
    layer = found.convolution
    if not method.fits(layer):
        return
    rank = method.ranks(layer)[0] if method.ranks(layer) else method.candidates(layer)[0]
    weight = working_weight(found, module)
    factors = [
        factor * scale for factor, scale in zip(method.factors(weight, rank), itertools.cycle((50.0, 0.1, 3.0)), strict=False)
    ]
    parts = st.Option(found, method, rank).parts
    even = balanced(parts, factors)
    torch.testing.assert_close(method.merge(even), method.merge(factors), rtol=1e-9, atol=1e-9)
    if not any(part.kind == "Unflatten" for part in parts[1:]):
        norms = [float(factor.norm()) for factor in even]
        assert max(norms) < 1.1 * min(norms) or isinstance(method, st.TensorTrain)
        assert max(norms) / min(norms) <= 1.001 * max(f.norm() for f in factors) / min(f.norm() for f in factors)


def test_distillation_follows_the_teacher():
    model, x, y = network()
    student = copy.deepcopy(model)
    with torch.no_grad():
        student.head.weight.mul_(0.2)
    away = functional.mse_loss(student(x), model(x))
    recipe = st.Recipe(epochs=20, batch=32, rate=0.05, crop=0, flip=False, distill=1.0)
    st.fit(student, (x, y), recipe=recipe, teacher=model)
    assert functional.mse_loss(student(x), model(x)) < 0.5 * away


def test_batches_and_augmentation():
    x, y = torch.arange(40.0).view(10, 1, 2, 2), torch.arange(10)
    batches = Tensors(x, y, size=4)
    assert len(batches) == 2 and sum(len(labels) for _, labels in batches) == 8
    first = torch.cat([labels for _, labels in batches])
    batches.set_epoch(1)
    assert not torch.equal(first, torch.cat([labels for _, labels in batches]))
    images = torch.randn(8, 3, 6, 5)
    same = augment(images, 0, False, torch.Generator())
    assert torch.equal(images, same)
    moved = augment(images, 2, True, torch.Generator().manual_seed(0))
    assert moved.shape == images.shape and not torch.equal(moved, images)
    padded = functional.pad(images, (2, 2, 2, 2), mode="reflect")
    for one, around in zip(moved, padded, strict=True):
        windows = [around[:, i : i + 6, j : j + 5] for i in range(5) for j in range(5)]
        assert any(torch.equal(one, window) or torch.equal(one.flip(2), window) for window in windows)


def test_loss_along_the_low_rank_direction():
    model, x, y = network()
    plan = plan_of(model, x)
    batches = [(x[:40], y[:40]), (x[40:], y[40:])]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        outputs = model(x), st.apply(plan, model)(x)
    curve = st.loss_along(model, plan, batches=batches, label="start", points=5)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert curve.t == (0.0, 0.25, 0.5, 0.75, 1.0) and curve.examples == 64 and curve.label == "start"
    for index, out in ((0, outputs[0]), (-1, outputs[1])):
        assert curve.loss[index] == pytest.approx(functional.cross_entropy(out, y).item(), abs=1e-4)
        assert curve.accuracy[index] == pytest.approx((out.argmax(1) == y).double().mean().item())
    with pytest.raises(ValueError, match="batches are empty"):
        st.loss_along(model, plan, batches=[])
    twist = st.Distortion(model, plan_of(model, x, st.CP()))
    twist.distort()
    model.conv1.weight.data.add_(0.01 * model.conv1.weight.data.std())
    kernel = model.conv1.weight.detach().clone()
    curve = st.loss_along(model, twist.plan, batches=batches, twist=twist)
    assert torch.equal(kernel, model.conv1.weight)
    small = twist.finish()
    assert curve.loss[-1] == pytest.approx(functional.cross_entropy(small(x), y).item(), abs=1e-5)  # what it will return
    with pytest.raises(ValueError, match="another plan"):
        st.loss_along(model, plan, batches=batches, twist=twist)
    fresh = st.loss_along(model, twist.plan, batches=batches)  # a fit from the beginning ends farther off
    assert curve.distance < 0.7 * fresh.distance
