"""I16: ids are unique and carry their bucket, also through forks and over a Redis that forgets everything."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from support.chance import SOAK
from support.oracle import nodes
from support.oracle.producer import environment
from support.oracle.trial import Trial

from pipeline import model

pytestmark = pytest.mark.mariadb

#: The parent makes an id before it forks, so that each child inherits a warm client and a block of ids; and signs its
#: receipt, so that not all children look for the secret at once.
FORKING = """
import json, os, sys
from pipeline.client import Client
from support.tables import define

config, owner, children, each = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
client, db = Client(config), define()
str(client.enqueue_insert(db.event, owner=owner, body="parent"))
pids = []
for child in range(children):
    pid = os.fork()
    if pid == 0:
        made = [client.enqueue_insert(db.event, owner=owner + i % 7, body=str(child)) for i in range(each)]
        os.write(1, json.dumps([[one.id, one.bucket, str(one)] for one in made]).encode() + b"\\n")
        client.bell.flush()
        os._exit(0)
    pids.append(pid)
assert all(os.waitpid(pid, 0)[1] == 0 for pid in pids)
"""


def test_sixteen_forked_processes_never_make_the_same_id(trial: Trial) -> None:
    rig, children, each = trial.rig, 16, 40 * SOAK
    owners = rig.owners(7)

    run = subprocess.run(
        [sys.executable, "-c", FORKING, str(rig.config), str(owners[0]), str(children), str(each)],
        env=environment(),
        stdout=subprocess.PIPE,
        timeout=120,
        check=True,
    )

    made = [entry for line in run.stdout.splitlines() for entry in json.loads(line)]
    assert len({id for id, _, _ in made}) == children * each
    assert all(model.bucket_of(id) == bucket for id, bucket, _ in made)
    assert {bucket for _, bucket, _ in made} == {rig.client.topology.bucket_of("event", owner) for owner in owners}
    rig.client.wait_all([rig.client.parse(text) for _, _, text in made])
    sql = f"SELECT id FROM event WHERE owner IN ({', '.join(map(str, owners))}) AND body <> 'parent'"
    stored = [id for uri in rig.primaries.values() for (id,) in nodes.rows(uri, sql)]
    assert sorted(stored) == sorted(id for id, _, _ in made)


#: Half of the processes make ids before Redis is emptied and after; the other half, which are new, after.
EMPTYING = """
import json, os, sys
from pipeline import clock
from pipeline.client import Client

config, children, each = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
client = Client(config)
client.row_ids.new(0, clock.wall_ms())
(ready, say_ready), (go_on, let_go) = os.pipe(), os.pipe()

def make():
    return [client.row_ids.new(n % 4, clock.wall_ms()) for n in range(each)]

def child(begin):
    made = begin()
    os.write(say_ready, b"x")
    os.read(go_on, 1)
    os.write(1, json.dumps(made + make()).encode() + b"\\n")
    os._exit(0)

def start(begin):
    pids = []
    for _ in range(children):
        pid = os.fork()
        if pid == 0:
            child(begin)
        pids.append(pid)
    got = 0
    while got < children:
        got += len(os.read(ready, children))
    return pids

pids = start(make)
client.log._client.flushall()
pids += start(list)
os.write(let_go, b"x" * len(pids))
assert all(os.waitpid(pid, 0)[1] == 0 for pid in pids)
"""


def test_sixty_old_and_sixty_new_processes_never_make_the_same_id_over_an_emptied_redis(trial: Trial) -> None:
    children, each = 60, 20 * SOAK

    run = subprocess.run(
        [sys.executable, "-c", EMPTYING, str(trial.rig.config), str(children), str(each)],
        env=environment(),
        stdout=subprocess.PIPE,
        timeout=120,
        check=True,
    )

    made = [id for line in run.stdout.splitlines() for id in json.loads(line)]
    assert len(set(made)) == len(made) == children * each * 3
    assert all(model.carries_bucket(id) and model.bucket_of(id) < 4 for id in made)
