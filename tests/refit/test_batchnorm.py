"""BatchNorm re-estimation: the averages over the batches, and everything else as it was."""

import pytest
import torch
from torch import nn

from nets import Residual, settle
from spectrim.refit.batchnorm import at_least_two, reestimate_batchnorm


def test_statistics_are_the_averages_over_the_batches():
    x = torch.randn(64, 3, 8, 8)
    model = settle(Residual(), x)
    with torch.no_grad():
        model.bn1.running_mean += 3
    before = {name: value.clone() for name, value in model.state_dict().items()}
    fresh = reestimate_batchnorm(model, list(x.split(16)))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    with torch.no_grad():
        y = [model.stem(part) for part in x.split(16)]
    torch.testing.assert_close(fresh.bn0.running_mean, torch.stack([part.mean((0, 2, 3)) for part in y]).mean(0))
    torch.testing.assert_close(fresh.bn0.running_var, torch.stack([part.var((0, 2, 3)) for part in y]).mean(0))
    assert (fresh.bn1.running_mean - model.bn1.running_mean).abs().min() > 2
    assert not fresh.bn1.training and fresh.bn1.momentum == model.bn1.momentum
    assert all(torch.equal(a, b) for a, b in zip(fresh.parameters(), model.parameters(), strict=True))


class Pooled(nn.Module):
    """A norm of one value per image, and one that is never called."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.unused = nn.Conv2d(3, 4, 3), nn.BatchNorm1d(4), nn.BatchNorm2d(4)

    def forward(self, x):
        return self.norm(self.conv(x).mean((2, 3)))


@pytest.mark.parametrize("sizes", [(4, 4, 1), (1, 1, 1), (1, 4)], ids=str)
def test_single_images_and_norms_that_are_not_called(sizes):
    x = torch.randn(sum(sizes), 3, 8, 8)
    model = Pooled().eval()
    with torch.no_grad():
        model.unused.running_mean += 3
        model.unused.num_batches_tracked += 5
    fresh = reestimate_batchnorm(model, x.split(list(sizes)))
    assert fresh.norm.running_mean.any() and torch.isfinite(fresh(x)).all()
    kept = {name: value for name, value in fresh.state_dict().items() if name.startswith("unused")}
    assert kept and all(torch.equal(value, model.state_dict()[name]) for name, value in kept.items())


def test_of_one_image_nothing_can_be_estimated():
    model = Pooled().eval()
    same = reestimate_batchnorm(model, [torch.randn(1, 3, 8, 8)])
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in same.state_dict().items())


@pytest.mark.parametrize(
    ("sizes", "found"), [((4, 4, 1), [4, 5]), ((1, 1, 1), [3]), ((1, 4), [5]), ((2,), [2]), ((1,), []), ((2, 1), [3])]
)
def test_single_images_join_their_neighbours(sizes, found):
    x = torch.randn(sum(sizes), 3)
    for batches in (list(x.split(list(sizes))), [{"x": part} for part in x.split(list(sizes))]):
        parts = [part if isinstance(part, torch.Tensor) else part["x"] for part in at_least_two(batches)]
        assert [len(part) for part in parts] == found
        assert torch.equal(torch.cat([*parts, x[:0]]), x if found else x[:0])
