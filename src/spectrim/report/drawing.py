"""What all figures share: their look in the page's colours, by Bokeh."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

GOOD, BAD, PLAIN = "#1f9d61", "#d64545", "#8a94a3"  # on white and on black
SERIES = ("#3b82c4", "#e08e2b", "#8f6fc7", "#2a9d8f", "#c45a8b", "#7a8b3b", "#5b6fd6", "#b0703c")
LONGEST = 22  # letters of a layer's name beside an axis


def figure(height: int, **settings: Any) -> Any:
    """Return an empty figure as wide as its place; nothing in it takes a finger's drag from the page."""
    from bokeh.plotting import figure as empty

    found = empty(height=height, sizing_mode="stretch_width", tools="", toolbar_location=None, **settings)
    found.background_fill_color = found.border_fill_color = found.outline_line_color = None
    for axis in found.axis:
        axis.axis_label_text_font_style = "normal"
        axis.axis_label_text_font = axis.major_label_text_font = "system-ui, sans-serif"
        axis.axis_label_text_font_size, axis.major_label_text_font_size = "13px", "12px"
        axis.minor_tick_line_color = None
    return found


def hover(figure: Any, renderers: Sequence[Any], lines: Sequence[tuple[str, str]]) -> None:
    """Show what is under the pointer: names, and columns behind an @."""
    from bokeh.models import HoverTool

    figure.add_tools(HoverTool(renderers=list(renderers), tooltips=list(lines), visible=False))


def legend(figure: Any) -> None:
    """Put the legend above the figure."""
    found = figure.legend[0]
    found.background_fill_color = found.border_line_color = None
    found.label_text_font, found.label_text_font_size = "system-ui, sans-serif", "12px"
    found.stylesheets = [".bk-label { color: var(--soft) !important; }"]
    found.orientation, found.margin, found.padding = "horizontal", 0, 0
    figure.add_layout(found, "above")


def zoom(figure: Any) -> None:
    """Add tools that look closer, off until they are chosen."""
    figure.add_tools("box_zoom", "wheel_zoom", "reset")
    figure.toolbar_location, figure.toolbar.logo = "right", None
    figure.toolbar.active_drag = figure.toolbar.active_scroll = None


def short(name: str) -> str:
    """Return the end of a name that is too long to stand beside an axis."""
    return name if len(name) <= LONGEST else f"…{name[1 - LONGEST :]}"
