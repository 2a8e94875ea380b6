"""The site: Sphinx reads the pages where they are, so that their links work on a code host too. `make docs` builds it."""

import re

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

highlight_language = "none"  # of blocks that do not name theirs
html_theme = "furo"
html_title = f"spectrim {__version__}"
html_extra_path = ["front"]  # index.html, which leads to the first page
html_show_sourcelink = False
html_copy_source = False

myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_default_options = {"members": True}
autodoc_preserve_defaults = True
autodoc_typehints_format = "short"
default_role = "code"  # docstrings write code as Markdown does
smartquotes = False  # options begin with two hyphens
napoleon_use_ivar = True
napoleon_attr_annotations = False  # the signature has the types
napoleon_use_rtype = False
napoleon_custom_sections = ["Reference"]


def escape(*given):
    """Take docstrings as plain text: a star or a bar outside of code is itself."""
    lines = given[-1]
    for number, line in enumerate(lines):
        lines[number] = re.sub(r"(`[^`]*`)|([*|])", _escaped, line)


def _escaped(found):
    return found[1] or rf"\{found[2]}"


def shorten(*given):
    """Shorten types in a signature with a default that is made, which Sphinx does not."""
    signature, returned = given[-2:]
    if signature and "<factory>" in signature:
        signature = re.sub(r"~(?:\w+\.)*", "", signature).replace("<factory>", "...")
    return signature, returned


def setup(app):
    """Connect both; docstrings before napoleon, whose output has markup of its own."""
    app.connect("autodoc-process-docstring", escape, priority=400)
    app.connect("autodoc-process-signature", shorten)
