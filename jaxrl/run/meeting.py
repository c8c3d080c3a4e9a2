"""Connects a run's processes before JAX starts, and detects when one of them has ended.

JAX's own service aborts in C++ if another process never joins, and notices an ended process only
when its heartbeats are overdue. So the processes connect over TCP first: each opens a connection to
process 0, at the address and port that JAX's service uses afterwards, and keeps it open. When a
process ends for any reason, the system closes its connections.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import selectors
import socket
import sys
import threading
import time
from typing import Any

from jaxrl.errors import RunError, UsageError

GRACE = 1.0  # seconds process 0 waits for others' messages; its end ends them all
_GOODBYE, _GO, _LOST = b".", b"go", b"lost"
_KEEPALIVE = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3}  # seconds and tries


class Meeting:
    """This process's connections to the other processes of a run.

    Attributes:
        number, count: the number of this process, and how many there are.
        lost: the number of a process that has ended, or None.
    """

    def __init__(self, number: int, count: int, connections: dict[int, socket.socket]) -> None:
        self.number, self.count = number, count
        self.lost: int | None = None
        self._connections = connections
        self._last_word = threading.Lock()  # held by the one thread that ends this process
        self._noticed = threading.Event()
        for connection in connections.values():
            connection.settimeout(None)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for name, value in _KEEPALIVE.items():
                if hasattr(socket, name):
                    connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
        threading.Thread(target=self._watch, daemon=True).start()
        atexit.register(self._leave)

    def line(self) -> str | None:
        """Return a line about a process that has just ended, or None if there is none."""
        self._noticed.wait(GRACE / 2)
        if self.lost is None:
            return None
        return f"process {self.lost} of this run has ended, and so does process {self.number}"

    def end(self, code: int, text: str) -> None:
        """Print a line and end this process, without a normal exit's wait for the others."""
        if not self._last_word.acquire(blocking=False):
            time.sleep(60)  # the other thread ends the process
        os.write(2, f"{text}\n".encode())
        if self.number == 0 and self._connections:
            time.sleep(GRACE)
            self._tell(_LOST + str(self.lost or 0).encode())
            time.sleep(GRACE / 5)
        sys.stdout.flush()
        os._exit(code)

    def _watch(self) -> None:
        with selectors.DefaultSelector() as selector:
            for number, connection in self._connections.items():
                selector.register(connection, selectors.EVENT_READ, number)
            while selector.get_map():
                for key, _ in selector.select():
                    peer: Any = key.fileobj
                    try:
                        data = peer.recv(64)
                    except OSError:
                        data = b""
                    if data.startswith(_GOODBYE):
                        selector.unregister(peer)
                        continue
                    lost = data.removeprefix(_LOST)
                    self._lose(int(lost) if lost.isdigit() else key.data)

    def _lose(self, number: int) -> None:
        self.lost = number
        self._noticed.set()
        if self.number == 0:
            self._tell(_LOST + str(number).encode())
            time.sleep(GRACE)  # this process may find the same reason itself
        name = os.path.basename(sys.argv[0])
        self.end(1, f"{name}: {self.line()}; start all again with --resume")

    def _tell(self, data: bytes) -> None:
        for connection in self._connections.values():
            try:
                connection.send(data)
            except OSError:
                continue

    def _leave(self) -> None:
        """Say goodbye at a normal exit; after an uncaught exception, just end."""
        if hasattr(sys, "last_value"):
            self.end(1, f"process {self.number} ends after this error")
        self._tell(_GOODBYE)


def meet(address: str, count: int, number: int, timeout: float) -> Meeting:
    """Wait until all processes have joined, and return their connections.

    Raises:
        UsageError: if two processes have the same number, or disagree on how many there are.
        RunError: if the port is taken, or a process is missing after ``timeout`` seconds.
    """
    host, _, port = address.rpartition(":")
    until = time.monotonic() + timeout
    if number == 0:
        return Meeting(0, count, _gather(int(port), count, until, timeout))
    while True:
        try:
            connection = _join(host.strip("[]"), int(port), until, number, count)
            return Meeting(number, count, {0: connection})
        except OSError as error:
            if time.monotonic() > until:
                raise RunError(
                    f"process {number} found no process 0 at {address} within {timeout:.0f} s: "
                    f"{error.strerror or error}"
                ) from None
        time.sleep(0.1)


def _gather(port: int, count: int, until: float, timeout: float) -> dict[int, socket.socket]:
    """Return the connections to processes 1, 2, ... once all have joined."""
    dual = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if dual else socket.AF_INET
    try:
        server = socket.create_server(("", port), family=family, dualstack_ipv6=dual)
    except OSError as error:
        raise RunError(
            f"process 0 cannot open port {port}: {error.strerror}; give another"
        ) from None
    found: dict[int, socket.socket] = {}
    with server, contextlib.ExitStack() as opened:
        while len(found) < count - 1:
            missing = [str(n) for n in range(1, count) if n not in found]
            server.settimeout(_left(until))
            try:
                connection, _ = server.accept()
            except TimeoutError:
                raise RunError(
                    f"process {', '.join(missing)} of {count} did not join within {timeout:.0f} s"
                ) from None
            opened.callback(connection.close)
            number, its_count = _greeting(connection)
            if number is None:  # not a process of this run
                continue
            if its_count != count or not 0 < number < count or number in found:
                raise UsageError(
                    f"a process says that it is number {number} of {its_count}, and this is "
                    f"number 0 of {count}; give each another number, and all the same count"
                )
            found[number] = connection
        for connection in found.values():
            connection.sendall(_GO)
        opened.pop_all()  # the connections stay
    return found


def _greeting(connection: socket.socket) -> tuple[int | None, int | None]:
    connection.settimeout(5.0)
    try:
        number, its_count = json.loads(connection.recv(64))
        return int(number), int(its_count)
    except (OSError, ValueError, TypeError):
        return None, None


def _join(host: str, port: int, until: float, number: int, count: int) -> socket.socket:
    """Return a connection to process 0 once all have joined."""
    connection = socket.create_connection((host, port), _left(until))
    connection.sendall(json.dumps([number, count]).encode())
    connection.settimeout(_left(until))
    try:
        answer = connection.recv(len(_GO))
    except TimeoutError:
        raise RunError("some process did not join in time; process 0 says which") from None
    if answer != _GO:
        connection.close()
        raise RunError("process 0 ended before all others joined; its own message says why")
    return connection


def _left(until: float) -> float:
    return max(until - time.monotonic(), 0.01)
