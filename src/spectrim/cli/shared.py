"""What several commands share: their common options, progress on the terminal, and the end of a run."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from cyclopts import Parameter
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from torch import nn

from spectrim.cli.splits import Sources, Specs, first_examples, split_data
from spectrim.network.accuracy import Accuracy, Scorer
from spectrim.pipeline.config import Config
from spectrim.core.cost import BudgetError
from spectrim.core.factorization import Factorization, parse
from spectrim.core.plan import Plan
from spectrim.core.records import Report
from spectrim.pipeline.result import check_output
from spectrim.search import SEARCHES
from spectrim.train import Recipe
from spectrim.cli.models import load_weights, make_model

out = Console()
err = Console(stderr=True)
LATE = 30.0  # seconds without a line in a log before a stage that goes on is told of
FROM_DATA = "from the data"  # in a report without calibration images of their own
ARGUMENTS = "arguments.json"  # in a folder of unfinished work
HELD = 0.2  # largest share of the training images that decisions keep away from training
RATES = {"sgd": 0.02, "adamw": 0.001}  # largest learning rates, unless asked for


def _whole(kind: Any, tokens: Sequence[Any]) -> int:
    text = tokens[0].value
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"{text!r} is no whole number") from None


Whole = Annotated[int, Parameter(converter=_whole)]  # without it 1.5 is rounded
Json = Annotated[bool, Parameter(name="--json")]


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Source:
    """The network and the images.

    Attributes:
        data: Labelled images for the report: parquet:FILE, imagefolder:DIR, npz:FILE, fashion-mnist:DIR or a callable.
        calibration: Training images: for statistics, for training, and (up to 5,000 others) for decisions. Without it compress
            takes them from --data, and the report says so.
        selection: Labelled images for decisions that the network was not trained on, in place of some of the calibration's.
        weights: Weight file (.safetensors or a torch file of tensors).
        input_shape: Shape of a batch, such as 1,3,224,224; by default the size of the stored images, or 1,3,224,224.
        mean: Per channel, after division by 255, with commas; by default ImageNet's, for grey images 0.5.
        std: Per channel, with commas; by default ImageNet's, for grey images 0.5.
        seed: Of everything random.
        device: Where the network runs, such as cuda.
        trust_pickle: Allow a weight file that runs code when it is read.
    """

    data: str
    calibration: str | None = None
    selection: str | None = None
    weights: str | None = None
    input_shape: Annotated[str | None, Parameter(name="--input")] = None
    mean: str | None = None
    std: str | None = None
    seed: Whole = 0
    device: str = "cpu"
    trust_pickle: bool = False

    def network(self, model: str) -> nn.Module:
        """Return the network with its weights, on its device."""
        network = make_model(model)
        if self.weights is not None:
            load_weights(network, self.weights, trust_pickle=self.trust_pickle)
        return network.to(device_of(self.device))

    def open(self, choice: Choice, *, held: float) -> Sources:
        """Return the images by purpose; `held` as in `split_data`."""
        names = [field.name for field in dataclasses.fields(Specs)]
        specs = Specs(**{name: getattr(self, name) for name in names})
        return split_data(specs, images=(choice.images, search_of(choice.search).images), held=held)

    def words(self, model: str) -> dict[str, Any]:
        """Return what `spectrim evaluate` needs to find everything again."""
        names = {"weights": self.weights, "input": self.input_shape, "mean": self.mean, "std": self.std, "data": self.data}
        others = {"calibration": self.calibration or FROM_DATA, "selection": self.selection}
        return {"model": model, **names, **others}

    def note(self) -> str:
        """Return what a reader of the report must know, or nothing."""
        notes = []
        if self.weights is None:
            notes.append("no --weights were given, so the network has those that its model spec made")
        if self.calibration is None:
            notes.append("images of --data were calibrated on and, for --max-drop, decided on: evaluate reads these too")
        return "; ".join(notes)


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Choice:
    """What may be chosen for each layer, and how.

    Attributes:
        methods: Comma-separated decompositions, such as ChannelSVD,SpatialSVD,Tucker2; SpatialSVD and CP stand for both of
            their kinds.
        search: Rank selection: Knapsack, Interaction, Uniform, Energy, VBMF, ALDS, Greedy or Similarity.
        exclude: Name patterns of layers to leave alone.
        multiple_of: Only ranks that are multiples of this.
        images: Calibration images.
    """

    methods: str | None = None
    search: str | None = None
    exclude: Sequence[str] = ()
    multiple_of: Whole = 1
    images: Whole = 1024

    def config(self, seed: int, cache: Path, tell: Any) -> Config:
        """Return the configuration."""
        return Config(
            methods=methods_of(self.methods),
            search=search_of(self.search),
            exclude=tuple(self.exclude),
            multiple_of=self.multiple_of,
            images=self.images,
            seed=seed,
            cache=cache,
            progress=tell,
        )


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Training:
    """How to train.

    Attributes:
        batch: Images of one step, of all processes together.
        optimizer: sgd or adamw; by default sgd for train, adamw for fine-tuning, which suits factors of any scale.
        rate: Largest learning rate; it rises to it and falls to nothing in one cycle. By default 0.02 for sgd, 0.001 for
            adamw.
        weight_decay: On all parameters.
        smoothing: Label smoothing.
        crop: Pixels by which training images are shifted at most.
        flip: Mirror training images at random.
        distill: Share of the loss that imitates the original network's outputs, such as 0.7.
    """

    batch: Whole = 128
    optimizer: Literal["sgd", "adamw"] | None = None
    rate: float | None = None
    weight_decay: float = 1e-4
    smoothing: float = 0.0
    crop: Whole = 4
    flip: bool = True
    distill: float = 0.0

    def recipe(self, usual: Literal["sgd", "adamw"], epochs: int, seed: int, cache: Path, tell: Any) -> Recipe:
        """Return the recipe, with the usual optimizer if no other was asked for."""
        optimizer = self.optimizer or usual
        chosen = {"optimizer": optimizer, "rate": RATES[optimizer] if self.rate is None else self.rate}
        settings = dataclasses.asdict(self) | chosen
        return Recipe(epochs=epochs, seed=seed, checkpoint=cache / "training.pt", progress=tell, **settings)


def methods_of(text: str | None) -> tuple[Factorization, ...]:
    """Return the decompositions of a list of names."""
    if text is None:
        return Config().methods
    methods = [parse(name.strip()) for name in text.split(",")]
    names = {type(method).__name__ for method in methods}
    other: dict[str, dict[str, Any]] = {"SpatialSVD": {"axis": 1}, "CP": {"depthwise": "kernel"}}
    return (*methods, *(parse(name, options) for name, options in other.items() if name in names))


def search_of(name: str | None) -> Any:
    """Return the rank selection of this name."""
    if name is None:
        return Config().search
    if name not in SEARCHES:
        raise ValueError(f"there is no rank selection {name!r}; allowed are {', '.join(SEARCHES)}")
    return SEARCHES[name]()


def device_of(name: str) -> torch.device:
    """Return the device of this name, if it can be used."""
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"the device {name!r} cannot be used: {str(error).splitlines()[0]}") from error


def plan_file(name: str) -> Plan:
    """Return the plan in a file."""
    try:
        return Plan.from_json(Path(name).read_text())
    except OSError as error:
        raise ValueError(f"the plan {name!r} cannot be read: {error.strerror}") from error
    except ValueError as error:
        reason = "it is no text" if isinstance(error, UnicodeDecodeError) else str(error)
        raise ValueError(f"the plan {name!r} cannot be used: {reason}") from error


def free(name: str) -> str:
    """Return the name, or the first with a number that is not taken."""
    candidates = (name, *(f"{name}-{number}" for number in range(2, 1000)))
    return next(candidate for candidate in candidates if not os.path.exists(candidate))


def begin(out_dir: str, resume: bool) -> tuple[Path, Path]:
    """Return where the result goes and where unfinished work is kept.

    Raises:
        ValueError: If the first holds something, or the second does and it is not to be resumed or no unfinished work.
    """
    target = check_output(out_dir)
    partial = target.with_name(target.name + ".partial")
    if partial.exists() and not (partial / ARGUMENTS).is_file():
        raise ValueError(
            f"{str(partial)!r} is needed for unfinished work, but holds something else; move it away, or choose another --out"
        )
    if partial.exists() and not resume:
        raise ValueError(f"{str(partial)!r} holds an interrupted run; add --resume to go on with it, or remove it")
    return target, partial


@contextlib.contextmanager
def unfinished(partial: Path, resume: bool, words: dict[str, Any]) -> Iterator[None]:
    """Note the arguments of a new run; leave nothing behind if they are wrong, else keep what was done and say so.

    Raises:
        ValueError: If the run to be resumed had other arguments.
    """
    noted, text = partial / ARGUMENTS, json.dumps(words, indent=1, default=str)
    if noted.is_file():
        before = json.loads(noted.read_text())
        others = [name for name, value in json.loads(text).items() if before.get(name) != value]
        if others:
            raise ValueError(
                f"the run in {str(partial)!r} had other arguments ({', '.join(others)}); resume with the same, or remove it"
            )
    else:
        partial.mkdir(parents=True, exist_ok=True)
        noted.write_text(text)
    try:
        yield
    except (ValueError, TypeError, BudgetError):  # other arguments are needed, for which the work would be of no use
        if not resume:
            shutil.rmtree(partial, ignore_errors=True)
        raise
    except BaseException as error:
        if any(file != noted for file in partial.iterdir()):
            error.add_note("what was done is kept, run the same command with --resume to go on")
        else:
            shutil.rmtree(partial, ignore_errors=True)
            error.add_note("nothing was finished yet, so nothing is kept")
        raise


def look(
    network: nn.Module, sources: Sources, tell: Any, quiet: bool, *, test: bool = True, training: int = 0
) -> Scorer | None:
    """Run the original network on the images first: whether they fit is known at once, and what it scores can be told.

    Args:
        network: The original.
        sources: The images.
        tell: Shows progress.
        quiet: Print nothing else.
        test: Whether the test images are to be scored.
        training: How many training images to try.

    Returns:
        What compares with the original on the test images, if these are to be scored.
    """
    lines = []
    tell("the network as given", 0.0)
    if sources.form is not None:
        mean, std = (", ".join(f"{value:g}" for value in values) for values in (sources.form.mean, sources.form.std))
        height, width = sources.form.size
        lines.append(f"inputs  {sources.form.channels} x {height} x {width}, mean {mean}, std {std}")
    if training:
        Accuracy(first_examples(sources.training, training))(network)
    scorer = Scorer(Accuracy(sources.test), network) if test else None
    if scorer is not None:
        lines.append(f"top-1 of the network as given, on the test images  {100 * scorer.mean:.2f}")
    tell("the network as given", 1.0)
    for line in lines if not quiet else ():
        err.print(line, highlight=False)
    return scorer


def show(report: Report, folder: str, as_json: bool) -> None:
    """Print the report."""
    if as_json:
        sys.stdout.write(report.to_json())
        return
    out.print(report.table())
    for line in report.lines():
        out.print(line, soft_wrap=True, highlight=False, markup=False)
    names = ", ".join(sorted(path.name for path in Path(folder).iterdir()))
    out.print(f"written to {folder}: {names}", soft_wrap=True, highlight=False)


@contextlib.contextmanager
def progress(quiet: bool) -> Iterator[Any]:
    """Show a bar per stage on a terminal, a line per finished stage in a log, and nothing beside JSON."""
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=err, transient=True, disable=quiet or not err.is_terminal) as bars:
        tasks: dict[str, TaskID] = {}
        shares: dict[str, float] = {}
        told, last = time.monotonic(), ""

        def tell(stage: str, share: float) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=1.0)
            bars.update(tasks[stage], completed=share)
            finished, shares[stage] = share == 1.0 != shares.get(stage), share
            nonlocal told, last
            late = share > 0 and time.monotonic() - told > LATE
            if (late or (finished and stage != last)) and not quiet and not err.is_terminal:  # no line twice in a row
                told, last = time.monotonic(), stage if finished else ""
                err.print(
                    f"{datetime.now():%H:%M:%S} {stage} {'done' if finished else f'{100 * share:.0f} %'}", highlight=False
                )

        yield tell
