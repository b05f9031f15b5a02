"""`nano3 generate`: continue texts or answer conversations, for scripts."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nano3.chat.answer import CHAT_TOKENS, PLAIN_TOKENS
from nano3.cli.options import engine as engines
from nano3.cli.options import sampling as choices
from nano3.cli.options.common import HELP
from nano3.cli.options.model_choice import choose_model
from nano3.config.errors import UserError
from nano3.reading import parse_json, read_text

if TYPE_CHECKING:
    from nano3.chat.prompts import Prompt
    from nano3.engine.request import Grammar, Sampling

app = typer.Typer(add_completion=False, rich_markup_mode="rich", context_settings=HELP)

PromptText = Annotated[
    str | None,
    typer.Option("--prompt", help="The text to continue; - reads stdin.", metavar="TEXT", show_default=False),
]
PromptFile = Annotated[str | None, typer.Option(help="Read the text from a file.", metavar="FILE", show_default=False)]
PromptsFile = Annotated[
    str | None,
    typer.Option(
        help='JSONL, a line {"prompt": ...} or {"messages": [...]} each; answered by a line each, with its index.',
        metavar="FILE",
        show_default=False,
    ),
]
Chat = Annotated[bool, typer.Option("--chat", metavar="", help="The prompt is what a user says.")]
Raw = Annotated[
    bool, typer.Option("--raw", metavar="", help="No document start before the text; special tokens in it are read.")
]
MaxTokens = Annotated[
    int | None,
    typer.Option(
        help=f"Most new tokens. Default: {PLAIN_TOKENS}; of an answer {CHAT_TOKENS}.",
        min=0,
        metavar="N",
        show_default=False,
    ),
]
Stop = Annotated[
    list[str] | None, typer.Option(help="End before this text. Repeatable.", metavar="TEXT", show_default=False)
]
Outputs = Annotated[int, typer.Option("-n", "--n", help="Outputs of each prompt.", min=1, max=128, metavar="N")]
LogProbs = Annotated[
    int | None,
    typer.Option(
        help="Alternatives to list with each token of the JSON.", min=0, max=100, metavar="N", show_default=False
    ),
]
JsonSchema = Annotated[
    str | None,
    typer.Option(help="Output is JSON of this schema, in a file or written out.", metavar="JSON", show_default=False),
]
Regex = Annotated[str | None, typer.Option(help="Output matches this pattern.", metavar="REGEX", show_default=False)]
Json = Annotated[
    bool, typer.Option("--json", metavar="", help="One JSON object: texts, token ids, log-probs, usage, timings.")
]


@app.command()
def generate(
    ctx: typer.Context,
    model: engines.Model = None,
    prompt: PromptText = None,
    prompt_file: PromptFile = None,
    prompts_file: PromptsFile = None,
    chat: Chat = False,
    raw: Raw = False,
    system: choices.System = None,
    thinking: choices.Thinking = False,
    no_thinking: choices.NoThinking = False,
    thinking_budget: choices.ThinkingBudget = None,
    temperature: choices.Temperature = 1.0,
    top_p: choices.TopP = 1.0,
    top_k: choices.TopK = 0,
    min_p: choices.MinP = 0.0,
    seed: choices.Seed = None,
    max_tokens: MaxTokens = None,
    stop: Stop = None,
    n: Outputs = 1,
    logprobs: LogProbs = None,
    json_schema: JsonSchema = None,
    regex: Regex = None,
    as_json: Json = False,
    dtype: engines.Dtype = "auto",
    kv_cache_dtype: engines.KvCacheDtype = "auto",
    device: engines.Device = "auto",
    memory: engines.Memory = None,
    max_sequences: engines.MaxSequences = None,
    max_context: engines.MaxContext = None,
    engine_name: engines.EngineName = "native",
    engine_arg: engines.EngineArg = None,
) -> None:
    """Continue a text, or answer a message, with a local model.

    The text goes to stdout as it is made; with --chat the thinking part goes to stderr.

    [dim]Continue a text:[/]
      nano3 generate --model runs/pretrain-tiny --prompt "def main("

    [dim]Ask, and use the answer:[/]
      answer=$(nano3 generate --model PATH --chat --prompt "2+2?" 2>/dev/null)

    [dim]JSON of a given form, from stdin:[/]
      nano3 generate --model PATH --chat --json-schema person.json < letter.txt

    [dim]Many prompts at once:[/]
      nano3 generate --model PATH --prompts-file in.jsonl > out.jsonl
    """
    raise typer.Exit(_run(ctx.params))


def _run(options: dict[str, Any]) -> int:
    """Run a checked command line; returns the exit code."""
    _check(options)
    from nano3.chat.generation import Job, run_json, run_lines, run_text

    sampling, prompts = _sampling(options), _prompts(options)
    options = {**options, "model": choose_model(options["model"], "--model")}
    start = time.perf_counter()
    engine, name = engines.open_from(options)
    job = Job(
        engine,
        name,
        sampling,
        n=options["n"],
        raw=options["raw"],
        thinking=_thinking(options, prompts, name),
        thinking_budget=options["thinking_budget"],
        load_s=time.perf_counter() - start,
    )
    try:
        if options["prompts_file"] is not None:
            return run_lines(job, prompts)
        return (run_json if options["as_json"] else run_text)(job, prompts[0])
    finally:
        engine.close()


def _check(options: dict[str, Any]) -> None:
    """Refuse options that contradict each other, before anything is loaded."""
    engines.parse_bytes(options["memory"])
    chat, many = options["chat"], options["prompts_file"] is not None
    if many and (options["prompt"] is not None or options["prompt_file"] is not None):
        raise UserError("--prompts-file and a single prompt contradict each other; give one of them")
    if options["logprobs"] is not None and not (options["as_json"] or many):
        raise UserError("--logprobs needs --json or --prompts-file: plain text has no room for them")
    if chat and options["raw"]:
        raise UserError("--chat and --raw contradict each other: the chat template decides how a prompt begins")
    choices.wanted_thinking(options)
    for name in ("system", "thinking_budget", "thinking", "no_thinking"):
        if options[name] not in (None, False) and not (chat or many):
            raise UserError(f"--{name.replace('_', '-')} needs --chat: a plain text has no turns")


def _thinking(options: dict[str, Any], prompts: list[Prompt], name: str) -> bool:
    """Whether answers begin with thinking; of a base model that answers it is said that it is one."""
    from nano3.engine.launch import BASE_NOTE, is_base_model

    base = any(prompt.messages for prompt in prompts) and is_base_model(options["model"])
    if base:
        print(BASE_NOTE.format(name=name), file=sys.stderr, flush=True)
    wanted = choices.wanted_thinking(options)
    return not base if wanted is None else wanted


def _sampling(options: dict[str, Any]) -> Sampling:
    from nano3.engine.request import Sampling

    return Sampling(
        **{name: options[name] for name in ("temperature", "top_p", "top_k", "min_p", "seed", "max_tokens")},
        stop=tuple(options["stop"] or ()),
        log_probs=options["logprobs"],
        grammar=grammar_of(options["json_schema"], options["regex"]),
    )


def _prompts(options: dict[str, Any]) -> list[Prompt]:
    from nano3.chat.prompts import as_chat, one_prompt, read_prompts

    if options["prompts_file"] is None:
        prompts = [one_prompt(options["prompt"], options["prompt_file"])]
    else:
        prompts = read_prompts(options["prompts_file"])
    system = options["system"]
    return [as_chat(p, system) if p.messages or (options["chat"] and p.ids is None) else p for p in prompts]


def grammar_of(json_schema: str | None, regex: str | None) -> Grammar | None:
    """The form asked for: a schema in a file or written out, or a pattern.

    Raises:
        UserError: both, or a schema that is not JSON.
    """
    from nano3.engine.request import Grammar

    if json_schema is not None and regex is not None:
        raise UserError("--json-schema and --regex contradict each other; give one of them")
    if regex is not None:
        return Grammar("regex", regex)
    if json_schema is None:
        return None
    written_out = json_schema.lstrip().startswith("{")
    text = json_schema if written_out else read_text(Path(json_schema))
    try:
        parse_json(text)
    except ValueError as error:
        where = "--json-schema" if written_out else json_schema
        raise UserError(f"{where}: not JSON ({error})") from error
    return Grammar("json_schema", text)
