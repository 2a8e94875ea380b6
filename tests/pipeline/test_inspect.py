"""inspect() tells what can be done to every layer, and why not."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from torch import nn

import spectrim as st
from nets import Odd
from spectrim.core.factorization import describe
from spectrim.core.plan import Option
from spectrim.network.build import working_weight
from spectrim.pipeline import inspect as inspect_module
from spectrim.pipeline.inspect import ALL
from spectrim.pipeline.latency import formula


@pytest.fixture(scope="module")
def found(case):
    model, x, _ = case
    return st.inspect(model, x[:2])


def test_every_layer_with_its_cost_and_spectrum(case, found):
    model, x, _ = case
    assert found.total == st.cost(model, x[:2]) and found.inputs == ((3, 8, 8),) and found.harm_unit == ""
    assert [view.layer for view in found.layers] == list(st.find_layers(model, x[:2])) and found.skipped == {}
    for view in found.layers:
        weight = working_weight(view.layer, model.get_submodule(view.layer.name))[0].flatten(1).numpy()
        share = np.cumsum(np.linalg.svd(weight, compute_uv=False) ** 2)
        share /= share[-1]
        assert view.full_rank == len(share) and view.cost == view.layer.cost and view.harm_at_half is None
        assert (view.rank_90, view.rank_99) == tuple(int(np.argmax(share >= bound - 1e-6)) + 1 for bound in (0.9, 0.99))


def test_every_method_has_its_largest_rank_or_a_reason(found):
    for view in found.layers:
        assert set(view.methods) | set(view.reasons) == set(map(describe, ALL)) and not set(view.methods) & set(view.reasons)
        for method in ALL:
            layer, name = view.layer.convolution, describe(method)
            if name in view.methods:
                paying = method.ranks(layer)
                assert view.methods[name] in map(str, paying)
                assert all(
                    method.cost(layer, rank).macs <= method.cost(layer, eval(view.methods[name])).macs for rank in paying
                )
            else:
                assert view.reasons[name] == (method.fits(layer).reason or "no rank pays")
    view = {view.layer.name: view for view in found.layers}["short"]
    assert "cannot be split" in view.reasons["SpatialSVD"]


def test_modules_that_are_left_alone_have_their_reasons():
    found = st.inspect(Odd().eval(), (torch.randn(2, 3, 6, 6), torch.ones(2, 8)))
    assert {"unused", "norm", "tied1", "tied2"} <= set(found.skipped) and found.inputs == ((3, 6, 6), (8,))
    assert "left alone  unused: the forward of the example never calls it" in "\n".join(found.lines())
    assert "left alone  unused" in str(found)


def test_as_text_and_as_json(found):
    text = str(found)
    assert all(view.layer.name in text for view in found.layers) and "3 x 8 x 8" in text and "(axis=1)" in text
    data = json.loads(found.to_json())
    assert [row["layer"]["name"] for row in data["layers"]] == [view.layer.name for view in found.layers]
    assert data["total"] == dataclasses.asdict(found.total)


def test_a_notebook_gets_a_plain_table_with_nothing_to_run(found):
    html = found._repr_html_()
    assert html.count("<tr>") == 1 + len(found.layers) and "<td>SpatialSVD" not in html and "<th>SpatialSVD</th>" in html
    layer = dataclasses.replace(found.layers[0].layer, name="<script>alert(1)</script>")
    odd = dataclasses.replace(found, layers=(dataclasses.replace(found.layers[0], layer=layer),), skipped={"<b>": "<i>why</i>"})
    html = odd._repr_html_()
    assert "<script" not in html and "<b>" not in html and "&lt;i&gt;why" in html


def test_with_calibration_data_the_harm_at_half_is_told(case):
    model, x, _ = case
    config = st.Config(methods=(st.ChannelSVD(), st.SpatialSVD()))
    found = st.inspect(model, x[:1], calibration=[x], config=config)
    prepared = st.prepare(model, x[:1], calibration=[x], config=config)
    assert found.harm_unit == "nats" and "harm at half" in str(found)
    for view, row in zip(found.layers, prepared.menu.layers, strict=True):
        within = [h for o, h in zip(row.options, row.scores["response"], strict=True) if 2 * o.cost.macs <= row.layer.cost.macs]
        assert view.harm_at_half == (pytest.approx(min(within)) if within else None)


def test_the_argument_of_version_0_1_0_still_works(case):
    model, x, _ = case
    with pytest.warns(DeprecationWarning, match=r"inspect\(methods=...\) is deprecated; write inspect\(config=...\)"):
        old = st.inspect(model, x[:1], methods=(st.ChannelSVD(),))
    assert old == st.inspect(model, x[:1], config=st.Config(methods=(st.ChannelSVD(),)))
    with pytest.raises(TypeError, match="got both methods= and config=, which are one argument; give config= only"):
        st.inspect(model, x[:1], methods=(st.ChannelSVD(),), config=st.Config())


@pytest.mark.parametrize(
    ("model", "example", "error", "words"),
    [
        ("resnet", torch.zeros(1, 3, 8, 8), TypeError, "the model is str; it must be a torch.nn.Module"),
        (nn.Conv2d(3, 4, 3), torch.zeros(1, 4, 8, 8), ValueError, "does not go through the model"),
        (nn.Conv2d(3, 4, 3), torch.tensor(1.0), ValueError, "batch dimension"),
    ],
)
def test_what_cannot_be_inspected_gets_a_sentence(model, example, error, words):
    with pytest.raises(error, match=words):
        st.inspect(model, example)


# --- time


@pytest.fixture(scope="module")
def timed():
    """A network with a narrow layer, on a target whose times are those of its formula."""
    model = nn.Sequential(nn.Conv2d(3, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 64, 3, padding=1), nn.Conv2d(64, 4, 1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inspect_module, "latencies", by_formula)
        config = st.Config(methods=ALL, target=st.Torch())
        return st.inspect(model, torch.zeros(1, 3, 12, 12), config=config)


def by_formula(menu, stopwatch):
    """A quarter of the time is of no layer, and nothing is faster than the last one."""
    units = [np.array([formula(stopwatch.target, option) for option in row.options]) for row in menu.layers]
    units[-1][1:] = 2 * units[-1][0]
    return round(sum(unit[0] for unit in units) / 0.75), [np.rint(unit).astype(np.int64) for unit in units]


def test_shares_of_the_time_and_what_decompositions_leave(timed):
    assert timed.untouched == pytest.approx(0.25, abs=1e-3) and timed.time_ms > 0 and timed.target["target"] == "PyTorch"
    assert sum(view.share for view in timed.layers) == pytest.approx(0.75, abs=1e-3)
    assert max(timed.layers, key=lambda view: view.share).layer.name == "2"
    wide = timed.layers[1]
    target = st.Torch()
    for name in ("ChannelSVD", "PivotSVD", "InputSVD", "SpatialSVD"):
        left = wide.at_half[name]
        method = next(method for method in ALL if describe(method) == name)
        ranks = [rank for rank in method.ranks(wide.layer) if 2 * method.cost(wide.layer, rank).macs <= wide.cost.macs]
        options = [formula(target, Option(wide.layer, method, rank)) / formula(target, Option(wide.layer)) for rank in ranks]
        assert any(left == pytest.approx(option, rel=1e-3) for option in options)
        assert wide.at_most[name] <= left
    assert wide.at_half["ChannelSVD"] < 0.7 and set(wide.at_most) == set(wide.methods)


def test_where_nothing_pays_is_said(timed):
    narrow = timed.layers[2]
    assert min(narrow.at_most.values(), default=1.0) >= 1
    assert "nothing saves time on  3" in timed.lines()


def test_times_are_a_table_of_80_columns(timed):
    text = str(timed)
    part = text[text.index(" ms on PyTorch") :]
    assert all(len(line) <= 80 for line in part.splitlines()[:-1]) and "of no layer" in part and " 25.0" in part
    data = json.loads(timed.to_json())
    assert data["layers"][1]["at_half"]["ChannelSVD"] == timed.layers[1].at_half["ChannelSVD"]


def test_without_a_target_there_are_no_times(found):
    assert found.time_ms is None and all(view.share is None and not view.at_most for view in found.layers)
    with pytest.raises(ValueError, match="no times are known; give inspect a target"):
        found.times()
