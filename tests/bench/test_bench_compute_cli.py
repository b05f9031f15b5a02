"""`nano3 bench train`, `prefill` and `decode` from outside."""

import json
import os
import subprocess
import sys

import pytest

RUN = [sys.executable, "-c", "from nano3.cli.app import main; main()", "bench"]
ENVIRONMENT = {key: value for key, value in os.environ.items() if not key.startswith("NANO3_")}


def bench(*args, timeout=120):
    return subprocess.run([*RUN, *args], capture_output=True, text=True, env=ENVIRONMENT, check=False, timeout=timeout)


def check_case(case, repeat):
    for side in case["sides"].values():
        seconds, rate = side["seconds"], side["tokens_per_second"]
        assert len(seconds["all"]) == repeat
        assert rate["median"] * seconds["median"] == pytest.approx(case["tokens"])
        assert rate["min"] <= rate["median"] <= rate["max"]
        assert side["peak_memory_bytes"] > 50 << 20


def test_decoding_as_json_with_files(run, tmp_path):
    small = ["--sequences", "3", "--prompt-tokens", "6", "--output-tokens", "4", "--threads", "1", "--repeat", "1"]
    done = run("bench", "decode", "--model", "tiny", *small, "--dtype", "float32", "--json", "--out", tmp_path / "o")
    assert done.code == 0, done.err
    said = done.err.splitlines()
    for line in ("loading", "3 sequences: nano3, first run", "3 sequences: nano3, run 1 of 1"):
        assert line in said
    figures = json.loads(done.out)
    assert figures == json.loads((tmp_path / "o" / "result.json").read_text())
    assert (tmp_path / "o" / "speed.png").stat().st_size > 5000
    assert [case["tokens"] for case in figures["cases"]] == [12]
    for case in figures["cases"]:
        check_case(case, repeat=1)
        ours = case["sides"]["nano3"]
        assert ours["seconds_per_step"] == pytest.approx(ours["seconds"]["median"] / 4)
        assert ours["share_of_read"] > 0
    assert figures["machine"]["threads"] == 1
    assert figures["sides"]["nano3"]["weights"] == "float32"
    assert all(rate["median"] > 1e6 for rate in figures["ceilings"].values())


@pytest.mark.slow
def test_a_step_of_rl_beside_transformers():
    small = ["--prompts", "2", "--group", "2", "--prompt-tokens", "6", "--output-tokens", "4", "--repeat", "1"]
    done = bench("rl", *small, "--against", "transformers", "--peer-dtype", "float32", "--json", timeout=300)
    assert done.returncode == 0, done.stderr
    [case] = json.loads(done.stdout)["cases"]
    check_case(case, repeat=1)
    assert case["sides"].keys() == {"nano3", "transformers float32"}
    for side in case["sides"].values():
        parts = side["parts"]
        assert sum(part["share"] for part in parts.values()) == pytest.approx(1)
        assert all(part["seconds"] * part["tokens_per_second"] == pytest.approx(16) for part in parts.values())


@pytest.mark.slow
def test_training_as_a_table_with_its_profile():
    done = bench("train", "--model", "tiny", "--pattern", "M", "--batch", "1", "--seq-len", "16", "--repeat", "1",
                 "--profile")  # fmt: skip
    assert done.returncode == 0, done.stderr
    for word in ("train, tiny", "16 tokens", "nano3", "GiB", "matrix product, float32",
                 "ssd_scan", "backward: ", "aten::mm"):  # fmt: skip
        assert word in done.stdout


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["decode", "--sequences", "1,x"], ["--sequences 1,x"]),
        (["decode", "--dtype", "int8"], ["--dtype int8", "float32"]),
        (["prefill", "--against", "vllm"], ["--against vllm", "transformers"]),
        (["prefill", "--gguf", "none.gguf"], ["none.gguf"]),
        (["prefill", "--gguf", __file__], ["--gguf", "--against llama.cpp"]),
        (["decode", "--threads", "9999"], ["--threads is 9999", "cores"]),
        (["train", "--against", "llama.cpp"], ["llama.cpp", "bench train cannot compare with it"]),
        (["train", "--model", "no-such-model"], ["no-such-model", "tiny"]),
        (["train", "--model", "tiny", "--device", "cuda:99"], ["--device cuda:99", "CUDA devices"]),
        (["decode", "--device", "cuda", "--profile"], ["--profile is about the CPU"]),
    ],
)
def test_a_wrong_input_is_one_line_and_exit_code_2(run, args, words):
    done = run("bench", *args)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("error: ")
    assert done.err.count("\n") == 1
    for word in words:
        assert word in done.err


@pytest.mark.gpu
@pytest.mark.parametrize("verb", ["train", "prefill", "decode"])
def test_on_a_gpu(verb):
    done = bench(verb, "--model", "tiny", "--repeat", "1", "--device", "cuda", "--json", timeout=300)
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    assert figures["machine"]["device"]
    assert figures["ceilings"]["copy"]["median"] > 1e10
    for case in figures["cases"]:
        assert 0 < case["sides"]["nano3"]["peak_memory_bytes"] < 8 << 30


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["train", "prefill", "decode"])
def test_transformers_runs_the_same_weights_in_turn(verb):
    small = {
        "train": ["--batch", "1", "--seq-len", "32"],
        "prefill": ["--prompt-tokens", "32"],
        "decode": ["--sequences", "2", "--prompt-tokens", "8", "--output-tokens", "16"],
    }[verb]
    done = bench(verb, "--model", "tiny", "--repeat", "1", "--against", "transformers", *small, "--json", timeout=300)
    assert done.returncode == 0, done.stderr
    (case,) = json.loads(done.stdout)["cases"]
    assert set(case["sides"]) == {"nano3", "transformers float32", "transformers bfloat16"}
    check_case(case, repeat=1)
    for name, ratio in case["ratios"].items():
        rates = [case["sides"][side]["tokens_per_second"]["median"] for side in ("nano3", name)]
        assert ratio["median"] == pytest.approx(rates[0] / rates[1])


@pytest.mark.slow
def test_a_peer_that_does_not_finish_is_left_out_and_said():
    done = bench("prefill", "--model", "tiny", "--repeat", "1", "--prompt-tokens", "32", "--against", "transformers",
                 "--peer-dtype", "float32", "--peer-timeout", "0.01")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "did not finish in 0.01 s" in done.stdout
