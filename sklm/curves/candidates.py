"""Candidates for the parameters of a curve: drawn from the scales of the data, or as children of other candidates."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from sklm.curves.periodogram import periodogram

CHILDREN = 512  # in all groups together, per round
PARENTS = 16  # of each group
MOVED, CROSSING = 0.6, 0.7  # share of the parameters that take a multiplicative step; factor of a difference
N_SIGNED = 6  # roles that may be negative: the first ones
ANY = 4.0  # orders of magnitude around the span of x and around its inverse in which anything may lie
SKEW = 10.0  # ratio of the largest to the median x from which a position or a rate may be of any order of magnitude
BINS_PER_ROW = 2  # of the grid for their spectrum
TURNS = (2 * math.pi, math.pi, 1.0)  # of a wave's argument per cycle of the data: of a sine, of its square, of a period


class Draws:
    """Values for parameters whose role is unknown, from the scales of the data.

    Parameters
    ----------
    X, y, weights : Tensor of shape (n_samples, n_features), (n_samples,) and (n_samples,)
        All rows: their spectrum tells the frequencies.
    rows : Tensor of shape (n_rows,)
        The rows whose scales are drawn from, more of them where y deviates from its mean.
    """

    def __init__(self, X: Tensor, y: Tensor, weights: Tensor, rows: Tensor) -> None:
        self.columns, self.y = X[rows].reshape(len(rows), -1).to(y.dtype), y[rows]
        self.ordered = self.columns.sort(0).values
        self.lows, self.highs = self.columns.amin(0), self.columns.amax(0)
        spans = self.highs - self.lows
        spans = torch.where(spans > 0, spans, self.highs.abs())
        self.spans = torch.where(spans > 0, spans, 1.0)
        self.positive = torch.where(self.columns > 0, self.columns, torch.nan)
        self.is_logarithmic = (self.lows >= 0) & (SKEW * self.positive.nanmedian(0).values <= self.highs)
        self.spectra = [_spectrum(column.to(y.dtype), y, weights) for column in X.reshape(len(X), -1).T]

    def draw(self, n: int, around: float | None, bounds: tuple[float, float] | None) -> Tensor:
        """Return values for one parameter of all n candidates."""
        y = self.y

        def uniform(low: Any, high: Any) -> Tensor:
            return low + (high - low) * torch.rand(n, dtype=y.dtype, device="cpu").to(y.device)

        if around is not None:
            factor = torch.randn(n, dtype=y.dtype, device="cpu").to(y.device).exp()
            return around * factor if around else factor.log()
        if bounds is not None and all(map(math.isfinite, bounds)):
            return uniform(*bounds)
        of = torch.randint(len(self.spans), (n,), device="cpu").to(y.device)  # the column whose scale it has
        low, high, span = self.lows[of], self.highs[of], self.spans[of]
        least = torch.nan_to_num(self.positive, torch.inf).amin(0)[of]
        place = 10 ** uniform(least.log10(), high.log10())
        frequency = torch.stack([_drawn(*spectrum, uniform(0, 1)) for spectrum in self.spectra])
        frequency = frequency[of, torch.arange(n, device=y.device)]
        turns = y.new_tensor(TURNS)[(uniform(0, 1) * len(TURNS)).long()]
        rows = self.ordered
        at = uniform(0, len(rows) - 1)  # between two rows, of which there are more where y deviates
        before = at.long().clamp_max(max(len(rows) - 2, 0))
        after = (before + 1).clamp_max(len(rows) - 1)
        roles = [  # with their shares, and those for x on a logarithmic scale
            (2, 2, 10 ** uniform(-1, 1.5) / span),  # a rate
            (2, 2, span * 10 ** uniform(-2, 0.3)),  # a width
            (2, 2, 10 ** uniform(-1, 0.8)),  # an exponent, or another pure number
            (2, 2, uniform(float(y.min()), float(y.max()))),  # a level
            (1, 1, 10 ** uniform(-ANY, ANY) * torch.where(uniform(0, 1) < 0.5, span, 1 / span)),  # none of these
            (0, 2, 1 / place),  # a rate of any order of magnitude
            (3, 3, uniform(low, high)),  # a position
            (0, 2, place),  # a position of any order of magnitude
            (1, 0, torch.lerp(rows[before, of], rows[after, of], at - before)),  # a position where y deviates
            (1, 0, turns * torch.where((turns == 1) & (uniform(0, 1) < 0.5), 1 / frequency, frequency)),  # of a wave
        ]
        shares = torch.tensor([shares for *shares, _ in roles], dtype=torch.float64, device="cpu").T
        role = torch.multinomial(shares[self.is_logarithmic[of].long().cpu()], 1)[:, 0].to(y.device)
        values = torch.stack([value for *_, value in roles])[role, torch.arange(n, device=y.device)]
        flip = (uniform(0, 1) < 0.25) & (role < N_SIGNED)
        return torch.where(flip, -values, values)


def _spectrum(x: Tensor, y: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Return the frequencies up to half a cycle per median distance, above 0, and the power up to each."""
    order = torch.argsort(x)
    frequencies, spectrum, limit = periodogram(x[order], y[order], weights[order], BINS_PER_ROW)
    keep = (frequencies > 0) & (frequencies <= limit)
    largest = spectrum.max() if len(spectrum) else spectrum.new_ones(())
    powers = (spectrum[keep] / torch.where(largest > 0, largest, 1.0)).square()
    return frequencies[keep], torch.cumsum(powers, 0)


def _drawn(frequencies: Tensor, powers: Tensor, quantiles: Tensor) -> Tensor:
    """Return frequencies drawn with their power, or 1 where there are none."""
    if not len(frequencies):
        return torch.ones_like(quantiles)
    return frequencies[torch.searchsorted(powers, quantiles * powers[-1]).clamp_max(len(frequencies) - 1)]


def children(candidates: Tensor, losses: Tensor, places: list[int]) -> Tensor:
    """Return variations of the best candidates of each group at `places`, (n_groups, n_children, n_parameters).

    One half takes multiplicative steps, over orders of magnitude; the other differences of two others, along valleys
    (differential evolution: Storn and Price 1997).
    """
    n_groups = len(candidates)
    n_children = max(CHILDREN // n_groups, 1)
    parents = torch.take_along_dim(candidates, torch.argsort(losses, dim=1)[:, :PARENTS, None], dim=1)

    def someone() -> Tensor:
        which = torch.randint(parents.shape[1], (n_groups, n_children, 1), device="cpu").to(parents.device)
        return torch.take_along_dim(parents, which, dim=1)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(n_groups, n_children, *shape, dtype=parents.dtype, device="cpu").to(parents.device)

    found = someone()
    old = found[..., places]
    steps = torch.randn(old.shape, dtype=old.dtype, device="cpu").to(old.device) * (uniform(len(places)) < MOVED)
    scaled = old * (10 ** (2 * uniform(1) - 1.5) * steps).exp()
    crossed = old + CROSSING * (someone() - someone())[..., places]
    half = (torch.arange(n_children, device=old.device) % 2 == 0)[:, None]
    found[..., places] = torch.where(half, scaled, crossed)
    return found
