"""The site: `python -m sphinx -W docs site` with the extra `docs`.

It needs no network, neither to be built nor to be read.
"""

import os
import sys
from pathlib import Path

import jaxsoftmax

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "_tools"))
os.environ.setdefault("JAX_PLATFORMS", "cpu")  # where the executed pages run

project = "jaxsoftmax"
author = copyright = "The jaxsoftmax developers"
version = release = jaxsoftmax.__version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
extensions += ["sphinx_copybutton"]
extensions += ["formulas", "docstrings", "repository", "reference"]  # in _tools/
exclude_patterns = ["_*"]
default_role = "literal"  # `code` in docstrings, as Markdown has it

myst_enable_extensions = ["dollarmath", "amsmath", "colon_fence"]
myst_heading_anchors = 3
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 120
nb_merge_streams = True
smartquotes = False  # docstrings quote values of options
html_math_renderer = "mathml"

autodoc_typehints = "none"  # the docstrings say shapes and kinds in words
copybutton_selector = "div.cell_input pre, div.highlight-bash pre, div.highlight-python pre"
python_maximum_signature_line_length = 72
add_module_names = False
toc_object_entries_show_parents = "hide"

html_theme = "furo"
pygments_dark_style = "github-dark"
html_title = f"jaxsoftmax {version}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sphinx = False
html_copy_source = False
html_show_sourcelink = False
html_theme_options = {
    "light_css_variables": {
        "color-brand-primary": "#2464a4",
        "color-brand-content": "#2464a4",
        "color-brand-visited": "#2464a4",
    },
    "dark_css_variables": {
        "color-brand-primary": "#7ab8ee",
        "color-brand-content": "#7ab8ee",
        "color-brand-visited": "#7ab8ee",
    },
}
