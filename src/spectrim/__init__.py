"""spectrim makes trained convolutional networks smaller and faster by low-rank factorization."""

from spectrim import integrations as integrations
from spectrim.accuracy import Accuracy
from spectrim.compress import compress
from spectrim.config import Config
from spectrim.cost import BudgetError, Cost, Keep, MaxDrop
from spectrim.factorize import (
    CP,
    ChannelSVD,
    Factorization,
    InputSVD,
    SpatialSVD,
    TensorTrain,
    TiledSVD,
    Tucker2,
)
from spectrim.inspection import inspect
from spectrim.layer import Layer
from spectrim.plan import Option, Plan
from spectrim.report import Report
from spectrim.result import Result, load
from spectrim.search import ALDS, VBMF, Energy, Greedy, Interaction, Knapsack, Search, Similarity, Uniform
from spectrim.surgery import apply, cost, plan_from
from spectrim.survey import find_layers
from spectrim.train import Distortion, Recipe, Schedule, fit, loss_along

__version__ = "0.1.0"

__all__ = [
    "ALDS",
    "CP",
    "VBMF",
    "Accuracy",
    "BudgetError",
    "ChannelSVD",
    "Config",
    "Cost",
    "Distortion",
    "Energy",
    "Factorization",
    "Greedy",
    "InputSVD",
    "Interaction",
    "Keep",
    "Knapsack",
    "Layer",
    "MaxDrop",
    "Option",
    "Plan",
    "Recipe",
    "Report",
    "Result",
    "Schedule",
    "Search",
    "Similarity",
    "SpatialSVD",
    "TensorTrain",
    "TiledSVD",
    "Tucker2",
    "Uniform",
    "apply",
    "compress",
    "cost",
    "find_layers",
    "fit",
    "inspect",
    "load",
    "loss_along",
    "plan_from",
]
