"""The counts of several JUnit files."""

from count_tests import count

SUITE = '<testsuites><testsuite name="pytest" tests="{}" failures="{}" errors="{}" skipped="{}"/></testsuites>'


def test_counts_add_up_over_files(tmp_path):
    paths = [tmp_path / "a.xml", tmp_path / "b.xml"]
    paths[0].write_text(SUITE.format(10, 1, 2, 3))
    paths[1].write_text(SUITE.format(5, 0, 0, 0))
    assert count([str(path) for path in paths]) == {"passed": 9, "failed": 3, "skipped": 3}


def test_a_file_that_cannot_be_read_is_a_failure(tmp_path):
    (tmp_path / "cut.xml").write_text("<testsuites><testsuite tests=")
    assert count([str(tmp_path / "cut.xml"), str(tmp_path / "absent.xml")]) == {"passed": 0, "failed": 2, "skipped": 0}
