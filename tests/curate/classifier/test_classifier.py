"""Classifiers that users train: what they see, how they are judged, and the steps that use them."""

import json
import random
import time

import numpy as np
import pytest

from nano3.config.errors import UserError
from nano3.curate.classifier.examples import Example, split_examples
from nano3.curate.classifier.features import features
from nano3.curate.classifier.judgement import average_precision, curve, groups, point, recommended
from nano3.curate.classifier.training import TrainingOptions, train_classifier
from nano3.curate.pipeline import load_pipeline
from nano3.curate.run import plan_run, run_pipeline

from ..conftest import dropped

CODE = ["def", "return", "import", "class", "self", "print", "value", "list", "index", "parse", "error", "module"]
NEWS = ["minister", "weather", "garden", "football", "election", "river", "market", "school", "music", "painting"]


def text_of(words, rng):
    return " ".join(rng.choice(words) for _ in range(40))


def write_examples(folder, words, seed, hosts=("a", "b", "c", "d"), each=12, frame="{}"):
    """JSON lines with the URL of each document."""
    rng = random.Random(seed)
    rows = [
        {"text": frame.format(text_of(words, rng)), "url": f"https://{host}.example/{i}"}
        for host in hosts
        for i in range(each)
    ]
    folder.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder)


@pytest.fixture
def trained(tmp_path):
    """A classifier of texts about code, and what is said of it."""
    positive = write_examples(tmp_path / "code.jsonl", CODE, 1)
    negative = write_examples(tmp_path / "news.jsonl", NEWS, 2, ("e", "f", "g", "h"))
    out = tmp_path / "code.bin"
    return out, train_classifier(TrainingOptions([positive], [negative]), out)


def test_a_page_is_seen_as_tags_classes_and_words():
    html = '<div class="hljs Big"><pre>x = 10;</pre></div><script>var hidden</script><p>End <b'
    assert features(html, True) == "<div .hljs .big <pre x = 0 ; <script <p end < b"
    assert features("Été 2024: x_1 += f(y)", False) == "été 0 : x 0 += f ( y )"


@pytest.mark.parametrize("piece", ["a", "a ", "-", "a='", "class=", "class='", "<a", "<!"])
def test_no_page_takes_more_than_time_in_proportion(piece):
    """Sixteen times the text takes about so many times as long, not its square."""
    seconds = []
    for size in (10_000, 160_000):
        started = time.process_time()
        features(f"<{piece * (size // len(piece))}", html=True)
        seconds.append(time.process_time() - started)
    assert seconds[1] < 80 * max(seconds[0], 0.002)


def test_hosts_that_judge_are_not_those_that_train():
    examples = [
        Example(f"{host} {kind} {i}", kind, host) for host in "abcdefgh" for kind in (True, False) for i in range(5)
    ]
    split = split_examples(examples, 0.25, 0)
    assert split.by_group
    assert {one.group for one in split.training}.isdisjoint(one.group for one in split.heldout)
    assert len(split.training) + len(split.heldout) == len(examples)
    assert 0.2 < len(split.heldout) / len(examples) < 0.4
    other = split_examples(examples, 0.25, 1)
    assert {one.group for one in other.heldout} != {one.group for one in split.heldout}


def test_many_hosts_are_drawn_in_proportion_to_their_number():
    """Sixteen times the hosts take about so many times as long, not its square."""
    seconds = []
    for n in (400, 6_400):
        examples = [Example(f"line {i}", i % 3 == 0, f"host {i}") for i in range(n)]
        started = time.process_time()
        split = split_examples(examples, 0.25, 0)
        seconds.append(time.process_time() - started)
        assert sum(one.positive for one in split.heldout) == pytest.approx(n / 12, abs=1)
    assert seconds[1] < 80 * max(seconds[0], 0.002)


def test_one_host_alone_is_divided_by_documents_and_that_is_said():
    examples = [Example(f"{kind} {i}", kind, "a" if kind else f"n{i}") for kind in (True, False) for i in range(40)]
    split = split_examples(examples, 0.25, 0)
    assert not split.by_group
    assert {one.positive for one in split.heldout} == {one.positive for one in split.training} == {True, False}


def test_what_training_has_seen_does_not_judge():
    examples = [Example("the same", kind, f"{kind}{i}") for kind in (True, False) for i in range(8)]
    split = split_examples(examples, 0.25, 0)
    assert split.heldout == []
    assert split.repeated > 0


def test_precision_and_recall_are_those_of_the_definition():
    scores, positive = np.array([0.9, 0.8, 0.8, 0.4, 0.1]), np.array([True, True, False, True, False])
    points = curve(scores, positive)
    assert [one.threshold for one in points] == [0.9, 0.8, 0.4, 0.1]
    assert points == [point(scores, positive, one.threshold) for one in points]
    assert (points[1].precision, points[1].recall, points[1].kept) == (2 / 3, 2 / 3, 3 / 5)
    assert recommended(points, 0.9).threshold == 0.4
    assert average_precision(points) == pytest.approx((1 + 2 / 3 + 3 / 4) / 3)
    examples = [Example("", bool(kind), "ab"[i % 2]) for i, kind in enumerate(positive)]
    assert groups(examples, scores, 0.8)[0] == {
        "group": "a", "positive": 1, "positive kept": 1, "negative": 2, "negative kept": 1,
    }  # fmt: skip


def test_the_judgement_is_that_of_the_file_and_the_step_filters_by_it(curate, trained):
    out, found = trained
    assert found["split_by_group"]
    assert found["average_precision"] > 0.95
    assert set(found["examples"]["heldout"]["groups"]).isdisjoint(found["examples"]["training"]["groups"])
    assert out.with_name("code.bin.png").stat().st_size > 5000
    rng = random.Random(9)
    texts = [text_of(words, rng) for words in (CODE, NEWS) * 6]
    report, kept = curate([("relevance", {"model": str(out)})], texts)
    assert [row["id"] for row in kept] == [f"d{i}" for i in range(0, 12, 2)]
    assert dropped(report, "relevance") == {"not relevant": 6}
    assert all(row["metadata"]["relevance_score"] > 0.5 for row in kept)
    assert report.manifest.settings["01-relevance"]["model_hash"] == found["hash"]


def test_the_same_examples_make_the_same_file(trained, tmp_path):
    out, found = trained
    positive, negative = str(tmp_path / "code.jsonl"), str(tmp_path / "news.jsonl")
    again = train_classifier(TrainingOptions([positive], [negative]), tmp_path / "again.bin")
    assert again == found
    assert (tmp_path / "again.bin").read_bytes() == out.read_bytes()


def test_pages_are_judged_by_their_html(curate, tmp_path):
    frame = "<html><body><div class='{{}}'><p>{}</p></div></body></html>"
    rng = random.Random(4)
    words = [*CODE, *NEWS]
    positive = write_examples(tmp_path / "p.jsonl", words, 1, frame=frame.replace("{{}}", "hljs"))
    negative = write_examples(
        tmp_path / "n.jsonl", words, 2, ("e", "f", "g", "h"), frame=frame.replace("{{}}", "story")
    )
    out = tmp_path / "page.bin"
    found = train_classifier(TrainingOptions([positive], [negative], html=True), out)
    assert found["rule"]["recall"] == 0, "one class is no evidence for the rule"
    pages = [frame.replace("{{}}", name).format(text_of(words, rng)) for name in ("hljs", "story") * 3]
    _, kept = curate([("code-page", {"model": str(out)})], pages)
    assert [row["id"] for row in kept] == ["d0", "d2", "d4"]
    with pytest.raises(UserError, match="trained on pages of HTML, and this step has texts"):
        curate([("relevance", {"model": str(out)})], pages, out="other")


def test_another_classifier_under_the_same_name_is_told(curate, trained, tmp_path):
    out, found = trained
    step = ("relevance", {"model": str(out)})
    curate([step], ["some text"])
    train_classifier(TrainingOptions([str(tmp_path / "news.jsonl")], [str(tmp_path / "code.jsonl")]), out)
    with pytest.raises(UserError, match=r"relevance\.model_hash"):
        curate([step], ["some text"])
    with pytest.raises(UserError, match=f"not {found['hash']} as model_hash says"):
        curate([("relevance", {"model": str(out), "model_hash": found["hash"]})], ["some text"], out="pinned")
    out.write_bytes(b"damaged")
    with pytest.raises(UserError, match="do not belong together"):
        curate([step], ["some text"], out="damaged")


def test_a_classifier_that_is_replaced_between_plan_and_run_is_not_used(trained, tmp_path):
    """As between `--executor slurm` and the first job."""
    out, _ = trained
    (tmp_path / "own.toml").write_text(f'[[step]]\nuse = "read"\n[[step]]\nuse = "relevance"\nmodel = "{out}"\n')
    plan = plan_run(load_pipeline(str(tmp_path / "own.toml")), tmp_path / "out", [str(tmp_path / "news.jsonl")])
    train_classifier(TrainingOptions([str(tmp_path / "news.jsonl")], [str(tmp_path / "code.jsonl")]), out)
    with pytest.raises(UserError, match="was replaced"):
        run_pipeline(plan, 1)


@pytest.mark.parametrize(
    ("settings", "told"),
    [({}, 'model = "FILE"'), ({"model": "none.bin"}, "no classifier"), ({"model": "x", "threshold": 2}, "at most 1")],
)
def test_a_step_without_its_classifier_is_refused(curate, settings, told):
    with pytest.raises(UserError, match=told):
        curate([("relevance", settings)], ["a"])


def test_too_few_examples_are_refused(tmp_path):
    (tmp_path / "one.jsonl").write_text('{"text": "one"}\n')
    (tmp_path / "signs.jsonl").write_text('{"text": "  "}\n')
    (tmp_path / "two.jsonl").write_text('{"text": "two"}\n')
    one, two, signs = (str(tmp_path / f"{name}.jsonl") for name in ("one", "two", "signs"))
    with pytest.raises(UserError, match="too few --positive"):
        train_classifier(TrainingOptions([one], [two]), tmp_path / "x.bin")
    with pytest.raises(UserError, match="no document with a word"):
        train_classifier(TrainingOptions([one], [signs]), tmp_path / "x.bin")
    assert not list(tmp_path.glob("*x.bin*"))
