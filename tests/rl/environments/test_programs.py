"""Environments that run what a model wrote: right ones are rewarded; hanging, lying and greedy ones are not."""

import shutil

import pytest

from nano3.config.errors import UserError
from nano3.rl.environments.base import Rollout
from nano3.rl.environments.code import Code, last_program
from nano3.rl.environments.formal_proof import _FORBIDDEN, FormalProof, _axioms, proof_of
from nano3.rl.environments.terminal import Kept, Terminal
from nano3.sandbox.archive import Entry
from nano3.sandbox.limits import Limits
from nano3.sandbox.sandbox import Sandbox

needs_bwrap = pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not installed")

PROGRAMS = [
    {
        "id": "double",
        "prompt": "Double.",
        "tests": [{"stdin": f"{n}\n", "stdout": f"{2 * n}\n"} for n in (0, 1, -5, 12)],
    },
    {
        "id": "reverse-words",
        "prompt": "Backward.",
        "tests": [{"stdin": "a b c\n", "stdout": "c b a"}, {"stdin": "one\n", "stdout": "one"}],
    },
    {
        "id": "digits",
        "prompt": "digits(n)",
        "tests": [{"call": f"digits({n})", "result": sum(map(int, str(n)))} for n in (0, 7, 91, 123456)],
    },
]
CHORES = [
    {
        "id": "rename",
        "prompt": "Rename notes.txt to todo.txt.",
        "files": {"notes.txt": "milk\n"},
        "expected": {"todo.txt": "milk\n", "notes.txt": None},
    },
    {
        "id": "sort",
        "prompt": "Sort.",
        "files": {"names.txt": "cleo\nann\nben\n"},
        "expected": {"sorted.txt": "ann\nben\ncleo\n", "names.txt": "cleo\nann\nben\n"},
    },
    {
        "id": "count",
        "prompt": "Count errors.",
        "files": {"log.txt": "ok\nerror a\nok\nerror b\nerror c\n"},
        "expected": {"count.txt": "3\n"},
    },
]


@pytest.fixture(scope="module")
def code():
    return Code(PROGRAMS, seconds_a_test=20.0, seconds=60.0)


def value(environment, answer, name):
    [task] = [task for task in environment.tasks() if task.id == name]
    return environment.verify(task, Rollout.of_text(answer)).value


def block(source):
    return f"So:\n```python\n{source}\n```\n"


RIGHT = {
    "double": "print(2 * int(input()))",
    "reverse-words": "print(*input().split()[::-1])",
    "digits": "def digits(n):\n    return sum(map(int, str(n)))",
}


@needs_bwrap
@pytest.mark.parametrize("name", RIGHT)
def test_right_programs(code, name):
    assert value(code, block(RIGHT[name]), name) == 1.0


@needs_bwrap
@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("double", block("print(int(input()) + 1)")),
        ("double", RIGHT["double"]),
        ("double", block(RIGHT["double"]) + block("pass")),
        ("double", block("if int(input()) == 0: print(0)\nelse: raise SystemExit(1)")),
        ("double", block("import os; os.kill(os.getppid(), 9)")),
        ("double", block("print(open('tests').read())")),
        ("digits", block("class Any:\n    def __eq__(self, other): return True\ndef digits(n): return Any()")),
        ("digits", block("import os\nos._exit(0)")),
        ("digits", block("print('0\\n7\\n10\\n21'); raise SystemExit(0)")),
        ("digits", block("def digits(n): return True if n == 1 else float(sum(map(int, str(n))))")),
        ("digits", ""),
        ("digits", block("")),
        ("digits", block("(" * 5000)),
    ],
)
def test_wrong_and_lying_programs(code, name, answer):
    assert value(code, answer, name) == 0.0


@needs_bwrap
@pytest.mark.parametrize("source", ["while True: pass", "while True: print('0' * 1000)"])
def test_hanging_programs(source):
    assert value(Code(PROGRAMS, seconds_a_test=0.3, seconds=30.0), block(source), "double") == 0.0


@needs_bwrap
def test_a_right_program_with_much_output():
    text = "".join(f"{n:06}\r\n" for n in range(40_000)) + "\n \n"  # 320,000 characters
    tests = [{"stdin": "", "stdout": text}] * 5 + [{"call": "list(range(60_000))", "result": list(range(60_000))}]
    made = Code([{"id": "long", "prompt": "q", "tests": tests}], seconds_a_test=20.0)
    assert value(made, block("for n in range(40_000): print(f'{n:06}')"), "long") == 1.0
    assert value(made, block("for n in range(1, 40_001): print(f'{n:06}')"), "long") == 0.0
    with pytest.raises(UserError, match="expects 320,003 bytes of output, and a program may write 1,000"):
        Code([{"prompt": "q", "tests": tests}], limits=Limits(file_bytes=1000))


@needs_bwrap
def test_time_is_that_of_the_processor():
    tests = [{"stdin": "", "stdout": "done"}]
    made = Code([{"id": "a", "prompt": "q", "tests": tests}], seconds_a_test=1.0)
    left = "import os, time\nif os.fork() == 0: time.sleep(60)\ntime.sleep(1.2); print('done')"
    assert value(made, block(left), "a") == 1.0
    busy = "while time.process_time() < {}: pass"
    child = f"import os, time\nif os.fork() == 0:\n    {busy.format(1.2)}\n    os._exit(0)\nos.wait(); print('done')"
    assert value(made, block(child), "a") == 0.0
    twice = Code([{"id": "a", "prompt": "q", "tests": tests * 2}], seconds=0.5)
    assert value(twice, block(f"import time\n{busy.format(0.3)}\nprint('done')"), "a") == 0.0


@needs_bwrap
def test_the_order_of_a_set_is_the_same_in_all_runs():
    order = Sandbox(Limits(seconds=20.0)).run_python("print(hash('word'))").stdout.decode()
    made = Code([{"id": "a", "prompt": "q", "tests": [{"stdin": "", "stdout": order}] * 2}], seconds_a_test=20.0)
    assert value(made, block("print(hash('word'))"), "a") == 1.0


@needs_bwrap
def test_at_most_50_tests_and_columns_of_others():
    tests = {"inputs": ["1\n"] * 60, "outputs": ["2"] * 50 + ["wrong"] * 10}
    made = Code([{"prompt": "q", "unit_tests": tests}], seconds=60.0)
    [task] = made.tasks()
    assert len(task.truth) == 50
    for wrong in ([], "[]", [{}], [{"call": "f()"}], [{"call": "f()", "result": float("nan")}]):
        with pytest.raises(UserError, match="row 1"):
            Code([{"prompt": "q", "tests": wrong}])


def test_the_last_block_is_the_program():
    assert last_program("```\na\n``` then ```py\nb\n```") == "b"
    assert last_program("```python\nunclosed") == ""


@pytest.fixture(scope="module")
def terminal():
    return Terminal(CHORES, seconds=30.0)


def session(terminal, name, *commands):
    """A rollout of these commands, with what the terminal answers; its reward."""
    [task] = [task for task in terminal.tasks() if task.id == name]
    messages = []
    for i, command in enumerate(commands):
        call = {"id": str(i), "type": "function", "function": {"name": "run", "arguments": {"command": command}}}
        messages.append({"role": "assistant", "content": "", "tool_calls": [call]})
        messages += terminal.step(task, Rollout(tuple(messages)))
    messages.append({"role": "assistant", "content": "done"})
    assert terminal.step(task, Rollout(tuple(messages))) == []
    outputs = [message["content"] for message in messages if message["role"] == "tool"]
    return terminal.verify(task, Rollout(tuple(messages))).value, outputs


@needs_bwrap
def test_a_terminal_session(terminal):
    assert session(terminal, "rename", "ls", "mv notes.txt todo.txt", "cat nothing") == (
        1.0,
        ["notes.txt\n(exit status 0)", "(exit status 0)", "cat: nothing: No such file or directory\n(exit status 1)"],
    )
    assert session(terminal, "sort", "sort names.txt > sorted.txt")[0] == 1.0
    assert session(terminal, "count", "grep -c error log.txt > count.txt")[0] == 1.0


@needs_bwrap
def test_wrong_and_adversarial_sessions(terminal):
    assert session(terminal, "rename")[0] == 0.0
    assert session(terminal, "rename", "cp notes.txt todo.txt")[0] == 0.0
    assert session(terminal, "sort", "sort -o names.txt names.txt; cp names.txt sorted.txt")[0] == 0.0
    assert session(terminal, "rename", "ln -s notes.txt todo.txt")[0] == 0.0
    assert "wrote too much" in session(terminal, "rename", "yes")[1][0]
    quick = Terminal(CHORES, seconds=2.0)
    reward, outputs = session(quick, "rename", "mv notes.txt todo.txt; sleep 60")
    assert reward == 0.0
    assert "took too long; the files are as before" in outputs[0]
    assert session(terminal, "rename", "\0")[1] == ["Error: call run with a command"]
    assert len(session(terminal, "rename", "seq 100000")[1][0]) < 5000


@needs_bwrap
def test_all_that_a_folder_holds_is_there_for_the_next_command(terminal):
    outputs = session(
        terminal,
        "rename",
        "mkdir -p new/empty; echo 'echo ran' > new/run; chmod 750 new/run; chmod 700 new; ln notes.txt same; "
        "ln -s new/run link; mkfifo pipe; touch -d '2001-02-03 04:05:06 UTC' old; cd new",
        "stat -c '%A %n' new new/empty new/run; ./link; readlink link; test -p pipe && stat -c %Y old; pwd",
        "echo more >> same; cat notes.txt",
    )[1]
    assert outputs[1].splitlines()[:3] == ["drwx------ new", "drwxr-xr-x new/empty", "-rwxr-x--- new/run"]
    assert outputs[1].splitlines()[3:] == ["ran", "new/run", "981173106", "/work", "(exit status 0)"]
    assert outputs[2] == "milk\nmore\n(exit status 0)"


@needs_bwrap
@pytest.mark.parametrize("hide", ["chmod 0 notes.txt", "mkdir d; mv notes.txt d; mv d notes.txt", "ln -sf x notes.txt"])
def test_a_file_that_is_hidden_is_not_gone(terminal, hide):
    assert session(terminal, "rename", f"cp notes.txt todo.txt; {hide}")[0] == 0.0


@needs_bwrap
def test_a_command_runs_once_where_its_folder_is_remembered():
    kept, forgetful = Terminal(CHORES, seconds=30.0), Terminal(CHORES, seconds=30.0)
    forgetful._kept = Kept(0)
    for terminal, once in ((kept, True), (forgetful, False)):
        commands = ["cat /proc/sys/kernel/random/uuid > id; cat id", "echo", "cat id"]
        outputs = session(terminal, "rename", *commands)[1] + session(terminal, "rename", *commands)[1]
        assert (len({output for output in outputs if "-" in output}) == 1) == once


def test_folders_are_remembered_by_their_size():
    kept = Kept(1_000_000)
    for i in range(500):
        kept.put(str(i), ({"a": Entry(content=b"x")}, ""))
    assert all(kept.get(str(i)) for i in range(500))
    kept.get("0")
    kept.put("large", ({"a": Entry(content=bytes(900_000))}, ""))
    assert kept.get("large")
    assert kept.get("0")
    assert not kept.get("1")
    kept.put("larger", ({"a": Entry(content=bytes(9_000_000))}, ""))
    assert kept.get("larger")
    assert not kept.get("large")


@pytest.mark.parametrize("row", [{"files": {"../a": "x"}, "expected": {"b": ""}}, {"expected": {"/b": ""}}])
def test_a_task_with_a_path_outside_the_folder_is_refused(row):
    with pytest.raises(UserError, match="inside the working folder"):
        Terminal([{"prompt": "q", **row}])


@needs_bwrap
def test_a_session_is_measured_the_same_by_another_terminal(terminal):
    again = Terminal(CHORES, seconds=30.0)
    assert again.tasks() == terminal.tasks()
    assert session(again, "rename", "mv notes.txt todo.txt")[0] == 1.0


@needs_bwrap
def test_a_task_that_is_solved_at_the_start_is_refused():
    with pytest.raises(UserError, match="doing nothing"):
        Terminal([{"prompt": "q", "files": {"a": "b"}, "expected": {"a": "b"}}])


@pytest.mark.skipif(shutil.which("lean") is not None, reason="Lean is installed")
def test_formal_proof_says_that_lean_is_missing():
    with pytest.raises(UserError, match="lean is not installed, so no proof can be checked"):
        FormalProof()


def test_what_is_taken_as_a_proof():
    statement = "theorem t (n : Nat) : n + 0 = n"
    assert proof_of("```lean\ntheorem t (n : Nat) :\n  n + 0 = n := by simp\n```", statement) == "by simp"
    assert proof_of("```lean\nby simp\n```", statement) == "by simp"
    assert proof_of("by simp", statement) == ""
    assert _axioms("'t' does not depend on any axioms") == set()
    assert _axioms("'t' depends on axioms: [propext, sorryAx]") == {"propext", "sorryAx"}
    assert _axioms("") == {"?"}


@pytest.mark.parametrize(
    "cheat",
    [
        "by sorry", "by admit", "by stop rfl", "by exact sorryAx _ false", "by exact «sorryAx» _ false", "#exit",
        "by rfl\naxiom a : False", "by native_decide", "by rfl\nmacro a", "by rfl\n# eval 1",
        "by rfl\n@[command_elab Lean.Parser.Command.printAxioms] def f := 1",
        "by_elab do return default", "by rfl\nelab_rules : command | _ => pure ()",
        "by rfl\nbuiltin_initialize f", "by rfl\nsimproc f (_) := fun _ => pure default", "by rfl\nrun_meta pure ()",
        "by rfl\nlocal notation3 \"x\" => 1", "by rfl\ninfixl:65 \" + \" => f", "by rfl\nopen Nat Lean in def f := 1",
        "by exact Lean.Elab.f", "by bv_decide\nnamespace X\ntheorem t : True := trivial", "by rfl\nexport X (t)",
    ],
)  # fmt: skip
def test_what_could_make_lean_accept_anything_is_no_proof(cheat):
    assert _FORBIDDEN.search(cheat)


@pytest.mark.parametrize(
    "proof", ["by simp [Nat.add_comm]", "by\n  -- in Lean 4\n  exact ⟨h.2, h.1⟩", "fun h => @And.comm p q |>.mp h"]
)
def test_what_may_stand_in_a_proof(proof):
    assert not _FORBIDDEN.search(proof)
