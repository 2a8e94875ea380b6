import copy
import functools
import json
import os
from pathlib import Path

import matplotlib
import pytest
import torch
from torch import nn

import spectrim as st
from nets import InPlace, Odd, Residual, settle
from spectrim.cache import Cache, Ledger, identity
from spectrim.maxdrop import Bracket
from spectrim.surgery import apply, working_weight


@pytest.fixture(scope="module")
def case():
    torch.manual_seed(0)
    x = torch.randn(96, 3, 8, 8)
    model = settle(Residual(width=12), x)
    with torch.no_grad():
        labels = model(x).argmax(1)
    return model, x, labels


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
    result = st.compress(model, x[:1], budget=st.Keep(fraction, metric), calibration=x.split(32))
    assert st.cost(result.model, x[:1]) == result.plan.cost == result.report.after
    assert result.report.kept[metric == "macs"] <= fraction
    assert unchanged(model, before, modes)
    assert all(type(module).__module__.startswith(("torch.nn", "nets")) for module in result.model.modules())
    assert result.report.harm_unit == "nats" and result.report.measured_harm >= 0


def test_without_data_the_weights_are_approximated(case):
    model, x, _ = case
    result = st.compress(model, x[:1], budget=st.Keep(0.6))
    assert result.report.kept[1] <= 0.6 and result.report.measured_harm is None
    assert result.report.harm_unit == "relative squared weight error"
    assert all(not option.bias for option in result.plan.values())


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


def test_max_drop_returns_what_it_evaluated(case):
    model, x, labels = case
    evaluate = st.Accuracy([(x, labels)])
    for points in (3.0, 30.0):
        result = st.compress(model, x[:1], budget=st.MaxDrop(points, "params"), calibration=[x], evaluate=evaluate)
        score = result.report.selection
        assert score.drop <= points and score.standard_error is not None and score.examples == 96
        assert evaluate(result.model) == pytest.approx(score.after)
        assert len(result.report.probes) > 2
        broken = [kept for kept, drop in result.report.probes if drop > points]
        assert not broken or max(broken) < 1.03 * result.report.kept[0]
    plain = st.compress(model, x[:1], budget=st.MaxDrop(30, "macs"), calibration=[x], evaluate=lambda m: float(evaluate(m)))
    assert plain.report.selection.standard_error is None


@pytest.mark.parametrize("power", [0.6, 1.0, 2.0])
@pytest.mark.parametrize("scale", [4.0, 40.0, 400.0])
def test_a_bracket_closes_in_few_tries(power, scale):
    """The drop is a power of the predicted harm, the harm a power of the budget, plus what 5,000 images can resolve."""
    bracket = Bracket(0.01, 1.5, nats=True)

    def harm(keep):
        return 0.001 * keep**-2.5 - 0.001

    def drop(keep):
        return round(scale * harm(keep) ** power, 2)

    held = []
    while (keep := bracket.next(harm)) is not None:
        if bracket.add(keep, keep, harm(keep), drop(keep)):
            held.append(keep)
    assert bracket.tries <= 7
    best = min((k / 1000 for k in range(10, 1001) if drop(k / 1000) <= 1.5), default=None)
    assert held[-1] <= 1.05 * best


def test_a_bracket_does_not_trust_predictions():
    """A drop that has nothing to do with the predicted harm: a cliff; then one that no budget holds."""
    for cliff in (0.02, 0.37, 0.9):
        bracket = Bracket(0.01, 1.5, nats=True)
        held = []
        while (keep := bracket.next(lambda keep: 1 / keep)) is not None:
            if bracket.add(keep, keep, 1 / keep, 0.0 if keep > cliff else 60.0):
                held.append(keep)
        assert cliff < held[-1] < 1.03 * cliff and bracket.tries < 25
    bracket = Bracket(0.5, 1.5, nats=False)
    while (keep := bracket.next(lambda keep: 1 / keep)) is not None:
        assert not bracket.add(keep, keep, 1 / keep, 40.0)
    assert bracket.low > 0.97


def test_a_layer_of_zeros(case):
    model, x, _ = case
    empty = copy.deepcopy(model)
    with torch.no_grad():
        empty.conv1.weight.zero_()
    for calibration in (None, [x]):
        result = st.compress(empty, x[:1], budget=st.Keep(0.5), calibration=calibration)
        assert torch.isfinite(result.model(x)).all()


def test_no_plan_is_evaluated_twice(case):
    model, x, labels = case
    result = st.compress(
        model,
        x[:1],
        budget=st.MaxDrop(30.0, "params"),
        calibration=[x],
        evaluate=st.Accuracy([(x, labels)]),
        config=st.Config(methods=(st.ChannelSVD(),), multiple_of=2),
    )
    kept = [fraction for fraction, _ in result.report.probes]
    assert len(set(kept)) == len(kept)


def test_the_cache_knows_what_a_harm_has_closed_over():
    def weighted(weight):
        return lambda a, b: weight * (a - b).square().mean()

    assert identity(weighted(1.0)) == identity(weighted(1.0)) != identity(weighted(2.0))
    pick = functools.partial(torch.nn.functional.mse_loss, reduction="mean")
    assert identity(pick) == identity(functools.partial(torch.nn.functional.mse_loss, reduction="mean"))
    assert identity(pick) != identity(functools.partial(torch.nn.functional.mse_loss, reduction="sum"))
    assert identity(lambda a, b: a - 1) != identity(lambda a, b: a - 2)
    assert identity(object()) != identity(object())


def test_max_drop_that_cannot_be_met(case):
    model, x, _ = case
    calls = []

    def worse(network):
        calls.append(network)
        return 0.9 if len(calls) == 1 else 0.5

    with pytest.raises(st.BudgetError, match=r"cannot be met: keeping 9\d\.\d % of the macs already loses 40"):
        st.compress(model, x[:1], budget=st.MaxDrop(1.5, "macs"), calibration=[x], evaluate=worse)


def test_config_is_obeyed(case):
    model, x, _ = case
    config = st.Config(
        methods=(st.ChannelSVD(), st.Tucker2()), exclude=("conv3", "h*"), multiple_of=4, refit=False, batchnorm=True
    )
    result = st.compress(model, x[:1], budget=st.Keep(0.7), calibration=[x], config=config)
    assert not {"conv3", "head"} & set(result.plan)
    ranks = [option.rank for option in result.plan.values()]
    assert ranks and all(n % 4 == 0 for rank in ranks for n in (rank if isinstance(rank, tuple) else (rank,)))
    assert result.report.skipped["conv3"] == "excluded by the configuration"
    assert "batchnorm" in result.report.seconds and "refit" not in result.report.seconds


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_device_dtype_format_mode_and_flags_are_kept(dtype):
    x = torch.randn(16, 3, 8, 8)
    model = settle(Residual(), x).to(dtype).to(memory_format=torch.channels_last).train()
    model.conv1.weight.requires_grad_(False)
    model.conv2.eval()
    calls = []
    model.conv2.register_forward_hook(lambda module, args, y: calls.append(type(module)))
    model.bn1.register_forward_pre_hook(lambda module, args: calls.append(type(module)))
    result = st.compress(model, x[:1].to(dtype), budget=st.Keep(0.5), calibration=[x.to(dtype)])
    small = result.model
    conv1, conv2 = small.conv1, small.conv2
    assert isinstance(conv1, nn.Sequential) and isinstance(conv2, nn.Sequential)
    assert all(p.dtype == dtype for p in small.parameters())
    assert conv1[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert not conv1[0].weight.requires_grad and conv2[0].weight.requires_grad
    assert conv1.training and not conv2.training and not conv2[0].training and small.training
    calls.clear()
    small(x.to(dtype))
    assert calls == [nn.BatchNorm2d, nn.Sequential]
    assert torch.isfinite(small(x.to(dtype))).all()


def test_backward_hooks_are_kept(case):
    model, x, _ = case
    model, calls = copy.deepcopy(model), []
    model.conv2.register_full_backward_hook(lambda module, grads, outputs: calls.append(type(module)))
    model.conv2.register_full_backward_pre_hook(lambda module, outputs: calls.append(type(module)))
    small = st.compress(model, x[:1], budget=st.Keep(0.5)).model
    small(x).sum().backward()
    assert calls == [nn.Sequential] * 2


def test_wrapped_models_and_odd_ones(case):
    model, x, _ = case
    for wrapped in (nn.DataParallel(model), torch.compile(model)):
        result = st.compress(wrapped, x[:1], budget=st.Keep(0.7), calibration=[x])
        assert type(result.model) is Residual
    inputs = torch.randn(20, 3, 6, 6), torch.rand(20, 8)
    odd = st.compress(Odd().eval(), inputs, budget=st.Keep(0.8), calibration=[inputs, (inputs, None)])
    assert odd.report.kept[1] <= 0.8 and odd.report.settings["calibration images"] == 40
    named = {"x": inputs[0], "scale": inputs[1]}
    same = st.compress(Odd().eval(), named, budget=st.Keep(0.8), calibration=[(named, None)])
    assert same.report.kept[1] <= 0.8


class Cast(Residual):
    """A network that uses autocast by itself."""

    def forward(self, x):
        with torch.autocast("cpu", torch.bfloat16):
            return super().forward(x)


def test_autocast_of_the_network_and_of_the_caller(case):
    model, x, _ = case
    cast = Cast(width=12)
    cast.load_state_dict(model.state_dict())
    wanted = st.compress(model, x[:1], budget=st.Keep(0.6), calibration=[x]).report.measured_harm
    found = st.compress(cast, x[:1], budget=st.Keep(0.6), calibration=[x], config=st.Config(batch=40)).report
    assert found.kept[1] <= 0.6 and found.measured_harm < 1.5 * wanted + 1e-3
    with torch.autocast("cpu", torch.bfloat16):
        found = st.compress(model, x[:1], budget=st.Keep(0.6), calibration=[x]).report
    assert found.kept[1] <= 0.6 and found.measured_harm < 1.5 * wanted + 1e-3


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_gradients_that_the_caller_has_switched_off(case, mode):
    model, x, _ = case
    with mode():
        report = st.compress(model, x[:1], budget=st.Keep(0.6), calibration=[x]).report
    assert report.kept[1] <= 0.6 and report.interactions is not None


def test_what_the_statistics_or_the_refit_cannot_take_gets_a_sentence(case):
    _, x, _ = case

    class Frozen(Residual):
        def forward(self, x):
            with torch.no_grad():
                return super().forward(x)

    with pytest.raises(ValueError, match="under torch.no_grad"):
        st.compress(Frozen(), x[:1], budget=st.Keep(0.6), calibration=[x])
    frozen = st.compress(Frozen(), x[:1], budget=st.Keep(0.6), calibration=[x], config=st.Config(gradient=False))
    assert frozen.report.kept[1] <= 0.6
    mixing = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16, track_running_stats=False), nn.Conv2d(16, 16, 3)).eval()
    with pytest.raises(ValueError, match="no running statistics"):
        st.compress(mixing, x[:1], budget=st.Keep(0.6), calibration=[x])
    left = st.compress(mixing, x[:1], budget=st.Keep(0.6), calibration=[x], config=st.Config(refit=False))
    assert left.report.kept[1] <= 0.6


def test_save_and_load(case, tmp_path, monkeypatch):
    model, x, labels = case
    result = st.compress(model, x[:1], budget=st.Keep(0.5), calibration=[x], evaluate=st.Accuracy([(x, labels)]))
    monkeypatch.setattr(matplotlib, "use", None)  # the backend is the user's
    folder = result.save(tmp_path / "out")
    assert sorted(file.name for file in folder.iterdir()) == ["model.safetensors", "plan.json", "report.html", "report.json"]
    again = st.load(folder, Residual(width=12))
    assert not again.training
    assert torch.equal(again(x), result.model(x))
    data = json.loads((folder / "report.json").read_text())
    assert data["after"]["macs"] == st.cost(again, x).macs and data["selection"]["examples"] == 96
    page = (folder / "report.html").read_text()
    assert page.count("<svg") == 4 and "conv2" in page and "http-equiv" not in page and "src=" not in page
    with pytest.raises(ValueError, match="exists already"):
        result.save(folder)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    with pytest.raises(ValueError, match="does not fit the model: layer"):
        st.load(folder, Residual(width=16))
    (folder / "model.safetensors").write_bytes(b"\x80\x04garbage")
    with pytest.raises(ValueError, match="damaged or no safetensors"):
        st.load(folder, Residual(width=12))
    with pytest.raises(ValueError, match="no plan.json"):
        st.load(tmp_path, Residual(width=12))


def test_saving_into_folders_that_exist(case, tmp_path, monkeypatch):
    model, x, _ = case
    result = st.compress(model, x[:1], budget=st.Keep(0.5))
    there, elsewhere = tmp_path / "there", tmp_path / "elsewhere"
    for folder in (there, elsewhere):
        folder.mkdir()
    (tmp_path / "link").symlink_to(elsewhere)
    (tmp_path / "file").write_text("")
    tmp_path.joinpath("here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    replaced = []
    move = Path.replace
    monkeypatch.setattr(Path, "replace", lambda file, target: replaced.append(target.name) or move(file, target))
    for folder in (there, tmp_path / "link", "."):
        written = result.save(folder)
        assert written == Path(folder).resolve() and replaced[-1] == "report.json"
        assert {file.name for file in written.iterdir()} == {"model.safetensors", "plan.json", "report.html", "report.json"}
        assert torch.equal(st.load(folder, model)(x), result.model.eval()(x))
    assert (tmp_path / "link").is_symlink()
    with pytest.raises(ValueError, match="since '.*file' is no folder; choose another place"):
        result.save(tmp_path / "file" / "out")
    monkeypatch.setattr(os, "access", lambda place, mode: False)
    with pytest.raises(ValueError, match="is not writable; choose another place"):
        result.save(tmp_path / "out")


def test_plans_can_be_read_edited_and_applied(case):
    model, x, _ = case
    plan = st.plan_from(model, x[:1], {"conv2": (st.SpatialSVD(axis=1), 6), "conv1": (st.Tucker2(), (4, 5))})
    assert list(plan) == ["conv1", "conv2"] and plan.cost == st.cost(apply(plan, model), x[:1])
    text = plan.to_json()
    assert st.Plan.from_json(text).to_json() == text
    edited = st.Plan.from_json(text.replace('"rank": 6', '"rank": 3'))
    assert edited["conv2"].rank == 3 and edited.cost == st.cost(st.apply(edited, model), x[:1]) != plan.cost
    for bad, match in [
        (text.replace('"rank": 6', '"rank": 60'), "out of range"),
        (text.replace("Tucker2", "Tucker9"), "no decomposition 'Tucker9'"),
        (text.replace("spectrim-plan-1", "other"), "no plan"),
        (text[:-20], "no JSON"),
        (text.replace('"kind"', '"sort"'), "incomplete"),
    ]:
        with pytest.raises(ValueError, match=match):
            st.Plan.from_json(bad)
    with pytest.raises(ValueError, match="has no layer 'conv1'"):
        st.apply(plan, nn.Sequential(nn.Conv2d(3, 4, 3)))
    with pytest.raises(ValueError, match="there is no such layer; the layers are stem"):
        st.plan_from(model, x[:1], {"conv9": (st.ChannelSVD(), 2)})
    with pytest.raises(TypeError, match=r"must be \(method, rank\)"):
        st.plan_from(model, x[:1], {"conv1": 3})


def test_interrupted_work_is_not_done_again(case, tmp_path):
    model, x, labels = case

    class Interrupting(st.Accuracy):
        calls = 0

        def per_example(self, network):
            self.calls += 1
            if self.calls == 4:
                raise KeyboardInterrupt
            return super().per_example(network)

    stages = []
    config = st.Config(cache=tmp_path / "cache", progress=lambda stage, share: stages.append(stage))
    budget = st.MaxDrop(20, "macs")
    with pytest.raises(KeyboardInterrupt):
        st.compress(model, x[:1], budget=budget, calibration=[x], evaluate=Interrupting([(x, labels)]), config=config)
    assert "statistics" in stages
    stages.clear()
    evaluate = st.Accuracy([(x, labels)])
    resumed = st.compress(model, x[:1], budget=budget, calibration=[x], evaluate=evaluate, config=config)
    assert "statistics" not in stages
    fresh = st.compress(model, x[:1], budget=budget, calibration=[x], evaluate=evaluate)
    assert resumed.plan == fresh.plan
    assert resumed.report.passes == fresh.report.passes  # what was done before counts
    assert set(resumed.report.seconds) == set(fresh.report.seconds)
    torch.testing.assert_close(resumed.model(x), fresh.model(x))
    with torch.no_grad():
        other = copy.deepcopy(model)
        other.conv1.weight *= 1.5
    stages.clear()
    st.compress(other, x[:1], budget=st.Keep(0.5), calibration=[x], config=config)
    assert "statistics" in stages  # another network: nothing of the first is used


def test_an_interrupted_menu_goes_on_at_its_layer(case, tmp_path, monkeypatch):
    (model, x, _), done = case, []

    def weight(layer, module):
        done.append(layer.name)
        return working_weight(layer, module)

    def interrupt(stage, share):
        if stage == "menu" and 0.5 < share < 1:
            raise KeyboardInterrupt

    monkeypatch.setattr("spectrim.score.menu.working_weight", weight)
    config = st.Config(cache=tmp_path / "cache", progress=interrupt)
    with pytest.raises(KeyboardInterrupt):
        st.compress(model, x[:1], budget=st.Keep(0.5), calibration=[x], config=config)
    first, done[:] = list(done), []
    config = st.Config(cache=tmp_path / "cache")
    result = st.compress(model, x[:1], budget=st.Keep(0.5), calibration=[x], config=config)
    assert len(first) > 1 and done and not set(first) & set(done)
    assert result.plan == st.compress(model, x[:1], budget=st.Keep(0.5), calibration=[x]).plan


def test_a_stage_that_fails_is_over():
    ledger = Ledger(Cache(None, ""), torch.device("cpu"), None)
    with pytest.raises(ValueError, match="no"), ledger.stage("search"):
        raise ValueError("no")
    assert not ledger.running and ledger.seconds["search"] >= 0


def test_work_is_counted_once(tmp_path):
    def done(ledger):
        def work():
            ledger.passed(forward=3)
            return 7

        return ledger.once("answer", work, lambda found: ({}, {"answer": found}), lambda kept: kept[1]["answer"])

    first, second = (Ledger(Cache(tmp_path, "key"), torch.device("cpu"), None) for _ in range(2))
    assert [done(first), done(first), done(second), done(second)] == [7] * 4
    assert first.passes == second.passes == {"forward": 3}


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


class Shrinking:
    """Scores one example less at each call."""

    def __init__(self):
        self.left = 8

    def __call__(self, network):
        return 0.5

    def per_example(self, network):
        self.left -= 1
        return torch.ones(self.left)


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"model": nan_model}, ValueError, "'conv1.weight' holds NaN"),
        ({"model": overflowing_model}, ValueError, "outputs or gradients of layer 'conv1' overflow"),
        ({"model": lambda m: torch.jit.script(nn.ReLU())}, TypeError, "TorchScript"),
        ({"model": lambda m: "resnet"}, TypeError, "must be a torch.nn.Module"),
        ({"model": lambda m: nn.Sequential(nn.Conv2d(3, 1, 1))}, st.BudgetError, "cannot be met: no method pays"),
        ({"example": torch.randn(1, 4, 8, 8)}, ValueError, "expected input|does not go through|same size"),
        ({"example": (1, 3, 8, 8)}, ValueError, "must be a tensor"),
        ({"calibration": []}, ValueError, "empty"),
        ({"calibration": 3}, TypeError, "must be an iterable"),
        ({"calibration": ["a"]}, TypeError, "inputs or"),
        ({"example": {"x": torch.randn(1, 3, 8, 8), "flag": True}}, TypeError, "example's 'flag' is bool; with calibration"),
        ({"example": {"x": torch.randn(1, 3, 8, 8)}, "calibration": [{"x": 1}]}, TypeError, "with tensors under the keys x"),
        ({"calibration": [torch.randn(4, 3, 9, 9)]}, ValueError, "the same size"),
        ({"calibration": [torch.full((4, 3, 8, 8), float("inf"))]}, ValueError, "NaN or infinite"),
        ({"evaluate": failing}, ValueError, "evaluate raised RuntimeError: no images here"),
        ({"evaluate": lambda m: float("nan")}, ValueError, "must return a finite number"),
        ({"evaluate": lambda m: "good"}, ValueError, "evaluate returned str"),
        ({"evaluate": lambda m: "0.9"}, ValueError, "evaluate returned str"),
        ({"evaluate": lambda m: None}, ValueError, "evaluate returned NoneType"),
        ({"evaluate": Shrinking()}, ValueError, "7 values for the original network and 6 for this one"),
        ({"evaluate": st.Accuracy([torch.randn(4, 3, 8, 8)])}, ValueError, "needs pairs"),
        ({"evaluate": st.Accuracy([(torch.randn(4, 3, 8, 8), torch.zeros(4, 5))])}, ValueError, "one class number per example"),
        ({"evaluate": lambda m: 91.7, "budget": st.MaxDrop(1)}, ValueError, "fraction between 0 and 1"),
        ({"budget": st.Keep(0.001)}, st.BudgetError, "cannot be met"),
        ({"budget": st.MaxDrop(1)}, ValueError, "MaxDrop needs evaluate"),
        ({"budget": 0.5}, TypeError, "must be Keep"),
    ],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_bad_input_gets_one_sentence_and_changes_nothing(case, change, error, match):
    model, x, _ = case
    before, modes = snapshot(model), [module.training for module in model.modules()]
    arguments = {
        "budget": st.Keep(0.5),
        "calibration": [x],
        **{k: v for k, v in change.items() if k not in ("model", "example")},
    }
    given = change["model"](model) if "model" in change else model
    with pytest.raises(error, match=match) as caught:
        st.compress(given, change.get("example", x[:1]), **arguments)
    assert isinstance(caught.value, (ValueError, TypeError)) and "\n" not in str(caught.value)
    assert unchanged(model, before, modes)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"methods": ()}, TypeError),
        ({"methods": ("ChannelSVD",)}, TypeError),
        ({"exclude": "head"}, TypeError),
        ({"multiple_of": 0}, ValueError),
        ({"images": "many"}, ValueError),
        ({"search": "Uniform"}, TypeError),
        ({"search": st.Uniform}, TypeError),
        ({"methods": st.ChannelSVD()}, TypeError),
    ],
)
def test_bad_configurations(options, error):
    with pytest.raises(error):
        st.Config(**options)


def test_exclude_that_matches_nothing(case):
    model, x, _ = case
    with pytest.raises(ValueError, match="exclude has 'fc', which matches no layer"):
        st.compress(model, x[:1], budget=st.Keep(0.5), config=st.Config(exclude=("fc",)))
