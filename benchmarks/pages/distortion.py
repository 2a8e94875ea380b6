"""What the results on training for low rank are told in: tables, and a drawing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from common.plots import draw
from common.tables import head, measured, plus_minus, table

RATIOS = (6.7, 2.8, 1.6, 4.3, 2.1)  # the paper's, parameters before over after
PUBLISHED = {1.6: (92.92, 92.20), 2.1: (92.62, 92.09), 2.8: (92.43, 91.75), 4.3: (91.49, 90.96), 6.7: (90.43, 89.77)}
TILES = {64: (1, 8), 32: (2, 16), 16: (4, 32), 8: (8, 64)}  # width in the paper: rows and columns of tiles for 64 x 576
HEADLINE = 2.8
LONGER = 3  # times the steps, in the cells that show what longer training does
TECHNIQUES = (
    "lowered SVD (ChannelSVD)",
    "spatial SVD",
    "tiled SVD, 2 x 2",
    "tiled SVD, 4 x 4",
    "Tucker",
    "CP, depthwise kernel",
)
RIVALS = {  # cells that train the decomposed network of a technique at the same ranks
    "lowered SVD (ChannelSVD)": f"lowered SVD {HEADLINE}x | decomposed",
    "Tucker": f"Tucker {HEADLINE}x | decomposed | seed 0",
    "CP, depthwise kernel": f"CP {HEADLINE}x | decomposed",
}
TILED = {str(width): str(width) for width in TILES} | {
    "16 | response norm": "16, distorted in the response norm",
    "16 | longer": f"16, {LONGER} times the steps, control too",
}
WAYS = ("distortion", "decomposed", "control, then cut")


def top(cell: dict[str, Any] | None) -> str:
    """Return top-1 with its error."""
    return plus_minus(cell, "top-1", "error")


def gap(cell: dict[str, Any] | None) -> str:
    """Return the difference from the control with its error."""
    return plus_minus(cell, "less control", "gap error", "+")


def kept(cell: dict[str, Any]) -> list[str]:
    """Return what is left of parameters and MACs."""
    return [f"{100 * cell.get(f'{metric} kept', 1):.1f} %" for metric in ("params", "MACs")]


def markdown(results: dict[str, Any]) -> str:
    """Return all results as tables."""
    cells: dict[str, dict[str, Any]] = results["cells"]
    lines = [*head("Training for low rank", results), results["words"], ""]
    lines += [f"Start {top(cells.get('start'))}; control, equally trained, not decomposed: {top(cells.get('control 0'))}.", ""]
    rows = []
    for ratio in sorted(RATIOS):
        row = [cells.get(f"Tucker {ratio}x | {way} | seed 0") for way in WAYS]
        rows.append([f"{ratio}x", *map(top, row), gap(row[0]), f"{PUBLISHED[ratio][0]}, {PUBLISHED[ratio][1]}"])
    columns = "parameters | distortion | decomposed, trained | control, then cut | gap | published"
    lines += [*table(columns, rows, "ResNet-32, Tucker"), *seeds(cells)]
    rows = []
    for tile, told in TILED.items():
        rows.append([told, *(gap(cells.get(f"tiled {ratio}x | {tile}")) for ratio in (2, 4))])
    lines += table("tile | 2x | 4x", rows, "ResNet-32, tiled SVD of the nine largest convolutions, less the control")
    found = {way: cells.get(f"lowered SVD {HEADLINE}x | {way}") for way in ("distortion", "torchao", *WAYS[1:])}
    rows = [[way, top(cell), gap(cell), f"{cell['seconds']:.0f}"] for way, cell in found.items() if cell]
    title = f"ResNet-32, lowered SVD at {HEADLINE}x, equal steps and final ranks"
    lines += table("way | top-1 | less control | seconds", rows, title)
    return "\n".join([*lines, *techniques(results), *others(results)])


def seeds(cells: dict[str, dict[str, Any]]) -> list[str]:
    """Return what several seeds say of the headline."""
    names = [name for name in cells if name.startswith(f"Tucker {HEADLINE}x | distortion | seed")]
    pairs = [(cells[name], cells.get(name.replace("distortion", "decomposed"))) for name in names]
    values = torch.tensor([one["top-1"] - other["top-1"] for one, other in pairs if other])
    if len(values) < 2:
        return []
    told = f"{values.mean():+.2f}, spread {values.std():.2f}"
    return [f"{HEADLINE}x, {len(values)} seeds, distortion less decomposed: {told}.", ""]


def cost_at(every: int, cell: dict[str, Any], measured_at: int) -> float:
    """Return the share of distortion in the training time at another S_D."""
    distorting = cell["distortion share"] * cell["seconds"]
    share = distorting * measured_at / every
    return float(share / (share + cell["seconds"] - distorting))


def techniques(results: dict[str, Any]) -> list[str]:
    """Return the tables of techniques, and of ResNet-20."""
    cells, every = results["cells"], results["setting"][1]
    rows = []
    for name in TECHNIQUES:
        cell = cells.get(f"technique | {name}")
        if cell:
            row = [name, top(cell), top(cells.get(RIVALS.get(name, ""))), f"{cell['weight error']:.3f}", *kept(cell)]
            rows.append([*row, f"{cell['ms']:.2f} ({cell['ms before']:.2f})", f"{100 * cost_at(200, cell, every):.2f} %"])
    columns = "technique | top-1 | decomposed, trained | weight error at first | params kept | MACs kept | ms (before) | cost"
    lines = table(columns, rows, "ResNet-32, 2-D techniques after distortion training")
    lines += ["Cost: share of distortion in the training time at S_D = 200, computed from the seconds measured here.", ""]
    found = {name: cell for name, cell in cells.items() if name.startswith("ResNet-20")}
    rows = [[name[12:], top(cell), gap(cell), *kept(cell), cell["steps"]] for name, cell in found.items()]
    return [*lines, *table("way | top-1 | less control | params kept | MACs kept | steps", rows, "ResNet-20, system A's plan")]


def others(results: dict[str, Any]) -> list[str]:
    """Return the tables of losses, and of the tile study."""
    cells: dict[str, dict[str, Any]] = results["cells"]
    lines = []
    if "flatness" in cells:
        curves = cells["flatness"]["curves"]
        rows = [
            [f"{t:g}", *(f"{curve['loss'][index]:.3f} +- {curve['error'][index]:.3f}" for curve in curves)]
            for index, t in enumerate(curves[0]["t"])
        ]
        title = f"Loss on the way to the reconstruction (Tucker {HEADLINE}x, nats, 2,000 training images)"
        lines += table(f"t | {' | '.join(curve['label'] for curve in curves)}", rows, title)
    if "tile study" in cells:
        names = ("standard deviation", "excess kurtosis", "relative error")
        study = measured(cells["tile study"])
        rows = [[tiles, row["rank"], *(f"{row[name]:.3f}" for name in names)] for tiles, row in study.items()]
        lines += table(f"tiles | rank | {' | '.join(names)}", rows, "A Gaussian 1024 x 1024 matrix at 4x")
    shares = [cell["distortion share"] for cell in cells.values() if cell.get("distortion share")]
    if shares:
        each = f"one in {results['setting'][1]} steps"
        lines += [f"Distortion takes {100 * max(shares):.2f} % of the training time at most, at {each}.", ""]
    return lines


def plot(results: dict[str, Any], target: Path) -> None:
    """Draw accuracy over ratio, the flatness curves and the tile study."""
    cells: dict[str, dict[str, Any]] = results["cells"]
    found = {way: {ratio: cells.get(f"Tucker {ratio}x | {way} | seed 0") for ratio in sorted(RATIOS)} for way in WAYS}
    scores = {way: [(ratio, cell["top-1"]) for ratio, cell in row.items() if cell] for way, row in found.items()}
    if "control 0" in cells:
        scores["control"] = [(ratio, cells["control 0"]["top-1"]) for ratio in sorted(RATIOS)]
    curves = cells.get("flatness", {}).get("curves", ())
    losses = {curve["label"]: list(zip(curve["t"], curve["loss"], strict=True)) for curve in curves}
    study = measured(cells.get("tile study", {}))
    densities = {tiles: list(zip(row["edges"][1:], row["density"], strict=True)) for tiles, row in study.items()}
    diagrams = {
        "ResNet-32, Tucker: top-1 in % over parameters before / after": scores,
        f"Tucker {HEADLINE}x: loss in nats from the weights to their reconstruction": losses,
        "Gaussian matrix, 4x: density of reconstructed weights": densities,
    }
    draw(diagrams, target)
