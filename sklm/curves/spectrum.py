"""`Peaks`: a sum of peaks on a background, guessed one peak after another in what the others leave."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import scipy  # which loads scipy.signal, a second of work, when it is asked for
import torch
from torch import Tensor

from sklm.curves.curve import Bounds, ReadyCurve, merged_bounds
from sklm.curves.models import checked_count
from sklm.curves.peaks import Gaussian, Peak, place_peak, scaled
from sklm.curves.separable import best_candidate, polynomial, thinned
from sklm.engine.losses import SquaredError
from sklm.engine.multistart import best_of

GUESS_STEPS = 10  # enough to tell the guesses apart
NARROWEST = 1e-3  # times the median of several guesses: how near to its only bound a guess may come
SAME = 1e-3  # relative difference of losses of trials that are taken for one
N_ROUNDS = 4  # in which each peak is placed again in what the others leave


class Peaks(ReadyCurve):
    """Sum of equal kinds of peaks on a background.

    Parameters
    ----------
    n_peaks : int, default=1
    peak : Peak subclass, default=Gaussian
        `Gaussian`, `Lorentzian`, `Voigt` or `PseudoVoigt`; its parameters get a number: height1, center1, sigma1,
        height2, ...
    background : {"constant", "linear"} or None, default="constant"
        Parameter ``offset``, or ``offset`` and ``slope``: offset + slope * x.
    shared : str or sequence of str, default=()
        Parameters of the peak, such as ``"sigma"``, that are one for all peaks; their names get no number.
    bounds : dict of str to (lower, upper), default=None
    fixed : str or sequence of str, default=()
    **initial : float
        As in `Curve`; a name without a number, such as ``height``, stands for all peaks.

    Examples
    --------
    >>> from sklm.curves import Peaks
    >>> list(Peaks(n_peaks=1, background="linear").parameter_bounds)
    ['sigma1']
    >>> [name for name, _ in Peaks(n_peaks=2, shared="sigma").named_parameters()]
    ['height1', 'center1', 'height2', 'center2', 'sigma', 'offset']
    """

    function: _SumOfPeaks

    def __init__(
        self,
        n_features_in: int = 1,
        feature_names_in: Sequence[str] | None = None,
        *,
        n_peaks: int = 1,
        peak: type[Peak] = Gaussian,
        background: str | None = "constant",
        shared: str | Iterable[str] = (),
        bounds: Bounds | None = None,
        fixed: str | Iterable[str] = (),
        **initial: float,
    ) -> None:
        self.n_peaks = checked_count("n_peaks", n_peaks)
        if not (isinstance(peak, type) and issubclass(peak, Peak) and peak is not Peak):
            raise ValueError(
                f"`module__peak` must be a class of peaks: Gaussian, Lorentzian, Voigt or PseudoVoigt; got {peak!r}."
            )
        if background not in list(BACKGROUNDS):  # a list compares where a dict hashes
            raise ValueError(f"`module__background` must be 'constant', 'linear' or None; got {background!r}.")
        self.peak, self.background = peak, background
        own = list(inspect.signature(peak.function).parameters)[1:]
        if not isinstance(shared, Iterable) or isinstance(shared, Mapping):
            raise ValueError(f"`module__shared` must be a name or a sequence of names; got {shared!r}.")
        self.shared = [shared] if isinstance(shared, str) else list(dict.fromkeys(shared))
        if "center" in initial and self.n_peaks > 1:
            raise ValueError(
                "`module__center` would put all peaks at one place; pass module__center1, module__center2, ..."
            )
        for name in self.shared:
            if name not in own or name == "center":
                widths = ", ".join(repr(each) for each in own if each != "center")
                raise ValueError(f"`module__shared` must be of the parameters {widths} of a peak; got {name!r}.")
        self.function = _SumOfPeaks(self.n_peaks, peak, background, self.shared)

        def numbered(name: str) -> list[str]:
            return self.function.names(name) if name in own else [name]

        def of_all(values: Mapping[str, Any]) -> dict[str, Any]:
            """Return values by full names; one without a number is for all peaks that have none of their own."""
            every = {full: value for name, value in values.items() for full in numbered(name)}
            return every | {name: value for name, value in values.items() if name in every}

        if isinstance(bounds, Mapping):
            bounds = of_all(bounds)
        bounds = merged_bounds(of_all(peak.default_bounds), bounds)
        if isinstance(fixed, Iterable) and not isinstance(fixed, Mapping):
            fixed = [full for name in ([fixed] if isinstance(fixed, str) else fixed) for full in numbered(name)]
        initial = of_all(initial)
        known = list(self.function.__signature__.parameters)[1:]
        for name in initial:
            if name not in known:
                raise ValueError(
                    f"`module__{name}` is neither a parameter of the curve, {', '.join(known)}, nor a setting: "
                    "n_peaks, peak, background, shared, bounds, fixed."
                )
        super().__init__(n_features_in, feature_names_in, bounds=bounds, fixed=fixed, **initial)

    def guess(self, x: Tensor, y: Tensor, weights: Tensor) -> dict[str, float]:
        x, y, weights, height = scaled(x, y, weights)
        names = [f"center{k + 1}" for k in range(self.n_peaks)]
        given = [self.given.get(name) for name in names]
        degree = len(BACKGROUNDS[self.background]) - 1
        starts = _backgrounds(x, y, weights, degree)
        trials = [_place_all(self.peak, x, y, weights, given, start, degree, 1.0) for start in starts]
        if self.n_peaks == 1:
            return self._named(min(trials, key=lambda trial: trial[0]), given, height)
        trials += [_place_all(self.peak, x, y, weights, given, start, degree, 0.5) for start in starts]
        if all(center is None for center in given):
            for start in starts:
                trials += _at_extrema(self.peak, x, y, weights, self.n_peaks, start, degree)
        trials.sort(key=lambda trial: trial[0])
        others = [trial for before, trial in pairwise(trials) if trial[0] > (1 + SAME) * before[0]]
        guesses = [self._named(trial, given, height) for trial in (trials[0], *others)]
        return self._best(guesses, x, y * height, weights)

    def _best(self, guesses: list[dict[str, float]], x: Tensor, y: Tensor, weights: Tensor) -> dict[str, float]:
        """Return the guess that some steps improve most, with what they make of it."""
        names = list(guesses[0])
        known = self.given
        held = {name: (value, value) for name, value in known.items() if not self._parameters[name].requires_grad}  # type: ignore[union-attr]
        boxes = self.parameter_bounds | held
        starts = x.new_tensor([[(guess | known)[name] for name in names] for guess in guesses])
        lower, upper = x.new_tensor([boxes.get(name, (-math.inf, math.inf)) for name in names]).unbind(1)
        margin = NARROWEST * starts.abs().median(0).values  # a peak without a width or a height has no derivative
        lower, upper = (
            torch.where(upper.isinf(), lower + margin, lower),
            torch.where(lower.isinf(), upper - margin, upper),
        )
        rows = thinned(x, y, weights)
        best = best_of(
            lambda x, point: self.function(x, **dict(zip(names, point.unbind(), strict=True))),
            starts,
            SquaredError(),
            *rows,
            lower,
            upper,
            steps=GUESS_STEPS,
        )
        return guesses[0] if best is None else dict(zip(names, best.tolist(), strict=True))

    def _named(self, trial: _Trial, given: list[float | None], height: float) -> dict[str, float]:
        """Return what a trial has found by the names of the parameters, in units of y."""
        _, peaks, level = trial
        free = iter(sorted((p for p, c in zip(peaks, given, strict=True) if c is None), key=lambda p: p["center"]))
        ordered = [p if c is not None else next(free) for p, c in zip(peaks, given, strict=True)]
        guessed = {f"{name}{k}": value for k, p in enumerate(ordered, 1) for name, value in p.items()}
        guessed |= dict(zip(BACKGROUNDS[self.background], level, strict=True))
        for name in self.shared:
            guessed[name] = float(np.median([guessed.pop(f"{name}{k}") for k in range(1, self.n_peaks + 1)]))
        linear = {*BACKGROUNDS[self.background], *self.function.names(next(iter(ordered[0])))}
        return {name: value * (height if name in linear else 1) for name, value in guessed.items()}


_Trial = tuple[float, list[dict[str, float]], list[float]]  # loss, peaks and coefficients of the background
BACKGROUNDS: dict[str | None, tuple[str, ...]] = {"constant": ("offset",), "linear": ("offset", "slope"), None: ()}


class _SumOfPeaks:
    """The function of `Peaks`: a callable that pickles, with a signature that names its parameters."""

    def __init__(self, n_peaks: int, peak: type[Peak], background: str | None, shared: Sequence[str] = ()) -> None:
        self.peak, self.shared = peak, shared
        self.own = list(inspect.signature(peak.function).parameters)[1:]
        self.numbers = range(1, n_peaks + 1)
        names = [f"{name}{k}" for k in self.numbers for name in self.own if name not in shared]
        names += [*(name for name in self.own if name in shared), *BACKGROUNDS[background]]
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        self.__signature__ = inspect.Signature([inspect.Parameter(name, kind) for name in ["x", *names]])
        self.__name__ = f"{n_peaks} x {peak.__name__}"

    def names(self, name: str) -> list[str]:
        """Return the full names of a parameter of the peaks."""
        return [name] if name in self.shared else [f"{name}{k}" for k in self.numbers]

    def __call__(self, x: Tensor, **parameters: Tensor) -> Tensor:
        total = parameters["offset"] if "offset" in parameters else torch.zeros_like(x)
        if "slope" in parameters:
            total = total + parameters["slope"] * x
        for k in self.numbers:
            own = (parameters[name if name in self.shared else f"{name}{k}"] for name in self.own)
            total = total + self.peak.function(x, *own)
        return total


def _backgrounds(x: Tensor, y: Tensor, weights: Tensor, degree: int) -> list[Tensor]:
    """Return backgrounds to start from: through the ends of the data, and along its lower and its upper side."""
    if degree < 0:
        return [torch.zeros_like(y)]

    def fitted(rows: Tensor) -> Tensor:
        line = polynomial(x[rows], y[rows], weights[rows], degree if int(rows.sum()) > degree else 0)
        return sum((c * x**k for k, c in enumerate(line)), torch.zeros_like(y))

    everything = torch.ones_like(y, dtype=torch.bool)
    ends = everything.clone()
    n_ends = max(len(y) // 12, 1)
    ends[n_ends : len(y) - n_ends] = False
    found = [fitted(ends)]
    for sign in (1, -1):
        rows = everything
        for _ in range(4):
            side = sign * (y - fitted(rows)) <= 0
            rows = side if bool(side.any()) else rows
        found.append(fitted(rows))
    return found


def _at_extrema(
    kind: type[Peak], x: Tensor, y: Tensor, weights: Tensor, n_peaks: int, level: Tensor, degree: int
) -> list[_Trial]:
    """Return a trial whose peaks are the extrema that stand out most; none where there are fewer."""
    order = x.argsort()
    values = torch.nn.functional.pad((y - level)[order], (1, 1)).numpy()  # one may lie at an end
    along = x[order].numpy()
    found: list[tuple[float, float, float]] = []
    for sign in (1, -1):
        places, properties = scipy.signal.find_peaks(sign * values, height=0, prominence=0)
        # a valley between peaks is prominent too, but not on this side of the background
        sizes = np.minimum(properties["prominences"], properties["peak_heights"])
        left, right = scipy.signal.peak_widths(sign * values, places, rel_height=0.5)[2:]
        fwhms = np.diff(np.interp([left, right], np.arange(1, len(x) + 1), along), axis=0)[0]
        found += zip(sizes, along[places - 1], fwhms, strict=True)
    if len(found) < n_peaks:
        return []
    least = float(along[-1] - along[0]) / len(along)
    peaks = [
        {"center": float(center)} | {n: float(v) for n, v in kind.widths(x.new_tensor(max(fwhm, least))).items()}
        for _, center, fwhm in sorted(found, reverse=True)[:n_peaks]
    ]
    amplitude = list(inspect.signature(kind.function).parameters)[1]
    return [_with_heights(kind, x, y, weights, [{amplitude: 1.0} | peak for peak in peaks], degree)]


def _with_heights(
    kind: type[Peak], x: Tensor, y: Tensor, weights: Tensor, peaks: list[dict[str, float]], degree: int
) -> _Trial:
    """Return the loss, the peaks and the background after a linear fit of the heights and the background."""
    parts = [kind.function(x, *x.new_tensor(list(peak.values()))) for peak in peaks]
    columns = [*parts, *(x**j for j in range(degree + 1))]
    _, factors = best_candidate([column[None] for column in columns], y, weights)
    fitted = sum((factor * column for factor, column in zip(factors, columns, strict=True)), torch.zeros_like(y))
    loss = float((weights * (y - fitted).square()).sum())
    scaled = [
        {n: v * (f if i == 0 else 1) for i, (n, v) in enumerate(p.items())}
        for p, f in zip(peaks, factors[: len(peaks)], strict=True)
    ]
    return loss, scaled, factors[len(peaks) :]


def _place_all(
    kind: type[Peak],
    x: Tensor,
    y: Tensor,
    weights: Tensor,
    centers: list[float | None],
    level: Tensor,
    degree: int,
    favor: float,
) -> _Trial:
    """Return a trial whose peaks are placed one after another, starting from one background."""
    peaks: list[dict[str, Any]] = [{} for _ in centers]
    parts = [torch.zeros_like(y) for _ in centers]
    order = sorted(range(len(centers)), key=lambda k: centers[k] is None)  # known centers first
    result: _Trial = (math.inf, [], [])
    for _ in range(N_ROUNDS if len(centers) > 1 else 2):
        for k in order:
            rest = y - level - sum(part for i, part in enumerate(parts) if i != k)
            peaks[k] = place_peak(kind, x, rest, weights, centers[k], favor)
            parts[k] = kind.function(x, *x.new_tensor(list(peaks[k].values())))
        trial = _with_heights(kind, x, y, weights, peaks, degree)
        _, peaks, line = trial
        level = sum((c * x**j for j, c in enumerate(line)), torch.zeros_like(y))
        parts = [kind.function(x, *x.new_tensor(list(peak.values()))) for peak in peaks]
        if trial[0] < result[0]:
            result = trial
    return result
