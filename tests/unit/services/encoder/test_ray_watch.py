"""The watch over Ray's processes, with sockets in their place."""

import socket
import subprocess
import sys
import threading

import psutil
import pytest

from fsr.encoder.serving.ray_watch import watch
from helpers.waiting import until


@pytest.fixture
def parts():
    with socket.create_server(("127.0.0.1", 0)) as gcs, socket.create_server(("127.0.0.1", 0)) as raylet:
        yield {"Ray's GCS": gcs, "Ray's raylet": raylet}


def start(parts):
    """A watch in a thread, the reasons that it gave, and the event that ends it."""
    reasons, over = [], threading.Event()
    addresses = {name: part.getsockname() for name, part in parts.items()}
    thread = threading.Thread(target=watch, args=(addresses, over, reasons.append, 0.01))
    thread.start()
    return thread, reasons, over


@pytest.mark.parametrize("name", ["Ray's GCS", "Ray's raylet"])
def test_watch_when_a_part_of_ray_is_gone_names_it(parts, name):
    thread, reasons, _ = start(parts)
    parts[name].close()
    thread.join(60)
    assert len(reasons) == 1 and reasons[0].startswith(f"{name} does not answer at 127.0.0.1:")


def test_watch_when_it_is_over_says_nothing(parts):
    """A part that is only busy takes its connections late."""
    thread, reasons, over = start(parts)
    for _ in range(3):
        connection, _ = parts["Ray's GCS"].accept()
        connection.close()
    over.set()
    thread.join(60)
    assert reasons == []


ENDS = """
import os, subprocess, sys
from fsr.encoder.serving.ray_watch import adopt_orphans, ray_has_ended

log, again = sys.argv[1:3]
with open(log, "a") as file:
    print(os.getpid(), sys.argv, os.environ["MARK"], len(os.listdir("/proc/self/fd")), file=file)
if "WORKER" in os.environ:  # this is the second start
    sys.exit(7)
adopt_orphans()
os.set_inheritable(os.open("/dev/null", os.O_RDONLY), True)
code = "import subprocess, sys, time; print(subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'], "
code += "start_new_session=True).pid, flush=True); time.sleep(600)"
raylet = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
os.environ["WORKER"] = raylet.stdout.readline().decode()
print(os.environ["WORKER"], end="", flush=True)
raylet.kill()
raylet.wait()
ray_has_ended("its raylet was killed", again == "again")
"""


@pytest.mark.parametrize(("again", "status"), [("again", 7), ("end", 1)])
def test_process_when_ray_has_ended_leaves_no_worker_and_starts_again_or_ends(tmp_path, monkeypatch, again, status):
    """The worker outlives its raylet, in a session of its own."""
    monkeypatch.setenv("MARK", "of the environment")
    command = [sys.executable, "-c", ENDS, str(tmp_path / "log"), again]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == status, done.stderr
    starts = (tmp_path / "log").read_text().splitlines()
    assert len(starts) == (2 if again == "again" else 1) and len(set(starts)) == 1
    assert ("error: Ray has ended: its raylet was killed; start the" in done.stderr) == (again == "end")
    until(lambda: ended(int(done.stdout.splitlines()[0])))


def ended(pid):
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
