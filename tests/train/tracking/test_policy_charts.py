"""Charts of a run that is trained on rewards: what they draw, by environment and over the steps."""

import pytest
from matplotlib.image import imread

from nano3.train.tracking.charts import draw
from nano3.train.tracking.metrics import MetricsWriter
from nano3.train.tracking.policy_charts import policy_charts

pytestmark = pytest.mark.any_isa

ROLLOUTS = {"zero_variance": 0.5, "truncated": 0.0, "entropy": 1.0, "mismatch": 1e-6, "mismatch_largest": 1e-5}


def lines(steps=20, **more):
    """Two environments of which `easy` rises; the tasks drawn are all of the bin that holds the target mean."""
    found = []
    for step in range(1, steps + 1):
        mean = 0.75 - 0.5 * (step - 1) / max(1, steps - 1)
        bins = {name: [int(int(mean * 10) == i) * 4 for i in range(10)] for name in ("easy", "hard")}
        rewards = {"reward/easy": step / steps, "reward/hard": 0.0, "reward": step / steps / 2}
        rates = {"pass_rate/easy": step / steps, "pass_rate/hard": 0.0, "pass_rate": step / steps / 2}
        curriculum = {"target_mean": mean, "drawn_pass_rate": int(mean * 10) / 10 + 0.05, "drawn_bins": bins}
        line = {"kind": "train", "step": step, "tokens": 512 * step, "policy_loss": 0.0, "lr": 1e-4, "grad_norm": 1.0}
        found.append({**line, **rewards, **rates, **curriculum, **ROLLOUTS, "faults/easy: judge": 1, **more})
    return found


def write(path, found):
    writer = MetricsWriter(path)
    for line in found:
        values = {name: value for name, value in line.items() if name not in ("kind", "step", "tokens")}
        writer.write("train", line["step"], line["tokens"], {**values, "load_max_over_mean": []})
    writer.close()


def labelled(axis):
    return {line.get_label(): line for line in axis.lines if not line.get_label().startswith("_")}


@pytest.mark.parametrize("steps", [1, 20, 200])
def test_all_are_drawn_and_what_they_have_is_not_drawn_again(tmp_path, steps):
    write(tmp_path / "metrics.jsonl", lines(steps))
    names = [path.name for path in draw(tmp_path / "metrics.jsonl", tmp_path / "charts", "policy_loss")]
    assert names == ["loss.png", "learning_rate.png", "reward.png", "rollouts.png", "curriculum.png"]
    for name in names:
        assert imread(tmp_path / "charts" / name)[..., :3].std() > 0.02


def test_rewards_have_a_line_an_environment_and_one_for_all():
    axes = policy_charts(lines())["reward.png"]().axes
    assert [axis.get_ylabel() for axis in axes] == ["mean reward", "samples that pass"]
    for axis in axes:
        found = labelled(axis)
        assert list(found) == ["easy", "hard", "all"]
        assert found["easy"].get_ydata()[-1] > 0.9
        assert max(found["hard"].get_ydata()) == 0
        assert list(found["all"].get_xdata()) == list(range(1, 21))
        assert axis.get_ylim()[0] == 0


def test_an_environment_that_a_step_did_not_draw_has_a_gap_and_no_zero():
    found = lines()
    for line in found[::2]:
        del line["reward/hard"]
    line = labelled(policy_charts(found)["reward.png"]().axes[0])["hard"]
    assert list(line.get_xdata()) == list(range(2, 21, 2))


def test_the_curriculum_shows_the_drawn_tasks_by_environment_under_the_falling_target():
    axes = policy_charts(lines())["curriculum.png"]().axes
    assert [axis.get_title("left") for axis in axes[:3]] == ["all environments", "easy", "hard"]
    for axis in axes[:3]:
        target = labelled(axis)["target mean"].get_ydata()
        assert (target[0], target[-1]) == (0.75, 0.25)
        # Drawn tasks lie in the bin of the target: their mean is within half of a bin's width.
        drawn = labelled(axis)["drawn tasks, mean"].get_ydata()
        assert max(abs(a - b) for a, b in zip(drawn, target, strict=True)) < 0.1
    for axis in axes[1:3]:
        shares = axis.images[0].get_array().filled()
        assert shares.shape == (10, 20)
        assert shares.sum(0) == pytest.approx([1.0] * 20)
        assert (shares[7, 0], shares[2, 19]) == (1.0, 1.0)
        assert axis.images[0].get_extent() == [0.5, 20.5, 0, 1]


def test_many_steps_share_columns_and_a_resting_environment_is_empty():
    found = lines(200)
    for line in found[100:]:
        del line["drawn_bins"]["hard"]
    shares = policy_charts(found)["curriculum.png"]().axes[2].images[0].get_array().filled()
    assert shares.shape[1] == 60
    assert shares.sum(0) == pytest.approx([1.0] * 30 + [0.0] * 30)


def test_a_run_without_a_profile_has_no_chart_of_the_curriculum_and_one_without_rewards_none():
    uniform = [{n: v for n, v in line.items() if "drawn" not in n and n != "target_mean"} for line in lines()]
    assert list(policy_charts(uniform)) == ["reward.png", "rollouts.png"]
    assert policy_charts([{"kind": "train", "step": 1, "tokens": 1, "loss": 2.0}]) == {}


def test_shares_that_are_all_zero_lie_on_the_axis():
    axes = {axis.get_ylabel(): axis for axis in policy_charts(lines(masked_tokens=0.0))["rollouts.png"]().axes}
    assert axes["share"].get_ylim()[0] == 0
    assert axes["nats"].get_yscale() == "log"


def test_a_judges_feedback_has_a_chart_of_scores_lengths_and_what_these_add():
    terms = {"think_adjustment": 0.3, "answer_adjustment": 0.1, "think_bonus": 0.05, "answer_bonus": 0.02}
    found = lines(quality=3.5, think_tokens=40.0, final_tokens=5.0, **terms)
    axes = policy_charts(found)["feedback.png"]().axes
    assert [axis.get_ylabel() for axis in axes] == ["score, 1 to 5", "tokens", "reward"]
    assert [len(labelled(axis)) for axis in axes] == [1, 2, 4]
    assert max(labelled(axes[1])["reasoning"].get_ydata()) == pytest.approx(40)
    assert "feedback.png" not in policy_charts(lines())
