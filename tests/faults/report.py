"""What a torture prints: the faults by kind, and the account."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from tests.faults.account import Account

_COLUMNS = (
    "published",
    "handled",
    "waiting",
    "parked",
    "dead",
    "lost",
    "phantom",
    "twice",
    "copies dead too",
)


def report(
    account: Account, faults: Counter[str], words: Mapping[str, str], deaths: int, problems: Sequence[str]
) -> str:
    """Return the tables of a run.

    :param words: what publishers know of their transactions.
    :param deaths: how often a handler killed its process.
    """
    said = Counter(words.values())
    lines = [f"{count:6}  {name}" for name, count in sorted(faults.items())]
    lines += [
        f"{sum(faults.values()):6}  faults in all",
        f"{deaths:6}  processes killed by their handler (further ones are children, and not counted)",
        "",
        f"transactions: {said['done']} said to be committed, {said['undone']} rolled back, "
        f"{said['unknown']} without an answer; {len(account.published)} are in the database",
        f"copies that relays sent again: {account.sent_again}",
        f"keys out of order: {len(account.disordered)}",
        "",
        account_table(account),
        *(
            f"reasons of {name}: {dict(Counter(mine.dead.values()))}"
            for name, mine in account.handlers.items()
        ),
        *(f"VIOLATION: {problem}" for problem in problems),
        "the law holds" if not problems else f"{len(problems)} violations",
    ]
    return "\n".join(lines)


def account_table(account: Account) -> str:
    """Return one line for each handler: where its events are."""
    lines = [f"{'handler':8} " + " ".join(f"{name:>9}" for name in _COLUMNS)]
    for name, mine in account.handlers.items():
        dead = set(mine.dead) - mine.handled
        waiting = (mine.queued | account.outbox) - mine.handled - dead
        here = [account.published, mine.handled, waiting, account.parked, dead]
        sets = [*here, mine.lost, mine.phantom, mine.twice, mine.both]
        lines.append(f"{name:8} " + " ".join(f"{len(each):9}" for each in sets))
    return "\n".join(lines)
