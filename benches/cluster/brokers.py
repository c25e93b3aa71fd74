"""Brokers and nodes of the measurements. Needs redis-server, or nats-server; both can be installed with
tests/peers/install. Streams need the nats-server of `tests/peers/install python`, since Debian's is too old."""

import os
import socket
import subprocess
import tempfile
import time
from pathlib import Path

NEW_NATS = Path(__file__).parents[2] / ".venv/bin/nats-server"
QUIET = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class Broker:
    """A running server, or several of NATS that replicate streams. Ends with the `with` statement."""

    def __init__(self, engine, keeps_streams, servers=1):
        self.directory = tempfile.TemporaryDirectory(prefix="deeperhub-bench-")
        os.environ["PATH"] += ":/usr/sbin"
        ports = [free_port() for _ in range(servers)]
        self.url = f"{engine}://" + ",".join(f"127.0.0.1:{port}" for port in ports)
        self.port = ports[0]
        if engine == "redis":
            commands = [["redis-server", "--bind", "127.0.0.1", "--port", str(self.port), "--save", ""]]
        else:
            commands = [self.nats(port, keeps_streams) for port in ports]
            if servers > 1:
                routes = [f"nats://127.0.0.1:{free_port()}" for _ in ports]
                for number, command in enumerate(commands):
                    command += ["--name", f"n{number}", "--cluster_name", "bench", "--cluster", routes[number]]
                    command += ["--routes", ",".join(routes)]
        self.processes = [subprocess.Popen(command, **QUIET) for command in commands]
        time.sleep(1 if servers == 1 else 10)

    def nats(self, port, keeps_streams):
        if not keeps_streams:
            return ["nats-server", "-a", "127.0.0.1", "-p", str(port)]
        return [str(NEW_NATS), "-a", "127.0.0.1", "-p", str(port), "-js", "-sd", f"{self.directory.name}/{port}"]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        stop(self.processes)
        self.directory.cleanup()


def stop(processes):
    for process in processes:
        process.kill()
        process.wait()


def cpu_seconds(process):
    """Returns the CPU time of all threads of a process. It has finer steps here than in /proc/PID/stat."""
    tasks = f"/proc/{process.pid}/task"
    nanoseconds = 0
    for task in os.listdir(tasks):
        with open(f"{tasks}/{task}/schedstat") as schedstat:
            nanoseconds += int(schedstat.read().split()[0])
    return nanoseconds / 1e9
