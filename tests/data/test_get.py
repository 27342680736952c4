"""Data sets are fetched once, whole or not at all, and changes to them are noticed."""

import pytest

from exlstm.cli import main
from exlstm.data import get as module
from exlstm.data.get import Source, get


@pytest.fixture
def fetched(tmp_path, monkeypatch):
    """A data set of two files; the list says how often it was fetched."""
    calls = []

    def fetch(folder):
        calls.append(folder)
        (folder / "a.txt").write_text("a")
        (folder / "more").mkdir()
        (folder / "more" / "b.txt").write_text("b")

    monkeypatch.setenv("EXLSTM_DATA", str(tmp_path / "cache"))
    monkeypatch.setitem(module.SOURCES, "small", Source("two letters", "none needed", fetch))
    return calls


def test_it_is_fetched_once(fetched):
    folder = get("small")
    assert (folder / "more" / "b.txt").read_text() == "b"
    assert get("small") == folder
    assert len(fetched) == 1


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "a.txt").write_text("c"), "a.txt has changed"),
        (lambda folder: (folder / "a.txt").unlink(), "a.txt is missing"),
        (lambda folder: (folder / "c.txt").write_text("c"), "c.txt is new"),
        (lambda folder: (folder / "SHA256SUMS").unlink(), "it has no SHA256SUMS"),
    ],
)
def test_a_change_since_is_noticed(fetched, spoil, message):
    spoil(get("small"))
    with pytest.raises(ValueError, match=f"{message}.*delete the folder to fetch it again"):
        get("small")


def test_what_fails_on_the_way_leaves_nothing(fetched, tmp_path, monkeypatch):
    def fails(folder):
        (folder / "half.txt").write_text("half")
        raise ValueError("the registry does not answer")

    monkeypatch.setitem(module.SOURCES, "small", Source("", "", fails))
    with pytest.raises(ValueError, match="does not answer"):
        get("small")
    assert list((tmp_path / "cache").iterdir()) == []


def test_the_command_line_prints_folder_and_licence(fetched, tmp_path, capsys):
    assert main(["data", "get", "small"]) == 0
    captured = capsys.readouterr()
    assert captured.out == f"{tmp_path / 'cache' / 'small'}\n"
    assert captured.err == "licence: none needed\n"
    assert main(["data"]) == 0
    assert "small: two letters" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (
            ["data", "get", "nothing"],
            "there is no data set 'nothing'; there are: python-docs, descriptions-de, descriptions-fr",
        ),
        (["data", "get"], "exlstm data get needs a name, one of: python-docs, descriptions-de, descriptions-fr"),
        (["data", "fetch", "x"], "expected exlstm data, or exlstm data get NAME, got exlstm data fetch x"),
    ],
)
def test_wrong_words_get_one_sentence(words, sentence, capsys):
    assert main(words) == 2
    assert sentence in capsys.readouterr().err


def test_without_the_tools_it_says_what_is_missing(fetched, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match=r"in Debian's package python3\.11-doc, and there is no apt-get here"):
        get("python-docs")
