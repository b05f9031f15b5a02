"""What a configuration does differently from the report (arXiv 2512.20848).

The report's numbers stand in the presets phase1, phase2, long-context, sft, rlvr, rlhf, genrm and nano3-30b-a3b, each
with its section as a comment; that comment is what tells a published number from one of ours.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from nano3.config.extend_context import ExtendContextConfig
from nano3.config.genrm import GenrmConfig
from nano3.config.presets import load_extend_context, load_genrm, load_pretrain, load_rlhf, load_rlvr, load_sft
from nano3.config.rlhf import AnyPolicyConfig, RlhfConfig
from nano3.config.rlvr import RlvrConfig
from nano3.config.schema import PretrainConfig
from nano3.config.sft import SftConfig

_LINE = re.compile(
    r'^(?:\[(?P<section>[\w.]+)\]|"?(?P<key>[\w+-]+)"?\s*=.*?(?:#\s*(?P<comment>(?:§|public recipe).*))?$)'
)
_UNPUBLISHED = re.compile(r"^(?P<key>[\w]+)\s*=.*#\s*ours: unpublished")
_BLEND, _LENGTHS = "data.blend.", "context.lengths."
_PHASE1 = ("models/nano3-30b-a3b", "pretrain/phase1")
_PHASE2 = (*_PHASE1, "pretrain/phase2")
_REPORT_FILES = {
    "phase1": _PHASE1,
    "phase2": _PHASE2,
    "long-context": (*_PHASE2, "extend-context/long-context"),
    "sft": ("models/nano3-30b-a3b", "sft/sft"),
    "rlvr": ("models/nano3-30b-a3b", "rlvr/rlvr"),
    "rlhf": ("models/nano3-30b-a3b", "rlhf/rlhf"),
    "genrm": ("genrm/genrm",),
}
"""The presets that make up a phase of the report, each laid over those before it."""
_NO_PART = {"long-context": ("data.seq_len", "schedule.min_lr", "schedule.stable_fraction")}
"""Numbers of earlier phases that play no part: the length follows from the mixture, and the rate is constant."""
_PARALLELISM = {"context": 8, "tensor": 8, "expert": 8, "pipeline": 4}
"""Devices that share a sequence, a matrix, the experts and the blocks in the report's context extension."""


@dataclass(frozen=True)
class Difference:
    """One setting that differs from the report."""

    key: str
    here: Any
    report: Any
    section: str


def report_phase(cfg: PretrainConfig | SftConfig | AnyPolicyConfig | GenrmConfig) -> str:
    """The report's phase that a run stands for: of pretraining, `phase2` when it starts late on the horizon."""
    if isinstance(cfg, SftConfig):
        return "sft"
    if isinstance(cfg, RlvrConfig | RlhfConfig):
        return "rlvr" if isinstance(cfg, RlvrConfig) else "rlhf"
    if isinstance(cfg, GenrmConfig):
        return "genrm"
    if isinstance(cfg, ExtendContextConfig):
        return "long-context"
    return "phase2" if cfg.schedule.start_tokens > 0 else "phase1"


def diff_from_report(cfg: PretrainConfig | SftConfig | AnyPolicyConfig | GenrmConfig) -> list[Difference]:
    """Settings whose value differs from the one that the report publishes; the blend's come last.

    The report gives the lengths of its mixture, not their shares: these are no difference. Of a context extension there
    is a row for parallelism, where that is another.
    """
    if isinstance(cfg, RlvrConfig | RlhfConfig | GenrmConfig):
        return _policy_differences(cfg)
    phase = report_phase(cfg)
    report = _LOADERS.get(type(cfg), load_pretrain)(phase)
    here_flat, report_flat = _flat(asdict(cfg)), _flat(asdict(report))
    sections = {key: section for key, section in published_sections(phase).items() if key in report_flat}
    differing = [key for key in sections if here_flat.get(key) != report_flat[key]]
    if set(cfg.data.blend) == set(report.data.blend):
        blend = [key for key in differing if key.startswith(_BLEND)]
    else:
        here_flat["data.blend"], report_flat["data.blend"] = cfg.data.blend, report.data.blend
        sections["data.blend"] = next(section for key, section in sections.items() if key.startswith(_BLEND))
        blend = ["data.blend"]
    settings = [key for key in differing if not key.startswith((_BLEND, _LENGTHS))]
    if cfg.lengths.keys() != report.lengths.keys() and phase == "long-context":
        settings.append("context.lengths")
        here_flat["context.lengths"], report_flat["context.lengths"] = list(cfg.lengths), list(report.lengths)
        sections["context.lengths"] = next(section for key, section in sections.items() if key.startswith(_LENGTHS))
    rows = [Difference(key, here_flat[key], report_flat[key], sections[key]) for key in settings + blend]
    if phase == "long-context" and any(getattr(cfg.parallel, name) != n for name, n in _PARALLELISM.items()):
        published = ", ".join(f"{name} {n}" for name, n in _PARALLELISM.items())
        rows.append(Difference("parallelism", cfg.parallel.kinds, published, "§2.5"))
    return rows


def _policy_differences(cfg: AnyPolicyConfig | GenrmConfig) -> list[Difference]:
    """Published settings that differ, then those that decide a run and that the report does not publish."""
    phase = report_phase(cfg)
    load, where, tasks = _POLICY_PHASES[phase]
    here, report = _flat(asdict(cfg)), _flat(asdict(load(phase)))
    sections = {key: section for key, section in published_sections(phase).items() if key in report}
    rows = [Difference(key, here[key], report[key], sections[key]) for key in sections if here.get(key) != report[key]]
    rows += [Difference(key, here[key], "unpublished", where) for key in unpublished_settings(f"{phase}/{phase}")]
    if not isinstance(cfg, GenrmConfig):
        rows.append(Difference(f"{tasks}.weights", cfg.environments.weights, "unpublished", where))
    return rows


def unpublished_settings(preset: str) -> list[str]:
    """Dotted keys of the settings that a preset marks as unpublished in the report."""
    found, section = [], ""
    for line in (files("nano3.presets") / f"{preset}.toml").read_text(encoding="utf-8").splitlines():
        if line.startswith("["):
            section = line[1:].partition("]")[0]
        elif match := _UNPUBLISHED.match(line):
            found.append(f"{section}.{match['key']}")
    return found


_POLICY_PHASES: dict[str, tuple[Callable[[str], AnyPolicyConfig | GenrmConfig], str, str]] = {
    "rlvr": (load_rlvr, "§3.2", "environments"),
    "rlhf": (load_rlhf, "§3.3", "prompts"),
    "genrm": (load_genrm, "§3.3", ""),
}
"""What loads the report's preset, its section, and where a run's shares of tasks stand."""
_LOADERS = {ExtendContextConfig: load_extend_context, SftConfig: load_sft}


@cache
def published_sections(phase: str) -> dict[str, str]:
    """Dotted key to the section of the report that gives its number, for a phase of `report_phase`."""
    sections: dict[str, str] = {}
    for name in _REPORT_FILES[phase]:
        prefix = "model." if name.startswith("models/") else ""
        text = (files("nano3.presets") / f"{name}.toml").read_text(encoding="utf-8")
        for match in filter(None, map(_LINE.match, text.splitlines())):
            if match["section"]:
                prefix = match["section"] + "."
            elif not match["comment"]:
                sections.pop(prefix + match["key"], None)
            elif match["key"] != "preset":
                sections[prefix + match["key"]] = match["comment"].split(",")[0].split(":")[0]
    return {key: section for key, section in sections.items() if key not in _NO_PART.get(phase, ())}


def _flat(table: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in table.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat
