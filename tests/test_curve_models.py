"""Ready models: functions against NumPy and SciPy, derivatives, guesses that lead to the best fit, poor data."""

import copy
import itertools
import math
import pickle

import lmfit
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import special
from scipy.optimize import curve_fit

from sklm import LevenbergMarquardt, LMRegressor
from sklm.curves.models import (
    ExponentialDecay,
    ExponentialGrowth,
    Gompertz,
    Hill,
    Line,
    Logistic3,
    Logistic4,
    Logistic5,
    MichaelisMenten,
    Polynomial,
    PowerLaw,
    WeibullGrowth,
)
from sklm.curves.peaks import Gaussian, Lorentzian, PseudoVoigt, Voigt, voigt_profile
from sklm.curves.spectrum import Peaks
from sklm.curves.waves import DampedOscillation, Sine

HALF = math.sqrt(2 * math.log(2))  # half width at half maximum of a Gaussian, in sigma


def gaussian(x, height, center, sigma):
    return height * np.exp(-(((x - center) / sigma) ** 2) / 2)


def lorentzian(x, height, center, gamma):
    return height * gamma**2 / ((x - center) ** 2 + gamma**2)


def pseudo_voigt(x, height, center, fwhm, fraction):
    narrow = gaussian(x, height, center, fwhm / 2 / HALF)
    return fraction * lorentzian(x, height, center, fwhm / 2) + (1 - fraction) * narrow


REFERENCES = {
    Line: lambda x, slope, intercept: slope * x + intercept,
    Polynomial: lambda x, c0, c1, c2: c0 + c1 * x + c2 * x**2,
    ExponentialDecay: lambda x, amplitude, rate, offset: offset + amplitude * np.exp(-rate * x),
    ExponentialGrowth: lambda x, amplitude, rate: amplitude * np.exp(rate * x),
    PowerLaw: lambda x, amplitude, exponent: amplitude * x**exponent,
    Logistic3: lambda x, top, center, width: top * special.expit((x - center) / width),
    Logistic4: lambda x, bottom, top, center, width: bottom + (top - bottom) * special.expit((x - center) / width),
    Logistic5: lambda x, bottom, top, center, width, asymmetry: (
        bottom + (top - bottom) * special.expit((x - center) / width) ** asymmetry
    ),
    Gompertz: lambda x, top, center, rate: top * np.exp(-np.exp(-rate * (x - center))),
    WeibullGrowth: lambda x, top, scale, shape: top * (1 - np.exp(-((x / scale) ** shape))),
    MichaelisMenten: lambda x, vmax, km: vmax * x / (km + x),
    Hill: lambda x, bottom, top, ec50, hill: bottom + (top - bottom) * x**hill / (ec50**hill + x**hill),
    Sine: lambda x, amplitude, frequency, phase, offset: offset + amplitude * np.sin(2 * np.pi * frequency * x + phase),
    DampedOscillation: lambda x, amplitude, decay, frequency, phase, offset: (
        offset + amplitude * np.exp(-decay * x) * np.sin(2 * np.pi * frequency * x + phase)
    ),
    Gaussian: gaussian,
    Lorentzian: lorentzian,
    Voigt: lambda x, area, center, sigma, gamma: area * special.voigt_profile(x - center, sigma, gamma),
    PseudoVoigt: pseudo_voigt,
}
MODELS = list(REFERENCES)
models = pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)


def sample(model, seed):
    """Return n unordered x in about (0, 10) and parameters that they determine."""
    rng = np.random.default_rng(seed)
    u, sign = rng.uniform, rng.choice([-1.0, 1.0])
    x = u(0, 10, 100)
    if model is PowerLaw:
        x = u(0.1, 5, 100)
    if model is ExponentialDecay or model is ExponentialGrowth:
        x = u(0, 5, 100)
    if model is Hill:
        x = np.r_[0, 10 ** u(-2, 2, 99)]
    parameters = {
        Line: lambda: (u(-3, 3), u(-3, 3)),
        Polynomial: lambda: (u(-3, 3), u(-3, 3), u(-3, 3)),
        ExponentialDecay: lambda: (sign * u(1, 5), rng.choice([-1, 1]) * u(0.3, 3), u(-5, 5)),
        ExponentialGrowth: lambda: (sign * u(1, 5), rng.choice([-1, 1]) * u(0.2, 2)),
        PowerLaw: lambda: (sign * u(1, 5), u(-3, 4)),
        Logistic3: lambda: (sign * u(1, 5), u(3, 7), rng.choice([-1, 1]) * u(0.2, 1.5)),
        Logistic4: lambda: (u(-3, 3), sign * u(4, 8), u(3, 7), u(0.2, 1.2)),
        Logistic5: lambda: (u(-3, 3), sign * u(4, 8), u(3, 6), u(0.3, 0.8), u(0.5, 2)),
        Gompertz: lambda: (sign * u(1, 5), u(2, 6), rng.choice([-1, 1]) * u(0.5, 2)),
        WeibullGrowth: lambda: (sign * u(1, 5), u(1, 6), u(0.6, 4)),
        MichaelisMenten: lambda: (sign * u(1, 5), u(0.5, 6)),
        Hill: lambda: (u(-1, 1), sign * u(2, 5), 10 ** u(-0.7, 0.7), u(0.6, 3)),
        Sine: lambda: (u(1, 3), u(0.15, 3), u(-3, 3), u(-5, 5)),
        DampedOscillation: lambda: (u(1, 3), u(0.05, 0.6), u(0.2, 3), u(-3, 3), u(-5, 5)),
        Gaussian: lambda: (sign * u(1, 5), u(1, 9), u(0.3, 2)),
        Lorentzian: lambda: (sign * u(1, 5), u(1, 9), u(0.3, 2)),
        Voigt: lambda: (sign * u(1, 5), u(3, 7), u(0.4, 0.7), u(0.4, 0.7)),
        PseudoVoigt: lambda: (sign * u(1, 5), u(3, 7), u(1, 3), u(0.4, 0.6)),
    }[model]()
    return x, np.array(parameters)


# Powers of the scale of x and of y in every parameter, in the order of the function.
UNITS = {
    **{model: [(0, 1), (1, 0), (1, 0)] for model in (Logistic3, Gaussian, Lorentzian)},
    Line: [(-1, 1), (0, 1)],
    Polynomial: [(0, 1), (-1, 1), (-2, 1)],
    ExponentialDecay: [(0, 1), (-1, 0), (0, 1)],
    ExponentialGrowth: [(0, 1), (-1, 0)],
    Logistic4: [(0, 1), (0, 1), (1, 0), (1, 0)],
    Logistic5: [(0, 1), (0, 1), (1, 0), (1, 0), (0, 0)],
    Gompertz: [(0, 1), (1, 0), (-1, 0)],
    WeibullGrowth: [(0, 1), (1, 0), (0, 0)],
    MichaelisMenten: [(0, 1), (1, 0)],
    Hill: [(0, 1), (0, 1), (1, 0), (0, 0)],
    Sine: [(0, 1), (-1, 0), (0, 0), (0, 1)],
    DampedOscillation: [(0, 1), (-1, 0), (-1, 0), (0, 0), (0, 1)],
    Voigt: [(1, 1), (1, 0), (1, 0), (1, 0)],
    PseudoVoigt: [(0, 1), (1, 0), (1, 0), (0, 0)],
}


def scaled(model, parameters, x_unit, y_unit):
    if model is PowerLaw:
        return parameters * [y_unit / x_unit ** parameters[1], 1]
    return parameters * [x_unit**i * y_unit**j for i, j in UNITS[model]]


def values_of(module):
    return np.array([p.item() for p in module.parameters()])


def evaluated(module, x, parameters):
    names = [name for name, _ in module.named_parameters()]
    tensors = dict(zip(names, torch.as_tensor(parameters, dtype=torch.float64), strict=True))
    return module.evaluate(torch.as_tensor(x)[:, None], tensors)


def fitted(module, x, y):
    X, y = torch.as_tensor(x)[:, None], torch.as_tensor(y)
    module.init_from_data(X, y)
    optimizer = LevenbergMarquardt(module, acceleration=True, bounds=module.parameter_bounds)
    for _ in range(200):
        result = optimizer.step(X, y)
        if result.status != "running":
            break
    assert result.status == "converged", result.message
    return module


# --- functions and derivatives ---


@models
def test_function(model):
    x, parameters = sample(model, 0)
    np.testing.assert_allclose(
        evaluated(model(), x, parameters), REFERENCES[model](x, *parameters), rtol=1e-12, atol=1e-13
    )


def second_derivatives(module, x, parameters):
    """Return first and second derivatives along each parameter, by forward mode over forward mode."""
    vector = torch.as_tensor(parameters, dtype=torch.float64)

    def along(direction):
        def slope(point):
            return torch.func.jvp(lambda p: evaluated(module, x, p), (point,), (direction,))[1]

        return torch.func.jvp(slope, (vector,), (direction,))

    return torch.vmap(along)(torch.eye(len(vector), dtype=torch.float64))


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.* is deprecated")  # torch's own, when forward mode is first used
@models
def test_derivatives(model):
    x, parameters = sample(model, 1)
    x, module = x[:12], model()
    vector = torch.tensor(parameters, requires_grad=True)
    assert torch.autograd.gradcheck(lambda p: evaluated(module, x, p), (vector,))
    first, second = second_derivatives(module, x, parameters)
    jacobian = torch.func.jacrev(lambda p: evaluated(module, x, p))(vector.detach())
    np.testing.assert_allclose(first, jacobian.T, rtol=1e-10, atol=1e-10)
    curvature = torch.func.hessian(lambda p: evaluated(module, x, p))(vector.detach())
    expected = torch.diagonal(curvature, dim1=1, dim2=2).T
    np.testing.assert_allclose(second.numpy(force=True), expected.numpy(force=True), rtol=1e-8, atol=1e-8)


EDGES = {
    **{f"{m.__name__} at 0": (m, [0.0, 1.0]) for m in MODELS if m is not PowerLaw},
    "PowerLaw at 0": (PowerLaw, [0.0, 1.0]),
    **{
        f"{m.__name__} far away": (m, [0.0, 1e3, 1e6])
        for m in MODELS
        if "Expon" not in m.__name__ and m is not PowerLaw
    },
}


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.* is deprecated")
@pytest.mark.parametrize(("model", "x"), EDGES.values(), ids=EDGES)
def test_derivatives_are_finite_at_the_edges(model, x):
    module = model().float()
    names = [name for name, _ in module.named_parameters()]
    point = [1.5 if name != "fraction" else 0.5 for name in names]
    for part in second_derivatives(model(), x, point):
        assert torch.isfinite(part).all()

    def single(p):
        return module.evaluate(torch.tensor(x, dtype=p.dtype)[:, None], dict(zip(names, p.unbind(), strict=True)))

    assert torch.isfinite(torch.func.jacrev(single)(torch.tensor(point))).all()


ON_BOUND = [(m, name) for m in MODELS for name in m.default_bounds]


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.* is deprecated")
@pytest.mark.parametrize(("model", "name"), ON_BOUND, ids=[f"{m.__name__}-{n}" for m, n in ON_BOUND])
def test_on_its_bound(model, name):
    """The optimizer keeps bounds exactly, so widths and scales of 0 are evaluated."""
    names = [n for n, _ in model().named_parameters()]
    point = [0.0 if n == name else 1.0 for n in names]
    x = [0.0, 0.5, 1.0, 3.0]
    assert torch.isfinite(evaluated(model(), x, point)).all()
    for part in second_derivatives(model(), x, point):
        assert torch.isfinite(part).all()
    jacobian = torch.func.jacrev(lambda p: evaluated(model(), x, p))(torch.tensor(point, dtype=torch.float64))
    assert torch.isfinite(jacobian).all()


def test_at_zero_and_below():
    x = [0.0, -1.0]
    np.testing.assert_array_equal(evaluated(Hill(), x, [1, 4, 2, 1.5]), [1, np.nan])
    np.testing.assert_array_equal(evaluated(Hill(), x, [1, 4, 2, -1.5]), [4, np.nan])
    np.testing.assert_array_equal(evaluated(PowerLaw(), x, [2, 0.5]), [0, np.nan])
    np.testing.assert_array_equal(evaluated(PowerLaw(), x, [2, -0.5]), [np.inf, np.nan])
    np.testing.assert_array_equal(evaluated(WeibullGrowth(), x, [1, 4, 0.5]), [0, np.nan])
    np.testing.assert_array_equal(evaluated(MichaelisMenten(), x, [3, 2]), [0, -3])


# --- Voigt ---


def test_voigt_profile():
    rng = np.random.default_rng(0)
    x, sigma, gamma = rng.uniform(-30, 30, 20_000), 10 ** rng.uniform(-3, 1, 20_000), 10 ** rng.uniform(-8, 1, 20_000)
    ours = voigt_profile(*map(torch.tensor, (x, sigma, gamma))).numpy()
    expected, top = special.voigt_profile(x, sigma, gamma), special.voigt_profile(0, sigma, gamma)
    np.testing.assert_allclose(ours / top, expected / top, rtol=0, atol=1e-14)
    wide = gamma > sigma / 100  # below, the wings lose digits to the modulus of w
    np.testing.assert_allclose(ours[wide], expected[wide], rtol=1e-12)


@pytest.mark.parametrize("sigma", [0.0, 1e-300, 1e-8])
def test_voigt_without_sigma_is_lorentzian(sigma):
    x = np.linspace(-3, 3, 31)
    ours = evaluated(Voigt(), x, [2.0, 0.1, sigma, 0.5])
    np.testing.assert_allclose(ours, lorentzian(x, 2 / np.pi / 0.5, 0.1, 0.5), rtol=1e-14)


@pytest.mark.parametrize("gamma", [0.0, 1e-300, 1e-16])
def test_voigt_without_gamma_is_gaussian(gamma):
    x = np.linspace(-3, 3, 31)
    ours = evaluated(Voigt(), x, [2.0, 0.1, 0.5, gamma])
    np.testing.assert_allclose(ours, gaussian(x, 2 / math.sqrt(2 * np.pi) / 0.5, 0.1, 0.5), rtol=1e-12, atol=1e-14)


def test_conventions_of_lmfit():
    x = np.linspace(-3, 5, 41)
    area = 2 * math.sqrt(2 * np.pi) * 0.7
    expected = lmfit.models.gaussian(x, area, 1.0, 0.7)
    np.testing.assert_allclose(evaluated(Gaussian(), x, [2, 1, 0.7]), expected, rtol=1e-12, atol=1e-14)
    expected = lmfit.models.lorentzian(x, 2 * np.pi * 0.7, 1.0, 0.7)
    np.testing.assert_allclose(evaluated(Lorentzian(), x, [2, 1, 0.7]), expected, rtol=1e-12)
    expected = lmfit.models.voigt(x, 2, 1.0, 0.7, 0.4)
    np.testing.assert_allclose(evaluated(Voigt(), x, [2, 1, 0.7, 0.4]), expected, rtol=1e-12)


# --- guesses ---

TRIALS = {"plain": (0, 1, 1), "small x, large y": (1, 1e-3, 1e5), "large x, small y": (2, 1e4, 1e-3)}
TRIALS |= {"large x, large y": (3, 1e4, 1e5)}


@models
@pytest.mark.parametrize(("seed", "x_unit", "y_unit"), TRIALS.values(), ids=TRIALS)
def test_guess_leads_to_the_best_fit(model, x_unit, y_unit, seed):
    x, truth = sample(model, 10 + seed)
    rng = np.random.default_rng(seed)
    clean = REFERENCES[model](x, *truth)
    y = clean + 0.03 * np.ptp(clean) * rng.standard_normal(len(x))  # in the units of the reference
    module = fitted(model(), x * x_unit, y * y_unit)
    best, covariance = curve_fit(REFERENCES[model], x, y, truth, xtol=1e-12, ftol=1e-12)
    prediction = module(torch.tensor(x * x_unit)[:, None]).detach().numpy() / y_unit
    error = np.abs(prediction - REFERENCES[model](x, *best)).max()
    assert error < 1e-3 * np.ptp(clean)  # a thirtieth of the noise
    if model not in (Sine, DampedOscillation):  # which have equal parameters of another sign or phase
        own = scaled(model, values_of(module), 1 / x_unit, 1 / y_unit)
        assert (np.abs(own - best) < 0.05 * np.sqrt(np.diag(covariance))).all()


KINDS = {
    "Gaussian": (Gaussian, gaussian, (0.6,)),
    "Lorentzian": (Lorentzian, lorentzian, (0.6,)),
    "PseudoVoigt": (PseudoVoigt, pseudo_voigt, (1.3, 0.5)),
    "Voigt": (Voigt, REFERENCES[Voigt], (0.4, 0.4)),
}


@pytest.mark.parametrize(("kind", "reference", "shape"), KINDS.values(), ids=KINDS)
@pytest.mark.parametrize(
    ("n_peaks", "background", "sign"), [(1, "constant", -1), (1, "linear", 1), (3, "constant", 1), (2, None, -1)]
)
def test_peaks_are_found(kind, reference, shape, background, n_peaks, sign):
    rng = np.random.default_rng(n_peaks)
    x = rng.uniform(0, 20, 200)
    centers = [5.0, 9.5, 15.0][:n_peaks]
    peaks = [[sign * height, center, *shape] for height, center in zip([4.0, 2.5, 5.0], centers, strict=False)]
    base = {"constant": [2.0], "linear": [2.0, -0.2], None: []}[background]
    clean = sum(reference(x, *peak) for peak in peaks) + np.polynomial.Polynomial(base or [0])(x)
    module = Peaks(n_peaks=n_peaks, peak=kind, background=background)
    truth = [*itertools.chain(*peaks), *base]
    np.testing.assert_allclose(evaluated(module, x, truth), clean, rtol=1e-12, atol=1e-12)
    noise = 0.03 * np.ptp(clean)
    module = fitted(module, x * 1e-3, (clean + noise * rng.standard_normal(200)) * 1e5)
    prediction = module(torch.tensor(x * 1e-3)[:, None]).detach().numpy() / 1e5
    assert np.sqrt(np.mean((prediction - clean) ** 2)) < 0.5 * noise  # sqrt(n_params / n_samples) is at most 0.27
    found = [getattr(module, f"center{k + 1}").item() * 1e3 for k in range(n_peaks)]
    np.testing.assert_allclose(found, centers, atol=0.15)


def test_known_centers_keep_their_peaks():
    x = np.linspace(0, 20, 200)
    y = gaussian(x, 1, 14, 1) + gaussian(x, 5, 6, 1)
    module = Peaks(n_peaks=2, center1=14.0, fixed="center1")
    module.init_from_data(torch.tensor(x)[:, None], torch.tensor(y))
    assert module.center2.item() == pytest.approx(6, abs=0.3)
    assert module.height1.item() == pytest.approx(1, abs=0.3)


def test_known_parameters_shape_the_guess_of_others():
    x = np.linspace(0, 2, 50)
    module = ExponentialDecay(offset=0.0)
    module.init_from_data(torch.tensor(x)[:, None], torch.tensor(3 * np.exp(-0.4 * x)))
    assert module.rate.item() == pytest.approx(0.4, rel=0.1)
    assert module.offset.item() == 0


def test_sine_beyond_a_gap_and_in_many_rows():
    x = np.r_[np.linspace(0, 10, 3000), np.linspace(50, 60, 3000)]
    module = Sine()
    module.init_from_data(torch.tensor(x)[:, None], torch.tensor(3 + np.sin(2 * np.pi * 7.3 * x + 1)))
    assert module.frequency.item() == pytest.approx(7.3, abs=0.01)


def test_zero_weights_are_ignored():
    x = np.linspace(0, 10, 60)
    y = gaussian(x, 2, 3, 0.5)
    y[50:] = 100
    module = Gaussian()
    weights = torch.tensor(np.where(x < x[50], 1.0, 0.0))
    module.init_from_data(torch.tensor(x)[:, None], torch.tensor(y), weights)
    assert module.center.item() == pytest.approx(3, abs=0.2)


DATA = {
    "constant": ([0, 1, 2, 3, 4], [3, 3, 3, 3, 3]),
    "zero": ([0, 1, 2, 3, 4], [0, 0, 0, 0, 0]),
    "one point": ([2], [3]),
    "one point at 0": ([0], [0]),
    "two points": ([1, 2], [3, -1]),
    "one x": ([1, 1, 1, 1], [1, 2, 3, 4]),
    "two x": ([1, 1, 1, 2, 2, 2], [1, 2, 3, 4, 5, 6]),
    "negative x": ([-3, -2, -1], [1, 2, 3]),
    "far x": ([1e8, 1e8 + 0.5, 1e8 + 1], [1, 2, 3]),
    "huge y": ([0, 1, 2, 3], [0, 1e200, 2e200, 3e200]),
    "tiny x": ([0, 1e-200, 2e-200], [0, 1e-200, 2e-200]),
}
BUILDS = {model.__name__: model for model in MODELS} | {
    "degree 7": lambda: Polynomial(degree=7),
    "3 peaks": lambda: Peaks(n_peaks=3, background="linear"),
    "2 Voigt peaks": lambda: Peaks(n_peaks=2, peak=Voigt, background=None),
}


@pytest.mark.parametrize("build", BUILDS.values(), ids=BUILDS)
@pytest.mark.parametrize(("x", "y"), DATA.values(), ids=DATA)
def test_poor_data_give_finite_guesses(build, x, y):
    module = build()
    x, y = torch.tensor(x, dtype=torch.float64), torch.tensor(y, dtype=torch.float64)
    for weights in (torch.ones_like(y), torch.zeros_like(y)):
        guess = module.guess(x, y, weights)
        assert set(guess) == {name for name, _ in module.named_parameters()}
        assert all(math.isfinite(value) for value in guess.values())
        assert guess == module.guess(x, y, weights)
        for name, (low, high) in module.parameter_bounds.items():
            assert low < guess[name] < high


# --- constructors ---


@pytest.mark.parametrize("build", BUILDS.values(), ids=BUILDS)
def test_copies(build):
    module = build()
    x = np.linspace(0.5, 3, 7)
    parameters = np.linspace(0.4, 0.9, len(list(module.parameters())))
    for twin in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):  # noqa: S301
        np.testing.assert_array_equal(evaluated(twin, x, parameters), evaluated(module, x, parameters))
        assert twin.parameter_bounds == module.parameter_bounds
        assert repr(twin) == repr(module)


def test_names():
    names = [name for name, _ in Peaks(n_peaks=2, peak=Voigt, background="linear").named_parameters()]
    assert names == ["area1", "center1", "sigma1", "gamma1", "area2", "center2", "sigma2", "gamma2", "offset", "slope"]
    assert [name for name, _ in Polynomial(degree=np.int64(3)).named_parameters()] == ["c0", "c1", "c2", "c3"]
    assert Peaks(bounds={"sigma1": (1, 2)}).parameter_bounds == {"sigma1": (1, 2)}


WRONG = {
    "degree 0": (lambda: Polynomial(degree=0), "`module__degree` must be an integer >= 1; got 0"),
    "degree 2.0": (lambda: Polynomial(degree=2.0), "`module__degree` must be an integer >= 1; got 2.0"),
    "degree True": (lambda: Polynomial(degree=True), "`module__degree` must be an integer >= 1"),
    "n_peaks 0": (lambda: Peaks(n_peaks=0), "`module__n_peaks` must be an integer >= 1; got 0"),
    "n_peaks '2'": (lambda: Peaks(n_peaks="2"), "`module__n_peaks` must be an integer >= 1; got '2'"),
    "n": (
        lambda: Peaks(n=2),
        r"`module__n` is neither a parameter of the curve, height1, .*a setting: n_peaks, peak, ",
    ),
    "peak by name": (lambda: Peaks(peak="gaussian"), "`module__peak` must be a class of peaks: Gaussian, "),
    "peak of no peak": (lambda: Peaks(peak=Line), "`module__peak` must be a class of peaks"),
    "peak instance": (lambda: Peaks(peak=Gaussian()), "`module__peak` must be a class of peaks"),
    "background": (lambda: Peaks(background="cubic"), "`module__background` must be 'constant', 'linear' or None"),
    "background list": (lambda: Peaks(background=["linear"]), "`module__background` must be"),
    "parameter": (lambda: Gaussian(sigmaa=1.0), "did you mean 'sigma'"),
    "parameter of a peak": (lambda: Peaks(center2=1.0), "`module__center2` is neither a parameter"),
    "start outside": (lambda: Gaussian(sigma=-1.0), "must lie within its bounds"),
}


@pytest.mark.parametrize(("build", "message"), WRONG.values(), ids=WRONG)
def test_wrong_keywords(build, message):
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize("model", [ExponentialDecay, Peaks, Polynomial], ids=lambda model: model.__name__)
def test_a_ready_model_takes_one_column(model):
    with pytest.raises(ValueError, match="takes one column; got 2"):
        model(2)
    assert model(2, ["t", "x"]).input_columns == [1]


@pytest.mark.parametrize("column", ["rate", "offset", "time"])
def test_a_column_named_like_a_parameter(column):
    x = np.linspace(0, 3, 30)
    frame = pd.DataFrame({column: x})
    model = LMRegressor(ExponentialDecay).fit(frame, 2 * np.exp(-1.5 * x) + 1)
    np.testing.assert_allclose(list(model.parameters_.values()), [2, 1.5, 1], rtol=1e-8)


@pytest.mark.parametrize("model", [Gaussian, Peaks], ids=lambda model: model.__name__)
def test_bounds_that_are_no_dict(model):
    with pytest.raises(ValueError, match="`module__bounds` must be a dict"):
        model(bounds=3)


def test_bounds_of_all_peaks():
    module = Peaks(n_peaks=2, bounds={"height": (0, None), "sigma2": (1, 2)})
    inf = float("inf")
    assert module.parameter_bounds == {"height1": (0, inf), "height2": (0, inf), "sigma1": (0, inf), "sigma2": (1, 2)}


TIME = np.linspace(0, 10, 300)
TWO_PEAKS = 5 * np.exp(-((TIME - 3) ** 2) / 0.18) + 3 * np.exp(-((TIME - 7) ** 2) / 0.18)


@pytest.mark.parametrize(
    ("model", "bounds", "y", "expected"),
    [
        (Gaussian, {"center": (5, 10)}, TWO_PEAKS, {"height": 3, "center": 7, "sigma": 0.3}),
        (Gaussian, {"height": (None, 0)}, -TWO_PEAKS, {"height": -5, "center": 3, "sigma": 0.3}),
        (
            Sine,
            {"phase": (0, 2 * np.pi), "amplitude": (0, None)},
            2 * np.sin(2 * np.pi * TIME - 1),
            {"phase": 2 * np.pi - 1, "amplitude": 2},
        ),
        (Hill, {"hill": (None, 0)}, 9 / (9 + TIME**2), {"hill": -2, "ec50": 3}),
    ],
    ids=["second peak", "dip", "phase", "falling"],
)
def test_a_guess_outside_of_the_bounds(model, bounds, y, expected):
    fit = LMRegressor(model, module__bounds=bounds, random_state=0).fit(TIME[:, None], y)
    np.testing.assert_allclose([fit.parameters_[name] for name in expected], list(expected.values()), rtol=1e-3)


@pytest.mark.parametrize("offset", [0.0, 1e4, 1e6])
def test_decay_on_a_large_offset(offset):
    z = np.linspace(0, 1, 100)
    for seed in range(3):
        y = offset - 3 * np.exp(-0.9 * z) + 0.03 * np.random.default_rng(seed).standard_normal(100)
        fit = LMRegressor(ExponentialDecay).fit(z[:, None], y)
        assert np.square(fit.predict(z[:, None]) - y).sum() < 0.15


@pytest.mark.parametrize("span", [(1.7, 5.7), (4.8, 8.8), (2, 10)])
@pytest.mark.parametrize("fixed", [("amplitude",), ()])
def test_a_decay_with_a_given_amplitude(span, fixed):
    x = np.linspace(*span, 30)
    y = 3 * np.exp(-0.7 * x) + 1 + 0.005 * np.random.default_rng(0).standard_normal(30)
    model = LMRegressor(ExponentialDecay, module__amplitude=3.0, module__fixed=fixed).fit(x[:, None], y)
    guess = ExponentialDecay(amplitude=3.0).guess(*map(torch.tensor, (x, y, np.ones(30))))
    assert guess["rate"] == pytest.approx(0.7, rel=0.5)
    if fixed:
        expected, _ = curve_fit(lambda x, b, c: 3 * np.exp(-b * x) + c, x, y, p0=(1, 1))
        np.testing.assert_allclose([model.parameters_["rate"], model.parameters_["offset"]], expected, rtol=1e-6)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("held", [{"bottom": 0}, {"top": 100}, {"bottom": 0, "top": 100}], ids="+".join)
@pytest.mark.parametrize("slope", [-1.2, 1.2], ids=["inhibition", "activation"])
def test_hill_with_a_level_held(slope, held, seed):
    dose = np.repeat([0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100], 2)
    y = 100 / (1 + dose**-slope) + 2 * np.random.default_rng(seed).standard_normal(18)

    def free(d, ec50, hill, *rest):
        levels = {**dict(zip([name for name in ("bottom", "top") if name not in held], rest, strict=True)), **held}
        return levels["bottom"] + (levels["top"] - levels["bottom"]) / (1 + (d / ec50) ** -hill)

    start = [1, slope, *(level for name, level in {"bottom": 0, "top": 100}.items() if name not in held)]
    expected, _ = curve_fit(free, dose, y, p0=start)
    given = {f"module__{name}": value for name, value in held.items()}
    model = LMRegressor(Hill, module__fixed=tuple(held), **given).fit(dose[:, None], y)
    np.testing.assert_allclose([model.parameters_["ec50"], model.parameters_["hill"]], expected[:2], rtol=1e-4)
    model = LMRegressor(Hill, **given).fit(dose[:, None], y)  # as a start alone
    assert model.parameters_["hill"] * slope > 0
    assert model.score(dose[:, None], y) > 0.99


@pytest.mark.parametrize("seed", range(3))
def test_hill_of_an_inhibition_with_free_levels_is_positive(seed):
    dose = np.repeat([0, 0.01, 0.1, 0.3, 1, 3, 10, 100], 2)
    y = 100 / (1 + dose**1.2) + 2 * np.random.default_rng(seed).standard_normal(16)
    fitted = LMRegressor(Hill).fit(dose[:, None], y).parameters_
    assert fitted["hill"] > 0
    assert fitted["bottom"] > fitted["top"]


@pytest.mark.parametrize(("n_peaks", "seed"), [(2, 0), (3, 8), (3, 9), (4, 1), (4, 4), (4, 5)])
def test_peaks_that_stand_apart_are_found(n_peaks, seed):
    rng = np.random.default_rng(seed)
    sigma, height = rng.uniform(0.2, 0.5, n_peaks), rng.uniform(1, 5, n_peaks)
    center = 1.5 + 2 * np.arange(n_peaks) + rng.uniform(-0.2, 0.2, n_peaks)
    x = np.linspace(0, 10, 150)
    clean = 0.5 + (height * np.exp(-(((x[:, None] - center) / sigma) ** 2) / 2)).sum(1)
    y = clean + 0.02 * rng.standard_normal(150)
    model = LMRegressor(Peaks, module__n_peaks=n_peaks).fit(x[:, None], y)
    assert model.chi_square_ < np.square(y - clean).sum()
    np.testing.assert_allclose([model.parameters_[f"center{k + 1}"] for k in range(n_peaks)], center, atol=0.05)


def test_a_peak_and_a_dip():
    x = np.linspace(0, 10, 150)
    y = 2.5 * np.exp(-(((x - 3.75) / 0.5) ** 2) / 2) - 0.4 * np.exp(-(((x - 5.3) / 0.4) ** 2) / 2) + 0.5
    found = LMRegressor(Peaks, module__n_peaks=2).fit(x[:, None], y).parameters_
    np.testing.assert_allclose(
        [found[name] for name in ("height1", "center1", "height2", "center2")], [2.5, 3.75, -0.4, 5.3], rtol=1e-6
    )


@pytest.mark.parametrize("build", BUILDS.values(), ids=BUILDS)
def test_guesses_do_not_depend_on_the_default_device(build):
    x = torch.linspace(0.5, 10, 60, dtype=torch.float64)
    y, weights = 2 * torch.exp(-0.5 * x) + 1, torch.ones_like(x)
    module = build()
    expected = module.guess(x, y, weights)
    with torch.device("meta"):  # stands in for a GPU
        assert module.guess(x, y, weights) == expected


def test_a_given_frequency_takes_its_phase_along():
    x = np.arange(0, 60, 0.5)
    for seed in range(6):
        y = 10 + np.sin(2 * np.pi * 0.37 * x + 3) + 0.2 * np.random.default_rng(seed).standard_normal(120)
        free, given = (LMRegressor(Sine, **kw).fit(x[:, None], y) for kw in ({}, {"module__frequency": 0.36}))
        assert given.chi_square_ == pytest.approx(free.chi_square_, rel=1e-6)
    y = 2 * np.exp(-0.05 * x) * np.sin(2 * np.pi * 0.37 * x + 3)
    curve = DampedOscillation(frequency=0.37, decay=0.05)
    found = curve.guess(*(torch.tensor(part) for part in (x, y, np.ones(120))))
    assert found["amplitude"] == pytest.approx(2)
    assert found["phase"] % (2 * np.pi) == pytest.approx(3)


@pytest.mark.parametrize("frequency", [0.02, 0.25, 0.45, 0.8, 1.2])
def test_frequencies_in_uneven_x(frequency):
    for seed in range(3):
        rng = np.random.default_rng(seed)
        x = np.sort(rng.uniform(0, 100, 60))
        y = 10 + np.sin(2 * np.pi * frequency * x + 1) + 0.2 * rng.standard_normal(60)
        assert LMRegressor(Sine).fit(x[:, None], y).parameters_["frequency"] == pytest.approx(frequency, abs=2e-3)


@pytest.mark.parametrize("jitter", [0.0, 1e-4, 0.05])
@pytest.mark.parametrize("noise", [0.0, 0.01, 0.5])
def test_even_x_has_no_aliases(noise, jitter):
    for seed, frequency in enumerate((0.07, 0.1755, 0.31, 0.42)):
        rng = np.random.default_rng(seed)
        x = np.arange(60) + jitter * rng.standard_normal(60)
        y = np.sin(2 * np.pi * frequency * x + 1) + noise * rng.standard_normal(60)
        data = [torch.tensor(part) for part in (x, y, np.ones(60))]
        for curve in (Sine(), DampedOscillation()):
            assert curve.guess(*data)["frequency"] == pytest.approx(frequency, abs=6e-3)


def three_peaks(width=0.5):
    x = np.linspace(0, 10, 200)
    places = [(5, 3), (2, 4.2), (3, 6)]
    clean = 1 + sum(height * np.exp(-(((x - center) / width) ** 2) / 2) for height, center in places)
    return x, clean + 0.1 * np.random.default_rng(0).standard_normal(200)


def test_peaks_that_share_a_width():
    x, y = three_peaks()
    model = LMRegressor(Peaks, module__n_peaks=3, module__shared="sigma").fit(x[:, None], y)
    names = ["height1", "center1", "height2", "center2", "height3", "center3", "sigma", "offset"]
    assert list(model.parameters_) == names

    def shape(x, height1, center1, height2, center2, height3, center3, sigma, offset):
        peaks = [(height1, center1), (height2, center2), (height3, center3)]
        return offset + sum(h * np.exp(-(((x - c) / sigma) ** 2) / 2) for h, c in peaks)

    expected, covariance = curve_fit(shape, x, y, p0=[5, 3, 2, 4.2, 3, 6, 0.5, 1], xtol=1e-12, ftol=1e-12)
    np.testing.assert_allclose(list(model.parameters_.values()), expected, rtol=1e-6)
    np.testing.assert_allclose(list(model.standard_errors_.values()), np.sqrt(np.diag(covariance)), rtol=1e-4)
    large = LMRegressor(Peaks, module__n_peaks=3, module__shared=("height", "sigma")).fit(x[:, None], 1e6 * y)
    assert 2e6 < large.parameters_["height"] < 5e6
    again = pickle.loads(pickle.dumps(model))  # noqa: S301
    np.testing.assert_array_equal(again.predict(x[:, None]), model.predict(x[:, None]))


def test_names_without_a_number_stand_for_all_peaks():
    x, y = three_peaks()
    params = {"module__n_peaks": 3, "module__sigma": 0.5, "module__sigma2": 0.6, "module__fixed": "sigma"}
    model = LMRegressor(Peaks, **params).fit(x[:, None], y)
    assert [model.parameters_[f"sigma{k}"] for k in (1, 2, 3)] == [0.5, 0.6, 0.5]
    assert len(model.standard_errors_) == 10
    assert np.isnan(model.standard_errors_["sigma2"])
    shared = Peaks(n_peaks=2, peak=Voigt, shared=("sigma", "gamma"), bounds={"gamma": (0, 1), "area": (0, None)})
    assert shared.parameter_bounds["gamma"] == (0, 1)
    assert shared.parameter_bounds["sigma"][0] == 0
    assert {"area1", "area2"} < set(shared.parameter_bounds)


@pytest.mark.parametrize("shared", ["center", "width", ("sigma", "height1")])
def test_parameters_that_peaks_cannot_share(shared):
    with pytest.raises(ValueError, match=r"`module__shared` must be of the parameters 'height', 'sigma' of a peak"):
        Peaks(n_peaks=2, shared=shared)


def test_one_center_for_all_peaks_is_refused():
    with pytest.raises(ValueError, match="would put all peaks at one place"):
        Peaks(n_peaks=2, center=5.0)
    assert Peaks(n_peaks=1, center=5.0).center1.item() == 5.0
    with pytest.raises(ValueError, match=r"`module__shared` must be a name or a sequence of names; got None"):
        Peaks(n_peaks=2, shared=None)
    twice = Peaks(n_peaks=2, shared=("sigma", "sigma"))
    assert [name for name, _ in twice.named_parameters()].count("sigma") == 1
