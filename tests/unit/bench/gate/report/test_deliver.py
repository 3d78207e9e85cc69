"""Every report that is asked for is written, whatever becomes of another one."""

import json
from xml.etree import ElementTree as ET

import pytest

from bench.command.session import Session
from bench.gate.report.deliver import Outputs, deliver_reports
from helpers.asv_project import make_project
from helpers.gate_records import contestant, gate_record, mixed_record
from reference.errors import BadInput


def deliver(record, **outputs):
    it = Session("base or head")
    with it.out.capture() as shown:
        deliver_reports(record, it, Outputs(**outputs))
    return shown.get(), it


def test_all_reports_at_once(tmp_path, capsys):
    project = make_project(tmp_path / "repo", commits=2)
    base, head = project.commits
    record = mixed_record(base=contestant(base), head=contestant(head))
    files = {name: tmp_path / f"gate.{name}" for name in ("json", "markdown", "junit")}
    shown, _ = deliver(
        record,
        **files,
        github=True,
        asv=project.results,
        repository=project.folder,
        store=tmp_path / "store",
    )
    assert "fail: 1 benchmark is slower" in shown
    assert json.loads(files["json"].read_text())["exit_code"] == 1
    assert files["markdown"].read_text().startswith("## pagedbench gate: fail")
    assert ET.fromstring(files["junit"].read_text()).tag == "testsuites"
    assert capsys.readouterr().out.startswith("::error title=gate%3A fail::")
    assert len(list((tmp_path / "store").glob("*.json"))) == 1
    assert len(list(project.results.glob("*/*-gate-*.json"))) == 2


def test_nothing_is_written_that_was_not_asked_for(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "pass: nothing is worse" in deliver(gate_record())[0]
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr().out == ""


def test_one_report_that_cannot_be_written_takes_no_other_with_it(tmp_path):
    gone = tmp_path / "gone" / "gate.md"
    _, it = deliver(gate_record(), markdown=gone, junit=tmp_path / "gate.xml")
    assert it.undelivered() == 4
    assert (tmp_path / "gate.xml").is_file()


@pytest.mark.parametrize("option", ["json", "markdown", "junit"])
def test_file_in_a_missing_folder_is_refused_before_the_work(tmp_path, option):
    with pytest.raises(BadInput, match=f"--{option} .*does not exist"):
        Outputs(**{option: tmp_path / "gone" / "file"}).check()


@pytest.mark.parametrize("option", ["asv", "store"])
def test_folder_that_cannot_be_made_is_refused_before_the_work(tmp_path, option):
    Outputs(**{option: tmp_path / "to" / "be" / "made"}).check()
    file = tmp_path / "file"
    file.touch()
    for folder in (file, file / "below"):
        with pytest.raises(BadInput, match=f"--{option} .*is a file; name a folder"):
            Outputs(**{option: folder}).check()


def test_asv_that_is_not_installed_is_refused_before_the_work(tmp_path, monkeypatch):
    monkeypatch.setattr("bench.asv.series.find_spec", lambda name: None)
    with pytest.raises(BadInput, match="asv is not installed"):
        Outputs(asv=tmp_path).check()
