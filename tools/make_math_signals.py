"""Makes the inputs of docs/math: a spring (A.npy, B.npy, C.npy), pushes on it (push.npy), and a signal to remember (signal.npy).

    python tools/make_math_signals.py DIR

A mass on a spring, x'' = -x - 0.2 x' + u: position and velocity are the state, the position is the output. The signal is a
sum of 25 sines of growing frequency with fixed random amplitudes and phases. Needs numpy.
"""
import os
import sys

import numpy as np


def main(folder):
    os.makedirs(folder, exist_ok=True)
    push = np.zeros(400)
    push[20:60], push[180:190], push[260:330] = 1, -2, np.linspace(0, 1.5, 70)
    rng = np.random.default_rng(1)
    k = np.arange(1, 26)
    phase, amplitude = rng.uniform(0, 2 * np.pi, 25), rng.normal(size=25) / np.sqrt(k)
    time = np.arange(2000) / 2000
    signal = (amplitude[:, None] * np.sin(2 * np.pi * k[:, None] * time + phase[:, None])).sum(0)
    for name, array in {"A": [[0.0, 1.0], [-1.0, -0.2]], "B": [0.0, 1.0], "C": [1.0, 0.0], "push": push,
                        "signal": signal}.items():
        np.save(os.path.join(folder, name + ".npy"), np.array(array))


if __name__ == "__main__":
    main(sys.argv[1])
