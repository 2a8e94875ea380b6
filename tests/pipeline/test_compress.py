"""compress(): budgets are hard bounds, the network given is untouched, and what cannot be done gets one sentence."""

import copy

import pytest
import torch
from torch import nn

import spectrim as st
from nets import InPlace, Odd, Residual, settle
from spectrim.core.factorization import describe
from tables import PLANAR

QUICK = st.Config(methods=(st.ChannelSVD(), st.SpatialSVD()))


def snapshot(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def unchanged(model, before, modes):
    same = all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    return same and modes == [module.training for module in model.modules()]


@pytest.mark.parametrize("metric", ["params", "macs"])
@pytest.mark.parametrize("fraction", [0.8, 0.5, 0.3])
def test_keep_is_a_hard_bound_on_the_whole_network(case, metric, fraction):
    model, x, _ = case
    before, modes = snapshot(model), [module.training for module in model.modules()]
    result = st.compress(model, x[:1], budget=st.Keep(fraction, metric), calibration=x.split(32), config=QUICK)
    assert st.cost(result.model, x[:1]) == result.plan.cost == result.report.after
    assert result.report.kept[metric == "macs"] <= fraction
    assert unchanged(model, before, modes)
    assert all(type(module).__module__.startswith(("torch.nn", "nets")) for module in result.model.modules())
    assert result.report.harm_unit == "nats" and result.report.measured_harm > 0 and result.report.predicted_harm > 0
    assert sum(row.harm for row in result.report.rows) == pytest.approx(result.report.predicted_harm)
    assert (
        sum(row.params_after - row.params_before for row in result.report.rows)
        == result.report.after.params - result.report.before.params
    )


def test_all_default_methods_compete(case):
    model, x, _ = case
    result = st.compress(model, x[:1], budget=st.Keep(0.4), calibration=[x])
    assert result.report.kept[1] <= 0.4 and result.report.config["methods"] == [
        "PivotSVD",
        "ChannelSVD",
        "SpatialSVD",
        "SpatialSVD(axis=1)",
        "CP(depthwise='kernel')",
    ]


def test_without_data_the_weights_are_approximated(case):
    model, x, _ = case
    result = st.compress(model, x[:1], budget=st.Keep(0.6))
    assert result.report.kept[1] <= 0.6 and result.report.measured_harm is None and result.report.interactions is None
    assert result.report.harm_unit == "relative squared weight error"
    assert result.plan and all(not option.bias for option in result.plan.values())
    small = st.apply(result.plan, model)
    torch.testing.assert_close(small(x), result.model(x))


def test_the_whole_network_may_be_kept(case):
    model, x, _ = case
    for calibration in (None, [x]):
        result = st.compress(model, x[:1], budget=st.Keep(1.0), calibration=calibration, config=QUICK)
        assert not result.plan and torch.equal(result.model(x), model(x)) and result.report.predicted_harm == 0


@pytest.mark.parametrize("refit", [True, False])
def test_a_network_that_changes_its_input_in_place(case, refit):
    model, x, labels = case
    x = x.clone()
    given = x[:2], x.split(32), (x, labels)
    kept = copy.deepcopy(given)
    search = st.Interaction(images=32) if refit else st.Greedy()
    config = st.Config(methods=(st.ChannelSVD(),), images=48, batch=16, batchnorm=not refit, refit=refit, search=search)
    found = []
    for network in (InPlace(model), InPlace(model, inplace=False)):
        budget, evaluate = st.Keep(0.6), st.Accuracy([given[2]])
        found.append(st.compress(network, given[0], budget=budget, calibration=given[1], evaluate=evaluate, config=config))
    torch.testing.assert_close(given, kept, rtol=0, atol=0)
    assert found[0].plan == found[1].plan and found[0].report.selection == found[1].report.selection
    assert found[0].report.measured_harm == found[1].report.measured_harm


@pytest.mark.parametrize("data", [False, True])
@pytest.mark.parametrize("method", PLANAR, ids=describe)
def test_a_layer_of_zeros_costs_nothing(case, method, data):
    model, x, _ = case
    empty = copy.deepcopy(model)
    with torch.no_grad():
        empty.conv1.weight.zero_()
    config = st.Config(methods=(method,), exclude=("stem", "conv2", "conv3", "short", "head"))
    prepared = st.prepare(empty, x[:1], calibration=[x] if data else None, config=config)
    plan = prepared.menu.plan([1])  # the lowest rank
    assert plan["conv1"].harm == pytest.approx(0, abs=1e-9)
    torch.testing.assert_close(st.realize(prepared, plan).model(x), empty(x), rtol=1e-4, atol=1e-4)


def test_config_is_obeyed(case):
    model, x, _ = case
    config = st.Config(
        methods=(st.ChannelSVD(), st.Tucker2()), exclude=("conv3", "h*"), multiple_of=4, refit=False, batchnorm=True
    )
    result = st.compress(model, x[:1], budget=st.Keep(0.7), calibration=[x], config=config)
    assert result.plan and not {"conv3", "head"} & set(result.plan)
    assert {type(option.method) for option in result.plan.values()} <= {st.ChannelSVD, st.Tucker2}
    ranks = [option.rank for option in result.plan.values()]
    assert all(n % 4 == 0 for rank in ranks for n in (rank if isinstance(rank, tuple) else (rank,)))
    assert result.report.skipped["conv3"] == result.report.skipped["head"] == "excluded by the configuration"
    assert "batchnorm" in result.report.seconds and "refit" not in result.report.seconds
    assert {row.fitted for row in result.report.rows if row.method != "-"} == {"fitted to its own inputs"}


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_networks_of_other_precision(dtype):
    x = torch.randn(16, 3, 8, 8)
    model = settle(Residual(), x).to(dtype)
    small = st.compress(model, x[:1].to(dtype), budget=st.Keep(0.5), calibration=[x], config=QUICK).model
    assert all(p.dtype == dtype for p in small.parameters()) and torch.isfinite(small(x.to(dtype))).all()


def test_modes_and_hooks_are_kept_through_the_refit(case):
    model, x, _ = case
    model, calls = copy.deepcopy(model).train(), []
    model.conv2.eval()
    model.conv2.register_forward_hook(lambda module, args, y: calls.append(type(module)))
    small = st.compress(model, x[:1], budget=st.Keep(0.5), calibration=[x], config=QUICK).model
    assert small.training and isinstance(small.conv2, nn.Sequential) and not small.conv2.training
    calls.clear()
    small(x)
    assert calls == [nn.Sequential]


@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.compile])
def test_wrapped_networks(case, wrap):
    model, x = copy.deepcopy(case[0]), case[1]
    wrapped = wrap(model)  # DataParallel moves the network to a GPU, if there is one
    example = x[:1].to(next(model.parameters()).device)
    result = st.compress(wrapped, example, budget=st.Keep(0.7), calibration=[x], config=QUICK)
    assert type(result.model) is Residual and result.report.kept[1] <= 0.7


def test_several_inputs_as_tuple_or_dict():
    inputs = torch.randn(20, 3, 6, 6), torch.rand(20, 8)
    torch.manual_seed(0)
    model = Odd().eval()
    named = {"x": inputs[0], "scale": inputs[1]}
    first = st.compress(model, inputs, budget=st.Keep(0.8), calibration=[inputs, (inputs, None)], config=QUICK)
    second = st.compress(model, named, budget=st.Keep(0.8), calibration=[named, (named, None)], config=QUICK)
    for result in (first, second):
        assert result.report.kept[1] <= 0.8 and result.report.images == 40
        assert result.report.harm_unit == "nats" and "unused" in result.report.skipped
        assert {row.layer: row.fitted for row in result.report.rows}["twice"] in (
            "",
            "not refitted: one forward calls it more than once",
        )
    assert first.plan == second.plan
    torch.testing.assert_close(first.model(*inputs), second.model(**named))


class Cast(Residual):
    """A network that uses autocast by itself."""

    def forward(self, x):
        with torch.autocast("cpu", torch.bfloat16):
            return super().forward(x)


def test_autocast_of_the_network_and_of_the_caller(case):
    model, x, _ = case
    cast = Cast(width=12)
    cast.load_state_dict(model.state_dict())
    wanted = st.compress(model, x[:1], budget=st.Keep(0.6), calibration=[x], config=QUICK).report.measured_harm
    odd = st.Config(methods=QUICK.methods, batch=40)
    found = st.compress(cast, x[:1], budget=st.Keep(0.6), calibration=[x], config=odd).report
    assert found.kept[1] <= 0.6 and found.measured_harm < 1.5 * wanted + 1e-3
    with torch.autocast("cpu", torch.bfloat16):
        found = st.compress(model, x[:1], budget=st.Keep(0.6), calibration=[x], config=QUICK).report
    assert found.kept[1] <= 0.6 and found.measured_harm == pytest.approx(wanted, rel=1e-3)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_gradients_that_the_caller_has_switched_off(case, mode):
    model, x, _ = case
    with mode():
        report = st.compress(model, x[:1], budget=st.Keep(0.6), calibration=[x], config=QUICK).report
    assert report.kept[1] <= 0.6 and report.interactions is not None


class Frozen(Residual):
    """Switches gradients off in its forward."""

    def forward(self, x):
        with torch.no_grad():
            return super().forward(x)


def mixing():
    """A network whose normalisation mixes the images of a batch."""
    return nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16, track_running_stats=False), nn.Conv2d(16, 16, 3)).eval()


@pytest.mark.parametrize(
    ("make", "words", "way"),
    [
        (lambda: Frozen(width=12).eval(), "under torch.no_grad.*or use gradient=False", {"gradient": False}),
        (mixing, "no running statistics.*use refit=False", {"refit": False}),
    ],
    ids=["no gradient", "no running statistics"],
)
def test_what_statistics_or_refit_cannot_take_gets_a_sentence_with_a_way_out(case, make, words, way):
    _, x, _ = case
    methods = QUICK.methods
    with pytest.raises(ValueError, match=words):
        st.compress(make(), x[:1], budget=st.Keep(0.6), calibration=[x], config=st.Config(methods=methods))
    found = st.compress(make(), x[:1], budget=st.Keep(0.6), calibration=[x], config=st.Config(methods=methods, **way))
    assert found.report.kept[1] <= 0.6


def test_without_gradient_interactions_are_not_told(case):
    model, x, _ = case
    config = st.Config(methods=QUICK.methods, gradient=False)
    report = st.compress(model, x[:1], budget=st.Keep(0.6), calibration=[x], config=config).report
    assert (
        report.interactions is None
        and report.measured_harm > 0
        and "backward" not in {k for k, v in report.passes.items() if v}
    )


def test_a_users_harm_decides_and_is_named(case):
    model, x, _ = case

    def first_class(outputs, reference):
        return (outputs[:, 0] - reference[:, 0]).square().mean()

    images, fresh, results = torch.randn(432, 3, 8, 8), torch.randn(500, 3, 8, 8), {}
    for harm in (first_class, None):
        config = st.Config(methods=QUICK.methods, harm=harm, search=st.Knapsack(), refit=False)
        results[harm] = st.compress(model, x[:1], budget=st.Keep(0.4), calibration=[images], config=config)
    own, usual = results[first_class], results[None]
    with torch.no_grad():
        unseen = images[378:]  # the last eighth is kept away from the fits
        told = float(first_class(own.model(unseen), model(unseen)))
        measured = [float(first_class(result.model(fresh), model(fresh))) for result in (own, usual)]
    assert "first_class" in own.report.harm_unit and "first_class" in own.report.config["harm"]
    assert own.report.measured_harm == pytest.approx(told, rel=1e-5) and measured[0] < measured[1]


def test_progress_is_told_by_stages_that_end(case):
    model, x, labels = case
    told = []
    config = st.Config(methods=QUICK.methods, progress=lambda stage, share: told.append((stage, share)))
    st.compress(model, x[:1], budget=st.Keep(0.6), calibration=[x], evaluate=st.Accuracy([(x, labels)]), config=config)
    assert list(dict.fromkeys(stage for stage, _ in told)) == [
        "statistics",
        "menu",
        "unseen images",
        "search",
        "refit",
        "evaluate",
        "report",
        "latency",
    ]
    for stage in {stage for stage, _ in told}:
        shares = [share for other, share in told if other == stage]
        assert shares[0] == 0 and shares[-1] == 1 and shares == sorted(shares)


def nan_model(model):
    broken = copy.deepcopy(model)
    with torch.no_grad():
        broken.conv1.weight[0, 0, 0, 0] = float("nan")
    return broken


def overflowing_model(model):
    broken = copy.deepcopy(model)
    with torch.no_grad():
        broken.conv1.weight *= 1e30
    return broken


def failing(network):
    raise RuntimeError("no images here")


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"model": nan_model}, ValueError, "'conv1.weight' holds NaN"),
        ({"model": overflowing_model}, ValueError, "the inputs, outputs or gradients of layer 'conv2' overflow"),
        ({"model": lambda m: torch.jit.script(nn.ReLU())}, TypeError, "TorchScript"),
        ({"model": lambda m: "resnet"}, TypeError, "must be a torch.nn.Module"),
        ({"model": lambda m: nn.Sequential(nn.Conv2d(3, 1, 1))}, st.BudgetError, "cannot be met: no method pays"),
        ({"example": torch.randn(1, 4, 8, 8)}, ValueError, "expected input|does not go through|same size"),
        ({"example": (1, 3, 8, 8)}, ValueError, "must be a tensor"),
        ({"calibration": []}, ValueError, "empty"),
        ({"calibration": 3}, TypeError, "must be an iterable"),
        ({"calibration": ["a"]}, TypeError, "inputs or"),
        (
            {"example": {"x": torch.randn(1, 3, 8, 8)}, "calibration": [{"x": 1}]},
            TypeError,
            "with tensors where the example has them",
        ),
        ({"calibration": [torch.randn(4, 3, 9, 9)]}, ValueError, "the same size"),
        ({"calibration": [torch.full((4, 3, 8, 8), float("inf"))]}, ValueError, "NaN or infinite"),
        ({"evaluate": failing}, ValueError, "evaluate raised RuntimeError: no images here"),
        ({"evaluate": lambda m: "good"}, ValueError, "evaluate returned str"),
        ({"evaluate": lambda m: 91.7, "budget": st.MaxDrop(1)}, ValueError, "fraction between 0 and 1"),
        ({"budget": st.Keep(0.001)}, st.BudgetError, "cannot be met"),
        ({"budget": st.MaxDrop(1)}, ValueError, "MaxDrop needs evaluate"),
        ({"budget": 0.5}, TypeError, "must be Keep"),
        ({"budget": None}, TypeError, "the budget is None; it must be Keep"),
        ({"plan": "plan.json"}, TypeError, "the plan is str; it must be a Plan, such as Plan.from_json"),
        ({"config": st.Config(exclude=("fc",))}, ValueError, "exclude has 'fc', which matches no layer; the layers are stem"),
    ],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_bad_input_gets_one_sentence_and_changes_nothing(case, change, error, match):
    model, x, _ = case
    before, modes = snapshot(model), [module.training for module in model.modules()]
    arguments = {
        "budget": st.Keep(0.5),
        "calibration": [x],
        "config": QUICK,
        **{k: v for k, v in change.items() if k not in ("model", "example")},
    }
    given = change["model"](model) if "model" in change else model
    with pytest.raises(error, match=match) as caught:
        st.compress(given, change.get("example", x[:1]), **arguments)
    assert isinstance(caught.value, (ValueError, TypeError)) and "\n" not in str(caught.value)
    assert unchanged(model, before, modes)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"methods": ()}, TypeError, "methods is .*; it must hold decompositions, such as"),
        ({"methods": ("ChannelSVD",)}, TypeError, "methods is .*; it must hold decompositions, such as"),
        ({"methods": st.ChannelSVD()}, TypeError, r"methods is ChannelSVD\(\); it must be a tuple of decompositions"),
        ({"exclude": "head"}, TypeError, r"exclude is the string 'head'; it must be a tuple of patterns, such as \('head',\)"),
        ({"multiple_of": 0}, ValueError, "multiple_of is 0; it must be a whole number of at least 1"),
        ({"images": "many"}, ValueError, "images is many; it must be a whole number of at least 1"),
        ({"batch": 1.5}, ValueError, "batch is 1.5; it must be a whole number of at least 1"),
        ({"search": "Uniform"}, TypeError, r"search is 'Uniform'; it must be a rank selection, such as Knapsack\(\)"),
        ({"search": st.Uniform}, TypeError, "it must be a rank selection"),
        ({"harm": 3}, TypeError, r"harm is 3; it must be a function of \(outputs, reference\), or None"),
    ],
)
def test_bad_configurations_get_one_sentence(options, error, words):
    with pytest.raises(error, match=words):
        st.Config(**options)
