"""The interface of every decomposition, and what it works with: ranks, moments, whether it fits.

Canonical form. Weights are handled as (g, T, S, *kernel): groups first, then output and input channels of one group.
A transposed convolution is the same thing with its kernel flipped, acting on an input with zeros between its pixels. So
one piece of algebra serves every geometry, and grouped convolutions are factorized per group.

Norm. With C the covariance of the lowered input (n, n) and G the second moment of the loss gradient at the output (T, T),
changing the kernel by D costs about 1/2 tr(G D C D^T) nats. This is the currency in which all decompositions compete.
Without moments the currency is the squared error of the weight, relative to the weight's own norm.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, ClassVar

from torch import Tensor

from spectrim.core.cost import Cost
from spectrim.core.layer import Layer

Rank = int | tuple[int, ...]
AT_ONCE = 1 << 22  # numbers of the covariances of the groups that are factorized at a time


@dataclass(frozen=True)
class Fit:
    """Whether a decomposition can take a layer: `Fit()` is yes, `Fit("why not")` is no.

    Attributes:
        reason: Why not, as it ends the sentence "the method does not fit the layer: ..."; empty for yes.
    """

    reason: str = ""

    def __bool__(self) -> bool:
        """Return whether it can."""
        return not self.reason


@dataclass(frozen=True)
class Moments:
    """What calibration says about one layer, per group (g groups, T outputs, n lowered inputs of one group).

    n = S * kernel counts an input channel and a tap in the order of `weight.flatten(2)` of the canonical weight (g, T, S,
    *kernel): the last axis of the kernel runs fastest, the input channel slowest.

    Attributes:
        count: Sampled positions behind `covariance`.
        response: Covariance of the output, (g, T, T).
        gradient: Second moment of the loss gradient at the output, summed over the positions of one example, (g, T, T).
        covariance: Covariance of the lowered input, (g, n, n); None where n is too large to keep it; (1, n, n), the average
            over the groups, where there are too many groups to keep each one's. `by_groups` gives decompositions (g, n, n).
        mean: Mean of the lowered input, (g, n); None where `covariance` is.
        response_mean: Mean of the output, bias included, (g, T).
    """

    count: int
    response: Tensor
    gradient: Tensor
    covariance: Tensor | None
    mean: Tensor | None
    response_mean: Tensor

    @property
    def pooled(self) -> bool:
        """Whether the covariance is an average over the groups."""
        return self.covariance is not None and len(self.covariance) < len(self.response)


def by_groups(weight: Tensor, moments: Moments | None) -> Iterator[tuple[Tensor, Moments | None]]:
    """Yield parts of a layer, as many groups at a time as memory is well spent on; factors and harms of the parts add up.

    Args:
        weight: Canonical kernel (g, T, S, *kernel).
        moments: Of the layer; every part has a covariance for each of its groups.
    """
    size = weight[0, 0].numel()
    step = len(weight) if moments is None or moments.covariance is None else max(1, AT_ONCE // size**2)
    if step >= len(weight) and (moments is None or not moments.pooled):
        yield weight, moments
        return
    assert moments is not None and moments.covariance is not None
    for start in range(0, len(weight), step):
        part = slice(start, start + step)
        covariance = moments.covariance if moments.pooled else moments.covariance[part]
        mean = None if moments.mean is None else moments.mean[part]
        yield (
            weight[part],
            Moments(
                moments.count,
                moments.response[part],
                moments.gradient[part],
                covariance.expand(len(weight[part]), -1, -1),
                mean,
                moments.response_mean[part],
            ),
        )


class Factorization(ABC):
    """A decomposition: the small layers that replace a layer, their weights, and the way back to a dense kernel.

    Subclasses are frozen dataclasses whose fields are the options of the method: numbers, strings, True, False, None, and
    tuples of these, since a plan keeps them as JSON. `weight` is always canonical, (g, T, S, *kernel), and so are the factors:
    one for each part that has a weight. A layer of a network is handed over as its `Layer.convolution`: a linear layer on a
    flattened feature map is the convolution that covers it.

    A rank is a whole number, or a tuple of them where a method has several. It is that of one group: a layer of g groups has g
    factors of this rank side by side.

    Attributes:
        title: Name of the method in messages; by default that of the class.
        reference: The paper that it is from; by default none.
        response_only: Whether the method needs no input covariance (`Moments.covariance`). A layer whose input is so large
            that no covariance of it is kept is offered to such methods only.
    """

    title: ClassVar[str]
    reference: ClassVar[str] = ""
    response_only: ClassVar[bool] = False

    def __init_subclass__(cls, **given: Any) -> None:
        """Give a class that has no title its name as title."""
        super().__init_subclass__(**given)
        if "title" not in vars(cls):
            cls.title = cls.__name__

    @abstractmethod
    def fits(self, layer: Layer) -> Fit:
        """Return whether the method can take the layer: `Fit()` for yes, `Fit("why not")` for no."""

    @abstractmethod
    def full_rank(self, layer: Layer) -> Rank:
        """Return the smallest rank at which the factorization is exact (for CP a bound).

        It is the largest that `check` allows; of a tuple every entry is a bound of its own, from 1 to this.
        """

    @abstractmethod
    def candidates(self, layer: Layer) -> list[Rank]:
        """Return the ranks worth considering, ascending; asked only of a layer that the method fits.

        Ascending as Python sorts them: tuples by their first entry, then by the next. Ranks that save nothing may be among
        them; what does not fall below break-even is left out before anything is computed for it.
        """

    def multiples(self, layer: Layer, steps: Sequence[int]) -> list[Rank]:
        """Return the ranks worth considering, ascending, where each entry of a tuple must be a multiple of its step.

        Of a method whose rank is one number the menu finds the multiples between its candidates, and this is not asked. One
        whose ranks are tuples does well to override it where its candidates hold few multiples.

        Args:
            layer: A layer that the method fits.
            steps: One for each entry of the rank.
        """
        return [rank for rank in self.candidates(layer) if is_multiple(rank, steps)]

    @abstractmethod
    def parts(self, layer: Layer, rank: Rank) -> tuple[Layer, ...]:
        """Return the layers that replace `layer` at this rank; the single source of structure and cost.

        Channels of parts are those of all groups together. The last part that has a weight has the bias of the layer,
        `bias=layer.bias`; the others have none. `pointwise` and `spatial` make parts.
        """

    @abstractmethod
    def factors(self, weight: Tensor, rank: Rank, moments: Moments | None = None) -> tuple[Tensor, ...]:
        """Return the canonical weight of each weighted part, the best the method knows in the norm of `moments`.

        Args:
            weight: The kernel, (g, T, S, *kernel), in double precision.
            rank: Of one group.
            moments: What calibration says of the layer, on the weight's device; None to approximate the weight itself.

        Returns:
            For each part that has a weight (g, T', S', *kernel'), channels of one group.
        """

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
        """Return the predicted harm of each rank: nats with moments, relative squared weight error without.

        Where nothing quicker is known, `[harm(weight, self.merge(self.factors(weight, r, moments)), moments) for r in ranks]`.
        """

    def kernels(self, weight: Tensor, ranks: Sequence[Rank], moments: Moments | None = None) -> Iterator[Tensor]:
        """Yield the dense kernel (g, T, S, *kernel) of each rank's own fit; override it where the ranks share work."""
        for rank in ranks:
            yield self.merge(self.factors(weight, rank, moments))

    def ranks(self, layer: Layer) -> list[Rank]:
        """Return the ranks that pay: fewer parameters and MACs than the layer itself; none where the method does not fit."""
        if not fit_of(self, layer):
            return []
        costs = ((rank, self.cost(layer, rank)) for rank in self.candidates(layer))
        return [rank for rank, cost in costs if cost.params < layer.cost.params and cost.macs < layer.cost.macs]

    def cost(self, layer: Layer, rank: Rank) -> Cost:
        """Return the cost of the parts."""
        return sum((part.cost for part in self.parts(layer, rank)), Cost(0, 0))

    def check(self, layer: Layer, rank: Rank) -> None:
        """Check that this rank of this method exists for the layer.

        Raises:
            TypeError: If the rank is neither a whole number nor a tuple of them.
            ValueError: If the method does not fit the layer or the rank is out of range.
        """
        fit = fit_of(self, layer)
        if not fit:
            raise ValueError(f"{self.title} does not fit layer {layer.name!r}: {fit.reason}")
        full = self.full_rank(layer)
        given, limits = as_tuple(rank), as_tuple(full)
        if not is_rank(rank):
            raise TypeError(f"rank {rank!r} of layer {layer.name!r} is not a whole number or a tuple of them")
        if len(given) != len(limits) or (isinstance(full, int) and not isinstance(rank, int)):
            raise ValueError(f"rank {rank} of layer {layer.name!r}: {self.title} takes {len(limits)} rank(s), such as {full}")
        if any(not 1 <= number <= limit for number, limit in zip(given, limits, strict=True)):
            raise ValueError(f"rank {rank} of layer {layer.name!r} is out of range; {self.title} allows 1 to {full}")


def fit_of(method: Factorization, layer: Layer) -> Fit:
    """Return what a method says of a layer, a third party's perhaps.

    Raises:
        TypeError: If it returns something else than a `Fit`.
    """
    fit: Any = method.fits(layer)
    if not isinstance(fit, Fit):
        raise TypeError(
            f"{type(method).__name__}.fits() returned {fit!r} for layer {layer.name!r}; it must return Fit() for yes or "
            'Fit("why not") for no'
        )
    return fit


def flaw(method: Factorization) -> str:
    """Return why a decomposition cannot be used, as a sentence; empty if there is nothing wrong.

    It must be a frozen dataclass, and its options must come back from a plan's JSON.
    """
    kind: Any = type(method)
    name, made = kind.__name__, is_dataclass(kind)
    own = [key for key, note in vars(kind).get("__annotations__", {}).items() if "ClassVar" not in str(note)]
    if not made or (own and "__dataclass_fields__" not in vars(kind)):
        return f"{name} is no dataclass; write @dataclass(frozen=True) above `class {name}`: its fields are its options"
    if not kind.__dataclass_params__.frozen:
        return f"{name} is a dataclass that can be changed; write @dataclass(frozen=True) above `class {name}`"
    for key, value in options(method).items():
        if not _is_plain(value):
            return (
                f"the option {key} of {name} is {value!r}; plans keep options as JSON, so they must be numbers, strings, True, "
                "False, None, or tuples of these"
            )
    return ""


def _is_plain(value: Any) -> bool:
    """Return whether a value comes back from JSON as it was, lists being read as tuples."""
    if isinstance(value, tuple):
        return all(_is_plain(item) for item in value)
    return value is None or isinstance(value, (bool, int, float, str))


def is_rank(rank: Any) -> bool:
    """Return whether this is a whole number or a tuple of them."""
    return all(isinstance(number, int) and not isinstance(number, bool) for number in as_tuple(rank))


def options(method: Factorization) -> dict[str, Any]:
    """Return the options of a method by name."""
    return {field.name: getattr(method, field.name) for field in fields(method)}  # type: ignore[arg-type]


def as_tuple(rank: Rank) -> tuple[int, ...]:
    """Return the rank as a tuple, also when it is one number."""
    return tuple(rank) if isinstance(rank, (tuple, list)) else (rank,)


def is_multiple(rank: Rank, steps: Sequence[int]) -> bool:
    """Return whether each entry of a rank is a multiple of its step."""
    return all(number % step == 0 for number, step in zip(as_tuple(rank), steps, strict=True))


def pays(cost: Cost, original: Cost) -> bool:
    """Return whether a replacement is below break-even in parameters or in MACs; budgets say which of them counts."""
    return cost.params < original.params or cost.macs < original.macs


def describe(method: Factorization) -> str:
    """Return the method as written in code, such as `SpatialSVD(axis=1)`; default options are left out."""
    defaults = {field.name: field.default for field in fields(method)}  # type: ignore[arg-type]
    changed = [f"{name}={value!r}" for name, value in options(method).items() if value != defaults[name]]
    return f"{type(method).__name__}({', '.join(changed)})" if changed else type(method).__name__


def parse(name: str, given: Mapping[str, Any] | None = None, module: str = "") -> Factorization:
    """Return the method of this name: a subclass of `Factorization` in memory, ours or a third party's.

    Args:
        name: Name of the class.
        given: Its options, where they differ from the defaults; lists of JSON are tuples.
        module: Where the class was defined; decides among classes of one name, and is told where there is none.

    Raises:
        ValueError: If there is no such method or it does not take the options.
    """
    kinds = known()
    named = [kind for kind in kinds.values() if kind.__name__ == name]
    if not named:
        where = f"it was defined in the module {module!r}; import that first" if module else f"allowed are {_ours(kinds)}"
        raise ValueError(f"there is no decomposition {name!r}; {where}")
    try:
        return kinds.get(f"{module}:{name}", named[-1])(**{key: _tuples(value) for key, value in (given or {}).items()})
    except TypeError as error:
        raise ValueError(f"{name} does not take the options {given}: {error}") from error


def known() -> dict[str, type[Factorization]]:
    """Return every decomposition in memory by `module:name`; of several of one name the one defined last."""
    return {f"{kind.__module__}:{kind.__name__}": kind for kind in _subclasses(Factorization)}


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


def _ours(kinds: Mapping[str, type[Factorization]]) -> str:
    return ", ".join(kind.__name__ for kind in kinds.values() if kind.__module__.startswith("spectrim."))


def _subclasses(kind: Any) -> Iterator[type[Factorization]]:
    for below in kind.__subclasses__():
        yield below
        yield from _subclasses(below)
