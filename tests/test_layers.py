"""Layers: the imports of every file, held to the table of the design."""

import ast
import sys
from pathlib import Path

import pytest

import sklm

ROOT = Path(sklm.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))

# From the top down. A file may import what stands in a row below its own; `_net` also uses its neighbors.
ROWS = [
    {"sklm.displays", "sklm.losses", "sklm.damping", "sklm.selection"},
    {"sklm.estimators"},
    {"sklm._uncertainty"},
    {"sklm._net"},
    {"sklm._data", "sklm._device", "sklm._progress", "sklm._profile", "sklm._report"},
    {"sklm.inference"},
    {"sklm.curves"},
    {"sklm.engine"},
    {"sklm.modules"},
]
THIRD_PARTY = {
    "sklm.displays": {"numpy", "matplotlib", "sklearn", "torch"},
    **dict.fromkeys(["sklm.losses", "sklm.damping", "sklm.selection"], frozenset()),
    "sklm.estimators": {"numpy", "sklearn", "torch"},
    "sklm._net": {"numpy", "scipy", "sklearn", "skorch", "torch"},
    "sklm._device": {"numpy", "sklearn", "torch"},
    "sklm._data": {"numpy", "scipy", "sklearn", "torch"},
    "sklm._uncertainty": {"numpy", "scipy", "sklearn", "torch"},
    "sklm._profile": {"numpy", "scipy", "torch"},
    "sklm.inference": {"numpy", "scipy", "torch"},
    "sklm._progress": {"tqdm"},
    "sklm._report": {"numpy", "pandas"},
    "sklm.engine": {"torch", "scipy"},
    "sklm.modules": {"torch"},
    "sklm.curves": {"numpy", "scipy", "torch"},
}


def module_name(path):
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room(name):
    """Return the row entry that a module belongs to: `sklm.engine` for all of the engine, else the module itself."""
    parts = name.split(".")
    return ".".join(parts[:2])


def imports(source, name, *, is_package=False):
    """Return the full names of the modules that a source imports, at its top, inside functions and for types alike."""
    package = name.split(".") if is_package else name.split(".")[:-1]
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*start, *(node.module.split(".") if node.module else [])])
            found |= {f"{base}.{alias.name}" if base == "sklm" else base for alias in node.names}
    return found


def imports_of(path):
    return imports(path.read_text(), module_name(path), is_package=path.name == "__init__.py")


def row(name):
    rows = [index for index, members in enumerate(ROWS) if name in members]
    assert rows, f"{name} has no row in the design's table of layers"
    return rows[0]


def violations(name, imported):
    """Return what module `name` imports although the table forbids it."""
    own = room(name)
    wrong = []
    for other in sorted(imported):
        top = other.split(".")[0]
        if top == "sklm":
            allowed = other.startswith("sklm.") and (room(other) == own or row(room(other)) > row(own))
        else:
            allowed = top in sys.stdlib_module_names or top in THIRD_PARTY[own]
        if not allowed:
            wrong.append(other)
    return wrong


@pytest.mark.parametrize(
    "path", [path for path in FILES if path.parent != ROOT or path.name != "__init__.py"], ids=module_name
)
def test_a_file_imports_only_what_lies_below_it(path):
    assert violations(module_name(path), imports_of(path)) == []


def test_only_net_imports_skorch():
    importing = [module_name(path) for path in FILES if any(i.split(".")[0] == "skorch" for i in imports_of(path))]
    assert {room(name) for name in importing} == {"sklm._net"}


def test_the_package_itself_only_gathers_public_names():
    rooms = {"sklm.engine", "sklm.estimators", "sklm.modules", "sklm.displays", "sklm.curves", "sklm.inference"}
    rooms |= {"sklm.losses", "sklm.damping", "sklm.selection"}
    gathered = imports_of(ROOT / "__init__.py")
    assert {room(name) for name in gathered if name.split(".")[0] == "sklm"} <= rooms
    assert all(name.split(".")[0] == "sklm" or name.split(".")[0] in sys.stdlib_module_names for name in gathered)


@pytest.mark.parametrize(
    ("name", "source", "expected"),
    [
        ("sklm.engine.losses", "import torch, math\nfrom sklm.engine._checks import x", []),
        ("sklm.engine.losses", "from . import solvers\nfrom .damping import x", []),
        ("sklm.engine.losses", "import numpy as np", ["numpy"]),
        ("sklm.engine.losses", "def f():\n    from sklearn.base import clone", ["sklearn.base"]),
        ("sklm.engine.losses", "from ..modules import MLP", []),
        ("sklm.engine.losses", "from .. import _data", ["sklm._data"]),
        ("sklm.engine.losses", "import sklm", ["sklm"]),
        ("sklm._data", "from sklm._net import LMNet", ["sklm._net"]),
        ("sklm._data", "from sklm import estimators", ["sklm.estimators"]),
        ("sklm._net", "from sklm.estimators import LMRegressor", ["sklm.estimators"]),
        ("sklm._net", "import sklm._data, skorch.history", []),
        ("sklm.estimators", "import skorch", ["skorch"]),
        ("sklm.modules", "import numpy\nfrom sklm.engine import losses", ["numpy", "sklm.engine"]),
    ],
    ids=str,
)
def test_the_reader_of_imports_sees_what_it_should(name, source, expected):
    assert violations(name, imports(source, name)) == expected
