"""What a process takes: memory at its peak, threads, files, connections."""

from pathlib import Path

import psutil

__all__ = ["Footprint"]

MIB = 2**20


class Footprint:
    """Watches one process. Memory is the resident set, in MiB."""

    def __init__(self, process: psutil.Process) -> None:
        self.process = process

    def reset_peak(self) -> None:
        """From now on the kernel notes the peak anew."""
        Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")

    @property
    def peak(self) -> float:
        """Most memory since `reset_peak`, also of a moment that nobody saw."""
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024

    @property
    def memory(self) -> float:
        return self.process.memory_info().rss / MIB

    @property
    def threads(self) -> int:
        return self.process.num_threads()

    @property
    def files(self) -> int:
        return self.process.num_fds()

    def cpu_seconds(self) -> float:
        times = self.process.cpu_times()
        return times.user + times.system
