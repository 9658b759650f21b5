"""The show: what happens, and in which order."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from demo.children import Child, Family
from demo.options import Options, indented, masked, shown
from demo.road import Road
from demo.screen import Screen
from demo.trouble import Trouble
from demo.visitor import Visitor, any_port, free_port

#: Orders placed in a second, as long as each of them is shown.
PACE = 7.0
#: Visitors at a time, when nobody looks at single orders.
VISITORS = 4
#: Seconds between two drawings of the live part, and between two lines where there is none.
REDRAW_SECONDS, PLAIN_SECONDS = 0.12, 2.0
#: Seconds for the web server to answer, and for all events to arrive.
START_SECONDS, SETTLE_SECONDS = 30.0, 120.0
#: Where the shop is served, unless that port is taken.
SERVE_PORT = 8000
#: Dead letters that are looked at one by one.
LETTERS_SHOWN = 2

THINGS = ("teapot", "kite", "lantern", "globe", "chess", "compass")
PLACES = ("Antwerp", "Bergen", "Cork", "Dresden", "Evora")
NOTES = ("", "", "", "A present, please hide the price.", "", "Ring twice.")


@dataclass(frozen=True, slots=True)
class Wish:
    """An order that a visitor is going to place."""

    product: str
    quantity: int
    destination: str
    note: str


class Show:
    """The shop with its processes and visitors."""

    def __init__(self, options: Options, screen: Screen, family: Family) -> None:
        self._options = options
        self._screen = screen
        self._family = family
        self._road = Road()
        self._visitor = Visitor("")
        self._workers: dict[str, Child] = {}
        self._drawn = 0.0

    def run(self) -> bool:
        """Perform; return whether the account balances."""
        self._prepare()
        self._open()
        balances = self._acts() if self._options.orders else True
        if self._options.serve:
            self._serve()
        return balances

    # Before the curtain.

    def _prepare(self) -> None:
        server = self._options.database_url
        where = masked(server) if server else f"SQLite, {shown(self._options.database_file)}"
        self._step("database", where, lambda: self._family.manage("migrate", "--verbosity", "0"))
        broker = masked(self._options.broker_url)
        self._step("queues", broker, lambda: self._family.manage("declare_queues"))

    def _step(self, name: str, what: str, work: Callable[[], object]) -> None:
        self._screen.draw([[(f"  {name:<12}", "name"), (f"{what} …", "dim")]])
        work()
        self._screen.line([(f"  {name:<12}", "name"), (what, "")])

    def _open(self) -> None:
        wanted = self._options.port
        preferred = SERVE_PORT if self._options.serve else None
        port = free_port(wanted) if wanted else any_port(preferred)
        self._visitor = Visitor(f"http://127.0.0.1:{port}")
        self._family.start("web", "runserver", "--noreload", f"127.0.0.1:{port}", SHOP_DEBUG="1")
        self._start_workers()
        self._step("web", self._visitor.address, self._wait_for_web)
        self._say_workers("started")

    def _wait_for_web(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while not self._visitor.is_open():
            self._family.check()
            if time.monotonic() > deadline:
                raise Trouble(f"the web server does not answer at {self._visitor.address}")
            time.sleep(0.1)

    def _start_workers(self) -> None:
        self._workers = {
            "relay": self._family.start("relay", "run_relay"),
            "subscriber": self._family.start("subscriber", "run_subscriber"),
        }

    def _say_workers(self, what: str) -> None:
        pids = ", ".join(f"{role} {child.pid}" for role, child in self._workers.items())
        self._screen.line([(f"  {'processes':<12}", "name"), (f"{what}: {pids}", "")])

    # The acts.

    def _acts(self) -> bool:
        wishes = self._wishes()
        first, second = round(len(wishes) * 0.6), round(len(wishes) * 0.85)
        self._title("Visitors place orders. Now and then the payment provider times out: ↻ is a retry.")
        self._place(wishes[:first], halfway=self._kill if self._options.kill else None)
        if self._options.kill:
            self._settle()
        self._title("The payment provider breaks. After three retries an event is a dead letter: ✗")
        self._visitor.turn_provider(broken=True)
        self._place(wishes[first:second])
        self._settle()
        self._show_dead_letters()
        self._title("The provider is repaired, and the dead letters are put back to work.")
        self._visitor.turn_provider(broken=False)
        self._command("replay_dlq", "payments-charge")
        self._place(wishes[second:])
        return self._account()

    def _wishes(self) -> list[Wish]:
        """Return what visitors will order: the same in each run. One order goes to the moon."""
        dice = random.Random(1)
        wishes = [
            Wish(dice.choice(THINGS), dice.randint(1, 3), dice.choice(PLACES), dice.choice(NOTES))
            for _ in range(self._options.orders)
        ]
        if len(wishes) > 1:
            wishes[1] = Wish("compass", 1, "The Moon", "Leave it at the crater.")
        return wishes

    def _place(self, wishes: list[Wish], halfway: Callable[[], None] | None = None) -> None:
        """Let visitors order, and watch."""
        if self._options.many:
            self._place_many(wishes, halfway)
            return
        for index, wish in enumerate(wishes):
            if halfway and index == len(wishes) // 2:
                halfway()
            self._placed(wish, self._order(wish))
            self._watch_for(1 / PACE)

    def _place_many(self, wishes: list[Wish], halfway: Callable[[], None] | None) -> None:
        with ThreadPoolExecutor(VISITORS) as visitors:
            under_way = {visitors.submit(self._order, wish): wish for wish in wishes}
            try:
                if halfway:
                    self._watch(lambda: self._collect(under_way) <= len(wishes) // 2)
                    halfway()
                self._watch(lambda: self._collect(under_way) == 0)
            finally:
                for future in under_way:
                    future.cancel()

    def _order(self, wish: Wish) -> str:
        return self._visitor.order(wish.product, wish.quantity, wish.destination, wish.note)

    def _collect(self, under_way: dict[Future[str], Wish]) -> int:
        """Note the orders that the shop has taken; return how many are under way still."""
        for future in [future for future in under_way if future.done()]:
            self._placed(under_way.pop(future), future.result())
        return len(under_way)

    def _placed(self, wish: Wish, number: str) -> None:
        self._road.placed(number, f"{wish.quantity} {wish.product} → {wish.destination}")

    def _kill(self) -> None:
        """End relay and subscriber as a power cut would, and start others."""
        for child in self._workers.values():
            self._family.forget(child)
            child.kill()
        self._say_workers("killed with -9")
        self._start_workers()
        self._say_workers("new ones")
        self._screen.say("  The new relay may send when the lease of the dead one has ended, in 5 s.", "dim")
        if self._options.broker_url.startswith("database:"):
            # RabbitMQ sees the connection end, and gives them to the next at once.
            self._screen.say("  Events that the dead subscriber held come back within 30 s.", "dim")

    def _show_dead_letters(self) -> None:
        self._screen.say()
        self._command("replay_dlq", "payments-charge", "--dry-run", "--limit", str(LETTERS_SHOWN))

    def _command(self, *words: str) -> None:
        self._screen.command(f"manage.py {' '.join(words)}", self._family.manage(*words))

    def _settle(self) -> None:
        """Watch until no event moves any more, and say where they are."""
        code, text = self._watch_account("--json")
        handlers = json.loads(text)["handlers"]
        names = ("published", "handled", "waiting", "parked", "dead")
        published, *where = (sum(each[name] for each in handlers) for name in names)
        parts = " + ".join(f"{count} {name}" for count, name in zip(where, names[1:], strict=True))
        self._screen.say(f"  so far: {published} deliveries = {parts}", "" if code == 0 else "bad")

    def _account(self) -> bool:
        code, text = self._watch_account()
        self._title("The account: every event, for every handler that is bound to it")
        self._screen.command("manage.py account", text)
        return code == 0

    def _watch_account(self, *options: str) -> tuple[int, str]:
        """Watch while ``manage.py account`` waits for the events to arrive; return its end and its words."""
        with self._family.running("account", "--wait", f"{SETTLE_SECONDS:g}", *options) as command:
            self._watch(lambda: command.poll() is not None)
            text = command.stdout.read() if command.stdout else ""
        if command.returncode not in (0, 1) or not text.strip():
            raise Trouble(
                f"'manage.py account' failed with exit code {command.returncode}:\n{indented(text)}"
            )
        return command.returncode, text

    # Watching.

    def _watch(self, until: Callable[[], bool]) -> None:
        while not until():
            self._look()
            time.sleep(0.02)
        self._look(at_once=True)

    def _watch_for(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self._look()
            time.sleep(0.02)

    def _look(self, at_once: bool = False) -> None:
        """Draw what is going on, unless that was done a moment ago."""
        pause = PLAIN_SECONDS if self._options.many and not self._screen.live else REDRAW_SECONDS
        if time.monotonic() - self._drawn < pause and not at_once:
            return
        self._family.check()
        self._road.take_events(self._visitor.events(self._road.last_sent))
        self._road.read_logs(self._family.logs("subscriber"))
        if self._options.many:
            self._screen.draw([self._road.numbers()], [] if self._screen.live else [self._road.numbers()])
        else:
            self._screen.draw(self._road.block(), self._road.finished())
        self._drawn = time.monotonic()

    def _title(self, text: str) -> None:
        self._screen.title(text)

    # After the show.

    def _serve(self) -> None:
        user, password = self._family.manage("demo_user").split()
        address = self._visitor.address
        self._title("The shop stays open until you press Ctrl-C")
        for name, value in (
            ("shop", f"{address}/"),
            ("admin", f"{address}/admin/"),
            ("user", f"{user}, password {password} (made for this run)"),
            ("logs", shown(self._options.state / "logs")),
        ):
            self._screen.line([(f"  {name:<8}", "name"), (value, "")])
        while True:
            self._family.check()
            time.sleep(0.5)
