"""The spectrum of rows at any places, by a fast Fourier transform."""

from __future__ import annotations

import math

import torch
from torch import Tensor

MIN_BINS, MAX_BINS = 2**6, 2**20  # of the grid


def periodogram(x: Tensor, y: Tensor, weights: Tensor, bins_per_row: int) -> tuple[Tensor, Tensor, float]:
    """Return frequencies, in units of 1 / x, the amplitudes at them, and half a cycle per median distance of rows.

    The rows are put on a fine even grid for a Fourier transform (as Press and Rybicki 1989, ApJ 338, 277), which costs
    n log n for uneven x too; its frequencies lie four times as close as whole cycles.

    Parameters
    ----------
    x, y, weights : Tensor of shape (n_samples,)
        Sorted by x.
    bins_per_row : int
        Bins of the grid, rounded up to a power of two.

    Returns
    -------
    frequencies, amplitudes : Tensor of shape (n_frequencies,)
        Empty where all x are equal.
    limit : float
    """
    gaps = x.diff()
    gaps = gaps[gaps > 0]
    if not len(gaps):
        return x[:0], x[:0], 0.0
    span = float(x[-1] - x[0])
    bins = min(max(MIN_BINS, 2 ** math.ceil(math.log2(bins_per_row * len(x)))), MAX_BINS)
    places = ((x - x[0]) / span * (bins - 1)).round().long()
    centered = weights * (y - (weights * y).sum() / weights.sum().clamp_min(torch.finfo(y.dtype).tiny))
    amplitudes = torch.fft.rfft(x.new_zeros(bins).index_add(0, places, centered), n=4 * bins).abs()
    step = (bins - 1) / (4 * bins * span)
    frequencies = torch.arange(len(amplitudes), dtype=x.dtype, device=x.device) * step
    return frequencies, amplitudes, 0.5 / float(gaps.median()) * (1 + 1e-9)
