"""`spectrim export`."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated

import torch
from cyclopts import Parameter

from spectrim.cli.models import is_file
from spectrim.cli.options import OutFile
from spectrim.cli.saved import Saved, found, reopened
from spectrim.cli.splits import Sources, numbers_of, parse_shape
from spectrim.cli.terminal import Output, progress, say
from spectrim.core.export import Preprocess
from spectrim.core.plan import Plan
from spectrim.network.calling import first_line
from spectrim.pipeline.export import FORMATS, IMAGES, Settings, check_files, format_of, written
from spectrim.targets.files import Format

FOLDERS = "folders"  # the word for the names of the folders that images are in


def export(
    run: str,
    *,
    to: str | None = None,
    out_file: OutFile = None,
    int8: bool = False,
    calibration: str | None = None,
    preprocess: bool = False,
    mean: str | None = None,
    std: str | None = None,
    labels: str | None = None,
    overwrite: bool = False,
    input_shape: Annotated[str | None, Parameter(name="--input")] = None,
    methods: str | None = None,
    output: Output = Output(),
) -> str | None:
    """Write a saved network to a file for a device: once it was read again, run on real images, and compared with the network.

    Parameters
    ----------
    run
        Folder that demo, compress or train wrote.
    to
        What is written, with commas: onnx, openvino, pt2, executorch.
    out_file
        The file: .onnx, .xml (OpenVINO, and .bin beside it), .pt2 or .pte (ExecuTorch); by default RUN/model.onnx, say, or
        RUN/model-int8.onnx.
    int8
        Quantize weights and activations.
    calibration
        Images to find ranges with and to compare on, as in compress; by default those of the run.
    preprocess
        The file takes images of bytes, N x H x W x C, and normalises them as the run did.
    mean
        With --preprocess, where the run's images came from a callable: how they were normalised, per channel, after division by
        255.
    std
        As --mean.
    labels
        Names of the classes, a file of one a line, or `folders` for those of the images: the file gives probabilities, and
        holds the names.
    overwrite
        Replace files that are there.
    input_shape
        Shape of a batch, such as 1,3,224,224; by default an image of the run. A .pte file takes so many images. Without
        --int8 and --calibration no images are read then, and random numbers are compared on.
    methods
        Where the run's decompositions that are not of this package are defined.
    output
        What is printed.
    """
    if not preprocess and (mean is not None or std is not None):
        raise ValueError("--mean and --std say what the file does to images: they need --preprocess")
    places = _places(run, to, out_file, int8=int8)
    for place in places:
        form = format_of(place)
        form.check("int8" if int8 else None)
        check_files(form, place, overwrite=overwrite)
    saved, shape = reopened(run, methods, "cpu"), parse_shape(input_shape)
    spec = found(saved.source.calibration or saved.source.data, saved.source) if calibration is None else calibration
    sources = None
    if int8 or calibration is not None or shape is None or preprocess or labels == FOLDERS:
        sources = saved.images(spec, count=IMAGES)
    example = torch.zeros(shape) if shape else sources.example if sources is not None else None
    settings = Settings(
        "int8" if int8 else None,
        _preprocess(saved, sources, mean, std) if preprocess else None,
        None if labels is None else _labels(labels, sources),
        _plan(run),
        overwrite,
        saved.source,
    )
    read = None if sources is None else sources.calibration
    made = []
    for place in places:
        with progress(output) as advance:
            stage = f"{format_of(place).title}{', int8' if int8 else ''}"
            advance(stage, 0.0)
            made.append(written(saved.small, example, place, read, settings))
            advance(stage, 1.0)
        if not output.as_json:
            say(made[-1].path if output.quiet else f"{made[-1]}" + "\n" * (place != places[-1]))
    return json.dumps([dataclasses.asdict(each) for each in made], indent=1) + "\n" if output.as_json else None


def _places(run: str, to: str | None, out_file: str | None, *, int8: bool) -> list[Path]:
    """Return the files to write.

    Raises:
        ValueError: If none is named, or one that is another format than asked for.
    """
    words: dict[str, Format] = {form.word: form for form in FORMATS.values()}
    asked = [word.strip() for word in (to or "").split(",")] if to is not None else []
    for word in asked:
        if word not in words:
            raise ValueError(f"--to: there is no format {word!r}; allowed are {', '.join(words)}")
    if out_file is None:
        if not asked:
            raise ValueError(f"say what to write with --to: {', '.join(words)}, or with --out FILE")
        return [Path(run) / f"model{'-int8' if int8 else ''}{words[word].suffix}" for word in dict.fromkeys(asked)]
    place = Path(out_file)
    if asked and [words[word].suffix for word in dict.fromkeys(asked)] != [place.suffix]:
        raise ValueError(f"--out is {out_file!r}, and --to {to!r} is another format; give one of the two")
    return [place]


def _preprocess(saved: Saved, sources: Sources | None, mean: str | None, std: str | None) -> Preprocess:
    """Return the normalisation of the run, or what was typed.

    Raises:
        ValueError: If it is not known, or known and typed.
    """
    form = sources.form if sources is not None else None
    if form is not None:
        if mean is not None or std is not None:
            raise ValueError("the run knows how its images were normalised; leave --mean and --std out")
        return Preprocess(form.mean, form.std)
    if mean is None or std is None:
        raise ValueError(
            f"the images of {saved.source.data!r} are taken as they are, so how they were normalised is not known: "
            "--preprocess needs --mean and --std here, such as --mean 0.485,0.456,0.406"
        )
    return Preprocess(numbers_of(mean, ()), numbers_of(std, ()))


def _labels(labels: str, sources: Sources | None) -> tuple[str, ...]:
    """Return the names of the classes.

    Raises:
        ValueError: If there are none.
    """
    if labels == FOLDERS:
        if sources is None or not sources.classes:
            raise ValueError("--labels folders is for images in a folder for each class (imagefolder:DIR); give a file instead")
        return sources.classes
    if not is_file(labels):
        raise ValueError(f"--labels: there is no file {labels!r}; it must hold a name of a class on each line")
    try:
        names = tuple(line.strip() for line in Path(labels).read_text(encoding="utf-8").splitlines() if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"--labels: {labels!r} cannot be read as text: {first_line(error)}") from error
    if not names:
        raise ValueError(f"--labels: {labels!r} is empty; it must hold a name of a class on each line")
    return names


def _plan(run: str) -> Plan | None:
    """Return the plan of a run, if it has one."""
    file = Path(run) / "plan.json"
    return Plan.from_json(file.read_text()) if file.is_file() else None
