"""Random small networks: exact at full rank, within budgets, saved and loaded the same, and the user's own stays as it was."""

import copy
import dataclasses
import json
import math
import os
import re
import tempfile

import pytest
import torch
from hypothesis import HealthCheck, Phase, assume, event, given, settings
from hypothesis import strategies as drawn
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import spectrim as st
from random_nets import HEADS, INPUTS, KINDS, WRAPS, Network
from spectrim.network.calling import call, evaluation_mode, map_tensors, tensors_of

BY_HAND = int(os.environ.get("SPECTRIM_EXAMPLES", "0"))
METHODS = (
    st.ChannelSVD(),
    st.PivotSVD(),
    st.InputSVD(),
    st.SpatialSVD(),
    st.SpatialSVD(axis=1),
    st.Tucker2(),
    st.TensorTrain(),
    st.TiledSVD(),
)
SEARCHES = (st.Knapsack(), st.Uniform(), st.Energy(), st.VBMF(), st.ALDS(), st.Similarity(), st.Greedy(), st.Interaction())
DTYPES = (torch.float32, torch.float32, torch.float64, torch.bfloat16, torch.float16)
TRAITS = ("training", "in place", "buffers", "channels_last", "grad", "zeros", "head in float32", "alone")
FLOOR = {torch.float64: 1e-13, torch.float32: 1e-5}  # what decompositions may add to a network's own rounding
REASONS = {  # what may be said of a network, and of which
    r"cannot be met: (the methods and layers allowed reach 0\.\d+|no method pays on any layer)": lambda d, w: True,
    "whose input is too large for the covariance that it needs": lambda d, w: d["head"] in ("flatten", "view"),
}
OPTIONS = {
    "methods": drawn.lists(drawn.sampled_from((*METHODS, st.CP(depthwise="kernel"))), min_size=2, max_size=4, unique=True),
    "search": drawn.sampled_from((*SEARCHES[:1] * 4, *SEARCHES)),
    "refit": drawn.sampled_from((True, True, False)),
    "batchnorm": drawn.sampled_from((False, False, True)),
    "gradient": drawn.sampled_from((True, True, False)),
    "multiple_of": drawn.sampled_from((1, 1, 2)),
    "batch": drawn.sampled_from((16, 128)),
}
networks = drawn.fixed_dictionaries(
    {
        "sizes": drawn.one_of(
            drawn.lists(drawn.integers(3, 9), min_size=2, max_size=2),
            drawn.lists(drawn.integers(4, 20), min_size=1, max_size=1),
            drawn.lists(drawn.integers(2, 4), min_size=3, max_size=3),
        ),
        "channels": drawn.integers(2, 9),
        "blocks": drawn.lists(drawn.tuples(drawn.sampled_from(sorted(KINDS)), drawn.integers(0, 9999)), min_size=1, max_size=5),
        "head": drawn.sampled_from(sorted(HEADS)),
        "wrap": drawn.sampled_from(("tensor", "tensor", *WRAPS)),
        "inputs": drawn.sampled_from(("one", "one", *INPUTS)),
        "traits": drawn.sets(drawn.sampled_from(TRAITS), max_size=3),
        "dtype": drawn.sampled_from(DTYPES),
        "seed": drawn.integers(0, 9999),
    }
)
wishes = drawn.fixed_dictionaries(
    {
        "fraction": drawn.sampled_from((0.9, 0.7, 0.5)),
        "metric": drawn.sampled_from(("params", "macs")),
        "data": drawn.sampled_from((True, True, True, False)),
        "images": drawn.sampled_from((64, 64, 24)),
        "config": drawn.fixed_dictionaries(OPTIONS),
    }
)


def made(d, seed=0):
    """The network, trained to the end as far as its norms go."""
    torch.manual_seed(seed)
    model = Network(d)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                nn.init.uniform_(module.weight, 0.5, 2)
                nn.init.normal_(module.bias)
                module.weight[0] = -module.weight[0] if "zeros" not in d["traits"] else -0.0
        for _ in range(3):
            call(model.train(), inputs(d, 16))
    model = cast(model, d["dtype"])
    if "head in float32" in d["traits"]:
        model.head.float()
    if "channels_last" in d["traits"] and len(d["sizes"]) == 2:
        model = model.to(memory_format=torch.channels_last)
    if "grad" in d["traits"]:
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
    return model.train("training" in d["traits"])


def cast(model, dtype):
    """As `to` does, but for complex buffers."""
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.is_floating_point():
            tensor.data = tensor.data.to(dtype)
    return model


def inputs(d, number, dtype=torch.float32):
    x, y = (torch.randn(number, 3, *d["sizes"]).to(dtype) for _ in range(2))
    if "channels_last" in d["traits"] and len(d["sizes"]) == 2:
        x = x.contiguous(memory_format=torch.channels_last)
    return INPUTS[d["inputs"]](x, y)


def outputs(model, batch):
    with torch.no_grad(), evaluation_mode(model):
        return [tensor.double() for tensor in tensors_of(call(model, batch))]


def apart(found, wanted):
    """The largest difference, relative to what varies in the outputs."""
    assert [x.shape for x in found] == [x.shape for x in wanted]
    return max(float((a - b).norm() / (b.norm() + 1e-6)) for a, b in zip(found, wanted, strict=True))


def snapshot(model):
    """Everything of a user's network that nobody may change, bit by bit."""

    def bits(x):
        return None if x is None else (id(x), x.detach().clone().contiguous().view(-1).view(torch.uint8), x.stride(), x.is_leaf)

    modules = [
        (
            name,
            id(module),
            module.training,
            {key: repr(v) for key, v in vars(module).items() if key[0] != "_" or "hooks" in key},
        )
        for name, module in model.named_modules(remove_duplicate=False)
    ]
    tensors = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    return modules, [(name, bits(x), bits(x.grad), x.requires_grad) for name, x in tensors]


def same(first, second):
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second)
    if isinstance(first, (tuple, list)):
        return len(first) == len(second) and all(map(same, first, second))
    return first == second


def counted(model, d, batch):
    """Parameters, and multiply-adds by torch's own counter, of one example."""
    with FlopCounterMode(display=False) as counter:
        outputs(model, batch)
    return sum(p.numel() for p in model.parameters()), counter.get_total_flops() / 2


def check_report(result, model, example):
    plan, report = result.plan, result.report
    assert st.Plan.from_json(plan.to_json()) == plan
    assert st.Report.from_json(report.to_json()).to_json() == report.to_json()
    assert report.before == plan.original == st.cost(model, example)
    assert report.after == plan.cost == st.cost(result.model, example)
    saved = [(row.params_before - row.params_after, row.macs_before - row.macs_after) for row in report.rows]
    assert tuple(map(sum, zip(*saved, strict=True))) == (
        report.before.params - report.after.params,
        report.before.macs - report.after.macs,
    )
    assert {row.layer: row.rank for row in report.rows if row.method != "-"} == {n: o.rank for n, o in plan.items()}
    assert report.predicted_harm == plan.harm and math.isfinite(plan.harm)
    assert report.measured_harm is None or math.isfinite(report.measured_harm)
    kept = json.loads(report.to_json())["kept"]
    assert kept == {"params": report.kept[0], "macs": report.kept[1]} and "nan" not in str(result)


def check_exact(model, example, calibration, wanted, noise, options):
    """At full rank nothing changes: neither without data, nor refitted."""
    whole = {}
    for number, layer in enumerate(st.find_layers(model, example)):
        fitting = [method for method in METHODS if method.fits(layer.convolution)]
        if fitting:
            method = fitting[(number + layer.weight[0]) % len(fitting)]
            whole[layer.name] = (method, method.full_rank(layer.convolution))
    plan = st.plan_from(model, example, whole)
    batch = calibration[0]
    exact = st.apply(plan, model)
    assert apart(outputs(exact, batch), wanted) <= 10 * noise, "apply"
    assert st.cost(exact, example) == plan.cost
    config = st.Config(gradient=options["gradient"], batch=options["batch"])
    refitted = st.compress(model, example, plan=plan, calibration=calibration, config=config)
    assert apart(outputs(refitted.model, batch), wanted) <= 30 * max(noise, 1e-5), "refit"  # sums are single


def check_network(d, w):
    model = made(d)
    torch.manual_seed(d["seed"])
    example = inputs(d, 1 if "alone" in d["traits"] else 2, d["dtype"])
    calibration = [inputs(d, w["images"] // 2, d["dtype"]) for _ in range(2)]
    try:
        wanted = outputs(model, calibration[0])
    except RuntimeError:  # such as of LSTMs in half precision
        assume(False)
    double = map_tensors(lambda x: x.double() if x.is_floating_point() else x, calibration[0])
    rounded = apart(wanted, outputs(cast(copy.deepcopy(model), torch.float64), double))
    noise = max(rounded, FLOOR.get(d["dtype"], torch.finfo(d["dtype"]).eps))
    before, seen = snapshot(model), copy.deepcopy((example, calibration))
    numbers = torch.get_rng_state()
    config = st.Config(**w["config"] | {"methods": tuple(w["config"]["methods"])})
    if not w["data"]:
        config = dataclasses.replace(config, search=st.Knapsack())  # others look at data
    try:
        check_exact(model, example, calibration, wanted, noise, w["config"])
        given = calibration if w["data"] else None
        result = st.compress(model, example, budget=st.Keep(w["fraction"], w["metric"]), calibration=given, config=config)
    finally:
        assert same(snapshot(model), before), "the user's network changed"
        assert same(tensors_of((example, calibration)), tensors_of(seen)), "the user's data changed"
        assert torch.equal(torch.get_rng_state(), numbers), "random numbers were drawn"
        assert same(outputs(model, calibration[0]), wanted)
    check_report(result, model, example)
    assert result.report.after.of(w["metric"]) <= w["fraction"] * result.report.before.of(w["metric"]) + 1e-6
    plain = not {"LSTM", "attention"} & {kind for kind, _ in d["blocks"]}
    for net, cost in ((model, result.report.before), (result.model, result.report.after)):
        params, macs = counted(net, d, inputs(d, 1, d["dtype"]))
        assert params == cost.params and (not plain or macs == cost.macs)
    assert [m.training for m in result.model.modules()].count(True) * ("training" not in d["traits"]) == 0
    with tempfile.TemporaryDirectory() as folder:
        again = st.load(result.save(folder), made(d, seed=1))
    found = outputs(result.model, calibration[0])
    assert all(x.isfinite().all() for x in found) and same(outputs(again, calibration[0]), found)


def quick(monkeypatch):
    """Nothing here is about pages or time."""
    monkeypatch.setattr("spectrim.pipeline.account._timed", lambda *_: ({}, {}, []))
    monkeypatch.setattr("spectrim.pipeline.result.page", lambda report: "")


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    quick(monkeypatch)


@settings(
    max_examples=BY_HAND or 6,
    derandomize=not BY_HAND,
    phases=(Phase.generate,),
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
@given(d=networks, w=wishes)
def test_random_networks(d, w):
    try:
        check_network(d, w)
    except (ValueError, TypeError) as error:
        text = str(error)
        known = [allowed(d, w) for words, allowed in REASONS.items() if re.search(words, text)]
        if type(error) not in (st.BudgetError, ValueError, TypeError) or "\n" in text or not any(known):
            raise
        event(re.sub(r"[\d.]+", "#", text)[:100])
