"""One output in the making: its tokens, what it holds, and when it ends."""

from __future__ import annotations

from functools import cached_property
from math import isnan

import numpy as np

from nano3.engine.detokenize import TextStream
from nano3.engine.prefix_cache import BlockHashes
from nano3.engine.request import FinishReason, Request, Token, Update
from nano3.engine.sequence_sampler import SequenceSampler
from nano3.engine.speculate import NgramIndex


class ExpertLog:
    """The experts of a sequence's tokens, each as it was first computed: log-probabilities are of those.

    It holds each token once. Kept states hold what this log does, and not copies of it: pieces end where states are
    kept. So experts take (MoE blocks * K) bytes a token (two each beyond 256 experts) beside the pages that are in use,
    for which nano3.engine.sizing leaves room.
    """

    def __init__(self) -> None:
        self._kept: list[np.ndarray] = []
        self._kept_length = 0
        self._rest: list[np.ndarray] = []
        self._unreported: list[np.ndarray] = []
        self._length = 0

    def add(self, start: int, experts: np.ndarray) -> None:
        """Enter (MoE blocks, tokens, K) of the tokens from `start` on; what is there already stays."""
        new = experts[:, max(0, self._length - start) :]
        if new.shape[1]:
            new = new.copy()  # not the whole pass, of which it is a part
            self._rest.append(new)
            self._unreported.append(new)
            self._length += new.shape[1]

    def start_with(self, pieces: tuple[np.ndarray, ...]) -> None:
        """Enter the experts of a kept state's tokens."""
        if not self._length:
            self._kept, self._unreported = [*pieces], [*pieces]
            self._length = self._kept_length = sum(piece.shape[1] for piece in pieces)
            return
        start = 0
        for piece in pieces:
            self.add(start, piece)
            start += piece.shape[1]

    def upto(self, length: int) -> tuple[np.ndarray, ...]:
        """Of the first `length` tokens, pieces one after another that are not changed any more."""
        if length > self._kept_length:
            rest, cut = np.concatenate(self._rest, axis=1), length - self._kept_length
            self._kept.append(rest[:, :cut].copy())
            self._kept_length = length
            self._rest = [rest[:, cut:]] if cut < rest.shape[1] else []
        pieces, left = [], length
        for piece in self._kept:
            if left <= 0:
                break
            pieces.append(piece if piece.shape[1] <= left else piece[:, :left].copy())
            left -= piece.shape[1]
        return tuple(pieces)

    def take_new(self) -> np.ndarray:
        """Of the tokens since the last call; at least one token was entered before the first."""
        new = self._unreported
        found = new[0] if len(new) == 1 else np.concatenate(new, axis=1)
        self._unreported = [found[:, :0]]
        return found


class Sequence:
    """One of a request's n outputs."""

    def __init__(
        self,
        request: Request,
        index: int,
        arrival: int,
        sampler: SequenceSampler,
        text: TextStream,
        block: int,
    ) -> None:
        self.request, self.index, self.arrival = request, index, arrival
        self.sampler, self.text = sampler, text
        self.prompt_length = len(request.prompt)
        self.computed = 0
        """Tokens that its slot and pages hold."""
        self.slot = -1
        self.pages: list[int] = []
        self.cached_tokens = 0
        self.prompt_scores: list[Token] = []
        self.hashes = BlockHashes(block, b"experts" if request.return_experts else b"")
        self.experts: ExpertLog | None = ExpertLog() if request.return_experts else None
        self.ngrams = NgramIndex()
        self.started = False
        """Whether it ever ran."""
        self.reported = False
        self.weights_version = 0

    @cached_property
    def tokens(self) -> list[int]:
        """Prompt and output; copied from the request when the sequence first runs, not while it waits."""
        return list(self.request.prompt)

    @property
    def id(self) -> str:
        """Id of its request."""
        return self.request.id

    @property
    def n_output(self) -> int:
        """Tokens of output so far."""
        return len(self.tokens) - self.prompt_length

    @property
    def pending(self) -> int:
        """Tokens to compute before the next can be chosen."""
        return len(self.tokens) - self.computed

    @property
    def scores_prompt(self) -> bool:
        """Whether the prompt's log-probabilities are wanted and still incomplete."""
        return self.request.sampling.prompt_log_probs is not None and len(self.prompt_scores) < self.prompt_length

    @property
    def only_scores(self) -> bool:
        """Whether no token is to be chosen."""
        return self.request.sampling.max_tokens == 0

    def room(self, max_context: int) -> int:
        """Tokens that may still be added."""
        room = max_context - len(self.tokens)
        most = self.request.sampling.max_tokens
        return room if most is None else min(room, most - self.n_output)

    def accept(self, token: Token, eos_ids: frozenset[int], max_context: int) -> Update:
        """Add the next token and say what it brought."""
        sampling, token_id = self.request.sampling, token.id
        self.tokens.append(token_id)
        self.sampler.accept(token_id)
        is_stop = token_id in sampling.stop_ids
        is_eos = token_id in eos_ids and not sampling.ignore_eos
        enough = self.n_output >= sampling.min_tokens
        text = self.text.push(token_id, hidden=is_stop or is_eos, check_stop=enough)
        finish: FinishReason | None = None
        reason: int | str | None = None
        if isnan(token.log_prob):
            problem = "the model gave no number for the next token; its weights may be damaged"
            return self._report((), "", "error", None)._replace(error=problem)
        if problem := self._dead_end(token):
            return self._report((), "", "error", None)._replace(error=problem, dead_end=True)
        if self.text.stopped is not None:
            finish, reason = "stop", self.text.stopped
        elif is_stop or is_eos:
            finish, reason = "stop", None if is_eos else token_id
        elif self.room(max_context) <= 0:
            finish = "length"
        if finish is not None and self.text.stopped is None:
            text += self.text.flush()
        return self._report((token,), text, finish, reason)

    def _dead_end(self, token: Token) -> str:
        if isnan(token.sampled_log_prob):
            return "no token can come next: the grammar and the biases leave none"
        grammar = self.sampler.grammar
        return grammar.error if grammar is not None else ""

    def end_of_scoring(self) -> Update:
        """The only update of a sequence without output."""
        return self._report((), "", "length", None)

    def _report(self, tokens: tuple[Token, ...], text: str, finish: FinishReason | None, reason) -> Update:
        prompt, cached = None, 0
        if not self.reported:
            self.reported = True
            cached = self.cached_tokens
            if self.request.sampling.prompt_log_probs is not None:
                prompt = tuple(self.prompt_scores)
        # By position, in the order of the fields: every token comes here.
        return Update(
            self.request.id, self.index, tokens, text, finish, reason, prompt, cached, "", self.weights_version
        )
