"""How many rows of the Jacobian to hold at once."""

from __future__ import annotations

import os

import torch
from torch import Tensor

RANDOM_CHUNK = 256  # samples at once, at most, for a module that draws random numbers
GPU_CHUNK_BYTES = 256 * 2**20  # a chunk costs some twenty launches; a step stays within a few times this
RANDOM_CHUNK_BYTES = 128 * 2**20  # changes what is drawn
CPU_CHUNK_BYTES = 8 * 2**20  # a chunk that stays in cache is faster
CPU_CHUNK_ROWS = 2**16
FREE_SHARE = 1 / 16  # of free memory: autograd keeps a few tensors of the size of a chunk


def samples_per_chunk(max_rows: int | str | None, n_samples: int, rows_per_sample: int, row: Tensor) -> int:
    """Return how many samples to differentiate at once.

    Parameters
    ----------
    max_rows : int, "auto" or None
        Largest number of Jacobian rows; None for all; "auto" for as many as fit `GPU_CHUNK_BYTES` (on a CPU
        `CPU_CHUNK_BYTES` and `CPU_CHUNK_ROWS`) and `FREE_SHARE` of the free memory of the device, where that can be
        read.
    n_samples, rows_per_sample : int
    row : Tensor of shape (n_params,)
        A tensor of the size of one row.
    """
    if max_rows is None:
        return max(1, n_samples)
    if isinstance(max_rows, str):
        free = _free_memory(row.device)
        on_cpu = row.device.type == "cpu"
        budget = CPU_CHUNK_BYTES if on_cpu else GPU_CHUNK_BYTES
        if free is not None:
            budget = min(budget, int(free * FREE_SHARE))
        max_rows = budget // (row.numel() * row.element_size())
        if on_cpu:
            max_rows = min(max_rows, CPU_CHUNK_ROWS)
    return min(max(1, max_rows // rows_per_sample), max(1, n_samples))


def samples_per_random_chunk(rows_per_sample: int, row: Tensor) -> int:
    """Return how many samples to handle at once for a module that draws random numbers.

    The draws depend on it, so it is a function of the size of a row alone, and not of settings or free memory.
    """
    return min(RANDOM_CHUNK, max(1, RANDOM_CHUNK_BYTES // (row.numel() * row.element_size() * rows_per_sample)))


def is_out_of_memory(error: RuntimeError) -> bool:
    """Return whether an allocation has failed, on any device."""
    words = ("out of memory", "not enough memory", "can't allocate memory")
    return isinstance(error, torch.OutOfMemoryError) or any(part in str(error) for part in words)


def _free_memory(device: torch.device) -> int | None:
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):  # not told on this system
        return None
