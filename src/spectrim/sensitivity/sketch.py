"""What replacing layers does to the network's outputs, for many options at once, by Jacobian sketches.

Replacing layer l's module changes its answer by d_l, and the outputs by J_l d_l to first order. With H the Hessian of each
example's harm at the present outputs, replacing several layers changes the harm by

    sum_l slope . J_l d_l + 1/2 sum_(l,m) (J_l d_l)^T H (J_m d_m).

Nobody needs J: for a random v with E[v v^T] = H (`curvature_root`), one backward pass gives J_l^T v for every layer at once,
and (J_l^T v) . d_l is one sample of what option l does. So any number of options, in any combination, costs one forward,
two backward passes and each option's own arithmetic. One v per
example is enough: the average is over examples, and all combinations are judged by the same ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from spectrim.core.search import QuadraticModel
from spectrim.network.calling import Example, answer, batch_size, call, evaluation_mode
from spectrim.sensitivity.divergence import Harm, curvature_root, detached, floats, output_harm, slope
from spectrim.sensitivity.moments import attached

Alternative = tuple[str, nn.Module]  # a layer's name, and what would take its place
Seen = dict[str, list[tuple[Tensor, Tensor]]]


def quadratic_models(
    original: nn.Module,
    network: nn.Module,
    alternatives: Sequence[Alternative],
    batches: Sequence[Example],
    *,
    harm: Harm = output_harm,
    draws: int = 1,
) -> Iterator[QuadraticModel]:
    """Yield after each batch what each alternative would do to the harm of a network, to second order, on the images so far.

    Args:
        original: Its outputs are the reference.
        network: The network around which steps are taken; may be the original itself. It is not changed.
        alternatives: Layer names, each with the module that would take the layer's place.
        batches: Inputs, at least one batch.
        harm: See `spectrim.sensitivity.divergence`.
        draws: Random vectors an example; more than one pays where there are few examples.
    """
    generator = torch.Generator().manual_seed(0)
    linear, gram = np.zeros(len(alternatives)), np.zeros((len(alternatives), len(alternatives)))
    total, examples = 0.0, 0
    names = list(dict.fromkeys(name for name, _ in alternatives))
    for batch in batches:
        size = batch_size(batch)
        with evaluation_mode(original), evaluation_mode(network):
            with torch.no_grad():
                reference = call(original, batch)
            outputs, seen = _observed(network, names, batch)
            fixed = detached(outputs)
            total += size * float(harm(fixed, reference))
            roots = [curvature_root(fixed, reference, harm, generator) for _ in range(draws)]
            samples = _samples(outputs, [slope(fixed, reference, harm), *roots], seen, alternatives, size)  # (A, 1 + draws, N)
        linear += samples[:, 0].sum(1)
        curved = samples[:, 1:].reshape(len(alternatives), -1)
        gram += curved @ curved.T / draws
        examples += size
        yield QuadraticModel(total / examples, linear / examples, gram / examples)


def quadratic_model(
    original: nn.Module,
    network: nn.Module,
    alternatives: Sequence[Alternative],
    batches: Sequence[Example],
    *,
    harm: Harm = output_harm,
) -> QuadraticModel:
    """Return what each alternative would do to the harm of a network; arguments as in `quadratic_models`."""
    *_, last = quadratic_models(original, network, alternatives, batches, harm=harm)
    return last


def _observed(network: nn.Module, names: Sequence[str], batch: Example) -> tuple[object, Seen]:
    """Return the outputs with their graph, and every named layer's inputs and answers."""
    seen: Seen = {name: [] for name in names}

    def hook(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
        def observe(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
            if not output.requires_grad:
                output = output.detach().requires_grad_()
            seen[name].append((args[0].detach().clone(), output))  # the input may be changed in place later
            return output.clone()  # what follows may change it in place

        return observe

    handles = [network.get_submodule(name).register_forward_hook(hook(name), prepend=True) for name in names]
    try:
        with torch.enable_grad():
            return call(network, attached(batch)), seen
    finally:
        for handle in handles:
            handle.remove()


def _samples(
    outputs: object, directions: Sequence[Sequence[Tensor]], seen: Seen, alternatives: Sequence[Alternative], size: int
) -> np.ndarray:
    """Return (J_l^T v) . d_l of each alternative, direction and example, (A, directions, N).

    A layer may see several rows of each example, one behind the other, such as the frames of a clip.
    """
    answers = [y for pairs in seen.values() for _, y in pairs]
    results = [tensor for tensor in floats(outputs) if tensor.requires_grad]
    pulled = []
    for direction in directions:
        wanted = [v.to(x) for v, x in zip(direction, floats(outputs), strict=True) if x.requires_grad]
        gradients = torch.autograd.grad(results, answers, wanted, retain_graph=True, allow_unused=True)
        pulled.append([torch.zeros_like(y) if g is None else g for y, g in zip(answers, gradients, strict=True)])
    stacked = [
        _wide(torch.stack([each[i].flatten(1) for each in pulled], 1)) for i in range(len(answers))
    ]  # (N, directions, d)
    of = {id(y): gradients for y, gradients in zip(answers, stacked, strict=True)}
    rows = []
    with torch.no_grad():
        for name, module in alternatives:
            pairs = seen[name]
            row = [torch.bmm(of[id(y)], _wide(answer(module, x) - y).flatten(1)[:, :, None])[:, :, 0] for x, y in pairs]
            rows.append(torch.stack([each.double().unflatten(0, (size, -1)).sum(1) for each in row]).sum(0).cpu().T)
    return torch.stack(rows).numpy()


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
