"""PyTorch as a target: any example, any mode, everything put back as it was, answers checked where something was changed."""

import pytest
import torch
from torch import nn

import spectrim as st
from spectrim.targets.base import MOVED, checked


class Noting(nn.Module):
    """Checks how it is called, and takes any arguments."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, x, *more):
        assert not self.training and not torch.is_grad_enabled() and torch.get_num_threads() == 1
        return {"all": [self.layer(x), *more]}


@pytest.mark.parametrize("example", [torch.ones(2, 3), (torch.ones(2, 3), torch.ones(2, 4)), {"x": torch.ones(2, 3)}])
def test_any_example_and_any_mode(example):
    before, model = torch.get_num_threads(), Noting().train()
    found = st.Torch().load(model, example).outputs()
    assert model.training and torch.get_num_threads() == before
    assert torch.equal(found[0], model.layer(torch.ones(2, 3))) and len(found) == (2 if isinstance(example, tuple) else 1)


def test_the_network_may_change_afterwards():
    model, x = nn.Linear(3, 2), torch.ones(2, 3)
    before, session = model(x), st.Torch().load(model, x)
    nn.init.zeros_(model.weight)
    assert torch.equal(session.outputs()[0], before)


def test_threads_are_put_back_after_a_failure():
    class Failing(nn.Module):
        def forward(self, x):
            raise RuntimeError("no")

    before = torch.get_num_threads()
    session = st.Torch(threads=before + 1).load(Failing(), torch.zeros(1))
    with pytest.raises(RuntimeError, match="no"):
        session.run()
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("threads", [1, 2])
def test_time_of_several_threads_is_that_of_the_wall(threads):
    assert st.Torch(threads).load(nn.Linear(1, 1), torch.zeros(1, 1)).clock == ("process" if threads == 1 else "wall")


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize(("precision", "dtype", "size"), [(None, torch.float32, 4), ("bf16", torch.bfloat16, 2)])
def test_precision_and_layout(precision, dtype, size, layout):
    model, x = nn.Conv2d(3, 4, 3), torch.randn(2, 3, 8, 8)
    target = st.Torch(precision=precision, layout=layout)
    session = target.load(model, x)
    (found,) = session.outputs()
    assert found.dtype == dtype and session.size == size * (4 * 27 + 4) and model.weight.dtype == torch.float32
    assert found.is_contiguous(memory_format=torch.channels_last) == (layout == "channels_last")
    assert target.describe()["precision"] == (precision or "precision as given")


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"threads": 0}, "threads is 0; it must be a whole number from 1 to 1024"),
        ({"precision": "int4"}, "precision is 'int4'; it must be one of f32, f16, bf16, or None"),
        ({"layout": "rows"}, "layout is 'rows'; it must be 'contiguous' or 'channels_last'"),
    ],
)
def test_wrong_values(given, text):
    with pytest.raises(ValueError, match=text):
        st.Torch(**given)


def test_a_session_that_answers_otherwise_is_refused():
    model, x = nn.Linear(3, 2), torch.randn(4, 3)
    other = nn.Linear(3, 2)
    other.load_state_dict({name: 1.01 * value for name, value in model.state_dict().items()})
    session = st.Torch().load(other, x)
    with pytest.raises(ValueError, match=r"outputs differ by 1 % of their norm, and 0.1 % is allowed in f32"):
        checked(session, model, x)
    assert checked(session, model, x, "bf16") is session
    with pytest.raises(ValueError, match=r"other shapes than the network: \[\(4, 2\)\] and \[\(4, 1\)\]"):
        checked(session, nn.Linear(3, 1), x)


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        (nn.Conv2d(16, 17, 3, padding=1), (16 * 9 + 20) * 32 * 64),
        (nn.Conv2d(16, 16, 3, padding=1, groups=16), (9 + 20) * 16 * 64),
        (nn.ConvTranspose2d(16, 8, 2, stride=2), (16 * 4 + 20) * 16 * 64),
    ],
)
def test_predicted_time_of_a_part(layer, expected):
    (found,) = st.find_layers(nn.Sequential(layer), torch.zeros(1, 16, 8, 8))
    assert st.Torch().predict(found) == expected and st.Torch().multiple(64) == 4


def test_a_pivot_computes_what_it_does_not_pass_on_and_moves_all():
    part = st.Layer("", "Pivot", (64, 16, 1, 1), ((16, 8, 8),), (1, 1), (0, 0), (0, 0), (1, 1))
    assert st.Torch().predict(part) == (16 + 20) * 48 * 64 + MOVED * 64 * 64
