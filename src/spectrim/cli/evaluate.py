"""`spectrim evaluate`."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

from spectrim.cli.methods import import_methods
from spectrim.cli.models import is_file, load_weights, look_in, make_model
from spectrim.cli.options import Json, Whole, device_of
from spectrim.cli.runs import read_report
from spectrim.cli.splits import Specs, first_examples, split_data
from spectrim.core.records import Source
from spectrim.network.accuracy import Accuracy, Scorer
from spectrim.pipeline.result import load


def evaluate(
    run: str,
    *,
    data: str | None = None,
    images: Whole | None = None,
    methods: str | None = None,
    device: str = "cpu",
    trust_pickle: bool = False,
    as_json: Json = False,
) -> None:
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
    as_json
        Print JSON.
    """
    file = Path(run) / "report.json"
    if not is_file(str(file)):
        raise ValueError(f"{run!r} is no saved result: it has no report.json")
    if images == 0:
        raise ValueError("--images is 0; it must be a whole number of at least 1")
    report = read_report(file)
    source = report.source
    if source is None:
        raise ValueError(f"{run!r} was not written by the command line, so its model is unknown; use spectrim.load in Python")
    look_in(source.folder)
    plan = Path(run) / "plan.json"
    if plan.is_file():
        recorded = str(report.arguments.get("--methods") or "").split(",")
        import_methods(plan.read_text(), methods, [_found(spec, source) for spec in recorded if ":" in spec])
    original = make_model(_found(source.model, source)).to(device_of(device))
    small = load(run, original).to(device)
    labelled = _found(source.data, source) if data is None else data
    specs = Specs(data=labelled, calibration=labelled, input_shape=source.input, mean=source.mean, std=source.std)
    testing = split_data(specs, images=(1, 0)).test
    if images is not None:
        testing = first_examples(testing, images)
    accuracy = Accuracy(testing)
    weights = None if source.weights is None else _found(source.weights, source)
    if weights is not None and Path(weights).is_file():
        load_weights(original, weights, trust_pickle=trust_pickle)
        score = Scorer(accuracy, original).score(small)
        values = {**dataclasses.asdict(score), "drop": score.drop}
        text = score.text()
    else:
        hits = accuracy.per_example(small)
        error = float(hits.std() / len(hits) ** 0.5)
        values = {"after": float(hits.mean()), "standard_error": 100 * error, "examples": len(hits)}
        text = f"{100 * values['after']:.2f} +- {100 * error:.2f} ({len(hits):,} images; the original's weights are not there)"
    if source.calibration is None and (data is None or data == source.data):
        values["note"] = "some of these images were calibrated or decided on"
        text += f"\nnote   {values['note']}"
    sys.stdout.write(json.dumps(values, indent=1) + "\n" if as_json else f"top-1  {text}\n")


def _found(spec: str, source: Source) -> str:
    """Return a spec whose path is there, as typed from here or from the folder in which the run was made."""
    kind, colon, rest = spec.partition(":")
    file = kind if kind.endswith(".py") else ""
    for head, path, tail in (("", file, f"{colon}{rest}"), (f"{kind}{colon}", rest, ""), ("", spec, "")):
        there = Path(source.folder) / path
        if path and source.folder and not Path(path).exists() and there.exists():
            return f"{head}{there}{tail}"
    return spec
