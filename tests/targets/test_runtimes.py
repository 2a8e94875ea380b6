"""Runtimes other than PyTorch: they answer as the network, whatever goes in and out; each is skipped where it is not installed."""

import dataclasses
from importlib.util import find_spec

import pytest
import torch
from torch import nn

import spectrim as st
from nets import Residual
from spectrim.targets import base

TARGETS = [st.OnnxRuntime, st.OpenVINO, st.ExecuTorch]
installed = pytest.mark.parametrize(
    "target",
    [
        pytest.param(
            kind(),
            id=kind.word,
            marks=pytest.mark.skipif(
                any(find_spec(name) is None for name in kind.modules), reason=f"{kind.title} is not installed"
            ),
        )
        for kind in TARGETS
    ],
)


class Nested(nn.Module):
    """Several inputs, and outputs in a nesting, one of them whole numbers."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, x, more):
        y = self.layer(x) - more[0]
        return {"scores": y, "rest": (y.argmax(1), 2 * more[1])}


x = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
EXAMPLES = {
    "image": (Residual(width=12), torch.randn(2, 3, 8, 8)),
    "arguments": (Nested(), (x, [x[:, :2], x[:, 1:]])),
    "keywords": (Nested(), {"more": [x[:, :2], x[:, 1:]], "x": x}),
    "training": (nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Dropout(0.5)), x),
    "half": (nn.Linear(3, 5).to(torch.bfloat16), x.to(torch.bfloat16)),
}


@installed
@pytest.mark.parametrize("name", EXAMPLES)
def test_it_answers_as_the_network(target, name):
    model, example = EXAMPLES[name]
    before = {key: value.clone() for key, value in model.state_dict().items()}
    session = target.load(model, example)
    found, wanted = session.outputs(), st.Torch().load(model, example).outputs()
    assert [y.shape for y in found] == [y.shape for y in wanted]
    for first, second in zip(found, wanted, strict=True):
        torch.testing.assert_close(first.to(second.dtype), second, rtol=1e-2, atol=1e-2 if name == "half" else 1e-4)
    assert session.size > sum(4 * value.numel() for value in model.parameters()) and session.clock == "process"
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@installed
def test_what_it_describes_names_everything_that_time_depends_on(target):
    found, other = target.describe(), dataclasses.replace(target, threads=2).describe()
    assert set(found) == {"target", "version", "device", "threads", "precision"} and all(found.values())
    assert {key for key in found if found[key] != other[key]} == {"threads"}
    assert dataclasses.replace(target, threads=2).load(nn.Linear(3, 2), x).clock == "wall"


@installed
def test_random_numbers_in_eval_mode_are_refused(target):
    class Noisy(nn.Module):
        def forward(self, x):
            return x + torch.rand_like(x)

    with pytest.raises(ValueError, match=r"answers otherwise than the network|cannot be exported"):
        target.load(Noisy(), x)


@installed
def test_what_cannot_be_exported_is_told_in_a_sentence(target):
    class Deciding(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    with pytest.raises(ValueError, match=f"the network cannot be exported for {target.title}: .*") as caught:
        target.load(Deciding(), x)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", TARGETS, ids=lambda kind: kind.word)
def test_what_is_missing_is_told_with_the_extra_that_brings_it(kind, monkeypatch):
    monkeypatch.setattr(base, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=rf'{kind.title} needs .*: pip install "spectrim\[{kind.extra}\]"'):
        kind().load(nn.Linear(3, 2), x)


def test_half_precision_is_computed_in_or_refused():
    pytest.importorskip("openvino")
    pytest.importorskip("onnxscript")
    model, example = EXAMPLES["image"]
    try:
        st.OpenVINO(precision="bf16").load(model, example)
    except ValueError as error:
        assert "this CPU does not compute in bf16 in OpenVINO, but in f32" in str(error)


def test_precisions_of_openvino():
    with pytest.raises(ValueError, match="precision is 'int8'; it must be one of f32, bf16, f16"):
        st.OpenVINO(precision="int8")
