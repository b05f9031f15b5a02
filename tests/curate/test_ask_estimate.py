"""What a run will cost, from a pilot, against what it costs."""

import json
import random
import time

import pytest
from datatrove.data import Document

from nano3.cli.data.curate_estimate import print_estimate
from nano3.client.chat import ChatAnswer
from nano3.curate.ask.estimate import Costs, Meter, Population, estimate, expected_total
from nano3.curate.pipeline import load_pipeline
from nano3.curate.run import plan_run, run_pipeline

from .conftest import model_at
from .model_server import Faults, ModelServer


@pytest.fixture
def plan(tmp_path):
    """A plan over texts of 5 to 200 words in four files, one in five of which is dropped before it is asked about."""
    (tmp_path / "prompt.txt").write_text("# Ours.\nSay this again in other words, all of it:\n\n{text}\n")
    (tmp_path / "own.toml").write_text(
        '[[step]]\nuse = "read"\n[[step]]\nuse = "length"\nmost = 900\n'
        f'[[step]]\nuse = "ask"\nprompt = "{tmp_path}/prompt.txt"\n[[step]]\nuse = "exact-dedup"\n'
    )
    rng = random.Random(4)
    (tmp_path / "in").mkdir()
    for name in "abcd":
        texts = [" ".join(f"w{rng.randrange(999)}" for _ in range(rng.randrange(5, 250))) for _ in range(60)]
        rows = [json.dumps({"id": f"{name}{i}", "text": text}) for i, text in enumerate(texts)]
        (tmp_path / "in" / f"{name}.jsonl").write_text("\n".join(rows))

    def plan(server, out="out", **given):
        pipeline, limit = load_pipeline(str(tmp_path / "own.toml")), given.pop("limit", 0)
        model = model_at(server.url, given.pop("answers", tmp_path / "answers"), **given)
        return plan_run(
            pipeline, tmp_path / out, [str(tmp_path / "in")], tasks=0 if limit else 1, limit=limit, model=model
        )

    return plan


def two_thirds(prompt, body):
    """An answer that is shorter than the text."""
    words = prompt.split("\n\n", 1)[-1].split()
    return " ".join(word.upper() for word in words[: 2 * len(words) // 3])


def true_tokens(report):
    notes = next(step.account.notes for step in report.steps if step.label.endswith("ask"))
    return notes["tokens sent"], notes["tokens written"]


def test_tokens_and_requests_are_within_15_percent(plan, tmp_path):
    server = ModelServer(two_thirds, Faults(full=0.1, broken=0.05, cut=0.02, malformed=0.01, retry_after="0.05"))
    try:
        found = estimate(plan(server), 32)
        n = len(server.prompts)
        again = estimate(plan(server), 32)
        assert again == found, "the same pilot, with what was kept of its answers"
        assert len(server.prompts) == n
        assert list(tmp_path.glob("out/*")) == []
        report = run_pipeline(plan(server), 1)
    finally:
        server.stop()
    assert (found.asked, found.drawn, found.population) == (32, 240, found.population)
    assert (found.population.documents, found.population.counted) == (240, True)
    assert found.reached == report.steps[2].account.entered.documents
    sent, written = true_tokens(report)
    answers = next(step.account.notes for step in report.steps if step.label.endswith("ask"))["answers of the model"]
    assert found.totals["sent"].value == pytest.approx(sent, rel=0.15)
    assert found.totals["written"].value == pytest.approx(written, rel=0.15)
    assert found.totals["requests"].value == pytest.approx(answers, rel=0.15)
    assert found.left_out == ("03-exact-dedup",)
    pilots = sum(prompt.count("\n\n") for prompt in set(server.prompts))
    assert pilots == report.steps[2].account.entered.documents, "what the pilot asked was not asked again"


@pytest.mark.slow
def test_time_is_within_25_percent(plan, tmp_path):
    server = ModelServer(two_thirds, Faults(full=0.1, broken=0.02, cut=0.02, malformed=0.01, retry_after="0.2"))
    server.seconds = 0.3
    try:
        found = estimate(plan(server, concurrency=4), 48)
        expected = found.hours * 3600
        began = time.monotonic()
        run_pipeline(plan(server, concurrency=4, answers=tmp_path / "unused"), 1)
        took = time.monotonic() - began
    finally:
        server.stop()
    print(f"estimated {expected:.1f} s, took {took:.1f} s")
    assert took > 10
    assert expected == pytest.approx(took, rel=0.25)


def test_a_limit_is_what_is_read_and_a_pilot_of_everything_is_exact(plan, model_server):
    model_server.reply = two_thirds
    found = estimate(plan(model_server, limit=20), 32)
    report = run_pipeline(plan(model_server, limit=20), 1)
    assert (found.drawn, found.population.documents) == (20, 20)
    assert [round(found.totals[key].value) for key in ("sent", "written")] == list(true_tokens(report))
    assert found.totals["sent"].margin == pytest.approx(0, abs=0.5)


def test_money_is_by_tokens_sent_and_written(plan, model_server):
    model_server.reply = two_thirds
    found = estimate(plan(model_server), 8)
    sent, written = found.totals["sent"].value, found.totals["written"].value
    assert found.cost((2.0, 10.0)) == pytest.approx((2 * sent + 10 * written) / 1e6)
    assert found.to_json((2.0, 10.0))["cost"] == found.cost((2.0, 10.0))


def test_a_pilot_says_why_documents_were_dropped_and_what_the_model_said(plan, model_server, capsys):
    model_server.reply = lambda prompt, body: "I am sorry, but I cannot help with that."
    found = estimate(plan(model_server), 4)
    print_estimate(found, (1e-6, 1e-6))
    shown = capsys.readouterr().out
    assert f"dropped {found.asked}: refused by the model" in shown
    assert "the model said: I am sorry, but I cannot help" in shown
    assert "cost            0.00 " not in shown


def test_reasoning_is_written_too_where_the_server_does_not_count():
    document = Document("a text", "d", metadata={})
    meter = Meter([document])
    meter(document, "m" * 40, ChatAnswer("b" * 20, reasoning="r" * 380), 1.0)
    assert not meter.counted
    assert meter.costs[0].values == {"requests": 1, "sent": 10, "written": 100, "seconds": 1.0}


def test_costs_that_grow_with_length_are_corrected_for_the_mean_length():
    costs = [Costs(size, {"sent": 10 + 0.25 * size}) for size in (100, 200, 300, 400, 500, 600, 700, 800)]
    total = expected_total(costs, "sent", Population(1000, 1_000_000, True))
    assert total.value == pytest.approx(1000 * (10 + 0.25 * 1000))
    assert total.margin == pytest.approx(0, abs=1e-6)
    flat = [Costs(size, {"sent": 7.0}) for size in (100, 800)]
    assert expected_total(flat, "sent", Population(1000, 1_000_000, True)).value == 7000


def test_the_interval_holds_the_truth_about_as_often_as_it_says():
    rng, hits = random.Random(1), 0
    for _ in range(300):
        everything = [Costs(rng.randrange(50, 5000)) for _ in range(1000)]
        for cost in everything:
            cost.values["sent"] = (20 + 0.3 * cost.bytes * rng.uniform(0.5, 1.5)) * (rng.random() < 0.7)
        population = Population(1000, sum(cost.bytes for cost in everything), True)
        total = expected_total(rng.sample(everything, 64), "sent", population)
        truth = sum(cost.values["sent"] for cost in everything)
        hits += abs(total.value - truth) <= total.margin
    assert 0.88 * 300 < hits < 0.99 * 300
