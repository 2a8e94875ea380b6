"""The interface of every decomposition, and the linear algebra they share.

Canonical form. Weights are handled as (g, T, S, *kernel): groups first, then output and input channels of one group.
A transposed convolution is the same thing with its kernel flipped, acting on an input with zeros between its pixels. So
one piece of algebra serves every geometry, and grouped convolutions are factorized per group.

Norm. With C the covariance of the lowered input (n, n) and G the second moment of the loss gradient at the output (T, T),
changing the kernel by D costs about 1/2 tr(G D C D^T) nats. This is the currency in which all decompositions compete.
Without moments the currency is the squared error of the weight, relative to the weight's own norm.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from spectrim.cost import Cost
from spectrim.layer import Layer

Rank = int | tuple[int, ...]
RIDGE = 1e-3  # added to C, relative to its mean diagonal, so that every Gram matrix of features can be inverted
JITTER = 1e-13  # added to the diagonal of a Gram matrix of features, relative to it: some may be zero or repeat others
FLOOR = 1e-6  # smallest eigenvalue kept, relative to the mean one, when a covariance is inverted
_roots = WeakTensorKeyDictionary()  # of gradient moments, by identity


@dataclass(frozen=True)
class Fit:
    """Whether a decomposition can take a layer: true or false, and the reason why not."""

    reason: str = ""

    def __bool__(self) -> bool:
        """Return whether it can."""
        return not self.reason


@dataclass(frozen=True)
class Moments:
    """What calibration says about one layer, per group (g groups, T outputs, n lowered inputs of one group).

    Attributes:
        count: Sampled positions behind `covariance`.
        response: Covariance of the output, (g, T, T).
        gradient: Second moment of the loss gradient at the output, summed over the positions of one example, (g, T, T).
        covariance: Covariance of the lowered input, (g, n, n); None where n is too large to keep it.
        mean: Mean of the lowered input, (g, n); None where `covariance` is.
        response_mean: Mean of the output, bias included, (g, T).
    """

    count: int
    response: Tensor
    gradient: Tensor
    covariance: Tensor | None
    mean: Tensor | None
    response_mean: Tensor


class Factorization(ABC):
    """A decomposition: the small layers that replace a layer, their weights, and the way back to a dense kernel.

    Subclasses are frozen dataclasses whose fields are the options of the method. `weight` is always canonical,
    (g, T, S, *kernel), and so are the factors: one for each part that has a weight. A layer of a network is handed over as its
    `Layer.convolution`: a linear layer on a flattened feature map is the convolution that covers it.
    """

    title: ClassVar[str]
    reference: ClassVar[str]
    response_only: ClassVar[bool] = False  # whether it needs no input covariance

    @abstractmethod
    def fits(self, layer: Layer) -> Fit:
        """Return whether the method can take the layer, and if not why."""

    @abstractmethod
    def full_rank(self, layer: Layer) -> Rank:
        """Return the smallest rank at which the factorization is exact (for CP a bound)."""

    @abstractmethod
    def candidates(self, layer: Layer) -> list[Rank]:
        """Return the ranks worth considering, ascending, whether or not they pay."""

    @abstractmethod
    def parts(self, layer: Layer, rank: Rank) -> tuple[Layer, ...]:
        """Return the layers that replace `layer` at this rank; the single source of structure and cost."""

    @abstractmethod
    def factors(self, weight: Tensor, rank: Rank, moments: Moments | None = None) -> tuple[Tensor, ...]:
        """Return the canonical weight of each weighted part, the best the method knows in the norm of `moments`."""

    def followed(
        self, weight: Tensor, rank: Rank, last: Sequence[Tensor], moments: Moments | None = None
    ) -> tuple[Tensor, ...]:
        """Return the factors of a weight that has changed little since it had the factors `last`.

        A method with a closed form has no use for them; an iterative one starts there.
        """
        return self.factors(weight, rank, moments)

    @abstractmethod
    def merge(self, factors: Sequence[Tensor]) -> Tensor:
        """Return the dense canonical kernel (g, T, S, *kernel) that the factors multiply out to."""

    @abstractmethod
    def losses(self, weight: Tensor, ranks: Sequence[Rank], moments: Moments | None = None) -> list[float]:
        """Return the predicted harm of each rank: nats with moments, relative squared weight error without."""

    def ranks(self, layer: Layer) -> list[Rank]:
        """Return the ranks that pay: fewer parameters and fewer MACs than the layer itself."""
        return [rank for rank in self.candidates(layer) if pays(self.cost(layer, rank), layer.cost)]

    def cost(self, layer: Layer, rank: Rank) -> Cost:
        """Return the cost of the parts."""
        return sum((part.cost for part in self.parts(layer, rank)), Cost(0, 0))

    def check(self, layer: Layer, rank: Rank) -> None:
        """Check that this rank of this method exists for the layer.

        Raises:
            TypeError: If the rank is neither a whole number nor a tuple of them.
            ValueError: If the method does not fit the layer or the rank is out of range.
        """
        fit = self.fits(layer)
        if not fit:
            raise ValueError(f"{self.title} does not fit layer {layer.name!r}: {fit.reason}")
        full = self.full_rank(layer)
        given, limits = as_tuple(rank), as_tuple(full)
        if not all(isinstance(number, int) and not isinstance(number, bool) for number in given):
            raise TypeError(f"rank {rank!r} of layer {layer.name!r} is not a whole number or a tuple of them")
        if len(given) != len(limits):
            raise ValueError(f"rank {rank} of layer {layer.name!r}: {self.title} takes {len(limits)} rank(s), such as {full}")
        if any(not 1 <= number <= limit for number, limit in zip(given, limits, strict=True)):
            raise ValueError(f"rank {rank} of layer {layer.name!r} is out of range; {self.title} allows 1 to {full}")


def as_tuple(rank: Rank) -> tuple[int, ...]:
    """Return the rank as a tuple, also when it is one number."""
    return tuple(rank) if isinstance(rank, (tuple, list)) else (rank,)


def pays(cost: Cost, original: Cost) -> bool:
    """Return whether a replacement is below break-even in parameters and in MACs."""
    return cost.params < original.params and cost.macs < original.macs


def grid(limit: int, steps: int) -> list[int]:
    """Return at most `steps` whole numbers from 1 to `limit`, about geometric, both ends included."""
    return sorted({max(1, round(limit ** (i / max(steps - 1, 1)))) for i in range(steps)} | {1, limit})


def to_canonical(layer: Layer, weight: Tensor) -> Tensor:
    """Return the weight of a module as (g, T, S, *kernel)."""
    g, weight = layer.groups, weight.reshape(layer.convolution.weight)
    if layer.transposed:  # (S, T / g, *kernel)
        return weight.reshape(g, -1, *weight.shape[1:]).transpose(1, 2).flip(tuple(range(3, weight.ndim + 1)))
    return weight.reshape(g, -1, *weight.shape[1:])


def from_canonical(layer: Layer, weight: Tensor) -> Tensor:
    """Return a canonical weight (g, T, S, *kernel) as the module stores it."""
    if layer.transposed:
        weight = weight.flip(tuple(range(3, weight.ndim))).transpose(1, 2)
    return weight.reshape(layer.weight)


def pointwise(layer: Layer, inputs: int, outputs: int, after: Layer | None) -> Layer:
    """Return the 1 x 1 convolution (or linear layer) from `inputs` to `outputs` channels, all groups together.

    Args:
        layer: The layer being replaced; gives kind and groups.
        inputs: Input channels.
        outputs: Output channels.
        after: The part before it; None if it comes first. Only the part that comes last carries the bias.
    """
    shapes = layer.inputs if after is None else after.outputs
    if layer.kind == "Linear":
        return Layer(layer.name, "Linear", (outputs, inputs), shapes)
    ones = (1,) * len(layer.kernel)
    kind = layer.kind.replace("ConvTranspose", "Conv")
    weight = (outputs, inputs // layer.groups, *ones)
    return Layer(layer.name, kind, weight, shapes, ones, (0,) * len(ones), (), ones, "zeros", layer.groups)


def spatial(layer: Layer, channels: tuple[int, int], axes: Sequence[int], after: Layer | None) -> Layer:
    """Return a convolution like `layer` between other channels that acts along some of its spatial axes only.

    Args:
        layer: The layer being replaced; gives kind, groups and the geometry along `axes`.
        channels: Input and output channels, all groups together.
        axes: The spatial axes along which it has the layer's kernel, stride, padding and dilation.
        after: The part before it; None if it comes first.
    """

    def along(values: Sequence[int], other: int) -> tuple[int, ...]:
        return tuple(value if axis in axes else other for axis, value in enumerate(values))

    (inputs, outputs), g = channels, layer.groups
    head = (inputs, outputs // g) if layer.transposed else (outputs, inputs // g)
    return replace(
        layer,
        weight=(*head, *along(layer.kernel, 1)),
        inputs=layer.inputs if after is None else after.outputs,
        stride=along(layer.stride, 1),
        padding=layer.padding if isinstance(layer.padding, str) else along(layer.padding, 0),
        output_padding=along(layer.output_padding, 0),
        dilation=along(layer.dilation, 1),
        bias=False,
    )


def symmetric_roots(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Return the square root and the inverse square root of positive semidefinite matrices (..., m, m)."""
    values, vectors = torch.linalg.eigh(matrix)
    floor = FLOOR * values.mean(-1, keepdim=True).clamp_min(torch.finfo(matrix.dtype).tiny)
    root = torch.maximum(values, floor).sqrt()
    return (vectors * root[..., None, :]) @ vectors.mT, (vectors / root[..., None, :]) @ vectors.mT


def gradient_roots(moments: Moments) -> tuple[Tensor, Tensor]:
    """Return G^1/2 and G^-1/2 (g, T, T); every method and every fit of a layer shares them while G is in memory."""
    found: tuple[Tensor, Tensor] | None = _roots.get(moments.gradient)
    if found is None:
        found = _roots[moments.gradient] = symmetric_roots(moments.gradient)
    return found


def ridge(covariance: Tensor, share: float = RIDGE) -> Tensor:
    """Return what to add to the diagonal of C (g, n, n) to make it invertible, (g, 1, 1), also for groups that see nothing.

    Args:
        covariance: C.
        share: Of the mean diagonal.
    """
    mean = covariance.diagonal(dim1=1, dim2=2).mean(1)
    largest = mean.max()
    return share * mean.clamp_min(float(1e-6 * largest) if largest > 0 else 1.0)[:, None, None]


def eye_like(size: int, tensor: Tensor) -> Tensor:
    """Return an identity matrix (size, size) where the tensor is and in its dtype, whatever torch's default device."""
    return torch.eye(size, dtype=tensor.dtype, device=tensor.device)


def channel_roots(weight: Tensor, moments: Moments | None) -> tuple[Tensor, Tensor, Tensor]:
    """Return G^1/2 (g, T, T), Cs^1/2 and Cs^-1/2 (g, S, S), Cs the input covariance averaged over the taps; or identities."""
    g, t, s = weight.shape[:3]
    eye = eye_like(s, weight).expand(g, s, s)
    if moments is None:
        return eye_like(t, weight).expand(g, t, t), eye, eye
    root, _ = gradient_roots(moments)
    if moments.covariance is None:
        return root, eye, eye
    taps = weight[0, 0, 0].numel()
    split = (moments.covariance + ridge(moments.covariance) * eye_like(s * taps, weight)).reshape(g, s, taps, s, taps)
    return root, *symmetric_roots(torch.einsum("gmkpk->gmp", split) / taps)


def harm(weight: Tensor, merged: Tensor, moments: Moments | None) -> float:
    """Return the predicted harm of using `merged` (g, T, S, *kernel) in place of `weight`; see the module's idea."""
    change = (weight - merged).flatten(2)  # (g, T, n)
    if moments is None:
        return float(change.square().sum() / weight.square().sum().clamp_min(torch.finfo(weight.dtype).tiny))
    if moments.covariance is None:
        raise ValueError("this layer's input covariance was not kept; only response-space methods apply")
    return float(0.5 * torch.einsum("gtu,gun,gnm,gtm->", moments.gradient, change, moments.covariance, change))


def merged_losses(method: Factorization, weight: Tensor, ranks: Sequence[Rank], moments: Moments | None) -> list[float]:
    """Return the harm of each rank by multiplying the factors out: for methods without a formula for all ranks."""
    return [harm(weight, method.merge(method.factors(weight, rank, moments)), moments) for rank in ranks]


def regressed_losses(weight: Tensor, kernels: Iterable[Tensor], moments: Moments | None) -> list[float]:
    """Return the harm of merged kernels M whose last factor is the regression, so that M C M^T = M C W^T."""
    if moments is None or moments.covariance is None:
        return [harm(weight, kernel, moments) for kernel in kernels]
    flat = weight.flatten(2)
    seen = moments.gradient @ flat @ moments.covariance  # G W C, once for all ranks
    return [max(0.0, 0.5 * float(((flat - kernel.flatten(2)) * seen).sum())) for kernel in kernels]


def regress_last(weight: Tensor, projection: Tensor, moments: Moments | None) -> Tensor:
    """Return the best last factor given everything before it, by regression in the input norm.

    Solves min over B of E || W x - B P^T x ||^2: B = W C P (P^T C P)^-1, independent of G.

    Args:
        weight: The kernel, (g, T, n).
        projection: P, what the earlier factors compute from the lowered input, (g, n, m).
        moments: Gives C; without it C is the identity.

    Returns:
        B, (g, T, m).
    """
    covariance = None if moments is None else moments.covariance
    weighted = projection
    if covariance is not None:  # C P, with the ridge inside C so that an exact factorization stays exact
        weighted = covariance @ projection + ridge(covariance) * projection
    gram = projection.mT @ weighted
    diagonal = gram.diagonal(dim1=-2, dim2=-1)
    smallest = 1e-20 * diagonal.amax(-1, keepdim=True) + torch.finfo(gram.dtype).tiny
    gram = gram + torch.diag_embed(JITTER * diagonal.clamp_min(0) + smallest)
    solved: Tensor = torch.linalg.solve(gram, (weight @ weighted).mT)
    return solved.mT
