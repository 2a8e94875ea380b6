"""The command line: demo | inspect | compress | evaluate, each a few lines over the functions of the library.

Exit codes: 0 done, 1 the budget cannot be met, 2 bad input (one sentence), 130 interrupted, what was done is kept for --resume.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import sys
import warnings
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import torch
from cyclopts import App, CycloptsError, Parameter
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

import spectrim
from spectrim._inputs import DEFAULT_INPUT, first_examples, parse_shape, split_data
from spectrim.accuracy import Accuracy, Scorer
from spectrim.compress import compress
from spectrim.config import Config
from spectrim.cost import Budget, BudgetError, Keep, MaxDrop
from spectrim.demo import run_demo
from spectrim.factorize import Factorization, parse
from spectrim.inspection import inspect
from spectrim.report import Report
from spectrim.result import Result, check_output, load
from spectrim.search import SEARCHES
from spectrim.zoo import load_weights, make_model

app = App(
    name="spectrim",
    version=spectrim.__version__,
    help="Make trained convolutional networks smaller and faster.",
    suppress_keyboard_interrupt=False,
)
out = Console()
err = Console(stderr=True)
Numbers = Annotated[str | None, Parameter(help="Comma-separated numbers.")]


@app.command
def demo(
    *,
    out_dir: Annotated[str | None, Parameter(name="--out")] = None,
    as_json: Annotated[bool, Parameter(name="--json")] = False,
) -> None:
    """Compress the embedded network on embedded real images: a minute and a half on two CPU cores, no network, no other file.

    Parameters
    ----------
    out_dir
        Where the result is written; spectrim-demo, or the next free spectrim-demo-N.
    as_json
        Print the report as JSON.
    """
    folder = out_dir or _free("spectrim-demo")
    check_output(folder)
    with _progress(as_json) as tell:
        result = run_demo(tell)
    result.save(folder)
    _show(result.report, folder, as_json)


@app.command(name="inspect")
def inspect_command(
    model: str,
    *,
    input_shape: Annotated[str | None, Parameter(name="--input")] = None,
    weights: str | None = None,
    trust_pickle: bool = False,
    as_json: Annotated[bool, Parameter(name="--json")] = False,
) -> None:
    """Show every layer of a network, what it costs and what can be done to it.

    Parameters
    ----------
    model
        torchvision:NAME, timm:NAME, module.path:callable or file.py:callable.
    input_shape
        Shape of a batch, such as 1,3,224,224.
    weights
        Weight file (.safetensors or a torch file of tensors).
    trust_pickle
        Allow a weight file that runs code when it is read.
    as_json
        Print JSON.
    """
    network = make_model(model)
    if weights is not None:
        load_weights(network, weights, trust_pickle=trust_pickle)
    found = inspect(network, torch.zeros(parse_shape(input_shape) or DEFAULT_INPUT))
    if as_json:
        sys.stdout.write(found.to_json())
    else:
        (out if out.is_terminal else Console(width=200)).print(found.table())
        for line in found.lines():
            out.print(line, soft_wrap=True, highlight=False, markup=False)


@app.command(name="compress")
def compress_command(
    model: str,
    *,
    data: str,
    out_dir: Annotated[str, Parameter(name="--out")],
    weights: str | None = None,
    calibration: str | None = None,
    keep: float | None = None,
    max_drop: float | None = None,
    metric: str = "macs",
    methods: str | None = None,
    search: str | None = None,
    exclude: Sequence[str] = (),
    multiple_of: int = 1,
    images: int = 1024,
    refit: bool = True,
    batchnorm: bool = False,
    input_shape: Annotated[str | None, Parameter(name="--input")] = None,
    mean: Numbers = None,
    std: Numbers = None,
    seed: int = 0,
    device: str = "cpu",
    resume: bool = False,
    trust_pickle: bool = False,
    as_json: Annotated[bool, Parameter(name="--json")] = False,
) -> None:
    """Compress a network to a budget and write the result to a folder.

    Parameters
    ----------
    model
        torchvision:NAME, timm:NAME, module.path:callable or file.py:callable.
    data
        Labelled images for the report: parquet:FILE, imagefolder:DIR, npz:FILE, fashion-mnist:DIR or a callable.
    out_dir
        Folder to write; it must be new or empty.
    weights
        Weight file (.safetensors or a torch file of tensors).
    calibration
        Training images, for statistics and (behind the first --images of them) for the decisions of --max-drop. Without it
        both come from --data, and the report says so.
    keep
        Fraction that may remain, such as 0.5.
    max_drop
        Points of top-1 that may be lost, such as 1.5.
    metric
        params or macs.
    methods
        Comma-separated decompositions, such as ChannelSVD,SpatialSVD,Tucker2; SpatialSVD and CP stand for both of their kinds.
    search
        Rank selection.
    exclude
        Name patterns of layers to leave alone.
    multiple_of
        Only ranks that are multiples of this.
    images
        Calibration images.
    refit
        Fit each layer again to what the compressed prefix gives it.
    batchnorm
        Re-estimate BatchNorm statistics at the end.
    input_shape
        Shape of a batch, such as 1,3,224,224; by default the size of the stored images, or 1,3,224,224.
    mean
        Per channel, after division by 255; by default ImageNet's, for grey images 0.5.
    std
        Per channel; by default ImageNet's, for grey images 0.5.
    seed
        Of everything random.
    device
        Where the network runs, such as cuda.
    resume
        Go on where an interrupted run with the same arguments stopped.
    trust_pickle
        Allow a weight file that runs code when it is read.
    as_json
        Print the report as JSON.
    """
    budget = _budget(keep, max_drop, metric)
    target = check_output(out_dir)
    partial = target.with_name(target.name + ".partial")
    if partial.exists() and not resume:
        raise ValueError(f"{str(partial)!r} holds an interrupted run; add --resume to go on with it, or remove it")
    source = {"model": model, "weights": weights, "input": input_shape, "mean": mean, "std": std, "data": data}
    network = make_model(model)
    if weights is not None:
        load_weights(network, weights, trust_pickle=trust_pickle)
    network.to(_device(device))
    example, calibrating, selecting, testing = split_data(data, calibration, images, input_shape, mean, std)
    with _progress(as_json) as tell:
        config = Config(
            methods=_methods(methods),
            search=_search(search),
            exclude=tuple(exclude),
            multiple_of=multiple_of,
            refit=refit,
            batchnorm=batchnorm,
            images=images,
            seed=seed,
            cache=partial,
            progress=tell,
        )
        evaluate = Accuracy(selecting) if isinstance(budget, MaxDrop) else None
        try:
            result = compress(
                network, example.to(device), budget=budget, calibration=calibrating, evaluate=evaluate, config=config
            )
            score = None
            if not (selecting is testing and isinstance(budget, MaxDrop)):  # else it was decided on and is no test
                tell("test images", 0.0)
                score = Scorer(Accuracy(testing), network).score(result.model)
                tell("test images", 1.0)
        except Exception:
            if not resume:
                shutil.rmtree(partial, ignore_errors=True)
            raise
    settings = {**result.report.settings, "source": {**source, "calibration": calibration or "from the data"}}
    report = dataclasses.replace(result.report, test=score, settings=settings)
    Result(result.model, result.plan, report).save(target)
    shutil.rmtree(partial, ignore_errors=True)
    _show(report, str(target), as_json)


@app.command
def evaluate(
    run: str,
    *,
    data: str | None = None,
    images: int | None = None,
    device: str = "cpu",
    as_json: Annotated[bool, Parameter(name="--json")] = False,
) -> None:
    """Measure a saved result on labelled images, beside the original if its weight file is still there.

    Parameters
    ----------
    run
        Folder that compress wrote.
    data
        Labelled images; by default those of the report.
    images
        Only the first so many.
    device
        Where the network runs, such as cuda.
    as_json
        Print JSON.
    """
    file = Path(run) / "report.json"
    if not file.is_file():
        raise ValueError(f"{run!r} is no saved result: it has no report.json")
    source = json.loads(file.read_text())["settings"].get("source")
    if source is None:
        raise ValueError(f"{run!r} was not written by the command line, so its model is unknown; use spectrim.load in Python")
    original = make_model(source["model"]).to(_device(device))
    small = load(run, original).to(device)
    labelled = data or source["data"]
    _, _, _, testing = split_data(labelled, labelled, 1, source["input"], source["mean"], source["std"])
    if images is not None:
        testing = first_examples(testing, images)
    accuracy = Accuracy(testing)
    if source["weights"] is not None and Path(source["weights"]).is_file():
        load_weights(original, source["weights"])
        score = Scorer(accuracy, original).score(small)
        values = {**dataclasses.asdict(score), "drop": score.drop}
        text = score.text()
    else:
        hits = accuracy.per_example(small)
        error = float(hits.std() / len(hits) ** 0.5)
        values = {"after": float(hits.mean()), "standard_error": 100 * error, "examples": len(hits)}
        text = f"{100 * values['after']:.2f} +- {100 * error:.2f} ({len(hits):,} images)"
    sys.stdout.write(json.dumps(values, indent=1) + "\n" if as_json else f"top-1  {text}\n")


def _budget(keep: float | None, max_drop: float | None, metric: str) -> Budget:
    if (keep is None) == (max_drop is None):
        raise ValueError("give exactly one budget: --keep FRACTION or --max-drop POINTS")
    return Keep(keep, metric) if keep is not None else MaxDrop(max_drop or 0.0, metric)  # type: ignore[arg-type]


def _methods(text: str | None) -> tuple[Factorization, ...]:
    if text is None:
        return Config().methods
    methods = [parse(name.strip()) for name in text.split(",")]
    names = {type(method).__name__ for method in methods}
    other: dict[str, dict[str, Any]] = {"SpatialSVD": {"axis": 1}, "CP": {"depthwise": "kernel"}}
    return (*methods, *(parse(name, options) for name, options in other.items() if name in names))


def _search(name: str | None) -> Any:
    if name is None:
        return Config().search
    if name not in SEARCHES:
        raise ValueError(f"there is no rank selection {name!r}; allowed are {', '.join(SEARCHES)}")
    return SEARCHES[name]()


def _device(name: str) -> torch.device:
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"the device {name!r} cannot be used: {str(error).splitlines()[0]}") from error


def _free(name: str) -> str:
    candidates = (name, *(f"{name}-{number}" for number in range(2, 1000)))
    return next(candidate for candidate in candidates if not os.path.exists(candidate))


def _show(report: Report, folder: str, as_json: bool) -> None:
    if as_json:
        sys.stdout.write(report.to_json())
        return
    out.print(report.table())
    for line in report.lines():
        out.print(line, soft_wrap=True, highlight=False, markup=False)
    page = "report.html, " if (Path(folder) / "report.html").exists() else ""
    out.print(f"written to {folder}: plan.json, model.safetensors, {page}report.json", soft_wrap=True, highlight=False)


@contextlib.contextmanager
def _progress(quiet: bool) -> Iterator[Any]:
    """Show a bar per stage on a terminal, a line per finished stage in a log, and nothing beside JSON."""
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=err, transient=True, disable=quiet or not err.is_terminal) as bars:
        tasks: dict[str, TaskID] = {}
        shares: dict[str, float] = {}

        def tell(stage: str, share: float) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=1.0)
            bars.update(tasks[stage], completed=share)
            finished, shares[stage] = share == 1.0 != shares.get(stage), share
            if finished and not quiet and not err.is_terminal:
                err.print(f"{datetime.now():%H:%M:%S} {stage} done", highlight=False)

        yield tell


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    warnings.simplefilter("ignore")
    try:
        app(
            list(arguments) if arguments is not None else None,
            exit_on_error=False,
            print_error=False,
            result_action="return_value",
        )
    except BudgetError as error:
        return _fail(str(error), 1)
    except KeyboardInterrupt:
        return _fail("interrupted; what was done is kept, run the same command with --resume to go on", 130)
    except CycloptsError as error:
        return _fail(f"{' '.join(str(error).split())} (spectrim --help tells more)", 2)
    except (ValueError, TypeError, OSError, ImportError, RuntimeError) as error:
        return _fail(" ".join(str(error).split()) or type(error).__name__, 2)
    except Exception as error:  # of the user's own model or data code, or a mistake of ours
        if os.environ.get("SPECTRIM_TRACEBACK"):
            raise
        return _fail(f"{type(error).__name__}: {' '.join(str(error).split())} (SPECTRIM_TRACEBACK=1 shows where)", 2)
    return 0


def _fail(sentence: str, code: int) -> int:
    err.print(f"spectrim: {sentence}", soft_wrap=True, highlight=False, markup=False)
    return code


if __name__ == "__main__":
    sys.exit(main())
