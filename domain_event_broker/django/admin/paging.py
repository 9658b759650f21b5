"""Lists that stay fast however big the table is.

The archive may hold millions of rows, and the hot table too while the broker is away. So nothing
here counts a table to its end, sorts it by anything without an index, or looks through it for a
text: a search without an index ends after the newest ``SEARCH_WINDOW`` rows, of all or of a span of
time.
"""

from __future__ import annotations

from typing import Any

from django.contrib.admin.views.main import ChangeList
from django.core.paginator import Paginator
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils.functional import cached_property

#: Rows are counted, and so can be paged through, no further than this.
COUNT_LIMIT = 5_000
#: Rows that a search without an index looks at.
SEARCH_WINDOW = 10_000


class CappedPaginator(Paginator):  # type: ignore[type-arg]
    """A paginator that counts no further than ``COUNT_LIMIT``."""

    @cached_property
    def count(self) -> int:
        """Number of rows, up to ``COUNT_LIMIT``.

        In the order of the list: without one, a database may look for them from the wrong end.
        """
        rows: Any = self.object_list
        return int(rows[:COUNT_LIMIT].count())

    @property
    def capped(self) -> bool:
        """Whether there may be more rows than :attr:`count` says."""
        return self.count >= COUNT_LIMIT


class EventChangeList(ChangeList):
    """A list in the order of its admin, whatever the address asks for, without the big columns."""

    def get_ordering(self, request: HttpRequest, queryset: QuerySet[Any]) -> list[Any]:
        """Return the order of the model admin: a sort by another column would read the whole table."""
        return list(self.model_admin.get_ordering(request))

    def get_queryset(self, request: HttpRequest, *args: Any, **kwargs: Any) -> QuerySet[Any]:
        """Leave out payloads: a page of them could be a gigabyte."""
        return super().get_queryset(request, *args, **kwargs).defer("body", "headers")


def newest(queryset: QuerySet[Any], of: QuerySet[Any] | None = None, by: str = "pk") -> QuerySet[Any]:
    """Return the part of ``queryset`` that lies in the newest ``SEARCH_WINDOW`` rows of ``of``.

    :param of: what has an index on ``by``: the whole table, or a span of it; default: the table.
    :param by: the column that tells what is newer.
    """
    rows = queryset.model._default_manager.using(queryset.db).all() if of is None else of
    keys = rows.order_by(f"-{by}").values_list(by, flat=True)
    # The last one of them and not the first beyond: rows that were sent together share their time.
    last = keys[SEARCH_WINDOW - 1 : SEARCH_WINDOW].first()
    return queryset if last is None else queryset.filter(**{f"{by}__gte": last})
