"""Rank selections, one a file: each picks one option for every layer from a menu, within a budget."""

from spectrim.search.alds import ALDS
from spectrim.search.energy import Energy
from spectrim.search.greedy import Greedy
from spectrim.search.interaction import Interaction
from spectrim.search.knapsack import Knapsack
from spectrim.search.portfolio import Portfolio
from spectrim.search.similarity import Similarity
from spectrim.search.uniform import Uniform
from spectrim.search.vbmf import VBMF

USUAL = Portfolio()  # chooses unless another is named

__all__ = ["ALDS", "VBMF", "Energy", "Greedy", "Interaction", "Knapsack", "Portfolio", "Similarity", "Uniform"]
