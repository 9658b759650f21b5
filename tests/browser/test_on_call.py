"""An exercise for whoever is on call: a payment provider breaks under load; the admin is all there is.

The example shop runs as it does in production: PostgreSQL, RabbitMQ, a web server, a relay and a
subscriber, with customers who go on ordering all the time.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

import psycopg
import pytest

from tests.acceptance.conftest import broker_url  # noqa: F401 - a fixture
from tests.acceptance.shop import CHECKOUT, account_of, developers_environment
from tests.browser.chromium import Chromium
from tests.harness.ports import lease_port
from tests.harness.postgres import PrivatePostgreSQL
from tests.harness.waiting import wait_until

#: Seconds for what takes a moment on a quiet machine.
PATIENCE = 60.0
#: Dead letters after which somebody is called.
ENOUGH = 8
#: Orders that are placed at most, should nobody stop the customers.
MOST_ORDERS = 4_000

_CUSTOMERS = f"""
import threading
from orders.catalogue import PRODUCTS
from orders.services import place_order
pause = threading.Event()
for number in range({MOST_ORDERS}):
    place_order(list(PRODUCTS.values())[number % 6], 1 + number % 3, "Cork")
    pause.wait(0.08)
"""


class Shop:
    """The processes of the shop, and its database."""

    def __init__(self, database_url: str, broker: str, port: int, logs: Path) -> None:
        self.root = f"http://127.0.0.1:{port}"
        self._database_url, self._logs = database_url, logs
        self._environment = developers_environment(
            DATABASE_URL=database_url, DOMAIN_EVENT_BROKER=broker, SHOP_DEBUG="1"
        )
        self._running: list[subprocess.Popen[bytes]] = []

    def manage(self, *arguments: str) -> str:
        """Run a command to its end; return what it printed."""
        done = subprocess.run(
            [sys.executable, "manage.py", *arguments],
            cwd=CHECKOUT / "example_project",
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=2 * PATIENCE,
            check=False,
        )
        assert done.returncode == 0, done.stdout
        return done.stdout

    def start(self, name: str, *arguments: str) -> subprocess.Popen[bytes]:
        """Start a process that ends with the test."""
        with (self._logs / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "manage.py", *arguments],
                cwd=CHECKOUT / "example_project",
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._running.append(process)
        return process

    def answers(self) -> bool:
        """Tell whether the web server does."""
        try:
            with urlopen(f"{self.root}/", timeout=5) as response:
                return bool(response.status == 200)
        except (URLError, OSError):
            return False

    def sql(self, statement: str) -> list[Any]:
        """Run a statement; return the rows, if there are any."""
        with psycopg.connect(self._database_url, autocommit=True) as connection:
            cursor = connection.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []

    def count(self, table: str) -> int:
        """Return the number of rows."""
        return int(self.sql(f"SELECT count(*) FROM {table}")[0][0])

    def provider(self, *, broken: bool) -> None:
        """Break or repair the payment provider, which is somebody else's."""
        self.sql(
            f"INSERT INTO payments_providerswitch VALUES (1, {broken}) "
            "ON CONFLICT (id) DO UPDATE SET broken = excluded.broken"
        )

    def close(self) -> None:
        """End all that runs."""
        for process in self._running:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@pytest.fixture
def shop(
    postgres_server: PrivatePostgreSQL,
    broker_url: str,  # noqa: F811
    fresh_name: Callable[[str], str],
    tmp_path: Path,
) -> Iterator[Shop]:
    """The shop, open for customers."""
    database_url = postgres_server.create_database(fresh_name("on_call").replace("-", "_"))
    with _port() as port:
        made = Shop(database_url, broker_url, port, tmp_path)
        try:
            made.manage("migrate", "-v0")
            made.manage("declare_queues")
            made.start("web", "runserver", "--noreload", f"127.0.0.1:{port}")
            made.start("relay", "run_relay")
            made.start("subscriber", "run_subscriber")
            wait_until(made.answers, PATIENCE, "the shop is open")
            yield made
        finally:
            made.close()


@contextmanager
def _port() -> Iterator[int]:
    lease = lease_port()
    try:
        yield lease.port
    finally:
        lease.release()


def log_in(browser: Chromium, shop: Shop) -> None:
    user, password = shop.manage("demo_user").split()
    browser.goto(f"{shop.root}/admin/login/")
    browser.type("#id_username", user)
    browser.type("#id_password", password)
    browser.click("input[type=submit]", leads_on=True)


def test_dead_letters_of_a_broken_provider_are_found_and_replayed_and_the_account_balances(
    shop: Shop, browser: Chromium, picture: Callable[[str], None]
) -> None:
    log_in(browser, shop)
    customers = shop.start("customers", "shell", "-c", _CUSTOMERS)
    wait_until(lambda: shop.count("payments_payment") >= 10, PATIENCE, "orders are paid")
    shop.provider(broken=True)
    letters = f"{shop.root}/admin/domain_event_broker/deadletter/?queue=payments-charge"

    def looked_at() -> int:
        browser.goto(letters)
        return int(browser.js("document.querySelectorAll('.deb-letter').length"))

    wait_until(lambda: looked_at() >= ENOUGH, PATIENCE, "dead letters have come")
    assert customers.poll() is None, "customers go on ordering"
    browser.goto(f"{shop.root}/admin/")
    browser.click(".model-brokeroverview a", leads_on=True)
    picture("on-call-overview")
    browser.click(".deb-alert a[href*='queue=payments-charge']", leads_on=True)
    picture("on-call-letters")
    assert "payments.provider.ProviderUnavailable" in browser.text(".deb-looked")
    browser.click(".deb-letter h3 a", leads_on=True)
    assert "the payment provider is down" in browser.text(".deb-traceback")
    assert '"total_cents"' in browser.text(".deb-payload")
    picture("on-call-letter")

    shop.provider(broken=False)
    browser.click(".deb-alike button[value=replay_all]", leads_on=True)
    if browser.exists("input[name=confirmed]"):
        browser.click("button.default", leads_on=True)
    assert "replayed." in browser.text(".messagelist")
    # Those that had no try left when the provider came back.
    wait_until(lambda: not _replay_the_rest(browser, letters), PATIENCE, "no letter is left")
    os.killpg(customers.pid, signal.SIGTERM)
    customers.wait(PATIENCE)
    wait_until(lambda: not _replay_the_rest(browser, letters), PATIENCE, "no letter is left at the end")

    account = shop.manage("account", "--wait", f"{PATIENCE:g}")
    published, handled, waiting, parked, dead = account_of(account)
    assert (published, waiting, parked, dead) == (handled, 0, 0, 0), account
    orders = shop.count("orders_order")
    paid = shop.sql("SELECT count(DISTINCT order_number), count(*) FROM payments_payment")
    assert paid == [(orders, orders)], "each order is charged, and once"
    assert int(shop.sql("SELECT max(attempts) FROM payments_payment")[0][0]) <= 4
    entries = shop.sql("SELECT change_message FROM django_admin_log")
    assert any("Replayed in the admin: exception 'payments.provider" in message for (message,) in entries)


def _replay_the_rest(browser: Chromium, letters: str) -> bool:
    """Replay what is there; tell whether there was anything."""
    browser.goto(letters)
    if not browser.exists("button[value=replay_all]"):
        return False
    browser.click("button[value=replay_all]", leads_on=True)
    if browser.exists("input[name=confirmed]"):
        browser.click("button.default", leads_on=True)
    return True
