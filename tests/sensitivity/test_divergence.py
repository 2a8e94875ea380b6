"""Harms of outputs: their values, slopes and curvatures, against formulas and autograd."""

import math

import pytest
import torch
from torch.autograd.functional import hessian, jacobian

import spectrim as st
from nets import Residual, settle
from spectrim.sensitivity import divergence
from spectrim.sensitivity.divergence import check, curvature_root, output_harm, root_times, slope

WEIGHTS = torch.tensor([10.0, 1.0, 0.01])
MIXING = torch.randn(4, 4, generator=torch.Generator().manual_seed(7))


def squared(outputs, reference):
    return 3 * (outputs - reference).square().sum(1).mean()


def quartic(outputs, reference):
    change = outputs - reference
    return (change.square().sum(1) + change.pow(4).sum(1) + change.square().sum(1) ** 2).mean()


def first_class(outputs, reference):
    return (outputs[:, 0] - reference[:, 0]).square().mean()


def uneven(outputs, reference):
    """Two outputs whose weights differ a thousandfold, and a full matrix."""
    first, second = (a - b for a, b in zip(outputs, reference, strict=True))
    return ((first.square() * WEIGHTS).sum(1) + (second @ MIXING).square().sum(1)).mean()


def normal(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


IMAGES = (normal(2, 3, 2, 2, seed=2), {"boxes": normal(2, 2, seed=3)})
CASES = {  # harm, reference, and how far from it the outputs are
    "logits": (output_harm, 2 * normal(3, 5, seed=1), 1.0),
    "two classes": (output_harm, normal(2, 2, seed=1), 1.0),
    "certain": (output_harm, 8 * normal(3, 5, seed=1), 0.1),
    "an image and boxes": (output_harm, IMAGES, 0.3),
    "one column": (output_harm, normal(3, 1, seed=4), 0.3),
    "squared": (squared, normal(3, 5, seed=1), 1.0),
    "quartic": (quartic, normal(2, 4, seed=1), 0.3),
    "first class": (first_class, normal(3, 5, seed=1), 1.0),
    "uneven": (uneven, (normal(2, 3, seed=5), normal(2, 4, seed=6)), 0.0),
}


def leaves(value):
    return (
        [value]
        if isinstance(value, torch.Tensor)
        else [t for v in (value.values() if isinstance(value, dict) else value) for t in leaves(v)]
    )


def rebuilt(value, tensors):
    """Return the same nesting of other tensors, taken from an iterator."""
    if isinstance(value, torch.Tensor):
        return next(tensors)
    if isinstance(value, dict):
        return {key: rebuilt(item, tensors) for key, item in value.items()}
    return tuple(rebuilt(item, tensors) for item in value)


def world(name):
    """The harm of a case as a function of all outputs as one matrix (N, D), and where it stands."""
    harm, reference, distance = CASES[name]
    sizes = [x[0].numel() for x in leaves(reference)]
    flat = torch.cat([x.flatten(1) for x in leaves(reference)], 1)

    def nested(vectors):
        parts = zip(vectors.split(sizes, 1), leaves(reference), strict=True)
        return rebuilt(reference, iter([part.reshape(x.shape) for part, x in parts]))

    at = flat + distance * normal(*flat.shape, seed=9)
    return harm, reference, nested, at


@pytest.mark.parametrize("name", CASES)
def test_the_root_times_its_transpose_is_the_curvature(name):
    """S is linear in the noise, so unit vectors show it whole; S S^T against autograd's Hessian of each example's harm."""
    harm, reference, nested, at = world(name)
    outputs, (examples, size) = nested(at), at.shape
    columns = []
    for unit in torch.eye(size):
        noise = leaves(nested(unit.repeat(examples, 1)))
        columns.append(torch.cat([x.flatten(1) for x in root_times(outputs, reference, harm, noise)], 1))
    root = torch.stack(columns, 2).double()  # (N, D, D)
    wanted = hessian(lambda x: examples * harm(nested(x), reference), at).double()
    for example in range(examples):
        exact = wanted[example, :, example]
        torch.testing.assert_close(root[example] @ root[example].T, exact, rtol=2e-4, atol=2e-5 * float(exact.abs().max()))


@pytest.mark.parametrize("name", CASES)
def test_the_root_is_linear_in_the_noise(name):
    harm, reference, nested, at = world(name)
    first, second = (normal(*at.shape, seed=seed) for seed in (20, 21))

    def times(noise):
        return torch.cat([x.flatten(1) for x in root_times(nested(at), reference, harm, leaves(nested(noise)))], 1)

    torch.testing.assert_close(times(first - 2 * second), times(first) - 2 * times(second), rtol=1e-3, atol=5e-3)


@pytest.mark.parametrize("name", CASES)
def test_the_slope_is_the_gradient_of_each_examples_harm(name):
    harm, reference, nested, at = world(name)
    found = torch.cat([x.flatten(1) for x in slope(nested(at), reference, harm)], 1)
    wanted = jacobian(lambda x: len(at) * harm(nested(x), reference), at)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", CASES)
def test_random_roots_are_of_the_generators_noise(name):
    harm, reference, nested, at = world(name)
    generator = torch.Generator().manual_seed(3)
    noise = [torch.randn(x.shape, generator=generator) for x in leaves(reference)]
    found = curvature_root(nested(at), reference, harm, torch.Generator().manual_seed(3))
    for one, other in zip(found, root_times(nested(at), reference, harm, noise), strict=True):
        assert torch.equal(one, other)


def test_lanczos_of_more_dimensions_than_steps_is_exact_for_few_distinct_curvatures(monkeypatch):
    monkeypatch.setattr(divergence, "ROOT_STEPS", 4)
    weights = torch.tensor([4.0, 1.0, 0.25]).repeat_interleave(20)
    noise = normal(2, 60, seed=0)
    (found,) = root_times(noise, noise, lambda a, b: ((a - b).square() * weights).sum(1).mean(), [noise])
    torch.testing.assert_close(found, (2 * weights).sqrt() * noise, rtol=1e-3, atol=1e-3)


def test_divergence_of_logits_is_in_nats():
    outputs, reference = normal(7, 5, seed=0), normal(7, 5, seed=1)
    p, q = reference.double().softmax(1), outputs.double().softmax(1)
    assert float(output_harm(outputs, reference)) == pytest.approx(float((p * (p / q).log()).sum(1).mean()), rel=1e-5)
    assert float(output_harm(outputs, outputs)) == pytest.approx(0, abs=1e-7)


def test_squared_error_is_the_harm_of_outputs_that_are_no_logits():
    reference = (normal(4, 3, 6, 6, seed=0), {"boxes": normal(4, 2, seed=1)})
    outputs = (reference[0] + 0.1, {"boxes": reference[1]["boxes"] + 0.2})
    expected = (0.01 / reference[0].square().mean() + 0.04 / reference[1]["boxes"].square().mean()) / 2
    assert float(output_harm(outputs, reference)) == pytest.approx(float(expected), rel=1e-5)


UNUSABLE = {
    "a constant": (lambda a, b: 1.0, "harm returned float; it must return one differentiable number"),
    "one number an element": (lambda a, b: (a - b).square(), r"harm returned a tensor of shape \(16, 5\)"),
    "one number an example": (lambda a, b: (a - b).square().sum(1), r"shape \(16,\)"),
    "no graph": (lambda a, b: a.detach().sum(), "does not depend differentiably on the outputs"),
    "an offset": (lambda a, b: 1 + (a - b).square().mean(), "harm is 1 where outputs and reference are equal; it must be zero"),
    "not a number": (lambda a, b: (a - b).square().mean() + math.nan, "harm is nan where"),
    "absolute values": (lambda a, b: (a - b).abs().mean(), "no finite and positive second derivative"),
    "a root": (lambda a, b: (a - b).square().mean().sqrt(), "no finite and positive second derivative"),
    "downwards": (lambda a, b: -(a - b).square().mean(), "no finite and positive second derivative"),
}


@pytest.mark.parametrize("name", UNUSABLE)
def test_unusable_harms_get_a_sentence(name):
    harm, words = UNUSABLE[name]
    with pytest.raises(ValueError, match=words):
        check(harm, normal(16, 5, seed=0))


@pytest.mark.parametrize("name", UNUSABLE)
def test_they_get_it_before_any_work_is_done(name):
    x, stages = torch.randn(16, 3, 8, 8), []
    config = st.Config(harm=UNUSABLE[name][0], progress=lambda stage, share: stages.append(stage))
    with pytest.raises(ValueError, match=UNUSABLE[name][1]):
        st.prepare(settle(Residual(), x), x[:1], calibration=[x], config=config)
    assert stages == []


@pytest.mark.parametrize("name", [name for name in CASES if CASES[name][0] is not output_harm])
def test_usable_harms_pass(name):
    harm, reference, _ = CASES[name]
    assert float(harm(reference, reference)) == 0
    check(harm, reference)
