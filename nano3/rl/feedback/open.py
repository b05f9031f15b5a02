"""The judge that the settings of a run name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nano3.client.server import base_address
from nano3.config.errors import UserError
from nano3.config.generate import PREFIX
from nano3.config.rlhf import JudgeConfig, LengthControlConfig, PromptsConfig, RlhfConfig
from nano3.data.chat.records import check_spec
from nano3.data.preferences.quality import judged_generator
from nano3.model.find import model_folder
from nano3.model.hf.config import read_config
from nano3.rl.feedback.comparison import PairJudge
from nano3.rl.feedback.find import RULES, find_judge
from nano3.rl.feedback.prompts import Prompts
from nano3.rl.feedback.reward import OFF, LengthControl

if TYPE_CHECKING:
    import torch

CACHE = "judge.jsonl"
GIB = 1 << 30


def open_judge(
    spec: str, cfg: JudgeConfig, run_dir: Path, device: torch.device | None = None, option: str = "--judge"
) -> tuple[PairJudge, str]:
    """A judge with the settings that its kind has, and what it is in a line.

    Args:
        spec: as judge.spec.
        cfg: its settings.
        run_dir: where the answers of a URL are kept, unless the settings say otherwise.
        device: where the model of a folder runs; None: a GPU where there is one.
        option: where the spec comes from, for people.

    Raises:
        UserError: as `find_judge`.
    """
    if _is_folder(spec):
        from nano3.rl.feedback.local import LocalSettings, open_local_judge

        settings = LocalSettings(
            cfg.max_tokens, cfg.temperature, cfg.seed, cfg.thinking, cfg.thinking_budget or None, cfg.memory,
            cfg.sequences, cfg.max_context or None,
        )  # fmt: skip
        return open_local_judge(Path(spec).expanduser(), settings, device)
    options = _options(spec, cfg, run_dir) | ({"url_name": option} if _is_url(spec) else {})
    return find_judge(spec, **options), f"judge: {spec}"


def check_judge(spec: str, cfg: JudgeConfig, prompts: PromptsConfig) -> None:
    """Refuse a judge that cannot be, or that cannot judge these prompts, without loading a model.

    Raises:
        UserError: what is wrong.
    """
    if not spec:
        raise UserError(
            f"no judge is named: give --judge {RULES}, a URL, the folder of a generative reward model or module:object"
        )
    if spec == RULES:
        for name in prompts.weights:
            _check_rules(name, prompts.source(name))
    elif _is_folder(spec):
        read_config(model_folder(Path(spec).expanduser()))
    elif _is_url(spec):
        base_address(spec, "judge.spec")
    else:
        find_judge(spec, **cfg.options)


def check_judges(cfg: RlhfConfig) -> None:
    """Refuse judges of a run and of its held-out prompts that cannot be; as `check_judge`."""
    check_judge(cfg.judge.spec, cfg.judge, cfg.prompts)
    if cfg.heldout.judge:
        check_judge(cfg.heldout.judge, cfg.judge, cfg.prompts)


def check_prompts(prompts: PromptsConfig) -> None:
    """Refuse sets of prompts that cannot be, without reading files.

    Raises:
        UserError: what is wrong.
    """
    if not prompts.weights:
        raise UserError("there are no prompts: name files or generators with --data, or in prompts.weights")
    for name in prompts.weights:
        source = prompts.source(name)
        if source.startswith(PREFIX):
            Prompts(source, n=1)
        else:
            check_spec(source, f"prompts.sources.{name}")


def judge_bytes(cfg: RlhfConfig) -> int:
    """Bytes that the models of the judges of a run and of its held-out prompts take, weights and states."""
    from nano3.model.hf.folder import stored_dtype, weight_bytes

    specs = {cfg.judge.spec, *([cfg.heldout.judge] if cfg.heldout.tasks else [])}
    folders = [model_folder(Path(spec).expanduser()) for spec in specs if spec and _is_folder(spec)]
    return sum(weight_bytes(folder, stored_dtype(folder)) + int(cfg.judge.memory * GIB) for folder in folders)


def heldout_judge(cfg: JudgeConfig, chosen: str, prompts: PromptsConfig) -> str:
    """Who scores held-out prompts: the one chosen, else the rules where these can, else the judge of the run."""
    if chosen:
        return chosen
    try:
        check_judge(RULES, cfg, prompts)
    except UserError:
        return cfg.spec
    return RULES


def judged_as(prompts: PromptsConfig) -> Mapping[str, str]:
    """By name of a set of generated prompts, its generator: by this the rules know how to judge it."""
    return {name: prompts.source(name).partition("?")[0] for name in _made(prompts)}


def length_control(cfg: LengthControlConfig) -> LengthControl:
    """The weights of the settings; all 0 where it is switched off."""
    if not cfg.enabled:
        return OFF
    return LengthControl(cfg.think_weight, cfg.answer_weight, cfg.think_bonus, cfg.answer_bonus, cfg.quantile)


def _options(spec: str, cfg: JudgeConfig, run_dir: Path) -> dict[str, Any]:
    if _is_url(spec):
        cache = cfg.cache or run_dir / CACHE
        return {"model": cfg.model, "cache": cache, "max_tokens": cfg.max_tokens, "workers": cfg.workers}
    return {} if spec == RULES else cfg.options


def _check_rules(name: str, source: str) -> None:
    if not source.startswith(PREFIX):
        raise UserError(
            f"prompts.sources.{name}: the judge {RULES!r} knows what is right in generated tasks alone, not in "
            f"{source}: give --judge with a URL, the folder of a generative reward model or module:object"
        )
    judged_generator(source.partition("?")[0])


def _made(prompts: PromptsConfig) -> Iterable[str]:
    return (name for name in prompts.weights if prompts.source(name).startswith(PREFIX))


def _is_url(spec: str) -> bool:
    return spec.startswith(("http://", "https://"))


def _is_folder(spec: str) -> bool:
    return not _is_url(spec) and Path(spec).expanduser().is_dir()
