"""Choosing a plan: what a rank selection may do, what it is told when it breaks a promise, and what it may have measured."""

import dataclasses
from dataclasses import dataclass

import numpy as np
import pytest
import torch

import spectrim as st
from spectrim.network.calling import batch_size, count, portions
from spectrim.pipeline import fitted
from spectrim.pipeline.choose import scored
from spectrim.pipeline.probe import network_probe
from spectrim.refit.answers import scale
from spectrim.search.interaction import neighbours
from spectrim.sensitivity.measured import batch_harms

METHODS = (st.ChannelSVD(),)


def prepared_for(case, search, **options):
    model, x, _ = case
    options = {"methods": METHODS, "images": 48, "batch": 16, "multiple_of": 1, **options}
    return st.prepare(model, x[:1], calibration=[x], config=st.Config(search=search, **options))


@dataclass(frozen=True)
class Theirs(st.Search):
    """A third party's rank selection, which answers what it is told to."""

    answer: object = None
    title = reference = "Theirs"

    def select(self, menu, budget, probe=None):
        return self.answer(menu) if callable(self.answer) else self.answer


ANSWERS = {
    "too few": (lambda menu: [0] * (len(menu.layers) - 1), r"Theirs returned \[0, .*\]; it must name one option of each layer"),
    "too many": (lambda menu: [0] * (len(menu.layers) + 1), "it must name one option of each layer"),
    "none": (lambda menu: [], r"returned \[\]; it must name one option of each layer"),
    "beyond the menu": (lambda menu: [len(row.options) for row in menu.layers], "it must name one option of each layer"),
    "negative": (lambda menu: [-1 for _ in menu.layers], "it must name one option of each layer"),
    "options": (lambda menu: [row.options[1] for row in menu.layers], "it must name one option of each layer"),
    "names": (lambda menu: [row.layer.name for row in menu.layers], "it must name one option of each layer"),
    "fractions": (lambda menu: [0.5 for _ in menu.layers], "it must name one option of each layer"),
    "a plan": (lambda menu: menu.plan([1 for _ in menu.layers]), "it must name one option of each layer"),
    "nothing": (None, "returned None; it must name one option of each layer"),
    "over the budget": (lambda menu: [0 for _ in menu.layers], r"Theirs broke Keep\(0.6, 'macs'\): its choice costs 232,824"),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_a_broken_rank_selection_gets_a_sentence(case, tmp_path, name):
    answer, words = ANSWERS[name]
    prepared = prepared_for(case, Theirs(answer), cache=tmp_path)
    files = set(tmp_path.iterdir())
    with pytest.raises(ValueError, match=words) as caught:
        st.choose(prepared, st.Keep(0.6))
    assert "\n" not in str(caught.value) and "Theirs" in str(caught.value)
    assert set(tmp_path.iterdir()) == files  # nothing of it is kept


@pytest.mark.parametrize("kind", [list, tuple, np.array, lambda numbers: np.array(numbers, dtype=np.int32)])
def test_any_sequence_of_whole_numbers_will_do(case, kind):
    prepared = prepared_for(case, Theirs(lambda menu: kind([int(row.costs["macs"].argmin()) for row in menu.layers])))
    plan = st.choose(prepared, st.Keep(0.6))
    assert plan.cost.macs == prepared.menu.least("macs") and len(plan) == len(prepared.menu.layers)


@dataclass(frozen=True)
class ByName(st.Search):
    """A third party's rank selection that looks at a column which is there already."""

    title = reference = "ByName"
    score: str = "energy"

    def select(self, menu, budget, probe=None):
        return st.equal_level(menu, budget, self.score)


def test_a_third_partys_selection_may_look_at_any_column_that_is_computed(case):
    prepared = prepared_for(case, ByName())
    assert st.choose(prepared, st.Keep(0.6)) == st.choose(prepared_for(case, st.Energy()), st.Keep(0.6))
    with pytest.raises(ValueError, match="looks at the score 'loud', which nothing computes"):
        st.choose(prepared_for(case, ByName("loud")), st.Keep(0.6))


@pytest.mark.parametrize("budget", [st.MaxDrop(1.0), 0.5, None])
def test_only_a_fraction_is_chosen_for(case, budget):
    with pytest.raises(TypeError, match=r"it must be Keep\(fraction, metric\), .*; `maxdrop` takes MaxDrop"):
        st.choose(prepared_for(case, st.Knapsack()), budget)


def test_a_menu_without_layers_cannot_be_cut():
    with pytest.raises(ValueError, match="has no parameters, so there is nothing to compress"):
        st.prepare(torch.nn.ReLU(), torch.zeros(1, 3))
    model = torch.nn.Sequential(torch.nn.PReLU())
    for search in (st.Knapsack(), st.Energy(), st.Uniform()):
        prepared = st.prepare(model, torch.zeros(1, 3), config=st.Config(search=search))
        assert not st.choose(prepared, st.Keep(1.0))
        assert scored(prepared, "macs").menu.layers == ()


# --- what is measured


def measuring(case, wanted=48, images=32, **options):
    return prepared_for(case, st.Interaction(images=wanted, rounds=2), images=images, **options)


@pytest.mark.parametrize(
    ("images", "wanted", "beyond"),
    [(32, 48, True), (32, 4 * 48, True), (32, 4 * 48 + 1, False), (96, 48, False)],
)
def test_measurements_are_on_further_images_or_on_the_halves_of_the_unseen_ones(case, images, wanted, beyond):
    """At least a quarter of the images wanted must be there beyond the calibration's, of 96 in all."""
    prepared = measuring(case, wanted, images=images)
    probe = network_probe(prepared, prepared.ledger())
    if beyond:
        assert len(probe.moving) + len(probe.judging) == len(prepared.further) == 3 and len(probe.judging) == 1
    else:
        assert count(probe.moving) == count(probe.judging) == count(prepared.unseen) // 2 == 8
        assert not any(torch.equal(a, b) for a in probe.moving for b in probe.judging)
    told = st.account(prepared, plan := st.choose(prepared, st.Keep(0.7)), st.realize(prepared, plan)).notes
    assert not any("had too little to measure on" in note for note in told)
    assert network_probe(prepared_for(case, st.Knapsack()), prepared.ledger()) is None


@pytest.mark.parametrize("size", [1, 3, 8, 20])
def test_portions_are_the_same_examples_in_smaller_batches(size):
    batches = [{"x": torch.randn(n, 2), "flag": torch.ones(()), "none": None} for n in (8, 8, 5)]
    found = portions(batches, size)
    assert all(batch_size(each) <= size and each["none"] is None and each["flag"] == 1 for each in found)
    assert torch.equal(torch.cat([each["x"] for each in found]), torch.cat([each["x"] for each in batches]))


def test_where_nothing_is_unseen_nothing_is_measured_and_the_report_says_so(case):
    model, x, _ = case
    prepared = st.prepare(model, x[:1], calibration=[x[:16]], config=st.Config(methods=METHODS, search=st.Interaction()))
    assert network_probe(prepared, prepared.ledger()) is None
    told = st.account(prepared, plan := st.choose(prepared, st.Keep(0.7)), st.realize(prepared, plan)).notes
    assert any("had too little to measure on" in note for note in told)


def test_without_data_nothing_is_measured(case):
    model, x, _ = case
    prepared = st.prepare(model, x[:1], config=st.Config(methods=METHODS, search=st.Interaction()))
    assert network_probe(prepared, prepared.ledger()) is None
    assert st.choose(prepared, st.Keep(0.6)) == st.choose(prepared, st.Keep(0.6), measure=False)


def test_measuring_is_counted_and_may_be_declined(case):
    prepared = measuring(case)
    plain = st.choose(prepared, st.Keep(0.6), measure=False)
    assert list(plain.items()) == list(prepared.menu.plan(st.Knapsack().select(prepared.menu, st.Keep(0.6))).items())
    measured = st.choose(prepared, st.Keep(0.6))
    assert measured.spent.passes["forward"] > 2 and measured.spent.passes["backward"] > 0
    assert not any(plain.spent.passes.values())
    assert measured.cost.macs <= 0.6 * measured.original.macs


@pytest.mark.parametrize("refit", [True, False])
def test_the_gain_is_the_fall_of_the_harm_on_the_judging_images(case, refit):
    prepared = measuring(case, batch=8, refit=refit)
    probe = network_probe(prepared, prepared.ledger())
    worse, better = (st.Knapsack().select(prepared.menu, st.Keep(fraction)) for fraction in (0.3, 0.8))
    gain, error = probe.gain(worse, better)
    each = []
    for chosen in (worse, better):
        plan = prepared.menu.plan(chosen)
        each.append(np.array(batch_harms(prepared.model, st.realize(prepared, plan).model, probe.judging, prepared.harm)))
    fall = each[0] - each[1]
    assert len(fall) == 2 and gain == pytest.approx(fall.mean(), rel=1e-4) and gain > 0
    assert error == pytest.approx(fall.std(ddof=1) / np.sqrt(2), rel=1e-3)
    assert probe.gain(better, worse)[0] == pytest.approx(-gain) and probe.gain(better, better) == (0.0, 0.0)


def test_networks_that_were_built_are_remembered(case):
    prepared = measuring(case)
    probe = network_probe(prepared, prepared.ledger())
    chosen = st.Knapsack().select(prepared.menu, st.Keep(0.6))
    plan = prepared.menu.plan(chosen)
    first, count = probe.fitted(plan), dict(probe.images)
    probe.gain(chosen, chosen)
    assert probe.fitted(plan) is first and probe.images["forward"] == count["forward"] + 2 * 16  # both networks, once
    torch.testing.assert_close(first.model(prepared.calibration[0]), st.realize(prepared, plan).model(prepared.calibration[0]))


def test_an_option_that_was_chosen_is_the_module_that_is_there(case, monkeypatch):
    """Of the layer that answers, too, which may be scaled: else each change of it would seem to do harm."""

    def scaled(model, small, name, batches):
        scale(small.get_submodule(name), 1.3)
        return 1.3

    monkeypatch.setattr(fitted, "scale_answers", scaled)
    prepared = measuring(case, images=96)
    probe = network_probe(prepared, prepared.ledger())
    chosen = [min(2, len(row.options) - 1) for row in prepared.menu.layers]
    found = probe.fitted(prepared.menu.plan(chosen))
    assert found.scales == {"head": 1.3} and "head" in prepared.menu.plan(chosen)
    for layer, index in enumerate(chosen):
        name, module = probe._module(found, layer, index)
        torch.testing.assert_close(module.state_dict(), found.model.get_submodule(name).state_dict())


@pytest.mark.parametrize("refit", [True, False])
def test_the_quadratic_model_has_the_measured_base(case, refit):
    prepared = measuring(case, refit=refit)
    told = []
    ledger = dataclasses.replace(
        prepared, config=dataclasses.replace(prepared.config, progress=lambda *x: told.append(x))
    ).ledger()
    probe = network_probe(prepared, ledger)
    chosen = st.Knapsack().select(prepared.menu, st.Keep(0.6))
    alternatives = neighbours(prepared.menu, chosen, "macs")
    model = probe.quadratic_model(chosen, alternatives)
    small = st.realize(prepared, prepared.menu.plan(chosen)).model
    base = np.mean(batch_harms(prepared.model, small, probe.moving, prepared.harm))
    assert model.base == pytest.approx(base, rel=1e-4) and model.gram.shape == (len(alternatives), len(alternatives))
    assert told == sorted(told) and 0.7 < told[-1][1] < 0.99 and {stage for stage, _ in told} == {"search"}
