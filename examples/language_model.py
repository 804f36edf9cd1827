"""Train a language model on Python's own source code, without ever holding its logits.

    pip install "jaxsoftmax[examples]"
    python examples/language_model.py
    python examples/language_model.py --fsdp 4 --tensor 2      # over 8 virtual devices of the CPU

A small transformer (Flax NNX) learns the standard library that this Python came with, over a
vocabulary of 8192 words made on the spot. Its embedding is also its last layer, and its loss is
`linear_cross_entropy`: hidden states and embedding go in, and of the logits only a part exists at
a time. The compiled training step is weighed beside that of the same loss over all logits.

Over a mesh, the batch and the weights are sharded over `--fsdp` devices and the embedding's words
over `--tensor`; the loss is the same line of code. What a device sends in a step is counted.
"""

from __future__ import annotations

import argparse
import collections
import os
import re
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

# No remarks of XLA's partitioner on how the model's own layers lie on a mesh.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
import jax
import jax.numpy as jnp
import matplotlib as mpl
import numpy as np
import optax
from flax import nnx
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from jaxsoftmax import cross_entropy, linear_cross_entropy

mpl.use("Agg")
import matplotlib.pyplot as plt

BYTES = 256
START = BYTES  # the token before every text; words come after it
PADDING = -1  # a label that the loss ignores
HELD_OUT_EVERY = 20  # of the files
HELD_OUT_SEQUENCES = 128
MEASUREMENTS = 12  # of the held-out loss, over a training
Z_LOSS = 1e-4
MIB = 2**20

TRAIN, HELD_OUT, FUSED, UNFUSED = "#56B4E9", "#D55E00", "#0072B2", "#999999"  # colour-blind safe


# --- text -----------------------------------------------------------------------------------------


class Texts(NamedTuple):
    """Sequences of tokens, each beside what follows them: [N, length]."""

    tokens: np.ndarray
    labels: np.ndarray  # PADDING behind the end of a text


def read_sources() -> list[str]:
    """The modules of the standard library, in alphabetical order."""
    paths = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    return [path.read_text(encoding="utf-8", errors="replace") for path in paths]


def words_of(text: str) -> list[str]:
    """A name or number with the blank before it, signs, a line break with the indent behind it."""
    return re.findall(r" ?[^\W\d]\w*| ?\d+|\n[ \n]*| ?[^\w\s]+|\s", text)


def make_vocabulary(texts: list[list[str]], size: int) -> dict[str, int]:
    """The most frequent words, numbered after the bytes that spell all others."""
    counts = collections.Counter(word for text in texts for word in text)
    frequent = [word for word, _ in counts.most_common(size - START - 1)]
    return {word: START + 1 + rank for rank, word in enumerate(frequent)}


def encode(text: list[str], vocabulary: dict[str, int]) -> np.ndarray:
    """Numbers of words; what is no word of the vocabulary is spelled."""
    tokens = [START]
    for word in text:
        known = vocabulary.get(word)
        tokens.extend(word.encode() if known is None else [known])
    return np.array(tokens, np.int32)


def cut(texts: list[np.ndarray], length: int) -> Texts:
    """Sequences of one length: the last of a text is filled up."""
    tokens, labels = [], []
    for text in texts:
        for start in range(0, len(text) - 1, length):
            piece = text[start : start + length + 1]
            filling = (0, length + 1 - len(piece))
            tokens.append(np.pad(piece, filling)[:-1])
            labels.append(np.pad(piece, filling, constant_values=PADDING)[1:])
    return Texts(np.array(tokens), np.array(labels))


def unigram_perplexity(train: Texts, held_out: Texts, size: int) -> float:
    """What knowing nothing but the words' frequencies comes to, one added to every count."""
    counts = np.bincount(train.labels[train.labels != PADDING], minlength=size) + 1
    log_p = np.log(counts / counts.sum())
    return float(np.exp(-log_p[held_out.labels[held_out.labels != PADDING]].mean()))


# --- model ----------------------------------------------------------------------------------------


class Block(nnx.Module):
    """Attention to what came before, then a layer for each token by itself."""

    def __init__(self, width: int, heads: int, rngs: nnx.Rngs) -> None:
        self.attention = nnx.MultiHeadAttention(
            num_heads=heads, in_features=width, decode=False, rngs=rngs
        )
        self.widen = nnx.Linear(width, 4 * width, rngs=rngs)
        self.narrow = nnx.Linear(4 * width, width, rngs=rngs)
        self.norms = nnx.List([nnx.RMSNorm(width, rngs=rngs) for _ in range(2)])

    def __call__(self, x: jax.Array) -> jax.Array:
        """[batch, length, width] -> the same."""
        causal = nnx.make_causal_mask(x[..., 0])
        x = x + self.attention(self.norms[0](x), mask=causal)
        return x + self.narrow(nnx.gelu(self.widen(self.norms[1](x))))


class LanguageModel(nnx.Module):
    """Tokens -> hidden states; the logits are the loss's business."""

    def __init__(
        self, vocabulary: int, length: int, width: int, layers: int, rngs: nnx.Rngs
    ) -> None:
        small = nnx.initializers.normal(0.02)
        self.embed = nnx.Embed(vocabulary, width, embedding_init=small, rngs=rngs)
        self.place = nnx.Embed(length, width, embedding_init=small, rngs=rngs)
        self.blocks = nnx.List([Block(width, max(1, width // 32), rngs) for _ in range(layers)])
        self.norm = nnx.RMSNorm(width, rngs=rngs)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        """[batch, length] -> [batch, length, width]."""
        x = self.embed(tokens) + self.place(jnp.arange(tokens.shape[1]))[None]
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


Loss = Callable[[LanguageModel, jax.Array, jax.Array], jax.Array]


def fused_loss(model: LanguageModel, tokens: jax.Array, labels: jax.Array) -> jax.Array:
    """The mean over the tokens that are no padding; no array of logits."""
    embedding = model.embed.embedding[...]  # [vocabulary, width]
    return linear_cross_entropy(
        model(tokens),
        embedding,
        labels,
        kernel_layout="VD",
        ignore_index=PADDING,
        z_loss=Z_LOSS,
    )


def unfused_loss(model: LanguageModel, tokens: jax.Array, labels: jax.Array) -> jax.Array:
    """The same over all logits [batch, length, vocabulary]."""
    logits = model(tokens) @ model.embed.embedding[...].T
    return cross_entropy(logits, labels, ignore_index=PADDING, z_loss=Z_LOSS)


def make_step(loss: Loss, structure: nnx.GraphDef, state: nnx.State) -> Callable:  # type: ignore[type-arg]
    """(state, tokens, labels) -> state, loss; to be compiled, the state given up."""
    lies = jax.tree.map(lambda x: x.sharding, state)

    def step(state: nnx.State, tokens: jax.Array, labels: jax.Array) -> tuple:  # type: ignore[type-arg]
        model, optimizer = nnx.merge(structure, state)
        value, gradient = nnx.value_and_grad(loss)(model, tokens, labels)
        optimizer.update(model, gradient)
        return nnx.state((model, optimizer)), value

    return jax.jit(step, donate_argnums=0, out_shardings=(lies, None))


# --- a mesh ---------------------------------------------------------------------------------------


def place(state: nnx.State, mesh: Mesh) -> nnx.State:
    """Each weight, and its state of the optimizer, over the devices of the mesh.

    The words of an embedding go over "tensor", the first axis of a weight that divides over "fsdp".
    """

    def spec(x: jax.Array) -> PartitionSpec:
        if x.ndim < 2:
            return PartitionSpec()
        axes: list[str | None] = [None] * x.ndim
        if x.shape[0] == max(x.shape) and x.shape[0] % mesh.shape["tensor"] == 0:
            axes[0] = "tensor"
        divided = [
            i for i, n in enumerate(x.shape) if axes[i] is None and not n % mesh.shape["fsdp"]
        ]
        if divided:
            axes[divided[0]] = "fsdp"
        return PartitionSpec(*axes)

    return jax.tree.map(lambda x: jax.device_put(x, NamedSharding(mesh, spec(x))), state)


def place_rows(batch: tuple[np.ndarray, ...], mesh: Mesh) -> tuple[jax.Array, ...]:
    """Sequences over "fsdp"."""
    rows = NamedSharding(mesh, PartitionSpec("fsdp"))
    return tuple(jax.device_put(x, rows) for x in batch)


def sent_bytes(compiled: jax.stages.Compiled) -> dict[str, int]:
    """Bytes that a device sends in one run, by kind of collective."""
    sys.path.append(str(Path(__file__).parents[1]))
    from benchmarks import collectives

    found = collectives.totals(compiled.as_text(), jax.device_count())
    return {kind: total.sent_bytes for kind, total in found.items()}


def report_mesh(
    state: nnx.State,
    structure: nnx.GraphDef,  # type: ignore[type-arg]
    first: tuple[np.ndarray, np.ndarray],
    mesh: Mesh,
    console: Console,
) -> None:
    """The first loss on one device and on the mesh, and what a step of either loss sends there."""
    table = Table(title="A step over " + " x ".join(f"{n} {a}" for a, n in mesh.shape.items()))
    for column in ("loss", "on one device", "on the mesh", "sent by a device"):
        table.add_column(column, justify="left" if column == "loss" else "right")
    placed = place(state, mesh)
    batch = place_rows(first, mesh)
    for name, loss in (("fused", fused_loss), ("unfused", unfused_loss)):
        alone = jax.jit(make_step(loss, structure, state).__wrapped__)(state, *first)[1]
        step = make_step(loss, structure, placed).lower(placed, *batch).compile()
        together = step(jax.tree.map(jnp.copy, placed), *batch)[1]  # which is given up
        sent = sent_bytes(step)
        kinds = ", ".join(f"{kind} {size / MIB:.2f}" for kind, size in sent.items())
        cells = (f"{float(x):.6f}" for x in (alone, together))
        table.add_row(name, *cells, f"{sum(sent.values()) / MIB:.2f} MiB ({kinds})")
    console.print(table)


# --- training -------------------------------------------------------------------------------------


class History(NamedTuple):
    """How a training went."""

    losses: list[float]  # nats a token, one a step
    measured_at: list[int]  # steps before each held-out measurement
    held_out: list[float]  # nats a token
    tokens_per_second: float
    temporaries: dict[str, int]  # bytes of the compiled step, by the name of its loss


def batches(texts: Texts, batch: int, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """All sequences in a random order, again and again."""
    random = np.random.default_rng(seed)
    while True:
        order = random.permutation(len(texts.tokens))
        for start in range(0, len(order) - batch + 1, batch):
            chosen = order[start : start + batch]
            yield texts.tokens[chosen], texts.labels[chosen]


def make_evaluation(structure: nnx.GraphDef, held_out: Texts, batch: int) -> Callable:  # type: ignore[type-arg]
    """State -> nats per held-out token."""

    @jax.jit
    def total(state: nnx.State, tokens: jax.Array, labels: jax.Array) -> jax.Array:
        model, _ = nnx.merge(structure, state)
        embedding = model.embed.embedding[...]
        return linear_cross_entropy(
            model(tokens),
            embedding,
            labels,
            kernel_layout="VD",
            ignore_index=PADDING,
            reduction="sum",
        )

    def evaluate(state: nnx.State) -> float:
        parts = [
            total(state, held_out.tokens[i : i + batch], held_out.labels[i : i + batch])
            for i in range(0, len(held_out.tokens), batch)
        ]
        return float(sum(parts)) / int(np.sum(held_out.labels != PADDING))

    return evaluate


def train(
    train_set: Texts,
    held_out: Texts,
    vocabulary: int,
    options: argparse.Namespace,
    console: Console,
) -> History:
    """Fit a model, and weigh its training step with either loss."""
    length = train_set.tokens.shape[1]
    model = LanguageModel(vocabulary, length, options.width, options.layers, nnx.Rngs(options.seed))
    warmup = max(1, options.steps // 10)
    rate = optax.warmup_cosine_decay_schedule(0.0, options.rate, warmup, options.steps + 1)
    chain = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(rate, weight_decay=0.01))
    structure, state = nnx.split((model, nnx.Optimizer(model, chain, wrt=nnx.Param)))
    stream = batches(train_set, options.batch, options.seed)
    first = next(stream)
    if options.fsdp * options.tensor > 1:
        sizes = (options.fsdp, options.tensor)
        kinds = (AxisType.Auto,) * 2  # Flax's layers do not take explicit axes
        mesh = jax.make_mesh(sizes, ("fsdp", "tensor"), axis_types=kinds)
        report_mesh(state, structure, first, mesh, console)
        state, first = place(state, mesh), place_rows(first, mesh)
        stream = (place_rows(batch, mesh) for batch in stream)
    with console.status("Compiling the training step with either loss"):
        steps = {
            name: make_step(loss, structure, state).lower(state, *first).compile()
            for name, loss in (("fused", fused_loss), ("unfused", unfused_loss))
        }
    temporaries = {name: step.memory_analysis().temp_size_in_bytes for name, step in steps.items()}
    evaluate = make_evaluation(structure, held_out, options.batch)
    interval = max(1, options.steps // MEASUREMENTS)
    history = History([], [0], [evaluate(state)], 0.0, temporaries)
    seconds, tokens_seen = 0.0, 0
    columns = (TextColumn("Learning Python"), BarColumn(), MofNCompleteColumn(),
               TextColumn("{task.fields[note]}"), TimeRemainingColumn())  # fmt: skip
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("", total=options.steps, note="")
        for done in range(1, options.steps + 1):
            tokens, labels = next(stream)
            start = time.perf_counter()
            state, loss = steps["fused"](state, tokens, labels)
            history.losses.append(float(loss))
            seconds += time.perf_counter() - start
            tokens_seen += int(np.sum(labels != PADDING))
            if done % interval == 0 or done == options.steps:
                history.measured_at.append(done)
                history.held_out.append(evaluate(state))
            note = f"held-out perplexity {np.exp(history.held_out[-1]):.1f}"
            progress.update(task, advance=1, note=note)
    return history._replace(tokens_per_second=tokens_seen / seconds)


# --- what came of it ------------------------------------------------------------------------------


def draw(history: History, unigram: float, shape: tuple[int, int, int], path: Path) -> None:
    """Learning curves, and the bytes of either training step."""
    plt.rcParams.update({"font.size": 10, "axes.titlesize": 11, "axes.titleweight": "bold"})
    figure, (curves, bars) = plt.subplots(
        1, 2, figsize=(11, 4.6), width_ratios=[2.6, 1.0], layout="constrained"
    )
    draw_curves(curves, history, unigram)
    draw_memory(bars, history, shape)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def draw_curves(axes: mpl.axes.Axes, history: History, unigram: float) -> None:
    """Perplexity over the steps, on a scale of its logarithm: of each batch and held out."""
    steps = np.arange(1, len(history.losses) + 1)
    axes.semilogy(
        steps, np.exp(history.losses), color=TRAIN, lw=1, alpha=0.8, label="training batches"
    )
    held_out = np.exp(history.held_out)
    axes.semilogy(
        history.measured_at, held_out, color=HELD_OUT, lw=2, marker="o", ms=4.5, label="held out"
    )
    axes.axhline(unigram, color="0.45", lw=1, ls="--")
    axes.text(
        steps[-1], unigram * 1.05, f"frequencies of words alone: {unigram:.0f}",
        ha="right", va="bottom", color="0.35",
    )  # fmt: skip
    axes.annotate(
        f"{held_out[-1]:.1f}", (history.measured_at[-1], held_out[-1]),
        xytext=(0, -15), textcoords="offset points", ha="center", color=HELD_OUT, weight="bold",
    )  # fmt: skip
    axes.set(
        title="Perplexity of the next word in Python's standard library",
        xlabel="step", ylabel="perplexity",
    )  # fmt: skip
    axes.yaxis.set_major_formatter(mpl.ticker.FormatStrFormatter("%g"))
    axes.legend(frameon=False)
    axes.grid(alpha=0.25, which="both")
    axes.spines[["top", "right"]].set_visible(False)


def draw_memory(axes: mpl.axes.Axes, history: History, shape: tuple[int, int, int]) -> None:
    """Temporaries of the compiled training step."""
    names = {"fused": "linear_cross_entropy", "unfused": "cross_entropy\nof all logits"}
    sizes = [history.temporaries[name] / MIB for name in names]
    bars = axes.bar(list(names.values()), sizes, color=[FUSED, UNFUSED], width=0.6)
    axes.bar_label(bars, [f"{size:.0f} MiB" for size in sizes], padding=3)
    tokens, width, vocabulary = shape
    axes.set(
        title="Temporaries of a training step", ylabel="MiB",
        xlabel=f"{tokens} tokens × {vocabulary} words, width {width}",
    )  # fmt: skip
    axes.margins(y=0.12)
    axes.spines[["top", "right"]].set_visible(False)


def report(history: History, unigram: float, vocabulary: int, console: Console) -> None:
    """Perplexities, speed, memory."""
    table = Table(title=f"After {len(history.losses)} steps")
    table.add_column("")
    table.add_column("", justify="right")
    table.add_row("held-out perplexity", f"{np.exp(history.held_out[-1]):.1f}")
    table.add_row("  of the words' frequencies", f"{unigram:.1f}")
    table.add_row("  of knowing nothing", f"{vocabulary}")
    table.add_row("tokens per second", f"{history.tokens_per_second:.0f}")
    for name, size in history.temporaries.items():
        table.add_row(f"temporaries of a step, {name} loss", f"{size / MIB:.1f} MiB")
    console.print(table)


def positive(text: str) -> int:
    """A number of steps, examples, or whatever there must be one of."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {number}")
    return number


def main() -> None:
    """Read, train, report, draw."""
    parser = argparse.ArgumentParser(description="Train a language model on Python's own source.")
    parser.add_argument("--steps", type=positive, default=300)
    parser.add_argument("--batch", type=positive, default=16)
    parser.add_argument("--length", type=positive, default=128, help="tokens of a sequence")
    parser.add_argument("--width", type=positive, default=128)
    parser.add_argument("--layers", type=positive, default=2)
    parser.add_argument("--vocabulary", type=positive, default=8192)
    parser.add_argument("--rate", type=float, default=3e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--fsdp", type=positive, default=1, help="devices that share the batch")
    parser.add_argument("--tensor", type=positive, default=1, help="devices that share the words")
    parser.add_argument("--output", type=Path, default=Path("language_model.png"))
    options = parser.parse_args()
    if options.vocabulary <= START + 1:
        parser.error(f"--vocabulary must be more than the {START + 1} bytes and marks")
    if options.width % 32 and options.width > 32:
        parser.error(f"--width must be a multiple of 32, got {options.width}")
    if options.batch % options.fsdp:
        parser.error(f"--batch must be a multiple of --fsdp, got {options.batch}, {options.fsdp}")
    if options.fsdp * options.tensor > 1:  # before JAX is used
        jax.config.update("jax_num_cpu_devices", options.fsdp * options.tensor)
    console = Console()

    with console.status("Reading the standard library"):
        texts = [words_of(source) for source in read_sources()]
        learned = [text for i, text in enumerate(texts) if i % HELD_OUT_EVERY]
        vocabulary = make_vocabulary(learned, options.vocabulary)
        encoded = [encode(text, vocabulary) for text in texts]
        train_set = cut([e for i, e in enumerate(encoded) if i % HELD_OUT_EVERY], options.length)
        held_out = cut(encoded[::HELD_OUT_EVERY], options.length)
    chosen = np.random.default_rng(0).permutation(len(held_out.tokens))[:HELD_OUT_SEQUENCES]
    held_out = Texts(held_out.tokens[chosen], held_out.labels[chosen])
    if options.batch > len(train_set.tokens):
        parser.error(f"--batch must be at most {len(train_set.tokens)}, got {options.batch}")
    size = START + 1 + len(vocabulary)
    console.print(
        f"{len(texts)} modules, {sum(map(len, encoded)):,} tokens over {size} words; "
        f"{np.mean(train_set.labels == PADDING):.1%} of the labels are padding"
    )
    unigram = unigram_perplexity(train_set, held_out, size)
    history = train(train_set, held_out, size, options, console)
    report(history, unigram, size, console)
    draw(history, unigram, (options.batch * options.length, options.width, size), options.output)
    console.print(f"Picture: {options.output}")
    perplexity = np.exp(history.held_out[-1])
    if not perplexity < unigram:
        raise SystemExit(
            f"held-out perplexity {perplexity:.1f} is not below {unigram:.1f}, which the words' "
            "frequencies give: train longer"
        )


if __name__ == "__main__":
    main()
