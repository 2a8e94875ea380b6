"""Running a network that is not ours: its inputs, outputs and modes, whatever they are nested in."""

from __future__ import annotations

import copy
import dataclasses
import sysconfig
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

Example = Any  # tensors in any nesting the network takes: one tensor, a tuple of arguments, a dict of keywords
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
STOCK: tuple[type[nn.Module], ...] = (*CONVOLUTIONS, *TRANSPOSED, nn.Linear)
NEEDED = ("modules", "named_modules", "children", "parameters", "named_parameters", "state_dict", "eval", "train")


def unwrap(model: nn.Module) -> nn.Module:
    """Return the network inside DataParallel, DistributedDataParallel, AveragedModel or torch.compile wrappers.

    Raises:
        TypeError: If `model` is no eager `nn.Module`, or hides a method of it.
    """
    while True:
        if isinstance(model, torch.jit.ScriptModule):
            raise TypeError("the model is a TorchScript module; give the nn.Module it was made from")
        if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel, AveragedModel)):
            model = model.module
        elif isinstance(getattr(model, "_orig_mod", None), nn.Module):
            model = model._orig_mod  # type: ignore[assignment]
        elif isinstance(model, nn.Module):
            break
        else:
            raise TypeError(f"the model is {type(model).__name__}; it must be a torch.nn.Module")
    for name, module in nn.Module.named_modules(model):
        hidden = next((method for method in NEEDED if not callable(getattr(module, method, None))), None)
        if hidden is not None:
            where = f"the module {name!r}" if name else "the model"
            raise TypeError(
                f"{where} has an attribute {hidden!r}, which hides the method nn.Module.{hidden}; rename the attribute"
            )
    return model


def call(model: nn.Module, example: Example) -> Any:
    """Call the model with copies (it may change them): a tuple or list are arguments, a dict keywords, all else is one."""
    example = map_tensors(_copied, example)
    if isinstance(example, dict):
        return model(**example)
    return model(*example) if isinstance(example, (tuple, list)) else model(example)


def _copied(tensor: Tensor) -> Tensor:
    """Return a copy; a flattened feature map stays a view of one, which `survey` looks at."""
    base = tensor._base
    if base is not None and tensor.ndim == 2 < base.ndim and tensor.numel() == base.numel():
        return tensor.reshape(base.shape).clone().reshape(tensor.shape)
    return tensor.clone()


def answer(module: nn.Module, x: Tensor) -> Tensor:
    """Return what a layer, or the layers in its place, compute: without hooks, and where the network's autocast is off."""
    weight = next(module.parameters())
    found: Tensor = module.forward(x.to(weight.dtype))
    return found


def tensors_of(value: Any) -> list[Tensor]:
    """Return every tensor inside any nesting, in order: tuples, lists, dicts, dataclasses and what torch's pytrees know."""
    found: list[Tensor] = []
    for leaf in tree_flatten(value)[0]:
        if isinstance(leaf, Tensor):
            found.append(leaf)
        elif _is_record(leaf):
            found += tensors_of([getattr(leaf, field.name) for field in dataclasses.fields(leaf)])
        elif isinstance(leaf, Mapping):
            found += tensors_of(list(leaf.values()))
    return found


def map_tensors(change: Callable[[Tensor], Any], value: Any) -> Any:
    """Return the same nesting with every tensor changed; everything else stays what it is."""

    def changed(leaf: Any) -> Any:
        if isinstance(leaf, Tensor):
            return change(leaf)
        if not _is_record(leaf):
            return leaf
        new = copy.copy(leaf)
        for field in dataclasses.fields(leaf):
            object.__setattr__(new, field.name, map_tensors(change, getattr(leaf, field.name)))
            if isinstance(new, dict) and field.name in new:  # outputs of Hugging Face are both
                dict.__setitem__(new, field.name, getattr(new, field.name))
        return new

    return tree_map(changed, value)


def seeded(model: nn.Module, example: Example, seed: int = 0) -> Any:
    """Return what the network returns in eval mode, with random numbers from a seed; the caller's go on as they were."""
    with torch.random.fork_rng(cuda_devices(example)), evaluation_mode(model), torch.no_grad():
        torch.manual_seed(seed)
        return call(model, example)


def cuda_devices(example: Example) -> list[torch.device]:
    """Return the GPUs that an example lies on."""
    return list({x.device for x in tensors_of(example) if x.device.type == "cuda"}) if torch.cuda.is_available() else []


def same_outputs(first: Any, second: Any) -> bool:
    """Return whether two outputs are the same but for rounding."""
    pairs = list(zip(tensors_of(first), tensors_of(second), strict=False))
    if len(tensors_of(first)) != len(tensors_of(second)) or any(a.shape != b.shape for a, b in pairs):
        return False
    return all(
        torch.allclose(a, b, rtol=1e-3, atol=1e-3 * float(a.float().abs().nan_to_num(0, 0, 0).mean()), equal_nan=True)
        for a, b in pairs
        if a.is_floating_point() and a.numel()
    )


def _is_record(value: Any) -> bool:
    return dataclasses.is_dataclass(value) and not isinstance(value, type)


def batch_size(example: Example) -> int:
    """Return the first dimension of the first tensor that has one: how many examples there are.

    Raises:
        ValueError: If there is no tensor with a batch dimension.
    """
    sizes = [tensor.shape[0] for tensor in tensors_of(example) if tensor.ndim]
    if not sizes or sizes[0] == 0:
        raise ValueError(
            "the example must be a tensor, or hold tensors in a tuple (arguments) or a dict (keywords), with a non-empty batch "
            "dimension first"
        )
    return int(sizes[0])


def batched(example: Example) -> list[Tensor]:
    """Return the tensors that have the batch in dimension 0; others, such as constant tables and flags, are one for all."""
    size = batch_size(example)
    return [tensor for tensor in tensors_of(example) if tensor.ndim and tensor.shape[0] == size]


def joined(examples: Sequence[Example]) -> Example:
    """Return several batches as one, of the first one's nesting: tensors with the batch in dimension 0 are concatenated."""
    sizes = [batch_size(example) for example in examples]
    flat = [tree_flatten(example)[0] for example in examples]
    leaves = []
    for column in zip(*flat, strict=True):
        tensors = all(isinstance(x, Tensor) and x.ndim and x.shape[0] == size for x, size in zip(column, sizes, strict=True))
        leaves.append(torch.cat(column) if tensors else column[0])
    return tree_unflatten(leaves, tree_flatten(examples[0])[1])


def doubled(example: Example) -> Example:
    """Return the batch twice, one behind the other."""
    return joined([example, example])


def head(example: Example, number: int) -> Example:
    """Return copies of the first examples, no views: a trace counts what is done to them."""
    size = batch_size(example)
    return map_tensors(lambda x: x[:number].clone() if x.ndim and x.shape[0] == size else x.clone(), example)


def tail(example: Example, number: int) -> Example:
    """Return copies of the last examples."""
    size = batch_size(example)
    return map_tensors(lambda x: x[size - number :].clone() if x.ndim and x.shape[0] == size else x.clone(), example)


def portions(batches: Sequence[Example], size: int) -> list[Example]:
    """Return the same examples in batches of at most so many; nothing is copied."""
    found = []
    for batch in batches:
        whole = batch_size(batch)
        for start in range(0, whole, size):
            part = slice(start, start + size)
            found.append(map_tensors(lambda x, n=whole, p=part: x[p] if x.ndim and x.shape[0] == n else x, batch))  # type: ignore[misc]
    return found


def repeated(batches: Sequence[Example], number: int) -> Example:
    """Return so many examples as one batch: the given ones, again and again if need be."""
    return head(joined(list(batches) * -(-number // count(batches))), number)


def count(batches: Sequence[Example]) -> int:
    """Return the number of examples in all batches."""
    return sum(batch_size(batch) for batch in batches)


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Put the model in eval mode, and every module back as it was.

    A module with a `train` of its own (one that merges adapters, say) is put back by it; the others by their flags, since
    `train` would also change what is below them.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in reversed(modes):  # from the leaves up
            if type(module).train is not nn.Module.train and module.training != mode:
                module.train(mode)
        for module, mode in modes:
            module.training = mode


@contextmanager
def undisturbed() -> Iterator[None]:
    """Switch off what the caller may have around: inference mode, `no_grad`, autocast. Also a decorator."""
    off = [torch.autocast(kind, enabled=False) for kind in ("cpu", "cuda")]
    with torch.inference_mode(False), torch.enable_grad(), off[0], off[1]:
        yield


def first_line(error: BaseException) -> str:
    """Return the class of an error and the first line of what it says; of a file's, what the system says of it."""
    text = (isinstance(error, OSError) and error.strerror) or str(error).strip() or "no reason given"
    return f"{type(error).__name__}: {text.splitlines()[0]}"


def place(error: BaseException) -> str:
    """Return file and line of the user's code in which an error was raised, in brackets; nothing if there is none."""
    library, site = sysconfig.get_path("stdlib"), sysconfig.get_path("purelib")
    ours = (str(Path(__file__).parents[1]), str(Path(torch.__file__).parent), "<")
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith(ours)
        and (not frame.filename.startswith(library) or frame.filename.startswith(site))
        and Path(frame.filename).exists()
    ]
    return f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames else ""
