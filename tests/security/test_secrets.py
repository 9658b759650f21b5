"""Passwords are in nothing that is printed, logged, shown, or listed with the processes."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from django.test import Client, RequestFactory
from django.urls import reverse
from django.views.debug import ExceptionReporter, get_default_exception_reporter_filter

from domain_event_broker import Publisher, Subscriber, config
from domain_event_broker.django.reports import ReporterFilter
from domain_event_broker.failures import Failure
from domain_event_broker.masking import mask, mask_text, one_line
from domain_event_broker.transports import open_transport
from tests.harness.ports import lease_port
from tests.harness.rabbitmq import PrivateRabbitMQ
from tests.harness.waiting import wait_until

SECRET = "t0p-s3cret"
ROOT = Path(__file__).resolve().parents[2]

COMMANDS = (
    "run_relay --once",
    "run_relay --drain",
    "broker_status",
    "broker_status --json",
    "replay_dlq billing --dry-run",
    "replay_dlq --all --discard",
    "declare_queues",
    "declare_queues --check",
    "declare_queues --migrate",
    "purge_outbox",
    "check --deploy",
)
#: Runs commands one after the other, as ``manage.py`` does, and goes on when one of them ends.
RUN_ALL = """
import sys, traceback
from django.core.management import ManagementUtility

for command in sys.argv[1:]:
    print("===", command, flush=True)
    try:
        ManagementUtility(["manage.py", *command.split(), "--traceback"]).execute()
    except BaseException:
        traceback.print_exc(file=sys.stdout)
"""


@pytest.fixture
def free_port() -> Iterator[int]:
    """A port on which nobody listens."""
    lease = lease_port()
    yield lease.port
    lease.release()


@pytest.fixture(params=["nobody there", "refused", "TLS to a plain port", "a URL that is none"])
def wrong_url(request: pytest.FixtureRequest, free_port: int) -> str:
    """A URL with a password, that leads nowhere in one of several ways."""
    if request.param == "nobody there":
        return f"amqp://shop:{SECRET}@127.0.0.1:{free_port}/"
    if request.param == "a URL that is none":
        return f"amqp://shop:{SECRET}/x@127.0.0.1:port/"
    server = request.getfixturevalue("rabbitmq_server")
    if request.param == "refused":
        return f"amqp://shop:{SECRET}@127.0.0.1:{server.port}/"
    return f"amqps://shop:{SECRET}@127.0.0.1:{server.port}/?ssl_options={{'password':'{SECRET}'}}"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project with a table and a handler, whose broker is in the variable ``BROKER_URL``."""
    (tmp_path / "shop").mkdir()
    (tmp_path / "shop/__init__.py").write_text("")
    (tmp_path / "shop/subscribers.py").write_text(
        "from domain_event_broker import subscribe\n\n\n"
        '@subscribe("order.*", name="billing")\ndef bill(event):\n    pass\n'
    )
    (tmp_path / "mysite.py").write_text(
        "import os\n"
        'SECRET_KEY = "for tests only"\n'
        'INSTALLED_APPS = ["domain_event_broker", "shop"]\n'
        'DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": "db.sqlite3"}}\n'
        'DOMAIN_EVENT_BROKER = {"URL": os.environ["BROKER_URL"]}\n'
        'LOGGING = {"version": 1, "handlers": {"console": {"class": "logging.StreamHandler"}},\n'
        '           "root": {"handlers": ["console"], "level": "DEBUG"}}\n'
    )
    (tmp_path / "run_all.py").write_text(RUN_ALL)
    _run_all(tmp_path, "memory:", "migrate -v0")
    return tmp_path


def _environment(url: str) -> dict[str, str]:
    return {
        **os.environ,
        "BROKER_URL": url,
        "DJANGO_SETTINGS_MODULE": "mysite",
        "PYTHONPATH": str(ROOT),
        "PYTHONUNBUFFERED": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
    }


def _run_all(project: Path, url: str, *commands: str) -> str:
    """Run commands with everything logged, and return all that they printed."""
    done = subprocess.run(
        [sys.executable, "run_all.py", *commands],
        cwd=project,
        env=_environment(url),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=240,
        text=True,
        check=True,
    )
    return done.stdout


def test_no_command_prints_the_password_of_a_broker_that_it_cannot_reach(
    project: Path, wrong_url: str
) -> None:
    printed = _run_all(project, wrong_url, *COMMANDS)
    assert printed.count("===") == len(COMMANDS)
    assert "shop:***@127.0.0.1" in printed
    assert SECRET not in printed


def test_no_worker_logs_the_password_and_no_list_of_processes_shows_it(project: Path, free_port: int) -> None:
    url = f"amqp://shop:{SECRET}@127.0.0.1:{free_port}/"
    output = project / "output.txt"
    with ExitStack() as stack:
        workers = []
        for command in (["run_relay"], ["run_subscriber", "--processes", "2"]):
            stream = stack.enter_context(output.open("ab"))
            process = subprocess.Popen(
                [sys.executable, "-m", "django", *command],
                cwd=project,
                env=_environment(url),
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
            )
            stack.callback(_end, process)
            workers.append(process)
        wait_until(lambda: output.read_text().count("cannot connect to") >= 3, 60, output.read_text)
        seen = [_command_line(pid) for worker in workers for pid in (worker.pid, *_children(worker.pid))]
    assert len(seen) == 4
    assert SECRET not in " ".join(seen)
    assert "shop:***@" in output.read_text()
    assert SECRET not in output.read_text()


def _end(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(60)
    finally:
        process.kill()
        process.wait()


def _command_line(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")


def _children(pid: int) -> list[int]:
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_the_broker_does_not_learn_the_password_as_a_property_of_the_client(
    rabbitmq_server: PrivateRabbitMQ, fresh_name: Callable[[str], str]
) -> None:
    user = fresh_name("shop")
    rabbitmq_server.add_user(user, SECRET)
    with Publisher(rabbitmq_server.url(user, SECRET)):
        listed = "\n".join(rabbitmq_server.connections())
    assert "domain_event_broker" in listed
    assert SECRET not in listed


# --- in one process ---------------------------------------------------------------------


def test_no_error_and_no_log_of_a_failed_connection_has_it(
    wrong_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    logging.getLogger("pika").setLevel(logging.DEBUG)
    try:
        with pytest.raises(Exception) as told:  # noqa: PT011 - whatever it is, its text counts
            Publisher(wrong_url).connect()
    finally:
        logging.getLogger("pika").setLevel(logging.CRITICAL)
    failure = Failure.of(told.value, "error", 1)
    assert SECRET not in f"{told.value!r} {failure.message} {failure.traceback} {caplog.text}"


def test_no_repr_has_it(rabbitmq_server: PrivateRabbitMQ, fresh_name: Callable[[str], str]) -> None:
    user = fresh_name("shop")
    rabbitmq_server.add_user(user, SECRET)
    url = rabbitmq_server.url(user, SECRET)
    settings = config.parse({"URL": url})
    assert settings is not None
    transport = open_transport(settings)
    try:
        with Publisher(url) as publisher:
            shown = [repr(each) for each in (settings, transport, publisher, Subscriber(url))]
            shown += [repr(value) for each in (transport, publisher) for value in vars(each).values()]
    finally:
        transport.close()
    assert f"{user}:***@" in shown[0]
    assert SECRET not in " ".join(shown)


@pytest.mark.django_db
def test_no_page_of_the_admin_shows_it(wrong_url: str, admin: Client, settings: Any) -> None:
    settings.DOMAIN_EVENT_BROKER = wrong_url
    admin.raise_request_exception = False  # settings that cannot be read: an error page
    for name in ("deadletter", "outboxevent", "heldevent", "archivedevent", "relayheartbeat"):
        url = reverse(f"admin:domain_event_broker_{name}_changelist")
        for query in ({}, {"queue": "billing"}):
            page = admin.get(url, query, follow=True)
            assert page.content
            assert SECRET not in page.content.decode()
    page = admin.post(
        reverse("admin:domain_event_broker_deadletter_changelist"),
        {"queue": "billing", "action": "replay_all"},
        follow=True,
    )
    assert SECRET not in page.content.decode()


def test_what_a_handler_raises_is_kept_without_the_passwords_in_it() -> None:
    try:
        raise ConnectionError(
            f"cannot reach postgres://app:{SECRET}@db/shop?sslmode=require (password={SECRET})"
        )
    except ConnectionError as error:
        failure = Failure.of(error, "error", 1)
    assert "postgres://app:***@db/shop?sslmode=require (password=***)" in failure.message
    assert SECRET not in failure.message + failure.traceback


@pytest.fixture
def fresh_filter() -> Iterator[None]:
    """Let Django read its setting anew, and once more after the test: it remembers what it found."""
    get_default_exception_reporter_filter.cache_clear()
    yield
    get_default_exception_reporter_filter.cache_clear()


@pytest.mark.usefixtures("fresh_filter")
def test_reports_of_django_do_not_show_it_with_our_filter(settings: Any) -> None:
    settings.DOMAIN_EVENT_BROKER = {"URL": [f"amqp://shop:{SECRET}@broker/"], "EXCHANGE": "events"}
    settings.DEFAULT_EXCEPTION_REPORTER_FILTER = "domain_event_broker.django.reports.ReporterFilter"
    settings.DEBUG = True
    try:
        _fail(f"amqp://shop:{SECRET}@broker/")
    except RuntimeError:
        reporter = ExceptionReporter(RequestFactory().get("/"), *sys.exc_info())
        page, text = reporter.get_traceback_html(), reporter.get_traceback_text()
    assert isinstance(reporter.filter, ReporterFilter)
    for shown in (page, text):
        assert "shop:***@broker" in shown
        assert SECRET not in shown


@pytest.mark.usefixtures("fresh_filter")
def test_reports_of_django_show_no_part_of_a_url_and_end_with_what_contains_itself(settings: Any) -> None:
    settings.DEFAULT_EXCEPTION_REPORTER_FILTER = "domain_event_broker.django.reports.ReporterFilter"
    settings.DEBUG = True
    try:
        _fail_with(urlsplit(f"amqp://shop:{SECRET}@broker/a/b"), f"amqp://shop:it's{SECRET}@broker/")
    except RuntimeError:
        reporter = ExceptionReporter(RequestFactory().get("/"), *sys.exc_info())
        shown = reporter.get_traceback_html() + reporter.get_traceback_text()
    assert "shop:***@broker" in shown
    assert SECRET not in shown


def _fail_with(parts: Any, url: str) -> None:
    circle: dict[str, Any] = {"url": url}
    circle["circle"] = [circle, parts]
    raise RuntimeError("the frame of this function shows its variables")


def _fail(url: str) -> None:
    raise RuntimeError("the frame of this function shows its variables")


# --- masking ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "masked"),
    [
        ("amqp://u:p@h/v", "amqp://u:***@h/v"),
        ("amqp://u:p@ss/w@h/v", "amqp://u:***@h/v"),
        ("amqp://h/v", "amqp://h/v"),
        ("redis://:p@h/0?password=p&x=1", "redis://:***@h/0?password=***&x=1"),
        ("amqps://h/?ssl_options={'password':'p'}&x=1", "amqps://h/?ssl_options=***&x=1"),
        ("amqps://h/?ssl_options=%7B%27password%27%3A%27p%27%7D", "amqps://h/?ssl_options=***"),
        ("amqps://h/?ssl_options={'certfile':'c'}", "amqps://h/?ssl_options={'certfile':'c'}"),
    ],
)
def test_urls_are_masked(url: str, masked: str) -> None:
    assert mask(url) == masked


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("a://u:p@h, b://v:q@i", "a://u:***@h, b://v:***@i"),
        ("'amqp://u:p@h' said 'me@example.com'", "'amqp://u:***@h' said 'me@example.com'"),
        ("host=h password=p dbname=d", "host=h password=*** dbname=d"),
        ("cannot reach amqp://u:p'q@h", "cannot reach amqp://u:***@h"),
        ("ssl_password=p ssl=on", "ssl_password=*** ssl=on"),
        ("see https://example.com/@somebody", "see https://example.com/@somebody"),
        ("time 12:30@noon", "time 12:30@noon"),
    ],
)
def test_passwords_in_running_text_are_masked(text: str, masked: str) -> None:
    assert mask_text(text) == masked


def test_texts_made_to_look_like_many_urls_take_no_time() -> None:
    started = time.process_time()
    Failure.of(ValueError("a://b:" * 1_000_000), "error", 1)
    Failure.of(ValueError("://" * 1_000_000 + "x" * 1_000_000 + ":"), "error", 1)
    assert time.process_time() - started < 5


def test_what_is_not_printable_is_written_out() -> None:
    assert one_line("a\nb\x1b[0m\u202ec\ud800ü") == "a\\nb\\x1b[0m\\u202ec\\ud800ü"
