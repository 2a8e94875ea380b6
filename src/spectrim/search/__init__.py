"""Rank selections, one a file: each picks one option for every layer from a menu, within a budget."""

from spectrim.search._base import Menu, Search
from spectrim.search.knapsack import Knapsack

SEARCHES: dict[str, type[Search]] = {"Knapsack": Knapsack}

__all__ = ["SEARCHES", "Knapsack", "Menu", "Search"]
