"""`nano3 runs` over run folders with wrong files: they are listed or told of."""

from __future__ import annotations

import pytest
import tomli_w
from hypothesis import given
from hypothesis import strategies as st

from nano3.cli.training.runs import compare, list_
from tests.fuzz.inputs import damaged, files, fuzz, mutated, works_or_tells

TRAIN = {
    "kind": "train", "step": 1, "tokens": 64, "loss": 2.5, "lr": 0.1, "seq_len": 16,
    "expert_load": {"1": [0.5, 0.5]}, "clock": {"seconds": 1.0, "tokens_per_second": 64.0},
}  # fmt: skip
HELDOUT = {
    "kind": "heldout", "step": 2, "tokens": 128, "loss": 2.0, "bits_per_byte": 1.0, "seq_len": 16, "targets": 9,
    "final": True,
}  # fmt: skip
SETTINGS = {
    "train": {"steps": 2, "tokens": 128, "seq_len": 16},
    "rl": {},
    "model": {"pattern": "M"},
    "data": {"a": [1]},
}
MANIFEST = {"files": {"a.bin": {"bytes": 3, "sha256": "0"}}, "step": 1}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "pretrain-tiny"
    (folder / "checkpoints" / "step-000001").mkdir(parents=True)
    return folder


@fuzz(40)
@given(lines=st.lists(files(TRAIN) | files(HELDOUT), max_size=4))
def test_metrics(run, lines):
    (run / "metrics.jsonl").write_bytes(b"\n".join([*lines, b'{"kind": "train", "step": 3, "tokens": 9, "loss": 1.0}']))
    (run / "config.toml").write_text(tomli_w.dumps(SETTINGS))
    with works_or_tells("metrics.jsonl of nano3 runs"):
        list_(run, as_json=True)
    list_(run)
    with works_or_tells("metrics.jsonl of nano3 runs compare"):
        compare([str(run), str(run)], as_json=True)
        compare([str(run), str(run)])


@st.composite
def _settings(draw):
    try:
        data = tomli_w.dumps(draw(mutated(SETTINGS))).encode("utf-8", "surrogatepass")
    except (TypeError, AttributeError, ValueError):  # TOML has no null, and no table but at its top
        data = b"a = " + b"[" * 5000
    return draw(st.just(data) | damaged(data))


@fuzz()
@given(settings=_settings(), manifest=files(MANIFEST))
def test_settings_and_checkpoints(run, settings, manifest):
    (run / "config.toml").write_bytes(settings)
    (run / "checkpoints" / "step-000001" / "manifest.json").write_bytes(manifest)
    with works_or_tells("config.toml and manifest.json of nano3 runs"):
        list_(run)
        list_(run, as_json=True)
