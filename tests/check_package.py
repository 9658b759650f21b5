"""Check a built sdist and wheel: complete, without tests, and usable with nothing but what they require.

python3 -m tests.check_package dist
"""

from __future__ import annotations

import subprocess
import sys
import tarfile
import tempfile
import venv
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).parent.parent
PACKAGE = "domain_event_broker"
#: Run in an empty directory and a virtualenv that holds the wheel alone: no Django there, and none needed.
FIRST_STEPS = f"""
import importlib.metadata, importlib.util, {PACKAGE}, {PACKAGE}._version as version
assert importlib.metadata.version("django-domain-event-broker") == version.__version__
assert importlib.util.find_spec("django") is None
assert importlib.util.find_spec("tests") is None
"""


def main(arguments: Sequence[str]) -> int:
    """Check the distributions in the directory that is given; print what is wrong."""
    folder = Path(arguments[0])
    (wheel,) = folder.glob("*.whl")
    (sdist,) = folder.glob("*.tar.gz")
    with zipfile.ZipFile(wheel) as archive:
        in_wheel = archive.namelist()
    with tarfile.open(sdist) as tar:
        in_sdist = [name.partition("/")[2] for name in tar.getnames()]
    problems = [
        *(f"{wheel.name} lacks {name}" for name in sorted(package_files() - set(in_wheel))),
        *(f"{sdist.name} lacks {name}" for name in sorted(package_files() - set(in_sdist))),
        *(f"{wheel.name} holds {name}" for name in strangers(in_wheel)),
        *(f"{sdist.name} holds {name}" for name in tests_among(in_sdist)),
    ]
    for problem in problems:
        print(problem)
    return 1 if problems or not works_alone(wheel) else 0


def package_files() -> set[str]:
    """Return every file of the package in the source tree, templates and the like too."""
    files = (path for path in (ROOT / PACKAGE).rglob("*") if path.is_file() and path.suffix != ".pyc")
    return {str(path.relative_to(ROOT)) for path in files}


def strangers(names: Iterable[str]) -> list[str]:
    """Return what a wheel holds beside the package and its metadata, and tests inside the package."""
    outside = [name for name in names if not name.startswith((f"{PACKAGE}/", "django_domain_event_broker-"))]
    return outside + tests_among(names)


def tests_among(names: Iterable[str]) -> list[str]:
    """Return the names of tests."""
    paths = [PurePosixPath(name) for name in names]
    return [
        str(path) for path in paths if "tests" in path.parts or path.name.startswith(("test_", "conftest"))
    ]


def works_alone(wheel: Path) -> bool:
    """Install the wheel into an empty virtualenv and take the first steps there."""
    with tempfile.TemporaryDirectory() as place:
        venv.create(Path(place, "venv"), with_pip=True)
        python = Path(place, "venv", "bin", "python")
        subprocess.run([python, "-m", "pip", "install", "--quiet", wheel.resolve()], cwd=place, check=True)
        return subprocess.run([python, "-I", "-c", FIRST_STEPS], cwd=place, check=False).returncode == 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
