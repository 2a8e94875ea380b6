"""Times of networks on runtimes, in turn: what a compressed network gains on the device that it is for."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import nn

from spectrim.core.bench import Bench, BenchRow
from spectrim.core.progress import Progress
from spectrim.network.calling import Example, batch_size, repeated, undisturbed
from spectrim.targets.base import Target
from spectrim.targets.memory import peak
from spectrim.targets.onnxruntime import OnnxRuntime
from spectrim.targets.openvino import OpenVINO
from spectrim.targets.timing import interleaved, latency, verdict
from spectrim.targets.torch import Torch
from spectrim.version import __version__

Models = Mapping[str, nn.Module] | Sequence[nn.Module]


@undisturbed()
def bench(
    models: Models,
    example: Example,
    *,
    targets: Sequence[Target] | None = None,
    batches: Sequence[int] = (),
    seconds: float = 1.5,
    progress: Progress | None = None,
) -> Bench:
    """Time networks on targets: all networks in turn, and each against the first by its pairs of runs.

    Args:
        models: Name to network, or the original and the compressed network; the first is what others are compared with.
        example: One batch.
        targets: Such as `(OnnxRuntime(), OnnxRuntime(threads=2), Torch())`; by default those of ONNX Runtime, OpenVINO and
            PyTorch that are installed, on one thread.
        batches: Batch sizes, made of the example's images again and again; by default the example as it is.
        seconds: About how long to measure a network on a target.
        progress: Called with the stage and the share of it that is done.

    Raises:
        ImportError: If the runtime of a target is not installed; the text says what to install.
        ValueError: If a network cannot be exported or answers otherwise there, or a value is out of range.
        TypeError: If something given is of the wrong kind.

    Example:
        >>> networks = {"wide": nn.Linear(256, 4096), "narrow": nn.Linear(256, 16)}
        >>> found = bench(networks, torch.zeros(1, 256), targets=[Torch()], batches=(1, 8), seconds=0.1)
        >>> [(row.model, row.batch, row.file_bytes) for row in found.rows[:3]]
        [('wide', 1, 4210688), ('narrow', 1, 16448), ('wide', 8, 4210688)]
        >>> found.rows[3].verdict.word
        'faster'
    """
    named, chosen = _named(models), _targets(targets)
    if any(not isinstance(batch, int) or batch < 1 for batch in batches):
        raise ValueError(f"batches is {batches!r}; it must hold whole numbers of at least 1, such as (1, 8)")
    if not seconds > 0:
        raise ValueError(f"seconds is {seconds!r}; it must be above 0")
    examples = [repeated([example], batch) for batch in batches] or [example]
    cells = [(target, inputs) for target in chosen for inputs in examples]
    rows: list[BenchRow] = []
    for number, (target, inputs) in enumerate(cells):
        if progress is not None:
            progress("bench", number / len(cells))
        rows += _rows(named, inputs, target, seconds)
    if progress is not None:
        progress("bench", 1.0)
    return Bench(tuple(rows), {"spectrim": __version__, "torch": torch.__version__, "python": platform.python_version()})


def _rows(models: Mapping[str, nn.Module], example: Example, target: Target, seconds: float) -> Iterator[BenchRow]:
    """Yield a row per network, all of them timed in turn on one target."""
    sessions = [target.load(model, example) for model in models.values()]
    times = interleaved(sessions, seconds=seconds)
    for name, session, taken in zip(models, sessions, times, strict=True):
        process, wall = (latency(taken, target.threads, clock) for clock in ("process", "wall"))
        paired = None if session is sessions[0] else verdict(times[0], taken, session.clock)
        size, memory = session.size, peak(session)
        yield BenchRow(name, target.describe(), batch_size(example), session.clock, process, wall, size, memory, paired)


def _named(models: Models) -> dict[str, nn.Module]:
    """Return the networks by name.

    Raises:
        TypeError: If something else is given, or nothing.
    """
    if isinstance(models, Mapping):
        named = {str(name): model for name, model in models.items()}
    elif isinstance(models, (list, tuple)):
        usual = ("original", "compressed") if len(models) == 2 else [f"network {i + 1}" for i in range(len(models))]
        named = dict(zip(usual, models, strict=True))
    else:
        named = {}
    if not named or not all(isinstance(model, nn.Module) for model in named.values()):
        raise TypeError(
            f"models is {type(models).__name__} of {[type(model).__name__ for model in named.values()]}; it must be a dict or "
            "tuple of networks, such as (original, compressed)"
        )
    return named


def _targets(targets: Sequence[Target] | None) -> list[Target]:
    """Return the targets, each with its runtime there.

    Raises:
        ImportError: If a runtime is not.
        TypeError: If there is something else among them.
    """
    if targets is None:
        return [target for target in (OnnxRuntime(), OpenVINO(), Torch()) if not target.missing()]
    if isinstance(targets, Target) or not targets or not all(isinstance(target, Target) for target in targets):
        raise TypeError(f"targets is {targets!r}; it must hold runtimes, such as (OnnxRuntime(), Torch())")
    for target in targets:
        target.check()
    return list(targets)
