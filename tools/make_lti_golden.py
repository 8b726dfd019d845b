"""Makes src/lti/testdata/discretized.safetensors: 50 random stable systems and what SciPy's cont2discrete makes of them.

    python tools/make_lti_golden.py src/lti/testdata

Tensors, all f64, for system NN: NN.system is [[A B] [C D]], NN.sizes its n, inputs and outputs, NN.dt the step, and NN.zoh, NN.euler,
NN.bilinear, NN.backward_diff, NN.gbt (alpha 0.3) are [A_bar B_bar]. SciPy's C and D of the last three are left out:
there they take in half of the step, here they stay what they are. NN.u is an input and NN.y the output of
x_k = A_bar x_(k-1) + B_bar u_k by scipy.signal.dlsim from the zero-order hold's matrices; dlsim gives C x_(k-1), so its
C and D are C A_bar and C B_bar + D. Needs numpy, scipy and safetensors.
"""
import sys

import numpy as np
import scipy
import scipy.signal
from safetensors.numpy import save_file

SEED = 20201


def main(folder):
    rng = np.random.default_rng(SEED)
    tensors = {}
    for number in range(50):
        n, inputs, outputs = 1 + number % 8, int(rng.integers(1, 3)), int(rng.integers(1, 3))
        A = rng.standard_normal((n, n)) * 10.0 ** rng.uniform(-1, 1)
        # The slowest mode decays at a rate between 0.01 and 1.
        A -= (np.linalg.eigvals(A).real.max() + 10.0 ** rng.uniform(-2, 0)) * np.eye(n)
        B, C = rng.standard_normal((n, inputs)), rng.standard_normal((outputs, n))
        D = rng.standard_normal((outputs, inputs))
        dt = float(10.0 ** rng.uniform(-3, 0))
        name = f"{number:02}."
        tensors[name + "system"] = np.block([[A, B], [C, D]])
        tensors[name + "sizes"] = np.array([n, inputs, outputs])
        tensors[name + "dt"] = np.array([dt])
        for method in ("zoh", "euler", "bilinear", "backward_diff", "gbt"):
            alpha = 0.3 if method == "gbt" else None
            Ad, Bd = scipy.signal.cont2discrete((A, B, C, D), dt, method=method, alpha=alpha)[:2]
            tensors[name + method] = np.hstack([Ad, Bd])
            if method == "zoh":
                u = rng.standard_normal((12, inputs))
                tensors[name + "u"] = u
                tensors[name + "y"] = scipy.signal.dlsim((Ad, Bd, C @ Ad, C @ Bd + D, dt), u)[1]
    made_by = f"tools/make_lti_golden.py, numpy {np.__version__}, scipy {scipy.__version__}, seed {SEED}"
    save_file(tensors, folder + "/discretized.safetensors", metadata={"made_by": made_by})


if __name__ == "__main__":
    main(sys.argv[1])
