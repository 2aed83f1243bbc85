"""A task's grammar from its schema: SQLite can run what it lets through, and it lets through what people ask for."""

from __future__ import annotations

import random
import sqlite3

import llguidance
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coldstream.serve.sql.grammar import select_grammar
from coldstream.serve.sql.schema import read_schema

BYTES = llguidance.LLTokenizer("byte")
SHOP = (
    "CREATE TABLE customers (id INTEGER PRIMARY KEY, name TEXT, city VARCHAR(50), vip BOOLEAN);\n"
    "CREATE TABLE orders (id INT, customer_id INT, total DECIMAL(10, 2), placed_on DATE, note TEXT);\n"
    "INSERT INTO customers VALUES (1, 'Kim', 'Seoul', 1);"
)


def matcher(schema: str, question: str) -> llguidance.LLMatcher:
    grammar = select_grammar(schema, question)
    assert grammar is not None
    found = llguidance.LLMatcher(
        BYTES, grammar if grammar.startswith("%llguidance") else f"%llguidance {{}}\n{grammar}", log_level=0
    )
    assert not found.is_error(), found.get_error()
    return found


def lets_through(schema: str, question: str, answer: str) -> bool:
    found, text = matcher(schema, question), list(answer.encode())
    return found.try_consume_tokens(text) == len(text) and found.is_accepting()


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("How many orders?", "SELECT COUNT(*) FROM orders;"),
        ("orders over 1,500", "SELECT * FROM orders WHERE total > 1500;"),
        ("3만원 이상인 주문", "SELECT * FROM orders WHERE total >= 30000;"),
        ("the three largest orders", "SELECT * FROM orders ORDER BY total DESC LIMIT 3;"),
        ("가장 큰 주문 세 개", "SELECT * FROM orders ORDER BY total DESC LIMIT 3;"),
        ("customers in Paris or Rome", "SELECT * FROM customers WHERE city IN ('Paris', 'Rome');"),
        ("서울에 사는 고객", "SELECT * FROM customers WHERE city = '서울';"),
        ("who lives in seoul", "SELECT name FROM customers WHERE city = 'Seoul';"),
        ("orders since 2021", "SELECT * FROM orders WHERE strftime('%Y', placed_on) >= '2021';"),
        ("orders of March 2021", "SELECT * FROM orders WHERE strftime('%Y-%m', placed_on) = '2021-03';"),
        ("vip customers", "SELECT * FROM customers WHERE vip = 1;"),
        (
            "total per customer",
            "SELECT customers.name, SUM(orders.total) FROM customers JOIN orders ON customers.id = orders.customer_id "
            "GROUP BY customers.name;",
        ),
        (
            "customers without orders",
            "SELECT customers.name FROM customers LEFT JOIN orders ON customers.id = orders.customer_id "
            "WHERE orders.customer_id IS NULL;",
        ),
    ],
)
def test_what_people_ask_for_can_be_said(question: str, answer: str) -> None:
    assert lets_through(SHOP, question, answer)


@pytest.mark.parametrize(
    "answer",
    [
        "SELECT COUNT(*) FROM FROM orders;",
        "SELECT * FROM users;",
        "SELECT age FROM customers;",
        "SELECT SUM(city) FROM customers;",
        "SELECT * FROM orders WHERE total > 77;",
        "SELECT * FROM customers WHERE city = 'London';",
        "DELETE FROM orders;",
        "SELECT * FROM orders; DROP TABLE orders;",
    ],
)
def test_what_the_schema_and_the_question_do_not_have_cannot_be_said(answer: str) -> None:
    assert not lets_through(SHOP, "orders over 10 in Seoul", answer)


def walk(schema: str, question: str, seed: int) -> str | None:
    """A text of the grammar, drawn blindly; None where it became long."""
    chance, found, out = random.Random(seed), matcher(schema, question), bytearray()
    while not found.is_stopped() and len(out) < 600:
        mask = found.compute_bitmask()
        allowed = [byte for byte in range(256) if mask[byte // 8] >> byte % 8 & 1]
        if not allowed:
            break
        byte = chance.choice(allowed)
        out.append(byte)
        found.consume_token(byte)
    return bytes(out).decode() if found.is_accepting() else None


@given(seed=st.integers(0, 10**6))
@settings(max_examples=40, deadline=None)
def test_whatever_is_let_through_runs(seed: int) -> None:
    question = "orders over 10 of Kim's in Seoul since 2021, two of them, note 'x' %"
    text = walk(SHOP, question, seed)
    if text is None:
        return
    with sqlite3.connect(":memory:") as database:
        database.executescript(SHOP)
        database.execute(text).fetchall()


NAMES = st.from_regex(r"[A-Za-z][A-Za-z_]{2,8}", fullmatch=True).filter(
    lambda name: not sqlite3.complete_statement(name)
)
TYPES = st.sampled_from(
    ["", "INT", "TEXT", "varchar(20)", "DECIMAL(10, 2)", "DATE", "BOOLEAN NOT NULL DEFAULT 0", "REAL CHECK (1 > 0)"]
)


@given(table=NAMES, columns=st.dictionaries(NAMES.map(str.lower), TYPES, min_size=1, max_size=6))
@settings(max_examples=60, deadline=None)
def test_tables_and_columns_are_read_as_sqlite_reads_them(table: str, columns: dict[str, str]) -> None:
    text = f"CREATE TABLE {table} ({', '.join(f'{name} {type_}' for name, type_ in columns.items())});"
    with sqlite3.connect(":memory:") as database:
        try:
            database.executescript(text)
        except sqlite3.Error:
            return  # a word that SQL keeps for itself
        names = [row[1] for row in database.execute(f"PRAGMA table_info({table})")]
    read = read_schema(text)
    assert read is not None
    assert [table] == [found.name for found in read.tables]
    assert [column.name for column in read.tables[0].columns] == names


@given(text=st.text(alphabet="CREATE TABLE(),;'\"`[]abx1 \n", max_size=200))
@settings(max_examples=100, deadline=None)
def test_any_text_is_read_or_is_none(text: str) -> None:
    read_schema(f"CREATE TABLE t ({text}")
    select_grammar(f"CREATE TABLE t (a INT, {text})", text)


def test_what_shows_no_table_leaves_the_model_free() -> None:
    assert select_grammar("a table of customers", "how many?") is None


def test_an_elided_schema_has_its_table() -> None:
    assert lets_through("CREATE TABLE Donor (...)", "How many donors are there?", "SELECT COUNT(*) FROM Donor;")


def test_a_schema_that_opens_the_same_table_again_and_again_is_not_read() -> None:
    assert read_schema("CREATE TABLE a (" * 12) is not None
    assert read_schema("CREATE TABLE a (" * 4000) is None  # each would be read to the end
