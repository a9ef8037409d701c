"""Every kind of bad and odd data in `tests.corpus` is refused in one line that names it, or accepted and right."""

import pytest

from tests import ROOT
from tests.corpus import DATA_SETS, LABELS, SCANS, Corpus, document, format_table, read_rows

DOCUMENT = ROOT / "docs/bad_data.md"
PEAK_BYTES = 4e9  # the largest header promises 65 TB


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    corpus = Corpus(tmp_path_factory.mktemp("corpus"))
    corpus.run()
    return corpus


def assert_said(outcome, name, words):
    assert outcome.outcome == "refused", outcome
    assert words in outcome.message
    assert name in outcome.message
    assert "\n" not in outcome.message


@pytest.mark.parametrize("kind", SCANS)
def test_scan_is_segmented_rightly_or_refused_in_one_line(corpus, kind):
    outcome, words = corpus.segmented(kind), SCANS[kind].inference
    if words is None:
        assert outcome.outcome == "accepted", outcome.message
    else:
        assert_said(outcome, corpus.scans[kind].path.name, words)


@pytest.mark.parametrize("kind", [name for name, kind in SCANS.items() if kind.in_check])
def test_scan_in_a_data_set_is_measured_rightly_or_refused_in_one_line(corpus, kind):
    outcome, expected = corpus.checked_scan(kind), SCANS[kind]
    if expected.check is not None:
        assert_said(outcome, corpus.scans[kind].path.name, expected.check)
    elif expected.warning is not None:
        assert outcome.outcome == "with a warning", outcome.message
        assert expected.warning in outcome.message
    else:
        assert outcome.outcome == "accepted", outcome.message


@pytest.mark.parametrize("kind", LABELS)
def test_label_is_measured_rightly_or_refused_in_one_line(corpus, kind):
    outcome, expected = corpus.checked_label(kind), LABELS[kind]
    if expected.error is not None:
        assert_said(outcome, corpus.labels[kind].name, expected.error)
    elif expected.warning is not None:
        assert outcome.outcome == "with a warning", outcome.message
        assert expected.warning in outcome.message
    else:
        assert outcome.outcome == "accepted", outcome.message


def test_one_run_over_all_scans_goes_on_to_the_last_and_fails_at_the_end_in_one_line(corpus):
    refused = {str(corpus.scans[name].path) for name, kind in SCANS.items() if kind.inference is not None}
    assert corpus.segmenting.returncode == 1
    assert "Traceback" not in corpus.segmenting.stdout + corpus.segmenting.stderr
    errors = [line for line in corpus.segmenting.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert f"{len(refused)} of {len(SCANS)} images were not segmented" in errors[0]
    assert set(corpus.failures) == refused
    assert {row["image"] for row in read_rows(corpus.out / "volumes.csv")} == {
        str(scan.path) for scan in corpus.scans.values() if str(scan.path) not in refused
    }


def test_one_check_of_all_cases_finds_every_bad_one_and_fails_at_the_end_in_one_line(corpus):
    bad = {str(corpus.scans[name].path) for name, kind in SCANS.items() if kind.check is not None}
    bad |= {str(corpus.folder / "labelled" / corpus.labels[name].name) for name in LABELS if LABELS[name].error}
    assert {row["image"] for row in corpus.report["cases"] if row["status"] == "bad"} == bad
    assert corpus.checking.returncode == 1
    assert "Traceback" not in corpus.checking.stdout + corpus.checking.stderr
    assert corpus.checking.stderr.splitlines()[-1].startswith("error: ")  # after what nibabel logs of odd headers


def test_no_header_makes_a_process_take_gigabytes(corpus):
    assert corpus.peak_bytes < PEAK_BYTES


def test_data_sets_and_the_table_of_all_that_the_document_has(corpus):
    rows = corpus.table()
    print("\n" + format_table(rows))
    for name, check, _ in rows[-len(DATA_SETS) :]:
        assert check.outcome == "refused"
        assert DATA_SETS[name][1] in check.message
    assert len(rows) >= 40
    assert DOCUMENT.read_text(encoding="utf-8") == document(rows), "run python -m tests.corpus docs/bad_data.md"
