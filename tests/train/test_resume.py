"""A run that is killed goes on as if nothing had happened."""

import json
import multiprocessing
import os
import signal
import time
from dataclasses import replace

import pytest
import torch

from amodal.core.errors import InputError
from amodal.train import checkpoint, log
from amodal.train.engine import Plan, fit

from .toys import PLAN, Line, Toy, data, slow


def curve(folder):
    """The metrics without the clock."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "seconds"} for line in lines]


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def work(folder, said):
    torch.set_num_threads(1)
    result = fit(Toy(), slow, folder, PLAN, device="cpu", quiet=True, resume=True)
    said.put((result.stopped, result.steps))


def start(folder, beyond, number):
    """Train in a process of its own, and send it a signal when `beyond` steps are logged."""
    fork = multiprocessing.get_context("fork")
    said = fork.SimpleQueue()
    child = fork.Process(target=work, args=(folder, said))
    child.start()
    metrics, deadline = folder / "metrics.jsonl", time.monotonic() + 60
    while not metrics.exists() or len(metrics.read_text().splitlines()) <= beyond:
        assert child.is_alive() and time.monotonic() < deadline, "the run ended before it could be stopped"
        time.sleep(0.003)
    os.kill(child.pid, number)
    child.join(60)
    return child.exitcode, None if said.empty() else said.get()


def test_killed_and_terminated_runs_go_on_bit_for_bit(tmp_path):
    whole = fit(Toy(), data, tmp_path / "whole", PLAN, device="cpu", quiet=True)
    killed = tmp_path / "killed"
    code, _ = start(killed, 33, signal.SIGKILL)
    assert code == -signal.SIGKILL
    logged = len(curve(killed))
    assert 33 < logged < 120
    code, said = start(killed, 47, signal.SIGTERM)  # resumes, and is asked politely
    assert code == 0 and said[0]
    assert checkpoint.newest(killed, print).state["step"] == said[1] < 120  # saved where it stopped
    again = fit(Toy(), data, killed, PLAN, device="cpu", quiet=True, resume=True)
    assert curve(killed) == curve(tmp_path / "whole")
    assert same(again.ema, whole.ema) and again.steps == whole.steps == 120 and again.loss == whole.loss
    ends = [checkpoint.newest(folder, print).tensors for folder in (killed, tmp_path / "whole")]
    assert same(*ends) and any(k.startswith("moments/") for k in ends[0])


class Crash(Exception):
    pass


def crash_at(index):
    def get(k):
        if k == index:
            raise Crash
        return data(k)

    return get


def test_resume_in_the_second_stage(tmp_path):
    plan = Plan(steps=10, warmup=1, rate=0.1, ema=0.5, save_every=4, precision="fp32")
    whole = fit(Line(("slope", "shift")), data, tmp_path / "whole", plan, device="cpu", quiet=True)

    calls = iter(range(100))
    with pytest.raises(Crash):
        fit(
            Line(("slope", "shift")),
            lambda k: crash_at(16)(next(calls)) and data(k),
            tmp_path / "cut",
            plan,
            device="cpu",
            quiet=True,
        )
    assert len(curve(tmp_path / "cut")) == 16
    method = Line(("slope", "shift"))
    again = fit(method, data, tmp_path / "cut", plan, device="cpu", quiet=True, resume=True)
    assert curve(tmp_path / "cut") == curve(tmp_path / "whole") and same(again.ema, whole.ema)
    assert len(method.seen) == 6 and again.steps == 20  # only what was lost is done again


def test_a_longer_plan_takes_a_finished_run_further(tmp_path):
    plan = replace(PLAN, decay="none")
    fit(Toy(), data, tmp_path / "run", replace(plan, steps=30), device="cpu", quiet=True)
    longer = fit(Toy(), data, tmp_path / "run", replace(plan, steps=60), device="cpu", quiet=True, resume=True)
    whole = fit(Toy(), data, tmp_path / "whole", replace(plan, steps=60), device="cpu", quiet=True)
    assert same(longer.ema, whole.ema) and longer.steps == 60


def test_damaged_checkpoints_are_passed_over(tmp_path, capsys):
    plan = replace(PLAN, steps=60)
    whole = fit(Toy(), data, tmp_path, plan, device="cpu", quiet=True)
    kept = sorted((tmp_path / "checkpoints").iterdir())
    assert [k.name for k in kept] == ["00-000000040", "00-000000060"]  # the last two
    tensors = kept[1] / "tensors.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:-1] + b"\x01")
    again = fit(Toy(), data, tmp_path, plan, device="cpu", resume=True)
    assert "damaged" in (said := capsys.readouterr().err) and "resumed at prior step 40" in said
    assert same(again.ema, whole.ema)
    for folder in (tmp_path / "checkpoints").iterdir():
        (folder / "state.json").write_text("{")
    assert checkpoint.newest(tmp_path, lambda _: None) is None


def test_a_kill_while_saving_leaves_the_older_checkpoint(tmp_path, monkeypatch):
    checkpoint.save(tmp_path, 0, 5, {"weights/a": torch.arange(3.0)}, {"note": 1}, keep=2)

    def killed(*_):
        raise Crash

    monkeypatch.setattr(checkpoint.os, "replace", killed)
    with pytest.raises(Crash):
        checkpoint.save(tmp_path, 0, 9, {"weights/a": torch.zeros(3)}, {"note": 2}, keep=2)
    monkeypatch.undo()
    found = checkpoint.newest(tmp_path, print)
    assert found.state["step"] == 5 and torch.equal(found.part("weights")["a"], torch.arange(3.0))
    for step in (9, 12):
        checkpoint.save(tmp_path, 0, step, {"weights/a": torch.zeros(3)}, {}, keep=2)
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["00-000000009", "00-000000012"]


def test_tied_weights_and_any_layout_are_kept(tmp_path):
    one = torch.randn(4, 3, 2, 2)
    checkpoint.save(
        tmp_path, 0, 1, {"a": one, "b": one, "c": one.contiguous(memory_format=torch.channels_last)}, {}, keep=1
    )
    found = checkpoint.newest(tmp_path, print).tensors
    assert all(torch.equal(found[k], one) for k in "abc")


def test_resume_without_a_checkpoint_starts_anew_and_says_so(tmp_path, capsys):
    fit(Line(), data, tmp_path, Plan(steps=3), device="cpu", resume=True)
    assert "starting anew" in capsys.readouterr().err


def test_a_run_is_not_overwritten_unasked(tmp_path):
    plan = Plan(steps=3, precision="fp32")
    fit(Line(), data, tmp_path, plan, device="cpu", quiet=True)
    before = (tmp_path / "metrics.jsonl").read_bytes()
    with pytest.raises(InputError, match="--resume"):
        fit(Line(), data, tmp_path, plan, device="cpu", quiet=True)
    assert (tmp_path / "metrics.jsonl").read_bytes() == before
    with pytest.raises(InputError, match="same method"):
        fit(Line(("both",)), data, tmp_path, plan, device="cpu", quiet=True, resume=True)
    assert fit(Line(), data, tmp_path, plan, device="cpu", quiet=True, overwrite=True).steps == 3
    assert len(curve(tmp_path)) == 3


def test_metrics_are_cut_back_even_if_the_last_line_is_half(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = [json.dumps({"stage": s, "step": k}) for s in ("a", "b") for k in (1, 2, 3)]
    path.write_text("\n".join(lines) + '\n{"stage": "b", "st')
    log.truncate(path, ("a", "b"), 1, 2)
    assert path.read_text().splitlines() == lines[:5]
    log.truncate(path, ("a", "b"), 0, 1)
    assert path.read_text().splitlines() == lines[:1]
