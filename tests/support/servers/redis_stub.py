"""A server that says what the test tells it to: for what a real Redis does only when it is ill."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable

#: In the place of a reply: the connection is closed.
HANG_UP = b""


class Stub:
    """Takes connections; answers each command with the next of its replies, piece by piece.

    Attributes:
        before: called before each answer.
        taken: how many connections there were; `open`: how many there are.
    """

    def __init__(self) -> None:
        self.replies: list[tuple[bytes, ...]] = []
        self.before: Callable[[], object] = lambda: None
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = self._server.getsockname()[1]
        self.taken = self.open = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._server.close()

    def _accept(self) -> None:
        while True:
            try:
                peer, _ = self._server.accept()
            except OSError:
                return
            peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.taken += 1
            threading.Thread(target=self._answer, args=(peer,), daemon=True).start()

    def _answer(self, peer: socket.socket) -> None:
        self.open += 1
        try:
            self._converse(peer)
        finally:
            self.open -= 1

    def _converse(self, peer: socket.socket) -> None:
        with peer:
            while asked := peer.recv(65536):
                self.before()
                greeting = b"+OK\r\n" * asked.count(b"SETINFO")  # the driver's; it may send several at once
                for piece in self.replies.pop(0) if not greeting and self.replies else (greeting or b"+OK\r\n",):
                    if piece == HANG_UP:
                        return
                    peer.sendall(piece)
