"""Make brownian.npz: what torchsde draws for k-diffusion's SDE samplers, three seeds and five intervals of levels.

Needs torch, torchsde 0.2.6 and k-diffusion 0.1.1, which the tests do not: run it in an environment of its own. The
noise is AUTOMATIC1111's with RNG: CPU. Intervals are asked for in the order of a sampler, which must not matter.
"""

from pathlib import Path

import numpy as np
import torch
from bare_k_diffusion import sampling

SEEDS = [0, 1234567890, 2**64 - 1]
LOW, HIGH = 0.029167158, 14.614641  # of Stable Diffusion, in float32
INTERVALS = [(14.614641, 9.5), (9.5, 3.25), (3.25, 3.2499), (0.7, 0.033333), (0.033333, 0.029167158)]
SHAPE = (4, 6, 5)


def main() -> None:
    tree = sampling.BrownianTreeNoiseSampler(
        torch.zeros(len(SEEDS), *SHAPE), torch.tensor(LOW), torch.tensor(HIGH), seed=SEEDS
    )
    draws = np.stack([tree(torch.tensor(s), torch.tensor(t)).numpy() for s, t in INTERVALS], axis=1)
    path = Path(__file__).with_name("brownian.npz")
    np.savez(path, seeds=np.array(SEEDS, np.uint64), intervals=INTERVALS, limits=[LOW, HIGH], draws=draws)


if __name__ == "__main__":
    main()
