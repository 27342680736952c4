import pytest

from exlstm.models import parse_pattern


@pytest.mark.parametrize(
    ("pattern", "blocks"),
    [
        ("m", "m"),
        ("mmmsh", "mmmsh"),
        ("(mmms)x6", "mmms" * 6),
        ("s(m)x2a", "smma"),
        ("((ms)x2h)x2", "msmshmsmsh"),
        ("(m)x1", "m"),
        ("(m)x1000", "m" * 1000),
    ],
)
def test_patterns_are_written_out(pattern, blocks):
    assert parse_pattern(pattern) == blocks


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("", "1 to 4096 blocks, not 0"),
        ("mx", "'x' at position 1"),
        ("M", "'M' at position 0"),
        ("m m", "' ' at position 1"),
        ("(ms", "not closed"),
        ("ms)x2", "closes nothing"),
        ("()x2", "closes nothing"),
        ("(ms)", r"'\)' at position 3"),
        ("(ms)x0", r"'\)' at position 3"),
        ("(ms)x-1", r"'\)' at position 3"),
        ("(ms)x٣", r"'\)' at position 3"),
        ("(((m)x4000)x4000)x4000", "more than 4096 blocks"),
        ("(m)x4000" * 2, "1 to 4096 blocks, not 8000"),
    ],
)
def test_anything_else_is_refused_by_name_and_place(pattern, message):
    with pytest.raises(ValueError, match=message) as error:
        parse_pattern(pattern)
    assert repr(pattern) in str(error.value)
