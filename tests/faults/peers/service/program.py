"""``manage.py`` of the service, and its publisher and subscriber: ``python program.py COMMAND ...``."""

import ctypes
import faulthandler
import importlib
import os
import signal
import sys

import django
from django.core.management import execute_from_command_line

_PR_SET_PDEATHSIG = 1


def main(arguments: list[str]) -> None:
    """Run ``publish FILE SEED PAUSE``, ``subscribe`` as the library's documents say, or a Django command."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    faulthandler.register(signal.SIGUSR1)
    os.environ["DJANGO_SETTINGS_MODULE"] = "settings"
    if arguments[0] not in ("publish-deeds", "consume"):
        execute_from_command_line(["manage.py", *arguments])
        return
    django.setup()
    library = importlib.import_module(f"libraries.{os.environ['PEER']}")
    if arguments[0] == "consume":
        library.consume()
    else:
        from ledger.publishing import publish_for_ever

        publish_for_ever(library.publish, *arguments[1:])


if __name__ == "__main__":
    main(sys.argv[1:])
