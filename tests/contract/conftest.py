"""Fixtures that several modules of this folder take."""

from __future__ import annotations

from support.sessions import other, session, shard, uri

__all__ = ["other", "session", "shard", "uri"]
