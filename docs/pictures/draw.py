"""The pictures of README and docs/concepts.md: `python docs/pictures/draw.py` writes them anew, as SVG.

Plain shapes, so that the files are the same everywhere; a test compares them. Numbers come from benchmarks/results.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path

HERE = Path(__file__).parent
RESULTS = HERE.parents[1] / "benchmarks" / "results"
INK, PALE, BLUE, RED, GREY = "#22303c", "#e8edf3", "#2f6fb3", "#c2492f", "#8695a4"
Point = tuple[float, float]


def text(
    at: Point, words: str, *, size: int = 15, anchor: str = "start", color: str = INK
) -> str:
    """Return words at a point; `anchor` is start, middle or end."""
    place = f'x="{at[0]:g}" y="{at[1]:g}" text-anchor="{anchor}"'
    return f'<text {place} font-size="{size}" fill="{color}">{escape(words)}</text>'


def box(
    at: Point, size: Point, lines: Sequence[str], *, fill: str = PALE, color: str = INK
) -> str:
    """Return a rectangle with lines of words in its middle."""
    (x, y), (width, height) = at, size
    shape = f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="5" fill="{fill}" stroke="{INK}"/>'
    first = y + height / 2 + 5 - 8.5 * (len(lines) - 1)
    return shape + "".join(
        text((x + width / 2, first + 17 * i), line, anchor="middle", color=color)
        for i, line in enumerate(lines)
    )


def path(
    points: Sequence[Point],
    *,
    color: str = INK,
    width: float = 1.5,
    dashed: bool = False,
    arrow: bool = False,
) -> str:
    """Return a line through points."""
    places = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    more = ' stroke-dasharray="5 4"' if dashed else ""
    more += f' marker-end="url(#{color[1:]})"' if arrow else ""
    return f'<polyline points="{places}" fill="none" stroke="{color}" stroke-width="{width:g}"{more}/>'


def dot(at: Point, *, color: str, filled: bool = True, radius: float = 5) -> str:
    """Return a dot."""
    inside = color if filled else "#ffffff"
    return f'<circle cx="{at[0]:.1f}" cy="{at[1]:.1f}" r="{radius:g}" fill="{inside}" stroke="{color}" stroke-width="1.5"/>'


def decompositions() -> list[str]:
    """Draw a 3 x 3 convolution from S to T channels, and what each decomposition puts in its place."""
    rows = [
        ("the layer", ["3 x 3|S to T"], "9 S T"),
        ("ChannelSVD", ["3 x 3|S to r", "1 x 1|r to T"], "9 S r + r T"),
        (
            "PivotSVD",
            ["3 x 3|S to r", "1 x 1, r to T - r|r pass as they are"],
            "9 S r + r (T - r)",
        ),
        ("InputSVD", ["1 x 1|S to r", "3 x 3|r to T"], "S r + 9 r T"),
        ("SpatialSVD", ["3 x 1|S to r", "1 x 3|r to T"], "3 S r + 3 r T"),
        (
            "Tucker2",
            ["1 x 1|S to q", "3 x 3|q to r", "1 x 1|r to T"],
            "S q + 9 q r + r T",
        ),
        (
            "CP",
            ["1 x 1|S to r", "3 x 3 depthwise|r", "1 x 1|r to T"],
            "S r + 9 r + r T",
        ),
        (
            "TensorTrain",
            ["1 x 1|S to p", "3 x 1|p to q", "1 x 3|q to r", "1 x 1|r to T"],
            "S p + 3 p q + 3 q r + r T",
        ),
        (
            "TiledSVD",
            ["3 x 3 in a groups|S to a b r", "shuffle", "1 x 1 in b groups|a b r to T"],
            "9 b r S + a r T",
        ),
    ]
    shapes = [
        text((20, 30), "instead of one layer", color=GREY),
        text((600, 30), "MACs at one position", color=GREY),
    ]
    for number, (name, parts, macs) in enumerate(rows):
        y, x = 45 + 58 * number, 118.0
        shapes += [text((20, y + 27), name), text((600, y + 27), macs)]
        for part in parts:
            width = 30 + 6.6 * max(len(line) for line in part.split("|"))
            fill = BLUE if not number else PALE
            shapes.append(
                box(
                    (x, y),
                    (width, 44),
                    part.split("|"),
                    fill=fill,
                    color="#ffffff" if not number else INK,
                )
            )
            x += width
            if part is not parts[-1]:
                shapes.append(path([(x, y + 22), (x + 20, y + 22)], arrow=True))
                x += 24
    return shapes


def ranks() -> list[str]:
    """Draw three layers' options, cost against harm, and one of each within the budget (a sketch)."""
    shapes = [
        text(
            (20, 28),
            "every dot is an option: a decomposition and a rank of this layer (a sketch)",
            color=GREY,
        )
    ]
    layers = [
        ("a layer that matters much", 0.9, 2),
        ("one that matters less", 0.45, 3),
        ("one that hardly matters", 0.14, 5),
    ]
    for number, (name, height, chosen) in enumerate(layers):
        left, bottom, side = 30 + 258 * number, 260, 190
        shapes += [
            path([(left, 60), (left, bottom), (left + side + 20, bottom)]),
            text((left, 48), name),
        ]
        shapes += [
            text((left + side, bottom + 20), "MACs", anchor="end", color=GREY),
            text((left + 8, 72), "harm", color=GREY),
        ]
        curve = [
            (left + side * (1 - i / 6.5), bottom - 180 * height * (i / 6) ** 2.2)
            for i in range(7)
        ]
        shapes.append(path(curve, color=GREY, dashed=True))
        shapes += [
            dot(point, color=RED if i == chosen else BLUE, filled=i == chosen)
            for i, point in enumerate(curve)
        ]
        shapes.append(
            text(
                (curve[0][0] + 2, curve[0][1] - 12),
                "as it is",
                size=12,
                anchor="middle",
                color=GREY,
            )
        )
    told = "red: what is chosen. Its MACs add up to the budget at most, and its harms to as little as possible."
    return [*shapes, text((20, 312), told)]


def unseen() -> list[str]:
    """Draw predicted and measured KL of MobileNetV2 at 90 % of the MACs, by closed forms and by unseen images."""
    cells = json.loads((RESULTS / "imagenet.json").read_text())["cells"]
    told = "MobileNetV2 by ChannelSVD at 90 % of the MACs, without refit: KL in nats, measured on test images"
    shapes = [text((20, 28), told, color=GREY)]
    pairs = [
        ("by the images that were fitted", "closed forms"),
        ("by images that no fit has seen", "harms on unseen images"),
    ]
    y = 50.0
    for name, key in pairs:
        cell = cells[f"90 % of the macs, {key}"]
        shapes.append(text((20, y + 34), name))
        for word, value, color in (
            ("predicted", cell["predicted"], BLUE),
            ("measured", cell["KL"], RED),
        ):
            shapes.append(
                f'<rect x="250" y="{y:g}" width="{140 * value:.1f}" height="22" fill="{color}"/>'
            )
            shapes.append(text((258 + 140 * value, y + 16), f"{word} {value:.2f}"))
            y += 27
        y += 22
    return shapes


def refit() -> list[str]:
    """Draw the original and the compressed network side by side; where the third layer gets its inputs and its targets."""
    shapes = [text((20, 62), "original"), text((20, 202), "compressed")]
    for row, (y, mark) in enumerate(((35, ""), (175, "'"))):
        shapes.append(text((112, y + 27), "x"))
        for i in range(4):
            x = 160 + 152 * i
            shapes.append(
                path([(x - 36 if i else 126, y + 22), (x - 6, y + 22)], arrow=True)
            )
            fitting = row and i == 2
            label = [f"layer {i + 1}{mark}"]
            shapes.append(
                box(
                    (x, y),
                    (114, 44),
                    label,
                    fill=BLUE if fitting else PALE,
                    color="#ffffff" if fitting else INK,
                )
            )
    shapes += [
        path(
            [(596, 57), (596, 130), (521, 130), (521, 168)],
            color=RED,
            width=2.5,
            arrow=True,
        ),
        text((604, 112), "target: what layer 3 gives", color=RED),
        path([(446, 250), (446, 203)], color=RED, width=2.5, arrow=True),
        text(
            (446, 272),
            "input: what layers 1' and 2' give, errors and all",
            anchor="middle",
            color=RED,
        ),
        text(
            (20, 310),
            "So layer 3' learns to undo what went wrong before it. Then layer 4' is fitted, behind layer 3'.",
        ),
    ]
    return shapes


def interactions() -> list[str]:
    """Draw two layers' displacements of one output: at right angles, in one direction, against each other (a sketch)."""
    shapes = [
        text(
            (20, 28),
            "what cutting layer A and layer B does to one image's outputs (a sketch)",
            color=GREY,
        )
    ]
    cases = [
        ("no interaction", (0, -90), "harm of both = harm A + harm B"),
        ("they add up", (75, -50), "harm of both > harm A + harm B"),
        ("one pays back", (-80, -35), "harm of both < harm A + harm B"),
    ]
    for number, (name, second, told) in enumerate(cases):
        start = (20.0 + 265 * number, 190.0)
        middle = (start[0] + 120, start[1])
        end = (middle[0] + second[0], middle[1] + second[1])
        shapes += [
            path([start, middle], color=BLUE, width=2.5, arrow=True),
            text((start[0] + 50, 210), "A", color=BLUE),
        ]
        shapes.append(path([middle, end], color=BLUE, width=2.5, arrow=True))
        beside = -8 if number == 2 else 12
        shapes.append(
            text(
                (middle[0] + second[0] / 2 + 8, middle[1] + second[1] / 2 + beside),
                "B",
                color=BLUE,
            )
        )
        shapes += [
            path([start, end], color=RED, width=2.5, dashed=True, arrow=True),
            text((start[0], 62), name),
        ]
        shapes.append(text((start[0], 245), told, size=14))
    return [
        *shapes,
        text(
            (20, 285),
            "red: both together. Harm grows with the square of an arrow's length.",
        ),
    ]


def distortion() -> list[str]:
    """Draw how far the kernels are from low rank while they are trained with distortion, and without (a sketch)."""
    shapes = [
        text(
            (20, 28),
            "distance of the kernels to their low-rank reconstruction, while training (a sketch)",
            color=GREY,
        )
    ]
    shapes += [
        path([(30, 50), (30, 250), (770, 250)]),
        text((770, 284), "steps", anchor="end", color=GREY),
    ]
    shapes.append(
        path(
            [(30, 90), (300, 84), (600, 80), (760, 78)],
            color=GREY,
            dashed=True,
            width=2,
        )
    )
    shapes.append(
        text(
            (760, 68),
            "ordinary training, then a cut at the end: a long way",
            anchor="end",
            color=GREY,
        )
    )
    saw: list[Point] = [(30, 90), (120, 87)]
    for number in range(1, 8):
        x, height = 120 + 86 * (number - 1), 150 * 0.62**number
        saw += [(x, 250), (x + 86, 250 - height)]
        shapes.append(text((x, 268), f"{number}.", size=12, anchor="middle", color=RED))
    shapes += [path([*saw, (722, 250)], color=RED, width=2)]
    for y, told in (
        (
            120,
            "red: every S_D steps the kernels are overwritten by their low-rank reconstruction,",
        ),
        (140, "and the loss finds places from which that is a short way"),
    ):
        shapes.append(text((135, y), told, color=RED))
    return shapes


WAYS = {
    "by latency": (BLUE, "asked for time"),
    "by MACs, aligned": (
        GREY,
        "asked for MACs, ranks that runtimes like (the default)",
    ),
    "by MACs, any ranks": (RED, "asked for MACs, ranks of any number"),
}


def front() -> list[str]:
    """Draw accuracy against measured time of CIFAR ResNets in ONNX Runtime, before and after."""
    cells = json.loads((RESULTS / "latency.json").read_text())["cells"]
    points = [
        (*key.split(" | ")[1:3], cell)
        for key, cell in cells.items()
        if key.startswith("front | ")
    ]
    networks = sorted({network for network, _, _ in points})
    scores = [100 * cell[when] for _, _, cell in points for when in ("before", "after")]
    top, bottom = max(scores) + 0.5, min(scores) - 0.6
    right = max(1.2, *(cell["time"][0] for *_, cell in points)) + 0.1

    def place(time: float, score: float) -> Point:
        return 70 + 700 * time / right, 60 + 260 * (top - score) / (top - bottom)

    shapes = [text((20, 30), "top-1 on 10,000 test images, per cent", color=GREY)]
    for tick in range(int(bottom) + 1, int(top) + 1):
        y = place(0, tick)[1]
        shapes += [
            path([(70, y), (770, y)], color=PALE, width=1),
            text((60, y + 5), f"{tick}", anchor="end", size=13),
        ]
    for tick in range(0, int(right * 4) + 1):
        x = place(tick / 4, bottom)[0]
        shapes += [
            path([(x, 320), (x, 326)]),
            text((x, 344), f"{tick / 4:g}", anchor="middle", size=13),
        ]
    shapes += [path([(70, 60), (70, 320), (770, 320)])]
    shapes.append(
        text(
            (770, 368),
            "time, of the original's (ONNX Runtime, one thread)",
            anchor="end",
            color=GREY,
        )
    )
    for network in networks:
        own = [(way, cell) for name, way, cell in points if name == network]
        start = place(1, 100 * own[0][1]["before"])
        shapes += [
            dot(start, color=INK, filled=False),
            text((start[0] + 10, start[1] + 5), f"{network}, as it was", size=13),
        ]
        kept = sorted(
            (cell["time"][0], 100 * cell["after"])
            for way, cell in own
            if way != "by MACs, any ranks"
        )
        shapes.append(
            path([*(place(*each) for each in kept), start], color=PALE, width=3)
        )
        for way, cell in own:
            x, y = place(cell["time"][0], 100 * cell["after"])
            error = 260 * cell["standard error"] / (top - bottom)
            color = WAYS[way][0]
            shapes += [
                path([(x, y - error), (x, y + error)], color=color),
                dot((x, y), color=color),
            ]
    for number, (color, told) in enumerate(WAYS.values()):
        y = 240 + 22 * number
        shapes += [dot((390, y - 5), color=color), text((404, y), told, size=13)]
    return [
        *shapes,
        text(
            (70, 368),
            "bars: standard error of the drop",
            size=13,
            color=GREY,
        ),
    ]


PICTURES: dict[str, tuple[Callable[[], list[str]], Point]] = {
    "front": (front, (800, 390)),
    "decompositions": (decompositions, (800, 575)),
    "ranks": (ranks, (800, 335)),
    "unseen": (unseen, (800, 190)),
    "refit": (refit, (800, 330)),
    "interactions": (interactions, (800, 305)),
    "distortion": (distortion, (800, 300)),
}


def picture(name: str) -> str:
    """Return a picture as SVG."""
    draw, (width, height) = PICTURES[name]
    head = "".join(
        f'<marker id="{color[1:]}" viewBox="0 0 8 8" refX="6" refY="4" markerWidth="9" markerHeight="9" markerUnits='
        f'"userSpaceOnUse" orient="auto"><path d="M0,0 L8,4 L0,8 z" fill="{color}"/></marker>'
        for color in (INK, BLUE, RED)
    )
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" font-family="sans-serif">',
        f"<title>{escape((draw.__doc__ or '').removeprefix('Draw '))}</title>",
        f"<defs>{head}</defs>",
        f'<rect width="{width:g}" height="{height:g}" rx="8" fill="#ffffff"/>',
        *draw(),
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    for name in PICTURES:
        (HERE / f"{name}.svg").write_text(picture(name))
