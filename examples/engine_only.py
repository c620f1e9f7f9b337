"""
The engine alone, in a plain torch loop
=======================================

`LevenbergMarquardt` is a `torch.optim.Optimizer`: it fits where there is no estimator. Here it fits the decay of a
radioactive mixture, a sum of two exponentials, stops by itself, saves its state half-way and resumes bit for bit.
"""

import copy

import torch
from torch import nn

from sklm import LevenbergMarquardt


class TwoDecays(nn.Module):
    """Activity a exp(-k t) + b exp(-l t)."""

    def __init__(self, a, k, b, l):  # noqa: E741
        super().__init__()
        self.a, self.k, self.b, self.l = (nn.Parameter(torch.tensor(v, dtype=torch.float64)) for v in (a, k, b, l))

    def forward(self, t):
        return self.a * torch.exp(-self.k * t[:, 0]) + self.b * torch.exp(-self.l * t[:, 0])


generator = torch.Generator().manual_seed(0)
t = torch.linspace(0, 10, 200, dtype=torch.float64)[:, None]
truth = TwoDecays(5.0, 2.0, 1.0, 0.2)
with torch.no_grad():
    y = truth(t) + 0.01 * torch.randn(len(t), generator=generator, dtype=torch.float64)

# %%
# A plain loop. `step` returns what happened; `status` says when to stop.
module = TwoDecays(1.0, 1.0, 1.0, 0.1)
optimizer = LevenbergMarquardt(module, "squared_error")
saved = None
for step in range(100):
    result = optimizer.step(t, y)
    ratio = f"gain ratio {result.gain_ratio:.2f}"
    print(f"step {step + 1}: loss {result.loss:.10f}, damping {result.damping:.1e}, {ratio}")
    if step == 4:
        saved = copy.deepcopy((module.state_dict(), optimizer.state_dict()))
    if result.status != "running":
        break
print(f"{result.status}: {result.message}; solver {result.solver}")
for name, parameter in module.named_parameters():
    print(f"  {name} = {parameter.item():.4f}  (truth {truth.get_parameter(name).item():g})")

# %%
# Resume from the state saved after step 5: the same numbers to the last bit.
resumed = TwoDecays(0.0, 0.0, 0.0, 0.0)
again = LevenbergMarquardt(resumed, "squared_error")
resumed.load_state_dict(saved[0])
again.load_state_dict(saved[1])
while again.step(t, y).status == "running":
    pass
same = all(torch.equal(p, q) for p, q in zip(module.parameters(), resumed.parameters(), strict=True))
print(f"resumed after step 5, equal to the last bit: {same}")
