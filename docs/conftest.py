"""pytest runs the examples of the pages; what Sphinx writes into this folder is left out."""

import pytest

collect_ignore = ["conf.py", "draw_choose.py", "gallery", "api/generated", "_build"]


@pytest.fixture(autouse=True)
def _in_empty_folder(tmp_path, monkeypatch):
    """Let examples that write files do so elsewhere."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "Agg")
