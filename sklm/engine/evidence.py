"""The penalty alpha by the evidence: what the data themselves say about the size of the weights.

With the curvature H of W times the loss at the minimum, P and Q the diagonals with ones for the penalized parameters
and the others, A = H + alpha P + tau Q and phi the dispersion, the Laplace approximation gives, up to a constant,

    log evidence = -(D + alpha |theta|_P^2 / 2 + tau |theta|_Q^2 / 2) / phi + (n_P log alpha + n_Q log tau - log det(A)
                   - n log phi) / 2

for n numbers y of normal noise, D = sum w l, n_P penalized and n_Q other parameters. Its derivatives are zero, as
MacKay (1992, "Bayesian interpolation" and "A practical Bayesian framework for backpropagation networks") found, and
Foresee and Hagan (1997, "Gauss-Newton approximation to Bayesian learning") within Levenberg-Marquardt, at

    alpha = phi gamma_P / |theta|_P^2,      phi = 2 D / (n - gamma),      gamma = gamma_P + gamma_Q,

where gamma_P = n_P - alpha tr_P(A^-1) is the number of penalized parameters that the data determine, and gamma_Q that
of the others. These, the biases, have a wide prior, of the standard deviation `WIDTH` or more: tau = 2 D / n / WIDTH^2,
where 2 D / n stands for phi without the parameters. Without one, a unit that has lost its weights would count as well,
and on few rows the evidence be best for constants.
One that is larger than that has itself as standard deviation, as a bias in units of the data may be.
A robust loss rho belongs to noise of the density exp(-rho(r) / phi) / Z(phi): there n log Z(phi) stands in the place
of n log(phi) / 2, and phi is where the mean of rho over that noise is D / n + gamma phi / (2 n).
For likelihoods without a dispersion (classes, counts) phi and 2 D / n are 1. Weights that are whole numbers without a
common divisor count as repeated rows (estimators look at the rows instead, see `sklm.LMRegressor.fit`); of others, such
as 1 / sigma^2, only the ratios count, and W is here the number of rows: the alpha of the loss with these weights is the
one above times their sum over that number. For classes, whose noise has no size that would tell, W is (sum w)^2 / sum
w^2 (Kish 1965, "Survey sampling"): a class of few rows and large weights is no more rows. Weights of counts, their
exposures, are taken as they are.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from scipy import optimize
from torch import Tensor

from sklm.engine._checks import check_real
from sklm.engine.losses import (
    BinaryCrossEntropy,
    Cauchy,
    CrossEntropy,
    Elementwise,
    Loss,
    Poisson,
    SquaredError,
    plain_form,
)
from sklm.engine.solvers import SubProblem

WIDTH = 10.0  # of parameters without a penalty, in standard deviations of inputs and targets
MOST_REPEATS = 2**20  # of a row; all large numbers of float32 are whole
FAR = 2.0  # times the loss of a constant, from which it says more of the scale of the data than that of the start
FIRST_SHARE = 1.0  # of the loss at the start: the first alpha, for weights of order one
DEEP_SHARE = 0.1  # the same for more than two weight matrices: a large alpha draws their product to zero, for good
LOW_SHARE = 1e-2  # of that in place of one: where a large alpha draws the weights to zero
LARGEST_CHANGE = 10.0  # of alpha in a step: far from the minimum its estimate says little
NEAR = 30.0  # loss over phi above the minimum: farther from there Laplace's approximation says nothing
HELD = 15.0  # the same, above which a low alpha is held
LEAST_EFFECTIVE = 1e-3  # number of parameters below which all weights are zero
LEAST_DISPERSION = 1e-300
LEAST_DOF = 0.01  # of the rows that count for phi, however many parameters there are
ROUNDING = 1e-12  # relative, of phi
LOSS_TOLERANCE = 1e-5  # relative reduction of the loss at which the weights have settled, if alpha has: to sqrt(ftol)


@dataclass(frozen=True)
class Evidence:
    """What a linearization says.

    Attributes
    ----------
    alpha : float
        The next one.
    n_effective : float
        gamma, of all parameters.
    log_evidence : float
        At the present alpha.
    decrement : float
        How much W times the loss over phi has to fall still, as far as the linearization tells.
    """

    alpha: float
    n_effective: float
    log_evidence: float
    decrement: float


def check_alpha(alpha: float | str) -> bool:
    """Return whether alpha is ``"bayes"``; raise where it is no number >= 0 either."""
    if isinstance(alpha, str) and alpha == "bayes":
        return True
    if isinstance(alpha, str):
        raise ValueError(f"`alpha` must be a finite number >= 0 or 'bayes'; got {alpha!r}.")
    check_real("alpha", alpha, minimum=0)
    return False


def counted(weights: Tensor) -> Tensor:
    """Return how many rows every weight stands for."""
    is_whole = bool((weights == weights.round()).all()) and float(weights.max()) <= MOST_REPEATS
    if is_whole and math.gcd(*torch.unique(weights).long().tolist()) == 1:
        return weights
    return (weights > 0).to(weights)


def are_exposures(criterion: Loss) -> bool:
    """Return whether weights are those of counts, which are taken as they are: times or areas of observation."""
    return isinstance(plain_form(criterion, 1)[0], Poisson)


def counted_rows(weights: Tensor, criterion: Loss, counts: Tensor | None = None) -> float:
    """Return how many rows the weights stand for together; `counts` how many each does, where they do not tell."""
    if are_exposures(criterion):
        return float(weights.sum())
    counts = counted(weights) if counts is None else counts
    kept = weights > 0
    if has_dispersion(criterion, 1):
        return float(counts[kept].sum())
    return float(weights.sum().square() / (weights[kept].square() / counts[kept]).sum())


def first_alpha(loss: float, of_constant: float, n_matrices: int) -> float:
    """Return an alpha to start from, for the mean losses at the start and of a constant, and the weight matrices."""
    loss = of_constant if loss > FAR * of_constant else loss
    share = FIRST_SHARE if n_matrices <= 2 else DEEP_SHARE
    return 2 * share * abs(loss) or 1.0  # a likelihood without its constant may be below 0; with nothing to fit, any


def loss_of_constant(criterion: Loss, outputs: Tensor, targets: Tensor, share: Tensor) -> float:
    """Return the mean loss of outputs without inputs: the mean target, or even odds; infinite for other losses."""
    plain, _ = plain_form(criterion, outputs.shape[1])
    if isinstance(plain, Elementwise):
        level = share @ targets
    elif isinstance(plain, CrossEntropy) or (isinstance(plain, BinaryCrossEntropy) and plain.from_logits):
        level = torch.zeros_like(outputs[0])
    else:
        return math.inf
    return float(share @ criterion.value(level.expand_as(outputs), targets))


def has_dispersion(criterion: Loss, n_outputs: int) -> bool:
    """Return whether the loss is one of real numbers, whose noise has a size."""
    return isinstance(plain_form(criterion, n_outputs)[0], Elementwise)


def fitted_dispersion(criterion: Elementwise, mean: float, share: float) -> float:
    """Return phi for a mean of rho, and the share of the rows that is left by the parameters."""
    largest = max(2 * mean / share, LEAST_DISPERSION)  # that of normal noise, which has the shortest tails
    if isinstance(criterion, SquaredError) or mean <= LEAST_DISPERSION:
        return largest

    def excess(log_phi: float) -> float:
        phi = math.exp(log_phi)
        return criterion.noise(phi)[1] / mean - (1 - share) / 2 * (phi / mean) - 1

    if isinstance(criterion, Cauchy):  # no density beyond
        largest = min(largest, (1 - 1e-9) * criterion.delta**2)
    if excess(math.log(largest)) <= ROUNDING:
        return largest
    least = max(min(largest, mean) / 4, LEAST_DISPERSION)
    return math.exp(optimize.brentq(excess, math.log(least), math.log(largest), xtol=ROUNDING))


def prior_of_others(theta: Tensor, penalized: Tensor, loss: float, n_outputs: int, criterion: Loss) -> Tensor:
    """Return tau for every parameter, of shape (n_params,) in float64 on the CPU: 0 where alpha is the prior.

    Parameters
    ----------
    theta, penalized : Tensor of shape (n_params,)
    loss : float
        The mean loss D / W without the penalty.
    n_outputs : int
        Per sample.
    criterion : Loss
    """
    plain, unit = plain_form(criterion, n_outputs)
    noise = fitted_dispersion(plain, loss / n_outputs / unit, 1.0) * unit if isinstance(plain, Elementwise) else unit
    return (~penalized.cpu()).double() * noise / theta.cpu().double().abs().clamp_min(WIDTH).square()


def estimate(
    problem: SubProblem,
    theta: Tensor,
    penalized: Tensor,
    alpha: float,
    total: float,
    loss: float,
    n_outputs: int,
    criterion: Loss,
) -> Evidence | None:
    """Return what a linearization at theta says, or None where its curvature is not positive definite.

    Parameters
    ----------
    problem : SubProblem
        With H / W and the penalty alpha / W.
    theta, penalized : Tensor of shape (n_params,)
    alpha, total, loss : float
        The present penalty, W, and the mean loss D / W without the penalty.
    n_outputs : int
        Per sample.
    criterion : Loss
    """
    n_rows = total * n_outputs
    tau = prior_of_others(theta, penalized, loss, n_outputs, criterion)
    inverse = problem.inverse(tau / total)
    if inverse is None:
        return None
    diagonal, log_determinant, decrement = inverse
    n_params, n_penalized = len(theta), int(penalized.sum())
    n_others = n_params - n_penalized
    decided = float(n_penalized - alpha / total * diagonal[penalized].sum())
    decided = min(max(decided, 0.0), n_penalized)
    of_others = min(max(float(n_others - tau @ diagonal.cpu().double() / total), 0.0), n_others)
    size, of_prior = float(theta[penalized].square().sum()), float(tau @ theta.cpu().double().square())
    plain, unit = plain_form(criterion, n_outputs)
    phi, of_noise = unit, 0.0
    if isinstance(plain, Elementwise):
        share = max(1 - (decided + of_others) / n_rows, LEAST_DOF)
        phi = fitted_dispersion(plain, loss / n_outputs / unit, share) * unit
        of_noise = n_rows * plain.noise(phi / unit)[0]
    log_evidence = (
        -(total * loss + alpha * size / 2 + of_prior / 2) / phi
        + n_penalized / 2 * math.log(alpha)
        + float(tau[tau > 0].log().sum()) / 2
        - (log_determinant + n_params * math.log(total)) / 2
        - of_noise
    )
    wanted = phi * decided / size if decided >= LEAST_EFFECTIVE and size else alpha  # else there is nothing to fit
    change = min(max(wanted / alpha, 1 / LARGEST_CHANGE), LARGEST_CHANGE)
    if phi <= LEAST_DISPERSION:  # nothing is left to fall
        decrement = 0.0
    return Evidence(change * alpha, decided + of_others, log_evidence, total * decrement / 2 / phi)
