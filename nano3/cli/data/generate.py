"""`nano3 data generate`: long-document questions and retrieval texts as a file."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nano3.cli.options.common import Json, whole_number

if TYPE_CHECKING:
    from nano3.data.generated.inputs import GeneratedTexts
    from nano3.data.generated.questions import GeneratedText

SHORTEST = 255
"""As in nano3.data.generated.document_texts and nano3.data.generated.retrieval, which are slow to import."""
OPTIONS = {"in data.generate.": "with data.generate."} | {
    f"data.generate.{key}": option for key, option in {"sources": "--from", "url": "--url", "model": "--model"}.items()
}
"""What errors call a setting, and the option here that decides it."""


def generate(
    category: Annotated[str, typer.Argument(help="document-qa or retrieval.", metavar="CATEGORY")],
    out: Annotated[Path, typer.Option(help="JSONL file to write.", metavar="FILE", show_default=False)],
    texts: Annotated[
        list[str] | None,
        typer.Option("--from", help="Files and folders to use. Repeatable. Default: python-stdlib.", metavar="TEXTS"),
    ] = None,
    tokens: Annotated[
        int, typer.Option(help="Tokens to make, about; 1e6 is a million.", parser=whole_number, metavar="N")
    ] = 1_000_000,
    lengths: Annotated[
        str, typer.Option(help="Tokens of a text, each length with the same share of all tokens.", metavar="N,N")
    ] = "4096",
    tokenizer: Annotated[
        str,
        typer.Option(
            help="What counts the tokens: `mistral`, a tokenizer.json or a folder, such as the tokenizer/ of a run; "
            "empty: one trained on the texts."
        ),
    ] = "",
    heldout: Annotated[float, typer.Option(help="Share of documents never used, chosen as training does.")] = 0.05,
    split_seed: Annotated[
        int, typer.Option(help="data.seed of the run that will read them: chooses those documents.")
    ] = 1234,
    seed: Annotated[int, typer.Option(help="Another seed gives other texts.")] = 0,
    url: Annotated[str, typer.Option(help="OpenAI-compatible server that writes the questions.", metavar="URL")] = "",
    model: Annotated[str, typer.Option(help="Model to ask there; empty: the first it lists.", metavar="NAME")] = "",
    force: Annotated[bool, typer.Option("--force", help="Replace the file, if it exists.")] = False,
    as_json: Json = False,
) -> None:
    """Make training texts with questions about several documents, or with facts to find again.

    Each line: {"text", "questions": [{"question", "answers", "depth"}], "tokens"}. `nano3 data prepare FILE` reads it.
    """
    from nano3.config.errors import UserError
    from nano3.files import check_writable

    _check_category(category)
    shares = {text.strip(): 1.0 for text in lengths.split(",")}
    if not all(text.isdigit() and int(text) >= SHORTEST for text in shares):
        raise UserError(f"--lengths {lengths}: give whole numbers of at least {SHORTEST}, with commas between them")
    if url and category != "document-qa":
        raise UserError("--url writes questions of document-qa; retrieval texts need none")
    if out.is_dir():
        raise UserError(f"--out {out} is a folder: name a file")
    if out.exists() and not force:
        raise UserError(f"--out {out} exists already: give another name, or --force to replace it")
    check_writable(out.parent, "--out")
    if not 0 <= heldout < 1:
        raise UserError(f"--heldout {heldout:g}: a share of the documents, at least 0 and below 1")
    with _told_by_options():
        source = _source(category, texts, tokens, shares, heldout, split_seed, seed, tokenizer, url, model)
        summary = _write(source, out)
    if as_json:
        from nano3.cli.output import print_json

        print_json(summary)
    else:
        print(f"{out}: {summary['texts']:,} texts, {summary['questions']:,} questions, {summary['tokens']:,} tokens")


def _check_category(category: str) -> None:
    from nano3.config.errors import UserError
    from nano3.config.typed import nearest
    from nano3.data.generated.inputs import CATEGORIES

    if category not in CATEGORIES:
        close = nearest(category, CATEGORIES)
        hint = f"did you mean {close}?" if close else f"there are {' and '.join(CATEGORIES)}"
        raise UserError(f"no category {category!r}; {hint}")


@contextmanager
def _told_by_options() -> Iterator[None]:
    """Errors name the options of this verb in place of the settings of a run.

    Raises:
        typer.Exit: with code 3, the question server gives no answer.
    """
    from nano3.cli.eval.options import EXIT_SERVER_GONE
    from nano3.config.errors import UserError
    from nano3.data.generated.question_writer import ServerSilentError

    try:
        yield
    except ServerSilentError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        raise typer.Exit(EXIT_SERVER_GONE) from None
    except UserError as error:
        text = str(error)
        for setting, option in OPTIONS.items():
            text = text.replace(setting, option)
        raise UserError(text) from error


def _source(
    category: str,
    texts: list[str] | None,
    tokens: int,
    shares: dict[str, float],
    heldout: float,
    split_seed: int,
    seed: int,
    tokenizer: str,
    url: str,
    model: str,
) -> GeneratedTexts:
    from nano3.cache import cache_root
    from nano3.config.generate import GenerateConfig
    from nano3.config.schema import DataConfig
    from nano3.data.progress import progress_bar
    from nano3.data.texts.sources import find_inputs
    from nano3.data.tokens.blend import Blend
    from nano3.data.tokens.prepare import train_tokenizer
    from nano3.data.tokens.tokenizer import Tokenizer

    longest = max(int(text) for text in shares)
    made = GenerateConfig(
        sources=texts or GenerateConfig().sources,
        tokens=tokens,
        retrieval_tokens=tokens,
        # A text and its end marker make a sequence: the length asked for here is that of the text.
        lengths={str(int(text) + 1): share for text, share in shares.items()},
        retrieval_longest=longest + 1,
        url=url,
        model=model,
        seed=seed,
    )
    cfg = DataConfig(generate=made, heldout_fraction=heldout, seed=split_seed)
    (source,) = find_inputs([f"generate:{category}"], cfg).generated
    if tokenizer:
        return source.with_tokenizer(Tokenizer.load(tokenizer))
    with progress_bar() as progress:
        trained = train_tokenizer(
            {"text": list(source.inputs)}, Blend({"text": 1.0}), 4096, cfg, cache_root(), progress
        )
    return source.with_tokenizer(trained)


def _write(source: GeneratedTexts, out: Path) -> dict[str, Any]:
    """Write all texts to a temporary file that takes the name `out` when it is whole; what was made, in numbers."""
    from nano3.data.texts.skipped import Skipped

    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    lengths = source.lengths()
    total, done, questions, characters, started = sum(lengths), 0, 0, 0, time.monotonic()
    skipped = Skipped()
    try:
        with temporary.open("w", encoding="utf-8") as file:
            for number, made in enumerate(source.texts(skipped), start=1):
                file.write(json.dumps(_line(made), ensure_ascii=False) + "\n")
                done += made.tokens
                questions += len(made.questions)
                characters += len(made.text)
                if sys.stderr.isatty():
                    print(f"\r{number:,} of {len(lengths):,} texts, {done / total:.0%}", end="", file=sys.stderr)
        os.replace(temporary, out)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    finally:
        if sys.stderr.isatty():
            print(file=sys.stderr)
    if skipped.line():
        print(f"not used: {skipped.line()}", file=sys.stderr)
    return {
        "file": str(out),
        "texts": len(lengths),
        "questions": questions,
        "tokens": done,
        "characters": characters,
        "seconds": round(time.monotonic() - started, 2),
    }


def _line(made: GeneratedText) -> dict[str, Any]:
    questions = [
        {"question": question.text, "answers": list(question.answers), "depth": round(question.depth, 4)}
        for question in made.questions
    ]
    return {"text": made.text, "questions": questions, "tokens": made.tokens}
