"""Training and inference."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from sklm._data import Batch, Batches
from sklm._device import draw_seed
from sklm._net.components import NoStartError
from sklm._net.intake import Data
from sklm._net.run import MeanLoss, PrintLog, Run, StopTraining, raised_by_callback
from sklm._net.saving import WithFiles
from sklm._progress import Progress
from sklm.curves import Curve, is_curve
from sklm.engine.inputs import Reader, call_module, chunks, tensors
from sklm.engine.jacobian import element_names
from sklm.modules import MLP

PREDICT_ROWS = 65_536  # rows per forward pass outside training: bounds the memory of hidden layers
SECOND_EPOCHS = 10  # times as many for a curve whose first run has not converged
DEFAULT_EPOCHS = 100
FAR_PATIENCE = 8  # times n_iter_no_change: epochs far from a minimum that early stopping does not count at most
STALL_EPOCHS = 100  # of a second run
STALL = 0.01  # fall of the loss in these, in units of the loss over the rows: a tenth of a standard error
EVIDENCE = ("alpha", "n_effective", "log_evidence")
EVIDENCE_NOISE = 5.0  # of the log evidence of a network: its curvature is an approximation
LINEAR = 1e-3  # distance of the gain ratio from 1
ALPHA_CHANGE = 2.0  # a factor: alpha that still changes so much has not been found
# Mini-batches: an epoch in which the loss falls by less than a share makes them larger by a factor, up to all rows.
LEAST_FALL, GROWTH, ALL = 0.01, 4, 2**30
RESTART_SEED = 0x9E3779B1  # odd, as torch takes seeds modulo 2**32; far from those of the epochs of a run


class LMNet(WithFiles):
    """What `LMRegressor` and `LMClassifier` share; see the text of the package."""

    @property
    def _default_callbacks(self) -> list[tuple[str, Any]]:
        ours = {"print_log": PrintLog(), "train_loss": MeanLoss("train_loss"), "valid_loss": MeanLoss("valid_loss")}
        return [(name, ours.get(name, callback)) for name, callback in super()._default_callbacks]

    # ------------------------------------------------------------------ training

    def _fit(self, X: Any, y: Any, sample_weight: Any, *, cold: bool, classes: Any = None, warn: bool = True) -> None:
        """Validate, build (when `cold`) and train; on failure before the end of an epoch, restore the estimator."""
        before = dict(self.__dict__)
        parameters = None if cold else copy.deepcopy(self.module_.state_dict())
        reset = cold or not hasattr(self, "n_outputs_")  # `initialize` or `load_params` came before any data
        run = Run()
        finished = False
        self.check_training_readiness()
        try:
            self._validate_params()
            with torch.inference_mode(mode=False):
                data = self._training_data(X, y, sample_weight, reset=reset, classes=classes)
                if cold:
                    self._train_from_starts(data)
                else:
                    self._continue_parts(data)
                    self._run = Run()
                    self._train(data, self.max_epochs)
            finished = True
        finally:
            run = self.__dict__.pop("_run", run)
            if not finished and not run.n_epochs:
                self.__dict__.clear()
                self.__dict__.update(before)
                if parameters is not None:
                    self.module_.load_state_dict(parameters)
        if self.verbose:
            print(self.message_, flush=True)  # noqa: T201
        if run.verdict == "Stopped" or run.is_constant:
            warnings.warn(self.message_, ConvergenceWarning, stacklevel=3)
        elif run.exhausted and warn:
            self._warn_not_converged(on_all=run.on_all)

    def _train_from_starts(self, data: Data) -> None:
        """Fit from `n_init` starts and keep the best fit; a curve gets a second run where the first has not converged.

        What a run leaves on the estimator is in its `__dict__`, so a copy of that keeps the best one.
        """
        # of a curve the same data give the same numbers, as by its peers: several may fit equally
        seed = 0 if self.random_state is None and is_curve(self.module) else draw_seed(self.random_state)
        best: dict[str, Any] = {}
        try:
            for restart in range(self.n_init):
                run = self._train_once(data, seed, restart, best)
                if (run.exhausted or run.verdict == "Stopped") and self._is_left_to_us():
                    self._train_once(data, seed, restart, best, "strategy")
                goes_on = run.verdict != "Stopped by a callback" and self._has_two_alphas()
                if goes_on and self._low_alpha_pays(data, seed, restart, best):
                    self._train_once(data, seed, restart, best, "alpha")
                if isinstance(self.module_, Curve):
                    break  # its starts were compared before the fit
            if not best:
                raise NoStartError(
                    f"no start of {self.n_init} has a finite loss. Check the module and the scale of X and y."
                )
        finally:
            if best:
                self.__dict__.clear()
                self.__dict__.update(best)

    def _train_once(
        self,
        data: Data,
        seed: int,
        restart: int,
        best: dict[str, Any],
        further: str = "",
    ) -> Run:
        """Fit from one start, put the estimator's state in `best` if it is better, and return the run."""
        self._run = run = Run(further=further)
        second = further == "strategy"
        try:
            self._initialize_parts(data, seed + restart * RESTART_SEED)
            self._split_seed = seed  # one split for all starts
            if self.n_init > 1 and not isinstance(self.module_, Curve):
                run.start = f"start {restart + 1} of {self.n_init}"
            title = "second strategy" if second else run.start
            self._train(data, self.max_epochs * (SECOND_EPOCHS if second else 1), title)
        except NoStartError:
            if self.n_init == 1:
                raise
        finally:
            if run.n_epochs and not run.score >= best.get("_run", Run()).score:
                best.clear()
                best.update(self.__dict__)
        return run

    def _is_left_to_us(self) -> bool:
        """Return whether the fit is that of a curve with full batches, and damping and its length are left to us."""
        ours = self.damping == "nielsen" and not self.get_params_for("damping") and self.max_epochs >= DEFAULT_EPOCHS
        ours = ours and any(tolerance is not None for tolerance in (self.ftol, self.xtol, self.gtol))
        return ours and self._on_all_rows and self.selection is None and self.optimizer_.is_curve

    def _has_two_alphas(self) -> bool:
        """Return whether the evidence has several maxima, from one of which a large first alpha does not get away."""
        return self._estimates_alpha and self.optimizer_.function.n_matrices > 1  # of a linear module there is one

    def _low_alpha_pays(self, data: Data, seed: int, restart: int, best: dict[str, Any]) -> bool:
        """Return whether callbacks should see the run with a low first alpha: whether it is the best without them."""
        if self.callbacks in (None, [], "disable"):
            return True
        before = dict(self.__dict__)
        self.callbacks, self.verbose = "disable", 0
        try:
            score = self._train_once(data, seed, restart, {}, "alpha").score
        finally:
            self.__dict__.clear()
            self.__dict__.update(before)
        return not score >= best.get("_run", Run()).score

    def _train(self, data: Data, max_epochs: int, title: str = "") -> None:
        with Progress(max_epochs, title, shown=self.verbose == 1) as self._run.progress:
            self._run_epochs(data, max_epochs)

    def _run_epochs(self, data: Data, max_epochs: int) -> None:
        run = self._run
        self.notify("on_train_begin", X=data.X, y=data.y)
        try:
            self.fit_loop(data, epochs=max_epochs)
            run.exhausted = True
            run.verdict, run.reason = "Not converged", f"max_epochs={self.max_epochs} reached"
            if run.further == "strategy":
                run.reason += f", and {SECOND_EPOCHS} times as many with a second strategy"
        except StopTraining:
            pass
        except KeyboardInterrupt as interrupt:
            has_steps = any("damping" in batch for row in self.history[-1:] for batch in row["batches"])
            callbacks = [callback for _, callback in self.callbacks_]
            if not raised_by_callback(interrupt, callbacks) or not (run.n_epochs or has_steps):
                run.verdict, run.reason = "Interrupted", ""
                self._finish(restore=True)
                raise
            if has_steps and "train_loss" not in self.history[-1]:  # within an epoch
                self.on_epoch_end(self)
            if has_steps:
                self._judge_epoch()
            run.verdict, run.reason = "Stopped by a callback", ""
        except BaseException as error:
            run.verdict, run.reason = "Failed", f"{type(error).__name__}: {error}"
            self._finish(restore=True)
            raise
        self._finish(restore=bool(self.early_stopping) or self._by_evidence)
        left, history = self.optimizer_.function.vector(), self.history_
        self.notify("on_train_end", X=data.X, y=data.y)
        if not torch.equal(left, self.optimizer_.function.vector()):
            self._follow_callback(is_described=self.history_ is not history)

    def notify(self, method_name: str, **cb_kwargs: Any) -> None:
        """Call the hook of the net and of every callback; after an epoch, decide whether to go on.

        Parameters
        ----------
        method_name : str
            ``"on_train_begin"``, ``"on_epoch_end"`` and so on, see skorch.
        **cb_kwargs
            Arguments of the hook.
        """
        super().notify(method_name, **cb_kwargs)
        if method_name == "on_epoch_end":
            self._judge_epoch()
            if self._run.verdict:
                raise StopTraining

    def on_epoch_begin(self, net: Any, dataset_train: Any = None, dataset_valid: Any = None, **kwargs: Any) -> None:
        """Open a new epoch in the history."""
        super().on_epoch_begin(net, dataset_train=dataset_train, dataset_valid=dataset_valid, **kwargs)
        n_batches = 1
        if not self._on_all_rows:  # batches that have grown stay so when a fit goes on with as many rows
            begin = [self.batch_size, len(dataset_train)]
            if not self._run.n_epochs and len(self.history) > 1:
                self._run.is_new = self.history[-2].get("first_batch_size") != begin
            self.history.record("first_batch_size", begin)
            batches = self.get_iterator(dataset_train, training=True)
            n_batches = len(batches)
            self.history.record("batch_size", batches.batch_size)
            self.history.record("growth", self._growth_so_far())
        self._run.on_all = n_batches == 1
        self._run.steps_needed = max(n_batches, self.optimizer_.steps_per_sweep)
        self._run.train = dataset_train

    def on_epoch_end(self, net: Any, dataset_train: Any = None, dataset_valid: Any = None, **kwargs: Any) -> None:
        """Record the damping of the epoch's last step, all its attempts, its last gain ratio and the mean losses."""
        row = self.history[-1]
        steps = [batch for batch in row["batches"] if "damping" in batch]
        row["attempts"] = sum(step["attempts"] for step in steps)
        for name in ("damping", "gain_ratio", *(EVIDENCE if self.optimizer_.bayes else ())):
            row[name] = steps[-1][name]
        for name, part in (("train_loss", "train"), ("valid_loss", "valid"), ("initial_loss", "train")):
            found = [(float(batch[name]), batch[f"{part}_batch_size"]) for batch in row["batches"] if name in batch]
            if len(found) == 1:
                row[name] = found[0][0]
            elif found:  # also with callbacks="disable", where skorch does not average
                row[name] = sum(value * size for value, size in found) / sum(size for _, size in found)

    def train_step(self, batch: Batch, **fit_params: Any) -> dict[str, Any]:
        """Make one Levenberg-Marquardt step on a batch.

        Parameters
        ----------
        batch : Batch

        Returns
        -------
        dict
            ``"loss"``, after the step, and ``"y_pred"``, the module's outputs after it.
        """
        run = self._run
        if not all(part.training for part in self.optimizer_.function.modules):
            self._set_training(True)
        following = batch.following
        fresh = None if following is None else (following[0], following.targets, following.weights)
        result = self.optimizer_.step(batch[0], batch.targets, batch.weights, fresh=fresh)
        if result.status == "failed" and not result.attempts and not run.n_steps:
            raise NoStartError(f"{result.message}. Check the module, its initial values and the scale of X and y.")
        run.n_steps += 1
        run.settled = 0 if result.status == "running" else run.settled + 1
        run.status, run.reason, run.is_near = result.status, result.message, result.is_near
        names = ["damping", "attempts", "gain_ratio", *(EVIDENCE if self.optimizer_.bayes else ())]
        if not self._on_all_rows:
            names.append("initial_loss")
        self.history[-1]["batches"][-1].update((name, getattr(result, name)) for name in names)
        return {"loss": torch.tensor(result.loss, dtype=torch.float64), "y_pred": result.outputs}

    @torch.no_grad()
    def validation_step(self, batch: Batch, **fit_params: Any) -> dict[str, Any]:
        """Return loss (weighted mean, without the penalty) and outputs of a batch in evaluation mode."""
        self._set_training(False)
        outputs = self.infer(batch[0])
        flat = outputs.reshape(len(outputs), -1)
        values = self.criterion_.value(flat, self.criterion_.prepare(flat, batch.targets))
        weights = batch.weights
        loss = values.mean() if weights is None else (weights @ values) / weights.sum()
        return {"loss": loss, "y_pred": outputs}

    def _judge_epoch(self) -> None:
        """Count the epoch, keep its parameters when they are the best, and set the verdict when it was the last."""
        run = self._run
        run.n_epochs += 1
        row = self.history[-1]
        if run.progress is not None:
            run.progress.update(row)
        score, needed = row["train_loss"], run.best_score
        is_early = run.n_epochs <= FAR_PATIENCE * self.n_iter_no_change  # without noise all epochs may be far
        if self._estimates_alpha and not run.is_near and (is_early or not self.early_stopping):
            run.far_epoch = row["epoch"]
        if self.early_stopping:
            # on its way a low alpha fits the noise, which a few validation rows may like
            counts = run.is_near or run.further != "alpha"
            score = row.get("valid_loss", math.nan) if counts else math.nan
        elif self._by_evidence:  # a later epoch fits more closely, so it takes the place of one that is hardly better
            score = -row["log_evidence"] if run.is_near else math.nan
            run.least_score = min(run.least_score, score)  # in this order a nan does not count
            needed = run.least_score + EVIDENCE_NOISE
            change = max(row["alpha"], run.landmark_alpha) / min(row["alpha"], run.landmark_alpha)
            if score < run.landmark - EVIDENCE_NOISE or (change > ALPHA_CHANGE and math.isfinite(score)):
                run.landmark, run.landmark_alpha, run.landmark_epoch = score, row["alpha"], row["epoch"]
        if score < needed:
            # with the full batch, and without validation or evidence, the last parameters are the best
            any_epoch = self.early_stopping or self._by_evidence or run.steps_needed > 1
            run.keep(score, row["epoch"], self.module_ if any_epoch else None)
        if not run.on_all:
            self._judge_batches()
        begun = max(row["epoch"] - run.n_epochs, run.grown_epoch, run.far_epoch)
        waited = row["epoch"] - max(run.best_epoch or 0, begun)
        if run.on_all and run.settled >= run.steps_needed:
            run.verdict = "Converged" if run.status == "converged" else "Stopped"
        elif run.further == "strategy" and self._stalls():
            run.verdict, run.exhausted = "Not converged", True
            run.reason = (
                f"max_epochs={self.max_epochs} reached, and a second strategy has lowered the loss by less than a "
                f"hundredth of its mean over the rows in {STALL_EPOCHS} epochs"
            )
        elif self.early_stopping and waited >= self.n_iter_no_change:
            run.verdict = "Stopped early"
            run.reason = f"no validation loss below {run.best_score:.6g} in the last {waited} epochs"
        elif self._by_evidence and run.best_epoch and waited >= self.n_iter_no_change:
            run.verdict = "Converged"
            run.reason = f"the log evidence has fallen from {-run.least_score:.6g} for {waited} epochs"
        elif self._by_evidence and run.landmark_epoch:
            stalled = row["epoch"] - max(run.landmark_epoch, begun)
            # the evidence of a linear model, whose gain ratio is 1, is exact
            if stalled >= self.n_iter_no_change and any(
                not abs(ratio - 1) <= LINEAR for ratio in self.history[-stalled:, "gain_ratio"]
            ):
                run.verdict = "Converged"
                run.reason = f"the log evidence has risen by less than {EVIDENCE_NOISE:g} in {stalled} epochs"

    def _stalls(self) -> bool:
        """Return whether a curve runs down a valley without an end, in which its parameters mean nothing."""
        run = self._run
        if run.n_epochs <= STALL_EPOCHS or run.train is None:
            return False
        before, now = self.history[-1 - STALL_EPOCHS, "train_loss"], self.history[-1, "train_loss"]
        return bool(before - now < STALL * now / len(run.train))

    def _judge_batches(self) -> None:
        """Let the batches grow where they have nothing more to say: the loss before each step has stopped to fall."""
        run, rows = self._run, self.history[-1:] if self._run.n_epochs == 1 and self._run.is_new else self.history[-2:]
        sizes = {row.get("batch_size") for row in rows}
        stalls = (
            len(rows) == 2 and len(sizes) == 1 and rows[1]["initial_loss"] > (1 - LEAST_FALL) * rows[0]["initial_loss"]
        )
        settled = run.settled >= run.steps_needed
        if not stalls and not settled:
            return
        growth = rows[-1]["growth"] * GROWTH
        self.history.record("growth", ALL if settled else growth)
        run.settled, run.grown_epoch = 0, self.history[-1, "epoch"]
        if not self.early_stopping:
            run.best_score = math.inf  # losses after a step on a batch of another size do not compare

    @property
    def _estimates_alpha(self) -> bool:
        """Whether alpha comes from the evidence."""
        return self.optimizer_.bayes and self.optimizer_.param_groups[0]["alpha"] > 0

    @property
    def _by_evidence(self) -> bool:
        """Whether epochs are compared by their evidence: losses with different alpha do not compare."""
        return self._estimates_alpha and not self.early_stopping

    def _finish(self, *, restore: bool) -> None:
        """Set the fitted attributes; with `restore`, go back to the best parameters of this run."""
        run = self._run
        self.optimizer_.forget()
        if not run.n_epochs:
            return
        rows = [row for row in self.history if "train_loss" in row]
        last, reason = rows[-1], run.reason
        if restore and run.best_state is not None and run.best_epoch is not None:
            self.module_.load_state_dict(run.best_state)  # also where an epoch after the best has begun
            if run.best_epoch != last["epoch"]:
                last = next(row for row in rows if row["epoch"] == run.best_epoch)
                reason = f"{reason}; the parameters are those of epoch {run.best_epoch}, the best".removeprefix("; ")
        self._set_training(False)
        self._describe_epochs(rows, last)
        run.score = self._score_of_run(last)
        if hasattr(self, "n_effective_"):
            found = f"alpha={self.alpha_:.3g}, {self.n_effective_:.4g} effective parameters"
            reason = f"{reason}; {found}".removeprefix("; ")
        is_network = not self.optimizer_.is_curve and run.verdict not in ("Failed", "Interrupted")
        if is_network and run.train is not None:
            run.is_constant, small = self._are_constant(run.train)
            found = ""
            if run.is_constant:
                found = "the outputs are constant; try another random_state, n_init or damping"
                if self._has_constant_inputs(run.train):
                    found = "the outputs are constant, as all columns of X are"
                elif not isinstance(self.module_, MLP):
                    found += ", or scale X and y to mean 0 and variance 1"
            elif small:
                run.is_constant = True
                found = (
                    f"the outputs {small} hardly vary, as their targets are small beside the others, with which they "
                    "share a loss; scale y, as by TransformedTargetRegressor(..., transformer=StandardScaler())"
                )
            reason = f"{reason}; {found}".removeprefix("; ").removesuffix("; ")
        self.converged_ = run.verdict == "Converged"
        epochs = "epoch" if self.n_iter_ == 1 else "epochs"
        if self.optimizer_.is_curve and self.dtype_ == torch.float32:
            reason = f"{reason}; float32 limits the parameters to 7 digits or fewer".removeprefix("; ")
        ended = f"{run.verdict} after {self.n_iter_} {epochs}{f' ({run.start})' if run.start else ''}"
        self.message_ = f"{ended}{': ' if reason else ''}{reason}."

    def _score_of_run(self, last: dict[str, Any]) -> float:
        """Return what the run is compared with others by, for the epoch that it ends with."""
        run = self._run
        if self.early_stopping or (self._by_evidence and run.best_epoch):
            return run.best_score
        if self._by_evidence:
            evidence: float = last["log_evidence"]
            return math.inf if math.isnan(evidence) else -evidence
        if not run.on_all and run.train is not None:  # the losses of small batches do not compare
            return self._loss(run.train)
        return self.loss_

    def _describe_epochs(self, rows: list[dict[str, Any]], last: dict[str, Any]) -> None:
        """Set the fitted attributes that the rows of the history tell, for the parameters of the epoch `last`."""
        self._epoch = last["epoch"]
        self.n_iter_ = len(rows)
        self.loss_curve_ = [float(row["train_loss"]) for row in rows]
        self.loss_ = float(last["train_loss"])
        self.alpha_ = last.get("alpha", self.optimizer_.param_groups[0]["alpha"])
        for name in ("n_effective", "log_evidence"):
            self.__dict__.pop(f"{name}_", None)
            if math.isfinite(last.get(name, math.nan)):
                setattr(self, f"{name}_", last[name])

    def _follow_callback(self, *, is_described: bool) -> None:
        """Set the fitted attributes anew for parameters that a callback has loaded, from the history if it has that."""
        rows, train = [row for row in self.history if "train_loss" in row], self._run.train
        if rows:
            self._describe_epochs(rows, rows[-1])
        if not is_described and train is not None:
            for name in ("n_effective_", "log_evidence_"):
                self.__dict__.pop(name, None)
            self.loss_ = self.optimizer_.loss(train.X, train.targets, train.weights)
            self.optimizer_.forget()
        ended = self.message_.partition(": ")[0].removesuffix(".")
        self.message_ = f"{ended}; the parameters are those that a callback has loaded."

    def _warn_not_converged(self, *, on_all: bool) -> None:
        advice = (
            "Raise max_epochs, or loosen ftol."
            if on_all
            else "Raise max_epochs or batch_size, or set early_stopping=True."
        )
        if self.optimizer_.is_curve:
            advice = "The curve may not suit the data; give initial values or bounds, or raise max_epochs."
        warnings.warn(
            f"max_epochs={self.max_epochs} reached before a stopping test passed; loss {self.loss_:.6g}. {advice}",
            ConvergenceWarning,
            stacklevel=4,
        )

    # ------------------------------------------------------------------ inference

    @property
    def parameters_(self) -> dict[str, float]:
        """Parameters by name, the fixed ones included; ``name[i, j]`` for the elements of a tensor."""
        check_is_fitted(self, "module_")
        parameters = list(self.module_.named_parameters())
        values = [value for _, parameter in parameters for value in parameter.detach().reshape(-1).tolist()]
        return dict(zip(element_names(parameters), values, strict=True))

    def infer(self, x: Any, **fit_params: Any) -> Tensor:
        """Return the module's output for inputs on its device: a dict as keyword arguments.

        Inputs in float64 are computed in float64 also by a module fitted in float32.
        """
        if isinstance(x, Reader):
            return torch.cat([self.infer(part) for _, part in chunks(x, PREDICT_ROWS)])
        module = self.module_
        if any(tensor.dtype == torch.float64 for tensor in tensors(x)) and self.dtype_ != torch.float64:
            module = copy.deepcopy(module).double()
        output: Tensor = call_module(module, x)
        return output

    def evaluation_step(self, batch: Any, training: bool = False) -> Tensor:
        """Return the module's output for a batch, in evaluation mode unless `training`."""
        self._set_training(training)
        with torch.set_grad_enabled(training):
            outputs = self.infer(batch[0])
        return outputs if training else outputs.detach()  # a view of a parameter gets a graph again

    def forward_iter(self, X: Any, training: bool = False, device: str = "cpu") -> Iterator[Tensor]:
        """Yield the module's outputs for X, at most 65 536 rows at once.

        Parameters
        ----------
        X : array, frame, tensor, dict of arrays, or Dataset
        training : bool, default=False
            Mode of the module.
        device : str, default="cpu"
            Where the outputs go.
        """
        check_is_fitted(self, "module_")
        data = self._prediction_data(X)
        for batch in Batches(data, PREDICT_ROWS):
            yield self.evaluation_step(batch, training=training).to(device)

    def _outputs(self, X: Any) -> Tensor:
        """Return the module's outputs for X on the CPU, of shape (n_samples, n_outputs)."""
        check_is_fitted(self, "module_")
        return torch.cat([part.reshape(len(part), -1) for part in self.forward_iter(X, device="cpu")])

    def _mean(self, X: Any) -> np.ndarray:
        """Return the expected target for every sample, (n_samples, n_outputs): predictions or probabilities."""
        outputs = self._outputs(X)
        mean: np.ndarray = self.criterion_.mean(outputs).numpy()
        return mean
