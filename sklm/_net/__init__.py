"""`skorch.NeuralNet` as a scikit-learn estimator, with Levenberg-Marquardt as its training step.

skorch gives the training loop, history, callbacks, saving and loading. What is bent, and why:

* `__init__` stores the arguments and nothing else; `history_`, `initialized_` and `virtual_params_` are class-level
  defaults, and parameter names come from the signature plus the keys with ``__``, which live in the private dict
  `_prefixed` (scikit-learn's contract: no public attribute that the signature does not name).
* `initialize` needs the data: the module may ask for ``n_features_in``, ``n_outputs`` and ``feature_names_in``.
* Data are validated as scikit-learn does, made tensors once, and batches are slices of them, without a data loader.
  Batches are pairs (inputs, labels as the user gave them), so scoring callbacks compare with `predict`; what the engine
  needs travels with them.
* Stopping is a private kind of KeyboardInterrupt, raised when an epoch has ended; a callback's KeyboardInterrupt
  (skorch's `EarlyStopping`) stops too; the user's own keeps the best parameters and is raised again.
* A fit that fails before its first epoch ends leaves the estimator as it was.
"""

from sklm._net.intake import Data
from sklm._net.net import LMNet

__all__ = ["Data", "LMNet"]
