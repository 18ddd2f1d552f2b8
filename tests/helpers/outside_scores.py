"""What other programs scored of the pictures in `crops`, in 15 digits.

OCTAVE: MATLAB functions that fusion papers use, their arithmetic as published, run in GNU Octave 7.3 with its image
package 2.14. What it lacks is there as MATLAB documents it (`freqspace`, `blkproc`, `kaiser`, `fwind1`); loops over
blocks stand for `blockproc`; D_lambda_K is put together from q2n, MTF and interp23tap, as it says what it does.
RELEASED: the functions of the code released with the paper, on float64 instead of float32.
"""

from __future__ import annotations

from collections.abc import Mapping

Numbers = Mapping[str, float]
"""By the name of the picture."""


def _of(pair: float, odd_pair: float, exposures: float, large_pair: float | None = None) -> Numbers:
    values = {"pair": pair, "odd_pair": odd_pair, "exposures": exposures, "large_pair": large_pair}
    return {name: value for name, value in values.items() if value is not None}


OCTAVE: Mapping[str, Numbers] = {
    "metricChenBlum": _of(0.489438237816263, 0.457299978373882, 0.439907416203033, 0.394393547762984),
    "metricYang": _of(0.823184890513685, 0.832732940884728, 0.683577307524982, 0.73793495880458),
    "metricChen": _of(332.683010114801, 187.517471791617, 262.470066704394, 503.642820189208),
    "analysis_nabf": _of(1.92641163219573e-05, 4.38537446497533e-05, 0.000194751183407017, 4.53601551309089e-05),
    "analysis_SCD": _of(1.24685796244543, 1.50260066763387, 1.20733859473074, 0.930915667495663),
    "AG_evaluation": _of(7.58180116049475, 4.63659271561517, 3.71831878719988, 4.77424503263221),
    "SF_evaluation": _of(19.3562988321427, 16.7442192555934, 12.9823318117327, 15.1688948008057),
    "vifp_mscale": _of(0.627531812321778, 0.521928667255763, 1.44541233715603, 0.599800266485231),
    "vifp_mscale, arguments swapped": _of(0.682045921683913, 0.569666198948336, 1.26393322403144, 0.675998328680462),
    "metricsQabf": _of(0.540302307836053, 0.513597827255551, 0.73509286704372, 0.465531014733856),
    "entropy": _of(7.40035067321159, 6.27736166979245, 6.46972630798946, 7.03882693104084),
    "mef_ms_ssim": _of(0.843802676447936, 0.702247241845683, 0.963494579666967),
    "SAM": {"cubes": 4.37467772080964},
    "ERGAS": {"cubes": 2.33751252070342},
    "SCC": {"cubes": 0.993294344096154},
    "q2n": {"cubes": 0.947089851063576, "three bands": 0.986455090914448},
    "D_lambda_K": {"scene": 0.0903102123461581},
    "D_lambda_K, with our filter": {"scene": 0.0900688046824326},
    "D_s": {"scene": 0.0721500073633081},
}

RELEASED: Mapping[str, Numbers] = {
    "Qcb": _of(0.519348716148923, 0.464683311567468, 0.453626117615933, 0.403933385588789),
    "Qcv": _of(194.959046997087, 124.575277758712, 179.157662521038, 331.436273040437),
    "Qy": _of(0.926548538997839, 0.931724783997013, 0.790403095670791, 0.903393824447113),
}
