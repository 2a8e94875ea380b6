"""MaxDrop: the bracket that decides which budget is next, and the search over budgets with networks that are evaluated."""

import copy
import itertools

import pytest
import torch
from torch import nn

import spectrim as st
from spectrim.pipeline.bracket import RESOLUTION, Bracket
from spectrim.pipeline.maxdrop import least
from spectrim.pipeline.probe import NetworkProbe

METHODS = (st.ChannelSVD(),)
OWN_UNITS = [  # score of the original, name, unit, whether larger is better, what may be lost
    (30.5, "PSNR", "dB", True, 0.3),
    (0.45, "loss", "nats", False, 0.02),
    (2e-4, "MSE", "", False, 1e-5),
    (21.0, "perplexity", "", False, 150.0),
    (37.5, "mAP", "%", True, 1.5),
]


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
    best = min(k / 1000 for k in range(10, 1001) if drop(k / 1000) <= 1.5)
    assert held[-1] <= 1.05 * best


@pytest.mark.parametrize("cliff", [0.02, 0.37, 0.9])
def test_a_bracket_does_not_trust_predictions(cliff):
    """A drop that has nothing to do with the predicted harm."""
    bracket, held = Bracket(0.01, 1.5, nats=True), []
    while (keep := bracket.next(lambda keep: 1 / keep)) is not None:
        if bracket.add(keep, keep, 1 / keep, 0.0 if keep > cliff else 60.0):
            held.append(keep)
    assert cliff < held[-1] < 1.03 * cliff and bracket.tries < 25


def test_a_bracket_that_no_budget_holds_closes_at_the_top():
    bracket = Bracket(0.5, 1.5, nats=False)
    while (keep := bracket.next(lambda keep: 1 / keep)) is not None:
        assert not bracket.add(keep, keep, 1 / keep, 40.0)
    assert bracket.low > 0.97


@pytest.fixture(scope="module")
def prepared(case):
    model, x, _ = case
    return st.prepare(model, x[:1], calibration=[x], config=st.Config(methods=METHODS, multiple_of=2))


def accuracy(case):
    _, x, labels = case
    return st.Accuracy([(x, labels)])


@pytest.mark.parametrize("points", [6.0, 30.0])
@pytest.mark.parametrize("metric", ["params", "macs"])
def test_what_is_returned_holds_the_bound_and_was_evaluated(case, prepared, points, metric):
    _, x, _ = case
    evaluate = accuracy(case)
    result = st.maxdrop(prepared, st.MaxDrop(points, metric), evaluate)
    score, tries = result.report.selection, result.report.tries
    assert score.drop <= points and score.standard_error is not None and score.examples == 96
    assert evaluate(result.model) == pytest.approx(score.after) and result.report.budget == f"MaxDrop({points:g}, {metric!r})"
    kept = result.report.kept[metric == "macs"]
    held, broken = ([t.kept for t in tries if (t.drop <= points) == holds] for holds in (True, False))
    assert kept == pytest.approx(min(held)) and st.cost(result.model, x[:1]) == result.report.after
    assert not broken or max(broken) < RESOLUTION * 1.01 * kept or max(broken) > kept
    assert (kept, score.drop) in [(pytest.approx(t.kept), pytest.approx(t.drop)) for t in tries]
    assert len({t.kept for t in tries}) == len(tries) > 2  # no plan is evaluated twice
    for first, second in itertools.combinations(tries[:-1], 2):  # the last plan may have been chosen by measured harms
        assert (first.harm - second.harm) * (first.kept - second.kept) <= 0  # predicted harm falls with what is kept


def test_a_plain_function_has_no_standard_error(case, prepared):
    evaluate = accuracy(case)
    result = st.maxdrop(prepared, st.MaxDrop(30, "macs"), lambda network: float(evaluate(network)))
    assert result.report.selection.standard_error is None and result.report.selection.drop <= 30


def test_it_is_what_compress_does(case, prepared):
    model, x, _ = case
    evaluate, budget = accuracy(case), st.MaxDrop(30, "params")
    by_hand = st.maxdrop(prepared, budget, evaluate)
    whole = st.compress(model, x[:1], budget=budget, calibration=[x], evaluate=evaluate, config=prepared.config)
    assert (
        whole.plan == by_hand.plan
        and torch.equal(whole.model(x), by_hand.model(x))
        and whole.report.tries == by_hand.report.tries
    )
    assert whole.report.passes == by_hand.report.passes


class Bounded:
    """Says of each network what its kept fraction of parameters deserves."""

    def __init__(self, drop):
        self.drop, self.seen, self.most = drop, [], 0

    def __call__(self, network):
        params = sum(parameter.numel() for parameter in network.parameters())
        self.most = self.most or params
        self.seen.append(network)
        return 0.9 - self.drop(params / self.most) / 100


@pytest.mark.parametrize(("before", "name", "unit", "larger", "allowed"), OWN_UNITS)
def test_the_bound_is_in_the_unit_of_the_score(prepared, before, name, unit, larger, allowed):
    """What a network keeps of its parameters decides: it may keep 0.6 and no less, whatever the unit."""

    def evaluate(network):
        kept = sum(parameter.numel() for parameter in network.parameters()) / prepared.menu.original.params
        worse = (1 - kept) * allowed / 0.4
        return {name: st.Measurement(before - worse if larger else before + worse, name, unit, larger), "size": kept}

    result = st.maxdrop(prepared, st.MaxDrop(allowed, "params"), evaluate)
    score, tries = result.report.selection, result.report.tries
    assert 0.6 <= result.report.kept[0] < 0.63 and len(tries) < 15
    assert 0 < score.drop <= allowed * (1 + 1e-9) and (score.name, score.unit, score.larger_is_better) == (name, unit, larger)
    assert score.drop == pytest.approx(min((t.kept, t.drop) for t in tries if t.drop <= allowed)[1])
    assert score.also[0].name == "size" and score.also[0].after == pytest.approx(result.report.kept[0])


def test_a_bound_in_its_own_unit_that_cannot_be_met(prepared):
    def evaluate(network):
        params = sum(parameter.numel() for parameter in network.parameters())
        return st.Measurement(3.5 if params == prepared.menu.original.params else 9.25, "loss", "nats", larger_is_better=False)

    with pytest.raises(st.BudgetError, match=r"already raises loss by 5\.750 nats; allow more"):
        st.maxdrop(prepared, st.MaxDrop(0.5, "params"), evaluate)


@pytest.mark.parametrize("search", [st.Knapsack(), st.Interaction(images=32)], ids=repr)
@pytest.mark.parametrize("most", [1, 2, 4])
def test_no_more_budgets_than_asked_are_tried(case, most, search):
    model, x, _ = case
    config = st.Config(methods=METHODS, search=search, images=64, batch=16, multiple_of=1)
    prepared = st.prepare(model, x[:1], calibration=[x], config=config)
    harmful = Bounded(lambda kept: 50.0 * (kept < 1))
    with pytest.raises(st.BudgetError, match="cannot be met"):
        st.maxdrop(prepared, st.MaxDrop(1.0, "params"), harmful, most=most)
    assert len(harmful.seen) == most + 1
    cliff, start = Bounded(lambda kept: 50.0 * (kept < 0.4)), st.Try(0.9, 0.5, 1e-3)
    result = st.maxdrop(prepared, st.MaxDrop(1.0, "params"), cliff, start=start, most=most + 6)
    assert 0.4 <= result.report.kept[0] < 0.9 and len(cliff.seen) - 1 == len(result.report.tries) <= most + 6


@pytest.mark.parametrize("high", [0.95, 0.7])
def test_a_budget_that_holds_the_bound_already_is_undercut(prepared, high):
    evaluate = Bounded(lambda kept: 20 * (1 - kept))
    start = st.Try(high, 20 * (1 - high), 0.01)
    result = st.maxdrop(prepared, st.MaxDrop(8.0, "params"), evaluate, start=start)
    assert all(tried.kept <= high for tried in result.report.tries) and result.report.kept[0] <= high
    assert result.report.selection.drop <= 8.0
    free = st.maxdrop(prepared, st.MaxDrop(8.0, "params"), evaluate)
    assert result.report.kept[0] <= 1.05 * free.report.kept[0]


def test_a_start_that_cannot_be_undercut(prepared):
    """Nothing below the start holds the bound: the caller keeps what it has."""
    evaluate = Bounded(lambda kept: 0.0 if kept > 0.99 else 50.0)
    with pytest.raises(st.BudgetError, match="cannot be met"):
        st.maxdrop(prepared, st.MaxDrop(1.0, "params"), evaluate, start=st.Try(0.8, 0.0, 0.001))
    assert all(sum(p.numel() for p in network.parameters()) <= 0.8 * evaluate.most + 1 for network in evaluate.seen[1:])


def head_of(network):
    """Return the last layer of a network, factorized or not."""
    return network.head[-1] if isinstance(network.head, nn.Sequential) else network.head


def test_every_network_is_recovered_before_it_is_evaluated(case, prepared):
    _, x, _ = case
    given, recovered = [], []

    def recover(network):
        given.append(network)
        with torch.no_grad():
            head_of(network).bias += 1  # it may change what it is given
        recovered.append(copy.deepcopy(network))
        return recovered[-1]

    evaluate = Bounded(lambda kept: 20 * (1 - kept))
    result = st.maxdrop(prepared, st.MaxDrop(6.0, "params"), evaluate, recover)
    assert evaluate.seen[1:] == recovered and len(given) == len(result.report.tries) > 2
    assert result.model in recovered and result.model not in given
    assert result.report.seconds["recover"] > 0
    shifted = st.realize(prepared, result.plan).model(x) + 1
    torch.testing.assert_close(result.model(x), shifted)  # what it did is in what is returned, and once


def test_what_recovers_may_wrap_the_network_and_nothing_else(prepared):
    evaluate, bound = Bounded(lambda kept: 20 * (1 - kept)), st.MaxDrop(6.0, "params")
    result = st.maxdrop(prepared, bound, evaluate, lambda network: torch.optim.swa_utils.AveragedModel(network))
    assert type(result.model) is type(prepared.model) and result.report.measured_harm is not None
    with pytest.raises(TypeError, match="recover returned NoneType; it must return the network"):
        st.maxdrop(prepared, bound, Bounded(lambda kept: 20 * (1 - kept)), lambda network: None)
    with pytest.raises(ValueError, match="recover returned a network with other parameters or buffers \\(0"):
        st.maxdrop(prepared, bound, Bounded(lambda kept: 20 * (1 - kept)), nn.Sequential)


def test_recovery_that_helps_finds_more_compression(prepared):
    def drop_of(healing):
        return Bounded(lambda kept: healing * 20 * (1 - kept))

    budget = st.MaxDrop(6.0, "params")
    plain = st.maxdrop(prepared, budget, drop_of(1.0))
    healed = st.maxdrop(prepared, budget, drop_of(0.4), lambda network: network)
    assert healed.report.kept[0] < plain.report.kept[0]


@pytest.mark.parametrize("bad", [91.7, -2.0])
def test_a_score_that_is_no_fraction_is_refused_before_anything_is_built(case, prepared, bad):
    with pytest.raises(ValueError, match="MaxDrop needs a fraction between 0 and 1, such as 0.917"):
        st.maxdrop(prepared, st.MaxDrop(1), lambda network: bad)


def test_a_bound_that_nothing_holds_gets_a_sentence(prepared):
    calls = []

    def worse(network):
        calls.append(network)
        return 0.9 if len(calls) == 1 else 0.5

    with pytest.raises(st.BudgetError, match=r"cannot be met: keeping 9\d\.\d % of the macs already loses 40"):
        st.maxdrop(prepared, st.MaxDrop(1.5, "macs"), worse)


def test_a_network_without_anything_to_cut_gets_the_reasons():
    model = nn.Sequential(nn.Conv2d(3, 1, 1), nn.Flatten())
    prepared = st.prepare(model, torch.zeros(1, 3, 2, 2))
    with pytest.raises(st.BudgetError, match="nothing can be compressed: no method pays on any layer"):
        least(prepared, "macs")


@pytest.mark.parametrize("holds", [True, False])
def test_a_measured_choice_has_the_last_word(case, monkeypatch, holds):
    """What predictions just missed is tried once more with a plan that was measured, and taken if it holds the bound."""
    model, x, _ = case
    measured = []
    monkeypatch.setattr(NetworkProbe, "gain", lambda self, chosen, other: measured.append(other) or (1.0, 0.0))
    config = st.Config(methods=METHODS, search=st.Interaction(images=32), images=48, batch=16, multiple_of=1)
    prepared = st.prepare(model, x[:1], calibration=[x], config=config)
    evaluate = Bounded(lambda kept: (0.0 if holds else 50.0) if measured else 50.0 * (kept < 0.6))
    result = st.maxdrop(prepared, st.MaxDrop(1.0, "params"), evaluate)
    plan = prepared.menu.plan(measured[-1])
    best = min(tried.kept for tried in result.report.tries[:-1] if tried.drop <= 1.0)
    assert (list(result.plan.items()) == list(plan.items())) == holds
    assert result.report.tries[-1].kept == pytest.approx(plan.cost.params / plan.original.params)
    assert result.report.tries[-1].kept < best
    assert result.report.kept[0] == pytest.approx(result.report.tries[-1].kept if holds else best)
    assert result.report.passes["backward"] > 1
