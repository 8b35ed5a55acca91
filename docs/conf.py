"""The documentation site, which needs no connection once it is built: ``sphinx-build -W docs site``."""

from __future__ import annotations

import re

from docutils import nodes
from docutils.utils.math import latex2mathml
from sphinx.application import Sphinx
from sphinx.writers.html5 import HTML5Translator

import snnreg_plugins

project = "snnreg_plugins"
author = "The snnreg_plugins developers"
version = release = snnreg_plugins.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
templates_path = ["templates"]
exclude_patterns = ["templates"]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3

# A docstring of Lightning's or torch's is theirs: methods that only override have none here.
autodoc_inherit_docstrings = False
# What is public is what a package's __all__ names, wherever it is written.
autosummary_ignore_module_all = False
autosummary_imported_members = True
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88
add_module_names = False
toc_object_entries_show_parents = "hide"
napoleon_numpy_docstring = False
napoleon_use_ivar = True  # a property that is listed under "Attributes" is described once

html_theme = "furo"
html_title = f"snnreg_plugins {release}"
# All pages are in sight beside a page, on a screen of a laptop.
html_theme_options = {"light_css_variables": {"sidebar-item-spacing-vertical": "0.25rem"}}
html_static_path = ["static"]
html_css_files = ["site.css"]
html_show_copyright = html_copy_source = html_show_sourcelink = False
html_math_renderer = "mathml"


def _inline(translator: HTML5Translator, node: nodes.math) -> None:
    translator.body.append(latex2mathml.tex2mathml(node.astext(), as_block=False))
    raise nodes.SkipNode


def _block(translator: HTML5Translator, node: nodes.math_block) -> None:
    translator.body.append(f'<div class="formula">{latex2mathml.tex2mathml(node.astext(), as_block=True)}</div>')
    raise nodes.SkipNode


# A cell of numbers, with their signs and units, and no words.
_NUMBERS = re.compile(r"[\d.,%±×/–−+kMGnµmJ -]+")


def _hold_numbers(_: Sphinx, doctree: nodes.document) -> None:
    """Keep each number of a table on one line; what is wider than a phone then scrolls."""
    for cell in doctree.findall(nodes.entry):
        if _NUMBERS.fullmatch(cell.astext()):
            for text in list(cell.findall(nodes.Text)):
                text.parent.replace(text, nodes.Text(re.sub("(?<!/) ", "\u00a0", text)))


def setup(app: Sphinx) -> None:
    """Write formulas as MathML, which browsers draw by themselves; MathJax would be loaded from elsewhere."""
    app.connect("doctree-read", _hold_numbers)
    app.add_html_math_renderer("mathml", inline_renderers=(_inline, None), block_renderers=(_block, None))
