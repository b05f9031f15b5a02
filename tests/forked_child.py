"""What a process of forked.py does: it becomes `python ARGUMENTS...` that writes to the streams it was given."""

import io
import os
import runpy
import sys
import types

# Given by forked.py.
arguments, environment, streams = (globals()[name] for name in ("arguments", "environment", "streams"))
folder, charts = (globals()[name] for name in ("folder", "charts"))

for fd, stream in enumerate(streams, 1):
    os.dup2(stream.fileno(), fd)
    stream.close()
# As with PYTHONUNBUFFERED.
sys.stdout, sys.stderr = (io.TextIOWrapper(io.FileIO(fd, "w"), "utf-8", write_through=True) for fd in (1, 2))
if not charts:
    sys.modules["nano3.train.tracking.charts"].draw = lambda *given: []
os.chdir(folder)
os.environ.clear()
os.environ.update(environment)
if arguments[0] == "-c":
    sys.argv = ["-c", *arguments[2:]]
    sys.modules["__main__"] = module = types.ModuleType("__main__")
    exec(compile(arguments[1], "<string>", "exec"), module.__dict__)
elif arguments[0] == "-m":
    sys.argv = list(arguments[1:])
    runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
else:
    sys.argv = list(arguments)
    sys.path.insert(0, os.path.dirname(arguments[0]))
    runpy.run_path(arguments[0], run_name="__main__")
