"""Which settings of a replica keep it from showing what its primary has."""

from __future__ import annotations

import pytest

from pipeline.shard.survey.mysql import Traits, differences

PRIMARY = Traits(
    "shop", {"read_only": "off"}, clock="12:00", collations={"": "utf8mb4_bin", "sale.note": "utf8mb4_bin"}
)
REPLICA = PRIMARY._replace(settings={"read_only": "on", "slave_exec_mode": "strict"}, replicates=True)


def found(replica: Traits, primary: Traits = PRIMARY) -> dict[str, bool]:
    """Return the places at which a replica differs, and whether it has to be rebuilt for each."""
    return {one.place: one.lasting for one in differences(replica, primary)}


def with_settings(**settings: str) -> Traits:
    return REPLICA._replace(settings={**REPLICA.settings, **settings})


def test_a_replica_as_it_should_be_has_no_difference() -> None:
    assert found(REPLICA) == {}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("replicate_do_db", "blog,forum"),
        ("replicate_ignore_db", "mysql,shop"),
        ("replicate_do_table", "shop.sale"),
        ("replicate_ignore_table", "blog.post,shop.sale"),
        ("replicate_wild_do_table", "shop.s%"),
        ("replicate_wild_do_table", "blog.%"),
        ("replicate_wild_ignore_table", "sh%.tmp%"),
        ("replicate_wild_ignore_table", "s_op.%"),
        ("replicate_rewrite_db", "shop->store"),
        ("replicate_do_domain_ids", "1"),
        ("replicate_ignore_domain_ids", "0"),
        ("slave_exec_mode", "idempotent"),
        ("replica_exec_mode", "idempotent"),
        ("slave_skip_errors", "1062,1032"),
        ("replica_skip_errors", "all"),
    ],
)
def test_what_may_leave_rows_out_is_found_and_lasts(name: str, value: str) -> None:
    assert found(with_settings(**{name: value})) == {name: True}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("replicate_do_db", "shop, blog"),
        ("replicate_ignore_db", "mysql"),
        ("replicate_ignore_table", "mysql.user"),
        ("replicate_wild_do_table", "blog.%,shop.%"),
        ("replicate_wild_ignore_table", "mysql.%,sys\\_x.%"),
        ("replicate_rewrite_db", "blog->weblog"),
        ("slave_exec_mode", "strict"),
        ("slave_skip_errors", "off"),
        ("replicate_events_marked_for_skip", "replicate"),
    ],
)
def test_what_leaves_out_only_other_databases_is_no_fault(name: str, value: str) -> None:
    assert found(with_settings(**{name: value})) == {}


def test_a_table_that_one_filter_lets_in_is_in_whatever_the_other_names() -> None:
    assert found(with_settings(replicate_do_table="shop.sale", replicate_wild_do_table="shop.%")) == {}


@pytest.mark.parametrize("replicates", [True, None])
def test_a_replica_that_takes_writes_beside_its_primary_is_found(replicates: bool | None) -> None:
    assert found(with_settings(read_only="0")._replace(replicates=replicates)) == {"read_only": False}


def test_a_node_that_takes_writes_is_no_fault_where_it_was_promoted_or_the_primary_takes_none() -> None:
    writable = with_settings(read_only="off")

    assert found(writable._replace(replicates=False)) == {}
    assert found(writable, PRIMARY._replace(settings={"read_only": "on"})) == {}


def test_another_time_zone_and_another_collation_are_found() -> None:
    assert found(REPLICA._replace(clock="13:00")) == {"time_zone": False}
    other = REPLICA._replace(
        collations={"": "utf8mb4_bin", "sale.note": "latin1_swedish_ci", "sale.new": "utf8mb4_bin"}
    )
    assert found(other) == {"collation of sale.note": False}
    assert found(REPLICA._replace(collations={"": "latin1_swedish_ci"})) == {"collation of the database": False}
