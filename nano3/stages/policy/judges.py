"""The judges of a run: its own and that of held-out prompts, opened and tried before its first weight is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from nano3.config.rlhf import RlhfConfig
from nano3.data.tokens.tokenizer import Tokenizer
from nano3.reading import read_toml
from nano3.rl.feedback.comparison import PairJudge
from nano3.rl.feedback.open import heldout_judge, judged_as, length_control, open_judge
from nano3.rl.feedback.reward import OFF
from nano3.rl.feedback.scoring import Feedback, Patience
from nano3.rl.feedback.trial import try_judge
from nano3.rl.training.domains import Domain
from nano3.stages.new_run import CONFIG
from nano3.stages.run_folder import say
from nano3.train.signals import stop_requested
from nano3.train.world import World, attempt


class Judges:
    """Opens them."""

    heldout: Feedback
    """With the judge of held-out prompts, without length control."""
    heldout_spec: str

    def __init__(self, run_dir: Path) -> None:
        """`run_dir`: the run folder, which may not exist yet."""
        self._run_dir = run_dir

    def open(self, cfg: RlhfConfig, tokenizer: Tokenizer, world: World, domains: Mapping[str, Domain]) -> Feedback:
        """What gives rewards by the run's judge; `heldout` and `heldout_spec` are there from now on. Every rank must
        call. A judge with which the run began before is not tried again: it is waited for where it does not answer.

        Raises:
            UserError: a judge that cannot be opened, does not answer or cannot be read; on all ranks.
        """
        own, self.heldout_spec = cfg.judge.spec, heldout_judge(cfg.judge, cfg.heldout.judge, cfg.prompts)
        judges: dict[str, PairJudge] = {}

        def open_all() -> None:
            judges[own] = self._opened(cfg, own, "--judge", domains, world)
            if cfg.heldout.tasks and self.heldout_spec != own:
                judges[self.heldout_spec] = self._opened(cfg, self.heldout_spec, "heldout.judge", domains, world)

        world.agree(attempt(open_all))
        patience = Patience(cfg.judge.tries, cfg.judge.wait, say, stop=stop_requested)
        names = judged_as(cfg.prompts)
        self.heldout = Feedback(judges.get(self.heldout_spec, judges[own]), tokenizer, OFF, names, patience)
        return Feedback(judges[own], tokenizer, length_control(cfg.length_control), names, patience)

    def _opened(
        self, cfg: RlhfConfig, spec: str, option: str, domains: Mapping[str, Domain], world: World
    ) -> PairJudge:
        judge, sizes = open_judge(spec, cfg.judge, self._run_dir, world.device, option)
        if world.is_main:
            say(sizes)
            prompts = ((name, task) for name, domain in domains.items() for task in domain.train.values())
            if spec not in self._known():
                try_judge(judge, cfg.judge, prompts)
        return judge

    def _known(self) -> set[str]:
        """Specs of the judges with which the run began; none where it is new."""
        try:
            before = read_toml(self._run_dir / CONFIG)
            return {before["judge"]["spec"], before.get("heldout", {}).get("judge", "")}
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            return set()
