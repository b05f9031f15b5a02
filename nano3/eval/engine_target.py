"""A model of this machine as an evaluation target: prompts in lazily, the engine kept full, answers as they end."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic

from nano3.config.errors import UserError
from nano3.eval.pieces import PieceTokenizer
from nano3.eval.prompt import Answer, Key, Prompt, Tick

if TYPE_CHECKING:
    from nano3.data.chat.encoder import ChatEncoder
    from nano3.data.tokens.tokenizer import Tokenizer
    from nano3.engine.output import Output
    from nano3.engine.protocol import GenerationEngine

AHEAD = 4096
"""Prompt tokens handed to the engine before it has computed them: enough for its steps, few enough for memory."""
TICK_SECONDS = 0.2
OFFLINE = {"mixed_step_tokens": 2048}
"""Engine settings where nobody waits for a single token."""
PARTS, PART_BYTES = 32, 1 << 16
"""How much of a weight file tells it from another."""


class EngineTarget:
    """nano3.eval.prompt.Target on a nano3.engine; `engine` and `tokenizer` are there for what needs more of them."""

    def __init__(self, engine: GenerationEngine, name: str, identity: str = "") -> None:
        """Ask `engine`, which becomes this target's to close."""
        self.engine, self.name, self.identity = engine, name, identity or name
        self.tokenizer: Tokenizer = PieceTokenizer.of(engine.tokenizer)
        self.max_context: int | None = engine.max_context
        self.notes: list[str] = []
        self._asked = 0

    @classmethod
    def open(cls, model: str, *, prefix_cache: bool = True, **options: Any) -> EngineTarget:
        """Load a run folder, a Hugging Face folder or a model preset.

        Args:
            model: what to load.
            prefix_cache: keep states of prompts for others that begin alike; no use where all prompts differ.
            options: as of nano3.engine.launch.open_engine.

        Raises:
            UserError: no such model, or an option that cannot be met.
        """
        from nano3.engine.launch import open_engine

        native = {"prefix_cache": prefix_cache, **OFFLINE}
        engine, name = open_engine(model, native_options=native, **options)
        return cls(engine, name, model_identity(model))

    def encode(self, text: str) -> list[int]:
        """Token ids of a text; special tokens written in it are text."""
        return self.tokenizer.encode(text)

    def count_tokens(self, text: str) -> int:
        """Number of those."""
        return len(self.tokenizer.encode(text))

    def count_prompt(self, prompt: Prompt) -> int:
        """Tokens of a whole prompt."""
        return len(self.ids(prompt))

    def ids(self, prompt: Prompt) -> tuple[int, ...]:
        """What the engine is given for a prompt.

        Raises:
            UserError: messages out of form.
        """
        return prompt_ids(self.tokenizer, prompt, self.chat if prompt.messages is not None else None)

    @cached_property
    def chat(self) -> ChatEncoder:
        """The model's chat template."""
        from nano3.data.chat.encoder import ChatEncoder

        return ChatEncoder(self.tokenizer)

    def generate(self, prompts: Iterable[tuple[Key, Prompt]], tick: Tick | None = None) -> Iterator[tuple[Key, Answer]]:
        """As Target.generate. What is under way is dropped when the caller stops early."""
        run: _Run[Key] = _Run(self, _Ahead(self, iter(prompts)))
        ticked = time.monotonic()
        try:
            while run.fill():
                yield from run.step()
                if tick is not None and time.monotonic() - ticked > TICK_SECONDS:
                    ticked = time.monotonic()
                    tick(run.computed())
        finally:
            run.drop()

    def new_id(self) -> str:
        """A request id that this engine has not seen."""
        self._asked += 1
        return f"eval-{self._asked}"

    def close(self) -> None:
        """Free the engine's memory."""
        self.engine.close()


class _Ahead(Generic[Key]):
    """Prompts and their token ids, the next one made in a thread while the engine computes: a prompt of a million
    tokens takes seconds to write."""

    def __init__(self, target: EngineTarget, source: Iterator[tuple[Key, Prompt]]) -> None:
        self._target, self._source = target, source
        self._thread = ThreadPoolExecutor(1, "prompts")
        self._next: Future[tuple[Key, Prompt, tuple[int, ...]] | None] | None = None

    def take(self) -> tuple[Key, Prompt, tuple[int, ...]] | None:
        """The next prompt, None after the last; raises what making it raises."""
        taken = (self._next or self._thread.submit(self._make)).result()
        self._next = None if taken is None else self._thread.submit(self._make)
        return taken

    def close(self) -> None:
        """Make no more; one that is half made is left to its thread."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _make(self) -> tuple[Key, Prompt, tuple[int, ...]] | None:
        for key, prompt in self._source:
            return key, prompt, self._target.ids(prompt)
        return None


class _Run(Generic[Key]):
    """One call of `generate`: the prompts under way."""

    def __init__(self, target: EngineTarget, source: _Ahead[Key]) -> None:
        self._target, self._engine, self._source = target, target.engine, source
        self._exhausted = False
        self._open: dict[str, tuple[Key, Output, int]] = {}
        """Request id to key, output so far, prompt tokens."""

    def fill(self) -> bool:
        """Take prompts while the engine has use for them; whether anything is under way."""
        most = max(1, self._engine.stats().max_running)
        while not self._exhausted and len(self._open) < most and (not self._open or self._uncomputed() < AHEAD):
            self._take()
        return bool(self._open)

    def step(self) -> list[tuple[Key, Answer]]:
        """One step of the engine: the answers that it ended."""
        done = []
        for update in self._engine.step():
            if update.request_id not in self._open:
                continue
            key, output, length = self._open[update.request_id]
            output.add(update)
            if update.finish is not None:
                del self._open[update.request_id]
                done.append((key, _answer(output, length)))
        return done

    def computed(self) -> int:
        """Prompt tokens computed of what is under way."""
        known = (self._engine.progress(request_id) for request_id in self._open)
        return sum(progress[0] for progress in known if progress)

    def drop(self) -> None:
        """End what is under way."""
        self._source.close()
        for request_id in self._open:
            self._engine.abort(request_id)
        self._open.clear()

    def _uncomputed(self) -> int:
        left = 0
        for request_id, (_, output, length) in self._open.items():
            progress = self._engine.progress(request_id)
            left += progress[1] - progress[0] if progress else length * (not output.n_tokens)
        return left

    def _take(self) -> None:
        from nano3.engine.output import Output
        from nano3.engine.request import Request, Sampling

        taken = self._source.take()
        if taken is None:
            self._exhausted = True
            return
        key, prompt, ids = taken
        sampling = Sampling(
            temperature=prompt.temperature, seed=prompt.seed, max_tokens=prompt.max_tokens, stop=prompt.stop
        )
        request = Request(self._target.new_id(), ids, sampling)
        try:
            self._engine.add(request)
        except ValueError as error:
            raise UserError(f"{key}: {error}") from error
        self._open[request.id] = (key, Output(), len(ids))


def _answer(output: Output, prompt_tokens: int) -> Answer:
    if output.finish == "error":
        raise RuntimeError(output.error or "the engine failed a request")
    ids, log_probs = tuple(output.ids), tuple(output.log_probs.tolist())
    return Answer(output.text, prompt_tokens, output.n_tokens, output.finish or "stop", ids, log_probs)


def prompt_ids(tokenizer: Tokenizer, prompt: Prompt, chat: ChatEncoder | None = None) -> tuple[int, ...]:
    """Token ids of a prompt.

    A text gets the beginning token where the tokenizer's configuration says so (`add_bos_token`), else the token that
    documents begin with in nano3's training. A conversation ends where the assistant's answer begins.

    Raises:
        UserError: messages out of form.
    """
    if prompt.ids is not None:
        return (*prompt.ids, *tokenizer.encode(prompt.prefix)) if prompt.prefix else prompt.ids
    if prompt.messages is not None:
        from nano3.data.chat.encoder import ChatEncoder

        encoder = chat or ChatEncoder(tokenizer)
        encoded = encoder.encode(prompt.messages, enable_thinking=prompt.thinking)
        return (*encoded.ids, *tokenizer.encode(prompt.prefix))
    start = tokenizer.bos_id if tokenizer.config.get("add_bos_token") is True else tokenizer.eos_id
    return (start, *tokenizer.encode((prompt.text or "") + prompt.prefix))


def model_identity(model: str) -> str:
    """A hash of a model folder's configuration, tokenizer with its settings and templates, and samples of its weights;
    a preset's name."""
    if not Path(model).exists():
        return f"preset {model}"
    from nano3.model.find import model_folder
    from nano3.model.hf.files import weight_files

    folder = model_folder(model)
    digest = hashlib.blake2b(digest_size=8)
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        if (folder / name).is_file():
            # The name too: a text that moves from one file to another is another model.
            digest.update(f"{name} {(folder / name).stat().st_size} ".encode() + (folder / name).read_bytes())
    for file in weight_files(folder):
        _sample(file, digest)
    return digest.hexdigest()


def _sample(file: Path, digest: Any) -> None:
    """Evenly spread parts of a file: all of a small one, and seconds less than all of a large one."""
    size = file.stat().st_size
    digest.update(f"{file.name} {size}".encode())
    with file.open("rb") as data:
        for part in range(PARTS):
            data.seek(max(0, (size - PART_BYTES) * part // (PARTS - 1)))
            digest.update(data.read(PART_BYTES))
