import pytest
import torch
from torch import Tensor

from exlstm.data.series import scale_statistics


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def observed(values: Tensor) -> tuple[Tensor, Tensor]:
    return scale_statistics(values, torch.ones_like(values, dtype=torch.bool))


def test_of_plain_noise_it_is_about_mean_and_deviation() -> None:
    centre, scale = observed(normal(8, 4000) * 3 + 10)
    # Standard errors: 3 / sqrt(4000) = 0.05 and 3 / sqrt(8000) = 0.034; five of them are allowed.
    assert torch.allclose(centre, torch.tensor(10.0), atol=0.25)
    clipped = 0.9643  # the standard deviation of a normal variable clipped at its 2% and 98% quantiles
    assert torch.allclose(scale, torch.tensor(3.0 * clipped), atol=0.17)


def test_it_follows_shift_and_stretch() -> None:
    values = normal(4, 100)
    centre, scale = observed(values)
    moved_centre, moved_scale = observed(values * 1024 - 512)  # exact in float32 up to the rounding of the sum
    torch.testing.assert_close(moved_centre, centre * 1024 - 512, rtol=1e-5, atol=1e-3)
    torch.testing.assert_close(moved_scale, scale * 1024, rtol=1e-5, atol=0)


@pytest.mark.parametrize("height", [1e3, 1e9, 1e38, -1e38])
@pytest.mark.parametrize("steps", [8, 100, 720])
def test_a_spike_of_any_height_hardly_moves_it(height: float, steps: int) -> None:
    values = normal(5, steps, seed=steps)
    centre, scale = observed(values)
    spiked = values.clone()
    spiked[:, steps // 2] = height
    spiked_centre, spiked_scale = observed(spiked)
    # One more value at the clipping bound: at most the width of the kept values, over steps or its root.
    width = values.amax(-1) - values.amin(-1)
    assert ((spiked_centre - centre).abs() <= 3 * width / steps).all()
    assert ((spiked_scale - scale).abs() <= width / steps**0.5).all()


@pytest.mark.parametrize(("level", "expected"), [(5.0, 5.0), (-5.0, 5.0), (0.0, 1.0), (1e37, 1e37), (0.1, 0.1)])
@pytest.mark.parametrize("steps", [1, 2, 3, 50])
def test_a_constant_series_has_its_level_as_scale(level: float, expected: float, steps: int) -> None:
    centre, scale = observed(torch.full((2, steps), level))
    assert centre.tolist() == [torch.tensor(level).item()] * 2
    assert scale.tolist() == [torch.tensor(expected).item()] * 2


def test_rare_events_in_a_constant_series_leave_its_level_at_zero_and_give_the_scale() -> None:
    values = torch.full((100,), 3.0)
    values[50] = 1e6
    centre, scale = observed(values)
    assert centre == 3
    torch.testing.assert_close(scale, torch.tensor((1e6 - 3) / 10), rtol=1e-5, atol=0)


def test_nothing_observed_is_zero_and_one_and_never_read() -> None:
    values = torch.full((3, 7), torch.nan)
    centre, scale = scale_statistics(values, torch.zeros(3, 7, dtype=torch.bool))
    assert centre.tolist() == [0, 0, 0]
    assert scale.tolist() == [1, 1, 1]


@pytest.mark.parametrize("unseen", [torch.nan, torch.inf, 1e38, 0.0])
def test_only_observed_values_count(unseen: float) -> None:
    values, mask = normal(6, 90, seed=4), normal(6, 90, seed=5) > 0
    expected = [observed(row[seen]) for row, seen in zip(values, mask, strict=True)]
    centre, scale = scale_statistics(values.masked_fill(~mask, unseen), mask)
    torch.testing.assert_close(centre, torch.stack([one for one, _ in expected]))
    torch.testing.assert_close(scale, torch.stack([one for _, one in expected]))


def test_each_row_stands_alone_in_any_leading_shape() -> None:
    values = normal(2, 3, 50)
    values[0, 0, 3] = 1e30
    values[1, 2] = 7.0
    centre, scale = observed(values)
    assert centre.shape == scale.shape == (2, 3)
    for place in [(0, 1), (0, 0), (1, 2)]:
        alone = observed(values[place])
        torch.testing.assert_close((centre[place], scale[place]), alone)


def test_the_largest_differences_stay_finite() -> None:
    centre, scale = observed(torch.tensor([-1e38, 1e38, 1e38, -1e38]))
    assert centre == 0
    assert scale == torch.tensor(1e38)
