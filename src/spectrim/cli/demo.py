"""`spectrim demo`."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from spectrim.cli.options import Json
from spectrim.cli.runs import free
from spectrim.cli.terminal import progress, show
from spectrim.demo import run_demo
from spectrim.pipeline.result import check_output


def demo(*, out_dir: Annotated[str | None, Parameter(name="--out")] = None, as_json: Json = False) -> None:
    """Compress the embedded network on embedded real images: a minute and a half on two CPU cores, no network, no other file.

    Parameters
    ----------
    out_dir
        Where the result is written; spectrim-demo, or the next free spectrim-demo-N.
    as_json
        Print the report as JSON.
    """
    folder = out_dir or free("spectrim-demo")
    check_output(folder)
    with progress(as_json) as advance:
        result = run_demo(advance)
    result.save(folder)
    show(result.report, folder, as_json)
