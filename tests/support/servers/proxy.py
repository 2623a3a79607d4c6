"""A TCP proxy that breaks a conversation on purpose: it pauses, cuts, lingers, or swallows an answer."""

from __future__ import annotations

import selectors
import socket
import threading
from contextlib import suppress
from types import TracebackType

LOOPBACK = "127.0.0.1"

#: How often an idle pump looks whether the proxy was closed.
LOOK_S = 0.2


class Proxy:
    """Listens on a port of its own and forwards to `target`, which may change between connections."""

    def __init__(self, target: int):
        self.target = target
        self.cuts = 0
        #: How long each piece from the server is kept back, s.
        self.delay_s = 0.0
        #: Whether of MySQL's packets that come together all but the first are dropped, as by a server that reads on
        #: only once it has answered.
        self.drops_others = False
        self._pattern, self._armed = b"", 0
        self._pausing_at = b""
        self._flowing = threading.Event()
        self._flowing.set()
        self._closed = threading.Event()
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._listener = socket.create_server((LOOPBACK, 0), backlog=64)
        self._listener.settimeout(LOOK_S)
        self.port: int = self._listener.getsockname()[1]
        self._threads = [threading.Thread(target=self._accept, name=f"proxy-{target}", daemon=True)]
        self._threads[0].start()

    def __enter__(self) -> Proxy:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def swallow_answers(self, request: bytes, times: int) -> None:
        """Let the next *times* requests that contain the bytes through, but cut the line when their answer comes."""
        with self._lock:
            self._pattern, self._armed = request, times

    def pause(self) -> None:
        """Keep every byte back, with all connections open: a network that swallows packets."""
        self._flowing.clear()

    def pause_at(self, request: bytes) -> None:
        """Pause as soon as a request contains the bytes: that one is the first which gets no answer."""
        self._pausing_at = request

    def resume(self) -> None:
        """Let the bytes go that were kept back."""
        self._pausing_at = b""
        self._flowing.set()

    def cut(self) -> None:
        """Break all connections."""
        with self._lock:
            for end in self._open:
                with suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Stop, and break all connections."""
        self._closed.set()
        self.resume()
        self.cut()
        for thread in self._threads:
            thread.join(5)
        self._listener.close()

    def _accept(self) -> None:
        while not self._closed.is_set():
            try:
                client, _ = self._listener.accept()
            except TimeoutError:
                continue
            try:
                server = socket.create_connection((LOOPBACK, self.target), timeout=5)
            except OSError:
                client.close()
                continue
            thread = threading.Thread(target=self._pump, args=(client, server), name="proxy-pump", daemon=True)
            self._threads.append(thread)
            thread.start()

    def _pump(self, client: socket.socket, server: socket.socket) -> None:
        ends = (client, server)
        with self._lock:
            self._open.update(ends)
        try:
            with selectors.DefaultSelector() as selector, suppress(OSError):
                for end in ends:
                    end.settimeout(20)
                    end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    selector.register(end, selectors.EVENT_READ)
                self._forward(selector, client, server)
        finally:
            with self._lock:
                self._open.difference_update(ends)
            for end in ends:
                end.close()

    def _forward(self, selector: selectors.BaseSelector, client: socket.socket, server: socket.socket) -> None:
        asked, doomed = b"", False
        while not self._closed.is_set():
            for key, _ in selector.select(LOOK_S):
                end: socket.socket = key.fileobj  # type: ignore[assignment]
                piece = end.recv(1 << 16)
                self._flowing.wait()
                if not piece or (doomed and end is server):
                    return
                if end is server:
                    self._closed.wait(self.delay_s)
                    client.sendall(piece)
                    continue
                asked += piece
                if self._pausing_at and self._pausing_at in asked:
                    self.pause()
                    self._flowing.wait()
                doomed = doomed or self._dooms(asked)
                # packets may cut a pattern in two
                asked = asked[-64:]
                server.sendall(piece[: 4 + int.from_bytes(piece[:3], "little")] if self.drops_others else piece)

    def _dooms(self, request: bytes) -> bool:
        with self._lock:
            if self._armed and self._pattern in request:
                self._armed -= 1
                self.cuts += 1
                return True
            return False
