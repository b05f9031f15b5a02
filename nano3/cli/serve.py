"""`nano3 serve`: parse, open the engine, run the server."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nano3.cli.options.common import HELP
from nano3.cli.options.engine import (
    Device,
    Dtype,
    EngineArg,
    EngineName,
    KvCacheDtype,
    MaxContext,
    MaxSequences,
    Memory,
    Model,
    parse_bytes,
    parse_engine_args,
)
from nano3.cli.options.model_choice import choose_model
from nano3.cli.options.vllm_flags import (
    EnableAutoToolChoice,
    MaxModelLen,
    MaxNumSeqs,
    ReasoningParser,
    ServedModelName,
    ToolCallParser,
    TrustRemoteCode,
    with_own_names,
)

if TYPE_CHECKING:
    from nano3.serve.settings import Settings

app = typer.Typer(add_completion=False, rich_markup_mode="rich", context_settings=HELP)
LOG_LEVELS = ("debug", "info", "warning", "error")
LOOPBACK = ("127.0.0.1", "localhost", "::1")

Host = Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for all.", metavar="IP")]
Port = Annotated[int, typer.Option(help="Port; 0 takes a free one.", min=0, max=65535, metavar="N")]
ServedName = Annotated[
    str | None,
    typer.Option(
        help="What clients call the model. Default: its folder's or preset's name.", metavar="NAME", show_default=False
    ),
]
ApiKey = Annotated[
    list[str] | None,
    typer.Option(
        help="Clients must send this key. Repeatable; NANO3_API_KEYS holds more.", metavar="KEY", show_default=False
    ),
]
ApiKeyFile = Annotated[Path | None, typer.Option(help="File with one key a line.", metavar="FILE", show_default=False)]
Speculate = Annotated[
    int, typer.Option(help="Guess so many tokens ahead from earlier text; 0: none.", min=0, max=64, metavar="N")
]
MaxQueue = Annotated[int, typer.Option(help="Most outputs that wait; beyond it clients get 429.", min=0, metavar="N")]
MaxBody = Annotated[int, typer.Option(help="Largest request body, in MiB.", min=1, metavar="N")]
RequestTimeout = Annotated[
    float | None,
    typer.Option(help="Most seconds a request may take.", min=0.001, metavar="SEC", show_default=False),
]
DrainSeconds = Annotated[
    float, typer.Option(help="After SIGTERM, how long accepted requests may go on.", min=0, metavar="SEC")
]
CorsOrigin = Annotated[
    list[str] | None,
    typer.Option(
        help="Pages from here may call this server; * for all. Repeatable.", metavar="URL", show_default=False
    ),
]
WeightsFolder = Annotated[
    Path | None,
    typer.Option(
        help="Let a trainer replace the weights by models in folders below this one.",
        metavar="DIR",
        show_default=False,
    ),
]
LogprobsMode = Annotated[
    str,
    typer.Option(help="raw_logprobs: the model's; processed_logprobs: as tokens were drawn.", metavar="MODE"),
]
LogLevel = Annotated[str, typer.Option(help="debug, info (each request), warning, error.", metavar="LEVEL")]
Json = Annotated[
    bool, typer.Option("--json", metavar="", help="Print one JSON line (url, model) on stdout when ready.")
]


@app.command()
def serve(
    ctx: typer.Context,
    model: Model = None,
    host: Host = "127.0.0.1",
    port: Port = 8000,
    served_name: ServedName = None,
    api_key: ApiKey = None,
    api_key_file: ApiKeyFile = None,
    memory: Memory = None,
    max_sequences: MaxSequences = None,
    max_context: MaxContext = None,
    dtype: Dtype = "auto",
    kv_cache_dtype: KvCacheDtype = "auto",
    device: Device = "auto",
    engine_name: EngineName = "native",
    engine_arg: EngineArg = None,
    speculative_ngram: Speculate = 0,
    max_queue: MaxQueue = 512,
    max_body: MaxBody = 16,
    request_timeout: RequestTimeout = None,
    drain_seconds: DrainSeconds = 30.0,
    cors_origin: CorsOrigin = None,
    logprobs_mode: LogprobsMode = "raw_logprobs",
    weights_folder: WeightsFolder = None,
    log_level: LogLevel = "warning",
    as_json: Json = False,
    served_model_name: ServedModelName = None,
    max_model_len: MaxModelLen = None,
    max_num_seqs: MaxNumSeqs = None,
    tool_call_parser: ToolCallParser = None,
    reasoning_parser: ReasoningParser = None,
    enable_auto_tool_choice: EnableAutoToolChoice = False,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Serve a model over HTTP: OpenAI's and Anthropic's APIs, and pages for the browser.

    [dim]A model you trained; then open http://127.0.0.1:8000:[/]
      nano3 serve --model runs/pretrain-tiny

    [dim]Ask it from another terminal:[/]
      curl 127.0.0.1:8000/v1/chat/completions \\
        -H 'content-type: application/json' \\
        -d '{"messages": \\[{"role": "user", "content": "Hi"}]}'

    [dim]For the whole network, with keys:[/]
      nano3 serve --model PATH --host 0.0.0.0 --api-key-file keys.txt
    """
    options, notes = with_own_names(ctx.params)
    for note in notes:
        _say(note)
    _run(options)


def _run(options: dict[str, Any]) -> None:
    """Listen, load, serve; what is wrong with the options is said before a model is loaded."""
    settings, memory = _settings(options), parse_bytes(options["memory"])
    options = {**options, "model": choose_model(options["model"], "--model")}
    from nano3.serve.transport.server import bind

    listener = bind(options["host"], options["port"])
    if options["host"] not in LOOPBACK and not settings.api_keys:
        _say(f"warning: whoever reaches {options['host']} can use this server; give --api-key, or leave --host out")
    _say(f"loading {options['model']} …")
    from nano3.data.chat.encoder import has_template
    from nano3.engine.launch import BASE_NOTE, find_device, is_base_model, open_engine
    from nano3.serve.app import create_app
    from nano3.serve.transport.server import run
    from nano3.stages.finished import find_opening
    from nano3.train.numerics import tuned_process

    with tuned_process(find_device(options["device"])):
        engine, name = open_engine(
            options["model"],
            engine=options["engine_name"],
            memory=memory,
            speculate=options["speculative_ngram"],
            vllm_arguments=parse_engine_args(options["engine_arg"]),
            **{key: options[key] for key in ("dtype", "device", "max_sequences", "max_context", "kv_cache_dtype")},
        )
        name = options["served_name"] or name
        base = is_base_model(options["model"])
        if base:
            _say(BASE_NOTE.format(name=name))
        settings = dataclasses.replace(
            settings,
            base_model=base,
            text_page=base or not has_template(engine.tokenizer),
            opening=find_opening(options["model"]),
        )
        run(
            create_app(engine, name=name, settings=settings),
            listener,
            log_level=options["log_level"],
            on_ready=lambda url: _ready(url, name, options["as_json"]),
        )


def _settings(options: dict[str, Any]) -> Settings:
    from nano3.config.errors import UserError
    from nano3.serve.settings import MIB, PROCESSED, RAW, Settings
    from nano3.serve.transport.keys import collect_keys

    if options["log_level"] not in LOG_LEVELS:
        raise UserError(f"--log-level {options['log_level']}: not known; use one of {', '.join(LOG_LEVELS)}")
    if options["logprobs_mode"] not in (RAW, PROCESSED):
        raise UserError(f"--logprobs-mode {options['logprobs_mode']}: not known; use {RAW} or {PROCESSED}")
    keys = collect_keys(options["api_key"] or (), options["api_key_file"], os.environ)
    weights = options["weights_folder"]
    if weights is not None and not weights.is_dir():
        raise UserError(f"--weights-folder {weights}: no such folder; name one that the trainer writes to")
    if weights is not None and options["host"] not in LOOPBACK and not keys:
        raise UserError("--weights-folder: whoever reaches this server could replace its weights; give --api-key too")
    return Settings(
        api_keys=keys,
        logprobs_mode=options["logprobs_mode"],
        weights_folder=weights,
        max_queue=options["max_queue"],
        max_body_bytes=options["max_body"] * MIB,
        request_timeout=options["request_timeout"],
        drain_seconds=options["drain_seconds"],
        cors_origins=tuple(options["cors_origin"] or ()),
    )


def _ready(url: str, name: str, as_json: bool) -> None:
    _say(f"serving {name} at {url} (Ctrl-C to stop)")
    if as_json:
        print(json.dumps({"url": url, "model": name}), flush=True)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
