import pytest

from nano3.config.model import ModelConfig
from nano3.data.tokens.tokenizer import Tokenizer
from nano3.engine.request import Token, Update
from nano3.model.lm import LM

TEXT = "the quick brown fox jumps over the lazy dog; pack my box with five dozen jugs of ale, 0123456789.\n"
SIZES = {"d_model": 32, "n_heads": 4, "n_kv_heads": 2, "head_dim": 8, "mamba_n_heads": 4, "mamba_head_dim": 8}
SIZES |= {"d_state": 16, "n_groups": 2, "chunk_size": 16, "n_experts": 4, "top_k": 2, "d_expert": 16, "d_shared": 16}
SIZES |= {"d_ff": 32, "max_position_embeddings": 2048}


@pytest.fixture(scope="session")
def tokenizer():
    return Tokenizer.train([TEXT * 3], 320)


@pytest.fixture
def model(tokenizer):
    """Float32, random weights, spread so that the next token is neither certain nor uniform."""
    return LM(ModelConfig(pattern="M*ME", vocab_size=tokenizer.vocab_size, init_std=0.3, **SIZES)).init_weights(seed=1)


@pytest.fixture
def scripted(tokenizer):
    """Make a ScriptedEngine of its functions."""
    return lambda write, **more: ScriptedEngine(tokenizer, write, **more)


class ScriptedEngine:
    """What rollouts make of answers is under test, not how these are drawn.

    Answers each prompt with what `write(text of the prompt)` gives: text, ended by the end of a turn.

    Requests that run together take a step a token, but those for whose id `waits` says so.
    """

    max_context, page_size, reports_experts = 4096, 16, False
    eos_ids = frozenset()

    def __init__(self, tokenizer, write, waits=lambda request_id: False):
        self.tokenizer, self.write, self.waits = tokenizer, write, waits
        self.running, self.prompts = {}, []

    def add(self, request):
        self.prompts.append(request.prompt)
        text = self.write(self.tokenizer.decode(request.prompt))
        ids = [*self.tokenizer.encode(text, special=True), self.tokenizer.token_id("<|im_end|>")]
        for index in range(request.n):
            self.running[request.id, index] = (text, ids)

    def abort(self, request_id):
        self.running = {key: value for key, value in self.running.items() if key[0] != request_id}

    @property
    def has_work(self):
        return bool(self.running)

    def step(self):
        updates = []
        for (request_id, index), (text, ids) in list(self.running.items()):
            if self.waits(request_id):
                continue
            self.running[request_id, index] = ("", ids[1:])
            finish = "stop" if len(ids) == 1 else None
            updates.append(Update(request_id, index, (Token(ids[0], -0.5, -0.5),), text, finish))
            if finish:
                del self.running[request_id, index]
        return updates
