"""What the figures of a report are drawn from: that it is true of the network, and the menu's own."""

import os

import pytest
import torch
from torch import nn

import spectrim as st
from spectrim.core.cost import NANOSECONDS
from spectrim.core.figures import Limit
from spectrim.network.counting import stored
from spectrim.pipeline.details import RANKS, limits, row_times, spectra
from spectrim.pipeline.latency import formula
from spectrim.pipeline.stopwatch import Stopwatch

METHODS = (st.ChannelSVD(), st.SpatialSVD(), st.Tucker2())


@pytest.fixture(scope="module")
def prepared(case):
    model, x, _ = case
    config = st.Config(methods=METHODS, search=st.Knapsack(), multiple_of=1, refit=False, images=96)
    return st.prepare(model, x[:1], calibration=[x], config=config)


@pytest.fixture(scope="module")
def result(prepared):
    plan = st.choose(prepared, st.Keep(0.5, "params"))
    realized = st.realize(prepared, plan)
    return st.Result(realized.model, plan, st.account(prepared, plan, realized, budget=st.Keep(0.5, "params")))


def test_the_report_has_its_figures_network_and_day(result):
    report = result.report
    assert report.network == "Residual" and report.limits == (Limit("Keep", 0.5, "params"),)
    assert report.stored[1] == stored(result.model) < report.stored[0]
    assert f"{os.cpu_count()} cores" in report.machine and set(report.versions) == {"spectrim", "torch", "python"}
    assert report.date[:2] == "20" and report.date[10] == "T" and report.spectra
    assert st.Report.from_json(report.to_json()) == report


def test_spectra_are_the_menu_s(prepared, result):
    rows = {row.layer.name: row for row in prepared.menu.layers}
    found = spectra(prepared.menu, result.plan)
    assert {spectrum.layer for spectrum in found} == {name for name, row in rows.items() if len(row.options) > 2}
    for spectrum in found:
        row = rows[spectrum.layer]
        options = {option.rank: number for number, option in enumerate(row.options) if option.title == spectrum.method}
        assert 2 <= len(spectrum.ranks) <= RANKS + 1 and set(spectrum.ranks) <= set(options)
        for rank, macs, harm in zip(spectrum.ranks, spectrum.macs, spectrum.harms, strict=True):
            assert macs == row.options[options[rank]].cost.macs
            assert harm == pytest.approx(row.scores["response"][options[rank]], rel=1e-4)
        assert list(spectrum.ranks) == sorted(spectrum.ranks) and min(options) == spectrum.ranks[0]
    chosen = {(name, option.title, option.rank) for name, option in result.plan.items()}
    kept = {(each.layer, each.method, rank) for each in found for rank in each.ranks}
    assert chosen and {each for each in chosen if (each[0], each[1]) in {(s.layer, s.method) for s in found}} <= kept


def test_a_given_plan_has_no_spectra(case, result):
    model, x, _ = case
    config = st.Config(search=st.Knapsack(), refit=False, images=96)
    report = st.compress(model, x[:1], plan=result.plan, calibration=[x], config=config).report
    assert report.spectra == () and report.limits == () and report.network == "Residual"


class Slow(nn.Module):
    """A convolution, and one with a thousand times its work, called twice."""

    def __init__(self):
        super().__init__()
        self.small, self.large = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 33, padding=16)

    def forward(self, x):
        return self.large(self.large(self.small(x)))


def test_times_of_layers_in_pytorch_are_measured():
    model, x = Slow(), torch.randn(1, 4, 24, 24)
    layers = st.find_layers(model, x)
    plan = st.plan_from(model, x, {"large": (st.SpatialSVD(), 2)})
    small = st.apply(plan, model)
    times, how = row_times(st.Torch(), (model, small), layers=layers, plan=plan, example=x, whole=1.0)
    assert how.startswith("measured") and list(times) == ["small", "large"]
    assert times["large"][0] > 3 * times["small"][0] and times["large"][1] < times["large"][0]
    assert not any(module._forward_hooks for module in (*model.modules(), *small.modules()))
    half = row_times(st.Torch(precision="bf16"), (model, small), layers=layers, plan=plan, example=x, whole=1.0)
    assert half == ({}, "")  # another network than the one at hand


def test_times_of_layers_elsewhere_are_the_formula_s():
    model, x = Slow(), torch.randn(1, 4, 24, 24)
    layers = st.find_layers(model, x)
    plan = st.plan_from(model, x, {"large": (st.SpatialSVD(), 2)})
    target = st.OnnxRuntime()
    times, how = row_times(target, (model, st.apply(plan, model)), layers=layers, plan=plan, example=x, whole=8.0)
    assert how == "by a formula for ONNX Runtime, not measured"
    assert sum(before for before, _ in times.values()) == pytest.approx(8.0) and times["small"][0] == times["small"][1]
    large = next(option for option in plan.values())
    alone = formula(target, st.Option(large.layer))
    assert times["large"][1] / times["large"][0] == pytest.approx(formula(target, large) / alone)


@pytest.mark.parametrize(
    ("budget", "wanted"),
    [
        (None, ()),
        (st.MaxDrop(1.5, "latency"), (Limit("MaxDrop", 1.5, "latency"),)),
        (st.AtMost(4, "bytes"), (Limit("AtMost", 4.0, "bytes"),)),
        ([st.Keep(1, "macs"), st.AtMost(4e6, "bytes")], (Limit("Keep", 1.0, "macs"), Limit("AtMost", 4e6, "bytes"))),
    ],
    ids=str,
)
def test_bounds_as_records(budget, wanted):
    assert limits(budget) == wanted


@pytest.mark.parametrize("target", [None, st.Torch(), "failing"], ids=str)
def test_budgets_tried_are_timed_where_the_user_says_on_what(case, monkeypatch, target):
    model, x, labels = case
    timed = []

    def ratio(self, plan):
        if target == "failing":
            raise ValueError("it cannot be exported")
        timed.append(plan)
        return plan.cost.macs / NANOSECONDS

    monkeypatch.setattr(Stopwatch, "ratio", ratio)
    config = st.Config(methods=METHODS[:1], search=st.Knapsack(), refit=False, target=target and st.Torch(), images=96)
    prepared = st.prepare(model, x[:1], calibration=[x], config=config)
    report = st.maxdrop(prepared, st.MaxDrop(30, "params"), st.Accuracy([(x, labels)]), most=4).report
    assert len(report.tries) > 1 and len(timed) == (len(report.tries) if isinstance(target, st.Torch) else 0)
    for tried in report.tries:
        assert tried.params == tried.kept and tried.error is not None and 0 < tried.macs < 1
        assert tried.time == (tried.macs * prepared.original.macs / NANOSECONDS if timed else None)
