"""EngineTarget and ServerTarget answer alike; a server's troubles are outlived or told."""

from __future__ import annotations

import itertools
import json
import threading

import pytest

from nano3.config.errors import UserError
from nano3.engine.protocol import run
from nano3.engine.request import Request, Sampling
from nano3.eval.target import EngineTarget, Prompt, ServerGone, ServerTarget, model_identity

from ..waiting import wait_until
from .servers import answering

TEXTS = [f"Number {i}: the quick brown fox jumps over " + "the lazy dog " * i for i in range(9)]
MODELS = {"data": [{"id": "toy", "max_model_len": 100}]}


def completion(text: str) -> dict:
    return {"choices": [{"text": text, "finish_reason": "stop"}], "usage": {"prompt_tokens": 7, "completion_tokens": 2}}


def test_answers_are_what_the_engine_says_of_each_prompt_alone(target, make_engine):
    answers = dict(target.generate((i, Prompt(text=text, max_tokens=6)) for i, text in enumerate(TEXTS)))
    alone = make_engine()
    for i, text in enumerate(TEXTS):
        ids = (target.tokenizer.eos_id, *target.tokenizer.encode(text))
        ((output,),) = run(alone, [Request("one", ids, Sampling(temperature=0, max_tokens=6))])
        assert answers[i].text == output.text
        assert answers[i].prompt_tokens == len(ids) == target.count_prompt(Prompt(text=text))
        assert answers[i].ids == tuple(output.ids)
        assert len(answers[i].log_probs) == answers[i].output_tokens <= 6


def test_prompts_are_taken_only_as_there_is_room(target):
    taken = []

    def endless():
        for i in itertools.count():
            taken.append(i)
            yield i, Prompt(text=f"prompt {i}", max_tokens=4)

    answers = target.generate(endless())
    next(answers)
    assert len(taken) <= 4 + 1
    answers.close()
    assert not target.engine.has_work


def test_long_prompts_are_not_all_built_at_once(make_engine):
    target, taken = EngineTarget(make_engine(max_context=12000, memory=256 << 20), "small"), []

    def long():
        for i in range(10):
            taken.append(i)
            yield i, Prompt(ids=(5 + i,) * 9000, max_tokens=1)

    next(target.generate(long()))
    assert len(taken) <= 3, "two under way and one that a thread has made ahead"
    target.close()


def test_a_prefix_goes_behind_the_text_and_behind_the_assistants_opening(target):
    tokenizer = target.tokenizer
    plain = target.ids(Prompt(text="What is", prefix=" the answer"))
    assert tokenizer.decode(plain[1:]) == "What is the answer"
    chat = tokenizer.decode(target.ids(Prompt(messages=({"role": "user", "content": "Hi"},), prefix="It is")))
    assert chat.endswith("It is")
    assert chat.index("assistant") > chat.index("Hi")
    assert "<think></think>" in chat.replace("\n", "")


def test_a_prompt_that_cannot_fit_is_one_line(target):
    with pytest.raises(UserError, match=r"first.*too long"):
        list(target.generate([("first", Prompt(ids=(5,) * 5000))]))


def test_a_server_answers_as_the_engine_does(target, served):
    server = ServerTarget(served)
    assert (server.name, server.max_context) == ("small", 4096)
    message = ({"role": "user", "content": "Tell me of the fox"},)
    prompts = {
        "text": Prompt(text=TEXTS[3], prefix=" and", max_tokens=5),
        "ids": Prompt(ids=(5, 6, 7), max_tokens=5),
        "chat": Prompt(messages=message, max_tokens=5),
        "begun": Prompt(messages=message, prefix="The fox", max_tokens=5),
    }
    here, there = dict(target.generate(prompts.items())), dict(server.generate(prompts.items()))
    for key, prompt in prompts.items():
        assert there[key].text.strip() == here[key].text.strip(), key
        assert there[key].prompt_tokens == here[key].prompt_tokens == server.count_prompt(prompt), key
    assert server.encode("a fox") == target.encode("a fox")
    assert not server.notes
    server.close()


def test_a_server_that_stumbles_is_asked_again(serve_answers):
    left = [500, 429, 503]

    def answer(path, body):
        if path == "/v1/models":
            return 200, MODELS
        return (left.pop(), {}) if left else (200, completion("hi"))

    with serve_answers(answer) as url:
        server = ServerTarget(url, first_wait=0.01, concurrency=1)
        assert [a.text for _, a in server.generate([(0, Prompt(text="x"))])] == ["hi"]
    assert not left


def test_a_server_that_dies_gives_what_it_answered_and_then_server_gone(serve_answers):
    count = itertools.count()

    def answer(path, body):
        if path == "/v1/models":
            return 200, MODELS
        return (200, completion("hi")) if next(count) < 3 else (502, {})

    got = []
    with serve_answers(answer) as url:
        server = ServerTarget(url, first_wait=0.01, retries=2, concurrency=2)
        answers = server.generate((i, Prompt(text="x")) for i in range(10))
        got.extend(itertools.islice(answers, 3))
        with pytest.raises(ServerGone, match="HTTP 502"):
            next(answers)
    assert len(got) == 3


def test_what_is_under_way_is_given_out_when_the_next_prompt_cannot_be_written(serve_answers):
    asked, released = threading.Event(), threading.Event()

    def answer(path, body):
        if path == "/v1/models":
            return 200, MODELS
        asked.set()
        released.wait(120)
        return 200, completion("hi")

    def prompts():
        yield 0, Prompt(text="x")
        asked.wait(120)
        threading.Timer(0.05, released.set).start()
        raise ServerGone("no /tokenize")

    with serve_answers(answer) as url:
        answers = ServerTarget(url, concurrency=2).generate(prompts())
        assert next(answers)[0] == 0
        with pytest.raises(ServerGone, match="no /tokenize"):
            next(answers)


def test_two_servers_with_a_model_of_one_name_are_not_one(serve_answers):
    def serves(root):
        return lambda path, body: (200, {"data": [{"id": "toy", "created": 1, "root": root}]})

    with serve_answers(serves("a")) as one, serve_answers(serves("a")) as two:
        first, second = ServerTarget(one).identity, ServerTarget(two).identity
        assert one in first
        assert first != second
        assert ServerTarget(one).identity == first
    port = int(one.rpartition(":")[2])
    with answering(serves("b"), port) as again:
        assert again == one
        assert ServerTarget(again).identity != first, "another model behind the same address"


def test_a_server_that_refuses_is_not_asked_again(serve_answers):
    def answer(path, body):
        return (200, MODELS) if path == "/v1/models" else (404, {"error": {"message": "no such model"}})

    with serve_answers(answer) as url, pytest.raises(UserError, match="404: no such model"):
        list(ServerTarget(url).generate([(0, Prompt(text="x"))]))


def test_a_key_that_a_server_repeats_is_not_shown(serve_answers):
    def answer(path, body):
        tells = path != "/v1/models" and body.get("prompt") != "a b"
        return (403, {"error": "no key sk-1"}) if tells else (200, MODELS | {"tokens": [1]})

    with serve_answers(answer) as url, pytest.raises(UserError, match=r"/tokenize answers HTTP 403: no key \*\*\*"):
        ServerTarget(url, api_key="sk-1").count_tokens("x")


def test_fields_that_a_strict_server_refuses_are_left_out(serve_answers):
    def answer(path, body):
        if path == "/v1/models":
            return 200, MODELS
        return (400, {"error": "unknown field"}) if "add_special_tokens" in body else (200, completion("hi"))

    with serve_answers(answer) as url:
        server = ServerTarget(url)
        assert len(list(server.generate((i, Prompt(text="x")) for i in range(3)))) == 3
        assert server.notes == ["the server refuses add_special_tokens: asked without"]


def test_requests_under_way_when_another_is_refused_are_asked_again_too(serve_answers):
    first = threading.Lock()

    def answer(path, body):
        if path == "/v1/models":
            return 200, MODELS
        if "add_special_tokens" not in body:
            return 200, completion("hi")
        if not first.acquire(blocking=False):
            wait_until(lambda: server.notes)
        return 400, {"error": "unknown field"}

    with serve_answers(answer) as url:
        server = ServerTarget(url)
        assert len(list(server.generate((i, Prompt(text="x")) for i in range(3)))) == 3
        assert len(server.notes) == 1


def test_without_a_tokenizer_the_error_says_which_option_names_one(serve_answers, tokenizer, tmp_path):
    def answer(path, body):
        if path == "/v1/models":
            return 200, MODELS
        if path == "/v1/chat/completions":
            return 200, {"choices": [{"message": {"content": body["messages"][-1]["content"]}}]}
        return 404, {}

    tokenizer.save(tmp_path)
    with serve_answers(answer) as url:
        with pytest.raises(UserError, match="--tokenizer PATH"):
            ServerTarget(url).count_tokens("x")
        server = ServerTarget(url, tokenizer=str(tmp_path))
        assert server.count_tokens("a fox") == len(tokenizer.encode("a fox"))
        prompt = Prompt(messages=({"role": "user", "content": "Q?"},), prefix=" A:")
        ((_, said),) = server.generate([(0, prompt)])
        assert said.text == "Q? A:"
        assert "end of the user's turn" in server.notes[0]


def test_identity_tells_other_weights_apart(lm, tmp_path):
    import nano3

    nano3.save(lm, tmp_path / "a")
    nano3.save(lm, tmp_path / "b")
    assert model_identity(str(tmp_path / "a")) == model_identity(str(tmp_path / "b"))
    (file,) = (tmp_path / "b").glob("*.safetensors")
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    assert model_identity(str(tmp_path / "a")) != model_identity(str(tmp_path / "b"))


def test_identity_tells_gguf_files_of_other_weights_apart(lm, tmp_path, monkeypatch):
    """Their folders hold the same sizes and no weights. So does the hash that a profile of pass rates is known by."""
    from nano3.model.find import model_folder
    from nano3.model.gguf.write import write_gguf
    from nano3.rl.training.profile import folder_hash

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in ("bf16", "f32", "again"):
        (tmp_path / name).mkdir()
        write_gguf(lm, tmp_path / name / "m.gguf", "f32" if name == "f32" else "bf16")
    files = [tmp_path / name / "m.gguf" for name in ("bf16", "f32", "again")]
    for hash_of in (lambda file: model_identity(str(file)), lambda file: folder_hash(model_folder(file))):
        one, other, same = map(hash_of, files)
        assert one == same != other


@pytest.mark.parametrize("change", [{"add_bos_token": True}, {"chat_template": "{{ messages }}"}])
def test_identity_tells_another_way_to_ask_apart(lm, tokenizer, tmp_path, change):
    import nano3

    for name in "ab":
        nano3.save(lm, tmp_path / name)
        tokenizer.save(tmp_path / name)
    assert model_identity(str(tmp_path / "a")) == model_identity(str(tmp_path / "b"))
    file = tmp_path / "b" / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    assert model_identity(str(tmp_path / "a")) != model_identity(str(tmp_path / "b"))


def test_prompts_are_written_in_a_thread_and_their_errors_come_through(target):
    threads = []

    def prompts():
        for i in range(3):
            threads.append(threading.current_thread())
            yield i, Prompt(text=f"prompt {i}", max_tokens=2)
        raise UserError("no more")

    with pytest.raises(UserError, match="no more"):
        list(target.generate(prompts()))
    assert threading.current_thread() not in threads
    assert not target.engine.has_work
