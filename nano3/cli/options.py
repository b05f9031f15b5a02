"""Shell completion of the options that several verbs share."""

from __future__ import annotations


def complete_preset(incomplete: str) -> list[str]:
    """Names of the pretraining presets that begin so."""
    return _presets("pretrain", incomplete)


def complete_model(incomplete: str) -> list[str]:
    """Names of the model presets that begin so."""
    return _presets("models", incomplete)


def complete_setting(incomplete: str) -> list[str]:
    """Keys for `--set` that begin so, each with its equals sign."""
    from nano3.config.schema import PretrainConfig
    from nano3.config.typed import keys

    return [f"{key}=" for key in ["model.preset", *keys(PretrainConfig)] if key.startswith(incomplete)]


def _presets(kind: str, incomplete: str) -> list[str]:
    from nano3.config.presets import preset_names

    return [name for name in preset_names(kind) if name.startswith(incomplete)]
