"""The site: Sphinx reads the pages where they are, so that their links work on a code host too. `make docs` builds it."""

import re

from sphinx.application import Sphinx

from spectrim import __version__

project = "spectrim"
author = copyright = "spectrim developers"
version = release = __version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "cyclopts.sphinx_ext",
]
root_doc = "docs/index"
include_patterns = [
    "docs/**",
    "benchmarks/results/*.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
]
exclude_patterns = ["docs/front"]
nitpicky = False

html_theme = "furo"
html_title = f"spectrim {__version__}"
html_extra_path = ["front"]  # index.html, which leads to the first page
html_show_sourcelink = False
html_copy_source = False

myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "show-inheritance": False}
autodoc_preserve_defaults = True
autodoc_typehints_format = "short"
default_role = "code"  # docstrings write code as Markdown does
smartquotes = False  # options begin with two hyphens
napoleon_use_ivar = True
napoleon_use_rtype = False
napoleon_custom_sections = ["Reference"]


def setup(app: Sphinx) -> None:
    """Read docstrings as plain text: a star or a bar outside of code is itself."""

    def escape(
        app: Sphinx,
        what: str,
        name: str,
        thing: object,
        options: object,
        lines: list[str],
    ) -> None:
        lines[:] = [
            re.sub(r"(`[^`]*`)|([*|])", lambda found: found[1] or rf"\{found[2]}", line)
            for line in lines
        ]

    app.connect(
        "autodoc-process-docstring", escape, priority=400
    )  # before napoleon, whose output has markup of its own
