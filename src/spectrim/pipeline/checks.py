"""What is checked before the long work begins, and what a reader of the report must be told of the network and the images."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from spectrim.core.cost import Cost
from spectrim.network.calling import Example, batch_size, batched, call, count, evaluation_mode, head, tail
from spectrim.network.counting import Counted
from spectrim.network.state import extra_state
from spectrim.network.survey import Survey
from spectrim.pipeline.calibration import ENOUGH, JUDGED, Images
from spectrim.pipeline.config import Config
from spectrim.sensitivity.divergence import check, output_harm, that_count

EACH = 2  # observations that a layer wants for each of its inputs


def notes_of(model: nn.Module, images: Images, original: Counted, of_images: Cost, found: Survey) -> tuple[str, ...]:
    """Return what a reader of the report must know, a sentence each."""
    return (*_extra(model), *_uncounted(original), *_varying(original.cost, of_images), *_few(found, images))


def _extra(model: nn.Module) -> list[str]:
    names = extra_state(model)
    return (
        [f"not saved, since it is no tensor: {', '.join(names)}; a loaded network has that of the one given to load"]
        if names
        else []
    )


def _uncounted(found: Counted) -> list[str]:
    return [f"not counted in the MACs: {', '.join(found.uncounted)}"] if found.uncounted else []


def _varying(original: Cost, of_images: Cost) -> list[str]:
    """Return what to say of a network whose operations depend on what it sees."""
    if of_images == original:
        return []
    return [
        f"the network's MACs depend on its input: {original.macs:,} for the example, {of_images.macs:,} for a calibration "
        "image; the budget holds for the example"
    ]


def _few(found: Survey, images: Images) -> list[str]:
    """Return what to say where images are too few: layers whose inputs outnumber what they see, and how many would do."""
    if not images.fitting:
        return []
    seen, notes = count(images.fitting), []
    if not images.unseen:
        notes.append(
            f"there are {seen} calibration images, too few to keep some away from the fits: the harm is of images they saw"
        )
    needs = {}
    for layer in found.layers:
        positions = sum(math.prod(shape[:-1] if layer.kind == "Linear" else shape[1:]) for shape in layer.outputs)
        needed = math.ceil(EACH * layer.matrix[1] / max(positions, 1))
        if needed > seen:
            needs[layer.name] = needed
    if needs:
        worst = sorted(needs, key=lambda name: -needs[name])
        others = f" and {len(worst) - 3} more" if len(worst) > 3 else ""
        notes.append(
            f"{seen:,} images are few for {', '.join(worst[:3])}{others}, whose inputs outnumber what they see; about "
            f"{needs[worst[0]]:,} would do"
        )
    return notes


def check_reconstruct(images: Images, example: Example, config: Config, together: int) -> None:
    """Check that there are images to fit blocks to and others to judge them by, and mirror images if these are wanted.

    Raises:
        ValueError: If there are none.
    """
    if config.reconstruct is None:
        return
    if not images.unseen:
        found, least, share = count(images.fitting), JUDGED[0], math.ceil(1 / config.judging)
        given = f"with {found} calibration images none are kept away from the fits" if found else "there are none"
        raise ValueError(
            "reconstruct keeps a block's gradient steps only if calibration images that no fit has seen agree, and "
            f"{given}; give at least {ENOUGH if together <= least else share * together}, or leave reconstruct out"
        )
    if config.reconstruct.mirror and not any(tensor.ndim > 3 for tensor in batched(example)):
        shapes = " and ".join(str(tuple(tensor.shape)) for tensor in batched(example))
        raise ValueError(
            f"reconstruct: mirror=True is for images, and the example has shape {shapes}; it must be (batch, channels, height, "
            "width), or leave mirror out"
        )


def check_outputs(model: nn.Module, images: Images, config: Config, together: int) -> Any:
    """Return the network's outputs for the first batch, having checked that harm can be measured on such.

    Raises:
        ValueError: If they have no batch in dimension 0, differ in shape from input to input, or the user's harm fails.
    """
    batch, harm = images.fitting[0], config.harm or output_harm
    size = batch_size(batch)
    half = size // 2 // together * together
    with torch.no_grad(), evaluation_mode(model):
        outputs = call(model, batch)
        parts = [call(model, part(batch, half)) for part in (head, tail)] if half else []
    if config.harm is not None:
        if not config.gradient:
            return outputs  # nothing is asked of the harm but its value
        check(config.harm, outputs)
    counting = [that_count(found, harm) for found in (outputs, *parts)]
    for tensor in counting[0]:
        if not tensor.ndim or not tensor.shape[0] or (size % tensor.shape[0] and tensor.shape[0] % size):
            raise ValueError(_no_batch(tensor, size))
    shapes = [[tuple(tensor.shape) for tensor in found] for found in counting]
    if len(set(map(tuple, shapes[1:]))) > 1 or not counting[0]:
        raise ValueError(
            "the network's outputs differ in number or shape from input to input (as a detector's boxes do), so they "
            "cannot be compared; give Config(harm=...) of outputs, or wrap the model in a module that returns raw maps"
        )
    for part in counting[1:2]:
        for tensor, fewer in zip(counting[0], part, strict=True):
            if len(tensor) * half != len(fewer) * size:
                raise ValueError(_no_batch(tensor, size))
    return outputs


def _no_batch(tensor: Tensor, size: int) -> str:
    """Say that a tensor that counts has no batch in dimension 0."""
    what = f"a tensor of shape {tuple(tensor.shape)}" if tensor.ndim else "a scalar (0-dim) tensor"
    if size in tensor.shape[1:]:
        axis = tensor.shape[1:].index(size) + 1
        return (
            f"the network returns {what} for a batch of {size}: its batch is dimension {axis}, so harm cannot be told image by "
            f"image; wrap the model in a module that returns it batch first, as y.movedim({axis}, 0) does"
        )
    return (
        f"the network returns {what} for a batch of {size}, so harm cannot be told image by image; give "
        "Config(harm=...) of the outputs that count, or wrap the model in a module that returns those alone"
    )


def examples_together(model: nn.Module, example: Example) -> int:
    """Return how many examples the network takes together: 1, or the example's number where it does not run on two."""
    size = batch_size(example)
    if size <= 2:
        return 1
    try:
        with torch.no_grad(), evaluation_mode(model):
            call(model, head(example, 2))
    except Exception:
        return size
    return 1


def check_norms(model: nn.Module) -> None:
    """Check that no normalisation mixes the examples of a batch, of which the refit runs two streams.

    Raises:
        ValueError: If one does.
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is None:
            raise ValueError(
                f"the normalisation {name!r} has no running statistics, so it mixes the images of a batch and layers cannot be "
                "refitted to one another; use refit=False"
            )


def check_weights(model: nn.Module) -> None:
    """Check that every weight is there and finite; buffers may hold infinity, as masks do, but no NaN.

    Raises:
        ValueError: If one is NaN or infinite, has no value yet, or is of a kind that no arithmetic is done in.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    if not parameters:
        raise ValueError("the model has no parameters, so there is nothing to compress")
    for name, value in (*parameters.items(), *model.named_buffers(remove_duplicate=False)):
        if isinstance(value, (UninitializedParameter, UninitializedBuffer)):
            raise ValueError(f"the model's {name!r} is lazy and has no value yet; run the model once before")
        if value.is_meta:
            raise ValueError(f"the model's {name!r} is on the meta device and has no value; load weights first")
        if not value.is_floating_point():
            continue
        if value.element_size() < 2:
            raise ValueError(
                f"the model's {name!r} is {value.dtype}, in which nothing can be computed; convert the model first"
            )
        bad = value.isnan().any() if name not in parameters else ~torch.isfinite(value).all()
        if bool(bad):
            raise ValueError(f"the model's {name!r} holds NaN or infinite values; give a network that was trained to the end")
