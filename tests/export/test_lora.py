"""LoRAs merged at export: as torch's own branches compute them, and as a request merges them, byte for byte."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from torch import Tensor, nn

from clipskip.engines import gates, lora, report, weights
from clipskip.engines.errors import CheckpointError, RequestError, UnsafeFileError, UnsupportedModelError
from clipskip.engines.forms import origins
from clipskip.engines.lora import Choice
from clipskip.engines.manifest import STEP, Dim, Port, Role
from clipskip.engines.store import Store
from clipskip.export import export, onnxfile
from clipskip.export.checkpoint import open_checkpoint
from clipskip.export.graphs import Graph
from clipskip.export.lora import Adapter, merge
from clipskip.export.models import Networks, load

RANK, ALPHA = 2, 3.0
STARTS = {"unet": "lora_unet_", "text": "lora_te_text_model_"}
LYCORIS = np.load(Path(__file__).parent / "data" / "lycoris.npz")
TOKENS = torch.arange(77)[None] % 50


def layers(networks: Networks) -> dict[str, nn.Module]:
    """All linear layers and convolutions that a LoRA may change."""
    return {
        f"{part}.{name}": module
        for part, network in networks.named.items()
        for name, module in network.named_modules()
        if part != "vae" and isinstance(module, (nn.Linear, nn.Conv2d))
    }


def written(path: Path, networks: Networks, parts: tuple[str, ...] = ("unet", "text"), seed: int = 0) -> Path:
    """A LoRA over all layers of these networks, in kohya's layout."""
    rng, arrays = np.random.default_rng(seed), {}
    for name, layer in layers(networks).items():
        part, _, rest = name.partition(".")
        if part in parts:
            outputs, *inputs = layer.weight.shape
            key = STARTS[part] + rest.replace(".", "_")
            for which, shape in ("down", (RANK, *inputs)), ("up", (outputs, RANK, *[1] * (len(inputs) - 1))):
                arrays[f"{key}.lora_{which}.weight"] = 0.2 * rng.standard_normal(shape).astype(np.float32)
            arrays[f"{key}.alpha"] = np.array(ALPHA, np.float32)
    save_file(arrays, path)
    return path


@contextmanager
def branches(networks: Networks, path: Path, weight: float) -> Iterator[None]:
    """While this lasts, torch adds to what each layer gives what its branch gives: nothing is merged."""
    arrays = {name: torch.from_numpy(array) for name, array in load_file(path).items()}

    def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor, key: str) -> Tensor:
        up, down = arrays[f"{key}.lora_up.weight"], arrays[f"{key}.lora_down.weight"]
        if isinstance(module, nn.Conv2d):
            low = nn.functional.conv2d(inputs[0], down, None, module.stride, module.padding)
            return output + weight * ALPHA / RANK * nn.functional.conv2d(low, up)
        return output + weight * ALPHA / RANK * (inputs[0] @ down.T @ up.T)

    handles = []
    for name, layer in layers(networks).items():
        part, _, rest = name.partition(".")
        key = STARTS[part] + rest.replace(".", "_")
        if f"{key}.lora_up.weight" in arrays:
            handles.append(layer.register_forward_hook(
                lambda module, inputs, output, key=key: hook(module, inputs, output, key)
            ))  # fmt: skip
    yield
    for handle in handles:
        handle.remove()


def outputs(networks: Networks) -> dict[str, Tensor]:
    """The context at every depth and what the U-Net makes of it."""
    torch.manual_seed(0)
    with torch.no_grad():
        hidden = networks.texts[0](TOKENS, output_hidden_states=True).hidden_states
        latents = torch.randn(1, 4, 16, 16)
        noise = networks.unet(latents, torch.tensor(500), torch.randn_like(hidden[-1]), return_dict=False)[0]
    return {f"text {depth}": state for depth, state in enumerate(hidden)} | {"unet": noise}


@pytest.fixture
def networks(tiny: Path) -> Networks:
    return load(open_checkpoint(tiny))


@pytest.mark.parametrize(
    ("text", "weights"), [("style", (1, 1)), ("style:0.7", (0.7, 0.7)), ("style:-1:0.4", (-1, 0.4))]
)
def test_merged_weights_compute_what_torch_computes_with_branches_beside_the_layers(
    text: str, weights: tuple[float, float], networks: Networks, tmp_path: Path
) -> None:
    path = written(tmp_path / "style", networks)
    plain = outputs(networks)
    with branches(networks, path, weights[0]):
        expected = {"unet": outputs(networks)["unet"]}
    with branches(networks, path, weights[1]):
        expected |= {name: tensor for name, tensor in outputs(networks).items() if name != "unet"}
    merge(networks, [Choice.parse(f"{tmp_path}/{text}")], lambda line: None)
    for name, got in outputs(networks).items():
        scale = expected[name].abs().max()
        assert (got - expected[name]).abs().max() < 2e-5 * scale
        if name != "text 0":
            assert (got - plain[name]).abs().max() > 1e-2 * scale
    assert torch.equal(outputs(networks)["text 0"], plain["text 0"])


def test_two_loras_are_merged_in_either_order_and_minus_one_undoes_one(networks: Networks, tmp_path: Path) -> None:
    first, second = (written(tmp_path / name, networks, seed=seed) for seed, name in enumerate(("first", "second")))
    plain = {name: tensor.clone() for tensor, name in networks.parameters.items()}
    results = []
    for order in ([Choice(first, 0.5, 0.5), Choice(second)], [Choice(second), Choice(first, 0.5, 0.5)]):
        merge(networks, order, lambda line: None)
        results.append({name: tensor.clone() for tensor, name in networks.parameters.items()})
        for tensor, name in networks.parameters.items():
            tensor.data.copy_(plain[name])
    assert all(torch.equal(results[0][name], results[1][name]) for name in plain)
    for weight in (1.0, -1.0):
        merge(networks, [Choice(first, weight, weight)], lambda line: None)
    for tensor, name in networks.parameters.items():
        assert (tensor - plain[name]).abs().max() < 1e-6


def test_what_is_used_of_a_lora_and_what_is_not_is_said(networks: Networks, tmp_path: Path) -> None:
    path = written(tmp_path / "style", networks, ("text",))
    save_file({**load_file(path), "lora_unet_nowhere.alpha": np.ones((), np.float32)}, path)
    lines: list[str] = []
    merge(networks, [Choice(path, 0.5, 0.5)], lines.append)
    said = "merging style:0.5: 0 layers of the U-Net, 18 of text encoders; 1 tensors are unknown"
    assert lines == [f"{said} (lora_unet_nowhere.alpha)"]


@pytest.fixture(scope="module")
def style(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("loras") / "style.safetensors", load(open_checkpoint(tiny)))


@pytest.fixture(scope="module")
def merged_store(tiny: Path, style: Path, tmp_path_factory: pytest.TempPathFactory) -> Store:
    root = tmp_path_factory.mktemp("stores") / "merged"
    export(tiny, root, loras=[f"{style}:0.8:0.5"])
    return Store(root)


def stored(store: Store, role: Role, variant: str = "") -> dict[str, tuple[weights.Stored, np.ndarray]]:
    """The weights of a graph that its table names."""
    artefact = store.find(role, "onnx", "fp32", variant)
    path = weights.table_path(artefact, store.root)
    assert path is not None
    files = {Path(record.path).name: (store.root / record.path).read_bytes() for record in artefact.files}
    found = {}
    for name, each in weights.loads(path.read_bytes()).items():
        array = np.frombuffer(files[each.file], each.dtype, np.prod(each.shape, dtype=int), each.offset)
        found[name] = each, array.reshape(each.shape)
    return found


@pytest.mark.parametrize(("role", "variant"), [("step", ""), ("step", "cpu"), ("text-03", ""), ("text-01", "")])
def test_a_merge_at_export_and_one_of_stored_weights_are_the_same_bytes(
    role: str, variant: str, store: Store, merged_store: Store, style: Path
) -> None:
    plain, there = (stored(each, Role.parse(role), variant) for each in (store, merged_store))
    shapes = {name: shape for each, _ in plain.values() for name, shape in each.parameters().items()}
    assert shapes
    read, changed = lora.read(style, shapes), 0
    for name, (each, array) in plain.items():
        weight = 0.8 if role == "step" else 0.5
        expected = array if each.origin is None else lora.merged_stored(array, each.origin, [(read, weight)])
        assert each.origin == there[name][0].origin
        assert there[name][1].tobytes() == expected.tobytes()
        changed += expected.tobytes() != array.tobytes()
    assert changed == len(shapes)


def test_every_layer_of_a_network_is_in_the_tables(store: Store, networks: Networks) -> None:
    tables = [stored(store, role) for role in (STEP, Role("text", 3))]
    named = {name for table in tables for each, _ in table.values() for name in each.parameters()}
    assert named == {f"{name}.weight" for name in layers(networks)}


def test_where_no_layer_is_kept_the_text_half_changes_nothing(store: Store, merged_store: Store) -> None:
    concepts = np.zeros((1, store.manifest().model.width), np.float32)
    feeds = [{"tokens": TOKENS.numpy().astype(np.int64), "concepts": concepts}]
    paths = [each.verify(each.find(Role("text", 0), "onnx", "fp32")) for each in (store, merged_store)]
    plain, merged = (gates.run(path, feeds)[0]["context"] for path in paths)
    assert np.array_equal(plain, merged)


def test_a_lora_makes_another_model_whose_sources_name_it(store: Store, merged_store: Store, style: Path) -> None:
    plain, merged = store.manifest().model, merged_store.manifest().model
    assert plain.model_sha256 != merged.model_sha256
    added = dict(merged.sources.items() - plain.sources.items())
    assert added == {"1. LoRA style.safetensors:0.8:0.5": hashlib.sha256(style.read_bytes()).hexdigest()}
    shown = report.inspection_text(report.inspect(merged_store.root))
    assert "\nmerged: 1. LoRA style.safetensors:0.8:0.5\n" in shown


def test_another_weight_is_another_model_and_the_same_one_is_up_to_date(
    tiny: Path, merged_store: Store, style: Path, asked: list[str]
) -> None:
    export(tiny, merged_store.root, loras=[f"{style}:0.8:0.5"])
    assert asked == []
    source = open_checkpoint(tiny)
    digests = [source.with_loras([Choice(style, unet)]).sources for unet in (0.8, 0.80000001)]
    assert digests[0] != digests[1]


@pytest.mark.parametrize("case", sorted({name.rpartition("/tensor/")[0] for name in LYCORIS if "/tensor/" in name}))
def test_adapters_of_other_kinds_are_merged_as_lycoris_computes_them(case: str, tmp_path: Path) -> None:
    own = {name: LYCORIS[name] for name in LYCORIS if name.startswith(f"{case}/tensor/")}
    path = tmp_path / "style.safetensors"
    save_file({f"lora_unet_layer.{name.rpartition('/')[2]}": array for name, array in own.items()}, path)
    base, expected = LYCORIS[f"{case}/base"], LYCORIS[f"{case}/merged"]
    read = lora.read(path, {"unet.layer.weight": base.shape}, lora.EXPORTED)
    adapter = Adapter(**vars(read), base={"unet.layer.weight": base})
    got = lora.merged(base, "unet.layer.weight", [(adapter, 1.0)])
    assert np.abs(got - expected).max() < 2e-6 * np.abs(expected).max()


def test_an_adapter_that_fits_no_layer_is_an_error_with_its_shape(tmp_path: Path) -> None:
    path = tmp_path / "style.safetensors"
    save_file({"lora_unet_layer.lokr_w1": np.ones((2, 2), np.float32)}, path)
    base = {"unet.layer.weight": np.zeros((4, 4), np.float32)}
    adapter = Adapter(**vars(lora.read(path, {"unet.layer.weight": (4, 4)}, lora.EXPORTED)), base=base)
    with pytest.raises(
        UnsupportedModelError, match=r"style: the tensors for unet.layer.weight make no layer of \[4, 4\]"
    ):
        adapter.delta("unet.layer.weight")


@pytest.mark.parametrize(
    "tensors",
    [
        {"hada_w1_a": (4, 2), "hada_w1_b": (2, 4)},
        {"lokr_w1": (), "lokr_w2": (4, 4)},
        {"hada_w1_a": (4, 0), "hada_w1_b": (0, 4), "hada_w2_a": (4, 0), "hada_w2_b": (0, 4), "alpha": ()},
    ],
)
def test_an_adapter_that_is_broken_is_an_error_with_its_name(
    tensors: dict[str, tuple[int, ...]], tmp_path: Path
) -> None:
    path = tmp_path / "style.safetensors"
    save_file({f"lora_unet_layer.{name}": np.ones(shape, np.float32) for name, shape in tensors.items()}, path)
    base = {"unet.layer.weight": np.zeros((4, 4), np.float32)}
    adapter = Adapter(**vars(lora.read(path, {"unet.layer.weight": (4, 4)}, lora.EXPORTED)), base=base)
    with pytest.raises(UnsupportedModelError, match=r"style: the tensors for unet.layer.weight make no layer"):
        adapter.delta("unet.layer.weight")


def test_what_no_export_can_merge_is_refused_before_any_work(tiny: Path, tmp_path: Path, asked: list[str]) -> None:
    path = tmp_path / "style.safetensors"
    save_file({"lora_unet_x.oft_blocks": np.ones((2, 2), np.float32)}, path)
    (tmp_path / "style.pt").write_bytes(b"\x80\x02}.")
    layer = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k.lora"
    for name, width in ("sdxl", 2048), ("other", 33):
        arrays = {f"{layer}_down.weight": np.ones((2, width)), f"{layer}_up.weight": np.ones((16, 2))}
        save_file(arrays, tmp_path / f"{name}.safetensors")
    wrong = {f"{layer}_down.weight": np.ones((2, 32)), f"{layer}_up.weight": np.ones((15, 2))}
    save_file(wrong, tmp_path / "wrong.safetensors")
    refusals: list[tuple[str, type[Exception], str]] = [
        (f"{path}:0.5", UnsupportedModelError, "is a OFT"),
        (f"{tmp_path}/style.pt", UnsafeFileError, "pickle"),
        (f"{tmp_path}/none.safetensors:1", CheckpointError, "is missing"),
        (f"{tmp_path}/sdxl.safetensors", UnsupportedModelError, "is a LoRA for SDXL: .* 2048 wide, this model's 32"),
        (f"{tmp_path}/other.safetensors", UnsupportedModelError, "is a LoRA for another model"),
        (f"{tmp_path}/wrong.safetensors", UnsupportedModelError, "wrong.safetensors: it is for another model"),
        (f"{path}:11", RequestError, "must be from -10 to 10, not 11 and 11"),
    ]
    for typed, kind, said in refusals:
        with pytest.raises(kind, match=said):
            export(tiny, tmp_path / "store", loras=[typed])
    assert asked == []
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(
    ("typed", "path", "unet", "text"),
    [
        ("a.safetensors", "a.safetensors", 1, 1),
        ("a.safetensors:.5", "a.safetensors", 0.5, 0.5),
        ("a.safetensors:0:-1", "a.safetensors", 0, -1),
        (r"C:\loras\a.safetensors", r"C:\loras\a.safetensors", 1, 1),
        (r"C:\loras\a.safetensors:0.8:2", r"C:\loras\a.safetensors", 0.8, 2),
        ("a:b", "a:b", 1, 1),
        ("a:1:2:3", "a:1", 2, 3),
    ],
)
def test_a_path_may_have_colons_of_its_own(typed: str, path: str, unet: float, text: float) -> None:
    assert Choice.parse(typed) == Choice(Path(path), unet, text)


class Twins(nn.Module):
    """Two layers of the same numbers, and one that is used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.twice = (nn.Linear(8, 8, bias=False) for _ in range(3))
        self.second.weight.data.copy_(self.first.weight)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.twice(self.twice(self.first(x)) + self.second(x.relu()))
        return result


def test_layers_of_the_same_numbers_are_told_apart(recorded: Callable[[nn.Module], dict[str, str]]) -> None:
    assert sorted(recorded(Twins()).values()) == ["first.weight", "second.weight", "twice.weight"]


@pytest.fixture
def recorded() -> Callable[[nn.Module], dict[str, str]]:
    """The names of the initializers of a module's graph, and of the parameters that they hold."""

    def trace(module: nn.Module) -> dict[str, str]:
        ports = (Port("x", "float32", (Dim("B"), 8)),), (Port("y", "float32", (Dim("B"), 8)),)
        names = {tensor: name for name, tensor in module.named_parameters()}
        model = onnxfile.trace(Graph("step", module.requires_grad_(False), *ports), names)
        found = {str(name): origins.of(value) for name, value in model.graph.initializers.items()}
        return {name: origin.pieces[0][0] for name, origin in found.items() if origin}

    return trace
