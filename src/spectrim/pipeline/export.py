"""export(): a network as a file for a device, checked before it is there."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from spectrim.core.export import Export, Match, Preprocess
from spectrim.core.plan import Plan
from spectrim.core.records import Source
from spectrim.network.calling import (
    Example,
    batch_size,
    batched,
    count,
    first_line,
    map_tensors,
    portions,
    repeated,
    seeded,
    tensors_of,
    undisturbed,
)
from spectrim.network.imaging import Imaging, Probabilities, images_of
from spectrim.pipeline.calibration import collect
from spectrim.pipeline.config import Config
from spectrim.targets.base import TOLERANCE, difference, relative, squares
from spectrim.targets.executorch import Pte
from spectrim.targets.export import Program, exporting, plain, traced
from spectrim.targets.files import Format, Run, size
from spectrim.targets.onnxruntime import Onnx
from spectrim.targets.openvino import OpenVinoIR
from spectrim.targets.torch import Pt2
from spectrim.version import __version__

FORMATS: dict[str, Format] = {".onnx": Onnx(), ".pt2": Pt2(), ".xml": OpenVinoIR(), ".pte": Pte()}
IMAGES = 288  # of the calibration data: ranges of int8 are found with them, and outputs compared on them
BATCH = 32
TOLERANCES = {None: TOLERANCE["f32"], "int8": 0.5}  # the second is for what went wrong: what int8 loses is told, not bounded
LEVEL = 0.6  # of 1/255: how far inputs may be from those of an image


@dataclass(frozen=True)
class Settings:
    """What a file is to be; fields as the arguments of `export`.

    Attributes:
        quantize, preprocess, labels, plan, overwrite: As there.
        source: Where the command line had the network from.
    """

    quantize: str | None = None
    preprocess: Preprocess | None = None
    labels: Sequence[str] | None = None
    plan: Plan | None = None
    overwrite: bool = False
    source: Source | None = None

    def __post_init__(self) -> None:
        """Check the values."""
        if self.quantize not in TOLERANCES:
            raise ValueError(f"quantize is {self.quantize!r}; it must be 'int8', or None")
        for name, kind in (("preprocess", Preprocess), ("plan", Plan)):
            value = getattr(self, name)
            if value is not None and not isinstance(value, kind):
                raise TypeError(f"{name} is {type(value).__name__}; it must be a {kind.__name__}, or None")
        names = self.labels
        if names is not None and (isinstance(names, str) or not names or not all(isinstance(name, str) for name in names)):
            raise TypeError(f"labels is {names!r}; it must hold the name of each class, such as ('cat', 'dog')")

    def metadata(self, versions: dict[str, str]) -> dict[str, str]:
        """Return what is written into the file, as texts."""
        found = {"versions": json.dumps(versions)}
        if self.plan is not None:
            found["plan"] = self.plan.text()
        if self.preprocess is not None:
            found["preprocess"] = self.preprocess.text()
        if self.labels is not None:
            found["labels"] = json.dumps(list(self.labels))
        if self.source is not None:
            found["source"] = json.dumps({"model": self.source.model, "weights": self.source.weights})
        return found


def export(  # noqa: PLR0913
    model: nn.Module,
    example: Example,
    path: str | os.PathLike[str],
    *,
    calibration: Iterable[Any] | None = None,
    quantize: str | None = None,
    preprocess: Preprocess | None = None,
    labels: Sequence[str] | None = None,
    plan: Plan | None = None,
    overwrite: bool = False,
) -> Export:
    """Write a network to a file for a device, once the file has been read again and answers as the network does.

    Args:
        model: The network, such as `result.model`; never modified. The file is of a copy in eval mode and single precision.
        example: A batch of inputs: a tensor, or a tuple or dict of tensors. A `.pte` file takes as many examples as this has;
            the others any number, unless the network takes one number only.
        path: The suffix says what is written: `.onnx`, `.pt2` (torch.export), `.xml` (OpenVINO, and `.bin` beside it), `.pte`
            (ExecuTorch with XNNPACK).
        calibration: Iterable of inputs or (inputs, targets) as the network takes them: the first 288 at most find the ranges of
            int8, and file and network are compared on them. Without it that is the example, with random numbers where all
            of its values are the same.
        quantize: `"int8"` for weights (a scale for each channel) and activations; for `.onnx`, `.xml` and `.pte`.
        preprocess: With it the file takes images of uint8, (N, H, W, C), and normalises them.
        labels: Names of the classes. With them the file gives probabilities (N, K), and holds the names.
        plan: Kept in the file.
        overwrite: Whether a file that is there is replaced. If anything fails it stays as it was.

    Returns:
        What was written, and how it answers beside the network: a difference of 0.001 of the outputs' norm is allowed, with
        int8 half of it.

    Raises:
        ImportError: If what the format needs is not installed; the text says what to install.
        ValueError: If the network cannot be exported, the file answers otherwise or cannot be written, or an argument is
            unusable; the text says what.
        TypeError: If an argument is of the wrong kind.

    Example:
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     found = export(nn.Linear(3, 2), torch.zeros(1, 3), f"{folder}/small.pt2")
        ...     network = torch.export.load(found.path).module()
        >>> found.inputs, found.outputs, tuple(network(torch.zeros(7, 3)).shape)
        (('input float32 (batch, 3)',), ('output float32 (batch, 2)',), (7, 2))
    """
    settings = Settings(quantize, preprocess, labels, plan, overwrite)
    return written(model, example, path, calibration, settings)


@undisturbed()
def written(
    model: nn.Module, example: Example, path: str | os.PathLike[str], calibration: Iterable[Any] | None, settings: Settings
) -> Export:
    """Do what `export` does.

    Args:
        model: As there.
        example: As there.
        path: As there.
        calibration: As there.
        settings: The rest.
    """
    file = Path(path).resolve()
    form = format_of(file)
    form.check(settings.quantize)
    if settings.quantize is not None and calibration is None:
        raise ValueError(
            f"quantize={settings.quantize!r} needs calibration: some hundred inputs to find the ranges of activations"
        )
    check_files(form, file, overwrite=settings.overwrite)
    network, given = plain(model, example)
    read = collect(calibration, given, Config(images=IMAGES), BATCH)
    real = [*read.fitting, *read.unseen]
    real = portions([repeated(real, min(IMAGES, count(real)))], BATCH) if real else []
    network, given, batches = _dressed(network, given, real, settings)
    program = traced(network, given, form.title, dynamic=form.dynamic)
    number = BATCH if program.dynamic else batch_size(given)
    whole = [batch for batch in portions(batches, number) if program.dynamic or batch_size(batch) == number]
    batches = whole or [repeated(batches, number)]
    versions = {"spectrim": __version__, "torch": torch.__version__}
    versions |= {form.target.title: form.target.describe()["version"]} if form.target.title != "PyTorch" else {}
    metadata, plainly = settings.metadata(versions), None
    with tempfile.TemporaryDirectory(prefix=f".{file.name}-", dir=file.parent) as folder:
        new = Path(folder) / file.name
        form.write(program, new, metadata)
        found = _matched(form, new, program, batches, TOLERANCES[None])
        if settings.quantize is not None:
            plainly = found
            form.quantize(program, new, batches, metadata)
            found = _matched(form, new, program, batches, TOLERANCES[settings.quantize])
        _put(form.files(new), form.files(file))
    ends = _described(program)
    return Export(str(path), form.title, found, TOLERANCES[settings.quantize], count(batches), plainly, *ends, versions)


def format_of(path: Path) -> Format:
    """Return the format of a path's suffix.

    Raises:
        ValueError: If there is none.
    """
    if path.suffix not in FORMATS:
        allowed = ", ".join(f"{suffix} ({form.title})" for suffix, form in FORMATS.items())
        raise ValueError(f"the output {path.name!r} has the suffix {path.suffix!r}; allowed are {allowed}")
    return FORMATS[path.suffix]


def check_files(form: Format, path: Path, *, overwrite: bool) -> None:
    """Check that a network's files can be written.

    Raises:
        ValueError: If one is there and may not be replaced, or the folder is not there or not writable.
    """
    for file in form.files(path):
        if os.path.lexists(file) and (not overwrite or file.is_dir()):
            raise ValueError(f"the output {str(file)!r} exists already; choose another name, or ask for it to be overwritten")
    if not path.parent.is_dir():
        raise ValueError(f"the output {str(path)!r} cannot be written: its folder is not there")
    try:
        with tempfile.TemporaryDirectory(prefix=f".{path.name}-", dir=path.parent):
            pass
    except OSError as error:
        raise ValueError(f"the output {str(path)!r} cannot be written: {first_line(error)}; choose another place") from error


def _dressed(
    network: nn.Module, example: Example, real: list[Example], settings: Settings
) -> tuple[nn.Module, Example, list[Example]]:
    """Return the network of the file, with its example and batches to compare on.

    Raises:
        ValueError: If labels or normalisation do not go with it.
    """
    batches = real or [map_tensors(_varied, example)]
    if settings.labels is not None:
        outputs = tensors_of(seeded(network, batches[0]))
        shape = tuple(outputs[0].shape[1:]) if len(outputs) == 1 else None
        if shape != (len(settings.labels),) or not isinstance(example, Tensor):
            raise ValueError(
                f"there are {len(settings.labels)} labels; the network must take one tensor and return as many logits, (N, "
                f"{len(settings.labels)}), and it returns {' and '.join(str(tuple(x.shape)) for x in outputs) or 'no tensor'}"
            )
        network = Probabilities(network)
    if settings.preprocess is None:
        return network.eval(), example, batches
    if not isinstance(example, Tensor) or example.ndim != 4 or not example.is_floating_point():
        raise ValueError("preprocess is for networks that take images: the example must be one tensor (N, C, H, W) of floats")
    for name in ("mean", "std"):
        numbers = len(getattr(settings.preprocess, name))
        if numbers not in (1, example.shape[1]):
            raise ValueError(f"preprocess has {numbers} numbers in {name}; the example has {example.shape[1]} channels")
    found = [images_of(batch, settings.preprocess) for batch in batches]
    if real and max(levels for _, levels in found) > LEVEL:
        raise ValueError(
            f"the calibration inputs are no images behind preprocess: undone, they are up to {max(x for _, x in found):.1f} "
            "away from whole numbers from 0 to 255; give the mean and std that they were normalised with"
        )
    return (
        Imaging(network, settings.preprocess).eval(),
        images_of(example, settings.preprocess)[0],
        [images for images, _ in found],
    )


def _varied(tensor: Tensor) -> Tensor:
    """Return a tensor of the example, or random numbers where all of its values are the same."""
    if not tensor.is_floating_point() or not tensor.numel() or not bool((tensor == tensor.flatten()[0]).all()):
        return tensor
    return torch.randn(tensor.shape, generator=torch.Generator().manual_seed(0), dtype=tensor.dtype)


def _matched(form: Format, path: Path, program: Program, batches: Sequence[Example], tolerance: float) -> Match:
    """Return how a file answers, run anew on every batch; where it takes any number of examples, also on one and on three.

    Raises:
        ValueError: If it cannot be run, or its outputs differ by more than the tolerance.
    """
    with exporting(form.title):
        run = form.open(path)
    apart, same = torch.zeros(1, 2, dtype=torch.float64), []
    for example in batches:
        found, wanted = _ran(run, form, example), tensors_of(seeded(program.network, example))
        apart = apart + squares(found, wanted)
        if wanted[0].ndim == 2 and wanted[0].shape[1] > 1 and wanted[0].is_floating_point():
            same.append((found[0].argmax(1) == wanted[0].argmax(1)).double())
    others = [repeated(batches, number) for number in (1, 3)] if program.dynamic else []
    each = [difference(_ran(run, form, example), tensors_of(seeded(program.network, example))) for example in others]
    most = torch.tensor([relative(apart), *each], dtype=torch.float64).max()  # NaN, if there is one
    if not most <= tolerance:
        raise ValueError(
            f"the {form.suffix} file answers otherwise than the network: outputs differ by {100 * float(most):.3g} % of their "
            f"norm, and {100 * tolerance:g} % is allowed; nothing was written"
        )
    return Match(size(form, path), relative(apart), float(torch.cat(same).mean()) if same else None)


def _ran(run: Run, form: Format, example: Example) -> list[Tensor]:
    """Return what a file answers.

    Raises:
        ValueError: If it cannot be run.
    """
    try:
        return run(example)
    except Exception as error:
        raise ValueError(
            f"the {form.suffix} file does not run on {batch_size(example)} examples: {first_line(error)}; nothing was written"
        ) from error


def _put(new: Sequence[Path], places: Sequence[Path]) -> None:
    """Put files where they belong; those that are there go if all of the new ones can be put there."""
    kept = [(place, file.with_name(f"{file.name}.before")) for file, place in zip(new, places, strict=True) if place.exists()]
    try:
        for place, aside in kept:
            place.rename(aside)
        for file, place in zip(new, places, strict=True):
            file.rename(place)
    except BaseException:
        for place, aside in kept:
            if aside.exists():
                aside.replace(place)
        raise


def _described(program: Program) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return names, types and shapes of inputs and outputs, in words."""
    first = batched(program.example)[0].shape[0]
    outputs = tensors_of(seeded(program.network, program.example))
    names = ["output"] if len(outputs) == 1 else [f"output {number}" for number in range(len(outputs))]
    tensors = (zip(program.names(), tensors_of(program.example), strict=False), zip(names, outputs, strict=True))
    inputs, found = (tuple(_told(name, x, first, program.dynamic) for name, x in pairs) for pairs in tensors)
    return inputs, found


def _told(name: str, tensor: Tensor, size: int, dynamic: bool) -> str:
    """Return name, type and shape of a tensor; its batch by name where that may be any."""
    sides = [str(side) for side in tensor.shape]
    if dynamic and sides and tensor.shape[0] == size:
        sides[0] = "batch"
    return f"{name} {str(tensor.dtype).removeprefix('torch.')} ({', '.join(sides)})"
