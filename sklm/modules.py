"""The default network."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "tanh": nn.Tanh,
    "logistic": nn.Sigmoid,
    "relu": nn.ReLU,
    "softplus": nn.Softplus,
    "silu": nn.SiLU,
    "gelu": nn.GELU,
    "identity": nn.Identity,
}

ELSEWHERE = {  # names of MATLAB and torch
    "tansig": "tanh",
    "logsig": "logistic",
    "sigmoid": "logistic",
    "purelin": "identity",
    "poslin": "relu",
    "swish": "silu",
}
SLOPE = 0.25  # flatter than the 0.7 of Nguyen and Widrow
OF_CONSTANT = 1e-3  # scale of targets that are all the same, relative to them


class MLP(nn.Module):
    """Fully connected network that scales its own inputs and outputs.

    Inputs are standardized inside the module, and so are real-valued targets, with the statistics of the training data
    (`init_from_data`), so tables in any units fit without a scaler in front. Hidden layers with a sigmoid start as
    Nguyen and Widrow (1990, "Improving the learning speed of 2-layer neural networks") proposed: the slopes of the
    units tile the range of the inputs.

    Parameters
    ----------
    n_features_in, n_outputs : int
        Sizes of input and output.
    hidden_layer_sizes : int or sequence of int, default=(20,)
        Units of every hidden layer; empty for a linear model.
    activation : {"tanh", "logistic", "relu", "softplus", "silu", "gelu", "identity"}, default="tanh"
        Activation of the hidden layers. Smooth ones suit Levenberg-Marquardt.

    Raises
    ------
    ValueError
        For a layer size below 1 or an unknown activation.

    Examples
    --------
    >>> import torch
    >>> from sklm import MLP
    >>> MLP(3, 1, hidden_layer_sizes=(5,))(torch.zeros(2, 3)).shape
    torch.Size([2, 1])
    """

    x_mean: Tensor
    x_scale: Tensor
    y_mean: Tensor
    y_scale: Tensor

    def __init__(
        self,
        n_features_in: int,
        n_outputs: int,
        hidden_layer_sizes: int | Sequence[int] = (20,),
        activation: str = "tanh",
    ) -> None:
        super().__init__()
        hidden = list(hidden_layer_sizes) if isinstance(hidden_layer_sizes, Iterable) else [hidden_layer_sizes]
        if any(isinstance(size, bool) or not isinstance(size, numbers.Integral) or size < 1 for size in hidden):
            raise ValueError(f"`module__hidden_layer_sizes` must be integers >= 1; got {hidden_layer_sizes!r}.")
        if not isinstance(activation, str) or activation not in ACTIVATIONS:
            plain = str(activation).lower()
            meant = plain if plain in ACTIVATIONS else ELSEWHERE.get(plain)
            raise ValueError(
                f"`module__activation` must be one of {', '.join(map(repr, ACTIVATIONS))}; got {activation!r}"
                + (f"; did you mean {meant!r}?" if meant else "; for another pass a module of your own.")
            )
        sizes = [n_features_in, *map(int, hidden)]
        layers: list[nn.Module] = []
        for fan_in, fan_out in pairwise(sizes):
            linear = nn.Linear(fan_in, fan_out)
            if activation in ("tanh", "logistic"):
                nguyen_widrow_(linear, steepness=1.0 if activation == "tanh" else 2.0)
            layers += [linear, ACTIVATIONS[activation]()]
        self.layers = nn.Sequential(*layers, nn.Linear(sizes[-1], n_outputs))
        self.register_buffer("x_mean", torch.zeros(n_features_in))
        self.register_buffer("x_scale", torch.ones(n_features_in))
        self.register_buffer("y_mean", torch.zeros(n_outputs))
        self.register_buffer("y_scale", torch.ones(n_outputs))

    def init_from_data(self, X: Tensor, y: Tensor, sample_weight: Tensor | None = None) -> None:
        """Set the scaling from the training data.

        Parameters
        ----------
        X : Tensor of shape (n_samples, n_features_in)
        y : Tensor of shape (n_samples,) or (n_samples, n_outputs)
            Targets in units of the outputs; integers are class indices, which have no scale.
        sample_weight : Tensor of shape (n_samples,), default=None
            Weights, equivalent to repeated rows.

        Raises
        ------
        ValueError
            For inputs that are not one array.
        """
        if not isinstance(X, Tensor):
            raise ValueError(
                f"`sklm.MLP` takes one array X; got a {type(X).__name__} of inputs. Pass a module whose "
                "`forward` takes them."
            )
        self._check_columns(X)
        self.x_mean, scale = _mean_and_scale(X.to(self.x_mean.dtype), sample_weight)
        self.x_scale = torch.where(scale > 0, scale, 1.0)
        if y.is_floating_point():
            mean, scale = _mean_and_scale(y.reshape(len(y), -1), sample_weight)
            of_constant = torch.where(
                mean == 0, 1.0, (OF_CONSTANT * mean.abs()).clamp_max(torch.finfo(mean.dtype).max ** 0.25)
            )
            if bool((scale > 0).any()):  # losses are sums over the outputs, in their units
                of_constant = scale[scale > 0].min()
            self.y_mean, self.y_scale = mean, torch.where(scale > 0, scale, of_constant)

    def _check_columns(self, X: Tensor) -> None:
        if torch.jit.is_tracing() or not isinstance(X, Tensor) or not X.ndim:  # type: ignore[attr-defined, no-untyped-call]
            return
        if X.shape[-1] != len(self.x_mean):  # one column would be taken for all
            raise ValueError(
                f"`sklm.MLP` was made for X with n_features_in={len(self.x_mean)} columns; got {X.shape[-1]}."
            )

    def forward(self, X: Tensor) -> Tensor:
        """Return outputs of shape (n_samples, n_outputs)."""
        self._check_columns(X)
        X = X.to(self.x_mean.dtype)  # also integers
        return self.layers((X - self.x_mean) / self.x_scale) * self.y_scale + self.y_mean


def nguyen_widrow_(linear: nn.Linear, *, steepness: float = 1.0) -> None:
    """Initialize a hidden layer in place so that its units tile the range of standardized inputs.

    With h units and n inputs the weights get norm 0.25 h^(1/n), and the biases spread evenly over plus and minus this
    norm; inputs are taken to fill plus and minus sqrt(3), the range of a uniform variable of unit variance.

    Parameters
    ----------
    linear : torch.nn.Linear
    steepness : float, default=1.0
        Factor on weights and biases: 2 for the logistic function, half as steep as tanh.
    """
    units, fan_in = linear.weight.shape
    size = SLOPE * units ** (1 / max(fan_in, 1)) * steepness
    with torch.no_grad():
        direction = torch.randn_like(linear.weight)
        direction /= direction.norm(dim=1, keepdim=True).clamp_min(1e-12)
        linear.weight.copy_(size / math.sqrt(3) * direction)
        spread = torch.linspace(-size, size, units) if units > 1 else torch.zeros(1)
        linear.bias.copy_(spread[torch.randperm(units)])


def _mean_and_scale(values: Tensor, weights: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return weighted mean and standard deviation of the columns; for a constant one its value and 0."""
    share = torch.full_like(values[:, 0], 1 / len(values)) if weights is None else weights / weights.sum()
    mean = share @ values
    size = (values - mean).abs().amax(0).clamp_min(torch.finfo(values.dtype).tiny)  # squares of huge numbers overflow
    scale = (share @ ((values - mean) / size).square()).sqrt() * size
    constant = (values == values[:1]).all(0) | (scale == 0)
    one = values[0] if weights is None else values[weights.argmax()]
    return torch.where(constant, one, mean), torch.where(constant, 0.0, scale)  # a mean has rounding errors
