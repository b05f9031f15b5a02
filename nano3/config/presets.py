"""Presets: TOML files that inherit from one another, plus `--set` overrides, resolved into a dataclass tree."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, is_dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, cast

import tomli_w

from nano3.config.errors import UserError
from nano3.config.extend_context import ContextConfig, ExtendContextConfig, wrong_seq_len
from nano3.config.genrm import GenrmConfig
from nano3.config.model import ModelConfig
from nano3.config.rlhf import RlhfConfig
from nano3.config.rlvr import RlvrConfig
from nano3.config.schema import PretrainConfig
from nano3.config.sft import SftConfig
from nano3.config.typed import ShellValue, check_table, construct, convert, field_types, keys, nearest
from nano3.reading import decode, parse_toml

MODELS, PRETRAIN, EXTEND_CONTEXT, SFT, RLVR, RLHF = "models", "pretrain", "extend-context", "sft", "rlvr", "rlhf"
GENRM = "genrm"
_STAGES = (PRETRAIN, EXTEND_CONTEXT, SFT, RLVR, RLHF, GENRM)
"""Stages whose presets may serve as a base of another stage's, as `pretrain/phase2`."""
_COMMANDS = {GENRM: "rlhf genrm"}
"""What is typed for a stage, where that is not its name."""
Table = dict[str, Any]


def preset_names(kind: str) -> list[str]:
    """Names of the presets that come with nano3; `kind` is `models` or a stage such as `pretrain`."""
    folder = files("nano3.presets") / kind
    return sorted(entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml"))


def stage_of(settings: Table) -> str:
    """The stage whose settings these are, by their sections."""
    sections = {
        "warm_start": GENRM, "length_control": RLHF, "curriculum": RLVR, "reasoning": SFT, "context": EXTEND_CONTEXT,
    }  # fmt: skip
    return next((stage for section, stage in sections.items() if section in settings), PRETRAIN)


def command_of(stage: str) -> str:
    """What is typed behind `nano3` for a stage."""
    return _COMMANDS.get(stage, stage)


def load_pretrain(name: str = "tiny", overrides: Sequence[str] = ()) -> PretrainConfig:
    """Settings of a pretraining run.

    Args:
        name: a preset's name (`nano3.config.presets.preset_names("pretrain")`) or a TOML file.
        overrides: `section.key=value` each, applied in order over the preset.

    Raises:
        UserError: no such preset, bad TOML, unknown key, wrong type, or sizes that do not fit each other.
    """
    return load(PretrainConfig, PRETRAIN, name, overrides)


def load_extend_context(name: str = "tiny", overrides: Sequence[str] = ()) -> ExtendContextConfig:
    """Settings of a context extension, from a preset of `extend-context` or a TOML file; see `load_pretrain`."""
    return load(ExtendContextConfig, EXTEND_CONTEXT, name, overrides)


def load_sft(name: str = "tiny", overrides: Sequence[str] = ()) -> SftConfig:
    """Settings of supervised fine-tuning, from a preset of `sft` or a TOML file; see `load_pretrain`."""
    return load(SftConfig, SFT, name, overrides)


def load_rlvr(name: str = "tiny", overrides: Sequence[str] = ()) -> RlvrConfig:
    """Settings of RL on verifiable rewards, from a preset of `rlvr` or a TOML file; see `load_pretrain`."""
    return load(RlvrConfig, RLVR, name, overrides)


def load_rlhf(name: str = "tiny", overrides: Sequence[str] = ()) -> RlhfConfig:
    """Settings of RL from a judge's feedback, from a preset of `rlhf` or a TOML file; see `load_pretrain`."""
    return load(RlhfConfig, RLHF, name, overrides)


def load_genrm(name: str = "tiny", overrides: Sequence[str] = ()) -> GenrmConfig:
    """Settings of training a generative reward model, from a preset of `genrm` or a TOML file; see `load_pretrain`."""
    return load(GenrmConfig, GENRM, name, overrides)


def load_model(name: str, overrides: Sequence[str] = ()) -> ModelConfig:
    """Sizes of a model, from a model preset's name or a TOML file of `ModelConfig` keys. Raises UserError."""
    return load(ModelConfig, MODELS, name, overrides)


def load(schema: type, kind: str, name: str, overrides: Sequence[str] = ()) -> Any:
    """The `schema` dataclass that a preset of this kind and the overrides describe. Raises UserError."""
    source = _find(kind, name, Path())
    later = any(text.partition("=")[0].strip() == "train.steps" for text in overrides)
    table = _resolve(schema, source, (), later)
    _drop_seq_len(schema, table)
    asked: Table = {}
    for text in overrides:
        parts, value = _parse_override(text)
        nested = functools.reduce(lambda inner, part: {part: inner}, reversed(parts), cast(Any, value))
        change = _check_layer(nested, schema, Path(), f"--set {text}")
        table = _merge(table, change, schema, replace_tables=".".join(parts) in keys(schema))
        asked = _merge(asked, change, schema)
    where = f"{source.label} with --set {' '.join(overrides)}" if overrides else source.label
    _check_length(asked, table, where)
    try:
        return construct(schema, table)
    except ValueError as error:
        raise UserError(f"{where}: {error}") from error


def to_toml(cfg: Any) -> str:
    """A resolved configuration as TOML text; loading it gives an equal object."""
    table = _settings(cfg)
    _drop_seq_len(type(cfg), table)
    return tomli_w.dumps(table)


def _settings(cfg: Any) -> Table:
    """What a preset may set, as nested tables."""
    values = {name: getattr(cfg, name) for name in field_types(type(cfg))}
    return {name: _settings(value) if is_dataclass(value) else value for name, value in values.items()}


@dataclass(frozen=True)
class _Source:
    """One TOML text and where it comes from; paths inside it are relative to `folder`, names are of its `kind`."""

    kind: str
    label: str
    folder: Path
    text: bytes


def _find(kind: str, name: str, folder: Path) -> _Source:
    stage, _, own = name.partition("/")
    if stage in _STAGES and own in preset_names(stage):
        kind, name = stage, own
    elif name.endswith(".toml") or "/" in name or "\\" in name:
        return _read_file(kind, folder / Path(name).expanduser())
    entry = files("nano3.presets") / kind / f"{name}.toml"
    if entry.is_file():
        return _Source(kind, f"preset '{name}'", folder, entry.read_bytes())
    known = preset_names(kind)
    what = "model preset" if kind == MODELS else f"{kind} preset"
    close = nearest(name, known)
    hint = f"did you mean '{close}'?" if close else "give a preset's name or the path of a .toml file"
    raise UserError(f"unknown {what} '{name}'; {hint} (presets: {', '.join(known)})")


def _read_file(kind: str, path: Path) -> _Source:
    if path.is_dir() and (path / "config.toml").is_file():
        path = path / "config.toml"
    try:
        return _Source(kind, str(path), path.parent, path.read_bytes())
    except OSError as error:
        raise UserError(f"{path}: cannot read the preset: {(error.strerror or str(error)).lower()}") from error


def _resolve(schema: type, source: _Source, chain: tuple[str, ...], later: bool = False) -> Table:
    """The checked table of a preset, with everything that it inherits merged in; `later`: what is laid over it says how
    many steps the run has."""
    if source.label in chain:
        raise UserError(f"{source.label}: presets inherit in a circle: {' -> '.join([*chain, source.label])}")
    table = _parse(source)
    base = table.pop("base", None)
    own = _check_layer(table, schema, source.folder, source.label)
    if base is None:
        return _checked_seq_len(schema, source, own, own)
    if not isinstance(base, str):
        raise UserError(f"{source.label}: 'base' must be a string, the name of a preset or a .toml file")
    with _place(f"{source.label}: base: "):
        parent = _find(source.kind, base, source.folder)
    below = _resolve(schema, parent, (*chain, source.label), later or "steps" in own.get("train", {}))
    merged = _merge(below, own, schema)
    if not later:
        _check_length(own, merged, source.label)
    return _checked_seq_len(schema, source, own, merged)


def _check_length(own: Table, merged: Table, where: str) -> None:
    """Refuse tokens of a run that would be overlooked, since what they are laid over counts steps."""
    train, steps = own.get("train", {}), merged.get("train", {}).get("steps", 0)
    if steps and "tokens" in train and "steps" not in train:
        raise UserError(
            f"{where}: train.tokens = {train['tokens']} would change nothing: train.steps = {steps} ends the run; "
            "set train.steps instead, or to 0 as well"
        )


def _checked_seq_len(schema: type, source: _Source, own: Table, merged: Table) -> Table:
    """`merged`; a file's `own` data.seq_len must agree with the lengths of its mixture, which it follows from."""
    seq_len = own.get("data", {}).get("seq_len")
    if schema is ExtendContextConfig and source.kind == EXTEND_CONTEXT and seq_len is not None:
        longest = max(construct(ContextConfig, merged.get("context", {})).shares)
        if seq_len != longest:
            raise UserError(f"{source.label}: {wrong_seq_len(seq_len, longest)}")
    return merged


def _drop_seq_len(schema: type, table: Table) -> None:
    """Leave out data.seq_len where it follows from the mixture: a base's, or one from before --set."""
    if schema is ExtendContextConfig:
        table.get("data", {}).pop("seq_len", None)


def _parse(source: _Source) -> Table:
    try:
        return parse_toml(decode(source.text))
    except UnicodeDecodeError as error:
        raise UserError(f"{source.label}: not UTF-8 text (byte {error.start})") from error
    except ValueError as error:
        raise UserError(f"{source.label}: not valid TOML: {error}") from error


def _check_layer(table: Table, schema: type, folder: Path, where: str) -> Table:
    """The table with types checked and `[model] preset = "name"` replaced by that preset's sizes."""
    preset = None
    if isinstance(table.get("model"), dict) and field_types(schema).get("model") is ModelConfig:
        model = dict(table["model"])
        preset = model.pop("preset", None)
        table = table | {"model": model}
    checked = check_table(table, schema, where)
    if preset is None:
        return checked
    name = convert(preset, str, "model.preset", where)
    with _place(f"{where}: model.preset: "):
        sizes = _resolve(ModelConfig, _find(MODELS, name, folder), ())
    defaults = {name: getattr(ModelConfig(), name) for name in field_types(ModelConfig)}
    return checked | {"model": defaults | sizes | checked["model"]}


def _parse_override(text: str) -> tuple[list[str], ShellValue]:
    """`a.b=value` as the parts of its key and the value."""
    key, equals, value = text.partition("=")
    parts = _key_parts(key.strip())
    if not equals or not all(parts):
        raise UserError(f"--set {text}: write section.key=value, for example --set train.tokens=1000000")
    return parts, ShellValue(value.strip())


def _key_parts(key: str) -> list[str]:
    """Parts of a dotted key; a part in quotes may hold dots, as in TOML."""
    try:
        table: Any = parse_toml(f"{key} = 0")
    except ValueError:
        return key.split(".")
    parts = []
    while table and isinstance(table, dict):  # of a comment, none
        part, table = next(iter(table.items()))
        parts.append(part)
    return parts or key.split(".")


def _merge(under: Table, over: Table, schema: type, *, replace_tables: bool = True) -> Table:
    """`over` laid over `under`: sections key by key; tables such as data.blend as a whole, or entry by entry."""
    merged = dict(under)
    types = field_types(schema)
    for name, value in over.items():
        if is_dataclass(types[name]):
            merged[name] = _merge(under.get(name, {}), value, cast(type, types[name]), replace_tables=replace_tables)
        elif isinstance(value, dict) and not replace_tables:
            merged[name] = under.get(name, {}) | value
        else:
            merged[name] = value
    return merged


@contextmanager
def _place(prefix: str) -> Iterator[None]:
    """Puts the place of the reference before the error of what it refers to."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{prefix}{error}") from error
