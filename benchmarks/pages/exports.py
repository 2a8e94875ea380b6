"""What the results on files for devices are told in: tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from common.tables import Cell, head, table

WORDS = ("onnx", "openvino", "executorch", "pt2")
COLUMNS = "difference | top-1 the same | bytes | time (95 %)"


def markdown(results: Mapping[str, Any]) -> str:
    """Return all results as tables."""
    cells: Mapping[str, Cell] = results["cells"]
    runtimes = {f"{cell['runtime']['target']} {cell['runtime']['version']}" for cell in cells.values()}
    lines = head("Files for devices", results)
    lines += [
        "Difference: the largest between the file's outputs and those of the same compressed network in PyTorch, relative to "
        "its largest output, on inputs that neither fits nor ranges saw; top-1 the same: on how many of them, of trained "
        "networks. Bytes: of the original's float ONNX file. Time: of the original's float file in the same runtime, one "
        f"thread, batch 1, process CPU time, in turn, while other processes ran. {', '.join(sorted(runtimes))}.",
        "",
    ]
    return "\n".join([*lines, *_networks(cells), *_files(cells, "float"), *_files(cells, "int8"), *_refused(cells)])


def summary(cells: Mapping[str, Cell]) -> list[str]:
    """Return the short table of the docs: a network in a row, its formats one behind the other, dashes for what is missing."""
    rows = []
    for network in dict.fromkeys(name.partition(" | ")[0] for name in cells):
        found = {word: cells.get(f"{network} | {word}", {}) for word in WORDS}
        exact = [cell.get("float", {}) for cell in found.values()]
        small = [found[word].get("int8", {}) for word in WORDS if word != "pt2"]
        same = [f"{100 * file['agreement']:.1f} %" if "agreement" in file else _short(file) for file in small]
        base = found["onnx"].get("original", {}).get("bytes")
        share = [f"{file['bytes'] / base:.2f}" if base and "bytes" in file else "-" for file in small]
        times = [[f"{file['ratio']:.2f}" if "ratio" in file else "-" for file in files] for files in (exact, small)]
        most = max((file["difference"] for file in exact if "difference" in file), default=None)
        told = (" / ".join(texts) for texts in (times[0], same, share, times[1]))
        rows.append([network, "-" if most is None else f"{most:.0e}", *told])
    return table("network | float: difference | time | int8: top-1 the same, or difference | bytes | time", rows)[:-1]


def _networks(cells: Mapping[str, Cell]) -> list[str]:
    rows = []
    for name, word in (name.split(" | ") for name in cells):
        cell = cells[f"{name} | {word}"]
        if word == "onnx":
            shape, weights = " x ".join(map(str, cell["input"])), "trained" if cell["trained"] else "random"
            shares = [f"{100 * cell[key]:.1f} %" for key in ("macs kept", "params kept")]
            rows.append([name, shape, weights, cell["inputs"], *shares, f"{cell['original']['bytes']:,}"])
    return table("network | input | weights | compared on | MACs kept | parameters kept | float ONNX, bytes", rows, "Networks")


def _files(cells: Mapping[str, Cell], word: str) -> list[str]:
    found = {name: cell[word] for name, cell in cells.items() if "refused" not in cell[word]}
    rows = [[name.replace(" | ", ", "), *_row(cells, name, file)] for name, file in found.items()]
    return table(f"network, format | {COLUMNS}", rows, word)


def _refused(cells: Mapping[str, Cell]) -> list[str]:
    told: dict[str, list[str]] = {}
    for name, cell in cells.items():
        for word in ("original", "float", "int8"):
            if "refused" in cell[word]:
                told.setdefault(cell[word]["refused"], []).append(f"{name.replace(' | ', ', ')}, {word}")
    return [f"Not written: {sentence} ({'; '.join(names)}).\n" for sentence, names in told.items()]


def _row(cells: Mapping[str, Cell], name: str, file: Cell) -> list[str]:
    """Return the texts of `COLUMNS` of a file that was written."""
    base = cells.get(f"{name.partition(' | ')[0]} | onnx", {}).get("original", {}).get("bytes")
    agreement = f"{100 * file['agreement']:.1f} %" if "agreement" in file else ""
    return [_difference(file), agreement, f"{file['bytes'] / base:.2f}" if base else "-", _time(file)]


def _difference(file: Cell) -> str:
    return f"{file['difference']:.1e}" if "difference" in file else "-"


def _short(file: Cell) -> str:
    return f"{file['difference']:.2g}" if "difference" in file else "-"


def _time(file: Cell) -> str:
    return f"{file['ratio']:.2f} ({file['low']:.2f} to {file['high']:.2f})" if "ratio" in file else "-"
