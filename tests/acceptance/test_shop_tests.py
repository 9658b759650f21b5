"""The example's own tests, run the way its reader would."""

from __future__ import annotations

import sys

from tests.acceptance.shop import CHECKOUT, developers_environment, run


def test_the_tests_of_the_shop_pass() -> None:
    done = run([sys.executable, "manage.py", "test"], developers_environment(), CHECKOUT / "example_project")
    assert done.returncode == 0, done.stdout
    assert "Ran 0 tests" not in done.stdout


def test_the_shop_has_all_its_migrations_and_passes_the_checks() -> None:
    project = CHECKOUT / "example_project"
    for command in (["makemigrations", "--check", "--dry-run"], ["check", "--fail-level", "WARNING"]):
        done = run([sys.executable, "manage.py", *command], developers_environment(), project)
        assert done.returncode == 0, done.stdout
