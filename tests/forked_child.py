"""What a process of forked.py does: it becomes `python ARGUMENTS...` that writes to the streams it was given."""

import io
import os
import runpy
import sys
import types

# Given by forked.py.
arguments, environment, streams = (globals()[name] for name in ("arguments", "environment", "streams"))

for fd, stream in enumerate(streams, 1):
    os.dup2(stream.fileno(), fd)
    stream.close()
# As with PYTHONUNBUFFERED.
sys.stdout, sys.stderr = (io.TextIOWrapper(io.FileIO(fd, "w"), "utf-8", write_through=True) for fd in (1, 2))
# Charts take longer than the runs of tests.
charts = sys.modules["nano3.train.tracking.charts"]
charts.draw = lambda *given: []
os.environ.clear()
os.environ.update(environment)
if arguments[0] == "-c":
    sys.argv = ["-c", *arguments[2:]]
    sys.modules["__main__"] = module = types.ModuleType("__main__")
    exec(compile(arguments[1], "<string>", "exec"), module.__dict__)
else:
    sys.argv = list(arguments)
    sys.path.insert(0, os.path.dirname(arguments[0]))
    runpy.run_path(arguments[0], run_name="__main__")
