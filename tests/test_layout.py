"""The layout of the package: layers, small files, docstrings whose examples run."""

from __future__ import annotations

import ast
import doctest
import inspect
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import jaxsoftmax

PACKAGE = Path(jaxsoftmax.__file__).parent
PYPROJECT = Path(__file__).parent.parent / "pyproject.toml"
PUBLIC = {
    name: getattr(jaxsoftmax, name)
    for name in jaxsoftmax.__all__
    if inspect.isfunction(getattr(jaxsoftmax, name))
} | {
    f"closed_form.{name}": value
    for name, value in vars(jaxsoftmax.closed_form).items()
    if inspect.isfunction(value) and not name.startswith("_")
}


def modules() -> dict[str, ast.Module]:
    """Every module of the package, by its full name."""
    paths = sorted(PACKAGE.rglob("*.py"))
    names = (path.relative_to(PACKAGE.parent).with_suffix("").parts for path in paths)
    return {
        ".".join(name).removesuffix(".__init__"): ast.parse(path.read_text())
        for name, path in zip(names, paths, strict=True)
    }


MODULES = modules()


def imported(tree: ast.Module) -> set[str]:
    """The package's modules that a module imports, at its top or anywhere in it."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "jaxsoftmax":
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                names.add(inner if inner in MODULES else node.module)
        elif isinstance(node, ast.Import):
            names |= {a.name for a in node.names if a.name.split(".")[0] == "jaxsoftmax"}
    return names


def contracts() -> list[list[list[str]]]:
    """The contracts of import-linter: lists of layers, the highest first, of modules each."""
    found = tomllib.loads(PYPROJECT.read_text())["tool"]["importlinter"]["contracts"]
    return [[re.split(r"[ |:]+", layer) for layer in c["layers"]] for c in found]


def layer_of(module: str, layers: list[list[str]]) -> int | None:
    inside = [
        i for i, names in enumerate(layers) if any(f"{module}.".startswith(f"{n}.") for n in names)
    ]
    return inside[0] if inside else None


@pytest.mark.parametrize("contract", range(4))
def test_layers_import_only_from_below(contract):
    """The same contracts as `lint-imports` checks, here for those who have only pytest."""
    layers = contracts()[contract]
    assert all(name in MODULES for names in layers for name in names)
    for name, tree in MODULES.items():
        own = layer_of(name, layers)
        for other in imported(tree) if own is not None else ():
            other_layer = layer_of(other, layers)
            assert other_layer is None or other_layer >= own, f"{name} imports {other}"


def test_every_module_has_a_layer():
    layers = contracts()[0]
    outside = {"jaxsoftmax", "jaxsoftmax._version"}
    assert {name for name in MODULES if layer_of(name, layers) is None} == outside


def test_the_check_sees_an_import_from_above():
    assert imported(ast.parse("from jaxsoftmax import losses")) == {"jaxsoftmax.losses"}
    assert imported(ast.parse("from jaxsoftmax._row.row import Row")) == {"jaxsoftmax._row.row"}
    layers = contracts()[0]
    assert layer_of("jaxsoftmax._row.row", layers) > layer_of("jaxsoftmax.losses", layers)


WITH_EXPONENTIALS = ("_row", "_xla", "closed_form", "_selfcheck")


@pytest.mark.parametrize("name", [n for n in MODULES if n.count(".")])
def test_exp_and_log_of_logits_live_in_few_modules(name):
    called = {
        node.func.attr
        for node in ast.walk(MODULES[name])
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        # math.log is of Python numbers: shapes and options.
        and not (isinstance(node.func.value, ast.Name) and node.func.value.id == "math")
    }
    if name.split(".")[1] not in WITH_EXPONENTIALS:
        assert not called & {"exp", "exp2", "expm1", "log", "log1p", "logaddexp", "softplus"}


@pytest.mark.parametrize("name", MODULES)
def test_files_and_functions_stay_small(name):
    tree = MODULES[name]
    if name == "jaxsoftmax._version":
        return
    assert len(ast.get_docstring(tree).strip()) > 0
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            signature = node.body[0].end_lineno if ast.get_docstring(node) else node.lineno
            assert node.end_lineno - signature <= 50, f"{name}.{node.name}"
    assert max(node.end_lineno for node in tree.body) <= 320


def test_types_say_what_they_are():
    lines = [line for path in PACKAGE.rglob("*.py") for line in path.read_text().splitlines()]
    with_any = [x for x in lines if re.search(r"\bAny\b", x) and "import" not in x]
    assert len(with_any) <= 30


def test_the_table_of_names_is_sorted_and_complete():
    names = jaxsoftmax.__all__
    assert names == sorted(names)
    public = {n for n in vars(jaxsoftmax) if not n.startswith("_")}
    modules_of_the_package = {n.split(".")[1] for n in MODULES if "." in n} - {"closed_form"}
    assert public - modules_of_the_package == set(names) - {"__version__"}


@pytest.mark.parametrize("name", PUBLIC)
def test_docstrings_say_everything(name):
    text = inspect.getdoc(PUBLIC[name])
    for part in ("Args:", "Returns:", "Example:", "Source:"):
        assert part in text, part
    if not name.startswith("closed_form"):
        for part in ("Raises:", "Gradients:"):
            assert part in text, part
    # "x: ..." or several that share a line, "x, y: ...".
    described = re.findall(r"^ {4}([a-z_, ]+):", text, re.MULTILINE)
    described = {name for names in described for name in names.split(", ")}
    assert set(inspect.signature(PUBLIC[name]).parameters) <= described


class NumbersToRounding(doctest.OutputChecker):
    """Printed float32 numbers differ in the last digit from one processor to the next."""

    NUMBER = re.compile(r"-?\d+\.\d*(?:e[-+]\d+)?")

    def check_output(self, want, got, optionflags):
        same_text = self.NUMBER.sub("#", want).split() == self.NUMBER.sub("#", got).split()
        numbers = ([float(n) for n in self.NUMBER.findall(text)] for text in (want, got))
        return same_text and next(numbers) == pytest.approx(next(numbers), rel=3e-7, abs=0)


@pytest.mark.parametrize("name", PUBLIC)
def test_examples_run(name):
    # Each docstring imports what it needs: as a reader would paste it.
    finder = doctest.DocTestFinder(recurse=False)
    (example,) = finder.find(PUBLIC[name], name, globs={})
    assert example.examples
    report: list[str] = []
    doctest.DocTestRunner(NumbersToRounding(), verbose=False).run(example, out=report.append)
    assert not report, "".join(report)


def test_every_public_name_has_a_page_in_the_reference():
    source = (PYPROJECT.parent / "docs" / "_tools" / "reference.py").read_text()
    (groups,) = re.findall(r"^GROUPS = (\{.*?^\})", source, re.MULTILINE | re.DOTALL)
    documented = {name for names in ast.literal_eval(groups).values() for name in names}
    public = set(jaxsoftmax.__all__) | set(PUBLIC) | {"tuning"}
    assert documented == public - {"__version__", "closed_form"}


def test_importing_computes_nothing_and_imports_no_extra():
    program = """
import sys, jaxsoftmax
from jax._src import xla_bridge
assert not xla_bridge._backends, "a device was brought up"
heavy = {"optax", "flax", "matplotlib", "sklearn", "torch", "rich"}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)


@pytest.mark.exhaustive
def test_the_command_line_passes_on_this_machine():
    # One device: eight virtual ones are the same machine eight times.
    done = subprocess.run(
        [sys.executable, "-m", "jaxsoftmax"],
        capture_output=True,
        text=True,
        timeout=240,
        env=os.environ | {"XLA_FLAGS": ""},
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert "float32" in done.stdout
    assert "bfloat16" in done.stdout
