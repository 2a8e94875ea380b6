"""Predicted harms where images are few: what the moments of the same images overlook, others show."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn

import spectrim as st
from spectrim.network.survey import survey
from spectrim.pipeline import calibration, harms, prepare
from spectrim.sensitivity.covariance import Squares
from spectrim.sensitivity.measured import measured_harm


class Wide(nn.Module):
    """A convolution whose positions are alike, and a classifier with fewer images to fit than inputs or outputs."""

    def __init__(self):
        super().__init__()
        self.conv, self.wide = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(200, 60)

    def forward(self, x):
        return self.wide(self.conv(x).relu().flatten(1))


@pytest.fixture(scope="module")
def few():
    """A network; 48 images to fit and 400 to judge, and what is prepared with shrunk covariances and with plain ones; fresh images."""
    torch.manual_seed(0)
    model, x, fresh = Wide().eval(), torch.randn(448, 3, 5, 5), torch.randn(1000, 3, 5, 5)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(calibration, "JUDGED", (400, 512))
        config = st.Config(methods=(st.ChannelSVD(),), images=48, refit=False, multiple_of=1)
        prepared = st.prepare(model, x[:1], calibration=[x], config=config)
        patch.setattr(Squares, "share", lambda self, distance: torch.zeros_like(distance)[:, None, None])
        plain = st.prepare(model, x[:1], calibration=[x], config=config)
    return model, prepared, plain, fresh


def compared(model, prepared, fresh, name):
    """Return the ranks of some options of a layer, their closed forms, their harms and what each alone does to fresh images."""
    (row,) = [row for row in prepared.menu.layers if row.layer.name == name]
    numbers, measured = np.arange(1, len(row.options), 4), []
    for number in numbers:
        small = st.apply(st.Plan({name: row.options[number]}, prepared.original), model, moments=prepared.moments)
        measured.append(measured_harm(model, small, [fresh]))
    ranks = np.array([row.options[number].rank for number in numbers])
    return ranks, row.scores["closed"][numbers], row.scores["response"][numbers], np.array(measured)


@pytest.mark.parametrize("name", ["conv", "wide"])
@pytest.mark.parametrize("shrunk", [True, False])
def test_they_are_near_what_a_layer_alone_does_to_fresh_images(few, name, shrunk):
    model, prepared, plain, fresh = few
    ranks, _, predicted, measured = compared(model, prepared if shrunk else plain, fresh, name)
    assert len(ranks) > 1
    np.testing.assert_allclose(np.log(predicted / measured), 0, atol=np.log(1.5))


def test_what_the_fitting_images_say_of_a_wide_layer_is_next_to_nothing(few):
    """With plain averages what is cut looks free, by orders of magnitude; shrunk ones know better, and do less harm."""
    model, prepared, plain, fresh = few
    ranks, closed, predicted, measured = compared(model, plain, fresh, "wide")
    assert ranks.max() > 40 and (predicted > closed).all()
    assert (closed < 0.01 * measured)[ranks > 33].all() and (closed < 1e-4 * measured)[ranks > 43].all()
    _, drawn, better, less = compared(model, prepared, fresh, "wide")
    assert (better > drawn).all() and (drawn > 0.5 * less).all() and (less < measured)[ranks > 4].all()


def test_without_images_to_judge_or_gradients_the_closed_forms_stand(few):
    model, prepared, _, fresh = few
    ways = [
        (prepared.config, None),
        (dataclasses.replace(prepared.config, gradient=False), [fresh[:96]]),
        (prepared.config, [fresh[: calibration.ENOUGH - 1]]),
    ]
    for config, images in ways:
        for row in st.prepare(model, fresh[:1], calibration=images, config=config).menu.layers:
            closed = row.scores["closed"].tolist()
            assert row.scores["response"].tolist() == row.scores["cautious"].tolist() == closed and max(closed) > 0
    for row in prepared.menu.layers:
        assert row.scores["response"][0] == row.scores["closed"][0] == 0
        assert (row.scores["response"][1:] != row.scores["closed"][1:]).all()


def test_portions_of_layers_give_what_all_at_once_give(few, monkeypatch):
    """Memory for the changes of one layer at a time."""
    model, prepared, _, fresh = few
    found, whole = [], harms._portions

    def bare(offered, chosen, memory):
        assert len(whole(offered, chosen, memory)) == 1
        return whole(offered, chosen, 1)

    for portions in (whole, bare):
        monkeypatch.setattr(harms, "_portions", portions)
        found.append(st.prepare(model, fresh[:1], calibration=[fresh[:160]], config=prepared.config).menu.layers)
    for whole, parts in zip(*found, strict=True):
        np.testing.assert_allclose(parts.scores["closed"], whole.scores["closed"], rtol=1e-6)
        np.testing.assert_allclose(parts.scores["response"], whole.scores["response"], rtol=1e-4)


@pytest.mark.parametrize("memory", [1, 5000, 60000, 1 << 30])
def test_portions_hold_every_layer_once_and_no_more_than_memory(few, memory):
    _, prepared, _, _ = few
    offered = {row.layer: () for row in prepared.menu.layers}
    chosen = [[[0, 3], [1]], [[2], [5]]]
    found = harms._portions(offered, chosen, memory)
    names = [row.layer.name for row in prepared.menu.layers]
    assert sorted(name for portion in found for name in portion) == sorted(names)
    sizes = {layer.name: 4 * sum(map(len, each)) * math.prod(layer.weight) for layer, each in zip(offered, chosen, strict=True)}
    assert all(len(portion) == 1 or sum(sizes[name] for name in portion) <= memory for portion in found)
    assert len(found) == (1 if sum(sizes.values()) <= memory else 2)


def test_batches_halve_with_the_memory():
    x = torch.randn(1, 3, 5, 5)
    found, most = survey(Wide().eval(), x), 64
    sizes = [prepare._batch(found, st.Config(batch=most, memory=(1 << 24) >> step)) for step in range(14)]
    assert sizes[0] == most and sizes[-1] == 1 and sizes == sorted(sizes, reverse=True)
    between = [(first, second) for first, second in itertools.pairwise(sizes) if first < most]
    assert len(between) > 3 and all(second == max(1, first // 2) for first, second in between)
