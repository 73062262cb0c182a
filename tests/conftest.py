import os
import tempfile

import pytest
import torch


# Nothing here needs a hub, and no test may wait for one.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

# `datasets` tells folders apart by their names, and names of temporary folders come again in later runs.
DATASETS_CACHE = tempfile.TemporaryDirectory(prefix="datasets-")
os.environ["HF_DATASETS_CACHE"] = DATASETS_CACHE.name

# The tensors of these tests are so small that threads only wait for each other.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _same_random_numbers_in_every_test():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def pytest_terminal_summary(terminalreporter):
    """What tests recorded for the reader, wherever they ran: output of worker processes is not shown."""
    for report in terminalreporter.getreports("passed") + terminalreporter.getreports("failed"):
        for name, text in report.user_properties:
            terminalreporter.section(name)
            terminalreporter.write_line(text)
