"""
Watching a fit: loss, damping, attempts
=======================================

What a fit did stands in ``history_``, a row for every epoch. Two displays draw it: ``LossCurveDisplay`` the training
loss and, with early stopping, the validation loss; ``DampingDisplay`` every step with its damping factor and the number
of factors that were tried. The data are scikit-learn's diabetes table and Thurber's, the electron mobility of silicon
from NIST's collection of certified nonlinear regressions.
"""

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_diabetes

from sklm import DampingDisplay, LMRegressor, LossCurveDisplay

# %%
# A network without a penalty overfits 442 rows in a few steps. Early stopping keeps the parameters of the epoch with
# the least validation loss. Steps of a tenth of the length (``lr=0.1``) get to theirs more slowly, and no lower.
X, y = load_diabetes(return_X_y=True)
network = LMRegressor(alpha=0, early_stopping=True, random_state=0)
figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), sharey=True, layout="constrained")
for ax, lr in zip(axes, (1.0, 0.1), strict=True):
    network.set_params(lr=lr).fit(X, y)
    LossCurveDisplay.from_estimator(network, ax=ax)
    ax.set_title(f"lr={lr:g}: least validation loss {min(network.history_[:, 'valid_loss']):.0f}")
    print(f"lr={lr:g}: {network.message_}")
plt.show()

# %%
# A curve of seven parameters from NIST's far start. Attempts above 1 are steps that did not lower the loss and were
# made again with more damping; near the minimum the damping falls, and every step is one of Gauss and Newton.
x, mobility = np.loadtxt(
    """
    -3.067 80.574
    -2.981 84.248
    -2.921 87.264
    -2.912 87.195
    -2.840 89.076
    -2.797 89.608
    -2.702 89.868
    -2.699 90.101
    -2.633 92.405
    -2.481 95.854
    -2.363 100.696
    -2.322 101.060
    -1.501 401.672
    -1.460 390.724
    -1.274 567.534
    -1.212 635.316
    -1.100 733.054
    -1.046 759.087
    -0.915 894.206
    -0.714 990.785
    -0.566 1090.109
    -0.545 1080.914
    -0.400 1122.643
    -0.309 1178.351
    -0.109 1260.531
    -0.103 1273.514
    0.010 1288.339
    0.119 1327.543
    0.377 1353.863
    0.790 1414.509
    0.963 1425.208
    1.006 1421.384
    1.115 1442.962
    1.572 1464.350
    1.841 1468.705
    2.047 1447.894
    2.200 1457.628
    """.splitlines(),
    unpack=True,
)
start = {f"module__b{i}": value for i, value in enumerate([1000, 1000, 400, 40, 0.7, 0.3, 0.03], 1)}
formula = "(b1 + b2 * x + b3 * x**2 + b4 * x**3) / (1 + b5 * x + b6 * x**2 + b7 * x**3)"
model = LMRegressor(formula, **start).fit(x[:, None], mobility)
DampingDisplay.from_estimator(model)
plt.show()
print(model.message_)
print(f"residual sum of squares {model.chi_square_:.6f}; NIST certifies 5642.708240")

# %%
# Takeaway: look at the loss on a logarithmic axis and at the damping. Many attempts at a growing damping say that the
# curve does not suit the data or that the start is far; a validation loss that rises early asks for a penalty.
