"""The four steps by hand, once for many budgets, and what each is said to have taken."""

import copy
import dataclasses
import time

import numpy as np
import pytest
import torch

import spectrim as st
from spectrim.core.progress import Spent

METHODS = (st.ChannelSVD(), st.SpatialSVD())
CONFIGS = {
    "knapsack": st.Config(methods=METHODS, search=st.Knapsack()),
    "portfolio": st.Config(methods=METHODS),
    "no refit": st.Config(methods=METHODS, search=st.Knapsack(), refit=False),
    "energy": st.Config(methods=METHODS, search=st.Energy()),
    "greedy": st.Config(methods=(st.ChannelSVD(),), search=st.Greedy()),
    "measured": st.Config(methods=(st.ChannelSVD(),), search=st.Interaction(images=32), images=48, batch=16),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_the_four_steps_by_hand_are_compress(case, name):
    model, x, labels = case
    evaluate, budget, config = st.Accuracy([(x, labels)]), st.Keep(0.6), CONFIGS[name]
    whole = st.compress(model, x[:1], budget=budget, calibration=[x], evaluate=evaluate, config=config)
    prepared = st.prepare(model, x[:1], calibration=[x], config=config)
    plan = st.choose(prepared, budget)
    realized = st.realize(prepared, plan)
    report = st.account(prepared, plan, realized, evaluate, budget=budget)
    assert plan == whole.plan
    assert torch.equal(realized.model(x), whole.model(x))
    for field in dataclasses.fields(report):
        if field.name not in ("latency", "verdict", "seconds", "date"):
            assert getattr(report, field.name) == getattr(whole.report, field.name), field.name
    assert set(report.seconds) == set(whole.report.seconds)


def test_a_score_that_is_known_is_not_measured_again(case):
    model, x, _ = case
    prepared = st.prepare(model, x[:1], calibration=[x], config=CONFIGS["no refit"])
    plan = st.choose(prepared, st.Keep(0.6))
    realized = st.realize(prepared, plan)
    known = st.Score(0.9, 0.8, 0.1, 96)
    report = st.account(prepared, plan, realized, known)
    assert report.selection is known and "evaluate" not in report.seconds and report.budget == "the given plan"
    assert st.account(prepared, plan, realized).selection is None


def contents(prepared):
    """Return everything that a prepared record holds, copied."""
    menu = [(row.options, {k: v.copy() for k, v in (row.scores | row.costs).items()}) for row in prepared.menu.layers]
    state = {name: value.clone() for name, value in prepared.model.state_dict().items()}
    batches = [batch.clone() for batch in (*prepared.calibration, *prepared.further)]
    return menu, state, batches, copy.deepcopy(prepared.moments), prepared.spent, prepared.key, prepared.survey


def same(first, second):
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second)
    if isinstance(first, np.ndarray):
        return np.array_equal(first, second)
    if isinstance(first, dict):
        return list(first) == list(second) and all(same(first[key], second[key]) for key in first)
    if isinstance(first, (list, tuple)):
        return len(first) == len(second) and all(map(same, first, second))
    if type(first).__name__ == "Moments":
        return same(vars(first), vars(second))
    return first == second


@pytest.mark.parametrize("name", CONFIGS)
def test_what_is_prepared_is_frozen_and_serves_many_budgets(case, name):
    """Whatever is done with it it stays as it was, and each budget gives what it gives alone."""
    model, x, labels = case
    config = CONFIGS[name]
    prepared = st.prepare(model, x[:1], calibration=[x], config=config)
    with pytest.raises(dataclasses.FrozenInstanceError):
        prepared.menu = None
    before = contents(prepared)
    for budget in (st.Keep(0.5), st.Keep(0.6, "params"), st.Keep(0.5)):
        plan = st.choose(prepared, budget)
        realized = st.realize(prepared, plan)
        st.account(prepared, plan, realized, st.Accuracy([(x, labels)]))
        alone = st.compress(model, x[:1], budget=budget, calibration=[x], config=config)
        assert plan == alone.plan and torch.equal(realized.model(x), alone.model(x))
        assert same(contents(prepared), before)
        with torch.no_grad():
            next(realized.model.parameters()).add_(1)  # what the caller does to the network is of no matter either
    assert same(contents(prepared), before)


def test_the_network_is_copied_before_anything_else(case):
    model, x, _ = case
    own = copy.deepcopy(model)
    prepared = st.prepare(own, x[:1], calibration=[x], config=CONFIGS["knapsack"])
    plan = st.choose(prepared, st.Keep(0.6))
    with torch.no_grad():
        for parameter in own.parameters():
            parameter.zero_()
    again = st.realize(st.prepare(model, x[:1], calibration=[x], config=CONFIGS["knapsack"]), plan)
    assert torch.equal(st.realize(prepared, plan).model(x), again.model(x))


class Slow(st.Knapsack):
    """A rank selection that takes its time, the first of two budgets more."""

    naps = (0.4, 0.0)

    def select(self, menu, budget, probe=None):
        time.sleep(self.naps[budget.fraction > 0.6])
        return super().select(menu, budget, probe)


def test_seconds_of_one_budget_do_not_include_those_of_another(case):
    model, x, _ = case
    prepared = st.prepare(model, x[:1], calibration=[x], config=st.Config(methods=METHODS, search=Slow(), refit=False))
    reports = []
    for fraction in (0.5, 0.7):
        plan = st.choose(prepared, st.Keep(fraction))
        reports.append(st.account(prepared, plan, st.realize(prepared, plan)))
    first, second = (report.seconds for report in reports)
    assert first["search"] >= 0.4 > 0.3 > second["search"]
    for stage in ("statistics", "menu"):
        assert first[stage] == second[stage] == prepared.spent.seconds[stage] > 0


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("cached", [False, True])
def test_what_a_report_says_was_spent_is_the_sum_of_the_steps(case, tmp_path, name, cached):
    model, x, _ = case
    config = dataclasses.replace(CONFIGS[name], cache=tmp_path if cached else None)
    reports = []
    for _ in range(2):
        prepared = st.prepare(model, x[:1], calibration=[x], config=config)
        plan = st.choose(prepared, st.Keep(0.6))
        realized = st.realize(prepared, plan)
        report = st.account(prepared, plan, realized)
        steps = prepared.spent + plan.spent + realized.spent
        assert {stage: report.seconds[stage] for stage in steps.seconds} == pytest.approx(dict(steps.seconds))
        assert report.passes == pytest.approx(dict(steps.passes)) and report.passes["forward"] >= 1
        reports.append(report)
    assert reports[0].passes == pytest.approx(dict(reports[1].passes))  # what was found in a cache counts as it did
    wanted = 1.0 + 2.0 * config.refit
    if name in ("knapsack", "no refit", "energy"):
        assert report.passes == {"forward": wanted, "backward": 1.0}
    else:
        assert report.passes["forward"] > wanted


def test_a_new_ledger_has_spent_nothing(case):
    model, x, _ = case
    prepared = st.prepare(model, x[:1], calibration=[x], config=CONFIGS["knapsack"])
    assert prepared.ledger().spent == Spent() and prepared.ledger() is not prepared.ledger()


def test_other_settings_on_what_was_prepared_make_another_network(case):
    """Refitted networks are remembered, by their settings too."""
    model, x, _ = case
    config = st.Config(methods=(st.ChannelSVD(),), batch=32)
    prepared = st.prepare(model, x[:1], calibration=[x], config=config)
    plan = st.choose(prepared, st.Keep(0.6))
    refitted, again = st.realize(prepared, plan), st.realize(prepared, plan)
    plain = st.realize(dataclasses.replace(prepared, config=dataclasses.replace(config, refit=False)), plan)
    torch.testing.assert_close(again.model.state_dict(), refitted.model.state_dict(), rtol=0, atol=0)
    assert again.spent.passes.get("forward", 0) == 0
    assert set(plain.decisions.values()) == {"fitted to its own inputs"}
    assert any(not torch.equal(a, b) for a, b in zip(plain.model.parameters(), refitted.model.parameters(), strict=True))
