"""Samples as one HTML page that needs nothing else: tables first, then each group with its prompt and its samples."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nano3.cli.rollouts.conversation import as_messages, parts_of, prompt_length, segment_pieces, verdict
from nano3.cli.rollouts.tables import ENDS_ARE, ENVIRONMENTS, KINDS, STEPS, Overview, group_cells
from nano3.cli.training.marked_tokens import GIVEN, Piece, page_tokens, pieces, write_page
from nano3.rl.rollout_files import SavedSample
from nano3.rl.saved.groups import SavedGroup, passed

if TYPE_CHECKING:
    from nano3.data.tokens.tokenizer import Tokenizer
    from nano3.rl.samples import Segment

MOST_STEPS = 30
"""Rows of the table of steps."""


def write_samples_page(
    overview: Overview,
    chosen: Sequence[tuple[SavedGroup, list[SavedSample]]],
    more: str,
    tokenizer: Tokenizer | None,
    path: Path,
) -> None:
    """Write the page.

    Args:
        overview: of the steps that were asked for.
        chosen: samples to show, by group.
        more: a line where there are more of them.
        tokenizer: None: messages are shown in place of tokens.
        path: the file.
    """
    body = [
        "<h2>Steps</h2>", _table(STEPS, overview.step_rows(MOST_STEPS)),
        "<h2>Environments</h2>", _table(ENVIRONMENTS, overview.environment_rows()),
        f"<p class=note>{html.escape(KINDS + ENDS_ARE)}.</p>", "<h2>Samples</h2>",
        *([f"<p class=out>{html.escape(more)}</p>"] if more else []),
        *(_group(group, samples, tokenizer) for group, samples in chosen),
    ]  # fmt: skip
    title = f"Rollouts of {overview.run.resolve().name}"
    write_page(path, title, _INTRODUCTION if tokenizer else "", "\n".join(body), _STYLE)


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{html.escape(text)}</th>" for text in heads)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(text)}</td>" for text in row) + "</tr>\n" for row in rows)
    return f"<div class=wide tabindex=0><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"


def _group(group: SavedGroup, samples: Sequence[SavedSample], tokenizer: Tokenizer | None) -> str:
    passes, mean, listed, notes = group_cells(group)
    told = [
        f"step {group.step}",
        group.environment,
        f"passed {passes}",
        f"reward {mean or '-'}",
        *filter(None, [notes]),
    ]
    parts = [f"<details open><summary><b>{html.escape(group.task)}</b> {html.escape(' · '.join(told))}</summary>"]
    parts.append(f"<p class=note>rewards {html.escape(listed or 'none')}</p>")
    if tokenizer and samples[0].segments:
        parts.append(f"<section><h3>prompt</h3><pre>{_prompt(samples[0].segments[0], tokenizer)}</pre></section>")
    parts += [_sample(group, sample, tokenizer) for sample in samples]
    return "\n".join([*parts, "</details>"])


def _prompt(segment: Segment, tokenizer: Tokenizer) -> str:
    length = prompt_length(segment)
    return page_tokens(pieces(segment.ids[:length].tolist(), [GIVEN] * length, tokenizer))


def _sample(group: SavedGroup, sample: SavedSample, tokenizer: Tokenizer | None) -> str:
    colour = "faulty" if sample.reward is None or sample.truncated else "passed" if passed(sample) else "failed"
    parts = [f"<section class={colour}><h3>sample {sample.index} · {html.escape(verdict(group, sample))}</h3>"]
    if details := parts_of(sample):
        parts.append(f"<p class=note>{html.escape(details)}</p>")
    if tokenizer is None:
        parts.append(f"<pre>{html.escape(as_messages(sample))}</pre>")
    else:
        for number, segment in enumerate(sample.segments):
            parts += ["<p class=note>The next answer was drawn after:</p>"] if number else []
            start = 0 if number else prompt_length(segment)
            parts.append(f"<pre>{_tokens(segment, start, tokenizer)}</pre>")
    return "\n".join([*parts, "</section>"])


def _tokens(segment: Segment, start: int, tokenizer: Tokenizer) -> str:
    def probability(piece: Piece) -> str:
        if piece.kind == GIVEN or not segment.drawn[start + piece.start]:
            return ""
        log_probs = segment.log_probs[start + piece.start : start + piece.start + len(piece.ids)]
        return f", probability {math.exp(float(log_probs.sum())):.3g}"

    return page_tokens(segment_pieces(segment, tokenizer, start), probability)


_INTRODUCTION = """<p>What the policy read and wrote, token by token. It drew the tokens that are <mark>marked</mark>;
<mark class=forced>these</mark> its thinking budget wrote; all else was given. A token's number and the probability with
which it was drawn show when the pointer rests on it.</p>"""
_STYLE = """h2 { font-size: 1.15rem; margin: 2rem 0 .5rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: .25rem .75rem .25rem 0; white-space: nowrap; }
th { color: var(--muted); font-weight: 600; border-bottom: 1px solid var(--line); }
th:first-child, td:first-child { text-align: left; }
.note { color: var(--muted); font-size: .9rem; margin: .5rem 0; overflow-wrap: anywhere; }
details { border-top: 1px solid var(--line); padding: .5rem 0; }
summary { cursor: pointer; overflow-wrap: anywhere; }
section.passed { border-left: 4px solid var(--edge); }
section.failed { border-left: 4px solid #dc2626; }
section.faulty { border-left: 4px solid var(--warning); }
"""
