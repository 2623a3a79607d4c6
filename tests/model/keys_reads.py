"""A reader in the model of a key that has a shard of its own: it asks both shards for the key's row by its id alone.

On each shard it asks for the state, then for the row, then for the state once more, all on one node.
"""

from __future__ import annotations

from collections.abc import Iterator

from model.keys_values import NAMES, OWNED, Node, Place, Reader, State, less
from model.search import Move

#: What a reader asks for, in this order: of each shard the state, the row, the state again.
LOOKS = tuple((n, what) for what in ("state", "row", "state again") for n in (0, 1))


class Reads:
    """Reads that have to see what receipts have said before they began."""

    def __init__(self, off: frozenset[str]):
        self.off = off

    def moves(self, s: State, told: tuple[int, ...], place: Place) -> Iterator[Move]:
        """Let a reader begin, or take its next look.

        Args:
            s: the state.
            told: ops of the key that receipts call applied by now.
            place: of the last op that receipts call applied by now: the reader's token.
        """
        if s.reader is None:
            if s.left.reads and told:
                for nodes in ((0, 0), (0, 1), (1, 0), (1, 1)):
                    begun = s._replace(reader=Reader(nodes, told, place), left=less(s, "reads"))
                    yield Move(f"a reader of the nodes {nodes} begins", begun, work=False)
            return
        reader = s.reader
        if len(reader.found) == len(LOOKS):
            yield Move("the reader has its answer", s._replace(reader=None, fault=self._fault(reader)))
            return
        n, what = LOOKS[len(reader.found)]
        if n == 1 and not self._on("read both"):
            yield Move("the reader does not ask B", s._replace(reader=reader.noted(())))
            return
        node = s.shards[n][reader.nodes[n]]
        if what == "state" and self._behind(n, node, reader.place):
            yield Move(f"the reader finds {NAMES[n]} behind, and begins anew", s._replace(reader=None))
        elif what == "row":
            yield Move(f"the reader has the row of {NAMES[n]}", s._replace(reader=reader.noted(node.key.rows)))
        else:
            serves = (int(node.piece == OWNED), int(node.stopped), node.move * self._on("moves behind"))
            yield Move(f"the reader has the state of {NAMES[n]}", s._replace(reader=reader.noted(serves)))

    def _behind(self, n: int, node: Node, place: Place) -> bool:
        """Whether a node has not passed the reader's token. It is of the bucket's log, and so of both shards."""
        mark = node.others.mark if n == 0 else node.key.mark
        counts = n == 0 or (node.piece == OWNED and self._on("token of both"))
        return counts and mark < place

    def _fault(self, reader: Reader) -> str:
        """Return what is wrong with an answer; the empty text where it is right, or refused and asked for again."""
        before, rows, behind = (reader.found[2 * at : 2 * at + 2] for at in range(3))
        serve = [n for n in (0, 1) if before[n][:1] == (1,)]
        if self._on("states behind") and behind != before:
            return ""
        if not self._on("rows of owner"):
            serve = [n for n in (0, 1) if rows[n]]
        elif len(serve) == 2:  # one has stopped, and the other has begun
            serve = [n for n in serve if before[n][:2] == (1, 0)]
        if len(serve) > 1:
            return f"the reader has the row twice: {rows}"
        if not serve and self._on("read both"):
            return ""
        seen = rows[serve[0]] if serve else ()
        missed = [op for op in reader.told if op not in seen]
        return f"the reader misses {missed}" if missed else ""

    def _on(self, rule: str) -> bool:
        return rule not in self.off
