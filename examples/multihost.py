"""Train a language model's head with its vocabulary spread over several processes.

    pip install jaxsoftmax
    python examples/multihost.py --processes 4

Each process stands for a host: it joins `jax.distributed`, holds one part of the kernel, and learns
which word follows four others in Python's own documentation. What goes in are the frozen hidden
states of a small network, the same everywhere; what is trained is the head, by
`linear_cross_entropy(..., axis_name="vocabulary")`, which sends three numbers a token, no logits.
The same training in one process, without any mesh, runs beside it: the losses agree to rounding.

If a process dies, or the coordinator cannot be reached, the run ends with a message and exit
status 1, within --timeout seconds. On real hosts, start `--rank 0 ...`, `--rank 1 ...` yourself
with the same --coordinator HOST:PORT.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import socket
import subprocess
import sys
import time
from functools import partial
from pydoc_data import topics
from typing import NamedTuple

import numpy as np

AXIS = "vocabulary"
CONTEXT, FEATURES, VOCABULARY, TOKENS = 4, 64, 4001, 2048  # 4001 divides by no number of processes
LEARNING_RATE = 4.0
ROUNDING = 1e-5  # relative: float32 sums in another order, over all steps
LOSSES = "losses: "  # the line of process 0 that holds them; its libraries print lines of their own


class Text(NamedTuple):
    """What goes into the head, and which word comes next."""

    hidden: np.ndarray  # [N, D] float32
    labels: np.ndarray  # [N] int32


def read_text() -> Text:
    """The same on every host: Python's documentation, through a network of random weights."""
    words = re.findall(r"\w+|[^\w\s]", " ".join(topics.topics.values()))
    kinds, counts = np.unique(words, return_counts=True)
    known = kinds[np.argsort(-counts, kind="stable")][: VOCABULARY - 1]
    index = {word: i + 1 for i, word in enumerate(known)}  # 0 is every other word
    ids = np.array([index.get(word, 0) for word in words[: TOKENS + CONTEXT]], np.int32)
    random = np.random.default_rng(0)
    embedding = random.normal(size=(VOCABULARY, FEATURES))
    mixing = random.normal(size=(CONTEXT, FEATURES, FEATURES)) / np.sqrt(CONTEXT * FEATURES)
    windows = np.lib.stride_tricks.sliding_window_view(ids[:-1], CONTEXT)  # [N, 4]
    hidden = np.tanh(np.einsum("nkd,kde->ne", embedding[windows], mixing))
    return Text(hidden.astype(np.float32), ids[CONTEXT:])


# --- the training, by itself and over the mesh ----------------------------------------------------


def train_alone(text: Text, steps: int) -> list[float]:
    """The loss before each step, all classes in one place."""
    import jax
    import jax.numpy as jnp

    from jaxsoftmax import linear_cross_entropy

    @jax.jit
    def step(kernel: jax.Array, hidden: jax.Array, labels: jax.Array):
        loss, slope = jax.value_and_grad(linear_cross_entropy, 1)(hidden, kernel, labels)
        return loss, kernel - LEARNING_RATE * slope

    kernel = jnp.zeros((FEATURES, VOCABULARY))
    losses = []
    for _ in range(steps):
        loss, kernel = step(kernel, text.hidden, text.labels)
        losses.append(float(loss))
    return losses


def train_over_the_mesh(text: Text, steps: int, crash_at: int | None) -> list[float]:
    """The same, this process holding one part of the vocabulary."""
    import jax
    from jax.sharding import AxisType, Mesh, NamedSharding
    from jax.sharding import PartitionSpec as P

    from jaxsoftmax import linear_cross_entropy

    mesh = Mesh(np.array(jax.devices()), (AXIS,), axis_types=(AxisType.Auto,))
    columns = -(-VOCABULARY // mesh.size) * mesh.size  # those beyond the vocabulary do not exist

    def place(array: np.ndarray, spec: P) -> jax.Array:
        sharding = NamedSharding(mesh, spec)
        return jax.make_array_from_callback(array.shape, sharding, lambda part: array[part])

    @jax.jit
    @partial(
        jax.shard_map,
        mesh=mesh,
        in_specs=(P(None, AXIS), P(AXIS), P(), P()),
        out_specs=(P(), P(None, AXIS)),
    )
    def step(kernel: jax.Array, exists: jax.Array, hidden: jax.Array, labels: jax.Array):
        def loss_of(kernel: jax.Array) -> jax.Array:
            return linear_cross_entropy(hidden, kernel, labels, where=exists, axis_name=AXIS)

        loss, slope = jax.value_and_grad(loss_of)(kernel)
        return loss, kernel - LEARNING_RATE * slope

    kernel = place(np.zeros((FEATURES, columns), np.float32), P(None, AXIS))
    exists = place(np.arange(columns) < VOCABULARY, P(AXIS))
    hidden, labels = place(text.hidden, P()), place(text.labels, P())
    losses = []
    for number in range(steps):
        if number == crash_at and jax.process_index() == jax.process_count() - 1:
            os._exit(9)  # as if the host lost its power
        loss, kernel = step(kernel, exists, hidden, labels)
        losses.append(float(loss))
    return losses


# --- processes ------------------------------------------------------------------------------------


def be_a_host(options: argparse.Namespace) -> int:
    """One process of the run: join the others, train, and let the first one tell the losses."""
    if options.rank > 0 and not reachable(options.coordinator, options.timeout):
        return failed(
            options,
            f"the coordinator {options.coordinator} could not be reached within "
            f"{options.timeout:.0f} s",
        )
    import jax

    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    try:
        jax.distributed.initialize(
            options.coordinator,
            options.processes,
            options.rank,
            initialization_timeout=int(options.timeout),
        )
        losses = train_over_the_mesh(read_text(), options.steps, options.crash_at)
    except RuntimeError as error:  # JaxRuntimeError is one
        failed(options, f"lost the others: {str(error).splitlines()[0]}")
        os._exit(1)  # the runtime's own farewell would wait for them
    if options.rank == 0:
        print(LOSSES + json.dumps(losses), flush=True)
    jax.distributed.shutdown()
    return 0


def failed(options: argparse.Namespace, message: str) -> int:
    """One line that says what went wrong, and the exit status."""
    print(f"process {options.rank}: {message}", file=sys.stderr, flush=True)
    return 1


def reachable(coordinator: str, timeout: float) -> bool:
    """Whether anything listens there before the time is over."""
    host, port = coordinator.rsplit(":", 1)
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        try:
            socket.create_connection((host, int(port)), timeout=1.0).close()
            return True
        except OSError:
            time.sleep(0.2)
    return False


def start_all(options: argparse.Namespace) -> list[float]:
    """Every process of the run on this machine; the losses, or SystemExit with what went wrong."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        coordinator = f"127.0.0.1:{free.getsockname()[1]}"
    # One device a process, on the CPU, whatever the environment says.
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    command = [sys.executable, __file__, "--processes", str(options.processes)]
    command += ["--coordinator", coordinator, "--steps", str(options.steps)]
    command += ["--timeout", str(options.timeout)]
    if options.crash_at is not None:
        command += ["--crash-at", str(options.crash_at)]
    hosts = [
        subprocess.Popen(
            [*command, "--rank", str(rank)],
            env=environment,
            text=True,
            stdout=subprocess.PIPE if rank == 0 else subprocess.DEVNULL,
        )
        for rank in range(options.processes)
    ]
    try:
        wait_for(hosts, options.timeout)
        assert hosts[0].stdout is not None
        lines = hosts[0].stdout.read().splitlines()
        (said,) = [line for line in lines if line.startswith(LOSSES)]
        return json.loads(said.removeprefix(LOSSES))
    finally:
        for host in hosts:
            host.kill()
            host.wait()


def wait_for(hosts: list[subprocess.Popen[str]], timeout: float) -> None:
    """Until all are done, one has failed, or the time is over: nobody waits for the dead."""
    end = time.monotonic() + timeout
    while True:
        statuses = [host.poll() for host in hosts]  # None while it runs
        for rank, status in enumerate(statuses):
            if status:
                sys.exit(f"process {rank} died with status {status}: the run is over")
        if None not in statuses:
            return
        if time.monotonic() > end:
            sys.exit(f"the processes did not finish within {timeout:.0f} s: the run is over")
        time.sleep(0.1)


def compare(options: argparse.Namespace) -> int:
    """Both trainings, step by step."""
    together = start_all(options)
    alone = train_alone(read_text(), options.steps)
    print(f"{VOCABULARY} classes over {options.processes} processes\n")
    print(f"{'step':>4}  {'sharded':>12}  {'one process':>12}  {'difference':>10}")
    for number, (ours, theirs) in enumerate(zip(together, alone, strict=True)):
        if number % max(1, options.steps // 10) == 0 or number == options.steps - 1:
            print(f"{number:4}  {ours:12.7f}  {theirs:12.7f}  {ours - theirs:10.1e}")
    worst = max(abs(a - b) / b for a, b in zip(together, alone, strict=True))
    print(f"\nlargest relative difference {worst:.1e}, allowed {ROUNDING:.0e}")
    return 0 if worst <= ROUNDING else 1


def main() -> int:
    """A host where --rank is given, else the whole run."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--processes", type=int, default=4, help="how many (default 4)")
    parser.add_argument("--steps", type=int, default=30, help="of gradient descent (default 30)")
    parser.add_argument("--timeout", type=float, default=120.0, help="seconds (default 120)")
    parser.add_argument("--rank", type=int, help="be this one of the processes")
    parser.add_argument("--coordinator", help="HOST:PORT of process 0, with --rank")
    parser.add_argument("--crash-at", type=int, help="the last process dies before this step")
    options = parser.parse_args()
    if options.processes < 1 or options.steps < 1:
        parser.error("--processes and --steps must be at least 1")
    if (options.rank is None) != (options.coordinator is None):
        parser.error("--rank and --coordinator go together")
    return compare(options) if options.rank is None else be_a_host(options)


if __name__ == "__main__":
    sys.exit(main())
