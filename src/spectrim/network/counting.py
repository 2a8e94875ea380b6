"""What a network costs, counted on the module itself."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from spectrim.core.cost import Cost
from spectrim.network.calling import Example, batch_size, call, doubled, evaluation_mode, tensors_of, unwrap
from spectrim.network.copying import duplicate

KNOWN = ("aten", "prim", "prims", "profiler", "torchvision", "_c10d_functional", "c10d", "higher_order")
UNSEEN = (  # operators of torch that multiply and add, and that torch's counter does not know
    "_cdist_forward",
    "_fft_c2c",
    "_fft_c2r",
    "_fft_r2c",
    "_trilinear",
    "linalg_",
    "_native_multi_head_attention",
    "_transformer_encoder_layer_fwd",
    "mkldnn_rnn_layer",
    "_thnn_fused",
)


@dataclass(frozen=True)
class Counted:
    """What a network costs.

    Attributes:
        cost: Parameters (shared ones once), and MACs of one forward of one example.
        uncounted: Operators whose multiply-adds are not in it.
    """

    cost: Cost
    uncounted: tuple[str, ...] = field(default=())


def stored(model: nn.Module) -> int:
    """Return the bytes of all parameters and buffers; shared ones count once."""
    return sum(tensor.numel() * tensor.element_size() for tensor in (*model.parameters(), *model.buffers()))


def cost(model: nn.Module, example: Example) -> Cost:
    """Return what the module itself costs: all its parameters, and the multiply-adds that torch's flop counter sees.

    Recurrent layers, attention and deformable convolutions are counted too. A warning names operators that are not.

    Args:
        model: Any network; it is not changed.
        example: A batch of inputs; the MACs returned are those of one example of it.

    Returns:
        Parameters (shared ones once) and MACs of one forward of one example. What does not grow with the batch counts whole.

    Raises:
        ValueError: If the example has no batch dimension.
    """
    found = counted(duplicate(model), example)
    if found.uncounted:
        warnings.warn(f"not counted: {', '.join(found.uncounted)}; the network costs more than it says", stacklevel=2)
    return found.cost


def counted(model: nn.Module, example: Example) -> Counted:
    """Return what a network costs and what could not be counted; buffers of it may change.

    With F(N) the operations of N examples, those of one are F(1) = F(N) - (N - 1) s, where s = (F(2 N) - F(N)) / N is what
    one example more takes. So parts that do not grow with the batch count whole, and nothing is rounded.

    Raises:
        ValueError: If the example has no batch dimension.
    """
    model = unwrap(model)
    size = batch_size(example)
    flops, seen = _flops(model, example)
    if size > 1:
        try:
            slope = (_flops(model, doubled(example))[0] - flops) / size
        except Exception:  # a network for one size of batch
            slope = flops / size
        flops = flops - (size - 1) * slope  # type: ignore[assignment]
    params = sum(parameter.numel() for parameter in model.parameters())
    return Counted(Cost(params, round(flops / 2)), tuple(sorted(seen)))


def _flops(model: nn.Module, example: Example) -> tuple[int, set[str]]:
    """Return twice the multiply-adds of one forward, and the operators that were not counted."""
    watch = _Watch()
    counter = FlopCounterMode(display=False, custom_mapping=_formulas())
    with evaluation_mode(model), torch.no_grad(), _decomposed(model), watch, counter:
        call(model, example)
    return counter.get_total_flops(), watch.uncounted


@contextlib.contextmanager
def _decomposed(model: nn.Module) -> Iterator[None]:
    """Have attention and recurrent layers computed by products that the counter knows, not by fused kernels."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    with contextlib.ExitStack() as stack:
        stack.callback(torch.backends.mha.set_fastpath_enabled, fast)
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        if any(isinstance(module, nn.RNNBase) for module in model.modules()):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about other hardware
                stack.enter_context(torch.backends.mkldnn.flags(enabled=False))
        yield


def _formulas() -> dict[Any, Callable[..., int]]:
    """Return the operations of operators of other packages that are loaded."""
    namespace = getattr(torch.ops, "torchvision", None)
    deformed = getattr(namespace, "deform_conv2d", None)
    return {} if deformed is None else {deformed: _deformed}


def _deformed(x: Any, weight: Any, offset: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
    """Return the operations of a deformable convolution: as many as those of an ordinary one of its output."""
    positions = out_shape[0] * out_shape[2] * out_shape[3]
    outputs, inputs, height, width = weight
    return int(2 * positions * outputs * inputs * height * width)


class _Watch(TorchDispatchMode):
    """Notes operators that may multiply and add and that the counter does not know."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.uncounted: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        namespace, _, name = func.name().partition("::")
        unknown = namespace not in KNOWN and any(tensor.is_floating_point() for tensor in tensors_of(result))
        if unknown or (namespace == "aten" and name.split(".")[0].startswith(UNSEEN)):
            self.uncounted.add(f"{namespace}::{name.split('.')[0]}")
        return result
