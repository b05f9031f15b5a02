"""How many held-out tasks a model solves with thinking, without it and within budgets, and how long it thinks.

python docs/sft-thinking.py runs/sft-tiny
python docs/sft-thinking.py runs/sft-tiny --temperature 1 --thinking on generate:sort?levels=3-5 generate:tool?levels=2
"""

import argparse

import nano3
from nano3.data.chat.encoder import ChatEncoder
from nano3.data.tasks.catalogue import check, find_tasks
from nano3.data.tokens.tokenizer import Tokenizer
from nano3.engine.request import ThinkingBudget
from nano3.eval.tasks.answer import answer
from nano3.model.find import model_folder

TASKS = [f"generate:{name}" for name in ("count", "spell", "sort", "json", "tool", "talk")]
GRACE = 2
"""Tokens beyond a budget within which a line may end."""


def main() -> None:
    """Print a table in Markdown: a line a kind of thinking, a column a kind of tasks."""
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("model", help="run or Hugging Face folder")
    asked.add_argument("tasks", nargs="*", default=TASKS, help="sources of tasks, generate:NAME?levels=3-5")
    asked.add_argument("--count", type=int, default=160, help="held-out tasks of each, all different")
    asked.add_argument("--thinking", default="on,off,16,8,4", help="on, off, or a budget in tokens; several")
    asked.add_argument("--temperature", type=float, default=0.0, help="0: greedy")
    asked.add_argument("--max-tokens", type=int, default=256, help="of an answer, reasoning included")
    options = asked.parse_intermixed_args()
    folder = model_folder(options.model)
    tokenizer = Tokenizer.load(folder)
    engine = nano3.Engine(nano3.load(folder), tokenizer, max_context=4096)
    encoder, sets = (
        ChatEncoder(tokenizer),
        [find_tasks(spec, split="heldout").distinct(options.count) for spec in options.tasks],
    )
    names = [spec.removeprefix("generate:") for spec in options.tasks]
    print(f"| thinking | {' | '.join(names)} | tokens thought |")
    print("|---" * (len(names) + 2) + "|")
    for kind in options.thinking.split(","):
        thinking = {"on": True, "off": False}.get(kind)
        thinking = ThinkingBudget(int(kind), GRACE) if thinking is None else thinking
        rates, thought, answers = [], 0, 0
        for tasks in sets:
            replies = answer(
                engine, encoder, tasks, options.max_tokens, thinking=thinking, temperature=options.temperature
            )
            solved = [check(task.generator, task.truth, given) for task, given in zip(tasks, replies, strict=True)]
            rates.append(sum(solved) / len(solved))
            said = [message for given in replies for message in given if message["role"] == "assistant"]
            thought += sum(len(tokenizer.encode(message["reasoning_content"] or "")) for message in said)
            answers += len(said)
        kind = kind if kind in ("on", "off") else f"{kind} tokens"
        print(f"| {kind} | {' | '.join(f'{rate:.2f}' for rate in rates)} | {thought / answers:.1f} |", flush=True)


if __name__ == "__main__":
    main()
