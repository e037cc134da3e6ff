"""Add up the counts in pytest's JUnit files and print them as pytest does: `N passed, N failed, N skipped`.

Usage: python ci/count_tests.py FILE.xml...
"""

import sys
from xml.etree import ElementTree


def count(paths: list[str]) -> dict[str, int]:
    """Tests passed, failed (errors included) and skipped in all files; an unreadable file counts as a failure."""
    counts = {"passed": 0, "failed": 0, "skipped": 0}
    for path in paths:
        try:
            suites = list(ElementTree.parse(path).getroot().iter("testsuite"))  # noqa: S314 - pytest wrote it
        except (OSError, ElementTree.ParseError) as error:
            print(f"{path}: {error}", file=sys.stderr)
            counts["failed"] += 1
            continue
        for suite in suites:
            failed = int(suite.get("failures", 0)) + int(suite.get("errors", 0))
            skipped = int(suite.get("skipped", 0))
            counts["failed"] += failed
            counts["skipped"] += skipped
            counts["passed"] += int(suite.get("tests", 0)) - failed - skipped
    return counts


if __name__ == "__main__":
    total = count(sys.argv[1:])
    print(", ".join(f"{number} {name}" for name, number in total.items() if number or name != "skipped"))
