"""Scores and their paired errors, and every way in which a user's evaluate can go wrong."""

import math

import pytest
import torch
from torch import nn

import spectrim as st
from spectrim.network.accuracy import Scorer, check_labels


class Fixed(nn.Module):
    """Answers the class that its input names, wrongly for the first so many."""

    def __init__(self, wrong, classes=4):
        super().__init__()
        self.wrong, self.classes = wrong, classes

    def forward(self, x):
        return nn.functional.one_hot((x[:, 0].long() + (x[:, 1] < self.wrong)) % self.classes, self.classes).float()


def images(count=40):
    return torch.stack([torch.arange(count) % 4, torch.arange(count)], 1).float()


def test_accuracy_is_the_share_of_hits_in_any_batches():
    x = images()
    for batches in ([(x, x[:, 0].long())], list(zip(x.split(7), x[:, 0].long().split(7), strict=True))):
        evaluate = st.Accuracy(batches)
        assert evaluate(Fixed(10)) == 0.75
        assert evaluate.per_example(Fixed(10)).tolist() == [0.0] * 10 + [1.0] * 30


@pytest.mark.parametrize(("before", "after"), [(0, 10), (10, 4), (5, 5)])
def test_the_standard_error_is_that_of_the_paired_drop(before, after):
    x = images()
    evaluate = st.Accuracy([(x, x[:, 0].long())])
    score = Scorer(evaluate, Fixed(before)).score(Fixed(after))
    lost = torch.tensor([float(n < after) - float(n < before) for n in range(40)])
    assert score.drop == pytest.approx(100 * float(lost.mean())) and score.examples == 40
    assert score.standard_error == pytest.approx(100 * float(lost.std()) / math.sqrt(40))
    plain = Scorer(lambda model: evaluate(model), Fixed(before)).score(Fixed(after))
    assert (plain.before, plain.after, plain.standard_error) == (score.before, score.after, None)


def failing(network):
    raise RuntimeError("no images here")


class Shrinking:
    """Scores one example less at each call."""

    left = 8

    def __call__(self, network):
        return 0.5

    def per_example(self, network):
        self.left -= 1
        return torch.ones(self.left)


@pytest.mark.parametrize(
    ("evaluate", "words"),
    [
        (failing, "evaluate raised RuntimeError: no images here"),
        (lambda m: float("nan"), "must return a finite number"),
        (lambda m: "good", "evaluate returned str"),
        (lambda m: "0.9", "evaluate returned str"),
        (lambda m: None, "evaluate returned NoneType"),
        (Shrinking(), "7 values for the original network and 6 for this one"),
        (st.Accuracy([]), "the batches are empty"),
        (st.Accuracy([torch.randn(4, 2)]), "needs pairs"),
        (st.Accuracy([(images(), torch.zeros(40, 5))]), "one class number per example"),
        (st.Accuracy([(images(), torch.full((40,), 4))]), r"labels are from 4 to 4, but the network has 4 outputs"),
        (st.Accuracy([(images(), torch.zeros(40))]), "labels are float32; they must be whole class numbers"),
    ],
)
def test_what_is_no_score_gets_a_sentence(evaluate, words):
    with pytest.raises(ValueError, match=words):
        Scorer(evaluate, Fixed(0)).score(Fixed(1))


def test_outputs_that_are_no_logits():
    with pytest.raises(ValueError, match="the network's output is 4 x 1; top-1 needs logits of two classes or more"):
        check_labels(torch.zeros(4, dtype=torch.long), torch.zeros(4, 1))


def test_scores_that_are_no_fractions_keep_their_unit():
    decibels = Scorer(lambda model: 30.5 if model is FIRST else 30.25, FIRST).score(SECOND)
    assert decibels.drop == 0.25 and decibels.text() == "30.50 -> 30.25 (drop 0.25)"
    share = Scorer(lambda model: 0.875 if model is FIRST else 0.75, FIRST).score(SECOND)
    assert share.drop == 12.5 and share.text() == "87.50 -> 75.00 (drop 12.50 points)"


FIRST, SECOND = nn.Linear(2, 2), nn.Linear(2, 2)
