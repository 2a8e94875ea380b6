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
        (lambda m: [0.5, 0.6], "evaluate returned list; it must return a number, larger is better, a spectrim.Measurement"),
        (lambda m: {"PSNR": float("inf"), "SSIM": 0.9}, "must return a finite number"),
        (lambda m: {}, "evaluate gave no score"),
        ({}, "evaluate gave no score"),
        ({"a": lambda m: {"x": 0.5}, "b": lambda m: {"x": 0.5}}, "two scores of the name 'x'"),
        ({"a": failing}, "evaluate raised RuntimeError: no images here"),
        (lambda m: st.Measurement(1.2, "mAP", "points"), "gave 1.2 for mAP in points; it must be a fraction between 0 and 1"),
        (lambda m: st.Measurement(torch.full((4,), -0.5), "IoU", "points"), "gave -0.5 for IoU in points"),
        (lambda m: st.Measurement(0.5, unit=5), "evaluate raised TypeError: the unit of score is 5"),
        (lambda m: st.Measurement(0.5, ""), "evaluate raised TypeError: the name of a score is ''"),
        (lambda m: st.Measurement(0.5, larger_is_better="no"), "evaluate raised TypeError: larger_is_better of score is 'no'"),
        (
            lambda m: {"PSNR": 30.0} | ({"SSIM": 0.9} if m.wrong else {}),
            "gave PSNR for the original network and PSNR, SSIM for",
        ),
        (
            lambda m: st.Measurement(30.0, "PSNR", "dB", larger_is_better=not m.wrong),
            r"evaluate gave PSNR \(dB\) for the original network and PSNR \(dB\) for this one; it must give the same scores",
        ),
        (
            st.Accuracy([(images(), images()[:, 0].long())], topk=4),
            "topk is 4, and the network has 4 outputs; it must be fewer",
        ),
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


@pytest.mark.parametrize("topk", [0, -1, 1.5, True, "5"])
def test_a_topk_that_is_none(topk):
    with pytest.raises(ValueError, match="topk is .*; it must be a whole number of at least 1"):
        st.Accuracy([], topk=topk)


@pytest.mark.parametrize("topk", [1, 2, 3])
def test_topk_counts_labels_among_the_largest_logits(topk):
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(50, 7, generator=generator), torch.randint(7, (50,), generator=generator)
    above = (logits > logits.gather(1, labels[:, None])).sum(1)  # logits larger than the label's
    evaluate = st.Accuracy([(logits[:20], labels[:20]), (logits[20:], labels[20:])], topk)
    assert evaluate.per_example(nn.Identity()).bool().tolist() == (above < topk).tolist()
    assert evaluate.name == f"top-{topk}" and Scorer(evaluate, nn.Identity()).score(nn.Identity()).name == f"top-{topk}"


def either(first, second):
    """Return an evaluate that gives one value for the original network and another one for the other."""
    return lambda model: first if model is FIRST else second


def loss(value):
    return st.Measurement(value, "loss", "nats", larger_is_better=False)


@pytest.mark.parametrize(
    ("before", "after", "drop", "text"),
    [
        (30.5, 30.25, 0.25, "30.50 -> 30.25 (drop 0.25)"),
        (0.875, 0.75, 12.5, "87.50 -> 75.00 (drop 12.50 points)"),
        (0.25, -3.0, 325.0, "25.00 -> -300.00 (drop 325.00 points)"),
        (st.Measurement(30.5, "PSNR", "dB"), st.Measurement(30.25, "PSNR", "dB"), 0.25, "30.50 -> 30.25 dB (drop 0.25 dB)"),
        (loss(0.4512), loss(0.4633), 0.0121, "0.4512 -> 0.4633 nats (rise 0.0121 nats)"),
        (loss(0.4512), loss(0.4412), -0.01, "0.4512 -> 0.4412 nats (rise -0.0100 nats)"),
        (st.Measurement(21.0, "perplexity", "", False), st.Measurement(22.5, "perplexity", "", False), 1.5, "(rise 1.50)"),
        (st.Measurement(0.02, "error", None, False), st.Measurement(0.03, "error", None, False), 0.01, "(rise 0.01000)"),
        (st.Measurement(0.1, "error", "points", False), st.Measurement(0.125, "error", "points", False), 2.5, "2.50 points)"),
        (st.Measurement(37.5, "mAP", "%"), st.Measurement(36.0, "mAP", "%"), 1.5, "37.50 -> 36.00 % (drop 1.50 %)"),
    ],
)
def test_a_score_keeps_its_own_unit(before, after, drop, text):
    score = Scorer(either(before, after), FIRST).score(SECOND)
    assert score.drop == pytest.approx(drop) and text in score.text() and score.standard_error is None


def test_a_function_may_carry_what_its_number_is():
    evaluate = either(0.4512, 0.4633)
    evaluate.name, evaluate.unit, evaluate.larger_is_better = "loss", "nats", False
    assert Scorer(evaluate, FIRST).score(SECOND) == Scorer(either(loss(0.4512), loss(0.4633)), FIRST).score(SECOND)


def test_scores_of_every_example_have_a_paired_error_in_their_unit():
    first, second = torch.tensor([30.0, 31.0, 29.0, 33.0]), torch.tensor([29.5, 31.5, 28.0, 32.0])
    sides = [st.Measurement(values, "PSNR", "dB") for values in (first, second)]
    score = Scorer(either(*sides), FIRST).score(SECOND)
    assert score.drop == pytest.approx(0.5) and score.examples == 4
    assert score.standard_error == pytest.approx(float((first - second).std()) / 2)
    assert score.text() == "30.75 -> 30.25 dB (drop 0.50 +- 0.35 dB, 4 images)"


@pytest.mark.parametrize("form", ["a dict of functions", "a function that returns a dict"])
def test_of_several_scores_the_first_decides_and_the_others_are_there(form):
    sides = ({"PSNR": st.Measurement(30.5, "x", "dB"), "SSIM": 0.9}, {"PSNR": st.Measurement(30.25, "y", "dB"), "SSIM": 0.875})
    evaluate = either(*sides) if "returns" in form else {name: either(sides[0][name], sides[1][name]) for name in sides[0]}
    score = Scorer(evaluate, FIRST).score(SECOND)
    told = [(each.name, each.unit, each.drop) for each in score.every]
    assert told == [("PSNR", "dB", 0.25), ("SSIM", "points", pytest.approx(2.5))]


@pytest.mark.parametrize(
    ("value", "allowed", "words"),
    [
        (30.5, 1.0, "evaluate returned 30.5; MaxDrop needs a fraction between 0 and 1, .* or the unit of the score"),
        (0.9, 100, r"MaxDrop was given 100; of score, allowed are points in \[0, 100\)"),
        (st.Measurement(30.5, "PSNR", "dB"), 100, None),
        (st.Measurement(21.0, "perplexity", larger_is_better=False), 120, None),
    ],
)
def test_what_a_bound_on_the_drop_can_be_of(value, allowed, words):
    scorer = Scorer(lambda model: value, FIRST)
    if words is None:
        return scorer.check_drop(allowed)
    with pytest.raises(ValueError, match=words):
        scorer.check_drop(allowed)


FIRST, SECOND = nn.Linear(2, 2), nn.Linear(2, 2)
