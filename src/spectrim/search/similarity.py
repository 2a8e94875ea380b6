"""Feature-map similarity: every layer's output stays equally similar to the original's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from spectrim.core.cost import Keep
from spectrim.core.menu import Menu
from spectrim.core.search import Probe, Search
from spectrim.search.level import equal_level


@dataclass(frozen=True)
class Similarity(Search):
    """One bound on the cosine dissimilarity between a layer's feature maps before and after, the lowest that meets the budget.

    Reference:
        Kokhazadeh, Keramidas, Kelefouras: Efficient CNN compression via multi-method low rank factorization and feature map
        similarity (arXiv 2510.00062). Its fine-tuning is not part of the selection.
    """

    title: ClassVar[str] = "Similarity"
    reference: ClassVar[str] = "Kokhazadeh et al. 2025 (arXiv 2510.00062)"
    score = "similarity"

    def select(self, menu: Menu, budget: Keep, probe: Probe | None = None) -> list[int]:
        """Return the choice of the lowest bound that meets the budget."""
        return equal_level(menu, budget, self.score)
