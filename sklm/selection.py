"""Selections of the parameters that move in a step; see `sklm.selection.Selection` for one of your own."""

from sklm.engine.selection import LayerSelection, RandomSelection, Selection

__all__ = ["LayerSelection", "RandomSelection", "Selection"]
