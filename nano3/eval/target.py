"""What is evaluated: a model of this machine, or one behind an OpenAI-compatible server."""

from nano3.eval.engine_target import EngineTarget, model_identity, prompt_ids
from nano3.eval.prompt import Answer, Key, Prompt, ServerGone, Target, Tick
from nano3.eval.server_target import ServerTarget

__all__ = [
    "Answer",
    "EngineTarget",
    "Key",
    "Prompt",
    "ServerGone",
    "ServerTarget",
    "Target",
    "Tick",
    "model_identity",
    "prompt_ids",
]
