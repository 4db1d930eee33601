"""Sphinx settings: ``make docs``."""

import nearlinear

project = "nearlinear"
author = "The nearlinear authors"
version = release = nearlinear.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.mathjax"]
myst_enable_extensions = ["dollarmath", "amsmath"]
myst_heading_anchors = 3
exclude_patterns = ["requirements.txt"]
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the docstrings state dtype, shape and range, which the annotations cannot
napoleon_use_rtype = False
html_theme = "furo"
html_title = f"nearlinear {release}"
