"""`spectrim demo`."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

from cyclopts import Parameter

from spectrim.cli.options import device_of
from spectrim.cli.runs import free, typed
from spectrim.cli.targets import RuntimeOptions
from spectrim.cli.terminal import Output, Track, check_trackers, progress, show
from spectrim.demo import run_demo
from spectrim.pipeline.result import check_output


def demo(
    *,
    out_dir: Annotated[str | None, Parameter(name="--out")] = None,
    device: str = "cpu",
    runtime: RuntimeOptions = RuntimeOptions(),
    track: Track = (),
    output: Output = Output(),
) -> str | None:
    """Compress the embedded network on embedded real images: a minute and a half on two CPU cores, no network, no other file.

    Parameters
    ----------
    out_dir
        Where the result is written; spectrim-demo, or the next free spectrim-demo-N.
    device
        Where the network runs, such as cuda.
    runtime
        Where the report's times are taken.
    track
        Also write the run to a tracker: tensorboard:DIR or mlflow:URI.
    output
        What is printed.
    """
    folder = free("spectrim-demo") if out_dir is None else out_dir
    check_output(folder)
    check_trackers(track)
    place, target = device_of(device), runtime.chosen()
    with progress(output) as advance:
        result = run_demo(advance, device=place, target=target)
    assert result.report.source is not None
    report = replace(result.report, source=replace(result.report.source, command=typed()))
    replace(result, report=report).save(folder)
    return show(report, folder, output, track)
