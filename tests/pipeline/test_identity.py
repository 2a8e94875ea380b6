"""What a function or an object depends on: two that do the same are one, two that differ anywhere are two."""

import enum
import functools
import io
import os
import random
import subprocess
import sys
import threading
import types
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

import spectrim as st
from nets import Residual
from spectrim.pipeline.identity import UnknownIdentityError, fingerprint, identity

FACTOR = 1.0


def closing_over(value):
    return lambda a, b: value * (a - b).square().mean()


def reading_a_global(outputs, reference):
    return FACTOR * (outputs - reference).square().mean()


def reading_it_deeper(outputs, reference):
    return sum(reading_a_global(a, b) for a, b in zip(outputs, reference, strict=True))


def with_default(value, *, keyword):
    def harm(outputs, reference, weight=value, *, other=keyword):
        return weight * other * (outputs - reference).square().mean()

    return harm


class Weighted:
    """A harm with an attribute."""

    def __init__(self, weight):
        self.weight = weight

    def __call__(self, outputs, reference):
        return self.weight * (outputs - reference).square().mean()

    def method(self, outputs, reference):
        return self(outputs, reference)


class Slotted:
    __slots__ = ("weight",)


class AlsoSlotted(Slotted):
    """Has a dictionary and a slot above it."""


@dataclass(frozen=True)
class Settings:
    weight: float
    names: tuple[str, ...] = ("a", "b")


class Colour(enum.Enum):
    RED = 1
    BLUE = 2


class Tagged(list):
    """A list with an attribute."""


class Module(nn.Module):
    """Has a weight, a buffer that is not saved, and an attribute."""

    def __init__(self, weight=1.0, buffer=1.0, attribute=1.0):
        super().__init__()
        self.linear = nn.Linear(2, 2)
        nn.init.constant_(self.linear.weight, weight)
        nn.init.zeros_(self.linear.bias)
        self.register_buffer("table", torch.full((2,), buffer), persistent=False)
        self.attribute = attribute

    def forward(self, x):
        return self.attribute * self.linear(x) + self.table


def slotted(weight):
    found = AlsoSlotted()
    found.weight = weight
    return found


def tagged(tag):
    found = Tagged([1, 2])
    found.tag = tag
    return found


def numbers(last, count=2048):
    return torch.cat([torch.zeros(count - 1), torch.tensor([float(last)])])


def recursive(value):
    found = [value]
    found.append(found)
    return found


MAKERS = {  # what makes the same from the same number and something else from another
    "a number closed over": lambda n: closing_over(n),
    "a long tensor closed over": lambda n: closing_over(numbers(n)),
    "a tensor in a list in a dict": lambda n: closing_over({"weights": [numbers(n)]}),
    "a tensor's dtype": lambda n: closing_over(torch.zeros(3, dtype=(torch.float32, torch.float64)[n])),
    "a tensor's shape": lambda n: closing_over(torch.zeros([(2, 3), (3, 2)][n])),
    "a long array": lambda n: closing_over(numbers(n).numpy()),
    "an array of objects": lambda n: closing_over(np.array([n, "a", None], dtype=object)),
    "code": lambda n: [lambda a, b: (a - b).sum(), lambda a, b: (a + b).sum()][n],
    "a constant in code": lambda n: [lambda a, b: a * 1.5, lambda a, b: a * 2.5][n],
    "a constant in inner code": lambda n: [lambda a, b: [x * 1.5 for x in a], lambda a, b: [x * 2.5 for x in a]][n],
    "a name in code": lambda n: [lambda a, b: a.sum(), lambda a, b: a.mean()][n],
    "a default": lambda n: with_default(n, keyword=1),
    "a keyword's default": lambda n: with_default(1, keyword=n),
    "a partial's keyword": lambda n: functools.partial(functional.mse_loss, reduction=["mean", "sum"][n]),
    "a partial's argument": lambda n: functools.partial(closing_over(1), numbers(n)),
    "a partial's function": lambda n: functools.partial([functional.mse_loss, functional.l1_loss][n], reduction="sum"),
    "an attribute": lambda n: Weighted(n),
    "an attribute, through a method": lambda n: Weighted(n).method,
    "which method": lambda n: [Weighted(1).method, Weighted(1).__call__][n],
    "a slot": lambda n: closing_over(slotted(n)),
    "a field": lambda n: closing_over(Settings(n)),
    "an enumeration": lambda n: closing_over([Colour.RED, Colour.BLUE][n]),
    "a set": lambda n: closing_over({"a", "b", "cd"[n]}),
    "a list's attribute": lambda n: closing_over(tagged(n)),
    "a bound method of compiled code": lambda n: closing_over(numbers(n).add),
    "a module of torch": lambda n: nn.MSELoss(reduction=["mean", "sum"][n]),
    "a function of torch": lambda n: [functional.mse_loss, functional.l1_loss][n],
    "a network's weight": lambda n: Module(weight=n),
    "a network's unsaved buffer": lambda n: Module(buffer=n),
    "a network's attribute": lambda n: Module(attribute=n),
    "random numbers of torch": lambda n: closing_over(torch.Generator().manual_seed(n)),
    "random numbers of NumPy": lambda n: closing_over(np.random.default_rng(n)),
    "random numbers of Python": lambda n: closing_over(random.Random(n)),
    "a text in memory": lambda n: closing_over(io.StringIO("ab"[n])),
    "a class": lambda n: types.new_class("Made", (), {}, lambda body: body.update(weight=n, __module__=__name__)),
    "a class's method": lambda n: type("Made", (), {"__module__": __name__, "f": [lambda s: s, lambda s: 2 * s][n]}),
    "a class's property": lambda n: type("Made", (), {"__module__": __name__, "f": property([lambda s: 1, lambda s: 2][n])}),
    "something that contains itself": lambda n: closing_over(recursive(n)),
}


@pytest.mark.parametrize("name", MAKERS)
def test_the_same_is_the_same_and_a_difference_is_one(name):
    make = MAKERS[name]
    assert identity(make(0)) == identity(make(0))
    assert identity(make(0)) != identity(make(1))


def test_no_two_of_them_are_the_same():
    assert len({identity(make(0)) for make in MAKERS.values()}) == len(MAKERS)


@pytest.mark.parametrize("harm", [reading_a_global, reading_it_deeper])
def test_globals_that_it_reads_count(monkeypatch, harm):
    other, before = identity(Weighted(1).method), identity(harm)
    monkeypatch.setattr(sys.modules[__name__], "FACTOR", 2.0)
    assert identity(harm) != before and identity(Weighted(1).method) == other  # which does not read it
    monkeypatch.setattr(sys.modules[__name__], "FACTOR", 1.0)
    assert identity(harm) == before


def test_a_global_that_is_not_there_yet_counts_when_it_is(monkeypatch):
    def harm(outputs, reference):
        return LATER * outputs  # noqa: F821

    before = identity(harm)
    monkeypatch.setattr(sys.modules[__name__], "LATER", 2.0, raising=False)
    assert identity(harm) != before


def test_a_users_module_counts_by_what_is_used_of_it(monkeypatch):
    theirs = types.ModuleType("theirs")
    theirs.weight, theirs.other = 1.0, 1.0
    monkeypatch.setattr(sys.modules[__name__], "THEIRS", theirs, raising=False)

    def harm(outputs, reference):
        return THEIRS.weight * outputs  # noqa: F821

    before = identity(harm)
    theirs.other = 2.0
    assert identity(harm) == before
    theirs.weight = 2.0
    assert identity(harm) != before


@pytest.mark.parametrize(
    "make",
    [
        lambda: open(os.devnull),  # noqa: SIM115
        lambda: (n for n in range(3)),
        lambda: threading.Lock(),
        lambda: torch.eye(3).to_sparse(),
        lambda: torch.jit.script(nn.Linear(2, 2)),
        lambda: types.ModuleType("theirs"),
        lambda: functools.lru_cache(closing_over(1)),
    ],
    ids=["open file", "generator", "lock", "sparse tensor", "script", "module as a whole", "compiled wrapper"],
)
@pytest.mark.filterwarnings("ignore:.torch.jit")
def test_what_cannot_be_told_is_an_error(make):
    value = make()
    with pytest.raises(UnknownIdentityError, match="it holds a "):
        identity(closing_over(value))
    with pytest.raises(UnknownIdentityError):
        identity(Weighted([value]))
    getattr(value, "close", lambda: None)()


def test_what_is_nested_too_deeply_is_an_error():
    value = 1
    for _ in range(100):
        value = [value]
    with pytest.raises(UnknownIdentityError, match="nested too deeply"):
        identity(value)


def test_what_is_shared_is_looked_at_once():
    """A value that is reached by 2^40 ways."""
    value = [1]
    for _ in range(40):
        value = [value, value]
    assert identity(value) == identity(value)


NETWORKS = {
    "weights": lambda model, x: setattr(model.conv1.weight, "data", model.conv1.weight + 1),
    "running means": lambda model, x: model.bn1.running_mean.add_(1),
    "epsilon": lambda model, x: setattr(model.bn1, "eps", 0.1),
    "stride": lambda model, x: setattr(model.conv3, "stride", (1, 2)),
    "an attribute": lambda model, x: setattr(model, "scale", 2.0),
    "inputs": lambda model, x: x.add_(1),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_the_fingerprint_of_a_network_and_its_inputs(name):
    def make(change=None):
        torch.manual_seed(0)
        model, x = Residual(), torch.randn(4, 3, 8, 8)
        with torch.no_grad():
            if change is not None:
                change(model, x)
        return fingerprint(model, [x[:2], x[2:]], "settings")

    assert make() == make() != make(NETWORKS[name])


def test_settings_and_the_networks_code_count():
    class Other(Residual):
        def forward(self, x):
            return 2 * super().forward(x)

    torch.manual_seed(0)
    model, x = Residual(), torch.zeros(1, 3, 8, 8)
    other = Other()
    other.load_state_dict(model.state_dict())
    assert len({fingerprint(model, [x], "a"), fingerprint(model, [x], "b"), fingerprint(other, [x], "a")}) == 3


SCRIPT = """
import torch
from spectrim.pipeline.identity import identity

NAMES = {"one", "two", "three", "four"}

class Harm:
    def __init__(self):
        self.weights, self.names = torch.arange(5000.0), {name: len(name) for name in NAMES}

    def __call__(self, outputs, reference):
        return sum(self.names[name] for name in NAMES if name in {"five", "six", "seven"}) * outputs

print(identity(Harm()), identity(torch.nn.Sequential(torch.nn.ReLU())))
"""


def test_it_is_the_same_in_every_process():
    """Whatever order its sets are in and wherever its objects are."""
    runs = [
        subprocess.Popen([sys.executable, "-c", SCRIPT], stdout=subprocess.PIPE, env={**os.environ, "PYTHONHASHSEED": seed})
        for seed in ("1", "2")
    ]
    first, second = (run.communicate()[0].split() for run in runs)
    assert first == second and len(first) == 2


def compressed(case, folder, harm):
    model, x, _ = case
    config = st.Config(methods=(st.ChannelSVD(),), harm=harm, cache=folder, batch=32)
    return st.compress(model, x[:1], budget=st.Keep(0.6), calibration=[x], config=config)


def test_nothing_is_cached_for_a_harm_of_which_it_cannot_be_told(case, tmp_path):
    with open(os.devnull) as file:

        def harm(outputs, reference):
            assert not file.closed
            return (outputs - reference).square().mean()

        result = compressed(case, tmp_path / "cache", harm)
    assert result.report.kept[1] <= 0.6 and not (tmp_path / "cache").exists()
    plain = compressed(case, tmp_path / "cache", lambda a, b: (a - b).square().mean())
    assert plain.plan == result.plan and list((tmp_path / "cache").iterdir())


def test_two_harms_that_differ_in_a_long_tensor_do_not_share_a_cache(case, tmp_path):
    def harm_of(first):
        weights = torch.ones(2048)
        weights[0] = first
        return lambda a, b: ((a - b).square() * weights[:5]).sum(1).mean()

    reports = [compressed(case, tmp_path, harm_of(first)).report for first in (1.0, 1000.0, 1.0)]
    assert reports[0].predicted_harm == reports[2].predicted_harm != reports[1].predicted_harm
    assert reports[0].seconds["statistics"] == reports[2].seconds["statistics"]  # what it took when it was done


def test_a_network_of_which_it_cannot_be_told_is_compressed_without_a_cache(case, tmp_path):
    model, x, _ = case

    class Odd(Residual):
        lock = threading.Lock()

    odd = Odd(width=12)
    odd.load_state_dict(model.state_dict())
    config = st.Config(methods=(st.ChannelSVD(),), cache=tmp_path / "cache")
    result = st.compress(odd.eval(), x[:1], budget=st.Keep(0.6), calibration=[x], config=config)
    assert result.report.kept[1] <= 0.6 and not (tmp_path / "cache").exists()


@dataclass(frozen=True)
class Sneaky(st.ChannelSVD):
    """A third party's decomposition that predicts what a number of its class says."""

    def losses(self, weight, ranks, moments=None):
        return [FACTOR * loss for loss in super().losses(weight, ranks, moments)]


def test_a_third_partys_decomposition_that_has_changed_is_asked_again(case, tmp_path, monkeypatch):
    model, x, _ = case
    config = st.Config(methods=(Sneaky(),), cache=tmp_path)
    harms = []
    for factor in (1.0, 3.0, 1.0):
        monkeypatch.setattr(sys.modules[__name__], "FACTOR", factor)
        rows = st.prepare(model, x[:1], calibration=[x], config=config).menu.layers
        harms.append(np.concatenate([row.scores["closed"] for row in rows]))
    assert harms[0].any() and harms[0].tolist() == harms[2].tolist()
    np.testing.assert_allclose(harms[1], 3 * harms[0])
