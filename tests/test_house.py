"""The house: arrows only downwards, exp and log in few files, docstrings whose examples run."""

from __future__ import annotations

import ast
import doctest
import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import jaxsoftmax

PACKAGE = Path(jaxsoftmax.__file__).parent

# From the ground floor up: a module may import only modules of lines above its own.
FLOORS = [
    ["_version", "_options", "_mesh", "_placement", "tuning", "_fused.__init__"],
    ["_precision"],
    ["_extremes", "_logits", "_reduction"],
    ["_labels", "_online", "_targets"],
    ["_passes"],
    ["_rows"],
    ["_arguments", "_batch", "_tiles"],
    ["_loss", "closed_form"],
    ["_fused.plan", "_fused.orientation"],
    ["_fused.select", "_fused.chunked", "_fused.mosaic_tpu"],
    ["_fused.forward"],
    ["_fused.derivative"],
    ["distributions", "losses", "linear"],
    ["__init__"],
    ["_selfcheck"],
    ["__main__"],
]
FLOOR = {name: floor for floor, names in enumerate(FLOORS) for name in names}
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
    """Every module of the package, by its dotted name inside it."""
    return {
        ".".join(path.relative_to(PACKAGE).with_suffix("").parts): ast.parse(path.read_text())
        for path in sorted(PACKAGE.rglob("*.py"))
    }


def imported(tree: ast.Module) -> set[str]:
    """The package's modules that a module imports, at its top or anywhere in it."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "jaxsoftmax":
            inside = (node.module or "").removeprefix("jaxsoftmax").removeprefix(".")
            for alias in node.names:
                module = f"{inside}.{alias.name}".strip(".")
                names.add(module if module in FLOOR else inside or "__init__")
        elif isinstance(node, ast.Import):
            names |= {
                alias.name.removeprefix("jaxsoftmax.")
                for alias in node.names
                if alias.name.split(".")[0] == "jaxsoftmax"
            }
    return names


def test_every_module_has_a_floor():
    assert set(modules()) == set(FLOOR)


@pytest.mark.parametrize("name", FLOOR)
def test_arrows_point_downwards(name):
    upwards = {other for other in imported(modules()[name]) if FLOOR[other] >= FLOOR[name]}
    assert not upwards, f"{name} imports {upwards}"


def test_the_test_sees_an_arrow_upwards():
    assert imported(ast.parse("from jaxsoftmax import losses")) == {"losses"}
    assert imported(ast.parse("from jaxsoftmax._rows import Row")) == {"_rows"}


@pytest.mark.parametrize(
    "name",
    sorted(set(FLOOR) - {"_rows", "_online", "_passes", "_tiles", "closed_form", "_selfcheck"}),
)
def test_exp_and_log_of_logits_live_in_few_files(name):
    called = {
        node.func.attr
        for node in ast.walk(modules()[name])
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        # math.log is of Python numbers: shapes and options.
        and not (isinstance(node.func.value, ast.Name) and node.func.value.id == "math")
    }
    assert not called & {"exp", "exp2", "expm1", "log", "log1p", "log2", "logaddexp", "softplus"}


@pytest.mark.parametrize("name", sorted(set(FLOOR) - {"_version"}))
def test_files_and_functions_stay_small(name):
    path = PACKAGE / (name.replace(".", "/") + ".py")
    tree = modules()[name]
    assert len(ast.get_docstring(tree).strip()) > 0
    assert len(path.read_text().splitlines()) <= 400
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            signature = node.body[0].end_lineno if ast.get_docstring(node) else node.lineno
            assert node.end_lineno - signature <= 50, f"{name}.{node.name}"


def test_the_table_of_names_is_sorted_and_complete():
    names = jaxsoftmax.__all__
    assert names == sorted(names)
    public = {n for n in vars(jaxsoftmax) if not n.startswith("_")}
    modules_of_the_package = {n for n in FLOOR if not n.startswith("_")} - {"closed_form"}
    assert public - modules_of_the_package == set(names) - {"__version__"}


@pytest.mark.parametrize("name", PUBLIC)
def test_docstrings_say_everything(name):
    text = inspect.getdoc(PUBLIC[name])
    for part in ("Args:", "Returns:", "Example:", "Source:"):
        assert part in text, part
    if not name.startswith("closed_form"):
        for part in ("Raises:", "Gradients:"):
            assert part in text, part
    for argument in inspect.signature(PUBLIC[name]).parameters:
        assert f"{argument}:" in text, argument


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


def test_importing_computes_nothing_and_imports_no_extra():
    program = """
import sys, jaxsoftmax
from jax._src import xla_bridge
assert not xla_bridge._backends, "a device was brought up"
heavy = {"optax", "flax", "matplotlib", "sklearn", "torch", "rich"}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)


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
