"""Other tools, each imported only when asked for: `spectrim.integrations.lightning`, `.transformers`, and `.tracking`."""

from __future__ import annotations

import importlib
from types import ModuleType

FRAMEWORKS = ("lightning", "tracking", "transformers")


def __getattr__(name: str) -> ModuleType:
    """Import what a tool needs."""
    if name not in FRAMEWORKS:
        raise AttributeError(f"spectrim.integrations has no {name!r}; there are {', '.join(FRAMEWORKS)}")
    return importlib.import_module(f"spectrim.integrations.{name}")
