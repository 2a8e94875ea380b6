"""Options that several commands share, and what their words mean."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from cyclopts import Parameter
from torch import nn

from spectrim.cli.datasets import is_callable_spec
from spectrim.cli.methods import methods_of, named, only_imports, plan_of, search_of
from spectrim.cli.models import load_weights, make_model
from spectrim.cli.runs import typed
from spectrim.cli.splits import Sources, Specs, first_examples, split_data
from spectrim.cli.terminal import err
from spectrim.core.plan import Plan
from spectrim.core.progress import Progress
from spectrim.core.records import Source
from spectrim.network.accuracy import Accuracy, Scorer, logits_of
from spectrim.network.calling import evaluation_mode, first_line
from spectrim.pipeline.calibration import JUDGED, judging
from spectrim.pipeline.checks import check_weights
from spectrim.pipeline.config import Config
from spectrim.refit.reconstruct import Reconstruct
from spectrim.train import Recipe

CHANCE = 1.2  # a score below so many times that of guessing is none
VALIDATION = 0.2  # largest share of the training images that decisions keep away from training
RATES = {"sgd": 0.02, "adamw": 0.001}  # largest learning rates, unless asked for


def _whole(kind: Any, tokens: Sequence[Any]) -> int:
    text = tokens[0].value
    try:
        number = int(text)
    except ValueError:
        raise ValueError(f"{text!r} is no whole number") from None
    if not 0 <= number < 1 << 62:
        raise ValueError(f"{text!r} is out of range; it must be a whole number of at least 0")
    return number


Whole = Annotated[int, Parameter(converter=_whole)]  # without it 1.5 is rounded
OutFile = Annotated[str | None, Parameter(name="--out")]


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Inputs:
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
        check_weights(network)
        return network.to(device_of(self.device))

    def open(self, choice: Choice, *, validation: float) -> Sources:
        """Return the images by purpose; `validation` as in `split_data`."""
        specs = Specs(**{field.name: getattr(self, field.name) for field in dataclasses.fields(Specs)})
        judges = (
            judging(choice.images, Config().judging) if self.calibration is None else JUDGED[1]
        )  # not for want of test images
        images = choice.images + judges, search_of(choice.search).images
        sources = split_data(specs, images=images, validation=validation)
        if sources.form is None and (self.mean is not None or self.std is not None):
            raise ValueError(f"--mean and --std are for images of bytes; those of {self.data!r} are taken as they are")
        if self.input_shape is not None and is_callable_spec(self.data):
            raise ValueError(f"--input is for stored images; those of {self.data!r} are taken as they are")
        return sources

    def source(self, model: str) -> Source:
        """Return what `spectrim evaluate` needs to find everything again."""
        form = {"input": self.input_shape, "mean": self.mean, "std": self.std}
        images = {"data": self.data, "calibration": self.calibration, "selection": self.selection}
        where = {"folder": str(Path.cwd()), "command": typed()}
        return Source(model=model, weights=self.weights, **where, **images, **form)  # type: ignore[arg-type]

    def notes(self) -> list[str]:
        """Return what a reader of the report must know."""
        notes = []
        if self.weights is None:
            notes.append("no --weights were given, so the network has those that its model spec made")
        if self.calibration is None:
            notes.append("images of --data were calibrated on and, for --max-drop, decided on: evaluate reads these too")
        return notes


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Choice:
    """What may be chosen for each layer, and by which rank selection.

    Attributes:
        methods: Comma-separated decompositions, such as ChannelSVD,SpatialSVD,Tucker2; SpatialSVD and CP stand for both of
            their kinds. Your own: my_module:MyMethod or file.py:MyMethod, a class or any callable without arguments that
            makes one; the current folder is searched too. With --plan only to import what the plan names.
        search: Rank selection: Portfolio, Knapsack, Interaction, Uniform, Energy, VBMF, ALDS, Greedy, Similarity, or your own
            as in --methods: my_module:MySearch or file.py:MySearch.
        exclude: Name patterns of layers to leave alone.
        multiple_of: Only ranks that are multiples of this; by default of what the target likes.
        images: Calibration images for the fits; up to 512 more judge the result. A small source is divided among both.
    """

    methods: str | None = None
    search: str | None = None
    exclude: Sequence[str] = ()
    multiple_of: Whole | None = None
    images: Whole = 1024

    def own(self, plan: str) -> Plan:
        """Return the plan of a file, beside which nothing else chooses; --methods may name what is to be imported for it.

        Raises:
            ValueError: If it cannot be used, or something else is to choose.
        """
        if dataclasses.replace(self, methods=None, images=1024) != Choice() or not only_imports(self.methods):
            raise ValueError(
                "--plan says what is done to each layer; leave --search, --exclude and --multiple-of out, and give --methods "
                "only for what the plan needs imported, such as my_module:MyMethod"
            )
        return plan_of(plan, self.methods)

    def config(self, seed: int, cache: Path, progress: Progress) -> Config:
        """Return the configuration."""
        return Config(
            methods=methods_of(self.methods),
            search=search_of(self.search),
            exclude=tuple(self.exclude),
            multiple_of=self.multiple_of,
            images=self.images,
            seed=seed,
            cache=cache,
            progress=progress,
        )


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class BlockOptions:
    """Gradient steps after the fits.

    Attributes:
        reconstruct: Take gradient steps on the small layers, block after block and without labels; with --max-drop on every
            network that is tried.
        mirror: With --reconstruct: on the images' mirror images, too. Not for text and digits.
    """

    reconstruct: bool = False
    mirror: bool = False

    def options(self) -> Reconstruct | None:
        """Return how, or None where none are asked for.

        Raises:
            ValueError: If there is nothing to mirror images for.
        """
        if self.mirror and not self.reconstruct:
            raise ValueError("--mirror says which images blocks are fitted to: it needs --reconstruct")
        return Reconstruct(mirror=self.mirror) if self.reconstruct else None


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class TrainingOptions:
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

    def recipe(self, usual: Literal["sgd", "adamw"], epochs: int, seed: int, cache: Path, progress: Progress) -> Recipe:
        """Return the recipe, with the usual optimizer if no other was asked for."""
        optimizer = self.optimizer or usual
        chosen = {"optimizer": optimizer, "rate": RATES[optimizer] if self.rate is None else self.rate}
        settings = dataclasses.asdict(self) | chosen
        return Recipe(epochs=epochs, seed=seed, checkpoint=cache / "training.pt", progress=progress, **settings)


def device_of(name: str) -> torch.device:
    """Return the device of this name, if it can be used."""
    try:
        device = torch.zeros(1, device=name)
        device.item()  # the meta device has none
        return device.device
    except Exception as error:  # of every kind, for devices whose part of torch is not there
        raise ValueError(f"the device {name!r} cannot be used: {first_line(error)}") from error


def score_original(
    network: nn.Module, sources: Sources, progress: Progress, *, test: bool = True, training: int = 0
) -> Scorer | None:
    """Run the original network on the images first: whether they fit is known at once, and what it scores.

    Args:
        network: The original.
        sources: The images.
        progress: Called with the stage.
        test: Whether the test images are to be scored.
        training: How many training images to try, and as many of those for decisions.

    Returns:
        What compares with the original on the test images, if these are to be scored.
    """
    progress("the network as given", 0.0)
    if training:
        with named("--calibration"):
            Accuracy(first_examples(sources.training, training))(network)
        with named("the images for decisions"):
            Accuracy(first_examples(sources.selection, training))(network)
    with named("--data"):
        scorer = Scorer(Accuracy(sources.test), network) if test else None
    progress("the network as given", 1.0)
    return scorer


def check_score(network: nn.Module, sources: Sources, scorer: Scorer | None, *, deciding: bool) -> None:
    """Warn of a network that scores no better than guessing, or has not as many outputs as there are folders of classes.

    Args:
        network: The original.
        sources: The images.
        scorer: Of the images whose score counts, if there are any and it is not trained first.
        deciding: Whether a drop of this score will decide.

    Raises:
        ValueError: If it does not, and a drop is to decide.
    """
    inputs, _ = next(iter(first_examples(sources.test, 1)))
    device = next((parameter.device for parameter in network.parameters()), torch.device("cpu"))
    with evaluation_mode(network), torch.no_grad():
        classes = logits_of(network, inputs.to(device)).shape[1]
    faults = []
    if sources.classes and len(sources.classes) != classes:
        faults.append(
            f"there are {len(sources.classes)} folders of classes and the network has {classes} outputs: do the folders, in "
            "the order of their names, stand for the first of these?"
        )
    if scorer is not None and scorer.mean <= CHANCE / classes:
        faults.append(
            f"the network as given scores {100 * scorer.mean:.2f} where guessing among {classes} classes scores "
            f"{100 / classes:.2f}: are --weights, --mean, --std and the labels those of this network?"
        )
    for told in faults:
        if deciding:
            raise ValueError(f"{told} --max-drop cannot decide on such scores")
        err.print(f"warning  {told}", soft_wrap=True, highlight=False, markup=False)


def print_original(sources: Sources, scorer: Scorer | None) -> None:
    """Print how images become inputs, and what the original network scores as given."""
    shape = " x ".join(map(str, sources.example.shape[1:]))
    taken = "as they are"
    if sources.form is not None:
        mean, std = (", ".join(f"{value:g}" for value in values) for values in (sources.form.mean, sources.form.std))
        taken = f"mean {mean}, std {std}"
    err.print(f"inputs  {shape}, {taken}", highlight=False)
    if scorer is not None:
        err.print(f"top-1 of the network as given, on the test images  {100 * scorer.mean:.2f}", highlight=False)
