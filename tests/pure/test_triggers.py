"""What a user's grants let it see of triggers, and which trigger may call a routine."""

from __future__ import annotations

import pytest

from pipeline.shard.table_facts import _calls, may_see_triggers

USAGE = "GRANT USAGE ON *.* TO `worker`@`%` IDENTIFIED BY PASSWORD '*6BB4837EB74329105EE4568DDA7DC67ED2CA2AD9'"


@pytest.mark.parametrize(
    "grants",
    [
        ["GRANT ALL PRIVILEGES ON *.* TO `root`@`localhost` WITH GRANT OPTION"],
        ["GRANT SELECT, INSERT, TRIGGER, CREATE ROLE ON *.* TO `root`@`localhost`"],
        [USAGE, "GRANT SELECT, INSERT, UPDATE, DELETE, TRIGGER ON `shop`.* TO `worker`@`%`"],
        [USAGE, "GRANT ALL PRIVILEGES ON `shop`.* TO `worker`@`%`"],
        [USAGE, "GRANT ALL PRIVILEGES ON `sh%`.* TO `worker`@`%`"],
        [USAGE, "GRANT TRIGGER ON `s_op`.* TO `worker`@`%`"],
        [USAGE, "GRANT `writer` TO `worker`@`%`", "GRANT TRIGGER ON `shop`.* TO `writer`"],
        [USAGE, "GRANT SELECT ON `shop`.* TO `worker`@`%`", "GRANT TRIGGER ON `shop`.* TO `writer`"],
    ],
)
def test_triggers_are_seen_with_the_privilege_on_the_database_or_on_all(grants: list[str]):
    assert may_see_triggers(grants, "shop")


@pytest.mark.parametrize(
    "grants",
    [
        [],
        [USAGE],
        [USAGE, "GRANT SELECT, INSERT, UPDATE, DELETE ON `shop`.* TO `worker`@`%`"],
        [USAGE, "GRANT ALL PRIVILEGES ON `other`.* TO `worker`@`%`"],
        [USAGE, "GRANT ALL PRIVILEGES ON `shop2`.* TO `worker`@`%`"],
        [USAGE, r"GRANT ALL PRIVILEGES ON `s\_op`.* TO `worker`@`%`"],
        [USAGE, "GRANT TRIGGER ON `shop`.`purchase` TO `worker`@`%`"],
        [USAGE, "GRANT SELECT (`TRIGGER`) ON `shop`.`purchase` TO `worker`@`%`"],
        [USAGE, "GRANT SELECT ON `shop`.* TO `worker`@`%`", "GRANT TRIGGER ON `sh%`.* TO `worker`@`%`"],
        [USAGE, "GRANT TRIGGER ON `sh%`.* TO `worker`@`%`", "GRANT SELECT ON `s%`.* TO `worker`@`%`"],
        ["GRANT SELECT, TRIGGER ON *.* TO `worker`@`%`", "REVOKE TRIGGER ON `shop`.* FROM `worker`@`%`"],
        ["words of a server of the future"],
    ],
)
def test_triggers_are_not_seen_without_and_in_doubt(grants: list[str]):
    assert not may_see_triggers(grants, "shop")


def test_an_underscore_in_a_name_is_that_where_the_grant_says_so():
    assert may_see_triggers([r"GRANT TRIGGER ON `my\_shop`.* TO `worker`@`%`"], "my_shop")
    assert not may_see_triggers([r"GRANT TRIGGER ON `my\_shop`.* TO `worker`@`%`"], "myxshop")


@pytest.mark.parametrize(
    "body",
    [
        "INSERT INTO log (who, at) VALUES (NEW.who, NOW())",
        "INSERT INTO `log`(who) SELECT COALESCE(MAX(n), 0) FROM `log` WHERE who IN (1, 2)",
        "SET NEW.name = UPPER(TRIM(NEW.name))",
        "IF (NEW.n > 1) THEN UPDATE shop.log SET n = CAST(NEW.n AS DECIMAL(10,2)); END IF",
    ],
)
def test_a_body_of_tables_and_the_servers_own_functions_calls_nothing(body: str):
    assert not _calls(body, ["log"])


@pytest.mark.parametrize(
    "body",
    [
        "CALL tell(NEW.id)",
        "call `tell`",
        "SET NEW.n = counted(NEW.id)",
        "SET NEW.n = `counted` (NEW.id)",
        "SET NEW.n = shop.counted(NEW.id)",
        "SET NEW.n = other.concat(NEW.id)",
    ],
)
def test_a_body_that_may_call_a_routine_is_told_without_seeing_routines(body: str):
    assert _calls(body, ["log"])
