"""The engine as an optimizer of PyTorch Lightning."""

import runpy
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from sklm import MLP, LevenbergMarquardt

lightning = pytest.importorskip("lightning")

pytestmark = [
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`, callbacks"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.* is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:The 'train_dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:The number of training batches .* is smaller than the logging interval"),
]

X = torch.linspace(-1, 1, 120, dtype=torch.float64)[:, None]
Y = torch.sin(3 * X[:, 0]) + 0.1 * torch.cos(40 * X[:, 0])


class LightningLM(LevenbergMarquardt):
    def step(self, closure, *, inputs, targets):
        closure()
        return super().step(inputs, targets)


class Regression(lightning.LightningModule):
    def __init__(self, **params):
        super().__init__()
        self.automatic_optimization = False
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.network = MLP(1, 1, hidden_layer_sizes=(4,)).double()
        self.params = {"seed": 0, **params}
        self.losses = []

    def configure_optimizers(self):
        return LightningLM(self.network, "squared_error", **self.params)

    def training_step(self, batch, batch_idx):
        result = self.optimizers().step(inputs=batch[0], targets=batch[1])
        self.losses.append(result.loss)


@pytest.fixture
def trainer(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def make(max_epochs, **settings):
        return lightning.Trainer(
            max_epochs=max_epochs,
            accelerator="cpu",
            default_root_dir=tmp_path,
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            **{"enable_checkpointing": False, **settings},
        )

    return make


def batches(size=120):
    return DataLoader(TensorDataset(X, Y), batch_size=size)


def assert_equal_parameters(one, other):
    assert all(torch.equal(p, q) for p, q in zip(one.parameters(), other.parameters(), strict=True))


def test_same_as_a_plain_loop(trainer, tmp_path):
    module = Regression(alpha=0.1)
    fit = trainer(4)
    fit.fit(module, batches(60))
    plain = Regression(alpha=0.1)
    optimizer = LevenbergMarquardt(plain.network, "squared_error", alpha=0.1, seed=0)
    losses = [optimizer.step(*batch).loss for _ in range(4) for batch in batches(60)]
    assert module.losses == losses
    assert fit.global_step == 8
    assert_equal_parameters(module, plain)
    assert not list(tmp_path.iterdir())


def test_max_steps(trainer):
    module = Regression()
    trainer(-1, max_steps=3).fit(module, batches())
    assert len(module.losses) == 3


@pytest.mark.parametrize("params", [{}, {"selection": "random", "damping": "standard"}], ids=["all", "random subset"])
def test_resumes_from_a_checkpoint(trainer, tmp_path, params):
    whole, resumed = Regression(**params), Regression(**params)
    trainer(9).fit(whole, batches())
    checkpoint = lightning.pytorch.callbacks.ModelCheckpoint(tmp_path, filename="last")
    trainer(4, callbacks=[checkpoint], enable_checkpointing=True).fit(Regression(**params), batches())
    trainer(9).fit(resumed, batches(), ckpt_path=tmp_path / "last.ckpt")
    assert resumed.losses == whole.losses[4:]
    assert_equal_parameters(resumed, whole)


def test_example(tmp_path, monkeypatch, capsys):
    example = Path(__file__).parents[1] / "examples" / "lightning_module.py"
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(example))
    assert "equal to the last bit: True" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())
