"""Losses per sample; see `sklm.losses.Loss` for one of your own."""

from sklm.engine.losses import (
    AbsoluteError,
    BinaryCrossEntropy,
    Cauchy,
    CrossEntropy,
    Elementwise,
    Huber,
    Loss,
    Poisson,
    SoftL1,
    SquaredError,
    TorchLoss,
)

__all__ = [
    "AbsoluteError",
    "BinaryCrossEntropy",
    "Cauchy",
    "CrossEntropy",
    "Elementwise",
    "Huber",
    "Loss",
    "Poisson",
    "SoftL1",
    "SquaredError",
    "TorchLoss",
]
