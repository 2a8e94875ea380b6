"""Swapping modules by a plan: what is kept, what is refused, and that the network given stays as it is."""

import copy
import threading

import pytest
import torch
from torch import nn

import spectrim as st
from nets import Odd, Residual, settle
from spectrim.core.factorization import describe
from spectrim.network.copying import duplicate
from spectrim.network.surgery import replace_module, skeleton
from tables import PLANAR


def network():
    x = torch.randn(8, 3, 8, 8)
    return settle(Residual(), x), x


@pytest.mark.parametrize("method", PLANAR, ids=describe)
def test_a_plan_is_applied_to_a_copy_and_its_skeleton_takes_the_weights(method):
    model, x = network()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    layers = [layer for layer in st.find_layers(model, x) if method.fits(layer)]
    plan = st.plan_from(model, x, {layer.name: (method, method.full_rank(layer)) for layer in layers})
    small = st.apply(plan, model)
    torch.testing.assert_close(small(x), model(x), rtol=1e-4, atol=1e-4)
    assert st.cost(small, x) == plan.cost
    again = skeleton(plan, model)
    again.load_state_dict(small.state_dict())
    assert torch.equal(again(x), small(x))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert type(model.conv1) is nn.Conv2d


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_dtype_format_mode_and_flags_are_kept(dtype):
    model, x = network()
    model = model.to(dtype).to(memory_format=torch.channels_last).train()
    model.conv1.weight.requires_grad_(False)
    model.conv2.eval()
    plan = st.plan_from(model, x.to(dtype), {name: (st.SpatialSVD(), 3) for name in ("conv1", "conv2")})
    small = st.apply(plan, model)
    conv1, conv2 = small.conv1, small.conv2
    assert all(p.dtype == dtype for p in small.parameters())
    assert conv1[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert not conv1[0].weight.requires_grad and conv2[0].weight.requires_grad
    assert conv1.training and not conv2.training and not conv2[0].training and small.training


def test_hooks_are_kept():
    model, x = network()
    calls = []
    model.conv2.register_forward_hook(lambda module, args, y: calls.append(type(module)))
    model.bn1.register_forward_pre_hook(lambda module, args: calls.append(type(module)))
    model.conv1.register_full_backward_hook(lambda module, grads, outputs: calls.append("back"))
    model.conv1.register_full_backward_pre_hook(lambda module, outputs: calls.append("before"))
    plan = st.plan_from(model, x, {name: (st.SpatialSVD(), 3) for name in ("conv1", "conv2")})
    calls.clear()
    st.apply(plan, model)(x).sum().backward()
    assert calls == [nn.BatchNorm2d, nn.Sequential, "before", "back"]


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (nn.Sequential(nn.Conv2d(3, 4, 3)), "has no layer 'conv1'"),
        (Residual(width=16), r"layer 'conv1' is Conv2d \(16, 16, 3, 3\), the plan has Conv2d \(8, 8, 3, 3\)"),
        (nn.ModuleDict({"conv1": nn.Linear(8, 8)}), "layer 'conv1' is Linear"),
        (nn.ModuleDict({"conv1": nn.ReLU()}), "layer 'conv1' is ReLU, the plan"),
    ],
)
def test_a_plan_of_another_network_is_refused(other, words):
    model, x = network()
    plan = st.plan_from(model, x, {"conv1": (st.ChannelSVD(), 3)})
    for function in (st.apply, skeleton):
        with pytest.raises(ValueError, match=words) as caught:
            function(plan, other)
        assert str(caught.value).startswith("the plan does not fit the model: ")


def test_a_module_with_two_names_is_replaced_under_both():
    model = Odd()
    new = nn.Sequential(nn.Identity())
    replace_module(model, "alias", new)
    assert model.alias is model.right is new


def test_what_cannot_be_copied_gets_a_sentence():
    model = nn.Sequential(nn.Conv2d(3, 4, 1))
    model[0].lock = threading.Lock()
    with pytest.raises(
        TypeError, match="the model cannot be copied, because of its attribute '0.lock': TypeError: cannot pickle"
    ):
        duplicate(model)
    del model[0].lock
    model.cached = [model(torch.zeros(1, 3, 2, 2))]  # with its graph
    copied = duplicate(model).cached[0]
    assert torch.equal(copied, model.cached[0]) and copied is not model.cached[0] and not copied.requires_grad
    model.cached = None
    assert torch.equal(duplicate(nn.DataParallel(model))[0].weight, copy.deepcopy(model)[0].weight)
