"""Theorems in Lean 4, checked by Lean in the sandbox, where it is installed."""

from __future__ import annotations

import re
import secrets
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

from nano3.config.errors import UserError
from nano3.rl.environments.base import (
    NOTHING,
    EnvironmentFaultError,
    Reward,
    Rollout,
    Task,
    all_or_nothing,
    check_ids,
    user,
)
from nano3.rl.environments.rows import Row, column, id_of, read_rows
from nano3.sandbox.limits import MIB, Limits, SandboxError
from nano3.sandbox.sandbox import Sandbox

LONGEST = 100_000
"""Characters of a proof."""
ALLOWED = {"propext", "Classical.choice", "Quot.sound"}
"""Axioms of Lean itself."""
_BLOCK = re.compile(r"```(?:lean4?)?[ \t]*\n(.*?)```", re.DOTALL | re.IGNORECASE)
_FORBIDDEN = re.compile(
    # An axiom, or what stands for one.
    r"\b(sorry|sorryAx|admit|stop|axiom|opaque|unsafe|extern|implemented_by|native_decide|ofReduceBool|ofReduceNat)\b"
    # Code that runs while Lean reads the file, or changes how it reads: with it `#print axioms` could be made to lie.
    r"|@\[|#\s*\w|\bLean\s*\.|\bopen\b[^\n]*\bLean\b"
    r"|\w*(elab|macro|syntax|notation|initialize|simproc)\w*|\b(infix[lr]?|prefix|postfix|run_\w+|register_\w+)\b"
    r"|\b(import|set_option|attribute)\b"
    # Another theorem under the same name, of which `#print axioms` would speak then.
    r"|\b(namespace|export)\b"
)
_USES_SORRY = re.compile(r"declaration uses .sorry")


class FormalProof:
    """1 where Lean accepts the answer's proof of the task's statement with no axioms but its own, else 0.

    Columns: `name`, `statement` (as in `theorem add_zero' (n : Nat) : n + 0 = n`, without proof), and `header`, what
    stands before it (imports).
    """

    name = "formal_proof"

    def __init__(
        self, rows: str | Path | Iterable[Row] | None = None, lean: str = "lean", seconds: float = 120.0
    ) -> None:
        """
        Args:
            rows: a jsonl file or its rows; None: a few small theorems.
            lean: the program.
            seconds: for one proof.

        Raises:
            UserError: Lean is not installed, or a row without a statement.
            SandboxError: this machine cannot hold programs in.
        """
        found = shutil.which(lean)
        if found is None:
            raise UserError(
                f"environment formal_proof: {lean} is not installed, so no proof can be checked: install Lean 4 "
                "(https://lean-lang.org/install), or leave this environment out"
            )
        self._tasks = [
            _task(row, f"row {i + 1}") for i, row in enumerate(BUILT_IN if rows is None else read_rows(rows))
        ]
        check_ids(self._tasks, self.name)
        self._lean = Path(found).resolve()
        limits = Limits(seconds=seconds, cpu_seconds=int(seconds) + 1, memory=16384 * MIB, processes=64)
        prefix = self._lean.parents[1]
        self._sandbox = Sandbox(limits, [] if prefix.is_relative_to("/usr") else [prefix])

    def tasks(self) -> Sequence[Task]:
        """All."""
        return self._tasks

    def verify(self, task: Task, rollout: Rollout) -> Reward:
        """1 or 0."""
        proof = proof_of(rollout.answer, task.truth["statement"])
        if not proof or len(proof) > LONGEST or _FORBIDDEN.search(proof):
            return NOTHING
        mark = secrets.token_hex(8)
        source = "\n".join(
            [
                task.truth["header"], f"{task.truth['statement']} := {proof}", "",
                f'#eval IO.println "{mark}"', f"#print axioms {task.truth['name']}",
            ]
        )  # fmt: skip
        try:
            done = self._sandbox.run(
                [str(self._lean), "proof.lean"], files={"proof.lean": source.encode(errors="replace")}
            )
        except SandboxError as error:
            raise EnvironmentFaultError("sandbox", str(error)) from error
        before, found, after = done.stdout.decode(errors="replace").partition(mark)
        proven = bool(found) and not _USES_SORRY.search(before) and _axioms(after) <= ALLOWED
        return all_or_nothing(done.ok and proven, end=done.end)


def proof_of(answer: str, statement: str) -> str:
    """What stands after `:=` of the statement in the answer's last block of Lean; a block without it is all proof."""
    blocks = _BLOCK.findall(answer)
    if not blocks:
        return ""
    text = blocks[-1].strip()
    flat = re.sub(r"\s+", r"\\s+", re.escape(statement.strip()).replace("\\ ", " "))
    stated = re.search(flat + r"\s*:=", text)
    return text[stated.end() :].strip() if stated else text.removeprefix(":=").strip()


def _axioms(text: str) -> set[str]:
    """Names in what `#print axioms` says."""
    found = re.search(r"depends on axioms: \[([^\]]*)\]", text)
    if found:
        return {name.strip() for name in found[1].split(",")}
    return set() if "does not depend on any axioms" in text else {"?"}


def _task(row: Row, where: str) -> Task:
    where = f"environment formal_proof, {where}"
    statement, name = str(column(row, "statement", where=where)), str(column(row, "name", where=where))
    if not re.match(rf"\s*(theorem|lemma)\s+{re.escape(name)}\b", statement) or ":=" in statement:
        raise UserError(f"{where}: the statement is `theorem {name} ... : ...` without a proof")
    header = str(row.get("header", ""))
    prompt = f"Prove in Lean 4. Give the proof, from `by` on, in a ```lean block.\n\n{header}\n{statement} := ?"
    return Task(id_of(row), user(prompt), {"statement": statement, "name": name, "header": header})


BUILT_IN: list[Row] = [
    {"id": "add-zero", "name": "t1", "statement": "theorem t1 (n : Nat) : n + 0 = n"},
    {"id": "and-comm", "name": "t2", "statement": "theorem t2 (p q : Prop) (h : p ∧ q) : q ∧ p"},
    {"id": "two", "name": "t3", "statement": "theorem t3 : 1 + 1 = 2"},
]
