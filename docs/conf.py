"""Settings of the documentation; `make docs` builds it."""

import re
from pathlib import Path

import matplotlib
import torch
from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml

import sklm

matplotlib.use("Agg")
torch.set_num_threads(1)

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results.md"

project = "sklm"
author = "The sklm developers"
project_copyright = author
version = release = sklm.__version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "numpydoc",
    "myst_parser",  # for CHANGELOG.md and the report of the benchmarks
    "sphinx_gallery.gen_gallery",
]
root_doc = "index"
source_suffix = {".rst": "restructuredtext"}
exclude_patterns = ["_build", "images"]
templates_path = ["_templates"]
default_role = "py:obj"
highlight_language = "python"
toc_object_entries_show_parents = "hide"
smartquotes = False

autosummary_generate = True
autodoc_typehints = "none"
autodoc_preserve_defaults = True
autodoc_member_order = "bysource"
numpydoc_show_class_members = False
numpydoc_class_members_toctree = False
myst_heading_anchors = 3

sphinx_gallery_conf = {
    "examples_dirs": "../examples",
    "gallery_dirs": "gallery",
    "filename_pattern": r"/(plot_|quickstart|engine_only)",
    "within_subsection_order": "ExampleTitleSortKey",
    "download_all_examples": False,
    "show_signature": False,
    "show_memory": False,
    "min_reported_time": 1,
    "remove_config_comments": True,
    "plot_gallery": "True",
    "abort_on_example_error": True,
}

html_theme = "pydata_sphinx_theme"
html_title = f"sklm {release}"
html_static_path = ["_static"]
html_css_files = ["sklm.css"]
html_math_renderer = "mathml"
html_copy_source = False
html_show_sourcelink = False
html_theme_options = {
    "show_toc_level": 2,
    "navigation_depth": 2,
    "navbar_align": "left",
    "header_links_before_dropdown": 6,
    "footer_start": ["copyright"],
    "footer_end": [],
}
html_sidebars = {"quickstart": [], "choose": [], "theory": [], "performance": [], "limits": [], "changelog": []}


def inline_math(writer, node):
    """Write a formula as MathML, which browsers show without a script or a network."""
    writer.body.append(tex2mathml(node.astext()))
    raise nodes.SkipNode


def block_math(writer, node):
    """Write a displayed formula as MathML."""
    writer.body.append(f'<div class="math-block">{tex2mathml(node.astext(), as_block=True)}</div>')
    raise nodes.SkipNode


def markdown_tables(lines):
    """Return lines of a docstring with the tables of Markdown as tables of reStructuredText."""
    written, table = [], []
    for line in [*lines, ""]:
        if line.strip().startswith("|"):
            table.append([cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip().strip("|"))])
            continue
        if table:
            written += ["", ".. list-table::", "   :header-rows: 1", ""]
            for row in [table[0], *table[2:]]:
                for i, cell in enumerate(row):
                    written.append(f"   {'* -' if i == 0 else '  -'} {cell}".rstrip())
            written.append("")
            table = []
        written.append(line)
    return written


def as_rst(app, what, name, obj, options, lines):
    """Make what the docstrings write for a reader of the code (|x|, *=, tables) plain text for Sphinx too."""
    parts = []
    for line in markdown_tables(lines):
        line = re.sub(r":ref:`([^<`]+?) *<[^`]*>`", r"\1", line)  # a label of scikit-learn's pages
        pieces = re.split(r"(``.*?``|`[^`]*`)", line)
        pieces[::2] = [re.sub(r"(?<!\\)\|", r"\\|", piece).replace("*=", r"\*=") for piece in pieces[::2]]
        for i in range(1, len(pieces), 2):
            if pieces[i + 1][:1].isalnum():  # `Module`s
                pieces[i] += "\\ "
        parts.append("".join(pieces))
    lines[:] = parts


def add_results(app, name, source):
    """Put the report of the benchmarks, where there is one, at the end of its page."""
    if name == "performance" and RESULTS.exists():
        options = ":relative-images:\n:heading-offset: 1"
        source[0] += f"\n```{{include}} ../benchmarks/{RESULTS.name}\n{options}\n```\n"


def setup(app):
    """Connect the above."""
    app.connect("source-read", add_results)
    app.add_html_math_renderer("mathml", (inline_math, None), (block_math, None))
    app.connect("autodoc-process-docstring", as_rst, priority=400)
