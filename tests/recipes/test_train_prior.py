"""What the prior is told in training, and how its weights are kept."""

import numpy as np
import torch

from bespoke.models.networks import ScoreUNet
from bespoke.score.midi import Note
from recipes.prior.train_prior import mix, save, told

PARTS = [[Note(0.0, 1.0, pitch)] for pitch in range(40, 48)]
STRANGERS = [[Note(0.0, 1.0, 90)], [Note(0.0, 1.0, 91)]]


def test_the_network_is_told_nothing_some_or_all_and_at_times_a_wrong_part():
    draws = [told(PARTS, STRANGERS, np.random.default_rng(seed)) for seed in range(400)]
    wrong = [sum(part in STRANGERS for part in draw) for draw in draws]
    right = [sum(part in PARTS for part in draw) for draw in draws]
    assert 0.28 < np.mean([not draw for draw in draws]) < 0.42
    assert 0.3 < np.mean([count == len(PARTS) for count in right]) < 0.5
    assert any(0 < count < len(PARTS) for count in right)
    assert (max(wrong), 0.03 < np.mean(wrong) < 0.1) == (1, True)
    assert told([], [], np.random.default_rng(0)) == []


def test_weights_are_mixed_and_written(tmp_path):
    model, other = ScoreUNet(channels=[4, 4]), ScoreUNet(channels=[4, 4])
    expected = 0.75 * model.first[0].weight + 0.25 * other.first[0].weight
    mix(model, other.state_dict(), 0.25)
    torch.testing.assert_close(model.first[0].weight, expected)
    save(model, tmp_path / "prior.pt")
    written = torch.load(tmp_path / "prior.pt", weights_only=True)
    assert written["channels"] == [4, 4]
    assert written["weights"]["first.0.weight"].dtype == torch.half
    torch.testing.assert_close(
        written["weights"]["first.0.weight"].float(), expected.detach(), atol=1e-3, rtol=1e-2
    )
