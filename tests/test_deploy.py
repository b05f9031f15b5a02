"""The files of docs/deploy/: what they run is what nano3 takes, and what they name is there."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from nano3.config.presets import load_pretrain

from .command_lines import parse

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "docs" / "deploy"
DOCKERFILE = (DEPLOY / "Dockerfile").read_text()
UNIT = (DEPLOY / "nano3.service").read_text()
SLURM = DEPLOY / "pretrain.slurm"
HARBOUR = 8000
"""The port that all of them name."""


def instructions(name: str) -> list[str]:
    """Arguments of one kind of instruction in the Dockerfile."""
    return re.findall(rf"^{name} (.*)$", DOCKERFILE.replace("\\\n", " "), re.M)


def seconds(text: str) -> int:
    return int(text.removesuffix("s"))


def test_the_image_runs_a_command_of_nano3():
    (entry,), (words,) = ([json.loads(text) for text in instructions(name)] for name in ("ENTRYPOINT", "CMD"))
    assert entry == ["nano3"]
    verb, options = parse(words)
    assert (verb, options["model"], options["port"]) == ("serve", "/model", HARBOUR)
    assert instructions("EXPOSE") == [str(HARBOUR)]


def test_the_image_has_a_python_that_nano3_takes_and_asks_a_health_check_that_is_there():
    versions = {tuple(map(int, v)) for v in re.findall(r"^FROM python:(\d+)\.(\d+)-slim", DOCKERFILE, re.M)}
    assert len(versions) == 1
    assert min(versions) >= (3, 11)
    (check,) = re.findall(r"http://127\.0\.0\.1:(\d+)(/[\w/]+)", DOCKERFILE)
    assert check == (str(HARBOUR), "/health/live")
    assert "/health/live" in (ROOT / "docs" / "serving.md").read_text()


def test_the_sources_that_the_image_takes_are_all_that_a_wheel_needs(tmp_path):
    """`pip wheel` in the image sees what .dockerignore lets through."""
    wanted = [line[1:] for line in (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines() if line[:1] == "!"]
    for name in wanted:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, tmp_path / name)
    code = "from setuptools import setup; setup()"
    command = [sys.executable, "-c", code, "-q", "dist_info", "--output-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (info,) = tmp_path.glob("nano3-*.dist-info")
    assert "hybrid Mamba-2" in (info / "METADATA").read_text()


def test_the_compose_file_serves_the_image_on_this_machine_alone():
    (service,) = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"].values()
    verb, options = parse(service["command"])
    assert (verb, options["model"]) == ("serve", "/model")
    assert service["ports"] == [f"127.0.0.1:{HARBOUR}:{HARBOUR}"]
    assert seconds(service["stop_grace_period"]) > options["drain_seconds"]
    assert service["volumes"][0].endswith(":/model:ro")
    build = service["build"]
    assert (DEPLOY / build["context"] / build["dockerfile"]).resolve() == DEPLOY / "Dockerfile"


def test_the_unit_serves_with_a_key_and_waits_for_accepted_requests():
    (line,) = re.findall(r"^ExecStart=(.*)$", UNIT, re.M)
    words = shlex.split(line.replace("%d/keys", "keys.txt"))
    verb, options = parse(words[1:])
    assert (words[0], verb, options["host"]) == ("/opt/nano3/bin/nano3", "serve", "127.0.0.1")
    assert int(re.findall(r"^TimeoutStopSec=(\d+)$", UNIT, re.M)[0]) > options["drain_seconds"]


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="only systemd can verify a unit")
def test_systemd_takes_the_unit(tmp_path):
    unit = tmp_path / "nano3.service"
    unit.write_text(UNIT.replace("/opt/nano3/bin/nano3", sys.executable))
    done = subprocess.run(["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def shown_commands() -> list[str]:
    """Commands of nano3 on the page, and those handed to Docker and to Slurm's script."""
    page = (DEPLOY / "README.md").read_text() + DOCKERFILE.replace("#   ", "    ")
    direct = re.findall(r"docker run .* nano3 (\w.*?)`", page)
    return [*direct, *(f"pretrain --out {words}" for words in re.findall(r"sbatch \S+\.slurm (.*)$", page, re.M))]


@pytest.mark.parametrize("line", shown_commands())
def test_what_the_page_shows_is_taken(line):
    verb, options = parse(shlex.split(line))
    if verb == "pretrain":
        assert load_pretrain(options["preset"], []).data.blend


def test_what_the_page_names_is_there():
    for folder in (DEPLOY, DEPLOY.parent):
        page = (folder / ("README.md" if folder == DEPLOY else "clusters.md")).read_text()
        names = set(re.findall(r"\]\(([\w./]+)[#\w-]*\)", page))
        assert [name for name in names if not (folder / name).exists()] == []
        assert [name for name in re.findall(r"docs/deploy/[\w.]+", page) if not (ROOT / name).exists()] == []


def stand_in(folder: Path, name: str, script: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)


@pytest.mark.parametrize(("left", "status", "asked"), [(300, 1, True), (9000, 1, False), (300, 0, False)])
def test_slurm_is_asked_for_another_slot_when_one_ended_and_for_no_other_reason(tmp_path, left, status, asked):
    stand_in(tmp_path, "srun", f"exit {status}")
    stand_in(tmp_path, "scontrol", f'echo "$@" >> "{tmp_path}/asked"')
    slurm = {"SLURM_JOB_NODELIST": "node[1-2]", "SLURM_NNODES": "2", "SLURM_JOB_ID": "7", "SLURM_CPUS_PER_TASK": "3",
             "SLURM_JOB_END_TIME": str(int(time.time()) + left)}  # fmt: skip
    environment = os.environ | slurm | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", str(SLURM), "run"], cwd=tmp_path, env=environment, capture_output=True, check=False)
    assert ("requeue 7" in (tmp_path / "asked").read_text().splitlines()) == asked
    assert done.returncode == (0 if asked else status)


def shells() -> dict[str, str]:
    """Shell text of each file that starts a run on several machines."""
    job, task = (yaml.safe_load((DEPLOY / name).read_text()) for name in ("trainjob.yaml", "skypilot.yaml"))
    assert job["spec"]["trainer"]["command"] == ["bash", "-c"]
    return {
        "trainjob.yaml": job["spec"]["trainer"]["args"][0],
        "skypilot.yaml": task["run"],
        "torchx.sh": (DEPLOY / "torchx.sh").read_text(),
        "pretrain.slurm": SLURM.read_text(),
    }


@pytest.mark.parametrize("name", ["trainjob.yaml", "skypilot.yaml", "torchx.sh", "pretrain.slurm"])
@pytest.mark.parametrize("there", [False, True], ids=["new run", "run that goes on"])
def test_a_run_on_several_machines_is_started_with_a_command_that_nano3_takes(tmp_path, name, there):
    """The shell is run with stand-ins that print their arguments; paths of a shared file system are moved here."""
    text = shells()[name].replace("/shared/", f"{tmp_path}/shared/")
    for tool in ("torchrun", "torchx"):
        stand_in(tmp_path, tool, 'for word in "$@"; do echo "$word"; done')
    stand_in(tmp_path, "srun", 'shift; exec "$@"')
    stand_in(tmp_path, "scontrol", "echo node-1")
    run = tmp_path / "shared" / "runs" / "phase1"
    if there:
        run.mkdir(parents=True)
        (run / "config.toml").touch()
    told = {"RUN": "phase1", "PRESET": "phase1", "SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2", "SKYPILOT_NODE_RANK": "1",
            "SKYPILOT_NUM_NODES": "2", "SKYPILOT_NUM_GPUS_PER_NODE": "8", "SLURM_JOB_NODELIST": "node[1-2]",
            "SLURM_NNODES": "2", "SLURM_JOB_ID": "7", "SLURM_CPUS_PER_TASK": "3"}  # fmt: skip
    given = {"torchx.sh": ["slurm", "2x8"], "pretrain.slurm": []}.get(name)
    words = [] if given is None else [*given, str(run), "--preset", "phase1"]
    environment = os.environ | told | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    command = ["bash", "-euo", "pipefail", "-c", text, name, *words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    printed = done.stdout.splitlines()
    at = printed.index("pretrain")
    assert printed[at - 1] == ("--" if name == "torchx.sh" else "nano3")
    verb, options = parse(printed[at:])
    assert (verb, options["out"], options["resume"], options["preset"]) == ("pretrain", run, there, "phase1")
    # The words of the first start do not go on with a run: nobody may repeat them.
    assert name != "torchx.sh" or "--max_retries" not in printed
    if name == "skypilot.yaml":
        assert [printed[printed.index(word) + 1] for word in ("--node-rank", "--master-addr")] == ["1", "10.0.0.1"]


def test_the_kubernetes_job_asks_for_what_its_torchrun_uses():
    job = yaml.safe_load((DEPLOY / "trainjob.yaml").read_text())
    assert (job["apiVersion"], job["kind"]) == ("trainer.kubeflow.org/v1alpha1", "TrainJob")
    trainer, (override,) = job["spec"]["trainer"], job["spec"]["podTemplateOverrides"]
    assert trainer["resourcesPerNode"]["limits"]["nvidia.com/gpu"] == trainer["numProcPerNode"]
    pod = override["spec"]
    assert f"--shutdown-timeout {pod['terminationGracePeriodSeconds']}" in shells()["trainjob.yaml"]
    (mount,) = pod["containers"][0]["volumeMounts"]
    assert mount["name"] in {volume["name"] for volume in pod["volumes"]}
    assert f"out={mount['mountPath']}/" in shells()["trainjob.yaml"]


@pytest.mark.slow
def test_the_slurm_script_trains_and_goes_on_when_it_is_submitted_again(tmp_path):
    """With stand-ins: `srun` runs its command here if it gets the job's cores, `scontrol` names this machine."""
    tools = tmp_path / "bin"
    tools.mkdir()
    stand_in(tools, "srun", '[ "$1" = --cpus-per-task=3 ] || exit 9; shift; exec "$@"')
    stand_in(tools, "scontrol", "echo 127.0.0.1")
    stand_in(tools, "nano3", f'exec "{sys.executable}" -m nano3 "$@"')
    stand_in(tools, "torchrun", f'exec "{sys.executable}" -m torch.distributed.run "$@"')
    (tmp_path / "own.txt").write_text("\n\n".join(f"The number after {n} is {n + 1}." for n in range(4000)))
    slurm = {"SLURM_JOB_NODELIST": "node[1-2]", "SLURM_NNODES": "1", "SLURM_JOB_ID": "7", "MASTER_PORT": "0",
             "SLURM_CPUS_PER_TASK": "3"}  # fmt: skip
    environment = os.environ | slurm | {
        "PATH": f"{tools}:{os.environ['PATH']}", "XDG_CACHE_HOME": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"
    }  # fmt: skip
    small = ["train.batch_size=2", "train.micro_batch_size=2", "data.seq_len=64", "model.vocab_size=300"]
    words = [word for setting in small for word in ("--set", setting)]

    def submit(steps: int) -> None:
        more = [
            "--data",
            "own.txt",
            *words,
            "--set",
            f"train.tokens={128 * steps}",
            "--set",
            "schedule.horizon_tokens=1000",
        ]
        command = ["bash", str(SLURM), "run", *more]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr

    submit(2)
    submit(3)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line][-1] == 3
