import pytest
import torch

from nano3.config.model import ModelConfig
from nano3.data.tokens.tokenizer import Tokenizer
from nano3.model.lm import LM

TEXT = "the quick brown fox jumps over the lazy dog; pack my box with five dozen jugs of ale, 0123456789.\n"
SIZES = {"d_model": 32, "n_heads": 4, "n_kv_heads": 2, "head_dim": 8, "mamba_n_heads": 4, "mamba_head_dim": 8}
SIZES |= {"d_state": 16, "n_groups": 2, "chunk_size": 16, "n_experts": 4, "top_k": 2, "d_expert": 16, "d_shared": 16}
SIZES |= {"d_ff": 32, "max_position_embeddings": 2048}


@pytest.fixture(scope="session")
def tokenizer():
    return Tokenizer.train([TEXT * 3], 320)


@pytest.fixture(scope="session")
def model(tokenizer):
    """Random weights, spread so that the next token is neither certain nor uniform."""
    cfg = ModelConfig(pattern="M*ME", vocab_size=tokenizer.vocab_size + 5, init_std=0.3, **SIZES)
    return LM(cfg).init_weights(seed=1).to_dtype(torch.float32).eval()
