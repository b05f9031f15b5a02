"""The stratified sample: as planned, and the same at any number of tasks."""

import json
import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nano3.config.errors import UserError
from nano3.curate.steps.llm.stratified import planned

from ...conftest import dropped

COUNTS = st.dictionaries(st.text("0123456789", min_size=1, max_size=2), st.integers(1, 50), min_size=1, max_size=9)


@given(COUNTS, st.floats(0, 1))
def test_proportional_shares_are_exact_to_a_document(counts, share):
    total = sum(counts.values())
    n = round(share * total)
    wanted = planned(counts, n, "proportional")
    assert sum(wanted.values()) == n
    assert all(abs(wanted[one] - n * counts[one] / total) < 1 for one in counts)
    assert all(wanted[one] <= counts[one] for one in counts)


@given(COUNTS, st.floats(0, 1))
def test_equal_strata_differ_by_one_where_they_have_so_many(counts, share):
    n = round(share * sum(counts.values()))
    wanted = planned(counts, n, "equal")
    assert sum(wanted.values()) == n
    assert all(wanted[one] <= counts[one] for one in counts)
    highest = max(wanted.values())
    assert all(wanted[one] >= min(counts[one], highest - 1) for one in counts)


@pytest.fixture
def corpus(tmp_path):
    """240 documents of four subjects in six files; their paths."""
    rng = random.Random(5)
    subjects = ["510"] * 120 + ["519"] * 40 + ["005.1"] * 60 + [None] * 20
    rng.shuffle(subjects)
    rows = [{"id": f"d{i}", "text": f"text {i}", "taxonomy": {"code": subject}} for i, subject in enumerate(subjects)]
    paths = []
    for i in range(6):
        paths.append(tmp_path / f"{i}.jsonl")
        paths[-1].write_text("".join(json.dumps(row) + "\n" for row in rows[i * 40 : i * 40 + 40]))
    return paths


@pytest.mark.parametrize(
    ("settings", "plan"),
    [
        ({"n": 48}, {"5": 32, "0": 12, "unknown": 4}),
        ({"n": 48, "characters": 2}, {"51": 32, "00": 12, "unknown": 4}),
        ({"n": 48, "characters": 0}, {"510": 24, "519": 8, "005.1": 12, "unknown": 4}),
        ({"share": 0.1, "plan": "equal"}, {"5": 8, "0": 8, "unknown": 8}),
        ({"n": 100, "plan": "equal"}, {"5": 40, "0": 40, "unknown": 20}),
        ({}, {"5": 160, "0": 60, "unknown": 20}),
    ],
)
def test_strata_are_as_planned_and_the_same_at_any_number_of_tasks(curate, corpus, settings, plan):
    steps = [("stratified-sample", {"field": "taxonomy.code"} | settings)]
    one, kept = curate(steps, paths=corpus, tasks=1, out="one")
    assert Counter(row["metadata"]["stratum"] for row in kept) == plan
    assert one.steps[-1].account.notes == {f"kept of stratum {stratum}": n for stratum, n in plan.items()}
    _, again = curate(steps, paths=corpus, tasks=4, out="four")
    assert sorted(row["id"] for row in again) == sorted(row["id"] for row in kept)
    assert dropped(one, "sample").get("not in the sample", 0) == 240 - sum(plan.values())


def test_another_seed_draws_other_documents(curate, corpus):
    steps = [("stratified-sample", {"field": "taxonomy.code", "n": 48})]
    _, kept = curate(steps, paths=corpus, tasks=1, out="one")
    _, other = curate(steps, paths=corpus, tasks=1, out="two", overrides=["pipeline.seed=1"])
    assert {row["id"] for row in other} != {row["id"] for row in kept}


def test_a_share_of_more_than_all_is_refused(curate):
    with pytest.raises(UserError, match=r"stratified-sample\.share is 1\.5; it must be at most 1"):
        curate([("stratified-sample", {"share": 1.5})], ["x"])
