"""What the tissues are made of at 3 T: relaxation times, proton density, and how much contrast agent they take up.

Published values, 3 T, adults (ms):
- white and grey matter T1 832 / 1331, T2 80 / 110: Wansapura et al., J Magn Reson Imaging 9:531 (1999); in samples at
  37 C T1 1084 / 1820, T2 69 / 99, blood T1 1932, T2 275, muscle T1 1412, T2 50: Stanisz et al., Magn Reson Med 54:507
  (2005). The table takes values between the two.
- deep grey matter T1: thalamus 1218, putamen 1337, caudate 1483, pallidum 1043: Gelman et al., Magn Reson Med 45:71
  (2001); T2 is shorter there than in cortex, in the order of their iron, pallidum shortest: Gelman et al., Radiology
  210:759 (1999).
- T2* of grey and white matter 66 / 53: Peters et al., Magn Reson Imaging 25:748 (2007).
- blood T1 about 1.6 s: Lu et al., Magn Reson Med 52:679 (2004).
- gadobutrol in plasma at 3 T, r1 5.0 and r2 7.1 per mM per s: Rohrer et al., Invest Radiol 40:715 (2005).
The proton density is the water content relative to CSF (white matter 0.70, grey matter 0.81 to 0.83: Neeb et al.,
NeuroImage 31:1156 (2006)). Rows without a citation here (CSF T2, choroid, dura, lesions, tumour, bone, fat) are typical
values chosen to give the contrast that is seen in practice; they are assumptions of the phantom.
"""

from __future__ import annotations

from dataclasses import dataclass

R1, R2 = 5.0, 7.1  # relaxivities of the contrast agent, 1 / (mM s)


@dataclass(frozen=True)
class Tissue:
    """T1, T2, T2* in ms, `pd` relative to water, `gd` in mM at the time of the post-contrast image.

    `label` is its number in the label map, `group` the tissue class (BIDS common label) it counts to.
    """

    label: int
    group: str
    t1: float
    t2: float
    t2star: float
    pd: float
    gd: float = 0.0
    texture: float = 1.0


# fmt: off
TISSUES: dict[str, Tissue] = {
    #                      label group   T1      T2     T2*    PD    Gd   texture
    "white":       Tissue(1, "WM", 880.0, 72.0, 53.0, 0.70, 0.004),
    "cortex":      Tissue(2, "GM", 1450.0, 104.0, 66.0, 0.82, 0.010),
    "thalamus":    Tissue(3, "GM", 1218.0, 84.0, 52.0, 0.78, 0.008),
    "striatum":    Tissue(4, "GM", 1400.0, 86.0, 48.0, 0.81, 0.008),
    "pallidum":    Tissue(5, "GM", 1043.0, 62.0, 32.0, 0.74, 0.006),
    "ventricle":   Tissue(6, "CSF", 4160.0, 1500.0, 800.0, 1.00, texture=0.3),
    "csf":         Tissue(7, "CSF", 4160.0, 1200.0, 600.0, 1.00, texture=0.3),
    "choroid":     Tissue(8, "CSF", 2000.0, 220.0, 90.0, 0.92, 0.25),
    "vessel":      Tissue(9, "CSF", 1650.0, 55.0, 30.0, 0.90, 0.45),
    "dura":        Tissue(10, "CSF", 1200.0, 50.0, 25.0, 0.60, 0.3),
    "wmh":         Tissue(11, "L", 1350.0, 118.0, 80.0, 0.82),
    "lesion":      Tissue(12, "L", 1500.0, 135.0, 90.0, 0.85, 0.006, 1.5),
    "active":      Tissue(13, "L", 1400.0, 130.0, 85.0, 0.85, 0.15, 1.5),
    "oedema":      Tissue(14, "L", 1500.0, 150.0, 110.0, 0.86, 0.0, 1.5),
    "core":        Tissue(15, "L", 1750.0, 150.0, 100.0, 0.86, 0.01, 3.0),
    "necrosis":    Tissue(16, "L", 2600.0, 320.0, 180.0, 0.94, 0.0, 3.0),
    "rim":         Tissue(17, "L", 1500.0, 115.0, 70.0, 0.84, 0.20, 3.0),
    "skull":       Tissue(18, "BONE", 400.0, 8.0, 3.0, 0.15),
    "scalp":       Tissue(19, "SOFT", 550.0, 70.0, 35.0, 0.75, 0.05, 2.0),
}
# fmt: on
NAMES: tuple[str, ...] = tuple(TISSUES)
HEAD: tuple[str, ...] = ("skull", "scalp")
PATHOLOGY: tuple[str, ...] = tuple(name for name, tissue in TISSUES.items() if tissue.group == "L")
TUMOUR: dict[str, int] = {"necrosis": 1, "core": 1, "oedema": 2, "rim": 3}  # BraTS 2023: NCR, ED, ET


def enhanced(rate_ms: float, concentration: float, relaxivity: float = R1) -> float:
    """Relaxation time (ms) with contrast agent (mM): 1 / T' = 1 / T + r C."""
    return 1.0 / (1.0 / rate_ms + relaxivity * concentration / 1000.0)
