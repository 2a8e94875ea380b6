"""One forward and backward sweep over calibration data: what every layer sees, answers and matters.

For each layer: the covariance C of its lowered input at sampled positions, the covariance W C W^T of its output, and the second
moment G of J^T v at its output, J being the derivative of the network's outputs by the layer's and v random with E[v v^T] = H,
the curvature of the harm (for logits the true Fisher information; no labels are needed). G is summed over the positions of one
example, covariances are averaged over positions, so that 1/2 tr(G D C D^T) is the loss in nats of changing the kernel by D.
Both are shrunk as far as images differ (`spectrim.sensitivity.covariance`).

Memory: the statistics, (n^2 + T^2) numbers of eight bytes per group and layer with n at most `LARGEST`
(of many groups only the average is kept), and the
activations and gradients of one batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from types import EllipsisType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from spectrim.core.factorization import Moments
from spectrim.core.layer import Layer
from spectrim.factorize.algebra import eye_like
from spectrim.network.build import original_bias, working_weight
from spectrim.network.calling import Example, call, count, evaluation_mode, first_line, map_tensors
from spectrim.sensitivity.covariance import BLOCKS, Covariance, Squares
from spectrim.sensitivity.divergence import Harm, curvature_root, detached, floats, output_harm

POSITIONS = 65536  # sampled positions per layer at most
ENOUGH = (8192, 256)  # sampled positions that do: at least so many, and so many times n
EACH = 64  # and per image, where that is enough: positions of one image are alike
LARGEST = 4608  # largest lowered input (512 channels, 3 x 3) whose covariance is kept
MEMORY = 4 << 30  # bytes; an eighth of it is the bound on one layer's covariances
LEAST = 1e-9  # share of the mean diagonal that is in every G
PART = 1 << 23  # numbers of the covariances of the groups that are looked at together, where there are many


class Sampler:
    """Draws the positions of a layer's output at which its lowered input is looked at.

    Args:
        seed: Of the random positions.
        examples: How many examples will be seen in all; shares the positions among them.
    """

    def __init__(self, seed: int, examples: int) -> None:
        """Store the seed and each example's share."""
        self.generator = torch.Generator().manual_seed(seed)
        self.examples = max(examples, 1)

    def blocks(self, images: int) -> int:
        """Return into how many blocks such a batch is cut."""
        return min(images, math.ceil(BLOCKS * images / self.examples))

    def draw(self, layer: Layer, batch: int, shape: Sequence[int]) -> tuple[Tensor, ...]:
        """Return index tensors (M,), of the example and of each spatial axis, for an output of spatial `shape`."""
        total = batch * math.prod(shape)
        least, each = ENOUGH
        most = min(POSITIONS, max(least, each * layer.matrix[1]))
        wanted = math.ceil(batch * min(most, max(least, EACH * self.examples)) / self.examples / layer.calls)
        if wanted >= total:
            flat = torch.arange(total, device="cpu")
        else:  # in the order of the examples
            flat = torch.randint(total, (wanted,), generator=self.generator, device="cpu").sort().values
        return tuple(torch.unravel_index(flat, (batch, *shape)))


def lowered(layer: Layer, x: Tensor, index: tuple[Tensor, ...] | None = None) -> Tensor:
    """Return the lowered input patches at the given output positions, per group.

    Args:
        layer: Geometry.
        x: Input (N, S, *spatial), or (N, ..., S) of a linear layer.
        index: From `Sampler.draw`; None takes every position, those of one example together.

    Returns:
        Patches (g, M, n) in the order of the canonical kernel (S, *kernel).
    """
    if layer.kind == "Linear":
        return x.flatten(0, -2)[None] if index is None else x[tuple(axis.to(x.device) for axis in index)][None]
    if x.ndim == 4 and index is not None and len(index[0]) * math.prod(layer.kernel) > math.prod(x.shape[2:]) * len(x):
        x = x.contiguous(memory_format=torch.channels_last)  # patches are then gathered from whole runs of memory
    x = _windows(layer, x)
    if index is None:
        places = range(2, 2 + len(layer.kernel))
        patches = x.permute(0, *places, 1, *(place + len(places) for place in places)).flatten(0, len(places))
    else:
        example, *where = (axis.to(x.device) for axis in index)
        at: tuple[Tensor | slice, ...] = (example, slice(None), *where)
        patches = x[at]  # (M, S, *kernel)
    return patches.reshape(len(patches), layer.groups, -1).transpose(0, 1)


def _windows(layer: Layer, x: Tensor) -> Tensor:
    """Return what the kernel of a convolution sees at each position, (N, S, *positions, *kernel), a view where it can be."""
    kernel, dilation = layer.kernel, layer.dilation
    if layer.pad:
        x = functional.pad(x, [side for pair in reversed(layer.pad) for side in pair])
    if layer.transposed:  # an ordinary convolution with the flipped kernel, over the input with zeros between its pixels
        assert not isinstance(layer.padding, str)
        stuffed = x.new_zeros(*x.shape[:2], *((size - 1) * s + 1 for size, s in zip(x.shape[2:], layer.stride, strict=True)))
        strided: tuple[EllipsisType | slice, ...] = (..., *(slice(None, None, s) for s in layer.stride))
        stuffed[strided] = x
        sides = [
            (d * (k - 1) - p, d * (k - 1) - p + o)
            for d, k, p, o in zip(dilation, kernel, layer.padding, layer.output_padding, strict=True)
        ]
        x, stride = functional.pad(stuffed, [side for pair in reversed(sides) for side in pair]), (1,) * len(kernel)
    else:
        if layer.padding == "same":
            reach = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
            sides = [(total // 2, total - total // 2) for total in reach]
        else:
            sides = [(int(p), int(p)) for p in layer.padding]
        mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
        if any(side for pair in sides for side in pair):
            x = functional.pad(x, [side for pair in reversed(sides) for side in pair], mode=mode)
        stride = layer.stride
    for axis, (k, d, s) in enumerate(zip(kernel, dilation, stride, strict=True)):
        x = x.unfold(2 + axis, d * (k - 1) + 1, s)
        x = x[..., ::d]
    return x


def spatial_shape(layer: Layer, y: Tensor) -> Sequence[int]:
    """Return the shape of the positions of outputs (N, T, *spatial), or (N, ..., T) of a linear layer."""
    return y.shape[1:-1] if layer.kind == "Linear" else y.shape[2:]


def grouped(layer: Layer, y: Tensor, index: tuple[Tensor, ...] | None = None) -> Tensor:
    """Return outputs (N, T, *spatial), or (N, ..., T) of a linear layer, at some positions or all, as (g, positions, T / g)."""
    if index is not None:
        index = tuple(axis.to(y.device) for axis in index)
        where: tuple[Tensor | slice, ...] = index if layer.kind == "Linear" else (index[0], slice(None), *index[1:])
        drawn: Tensor = y[where].unflatten(1, (layer.groups, -1))
        return drawn.transpose(0, 1)
    if layer.kind == "Linear":
        return y.reshape(1, -1, y.shape[-1])
    split: Tensor = y.unflatten(1, (layer.groups, -1))
    return split.transpose(0, 1).movedim(2, -1).flatten(1, -2)


class _Sums:
    """What is summed up of one layer; inputs in parts, as many groups in each as memory is well spent on at a time."""

    def __init__(self, layer: Layer, memory: int) -> None:
        self.layer = layer
        self.outputs = Covariance()  # without the inputs' only
        self.gradient = Squares()
        self.positions = 0  # at which there were gradients, drawn or not
        numbers = layer.matrix[1] ** 2
        self.covaries = numbers <= largest(memory)  # whether the covariance of the inputs is kept
        pooled = layer.groups * numbers > largest(memory)
        self.groups = min(layer.groups, max(1, PART // numbers)) if pooled else layer.groups  # in each part
        squares = Squares()  # one sum for all parts
        parts = range(0, layer.groups, self.groups) if self.covaries else ()
        self.inputs = [Covariance(pooled, squares=squares) for _ in parts]

    def see(self, x: Tensor, index: tuple[Tensor, ...], blocks: int) -> None:
        """Take in the lowered inputs at some positions, of so many blocks of images."""
        if len(self.inputs) == 1:
            self.inputs[0].add(lowered(self.layer, x, index).float(), blocks=blocks)
            return
        width = self.layer.channels[1] // self.layer.groups
        for number, part in enumerate(self.inputs):
            first = number * self.groups
            groups = min(self.groups, self.layer.groups - first)
            channels = x[:, first * width : (first + groups) * width]
            part.add(lowered(replace(self.layer, groups=groups), channels, index).float(), blocks=blocks)

    def seen(self) -> tuple[Tensor, Tensor]:
        """Return covariance and mean of the lowered inputs."""
        if len(self.inputs) == 1:
            return self.inputs[0].shrunk, self.inputs[0].mean
        whole = Covariance(pooled=True, count=self.inputs[0].count, squares=self.inputs[0].squares)
        whole.total = torch.cat([part.total for part in self.inputs if part.total is not None])
        return whole.shrunk, torch.cat([part.mean for part in self.inputs])


def largest(memory: int) -> int:
    """Return how many numbers one layer's covariances may have.

    Args:
        memory: Bytes, an eighth of which one layer's may take.
    """
    return min(LARGEST**2, memory // 64)


class Sweep:
    """The moments of every layer, gathered a batch at a time.

    Args:
        layers: From `find_layers`.
        examples: How many examples there will be in all.
        seed: Of random vectors and positions.
        harm: Its curvature weighs the outputs. None never goes backward and uses G = I: layers then differ only by the size
            of their responses.
        memory: Bytes, an eighth of which the covariances of one layer may take.
    """

    def __init__(
        self,
        layers: Sequence[Layer],
        examples: int,
        *,
        seed: int = 0,
        harm: Harm | None = output_harm,
        memory: int = MEMORY,
    ) -> None:
        """Begin with nothing."""
        self.harm = harm
        self.sums = {layer.name: _Sums(layer, memory) for layer in layers}
        self.sampler = Sampler(seed, examples)
        self.noise = torch.Generator().manual_seed(seed)
        self.examples = examples

    def add(self, model: nn.Module, batch: Example) -> None:
        """Run one batch forward and backward, and take in what every layer sees, answers and matters.

        Args:
            model: The network; it is not changed.
            batch: Inputs in the form of the example.
        """
        hooks = {name: _observer(sums, self.sampler, self.harm is not None) for name, sums in self.sums.items()}
        for _ in pulled_back(model, batch, hooks, self.harm, self.noise):
            pass

    def moments(self, model: nn.Module) -> dict[str, Moments]:
        """Return layer name to moments, in double precision.

        Args:
            model: The network that was run.

        Raises:
            ValueError: If a layer's inputs, outputs or gradients overflow.
        """
        found = {name: _moments(sums, model.get_submodule(name), self.examples) for name, sums in self.sums.items()}
        for name, moments in found.items():
            if not bool(torch.isfinite(moments.response).all() and torch.isfinite(moments.gradient).all()):
                raise ValueError(
                    f"the inputs, outputs or gradients of layer {name!r} overflow on the calibration images; check the weights "
                    "and the normalisation of the images"
                )
        return found


def pulled_back(
    model: nn.Module,
    batch: Example,
    hooks: Mapping[str, Any],
    harm: Harm | None,
    generator: torch.Generator,
    *,
    draws: int = 1,
) -> Iterator[int]:
    """Run one batch forward with hooks at layers, then pull so many random vectors v with E[v v^T] = H back; yield after each.

    Args:
        model: The network; it is not changed.
        batch: Inputs in the form of the example.
        hooks: Layer name to forward hook; gradients arrive at those that it registers on the layer's output.
        harm: Has the curvature H; None goes forward only, without gradients.
        generator: Of the random vectors.
        draws: How many.

    Raises:
        ValueError: If no gradient goes back through the network.
    """
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    handles = [model.get_submodule(name).register_forward_hook(hook, prepend=True) for name, hook in hooks.items()]
    try:
        with evaluation_mode(model), torch.set_grad_enabled(harm is not None):
            for parameter, _ in flags:
                parameter.requires_grad_(False)
            outputs = call(model, batch if harm is None else attached(batch))
            for draw in range(0 if harm is None else draws):
                assert harm is not None
                loss = _pulled(outputs, harm, generator)
                try:
                    loss.backward(retain_graph=draw < draws - 1)
                except RuntimeError as error:
                    raise ValueError(
                        f"no gradient goes back through the network ({first_line(error)}); use gradient=False, or take "
                        "operations without a derivative, such as changes in place, out of the forward"
                    ) from error
                yield draw
    finally:
        for handle in handles:
            handle.remove()
        for parameter, flag in flags:
            parameter.requires_grad_(flag)


def gather_moments(
    model: nn.Module,
    layers: Sequence[Layer],
    batches: Sequence[Example],
    *,
    seed: int = 0,
    harm: Harm | None = output_harm,
) -> dict[str, Moments]:
    """Return the moments of every layer from one sweep over all batches; arguments as in `Sweep`."""
    sweep = Sweep(layers, count(batches), seed=seed, harm=harm)
    for batch in batches:
        sweep.add(model, batch)
    return sweep.moments(model)


def attached(batch: Example) -> Example:
    """Return the batch with inputs that require a gradient, so that one flows through frozen weights."""
    return map_tensors(lambda x: x.detach().requires_grad_() if x.is_floating_point() else x, batch)


def _observer(sums: _Sums, sampler: Sampler, gradient: bool) -> Any:
    layer = sums.layer

    def observe(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        with torch.no_grad(), torch.autocast(output.device.type, enabled=False):  # sums are exact in a forward that is not
            index, blocks = sampler.draw(layer, len(output), spatial_shape(layer, output)), sampler.blocks(len(output))
            if sums.covaries:
                sums.see(args[0].detach(), index, blocks)
            else:
                sums.outputs.add(grouped(layer, output.detach(), index).float(), blocks=blocks)
        return awaiting(layer, output, lambda grad: _add_gradient(sums, grad, index, blocks)) if gradient else None

    return observe


def awaiting(layer: Layer, output: Tensor, take: Callable[[Tensor], None]) -> Tensor:
    """Return a layer's output such that `take` is given every gradient that arrives at it.

    Raises:
        ValueError: If the forward has switched gradients off.
    """
    if not torch.is_grad_enabled():
        raise ValueError(
            f"the forward runs layer {layer.name!r} under torch.no_grad(), so what it matters cannot be told; take that "
            "out of the forward, exclude the layer, or use gradient=False"
        )
    if not output.requires_grad:
        output = output.detach().requires_grad_().clone()
    output.register_hook(take)
    return output


def _add_gradient(sums: _Sums, grad: Tensor, index: tuple[Tensor, ...], blocks: int) -> None:
    sums.gradient.add(grouped(sums.layer, grad, index).float(), blocks)
    sums.positions += len(grad) * math.prod(spatial_shape(sums.layer, grad))


def _pulled(outputs: Any, harm: Harm, generator: torch.Generator) -> Tensor:
    """Return a loss, summed over examples, whose gradient's second moment is the curvature of the harm at the outputs."""
    found = floats(outputs)
    if not any(tensor.requires_grad for tensor in found):
        raise ValueError("the model returns no floating-point tensor to measure harm on")
    noise = curvature_root(outputs, detached(outputs), harm, generator)
    return torch.stack([(x.float() * v).sum() for x, v in zip(found, noise, strict=True)]).sum()


def _moments(sums: _Sums, module: nn.Module, examples: int) -> Moments:
    if sums.covaries:
        count = sums.inputs[0].count
        covariance, mean = sums.seen()
        weight, bias = working_weight(sums.layer, module), original_bias(module)
        flat, covariance, mean = weight.flatten(2), covariance.to(weight), mean.to(weight)
        response, answer = flat @ covariance @ flat.mT, (flat @ mean[..., None])[..., 0]
        answer = answer if bias is None else answer + bias.to(answer).reshape(answer.shape)
    else:
        count, covariance, mean = sums.outputs.count, None, None
        response, answer = sums.outputs.shrunk, sums.outputs.mean
    eye = eye_like(response.shape[1], response).expand_as(response)
    if not sums.gradient.blocks:
        gradient = eye.clone()
    else:
        sample = sums.gradient.mean  # over positions
        level = sample.diagonal(dim1=1, dim2=2).mean(1)[:, None, None].clamp_min(1e-30) * eye.to(sample)
        gradient = (sums.gradient.shrunk(sample, level) + LEAST * level).to(response) * (sums.positions / examples)
    return Moments(count, response, gradient, covariance, mean, answer)
