"""The benchmarks: checks before timing, error measures, tables and documents."""

import importlib.util
import json
import math
import os
import pathlib
import re
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
sys.path.insert(0, str(ROOT))  # the benchmarks run from a clone and are not installed

from benchmarks import (  # noqa: E402
    accelerator,
    accuracy,
    aot,
    arguments,
    collectives,
    comparison,
    compile_times,
    documents,
    environment,
    implementations,
    program_size,
    programs,
    references,
    registry,
    report,
    runner,
    sharded_programs,
    source,
    targets,
    timing_tables,
    work,
    workers,
)
from benchmarks.__main__ import main  # noqa: E402
from benchmarks.cases import DTYPES, TIMED_SUITES, Case, suite  # noqa: E402
from benchmarks.limits import Limits  # noqa: E402
from benchmarks.registry import Implementation  # noqa: E402
from benchmarks.suites import SUITES as ALL_SUITES  # noqa: E402

FAST = runner.Settings(rounds=3, fewest_rounds=3, sample_s=1e-4, most_calls=4)


# --- the command ----------------------------------------------------------------------------------


def run_python(arguments, **options):
    """Run a separate Python, because this one has strict settings and eight devices."""
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


SUITES = ["chapter", "memory", "accuracy"]


@pytest.fixture(scope="module")
def quick_run(tmp_path_factory):
    """The document, the page and the folder of one quick run of three suites."""
    folder = tmp_path_factory.mktemp("results") / "new"
    files = ["--json", str(folder / "r.json"), "--markdown", str(folder / "r.md")]
    done = run_python(["-m", "benchmarks", "--suite", *SUITES, "--quick", "--plot", *files])
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    page = (folder / "r.md").read_text(encoding="utf-8")
    return json.loads((folder / "r.json").read_text()), page, done.stdout, folder


def test_the_document_contains_environment_and_settings(quick_run):
    document = quick_run[0]
    assert set(document) == {"environment", "settings", "limits", "suites"}
    environment = document["environment"]
    assert environment["jax"] == jax.__version__
    assert environment["numpy"] == np.__version__
    assert environment["platform"] == "cpu"
    assert environment["device_count"] == 1
    assert environment["cpu_count"] >= 1
    assert {"date", "jaxlib", "device_kind", "load_average", "processor"} <= set(environment)
    assert document["settings"]["rounds"] == runner.QUICK.rounds
    assert set(document["suites"]) == set(SUITES)
    rates = document["limits"]
    assert rates["read_bytes_per_s"] >= rates["in_place_bytes_per_s"] > 1e8
    assert rates["copy_bytes_per_s"] > 1e8
    assert set(rates["matmul_flops_per_s"]) == set(DTYPES)


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
        assert row["limit"] == "memory"
        assert row["limit_s"] > 0.0


def test_memory_rows_are_those_of_the_compiler(quick_run):
    rows = quick_run[0]["suites"]["memory"]
    assert {row["status"] for row in rows} == {"ok"}
    ours, optax = (
        next(r for r in rows if r["peer"].startswith(peer) and r["computed"] == "forward")
        for peer in ("jaxsoftmax", "optax")
    )
    # The logits of 128 tokens in float32, against those of 512 in bfloat16.
    assert ours["temp_bytes"] < optax["temp_bytes"]


def test_figures_are_written_next_to_the_document(quick_run):
    assert (quick_run[3] / "r-error.png").stat().st_size > 1000


def test_the_accuracy_that_the_readme_claims(quick_run):
    """Ours is accurate to rounding at every margin; the usual form is 0 beyond 20 nats."""
    rows = {(r["dtype"], r["quantity"], r["peer"]): r for r in quick_run[0]["suites"]["accuracy"]}
    for quantity in ("loss", "gradient"):
        assert max(rows["float32", quantity, "jaxsoftmax"]["worst"]) < 1e-6
        # 1, or more if rounding changes the difference of lse and x_y by an ulp.
        assert min(rows["float32", quantity, "jax.nn"]["worst"][2:]) >= 1.0
    assert rows["bfloat16", "loss", "jaxsoftmax"]["result_dtype"] == "float32"
    assert max(rows["bfloat16", "loss", "jaxsoftmax"]["worst"]) < 1e-6
    assert max(rows["bfloat16", "gradient", "jaxsoftmax"]["worst"]) < 2.0**-8 + 1e-6


def test_the_page_has_the_command_and_every_table(quick_run):
    document, page, stdout, _ = quick_run
    command = "python -m benchmarks --suite chapter memory accuracy --quick --markdown "
    assert page.startswith(f"Written by `{command}")
    assert page.count("\n## ") == 6
    runs = page.partition("\n## Runs\n")[2].split("\n")
    assert next(filter(None, runs)).startswith("- chapter, memory, accuracy: 20")
    median = document["suites"]["chapter"][0]["median_s"]
    assert f"| {report.digits(1e3 * median)} ± " in page
    # rich reads [y] as markup unless it is escaped.
    assert "softmax(x)[y]" in page
    assert "softmax(x)[y]" in " ".join(stdout.split())


def test_a_document_compared_with_itself_has_ratios_of_one(quick_run):
    path = quick_run[3] / "r.json"
    tables = comparison.tables(path, path)
    # Times and temporaries of the chapter, temporaries of the memory table.
    assert [len(table.rows) for table in tables] == [12, 12, 13]
    assert {row[-1] for table in tables for row in table.rows if row[1] != "0"} == {"1.00"}


def test_a_comparison_finds_a_row_by_its_name(tmp_path):
    def row(peer, median):
        case = {"operation": "softmax", "shape": [8, 5], "dtype": "float32"}
        return {"case": case, "peer": peer, "median_s": median, "temp_bytes": None}

    paths = [tmp_path / "old.json", tmp_path / "new.json"]
    rows = ([row("a", 0.002), row("gone", 1.0)], [row("new", 1.0), row("a", 0.005)])
    for path, content in zip(paths, rows, strict=True):
        path.write_text(json.dumps({"suites": {"distributions": content}}))
    (table,) = comparison.tables(*paths)
    assert table.rows == [["softmax, 8x5, float32, a", "2.00", "5.00", "2.50"]]


def test_an_unknown_suite_is_an_error(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["--suite", "chapters"])
    assert stopped.value.code == 2
    assert "invalid choice: 'chapters'" in capsys.readouterr().err


def test_a_result_says_whether_the_package_has_changed_since(tmp_path):
    package = tmp_path / "package"
    package.mkdir()
    (package / "a.py").write_text("x = 1")
    first = source.source_hash(package)
    (package / "b.py").write_text("")
    second = source.source_hash(package)
    (package / "a.py").write_text("x = 2")
    assert len({first, second, source.source_hash(package)}) == 3
    (package / "a.py").write_text('"""Words."""\n\n# More words.\nx = 2\n')
    third = source.source_hash(package)
    (package / "a.py").write_text("x = 2")
    assert third == source.source_hash(package)
    known = environment.environment()
    assert "changed since" not in environment.in_words(known)
    assert environment.in_words({**known, "source": first}).endswith(
        "The package has changed since."
    )


def test_rows_of_other_code_leave_the_document_of_none(tmp_path):
    path, rows = (
        tmp_path / "r.json",
        [runner.Measurement(suite("chapter")[i], "a", "ok") for i in (0, 1)],
    )

    def write(hashed, rows):
        documents.write(path, {"environment": {"source": hashed}}, {"chapter": rows}, update=True)
        return json.loads(path.read_text())["environment"]["source"]

    assert write("1", rows) == "1"
    assert write("1", rows[:1]) == "1"
    assert write("2", rows[:1]) is None
    assert write("2", rows) == "2"


def test_help_needs_no_library():
    """Neither rich nor a peer; a run without them says what to install."""
    without = "import sys; sys.modules['rich'] = sys.modules['optax'] = None; "
    code = without + "from benchmarks.__main__ import main; sys.exit(main(sys.argv[1:]))"
    helped = run_python(["-c", code, "--help"])
    assert helped.returncode == 0, helped.stderr
    assert "--suite" in helped.stdout
    refused = run_python(["-c", code, "--quick"])
    assert refused.returncode == 1
    assert 'needs rich, which is not installed: pip install -e ".[benchmarks]"' in refused.stderr
    assert list(ALL_SUITES) == list(arguments.NAMES)


@pytest.mark.exhaustive
def test_the_accelerator_kit_saves_each_row_and_continues(tmp_path, capsys):
    """The same command leaves out what is measured; minutes end it between two cases."""
    path = tmp_path / "kit.json"
    options = ["--accelerator", "--quick", "--filter", "linear_chunks", "--json", str(path)]
    assert main(options) == 0
    rows = json.loads(path.read_text())["suites"]["accelerator"]
    sizes = {row["peer"] for row in rows}
    assert {"default", "64", "2048"} <= sizes
    assert all(row["status"] == "ok" and row["median_s"] > 0 for row in rows)
    printed = " ".join(capsys.readouterr().out.split())
    assert "self-check: passed" in printed
    assert re.search(r'Row\("cpu", \("cpu",\), Chunk\(1, (\d+), \1\), least_tokens=128', printed)
    assert main(options) == 0
    assert "already measured: linear_chunks, value_and_grads, 128x32x2048" in " ".join(
        capsys.readouterr().out.split()
    )
    assert json.loads(path.read_text())["suites"]["accelerator"] == rows


def test_the_accelerator_kit_begins_with_the_most_valuable():
    cases = list(accelerator.plan(quick=False))
    assert str(cases[0]) == "linear_chunks, value_and_grads, 8192x4096x128256 bfloat16"
    assert {c.operation for c in cases[:4]} == {"linear_chunks", "linear_cross_entropy"}
    columns = {c.shape[-1] for c in cases if c.operation == "softmax"}
    assert {256, 262144} <= columns
    for known in accelerator.PUBLISHED:
        assert any(c.shape == known.shape for c in cases)


def test_importing_the_benchmarks_imports_no_peer():
    """PyTorch's threads must run in a separate process."""
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
            assert case.direction in programs.DIRECTIONS
            assert implementations.of(case.operation), case
            if case.operation not in ("chapter", "linear_chunks"):
                assert implementations.OURS in {i.peer for i in implementations.of(case.operation)}


# --- results are checked before timing ------------------------------------------------------------

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


def test_a_correct_peer_is_timed():
    row = measured(right)
    assert row.status == "ok"
    assert row.passed
    assert row.error < 1e-6
    assert row.rounds == FAST.rounds
    assert 0.0 < row.lower_quartile_s <= row.median_s <= row.upper_quartile_s
    assert row.temp_bytes is not None


@pytest.mark.parametrize("function", WRONG.values(), ids=WRONG)
def test_a_wrong_peer_is_rejected(function, monkeypatch):
    """A wrong peer is not timed."""

    def never(run, calls):
        raise AssertionError("a wrong implementation was timed")

    monkeypatch.setattr(workers, "seconds_per_call", never)
    row = measured(function)
    assert row.status == "wrong"
    assert not row.passed
    assert row.median_s is None
    assert row.error is None or row.error > row.tolerance
    tables = timing_tables.tables("cross_entropy", [row])
    assert tables[0].rows[0][-1] == "wrong"
    assert str(row).startswith("wrong: fake in cross_entropy, value_and_grad, 8x5 float32: ")


def test_a_wrong_shape_is_rejected():
    case = Case("softmax", "forward", (8, 5), "float32")
    row = measured(lambda x: jax.nn.softmax(x).T, case)
    assert (row.status, row.error) == ("wrong", None)
    row = measured(lambda x: jax.nn.softmax(x)[:-1], case)
    assert (row.status, row.error) == ("wrong", None)


def test_a_peer_that_raises_does_not_end_the_run():
    row = measured(raises)
    assert (row.status, row.note) == ("failed", "NotImplementedError: five classes")
    assert not row.passed


def test_a_peer_that_is_not_installed():
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
    """The outputs by the tests' oracles."""
    logits, *rest = references.inputs(case)
    x = oracles.f64(logits)
    if case.operation == "linear_cross_entropy":
        kernel, labels = oracles.f64(rest[0]), rest[1]
        delta = oracles.cross_entropy_gradient(x @ kernel, labels) / len(x)
        return [oracles.cross_entropy(x @ kernel, labels), delta @ kernel.T, x.T @ delta]
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
    Case("linear_cross_entropy", "value_and_grads", (30, 4, 7), "float32"),
    Case("linear_cross_entropy", "value_and_grads", (30, 4, 7), "bfloat16"),
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
    exact = references.Exact(case, references.inputs(case))
    outputs = exact_outputs(case)
    assert exact.error(outputs) < 1e-12
    # A single wrong entry is detected.
    for index, output in enumerate(outputs):
        moved = np.array(output)
        entry = moved.size - 1
        scale = max(abs(moved.flat[entry]), 1e-3)
        moved.flat[entry] += 0.1 * scale
        changed = [*outputs[:index], moved, *outputs[index + 1 :]]
        assert exact.error(changed) > 1e-3


def test_a_sample_of_a_large_linear_loss_is_compared(monkeypatch):
    """Only some rows and columns are compared; all entries must be finite."""
    monkeypatch.setattr(references, "_WHOLE", 10)
    monkeypatch.setattr(references, "_SAMPLE", 3)
    case = Case("linear_cross_entropy", "value_and_grads", (30, 4, 40), "float32")
    exact = references.Exact(case, references.inputs(case))
    loss, of_hidden, of_kernel = exact_outputs(case)
    assert exact.error([loss, of_hidden, of_kernel]) < 1e-12
    assert exact.error([loss, of_hidden, 1.01 * of_kernel]) > 1e-3
    assert exact.error([loss, 1.01 * of_hidden, of_kernel]) > 1e-3
    assert exact.error([loss, of_hidden, of_kernel[:, :-1]]) == np.inf
    not_finite = np.array(of_hidden)
    not_finite[-1, -1] = np.nan
    assert exact.error([loss, not_finite, of_kernel]) == np.inf


def test_inputs_are_the_same_every_time():
    for case in REFERENCE_CASES:
        for first, second in zip(references.inputs(case), references.inputs(case), strict=True):
            np.testing.assert_array_equal(first, second)
    assert references.inputs(REFERENCE_CASES[0])[0].dtype == np.float32
    assert references.inputs(REFERENCE_CASES[1])[1].dtype == jnp.bfloat16


# --- timing and the order of the peers ------------------------------------------------------------


class Scripted:
    """A program with known durations that records its calls."""

    temp_bytes = None

    def __init__(self, name, durations, journal):
        self.name, self.durations, self.journal = name, iter(durations), journal
        self.outputs = []

    def seconds_per_call(self, calls, settle=True):
        self.journal.append((self.name, calls) if settle else (self.name, calls, "unsettled"))
        return next(self.durations)


def test_peers_alternate_and_the_quartiles_are_those_of_the_samples():
    journal = []
    warm_up = [1.0, 0.01, 0.01]
    a = Scripted("a", [*warm_up, 0.05, 0.01, 0.03, 0.02, 0.04], journal)
    b = Scripted("b", [*warm_up, *[0.02] * 5], journal)
    settings = runner.Settings(rounds=5, fewest_rounds=5, sample_s=0.02)
    times = runner.take_turns({"a": a, "b": b}, settings)
    # A sample takes 0.02 s: two calls of 0.01 s, after a slow, untimed first call.
    assert journal[:3] == [("a", 1), ("a", 1, "unsettled"), ("a", 2)]
    turns = [name for name, _ in journal[6:]]
    assert [sorted(turns[i : i + 2]) for i in range(0, 10, 2)] == [["a", "b"]] * 5
    assert len({tuple(turns[i : i + 2]) for i in range(0, 10, 2)}) == 2  # not always the same order
    assert {calls for _, calls in journal[6:]} == {2}
    assert times["a"]["median_s"] == 0.03
    assert (times["a"]["lower_quartile_s"], times["a"]["upper_quartile_s"]) == (0.02, 0.04)
    assert times["b"]["rounds"] == 5


def test_the_budget_ends_a_case_after_at_least_the_fewest_rounds():
    settings = runner.Settings(rounds=50, fewest_rounds=4, budget_s=0.0)
    program = Scripted("a", [0.1] * 60, [])
    assert runner.take_turns({"a": program}, settings)["a"]["rounds"] == 4


def test_a_long_call_has_no_warm_up_before_a_sample():
    journal = []
    settings = runner.Settings(rounds=2, fewest_rounds=2)
    runner.take_turns({"a": Scripted("a", [1.0] * 4, journal)}, settings)
    assert journal == [("a", 1), *[("a", 1, "unsettled")] * 3]


def test_the_first_call_is_not_timed(monkeypatch):
    now = iter([10.0, 16.0])
    monkeypatch.setattr(workers.time, "perf_counter", lambda: next(now))
    calls = []
    assert workers.seconds_per_call(lambda: calls.append(0), 3) == 2.0
    assert len(calls) == 4


WORKER = """
import numpy as np

def prepare(operation, direction, arrays):
    print("a library that prints")  # would corrupt the stream of answers
    if operation == "unknown":
        raise ValueError("no such operation")
    return lambda: [2 * a for a in arrays], lambda outputs: [np.asarray(o) for o in outputs]
"""


def test_a_worker_computes_and_times_after_a_failure(tmp_path, monkeypatch):
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
def test_the_torch_worker_is_correct():
    shapes = {
        ("cross_entropy", "value_and_grad"): (16, 40),
        ("log_softmax", "vjp"): (16, 40),
        ("linear_cross_entropy", "forward"): (16, 8, 40),
        ("linear_cross_entropy", "value_and_grads"): (16, 8, 40),
    }
    with workers.Workers() as pool:
        for dtype in DTYPES:
            for (operation, direction), shape in shapes.items():
                case = Case(operation, direction, shape, dtype)
                (torch,) = [i for i in implementations.of(operation) if i.peer == "torch"]
                (row,) = runner.measure(case, [torch], FAST, pool)
                assert row.status == "ok", row
                assert row.median_s > 0.0
                assert row.temp_bytes is None


# --- peers that are not run -----------------------------------------------------------------------


def test_a_peer_that_is_known_to_be_wrong_is_not_run():
    case = Case("linear_cross_entropy", "forward", (8, 4, 384), "float32")
    known = Implementation(
        case.operation, "fake", raises, known_wrong=lambda shape: f"wrong: 2048 ∤ {shape[-1]}"
    )
    with workers.Workers() as pool:
        (row,) = runner.measure(case, [known], FAST, pool)
    assert row.status == "wrong: 2048 ∤ 384"
    assert row.passed


def test_tokamax_chunked_xla_is_known_to_be_wrong_with_padded_blocks():
    (chunked,) = [
        i for i in implementations.of("linear_cross_entropy") if i.peer == "tokamax chunked_xla"
    ]
    assert chunked.known_wrong((2048, 512, 32000)).startswith("wrong")
    assert chunked.known_wrong((512, 256, 16384)) is None


def test_versions_and_platforms_select_the_peers():
    def peer(**how):
        return Implementation("softmax", "fake", raises, **how)

    assert peer(requires="jax", at_least="999.0").unavailable("cpu") == "needs jax 999.0"
    assert peer(requires="jax", at_least="0.4.1").unavailable("cpu") is None
    assert peer(platforms=("gpu",)).unavailable("cpu") == "not on cpu"
    assert registry._parts("2.13.0+cpu") < registry._parts("2.13.1")
    assert registry._parts("0.0.12") < registry._parts("0.0.17")


# --- limits and work ------------------------------------------------------------------------------

LIMITS = Limits(2e9, 3e9, 4e9, {"float32": 1e12, "bfloat16": 2e12})


def test_the_least_work_of_a_case():
    forward = Case("cross_entropy", "forward", (100, 1000), "float32")
    assert work.of(forward) == (400_000, 400, 0)
    gradient = Case("cross_entropy", "value_and_grad", (100, 1000), "bfloat16")
    assert work.of(gradient) == (200_000, 200_000, 0)
    pullback = Case("softmax", "vjp", (100, 1000), "float32")
    assert work.of(pullback) == (800_000, 400_000, 0)
    linear = Case("linear_cross_entropy", "value_and_grads", (10, 20, 30), "bfloat16")
    assert work.of(linear) == (1600, 1600, 6 * 10 * 20 * 30)


def test_the_slower_resource_is_the_limit():
    # 0.4 MB read and copied: 0.8 MB at 2 GB/s, the rest of a pullback's reads at 4 GB/s.
    pullback = Case("softmax", "vjp", (100, 1000), "float32")
    assert work.limit(pullback, LIMITS) == ("memory", pytest.approx(0.8e6 / 2e9 + 0.4e6 / 4e9))
    linear = Case("linear_cross_entropy", "forward", (2048, 512, 32000), "bfloat16")
    products = 2 * 2048 * 512 * 32000 / 2e12
    assert work.limit(linear, LIMITS) == ("matmul", pytest.approx(products))


# --- communication --------------------------------------------------------------------------------


def compiled_on_eight(function, *shapes, in_specs, out_specs):
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:8]), ("x",))
    mapped = jax.shard_map(function, mesh=mesh, in_specs=in_specs, out_specs=out_specs)
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return jax.jit(mapped).lower(*arguments).compile().as_text()


needs_eight = pytest.mark.skipif(jax.device_count() < 8, reason="eight devices: see conftest.py")
P = jax.sharding.PartitionSpec


@needs_eight
def test_an_all_reduce_in_a_loop_is_counted_per_iteration():
    def function(x):
        def step(total, _):
            return jax.lax.psum(jnp.sin(total) + x, "x"), None

        return jax.lax.scan(step, jnp.zeros((1, 16)), length=5)[0]

    hlo = compiled_on_eight(function, (8, 16), in_specs=P("x", None), out_specs=P())
    found = collectives.totals(hlo, 8)
    assert set(found) == {"all-reduce"}
    # Each reduces [1, 16] float32 numbers.
    assert found["all-reduce"] == (5, 5 * 64, 5 * 2 * 7 * 64 // 8, 64)


@needs_eight
def test_gathers_scatters_and_permutes_have_their_bytes():
    def function(x):
        whole = jax.lax.all_gather(x, "x", tiled=True)  # [8, 16]
        mine = jax.lax.psum_scatter(whole + x, "x", tiled=True)  # [1, 16]
        return jax.lax.ppermute(mine, "x", [(i, (i + 1) % 8) for i in range(8)])

    hlo = compiled_on_eight(function, (8, 16), in_specs=P("x", None), out_specs=P("x", None))
    found = collectives.totals(hlo, 8)
    assert found["all-gather"] == (1, 512, 448, 512)
    assert found["reduce-scatter"] == (1, 512, 448, 512)
    assert found["collective-permute"] == (1, 64, 64, 64)


HLO = """\
HloModule m, num_partitions=8

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %s = f32[] add(%a, %b)
}

%few (p: bf16[4,4]) -> bf16[4,4] {
  %p = bf16[4,4]{1,0} parameter(0)
  ROOT %r = bf16[4,4]{1,0} all-reduce(%p), replica_groups=[2,4]<=[8], to_apply=%add
}

%many (p: bf16[4,4]) -> bf16[4,4] {
  %q = bf16[4,4]{1,0} parameter(0)
  %g = (bf16[4,4], bf16[32,4]) all-gather-start(%q), replica_groups={{0,1,2,3,4,5,6,7}}
  ROOT %d = bf16[32,4] all-gather-done(%g)
}

%body (p: bf16[4,4]) -> bf16[4,4] {
  %i = bf16[4,4]{1,0} parameter(0)
  ROOT %m = bf16[4,4] all-reduce(%i), replica_groups=mesh['a'=2,'b'=4] {'b':(1)2}, to_apply=%add
}

ENTRY %main (x: bf16[4,4]) -> bf16[4,4] {
  %x = bf16[4,4]{1,0} parameter(0)
  %c = bf16[4,4] conditional(%n, %x, %x), branch_computations={%few, %many}
  ROOT %w = bf16[4,4] while(%c), condition=%cond, body=%body
}
"""


CONDITION = """
%cond (p: (s32[])) -> pred[] {
  %n = s32[]{:T(128)} constant(16), metadata={op_name="scan"}
  %i = s32[]{:T(128)} get-tuple-element(%p), index=0
  ROOT %lt = pred[]{:T(512)} compare(%i, %n), direction=LT
}
"""


def test_the_condition_of_a_loop_gives_its_trip_count():
    """XLA:TPU has no other annotation of it."""
    reduce = collectives.find(HLO + CONDITION, 8)[1]
    assert reduce == ("all-reduce", 32, 2, 16, False)


def test_cycles_count_a_loop_by_its_trips_and_the_longest_branch():
    noted = ', backend_config={"estimated_cycles":"%d"}'
    assert collectives.cycles(HLO + CONDITION) is None
    hlo = HLO + CONDITION
    for operation, number in (("all-reduce(%i)", 5), ("all-gather-start(%q)", 100)):
        assert hlo.count(operation) == 1
        hlo = hlo.replace(operation, operation + noted % number)
    assert collectives.cycles(hlo) == 16 * 5 + 100


def test_groups_branches_and_loops_of_unknown_trip_count():
    gather, reduce = collectives.find(HLO, 8)
    # The branch that sends more bytes: 7/8 of 256 against 6/4 of 32.
    assert gather == ("all-gather", 256, 8, 1, False)
    assert reduce == ("all-reduce", 32, 2, 1, True)
    assert gather.sent_bytes == 224
    assert reduce.sent_bytes == 32


@needs_eight
def test_a_sharded_program_of_the_suite_communicates():
    wanted = ("cross_entropy", "data")
    (program,) = [
        p
        for p in sharded_programs.programs(quick=True)
        if (p.operation, p.layout.name) == wanted and p.peer == implementations.OURS
    ]
    compiled = program.lowered(np.array(jax.devices()[:8]), "cpu").compile()
    found = collectives.totals(compiled.as_text(), 8)
    # Devices hold whole rows: only the loss is summed over them.
    assert set(found) == {"all-reduce"}
    assert found["all-reduce"].largest_bytes <= 8


# --- compilation without the hardware -------------------------------------------------------------


def test_a_target_that_is_not_available_has_one_line(monkeypatch):
    monkeypatch.setattr(targets.importlib.util, "find_spec", lambda name: None)
    parts = aot.parts(quick=True)
    rows = aot.measure(parts, lambda: None)
    assert len(rows) == len(parts)
    assert {row.status for row in rows} == {"needs libtpu", "needs the CUDA plugin"}
    (table,) = aot.tables(rows)
    assert [row[:2] for row in table.rows][-1] == ["cuda h200", "needs the CUDA plugin"]
    assert len(table.rows) == len(aot.TARGETS)


def test_compiling_in_a_child_process():
    quick, first = True, 0
    unknown = 10_000
    found, failed = aot.compiling.compile_in_child("cpu:2", "sharded", quick, [first, unknown])
    assert found["status"] == "ok", found
    assert found["collectives"]["all-reduce"]["count"] >= 1
    # Results from before the failure are kept.
    assert failed["status"] == "failed"
    assert "IndexError" in failed["note"]


# --- size of programs -----------------------------------------------------------------------------


@jax.custom_jvp
def squared(x):
    return x * x


squared.defjvps(lambda tangent, value, x: 2.0 * x * tangent)


def test_equations_of_sub_jaxprs_are_counted():
    def function(positive, x, xs):
        total, products = jax.lax.scan(lambda c, x: (c + x, c * x), x, xs)  # 1 + 2
        inner = jax.jit(lambda y: jnp.sin(y) + 1.0)(total)  # 1 + 2
        # 1 to convert the predicate, and 1 + 1 + 2
        chosen = jax.lax.cond(positive, jnp.cos, lambda y: -jnp.exp(y), inner)
        return squared(chosen), products  # 1 + 1

    jaxpr = jax.make_jaxpr(function)(True, jnp.float32(1.0), jnp.ones(3))
    assert len(jaxpr.eqns) == 5
    assert program_size.count_equations(jaxpr) == 3 + 3 + 5 + 2


def test_programs_of_both_peers_are_counted_and_timed():
    rows = compile_times.measure(compile_times.Part("logsumexp", None), quick=True)
    assert [(row.peer, row.computed, row.status) for row in rows] == [
        ("jaxsoftmax", "value", "ok"),
        ("jax.nn", "value", "ok"),
        ("jaxsoftmax", "gradient", "ok"),
        ("jax.nn", "gradient", "ok"),
    ]
    assert all(row.equations > 1 and min(row.seconds.values()) > 0.0 for row in rows)
    (table,) = compile_times.tables(rows)
    assert [line[3] for line in table.rows] == [str(row.equations) for row in rows]


# --- accuracy -------------------------------------------------------------------------------------


def test_exact_results_agree_with_the_oracle():
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


def test_an_error_is_relative_and_a_result_of_zero_has_error_one():
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
    assert report.digits(number) == text


def test_the_ratio_is_to_the_fastest_other():
    def row(peer, median):
        quartiles = {"lower_quartile_s": median, "upper_quartile_s": median}
        status = "ok" if median else "wrong"
        return runner.Measurement(SMALL, peer, status, median_s=median, **quartiles)

    rows = [row("jaxsoftmax", 0.003), row("slow", 0.009), row("fast", 0.002), row("off", None)]
    cells = timing_tables.tables("cross_entropy", rows)[0].rows[0]
    assert cells[3:] == ["–", "3.00 ± 0", "9.00 ± 0", "2.00 ± 0", "wrong", "1.50 (fast)"]
    assert timing_tables.tables("cross_entropy", rows[:1])[0].rows[0][4:] == ["3.00 ± 0"]


def test_a_share_is_the_limit_over_the_time():
    row = runner.Measurement(
        SMALL, "jaxsoftmax", "ok", median_s=0.004, lower_quartile_s=0.004, upper_quartile_s=0.004,
        limit="memory", limit_s=0.001,
    )  # fmt: skip
    assert row.share == 0.25
    cells = timing_tables.tables("cross_entropy", [row])[0].rows[0]
    assert cells[3:] == ["memory 1.0", "4.00 ± 0 (25 %)"]
