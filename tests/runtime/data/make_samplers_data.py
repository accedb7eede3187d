"""Make samplers.npz: what other programs' samplers end with, and their noise levels, on a small network in float64.

Needs torch, scipy, diffusers 0.42.1 and k-diffusion 0.1.1 with torchsde and torchdiffeq, of which these tests need
none: run it in an environment of its own. k-diffusion's functions are called for each of A1111's schedules; those that
k-diffusion lacks are written anew, one level at a time. UniPC, PLMS and LCM are diffusers' classes at A1111's levels.
"""

import inspect
import math
import sys
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import torch
from bare_k_diffusion import sampling
from diffusers import LCMScheduler, PNDMScheduler, UniPCMultistepScheduler
from scipy import stats

sys.path.insert(0, str(Path(__file__).parents[2]))
from reference_solvers import STEPS, Diffusion, start, toy_network

torch.set_default_dtype(torch.float64)
MODEL = Diffusion.scaled_linear(0.00085, 0.012, 1000)
LOW, HIGH = float(MODEL.levels[0]), float(MODEL.levels[-1])
KNOWN = [14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029]
CHURN = {"s_churn": 20.0, "s_tmin": 0.1, "s_tmax": 10.0, "s_noise": 1.003}
SOLVERS = {
    "Euler": sampling.sample_euler,
    "Euler a": sampling.sample_euler_ancestral,
    "LMS": sampling.sample_lms,
    "Heun": sampling.sample_heun,
    "DPM2": sampling.sample_dpm_2,
    "DPM2 a": sampling.sample_dpm_2_ancestral,
    "DPM++ 2S a": sampling.sample_dpmpp_2s_ancestral,
    "DPM++ 2M": sampling.sample_dpmpp_2m,
    "DPM++ SDE": sampling.sample_dpmpp_sde,
    "DPM++ 2M SDE": sampling.sample_dpmpp_2m_sde,
    "DPM++ 2M SDE Heun": partial(sampling.sample_dpmpp_2m_sde, solver_type="heun"),
    "DPM++ 3M SDE": sampling.sample_dpmpp_3m_sde,
}


def at(t):
    """Sigma at a fractional timestep, log-linear."""
    below = min(int(t), 998)
    low, high = math.log(MODEL.levels[below]), math.log(MODEL.levels[below + 1])
    return math.exp(low + (t - below) * (high - low))


def uniform(n):
    return [at(999 - 999 * i / max(n - 1, 1)) for i in range(n)] + [0]


def sgm_uniform(n):
    return [at(999 - 999 * i / n) for i in range(n)] + [0]


def kl_optimal(n):
    return [math.tan(i / n * math.atan(LOW) + (1 - i / n) * math.atan(HIGH)) for i in range(n + 1)]


def align_your_steps(n):
    places = [10 - 10 * i / (n - 1) for i in range(n)] if n > 1 else [0]  # counted from the least noise
    rising = KNOWN[::-1]
    pairs = [(rising[min(int(p), 9)], rising[min(int(p), 9) + 1], p - min(int(p), 9)) for p in places]
    return [math.exp((1 - part) * math.log(a) + part * math.log(b)) for a, b, part in pairs] + [0]


def simple(n):
    return [MODEL.levels[-(1 + int(i * (1000 / n)))] for i in range(n)] + [0]


def ddim(n):
    return [*MODEL.levels[range(1, 1000, max(1000 // n, 1))][::-1], 0]


def beta(n):
    return [LOW + stats.beta.ppf(q, 0.6, 0.6) * (HIGH - LOW) for q in 1 - np.linspace(0, 1, n)] + [0]


SCHEDULES = {
    "uniform": uniform,
    "karras": lambda n: sampling.get_sigmas_karras(n, LOW, HIGH),
    "exponential": lambda n: sampling.get_sigmas_exponential(n, LOW, HIGH),
    "polyexponential": lambda n: sampling.get_sigmas_polyexponential(n, LOW, HIGH),
    "sgm_uniform": sgm_uniform,
    "kl_optimal": kl_optimal,
    "align_your_steps": align_your_steps,
    "simple": simple,
    "normal": uniform,
    "ddim": ddim,
    "beta": beta,
}


def denoised(x, sigma, **nothing):
    s = float(sigma.reshape(-1)[0])
    output = toy_network(x.numpy() / math.sqrt(s**2 + 1), float(MODEL.timestep(np.float64(s))))
    return torch.as_tensor(MODEL.denoised(x.numpy(), s, output))


def k_diffusion(solve, levels, n, **settings):
    """The end of one of k-diffusion's samplers; its draws are those of `start`, in turn."""
    x, noises = start(n)
    draws = iter(torch.as_tensor(noises))
    torch.randn_like = lambda x: next(draws)  # of churn
    if "noise_sampler" in inspect.signature(solve).parameters:
        settings["noise_sampler"] = lambda s, t: next(draws)
    sigmas = torch.as_tensor(np.asarray(levels, np.float64))
    first = torch.as_tensor(x) * sigmas[0]
    try:
        return solve(denoised, first, sigmas, disable=True, **settings).numpy()
    except UnboundLocalError:  # its multistep SDE samplers fail after a first step to 0, which is this
        return denoised(first, sigmas[0]).numpy()


def dpm_fast(n):
    x, noises = start(n)
    draws = iter(torch.as_tensor(noises))
    x = torch.as_tensor(x) * HIGH
    more = {"eta": 1.0, "noise_sampler": lambda s, t: next(draws)}
    return sampling.sample_dpm_fast(denoised, x, LOW, HIGH, n, disable=True, **more).numpy()


def unipc(n):
    """diffusers' class at A1111's levels: equal distances in time, log alpha linear between the trained ones."""
    count = len(range(0, 1000, 1000 // n))
    times = np.linspace(999, 0, count + 1)
    log_alphas = np.interp(times, np.arange(1000), -np.log1p(MODEL.levels**2) / 2)
    scheduler = UniPCMultistepScheduler(solver_order=3, solver_type="bh1", beta_schedule="scaled_linear")
    scheduler.set_timesteps(count)
    scheduler.sigmas = torch.as_tensor(np.sqrt(np.expm1(-2 * log_alphas)))
    scheduler.timesteps = torch.as_tensor(times[:-1])
    scheduler._step_index = 0
    x = torch.as_tensor(start(n)[0])
    for t in scheduler.timesteps:
        x = scheduler.step(torch.as_tensor(toy_network(x.numpy(), float(t))), t, x).prev_sample
    return x.numpy()


def plms(n):
    """diffusers' class, without its last step, which A1111 does not take. n divides 1000."""
    scheduler = PNDMScheduler(skip_prk_steps=True, steps_offset=1, beta_schedule="scaled_linear")
    scheduler.set_timesteps(n)
    scheduler.alphas_cumprod = torch.as_tensor(1 / (1 + MODEL.levels**2))
    x = torch.as_tensor(start(n)[0])
    for t in scheduler.timesteps[:-1]:
        x = scheduler.step(torch.as_tensor(toy_network(x.numpy(), float(t))), int(t), x).prev_sample
    return x.numpy()


def lcm_timesteps(n):
    return [999 - 20 * round(49 * i / n) for i in range(n)]


def lcm(n):
    """diffusers' class, but what it gives back of the picture is the picture in sigma space, as in A1111."""
    scheduler = LCMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    scheduler.alphas_cumprod = torch.as_tensor(1 / (1 + MODEL.levels**2))
    scheduler.set_timesteps(timesteps=lcm_timesteps(n))
    plain = scheduler.get_scalings_for_boundary_condition_discrete

    def in_sigma_space(t):
        c_skip, c_out = plain(t)
        return c_skip * math.sqrt(MODEL.levels[int(t)] ** 2 + 1), c_out

    scheduler.get_scalings_for_boundary_condition_discrete = in_sigma_space
    x, noises = start(n)
    draws = iter(torch.as_tensor(noises))
    scheduler.step.__globals__["randn_tensor"] = lambda *shape, **more: next(draws)
    x = torch.as_tensor(x) / math.sqrt(1 + 1 / HIGH**2)  # noise alone, with no picture below it
    for t in scheduler.timesteps:
        x = scheduler.step(torch.as_tensor(toy_network(x.numpy(), float(t))), t, x).prev_sample
    return x.numpy()


def main() -> None:
    warnings.filterwarnings("ignore")
    made = {}
    for n in STEPS:
        for schedule, levels in SCHEDULES.items():
            made[f"{schedule}/{n}"] = np.asarray(levels(n), np.float64)
            for name, solve in SOLVERS.items():
                made[f"{name}/{schedule}/{n}"] = k_diffusion(solve, levels(n), n)
        levels = SCHEDULES["karras"](n)
        for name in ("Euler", "Heun", "DPM2"):
            made[f"{name}/churn/{n}"] = k_diffusion(SOLVERS[name], levels, n, **CHURN)
        for name in (
            "Euler a",
            "DPM2 a",
            "DPM++ 2S a",
            "DPM++ SDE",
            "DPM++ 2M SDE",
            "DPM++ 2M SDE Heun",
            "DPM++ 3M SDE",
        ):
            more = {} if name == "Euler a" else {"s_noise": 0.9}  # A1111 gives Euler a none
            made[f"{name}/eta/{n}"] = k_diffusion(SOLVERS[name], levels, n, eta=0.6, **more)
        made[f"DPM fast/{n}"] = dpm_fast(n)
        made[f"UniPC/{n}"] = unipc(n)
    made |= {f"PLMS/{n}": plms(n) for n in STEPS if n > 1 and 1000 % n == 0}
    made |= {f"LCM/{n}": lcm(n) for n in STEPS if n <= 50}
    np.savez_compressed(Path(__file__).with_name("samplers.npz"), **made)


if __name__ == "__main__":
    main()
