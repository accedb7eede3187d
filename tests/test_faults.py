"""Every row of faults.tsv is shown by a test, or waits for its feature."""

from faults import WAITING, rows, shown


def test_every_fault_has_a_test_or_waits_for_its_feature() -> None:
    assert set(rows()) - set(shown()) == set(WAITING)


def test_no_test_names_a_row_that_is_not_there() -> None:
    assert set(shown()) <= set(rows())
