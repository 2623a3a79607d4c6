"""A database as web2py applications have them: made by pyDAL's defaults, and by hands over the years."""

from __future__ import annotations

from itertools import count
from tempfile import TemporaryDirectory
from typing import Any

from pydal import DAL, Field

from support.servers.admin import Servers

_numbers = count(1)


def legacy(here: Servers, *, tidy: bool = False) -> tuple[str, str]:
    """Make one on the primary s0, with rows; return its name and its URI.

    Args:
        tidy: leave out what only old hands do: MyISAM, tables without ids, triggers.
    """
    name = f"legacy{next(_numbers)}"
    here.sql("s0", f"CREATE DATABASE {name} CHARACTER SET utf8mb3")
    uri = here.config()["shards"]["s0"]["primary"].replace("/shop", f"/{name}").replace("utf8mb4", "utf8")
    with TemporaryDirectory() as folder:  # of the .table files
        db = DAL(uri, folder=folder)
        tables(db)
        fill(db)
        db.commit()
        db.close()
    if not tidy:
        here.sql("s0", f"USE {name}; {BY_HAND}")
    return name, uri


def tables(db: Any, kind: str = "") -> None:
    """Define the application's tables, as its models/db.py does."""
    db.define_table("auth_user", Field("email", unique=True))
    db.define_table("country", Field("name"))
    db.define_table("customer", Field("name", unique=True), Field("country", "reference country"))
    db.define_table(
        "purchase",
        Field("customer", "reference customer"),
        Field("note", "text"),
        Field("price", "decimal(10,2)"),
        Field("created_by", "reference auth_user"),
    )
    extra = [Field("customer", "bigint")] if kind == "adopted" else []
    db.define_table("item", Field("purchase", "reference purchase"), Field("qty", "integer"), *extra)


def fill(db: Any) -> None:
    """Put rows in, an umlaut among them."""
    user = db.auth_user.insert(email="clerk@example.com")
    country = db.country.insert(name="Österreich")
    for number in range(5):
        customer = db.customer.insert(name=f"Käufer {number}", country=country)
        purchase = db.purchase.insert(customer=customer, note="größer", price="9.99", created_by=user)
        for qty in (1, 2):
            db.item.insert(purchase=purchase, qty=qty)


BY_HAND = """
CREATE TABLE visit (id INT NOT NULL AUTO_INCREMENT PRIMARY KEY, customer INT NOT NULL DEFAULT 1 COMMENT 'who''s here',
    page VARCHAR(100), at DATETIME) ENGINE=MyISAM CHARACTER SET utf8mb3;
INSERT INTO visit (customer, page) VALUES (1, '/'), (2, '/größer');
CREATE TABLE tag (customer INT NOT NULL, word VARCHAR(20) NOT NULL, PRIMARY KEY (customer, word)) ENGINE=InnoDB;
INSERT INTO tag VALUES (1, 'new'), (1, 'vip');
CREATE TABLE hits (page VARCHAR(100), n INT) ENGINE=InnoDB;
INSERT INTO hits VALUES ('/', 7);
CREATE TABLE audit (what VARCHAR(100), id INT NOT NULL) ENGINE=InnoDB;
INSERT INTO audit VALUES ('begin', 1);
SET sql_mode = '';
CREATE TABLE old (id INT NOT NULL AUTO_INCREMENT PRIMARY KEY, word VARCHAR(255),
    born DATE NOT NULL DEFAULT '0000-00-00',
    kind ENUM('a','b') NOT NULL DEFAULT 'b', louder VARCHAR(255) AS (UPPER(word)) STORED, UNIQUE KEY (word))
    ENGINE=InnoDB ROW_FORMAT=COMPACT CHARACTER SET utf8mb3;
INSERT INTO old (word) VALUES ('größer');
CREATE TABLE numbered (page INT NOT NULL, n INT NOT NULL AUTO_INCREMENT, PRIMARY KEY (page, n)) ENGINE=MyISAM;
INSERT INTO numbered (page) VALUES (1), (1), (2);
CREATE TABLE auth_permission (id INT NOT NULL AUTO_INCREMENT PRIMARY KEY, name VARCHAR(50), table_name VARCHAR(50),
    record_id INT DEFAULT 0);
INSERT INTO auth_permission (name, table_name, record_id) VALUES ('update', 'purchase', 3), ('read', 'item', 0);
CREATE TABLE bookmark (id INT NOT NULL AUTO_INCREMENT PRIMARY KEY, item_ref INT, about INT, facebook_id INT, stars INT);
INSERT INTO bookmark (item_ref, about, facebook_id, stars) VALUES (1, 6, 90001, 1), (2, 7, 90002, 2), (3, 8, 90003, 1),
    (9, 9, 90004, 2), (10, 10, 90005, 1);
CREATE TABLE odd$name (id INT NOT NULL AUTO_INCREMENT PRIMARY KEY, customer INT);
CREATE VIEW spent AS SELECT customer.name, purchase.price FROM customer
    JOIN purchase ON purchase.customer = customer.id;
CREATE TRIGGER noted AFTER INSERT ON purchase FOR EACH ROW INSERT INTO hits VALUES ('purchase', 1);
"""
