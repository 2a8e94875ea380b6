"""Training batches: order, parts of processes, crops and flips."""

import pytest
import torch
from torch import distributed
from torch.nn import functional

from spectrim.train.batches import TensorBatches, augment, set_epoch


def labels_of(batches):
    return [labels.tolist() for _, labels in batches]


def test_batches_hold_each_image_once_and_change_their_order():
    x, y = torch.arange(40.0).view(10, 1, 2, 2), torch.arange(10)
    batches = TensorBatches(x, y, size=4)
    epochs = []
    for epoch in range(3):
        set_epoch(batches, epoch)
        for images, labels in batches:
            assert torch.equal(images, x[labels])
        epochs.append(labels_of(batches))
        assert len(epochs[-1]) == len(batches) == 2 and len({label for batch in epochs[-1] for label in batch}) == 8
    assert epochs[0] != epochs[1] != epochs[2]
    set_epoch(batches, 0)
    assert labels_of(batches) == epochs[0]
    assert labels_of(TensorBatches(x, y, size=4, seed=1)) != epochs[0]
    assert labels_of(TensorBatches(x, y, size=100)) == labels_of(TensorBatches(x, y, size=10))


@pytest.mark.parametrize(("world", "size"), [(2, 4), (3, 6), (4, 8), (3, 4)])
def test_processes_share_the_batches_of_one(world, size, monkeypatch):
    x, y = torch.zeros(25, 1, 2, 2), torch.arange(25)
    whole = labels_of(TensorBatches(x, y, size=size, seed=3))
    monkeypatch.setattr(distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(distributed, "get_world_size", lambda: world)
    parts = []
    for rank in range(world):
        monkeypatch.setattr(distributed, "get_rank", lambda rank=rank: rank)
        parts.append(labels_of(TensorBatches(x, y, size=size, seed=3)))
    assert {len(batch) for part in parts for batch in part} == {size // world}
    together = [set().union(*batches) for batches in zip(*parts, strict=True)]
    assert all(len(batch) == world * (size // world) for batch in together)
    if size % world == 0:
        assert together == [set(batch) for batch in whole]
    else:  # as much as divides evenly
        assert len(set().union(*together)) == sum(len(batch) for batch in together)


def test_batches_are_drawn_wherever_the_default_device_is():
    x, y = torch.arange(40.0).view(10, 1, 2, 2), torch.arange(10)
    batches = TensorBatches(x, y, size=4)
    with torch.device("meta"):
        found = labels_of(batches)
    assert found == labels_of(batches)


def test_images_that_are_others_have_another_digest():
    x, y = torch.randn(40, 1, 2, 2), torch.arange(40)
    digests = [TensorBatches(*pair, size=4).digest() for pair in ((x, y), (x + 1, y), (x, y.flip(0)), (x[:39], y[:39]))]
    assert len(set(digests)) == 4 and digests[0] == TensorBatches(x.clone(), y.int(), size=4).digest()


def test_augmented_images_are_windows_of_the_padded_ones():
    images = torch.randn(8, 3, 6, 5)
    before = images.clone()
    assert torch.equal(images, augment(images, 0, False, torch.Generator()))
    moved = augment(images, 2, True, torch.Generator().manual_seed(0))
    assert moved.shape == images.shape and torch.equal(images, before)
    padded = functional.pad(images, (2, 2, 2, 2), mode="reflect")
    found = set()
    for one, around in zip(moved, padded, strict=True):
        windows = [around[:, i : i + 6, j : j + 5] for i in range(5) for j in range(5)]
        found.add(
            next((k, m) for k, w in enumerate(windows) for m in (False, True) if torch.equal(one.flip(2) if m else one, w))
        )
    assert len({place for place, _ in found}) > 1 and {mirrored for _, mirrored in found} == {False, True}
