"""How much harm each option does."""

from spectrim.score.measured import measured_harm
from spectrim.score.menu import build_options

__all__ = ["build_options", "measured_harm"]
