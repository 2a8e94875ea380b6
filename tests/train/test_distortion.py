"""Distortion training: properties over all decompositions and geometries, and exact resumption."""

import copy
import dataclasses
import io
import itertools

import pytest
import torch
from torch import nn
from torch.nn import functional

import spectrim as st
from nets import Residual, layer_and_input, settle
from spectrim.core.factorization import as_tuple
from spectrim.sensitivity.moments import gather_moments
from tables import LAYERS, METHODS, PLANAR, fitting, pair
from training import CONVOLUTIONS, network, plan_of, same, steps

ITERATIVE = (st.CP(), st.CP(depthwise="kernel"))
CLOSED = tuple(method for method in METHODS if method not in ITERATIVE)  # these are projections
PAYING = tuple(method for method in PLANAR if method != st.TiledSVD(rows=1, columns=3))  # with 8 input channels


def half_rank(method, layer):
    """Return about half of the full rank, as far as such a rank exists."""
    full = method.full_rank(layer)
    if method in ITERATIVE:
        return min(3, full)
    rank = tuple(max(1, number // 2) for number in as_tuple(full))
    if isinstance(method, st.Tucker2):  # neither rank may be more than what the other one spans
        taps = layer.matrix[1] // (layer.channels[1] // layer.groups)
        rank = (min(rank[0], taps * rank[1]), min(rank[1], taps * rank[0]))
    return rank if isinstance(full, tuple) else rank[0]


def one_layer(method, geometry):
    module, x = layer_and_input(geometry)
    model = nn.Sequential(module)
    return model, x, st.plan_from(model, x, {"0": (method, half_rank(method, LAYERS[geometry]))})


@pytest.mark.parametrize(("method", "geometry"), fitting(), ids=pair)
def test_distorted_equals_factorized(method, geometry):
    model, x, plan = one_layer(method, geometry)
    weight = model[0].weight
    before = weight.detach().clone()
    distortion = st.Distortion(model, plan, every=1)
    assert distortion.step() and model[0].weight is weight
    distorted = weight.detach().clone()
    change = float((distorted - before).norm() / before.norm())
    assert (change < 1e-6) == (plan["0"].rank == method.full_rank(LAYERS[geometry]))
    small = distortion.finish()
    torch.testing.assert_close(small(x), model(x), rtol=1e-6, atol=1e-6)
    assert torch.equal(weight, distorted)  # the network just measured is the one returned
    assert st.cost(small, x) == plan.cost


@pytest.mark.parametrize(("method", "geometry"), fitting(CLOSED), ids=pair)
def test_what_is_distorted_stays_as_it_is(method, geometry):
    model, _, plan = one_layer(method, geometry)
    st.Distortion(model, plan).distort()
    first = model[0].weight.detach().clone()
    st.Distortion(model, plan).distort()
    torch.testing.assert_close(model[0].weight.detach(), first, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("method", "geometry"),
    [(method, name) for method, name in fitting(ITERATIVE) if method.full_rank(LAYERS[name]) >= 2],
    ids=pair,
)
def test_cp_stays_as_it_is_from_its_last_factors(method, geometry):
    """A fit from the beginning would end elsewhere; one from the last factors is a projection, and no worse after a move."""
    model, x, _ = one_layer(method, geometry)
    plan = st.plan_from(model, x, {"0": (method, min(method.full_rank(LAYERS[geometry]) // 2, 12))})
    weight = model[0].weight
    distortion = st.Distortion(model, plan)
    distortion.distort()
    first = weight.detach().clone()
    for _ in range(20):
        distortion.distort()
    torch.testing.assert_close(weight.detach(), first, rtol=1e-6, atol=1e-6)
    change = 0.1 * torch.randn_like(first) * first.std()
    errors = []
    for followed in (distortion, st.Distortion(model, plan)):
        weight.data.copy_(first + change)
        followed.distort()
        errors.append(float((weight.detach() - first - change).norm()))
    assert errors[0] < 1.2 * errors[1]


def test_structure_identity_and_optimizer_state_stay():
    model, x, y = network()
    model.train().to(memory_format=torch.channels_last)
    plan = plan_of(model, x)
    distortion = st.Distortion(model, plan, every=3)
    identities = {name: id(p) for name, p in model.named_parameters()}
    keys, strides = list(model.state_dict()), model.conv1.weight.stride()
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    for step in range(1, 10):
        steps(model, x, y, 1, None, optimizer)
        momentum = optimizer.state[model.conv1.weight]["momentum_buffer"].clone()
        free = model.stem.weight.detach().clone()
        assert distortion.step() == (step % 3 == 0)
        assert torch.equal(momentum, optimizer.state[model.conv1.weight]["momentum_buffer"])
        assert torch.equal(free, model.stem.weight)
    assert identities == {name: id(p) for name, p in model.named_parameters()}
    assert keys == list(model.state_dict()) and strides == model.conv1.weight.stride()
    assert distortion.distortions == 3 and distortion.seconds > 0
    small = distortion.finish()
    torch.testing.assert_close(small.eval()(x), model.eval()(x), rtol=1e-4, atol=1e-4)
    assert st.cost(small, x[:1]) == plan.cost


def test_training_with_distortion_loses_less_when_cut():
    """The claim of the paper on a toy: the distorted network is better after the cut than the equally trained control."""
    torch.manual_seed(1)
    x, y = torch.randn(96, 3, 8, 8), torch.randint(0, 5, (96,))
    base = settle(Residual(), x)
    plan = st.plan_from(base, x[:1], {name: (st.ChannelSVD(), 2) for name in CONVOLUTIONS})
    cut = {}
    for every in (10**6, 10):
        model = copy.deepcopy(base).train()
        distortion = st.Distortion(model, plan, every=every)
        steps(model, x, y, 80, distortion)
        cut[every] = functional.cross_entropy(distortion.finish().train()(x), y).item()
    assert cut[10] < 0.3 * cut[10**6]


def test_schedule():
    schedule = st.Schedule(3, warmup=4, growth=2.0)
    assert [schedule.interval(done) for done in range(3)] == [3, 6, 12]
    assert schedule.steps_needed() == 7 and dataclasses.replace(schedule, tighten=3).steps_needed() == 25
    model, x, _ = network()
    distortion = st.Distortion(model, plan_of(model, x), every=schedule)
    assert [step for step in range(1, 30) if distortion.step()] == [7, 13, 25]


@pytest.mark.parametrize("method", PAYING, ids=repr)
def test_ranks_tighten_to_the_plan(method):
    model, x, _ = network()
    plan = plan_of(model, x, method, ("conv3",))
    distortion = st.Distortion(model, plan, every=st.Schedule(1, tighten=4))
    ranks = []
    for _ in range(6):
        ranks.append(as_tuple(next(iter(distortion.options())).rank))
        distortion.step()
    assert ranks[3:] == [as_tuple(plan["conv3"].rank)] * 3
    assert all(a >= b for first, second in itertools.pairwise(ranks) for a, b in zip(first, second, strict=True))
    assert ranks[0] > ranks[3]


def test_a_new_plan_and_new_moments():
    model, x, y = network()
    plans = [plan_of(model, x), plan_of(model, x, st.SpatialSVD(), ("conv2",))]
    planned, measured = [], []

    def moments(network):
        measured.append(network)
        return gather_moments(network, st.find_layers(network, x[:1]), [x])

    def replan(network):
        planned.append(network)
        return plans[1]

    distortion = st.Distortion(model, plans[0], every=st.Schedule(2, replan=2), replan=replan, moments=moments)
    model.train()
    steps(model, x, y, 8, distortion)
    assert distortion.distortions == 4 and planned == [model] and measured == 4 * [model]
    assert list(distortion.plan) == ["conv2"] and model.training
    small = distortion.finish()
    torch.testing.assert_close(small.eval()(x), model.eval()(x), rtol=1e-4, atol=1e-4)


def test_moments_make_it_a_projection_in_their_norm():
    model, x, _ = network()
    plan = plan_of(model, x, layers=("conv3",))
    found = gather_moments(model, st.find_layers(model, x[:1]), [x])
    moment, harms = found["conv3"], []
    for moments in (found, None):
        copied = copy.deepcopy(model)
        st.Distortion(copied, plan, moments=moments).distort()
        change = (copied.conv3.weight - model.conv3.weight).detach().flatten(1).double()
        harms.append(torch.einsum("tu,un,nm,tm->", moment.gradient[0], change, moment.covariance[0], change))
    assert harms[0] < harms[1]


@pytest.mark.parametrize("method", [st.ChannelSVD(), st.CP()], ids=repr)
def test_state_is_resumed_exactly(method):
    model, x, y = network()
    model.train()
    plan = plan_of(model, x, method)
    whole, half = copy.deepcopy(model), copy.deepcopy(model)
    schedule = st.Schedule(3, growth=1.5, tighten=3)
    steps(whole, x, y, 26, st.Distortion(whole, plan, every=schedule))
    distortion = st.Distortion(half, plan, every=schedule)
    optimizer = steps(half, x, y, 17, distortion)
    file = io.BytesIO()
    torch.save((half.state_dict(), optimizer.state_dict(), distortion.state_dict()), file)
    state = torch.load(io.BytesIO(file.getvalue()), weights_only=True)
    again = copy.deepcopy(model)
    again.load_state_dict(state[0])
    optimizer = torch.optim.SGD(again.parameters(), 0.05, momentum=0.9)
    optimizer.load_state_dict(state[1])
    distortion = st.Distortion(again, plan_of(model, x, st.InputSVD()), every=schedule)
    distortion.load_state_dict(state[2])
    steps(again, x, y, 9, distortion, optimizer)
    assert same(whole, again) and distortion.distortions == 4
    small = distortion.finish()
    other = st.Distortion(model, plan, every=schedule)
    other.load_state_dict(distortion.state_dict())
    assert same(small, other.finish(again))


def test_a_state_that_is_none_is_refused():
    model, x, _ = network()
    distortion = st.Distortion(model, plan_of(model, x))
    state = distortion.state_dict()
    with pytest.raises(ValueError, match="another schedule"):
        st.Distortion(model, distortion.plan, every=7).load_state_dict(state)
    with pytest.raises(ValueError, match="no state of a Distortion"):
        distortion.load_state_dict({"steps": 3})
    with pytest.raises(ValueError, match="lacks due, written"):
        distortion.load_state_dict({name: value for name, value in state.items() if name not in ("due", "written")})


def test_averaged_copy_autocast_and_accumulation():
    model, x, y = network()
    model.train()
    average = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.5))
    distortion = st.Distortion(model, plan_of(model, x), every=2)
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    for _ in range(4):
        for part in range(2):
            with torch.autocast("cpu", torch.bfloat16):
                loss = functional.cross_entropy(model(x[part::2]), y[part::2])
            (loss / 2).backward()
        optimizer.step()
        optimizer.zero_grad()
        distortion.step()
        average.update_parameters(model)
    assert distortion.steps == 4 and model.conv1.weight.dtype == torch.float32
    trained = model.conv1.weight.detach().clone()
    small = distortion.finish(average)
    torch.testing.assert_close(small.eval()(x), average.module.eval()(x), rtol=1e-4, atol=1e-4)
    assert torch.equal(trained, model.conv1.weight)


@pytest.mark.parametrize("wrapper", [nn.DataParallel, lambda model: torch.compile(model, backend="eager")])
def test_wrapped_networks(wrapper):
    model, x, _ = network()
    plan = plan_of(model, x)
    alone = copy.deepcopy(model)
    st.Distortion(alone, plan).distort()
    st.Distortion(wrapper(model), plan).distort()  # DataParallel has moved the network to a GPU, if there is one
    torch.testing.assert_close(alone.conv1.weight, model.conv1.weight.to(alone.conv1.weight), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "wrong", [{"every": 0}, {"warmup": -1}, {"replan": 0}, {"growth": 0.0}, {"growth": float("inf")}, {"tighten": True}]
)
def test_wrong_numbers_of_a_schedule(wrong):
    (name,) = wrong
    with pytest.raises(ValueError, match=f"{name} is"):
        st.Schedule(**wrong)


def test_what_cannot_be_distorted():
    model, x, _ = network()
    plan = plan_of(model, x)
    with pytest.raises(ValueError, match="replaces no layer"):
        st.Distortion(model, st.Plan())
    with pytest.raises(TypeError, match="must be a Plan"):
        st.Distortion(model, {"conv1": 3})
    with pytest.raises(ValueError, match="does not fit"):
        st.Distortion(nn.Sequential(nn.Conv2d(3, 3, 3)), plan)
    distortion = st.Distortion(model, plan, every=st.Schedule(1, replan=1), replan=lambda network: None)
    assert distortion.step()
    with pytest.raises(TypeError, match="must be a Plan"):
        distortion.step()
    model.conv2.weight.data[0] = torch.nan
    with pytest.raises(ValueError, match="weight of 'conv2' holds NaN"):
        st.Distortion(model, plan).distort()
    nn.utils.parametrizations.weight_norm(model.conv1)
    with pytest.raises(TypeError, match="computed, not stored"):
        st.Distortion(model, plan)


def test_moments_that_do_not_fit_are_refused():
    model, x, _ = network()
    plan = plan_of(model, x)
    moments = gather_moments(model, st.find_layers(model, x[:1]), [x])
    st.Distortion(model, plan, moments=moments).distort()
    small = dataclasses.replace(moments["conv2"], response=moments["conv2"].response[:, :2, :2])
    for wrong in ({}, {"conv1": 5}, {**moments, "conv2": small}):
        with pytest.raises(ValueError, match="nothing that fits the planned layer"):
            st.Distortion(model, plan, moments=wrong).distort()
    with pytest.raises(TypeError, match="moments gave NoneType"):
        st.Distortion(model, plan, moments=lambda network: None).distort()
    with pytest.raises(TypeError, match="moments is int"):
        st.Distortion(model, plan, moments=3)
