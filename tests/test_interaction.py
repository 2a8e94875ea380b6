import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

import spectrim as st
from nets import Residual, settle
from spectrim.compress import Study
from spectrim.harm import curvature_root, output_harm, slope
from spectrim.score.displacement import surroundings
from spectrim.score.measured import measured_harm, similarity, single_harms
from spectrim.score.rescore import FEW, few
from spectrim.search import Menu, Surroundings
from spectrim.search.interaction import best_moves, neighbours
from spectrim.surgery import duplicate, replace_module
from spectrim.testing import random_menu


def squared(outputs, reference):
    return 3 * (outputs - reference).square().sum(1).mean()


def cubic(outputs, reference):
    return (outputs - reference).square().sum(1).mean() + (outputs - reference).pow(4).sum(1).mean()


def mean_outer(vectors):
    return torch.einsum("sni,snj->nij", vectors, vectors) / len(vectors)


@pytest.mark.parametrize("harm", [output_harm, squared])
def test_curvature_and_slope_against_autograd(harm):
    torch.manual_seed(0)
    reference = 2 * torch.randn(3, 5)
    outputs = reference + torch.randn(3, 5)
    generator = torch.Generator().manual_seed(0)
    wanted = torch.autograd.functional.hessian(lambda x: len(x) * harm(x, reference), outputs)
    found = mean_outer(torch.stack([curvature_root(outputs, reference, harm, generator)[0] for _ in range(20000)]))
    for example in range(3):
        np.testing.assert_allclose(found[example], wanted[example, :, example], atol=0.03 * float(wanted.abs().max()))
    x = outputs.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(3 * harm(x, reference), x)
    np.testing.assert_allclose(slope(outputs, reference, harm)[0], gradient, atol=1e-6)


def test_curvature_of_a_harm_whose_outputs_weigh_differently():
    """Weights that differ a thousandfold, in two tensors, and a full matrix: Lanczos finds the root of each."""
    torch.manual_seed(0)
    weights = torch.tensor([10.0, 1.0, 0.01])
    mixing = torch.randn(4, 4)

    def harm(outputs, reference):
        first, second = (a - b for a, b in zip(outputs, reference, strict=True))
        return ((first.square() * weights).sum(1) + (second @ mixing).square().sum(1)).mean()

    outputs = (torch.randn(2, 3), torch.randn(2, 4))
    generator = torch.Generator().manual_seed(0)
    pairs = [curvature_root(outputs, outputs, harm, generator) for _ in range(20000)]
    first, second = (mean_outer(torch.stack(column)) for column in zip(*pairs, strict=True))
    for example in range(2):
        np.testing.assert_allclose(first[example].diagonal(), 2 * weights, rtol=0.06)
        wanted = 2 * mixing @ mixing.T
        np.testing.assert_allclose(second[example], wanted, atol=0.06 * float(wanted.abs().max()))


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (lambda a, b: (a - b).abs().mean(), "second derivative"),
        (lambda a, b: (a - b).square().mean().sqrt(), "second derivative"),
        (lambda a, b: -(a - b).square().mean(), "second derivative"),
        (lambda a, b: 1 + (a - b).square().mean(), "must be zero there"),
        (lambda a, b: (a - b).square().sum(1), r"shape \(16,\)"),
    ],
)
def test_harms_that_cannot_work_are_refused_at_once(harm, words):
    x = torch.randn(16, 3, 8, 8)
    with pytest.raises(ValueError, match=words):
        st.compress(settle(Residual(), x), x[:1], budget=st.Keep(0.6), calibration=[x], config=st.Config(harm=harm))


def test_squared_error_is_the_harm_of_outputs_that_are_no_logits():
    torch.manual_seed(0)
    reference = (torch.randn(4, 3, 6, 6), {"boxes": torch.randn(4, 2)})
    outputs = (reference[0] + 0.1, {"boxes": reference[1]["boxes"] + 0.2})
    expected = (0.01 / reference[0].square().mean() + 0.04 / reference[1]["boxes"].square().mean()) / 2
    assert float(output_harm(outputs, reference)) == pytest.approx(float(expected), rel=1e-5)
    roots = curvature_root(outputs, reference, output_harm, torch.Generator().manual_seed(0))
    assert [root.shape for root in roots] == [reference[0].shape, reference[1]["boxes"].shape]
    power = float(roots[0].flatten(1).square().sum(1).mean())  # the trace of the Hessian
    assert power == pytest.approx(1 / float(reference[0].square().mean()), rel=0.2)


@pytest.mark.parametrize("bad", [lambda a, b: 1.0, lambda a, b: (a - b).square(), lambda a, b: a.detach().sum()])
def test_an_unusable_harm_gets_a_sentence(bad):
    x = torch.randn(16, 3, 8, 8)
    with pytest.raises(ValueError, match="harm"):
        st.compress(settle(Residual(), x), x[:1], budget=st.Keep(0.6), calibration=[x], config=st.Config(harm=bad))
    with pytest.raises(TypeError, match="harm is 3"):
        st.Config(harm=3)


class Part(nn.Module):
    """A tenth of the way from one module to another, so that second order is nearly all there is."""

    def __init__(self, new, old):
        super().__init__()
        self.new, self.old = new, duplicate(old)

    def forward(self, x):
        return self.old(x) + 0.1 * (self.new(x) - self.old(x))


def small_world(images=256, classes=6):
    torch.manual_seed(0)
    x = torch.randn(images, 3, 8, 8)
    x = functional.avg_pool2d(x, 3, 1, 1) * 2
    model = settle(Residual(), x)
    return model, x


@pytest.mark.parametrize("harm", [output_harm, cubic])
def test_predicted_changes_against_measured_ones(harm):
    """Singly and jointly, around a network other than the original."""
    model, x = small_world(1024)
    batches = list(x.split(128))
    study = Study(model, x[:1], batches, st.Config(methods=(st.ChannelSVD(),), search=st.Knapsack()))
    plan = study.select(st.Keep(0.7))
    now = study.fit(plan)
    options = neighbours(study.menu, plan, "macs")
    modules = [now.sites[option.layer.name].fit(option) for option in options]
    modules = [Part(module, now.model.get_submodule(o.layer.name)) for module, o in zip(modules, options, strict=True)]
    found = surroundings(model, now.model, list(zip(options, modules, strict=True)), batches, harm=harm)
    assert found.base == pytest.approx(measured_harm(model, now.model, batches, harm), rel=1e-5)
    np.testing.assert_allclose(found.gram, found.gram.T)
    assert np.linalg.eigvalsh(found.gram).min() > -1e-9
    owners = [option.layer.name for option in options]
    random = np.random.default_rng(0)
    predicted, measured = [], []
    for _ in range(12):
        chosen = [int(random.choice([i for i, o in enumerate(owners) if o == name])) for name in dict.fromkeys(owners)]
        changed = duplicate(now.model)
        for index in chosen:
            replace_module(changed, owners[index], modules[index])
        predicted.append(found.harm(chosen) - found.base)
        measured.append(measured_harm(model, changed, batches, harm) - found.base)
    assert np.corrcoef(predicted, measured)[0, 1] > 0.98
    np.testing.assert_allclose(predicted, measured, atol=0.15 * np.abs(measured).max())


def test_best_moves_keep_the_budget_and_meet_brute_force():
    menu = random_menu(0)
    plan = st.Knapsack().select(menu, st.Keep(0.5, "params"))
    options = neighbours(menu, plan, "params")
    random = np.random.default_rng(0)
    met = 0
    for _ in range(20):
        root = random.normal(size=(len(options), 8))
        found = Surroundings(tuple(options), 1.0, 0.5 * random.normal(size=len(options)), root @ root.T / 40)
        slack = int(random.integers(0, 60))
        chosen = best_moves(found, plan, slack, "params")
        names = [options[index].layer.name for index in chosen]
        prices = [o.cost.params - plan[o.layer.name].cost.params for o in options]
        assert len(set(names)) == len(names) and sum(prices[index] for index in chosen) <= slack
        rows = [
            [None, *(i for i, option in enumerate(options) if option.layer.name == name)]
            for name in dict.fromkeys(option.layer.name for option in options)
        ]
        joint = [[i for i in choice if i is not None] for choice in itertools.product(*rows)]
        best = min(found.harm(choice) for choice in joint if sum(prices[i] for i in choice) <= slack)
        assert best - 1e-12 <= found.harm(chosen) <= found.base
        met += found.harm(chosen) <= best + 0.05 * (1.0 - best)
    assert met >= 15  # local search; most often the best there is


def test_neighbours_are_on_both_sides_and_of_planned_layers():
    menu = convex_menu(1)
    plan = st.Knapsack().select(menu, st.Keep(0.5, "params"))
    options = neighbours(menu, plan, "params")
    for name, now in plan.items():
        prices = {o.cost.params - now.cost.params for o in options if o.layer.name == name}
        assert 0 not in prices and len(prices) <= 4
    assert {option.layer.name for option in options} <= set(plan)
    assert any(o.cost.params < plan[o.layer.name].cost.params for o in options)


def test_interaction_measures_and_never_does_worse_on_held_out_images():
    model, x = small_world(1536)
    search = st.Interaction(images=1024, rounds=2)
    config = st.Config(methods=(st.ChannelSVD(),), search=search, images=512)
    study = Study(model, x[:1], [x], config)
    assert sum(map(len, study.more)) == 1024
    plan, _ = study.shrink(st.Keep(0.5))
    start = study.select(st.Keep(0.5), measure=False)
    assert plan.cost.macs <= 0.5 * plan.original.macs
    assert start == st.Knapsack().select(study.menu, st.Keep(0.5))
    gain, _ = study.probe().gain(start, plan)
    assert gain >= 0
    few_images = Study(model, x[:1], [x[:600]], config)
    assert few_images.probe() is None and few_images.select(st.Keep(0.5)) == few_images.select(st.Keep(0.5), measure=False)


def convex_menu(seed):
    """A menu whose additive optimum lies between the extremes of its layers."""
    menu = random_menu(seed, layers=5)
    weights = np.random.default_rng(seed).uniform(0.5, 2, size=5)
    rows = [
        tuple(replace(o, harm=float(weight * (1 - o.rank / 30) ** 4) if o.method else 0.0) for o in row)
        for weight, row in zip(weights, menu.options, strict=True)
    ]
    return Menu(tuple(rows), menu.original)


class OneMove:
    """A probe whose answers are known."""

    def __init__(self, gains):
        self.gains, self.asked = gains, 0

    def surroundings(self, plan, alternatives):
        self.asked += 1
        cheaper = [o.cost.params < plan[o.layer.name].cost.params for o in alternatives]
        slopes = np.array([0.01 if less else -1.0 for less in cheaper])
        return Surroundings(tuple(alternatives), 10.0, slopes, np.zeros((len(slopes), len(slopes))))

    def gain(self, plan, other):
        return self.gains.pop(0)


def test_a_round_that_does_not_pay_ends_the_search():
    menu = convex_menu(2)
    budget = st.Keep(0.5, "params")
    start = st.Knapsack().select(menu, budget)
    for gains, rounds, asked in (([(1.0, 0.5), (1.0, 2.0)], 9, 2), ([(0.1, 0.2)], 9, 1), ([(1.0, 0.5)] * 3, 3, 3)):
        probe = OneMove(list(gains))
        plan = st.Interaction(rounds=rounds).select(menu, budget, probe)
        assert probe.asked == asked and plan.cost.params <= 0.5 * plan.original.params
        assert (plan == start) == (gains[0][0] < gains[0][1])
    with pytest.raises(ValueError, match="neither may be negative"):
        st.Interaction(rounds=-1)


def maps(network, name, x):
    found = []
    hook = network.get_submodule(name).register_forward_hook(lambda module, args, output: found.append(output.flatten(1)))
    with torch.no_grad():
        network.eval()(x)
    hook.remove()
    return found[0]


def test_single_harms_and_similarity_see_one_layer_at_a_time():
    model, x = small_world(64)
    study = Study(model, x[:1], [x], st.Config(methods=(st.ChannelSVD(),), search=st.Knapsack()))
    rows = [few(row, "macs") for row in study.menu.options]
    assert all(len(row) <= FEW + 2 and row[0].method is None for row in rows)
    harms = single_harms(model, rows, study.batches, study.moments, output_harm)
    unlike = similarity(model, rows, study.batches, study.moments, output_harm)
    for row, measured, distances in zip(rows, harms, unlike, strict=True):
        for option, harm, distance in list(zip(row[1:], measured, distances, strict=True))[::4]:
            small = st.apply(st.Plan({option.layer.name: option}, study.original), model, moments=study.moments)
            assert measured_harm(model, small, study.batches) == pytest.approx(harm, abs=1e-6)
            seen = [maps(network, option.layer.name, x) for network in (model, small)]
            assert 1 - float(functional.cosine_similarity(*seen).mean()) == pytest.approx(distance, abs=1e-5)


@pytest.mark.parametrize("search", [st.Greedy(), st.Similarity(), st.Knapsack(score="whitened"), st.Energy(score="whitened")])
def test_scores_of_data_need_data(search):
    x = torch.randn(8, 3, 8, 8)
    with pytest.raises(ValueError, match="looks at calibration images"):
        st.compress(settle(Residual(), x), x[:1], budget=st.Keep(0.6), config=st.Config(search=search))


def test_unknown_scores():
    with pytest.raises(ValueError, match="allowed are 'response' and 'whitened'"):
        st.Knapsack(score="loud")
    with pytest.raises(ValueError, match="allowed are 'energy' and 'whitened'"):
        st.Energy(score="loud")


def test_whitened_share_is_that_of_the_output_energy():
    model, x = small_world(64)
    study = Study(model, x[:1], [x], st.Config(methods=(st.ChannelSVD(),), search=st.Knapsack(score="whitened")))
    study.select(st.Keep(0.6))
    menu: Menu = study.menus["whitened", "macs"]
    row = menu.options[1]
    option = row[-1]
    values = torch.linalg.eigvalsh(study.moments[option.layer.name].response[0]).flip(0)
    plain = st.compress(model, x[:1], budget=st.Keep(0.6), calibration=[x], config=st.Config(gradient=False, refit=False))
    assert option.harm == pytest.approx(float(values[option.rank :].sum() / values.sum()), rel=1e-6)
    assert plain.report.interactions is None


def test_the_report_accounts_for_interactions():
    model, x = small_world(256)
    config = st.Config(methods=(st.ChannelSVD(), st.SpatialSVD(), st.SpatialSVD(axis=1)))
    result = st.compress(model, x[:1], budget=st.Keep(0.85), calibration=[x], config=config)
    found = result.report.interactions
    assert found.layers == tuple(result.plan)
    matrix = np.array(found.partners)
    np.testing.assert_allclose(matrix, matrix.T)
    first, second, value = found.strongest(1)[0]
    shared = np.abs(matrix - np.diag(np.diag(matrix)))
    assert abs(value) == shared.max() and matrix[found.layers.index(first), found.layers.index(second)] == value
    freed = []
    for name in found.layers:
        restored = duplicate(result.model)
        replace_module(restored, name, model.get_submodule(name))
        freed.append(result.report.measured_harm - measured_harm(model, restored, [x]))
    assert np.corrcoef(freed, found.marginal)[0, 1] > 0.5  # to second order only: restoring is no small step
    page = result.report.to_html()
    assert "with interactions" in page and "Which layers" in page
    assert any("interactions, strongest" in line for line in result.report.lines())
    assert '"partners"' in result.report.to_json()


def test_a_users_harm_decides_and_is_named():
    model, x = small_world(256)

    def first_class(outputs, reference):
        return (outputs[:, 0] - reference[:, 0]).square().mean()

    config = st.Config(search=st.Knapsack(), harm=first_class)
    result = st.compress(model, x[:1], budget=st.Keep(0.5), calibration=[x], config=config)
    usual = st.compress(model, x[:1], budget=st.Keep(0.5), calibration=[x], config=st.Config(search=st.Knapsack()))
    assert "first_class" in result.report.harm_unit
    assert result.report.measured_harm == pytest.approx(measured_harm(model, result.model, [x], first_class), rel=1e-5)
    assert result.report.measured_harm < measured_harm(model, usual.model, [x], first_class)


def test_what_is_kept_is_found_by_another_process(tmp_path):
    """Its key holds the harm's name and code, not the address that a function has in one process."""
    model, x = small_world(64)

    def make():
        def harm(outputs, reference):
            return (outputs - reference).square().mean()

        return harm

    def key(harm):
        methods = (st.ChannelSVD(),)
        return Study(model, x[:1], [x], st.Config(methods=methods, harm=harm, cache=tmp_path)).cache.key

    assert key(make()) == key(make())
    assert len({key(make()), key(squared), key(None)}) == 3
