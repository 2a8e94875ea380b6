"""Other tools that factorize, as a user of them would run them: each returns its network of at most so many MACs."""

from __future__ import annotations

import contextlib
import copy
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

from torch import Tensor, nn

import spectrim as st

CANDIDATES = 10  # ranks of each layer that AIMET tries; its default
Found = tuple[nn.Module, dict[str, Any]]  # a network, and how it was made


def tensorly(model: nn.Module, example: Tensor, fraction: float, score: Callable[[nn.Module], float]) -> Found:
    """Return TensorLy-Torch's Tucker form of all 3 x 3 convolutions, the same share of each one's parameters.

    Args:
        model: Left as it is.
        example: A batch of one image.
        fraction: Of the MACs that is kept at most.
        score: Not asked: ranks are the user's here.

    Raises:
        SystemExit: If it is not installed.
    """
    try:
        from tltorch import FactorizedConv
    except ImportError:
        raise SystemExit("this cell needs TensorLy-Torch: pip install tensorly-torch==0.5.0") from None

    def factorized(rank: float) -> nn.Module:
        small = copy.deepcopy(model)
        for name, layer in model.named_modules():
            if isinstance(layer, nn.Conv2d) and layer.kernel_size == (3, 3) and layer.in_channels > 3:
                other = FactorizedConv.from_conv(layer, rank=rank, factorization="tucker", implementation="factorized")
                small.set_submodule(name, other)
        return small

    whole, low, high = st.cost(model, example).macs, 0.05, 1.0
    for _ in range(6):
        middle = (low + high) / 2
        low, high = (middle, high) if st.cost(factorized(middle), example).macs <= fraction * whole else (low, middle)
    return factorized(low), {"rank": low, "tensorly-torch": version("tensorly-torch")}


def aimet(model: nn.Module, example: Tensor, fraction: float, score: Callable[[nn.Module], float]) -> Found:
    """Return AIMET's network by spatial SVD, its ranks (multiples of 4) chosen greedily.

    Args:
        model: Left as it is.
        example: A batch of one image.
        fraction: Of the MACs that is kept at most.
        score: From a network to what its greedy selection wants large.

    Raises:
        SystemExit: If it is not installed.
    """
    try:
        from aimet_torch.common import defs
        from aimet_torch.compress import ModelCompressor
        from aimet_torch.defs import SpatialSvdParameters
    except ImportError as error:
        raise SystemExit(f"this cell needs AIMET: pip install aimet-torch==2.42.0 ({error})") from None
    count = 0

    def evaluate(small: nn.Module, iterations: int | None, use_cuda: bool) -> float:
        nonlocal count
        count += 1
        return score(small)

    greedy = defs.GreedySelectionParameters(target_comp_ratio=fraction, num_comp_ratio_candidates=CANDIDATES)
    auto = SpatialSvdParameters.AutoModeParams(greedy)
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):  # it writes ./data
        small, _ = ModelCompressor.compress_model(
            copy.deepcopy(model).eval(),
            evaluate,
            eval_iterations=1,
            input_shape=tuple(example.shape),
            compress_scheme=defs.CompressionScheme.spatial_svd,
            cost_metric=defs.CostMetric.mac,
            parameters=SpatialSvdParameters(SpatialSvdParameters.Mode.auto, auto, multiplicity=4),
        )
    return small, {"evaluations": count, "aimet-torch": version("aimet-torch")}
