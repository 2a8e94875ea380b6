"""How far few images let a covariance be trusted: Ledoit and Wolf by hand, and what must hold at both ends."""

import numpy as np
import pytest
import torch

from spectrim.sensitivity.covariance import UNKNOWN, Covariance, Squares


def share_of(found):
    """Return how far the off-diagonal of a covariance was drawn to nothing."""
    (sample,), (shrunk,) = found.covariance, found.shrunk
    off = ~torch.eye(len(sample), dtype=torch.bool)
    torch.testing.assert_close(shrunk.diagonal(), sample.diagonal())
    ratios = (shrunk[off] / sample[off])[sample[off].abs() > 1e-3 * sample[off].abs().max()]
    torch.testing.assert_close(ratios, ratios[:1].expand_as(ratios), rtol=1e-5, atol=1e-7)
    return 1 - float(ratios[0])


def by_hand(blocks, sample, target):
    """Return the shrunk covariance of blocks of observations (M, d), about the origin of the squares."""
    counts = np.array([len(block) for block in blocks], dtype=float)
    weights = counts / counts.sum()
    squares = [block.T @ block / len(block) for block in blocks]
    mean = sum(weight * square for weight, square in zip(weights, squares, strict=True))
    error = sum(weight * ((square - mean) ** 2).sum() for weight, square in zip(weights, squares, strict=True))
    share = np.clip(error / (len(blocks) - 1) / ((sample - target) ** 2).sum(), 0, 1)
    return (1 - share) * sample + share * target, share


SIZES = {"equal": [6, 6, 6, 6], "unequal": [2, 9, 5, 14, 7], "two": [8, 3]}


@pytest.mark.parametrize("sizes", SIZES)
def test_squares_are_drawn_as_by_hand(sizes):
    random = np.random.default_rng(0)
    mixing = random.normal(size=(5, 5))
    blocks = [random.normal(size=(size, 5)) @ mixing for size in SIZES[sizes]]
    found = Squares()
    for block in blocks:
        found.add(torch.from_numpy(block)[None])
    assert found.blocks == len(blocks) and found.count == sum(SIZES[sizes])
    sample = np.concatenate(blocks).T @ np.concatenate(blocks) / found.count
    np.testing.assert_allclose(found.mean[0], sample)
    target = np.diag(np.diag(sample))
    wanted, share = by_hand(blocks, sample, target)
    assert 0 < share < 1
    np.testing.assert_allclose(found.shrunk(torch.from_numpy(sample)[None], torch.from_numpy(target)[None])[0], wanted)


@pytest.mark.parametrize("groups", [1, 3])
def test_blocks_are_runs_of_one_addition(groups):
    """Added at once in so many blocks, or one after the other; every group has a share of its own."""
    x = torch.randn(groups, 24, 4, dtype=torch.float64) @ torch.randn(groups, 4, 4, dtype=torch.float64)
    whole, parts = Squares(), Squares()
    whole.add(x, 6)
    for part in x.chunk(6, 1):
        parts.add(part)
    target = torch.diag_embed(whole.mean.diagonal(dim1=1, dim2=2))
    torch.testing.assert_close(whole.shrunk(whole.mean, target), parts.shrunk(parts.mean, target))
    for group in range(groups):
        blocks = [part.numpy() for part in x[group].chunk(6)]
        wanted, _ = by_hand(blocks, whole.mean[group].numpy(), target[group].numpy())
        np.testing.assert_allclose(whole.shrunk(whole.mean, target)[group], wanted)


def test_the_share_falls_with_images_from_one_to_nothing():
    random = torch.Generator().manual_seed(0)
    mixing = torch.randn(8, 8, generator=random, dtype=torch.float64)
    shares = {}
    for images in (4, 40, 4000):
        found = Covariance()
        found.add(torch.randn(1, images, 8, generator=random, dtype=torch.float64) @ mixing, blocks=min(images, 16))
        shares[images] = share_of(found)
    assert 1 >= shares[4] > shares[40] > shares[4000] >= 0 and shares[4000] < 0.02
    noise = Covariance()
    noise.add(torch.randn(1, 400, 8, generator=random, dtype=torch.float64), blocks=16)
    assert share_of(noise) > 0.6


def test_positions_of_one_image_do_not_count_as_independent():
    """Thirty copies of every image are no more than the images."""
    x = torch.randn(1, 12, 6, dtype=torch.float64) @ torch.randn(6, 6, dtype=torch.float64)
    once, often = Covariance(), Covariance()
    once.add(x, blocks=12)
    often.add(x.repeat_interleave(30, 1), blocks=12)
    torch.testing.assert_close(often.shrunk, once.shrunk)


def test_of_one_block_nothing_is_known():
    found = Covariance()
    found.add(torch.randn(1, 50, 4, dtype=torch.float64))
    assert share_of(found) == pytest.approx(UNKNOWN)


def test_what_does_not_vary_stays():
    found = Covariance()
    found.add(torch.ones(2, 30, 4), blocks=5)
    assert torch.equal(found.shrunk, torch.zeros(2, 4, 4, dtype=torch.float64))


def test_pooled_groups_are_one_sample():
    x = torch.randn(3, 40, 4, dtype=torch.float64) @ torch.randn(4, 4, dtype=torch.float64) + 2
    found = Covariance(pooled=True)
    for part in x.split(10, 1):
        found.add(part, blocks=2)
    near = x - x[:, :10].mean(1, keepdim=True)
    blocks = [part.flatten(0, 1).numpy() for part in near.split(5, 1)]
    sample = torch.stack([torch.cov(group.T, correction=0) for group in x]).mean(0)
    torch.testing.assert_close(found.covariance[0], sample)
    wanted, share = by_hand(blocks, sample.numpy(), np.diag(np.diag(sample)))
    assert 0 < share < 1
    np.testing.assert_allclose(found.shrunk[0], wanted)
