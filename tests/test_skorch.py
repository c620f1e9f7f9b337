"""skorch's callbacks, history, splits and files, with the estimators as its nets."""

import copy
import pickle
import warnings

import numpy as np
import pytest
import skorch
import torch
from sklearn.exceptions import NotFittedError
from sklearn.metrics import accuracy_score, get_scorer, mean_absolute_error
from sklearn.model_selection import PredefinedSplit
from skorch.callbacks import (
    Callback,
    Checkpoint,
    EarlyStopping,
    EpochScoring,
    LoadInitState,
    LRScheduler,
    ProgressBar,
    TrainEndCheckpoint,
)
from skorch.dataset import Dataset, ValidSplit
from skorch.helper import SliceDataset, predefined_split
from torch import nn
from torch.nn.utils import parametrizations
from torch.utils.data import Subset

from sklm import LMClassifier, LMRegressor

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

RNG = np.random.default_rng(0)
X = RNG.normal(size=(40, 3))
Y = np.sin(X[:, 0]) + X[:, 1] * 0.5 + 0.3 * RNG.normal(size=40)
LABELS = np.where(X[:, 0] + RNG.normal(size=40) > 0, "yes", "no")
X_NEW, Y_NEW = RNG.normal(size=(15, 3)), RNG.normal(size=15)


class Network(nn.Module):
    def __init__(self, n_features_in=3, n_outputs=1, n_hidden=3, dropout=0.0):
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(n_features_in, n_hidden), nn.Tanh(), nn.Dropout(dropout), nn.Linear(n_hidden, n_outputs)
        )

    def forward(self, X):
        return self.net(X)


def regressor(**params):
    return LMRegressor(**{"module": Network, "random_state": 0, "max_epochs": 10, **params})


def classifier(**params):
    return LMClassifier(**{"module": Network, "random_state": 0, "max_epochs": 10, **params})


def state(model):
    return {name: value.clone() for name, value in model.module_.state_dict().items()}


def assert_same_state(one, other):
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name


class AtEpoch(Callback):
    """Does something at the end of an epoch; keeps the parameters and losses of all epochs."""

    def __init__(self, epoch, action):
        self.epoch, self.action, self.states = epoch, action, []

    def on_epoch_end(self, net, **kwargs):
        self.states.append(state(net))
        if len(net.history) == self.epoch:
            self.action()


def raising(error):
    def action():
        raise error

    return action


# ---------------------------------------------------------------- stopping and best parameters


@pytest.mark.parametrize("load_best", [True, False])
def test_early_stopping_callback(load_best):
    stop = EarlyStopping(patience=3, load_best=load_best, sink=lambda text: None)
    model = regressor(module__n_hidden=20, max_epochs=100, train_split=ValidSplit(4), callbacks=[("stop", stop)]).fit(
        X, Y
    )
    losses = model.history_[:, "valid_loss"]
    best = int(np.argmin(losses))
    assert model.n_iter_ == len(losses) < 100
    assert "callback" in model.message_
    assert not model.converged_
    _, valid = ValidSplit(4)(Dataset(X, Y), Y)
    rows = np.asarray(valid.indices)
    reached = 0.5 * np.mean(np.square(model.predict(X[rows]) - Y[rows]))
    np.testing.assert_allclose(reached, losses[best if load_best else -1], rtol=1e-10)
    assert best < len(losses) - 1


def test_early_stopping_callback_gives_no_convergence_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        regressor(
            module__n_hidden=20,
            max_epochs=100,
            train_split=ValidSplit(4),
            callbacks=[EarlyStopping(patience=3, sink=lambda text: None)],
        ).fit(X, Y)


@pytest.mark.parametrize("batch_size", [-1, 8])
def test_exception_of_a_callback_keeps_the_best_parameters(batch_size):
    at = AtEpoch(4, raising(ZeroDivisionError("mine")))
    model = regressor(batch_size=batch_size, callbacks=[at])
    with pytest.raises(ZeroDivisionError, match="mine"):
        model.fit(X, Y)
    losses = model.history_[:3, "train_loss"]
    assert_same_state(state(model), at.states[int(np.argmin([*losses, model.history_[3, "train_loss"]]))])
    assert "ZeroDivisionError" in model.message_
    assert np.isfinite(model.predict(X)).all()


class Interrupted(Network):
    """Raises a Ctrl-C in a forward pass once as many passes were made."""

    def __init__(self, n_calls):
        super().__init__()
        self.n_calls = n_calls

    def forward(self, X):
        self.n_calls -= 1
        if self.n_calls == 0:
            raise KeyboardInterrupt
        return super().forward(X)


@pytest.mark.parametrize("n_calls", [70, 80, 90, 100])
@pytest.mark.parametrize("batch_size", [-1, 8])
def test_ctrl_c_keeps_the_best_parameters_and_is_raised(batch_size, n_calls):
    keep = AtEpoch(-1, None)
    model = regressor(
        module=Interrupted, module__n_calls=n_calls, batch_size=batch_size, max_epochs=200, callbacks=[keep]
    )
    with pytest.raises(KeyboardInterrupt) as caught:
        model.fit(X, Y)
    assert caught.type is KeyboardInterrupt
    assert len(keep.states) >= 2
    rows = model.history_[: len(keep.states)]
    losses = [row["train_loss"] for row in rows]
    last_size = rows[-1].get("batch_size")  # losses on batches of another size do not compare
    best = min((i for i, row in enumerate(rows) if row.get("batch_size") == last_size), key=losses.__getitem__)
    assert_same_state(state(model), keep.states[best])
    assert model.message_.startswith("Interrupted")
    assert not model.converged_
    assert model.loss_ == losses[best]
    assert model.n_iter_ == len(model.loss_curve_) == len(losses)
    np.testing.assert_array_equal(model.predict(X), model.predict(X))


class StopBefore(Callback):
    """Asks to stop as an epoch begins."""

    def __init__(self, epoch):
        self.epoch = epoch

    def on_epoch_begin(self, net, **kwargs):
        if len(net.history) == self.epoch:
            raise KeyboardInterrupt


def test_a_callback_that_stops_as_an_epoch_begins_ends_with_the_one_before():
    model = regressor(max_epochs=20, ftol=None, xtol=None, gtol=None, callbacks=[StopBefore(4)]).fit(X, Y)
    assert model.message_ == "Stopped by a callback after 3 epochs."
    assert_same_state(state(model), state(regressor(max_epochs=3).fit(X, Y)))


def test_a_callback_that_stops_before_the_first_step_leaves_an_unfitted_estimator():
    model = regressor(callbacks=[StopBefore(1)])
    with pytest.raises(KeyboardInterrupt):
        model.fit(X, Y)
    with pytest.raises(NotFittedError):
        model.predict(X)


def test_ctrl_c_before_the_first_epoch_leaves_an_unfitted_estimator():
    model = regressor(module=Interrupted, module__n_calls=3)
    before = dict(vars(model))
    with pytest.raises(KeyboardInterrupt):
        model.fit(X, Y)
    assert vars(model) == before
    with pytest.raises(NotFittedError):
        model.predict(X)


def test_ctrl_c_before_the_first_epoch_leaves_the_fit_before():
    model = regressor().fit(X, Y)
    attributes, before, predictions = dict(vars(model)), state(model), model.predict(X)
    model.set_params(module=Interrupted, module__n_calls=3)
    with pytest.raises(KeyboardInterrupt):
        model.fit(X, Y)
    changed = {name for name in vars(model) if vars(model)[name] is not attributes.get(name)}
    assert changed == {"module", "_prefixed"}
    assert_same_state(state(model), before)
    np.testing.assert_array_equal(model.predict(X), predictions)


class Switch(Network):
    """Raises a Ctrl-C in the second batch of the first epoch after `armed` was set."""

    armed = False
    n_calls = 0

    def forward(self, X):
        if Switch.armed:
            Switch.n_calls += 1
            if Switch.n_calls > 15:
                raise KeyboardInterrupt
        return super().forward(X)


def test_ctrl_c_in_the_first_epoch_of_a_partial_fit_leaves_the_fit_before():
    Switch.armed = False
    model = regressor(module=Switch, batch_size=4, max_epochs=3).fit(X, Y)
    before, history, optimizer = state(model), model.history_.to_list(), copy.deepcopy(model.optimizer_.state_dict())
    history = copy.deepcopy(history)
    Switch.armed, Switch.n_calls = True, 0
    try:
        with pytest.raises(KeyboardInterrupt):
            model.partial_fit(X, Y)
    finally:
        Switch.armed = False
    assert_same_state(state(model), before)
    assert model.history_.to_list() == history
    assert (
        model.optimizer_.state_dict()["levenberg_marquardt"]["n_steps"] == optimizer["levenberg_marquardt"]["n_steps"]
    )


# ---------------------------------------------------------------- checkpoints


RESUMED = {
    "full batch": {},
    "mini-batches": {"batch_size": 8},
    "dropout": {"module__dropout": 0.3},
    "dropout in mini-batches": {"module__dropout": 0.3, "batch_size": 8},
    "selection": {"selection": "random"},
    "more scaling": {"damping__scaling": "more"},
    "alpha and standard damping": {"alpha": 0.1, "damping": "standard"},
}


@pytest.mark.parametrize("params", RESUMED.values(), ids=RESUMED)
def test_resume_continues_exactly(tmp_path, params):
    params = {"ftol": None, "xtol": None, "gtol": None, **params}
    straight = regressor(max_epochs=10, callbacks=[], **params).fit(X, Y)
    checkpoint = Checkpoint(monitor=None, dirname=str(tmp_path))
    regressor(max_epochs=5, callbacks=[checkpoint], **params).fit(X, Y)

    resumed = regressor(max_epochs=5, callbacks=[LoadInitState(Checkpoint(dirname=str(tmp_path)))], **params)
    resumed.set_params(random_state=99)  # what is loaded decides, not the new seed
    resumed.fit(X, Y)

    assert_same_state(state(resumed), state(straight))
    assert resumed.history_[:, "train_loss"] == straight.history_[:, "train_loss"]
    assert resumed.history_[:, "damping"] == straight.history_[:, "damping"]
    assert resumed.n_iter_ == 10
    np.testing.assert_array_equal(resumed.predict(X), straight.predict(X))


@pytest.mark.parametrize("alpha", [0.1, "bayes"])
def test_resume_of_the_default_network(tmp_path, alpha):
    settings = {"alpha": alpha, "random_state": 0}
    straight = LMRegressor(max_epochs=6, **settings).fit(X, Y)
    LMRegressor(max_epochs=3, callbacks=[Checkpoint(monitor=None, dirname=str(tmp_path))], **settings).fit(X, Y)
    resumed = LMRegressor(max_epochs=3, callbacks=[LoadInitState(Checkpoint(dirname=str(tmp_path)))], **settings).fit(
        X, Y
    )
    np.testing.assert_allclose(resumed.history_[:, "train_loss"], straight.history_[:, "train_loss"], rtol=1e-6)
    if alpha == "bayes":  # which of the epochs is kept, every run decides for itself
        np.testing.assert_allclose(resumed.history_[:, "alpha"], straight.history_[:, "alpha"], rtol=1e-6)
    else:
        np.testing.assert_allclose(resumed.predict(X), straight.predict(X), rtol=1e-6)


def test_checkpoint_writes_all_default_files(tmp_path):
    regressor(callbacks=[Checkpoint(monitor=None, dirname=str(tmp_path))]).fit(X, Y)
    names = {path.name for path in tmp_path.iterdir()}
    assert names >= {"params.pt", "optimizer.pt", "criterion.pt", "history.json"}


def test_checkpoint_keeps_the_best_epoch(tmp_path):
    checkpoint = Checkpoint(monitor="valid_loss_best", dirname=str(tmp_path))
    keep = AtEpoch(-1, None)
    model = regressor(module__n_hidden=20, max_epochs=30, train_split=ValidSplit(4), callbacks=[keep, checkpoint]).fit(
        X, Y
    )
    best = int(np.argmin(model.history_[:, "valid_loss"]))
    assert best < model.n_iter_ - 1
    model.load_params(checkpoint=checkpoint)
    assert_same_state(state(model), keep.states[best])


def test_checkpoint_with_load_best(tmp_path):
    checkpoint = Checkpoint(monitor="valid_loss_best", dirname=str(tmp_path), load_best=True)
    keep = AtEpoch(-1, None)
    model = regressor(module__n_hidden=20, max_epochs=30, train_split=ValidSplit(4), callbacks=[keep, checkpoint]).fit(
        X, Y
    )
    assert_same_state(state(model), keep.states[int(np.argmin(model.history_[:, "valid_loss"]))])


def test_train_end_checkpoint(tmp_path):
    straight = regressor(max_epochs=10, callbacks=[]).fit(X, Y)
    checkpoint = TrainEndCheckpoint(dirname=str(tmp_path))
    regressor(max_epochs=5, callbacks=[checkpoint]).fit(X, Y)
    load = LoadInitState(checkpoint)
    assert_same_state(state(regressor(max_epochs=5, callbacks=[load]).fit(X, Y)), state(straight))


def test_save_and_load_params(tmp_path):
    files = {f"f_{part}": str(tmp_path / part) for part in ("params", "optimizer", "criterion", "history")}
    model = regressor(batch_size=8).fit(X, Y)
    model.save_params(**files)
    other = regressor(batch_size=8).fit(X_NEW, Y_NEW)
    other.load_params(**files)
    assert_same_state(state(other), state(model))
    assert other.history_.to_list() == model.history_.to_list()
    np.testing.assert_array_equal(other.predict(X), model.predict(X))
    model.partial_fit(X, Y)
    other.partial_fit(X, Y)
    assert_same_state(state(other), state(model))


def test_load_params_into_an_initialized_estimator(tmp_path):
    model = regressor().fit(X, Y)
    model.save_params(f_params=str(tmp_path / "params"))
    other = regressor()
    other.initialize()
    other.load_params(f_params=str(tmp_path / "params"))
    assert_same_state(state(other), state(model))
    np.testing.assert_array_equal(other.predict(X), model.predict(X))


def test_initialize_says_what_it_lacks():
    with pytest.raises(ValueError, match=r"`module` asks for `n_features_in`.*pass `module__n_features_in`"):
        LMRegressor().initialize()


# ---------------------------------------------------------------- scoring


@pytest.mark.parametrize("use_caching", [True, False], ids=["cached", "fresh"])
@pytest.mark.parametrize("on_train", [True, False], ids=["train", "valid"])
def test_scoring_of_a_regressor(on_train, use_caching):
    scoring = EpochScoring(
        "neg_mean_absolute_error", name="mae", on_train=on_train, use_caching=use_caching, lower_is_better=False
    )
    model = regressor(train_split=ValidSplit(4), callbacks=[scoring]).fit(X, Y)
    train, valid = ValidSplit(4)(Dataset(X, Y), Y)
    rows = np.asarray((train if on_train else valid).indices)
    expected = -mean_absolute_error(Y[rows], model.predict(X[rows]))
    np.testing.assert_allclose(model.history_[-1, "mae"], expected, rtol=1e-9)
    assert len(model.history_[:, "mae"]) == model.n_iter_
    assert "mae_best" in model.history_[0]


@pytest.mark.parametrize("use_caching", [True, False], ids=["cached", "fresh"])
@pytest.mark.parametrize("on_train", [True, False], ids=["train", "valid"])
@pytest.mark.parametrize("batch_size", [-1, 8])
def test_scoring_of_string_labels(on_train, use_caching, batch_size):
    scoring = EpochScoring("accuracy", name="acc", on_train=on_train, use_caching=use_caching, lower_is_better=False)
    split = ValidSplit(4, stratified=True)
    model = classifier(batch_size=batch_size, train_split=split, callbacks=[scoring]).fit(X, LABELS)
    assert all(0 <= score <= 1 for score in model.history_[:, "acc"])
    if batch_size == -1 or not on_train or not use_caching:  # cached predictions of mini-batches are of their step
        train, valid = split(Dataset(X, LABELS), LABELS)
        rows = np.asarray((train if on_train else valid).indices)
        np.testing.assert_allclose(model.history_[-1, "acc"], accuracy_score(LABELS[rows], model.predict(X[rows])))


def test_scoring_by_a_function():
    scoring = EpochScoring(lambda net, X, y: float(np.mean(net.predict(X) == y)), name="own", on_train=True)
    model = classifier(callbacks=[scoring]).fit(X, LABELS)
    np.testing.assert_allclose(model.history_[-1, "own"], model.score(X, LABELS))


@pytest.mark.parametrize("scoring", ["neg_log_loss", "roc_auc"])
def test_scoring_by_probabilities(scoring):
    callback = EpochScoring(scoring, name="score", on_train=True, lower_is_better=False)
    model = classifier(callbacks=[callback]).fit(X, LABELS)
    np.testing.assert_allclose(model.history_[-1, "score"], get_scorer(scoring)(model, X, LABELS), rtol=1e-9)


def test_scoring_with_early_stopping():
    scoring = EpochScoring("accuracy", name="acc", lower_is_better=False)
    model = classifier(early_stopping=True, validation_fraction=0.3, callbacks=[scoring]).fit(X, LABELS)
    assert len(model.history_[:, "acc"]) == len(model.history_)


# ---------------------------------------------------------------- splits, history, schedules


@pytest.mark.parametrize("batch_size", [-1, 8])
def test_predefined_split(batch_size):
    split = predefined_split(Dataset(X_NEW, Y_NEW))
    model = regressor(batch_size=batch_size, train_split=split).fit(X, Y)
    expected = 0.5 * np.mean(np.square(model.predict(X_NEW) - Y_NEW))
    np.testing.assert_allclose(model.history_[-1, "valid_loss"], expected, rtol=1e-10)
    expected = 0.5 * np.mean(np.square(model.predict(X) - Y))
    if batch_size == -1:
        np.testing.assert_allclose(model.loss_, expected, rtol=1e-10)  # trained on all rows


def test_predefined_split_with_labels():
    new_labels = np.where(Y_NEW > 0, "yes", "no")
    model = classifier(train_split=predefined_split(Dataset(X_NEW, new_labels))).fit(X, LABELS)
    assert len(model.history_[:, "valid_loss"]) == model.n_iter_


def test_predefined_split_of_float64_stays_in_the_dtype_of_the_module():
    split = predefined_split(Dataset(X_NEW, Y_NEW))
    model = regressor(dtype="float32", train_split=split).fit(X, Y)
    assert np.isfinite(model.history_[:, "valid_loss"]).all()


def test_valid_split_with_weights():
    model = regressor(train_split=ValidSplit(4)).fit(X, Y, sample_weight=np.arange(1, 41))
    _, valid = ValidSplit(4)(Dataset(X, Y), Y)
    rows = np.asarray(valid.indices)
    squares = np.square(model.predict(X[rows]) - Y[rows])
    expected = 0.5 * np.average(squares, weights=rows + 1)
    np.testing.assert_allclose(model.history_[-1, "valid_loss"], expected, rtol=1e-10)


def test_history_slices():
    model = regressor(batch_size=15, max_epochs=3, ftol=None, xtol=None, gtol=None).fit(X, Y)
    assert isinstance(model.history_, skorch.history.History)
    assert model.history is model.history_
    losses = model.history_[:, "train_loss"]
    assert len(losses) == 3
    assert all(isinstance(loss, float) for loss in losses)
    damping = model.history_[:, "batches", :, "damping"]
    assert [len(epoch) for epoch in damping] == [3, 3, 3]
    assert all(value > 0 for epoch in damping for value in epoch)
    assert model.history_[:, ("epoch", "attempts")][0][0] == 1
    assert model.history_[-1, "batches", -1, "gain_ratio"] == model.history_[-1, "gain_ratio"]
    sizes = np.array([14, 13, 13])
    batches = np.array(model.history_[:, "batches", :, "train_loss"])
    np.testing.assert_allclose(batches @ sizes / 40, losses)


@pytest.mark.parametrize("scaling", ["max", "more"])
def test_history_is_plain_json(tmp_path, scaling):
    model = regressor(damping__scaling=scaling).fit(X, Y)
    model.history_.to_file(str(tmp_path / "history.json"))
    again = skorch.history.History.from_file(str(tmp_path / "history.json"))
    assert again[:, "damping"] == model.history_[:, "damping"]


def test_learning_rate_schedule():
    seen = []

    class Rates(Callback):
        def on_epoch_end(self, net, **kwargs):
            seen.append(net.optimizer_.param_groups[0]["lr"])

    schedule = LRScheduler(policy="StepLR", step_size=1, gamma=0.5)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Detected call of `lr_scheduler.step")
        model = regressor(max_epochs=4, callbacks=[Rates(), schedule], lr=1.0).fit(X, Y)
    assert seen == [1.0, 0.5, 0.25, 0.125]
    assert model.lr == 1.0


def test_learning_rate_schedule_without_warning():
    """torch warns when its scheduler sees no `optimizer.step`: a scheduler must find this one."""
    schedule = LRScheduler(policy="ExponentialLR", gamma=0.9)
    regressor(max_epochs=4, callbacks=[schedule]).fit(X, Y)


def test_callback_changes_damping():
    class Reset(Callback):
        def on_epoch_begin(self, net, **kwargs):
            net.optimizer_.damping.value = 7.0

    model = regressor(max_epochs=3, callbacks=[Reset()]).fit(X, Y)
    assert model.history_[0, "damping"] >= 7.0


def test_callbacks_are_not_changed():
    stop = EarlyStopping(patience=3, sink=lambda text: None)
    before = stop.get_params()
    model = regressor(train_split=ValidSplit(4), callbacks=[stop])
    callbacks = model.callbacks
    model.fit(X, Y)
    assert model.callbacks is callbacks == [stop]
    assert stop.get_params() == before


def test_parameters_of_a_callback():
    stop = EarlyStopping(patience=3, sink=lambda text: None)
    params = {"module__n_hidden": 20, "max_epochs": 60, "train_split": ValidSplit(4)}
    model = regressor(callbacks=[("stop", stop)], callbacks__stop__patience=1, **params).fit(X, Y)
    other = regressor(callbacks=[("stop", EarlyStopping(patience=1, sink=lambda text: None))], **params).fit(X, Y)
    assert model.n_iter_ == other.n_iter_


def test_a_callback_can_be_dropped():
    model = regressor(callbacks=[("stop", EarlyStopping())], callbacks__stop=None).fit(X, Y)
    assert "stop" not in dict(model.callbacks_)


@pytest.mark.parametrize("params", RESUMED.values(), ids=RESUMED)
def test_a_callback_that_only_watches_changes_nothing(params):
    watched = regressor(callbacks=[Callback()], **params).fit(X, Y)
    alone = regressor(**params).fit(X, Y)
    np.testing.assert_allclose(watched.predict(X), alone.predict(X), rtol=1e-6)  # the order of rows may differ
    assert watched.n_iter_ == alone.n_iter_


def test_callbacks_disabled():
    model = regressor(callbacks="disable").fit(X, Y)
    plain = regressor().fit(X, Y)
    assert model.callbacks_ == []
    np.testing.assert_array_equal(model.predict(X), plain.predict(X))
    assert np.isfinite(model.loss_)
    assert model.n_iter_ == plain.n_iter_


def test_fit_with_callbacks_survives_pickling():
    model = regressor(callbacks=[EpochScoring("r2", name="r2", on_train=True)]).fit(X, Y)
    other = pickle.loads(pickle.dumps(model))  # noqa: S301
    np.testing.assert_array_equal(other.predict(X), model.predict(X))


# ---------------------------------------------------------------- output


@pytest.mark.parametrize("build", [regressor, classifier])
def test_silent_by_default(capsys, build):
    build(early_stopping=True).fit(X, Y if build is regressor else LABELS)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == ""


def test_skorchs_bar_of_batches(capsys):
    bar = ProgressBar(detect_notebook=False)
    model = regressor(batch_size=8, max_epochs=3, callbacks=[bar]).fit(X, Y)
    assert np.isfinite(model.predict(X)).all()
    assert "/5 [" in capsys.readouterr().err


@pytest.mark.parametrize("batch_size", [-1, 8])
def test_a_callback_that_stops_within_the_first_epoch(batch_size):
    class Stop(Callback):
        def on_batch_end(self, net, **kwargs):
            raise KeyboardInterrupt

    model = regressor(batch_size=batch_size, callbacks=[Stop()]).fit(X, Y)
    assert model.message_ == "Stopped by a callback after 1 epoch."
    assert np.isfinite(model.predict(X)).all()
    assert model.loss_ == model.history_[0, "batches", 0, "train_loss"]


class Activated(nn.Module):
    def __init__(self, activation=None, first=None):
        super().__init__()
        self.first, self.last = first or nn.Linear(3, 4), nn.Linear(4, 1)
        self.activation = activation or nn.Tanh()

    def forward(self, X):
        return self.last(torch.tanh(self.activation(self.first(X))))


def test_modules_given_as_arguments_are_not_trained():
    activation, first, net = nn.PReLU(), nn.Linear(3, 4), Activated()
    before = copy.deepcopy([activation, first, net])
    params = {"module__activation": activation, "module__first": first, "random_state": 0, "max_epochs": 10}
    model = LMRegressor(Activated, n_init=3, **params).fit(X, Y)
    np.testing.assert_allclose(((model.predict(X) - Y) ** 2).mean() / 2, model.loss_, rtol=1e-10)
    again = LMRegressor(Activated, n_init=3, **params).fit(X, Y)
    np.testing.assert_array_equal(model.predict(X), again.predict(X))
    LMRegressor(lambda: net, max_epochs=3).fit(X, Y)
    for one, other in zip(before, (activation, first, net), strict=True):
        for parameter, left in zip(one.parameters(), other.parameters(), strict=True):
            assert parameter.dtype == left.dtype
            assert torch.equal(parameter, left)


def test_a_module_in_two_arguments_stays_one():
    class Twice(nn.Module):
        def __init__(self, first=None, second=None):
            super().__init__()
            self.first, self.second, self.last = first, second, nn.Linear(3, 1)

        def forward(self, X):
            return self.last(torch.tanh(self.second(torch.tanh(self.first(X)))))

    layer = nn.Linear(3, 3)
    model = LMRegressor(Twice, module__first=layer, module__second=layer, max_epochs=2).fit(X, Y)
    assert model.module_.first is model.module_.second
    assert model.module_.first is not layer


def test_a_list_without_tensors_is_the_list_that_was_given():
    seen = []

    class Logging(Network):
        def __init__(self, log=None):
            super().__init__()
            log.append("made")

    LMRegressor(Logging, module__log=seen, max_epochs=2).fit(X, Y)
    assert seen == ["made"]


@pytest.mark.parametrize("n_epochs", [1, 3])
def test_a_loop_of_short_fits_gets_as_far_as_one(n_epochs):
    x = np.random.default_rng(0).uniform(-1, 1, (100, 1))
    y = np.sin(4 * x[:, 0]) + 0.05 * np.random.default_rng(1).standard_normal(100)
    model = LMRegressor(max_epochs=n_epochs, random_state=0)
    for _ in range(60 // n_epochs):
        model.partial_fit(x, y)
    assert model.score(x, y) > 0.99


def test_a_parametrized_instance_goes_on():
    model = LMRegressor(parametrizations.weight_norm(nn.Linear(3, 1)), max_epochs=3).fit(X, Y)
    model.partial_fit(X, Y)


def test_auto_on_a_machine_with_another_device(monkeypatch):
    model = regressor().fit(X, Y)
    monkeypatch.setattr("sklm._net.components.resolve_device", lambda device: torch.device("meta"))
    model.partial_fit(X, Y)
    model.set_params(device="cpu")
    with pytest.raises(ValueError, match="`device` has changed"):
        model.partial_fit(X, Y)


class Anything(Network):
    def __init__(self, thing=None):
        super().__init__()


class Opaque:
    pass


@pytest.mark.parametrize(
    "thing",
    [
        nn.Tanh(),
        Opaque(),
        [[1.0], [1.0, 2.0]],
        [np.zeros(2), np.zeros(3)],
        [torch.zeros(2)],
        torch.zeros(2, requires_grad=True),
        np.array([1.0, np.nan]),
        {"a": np.zeros(2)},
        "relu",
        None,
    ],
    ids=lambda thing: type(thing).__name__,
)
def test_arguments_of_the_module_that_have_not_changed(thing):
    model = LMRegressor(Anything, module__thing=thing, max_epochs=3).fit(X, Y)
    model.partial_fit(X, Y)
    pickle.loads(pickle.dumps(model)).partial_fit(X, Y)  # noqa: S301
    model.set_params(module__thing=Opaque())
    with pytest.raises(ValueError, match="`module__thing` has changed"):
        model.partial_fit(X, Y)


@pytest.mark.parametrize("thing", [[1.0, 2.0], np.zeros(2), {0: 1.0}], ids=["list", "array", "dict"])
def test_arguments_of_the_module_that_have_changed_in_place(thing):
    model = LMRegressor(Anything, module__thing=thing, max_epochs=3).fit(X, Y)
    thing[0] = 7.0
    with pytest.raises(ValueError, match="`module__thing` has changed"):
        model.partial_fit(X, Y)


def test_another_name_of_the_device_and_dtype_is_no_change():
    model = regressor(device="auto", dtype="float64").fit(X, Y)
    model.set_params(device=model.device_, dtype=torch.float64).partial_fit(X, Y)


@pytest.mark.parametrize(
    "policy", [("StepLR", {"step_size": 1, "gamma": 0.5}), ("LambdaLR", {"lr_lambda": lambda epoch: 0.9**epoch})]
)
@pytest.mark.parametrize("goes_on", ["partial_fit", "warm_start", "load_params"])
def test_a_scheduler_goes_on(policy, goes_on, tmp_path):
    name, settings = policy
    params = {"callbacks": [LRScheduler(name, **settings)], "max_epochs": 3, "ftol": None, "xtol": None, "gtol": None}
    model = regressor(**params).fit(X, Y)
    if goes_on == "load_params":
        files = {f"f_{part}": tmp_path / part for part in ("params", "optimizer", "history")}
        model.save_params(**files)
        model = regressor(**params).initialize()
        model.load_params(**files)
    if goes_on == "warm_start":
        model.set_params(warm_start=True).fit(X, Y)
    else:
        model.partial_fit(X, Y)
    peer = skorch.NeuralNetRegressor(
        Network, lr=1.0, max_epochs=3, callbacks=params["callbacks"], train_split=None, verbose=0
    )
    peer.fit(X.astype("f"), Y[:, None].astype("f")).partial_fit(X.astype("f"), Y[:, None].astype("f"))
    np.testing.assert_allclose(model.history_[:, "event_lr"], peer.history[:, "event_lr"])
    model.set_params(lr=0.7, callbacks=[LRScheduler("LambdaLR", lr_lambda=lambda epoch: 1.0)]).partial_fit(X, Y)
    np.testing.assert_allclose(model.history_[-3:, "event_lr"], 0.7)
    model.set_params(callbacks=None, lr=1.0).partial_fit(X, Y)
    assert model.optimizer_.param_groups[0]["lr"] == 1.0


def test_a_first_chunk_that_leaves_no_weight_does_not_decide_the_rest():
    rng = np.random.default_rng(0)
    model = LMRegressor(random_state=0).partial_fit(rng.normal(size=(30, 3)), rng.normal(size=30))
    assert "the outputs are constant" in model.message_
    many = rng.normal(size=(300, 3))
    targets = np.sin(2 * many[:, 0]) + many[:, 1]
    assert model.partial_fit(many, targets).score(many, targets) > 0.99


@pytest.mark.parametrize("weighted", ["sample_weight", "class_weight"])
def test_a_split_by_positions_with_weights_of_zero(weighted):
    folds = np.where(np.arange(40) < 30, -1, 0)
    seen = {}

    class Sizes(Callback):
        def on_epoch_begin(self, net, dataset_train=None, dataset_valid=None, **kwargs):
            seen["train"], seen["valid"] = np.asarray(dataset_train.X), np.asarray(dataset_valid.X)

    params = {"train_split": ValidSplit(PredefinedSplit(folds)), "callbacks": [Sizes()]}
    if weighted == "sample_weight":
        weights = np.where(np.arange(40) % 3 == 0, 0.0, 1.0)
        regressor(**params).fit(X, Y, sample_weight=weights)
    else:
        three = np.array(["no", "yes", "none"])[np.arange(40) % 3]
        weights = np.where(three == "none", 0.0, 1.0)
        classifier(class_weight={"none": 0.0}, **params).fit(X, three)
    np.testing.assert_array_equal(seen["train"], X[(folds < 0) & (weights > 0)])
    np.testing.assert_array_equal(seen["valid"], X[(folds == 0) & (weights > 0)])


def test_a_split_that_leaves_no_weight():
    model = regressor(train_split=ValidSplit(PredefinedSplit(np.where(np.arange(40) < 30, -1, 0))))
    with pytest.raises(ValueError, match="rows with a positive weight for validation"):
        model.fit(X, Y, sample_weight=np.arange(40) < 30)


def test_a_subset_of_a_subset_keeps_its_weights():
    def nested(data, y):
        return Subset(Subset(data, range(5, 40)), range(30)), Subset(data, range(5))

    weights = np.arange(1.0, 41.0) ** 3
    params = {"module__hidden_layer_sizes": (), "alpha": 0.0}
    model = LMRegressor(train_split=nested, **params).fit(X, Y, sample_weight=weights)
    expected = LMRegressor(**params).fit(X[5:35], Y[5:35], sample_weight=weights[5:35])
    np.testing.assert_allclose(model.predict(X), expected.predict(X), rtol=1e-8)


def test_starts_of_lazy_layers_differ():
    def lazy():
        return nn.Sequential(nn.LazyLinear(3), nn.Tanh(), nn.LazyLinear(1))

    losses = []

    class Losses(Callback):
        def on_train_end(self, net, **kwargs):
            losses.append(net.history[-1, "train_loss"])

    LMRegressor(lazy, n_init=3, random_state=0, max_epochs=2, callbacks=[Losses()]).fit(X, Y)
    assert len(set(losses)) == 3


def test_what_is_trimmed_for_prediction_predicts():
    callbacks = [EpochScoring("r2")]
    model = regressor(callbacks=callbacks).fit(X, Y)
    expected = model.predict(X)
    model.trim_for_prediction()
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(model)).predict(X), expected)  # noqa: S301
    assert len(callbacks) == 1
    assert not hasattr(model, "standard_errors_")
    with pytest.raises(skorch.exceptions.SkorchTrainingImpossibleError, match="trimmed"):
        model.fit(X, Y)


class Constant(nn.Module):
    def __init__(self):
        super().__init__()
        self.value = nn.Parameter(torch.zeros(1))

    def forward(self, X):
        return self.value.expand(len(X))


def test_outputs_that_are_views_of_a_parameter():
    model = LMRegressor(Constant).fit(X, Y)
    np.testing.assert_allclose(model.predict(X_NEW), Y.mean())
    assert not model.forward(X_NEW).requires_grad


@pytest.mark.parametrize("kind", ["EarlyStopping", "Checkpoint"])
def test_the_loss_is_that_of_parameters_loaded_by_a_callback(kind, tmp_path):
    callback = (
        EarlyStopping(patience=3, load_best=True, sink=lambda text: None)
        if kind == "EarlyStopping"
        else Checkpoint(dirname=str(tmp_path), load_best=True)
    )
    model = regressor(callbacks=[callback], train_split=ValidSplit(5), alpha=0.1, max_epochs=40).fit(X, Y)
    rows = [(row["valid_loss"], row["train_loss"]) for row in model.history_]
    assert min(rows)[0] < rows[-1][0] or kind == "Checkpoint"  # which cuts the history
    assert model.loss_ == pytest.approx(min(rows)[1], rel=1e-12)
    assert model.n_iter_ == len(model.loss_curve_) == len(model.history_)
    assert "a callback has loaded" in model.message_


def test_a_callback_that_is_not_there():
    model = regressor(callbacks=[("stop", EarlyStopping("train_loss"))], callbacks__stopp__patience=1)
    with pytest.raises(ValueError, match=r"`callbacks__\.\.\.` must be one of .*'stop'.*did you mean 'stop'"):
        model.fit(X, Y)


def test_a_slice_dataset():
    data = torch.utils.data.TensorDataset(torch.tensor(X), torch.tensor(Y))
    model = LMRegressor(max_epochs=3, random_state=0).fit(SliceDataset(data, 0), SliceDataset(data, 1))
    np.testing.assert_array_equal(model.predict(X), LMRegressor(max_epochs=3, random_state=0).fit(X, Y).predict(X))


def test_weights_beyond_float32():
    with pytest.raises(
        ValueError, match=r"`sample_weight` and its sum must be within the range of torch\.float32; got 1e\+60"
    ):
        regressor().fit(X.astype("f"), Y, sample_weight=np.full(40, 1e60))
    with pytest.raises(ValueError, match=r"`sample_weight` and its sum must be within the range"):
        regressor().fit(X.astype("f"), Y, sample_weight=np.full(40, 1e-60))
    with pytest.raises(ValueError, match=r"`sample_weight` and its sum must be within the range"):
        regressor().fit(X.astype("f"), Y, sample_weight=np.full(40, 1e38))  # each is in it, their sum is not
    some = np.where(np.arange(40) < 10, 1e-60, 1.0)
    found, expected = (regressor().fit(X.astype("f"), Y, sample_weight=w) for w in (some, some > 0.5))
    np.testing.assert_array_equal(found.predict(X), expected.predict(X))
    regressor().fit(X, Y, sample_weight=np.full(40, 1e60))


def test_a_fit_within_inference_mode():
    with torch.inference_mode():
        model = regressor().fit(X, Y)
        intervals = model.predict_interval(X)
    np.testing.assert_array_equal(model.predict(X), regressor().fit(X, Y).predict(X))
    np.testing.assert_array_equal(intervals, regressor().fit(X, Y).predict_interval(X))


def test_many_parameters_have_no_standard_errors():
    model = LMRegressor(module__hidden_layer_sizes=(1100,), alpha=1.0, max_epochs=1, solver="cg").fit(X, Y)
    assert not hasattr(model, "standard_errors_")
    with pytest.raises(ValueError, match="there may be at most 5000"):
        model.summary()


@pytest.mark.parametrize("f_history", ["history.json", None])
def test_attributes_of_the_evidence_follow_load_best(tmp_path, f_history):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(80, 3))
    y = np.sin(X[:, 0]) + 0.3 * rng.normal(size=80)
    checkpoint = Checkpoint(dirname=str(tmp_path), load_best=True, f_history=f_history)
    model = LMRegressor(train_split=ValidSplit(5), callbacks=[checkpoint], random_state=0).fit(X, y)
    if f_history:
        row = model.history_[-1]
        assert row["epoch"] < int(model.message_.split()[2])  # it did load another epoch
        for name in ("alpha", "n_effective", "log_evidence"):
            assert getattr(model, f"{name}_") == row[name]
        assert model.loss_ == row["train_loss"]
    else:
        assert not hasattr(model, "n_effective_")
    assert model.message_.endswith("epochs; the parameters are those that a callback has loaded.")


def test_load_params_leaves_no_attribute_of_the_fit_before(tmp_path):
    X = np.random.default_rng(0).normal(size=(40, 2))
    one, other = LMRegressor(random_state=0).fit(X, X[:, 0]), LMRegressor(random_state=0).fit(X, X[:, 1] ** 2)
    one.save_params(f_params=str(tmp_path / "weights.pt"))
    other.load_params(f_params=str(tmp_path / "weights.pt"))
    np.testing.assert_array_equal(other.predict(X), one.predict(X))
    assert not any(hasattr(other, name) for name in ("loss_", "alpha_", "log_evidence_", "message_", "n_iter_"))


@pytest.mark.parametrize("settings", [{"max_epochs": 5, "verbose": 1}, {"alpha": 1.0, "max_epochs": 500}])
def test_load_best_of_the_last_epoch_leaves_the_attributes(tmp_path, settings):
    X = np.random.default_rng(0).normal(size=(40, 2))
    checkpoint = Checkpoint(dirname=str(tmp_path), load_best=True, monitor="train_loss_best")
    model = LMRegressor(callbacks=[checkpoint], **{"alpha": 0.0, "random_state": 0, **settings})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.fit(X, np.sin(X[:, 0]))
    assert model.n_iter_ == len(model.history_)
    assert model.loss_ == model.history_[-1, "train_loss"]
    assert model.message_
    loss = model.loss_
    model.save_params(f_optimizer=str(tmp_path / "optimizer.pt"))
    model.load_params(f_optimizer=str(tmp_path / "optimizer.pt"))
    assert model.loss_ == loss
