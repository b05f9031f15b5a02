"""Steps that ask a language model: prompts, answers, the cache of a task, what a run will cost."""
