"""The log over Redis or Valkey.

Every position in a log was given out by `enqueue.lua` on one lineage of the server (its `master_replid`), under an
epoch above every watermark; a server that restarted or was promoted takes nothing before a new epoch is raised.
"""

from __future__ import annotations

from pipeline.oplog.redis.appending import RedisAppending
from pipeline.oplog.redis.chores import RedisChores
from pipeline.oplog.redis.definitions import RedisDefinitions
from pipeline.oplog.redis.draining import RedisEntries, RedisWatermarks, RedisWork
from pipeline.oplog.redis.news import RedisNews


class RedisLog(RedisAppending, RedisDefinitions, RedisEntries, RedisWork, RedisWatermarks, RedisChores, RedisNews):
    """A `contract.Log`: all roles on the connections of one `Server`, whose arguments it takes.

    The roles inherit so that their methods are the log's own, as the contract wants them; none overrides another's.
    """
