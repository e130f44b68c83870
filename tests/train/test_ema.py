import pytest
import torch

from amodal.train.ema import Ema


def one(value, dtype=torch.float32):
    module = torch.nn.Linear(1, 1, bias=False).to(dtype)
    torch.nn.init.constant_(module.weight, value)
    return module


def test_ramp_then_decay():
    module = one(0.0)
    ema = Ema(dict(module.named_parameters()), 0.5)
    expected = 0.0
    for n, decay in enumerate([0.1, 2 / 11, 3 / 12, 4 / 13, 5 / 14, 6 / 15, 7 / 16, 8 / 17, 0.5, 0.5]):
        torch.nn.init.constant_(module.weight, n + 1.0)
        ema.update(n)
        expected = decay * expected + (1 - decay) * (n + 1)
        assert ema.shadow["weight"].item() == pytest.approx(expected, rel=1e-6)


def test_averages_stay_in_float32_when_weights_do_not():
    module = one(1.0, torch.bfloat16)
    ema = Ema(dict(module.named_parameters()), 0.999)
    torch.nn.init.constant_(module.weight, 1.0078125)  # the next number in bf16
    ema.update(10**6)
    assert ema.shadow["weight"].dtype == torch.float32
    assert ema.shadow["weight"].item() == pytest.approx(1 + 0.0078125 * 0.001, rel=1e-7)
    with ema.swapped(module):
        assert module.weight.dtype == torch.bfloat16


def test_swapped_gives_everything_back():
    module = torch.nn.Sequential(one(3.0), torch.nn.Dropout())
    module[1].eval()
    ema = Ema(dict(module.named_parameters()), 0.9)
    torch.nn.init.constant_(module[0].weight, 5.0)
    storage = module[0].weight.data_ptr()
    with pytest.raises(KeyError), ema.swapped(module) as inside:
        assert inside is module and module[0].weight.item() == 3.0 and not module.training
        raise KeyError
    assert module[0].weight.item() == 5.0 and module[0].weight.data_ptr() == storage
    assert module.training and module[0].training and not module[1].training
    assert ema.shadow["0.weight"].item() == 3.0


def test_apply_and_load():
    module = one(3.0)
    ema = Ema(dict(module.named_parameters()), 0.9)
    ema.load({"weight": torch.full((1, 1), 7.0)})
    ema.apply()
    assert module.weight.item() == 7.0
    torch.nn.init.constant_(module.weight, 1.0)
    assert ema.shadow["weight"].item() == 7.0  # a copy, not a view
