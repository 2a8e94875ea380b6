"""Measured times as records: of one network, of one against another, and the table of `bench`."""

from __future__ import annotations

from dataclasses import dataclass

LEAST = 0.01  # two copies of one network differ by nearly as much, by where their weights lie in memory


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
        low, high: 95 % interval of that median, exact (of the sign test); it knows of no drift that hits one network only.
        pairs: How many pairs.
    """

    ratio: float
    low: float
    high: float
    pairs: int

    @property
    def word(self) -> str:
        """`faster` or `slower` where the interval leaves 1 out and 1 % or more is between; else `no difference found`.

        Example:
            >>> Verdict(0.7, 0.69, 0.72, 200).word, Verdict(1.004, 1.002, 1.006, 200).word
            ('faster', 'no difference found')
        """
        if self.high < 1 and self.ratio <= 1 - LEAST:
            return "faster"
        return "slower" if self.low > 1 and self.ratio >= 1 + LEAST else "no difference found"
