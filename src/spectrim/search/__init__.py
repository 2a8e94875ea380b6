"""Rank selections, one a file: each picks one option for every layer from a menu, within a budget."""

from spectrim.search._base import Menu, Search
from spectrim.search.alds import ALDS
from spectrim.search.energy import Energy
from spectrim.search.knapsack import Knapsack
from spectrim.search.uniform import Uniform
from spectrim.search.vbmf import VBMF

SEARCHES: dict[str, type[Search]] = {
    "ALDS": ALDS,
    "Energy": Energy,
    "Knapsack": Knapsack,
    "Uniform": Uniform,
    "VBMF": VBMF,
}

__all__ = ["ALDS", "SEARCHES", "VBMF", "Energy", "Knapsack", "Menu", "Search", "Uniform"]
