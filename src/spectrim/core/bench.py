"""Measured times as records: of one network, of one against another, and the table of `bench`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

from spectrim.core.markup import html_table
from spectrim.core.reading import parsed, read

SCHEMA = 1  # of bench.json
LEAST = 0.03  # one network against itself differs by up to 2 %, by where its weights lie in memory (see `interleaved`)


@dataclass(frozen=True)
class Latency:
    """Milliseconds of one forward of the example's batch: median and quartiles over the runs.

    `clock` is what they are of: `process`, CPU time of this process, or `wall` where several threads or a GPU work.
    """

    median_ms: float
    low_ms: float
    high_ms: float
    runs: int
    threads: int
    clock: str = "wall"


@dataclass(frozen=True)
class Verdict:
    """A network's time against that of the original, by runs that took turns.

    Attributes:
        ratio: Median over the pairs of runs of (time of the network) / (time of the original).
        low, high: 95 % interval of that median, exact (of the sign test).
        pairs: How many pairs.
    """

    ratio: float
    low: float
    high: float
    pairs: int

    @property
    def word(self) -> str:
        """`faster` or `slower` where the interval leaves 1 out and 3 % or more is between; else `no difference found`.

        Example:
            >>> Verdict(0.7, 0.69, 0.72, 200).word, Verdict(1.004, 1.002, 1.006, 200).word
            ('faster', 'no difference found')
        """
        if self.high < 1 and self.ratio <= 1 - LEAST:
            return "faster"
        return "slower" if self.low > 1 and self.ratio >= 1 + LEAST else "no difference found"


@dataclass(frozen=True)
class BenchRow:
    """One network on one target at one batch size.

    Attributes:
        model: Its name.
        target: `Target.describe`: runtime, version, device, threads, precision.
        batch: Examples in one forward.
        clock: Which of the two times counts.
        process, wall: CPU time of the process, and time of the wall.
        file_bytes: Of the exported file; of parameters and buffers in PyTorch.
        memory_bytes: Peak that loading and one forward add to the process; None where it is not known.
        verdict: Against the first network on this target at this batch size; None for that one.
    """

    model: str
    target: Mapping[str, str]
    batch: int
    clock: str
    process: Latency
    wall: Latency
    file_bytes: int
    memory_bytes: int | None = None
    verdict: Verdict | None = None

    @property
    def setting(self) -> str:
        """What the networks that were timed in turn have in common."""
        threads = int(self.target["threads"])
        words = (f"{self.target['target']} {self.target['version']}", self.target["precision"])
        return ", ".join((*words, f"{threads} thread{'s' * (threads > 1)}", f"batch {self.batch}"))

    def cells(self) -> tuple[str, ...]:
        """Return the row as text: see `COLUMNS`."""
        counts = self.process if self.clock == "process" else self.wall
        memory = "" if self.memory_bytes is None else _short(self.memory_bytes / 1e6)
        ratio, word = (
            ("", "") if self.verdict is None else (f"{self.verdict.ratio:.2f}", self.verdict.word.removesuffix(" found"))
        )
        quartiles = f"{_short(counts.low_ms)}-{_short(counts.high_ms)}"
        times = (_short(self.process.median_ms), _short(self.wall.median_ms), quartiles)
        return (self.model, *times, _short(self.file_bytes / 1e6), memory, ratio, word)


COLUMNS = ("network", "CPU ms", "wall ms", "quartiles", "file MB", "RAM MB", "time", "")


@dataclass(frozen=True)
class Bench:
    """Times of networks on targets, from `bench`.

    Attributes:
        rows: One per network, target and batch size; networks that were timed in turn follow each other, the first first.
        versions: Of this package, torch and Python.
    """

    rows: tuple[BenchRow, ...]
    versions: Mapping[str, str] = field(default_factory=dict)

    @property
    def verdicts(self) -> dict[tuple[str, str], Verdict]:
        """Setting and network to the verdict against the first network there."""
        return {(row.setting, row.model): row.verdict for row in self.rows if row.verdict is not None}

    def to_json(self) -> str:
        """Return everything as indented JSON."""
        rows = [asdict(row) for row in self.rows]
        for row, data in zip(self.rows, rows, strict=True):
            if row.verdict is not None:
                data["verdict"]["word"] = row.verdict.word
        return json.dumps({"schema": SCHEMA, "rows": rows, "versions": dict(self.versions)}, indent=1) + "\n"

    @staticmethod
    def from_json(text: str) -> Bench:
        """Read `to_json`'s text.

        Raises:
            ValueError: If it is none, or one of a newer version.
        """
        data = parsed(text, "bench")
        if not isinstance(data, dict) or "rows" not in data or not isinstance(data.get("schema"), int):
            raise ValueError("the text is no bench: it has no 'rows' or no 'schema'")
        if data["schema"] > SCHEMA:
            raise ValueError(
                f"the bench has schema {data['schema']}, and this version reads {SCHEMA}; install a newer spectrim"
            )
        found: Bench = read(Bench, data, "")
        return found

    def __str__(self) -> str:
        """Return a table of at most 80 columns: a block a setting, times of one forward."""
        shown = [(f"{name[:11]}…" if len(name) > 12 else name, *rest) for name, *rest in (row.cells() for row in self.rows)]
        widths = [max(map(len, column)) for column in zip(COLUMNS, *shown, strict=True)]
        lines = [device[:80] for device in dict.fromkeys(self._devices())]
        lines.append("ms of one forward: medians; time: median of the ratios to the network above")
        for number, (row, cells) in enumerate(zip(self.rows, shown, strict=True)):
            if not number or row.setting != self.rows[number - 1].setting:
                lines += ["", row.setting, _line(COLUMNS, widths)]
            lines.append(_line(cells, widths))
        return "\n".join(lines)

    def _devices(self) -> list[str]:
        return [row.target["device"] for row in self.rows]

    def _repr_html_(self) -> str:
        """Return a plain table for notebooks."""
        rows = ((row.setting, *row.cells()) for row in self.rows)
        return html_table(", ".join(dict.fromkeys(self._devices())), ("setting", *COLUMNS), rows)


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    """Return cells below each other: words to the left, numbers to the right."""
    inner = (cell.rjust(width) for cell, width in zip(cells[1:-1], widths[1:-1], strict=True))
    return "  ".join((cells[0].ljust(widths[0]), *inner, cells[-1])).rstrip()


def _short(number: float) -> str:
    """Return a number with four digits, or all before the point."""
    return f"{number:.{sum(number < limit for limit in (10, 100, 1000))}f}"
