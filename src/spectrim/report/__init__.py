"""What was done, as text and as a page: these read records and compute nothing new."""

from spectrim.core.records import MOVED
from spectrim.report.html import compare, page
from spectrim.report.plot import plot
from spectrim.report.text import as_text, lines, table

__all__ = ["as_text", "compare", "lines", "page", "plot", "table"]

MOVED.update(lines=lines, table=table, page=page)
