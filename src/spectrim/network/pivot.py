"""The one module of ours in a compressed network: some channels passed on, the others computed from them.

Annotations are evaluated here, since TorchScript reads them.
"""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from spectrim.core.layer import Layer


class Pivot(nn.Module):
    """Outputs that are inputs, beside others that a 1 x 1 convolution or linear layer computes from them.

    Args:
        rest: Computes the other outputs.
        part: The part as shapes.
        device: Where `order` is.

    Attributes:
        rest: It.
        axis: Dimension of the channels, from behind.
        order: For each output its number among the inputs and the other outputs, side by side; None where what reads the
            outputs has taken it, and they stay as they are made.
    """

    order: Tensor | None

    def __init__(self, rest: nn.Module, part: Layer, device: torch.device) -> None:
        """Begin with the order in which they are made."""
        super().__init__()
        self.rest = rest
        self.axis = -1 - len(part.kernel)
        self.register_buffer("order", torch.arange(part.channels[0], device=device))

    def forward(self, x: Tensor) -> Tensor:
        """Return all outputs."""
        y, order = torch.cat((x, self.rest(x)), self.axis), self.order
        return y if order is None else y.index_select(self.axis, order)

    def dense(self) -> nn.Module:
        """Return the convolution or linear layer that computes all outputs in their order: no channel is moved, for more MACs.

        Raises:
            ValueError: If there is no order: then the outputs of several groups are no grouped layer's.
        """
        if self.order is None:
            raise ValueError("the outputs have no order")
        new: Any = copy.deepcopy(self.rest)
        weight, bias = new.weight.detach(), new.bias
        rank, passed = weight.shape[1], len(self.order) - len(weight)
        passing = torch.eye(rank, dtype=weight.dtype, device=weight.device).repeat(passed // rank, 1)
        new.weight = nn.Parameter(torch.cat((passing.reshape(-1, *weight.shape[1:]), weight))[self.order])
        if bias is not None:
            new.bias = nn.Parameter(torch.cat((bias.new_zeros(passed), bias.detach()))[self.order])
        setattr(new, "out_channels" if hasattr(new, "out_channels") else "out_features", len(self.order))
        return new  # type: ignore[no-any-return]

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Have an order if the state has one."""
        name = prefix + "order"
        if name in state_dict and self.order is None:
            self.order = torch.empty_like(state_dict[name], device=next(self.rest.parameters()).device)
        elif name not in state_dict and prefix + "rest.weight" in state_dict:
            self.order = None
        super()._load_from_state_dict(state_dict, prefix, *args)

    def fill(self, factor: Tensor, bias: Tensor | None) -> Tensor | None:
        """Take what the part computes: its canonical factor and its bias.

        Args:
            factor: (g, T, r, ones); r rows of each group are unit vectors.
            bias: (g * T,), or None.

        Returns:
            The bias that the part before it must have, (g * r,): that of the outputs which are passed on.
        """
        factor = factor.flatten(2)
        rows = units(factor).to(torch.uint8).argmax(1)
        groups, outputs, rank = factor.shape
        others = torch.ones(groups, outputs, dtype=torch.bool, device=factor.device).scatter(1, rows, value=False)
        coefficients = factor[others].reshape(groups, -1, rank)
        place = torch.empty(groups, outputs, dtype=torch.long, device=factor.device)
        numbers = torch.arange(groups * outputs, device=factor.device)
        place.scatter_(1, rows, numbers[: groups * rank].reshape(groups, rank))
        place[others] = numbers[groups * rank :]
        rest: Any = self.rest
        self.order = place.flatten().to(rest.weight.device)
        rest.weight.copy_(coefficients.reshape(rest.weight.shape))
        if bias is None:
            return None
        split = bias.to(factor).reshape(groups, outputs)
        passed = split.gather(1, rows)
        computed = split[others].reshape(groups, -1) - (coefficients @ passed[..., None])[..., 0]
        rest.bias.copy_(computed.flatten())
        return passed.flatten()


def units(factor: Tensor) -> Tensor:
    """Return which rows of a factor (g, T, r) are exactly the unit vectors of its columns, (g, T, r)."""
    return (factor == 1) & (factor.count_nonzero(2) == 1)[..., None]
