"""`python -m nano3.eval.lm.harness ...`: the harness's own command line, with `--model nano3` known to it.

lm-eval up to 0.4.13 looks for models in its own package alone. The entry point `lm_eval.models` in pyproject.toml is
for what its developers have merged since (pull request 4013); no released version could be tried with it.
"""

from __future__ import annotations

import sys


def main() -> None:
    """Run `lm_eval` with the arguments of this process."""
    from lm_eval.__main__ import cli_evaluate

    import nano3.eval.lm.model  # noqa: F401 - registers the model

    sys.argv[0] = "lm_eval"
    cli_evaluate()


if __name__ == "__main__":
    main()
