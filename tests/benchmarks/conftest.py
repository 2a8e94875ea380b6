"""The scripts of benchmarks/, imported as their own folder sees them."""

import importlib
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def root():
    return Path(__file__).parents[2]


@pytest.fixture
def protocol(root, monkeypatch):
    monkeypatch.syspath_prepend(str(root / "benchmarks"))
    return importlib.import_module
