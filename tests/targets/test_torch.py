"""Measured times: in turn, of whole forward passes, with everything put back as it was."""

import time

import pytest
import torch
from torch import nn

from spectrim.core.records import Latency
from spectrim.targets.torch import measure


class Sleeping(nn.Module):
    """Takes so many milliseconds, and notes when it was called."""

    def __init__(self, milliseconds, calls):
        super().__init__()
        self.milliseconds, self.calls = milliseconds, calls

    def forward(self, x):
        self.calls.append(self)
        time.sleep(self.milliseconds / 1000)
        return x


def test_medians_and_quartiles_are_those_of_the_models():
    calls = []
    models = [Sleeping(milliseconds, calls) for milliseconds in (2, 8)]
    fast, slow = measure(models, torch.zeros(1, 3), seconds=0.1)
    for found, least in ((fast, 2), (slow, 8)):
        assert isinstance(found, Latency) and found.threads == 1
        assert least <= found.low_ms <= found.median_ms <= found.high_ms
    assert fast.high_ms < slow.low_ms


@pytest.mark.parametrize("seconds", [0, 0.02])
def test_models_take_turns_at_least_five_times(seconds):
    calls = []
    models = [Sleeping(0, calls) for _ in range(3)]
    found = measure(models, torch.zeros(1, 3), seconds=seconds)
    runs = found[0].runs
    assert all(each.runs == runs for each in found) and (runs == 5 if not seconds else 5 <= runs <= 200)
    assert calls == models * (runs + 1)  # once to warm up


@pytest.mark.parametrize("example", [torch.zeros(2, 3), (torch.zeros(2, 3), torch.zeros(2, 3)), {"x": torch.zeros(2, 3)}])
def test_any_example_and_any_mode(example):
    class Net(nn.Module):
        def forward(self, x, *more):
            assert not self.training and not torch.is_grad_enabled() and torch.get_num_threads() == 1
            return x

    before, model = torch.get_num_threads(), Net().train()
    measure([model], example, seconds=0)
    assert model.training and torch.get_num_threads() == before


def test_threads_are_put_back_after_a_failure():
    class Failing(nn.Module):
        def forward(self, x):
            raise RuntimeError("no")

    before = torch.get_num_threads()
    with pytest.raises(RuntimeError, match="no"):
        measure([Failing()], torch.zeros(1), threads=2)
    assert torch.get_num_threads() == before
