"""What a fit shows of itself: with ``verbose=1`` a bar of its epochs, with more a line per epoch."""

from __future__ import annotations

import multiprocessing
import numbers
import sys
import threading
from collections.abc import Mapping
from typing import Any

FIRST_COLUMNS = ("epoch", "train_loss", "valid_loss", "damping", "attempts", "gain_ratio")
SHOWN = {"train_loss": "loss", "valid_loss": "valid", "damping": "damping", "attempts": "attempts"}  # beside a bar
BAR = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}{postfix}]"  # no time to go: most fits end before `max_epochs`
WIDTH = 10  # of a column: a number of four digits with sign and exponent


class Progress:
    """A bar over the epochs of one run of training, a context in which `update` moves it.

    Parameters
    ----------
    n_epochs : int
        Length of the bar.
    title : str
        Stands before the bar.
    shown : bool
        Whether there is a bar, where one can be seen: in a terminal or a notebook, and not in a thread or process of
        its own, such as a worker of joblib, where several bars would overwrite one another.
    """

    def __init__(self, n_epochs: int, title: str, *, shown: bool) -> None:
        self._bar = _bar(n_epochs, title) if shown and _is_alone() else None

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if self._bar is None:
            return
        if kind is None:  # all that was needed is done: a full bar, where a notebook else shows a failure
            done, start = self._bar.n, self._bar.start_t
            self._bar.reset(total=done)
            self._bar.start_t = start
            self._bar.update(done)
        self._bar.close()

    def update(self, row: Mapping[str, Any]) -> None:
        """Move the bar by an epoch and show its losses, damping and attempts.

        Parameters
        ----------
        row : mapping
            Of the history.
        """
        if self._bar is not None:
            self._bar.set_postfix({name: row[key] for key, name in SHOWN.items() if key in row}, refresh=False)
            self._bar.update()


def _is_alone() -> bool:
    return multiprocessing.parent_process() is None and threading.current_thread() is threading.main_thread()


def _bar(n_epochs: int, title: str) -> Any:
    """Return a bar, or None where it could not be drawn: in a pipe, a file."""
    from tqdm.asyncio import tqdm as in_a_terminal
    from tqdm.auto import tqdm  # here, as in a notebook without ipywidgets it warns

    if tqdm is in_a_terminal and not getattr(sys.stderr, "isatty", bool)():
        return None
    return tqdm(total=n_epochs, desc=title or None, bar_format=BAR)


def table(row: Mapping[str, Any], keys: list[str]) -> str:
    """Return a row of the history as text: names, a rule and values, in columns that stay where they are.

    Parameters
    ----------
    row : mapping
        Of the history.
    keys : list of str
        What to show of it, in skorch's order: the time at the end.
    """
    ordered = sorted(keys, key=lambda key: FIRST_COLUMNS.index(key) if key in FIRST_COLUMNS else len(FIRST_COLUMNS))
    names = [key.removeprefix("event_") for key in ordered]
    widths = [max(WIDTH, len(name)) for name in names]
    lines = [names, ["-" * width for width in widths], [_text(row[key]) for key in ordered]]
    return "\n".join("  ".join(f"{cell:>{width}}" for cell, width in zip(line, widths, strict=True)) for line in lines)


def _text(value: Any) -> str:
    if value is None or isinstance(value, bool):  # of an event of skorch
        return "+" if value else ""
    if isinstance(value, numbers.Integral):
        return str(value)
    return f"{value:.4g}" if isinstance(value, numbers.Real) else str(value)
