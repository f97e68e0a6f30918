import pytest
import torch


@pytest.fixture(scope="module")
def one_thread():
    """The command also uses one thread, because two threads on such small tensors mostly wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
