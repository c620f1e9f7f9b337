"""What a fit prints: a bar in a terminal, plain lines in a pipe, nothing by default."""

import contextlib
import io
import os
import pickle
import re
import struct
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from skorch.callbacks import Callback, Checkpoint, EpochScoring
from tqdm import tqdm

from sklm import LMClassifier, LMRegressor

RNG = np.random.default_rng(0)
X = np.linspace(-1, 1, 60)[:, None]
Y = np.sin(3 * X[:, 0]) + 0.1 * RNG.standard_normal(60)


class Terminal(io.StringIO):
    def isatty(self):
        return True

    @property
    def lines(self):
        """The lines as they were drawn, one over the other."""
        return [line for line in re.split(r"[\r\n]", self.getvalue()) if line.strip()]


@contextlib.contextmanager
def terminal():
    """Return what is printed and what is drawn in this context, as in a terminal."""
    with contextlib.redirect_stdout(io.StringIO()) as printed, contextlib.redirect_stderr(Terminal()) as drawn:
        yield printed, drawn


def network(**params):
    return LMRegressor(**{"module__hidden_layer_sizes": (3,), "alpha": 1e-3, "random_state": 0, "verbose": 1, **params})


# ---------------------------------------------------------------- the bar


def test_a_bar_with_loss_damping_and_attempts_and_then_the_reason():
    with terminal() as (printed, drawn):
        model = network(ftol=1e-3).fit(X, Y)
    assert "0/100 [" in drawn.lines[0]
    last = drawn.lines[-1]
    assert last.startswith("100%|")
    assert f"| {model.n_iter_}/{model.n_iter_} [" in last
    row = model.history_[-1]
    for name, value in [("loss", row["train_loss"]), ("damping", row["damping"]), ("attempts", row["attempts"])]:
        assert float(re.search(rf"\b{name}=([-+.\de]+)", last)[1]) == pytest.approx(value, rel=5e-3)
    assert printed.getvalue() == model.message_ + "\n"


def test_a_classifier_has_one_too():
    with terminal() as (printed, drawn):
        model = LMClassifier(random_state=0, verbose=True, ftol=1e-2).fit(X, Y > 0)
    assert f"{model.n_iter_}/{model.n_iter_} [" in drawn.lines[-1]
    assert printed.getvalue() == model.message_ + "\n"


def test_the_texts_beside_the_bar_leave_room_for_it_in_80_characters():
    with terminal() as (_, drawn):
        network(ftol=1e-3, early_stopping=True).fit(X, Y)
    assert len(re.sub(r"\|.{10}\|", "||", drawn.lines[-1])) < 80
    assert re.search(r"valid=\S+, damping=\S+, attempts=\d+\]$", drawn.lines[-1])


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_every_start_and_the_second_strategy_say_so():
    with terminal() as (_, drawn):
        network(n_init=2, max_epochs=3).fit(X, Y)
    assert list(dict.fromkeys(line.split(":")[0] for line in drawn.lines)) == ["start 1 of 2", "start 2 of 2"]
    curve = LMRegressor("a * exp(b * x)", module__a=1, module__b=1, xtol=1e-300, ftol=None, gtol=None, verbose=1)
    with terminal() as (_, drawn):
        curve.fit(X, Y)
    assert any(line.startswith("second strategy:") and "/1000 [" in line for line in drawn.lines)


def test_the_bar_of_a_fit_that_goes_on_counts_its_own_epochs():
    model = network(max_epochs=3, ftol=None, xtol=None, gtol=None, alpha=0.0, verbose=0).partial_fit(X, Y)
    with terminal() as (_, drawn):
        model.set_params(verbose=1).partial_fit(X, Y)
    assert model.n_iter_ == 6
    assert "3/3 [" in drawn.lines[-1]


class StopIn(Callback):
    def __init__(self, epoch, error):
        self.epoch, self.error = epoch, error

    def on_batch_end(self, net, **kwargs):
        if len(net.history) == self.epoch:
            raise self.error


def test_a_callback_that_stops_within_an_epoch():
    with terminal() as (printed, drawn):
        model = network(callbacks=[StopIn(3, KeyboardInterrupt())]).fit(X, Y)
    assert "3/3 [" in drawn.lines[-1]
    assert printed.getvalue() == model.message_ + "\n"


def test_the_bar_is_closed_where_the_fit_fails():
    with terminal() as (printed, drawn), pytest.raises(RuntimeError, match="no more"):
        network(callbacks=[StopIn(3, RuntimeError("no more"))]).fit(X, Y)
    assert "2/100 [" in drawn.lines[-1]
    assert printed.getvalue() == ""
    assert not tqdm._instances


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_a_callback_can_save_the_estimator_beside_the_bar(tmp_path):
    path = str(tmp_path / "model.pkl")
    names = dict.fromkeys(["f_params", "f_optimizer", "f_criterion", "f_history", "monitor"])
    with terminal() as (_, drawn):
        network(callbacks=[Checkpoint(f_pickle=path, **names)], max_epochs=2).fit(X, Y)
    assert "2/2 [" in drawn.lines[-1]
    saved = pickle.loads(Path(path).read_bytes())  # noqa: S301
    assert saved.predict(X).shape == (60,)


# ---------------------------------------------------------------- where no bar can be seen


def test_no_bar_in_a_thread():
    model = network(ftol=1e-3)
    with terminal() as (printed, drawn):
        thread = threading.Thread(target=model.fit, args=(X, Y))
        thread.start()
        thread.join()
    assert drawn.getvalue() == ""
    assert printed.getvalue() == model.message_ + "\n"


def test_a_pipe_gets_the_last_line_alone(capsys):
    model = network(ftol=1e-3).fit(X, Y)
    captured = capsys.readouterr()
    assert captured.err == ""
    assert captured.out == model.message_ + "\n"


SEARCH = """
import numpy as np
from sklearn.model_selection import GridSearchCV
from sklm import LMRegressor
X = np.linspace(-1, 1, 60)[:, None]
Y = np.sin(3 * X[:, 0]) + 0.1 * np.random.default_rng(0).standard_normal(60)
model = LMRegressor(module__hidden_layer_sizes=(3,), alpha=1e-3, random_state=0, verbose=1, ftol=1e-3)
GridSearchCV(model, {"lr": [0.5, 1.0]}, cv=2, n_jobs=2).fit(X, Y)
"""


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="no pseudo-terminals here")
def test_workers_draw_no_bar_over_one_another():
    import fcntl
    import termios

    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    command = [sys.executable, "-W", "ignore", "-c", SEARCH]
    result = subprocess.run(command, stdout=subprocess.PIPE, stderr=theirs, text=True, check=True)  # noqa: S603
    os.close(theirs)
    drawn = os.read(ours, 100_000).decode()
    os.close(ours)
    assert drawn.count(" 0/100 [") == 1  # of the last fit, to all data, in the process itself
    assert result.stdout.count("Converged after") == len(result.stdout.splitlines()) == 5


# ---------------------------------------------------------------- the table


@pytest.mark.parametrize("early_stopping", [False, True])
def test_a_line_per_epoch_in_straight_columns(capsys, early_stopping):
    score = EpochScoring("r2", name="r2", lower_is_better=False, on_train=True)
    model = network(verbose=2, alpha="auto", early_stopping=early_stopping, ftol=1e-3, callbacks=[score]).fit(X, Y)
    captured = capsys.readouterr()
    assert captured.err == ""
    assert re.fullmatch(r"[ -~\n]+", captured.out)  # no escape codes
    *lines, last = captured.out.splitlines()
    runs = [i for i, line in enumerate(lines) if "epoch" in line]  # the one from a lower first alpha where it is better
    names, rule, *lines = lines[runs[-1] :]
    columns = ["epoch", "train_loss", "valid_loss", "damping", "attempts", "gain_ratio"]
    columns = [name for name in columns if early_stopping or name != "valid_loss"]
    assert names.split() == [*columns, "alpha", "log_evidence", "n_effective", "r2", "dur"]
    assert len(lines) == model.n_iter_
    assert last == model.message_
    ends = [match.end() for match in re.finditer(r"-+", rule)]
    for line in [names, *lines]:
        assert [match.end() for match in re.finditer(r"\S+", line)] == ends
    for line, row in zip(lines, model.history_, strict=True):
        values = [float(cell) for cell in line.split()]
        np.testing.assert_allclose(values, [row[name] for name in names.split()], rtol=1e-3)


def test_the_table_goes_on_in_a_second_fit(capsys):
    model = network(verbose=2, max_epochs=2, ftol=None, xtol=None, gtol=None, alpha=0.0).partial_fit(X, Y)
    capsys.readouterr()
    model.partial_fit(X, Y)
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()[:-1]] == ["3", "4"]


def test_events_of_skorch_have_a_column(capsys, tmp_path):
    saving = Checkpoint(monitor=lambda net: len(net.history) == 2, dirname=str(tmp_path))
    network(verbose=2, ftol=1e-1, callbacks=[saving]).fit(X, Y)
    names, _, one, two, *_ = capsys.readouterr().out.splitlines()
    assert names.split()[-2:] == ["cp", "dur"]
    assert "+" not in one
    assert two.split()[-2] == "+"


def test_disabled_callbacks_drop_the_table(capsys):
    model = network(verbose=2, ftol=1e-3, callbacks="disable").fit(X, Y)
    assert capsys.readouterr().out == model.message_ + "\n"
