"""The same global batch split over 1, 2 or 4 ranks gives the same losses and the same gradients, gathers included."""

import pytest
import torch

from pretrain import distributed
from tests.distributed.group import Found, mean_over_ranks, over_ranks
from tests.distributed.losses import CASES, all_losses
from tests.distributed.tasks import TASKS, trained

pytestmark = [pytest.mark.slow, pytest.mark.long]
Everything = dict[str, Found]


def global_means() -> Found:
    """Of two weighted rows on the first rank, the same rows counted once each, and no row at all."""
    values, weights = torch.tensor([3.0, 5.0]), torch.tensor([1.0, 3.0]) * (distributed.rank() == 0)
    means = [mean_over_ranks(distributed.global_mean(values, w)) for w in (weights, weights.bool(), 0 * weights)]
    return {"means": torch.stack(means)}


def everything() -> Everything:
    return {"means": global_means(), **{name: trained(config) for name, config in TASKS.items()}, **all_losses()}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Everything]:
    """World size -> case -> losses and gradients, of one process and of rank 0 of two groups."""
    folder = tmp_path_factory.mktemp("split")
    return {1: everything()} | {world: over_ranks(world, folder / str(world), everything)[0] for world in (2, 4)}


@pytest.mark.parametrize("world", [2, 4])
@pytest.mark.parametrize("case", [*TASKS, *CASES])
def test_losses_and_gradients_do_not_depend_on_the_split(found, case, world):
    expected, split = found[1][case], found[world][case]
    assert split.keys() == expected.keys()
    for name, value in expected.items():
        # In float64, where only the order of sums differs.
        torch.testing.assert_close(split[name], value, rtol=1e-10, atol=1e-12, msg=lambda m, n=name: f"{n}: {m}")


def test_a_mean_counts_the_rows_of_all_ranks(found):
    assert all(case["means"]["means"].tolist() == [4.5, 4.0, 0.0] for case in found.values())
