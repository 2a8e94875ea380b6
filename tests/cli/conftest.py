"""What the command line's tests leave out, since it takes most of their time and others look at it."""

import pytest

from spectrim.factorize import cp
from spectrim.report import html


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    """No plots in the page, and few sweeps of CP's fits; `tests/report` and `tests/factorize` have both."""
    monkeypatch.setattr(html, "_plots", lambda report: [])
    monkeypatch.setattr(cp, "SWEEPS", 3)
    monkeypatch.setattr(cp, "SWEEPS_NEAR", 2)
