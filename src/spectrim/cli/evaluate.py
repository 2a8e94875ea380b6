"""`spectrim evaluate`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import Tensor

from spectrim.cli.models import load_weights
from spectrim.cli.options import Whole
from spectrim.cli.saved import found, reopened
from spectrim.cli.splits import first_examples
from spectrim.cli.terminal import Output, progress
from spectrim.network.accuracy import Accuracy, Scorer


def evaluate(
    run: str,
    *,
    data: str | None = None,
    images: Whole | None = None,
    methods: str | None = None,
    device: str = "cpu",
    trust_pickle: bool = False,
    output: Output = Output(),
) -> str | None:
    """Measure a saved result on labelled images, beside the original if its weight file is still there.

    Parameters
    ----------
    run
        Folder that compress or train wrote.
    data
        Labelled images; by default those of the report.
    images
        Only the first so many.
    methods
        Where decompositions that are not of this package are defined, my_module:MyMethod or file.py:MyMethod; by default
        they are looked for as when the run was made.
    device
        Where the network runs, such as cuda.
    trust_pickle
        Allow the original's weight file to run code when it is read.
    output
        What is printed.
    """
    if images == 0:
        raise ValueError("--images is 0; it must be a whole number of at least 1")
    saved = reopened(run, methods, device)
    original, small, source = saved.original, saved.small, saved.source
    labelled = found(source.data, source) if data is None else data
    testing = saved.images(labelled).test
    if images is not None:
        testing = first_examples(testing, images)
    accuracy = Accuracy(testing)
    weights = None if source.weights is None else found(source.weights, source)
    with progress(output) as advance:
        advance("test images", 0.0)
        if weights is not None and Path(weights).is_file():
            load_weights(original, weights, trust_pickle=trust_pickle)
            score = Scorer(accuracy, original).score(small)
            values, text = score.as_dict(), score.text()
        else:
            values, text = _alone(accuracy.per_example(small))
        advance("test images", 1.0)
    if source.calibration is None and (data is None or data == source.data):
        values["note"] = "some of these images were calibrated or decided on"
        text += f"\nnote   {values['note']}"
    return json.dumps(values, indent=1) + "\n" if output.as_json else f"top-1  {text}\n"


def _alone(hits: Tensor) -> tuple[dict[str, Any], str]:
    """Return what is printed of a network whose original is not there: its own score and the standard error of that."""
    share, error = float(hits.mean()), float(hits.std() / len(hits) ** 0.5)
    values = {"name": "top-1", "after": share, "standard_error": 100 * error, "examples": len(hits)}
    return values, f"{100 * share:.2f} +- {100 * error:.2f} ({len(hits):,} images; the original's weights are not there)"
