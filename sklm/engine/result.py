"""What a step of the optimizer returns."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True)
class StepResult:
    """What one step did.

    Attributes
    ----------
    loss : float
        F at the parameters that the module has now.
    initial_loss : float
        F before the step.
    accepted : bool
        Whether the parameters moved.
    attempts : int
        Damping factors tried; 0 when the gradient test had passed before the first.
    damping : float
        Damping factor lambda of the last attempt.
    gain_ratio : float
        Actual over predicted reduction of the last attempt; nan when there was none.
    status : {"running", "converged", "failed"}
        ``"failed"``: no further step can help, because the loss or the Jacobian is not finite or damping is at its
        maximum.
    message : str
        Which test passed or what failed, with its value; empty while running after an accepted step.
    solver : str
        The solver used, and why.
    outputs : Tensor of shape (n_samples, n_outputs)
        Outputs of the module at its present parameters.
    jacobian : str
        How the Jacobian was computed: ``"layerwise"``, ``"scalar"``, ``"forward"``, ``"functional"`` or
        ``"sample by sample"``.
    cosine : float
        Largest cosine between the residuals and a column of the Jacobian (a free parameter's): before the step or,
        after the Gauss-Newton steps at the end, now or before the last of them. 0 at a minimum, 1 at most; with
        ``"cg"`` the norms of the columns are estimates, and so is this.
    alpha, n_effective, log_evidence : float
        With ``alpha="bayes"`` the penalty of this step, and before it the effective number of parameters and the
        evidence; nan else.
    is_near : bool
        With ``alpha="bayes"``: whether the step began so near to a minimum that the evidence means something.
    """

    loss: float
    initial_loss: float
    accepted: bool
    attempts: int
    damping: float
    gain_ratio: float
    status: str
    message: str
    solver: str
    outputs: Tensor = field(repr=False)
    jacobian: str
    cosine: float = math.nan
    alpha: float = math.nan
    n_effective: float = math.nan
    log_evidence: float = math.nan
    is_near: bool = False
