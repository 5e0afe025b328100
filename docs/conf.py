"""How `make docs` builds the site: Sphinx with MyST-NB, strict, offline. The source folder is the repository's root.

So a relative link leads to the same place in the site, in an editor and on a forge, and notebooks are pages where they
are. Nothing is executed and nothing is fetched: notebooks show the outputs that they were stored with.
"""

from __future__ import annotations

import inspect
import os
import sys
from pathlib import Path
from typing import get_type_hints

os.environ["MPLBACKEND"] = "agg"
sys.path.insert(0, str(Path(__file__).parent.parent))

import mcpdiag
from mcpdiag.config import PoolLimits, ProxyConfig, ReconnectPolicy, Timeouts, UpstreamConfig

project = "mcpdiag"
author = "the mcpdiag authors"
project_copyright = "2026, the mcpdiag authors"
version = release = mcpdiag.__version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
root_doc = "docs/index"
include_patterns = ["docs/**.md", "notebooks/*.ipynb", "CHANGELOG.md", "CONTRIBUTING.md"]
exclude_patterns = [".*", "build", "dist", "mcpdiag", "tests", "tools", "benchmarks", "**/.ipynb_checkpoints"]
templates_path: list[str] = []

# Every reference to a name of ours has to lead somewhere, but for the parts that samples and results are made of. Those
# to Python's and other packages' names would need their inventories, which are on the network.
nitpicky = True
nitpick_ignore_regex = [("py:.*", r"(?!mcpdiag\b).*"), ("py:.*", r"mcpdiag\.(bench|samples)\..*")]

myst_enable_extensions = ["attrs_block", "deflist"]
myst_heading_anchors = 4
nb_execution_mode = "off"
nb_merge_streams = True
nb_ipywidgets_js: dict[str, dict[str, str]] = {}  # the default is on a CDN
nb_number_source_lines = False

default_role = "code"  # `like this` in a docstring, as in Markdown
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
autodoc_class_signature = "mixed"
napoleon_numpy_docstring = False
napoleon_use_rtype = False
add_module_names = False
python_use_unqualified_type_names = True

html_theme = "furo"
html_title = f"mcpdiag {release}"
html_static_path = ["_static"]
html_css_files = ["mcpdiag.css"]
html_extra_path = ["_root"]  # index.html, which leads to docs/index.html
html_copy_source = False
html_show_sphinx = False
html_use_index = False
pygments_style = "friendly"
pygments_dark_style = "native"


def _plain(model: type) -> None:
    """Show the settings of a pydantic model as a person writes them, without the validators in their types."""
    hints = get_type_hints(model)
    model.__signature__ = inspect.Signature(
        [
            inspect.Parameter(
                name,
                inspect.Parameter.KEYWORD_ONLY,
                default=inspect.Parameter.empty if field.is_required() else field.default,
                annotation=hints[name],
            )
            for name, field in model.model_fields.items()
        ]
    )


for each in (Timeouts, PoolLimits, ReconnectPolicy, UpstreamConfig, ProxyConfig):
    _plain(each)
