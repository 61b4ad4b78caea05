"""The services where nothing can be written but /tmp, which is the home folder too, and /dev/shm, as on Kubernetes."""

import os
import subprocess
import sys
import time

import pytest

pytestmark = [pytest.mark.cluster, pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount")]
# A namespace of its own: the mounts end with the process.
LOCK = """
set -e
mount -t tmpfs tmpfs /tmp
for folder in $(findmnt --noheadings --output TARGET --target / --target "$PWD" | sort -u); do
    mount -o remount,ro,bind "$folder"
done
if touch "$PWD/written" /root/written /var/written 2>/dev/null; then echo "error: something is writable" >&2; exit 3; fi
exec "$@"
"""


@pytest.mark.timeout(900)
@pytest.mark.parametrize("service", ["gateway", "decoder", "encoder"])
def test_service_starts_where_only_tmp_is_writable(service, free_ports, tmp_path):
    port = free_ports(3)
    options = ["--port", str(port), "--metrics-port", str(port + 1)]
    command = ["unshare", "--mount", "--propagation", "private", "bash", "-c", LOCK, "lock"]
    command += [sys.executable, "-m", f"fsr.{service}", *options]
    log = (tmp_path / "log").open("w+")
    process = subprocess.Popen(command, env=os.environ | {"HOME": "/tmp"}, stdout=log, stderr=log)
    probe = [sys.executable, "-m", "fsr.common.health", f"127.0.0.1:{port}"]
    probe += ["--ray-serve"] if service == "encoder" else []
    try:
        end = time.monotonic() + 600
        while True:
            check = subprocess.run(probe, capture_output=True, text=True)
            # A gateway without encoder and decoders answers that it is not ready.
            if not check.returncode or (service == "gateway" and "NOT_SERVING" in check.stderr):
                break
            assert process.poll() is None, (tmp_path / "log").read_text()
            assert time.monotonic() < end, check.stderr
            time.sleep(0.5)
    finally:
        process.terminate()
        process.wait(300)  # a busy machine ends a Ray that starts only when it has started
        log.close()
