import dataclasses
import io
import json
import math

import pytest
import torch
from lightning_fabric import Fabric

from amodal.core.contract import Batch, Player, Stage
from amodal.core.device import bf16, pick
from amodal.core.errors import AmodalError, InputError
from amodal.core.rng import Rng
from amodal.train import log, machine, optim
from amodal.train.engine import Plan, fit, run
from amodal.train.plan import RATE

from .toys import PLAN, Line, Toy, data


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def train(method, folder, data=data, **plan):
    settings = {"warmup": 1, "precision": "fp32", "decay": "none", **plan}
    return fit(method, data, folder, Plan(**settings), device="cpu", quiet=True)


def test_it_learns_what_the_data_know(tmp_path):
    method = Line(("both",))
    result = train(method, tmp_path, steps=300, rate=0.05, decay="cosine", ema=0.9)
    assert result.ema["weight"].item() == pytest.approx(2, abs=0.01)
    assert result.ema["bias"].item() == pytest.approx(1, abs=0.01)
    assert torch.equal(method.weight.data, result.ema["weight"])  # the method is left with the averages
    first, *_, last = lines(tmp_path)
    assert first["stage"] == "both" and first["step"] == 1 and last["step"] == 300
    assert first["double"] == pytest.approx(2 * first["loss"], rel=1e-6)
    assert last["loss"] < 1e-3 * first["loss"] and {"rate", "grad_norm", "seconds"} <= first.keys()


def test_a_step_knows_only_its_number(tmp_path):
    method = Line()
    train(method, tmp_path, steps=3, accumulate=2, seed=11, batch=2)
    expected = [(Rng.of(11, 2, "train", "slope", k).seeds, float(data(k).images.sum())) for k in range(6)]
    assert [(seeds, total) for seeds, total, _ in method.seen] == expected


def test_accumulated_micro_batches_are_one_batch(tmp_path):
    def both(k):
        parts = [data(2 * k), data(2 * k + 1)]
        return Batch(*(torch.cat([getattr(p, n) for p in parts]) for n in ("images", "present")))

    a = train(Line(("both",)), tmp_path / "a", steps=5, accumulate=2)
    b = train(Line(("both",)), tmp_path / "b", both, steps=5, batch=4)
    for key in a.ema:
        torch.testing.assert_close(a.ema[key], b.ema[key])
    assert [x["loss"] for x in lines(tmp_path / "a")] == pytest.approx(
        [x["loss"] for x in lines(tmp_path / "b")], rel=1e-5
    )


def test_two_processes_do_what_accumulating_two_does(tmp_path):
    plan = Plan(steps=6, precision="fp32", warmup=1, batch=2, save_every=4)
    fabric = Fabric(accelerator="cpu", devices=2, strategy="ddp_fork", precision="32-true")

    def there(fabric):  # numbers, since tensors do not outlive the process they come from
        return {
            k: v.item()
            for k, v in run(fabric, Line(("both",)), data, tmp_path / "two", plan, False, None, True)[4].items()
        }

    two = fabric.launch(there)
    one = train(Line(("both",)), tmp_path / "one", steps=6, accumulate=2, decay="cosine")
    assert two == pytest.approx({k: v.item() for k, v in one.ema.items()}, rel=1e-5)
    curves = [[x["loss"] for x in lines(tmp_path / n)] for n in ("one", "two")]
    assert curves[0] == pytest.approx(curves[1], rel=1e-5) and len(curves[0]) == 6


class Game(torch.nn.Module):
    """Two players who could hardly be more entangled: each loss depends on both parameters, through one graph."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = (torch.nn.Parameter(torch.tensor(v)) for v in (2.0, 3.0, 5.0))
        self.gradients = {"a": [], "b": [], "c": []}
        for name in self.gradients:
            getattr(self, name).register_post_accumulate_grad_hook(
                lambda p, n=name: self.gradients[n].append(p.grad.item())
            )
        self.forwards = 0

    def stages(self):
        def forward(batch, rng):
            self.forwards += 1
            return self.a * self.b

        codec = Player("codec", lambda: [self.a], lambda ab: (ab * self.b * self.c, {"seen": ab.item()}))
        critic = Player("critic", lambda: [self.b], lambda ab: (-ab * ab, {}))
        return (Stage("codec", forward, (codec, critic)),)


def test_players_leave_nothing_in_each_others_gradients(tmp_path):
    method = Game()
    train(method, tmp_path, steps=1, rate=0.25, clip=1e9, ema=0.0)
    # at the weights before the step: codec a b^2 c, its d/da = b^2 c = 45; critic -(a b)^2, its d/db = -2 a^2 b = -24
    assert method.gradients == {"a": [45.0], "b": [-24.0], "c": []}
    (line,) = lines(tmp_path)
    assert line["codec/loss"] == line["loss"] == 90 and line["critic/loss"] == -36
    assert line["codec/grad_norm"] == 45 and line["critic/grad_norm"] == 24 and line["codec/seen"] == 6
    assert method.forwards == 1
    # the first step of Adam is the rate times the sign; both players took it, the bystander did not
    assert (method.a.item(), method.b.item(), method.c.item()) == pytest.approx((1.75, 3.25, 5.0), abs=1e-6)


def test_clipping_is_each_players_own(tmp_path):
    method = Game()
    method.a.register_post_accumulate_grad_hook(lambda p: None)
    seen = {}
    step = optim.step
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            optim,
            "step",
            lambda o, r: (seen.update({len(seen): o.param_groups[0]["params"][0].grad.item()}), step(o, r)),
        )
        train(method, tmp_path, steps=1, clip=1.0)
    assert seen == pytest.approx({0: 1.0, 1: -1.0}, rel=1e-5)


def test_a_parameter_has_one_player(tmp_path):
    method = Game()
    stage = method.stages()[0]
    method.stages = lambda: (Stage("codec", stage.forward, (stage.players[0], Player("x", lambda: [method.a], None))),)
    with pytest.raises(ValueError, match="a belongs to two players"):
        train(method, tmp_path, steps=1)


def test_the_next_stage_builds_on_averaged_weights(tmp_path):
    method = Line(("slope", "shift"))
    result = train(method, tmp_path, steps=20, rate=0.1, ema=0.9)
    during, after = method.seen[19][2], {weight for *_, weight in method.seen[20:]}
    assert after == {result.ema["weight"].item()} and during not in after
    assert [x["stage"] for x in lines(tmp_path)] == ["slope"] * 20 + ["shift"] * 20 and result.steps == 40


def test_validation_judges_the_averages_and_changes_nothing(tmp_path):
    judged = []

    def validate(method, step, folder):
        assert folder == tmp_path / "a" and not method.training and not torch.is_grad_enabled()
        judged.append((step, method.net[0].weight.max().item()))
        torch.rand(7)
        return {"psnr": step / 10}

    plan = Plan(steps=25, batch=2, precision="fp32", ema=0.99, validate_every=10, rate=1e-2, warmup=1)
    a = fit(Toy(), data, tmp_path / "a", plan, device="cpu", quiet=True, validate=validate)
    b = fit(Toy(), data, tmp_path / "b", plan, device="cpu", quiet=True)
    assert all(torch.equal(a.ema[k], b.ema[k]) for k in a.ema)
    assert [step for step, _ in judged] == [10, 20, 25] and judged[-1][1] == a.ema["net.0.weight"].max().item()
    shown = [(x["step"], x["validation/psnr"]) for x in lines(tmp_path / "a") if "validation/psnr" in x]
    assert shown == [(10, 1.0), (20, 2.0), (25, 2.5)]


def broken(where):
    def get(k):
        batch = data(k)
        return Batch(batch.images * math.nan, batch.present) if k in where else batch

    return get


def test_a_step_without_a_finite_loss_is_skipped(tmp_path):
    method = Line(("both",))
    train(method, tmp_path, broken({3, 4}), steps=10, rate=0.01, ema=0.5)
    found = lines(tmp_path)
    assert [x["step"] for x in found if "skipped" in x] == [4, 5] and found[3]["loss"] is None
    assert all(math.isfinite(p.item()) for p in method.parameters())
    weights = [weight for *_, weight in method.seen]
    assert weights[3] == weights[4] == weights[5] != weights[6]  # nothing moved meanwhile
    assert all(math.isfinite(x["loss"]) for x in found[5:])


def test_ten_steps_without_a_finite_loss_end_the_run(tmp_path):
    with pytest.raises(AmodalError, match=r"slope: no finite loss in 10 steps up to step 15"):
        train(Line(), tmp_path, broken(range(5, 99)), steps=100)
    assert len(lines(tmp_path)) == 15


def test_minutes_end_the_run_and_drive_the_decay(tmp_path):
    result = train(Line(), tmp_path, minutes=0.01, decay="linear", rate=1.0)
    assert 0.6 <= result.seconds < 2 and result.steps > 10
    rates = [x["rate"] for x in lines(tmp_path)]
    assert rates == sorted(rates, reverse=True) and rates[0] > 0.9 and rates[-1] < 0.2
    first = train(Line(), tmp_path / "first", minutes=5, steps=4)
    assert first.steps == 4


def test_rates():
    assert [optim.factor(k, 0, 4, "none") for k in range(5)] == [0.25, 0.5, 0.75, 1, 1]
    assert optim.factor(99, 0.5, 0, "cosine") == pytest.approx(0.5)
    assert optim.factor(99, 0.25, 0, "cosine") == pytest.approx(0.853553, abs=1e-6)
    assert optim.factor(99, 0.25, 0, "linear") == 0.75 and optim.factor(99, 1.5, 0, "linear") == 0


def test_bf16_keeps_master_weights(tmp_path):
    seen = []

    class Watched(Toy):
        def stages(self):
            self.net[0].register_forward_hook(lambda module, x, y: seen.append((module.weight.dtype, y.dtype)))
            return super().stages()

    def steps(precision):
        plan = Plan(steps=40, batch=2, precision=precision, rate=3e-3, warmup=1, seed=3)
        return fit(Watched(), data, tmp_path / precision, plan, device="cpu", quiet=True)

    half, full = steps("bf16"), steps("fp32")
    assert set(seen[:40]) == {(torch.float32, torch.bfloat16)} and set(seen[40:]) == {(torch.float32, torch.float32)}
    assert {v.dtype for v in half.ema.values()} == {torch.float32, torch.int64}  # int64: BatchNorm's counter
    assert half.loss == pytest.approx(full.loss, rel=0.02) and half.loss != full.loss


@pytest.mark.parametrize("dims", [2, 3])
def test_channels_last_is_only_a_layout(tmp_path, dims):
    conv = {2: torch.nn.Conv2d, 3: torch.nn.Conv3d}[dims]

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.net = torch.nn.Sequential(conv(2, 6, 3, padding=1), torch.nn.SiLU(), conv(6, 2, 3, padding=1))

        def stages(self):
            def forward(batch, rng):
                return (self.net(batch.images) - batch.images.roll(1, -1)).square().mean()

            return (Stage("prior", forward, (Player("prior", self.net.parameters, lambda x: (x, {})),)),)

    def cubes(k):
        shape = (2, 2, *(6, 5, 4)[:dims])
        return Batch(torch.randn(shape, generator=torch.Generator().manual_seed(k)), torch.ones(1, dtype=torch.bool))

    last = Net()
    a = train(last, tmp_path / "a", cubes, steps=15, rate=0.01)
    b = train(Net(), tmp_path / "b", cubes, steps=15, rate=0.01, channels_last=False)
    form = {2: torch.channels_last, 3: torch.channels_last_3d}[dims]
    assert last.net[2].weight.is_contiguous(memory_format=form) and not last.net[2].weight.is_contiguous()
    for key in a.ema:
        torch.testing.assert_close(a.ema[key], b.ema[key], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("settings, said", [
    ({}, "no end"), ({"steps": 0}, "steps=0"), ({"steps": 1, "ema": 1.0}, "ema=1.0"), 
    ({"minutes": -1.0}, "minutes=-1.0"), ({"steps": 1, "validate_every": 0}, "validate_every=0"),
])  # fmt: skip
def test_plans_that_cannot_be(settings, said):
    with pytest.raises(InputError, match=said):
        Plan(**settings)


def test_devices_and_precision(tmp_path):
    here = pick("auto").type  # all GPUs, or the CPU once
    assert machine.devices("cpu") == ("cpu", 1) and machine.devices("auto") == (here, 1 if here == "cpu" else "auto")
    with pytest.raises(InputError, match="tpu"):
        machine.devices("tpu")
    with pytest.raises(InputError, match="sharded"):
        fit(Line(), data, tmp_path, PLAN, strategy="fsdp")
    assert bf16("bf16", torch.device("cpu")) and not bf16("fp32", torch.device("cuda"))


class Begun(Line):
    """Two stages; the second has its own share and rate, and first fixes a buffer from the data."""

    def __init__(self):
        super().__init__(("both",))
        self.register_buffer("scale", torch.zeros(()))
        self.calls = 0

    def stages(self):
        (one,) = super().stages()
        return dataclasses.replace(one, share=0.25), dataclasses.replace(
            one, name="second", share=0.75, rate=0.5, begin=self._begin
        )

    def _begin(self, batches):
        self.calls += 1
        self.scale.copy_(batches(3).images.abs().mean())


def test_a_stage_has_its_share_its_rate_and_a_beginning(tmp_path):
    method = Begun()
    train(method, tmp_path, steps=8, save_every=3)
    found = lines(tmp_path)
    assert [x["stage"] for x in found] == ["both"] * 2 + ["second"] * 6
    assert [x["rate"] for x in found] == [RATE] * 2 + [0.5] * 6
    assert method.scale == data(3).images.abs().mean() > 0
    again = Begun()
    plan = Plan(steps=8, save_every=3, warmup=1, precision="fp32", decay="none", rate=0.1)
    fit(again, data, tmp_path, plan, device="cpu", quiet=True, resume=True)
    assert again.calls == 0 and again.scale == method.scale  # the beginning is not made twice
    train(Begun(), tmp_path / "other", steps=8, rate=0.1)
    assert {x["rate"] for x in lines(tmp_path / "other")} == {0.1}  # the plan's own rate is everyone's


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_progress_is_for_people_who_look(monkeypatch):
    def shown(stream, quiet, seconds):
        now = iter(range(seconds, 10**6, seconds))
        monkeypatch.setattr(log.time, "monotonic", lambda: float(next(now)))
        line = log.Line(quiet, stream, 0.0, 0.0)
        for k in range(1, 7):
            line.step("prior", k, 12, 0.5, None)
        line.note("done")
        return stream.getvalue()

    live = shown(Terminal(), False, 1)
    assert (
        live.count("\r") == 6 and "prior 6/12  loss 0.5000" in live and "ETA 0:0" in live and live.endswith("\ndone\n")
    )
    assert shown(io.StringIO(), False, 10).count("steps/s") == 2  # every 30 s, in a file
    assert shown(io.StringIO(), True, 10) == ""
    assert log.clock(3723.4) == "1:02:03" and log.clock(59.6) == "1:00" and log.clock(math.inf) == "-:--"
