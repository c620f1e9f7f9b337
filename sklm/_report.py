"""The printed report of a fit."""

from __future__ import annotations

import html
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

COLUMNS = ("estimate", "std. error", "t", "p", "lower", "upper")
MAX_ROWS = 40  # of parameters that are printed
HIGH_CORRELATION = 0.95
MAX_CORRELATIONS = 5
LARGE = 1e6  # a t from which its decimals say nothing


@dataclass(frozen=True)
class Summary:
    """Report of a fit: `print` it, show it in a notebook, or take its `to_frame`.

    Attributes
    ----------
    title : str
    names : list of str
        Parameters, the fixed ones included.
    table : ndarray of shape (n_params, 6)
        Estimate, standard error, t, p, lower and upper end of the confidence interval; nan where there is none.
    notes : list of str
        Why a number is missing; empty where none is.
    statistics : dict of str to str
        Statistics of the fit.
    correlations : list of (str, str, float)
        Pairs with a correlation above 0.95 in size, the largest first.
    level : float
        Level of the confidence intervals.
    message : str
        Why the fit stopped.
    """

    title: str
    names: list[str]
    table: np.ndarray
    notes: list[str]
    statistics: dict[str, str]
    correlations: list[tuple[str, str, float]]
    level: float
    message: str

    def __str__(self) -> str:
        shown = self._cells()[:MAX_ROWS]
        header = ["", *self._header(), ""]
        widths = [max(len(row[i]) for row in [header, *shown]) for i in range(len(header))]
        lines = [self.title, "=" * len(self.title)]
        wide = max(map(len, self.statistics))
        lines += [f"{name:<{wide}}  {value}" for name, value in self.statistics.items()]
        lines += ["", _aligned(header, widths), *(_aligned(row, widths) for row in shown)]
        if len(self.names) > len(shown):
            lines.append(f"... and {len(self.names) - len(shown)} more; to_frame() has them all")
        if self.correlations:
            lines += ["", f"Correlations above {HIGH_CORRELATION:g} in size:"]
            lines += [f"  {one}, {other}: {value:.4f}" for one, other, value in self.correlations[:MAX_CORRELATIONS]]
        return "\n".join([*lines, "", self.message])

    def _repr_html_(self) -> str:
        def row(cells: list[str], tag: str) -> str:
            return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"

        statistics = "".join(row([name, value], "td") for name, value in self.statistics.items())
        cells = self._cells()
        body = "".join(row(line, "td") for line in cells[:MAX_ROWS])
        more = f"<p>... and {len(cells) - MAX_ROWS} more</p>" if len(cells) > MAX_ROWS else ""
        pairs = "".join(
            f"<br>{html.escape(one)}, {html.escape(other)}: {value:.4f}"
            for one, other, value in self.correlations[:MAX_CORRELATIONS]
        )
        pairs = f"<p>Correlations above {HIGH_CORRELATION:g} in size:{pairs}</p>" if pairs else ""
        return (
            f"<h4>{html.escape(self.title)}</h4><table>{statistics}</table>"
            f"<table>{row(['', *self._header(), ''], 'th')}{body}</table>{more}{pairs}"
            f"<p>{html.escape(self.message)}</p>"
        )

    def to_frame(self) -> Any:
        """Return the table as a pandas DataFrame, one row per parameter."""
        try:
            import pandas as pd
        except ImportError as error:
            raise ImportError("`to_frame` needs pandas: pip install sklm[pandas].") from error
        frame = pd.DataFrame(self.table, index=self.names, columns=list(COLUMNS))
        return frame.assign(note=self.notes)

    def _header(self) -> list[str]:
        percent = f"{100 * self.level:g} %"
        return [*COLUMNS[:4], f"lower {percent}", f"upper {percent}"]

    def _cells(self) -> list[list[str]]:
        rows = []
        for name, values, note in zip(self.names, self.table.tolist(), self.notes, strict=True):
            estimate, error, t, p, lower, upper = values
            numbers = [f"{estimate:.6g}", _number(error, ".4g"), _number(t, ".2f"), _p_value(p)]
            rows.append([name, *numbers, _number(lower, ".6g"), _number(upper, ".6g"), note])
        return rows


def _aligned(cells: list[str], widths: list[int]) -> str:
    parts = [f"{cells[0]:<{widths[0]}}"]
    parts += [f"{cell:>{width}}" for cell, width in zip(cells[1:-1], widths[1:-1], strict=True)]
    return "  ".join([*parts, cells[-1]]).rstrip()


def _number(value: float, form: str) -> str:
    if math.isnan(value):
        return "-"
    return f"{value:.3g}" if form == ".2f" and abs(value) >= LARGE else format(value, form)


def _p_value(value: float) -> str:
    if math.isnan(value):
        return "-"
    return "<1e-15" if value < 1e-15 else f"{value:.3g}"
