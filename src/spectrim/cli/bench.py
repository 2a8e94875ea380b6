"""`spectrim bench`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
from cyclopts import Parameter
from torch import nn

from spectrim.cli.models import make_model
from spectrim.cli.options import OutFile, device_of
from spectrim.cli.runs import check_file
from spectrim.cli.saved import found, reopened
from spectrim.cli.splits import parse_shape
from spectrim.cli.targets import TARGETS, numbers, targets_of
from spectrim.cli.terminal import Output, err, progress
from spectrim.network.calling import Example
from spectrim.pipeline.bench import bench as run_bench
from spectrim.report import plot as write_plot

IMAGENET = (1, 3, 224, 224)


def bench(
    run: str,
    other: str | None = None,
    *,
    target: str | None = None,
    threads: str = "1",
    batch: str = "1",
    seconds: float = 1.5,
    input_shape: Annotated[str | None, Parameter(name="--input")] = None,
    methods: str | None = None,
    device: str = "cpu",
    out_file: OutFile = None,
    plot: str | None = None,
    output: Output = Output(),
) -> str | None:
    """Time a saved result against its original, or two networks, in turn on several runtimes.

    Parameters
    ----------
    run
        Folder that demo, compress or train wrote; or with OTHER a model: torchvision:NAME, timm:NAME, module.path:callable or
        file.py:callable.
    other
        A second model.
    target
        Runtimes with commas: onnxruntime, openvino, torch, executorch; by default the first three, if installed.
    threads
        Numbers of CPU threads with commas, such as 1,2.
    batch
        Batch sizes with commas, such as 1,8.
    seconds
        About how long to measure a network on a runtime.
    input_shape
        Shape of a batch of random numbers, such as 1,3,224,224 (the usual one for two models); by default an image of the run.
    methods
        Where the run's decompositions that are not of this package are defined.
    device
        Where PyTorch runs, such as cuda.
    out_file
        JSON file to write.
    plot
        Picture to write, such as bench.png.
    output
        What is printed.
    """
    sizes, counts = numbers("--batch", batch), numbers("--threads", threads)
    if not 0 < seconds < 3600:
        raise ValueError(f"--seconds is {seconds:g}; it must be above 0, and below an hour")
    usual = ",".join(word for word, kind in TARGETS.items() if word != "executorch" and not kind.missing())
    targets = targets_of(usual if target is None else target, counts)
    check_file(out_file, (".json",))
    check_file(plot, (".png", ".svg", ".pdf"))
    models, example = _networks(run, other, input_shape, methods, device)
    with progress(output) as advance:
        result = run_bench(models, example, targets=targets, batches=sizes, seconds=seconds, progress=advance)
    if out_file is not None:
        Path(out_file).write_text(result.to_json())
    if plot is not None:
        write_plot(result, plot)
    for file in filter(None, (out_file, plot)):
        err.print(f"written: {file}", soft_wrap=True, highlight=False, markup=False)
    return result.to_json() if output.as_json else f"{result}\n"


def _networks(
    run: str, other: str | None, input_shape: str | None, methods: str | None, device: str
) -> tuple[dict[str, nn.Module], Example]:
    """Return the two networks by name, and an example."""
    shape = parse_shape(input_shape)
    if other is not None:
        if run == other:
            raise ValueError(f"both networks are {run!r}; give another, or a folder that compress wrote")
        names = [spec.rpartition(":")[2] for spec in (run, other)]
        if names[0] == names[1]:
            names = [run, other]
        models = [make_model(spec).to(device_of(device)) for spec in (run, other)]
        return dict(zip(names, models, strict=True)), torch.randn(shape or IMAGENET).to(device)
    if not Path(run).is_dir() and ":" in run:
        raise ValueError(f"{run!r} is one network; give a second one to compare it with, or a folder that compress wrote")
    saved = reopened(run, methods, device)
    example = torch.randn(shape) if shape else saved.images(found(saved.source.data, saved.source)).example
    return {"original": saved.original, "compressed": saved.small}, example.to(device)
