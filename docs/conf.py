"""Sphinx configuration: one site, built without warnings by ``nox -s docs``."""

import json
import tomllib
from pathlib import Path

from sphinx.application import Sphinx

from attn.core_kernels import capability_table
from attn.shared_eval.claims.report import Report

ROOT = Path(__file__).parent.parent

project = "Attention papers"
author = "The attention-papers authors"
release = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
]
myst_enable_extensions = ["colon_fence", "dollarmath", "fieldlist"]
myst_heading_anchors = 3
exclude_patterns = ["_build", "tests"]
nitpicky = False
default_role = "code"

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False

html_theme = "furo"
html_title = project
html_static_path = ["_static"]


def _fill_in(_app: Sphinx, _name: str, source: list[str]) -> None:
    """Put what the code itself knows where a page asks for it, so that it cannot go stale."""
    for marker, make in {
        "<!-- capability table -->": capability_table,
        "<!-- report schema -->": _report_schema,
    }.items():
        if marker in source[0]:
            source[0] = source[0].replace(marker, make())


def _report_schema() -> str:
    return f"```json\n{json.dumps(Report.model_json_schema(), indent=2)}\n```"


def setup(app: Sphinx) -> None:
    """Register the hook with sphinx."""
    app.connect("source-read", _fill_in)
