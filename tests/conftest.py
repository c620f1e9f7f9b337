"""One torch thread per process: small tensors gain nothing from more, and pytest-xdist runs a process per core."""

import signal

import pytest
import torch


def pytest_configure(config):
    torch.set_num_threads(1)


@pytest.fixture
def ctrl_c():
    """Python's own handler of SIGINT, which a process started in the background ignores."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
