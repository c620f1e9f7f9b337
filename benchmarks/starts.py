"""How often the search for a start leads a formula to its minimum: curves from the sciences, in units of their own.

Every formula is fitted at the defaults, without initial values, to data with noise of a few per cent. A fit is bad
where its sum of squares is above that of SciPy's `least_squares` from the true parameters by more than the variance of
the noise; silent, if it says "converged" and warns of nothing.
Run: python benchmarks/starts.py [--seeds N] [--only REGEX] (two minutes with five seeds)
"""

import argparse
import re
import time
import warnings
from dataclasses import dataclass

import numpy as np
import torch
from harness import markdown, set_threads
from scipy.optimize import least_squares

from sklm import LMRegressor
from sklm.curves.formula import Formula

even, decades = np.linspace, np.geomspace
CASES = []


@dataclass(frozen=True)
class Case:
    """A formula with its true parameters, x of shape (n,) or (n, 2), and the standard deviation of the noise.

    That is a share of the range of the curve or, if `relative`, of every value; then the fit has weights.
    """

    name: str
    formula: str
    true: dict[str, float]
    X: np.ndarray
    noise: float
    relative: bool

    def __call__(self, values):
        """Return the curve for parameter values in the order of `true`."""
        names = ["x"] if self.X.shape[1] == 1 else [f"x{i}" for i in range(self.X.shape[1])]
        columns = {name: torch.tensor(self.X[:, i]) for i, name in enumerate(names)}
        parameters = {
            name: torch.tensor(float(v), dtype=torch.float64) for name, v in zip(self.true, values, strict=True)
        }
        value = Formula(self.formula)({**columns, **parameters}, columns[names[0]])
        return value.broadcast_to(len(self.X)).numpy()


def case(name, formula, true, x, noise=0.02, *, relative=False):
    x = np.asarray(x, dtype=float)
    CASES.append(Case(name, formula, true, x.reshape(len(x), -1), noise, relative))


# chemistry / kinetics
case("arrhenius", "A*exp(-Ea/(8.314*x))", {"A": 1e10, "Ea": 6e4}, even(300, 380, 12), 0.03, relative=True)
case("arrhenius_ln", "lnA-Ea/(8.314*x)", {"lnA": 25.0, "Ea": 8e4}, even(300, 380, 12), 0.02)
case("eyring", "x*2.08e10*exp(S/8.314-H/(8.314*x))", {"S": -50.0, "H": 7e4}, even(290, 350, 10), 0.03, relative=True)
case("vft", "A*exp(B/(x-T0))", {"A": 1e-5, "B": 1500.0, "T0": 200.0}, even(260, 400, 20), 0.02, relative=True)
case("vft_log10", "A+B/(x-T0)", {"A": -5.0, "B": 700.0, "T0": 200.0}, even(240, 400, 20), 0.02)
case("wlf", "-C1*(x-Tr)/(C2+x-Tr)", {"C1": 17.0, "C2": 52.0, "Tr": 373.0}, even(375, 450, 20), 0.01)
case(
    "mod_arrhenius",
    "A*(x/300)**n*exp(-E/x)",
    {"A": 1e-12, "n": 2.0, "E": 1500.0},
    decades(200, 2000, 20),
    0.03,
    relative=True,
)
case("antoine", "A-B/(x+C)", {"A": 8.07, "B": 1730.0, "C": 233.0}, even(10, 100, 20), 0.002)
case("antoine_p", "10**(A-B/(x+C))", {"A": 8.07, "B": 1730.0, "C": 233.0}, even(10, 100, 20), 0.01, relative=True)
case("steinhart", "1/(A+B*log(x)+C*log(x)**3)", {"A": 1.1e-3, "B": 2.4e-4, "C": 8e-8}, decades(500, 50000, 20), 0.003)
case("nernst", "E0+0.0257/n*log(x)", {"E0": 0.34, "n": 2.0}, decades(1e-6, 1, 12), 0.01)
case("first_order", "C0*exp(-k*x)", {"C0": 2e-3, "k": 4e-5}, even(0, 1e5, 20), 0.02)
case("second_order", "C0/(1+k*C0*x)", {"C0": 1e-3, "k": 50.0}, even(0, 200, 20), 0.02)
case("consecutive", "A*k1/(k2-k1)*(exp(-k1*x)-exp(-k2*x))", {"A": 1e-6, "k1": 0.3, "k2": 0.05}, even(0, 60, 25), 0.02)
case("biexp", "a*exp(-b*x)+c*exp(-d*x)", {"a": 500.0, "b": 3.0, "c": 200.0, "d": 0.3}, even(0, 8, 50), 0.01)
case(
    "biexp_ns",
    "a*exp(-x/t1)+b*exp(-x/t2)+c",
    {"a": 800.0, "t1": 5e-10, "b": 400.0, "t2": 4e-9, "c": 10.0},
    even(0, 2e-8, 200),
    0.01,
)
case(
    "triexp",
    "a*exp(-x/t1)+b*exp(-x/t2)+c*exp(-x/t3)",
    {"a": 1.0, "t1": 1e-6, "b": 0.7, "t2": 1e-5, "c": 0.5, "t3": 1e-4},
    decades(1e-7, 5e-4, 80),
    0.003,
)
case(
    "stretched",
    "A*exp(-(x/tau)**beta)+C",
    {"A": 1.0, "tau": 1e-3, "beta": 0.6, "C": 0.1},
    decades(1e-6, 1e-1, 40),
    0.01,
)
# enzymes
case("mm", "Vmax*x/(Km+x)", {"Vmax": 2.5e-7, "Km": 3e-5}, decades(2e-6, 5e-4, 10), 0.03)
case("mm_subinh", "Vmax*x/(Km+x+x**2/Ki)", {"Vmax": 120.0, "Km": 5.0, "Ki": 80.0}, decades(0.5, 500, 14), 0.02)
inhibited = np.array([(s, i) for s in (5, 10, 20, 50, 100, 200.0) for i in (0, 5, 20, 50.0)])
case("mm_comp", "V*x0/(Km*(1+x1/Ki)+x0)", {"V": 12.0, "Km": 20.0, "Ki": 8.0}, inhibited, 0.02)
case("mm_mixed", "V*x0/(Km*(1+x1/Ki)+x0*(1+x1/Kii))", {"V": 12.0, "Km": 20.0, "Ki": 8.0, "Kii": 40.0}, inhibited, 0.02)
inhibited_molar = inhibited * 1e-6
case("mm_comp_M", "V*x0/(Km*(1+x1/Ki)+x0)", {"V": 1.2e-8, "Km": 2e-5, "Ki": 8e-6}, inhibited_molar, 0.02)
case(
    "morrison",
    "V*(1-((E+x+K)-sqrt((E+x+K)**2-4*E*x))/(2*E))",
    {"V": 1.0, "E": 1e-8, "K": 2e-9},
    decades(1e-10, 1e-6, 16),
    0.02,
)
case(
    "quad_bind",
    "b+a*((P+x+K)-sqrt((P+x+K)**2-4*P*x))/(2*P)",
    {"a": 500.0, "b": 50.0, "P": 1e-6, "K": 2e-7},
    decades(1e-8, 1e-4, 16),
    0.02,
)
case("hill", "b+(t-b)*x**n/(K**n+x**n)", {"b": 5.0, "t": 100.0, "K": 3e-8, "n": 1.5}, decades(1e-10, 1e-5, 16), 0.03)
case("hill0", "V*x**n/(K**n+x**n)", {"V": 1e5, "K": 250.0, "n": 2.7}, even(10, 1000, 20), 0.03)
case("ec50_log", "b+(t-b)/(1+10**((c-x)*h))", {"b": 2.0, "t": 98.0, "c": -7.0, "h": 1.2}, even(-10, -4, 14), 0.03)
case("4pl", "d+(a-d)/(1+(x/c)**b)", {"a": 0.1, "b": 1.3, "c": 40.0, "d": 2.5}, decades(0.5, 2000, 12), 0.02)
case(
    "5pl", "d+(a-d)/(1+(x/c)**b)**g", {"a": 0.1, "b": 1.8, "c": 60.0, "d": 2.5, "g": 0.5}, decades(0.1, 10000, 24), 0.01
)
case(
    "bell_dose",
    "a/(1+(K1/x)**n)/(1+x/K2)",
    {"a": 10.0, "K1": 1e-8, "n": 1.5, "K2": 1e-5},
    decades(1e-10, 1e-3, 24),
    0.02,
)
# adsorption
case("langmuir", "q*K*x/(1+K*x)", {"q": 150.0, "K": 0.02}, decades(1, 1000, 12), 0.02)
case("langmuir_Pa", "q*K*x/(1+K*x)", {"q": 3.0, "K": 2e-5}, even(1e3, 5e5, 15), 0.02)
case("freundlich", "K*x**(1/n)", {"K": 12.0, "n": 2.5}, decades(0.5, 500, 12), 0.02)
case("sips", "q*(K*x)**n/(1+(K*x)**n)", {"q": 200.0, "K": 0.01, "n": 0.7}, decades(1, 2000, 15), 0.01)
case("toth", "q*K*x/(1+(K*x)**t)**(1/t)", {"q": 5.0, "K": 1e-4, "t": 0.5}, decades(10, 1e6, 20), 0.01)
case(
    "dual_langmuir",
    "q1*a*x/(1+a*x)+q2*b*x/(1+b*x)",
    {"q1": 2.0, "a": 5.0, "q2": 3.0, "b": 0.05},
    decades(0.01, 200, 25),
    0.005,
)
case("bet", "v*c*x/((1-x)*(1+(c-1)*x))", {"v": 25.0, "c": 100.0}, even(0.02, 0.6, 18), 0.01)
case("dubinin", "W*exp(-(8.314*300*log(1/x)/E)**2)", {"W": 0.5, "E": 15000.0}, decades(1e-5, 0.9, 18), 0.01)
# PK
case(
    "bateman",
    "F*ka/(ka-ke)*(exp(-ke*x)-exp(-ka*x))",
    {"F": 20.0, "ka": 1.5, "ke": 0.15},
    [0.25, 0.5, 1, 1.5, 2, 3, 4, 6, 8, 12, 16, 24],
    0.02,
)
case(
    "bateman_lag",
    "where(x>t0,F*ka/(ka-ke)*(exp(-ke*(x-t0))-exp(-ka*(x-t0))),0)",
    {"F": 20.0, "ka": 1.5, "ke": 0.15, "t0": 0.6},
    [0.25, 0.5, 0.75, 1, 1.25, 1.5, 2, 2.5, 3, 4, 6, 8, 10, 12, 16, 24],
    0.01,
)
case(
    "twocomp_oral",
    "A*exp(-al*x)+B*exp(-be*x)-(A+B)*exp(-ka*x)",
    {"A": 30.0, "al": 0.8, "B": 10.0, "be": 0.08, "ka": 3.0},
    decades(0.1, 48, 24),
    0.005,
)
case(
    "twocomp_ng",
    "A*exp(-al*x)+B*exp(-be*x)",
    {"A": 900.0, "al": 1.2, "B": 150.0, "be": 0.07},
    [0.08, 0.25, 0.5, 0.75, 1, 1.5, 2, 3, 4, 6, 8, 12, 24, 36, 48],
    0.01,
)
# growth/ecology
case("gompertz", "A*exp(-b*exp(-k*x))", {"A": 8e5, "b": 6.0, "k": 0.08}, even(0, 90, 20), 0.02)
case("gompertz_zw", "A*exp(-exp(mu*2.718281828/A*(lam-x)+1))", {"A": 9.0, "mu": 0.8, "lam": 6.0}, even(0, 30, 25), 0.02)
case("richards", "K/(1+Q*exp(-k*x))**(1/v)", {"K": 120.0, "Q": 30.0, "k": 0.25, "v": 0.7}, even(0, 40, 30), 0.01)
case("logistic3", "K/(1+exp(-r*(x-t)))", {"K": 3.2e8, "r": 0.031, "t": 1950.0}, even(1800, 2020, 23), 0.02)
case("vonbert", "Li*(1-exp(-k*(x-t0)))", {"Li": 1200.0, "k": 0.2, "t0": -0.8}, even(1, 20, 20), 0.03)
case("weibull_growth", "a-b*exp(-c*x**d)", {"a": 70.0, "b": 60.0, "c": 1e-4, "d": 2.4}, even(5, 80, 25), 0.015)
case("holling3", "a*x**2/(1+a*h*x**2)", {"a": 0.02, "h": 0.05}, even(1, 100, 20), 0.03)
case("ricker", "a*x*exp(-b*x)", {"a": 3.0, "b": 2e-6}, even(1e4, 2e6, 25), 0.05)
case("species_area", "c*x**z", {"c": 20.0, "z": 0.25}, decades(1e-2, 1e6, 15), 0.05)
case("haldane", "mu*x/(K+x+x**2/I)", {"mu": 0.5, "K": 20.0, "I": 500.0}, decades(1, 3000, 20), 0.03)
case("thermal_perf", "a*exp(-((x-Topt)/(2*s))**2)", {"a": 2.0, "Topt": 28.0, "s": 4.0}, even(5, 45, 18), 0.03)
case("PI_platt", "P*(1-exp(-al*x/P))*exp(-be*x/P)", {"P": 8.0, "al": 0.08, "be": 0.004}, even(0, 2000, 25), 0.02)
# hydrology
case(
    "vangenuchten",
    "tr+(ts-tr)/(1+(a*x)**n)**(1-1/n)",
    {"tr": 0.05, "ts": 0.45, "a": 0.02, "n": 1.8},
    decades(1, 15000, 20),
    0.01,
)
case("horton", "fc+(f0-fc)*exp(-k*x)", {"fc": 1e-6, "f0": 2e-5, "k": 8e-4}, even(0, 7200, 20), 0.02)
case("philip", "S/(2*sqrt(x))+K", {"S": 5e-4, "K": 2e-6}, decades(10, 7200, 15), 0.02)
case("theis_cj", "Q*log(2.25*T*x/(r*S))", {"Q": 0.1, "T": 1e-3, "r": 100.0, "S": 1e-3}, decades(100, 1e5, 15), 0.02)
case("rating", "a*(x-h0)**b", {"a": 30.0, "h0": 0.4, "b": 1.7}, even(0.6, 4, 20), 0.02)
# materials
case("ramberg", "x/E+a*(x/1e6)**n", {"E": 7e10, "a": 1e-20, "n": 7.0}, even(1e7, 5e8, 25), 0.01)
case("ramberg2", "x/E+0.002*(x/s0)**n", {"E": 7e4, "s0": 300.0, "n": 12.0}, even(10, 360, 25), 0.01)
case("hollomon", "K*x**n", {"K": 5.3e8, "n": 0.22}, decades(1e-3, 0.3, 20), 0.01)
case("swift", "K*(e0+x)**n", {"K": 650e6, "e0": 0.01, "n": 0.2}, even(0, 0.3, 20), 0.005)
case("voce", "s0+Q*(1-exp(-b*x))", {"s0": 250.0, "Q": 180.0, "b": 12.0}, even(0, 0.3, 20), 0.01)
case("basquin", "A*x**(-b)", {"A": 900.0, "b": 0.09}, decades(1e3, 1e7, 12), 0.02)
case(
    "coffin_manson",
    "A*x**(-b)+B*x**(-c)",
    {"A": 0.01, "b": 0.09, "B": 0.6, "c": 0.6},
    decades(10, 1e7, 20),
    0.02,
    relative=True,
)
case("stromeyer", "S0+A*x**(-b)", {"S0": 200.0, "A": 3000.0, "b": 0.3}, decades(1e3, 1e7, 16), 0.01)
case(
    "norton", "A*x**n*exp(-Q/(8.314*900))", {"A": 1e-10, "n": 5.0, "Q": 3e5}, decades(20, 200, 12), 0.03, relative=True
)
case(
    "creep2",
    "A*x0**n*exp(-Q/(8.314*x1))",
    {"A": 1e-3, "n": 4.0, "Q": 2.5e5},
    [(s, t) for s in (20, 40, 80, 160.0) for t in (750, 800, 850, 900.0)],
    0.03,
    relative=True,
)
case(
    "creep_theta",
    "t1*(1-exp(-t2*x))+t3*(exp(t4*x)-1)",
    {"t1": 0.01, "t2": 2e-5, "t3": 1e-3, "t4": 8e-6},
    even(0, 4e5, 40),
    0.01,
)
case("paris", "C*x**m", {"C": 1e-12, "m": 3.1}, decades(8, 60, 15), 0.04, relative=True)
case(
    "johnson_cook",
    "(A+B*x0**n)*(1+C*log(x1))",
    {"A": 300.0, "B": 500.0, "n": 0.3, "C": 0.015},
    [(e, r) for e in even(0.01, 0.3, 8) for r in (1, 100, 1000.0)],
    0.005,
)
# rheology
case(
    "carreau",
    "ei+(e0-ei)*(1+(l*x)**2)**((n-1)/2)",
    {"ei": 0.003, "e0": 50.0, "l": 8.0, "n": 0.35},
    decades(1e-3, 1e4, 30),
    0.03,
    relative=True,
)
case(
    "cross",
    "ei+(e0-ei)/(1+(k*x)**m)",
    {"ei": 0.01, "e0": 1000.0, "k": 10.0, "m": 0.8},
    decades(1e-3, 1e4, 30),
    0.03,
    relative=True,
)
case("herschel", "t0+K*x**n", {"t0": 12.0, "K": 3.0, "n": 0.5}, decades(0.1, 1000, 20), 0.01)
case("casson", "(sqrt(t0)+sqrt(e*x))**2", {"t0": 5e-3, "e": 3.5e-3}, decades(0.1, 1000, 20), 0.02)
case(
    "maxwell2",
    "G1*x**2*t1**2/(1+x**2*t1**2)+G2*x**2*t2**2/(1+x**2*t2**2)",
    {"G1": 1e5, "t1": 0.01, "G2": 1e4, "t2": 1.0},
    decades(1e-2, 1e4, 35),
    0.02,
    relative=True,
)
# optics/physics
wavelengths = even(0.3, 2.4, 40)
case("sellmeier1", "sqrt(1+B*x**2/(x**2-C))", {"B": 1.1, "C": 0.012}, wavelengths, 0.005)
case(
    "sellmeier2",
    "sqrt(1+B1*x**2/(x**2-C1)+B2*x**2/(x**2-C2))",
    {"B1": 1.1, "C1": 0.011, "B2": 0.9, "C2": 100.0},
    wavelengths,
    0.003,
)
case("cauchy_nm", "A+B/x**2+C/x**4", {"A": 1.5, "B": 4500.0, "C": 1e8}, even(350, 1000, 30), 0.01)
case("planck", "A/(x**5*(exp(14388/(x*T))-1))", {"A": 1e5, "T": 3000.0}, even(0.4, 3, 40), 0.02)
case("planck_SI", "A/(x**5*(exp(0.014388/(x*T))-1))", {"A": 3.7e-16, "T": 5800.0}, even(2e-7, 3e-6, 50), 0.02)
case("diode", "Is*(exp(x/(n*0.02585))-1)", {"Is": 1e-12, "n": 1.2}, even(0.2, 0.7, 25), 0.02, relative=True)
case(
    "solar",
    "IL-I0*(exp((x)/(n*0.02585))-1)-x/Rs",
    {"IL": 0.03, "I0": 1e-9, "n": 1.4, "Rs": 1000.0},
    even(0, 0.62, 30),
    0.01,
)
case("tafel", "a+b*log10(x)", {"a": 0.8, "b": 0.12}, decades(1e-6, 1e-1, 15), 0.01)
case("butler", "i0*(exp(al*38.92*x)-exp(-(1-al)*38.92*x))", {"i0": 1e-5, "al": 0.4}, even(-0.15, 0.15, 31), 0.01)
case(
    "breit_wigner", "A*g**2/((x-x0)**2+g**2/4)+B", {"A": 30.0, "x0": 91.19, "g": 2.5, "B": 1.0}, even(85, 97, 40), 0.02
)
case(
    "fano",
    "A*(q+2*(x-x0)/g)**2/(1+(2*(x-x0)/g)**2)+B",
    {"A": 2.0, "q": 1.5, "x0": 520.0, "g": 8.0, "B": 5.0},
    even(460, 580, 80),
    0.02,
)
case(
    "lorentz_MHz",
    "A/(1+((x-f0)/w)**2)+B",
    {"A": 1e-6, "f0": 1.42e9, "w": 2e6, "B": 1e-7},
    even(1.40e9, 1.44e9, 60),
    0.03,
)
case("resonance", "F/sqrt((w0**2-x**2)**2+(g*x)**2)", {"F": 1e8, "w0": 1e4, "g": 300.0}, even(8e3, 1.2e4, 50), 0.02)
case("sinc2", "I*(sinc((x-c)/w))**2+b", {"I": 1e4, "c": 1.2e-3, "w": 8e-4, "b": 100.0}, even(-5e-3, 5e-3, 120), 0.01)
case(
    "doubleslit",
    "I*(sinc((x-c)/w))**2*cos(pi*(x-c)/d)**2",
    {"I": 1.0, "c": 2e-4, "w": 4e-3, "d": 9e-4},
    even(-5e-3, 5e-3, 250),
    0.02,
)
case("airy_fp", "A/(1+F*sin(pi*(x-p)/d)**2)", {"A": 1.0, "F": 20.0, "p": 0.3, "d": 1.7}, even(0, 8, 160), 0.02)
case("fringes", "a+b*cos(2*pi*x/p+f)", {"a": 100.0, "b": 60.0, "p": 3.3e-4, "f": 1.0}, even(0, 5e-3, 150), 0.03)
case("damped", "A*exp(-x/t)*cos(2*pi*f*x+p)", {"A": 0.3, "t": 2e-6, "f": 2.5e6, "p": 0.5}, even(0, 6e-6, 120), 0.03)
case("damped_off", "A*exp(-g*x)*sin(w*x+p)+c", {"A": 5.0, "g": 0.4, "w": 9.0, "p": 0.5, "c": 2.0}, even(0, 6, 80), 0.03)
case("chirp", "A*sin(p+w*x+k*x**2)", {"A": 1.0, "p": 0.4, "w": 6.0, "k": 0.9}, even(0, 8, 160), 0.05)
case(
    "birch",
    "E0+9*V0*B/16*(((V0/x)**(2/3)-1)**3*Bp+((V0/x)**(2/3)-1)**2*(6-4*(V0/x)**(2/3)))",
    {"E0": -10.0, "V0": 40.0, "B": 0.6, "Bp": 4.5},
    even(33, 48, 13),
    0.005,
)
case(
    "birch_P",
    "1.5*B*((V0/x)**(7/3)-(V0/x)**(5/3))*(1+0.75*(Bp-4)*((V0/x)**(2/3)-1))",
    {"B": 160.0, "V0": 75.0, "Bp": 4.2},
    even(55, 75, 15),
    0.01,
)
case("murnaghan", "B/Bp*((V0/x)**Bp-1)", {"B": 160.0, "V0": 75.0, "Bp": 4.2}, even(55, 75, 15), 0.01)
case("morse", "D*(1-exp(-a*(x-r)))**2+e", {"D": 4.5, "a": 1.9, "r": 0.74, "e": -4.5}, even(0.45, 3, 25), 0.005)
case("lj", "4*e*((s/x)**12-(s/x)**6)", {"e": 0.0103, "s": 3.4}, even(3.3, 8, 25), 0.01)
case("lj_J", "4*e*((s/x)**12-(s/x)**6)", {"e": 1.65e-21, "s": 3.4e-10}, even(3.3e-10, 8e-10, 25), 0.01)
case("debye_im", "de*x*t/(1+(x*t)**2)", {"de": 70.0, "t": 8e-12}, decades(1e8, 1e12, 30), 0.02)
case("debye_re", "ei+(es-ei)/(1+(x*t)**2)", {"ei": 5.0, "es": 78.0, "t": 8e-12}, decades(1e8, 1e12, 30), 0.01)
case(
    "colecole_im",
    "de*(x*t)**(1-a)*cos(a*pi/2)/(1+2*(x*t)**(1-a)*sin(a*pi/2)+(x*t)**(2*(1-a)))",
    {"de": 10.0, "t": 1e-6, "a": 0.2},
    decades(1e3, 1e9, 30),
    0.02,
)
case(
    "RC_Z",
    "sqrt(Rs**2+2*Rs*R/(1+(2*pi*x*R*Cc)**2)+R**2/(1+(2*pi*x*R*Cc)**2))",
    {"Rs": 20.0, "R": 1000.0, "Cc": 1e-6},
    decades(1, 1e6, 30),
    0.01,
    relative=True,
)
case(
    "lowpass_db",
    "20*log10(g)-10*log10(1+(x/fc)**(2*n))",
    {"g": 2.0, "fc": 1.2e4, "n": 2.0},
    decades(100, 1e6, 30),
    0.01,
)
case("brillouin_tanh", "M*tanh(x/a)+k*x", {"M": 3e5, "a": 5e4, "k": 0.2}, even(-2e5, 2e5, 41), 0.01)
case("langevin", "M*(1/tanh(x/a)-a/x)", {"M": 3e5, "a": 2e4}, even(5e3, 4e5, 25), 0.01)
case("curie_weiss", "C/(x-T)+X", {"C": 0.4, "T": -12.0, "X": 1e-4}, even(10, 300, 40), 0.01)
case("kondo", "r0+a*x**2-b*log(x)+c*x**5", {"r0": 1.0, "a": 1e-4, "b": 0.1, "c": 1e-8}, even(1, 30, 30), 0.01)
case("bloch_T", "R0*(1-(x/Tc)**2)", {"R0": 0.08, "Tc": 9.2}, even(1, 9, 20), 0.01)
case("order_par", "M*(1-x/Tc)**b", {"M": 1.7e6, "Tc": 650.0, "b": 0.35}, even(300, 630, 20), 0.01)
case("erf_edge", "b+a*erf((x-c)/(sqrt(2)*s))", {"b": 500.0, "a": 400.0, "c": 12.5, "s": 0.4}, even(5, 20, 60), 0.03)
case("knife", "b+a/2*erfc(sqrt(2)*(x-c)/w)", {"b": 0.01, "a": 1.2e-3, "c": 3e-3, "w": 2e-4}, even(0, 6e-3, 40), 0.02)
case("diffusion_erfc", "Cs*erfc(x/(2*sqrt(D*3600)))", {"Cs": 1e20, "D": 1e-15}, even(0, 1e-5, 30), 0.02)
case(
    "emg",
    "a*exp(s**2/(2*t**2)-(x-c)/t)*erfc((s/t-(x-c)/s)/sqrt(2))",
    {"a": 50.0, "c": 5.2, "s": 0.1, "t": 0.35},
    even(4, 9, 120),
    0.02,
)
case(
    "2gauss_lin",
    "a1*exp(-((x-c1)/s1)**2/2)+a2*exp(-((x-c2)/s2)**2/2)+b0+b1*x",
    {"a1": 500.0, "c1": 1170.0, "s1": 12.0, "a2": 380.0, "c2": 1330.0, "s2": 14.0, "b0": 200.0, "b1": -0.1},
    even(1000, 1500, 200),
    0.02,
)
case(
    "3lorentz",
    "a1/(1+((x-c1)/w1)**2)+a2/(1+((x-c2)/w2)**2)+a3/(1+((x-c3)/w3)**2)+b",
    {"a1": 1.0, "c1": 1.0, "w1": 0.12, "a2": 0.6, "c2": 2.1, "w2": 0.2, "a3": 0.8, "c3": 3.0, "w3": 0.1, "b": 0.1},
    even(0, 4, 200),
    0.02,
)
case(
    "gauss_exp_bg",
    "a*exp(-((x-c)/s)**2/2)+b*exp(-x/l)",
    {"a": 300.0, "c": 661.7, "s": 20.0, "b": 800.0, "l": 400.0},
    even(100, 1000, 150),
    0.02,
)
case(
    "overlap2",
    "a1*exp(-((x-c1)/s)**2)+a2*exp(-((x-c2)/s)**2)+b",
    {"a1": 1.0, "c1": 530.2, "a2": 0.5, "c2": 533.0, "s": 1.2, "b": 0.05},
    even(522, 542, 100),
    0.01,
)
case("psychometric", "g+(1-g-l)/(1+exp(-(x-a)/b))", {"g": 0.5, "l": 0.02, "a": 0.3, "b": 0.06}, even(0, 0.8, 12), 0.02)
case("weibull_psy", "1-0.5*exp(-(x/a)**b)", {"a": 0.02, "b": 2.5}, decades(0.002, 0.1, 10), 0.03)
case("stevens", "k*(x-x0)**n", {"k": 3.0, "x0": 2.0, "n": 0.6}, even(3, 100, 15), 0.02)
case("naka_rushton", "R*x**n/(x**n+c**n)+s", {"R": 40.0, "n": 2.2, "c": 18.0, "s": 5.0}, decades(1, 100, 10), 0.03)
pixels = [(x, y) for x in even(0, 20, 21) for y in even(0, 20, 21)]
case(
    "gauss2d",
    "A*exp(-((x0-cx)/sx)**2/2-((x1-cy)/sy)**2/2)+b",
    {"A": 1000.0, "cx": 8.0, "sx": 2.0, "cy": 12.0, "sy": 3.0, "b": 100.0},
    pixels,
    0.03,
)
case(
    "gauss2d_rot",
    "A*exp(-(a*(x0-cx)**2+2*b*(x0-cx)*(x1-cy)+c*(x1-cy)**2))+o",
    {"A": 1000.0, "cx": 8.0, "cy": 12.0, "a": 0.12, "b": 0.05, "c": 0.08, "o": 100.0},
    pixels,
    0.03,
)
case(
    "plane_wave",
    "p+q*x0+r*x1+A*sin(k*x0+l*x1+f)",
    {"p": 5.0, "q": 0.1, "r": -0.2, "A": 2.0, "k": 1.3, "l": 0.7, "f": 0.4},
    pixels,
    0.03,
)
times = even(0, 10, 15)
case(
    "shared_groups",
    "where(x1<0.5,a0,a1)*exp(-k*x0)+c",
    {"a0": 5.0, "a1": 9.0, "k": 0.4, "c": 1.0},
    [(u, v) for v in (0, 1.0) for u in times],
    0.02,
)
case(
    "global_T",
    "A*exp(-E/(8.314*x1))*x0/(K+x0)",
    {"A": 1e9, "E": 5e4, "K": 0.3},
    [(s, T) for s in decades(0.02, 3, 6) for T in (290, 300, 310, 320.0)],
    0.02,
    relative=True,
)
case(
    "nusselt",
    "C*x0**m*x1**n",
    {"C": 0.023, "m": 0.8, "n": 0.4},
    [(r, p) for r in decades(1e4, 1e6, 6) for p in (0.7, 3, 7, 50.0)],
    0.03,
    relative=True,
)
case(
    "cobb",
    "A*x0**a*x1**b",
    {"A": 1.5, "a": 0.3, "b": 0.65},
    [(r, p) for r in decades(1e3, 1e6, 6) for p in decades(10, 1e3, 5)],
    0.05,
    relative=True,
)
case("drag", "a/x+b/sqrt(x)+c", {"a": 24.0, "b": 6.0, "c": 0.4}, decades(0.1, 1e5, 25), 0.03, relative=True)
case(
    "pacejka",
    "D*sin(Cc*arctan(B*x-E*(B*x-arctan(B*x))))",
    {"D": 4000.0, "Cc": 1.4, "B": 0.2, "E": -0.5},
    even(-15, 15, 60),
    0.01,
)
case(
    "pulse_scint",
    "A*(exp(-(x-t0)/td)-exp(-(x-t0)/tr))*heaviside(x-t0,1)",
    {"A": 1.0, "t0": 2e-8, "td": 2.3e-7, "tr": 1e-8},
    even(0, 1e-6, 200),
    0.01,
)
case("piecewise", "a+b*x+c*maximum(x-k,0)", {"a": 1.0, "b": 0.5, "c": -2.0, "k": 6.0}, even(0, 10, 40), 0.03)
case("peukert", "C*x**(1-k)", {"C": 55.0, "k": 1.2}, decades(0.5, 50, 10), 0.03)
case("arps", "q/(1+b*D*x)**(1/b)", {"q": 800.0, "b": 0.6, "D": 0.004}, even(0, 1500, 40), 0.02)
case("hubbert", "2*P/(1+cosh(b*(x-t)))", {"P": 3.0, "b": 0.06, "t": 1975.0}, even(1900, 2010, 56), 0.03)
case(
    "rabi",
    "P*W**2/(W**2+(x-f)**2)*sin(3.14159e-5*sqrt(W**2+(x-f)**2))**2",
    {"P": 0.9, "W": 5e4, "f": 2e4},
    even(-3e5, 3e5, 121),
    0.03,
)
case(
    "ramsey",
    "a+b*exp(-(x/T2)**2)*cos(2*pi*d*x+p)",
    {"a": 0.5, "b": 0.45, "T2": 1.2e-5, "d": 3e5, "p": 0.2},
    even(0, 2.5e-5, 150),
    0.03,
)
case(
    "T1_inv",
    "M*(1-2*f*exp(-x/T1))",
    {"M": 1e5, "f": 0.95, "T1": 0.85},
    [0.01, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.2, 1.6, 2.5, 4, 6],
    0.02,
)
case(
    "stejskal",
    "S*(f*exp(-x*Da)+(1-f)*exp(-x*Db))",
    {"S": 1000.0, "f": 0.3, "Da": 2e-2, "Db": 8e-4},
    [0, 10, 20, 40, 60, 80, 100, 200, 300, 500, 700, 1000],
    0.005,
)
case("isotope", "a*exp(-x/8033)+b", {"a": 0.9, "b": 0.05}, even(0, 40000, 20), 0.02)
case("logfault", "a*log(1+x/t)+v*x", {"a": 0.02, "t": 3.0, "v": 1e-4}, decades(0.1, 1000, 40), 0.02)
case("omori", "K/(x+c)**p", {"K": 120.0, "c": 0.3, "p": 1.1}, decades(0.05, 300, 25), 0.03, relative=True)
case("tully", "a*(x/b)**s", {"a": 1e10, "b": 200.0, "s": 4.0}, decades(50, 400, 20), 0.05, relative=True)
case(
    "sersic",
    "I*exp(-b*((x/r)**(1/n)-1))",
    {"I": 100.0, "b": 3.67, "r": 5.0, "n": 2.0},
    decades(0.3, 30, 30),
    0.02,
    relative=True,
)
case("nfw", "r/((x/s)*(1+x/s)**2)", {"r": 1e7, "s": 20.0}, decades(1, 300, 25), 0.03, relative=True)
case(
    "king_beta",
    "S*(1+(x/r)**2)**(0.5-3*b)+B",
    {"S": 1e-3, "r": 120.0, "b": 0.66, "B": 1e-6},
    decades(5, 1500, 30),
    0.02,
    relative=True,
)


def data(case, seed):
    """Return y and weights."""
    rng = np.random.default_rng(1000 + seed)
    clean = case(case.true.values())
    if case.relative:
        weights = 1 / np.square(clean)
        return clean * (1 + case.noise * rng.standard_normal(len(clean))), weights / weights.mean()
    return clean + case.noise * np.ptp(clean) * rng.standard_normal(len(clean)), np.ones(len(clean))


def from_truth(case, y, weights):
    """Return the sum of squares of SciPy's fit that starts from the true parameters."""
    true = np.array(list(case.true.values()))

    def residuals(scaled):
        found = (case(scaled * true) - y) * np.sqrt(weights)
        return np.where(np.isfinite(found), found, 1e150)

    best, start = np.inf, np.ones(len(true))
    for method in ("trf", "lm"):
        fit = least_squares(residuals, start, method=method, xtol=1e-12, ftol=1e-12, gtol=1e-12, max_nfev=1000)
        best, start = min(best, 2 * fit.cost), fit.x
    return best


def measure(case, seed):
    """Return whether the fit is bad, whether it is so in silence, and its CPU seconds."""
    y, weights = data(case, seed)
    least = from_truth(case, y, weights)
    start = time.process_time()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = LMRegressor(case.formula, random_state=seed)
        try:
            model.fit(case.X, y, sample_weight=weights if case.relative else None)
        except ValueError:
            return True, False, time.process_time() - start
    seconds = time.process_time() - start
    found = weights @ np.square(model.predict(case.X) - y)
    is_bad = not found - least <= least / max(len(y) - len(case.true), 1)
    return is_bad, is_bad and model.converged_ and not caught, seconds


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--only", default="", metavar="REGEX", help="formulas by name")
    called = parser.parse_args()
    set_threads(1)
    rows, seconds = [], []
    for one in CASES:
        if not re.search(called.only, one.name):
            continue
        with np.errstate(all="ignore"):
            found = [measure(one, seed) for seed in range(called.seeds)]
        bad, silent = sum(is_bad for is_bad, _, _ in found), sum(is_silent for _, is_silent, _ in found)
        seconds += [taken for _, _, taken in found]
        rows.append({"formula": one.name, "fits": len(found), "bad": bad, "silent": silent})
    total = {name: sum(row[name] for row in rows) for name in ("fits", "bad", "silent")}
    print(markdown([row for row in rows if row["bad"]] + [{"formula": f"all {len(rows)}", **total}]))
    print(f"CPU seconds of a fit: median {np.median(seconds):.2f}, most {max(seconds):.2f}")


if __name__ == "__main__":
    main()
