"""Where a number comes from: commit, machine, versions and command; and the most memory that a process took."""

from __future__ import annotations

import contextlib
import functools
import platform
import resource
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

import spectrim

HERE = Path(__file__).parents[1]
FIELDS = ("commit", "machine", "versions", "command", "code")  # of a cell; old ones have `code` for the commit


def provenance() -> dict[str, Any]:
    """Return what is added to every cell."""
    return {
        "commit": commit(),
        "machine": machine(),
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "spectrim": spectrim.__version__},
        "command": command(),
    }


@functools.cache
def commit() -> str:
    """Return the commit of the code that runs, with a plus if it was changed since; `unknown` outside a clone."""
    found = []
    for words in (("rev-parse", "HEAD"), ("status", "--porcelain", "-uno", "--", "../src", ".", ":!results")):
        try:
            found.append(subprocess.run(["git", *words], cwd=HERE, capture_output=True, text=True, check=True).stdout.strip())
        except (OSError, subprocess.CalledProcessError):
            return "unknown"
    return found[0] + ("+" if found[1] else "")


def machine() -> str:
    """Return what the numbers were measured on."""
    cpu = f"{torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads"
    return f"{platform.machine()}, {torch.cuda.get_device_name() if torch.cuda.is_available() else cpu}"


def command() -> str:
    """Return the command line as it was run, as seen from the root of the repository."""
    script = Path(sys.argv[0])
    name = f"benchmarks/{script.name}" if script.suffix == ".py" else sys.argv[0]
    return shlex.join(["python", name, *sys.argv[1:]])


def reset_peak() -> None:
    """Forget the largest resident size so far, where the system can."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak() -> int:
    """Return the largest resident size in MiB, since `reset_peak` where the system can forget."""
    try:
        return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) // 1024
    except (OSError, IndexError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
