"""Signal equations: what a pulse sequence makes of T1, T2, T2* and proton density. Times in ms, angles in degrees."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from ...core.modality import MODALITIES as _KNOWN
from ..intensity import QUANTITIES


@dataclass(frozen=True)
class Protocol:
    """One sequence with its timing; what a sequence does not use stays 0."""

    sequence: str
    tr: float
    te: float
    ti: float = 0.0
    flip: float = 90.0
    echo_spacing: float = 0.0
    pulses: int = 0


@dataclass(frozen=True)
class Matter:
    """Relaxation times (ms) and proton density of some voxels; arrays that broadcast, or numbers."""

    t1: np.ndarray
    t2: np.ndarray
    t2star: np.ndarray
    pd: np.ndarray


def spoiled_gradient_echo(m: Matter, p: Protocol) -> np.ndarray:
    """Ernst & Anderson, Rev Sci Instrum 37:93 (1966): PD sin a (1 - E1) / (1 - E1 cos a) exp(-TE / T2*)."""
    e1, angle = np.exp(-p.tr / m.t1), math.radians(p.flip)
    return m.pd * math.sin(angle) * (1 - e1) / (1 - e1 * math.cos(angle)) * np.exp(-p.te / m.t2star)


def mprage(m: Matter, p: Protocol) -> np.ndarray:
    """Inversion, wait, a train of spoiled pulses, wait: Mugler & Brookeman, Magn Reson Med 15:152 (1990).

    The longitudinal magnetisation goes M -> a M + b in every interval; its steady state over the repetition is solved
    exactly and read at the middle of the train, where k-space centre is. TI counts from inversion to there.
    """
    angle, half = math.radians(p.flip), p.pulses // 2
    before = p.ti - half * p.echo_spacing
    after = p.tr - before - p.pulses * p.echo_spacing
    e, ea, eb = np.exp(-p.echo_spacing / m.t1), np.exp(-before / m.t1), np.exp(-after / m.t1)
    pulse = math.cos(angle) * e  # one pulse, then relaxation for the echo spacing
    driven = (1 - e) / (1 - pulse)  # where the train alone would settle, just before a pulse
    train = pulse**p.pulses
    # steady state just before the inversion: m0 = eb * (train * (entry - driven) + driven) + 1 - eb
    m0 = (eb * (train * (1 - ea - driven) + driven) + 1 - eb) / (1 + eb * train * ea)
    entry = 1 - (1 + m0) * ea
    middle = pulse**half * (entry - driven) + driven
    return m.pd * math.sin(angle) * np.abs(middle) * np.exp(-p.te / m.t2star)


def spin_echo(m: Matter, p: Protocol) -> np.ndarray:
    """PD (1 - exp(-TR / T1)) exp(-TE / T2)."""
    return m.pd * (1 - np.exp(-p.tr / m.t1)) * np.exp(-p.te / m.t2)


def inversion_recovery_spin_echo(m: Matter, p: Protocol) -> np.ndarray:
    """FLAIR, Hajnal et al., J Comput Assist Tomogr 16:841 (1992): PD |1 - 2 exp(-TI/T1) + exp(-TR/T1)| exp(-TE/T2)."""
    return m.pd * np.abs(1 - 2 * np.exp(-p.ti / m.t1) + np.exp(-p.tr / m.t1)) * np.exp(-p.te / m.t2)


def balanced_ssfp(m: Matter, p: Protocol, offset: np.ndarray | float = 0.0) -> np.ndarray:
    """Balanced steady state, alternating pulses, `offset` Hz off resonance: Freeman & Hill, J Magn Reson 4:366 (1971).

    On resonance it is PD sin a (1 - E1) / (1 - (E1 - E2) cos a - E1 E2) exp(-TE / T2); dark bands lie 1 / (2 TR) away.
    """
    e1, e2, angle = np.exp(-p.tr / m.t1), np.exp(-p.tr / m.t2), math.radians(p.flip)
    turn = np.cos(np.pi + 2 * np.pi * np.asarray(offset, np.float32) * np.float32(p.tr / 1000))
    down = (1 - e1 * math.cos(angle)) * (1 - e2 * turn) - e2 * (e1 - math.cos(angle)) * (e2 - turn)
    return m.pd * math.sin(angle) * (1 - e1) * np.sqrt(1 - 2 * e2 * turn + e2**2) / down * np.exp(-p.te / m.t2)


def nulling_time(t1: float, tr: float) -> float:
    """The inversion time (ms) at which a tissue of this T1 gives no signal: T1 ln(2 / (1 + exp(-TR / T1)))."""
    return t1 * math.log(2 / (1 + math.exp(-tr / t1)))


SEQUENCES: dict[str, Callable[[Matter, Protocol], np.ndarray]] = {
    "spoiled gradient echo": spoiled_gradient_echo,
    "MPRAGE": mprage,
    "spin echo": spin_echo,
    "inversion recovery spin echo": inversion_recovery_spin_echo,
    "balanced SSFP": balanced_ssfp,
}

# modality -> the protocols a site may use for it; the first is the usual one. TI = 0 in FLAIR: null CSF.
PROTOCOLS: dict[str, tuple[Protocol, ...]] = {
    "T1w": (
        Protocol("MPRAGE", tr=2300, te=3.0, ti=900, flip=9, echo_spacing=7.0, pulses=160),
        Protocol("MPRAGE", tr=1900, te=2.5, ti=900, flip=9, echo_spacing=6.5, pulses=160),
        Protocol("spoiled gradient echo", tr=24, te=4.6, flip=30),
    ),
    "T2w": (Protocol("spin echo", tr=4800, te=90), Protocol("spin echo", tr=3500, te=100)),
    "FLAIR": (
        Protocol("inversion recovery spin echo", tr=9000, te=120),
        Protocol("inversion recovery spin echo", 7000, 110),
    ),
    "PDw": (Protocol("spin echo", tr=3000, te=14),),
    "T2starw": (Protocol("spoiled gradient echo", tr=650, te=20, flip=20),),
}
SAME_AS = {"T1Gd": "T1w"}  # acquired with the very protocol of another modality, after contrast agent
MODALITIES: tuple[str, ...] = tuple(  # quantities are made by modules of their own
    name for name in _KNOWN if name in PROTOCOLS or name in SAME_AS or name in QUANTITIES
)


def draw(modality: str, rng: np.random.Generator, jitter: float, csf_t1: float) -> Protocol:
    """A site's protocol: one of the table with its times and flip angle scaled by exp(jitter N(0, 1)), within bounds.

    With jitter 0 it is the usual protocol. TI of FLAIR is set to null CSF of T1 `csf_t1` (ms), to within 0.35 jitter:
    sites choose it for other reasons too, and CSF is seldom black.
    """
    choices = PROTOCOLS[modality]
    weights = np.array([2.0] + [1.0] * (len(choices) - 1))
    pick, scales = rng.choice(len(choices), p=weights / weights.sum()), np.exp(jitter * rng.normal(size=5).clip(-2, 2))
    base = choices[int(pick) if jitter > 0 else 0]
    p = replace(base, tr=base.tr * float(scales[0]), te=base.te * float(scales[1]), flip=base.flip * float(scales[2]))
    if base.sequence == "MPRAGE":
        ti = base.ti * float(scales[3]) ** 0.5
        # the train must fit between inversion and the next repetition
        ti = max(ti, base.pulses // 2 * base.echo_spacing + 20)
        p = replace(p, ti=ti, tr=max(p.tr, ti + base.pulses * base.echo_spacing / 2 + 100))
    if base.sequence == "inversion recovery spin echo":
        p = replace(p, ti=nulling_time(csf_t1, p.tr) * float(scales[3]) ** 0.35)
    return p if p.sequence != "spin echo" else replace(p, flip=90.0)
