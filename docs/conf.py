"""Sphinx configuration: one site, built without warnings by ``nox -s docs``."""

import sys
import tomllib
from pathlib import Path

from docutils import nodes
from latex2mathml.converter import convert as mathml
from sphinx.application import Sphinx
from sphinx.writers.html5 import HTML5Translator

sys.path.insert(0, str(Path(__file__).parent))
from generated import fill_in

ROOT = Path(__file__).parent.parent

project = "Attention papers"
author = "The attention-papers authors"
project_copyright = f"2026, {author}"
release = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
]
myst_enable_extensions = ["colon_fence", "dollarmath", "fieldlist"]
myst_heading_anchors = 3
exclude_patterns = ["_build", "tests"]
suppress_warnings = ["toctree.empty_glob"]  # a workspace without papers
nitpicky = False
default_role = "py:obj"  # single backquotes in docstrings are names, links where the name is documented

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False
python_maximum_signature_line_length = 100

copybutton_prompt_text = "$ "
html_theme = "furo"
html_title = project
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_math_renderer = "mathml"


def _fill_in(_app: Sphinx, _page: str, source: list[str]) -> None:
    source[0] = fill_in(source[0])


def _inline_math(translator: HTML5Translator, node: nodes.math) -> None:
    translator.body.append(mathml(node.astext()))
    raise nodes.SkipNode


def _block_math(translator: HTML5Translator, node: nodes.math_block) -> None:
    translator.body.append(f'<div class="math">{mathml(node.astext(), display="block")}</div>')
    raise nodes.SkipNode


def setup(app: Sphinx) -> None:
    """Register what the pages take from the code, and formulas that browsers show without a script."""
    app.connect("source-read", _fill_in)
    app.add_html_math_renderer("mathml", (_inline_math, None), (_block_math, None))
