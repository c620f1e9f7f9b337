"""One torch thread per process: small tensors gain nothing from more, and pytest-xdist runs a process per core."""

import torch


def pytest_configure(config):
    torch.set_num_threads(1)
