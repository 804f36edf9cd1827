"""The benchmarks: what they refuse to time, what they count as an error, what they write."""

import importlib.util
import json
import math
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

pytest.importorskip("rich", reason="the benchmarks' own dependencies: the extra `benchmarks`")
pytest.importorskip("mpmath", reason="the benchmarks' own dependencies: the extra `benchmarks`")

ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # the benchmarks are run from a clone, not installed

from benchmarks import accuracy, implementations, references, report, runner, workers  # noqa: E402
from benchmarks.__main__ import main  # noqa: E402
from benchmarks.cases import DTYPES, TIMED_SUITES, Case, suite  # noqa: E402
from benchmarks.implementations import Implementation  # noqa: E402

FAST = runner.Settings(rounds=3, fewest_rounds=3, sample_s=1e-4, most_calls=4)


# --- the command ----------------------------------------------------------------------------------


def run_python(arguments, **options):
    """A Python of its own: this one is strict, and has eight devices."""
    kept = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    environment = {**kept, "JAX_PLATFORMS": "cpu"}
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        **options,
    )


@pytest.fixture(scope="module")
def quick_run(tmp_path_factory):
    """The document and the page of one quick run of two suites."""
    folder = tmp_path_factory.mktemp("results")
    files = ["--json", str(folder / "new" / "r.json"), "--markdown", str(folder / "r.md")]
    done = run_python(["-m", "benchmarks", "chapter", "accuracy", "--quick", *files])
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    page = (folder / "r.md").read_text(encoding="utf-8")
    return json.loads((folder / "new" / "r.json").read_text()), page, done.stdout


def test_the_document_says_where_and_how(quick_run):
    document, _, _ = quick_run
    assert set(document) == {"environment", "settings", "suites"}
    environment = document["environment"]
    assert environment["jax"] == jax.__version__
    assert environment["numpy"] == np.__version__
    assert environment["platform"] == "cpu"
    assert environment["device_count"] == 1
    assert environment["cpu_count"] >= 1
    assert {"date", "jaxlib", "device_kind", "load_average", "processor"} <= set(environment)
    assert document["settings"]["rounds"] == runner.QUICK.rounds
    assert set(document["suites"]) == {"chapter", "accuracy"}


def test_every_row_of_a_timed_suite(quick_run):
    rows = quick_run[0]["suites"]["chapter"]
    peers = [known.peer for known in implementations.of("chapter")]
    assert len(rows) == len(suite("chapter", quick=True)) * len(peers)
    assert {row["case"]["dtype"] for row in rows} == set(DTYPES)
    for row in rows:
        assert row["status"] == "ok", row
        assert 0.0 < row["lower_quartile_s"] <= row["median_s"] <= row["upper_quartile_s"]
        assert row["median_s"] < 1.0  # 64 x 1000: a millisecond, not seconds
        assert 0.0 <= row["error"] <= row["tolerance"]
        assert row["rounds"] == runner.QUICK.rounds
        assert isinstance(row["temp_bytes"], int)


def test_the_accuracy_that_the_readme_claims(quick_run):
    """Ours to rounding wherever the label leads; the usual form has nothing left beyond 20."""
    rows = {(r["dtype"], r["quantity"], r["peer"]): r for r in quick_run[0]["suites"]["accuracy"]}
    for quantity in ("loss", "gradient"):
        assert max(rows["float32", quantity, "jaxsoftmax"]["worst"]) < 1e-6
        # 1, or more where lse rounds to below x_y + an ulp.
        assert min(rows["float32", quantity, "jax.nn"]["worst"][2:]) >= 1.0
    assert rows["bfloat16", "loss", "jaxsoftmax"]["result_dtype"] == "float32"
    assert max(rows["bfloat16", "loss", "jaxsoftmax"]["worst"]) < 1e-6
    assert max(rows["bfloat16", "gradient", "jaxsoftmax"]["worst"]) < 2.0**-8 + 1e-6


def test_the_page_has_the_command_and_every_table(quick_run):
    document, page, stdout = quick_run
    assert page.startswith("Written by `python -m benchmarks chapter accuracy --quick --markdown ")
    assert page.count("\n## ") == 3
    median = document["suites"]["chapter"][0]["median_s"]
    assert f"| {report._digits(1e3 * median)} ± " in page
    # rich takes [y] for markup unless told otherwise.
    assert "softmax(x)[y]" in page
    assert "softmax(x)[y]" in " ".join(stdout.split())


def test_an_unknown_suite_is_an_error(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["chapters"])
    assert stopped.value.code == 2
    assert "unknown suite 'chapters'; choose from chapter, " in capsys.readouterr().err


def test_importing_the_benchmarks_imports_no_peer():
    """PyTorch's threads belong in a process of their own."""
    code = (
        "import sys, benchmarks, benchmarks.__main__; "
        "print(sorted({'torch', 'optax'} & set(sys.modules)))"
    )
    done = run_python(["-c", code])
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


def test_every_case_has_an_implementation_of_ours():
    for name in TIMED_SUITES:
        for case in suite(name) + suite(name, quick=True):
            assert case.direction in runner.DIRECTIONS
            assert implementations.of(case.operation), case
            if name != "chapter":
                assert implementations.OURS in {i.peer for i in implementations.of(case.operation)}


# --- right before fast ----------------------------------------------------------------------------

SMALL = Case("cross_entropy", "value_and_grad", (8, 5), "float32")


def right(logits, labels):
    log_p = logits - jax.nn.logsumexp(logits, axis=-1, keepdims=True)
    return -jnp.mean(jnp.take_along_axis(log_p, labels[:, None], axis=-1))


@jax.custom_vjp
def wrong_gradient(logits, labels):
    return right(logits, labels)


wrong_gradient.defvjp(
    lambda x, y: (right(x, y), (x, y)),
    lambda kept, g: (g * (1.01 * jax.nn.softmax(kept[0]) - jax.nn.one_hot(kept[1], 5)) / 8, None),
)


def raises(logits, labels):
    raise NotImplementedError("five classes")


WRONG = {
    "value": lambda x, y: 1.001 * right(x, y),
    "gradient": wrong_gradient,
    "NaN": lambda x, y: right(x, y) * jnp.nan,
    "another mean": lambda x, y: right(x[1:], y[1:]),
    "another label": lambda x, y: right(x, jnp.roll(y, 1)),
}


def measured(function, case=SMALL, requires=None):
    with workers.Workers() as pool:
        peers = [Implementation(case.operation, "fake", function, requires)]
        return runner.measure(case, peers, FAST, pool)[0]


def test_a_right_one_is_timed():
    row = measured(right)
    assert row.status == "ok"
    assert row.passed
    assert row.error < 1e-6
    assert row.rounds == FAST.rounds
    assert 0.0 < row.lower_quartile_s <= row.median_s <= row.upper_quartile_s
    assert row.temp_bytes is not None


@pytest.mark.parametrize("function", WRONG.values(), ids=WRONG)
def test_a_wrong_one_is_refused(function, monkeypatch):
    """Not timed at all, rather than timed and marked."""

    def never(run, calls):
        raise AssertionError("a wrong implementation was timed")

    monkeypatch.setattr(workers, "seconds_per_call", never)
    row = measured(function)
    assert row.status == "wrong"
    assert not row.passed
    assert row.median_s is None
    assert row.error is None or row.error > row.tolerance
    tables = report.timing_tables("cross_entropy", [row])
    assert tables[0].rows[0][-1] == "wrong"
    assert str(row).startswith("wrong: fake in cross_entropy, value_and_grad, 8x5 float32: ")


def test_another_shape_is_refused():
    case = Case("softmax", "forward", (8, 5), "float32")
    row = measured(lambda x: jax.nn.softmax(x).T, case)
    assert (row.status, row.error) == ("wrong", None)
    row = measured(lambda x: jax.nn.softmax(x)[:-1], case)
    assert (row.status, row.error) == ("wrong", None)


def test_one_that_raises_does_not_end_the_run():
    row = measured(raises)
    assert (row.status, row.note) == ("failed", "NotImplementedError: five classes")
    assert not row.passed


def test_one_that_is_not_installed():
    row = measured(None, requires="no_such_module")
    assert (row.status, row.median_s) == ("not installed", None)
    assert row.passed


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("operation", ["softmax", "log_softmax", "logsumexp"])
@pytest.mark.parametrize("direction", ["forward", "vjp"])
def test_the_distributions_of_jax_pass(operation, direction, dtype):
    case = Case(operation, direction, (16, 40), dtype)
    row = measured(getattr(jax.nn, operation) if operation != "logsumexp" else last_axis, case)
    assert row.status == "ok", row


def last_axis(logits):
    return jax.nn.logsumexp(logits, axis=-1)


# --- the references against the tests' own --------------------------------------------------------


def exact_outputs(case):
    """What the tests' oracles say the outputs are."""
    logits, *rest = references.inputs(case)
    x = oracles.f64(logits)
    if case.operation == "cross_entropy":
        labels = rest[0]
        loss = oracles.cross_entropy(x, labels)
        return [loss, oracles.cross_entropy_gradient(x, labels) / len(x)]
    p, log_p, lse = oracles.softmax(x), oracles.log_softmax(x), oracles.logsumexp(x)
    if case.direction == "forward":
        return [{"softmax": p, "log_softmax": log_p, "logsumexp": lse}[case.operation]]
    c = oracles.f64(rest[0])
    # Each is cᵀ J with the Jacobian of the operation, row by row.
    classes = x.shape[-1]
    jacobian = {
        "softmax": lambda p: np.diag(p) - np.outer(p, p),
        "log_softmax": lambda p: np.eye(classes) - p[None, :],
        "logsumexp": lambda p: p[None, :],
    }[case.operation]
    return [np.stack([np.atleast_1d(c[i]) @ jacobian(p[i]) for i in range(len(x))])]


REFERENCE_CASES = [
    Case("cross_entropy", "value_and_grad", (30, 7), "float32"),
    Case("cross_entropy", "value_and_grad", (30, 7), "bfloat16"),
    *(
        Case(operation, direction, (30, 7), "bfloat16")
        for operation in ("softmax", "log_softmax", "logsumexp")
        for direction in ("forward", "vjp")
    ),
]


@pytest.mark.parametrize("case", REFERENCE_CASES, ids=lambda c: f"{c.operation}-{c.direction}")
def test_references_agree_with_the_oracles(case, monkeypatch):
    monkeypatch.setattr(references, "_BLOCK", 50)  # so that there is more than one block
    arrays = references.inputs(case)
    outputs = exact_outputs(case)
    assert references.error(case, arrays, outputs) < 1e-12
    # One entry anywhere is enough, relative to itself where nothing cancels.
    for index, output in enumerate(outputs):
        moved = np.array(output)
        entry = moved.size - 1
        scale = max(abs(moved.flat[entry]), 1e-3)
        moved.flat[entry] += 0.1 * scale
        changed = [*outputs[:index], moved, *outputs[index + 1 :]]
        assert references.error(case, arrays, changed) > 1e-3


def test_inputs_are_the_same_every_time():
    for case in REFERENCE_CASES:
        for first, second in zip(references.inputs(case), references.inputs(case), strict=True):
            np.testing.assert_array_equal(first, second)
    assert references.inputs(REFERENCE_CASES[0])[0].dtype == np.float32
    assert references.inputs(REFERENCE_CASES[1])[0].dtype == jnp.bfloat16


# --- the clock and the turns ----------------------------------------------------------------------


class Scripted:
    """A program whose durations are known, and that writes down when it is asked."""

    temp_bytes = None

    def __init__(self, name, durations, journal):
        self.name, self.durations, self.journal = name, iter(durations), journal
        self.outputs = []

    def seconds_per_call(self, calls):
        self.journal.append((self.name, calls))
        return next(self.durations)


def test_peers_take_turns_and_the_quartiles_are_those_of_the_samples():
    journal = []
    warm_up = [1.0, 0.01, 0.01]
    a = Scripted("a", [*warm_up, 0.05, 0.01, 0.03, 0.02, 0.04], journal)
    b = Scripted("b", [*warm_up, *[0.02] * 5], journal)
    settings = runner.Settings(rounds=5, fewest_rounds=5, sample_s=0.02)
    times = runner.take_turns({"a": a, "b": b}, settings)
    # A sample fills 0.02 s: two calls of 0.01 s, after a slow first one that does not count.
    assert journal[:3] == [("a", 1), ("a", 1), ("a", 2)]
    assert [name for name, _ in journal[6:]] == ["a", "b", "b", "a", "a", "b", "b", "a", "a", "b"]
    assert {calls for _, calls in journal[6:]} == {2}
    assert times["a"]["median_s"] == 0.03
    assert (times["a"]["lower_quartile_s"], times["a"]["upper_quartile_s"]) == (0.02, 0.04)
    assert times["b"]["rounds"] == 5


def test_the_budget_ends_a_case_but_not_before_the_fewest_rounds():
    settings = runner.Settings(rounds=50, fewest_rounds=4, budget_s=0.0)
    program = Scripted("a", [0.1] * 60, [])
    assert runner.take_turns({"a": program}, settings)["a"]["rounds"] == 4


def test_the_clock_leaves_out_the_first_call(monkeypatch):
    now = iter([10.0, 16.0])
    monkeypatch.setattr(workers.time, "perf_counter", lambda: next(now))
    calls = []
    assert workers.seconds_per_call(lambda: calls.append(0), 3) == 2.0
    assert len(calls) == 4


WORKER = """
import numpy as np

def prepare(operation, direction, arrays):
    print("a library that talks")  # into the stream of answers, if nothing guards it
    if operation == "unknown":
        raise ValueError("no such operation")
    return lambda: [2 * a for a in arrays], lambda outputs: [np.asarray(o) for o in outputs]
"""


def test_a_worker_computes_times_and_survives_a_failure(tmp_path, monkeypatch):
    (tmp_path / "twice.py").write_text(WORKER)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    with workers.Workers() as pool:
        worker = pool.get("twice", "twice")
        assert pool.get("twice", "twice") is worker
        for dtype in (np.float32, jnp.bfloat16):
            array = np.arange(6).reshape(2, 3).astype(dtype)
            (doubled,) = worker.prepare("double", "forward", [array])
            assert doubled.dtype == dtype
            np.testing.assert_array_equal(doubled, 2 * array)
        assert 0.0 < worker.seconds_per_call(3) < 10.0
        with pytest.raises(RuntimeError, match="ValueError: no such operation"):
            worker.prepare("unknown", "forward", [])
        (doubled,) = worker.prepare("double", "forward", [np.ones(2)])
        np.testing.assert_array_equal(doubled, [2.0, 2.0])
    assert worker._process.returncode == 0


@pytest.mark.skipif(
    importlib.util.find_spec("torch") is None, reason="PyTorch is not installed (extra `torch`)"
)
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_worker_of_torch_is_right(dtype):
    (torch,) = [i for i in implementations.of("cross_entropy") if i.peer == "torch"]
    with workers.Workers() as pool:
        for direction in ("forward", "value_and_grad"):
            case = Case("cross_entropy", direction, (16, 40), dtype)
            (row,) = runner.measure(case, [torch], FAST, pool)
            assert row.status == "ok", row
            assert row.median_s > 0.0
            assert row.temp_bytes is None


# --- accuracy -------------------------------------------------------------------------------------


def test_exact_results_are_those_of_the_oracle():
    for row in ([20.0, 0.0, 0.0], [-3.0, 1.0, 2.0], [80.0, -5.5, 0.0]):
        loss, gradient = oracles.mp_loss_and_target_gradient(row, 0)
        exact = accuracy._exact(np.array(row))
        assert oracles.relative_error(float(loss), exact["loss"]) < 1e-15
        assert oracles.relative_error(float(gradient), exact["gradient"]) < 1e-15


def test_errors_fall_into_their_bands():
    margins = np.array([0.0, 9.9, 10.0, 25.0, 26.0, 40.0, 80.0, 50.0])
    errors = np.array([0.1, 0.2, 0.3, np.nan, 0.4, np.inf, 0.6, 0.5])
    worst, counts = accuracy._in_bands(margins, errors)
    assert worst == (0.2, 0.3, 0.4, None)
    assert counts == (2, 1, 1, 3)


def test_an_error_is_relative_and_an_absorbed_result_has_error_one():
    exact = accuracy._exact(np.array([30.0, 0.0, 0.0]))["loss"]
    assert accuracy._relative(np.float32(0.0), exact) == 1.0
    assert accuracy._relative(np.float32(exact), exact) < 6e-8
    assert accuracy._relative(np.float32("nan"), exact) == np.inf
    subnormal = accuracy._exact(np.array([88.0, 0.0]))["loss"]
    assert math.isnan(accuracy._relative(np.float32(0.0), subnormal))


# --- the report -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "text"),
    [(441.23, "441"), (1234.5, "1234"), (12.345, "12.3"), (0.034125, "0.0341"), (0.0, "0")],
)
def test_three_digits(number, text):
    assert report._digits(number) == text


def test_the_ratio_is_to_the_fastest_other():
    def row(peer, median):
        quartiles = {"lower_quartile_s": median, "upper_quartile_s": median}
        status = "ok" if median else "wrong"
        return runner.Measurement(SMALL, peer, status, median_s=median, **quartiles)

    rows = [row("jaxsoftmax", 0.003), row("slow", 0.009), row("fast", 0.002), row("off", None)]
    cells = report.timing_tables("cross_entropy", rows)[0].rows[0]
    assert cells[3:] == ["3.00 ± 0", "9.00 ± 0", "2.00 ± 0", "wrong", "1.50 (fast)"]
    assert report.timing_tables("cross_entropy", rows[:1])[0].rows[0][3:] == ["3.00 ± 0"]
