"""The report's times: on the target that was asked for, and told where there are none."""

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

import spectrim as st
from spectrim.targets.base import Session


@dataclass(frozen=True)
class Counting(st.Target):
    """Takes longer the more numbers a network has, or the fewer."""

    sign: int = 1
    title: ClassVar[str] = "Counting"
    word: ClassVar[str] = "counting"

    def load(self, model, example):
        size = sum(weight.numel() for weight in model.parameters())
        rounds = 20 * size if self.sign > 0 else 10**9 // size
        return Session(lambda: sum(range(rounds)), size)

    def describe(self):
        return self._described("1.0", "f32")


class Failing(Counting):
    def load(self, model, example):
        raise ValueError("the network cannot be exported for Counting: no reason")


class Absent(Counting):
    modules: ClassVar[tuple[str, ...]] = ("no_such_module",)
    extra: ClassVar[str] = "counting"


def compressed(case, target):
    model, x, _ = case
    config = st.Config(methods=(st.ChannelSVD(),), search=st.Knapsack(), refit=False, target=target)
    return st.compress(model, x[:1], budget=st.Keep(0.4, "params"), calibration=[x], config=config).report


@pytest.mark.parametrize(("sign", "word"), [(1, "faster"), (-1, "slower")])
def test_times_are_of_the_target(case, sign, word):
    report = compressed(case, Counting(sign=sign))
    assert report.verdict.word == word and (report.latency[1].median_ms < report.latency[0].median_ms) == (sign == 1)
    assert report.target["target"] == "Counting" and report.config["target"] == f"Counting(threads=1, sign={sign})"
    assert st.Report.from_json(report.to_json()) == report


def test_the_usual_target_is_pytorch_on_one_thread(case):
    report = compressed(case, None)
    assert (report.target["target"], report.target["threads"]) == ("PyTorch", "1") and report.config["target"] is None
    assert report.target["version"] == torch.__version__


def test_a_network_that_cannot_be_exported_loses_its_times_only(case):
    report = compressed(case, Failing())
    assert report.latency is None and report.verdict is None and report.kept[0] <= 0.4
    assert "there are no times: the network cannot be exported for Counting: no reason" in report.notes


def test_an_absent_runtime_is_told_before_the_work(case):
    with pytest.raises(ImportError, match=r'Counting needs no_such_module, which is not installed: pip install "spectrim\[cou'):
        st.prepare(case[0], case[1][:1], config=st.Config(target=Absent()))


def test_what_is_no_target():
    with pytest.raises(
        TypeError, match=r"target is 'torch'; it must be a runtime, such as OnnxRuntime\(\) or Torch\(\), or None"
    ):
        st.Config(target="torch")
