import pytest
import torch

from nano3.config.errors import UserError
from nano3.train.tally import Tally
from nano3.train.world import World

pytestmark = pytest.mark.any_isa


def add_up(*parts):
    return Tally(World()).add_up(parts, torch.zeros(1, dtype=torch.float64))[0]


def test_sums_and_counts_are_added_before_they_are_divided():
    one = {"reward": (torch.tensor(3.0), torch.tensor(1)), "rollouts": (torch.tensor(2), None)}
    two = {"reward": (torch.tensor(1.0), 7), "rollouts": (torch.tensor(5), None), "late": (torch.tensor(4.0), 2.0)}
    assert add_up(one, two) == {"reward": 0.5, "rollouts": 7.0, "late": 2.0}


def test_a_metric_of_nothing_is_left_out():
    assert add_up({"clip_share": (torch.tensor(0.0), torch.tensor(0)), "kl": (torch.tensor(0.0), 4)}) == {"kl": 0.0}


def test_a_metric_has_a_count_everywhere_or_nowhere():
    with pytest.raises(UserError, match="metric kl with a count in one micro-batch and without in another"):
        add_up({"kl": (torch.tensor(1.0), None)}, {"kl": (torch.tensor(1.0), 3)})
