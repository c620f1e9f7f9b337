"""What a run of epochs keeps and how it ends."""

from __future__ import annotations

import dis
import math
from dataclasses import dataclass
from typing import Any

import skorch
from torch import Tensor, nn

from sklm._data import TensorData
from sklm._progress import Progress, table


class StopTraining(KeyboardInterrupt):
    """Ends the training loop; skorch's loop knows KeyboardInterrupt as the signal to stop."""


class MeanLoss(skorch.callbacks.PassthroughScoring):
    """Says of the mean loss that the net has recorded for an epoch whether it is the best."""

    best_score_: float

    def on_epoch_end(self, net: Any, **kwargs: Any) -> None:
        """Record ``train_loss_best`` or ``valid_loss_best``."""
        row = net.history[-1]
        if self.name in row:
            row[f"{self.name}_best"] = row[self.name] < self.best_score_
            self.best_score_ = min(self.best_score_, row[self.name])


class PrintLog(skorch.callbacks.PrintLog):
    """skorch's table of epochs with small numbers readable and without colors; not even made where none is printed."""

    def on_epoch_end(self, net: Any, **kwargs: Any) -> None:
        if net.verbose > 1:
            super().on_epoch_end(net, **kwargs)

    def table(self, row: Any) -> str:
        return table(row, self._sorted_keys(row.keys()))


@dataclass
class Run:
    """What one call of `fit` or `partial_fit` has seen so far."""

    n_steps: int = 0
    n_epochs: int = 0
    steps_needed: int = 1  # steps that must pass a stopping test in a row
    settled: int = 0  # steps in a row that did
    status: str = "running"
    reason: str = ""
    best_score: float = math.inf
    least_score: float = math.inf  # with evidence: of any epoch
    landmark: float = math.inf  # with evidence: the last epoch that was much better or had quite another alpha
    landmark_alpha: float = math.inf
    landmark_epoch: int = 0
    is_near: bool = False  # with evidence: whether the last step began near a minimum; elsewhere it means nothing
    far_epoch: int = 0  # the last that did not
    best_epoch: int | None = None
    best_state: dict[str, Tensor] | None = None
    verdict: str = ""  # how training ended; empty while it goes on
    exhausted: bool = False
    is_constant: bool = False  # whether the outputs are, where the targets are not
    further: str = ""  # "strategy" or "alpha": another one than the first run from the same start had
    start: str = ""  # which one of several
    score: float = math.inf  # what runs are compared by
    train: TensorData | None = None  # the rows used for training
    is_new: bool = False  # whether the batches are not those of the run before
    on_all: bool = True  # whether the steps of this epoch are on all rows
    grown_epoch: int = 0  # the last with batches smaller than those that follow
    progress: Progress | None = None

    def keep(self, score: float, epoch: int, module: nn.Module | None) -> None:
        """Note the best epoch so far, with a copy of the parameters of `module`; None where later ones are better."""
        self.best_score, self.best_epoch, self.best_state = score, epoch, None
        if module is not None:
            self.best_state = {name: value.clone() for name, value in module.state_dict().items()}


def raised_by_callback(interrupt: KeyboardInterrupt, callbacks: list[Any]) -> bool:
    """Return whether a callback itself raised the interrupt, which asks to stop, rather than the user in its midst."""
    traceback, frames = interrupt.__traceback__, []
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
        frames.append(traceback.tb_frame)
    if traceback is None:
        return False
    raised = dis.opname[traceback.tb_frame.f_code.co_code[traceback.tb_lasti]] == "RAISE_VARARGS"  # not by a signal
    holders = [value for frame in [*frames, traceback.tb_frame] for value in frame.f_locals.values()]
    return raised and any(value is callback for value in holders for callback in callbacks)
