"""The table of versions that `make versions` measures."""

import importlib.util
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "check_versions.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("check_versions", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_rows_name_tests_that_exist(script):
    for row in script.ROWS.values():
        assert all((SCRIPT.parents[1] / "tests" / f"{name}.py").is_file() for name in row.tests)


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        (".....\n310 passed, 3 skipped, 2 warnings in 9.91s\n", "310 passed"),
        ("FAILED x - 7 passed\n2 failed, 3 passed in 1.2s", "2 failed, 3 passed"),
        ("1 error in 0.3s", "1 error"),
        ("3 passed, 2 errors in 0.3s", "3 passed, 2 errors"),
        ("ImportError: no module\n", "did not run"),
        ("", "did not run"),
    ],
)
def test_outcome_is_what_pytest_counts(script, output, expected):
    assert script.outcome(output) == expected


def test_a_row_replaces_the_one_of_the_same_libraries_and_python(script):
    first = ["oldest", "3.11.7", "2.6.0", "310 passed"]
    table = script.with_row("# Versions\n\n| - |\n", first)
    assert table == "# Versions\n\n| - |\n| oldest | 3.11.7 | 2.6.0 | 310 passed |\n"
    table = script.with_row(table, ["oldest", "3.1.0", "2.6.0", "1 failed"])
    table = script.with_row(table, ["newest", "3.11.7", "2.14.1", "310 passed"])
    table = script.with_row(table, ["oldest", "3.11.9", "2.6.1", "311 passed"])
    assert table.splitlines()[3:] == [
        "| oldest | 3.1.0 | 2.6.0 | 1 failed |",
        "| newest | 3.11.7 | 2.14.1 | 310 passed |",
        "| oldest | 3.11.9 | 2.6.1 | 311 passed |",
    ]
