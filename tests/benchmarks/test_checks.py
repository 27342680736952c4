"""No time counts for an operator that computes something else."""

import pytest

from benchmarks import checks
from tests.benchmarks.toys import wrong


@pytest.mark.parametrize("operator", ["mlstm", "slstm", "hmlstm"])
def test_our_operators_pass(operator):
    checks.check(operator)


@pytest.mark.parametrize("operator", ["mlstm", "slstm", "hmlstm"])
def test_an_operator_that_is_off_by_a_little_does_not(operator, monkeypatch):
    monkeypatch.setattr(checks, operator, wrong(getattr(checks, operator)))
    with pytest.raises(checks.DisagreementError, match=rf"{operator} \(torch.float64, whole\) differs"):
        checks.check(operator)
