"""Networks of a few nodes with exactly the signatures of design.md, section 3: for tests of builders and backends.

Width D = 64, one attention of four 16-wide heads in `step`, random weights of a fixed seed.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper, parser

from clipskip.engines import publish
from clipskip.engines.manifest import Artefact, AxisRange, Dim, Identity, ModelFacts, Port, Role
from clipskip.engines.shapes import BuildOptions, axes_of, axis_ranges
from clipskip.engines.store import Store

WIDTH, VOCABULARY = 64, 100
HEADER = '<ir_version: 10, opset_import: ["": 23]>\n'

STEP = """
step (float[B,6,4,h,w] state, int64[N] rows, float[B] c_in, float[B] timestep, float16[N,T,64] context,
      float[B,N] mix, float[B,N] reference, float[B] rescale, float[B,1,h,w] mask, float[B,4,h,w] known,
      float[B,2] pull, float[B,4,h,w] noise,
      float[B,6,8] update) => (float[B,6,4,h,w] next_state)
<int64 zero = {0}, int64 second = {1}, int64[1] one = {1}, int64[4] column = {-1, 1, 1, 1}, float thousand = {1000.0},
 float unit = {1.0}, int64[3] tokens = {0, 4, -1}, int64[3] pixel = {1, 2, 3},
 int64[1] first = {0}, int64[1] last = {5}>
{
  slot = Gather <axis: int = 1> (state, zero)
  factor = Reshape (c_in, column)
  scaled = Mul (slot, factor)
  x = Gather <axis: int = 0> (scaled, rows)
  t = Gather <axis: int = 0> (timestep, rows)
  t1 = Div (t, thousand)
  t4 = Reshape (t1, column)
  x16 = Cast <to: int = 10> (x)
  flat = Reshape (x16, tokens)
  pixels = Transpose <perm: ints = [0, 2, 1]> (flat)
  q = MatMul (pixels, wq)
  k = MatMul (context, wk)
  v = MatMul (context, wv)
  seen = Attention <q_num_heads: int = 4, kv_num_heads: int = 4> (q, k, v)
  narrow = MatMul (seen, wo)
  planes = Transpose <perm: ints = [0, 2, 1]> (narrow)
  size = Shape (x16)
  picture = Reshape (planes, size)
  bounded = Tanh (picture)
  wide = Cast <to: int = 1> (bounded)
  late = Mul (x, t4)
  net = Add (late, wide)
  guided = Einsum <equation: string = "bn,nchw->bchw"> (mix, net)
  plain = Einsum <equation: string = "bn,nchw->bchw"> (reference, net)
  spread = ReduceL2 (guided, pixel)
  own_spread = ReduceL2 (plain, pixel)
  both = Add (spread, unit)
  ratio = Div (own_spread, both)
  share = Reshape (rescale, column)
  less = Mul (share, ratio)
  scale = Sub (unit, less)
  mixed = Mul (guided, scale)
  p0 = Gather <axis: int = 1> (pull, zero)
  p1 = Gather <axis: int = 1> (pull, second)
  p04 = Reshape (p0, column)
  p14 = Reshape (p1, column)
  own = Mul (p04, slot)
  other = Mul (p14, known)
  drawn = Add (own, other)
  outside = Sub (unit, mask)
  inner = Mul (mask, mixed)
  outer = Mul (outside, drawn)
  out = Add (inner, outer)
  out5 = Unsqueeze (out, one)
  plain5 = Unsqueeze (plain, one)
  read = Slice (state, first, last, one)
  noise5 = Unsqueeze (noise, one)
  all = Concat <axis: int = 1> (read, out5, plain5, noise5)
  next_state = Einsum <equation: string = "bkj,bjchw->bkchw"> (update, all)
}
"""

TEXT = """
text (int64[R,77] tokens, float[E,64] concepts) => (float16[R,77,64] context)
{
  half = Cast <to: int = 10> (concepts)
  every = Concat <axis: int = 0> (table, half)
  word = Gather <axis: int = 0> (every, tokens)
  placed = Add (word, positions)
  q = MatMul (placed, wq)
  k = MatMul (placed, wk)
  v = MatMul (placed, wv)
  seen = Attention <q_num_heads: int = 4, kv_num_heads: int = 4, is_causal: int = 1> (q, k, v)
  context = Add (placed, seen)
}
"""

DECODE = """
decode (float[B,4,h,w] latents) => (uint8["B","8*h","8*w",3] image, bool[B] finite)
<float[4] by8 = {1.0, 1.0, 8.0, 8.0}, float half = {127.5}, float low = {0.0}, float high = {255.0}>
{
  narrow = Cast <to: int = 10> (latents)
  three = Conv (narrow, wc)
  raw = Cast <to: int = 1> (three)
  big = Resize <mode: string = "nearest"> (raw, , by8)
  centred = Mul (big, half)
  shifted = Add (centred, half)
  clipped = Clip (shifted, low, high)
  rounded = Round (clipped)
  last = Transpose <perm: ints = [0, 2, 3, 1]> (rounded)
  image = Cast <to: int = 2> (last)
  size = Abs (raw)
  total = ReduceSum <keepdims: int = 0> (size, axes)
  finite = LessOrEqual (total, largest)
}
"""

ENCODE = """
encode (uint8[B,"8*h","8*w",3] image) => (float[B,4,h,w] mean, float[B,4,h,w] std)
<float half = {127.5}, float unit = {1.0}>
{
  wide = Cast <to: int = 1> (image)
  small = Div (wide, half)
  centred = Sub (small, unit)
  first = Transpose <perm: ints = [0, 3, 1, 2]> (centred)
  narrow = Cast <to: int = 10> (first)
  four = Conv <strides: ints = [8, 8]> (narrow, we)
  mean = Cast <to: int = 1> (four)
  std = Abs (mean)
}
"""


def _weights(seed: int) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(seed).standard_normal
    half = {
        "wq": (64, 64),
        "wk": (64, 64),
        "wv": (64, 64),
        "wo": (64, 4),
        "table": (VOCABULARY, 64),
        "positions": (77, 64),
    }
    arrays = {name: (draw(shape) / 8).astype(np.float16) for name, shape in half.items()}
    arrays["wc"] = (draw((3, 4, 1, 1)) / 4).astype(np.float16)
    arrays["we"] = (draw((4, 3, 8, 8)) / 16).astype(np.float16)
    arrays["axes"] = np.array([1, 2, 3])
    arrays["largest"] = np.array(3e38, np.float32)
    return arrays


def save(text: str, path: Path, seed: int = 0) -> Path:
    """Write the network of `text` to `path`, its weights beside it in `<name>.bin` as an export does."""
    model = parser.parse_model(HEADER + text)
    weights = _weights(seed)
    if "step (" in text:
        weights["wq"] = weights["wq"][:4]
    used = {name for node in model.graph.node for name in node.input}
    model.graph.initializer.extend(numpy_helper.from_array(weights[n], n) for n in sorted(used & weights.keys()))
    onnx.save(model, path, save_as_external_data=True, location=f"{path.stem}.bin", size_threshold=256)
    return path


B, N, R, E, T, h, w = map(Dim, "BNREThw")
LATENTS = (B, 4, h, w)
PICTURE = Port("image", "uint8", (B, Dim("h", 8), Dim("w", 8), 3))
SIGNATURES: dict[str, tuple[str, tuple[Port, ...], tuple[Port, ...]]] = {
    "step": (
        STEP,
        (
            Port("state", "float32", (B, 6, 4, h, w)),
            Port("rows", "int64", (N,)),
            Port("c_in", "float32", (B,)),
            Port("timestep", "float32", (B,)),
            Port("context", "float16", (N, T, WIDTH)),
            Port("mix", "float32", (B, N)),
            Port("reference", "float32", (B, N)),
            Port("rescale", "float32", (B,)),
            Port("mask", "float32", (B, 1, h, w)),
            Port("known", "float32", LATENTS),
            Port("pull", "float32", (B, 2)),
            Port("noise", "float32", LATENTS),
            Port("update", "float32", (B, 6, 8)),
        ),
        (Port("next_state", "float32", (B, 6, 4, h, w)),),
    ),
    "text": (
        TEXT,
        (Port("tokens", "int64", (R, 77)), Port("concepts", "float32", (E, WIDTH))),
        (Port("context", "float16", (R, 77, WIDTH)),),
    ),
    "decode": (DECODE, (Port("latents", "float32", LATENTS),), (PICTURE, Port("finite", "bool", (B,)))),
    "encode": (ENCODE, (PICTURE,), (Port("mean", "float32", LATENTS), Port("std", "float32", LATENTS))),
}
FACTS = ModelFacts(
    name="tiny", family="sd1", layers=3, width=WIDTH, vocabulary=VOCABULARY, prediction="epsilon", beta_start=0.00085,
    beta_end=0.012, train_steps=1000, scaling_factor=0.5, default_size=64, size_step=32, recommended_clip_skip=1,
    model_sha256="5" * 64, sources={"tiny.safetensors": "5" * 64},
)  # fmt: skip
LIMITS = axis_ranges(FACTS, BuildOptions(sizes=AxisRange(32, 64, 256)))


def publish_graphs(root: Path, layers: tuple[int, ...] = (0, 3), seed: int = 0) -> Store:
    """A store with fp16 graphs of every role, as an export leaves it."""
    roles = [*(Role("text", kept) for kept in layers), Role("step"), Role("decode"), Role("encode")]
    wanted = {Identity(role, "onnx", "fp16"): {"model": FACTS.model_sha256, "seed": str(seed)} for role in roles}
    with publish.build(root, "onnx-fp16", wanted, progress=lambda line: None, model=FACTS) as draft:
        for number, role in enumerate(roles if draft is not None else ()):
            text, inputs, outputs = SIGNATURES[role.part]
            save(text, draft.folder / f"{role}.onnx", seed + number)
            names = [each for each in (f"{role}.onnx", f"{role}.bin") if (draft.folder / each).exists()]
            draft.add(Artefact(role, "onnx", "fp16", inputs, outputs, axes_of(inputs, LIMITS)), names)
    return Store(root)
