"""Model specs of the command line: `torchvision:NAME`, `timm:NAME`, `module.path:callable`, `file.py:callable`; and weights."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from spectrim.network.calling import first_line, place

CALLABLES = "module.path:callable and file.py:callable"  # modules also from the current folder
KINDS = f"torchvision:NAME, timm:NAME, {CALLABLES}"


def make_model(spec: str) -> nn.Module:
    """Build the network that a spec names, in eval mode; nothing is downloaded.

    Raises:
        ValueError: If the spec is unknown, its library is missing, or it does not build a network.
    """
    kind, _, name = spec.partition(":")
    if not name:
        raise ValueError(f"the model {spec!r} is not understood; allowed are {KINDS}")
    model = _library(kind, name) if kind in ("torchvision", "timm") else made(spec, KINDS)
    if not isinstance(model, nn.Module):
        raise ValueError(f"{spec!r} returned {type(model).__name__}; it must return a torch.nn.Module")
    return model.eval()


def _library(kind: str, name: str) -> nn.Module:
    try:
        if kind == "torchvision":
            from torchvision.models import get_model

            model: nn.Module = get_model(name, weights=None)
        else:
            from timm import create_model

            model = create_model(name, pretrained=False)
        return model
    except ImportError as error:
        raise ValueError(f"{kind} cannot be imported ({error}); install it with: pip install {kind}") from error
    except (ValueError, RuntimeError, KeyError) as error:
        raise ValueError(f"{kind} has no model {name!r}: {error}") from error


def look_in(folder: str) -> None:
    """Look for modules in this folder too, after all others."""
    if folder and Path(folder).is_dir() and folder not in sys.path:
        sys.path.append(folder)


def made(spec: str, allowed: str = CALLABLES) -> Any:
    """Return what the callable of a spec returns; arguments as in `import_callable`.

    Raises:
        ValueError: If it is not there, needs arguments or raises, whatever its class; the text names file and line.
    """
    function = import_callable(spec, allowed)
    try:
        inspect.signature(function).bind()
    except TypeError as error:
        raise ValueError(f"{spec!r} cannot be called without arguments: {error}") from error
    except ValueError:
        pass  # no signature to read, as of some functions written in C
    try:
        return function()
    except (Exception, SystemExit) as error:
        raise ValueError(f"{spec!r} raised {told(error)}") from error


def told(error: BaseException) -> str:
    """Return class and text of an error, and where in the user's code it was raised."""
    text = f"{type(error).__name__}: {' '.join(str(error).split()) or 'no reason given'}"
    if isinstance(error, SyntaxError) and error.filename:
        return f"{text.split(' (')[0]} ({error.filename}, line {error.lineno})"
    return text + place(error)


def import_callable(spec: str, allowed: str = CALLABLES) -> Callable[..., Any]:
    """Return the callable of `module.path:callable` or `file.py:callable`; modules are looked for in the current folder first.

    Args:
        spec: The words.
        allowed: What else they could have been, for the error.

    Raises:
        ValueError: If the module, the file or the name is not there.
    """
    where, _, name = spec.rpartition(":")
    try:
        if where.endswith(".py"):
            path = Path(where).resolve()
            if not is_file(where):
                raise ValueError(f"{spec!r}: there is no file {where!r}")
            description = importlib.util.spec_from_file_location(path.stem, path)
            assert description is not None and description.loader is not None
            module = importlib.util.module_from_spec(description)
            sys.modules.setdefault(path.stem, module)
            look_in(str(path.parent))  # as `python file.py` would have it
            description.loader.exec_module(module)
        else:
            if "" not in sys.path:
                sys.path.insert(0, "")
            module = importlib.import_module(where)
    except ImportError as error:
        raise ValueError(f"{spec!r} cannot be imported: {error}{place(error)}; allowed are {allowed}") from error
    except (Exception, SystemExit) as error:
        if isinstance(error, ValueError) and spec in str(error):
            raise
        raise ValueError(f"{spec!r} cannot be imported: {told(error)}; allowed are {allowed}") from error
    found = getattr(module, name, None)
    if not callable(found):
        raise ValueError(f"{spec!r}: {where} has no callable {name!r}")
    return found  # type: ignore[no-any-return]


def load_weights(model: nn.Module, file: str, *, trust_pickle: bool = False) -> None:
    """Load weights into a network, in place: safetensors, or a torch file of tensors only.

    Args:
        model: The network, newly made.
        file: A `.safetensors` file, or a file of torch.save.
        trust_pickle: Allow a pickle that runs code.

    Raises:
        ValueError: If the file is missing, damaged, needs code to load, or does not fit.
    """
    path = Path(file)
    if not is_file(file):
        raise ValueError(f"there is no weight file {file!r}")
    try:
        data: Any = load_file(path) if path.suffix == ".safetensors" else _torch_file(path, trust_pickle)
    except ValueError:
        raise
    except Exception as error:  # whatever bytes that are no weights lead to
        raise ValueError(f"the weight file {file!r} is damaged or cannot be read: {first_line(error)}") from error
    while isinstance(data, dict):
        found = (data.get(key) for key in ("state_dict", "model_state_dict", "model", "net"))
        inner = next((value for value in found if isinstance(value, (dict, nn.Module))), None)
        if inner is None:
            break
        data = inner
    if isinstance(data, nn.Module):
        data = data.state_dict()
    if not isinstance(data, dict) or not data or not all(isinstance(key, str) for key in data):
        raise ValueError(f"the weight file {file!r} holds no state dict")
    bare = {key.removeprefix("module."): value for key, value in data.items()}  # as of a network inside DataParallel
    own = model.state_dict().keys()
    state = max(data, bare, key=lambda state: len(own & state.keys()))
    odd = [key for key, value in model.state_dict().items() if _is_complex(state.get(key)) and not _is_complex(value)]
    if odd:
        raise ValueError(f"the weights in {file!r} do not fit the model: {odd[0]} is complex, the model's is not")
    try:
        model.load_state_dict(state)
    except (RuntimeError, AttributeError) as error:
        raise ValueError(f"the weights in {file!r} do not fit the model: {_misfit(model, state, error)}") from error


def is_file(name: str) -> bool:
    """Return whether there is a file of this name; one that no file can have is none."""
    try:
        return Path(name).is_file()
    except (OSError, ValueError):
        return False


def _misfit(model: nn.Module, state: dict[str, Any], error: BaseException) -> str:
    """Return in what a state dict does not fit a network, at most three keys of each kind."""
    own = model.state_dict()
    shapes = {
        key: f"{key} is {tuple(state[key].shape)}, the model has {tuple(value.shape)}"
        for key, value in own.items()
        if isinstance(value, Tensor) and isinstance(state.get(key), Tensor) and state[key].shape != value.shape
    }
    kinds = {
        "it lacks": [key for key in own if key not in state],
        "it has beyond the model's": [key for key in state if key not in own],
        "shapes differ:": list(shapes.values()),
    }
    parts = [
        f"{what} {', '.join(keys[:3])}{f' and {len(keys) - 3} more' if len(keys) > 3 else ''}"
        for what, keys in kinds.items()
        if keys
    ]
    return "; ".join(parts) or " ".join(str(error).split())[:200]


def _is_complex(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_complex()


def _torch_file(path: Path, trust_pickle: bool) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=not trust_pickle)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"the weight file {str(path)!r} is no plain tensor file: it is damaged, or a pickle that needs code; save its "
            "state_dict as safetensors, or add --trust-pickle if you trust who made it"
        ) from error
