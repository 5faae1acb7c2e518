"""On the CPU a run repeats bit for bit, on several threads too."""

import pytest
import torch

from pretrain.engine import start_process_group


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def gradient_of_repeated_rows() -> tuple[torch.Tensor, torch.Tensor]:
    """Of rows that are picked several times, as hard negatives are: autograd's, and added up one after the other."""
    torch.manual_seed(0)
    tokens_BTD = torch.randn(64, 21, 128, requires_grad=True)
    weights_BTD = torch.randn(64, 21, 128)
    picked_B = torch.randint(8, (64,))
    (tokens_BTD[picked_B] * weights_BTD).sum().backward()
    assert tokens_BTD.grad is not None
    slow_BTD = torch.zeros_like(tokens_BTD)
    for row, picked in enumerate(picked_B.tolist()):
        slow_BTD[picked] += weights_BTD[row]
    return tokens_BTD.grad, slow_BTD


def test_gradients_of_a_row_picked_twice_are_added_in_one_order(two_threads):
    """Without the engine's rule, about half of these differ in the last bits."""
    start_process_group()
    for _ in range(30):
        fast, slow = gradient_of_repeated_rows()
        assert torch.equal(fast, slow)
