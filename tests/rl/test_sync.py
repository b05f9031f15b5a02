"""A sync brings the trainer's weights to the engine, and its probe refuses whatever makes the two differ."""

import copy
import shutil
from dataclasses import replace

import pytest
import torch

import nano3
from nano3.config.errors import UserError
from nano3.engine.engine import Engine
from nano3.engine.protocol import run
from nano3.engine.request import Request, Sampling
from nano3.model.hf.folder import load
from nano3.model.lm import LM
from nano3.rl.probe import Probe, make_prompts
from nano3.rl.sync import Bound, MismatchError, WeightSync, copy_weights


def engine_of(model, tokenizer, kind=Engine, **options):
    return kind(model, tokenizer, **{"memory": 64 << 20, "page_size": 8, "snapshot_every": 32, **options})


def train(model, size=0.02):
    """Change all weights in place, as an optimizer step would."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(size * torch.randn(parameter.shape, generator=generator))
        for bias in model.expert_biases():
            bias.add_(0.01 * torch.randn(bias.shape, generator=generator))


class FolderEngine(Engine):
    """An engine that has its own weights from a folder, as vLLM does."""

    def __init__(self, folder, tokenizer, **options):
        self.folder = folder
        super().__init__(load(folder), tokenizer, **options)

    def reload_weights(self):
        copy_weights(load(self.folder), self.model)
        return self.weights_changed()


def test_the_same_object(model, tokenizer):
    engine = engine_of(model, tokenizer)
    sync = WeightSync(model, engine)
    for version in (1, 2, 3):
        report = sync.sync()
        assert report.version == version
        assert report.measured.cached_at_first == 0
        assert report.measured.cached_later > 4 * 2 * 8  # pages and states of the shared beginning took part
        metrics = report.metrics()
        assert metrics["dlogp_generated_mean"] < 1e-5
        assert 0 < metrics["dlogp_generated_largest"] < 1e-4
        assert 0 < metrics["dlogp_prompt_largest"] < 1e-4
        train(model)
    assert run(engine, [Request("a", (5, 6), Sampling(max_tokens=2))])[0][0].weights_version == 3


def test_a_copy_keeps_its_places_and_its_decoding_program(model, tokenizer):
    twin = copy.deepcopy(model)
    engine = engine_of(twin, tokenizer)
    places = {name: tensor.data_ptr() for name, tensor in twin.state_dict().items()}
    sync = WeightSync(model, engine)
    for _ in range(2):
        train(model)
        sync.sync()
        for name, tensor in model.state_dict().items():
            assert torch.equal(twin.state_dict()[name], tensor)
    assert {name: tensor.data_ptr() for name, tensor in twin.state_dict().items()} == places


def test_a_copy_in_bfloat16(model, tokenizer):
    twin = copy.deepcopy(model).to_dtype(torch.bfloat16)
    sync = WeightSync(model, engine_of(twin, tokenizer), dtype=torch.bfloat16, bound=Bound(0.1, 5.0))
    train(model)
    measured = sync.sync().measured
    assert measured.generated.mean > 1e-4
    assert twin.lm_head.weight.dtype == torch.bfloat16
    assert torch.equal(twin.lm_head.weight, model.lm_head.weight.bfloat16())
    assert torch.equal(twin.blocks[0].mixer.A_log, model.blocks[0].mixer.A_log)


def narrow(model, tokenizer, kind=Engine):
    """A bfloat16 copy that rolls out for the model."""
    return engine_of(copy.deepcopy(model).to_dtype(torch.bfloat16), tokenizer, kind)


@pytest.mark.parametrize("pattern", ["M*ME", "M*-M"])
@pytest.mark.parametrize("std", [0.02, 0.3, 0.6])
def test_bfloat16_rollouts_of_any_model_differ_by_what_rounding_explains(tokenizer, model, pattern, std):
    model = LM(replace(model.cfg, pattern=pattern, init_std=std)).init_weights(seed=5)
    sync = WeightSync(model, narrow(model, tokenizer), dtype=torch.bfloat16)
    train(model, 0.2 * std)
    metrics = sync.sync().metrics()
    for part in ("generated", "prompt"):
        assert 0 < metrics[f"rounding_{part}_engine"] <= 1.5 * metrics[f"rounding_{part}_own"]
        assert 0 < metrics[f"rounding_{part}_far"] <= 3 * metrics[f"rounding_{part}_own_far"]
    assert model.compute_dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_a_model_with_more_ids_than_its_tokenizer(model, tokenizer, dtype, temperature):
    """The engine draws only what the tokenizer has, and so the trainer scores it."""
    wide = LM(replace(model.cfg, vocab_size=tokenizer.vocab_size * 3 // 2)).init_weights(seed=5)
    engine = engine_of(copy.deepcopy(wide).to_dtype(dtype), tokenizer)
    assert engine.ids_limit == tokenizer.vocab_size
    sampling = Sampling(temperature=temperature)
    WeightSync(wide, engine, sampling=sampling, temperature=temperature, dtype=dtype).sync()


STALE = ["embeddings.weight", "blocks.1.mixer.v_proj.weight", "blocks.3.mixer.experts.down_proj"]
STALE += ["blocks.3.mixer.gate.weight", "blocks.3.mixer.gate.e_score_correction_bias"]


def test_one_stale_weight_is_found_in_bfloat16(model, tokenizer):
    engine = narrow(model, tokenizer)
    old, changed = copy.deepcopy(engine.model.state_dict()), engine.weights_changed
    train(model, 0.1)
    for bias in model.expert_biases():
        bias.copy_(torch.linspace(-0.3, 0.3, len(bias)))
    sync = WeightSync(model, engine, dtype=torch.bfloat16)
    for name in STALE:

        def keeping_one(name=name):
            engine.model.state_dict()[name].copy_(old[name])
            return changed()

        engine.weights_changed = keeping_one
        with pytest.raises(MismatchError, match=r"where rounding makes .* Prompts differ already"):
            sync.sync()
    engine.weights_changed = changed
    sync.sync()


class Untold(Engine):
    """Tells no experts; an engine of another project may not know the word either."""

    @property
    def reports_experts(self):
        raise AttributeError


def off(engine, change):
    """A probe of an engine some of whose log-probabilities are changed."""

    class Off(Probe):
        def rollouts(self, engine, experts=False):
            found = super().rollouts(engine, experts)
            change(found)
            return found

    return Off(*make_prompts(engine.tokenizer.vocab_size, engine.page_size))


def one_token(found):
    found.generated[2, 20] += 4


def one_place(found):
    found.prompt[:, 63] -= 2


def a_third(found):
    found.generated[:, ::3] += 5


@pytest.mark.parametrize(("kind", "change"), [(Engine, one_token), (Engine, one_place), (Untold, a_third)])
@pytest.mark.parametrize("std", [0.02, 0.3])
def test_single_wrong_tokens_are_found_in_bfloat16(model, tokenizer, kind, change, std):
    """Whether or not they move the mean beyond its limit."""
    model = LM(replace(model.cfg, init_std=std)).init_weights(seed=5)
    engine = narrow(model, tokenizer, kind)
    WeightSync(model, engine, dtype=torch.bfloat16).sync()
    sync = WeightSync(model, engine, dtype=torch.bfloat16, probe=off(engine, change))
    with pytest.raises(MismatchError, match="engine and trainer differ"):
        sync.sync()


@pytest.mark.parametrize("kind", [Engine, Untold])
def test_refuses_a_cut_of_the_distribution_in_bfloat16(model, tokenizer, kind):
    model = LM(replace(model.cfg, init_std=0.6)).init_weights(seed=5)
    sync = WeightSync(model, narrow(model, tokenizer, kind), dtype=torch.bfloat16, sampling=Sampling(top_p=0.8))
    with pytest.raises(MismatchError, match=r"Prompts agree, .* top_p 0\.8"):
        sync.sync()


@pytest.mark.parametrize(("kind", "passes"), [(Engine, 5), (Untold, 3)])
def test_a_sync_in_bfloat16_takes_few_passes(model, tokenizer, kind, passes, monkeypatch):
    engine, calls, hidden = narrow(model, tokenizer, kind), [], model.hidden
    monkeypatch.setattr(model, "hidden", lambda *args, **options: calls.append(1) or hidden(*args, **options))
    WeightSync(model, engine, dtype=torch.bfloat16).sync()
    assert len(calls) <= passes


def test_single_tokens_beyond_the_bound_are_told_from_wrong_weights(model, tokenizer):
    twin = copy.deepcopy(model).to_dtype(torch.bfloat16)
    sync = WeightSync(model, engine_of(twin, tokenizer), dtype=torch.bfloat16, bound=Bound(0.1, 1e-3))
    with pytest.raises(MismatchError, match="Only single tokens differ"):
        sync.sync()


def test_a_folder(model, tokenizer, tmp_path):
    folder = tmp_path / "rollouts"
    nano3.save(model, folder)
    tokenizer.save(folder)
    start = tmp_path / "start"
    shutil.copytree(folder, start)
    engine = engine_of(folder, tokenizer, FolderEngine)
    with pytest.raises(UserError, match=r"overwrites .*rollouts"):
        WeightSync(model, engine)
    with pytest.raises(UserError, match=r"overwrites .*rollouts"):
        WeightSync(model, engine, replaced_folder=start)
    sync = WeightSync(model, engine, replaced_folder=folder)
    train(model)
    assert sync.sync().version == 1
    assert sorted(f.name for f in folder.iterdir()) == sorted(f.name for f in start.iterdir())


def test_refuses_a_stale_prefix_cache(model, tokenizer):
    class Forgetful(Engine):
        def weights_changed(self):
            self._weights_version += 1
            return self._weights_version

    sync = WeightSync(model, engine_of(model, tokenizer, Forgetful))
    sync.sync()
    train(model)
    with pytest.raises(MismatchError, match=r"states of the old weights.*weights_changed\(\) must drop") as caught:
        sync.sync()
    assert "\n" not in str(caught.value)


def test_refuses_stale_states_of_others_than_the_probe(model, tokenizer):
    """The probe's own entries may be gone by the next sync."""

    class Forgetful(Engine):
        def weights_changed(self):
            self._weights_version += 1
            return self._weights_version

    engine = engine_of(model, tokenizer, Forgetful)
    sync = WeightSync(model, engine)
    sync.sync()
    engine.cache.clear()
    run(engine, [Request("other", tuple(range(40)), Sampling(max_tokens=1))])
    train(model)
    with pytest.raises(MismatchError, match=r"keeps \d+ beginnings of prompts with states of the old weights"):
        sync.sync()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_refuses_stale_pages_by_their_numbers_alone(model, tokenizer, dtype):
    """Where the engine does not tell what came from its cache."""

    class Silent(Engine):
        def weights_changed(self):
            return 0

        def step(self):
            return [update._replace(cached_tokens=0) for update in super().step()]

        def stats(self):
            return replace(super().stats(), cached_prefixes=0)

    twin = copy.deepcopy(model).to_dtype(dtype)
    sync = WeightSync(model, engine_of(twin, tokenizer, Silent), dtype=dtype)
    sync.sync()
    train(model)
    with pytest.raises(MismatchError, match=r"generated \|dlogp\| mean"):
        sync.sync()


def test_refuses_weights_that_were_not_copied(model, tokenizer, tmp_path):
    class Unread(FolderEngine):
        def reload_weights(self):
            return self.weights_changed()

    folder = tmp_path / "rollouts"
    nano3.save(model, folder)
    sync = WeightSync(model, engine_of(folder, tokenizer, Unread), replaced_folder=folder)
    sync.sync()
    train(model, 1e-3)
    with pytest.raises(MismatchError, match="weights did not all arrive"):
        sync.sync()


@pytest.mark.parametrize("rollouts", [{"temperature": 0.7}, {"top_p": 0.8}, {"top_k": 5}, {"repetition_penalty": 1.3}])
def test_refuses_another_distribution(model, tokenizer, rollouts):
    sync = WeightSync(model, engine_of(model, tokenizer), sampling=Sampling(**rollouts))
    with pytest.raises(MismatchError, match=r"Prompts agree, .* drawn from another distribution"):
        sync.sync()


def test_the_trainers_temperature_may_be_the_rollouts(model, tokenizer):
    sync = WeightSync(model, engine_of(model, tokenizer), sampling=Sampling(temperature=0.7), temperature=0.7)
    assert sync.sync().measured.generated.largest < 1e-4
    hotter = WeightSync(model, engine_of(model, tokenizer), temperature=0.7)
    with pytest.raises(MismatchError, match=r"the trainer temperature 0\.7"):
        hotter.sync()


def test_refuses_another_type(model, tokenizer):
    twin = copy.deepcopy(model).to_dtype(torch.bfloat16)
    sync = WeightSync(model, engine_of(twin, tokenizer))
    with pytest.raises(MismatchError, match="computes in bfloat16, float32 was expected"):
        sync.sync()


def test_refuses_weights_without_numbers(model, tokenizer):
    with torch.no_grad():
        model.norm_f.weight.fill_(torch.nan)
    with pytest.raises(UserError, match="weights may be damaged"):
        WeightSync(model, engine_of(model, tokenizer)).sync()


def test_refuses_a_busy_engine(model, tokenizer):
    engine = engine_of(model, tokenizer)
    sync = WeightSync(model, engine)
    engine.add(Request("a", (5, 6)))
    with pytest.raises(RuntimeError, match="unfinished requests"):
        sync.sync()
    assert engine.stats().waiting == 1


def test_another_model_or_too_short_a_context_is_told_at_once(model, tokenizer):
    other = copy.deepcopy(model)
    del other.blocks[2].mixer
    with pytest.raises(UserError, match=r"another blocks\.2\.mixer"):
        copy_weights(model, other)
    with pytest.raises(UserError, match="raise max_context"):
        WeightSync(model, engine_of(model, tokenizer, max_context=96))


def test_prompts_of_ones_own(model, tokenizer):
    head = tuple(range(10, 35))
    sync = WeightSync(model, engine_of(model, tokenizer), probe=Probe([(*head, 1, 2), (*head, 3, 4)], 25))
    assert sync.sync().measured.prompt.tokens == 2 * 26
    with pytest.raises(UserError, match="all of one length"):
        Probe([(1, 2), (1,)], 1)
    with pytest.raises(UserError, match="same 2 tokens"):
        Probe([(1, 2), (1, 3)], 2)
