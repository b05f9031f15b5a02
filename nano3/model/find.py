"""A model's name to a folder on this machine; imports neither torch nor the hub's client before one is needed."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from nano3.config.errors import UserError
from nano3.config.presets import MODELS, PRETRAIN, command_of, preset_names, stage_of
from nano3.files import in_use
from nano3.model.hf.layout import INDEX, SINGLE
from nano3.reading import read_json, read_toml

HUB_ID = re.compile(r"(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@(?P<revision>[\w./-]+))?")
"""ORG/NAME or ORG/NAME@REVISION: a branch, a tag or a commit."""
SNAPSHOT = re.compile(r"models--.+--(?P<name>.+)")
"""Folder of a model in the hub's cache; its versions are in snapshots/."""
SMALL_FILES = ("*.json", "*.jinja")
"""All but the weights: a model that nano3 cannot run is refused before these are downloaded."""
CONFIG, CHECKPOINTS = "config.toml", "checkpoints"
"""What a run folder holds from its start, and as soon as it has saved its state."""
STEP_FOLDER = re.compile(r"step-(?P<step>\d+)(\.old)?")
"""A checkpoint in there; `.old` while another one of the same step takes its place."""
GGUF = ".gguf"
"""What the name of a GGUF file ends with."""
ADAPTER_CONFIG = "adapter_config.json"
"""What makes a folder one of a LoRA adapter, as PEFT writes it."""


def model_folder(path: str | Path) -> Path:
    """The Hugging Face folder behind a run folder (its `model/`), the folder itself, or that of an adapter's model.

    Raises:
        UserError: neither is there.
    """
    path = Path(path)
    if not path.exists():
        _refuse_missing_gguf(path)
        if str(path) in preset_names(MODELS):
            raise UserError(f"{path}: a model preset, which has no weights; give a run folder or a Hugging Face folder")
        raise UserError(f"{path}: no such folder; give a run folder or a Hugging Face folder")
    if is_gguf_file(path):
        return _gguf_folder(path)
    if is_adapter_folder(path):
        return model_folder(adapter_base(path))
    for folder in (path / "model", path):
        if (folder / "config.json").is_file():
            return folder
    for run in (path, path.parent, path.parent.parent):
        if (run / CONFIG).is_file() or (run / CHECKPOINTS).is_dir():
            raise UserError(_no_model_yet(path, run))
    raise UserError(f"{path}: no config.json here or in model/; give a run folder or a Hugging Face folder")


def is_gguf_file(path: str | Path) -> bool:
    """Whether a model is given as a GGUF file (nano3.model.gguf)."""
    path = Path(path)
    return path.suffix.lower() == GGUF and path.is_file()


def _gguf_folder(path: str | Path) -> Path:
    from nano3.model.gguf.folder import folder_of

    return folder_of(Path(path))


def is_adapter_folder(path: str | Path) -> bool:
    """Whether a folder is one of a LoRA adapter, which is read together with its model's."""
    return (Path(path) / ADAPTER_CONFIG).is_file() and not (Path(path) / "config.json").is_file()


def check_adapter_folder(folder: str | Path) -> None:
    """
    Raises:
        UserError: there is no adapter's configuration.
    """
    if not Path(folder).is_dir():
        raise UserError(f"{folder}: no such folder; give the folder of a LoRA adapter")
    if not (Path(folder) / ADAPTER_CONFIG).is_file():
        raise UserError(f"{folder}: no {ADAPTER_CONFIG} there; give the folder of a LoRA adapter")


def adapter_base(folder: str | Path) -> str:
    """The folder of the model that an adapter belongs to, as it says; from the hub where it names one there.

    Raises:
        UserError: it names none, or one that cannot be had.
    """
    check_adapter_folder(folder)
    named = read_json(Path(folder) / ADAPTER_CONFIG)
    base = named.get("base_model_name_or_path") if isinstance(named, dict) else None
    if not isinstance(base, str) or not base:
        raise UserError(f"{folder}: {ADAPTER_CONFIG} does not say which model it belongs to; give it with --base")
    local = local_model(base)
    if not Path(local).exists():
        raise UserError(f"{folder}: belongs to {base}, which is not here; say where it is with `nano3 merge --base`")
    return local


def refuse_adapter(path: str | Path) -> None:
    """For what reads a model's own folder only.

    Raises:
        UserError: it is one of an adapter.
    """
    if is_adapter_folder(path):
        raise UserError(f"{path}: is a LoRA adapter; merge it first: nano3 merge {path} --out FOLDER")


def check_named(name: str | Path) -> None:
    """Raise UserError for the name of a model that is neither a folder here nor a model preset."""
    presets = preset_names(MODELS)
    if Path(name).exists() or str(name) in presets:
        return
    _refuse_missing_gguf(name)
    raise UserError(f"{name}: no such folder, and no model preset of that name (presets: {', '.join(presets)})")


def _refuse_missing_gguf(path: str | Path) -> None:
    if Path(path).suffix.lower() == GGUF:
        raise UserError(f"{path}: no such file; `nano3 export --gguf q8_0 {path}` makes one of the newest run")


def checkpoint_steps(run: Path) -> list[int]:
    """Steps of the checkpoints in a run folder, whether they are whole or not, in order."""
    names = (STEP_FOLDER.fullmatch(entry.name) for entry in (run / CHECKPOINTS).glob("step-*"))
    return sorted({int(name["step"]) for name in names if name is not None})


def resume_command(run: Path) -> str:
    """The command that goes on with the run in a folder."""
    try:
        verb = stage_of(read_toml(run / CONFIG))
    except (OSError, ValueError):
        verb = PRETRAIN
    return f"nano3 {command_of(verb)} --resume --out {run}"


def _no_model_yet(path: Path, run: Path) -> str:
    """What to do about a run, or a folder in one, that has no model."""
    if path != run and (run / "model").is_dir():
        return f"{path} is a part of a run, and no model: give the run folder, {run}"
    steps = checkpoint_steps(run)
    reached = f"its newest checkpoint, of step {steps[-1]}, is for going on with" if steps else "nor a checkpoint"
    if in_use(run):
        return f"{run} is a run that goes on: it has no model yet ({reached}); wait for its end"
    return f"{run} is a run that has not finished: it has no model yet ({reached}): {resume_command(run)}"


def model_name(model: str | Path) -> str:
    """What a model is called: a preset's own name; a run folder's, for its model/ too; the hub's for a cached one."""
    path = Path(model)
    if not path.exists():
        return str(model)
    path = path.resolve()
    if path.parent.name == "snapshots" and (cached := SNAPSHOT.fullmatch(path.parent.parent.name)):
        return cached["name"]
    return path.parent.name if path.name == "model" and path.parent.name else path.name


def local_model(name: str | Path, *, weights: bool = True) -> str:
    """`name` itself, where it is a Hugging Face hub id the folder in the hub's cache, filled where need be, and for a
    GGUF file the folder that stands for it.

    Only the files that nano3 reads are downloaded. The hub's client knows HF_HOME, HF_TOKEN, HF_ENDPOINT and
    HF_HUB_OFFLINE.

    Args:
        name: a folder, a GGUF file, a model preset, or ORG/NAME[@REVISION].
        weights: also the tensors; without them the folder tells the model's sizes.

    Raises:
        UserError: the hub has no such model for this account, cannot be reached, or the model is no nemotron_h.
    """
    text = str(name)
    if is_gguf_file(text):
        return str(_gguf_folder(text))
    hub_id = HUB_ID.fullmatch(text)
    # What begins with a folder of this place, or that of runs, is a misspelt path.
    first = text.split("/", maxsplit=1)[0]
    if hub_id is None or Path(text).exists() or first == "runs" or Path(first).is_dir():
        return text
    return str(_download(text, hub_id["repo"], hub_id["revision"], weights))


def _download(name: str, repo: str, revision: str | None, weights: bool) -> Path:
    from nano3.model.hf.config import read_config

    folder = _snapshot(name, repo, revision, SMALL_FILES)
    read_config(folder)
    if weights and (missing := [file for file in _weight_files(folder) if not (folder / file).is_file()]):
        _snapshot(name, repo, revision, missing, commit=folder.name)
    return folder


def _weight_files(folder: Path) -> list[str]:
    """Names of the files with the tensors; what is wrong with an index is told by whoever reads the tensors."""
    try:
        names = read_json(folder / INDEX)["weight_map"].values()
        return sorted({name for name in names if isinstance(name, str) and "/" not in name})
    except (OSError, ValueError, LookupError, AttributeError, TypeError):
        return [SINGLE]


def _snapshot(name: str, repo: str, revision: str | None, files: Sequence[str], commit: str = "") -> Path:
    """Folder in the hub's cache with those of `files` that the hub has; all of them where a commit is named.

    Raises:
        UserError: why they cannot be had.
    """
    from huggingface_hub import errors, snapshot_download
    from huggingface_hub.utils import disable_progress_bars

    if not sys.stderr.isatty():
        disable_progress_bars()
    try:
        folder = Path(
            snapshot_download(repo, revision=commit or revision, allow_patterns=list(files), ignore_patterns=["*/*"])
        )
    except errors.GatedRepoError:
        raise UserError(f"{name}: its owner asks for consent: give it at {_page(repo)}, then set HF_TOKEN") from None
    except errors.RepositoryNotFoundError:
        raise UserError(
            f"{name}: no such folder, and no model of that name at {_page(repo)} that this account may read: check "
            "the name, and HF_TOKEN where it is private"
        ) from None
    except errors.RevisionNotFoundError:
        raise UserError(f"{name}: {repo} has no branch, tag or commit {revision}") from None
    except errors.LocalEntryNotFoundError:
        raise _not_here(name, repo, revision, files[0] if commit else "it") from None
    except (errors.HfHubHTTPError, errors.HFValidationError, OSError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{name}: cannot be downloaded ({reason})") from None
    if commit and (missing := [file for file in files if not (folder / file).is_file()]):
        raise _not_here(name, repo, revision, missing[0])
    return folder


def _page(repo: str) -> str:
    return f"{os.environ.get('HF_ENDPOINT', 'https://huggingface.co').rstrip('/')}/{repo}"


def _not_here(name: str, repo: str, revision: str | None, what: str) -> UserError:
    from huggingface_hub import constants

    why = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else f"{constants.ENDPOINT} cannot be reached"
    version = f" --revision {revision}" if revision else ""
    return UserError(
        f"{name}: no such folder; {what} is not in the hub's cache, and {why}: run `hf download {repo}{version}` where "
        "there is a connection, or name a folder that holds it"
    )
