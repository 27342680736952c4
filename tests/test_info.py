import io

import torch
from rich.console import Console

from exlstm import info
from exlstm.ops import backends


def shown(monkeypatch, *, terminal: bool = False) -> str:
    output = io.StringIO()
    info.show(Console(file=output, force_terminal=terminal, width=80, highlight=False))
    return output.getvalue()


def test_every_operator_and_backend_has_a_row_and_every_unusable_one_a_reason():
    rows = info.backends()
    assert {row[:2] for row in rows} == {(op, b) for op in backends.describe() for b in backends.BACKENDS}
    assert all(reason for _, _, usable, reason in rows if usable == "no")


def test_what_a_usable_backend_leaves_to_others_is_said(monkeypatch):
    monkeypatch.setattr(info, "describe", lambda: {"slstm": {"torch": None, "triton": None}})
    assert info.backends()[0] == ("slstm", "torch", "yes", "")
    assert "256 columns" in info.backends()[1][3]


def test_reason_of_an_unusable_backend_is_shown_whole(monkeypatch):
    reason = "needs a compiler and a device, " * 5 + "of which there are none"
    monkeypatch.setattr(info, "describe", lambda: {"mlstm": {"torch": None, "triton": reason}})
    assert reason in shown(monkeypatch)


def test_piped_output_is_plain_text(monkeypatch):
    text = shown(monkeypatch)
    assert "\x1b" not in text
    assert not set("─│┃━") & set(text)
    assert all(line == line.rstrip() for line in text.splitlines())


def test_terminal_output_is_ruled(monkeypatch):
    assert "─" in shown(monkeypatch, terminal=True)


def test_versions_name_the_torch_in_use():
    assert dict(info.versions())["torch"] == torch.__version__


def test_devices_start_with_the_cpu_and_its_threads():
    name, what = info.devices()[0]
    assert name == "cpu"
    assert f"{torch.get_num_threads()} thread" in what
