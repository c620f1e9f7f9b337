r"""Levenberg-Marquardt as a `torch.optim.Optimizer`: one call of `step` is one step of the algorithm.

For samples with weights w_i >= 0, W = sum w_i, and module outputs f_i(theta), a step lowers

    F(theta) = (1/W) sum_i w_i l(f_i, y_i) + (alpha / 2W) |theta|^2        (the penalty on weight matrices only)

1. Evaluate outputs and losses; the loss gives a residual r_i and a factor S_i per sample (`losses`).
2. Rows A_i = sqrt(w_i/W) S_i J_i from the Jacobian J_i of the outputs, in chunks (`jacobian`); with the penalty they
   make the curvature H = A'A + (alpha/W) I and the gradient g = A'r + (alpha/W) theta (`solvers`). Of a sampled
   curvature, S_i is drawn once per step, from the seed and the number of the step, and g is that of the loss.
3. Solve (H + lambda D) d = -g (`solvers`, `damping`).
4. The gain ratio rho = (F(theta) - F(theta + lr d)) / predicted reduction, where the model predicts, as d solves 3, the
   sum of positive terms  lr ((1 - lr/2) d'Hd + lambda d'Dd)  (More 1978, eq. 4.4, for lr = 1). Both reductions are
   accumulated without subtracting large numbers: F as a sum of differences per sample.
5. rho > 1e-4 and F finite and not higher: accept, lower lambda. Otherwise raise lambda and go to 3, at most
   `max_attempts` times; then theta is what it was, bit for bit.
6. After every attempt the stopping tests of MINPACK (`convergence`).
7. A module without weight matrices is a curve, whose parameters count, and its sub-problem is solved by QR. Once a test
   has passed, the loss has no digits left to judge by, but the parameters have: undamped Gauss-Newton steps follow as
   long as they lower the relative offset |Q'r| / |r|, the share of the residuals that the Jacobian still explains. Is
   it above 1e-3 in the end (Bates and Watts 1981), the test had passed in a flat valley, and the search goes on.

With `acceleration` a step is d + a/2, where a solves 3 with the second derivative of the outputs along d as residuals,
by their differences over a tenth of d (geodesic acceleration: Transtrum and Sethna 2012, "Improvements to the
Levenberg-Marquardt algorithm for nonlinear least-squares minimization", section 5); an attempt with 2 |a| > 0.75 |d| is
rejected, as its linear model fails.
With `bounds`, 3 is solved within the box (`bounds`).

The module is evaluated functionally; its parameters are written once, when a step is accepted.
"""

from __future__ import annotations

import math
import secrets
import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from sklm.engine._checks import check_choice, check_integer, check_real
from sklm.engine.bounds import Box
from sklm.engine.convergence import ConvergenceTests, largest
from sklm.engine.damping import Damping, resolve_damping
from sklm.engine.evidence import (
    HELD,
    LOSS_TOLERANCE,
    LOW_SHARE,
    NEAR,
    check_alpha,
    counted_rows,
    estimate,
    first_alpha,
    has_dispersion,
    loss_of_constant,
)
from sklm.engine.inputs import count_samples
from sklm.engine.jacobian import ModuleFunction
from sklm.engine.linearization import Batch, Linearization, Point
from sklm.engine.losses import Loss, resolve_loss
from sklm.engine.memory import is_out_of_memory, samples_per_chunk, samples_per_random_chunk
from sklm.engine.modes import preserved_rng, rng_state, steady_batchnorm
from sklm.engine.polish import polish
from sklm.engine.quadratic import QuadraticModel
from sklm.engine.result import StepResult
from sklm.engine.selection import Selection, resolve_selection
from sklm.engine.solvers import QR, choose_solver
from sklm.engine.state import State, state_of
from sklm.engine.trial import check_reach

MINIMUM_GAIN_RATIO = 1e-4  # as MINPACK; smaller gains may be rounding
# A batch with fewer rows than parameters says nothing about most directions, where the penalty and the noise of batches
# would have free rein: damping, relative to the largest curvature, that ties them down.
UNDERDETERMINED_DAMPING = 0.1
CG_MIN_SIZE = 8192  # from here on "auto" forms no matrix: 512 MiB, and minutes to factor
OFFSET_LIMIT = 1e-3  # of Bates and Watts 1981, "A relative offset orthogonality convergence criterion"
ROUNDING = 1e3  # times the machine epsilon: of the loss, where residuals are as large as the outputs


class LevenbergMarquardt(torch.optim.Optimizer):
    """Levenberg-Marquardt optimizer for a module and a loss, for a plain torch loop or inside an estimator.

    Parameters
    ----------
    module : torch.nn.Module
        Its trainable parameters are moved. Returns (n_samples,) or (n_samples, n_outputs).
    criterion : str, torch loss or sklm.losses.Loss, default="squared_error"
        The loss: a name (``"squared_error"``, ``"absolute_error"``, ``"huber"``, ``"soft_l1"``, ``"cauchy"``,
        ``"poisson"``, ``"log_loss"``), a torch loss class or instance, or a `sklm.losses.Loss` class or instance.
        An instance is copied.
    lr : float in (0, 2), default=1.0
        Step length; the full step is 1.
    damping : {"nielsen", "standard", "fletcher"} or sklm.damping.Damping, default="nielsen"
        Damping strategy.
    solver : {"auto", "cholesky", "qr", "svd", "cg"}, default="auto"
        Linear solver; ``"auto"`` takes QR for few parameters in float64, else Cholesky, in the dual form when there are
        fewer rows than parameters, and above 8192 of both ``"cg"``: matrix-free conjugate
        gradients, with memory O(parameters).
    max_attempts : int, default=10
        Damping factors tried per step.
    jacobian : {"auto", "layerwise", "functional"}, default="auto"
        How the Jacobian is computed: layer by layer for a module of common layers, in one backward pass for scalar
        parameters, else by `torch.func`, in forward mode for fewer parameters than outputs; ``"layerwise"`` refuses
        other modules, ``"functional"`` is `torch.func`.
        All give the same numbers; `StepResult` says which.
    jacobian_max_rows : int, None or "auto", default="auto"
        Rows of the Jacobian computed at once; None for all; ``"auto"`` for at most 8 MiB on a CPU and 256 MiB
        on a GPU, less when memory is short. Cholesky with
        more rows than parameters, QR and SVD hold one chunk; the dual form keeps all rows, fewer than parameters. A
        module that draws random numbers (dropout) gets chunks of a fixed size, on which its draws depend.
    selection : {"random", "layer"}, sklm.selection.Selection or None, default=None
        Parameters that move in a step; None for all.
    alpha : float or "bayes", default=0.0
        L2 penalty alpha / (2 W) |theta|^2 on parameters with two or more dimensions (weight matrices, not biases or the
        parameters of a curve), as scikit-learn's MLP. ``"bayes"`` re-estimates it after every step, see
        `sklm.engine.evidence`; the steps must be on all data.
    ftol, xtol, gtol : float or None, default=1e-8
        Tolerances of the stopping tests, see `sklm.engine.convergence`; None disables one.
    bounds : dict of str to (lower, upper), default=None
        Bounds of parameters by name, respected at every iterate: numbers or tensors of the parameter's shape, None for
        no bound.
    acceleration : bool or "auto", default=False
        Geodesic acceleration: a second-order correction of every step, which helps on curved problems of few
        parameters; with ``"auto"`` for a module without weight matrices, from the first gain ratio outside 0.75 to
        1.25, where the linear model has failed.
    seed : int, default=None
        Seed of random selections and dropout masks; None draws one.

    Attributes
    ----------
    criterion, damping, selection
        The resolved objects.
    n_steps : int
        Steps done.
    triangle : tuple of Tensor (n_params,) and Tensor (n_params, n_params), or None
        After a step that converged on a curve without penalty: the parameters, and R of the rows A there, or before the
        last Gauss-Newton step where that was too short to change it.

    Raises
    ------
    ValueError
        For an argument outside its domain, a module without trainable parameters, or data that do not fit the module.

    Examples
    --------
    >>> import torch
    >>> from sklm import LevenbergMarquardt
    >>> x = torch.linspace(0, 1, 20, dtype=torch.float64)[:, None]
    >>> module = torch.nn.Linear(1, 1).double()
    >>> optimizer = LevenbergMarquardt(module, "squared_error")
    >>> for _ in range(20):
    ...     result = optimizer.step(x, 3 * x - 1)
    ...     if result.status != "running":
    ...         break
    >>> round(module.weight.item(), 6), round(module.bias.item(), 6)
    (3.0, -1.0)
    """

    def __init__(
        self,
        module: nn.Module,
        criterion: Any = "squared_error",
        *,
        lr: float = 1.0,
        damping: Any = "nielsen",
        solver: str = "auto",
        max_attempts: int = 10,
        jacobian: str = "auto",
        jacobian_max_rows: int | str | None = "auto",
        selection: Any = None,
        alpha: float | str = 0.0,
        ftol: float | None = 1e-8,
        xtol: float | None = 1e-8,
        gtol: float | None = 1e-8,
        bounds: Mapping[str, tuple[Any, Any]] | None = None,
        acceleration: bool | str = False,
        seed: int | None = None,
    ) -> None:
        self.function = ModuleFunction(module, jacobian)
        like = next(iter(self.function.parameters.values()))
        self.criterion: Loss = resolve_loss(criterion).to(device=like.device, dtype=like.dtype)
        self.damping: Damping = resolve_damping(damping)
        self.is_curve = all(p.ndim < 2 for p in self.function.parameters.values())
        if self.damping.scaling == "auto" and not self.is_curve:
            self.damping.scaling = "max"
        self.selection: Selection | None = resolve_selection(selection)
        self.solver = check_choice(
            "solver",
            solver,
            ["auto", "cholesky", "qr", "svd", "cg"],
            "It is the linear algebra of a step; the algorithm is always Levenberg-Marquardt.",
        )
        self.max_attempts = check_integer("max_attempts", max_attempts, minimum=1)
        self.jacobian_max_rows = jacobian_max_rows
        if jacobian_max_rows not in (None, "auto"):
            check_integer("jacobian_max_rows", jacobian_max_rows, minimum=1)
        self.tests = ConvergenceTests(ftol=ftol, xtol=xtol, gtol=gtol)
        self.penalized = self.function.penalized
        self.box = self.function.box = Box(bounds, self.function.parameters) if bounds else None
        if acceleration not in (True, False, "auto"):
            raise ValueError(f"`acceleration` must be True, False or 'auto'; got {acceleration!r}.")
        self.acceleration = acceleration
        self._accelerates = acceleration is True
        self.triangle: tuple[Tensor, Tensor] | None = None
        self._inputs: Any = None  # of the last step
        self._repeats = False  # whether this step and the last are on the same inputs
        self._state: State | None = None
        self._now: tuple[Batch, Point] | None = None
        self.seed = secrets.randbits(48) if seed is None else check_integer("seed", seed, minimum=0)
        self.n_steps = 0
        self._first_gradient = 0.0  # norm of the gradient of the first step, for the forcing term of "cg"
        self.bayes = check_alpha(alpha)
        self._has_alpha = False  # whether a first step has set it
        self.rows_per_weight: float | None = None  # for the evidence; None where the weights of a step tell
        self.starts_low = False  # whether the evidence begins with a low alpha, and keeps it on the way to a minimum
        if self.bayes and (selection is not None or self.solver == "cg"):
            raise ValueError(
                "`alpha='bayes'` needs the curvature of all parameters, so neither `selection` nor `solver='cg'`; got "
                f"selection={selection!r}, solver={solver!r}. Pass a number."
            )
        settings = {"lr": check_real("lr", lr, above=0, below=2), "alpha": 0.0 if self.bayes else float(alpha)}
        super().__init__(list(self.function.parameters.values()), settings)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Take the one group of the constructor; there are no others."""
        if self.param_groups:
            raise ValueError("LevenbergMarquardt moves all parameters of its module in one group; use `selection`.")
        self.param_groups.append(self.defaults | param_group)  # torch's own imports its compiler first: a second

    @property
    def module(self) -> nn.Module:
        return self.function.module

    @property
    def steps_per_sweep(self) -> int:
        """Steps after which every parameter should have moved: 1 without a selection."""
        return 1 if self.selection is None else self.selection.steps_per_sweep(self._trainable_sizes())

    def _trainable_sizes(self) -> dict[str, int]:
        return {name: p.numel() for name, p in self.function.parameters.items() if p.requires_grad}

    @torch.inference_mode(False)
    @torch.no_grad()
    def step(  # type: ignore[override]
        self, inputs: Any, targets: Any, weights: Tensor | None = None, *, fresh: tuple[Any, ...] | None = None
    ) -> StepResult:
        """Make one step on these data.

        Parameters
        ----------
        inputs : Tensor, or nested tuples or dicts of tensors, or `sklm.engine.Reader`
            Passed to the module: a dict as keyword arguments, a tuple as positional ones. First axis: samples. A
            `Reader` reads them chunk by chunk, in every forward pass and for the Jacobian. Repeated on the same
            tensors, a step goes on from the outputs of the last one, if neither parameters nor buffers nor settings
            have changed; call `forget` after changing anything else that the outputs depend on.
        targets : Tensor, or nested tuples or dicts of tensors
            Passed to the loss; for the built-in losses (n_samples,) or (n_samples, n_outputs).
        weights : Tensor of shape (n_samples,), default=None
            Weight of every sample, >= 0; None for ones.
        fresh : tuple (inputs, targets) or (inputs, targets, weights), default=None
            Another mini-batch. A batch with fewer rows than parameters can be fitted exactly whatever it says, so its
            own loss cannot judge a step: with `fresh`, such a step gets one attempt, judged by the mean reduction on
            both batches, and only the gradient test can stop. Other batches do not use it.

        Returns
        -------
        StepResult
        """
        data = inputs, targets, weights
        self._repeats, self._inputs = inputs is self._inputs, inputs
        last = self._remembered(data)
        self.triangle = None
        max_rows = self.jacobian_max_rows
        try:
            with preserved_rng(self.function.device), steady_batchnorm(self.function.modules):
                if not self.n_steps and self.solver != "cg":  # there a module may need all rows at once
                    check_reach(self.function, inputs)
                start = last or self._evaluate(*data)
                result = self._step(*start, fresh)
        except BaseException:
            self.forget()
            raise
        if (self._repeats or self.is_curve) and self.jacobian_max_rows == max_rows:
            self._state = self._state_of(data)
        self.n_steps += 1
        return result

    @torch.inference_mode(False)
    @torch.no_grad()
    def loss(self, inputs: Any, targets: Any, weights: Tensor | None = None) -> float:
        """Return F at the current parameters, of modules in the mode that they are in; arguments as of `step`.

        A step on the same data goes on from there. With ``alpha="bayes"`` the first alpha comes from the first data.
        """
        data = inputs, targets, weights
        self.forget()
        with preserved_rng(self.function.device), steady_batchnorm(self.function.modules):
            self._now = self._evaluate(*data)
        self._inputs, self._state = inputs, self._state_of(data)
        return self._now[1].loss

    def continue_alpha(self, other: LevenbergMarquardt) -> None:
        """Go on from the penalty that another optimizer has found, where both look for it."""
        if self.bayes and other.bayes:
            self.param_groups[0]["alpha"], self._has_alpha = other.param_groups[0]["alpha"], other._has_alpha
            self.starts_low = other.starts_low

    def forget(self) -> None:
        """Drop what a step keeps for a next one on the same data: the outputs, with their graph."""
        self._inputs = self._state = self._now = None
        self.function.forget()

    def _remembered(self, data: tuple[Any, ...]) -> tuple[Batch, Point] | None:
        """Return where the last step ended, if it was on the same data and nothing has changed since."""
        before, now = self._state, self._now
        self._state = None
        if before is not None and now is not None and now[0].seed is None and before == self._state_of(data):
            untouched = torch.equal(self.function.vector(), now[1].theta)  # `.data` leaves no trace in versions
            if untouched:
                batch, point = now
                penalty = self._penalty(batch.total, point.theta)
                if not torch.equal(penalty, batch.penalty):  # alpha has changed
                    batch = replace(batch, penalty=penalty)
                    point = batch.point(self.criterion, point.theta, point.outputs)
                return (batch if batch.repeats else replace(batch, repeats=True)), point
        self.function.forget()
        return None

    def _state_of(self, data: tuple[Any, ...]) -> State | None:
        """Return what the loss at the current parameters depends on, as far as tensors and settings tell."""
        outputs = None if self._now is None else self._now[1].outputs  # the caller has them too
        settings = [self.param_groups[0]["lr"], self.jacobian_max_rows]
        return state_of(self.function.modules, self.criterion, (*data, outputs), settings)

    def _step(self, batch: Batch, point: Point, fresh: tuple[Any, ...] | None) -> StepResult:
        self._now = batch, point
        if not math.isfinite(point.loss):
            return self._unmoved(point, "failed", f"the loss is {point.loss} at the current parameters")
        model = self._linearize(self._at(batch, point, self._indices()))
        at = model.at
        judges = [at]
        if fresh is not None and at.n_rows < len(at.theta):
            judges.append(self._at(*self._evaluate(*fresh, keep=False), at.indices))
        result = self._search(judges, model)
        return self._with_evidence(model, result) if self.bayes else result

    def _with_evidence(self, model: QuadraticModel, result: StepResult) -> StepResult:
        """Step 8: re-estimate alpha for the next step, from the curvature before and the parameters after this one."""
        at, batch, start = model.at, model.at.batch, model.at.point
        group, point = self.param_groups[0], self._now[1] if self._now else start
        alpha = group["alpha"]
        found, weight = None, batch.total / batch.n_rows  # alpha is of the loss with the weights as they are
        if alpha and result.status != "failed":
            found = estimate(
                model.problem,
                at.selected(point.theta),
                at.selected(self.penalized),
                alpha / weight,
                batch.n_rows,
                float(batch.weights @ point.values),
                point.outputs.shape[1],
                self.criterion,
            )
        if found is None:
            return replace(result, alpha=alpha)
        changed, is_near = found.alpha * weight, found.decrement <= NEAR
        if self.starts_low and not found.decrement <= HELD and has_dispersion(self.criterion, point.outputs.shape[1]):
            changed = min(changed, alpha)
        change = abs(math.log(changed / alpha))
        falls = 1 - point.loss / start.loss if start.loss else 0.0
        ftol = self.tests.ftol or 0.0
        settled = is_near and change <= math.sqrt(ftol) and falls <= max(ftol, min(LOSS_TOLERANCE, 1e3 * ftol))
        status, message = result.status, result.message
        if settled and result.accepted and status == "running":
            status, message = "converged", f"the relative reduction of the loss is {falls:.2g}"
        elif status == "converged" and change > math.sqrt(ftol):
            status, message = "running", ""
        if status == "converged":
            message += ", and alpha has settled"
        else:
            group["alpha"] = changed
        return replace(
            result,
            status=status,
            message=message,
            alpha=alpha,
            n_effective=found.n_effective,
            log_evidence=found.log_evidence,
            is_near=is_near,
        )

    def _evaluate(
        self, inputs: Any, targets: Any, weights: Tensor | None = None, *, keep: bool = True
    ) -> tuple[Batch, Point]:
        """Step 1: outputs and losses at the current parameters."""
        function, group = self.function, self.param_groups[0]
        check_real("lr", group["lr"], above=0, below=2)  # schedulers may have set it
        n_samples = count_samples(inputs)
        if n_samples == 0:
            raise ValueError("`inputs` must have at least one sample; got 0.")
        theta = function.vector()
        weights = _normalized(weights, n_samples, theta)
        total: float = n_samples
        share = theta.new_full((n_samples,), 1 / n_samples)
        if weights is not None:
            share, total = weights / weights.sum(), float(weights.sum())
        n_rows = total
        if self.bayes and self.rows_per_weight is not None:
            n_rows = self.rows_per_weight * total
        elif self.bayes and weights is not None:
            n_rows = counted_rows(weights, self.criterion)
        roots = share.sqrt() if weights is not None else share[:1].sqrt().expand(n_samples)

        before = rng_state(function.device)
        outputs = function.outputs(theta, inputs, keep=keep)
        draws = any(map(_differ, before, rng_state(function.device)))
        targets = self.criterion.prepare(outputs, targets)
        per_sample = {"ggn": outputs.shape[1], "sqrt": 1, "mc": 2}[self.criterion.curvature]
        if draws:
            chunk = samples_per_random_chunk(per_sample, theta)
        else:
            chunk = samples_per_chunk(self.jacobian_max_rows, n_samples, per_sample, theta)
        seed = (self.seed + self.n_steps * 1_000_003) % 2**62 if draws else None
        if draws:
            outputs = function.outputs(theta, inputs, seed=seed, chunk=chunk)
        if self.bayes and not self._has_alpha and self.penalized.any():
            of_constant = loss_of_constant(self.criterion, outputs, targets, share)
            first = first_alpha(float(share @ self.criterion.value(outputs, targets)), of_constant, function.n_matrices)
            group["alpha"] = (LOW_SHARE if self.starts_low else 1.0) * first * total / n_rows
            self._has_alpha = True
        batch = Batch(
            inputs,
            targets,
            share,
            roots,
            total,
            n_rows,
            self._penalty(total, theta),
            seed,
            chunk,
            repeats=keep and (self._repeats or self.is_curve),
        )
        return batch, batch.point(self.criterion, theta, outputs)

    def _penalty(self, total: float, theta: Tensor) -> Tensor:
        penalty: Tensor = self.param_groups[0]["alpha"] / total * self.penalized.to(theta)
        return penalty

    def _indices(self) -> Tensor | None:
        """Return the positions of the parameters that move in this step; None for all."""
        function, sizes = self.function, self._trainable_sizes()
        if not sizes:
            raise ValueError("all parameters of `module` are frozen; unfreeze some with requires_grad_().")
        trainable = None  # all
        if len(sizes) < len(function.sizes):
            trainable = function.per_element(lambda parameter: parameter.requires_grad).nonzero()[:, 0]
        if self.selection is None:
            return trainable
        generator = torch.Generator().manual_seed((self.seed + self.n_steps) % 2**62)
        chosen = self.selection.select(sizes, self.n_steps, generator).to(function.device)
        return chosen if trainable is None else trainable[chosen]

    def _at(self, batch: Batch, point: Point, indices: Tensor | None) -> Linearization:
        seed = (self.seed + self.n_steps) % 2**62
        return Linearization(self.function, self.criterion, batch, point, indices, seed)

    def _linearize(self, at: Linearization) -> QuadraticModel:
        """Step 2: the model of this step, and the reason for its solver."""
        n_rows, n_params = at.n_rows, len(at.theta)
        if self._is_matrix_free(n_rows, n_params):
            products = at.matrix_free(self._first_gradient)
            self._first_gradient = self._first_gradient or float(torch.linalg.vector_norm(products.gradient))
            return QuadraticModel(at, products, f"cg: {n_params} parameters, {n_rows} rows")
        solver, why = choose_solver(self.solver, n_rows, n_params, at.theta.dtype, curve=self.is_curve)
        chunk = at.batch.chunk
        while True:
            try:
                return QuadraticModel(at, at.problem(solver, chunk), why)
            except RuntimeError as error:
                if not is_out_of_memory(error) or chunk == 1 or at.batch.seed is not None:
                    raise
            self.function.forget()
            chunk = max(1, chunk // 2)
            self.jacobian_max_rows = chunk * at.rows_per_sample
            warnings.warn(
                f"out of memory; the Jacobian is now computed in chunks of jacobian_max_rows={self.jacobian_max_rows}.",
                RuntimeWarning,
                stacklevel=4,
            )

    def _is_matrix_free(self, n_rows: int, n_params: int) -> bool:
        if self.bayes:
            return False
        return self.solver == "cg" or (self.solver == "auto" and min(n_rows, n_params) > CG_MIN_SIZE)

    def _search(self, judges: list[Linearization], model: QuadraticModel) -> StepResult:
        """Try damping values until one lowers the loss, a test passes or the attempts are used up: steps 3 to 6.

        The first of `judges` is the batch of the step; with a second one, both judge a single attempt.
        """
        at, point, problem = model.at, model.at.point, model.problem
        alone = len(judges) == 1
        unusable = self._unusable(model)
        if unusable:
            return self._unmoved(point, "failed", unusable, model.solver)
        passed = self.tests.at_point(model.cosine)
        if passed:
            found = self._unmoved(point, "converged", passed, model.solver, cosine=model.cosine)
            found = self._confirmed(at, model, found)
            if found.status == "converged" or found.accepted:
                return found

        lr = self.param_groups[0]["lr"]
        scale = self.damping.scale(problem.diagonal, at.indices, self.function.n_params)
        root = scale.sqrt()
        parameter_norm = float(torch.linalg.vector_norm(root * at.theta))
        if not alone:
            floor = UNDERDETERMINED_DAMPING * float(problem.diagonal.max() / scale.max())
            self.damping.value = min(max(self.damping.value, floor), 1e4 * floor)  # noise must not drive it to infinity
            self.damping.clip()
        gain_ratio, accepted, kept = math.nan, False, point
        message = ""
        attempts, limit = 0, self.max_attempts if alone else 1
        while attempts < limit:
            attempts += 1
            used = self.damping.value
            accepted = False
            step, predicted = model.propose(used * scale, lr, accelerate=self._accelerates)
            if step is not None:
                trials = [judge.trial(step) for judge in judges]
                actual = sum(judge.reduction(trial) for judge, trial in zip(judges, trials, strict=True)) / len(judges)
                gain_ratio = actual / predicted if predicted > 0 else math.nan
                accepted = gain_ratio > MINIMUM_GAIN_RATIO and (trials[0].loss <= point.loss or not alone)
                kept = trials[0] if accepted else point
                if alone:
                    message = self.tests.after_attempt(
                        loss=point.loss,
                        actual_reduction=actual,
                        predicted_reduction=predicted,
                        step_norm=float(torch.linalg.vector_norm(root * step)),
                        parameter_norm=parameter_norm,
                    )
            if self.acceleration == "auto" and self.is_curve and not 0.75 <= gain_ratio <= 1.25:
                self._accelerates = True
            at_maximum = used >= self.damping.maximum
            if accepted:
                self.damping.accepted(gain_ratio)
            else:
                self.damping.rejected()
            self.damping.clip()
            if message and accepted and self.damping.value < used and bool((used * scale > problem.diagonal).all()):
                message = ""  # the damping alone makes such a step short, and the next one has less of it
            if accepted or message or at_maximum:
                break
        if accepted:
            self._move(at.batch, kept)
        if message:
            status = "converged"
        elif accepted:
            status = "running"
        elif at_maximum:
            status, message = "failed", f"no step lowers the loss with damping at its maximum {used:g}"
        else:
            status, message = "running", f"no step lowered the loss in {attempts} attempts"
        result = replace(
            self._unmoved(point, status, message, model.solver, cosine=model.cosine),
            loss=kept.loss,
            outputs=kept.outputs,
            accepted=accepted,
            attempts=attempts,
            damping=used,
            gain_ratio=gain_ratio,
        )
        if status != "converged":
            return result
        return self._confirmed(replace(at, point=kept), None if accepted else model, result)

    def _unusable(self, model: QuadraticModel) -> str:
        """Return why no step can be made from a model, or an empty string."""
        problem = model.problem
        stiffest, steepest = largest(problem.diagonal), largest(problem.gradient)
        if not math.isfinite(stiffest) or not math.isfinite(steepest):
            return "the Jacobian is not finite at the current parameters"
        if problem.residual_norm == 0 < steepest:
            return f"the squares of the residuals are too small for {problem.gradient.dtype}; scale the targets"
        if stiffest == 0 == steepest and problem.residual_norm > 0 and self.selection is None:
            return (
                "the outputs of the module do not depend on its parameters here; compute them with torch operations, "
                "without .item(), .detach() or .numpy()"
            )
        return ""

    def _confirmed(self, at: Linearization, model: QuadraticModel | None, result: StepResult) -> StepResult:
        """Step 7: polish a converged step of a curve, and take the convergence back where the offset denies it."""
        batch, point = at.batch, at.point
        if not self.is_curve or batch.seed is not None or self.criterion.curvature == "mc":
            return result
        model = model or self._linearize(at)
        residual_norm, eps = model.problem.residual_norm, torch.finfo(point.theta.dtype).eps
        if not isinstance(model.problem, QR):
            return result
        size = float((batch.weights @ point.outputs.square()).sum().sqrt())
        rounding = ROUNDING * eps * max(1.0, size / residual_norm) if residual_norm else math.inf
        fall = model.offset / result.cosine if result.accepted and result.cosine > 0 else 1.0
        best, model = polish(
            model, lambda point: self._linearize(replace(at, point=point)), fall=fall, rounding=rounding
        )
        if at.indices is None and not batch.is_penalized:
            self.triangle = best.theta, model.problem.triangle  # type: ignore[attr-defined]  # a QR, as at the start
        moved = best is not point
        if moved:
            self._move(batch, best)
        accepted = result.accepted or moved
        result = replace(result, loss=best.loss, outputs=best.outputs, cosine=model.cosine, accepted=accepted)
        if not (rounding < 1 and not model.offset <= OFFSET_LIMIT):
            return result
        if result.damping < self.damping.maximum or result.accepted:
            return replace(result, status="running", message="")
        if model.problem.residual_norm <= eps**0.5 * size:  # so small that it may be rounding
            return result
        reason = f"no step lowers the loss with damping at its maximum {result.damping:g}"
        return replace(result, status="failed", message=reason)

    def _move(self, batch: Batch, point: Point) -> None:
        self.function.assign(point.theta)
        self._now = batch, point

    def _unmoved(
        self, point: Point, status: str, message: str, solver: str = "", cosine: float = math.nan
    ) -> StepResult:
        return StepResult(
            loss=point.loss,
            initial_loss=point.loss,
            accepted=False,
            attempts=0,
            damping=self.damping.value,
            gain_ratio=math.nan,
            status=status,
            message=message,
            solver=solver,
            outputs=point.outputs,
            jacobian=self.function.method,
            cosine=cosine,
        )

    def state_dict(self) -> dict[str, Any]:
        """Return learning rate, alpha, damping and step counter; with the module's own it resumes bit for bit."""
        state = super().state_dict()
        state["levenberg_marquardt"] = {
            "n_steps": self.n_steps,
            "seed": self.seed,
            "damping": self.damping.state_dict(),
            "accelerates": self._accelerates,
            "first_gradient": self._first_gradient,
            "has_alpha": self._has_alpha,
            "starts_low": self.starts_low,
            "rows_per_weight": self.rows_per_weight,
            "function": self.function.state_dict(),
        }
        return state

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take the state that `state_dict` returned.

        Raises
        ------
        ValueError
            For the state of another optimizer.
        """
        if "levenberg_marquardt" not in state_dict:
            raise ValueError(
                f"`state_dict` must come from LevenbergMarquardt.state_dict(); got one with {', '.join(state_dict)}."
            )
        own = state_dict["levenberg_marquardt"]
        super().load_state_dict({k: v for k, v in state_dict.items() if k != "levenberg_marquardt"})
        self.n_steps, self.seed = own["n_steps"], own["seed"]
        self._accelerates, self._first_gradient = own["accelerates"], own["first_gradient"]
        self._has_alpha = own["has_alpha"]
        self.starts_low = own.get("starts_low", False)
        self.rows_per_weight = own.get("rows_per_weight", self.rows_per_weight)
        self.damping.load_state_dict(own["damping"])
        if "function" in own:
            self.function.load_state_dict(own["function"])

    def __getstate__(self) -> dict[str, Any]:
        own = {name: getattr(self, name) for name in _OWN_ATTRIBUTES}
        return {
            **super().__getstate__(),
            **own,
            "triangle": None,
            "_inputs": None,
            "_repeats": False,
            "_state": None,
            "_now": None,
        }


_OWN_ATTRIBUTES = (
    "function",
    "criterion",
    "damping",
    "selection",
    "solver",
    "max_attempts",
    "jacobian_max_rows",
    "tests",
    "penalized",
    "bayes",
    "rows_per_weight",
    "starts_low",
    "_has_alpha",
    "box",
    "acceleration",
    "_accelerates",
    "_first_gradient",
    "is_curve",
    "seed",
    "n_steps",
)

_OF_THE_LAST_STEP = ("triangle", "_inputs", "_repeats", "_state", "_now")


def _normalized(weights: Tensor | None, n_samples: int, like: Tensor) -> Tensor | None:
    """Return checked weights of shape (n_samples,)."""
    if weights is None:
        return None
    weights = torch.as_tensor(weights).to(like).reshape(-1)
    if len(weights) != n_samples:
        raise ValueError(f"`weights` must have one number per sample; got {len(weights)} for {n_samples} samples.")
    if not bool(torch.isfinite(weights).all() & (weights >= 0).all()) or not 0 < float(weights.sum()) < math.inf:
        raise ValueError(
            "`weights` must be finite and >= 0 with a positive, finite sum; drop the samples that do not count."
        )
    return weights


def _differ(one: Tensor, other: Tensor) -> bool:
    return not torch.equal(one, other)
