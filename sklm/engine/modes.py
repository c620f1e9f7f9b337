"""Context managers that leave random numbers and modules as they were."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

_RNG_LOCK, _ATTENTION_LOCK = threading.RLock(), threading.RLock()


@contextmanager
def preserved_rng(device: torch.device) -> Iterator[None]:
    """Leave torch's global random state, on CPU and on `device`, as it was; one thread at a time, as it is global."""
    with _RNG_LOCK:
        yield from _forked_rng(device)


def _forked_rng(device: torch.device) -> Iterator[None]:
    if device.type == "cpu":
        with torch.random.fork_rng(devices=[]):
            yield
    else:
        index = torch.cuda.current_device() if device.index is None and device.type == "cuda" else device.index or 0
        with torch.random.fork_rng(devices=[index], device_type=device.type):
            yield


def seed_rng(seed: int, device: torch.device) -> None:
    """Seed torch's global generators on CPU and on `device`; those of other devices are left alone."""
    torch.default_generator.manual_seed(seed)
    if device.type != "cpu":
        getattr(torch, device.type).manual_seed(seed)


def rng_state(device: torch.device) -> list[Tensor]:
    """Return torch's global random state on CPU and on `device`."""
    states = [torch.get_rng_state()]
    if device.type != "cpu":
        states.append(getattr(torch, device.type).get_rng_state(device))
    return states


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Put a module in evaluation mode, and every part back in its own mode afterwards."""
    training = [part for part in module.modules() if part.training]
    module.eval()
    try:
        yield
    finally:
        for part in training:
            part.training = True


@contextmanager
def steady_batchnorm(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Let BatchNorm layers use their running statistics and keep them; all other layers stay in their mode."""
    layers = [m for m in modules if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    for layer in layers:
        if layer.running_mean is None:
            raise ValueError(
                "a BatchNorm layer with track_running_stats=False mixes the samples of a batch, which then have no "
                "Jacobian of their own; use track_running_stats=True, LayerNorm or GroupNorm."
            )
    training = [layer for layer in layers if layer.training]
    for layer in training:
        layer.training = False
    try:
        yield
    finally:
        for layer in training:
            layer.training = True


@contextmanager
def quiet_forward_mode() -> Iterator[None]:
    """Hide what torch warns of itself when forward mode is first used."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*torch.jit.script.* is deprecated")
        yield


@contextmanager
def plain_attention() -> Iterator[None]:
    """Let attention take the form that has second derivatives; one thread at a time, as torch's choice is global."""
    with _ATTENTION_LOCK, sdpa_kernel(SDPBackend.MATH):
        yield
