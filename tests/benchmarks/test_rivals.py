"""The benchmark of other tools: its parts, and a cell end to end; Torch-Pruning's own part where it is installed."""

import importlib.util
import json
import sys

import pytest
import torch
from torch import nn
from torch.nn import functional

import spectrim as st

NEEDS = pytest.mark.skipif(importlib.util.find_spec("torch_pruning") is None, reason="torch-pruning is not installed")


@pytest.fixture
def pruning(protocol):
    return protocol("common.pruning")


def wide():
    """Wide enough that less is faster anywhere."""
    layers = [nn.Conv2d(3, 128, 3, 2, 1), nn.BatchNorm2d(128), nn.ReLU(), nn.Conv2d(128, 128, 3, 1, 1), nn.BatchNorm2d(128)]
    return nn.Sequential(*layers, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 10))


def stairs(ratio):
    """Time falls in steps; what would be rounded to nothing is left, so it rises again."""
    return 1 - 0.1 * int(10 * ratio) if ratio < 0.7 else 0.8


@pytest.mark.parametrize("limit", [0.95, 0.9, 0.72, 0.45, 0.41])
def test_the_ratio_is_that_of_the_slowest_network_within_the_limit(pruning, limit):
    known = {}
    found = pruning.fitting(stairs, limit, known)
    slowest = max(1 - 0.1 * step for step in range(1, 7) if 1 - 0.1 * step <= 1.01 * limit)
    assert stairs(found) == pytest.approx(slowest) and len(known) <= 6
    assert pruning.fitting(lambda ratio: pytest.fail("it is known"), slowest, known) == found
    assert pruning.fitting(stairs, 0.3, {}, steps=6) is None


def test_blocks_with_convolutions_are_the_same_function(pruning, protocol):
    torch.manual_seed(0)
    model, images = protocol("common.networks").resnet20(3).eval(), torch.randn(2, 3, 32, 32)
    other = pruning.with_convolutions(model).eval()
    assert sum(isinstance(layer, nn.Conv2d) for layer in other.modules()) == 21  # two shortcuts are convolutions now
    torch.testing.assert_close(other(images), model(images))


def test_slopes_are_those_of_each_image(pruning):
    torch.manual_seed(0)
    model, x, y = wide().eval(), torch.randn(5, 3, 8, 8), torch.arange(5)
    each = []
    for index in range(5):
        model.zero_grad()
        functional.cross_entropy(model(x[index, None]), y[index, None]).backward()
        each.append({name: value.grad.clone() for name, value in model.named_parameters()})
    found = pruning.slopes(model, (x, y))
    for name in each[0]:
        grads = torch.stack([grad[name] for grad in each])
        torch.testing.assert_close(found["Taylor"][name], grads.mean(0))
        torch.testing.assert_close(found["Hessian"][name], grads.square().mean(0).sqrt())


@NEEDS
@pytest.mark.parametrize("importance", ["magnitude", "Taylor", "Hessian"])
def test_pruned_widths_are_multiples_and_what_stays_stays(pruning, importance):
    torch.manual_seed(0)
    model, x = wide().eval(), torch.randn(4, 3, 8, 8)
    slopes, way = pruning.slopes(model, (x, torch.arange(4))), pruning.Way(importance, "all", 8)
    small = pruning.pruned(model, x[:1], way, 0.4, slopes=slopes, leave=("8",))
    widths = [layer.out_channels for layer in small if isinstance(layer, nn.Conv2d)]
    assert all(width % 8 == 0 for width in widths) and sum(widths) <= 0.6 * 256 and small[8].out_features == 10
    assert small(x).shape == (4, 10) and model[0].out_channels == 128
    assert all(parameter.grad is None for parameter in small.parameters())
    same = pruning.pruned(model, x[:1], way, 0.0, slopes=slopes, leave=("8",))
    torch.testing.assert_close(same(x), model(x))


def halved(model, example, way, ratio, *, slopes, leave):
    """What stands in for Torch-Pruning: the last channels of the first layer go."""
    width = max(4, round(128 * (1 - ratio)))
    small = wide().eval()
    small[0], small[1], small[3] = nn.Conv2d(3, width, 3, 2, 1), nn.BatchNorm2d(width), nn.Conv2d(width, 128, 3, 1, 1)
    state = {name: value[:width] if name[0] in "01" and value.ndim else value for name, value in model.state_dict().items()}
    small.load_state_dict(state | {"3.weight": state["3.weight"][:, :width]})
    return small


def share(model):
    return sum(value.numel() for value in model.parameters()) / sum(value.numel() for value in wide().parameters())


@pytest.fixture
def run(protocol, monkeypatch, tmp_path):
    """Run cells of one small network on random images, with another pruner; time is the share of the parameters."""
    rivals = protocol("rivals")
    torch.manual_seed(0)
    model, images = wide(), torch.randn(160, 3, 24, 24)
    labels = torch.arange(160) % 10
    images += functional.interpolate(torch.randn(10, 3, 3, 3), size=24)[labels]
    case = rivals.Case(lambda _: model, lambda model: model, {"all channels": ("8",)}, rivals.CASES["VGG-16-BN"].ways[:2], 1)
    monkeypatch.setattr(rivals, "CASES", {"wide": case})
    monkeypatch.setattr(rivals, "BUDGETS", (0.8,))
    monkeypatch.setattr(rivals, "TUNED", (0.8,))
    monkeypatch.setattr(rivals, "TARGET", st.Torch())
    monkeypatch.setattr(rivals, "read", lambda folder, split, start=0, stop=None: (images[start:stop], labels[start:stop]))
    monkeypatch.setattr(rivals, "pruned", halved)
    monkeypatch.setattr(rivals, "torch_pruning", lambda: None)
    monkeypatch.setattr(rivals, "version", lambda name: "1")
    plan = st.plan_from(model, images[:1], {"3": (st.ChannelSVD(), 64)})
    monkeypatch.setattr(rivals.Subject, "ours", lambda subject, budget: (plan, st.apply(plan, model)))
    monkeypatch.setattr(rivals, "times", lambda models, *_: {name: [share(each)] * 3 for name, each in models.items()})
    target = tmp_path / "rivals.json"

    def run(name):
        given = ("--models", ".", "--weights", ".", "--data", ".", "--target", target, "--only", name)
        monkeypatch.setattr(sys, "argv", ["benchmarks/rivals.py", *map(str, given)])
        rivals.main()
        return json.loads(target.read_text())["cells"], target.with_suffix(".md").read_text()

    return run


def test_a_pair_of_equal_time_and_its_fine_tuning(run):
    with pytest.raises(SystemExit, match=r"run it first"):
        run("wide | 0.8 | fine-tuned")
    cells, text = run("wide | 0.8")
    cell = cells["wide | 0.8"]
    ours, theirs = cell["spectrim"], cell["Torch-Pruning"]
    assert theirs["time"][0] == pytest.approx(ours["time"][0], rel=0.02)
    assert ours["macs"] < 1 and theirs["params"] == pytest.approx(theirs["time"][0], rel=0.01)
    assert cell["paired"]["gain"] == pytest.approx(theirs["drop"] - ours["drop"])
    taken = cell["tried"][cell["pruned"]["way"]]
    assert (
        taken["held-out"] == max(row["held-out"] for row in cell["tried"].values())
        and 0.76 <= cell["pruned"]["ratio"] / taken["ratio"] <= 1.06
    )
    assert (
        f"| wide, 80 % of the time | {100 * ours['before']:.2f} % | {ours['time'][0]:.3f} (" in text
        and f"{cell['pruned']['way']} (taken)" in text
    )

    cells, text = run("wide | 0.8 | fine-tuned")
    tuned = cells["wide | 0.8 | fine-tuned"]
    for name in ("spectrim", "Torch-Pruning"):
        rates = {rate: tuned[name][f"held-out at {rate}"] for rate in ("0.01", "0.04")}
        assert rates[str(tuned[name]["rate"])] == max(rates.values()) and tuned[name]["before"] == cell[name]["before"]
    assert "| wide, 80 % of the time | 1 |" in text
