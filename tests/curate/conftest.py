"""Small corpora, and a way to run a pipeline inside the test's process."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nano3.curate import run
from nano3.curate.ask.model import Model
from nano3.curate.pipeline import load_pipeline
from nano3.curate.run import plan_run, run_pipeline
from nano3.data.texts.compressed import open_bytes

from .model_server import MODEL, ModelServer


def documents(folder: Path) -> list[dict]:
    """All lines of a run's result, in order."""
    found = []
    for path in sorted((folder / "data").glob("*.jsonl.zst")):
        with open_bytes(path) as stream:
            found += [json.loads(line) for line in stream]
    return found


def dropped(report, label_end: str) -> dict[str, int]:
    """Documents by reason of the step whose label ends so."""
    (step,) = [step for step in report.steps if step.label.endswith(label_end)]
    return {reason: one.size.documents for reason, one in step.account.dropped.items()}


@pytest.fixture(autouse=True)
def no_charts(monkeypatch):
    """A chart takes longer than the runs here; tests/cli/data/test_curate.py looks at one."""
    monkeypatch.setattr(run, "draw", lambda report, path: path.write_bytes(b"chart"))


def model_at(url: str, answers: Path, **given) -> Model:
    """The model of a scripted server, waited for as long as a test may take."""
    own = {"name": MODEL, "concurrency": 8, "timeout": 5.0, "deadline": 10.0, "answers": answers}
    return Model(url, **(own | given))


@pytest.fixture
def model_server():
    """A server of chat completions that answers `fine` until a test gives it another `reply`."""
    server = ModelServer()
    yield server
    server.stop()


@pytest.fixture
def curate(tmp_path):
    """Runs a pipeline of (name, settings) pairs over texts or files; the report and the documents kept.

    `server`: URL of the model that steps ask; its answers are kept in the folder `answers` beside all results.
    """

    def curate(
        steps, texts=(), *, out="out", paths=(), reader="read", overrides=(), workers=1, server="", ask=None, **given
    ):
        source = tmp_path / "texts.jsonl"
        if texts:
            rows = [row if isinstance(row, dict) else {"id": f"d{i}", "text": row} for i, row in enumerate(texts)]
            source.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
        lines = [f'[[step]]\nuse = "{reader}"']
        for use, settings in steps:
            lines += [
                "[[step]]",
                f'use = "{use}"',
                *(f"{key} = {json.dumps(value)}" for key, value in settings.items()),
            ]
        (tmp_path / "pipeline.toml").write_text("\n".join(lines), "utf-8")
        pipeline = load_pipeline(str(tmp_path / "pipeline.toml"), overrides)
        if server:
            given["model"] = model_at(server, tmp_path / "answers", **(ask or {}))
        plan = plan_run(pipeline, tmp_path / out, [str(path) for path in paths] or [str(source)], **given)
        report = run_pipeline(plan, workers)
        assert report.finished
        assert report.faults() == []
        return report, documents(tmp_path / out)

    return curate
