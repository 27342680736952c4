"""Other families of networks are about as large as the one they are compared with."""

import pytest

from exlstm.models import Backbone
from exlstm.models.arch import pattern_of


def weights(pattern, **options):
    return sum(p.numel() for p in Backbone(pattern, 64, **options).blocks.parameters())


@pytest.mark.parametrize("arch", ["lstm", "gru", "transformer"])
@pytest.mark.parametrize("options", [{}, {"style": "large"}, {"bidirectional": True}])
def test_the_number_of_weights_is_the_nearest(arch, options):
    pattern = pattern_of(arch, "(ms)x4", 64, **options)
    letter, count = pattern[0], len(pattern)
    wanted = weights("msmsmsms", **options)
    best = abs(weights(pattern, **options) - wanted)
    assert {*pattern} == {{"lstm": "l", "gru": "g", "transformer": "a"}[arch]}
    for other in (count - 1, count + 1):
        if other:
            assert best <= abs(weights(letter * other, **options) - wanted)


def test_xlstm_is_left_alone():
    assert pattern_of("xlstm", "(ms)x2", 64) == "(ms)x2"


def test_an_unknown_family_is_named():
    with pytest.raises(ValueError, match="received 'mamba'"):
        pattern_of("mamba", "m", 64)
