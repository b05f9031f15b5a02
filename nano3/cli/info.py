"""`nano3 info`: a model's architecture and exact size; this machine, and which backend each op uses on it."""

from __future__ import annotations

import platform
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any

import typer

from nano3.cli.hardware import Hardware, detect
from nano3.cli.options.common import complete_model
from nano3.cli.output import bytes_text, count_text, plain_table, print_json, print_table, results, value_text
from nano3.config.document import field_docs
from nano3.config.errors import UserError
from nano3.config.model import PATTERN_SYMBOLS, ModelConfig
from nano3.config.presets import MODELS, load_model, preset_names
from nano3.installation import which_nano3
from nano3.model.count import block_parameters, count_parameters
from nano3.model.find import local_model

app = typer.Typer(
    add_completion=False, rich_markup_mode="rich", context_settings={"help_option_names": ["-h", "--help"]}
)
PACKAGES = ("torch", "numpy", "tokenizers", "safetensors", "triton", "mamba-ssm", "causal-conv1d", "flash-attn")


@app.command()
def info(
    model: Annotated[
        str | None,
        typer.Option(
            help="A model preset, a TOML file, a run or Hugging Face folder, a GGUF file or a hub id "
            "(ORG/NAME\\[@REVISION]).",
            metavar="PRESET|PATH",
            autocompletion=complete_model,
            show_default=False,
        ),
    ] = None,
    backends: Annotated[
        bool | None,
        typer.Option(
            "--backends/--no-backends",
            metavar="",
            help="List the backend of each op. Default: yes, but not with --model (it loads torch).",
            show_default=False,
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", metavar="", help="Print one JSON object on stdout.")] = False,
) -> None:
    """Show a model's architecture and exact size, or this machine and what nano3 uses of it.

    [dim]This machine:[/]  nano3 info

    [dim]A model:[/]       nano3 info --model nano3-30b-a3b
    """
    facts: dict[str, Any] = {}
    cfg = None
    if model is not None:
        cfg = find_model(model)
        facts |= model_facts(model, cfg)
    else:
        facts["models"] = {name: _sizes(load_model(name)) for name in preset_names(MODELS)}
    hardware = detect()
    facts |= {"hardware": asdict(hardware) | {"compute_dtype": hardware.compute_dtype}, "versions": versions()}
    if backends if backends is not None else model is None:
        facts["backends"] = backend_facts(hardware)
    if as_json:
        print_json(facts)
    else:
        _print_tables(facts, cfg, hardware)


def find_model(name: str) -> ModelConfig:
    """The sizes of a model preset, a TOML file of them, or the config.json of a folder. Raises UserError."""
    path = Path(local_model(name, weights=False))
    for folder in (path, path / "model"):
        if (folder / "config.json").is_file():
            from nano3.model.hf.config import read_config

            return read_config(folder)
    if path.is_dir():
        raise UserError(f"{name}: no config.json in this folder; give a Hugging Face folder or a run folder")
    return load_model(name)


def model_facts(name: str, cfg: ModelConfig) -> dict[str, Any]:
    """Name, exact counts, parameters by kind of block, and every size of the architecture."""
    blocks = {
        PATTERN_SYMBOLS[symbol]: {
            "symbol": symbol,
            "blocks": len(cfg.blocks(symbol)),
            "parameters_each": block_parameters(cfg, symbol),
        }
        for symbol in dict.fromkeys(cfg.pattern)
    }
    return {"model": name, **_sizes(cfg), "blocks": blocks, "config": asdict(cfg)}


def backend_facts(hardware: Hardware) -> list[dict[str, str]]:
    """For every op, and for the whole decoding step of a model, the backend that would run it here, and why."""
    import torch

    from nano3.kernels.dispatch import explain
    from nano3.model import step

    device = "cuda" if hardware.gpus and torch.cuda.is_available() else "cpu"
    choices = [tuple(choice) for choice in explain(device)]
    name = "decoding step"
    backend, reason = step.explain(device=device)
    choices.append((name, backend, reason.removeprefix(f"{name}: ")))
    return [{"op": op, "device": device, "backend": name, "reason": reason} for op, name, reason in choices]


def versions() -> dict[str, str | None]:
    """Versions of nano3, Python and the packages that kernels come from; None where one is not installed."""
    from nano3 import __version__

    return {"nano3": __version__, "python": platform.python_version()} | {name: _version(name) for name in PACKAGES}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _sizes(cfg: ModelConfig) -> dict[str, int]:
    counts = count_parameters(cfg)
    return {
        "total_parameters": counts.total,
        "active_parameters": counts.active,
        "active_parameters_without_embedding": counts.active_without_embedding,
    }


def _print_tables(facts: dict[str, Any], cfg: ModelConfig | None, hardware: Hardware) -> None:
    console = results()
    tables = [_presets_table(facts["models"])] if cfg is None else [_blocks_table(facts, cfg), _sizes_table(cfg)]
    for table in [*tables, _machine_table(hardware, facts["versions"])]:
        print_table(console, table)
    if "backends" in facts:
        print_table(console, _backends_table(facts["backends"]))
    if cfg is None:
        console.print("A model in detail: [bold]nano3 info --model NAME[/]")


def _presets_table(models: dict[str, dict[str, int]]) -> Any:
    table = plain_table("Models", "preset", "parameters", "active per token", right=("parameters", "active per token"))
    for name, sizes in sorted(models.items(), key=lambda item: item[1]["total_parameters"]):
        table.add_row(name, f"{sizes['total_parameters']:,}", f"{sizes['active_parameters']:,}")
    return table


def _blocks_table(facts: dict[str, Any], cfg: ModelConfig) -> Any:
    title = f"{facts['model']}: {cfg.n_blocks} blocks {cfg.pattern}"
    table = plain_table(
        title,
        "part",
        "blocks",
        "each",
        "parameters",
        right=("blocks", "each", "parameters"),
    )
    embedding = cfg.vocab_size * cfg.d_model
    table.add_row("input embedding", "", "", f"{embedding:,}")
    for name, part in facts["blocks"].items():
        each, n = part["parameters_each"], part["blocks"]
        table.add_row(f"{name} ({part['symbol']})", str(n), f"{each:,}", f"{n * each:,}")
    table.add_row("final norm", "", "", f"{cfg.d_model:,}")
    table.add_row("output projection", "", "", f"{embedding:,}", end_section=True)
    for label, key in _TOTALS.items():
        table.add_row(
            label, "", count_text(facts[key]), f"{facts[key]:,}", style="bold" if key == "total_parameters" else ""
        )
    return table


_TOTALS = {
    "total": "total_parameters",
    "active per token": "active_parameters",
    "  without the input embedding": "active_parameters_without_embedding",
}


def _sizes_table(cfg: ModelConfig) -> Any:
    table = plain_table("Architecture", "", "", "")
    docs = field_docs(ModelConfig)
    for name in docs:
        if name != "pattern" and (name != "quantization" or cfg.quantization is not None):
            table.add_row(name, value_text(getattr(cfg, name)), docs[name])
    return table


def _machine_table(hardware: Hardware, found: dict[str, str | None]) -> Any:
    table = plain_table("This machine", "", "")
    table.add_row("processor", f"{hardware.cpu}, {hardware.cores} cores")
    table.add_row("instructions", " ".join(hardware.isa) or "none that nano3 knows")
    table.add_row("memory", f"{bytes_text(hardware.memory)}, {bytes_text(hardware.memory_available)} available")
    table.add_row("CUDA devices", ", ".join(hardware.gpus) or "none")
    table.add_row("compute dtype", f"{hardware.compute_dtype} (what train.dtype = auto means here)")
    table.add_row("running", which_nano3())
    table.add_row("versions", ", ".join(f"{name} {number}" for name, number in found.items() if number))
    table.add_row("not installed", ", ".join(name for name, number in found.items() if not number) or "nothing")
    return table


def _backends_table(rows: list[dict[str, str]]) -> Any:
    table = plain_table(f"Backend of each op on {rows[0]['device']}", "op", "backend", "why")
    before = ""
    for row in rows:
        table.add_row(row["op"], row["backend"], "as above" if row["reason"] == before else row["reason"])
        before = row["reason"]
    return table
