"""The README does what it says, for a reader who follows it line by line."""

from __future__ import annotations

from tests.docs.pages import README
from tests.docs.reader import Reader

SUBSCRIBER = "python manage.py run_subscriber"
PLACE = """python manage.py shell -c "from orders.services import place_order; place_order('A-1', 25)\""""
REPLAY = "python manage.py replay_dlq billing-charge"


def test_the_django_part_leads_from_the_settings_to_a_replay(reader: Reader) -> None:
    dead_lettered = "...dead-lettered in billing-charge (attempt 1): error: KeyError 'total'"

    def see_it_charged_and_others_fail() -> None:
        reader.see(["charged A-1 25"], SUBSCRIBER)
        # More than 1000 is charged at the second try; without a total the handler fails for good.
        reader.shell("from orders.services import place_order; place_order('A-2', 2000)")
        reader.see(["...retried in billing-charge (attempt 1)...", "charged A-2 2000"], SUBSCRIBER)
        reader.shell(
            "from domain_event_broker import publish_domain_event;"
            "publish_domain_event('order.placed', {}, domain_object_id='A-3')"
        )
        reader.see([dead_lettered], SUBSCRIBER)

    def see_it_fail_again() -> None:
        reader.see([dead_lettered], SUBSCRIBER)

    reader.start_project("orders")
    for block in README.blocks_in("Use it in your project"):
        reader.do(block, {PLACE: see_it_charged_and_others_fail, REPLAY: see_it_fail_again})
    assert REPLAY in reader.run_commands
    reader.run(f"{REPLAY} --dry-run", ["billing-charge: would replay 1 of 1"])


def test_every_handler_gets_the_event(reader: Reader) -> None:
    reader.start_project("orders")
    for block in README.blocks_in("Use it in your project"):
        reader.do(block)
        if PLACE in reader.run_commands:
            break
    reader.see(["seen order.placed"], SUBSCRIBER)


def test_the_plain_program_prints_the_event(broker_reader: Reader) -> None:
    for block in README.blocks_in("Without Django"):
        broker_reader.do(block)
    broker_reader.run("python printer.py", ["user.registered {'user_id': 7}"])
