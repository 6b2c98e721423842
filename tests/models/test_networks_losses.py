"""Networks and losses."""

import math

import pytest
import torch
from torch import nn

from bespoke.models.features import CHANNELS, FACTORIZATIONS, TOLD
from bespoke.models.losses import RelativeErrorLoss, TPSALoss, tpsa_target
from bespoke.models.networks import (
    MODELS,
    MaskBLSTM,
    ScoreUNet,
    _Convolution,
    doubt,
    pretrained_score_unet,
)


def test_the_network_is_the_papers():
    model = MaskBLSTM(bins=257)
    lstm = model.lstm
    assert (lstm.hidden_size, lstm.num_layers, lstm.bidirectional, lstm.dropout) == (
        300,
        2,
        True,
        0.3,
    )
    assert (model.linear.in_features, model.linear.out_features) == (600, 257)
    # 2 layers and directions with 4 gates; 257 or 600 inputs, 300 recurrent inputs, 2 biases; batch
    # norm; linear layer.
    count = (
        2 * 4 * 300 * (257 + 300 + 2) + 2 * 4 * 300 * (600 + 300 + 2) + 2 * 257 + 600 * 257 + 257
    )
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


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize(
    ("dtype", "expected"), [(torch.float16, torch.float16), (torch.bfloat16, torch.float32)]
)
def test_the_lstm_on_a_gpu_never_computes_in_float16_unless_it_is_asked_to(dtype, expected):
    network, dtypes = MaskBLSTM(9, hidden_size=8).cuda(), []
    network.lstm.register_forward_hook(
        lambda module, inputs, outputs: dtypes.append(outputs[0].dtype)
    )
    with torch.autocast("cuda", dtype):
        network(torch.rand(2, 9, 5, device="cuda"))
    assert dtypes == [expected]


def test_a_batch_equals_its_singles():
    model = MaskBLSTM(bins=33, hidden_size=8).eval()
    magnitude = torch.rand(3, 33, 20)
    assert torch.allclose(
        model(magnitude), torch.cat([model(single[None]) for single in magnitude]), atol=1e-6
    )


def test_silence_gives_a_finite_mask_and_hyperparameters_make_the_model_again():
    model = MaskBLSTM(bins=33, hidden_size=8, dropout=0.1).eval()
    assert torch.isfinite(model(torch.zeros(1, 33, 5))).all()
    again = MODELS[type(model).__name__](**model.hyperparameters)
    again.load_state_dict(model.state_dict())
    magnitude = torch.rand(1, 33, 5)
    assert torch.equal(again.eval()(magnitude), model(magnitude))


def test_tpsa_target_by_hand():
    mixture = torch.polar(
        torch.tensor([2.0, 2.0, 2.0, 2.0, 0.0]), torch.tensor([0.3, 0.3, 0.3, 0.3, 0.0])
    )
    angle = torch.tensor([0.3, 0.3 + math.pi / 3, 0.3 + math.pi, 0.3, 0.0])
    target = torch.polar(torch.tensor([1.0, 1.0, 1.0, 5.0, 1.0]), angle)
    # In phase; 60 degrees off: half; opposite: 0; louder than the mixture: |X|; empty mixture: 0.
    assert tpsa_target(target, mixture).tolist() == pytest.approx(
        [1.0, 0.5, 0.0, 2.0, 0.0], abs=1e-6
    )


@pytest.mark.parametrize(
    ("distance", "expected"), [("l1", (0.5 + 1.5) / 2), ("l2", (0.25 + 2.25) / 2)]
)
def test_loss_by_hand(distance, expected):
    mixture, target = torch.tensor([2.0 + 0j, 2.0 + 0j]), torch.tensor([1.0 + 0j, 2.0 + 1j])
    # Targets 1 and 2; masked magnitudes 1.5 and 0.5.
    assert TPSALoss(distance)(torch.tensor([0.75, 0.25]), target, mixture).item() == pytest.approx(
        expected
    )


def test_the_ideal_mask_has_no_loss_and_gradients_flow():
    mixture, target = (
        torch.randn(4, 5, dtype=torch.complex64),
        torch.randn(4, 5, dtype=torch.complex64),
    )
    ideal = tpsa_target(target, mixture) / mixture.abs()
    assert TPSALoss("l2")(ideal, target, mixture).item() == pytest.approx(0, abs=1e-10)
    mask = nn.Parameter(torch.full((4, 5), 0.5))
    TPSALoss("l2")(mask, target, mixture).backward()
    expected = 2 * (0.5 - ideal) * mixture.abs() ** 2 / 20
    assert torch.allclose(mask.grad, expected, atol=1e-5)


def test_unknown_distance_is_refused():
    with pytest.raises(ValueError, match="l1"):
        TPSALoss("cosine")


def test_the_u_net_starts_from_the_factorizations_mean():
    features = torch.rand(2, CHANNELS, 65, 21)
    mask = ScoreUNet()(torch.rand(2, 65, 21), features)
    torch.testing.assert_close(mask, features[:, :FACTORIZATIONS].mean(dim=1).clamp(0.02, 0.98))


@pytest.mark.parametrize(
    ("doubt_db", "mean", "share"),
    [
        ((-8.0, -4.0), 0.9, 1.0),  # the network's doubt is 0 dB, that of the mean -9.5
        ((20.0, 30.0), 0.9, 0.0),
        ((-2.0, 2.0), 0.9, 0.5),
        ((-8.0, -4.0), 0.3, 0.0),  # 3.7 dB of the mean's own
    ],
)
def test_a_u_net_that_doubts_itself_gives_way_to_factorizations_that_do_not(doubt_db, mean, share):
    magnitude, features = torch.rand(2, 65, 21), torch.full((2, CHANNELS, 65, 21), mean)
    features[:, TOLD] = 0
    model = ScoreUNet(doubt_db=doubt_db)
    model.last.bias.data.fill_(math.log((1 - mean) / mean))  # makes 0.5 of the mean
    torch.testing.assert_close(model(magnitude, features), torch.full((2, 65, 21), 0.5))
    expected = torch.full((2, 65, 21), 0.5 + (mean - 0.5) * share)
    torch.testing.assert_close(model.eval()(magnitude, features), expected)


@pytest.mark.parametrize(("least", "told"), [(0.0, 1), (0.25, 1), (1.0, 1), (0.25, 0)])
def test_a_share_of_the_factorizations_stays_where_the_others_are_known(least, told):
    magnitude, features = torch.rand(2, 65, 21), torch.full((2, CHANNELS, 65, 21), 0.3)
    features[:, TOLD] = told
    model = ScoreUNet(doubt_db=(20.0, 30.0), factorization_share=least)
    model.last.bias.data.fill_(math.log(7 / 3))
    expected = torch.full((2, 65, 21), 0.5 - 0.2 * least * told)
    torch.testing.assert_close(model.eval()(magnitude, features), expected)
    assert ScoreUNet(**model.hyperparameters).factorization_share == least
    with pytest.raises(ValueError, match="from 0 to 1"):
        ScoreUNet(factorization_share=1.5)


def test_doubt_is_the_undecided_energy_re_what_is_kept():
    mask, magnitude = (
        torch.tensor([[[0.5, 1.0]], [[1.0, 0.0]]]),
        torch.tensor([[[2.0, 3.0]], [[1.0, 1.0]]]),
    )
    undecided, kept = 0.25 * 4, 0.25 * 4 + 9
    expected = [10 * math.log10(undecided / kept), -120]
    torch.testing.assert_close(doubt(mask, magnitude), torch.tensor(expected), atol=1e-3, rtol=0)


def test_bounds_of_doubt_in_the_wrong_order_are_refused():
    with pytest.raises(ValueError, match="lower first"):
        ScoreUNet(doubt_db=(0.0, -4.0))


def test_the_pretrained_u_net_knows_no_level_and_takes_any_size():
    model = pretrained_score_unet().eval()
    magnitude, features = torch.rand(1, 129, 50) + 0.1, torch.rand(1, CHANNELS, 129, 50)
    mask = model(magnitude, features)
    assert mask.shape == (1, 129, 50)
    assert 0 <= mask.min() < mask.max() <= 1
    torch.testing.assert_close(model(1000 * magnitude, features), mask, atol=1e-4, rtol=0)
    assert torch.isfinite(model(torch.zeros(1, 129, 50), torch.zeros(1, CHANNELS, 129, 50))).all()


def test_the_pretrained_u_net_keeps_its_statistics_when_it_is_trained_on():
    model = pretrained_score_unet().train()
    before = {name: value.clone() for name, value in model.named_buffers()}
    model(torch.rand(2, 65, 20), torch.rand(2, CHANNELS, 65, 20)).mean().backward()
    assert all(torch.equal(value, before[name]) for name, value in model.named_buffers())
    assert any(
        parameter.grad is not None and parameter.grad.any() for parameter in model.parameters()
    )


def test_the_relative_error_is_the_sdr_of_each_example():
    target = torch.tensor([[[3 + 4j]], [[0.3 + 0.4j]]])
    mixture = 2 * target
    # Error a tenth of the target's amplitude: 20 dB below it, however loud the example is.
    assert RelativeErrorLoss(floor_db=-120)(
        torch.full((2, 1, 1), 0.55), target, mixture
    ).item() == pytest.approx(-20, abs=1e-3)
    assert RelativeErrorLoss()(torch.zeros(2, 1, 1), target, mixture).item() == pytest.approx(
        0, abs=1e-3
    )


def test_a_silent_target_asks_for_a_silent_estimate():
    mixture, silence = (
        torch.ones(1, 4, 4, dtype=torch.complex64),
        torch.zeros(1, 4, 4, dtype=torch.complex64),
    )
    loss = RelativeErrorLoss(floor_db=-40)
    assert loss(torch.zeros(1, 4, 4), silence, mixture).item() == pytest.approx(0, abs=1e-3)
    assert loss(torch.full((1, 4, 4), 0.1), silence, mixture).item() == pytest.approx(
        10 * math.log10(101), abs=1e-2
    )
    assert torch.isfinite(loss(torch.zeros(1, 4, 4), silence, silence))


def test_the_relative_error_has_a_gradient_where_sounds_fade_into_denormals():
    mask = torch.full((1, 1, 3), 0.5, requires_grad=True)
    target = torch.tensor([[[1 + 0j, 1e-42 + 1e-42j, 0j]]])
    RelativeErrorLoss()(mask, target, target).backward()
    assert torch.isfinite(mask.grad).all()


def test_fixed_statistics_in_the_convolution_give_what_normalizing_after_it_gives():
    torch.manual_seed(0)
    layer = _Convolution(3, 4, dilation=(1, 2))
    _, norm, _ = layer
    for value in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
        value.data.uniform_(0.5, 2.0)
    layer.eval()
    hidden = torch.randn(2, 3, 6, 7)
    results = []
    for forward in (layer, lambda hidden: torch.nn.Sequential.forward(layer, hidden)):
        layer.zero_grad()
        output = forward(hidden)
        output.square().sum().backward()
        results.append(
            [output.detach(), *(parameter.grad.clone() for parameter in layer.parameters())]
        )
    for folded, plain in zip(*results, strict=True):
        torch.testing.assert_close(folded, plain, rtol=1e-4, atol=1e-4)
