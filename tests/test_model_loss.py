"""The paper's network and loss."""

import math

import pytest
import torch
from torch import nn

from bespoke.loss import TPSALoss, tpsa_target
from bespoke.model import MODELS, MaskBLSTM


def test_the_network_is_the_papers():
    model = MaskBLSTM(bins=257)
    lstm = model.lstm
    assert (lstm.hidden_size, lstm.num_layers, lstm.bidirectional, lstm.dropout) == (300, 2, True, 0.3)
    assert (model.linear.in_features, model.linear.out_features) == (600, 257)
    # Two layers and directions of 4 gates; 257 or 600 inputs, 300 recurrent, two biases; batch norm; linear.
    count = 2 * 4 * 300 * (257 + 300 + 2) + 2 * 4 * 300 * (600 + 300 + 2) + 2 * 257 + 600 * 257 + 257
    assert sum(parameter.numel() for parameter in model.parameters()) == count


def test_the_mask_lies_between_0_and_1_and_looks_both_ways():
    model = MaskBLSTM(bins=33, hidden_size=8).eval()
    magnitude = torch.rand(2, 33, 20)
    mask = model(magnitude)
    assert mask.shape == magnitude.shape
    assert 0 < mask.min() < mask.max() < 1
    changed = magnitude.clone()
    changed[:, :, 10] *= 5
    difference = (model(changed) - mask).abs().amax(dim=(0, 1))
    assert difference[9] > 0
    assert difference[11] > 0


def test_a_batch_equals_its_singles():
    model = MaskBLSTM(bins=33, hidden_size=8).eval()
    magnitude = torch.rand(3, 33, 20)
    assert torch.allclose(model(magnitude), torch.cat([model(single[None]) for single in magnitude]), atol=1e-6)


def test_silence_gives_a_finite_mask_and_hyperparameters_make_the_model_again():
    model = MaskBLSTM(bins=33, hidden_size=8, dropout=0.1).eval()
    assert torch.isfinite(model(torch.zeros(1, 33, 5))).all()
    again = MODELS[type(model).__name__](**model.hyperparameters)
    again.load_state_dict(model.state_dict())
    magnitude = torch.rand(1, 33, 5)
    assert torch.equal(again.eval()(magnitude), model(magnitude))


def test_tpsa_target_by_hand():
    mixture = torch.polar(torch.tensor([2.0, 2.0, 2.0, 2.0, 0.0]), torch.tensor([0.3, 0.3, 0.3, 0.3, 0.0]))
    angle = torch.tensor([0.3, 0.3 + math.pi / 3, 0.3 + math.pi, 0.3, 0.0])
    target = torch.polar(torch.tensor([1.0, 1.0, 1.0, 5.0, 1.0]), angle)
    # In phase; 60 degrees off: half; opposite: cut at 0; louder than the mixture: cut at |X|; empty mixture: 0.
    assert tpsa_target(target, mixture).tolist() == pytest.approx([1.0, 0.5, 0.0, 2.0, 0.0], abs=1e-6)


@pytest.mark.parametrize(("distance", "expected"), [("l1", (0.5 + 1.5) / 2), ("l2", (0.25 + 2.25) / 2)])
def test_loss_by_hand(distance, expected):
    mixture, target = torch.tensor([2.0 + 0j, 2.0 + 0j]), torch.tensor([1.0 + 0j, 2.0 + 1j])
    # Targets 1 and 2; masked magnitudes 1.5 and 0.5.
    assert TPSALoss(distance)(torch.tensor([0.75, 0.25]), target, mixture).item() == pytest.approx(expected)


def test_the_ideal_mask_has_no_loss_and_gradients_flow():
    mixture, target = torch.randn(4, 5, dtype=torch.complex64), torch.randn(4, 5, dtype=torch.complex64)
    ideal = tpsa_target(target, mixture) / mixture.abs()
    assert TPSALoss("l2")(ideal, target, mixture).item() == pytest.approx(0, abs=1e-10)
    mask = nn.Parameter(torch.full((4, 5), 0.5))
    TPSALoss("l2")(mask, target, mixture).backward()
    expected = 2 * (0.5 - ideal) * mixture.abs() ** 2 / 20
    assert torch.allclose(mask.grad, expected, atol=1e-5)


def test_unknown_distance_is_refused():
    with pytest.raises(ValueError, match="l1"):
        TPSALoss("cosine")
