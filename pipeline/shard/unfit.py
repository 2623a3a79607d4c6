"""The replicas of a shard that were away for too long, as its primary remembers them."""

from __future__ import annotations

from pipeline.shard.ledger import text
from pipeline.shard.session import Session


def unfit_nodes(primary: Session) -> dict[str, int]:
    """Return each unfit node, and the wall clock at which it was last with its primary, ms."""
    return {str(node): int(ms) for node, ms in primary.query("SELECT node, since_ms FROM pipeline_unfit")}


def mark_unfit(primary: Session, node: str, since_ms: int) -> None:
    """Record a node as unfit; committed when this returns."""
    with primary.translated(), primary.transaction():
        primary.execute(
            f"INSERT INTO pipeline_unfit (node, since_ms) VALUES ({text(node)}, {since_ms})"
            + primary.dialect.on_conflict(["node"], ["since_ms"])
        )


def mark_fit(primary: Session, node: str) -> None:
    """Record a node as rebuilt."""
    with primary.translated(), primary.transaction():
        primary.execute(f"DELETE FROM pipeline_unfit WHERE node = {text(node)}")
