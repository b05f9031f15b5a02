"""Programs that try to break out of the sandbox, all of them bounded by themselves; prints what became of each as JSON.

Started by test_sandbox.py as this user and as another; only the standard library, so that any Python can run it.
"""

import json
import os
import resource
import socket
import sys
import threading
import time
from pathlib import Path

from nano3.sandbox.limits import MIB, Limits, SandboxError
from nano3.sandbox.sandbox import Sandbox

LIMIT, CHILDREN = 8, 30
LIMITS = Limits(seconds=20.0, cpu_seconds=10, memory=256 * MIB, processes=LIMIT, file_bytes=MIB, folder_bytes=2 * MIB)
FORKS = f"""
import os, time
started = 0
for _ in range({CHILDREN}):
    try:
        if os.fork() == 0:
            time.sleep(20)
            os._exit(0)
        started += 1
    except OSError:
        pass
print(started)
"""
NESTED = f"""
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
print(libc.unshare(0x10000000))
{FORKS}
"""
NETWORK = """
import socket, sys
try:
    socket.create_connection(("127.0.0.1", int(sys.argv[1])), timeout=3)
    print("connected")
except OSError as error:
    print("refused", type(error).__name__)
"""
WRITES = """
import os
for path in ("/usr/x", "/x", "/etc/x", "/work/x", "/tmp/x", "/bin/x", "/dev/x", "/dev/pts/x", "/dev/shm/x"):
    try:
        open(path, "w", encoding="utf-8").write("x")
        print(path)
    except OSError:
        pass
"""
READS = """
import os, sys
for path in (sys.argv[1], "/etc/passwd", "/etc/shadow", "/root", "/home", "/sys", "/run", "/proc/1/environ"):
    try:
        found = os.listdir(path) if os.path.isdir(path) else open(path, encoding="utf-8").read()
        if found:
            print(path, found if path.startswith("/proc") else "")
    except OSError:
        pass
print(sorted(name for name in os.listdir("/proc") if name.isdigit())[-1], len(os.environ))
print([fd for fd in os.listdir("/proc/self/fd")])
"""
MADE_UP = """
import ctypes, os, stat, sys
libc, parent, sent = ctypes.CDLL(None), os.getppid(), 0
for fd in range(3, 64):
    ways = [lambda: os.open(f"/proc/{parent}/fd/{fd}", os.O_WRONLY)]
    ways.append(lambda: libc.syscall(438, os.pidfd_open(parent), fd, 0))  # pidfd_getfd
    for way in ways:
        try:
            own = way()
            if stat.S_ISFIFO(os.fstat(own).st_mode):
                sent = os.write(own, bytes.fromhex(sys.argv[1]) + bytes(1024))
                break
        except OSError:
            continue
print("wrote it" if sent else "no way")
"""
LEFT = """
import os, time
if os.fork() == 0:
    os.setsid()
    for fd in (0, 1, 2):
        os.close(fd)
    time.sleep(60)
    os._exit(0)
print("left")
"""


def sparse_header(size):
    """A tar header of 512 bytes that declares a file of `size` zeros."""
    header = bytearray(512)
    header[0:1], header[156:157], header[257:265] = b"x", b"S", b"ustar  \0"
    header[100:108], header[124:136], header[483:495] = b"0000644\0", b"0" * 11 + b"\0", b"%011o\0" % size
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


def main(secret):
    """Runs each."""
    sandbox = Sandbox(LIMITS)
    short = Limits(seconds=1.0, processes=LIMIT)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
        runs = {
            "hello": lambda: sandbox.run_python("import sys; print('hello', sys.stdin.read())", stdin=b"you"),
            "status": lambda: sandbox.run(["/bin/sh", "-c", "exit 3"]),
            "forks": lambda: sandbox.run_python(FORKS),
            "nested": lambda: sandbox.run_python(NESTED),
            "network": lambda: sandbox.run_python(NETWORK.replace("sys.argv[1]", port)),
            "writes": lambda: sandbox.run_python(WRITES),
            "reads": lambda: sandbox.run_python(READS.replace("sys.argv[1]", repr(secret))),
            "memory": lambda: sandbox.run_python("x = bytearray(2**30); print('had it')"),
            "file": lambda: sandbox.run_python("open('big', 'wb').write(bytes(8 << 20)); print('wrote it')"),
            "folder": lambda: sandbox.run_python(
                "for i in range(9):\n    open(str(i), 'wb').write(bytes(1 << 20))\nprint('wrote it')"
            ),
            "shared memory": lambda: sandbox.run_python(
                "for i in range(9):\n    open(f'/dev/shm/{i}', 'wb').write(bytes(1 << 20))\nprint('wrote it')"
            ),
            "output": lambda: sandbox.run_python("while True: print('x' * 9999)"),
            "busy": lambda: sandbox.run_python("while True: pass", limits=Limits(seconds=30.0, cpu_seconds=1)),
            "asleep": lambda: sandbox.run(["/bin/sleep", "60"], limits=short),
            "quiet": lambda: sandbox.run(["/bin/sh", "-c", "exec >&- 2>&-; sleep 60"], limits=short),
            "left": lambda: sandbox.run_python(LEFT),
            "forged": lambda: sandbox.run(["/bin/sh", "-c", "echo 'bwrap: no' >&2; exit 1"]),
        }
        found = {}
        for name, run in runs.items():
            started = time.monotonic()
            done = run()
            found[name] = {
                "end": done.end, "code": done.code, "out": done.stdout[:2000].decode(errors="replace"),
                "error": done.stderr[-300:].decode(errors="replace"), "size": len(done.stdout),
                "seconds": time.monotonic() - started,
            }  # fmt: skip
    found["made up"] = made_up(sandbox)
    found["left behind"] = left_behind(sandbox)
    found["together"] = together(sandbox)
    found["guard"] = vars(sandbox.guard) | {"root": os.geteuid() == 0}
    print(json.dumps(found))


def made_up(sandbox):
    """A program writes the archive of its files itself, with one that is said to have 256 MiB."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    source = MADE_UP.replace("sys.argv[1]", repr(sparse_header(256 * MIB).hex()))
    done = sandbox.run_python(source, keep_files=True)
    grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    return {"out": done.stdout.decode(), "files": sorted(done.files), "error": done.files_error, "grown": grown}


def left_behind(sandbox):
    """Processes of what ran before that are still there."""
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        left = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    command = (entry / "cmdline").read_bytes()
                except OSError:
                    continue
                if b".program.py" in command and str(os.getpid()).encode() not in command:
                    left.append(command.decode(errors="replace"))
        if not left:
            break
        time.sleep(0.05)
    return left


def together(sandbox):
    """Three at once, each nearly at its limit of processes: none takes another's room."""
    source = (
        "import os, time\nfor _ in range(4):\n    if os.fork() == 0:\n        time.sleep(1); os._exit(0)\nprint('all')"
    )
    found = []
    threads = [threading.Thread(target=lambda: found.append(sandbox.run_python(source).stdout)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [out.decode() for out in found]


if __name__ == "__main__":
    try:
        main(sys.argv[1])
    except SandboxError as error:
        print(json.dumps({"refused": str(error)}))
