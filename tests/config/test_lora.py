"""What the settings of adapters contradict."""

from __future__ import annotations

import pytest

from nano3.config.errors import UserError
from nano3.config.presets import load_rlvr, load_sft

DROPOUT = ["lora.rank=2", "lora.dropout=0.1"]
BLOCK = ["train.checkpoint_activations=block"]
PIECES = [*BLOCK, "train.sequence_chunk=256"]


@pytest.mark.parametrize("load", [load_sft, load_rlvr])
def test_dropout_is_refused_where_the_backward_pass_would_drop_other_inputs(load):
    with pytest.raises(UserError, match=r"lora.dropout is 0.1 with train.sequence_chunk = 256: .*lora.dropout=0 or "):
        load("tiny", [*DROPOUT, *PIECES])
    load("tiny", [*DROPOUT, *BLOCK])
    load("tiny", ["lora.rank=2", *PIECES])


def test_dropout_is_refused_in_slices_that_are_computed_again():
    with pytest.raises(UserError, match=r"lora.dropout is 0.1 with parallel.context = 2 and .*_activations=none"):
        load_sft("tiny", [*DROPOUT, *BLOCK, "parallel.context=2"])
    load_sft("tiny", [*DROPOUT, "parallel.context=2"])
