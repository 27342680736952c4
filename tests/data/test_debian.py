"""Package descriptions in two languages become pairs of sentences."""

from exlstm.data.debian import read_descriptions, sentence_pairs, source_packages, stanzas, summaries

ENGLISH = """\
Package: one
Description-md5: 11
Description-en: a tool
 It reads a file. It writes
 another one.
 .
  - set line by line
 .
 Last words.

Package: two
Description-md5: 22
Description-en: only English
 Some text.
"""
GERMAN = """\
Package: one
Description-md5: 11
Description-de: ein Werkzeug
 Es liest eine Datei. Es schreibt eine
 andere.
 .
  - Zeile für Zeile
 .
 Last words.
"""


def test_sentences_are_matched_by_place(tmp_path):
    (tmp_path / "x_i18n_Translation-en").write_text(ENGLISH, encoding="utf-8")
    (tmp_path / "x_i18n_Translation-de").write_text(GERMAN, encoding="utf-8")
    one, other = (read_descriptions(tmp_path, language) for language in ("en", "de"))
    assert set(one) == {"11", "22"}
    assert list(sentence_pairs(one, other)) == [
        ("a tool", "ein Werkzeug", "one"),
        ("It reads a file.", "Es liest eine Datei.", "one"),
        ("It writes another one.", "Es schreibt eine andere.", "one"),
    ]


def test_stanzas_keep_lines_that_go_on(tmp_path):
    (tmp_path / "x").write_text("\nA: 1\nB: 2\n more\n\n\nA: 3")
    assert list(stanzas(tmp_path / "x")) == [{"A": "1", "B": "2\n more"}, {"A": "3"}]


def test_summaries_have_flowing_text_alone_and_the_source_package(tmp_path):
    (tmp_path / "x_i18n_Translation-en").write_text(ENGLISH, encoding="utf-8")
    (tmp_path / "x_Packages").write_text("Package: one\nSource: origin (1.2)\n\nPackage: two\n", encoding="utf-8")
    found = summaries(read_descriptions(tmp_path, "en"), source_packages(tmp_path))
    assert list(found) == [
        ("It reads a file. It writes another one. Last words.", "a tool", "origin"),
        ("Some text.", "only English", "two"),
    ]
