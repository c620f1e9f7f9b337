"""
Levenberg-Marquardt inside PyTorch Lightning
============================================

Where a project has its training loop in Lightning (``pip install lightning``, which this page needs and the
documentation does not: it is shown, not run), the engine `LevenbergMarquardt` takes the place of another optimizer. Two
things differ. A step takes data, not gradients, so the module sets ``automatic_optimization = False`` and passes the
batch on. And a step counts for Lightning only when it goes through Lightning's own wrapper, which calls
``step(closure, ...)``: the subclass below takes that call. Then ``max_steps``, callbacks, checkpoints and early
stopping work as with every optimizer.

The table is scikit-learn's diabetes, the network has three hidden units. The script fits for ten epochs, goes on from a
checkpoint until the engine's own stopping test passes, and compares with a fit in one go.
"""

import logging
import tempfile
import warnings

import lightning
import torch
from sklearn.datasets import load_diabetes
from sklearn.model_selection import train_test_split
from torch.utils.data import DataLoader, TensorDataset

from sklm import MLP, LevenbergMarquardt

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
warnings.filterwarnings("ignore", module="lightning")  # advice on the number of workers


# %%
# The optimizer with Lightning's call, and the module.
class LightningLM(LevenbergMarquardt):
    def step(self, closure, *, inputs, targets, weights=None):
        closure()  # Lightning's hooks before a step
        return super().step(inputs, targets, weights)


class Regression(lightning.LightningModule):
    def __init__(self, X, y):
        super().__init__()
        self.automatic_optimization = False
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.network = MLP(X.shape[1], 1, hidden_layer_sizes=(3,)).double()
        self.network.init_from_data(X, y)

    def configure_optimizers(self):
        return LightningLM(self.network, "squared_error", alpha=1e4, seed=0)

    def training_step(self, batch, batch_idx):
        inputs, targets = batch
        result = self.optimizers().step(inputs=inputs, targets=targets)
        self.log_dict({"loss": result.loss, "damping": result.damping})
        self.trainer.should_stop = result.status != "running"

    def validation_step(self, batch, batch_idx):
        inputs, targets = batch
        self.log("validation_error", (self.network(inputs)[:, 0] - targets).square().mean())


# %%
# Data: all training rows in one batch, as a step wants more rows than parameters.
arrays = train_test_split(*load_diabetes(return_X_y=True), test_size=0.25, random_state=0)
X_train, X_test, y_train, y_test = map(torch.tensor, arrays)
train = DataLoader(TensorDataset(X_train, y_train), batch_size=len(X_train))
test = DataLoader(TensorDataset(X_test, y_test), batch_size=len(X_test))


def trainer(folder, max_epochs, **settings):
    return lightning.Trainer(
        max_epochs=max_epochs,
        default_root_dir=folder,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
        **settings,
    )


# %%
# Ten epochs, a checkpoint of the last one, and the rest from there by a new module and a new trainer.
with tempfile.TemporaryDirectory() as folder:
    checkpoint = lightning.pytorch.callbacks.ModelCheckpoint(folder, filename="last")
    first = trainer(folder, 10, callbacks=[checkpoint])
    first.fit(Regression(X_train, y_train), train, test)
    resumed = Regression(X_train, y_train)
    second = trainer(folder, 100, enable_checkpointing=False)
    second.fit(resumed, train, test, ckpt_path=checkpoint.best_model_path)
    whole = Regression(X_train, y_train)
    trainer(folder, 100, enable_checkpointing=False).fit(whole, train, test)

for name, fit in (("first", first), ("second", second)):
    print(
        f"{name}: step {fit.global_step}, " + ", ".join(f"{k} {float(v):.5g}" for k, v in fit.callback_metrics.items())
    )
same = all(torch.equal(p, q) for p, q in zip(whole.parameters(), resumed.parameters(), strict=True))
print(f"resumed from the checkpoint, equal to the last bit: {same}")

# %%
# Takeaway: a subclass of four lines makes the engine an optimizer for Lightning, and what Lightning saves is enough to
# resume exactly.
