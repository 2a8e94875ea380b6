"""How much harm each option does."""

from spectrim.score.menu import build_menu
from spectrim.score.measured import measured_harm

__all__ = ["build_menu", "measured_harm"]
