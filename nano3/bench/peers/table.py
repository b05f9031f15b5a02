"""Which peers there are, what each can do, and what it needs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from nano3.bench.peers.hugging_face import Transformers
from nano3.bench.peers.llama import LlamaCpp
from nano3.bench.peers.types import DTYPES, GGUF_TYPES, OTHER_TYPES
from nano3.bench.peers.vllm_engine import Vllm
from nano3.bench.workload import Job, Kind
from nano3.config.errors import UserError

WRITES_MODEL = "gguf"
"""The package that writes llama.cpp's model; not needed where there is a file of it."""


@dataclass(frozen=True)
class Peer:
    """A program to compare with."""

    side: Callable[[Job], Any]
    packages: dict[str, str]
    """What it needs: what Python imports -> what pip installs."""
    kinds: tuple[Kind, ...]
    """What it can do."""
    note: str = ""
    """What else to say where it is not installed."""
    on_gpu: bool = False
    """Whether it runs on a GPU."""


PEERS = {
    "transformers": Peer(
        Transformers, {"transformers": "transformers"}, ("train", "prefill", "decode", "rl", "throughput")
    ),
    "llama.cpp": Peer(
        LlamaCpp,
        {"llama_cpp": "llama-cpp-python", WRITES_MODEL: WRITES_MODEL},
        ("prefill", "decode", "throughput"),
    ),
    "vllm": Peer(
        Vllm,
        {"vllm": "vllm"},
        ("throughput",),
        " on a machine with a GPU for it, or measure a server that runs there: nano3 bench throughput --url URL",
        on_gpu=True,
    ),
}


@dataclass(frozen=True)
class Chosen:
    """A peer as --against names it."""

    name: str
    dtype: str
    """float32 or bfloat16; of llama.cpp any type of a GGUF file."""

    @property
    def title(self) -> str:
        """Its name in tables."""
        return f"{self.name} {self.dtype}"


def choose_peers(texts: Sequence[str], dtypes: Sequence[str]) -> list[Chosen]:
    """The peers of `--against NAME[:TYPE]`; those without a type are taken in each of `dtypes`.

    Raises:
        UserError: an unknown peer or type.
    """
    found: list[Chosen] = []
    for text in texts:
        name, colon, kind = text.partition(":")
        if name not in PEERS:
            raise UserError(f"--against {name}: not known; use one or several of {','.join(PEERS)}")
        kinds = [_check_dtype(name, kind)] if colon else list(dtypes)
        found += [Chosen(name, each) for each in kinds]
    return list(dict.fromkeys(found))


def _check_dtype(name: str, kind: str) -> str:
    kind = kind.lower()
    if name == "llama.cpp":
        from nano3.model.gguf.write import TYPES

        kind = {short: long for long, short in GGUF_TYPES.items()}.get(kind, kind)
        if kind not in (*DTYPES, *TYPES) and not OTHER_TYPES.fullmatch(kind):
            known = ", ".join(TYPES)
            raise UserError(f"--against llama.cpp:{kind}: not a type of GGUF files, such as {known} or q4_k_m")
    elif kind not in DTYPES:
        raise UserError(f"--against {name}:{kind}: not known; use {' or '.join(DTYPES)}")
    return kind


def check_peers(names: Sequence[str], kind: Kind, gguf: str, device: str = "cpu") -> None:
    """Raise UserError for a peer that is unknown, not installed, unable to do this, runs on another device than nano3's
    side, or lacks its model file."""
    for chosen in choose_peers(names, DTYPES):
        name = chosen.name
        peer = PEERS[name]
        if kind not in peer.kinds:
            able = [other for other, one in PEERS.items() if kind in one.kinds]
            raise UserError(
                f"--against {name}: nano3 bench {kind} cannot compare with it, only with {' and '.join(able)}; "
                f"{name} takes part in {' and '.join(peer.kinds)}"
            )
        if device != "cpu" and not peer.on_gpu:
            raise UserError(
                f"--against {name}: it would run on the CPU beside nano3 on {device}; leave it out, or --device cpu"
            )
        needed = {module: pip for module, pip in peer.packages.items() if not (gguf and module == WRITES_MODEL)}
        if missing := [pip for module, pip in needed.items() if find_spec(module) is None]:
            install = f"pip install {' '.join(missing)}{peer.note}"
            raise UserError(f"--against {name}: {' and '.join(missing)} not installed; {install}")
