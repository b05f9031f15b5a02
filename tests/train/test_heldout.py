import math

import pytest
from torch.nn.functional import cross_entropy

from nano3.model.lm import LM
from nano3.train.heldout import evaluate
from nano3.train.world import World


def test_bits_per_byte_follow_from_the_summed_loss(tiny):
    model, source = LM(tiny.MODEL).init_weights(0), tiny.TinySource(5)
    score = evaluate(model, source, 100, micro_batch=2, world=World())
    everything = source.batch(0, 5)
    logits = model(everything.tokens, everything.document_ids)
    nll = cross_entropy(logits.flatten(0, 1), everything.targets.flatten(), reduction="sum").item()
    assert score.targets == everything.n_targets
    assert score.bytes == 3 * everything.n_targets
    assert score.loss == pytest.approx(nll / score.targets, rel=1e-5)
    assert score.bits_per_byte == pytest.approx(nll / math.log(2) / score.bytes, rel=1e-5)


def test_evaluation_scores_what_was_asked_and_leaves_the_model_in_training_mode(tiny):
    model, source = LM(tiny.MODEL).init_weights(0).train(), tiny.TinySource(8)
    score = evaluate(model, source, 3, micro_batch=2, world=World())
    assert score.targets == source.batch(0, 3).n_targets
    assert model.training
    assert all(p.grad is None for p in model.parameters())
