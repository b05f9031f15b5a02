"""RULER without downloads, to any length: samples by task, length, index and seed, and the reference's scores.

sources = Sources()
sample = make_sample("niah_single_1", 4096, 0, 0, lambda text: len(tokenizer.encode(text)), sources)
score(sample.task, model(sample.prompt), sample.references)
"""

from nano3.eval.ruler.sample import CountTokens, Sample, TooShort
from nano3.eval.ruler.sources import Sources
from nano3.eval.ruler.tasks import TASKS, Task, find_task, make_sample, score

__all__ = ["TASKS", "CountTokens", "Sample", "Sources", "Task", "TooShort", "find_task", "make_sample", "score"]
