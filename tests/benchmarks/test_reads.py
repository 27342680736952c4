"""The page on what reading costs after long sources."""

import json
import sys

from benchmarks import documents, reads


def test_the_command_writes_a_row_for_each_length_and_memory(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(documents, "WIDTH", 32)
    monkeypatch.setattr(sys, "argv", ["reads", "--lengths", "16", "700", "--out", str(tmp_path)])
    reads.main()
    (data,) = tmp_path.glob("READS-*.json")
    found = json.loads(data.read_text())["results"]
    assert [(x["length"], x["memory"]) for x in found] == [(n, m) for n in (16, 700) for m in documents.MEMORIES]
    assert all(min(x["read"], x["token"], x["lookup"], x["bytes"]) > 0 for x in found)
    page = data.with_suffix(".md")
    assert capsys.readouterr().out.strip() == str(page)
    assert len([line for line in page.read_text().splitlines() if line.startswith("| ")]) == 2 + len(found)
