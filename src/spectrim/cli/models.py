"""Model specs of the command line: `torchvision:NAME`, `timm:NAME`, `module.path:callable`, `file.py:callable`; and weights."""

from __future__ import annotations

import importlib
import importlib.util
import pickle
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

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
    if kind in ("torchvision", "timm"):
        model = _library(kind, name)
    else:
        try:
            model = import_callable(spec, KINDS)()
        except TypeError as error:
            raise ValueError(f"{spec!r} cannot be called without arguments: {error}") from error
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


def import_callable(spec: str, allowed: str = CALLABLES) -> Callable[..., Any]:
    """Return the callable of `module.path:callable` or `file.py:callable`; modules are looked for in the current folder first.

    Args:
        spec: The words.
        allowed: What else they could have been, for the error.

    Raises:
        ValueError: If the module, the file or the name is not there.
    """
    place, _, name = spec.rpartition(":")
    try:
        if place.endswith(".py"):
            path = Path(place).resolve()
            if not path.is_file():
                raise ValueError(f"{spec!r}: there is no file {place!r}")
            description = importlib.util.spec_from_file_location(path.stem, path)
            assert description is not None and description.loader is not None
            module = importlib.util.module_from_spec(description)
            sys.modules.setdefault(path.stem, module)
            look_in(str(path.parent))  # as `python file.py` would have it
            description.loader.exec_module(module)
        else:
            if "" not in sys.path:
                sys.path.insert(0, "")
            module = importlib.import_module(place)
    except ImportError as error:
        raise ValueError(f"{spec!r} cannot be imported: {error}; allowed are {allowed}") from error
    found = getattr(module, name, None)
    if not callable(found):
        raise ValueError(f"{spec!r}: {place} has no callable {name!r}")
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
    if not path.is_file():
        raise ValueError(f"there is no weight file {file!r}")
    try:
        data: Any = load_file(path) if path.suffix == ".safetensors" else _torch_file(path, trust_pickle)
    except (SafetensorError, OSError, EOFError, RuntimeError, zipfile.BadZipFile) as error:
        raise ValueError(f"the weight file {file!r} is damaged: {str(error).splitlines()[0]}") from error
    while isinstance(data, dict) and not any(isinstance(value, Tensor) for value in data.values()):
        inner = next((data[key] for key in ("state_dict", "model_state_dict", "model", "net") if key in data), None)
        if inner is None:
            break
        data = inner
    if isinstance(data, nn.Module):
        data = data.state_dict()
    if not isinstance(data, dict) or not data:
        raise ValueError(f"the weight file {file!r} holds no state dict")
    bare = {key.removeprefix("module."): value for key, value in data.items()}  # as of a network inside DataParallel
    own = model.state_dict().keys()
    try:
        model.load_state_dict(max(data, bare, key=lambda state: len(own & state.keys())))
    except RuntimeError as error:
        raise ValueError(f"the weights in {file!r} do not fit the model: {' '.join(str(error).split())[:400]}") from error


def _torch_file(path: Path, trust_pickle: bool) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=not trust_pickle)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"the weight file {str(path)!r} is no plain tensor file: it is damaged, or a pickle that needs code; save its "
            "state_dict as safetensors, or add --trust-pickle if you trust who made it"
        ) from error
