"""Files of CLIP and SigLIP 2, through the converter and back: names, layouts, archives with code, and what is refused.
Needs no torch but where it says oracle."""

import json
import pickle
import re
import zipfile

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from sam_jax.checkpoint import CheckpointError
from sam_jax.cli import convert as command
from sam_jax.config import clip_vit_b_32
from sam_jax.convert.clip_rules import OPENAI, tower_key
from sam_jax.convert.clip_to_flax import from_state_dict
from sam_jax.convert.errors import ConversionError
from sam_jax.convert.torchscript_files import is_torchscript, read_torchscript
from sam_jax.convert.tower_sizes import infer_towers
from sam_jax.text.loading import load_towers, load_towers_config, save_towers
from tests.tiny_towers import TINY_CLIP, TINY_SIGLIP, random_towers, tokenizer_json

HINTS = {
    "vision_config": {"num_attention_heads": 2, "image_size": 24},
    "text_config": {"num_attention_heads": 2, "hidden_act": "quick_gelu"},
}
SIGLIP_HINTS = {
    "vision_config": {"num_attention_heads": 2, "image_size": 26},
    "text_config": {"num_attention_heads": 2},
}


def to_state(variables):
    """Variables under Hugging Face's names, in torch's layouts."""
    state = {}
    for path, leaf in flatten_dict(variables["params"], sep="/").items():
        key, axes = tower_key(path)
        state[key] = leaf if axes is None else np.asarray(leaf).transpose(np.argsort(axes))
    return state


def to_openai(state):
    """The same under OpenAI's names: each line of the table read backwards, and three projections joined."""
    backwards = {
        "vision_model.encoder.layers.": "visual.transformer.resblocks.",
        "text_model.encoder.layers.": "transformer.resblocks.",
        "vision_model.embeddings.class_embedding": "visual.class_embedding",
        "vision_model.embeddings.position_embedding.weight": "visual.positional_embedding",
        "vision_model.embeddings.patch_embedding.": "visual.conv1.",
        "vision_model.pre_layrnorm.": "visual.ln_pre.",
        "vision_model.post_layernorm.": "visual.ln_post.",
        "visual_projection.weight": "visual.proj",
        "text_model.embeddings.token_embedding.": "token_embedding.",
        "text_model.embeddings.position_embedding.weight": "positional_embedding",
        "text_model.final_layer_norm.": "ln_final.",
        "text_projection.weight": "text_projection",
        ".layer_norm1.": ".ln_1.",
        ".layer_norm2.": ".ln_2.",
        ".mlp.fc1.": ".mlp.c_fc.",
        ".mlp.fc2.": ".mlp.c_proj.",
        ".self_attn.": ".attn.",
    }
    found, joined = {}, {}
    for key, array in state.items():
        name = key
        for theirs, ours in backwards.items():
            name = name.replace(theirs, ours)
        array = array.T if name in ("visual.proj", "text_projection") else array
        if match := re.fullmatch(r"(.*)\.([qkv])_proj\.(weight|bias)", name):
            joined.setdefault(f"{match[1]}.in_proj_{match[3]}", {})[match[2]] = array
        else:
            found[name] = array
    return found | {name: np.concatenate([parts[p] for p in "qkv"]) for name, parts in joined.items()}


@pytest.fixture(scope="module", name="towers")
def _towers():
    return random_towers(TINY_CLIP)


@pytest.fixture
def state(towers):
    return to_state(towers)


@pytest.mark.parametrize("prefix", ["", "module.", "model._orig_mod."])
def test_hugging_face_names(state, towers, prefix):
    extra = {f"{prefix}text_model.embeddings.position_ids": np.arange(12)}
    config, found = from_state_dict({prefix + key: x for key, x in state.items()} | extra, HINTS)
    assert config == TINY_CLIP
    jax.tree.map(np.testing.assert_array_equal, found, towers)


def test_openai_names(state, towers):
    sizes = {name: np.array(7) for name in ("input_resolution", "context_length", "vocab_size")}
    theirs = to_openai(state)
    assert len(OPENAI) > 10
    assert {"visual.transformer.resblocks.1.attn.in_proj_weight", "ln_final.bias"} <= theirs.keys()
    config, found = from_state_dict(theirs | sizes, HINTS)
    assert config == TINY_CLIP
    jax.tree.map(np.testing.assert_array_equal, found, towers)


def test_siglip():
    variables = random_towers(TINY_SIGLIP)
    state = to_state(variables)
    assert state["vision_model.head.attention.in_proj_weight"].shape == (72, 24)
    config, found = from_state_dict(state, SIGLIP_HINTS)
    assert config == TINY_SIGLIP
    jax.tree.map(np.testing.assert_array_equal, found, variables)


def test_missing_surplus_and_misshapen_tensors_are_all_named(state):
    del state["text_model.encoder.layers.1.mlp.fc2.bias"]
    state["text_model.extra"] = np.ones(3, np.float32)
    state["vision_model.pre_layrnorm.bias"] = np.ones(3, np.float32)
    with pytest.raises(ConversionError) as caught:
        from_state_dict(state, HINTS)
    message = str(caught.value)
    assert (
        "missing: text_model.encoder.layers.1.mlp.fc2.bias; not part of CLIP: text_model.extra; misshapen: " in message
    )
    assert "vision_model.pre_layrnorm.bias is (3,), expected (24,) for this size" in message


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("visual.attnpool.q_proj.weight", "looks like a CLIP with a ResNet"),
        ("visual.trunk.blocks.0.norm1.weight", "looks like a model of open_clip on a network of timm"),
        ("image_encoder.pos_embed", "looks like a SAM .*convert it by from-torch"),
    ],
)
def test_other_networks_are_named(state, key, message):
    with pytest.raises(ConversionError, match=message):
        from_state_dict(state | {key: np.ones((2, 2), np.float32)}, HINTS)


def test_sizes_that_contradict_are_refused(state):
    naflex = state | {"vision_model.embeddings.patch_embedding.weight": np.ones((24, 192), np.float32)}
    with pytest.raises(ConversionError, match="looks like SigLIP 2 NaFlex"):
        from_state_dict(naflex, HINTS)
    with pytest.raises(ConversionError, match="image_size 99, but its 3 x 3 patches are 8 px"):
        from_state_dict(state, {"vision_config": {"image_size": 99}})
    with pytest.raises(ConversionError, match="hidden_act swish; one of quick_gelu"):
        from_state_dict(state, {"text_config": {"hidden_act": "swish"}})
    with pytest.raises(ConversionError, match=r"it lacks vision_model\.embeddings\.patch_embedding\.weight of 4 axes"):
        from_state_dict({"a": np.ones(1)}, {})
    assert (
        from_state_dict(state, HINTS | {"text_config": {"num_attention_heads": 2, "hidden_act": "gelu"}})[0]
        != TINY_CLIP
    )


def test_published_sizes_need_no_config_beside_them():
    from sam_jax import config as configs
    from sam_jax.convert.clip_rules import expected_tower_leaves
    from sam_jax.convert.torch_to_flax import torch_shape

    for name in ("clip_vit_b_32", "siglip2_base"):
        config = getattr(configs, name)()
        leaves = expected_tower_leaves(config)
        keys = {path: tower_key(path.split("/", 1)[1]) for path in leaves}
        shapes = {key: torch_shape(leaves[path].shape, axes) for path, (key, axes) in keys.items()}
        assert infer_towers(shapes, {}) == config


def test_a_directory_comes_back(towers, tmp_path):
    save_towers(tmp_path / "clip", TINY_CLIP, towers, tokenizer_json(TINY_CLIP))
    found = load_towers(tmp_path / "clip")
    assert found.config == load_towers_config(tmp_path / "clip") == TINY_CLIP
    jax.tree.map(np.testing.assert_array_equal, found.variables, towers)
    assert found.embed_texts(["a dog"]).shape == (1, 20)
    with pytest.raises(CheckpointError, match="exists already"):
        save_towers(tmp_path / "clip", TINY_CLIP, towers, None)


def test_other_directories_are_no_towers(tmp_path, checkpoint):
    with pytest.raises(CheckpointError, match=r"does not exist; expected a directory written by `sam-jax convert"):
        load_towers(tmp_path / "none")
    with pytest.raises(CheckpointError, match=r"no config of towers \(its format is 'sam_jax\.model\.v1'"):
        load_towers(checkpoint)


class _Evil:
    """What an archive must not be able to do."""

    def __reduce__(self):
        return print, ("code was run",)


def _archive(path, content):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("clip/data.pkl", content)
        archive.writestr("clip/constants.pkl", b"")
        archive.writestr("clip/code/__torch__.py", b"raise SystemExit")


def test_code_in_an_archive_is_not_run(tmp_path, capsys):
    _archive(tmp_path / "evil.pt", pickle.dumps(_Evil()))
    assert is_torchscript(tmp_path / "evil.pt")
    with pytest.raises(ConversionError, match=r"is not loaded: its pickle asks for builtins\.print"):
        read_torchscript(tmp_path / "evil.pt")
    _archive(tmp_path / "cut.pt", pickle.dumps([1, 2])[:-3])
    with pytest.raises(ConversionError, match="truncated or not a TorchScript archive"):
        read_torchscript(tmp_path / "cut.pt")
    assert "code was run" not in capsys.readouterr().out


def test_ordinary_files_are_no_archives(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("archive/data.pkl", b"")
    assert not is_torchscript(tmp_path / "a.zip")
    (tmp_path / "a.pt").write_bytes(b"no zip")
    assert not is_torchscript(tmp_path / "a.pt")


@pytest.mark.oracle
@pytest.mark.filterwarnings("ignore")
def test_openais_archives_are_read_without_their_code(state, towers, tmp_path, capsys):
    """A module with OpenAI's names, scripted and saved in half precision, as their files are."""
    import torch

    theirs = to_openai(state) | {"input_resolution": np.array(24.0)}

    class Node(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

    root = Node()
    for key, array in theirs.items():
        *parents, leaf = key.split(".")
        node = root
        for name in parents:
            if name not in dict(node.named_children()):
                node.add_module(name, Node())
            node = getattr(node, name)
        node.register_parameter(leaf, torch.nn.Parameter(torch.tensor(array)))
    torch.jit.save(torch.jit.script(root.half()), tmp_path / "ViT.pt")
    (tmp_path / "config.json").write_text(json.dumps(HINTS))
    (tmp_path / "tokenizer.json").write_bytes(tokenizer_json(TINY_CLIP))
    assert command.main(["from-clip", str(tmp_path / "ViT.pt"), str(tmp_path / "clip")]) == 0
    assert "24 px in patches of 8" in capsys.readouterr().out
    found = load_towers(tmp_path / "clip")
    half = jax.tree.map(lambda x: np.asarray(x).astype(np.float16).astype(np.float32), towers)
    jax.tree.map(np.testing.assert_array_equal, found.variables, half)


@pytest.mark.oracle
def test_safetensors_through_the_command(tmp_path, capsys):
    from safetensors.numpy import save_file

    variables = random_towers(TINY_SIGLIP)
    save_file({key: np.ascontiguousarray(x) for key, x in to_state(variables).items()}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(SIGLIP_HINTS))
    words = ["from-clip", str(tmp_path / "model.safetensors"), str(tmp_path / "siglip")]
    assert command.main(words) == 2
    assert "put SigLIP's tokenizer.json beside its weights" in capsys.readouterr().err
    (tmp_path / "tokenizer.json").write_bytes(tokenizer_json(TINY_SIGLIP))
    assert command.main(words) == 0
    jax.tree.map(np.testing.assert_array_equal, load_towers(tmp_path / "siglip").variables, variables)
    assert command.main(words) == 2
    assert "exists already" in capsys.readouterr().err


def test_a_tensor_never_reaches_beyond_its_storage():
    from sam_jax.convert.torchscript_files import _rebuild_tensor

    storage = np.arange(6, dtype=np.float32)
    np.testing.assert_array_equal(_rebuild_tensor(storage, 1, (2, 2), (1, 2)), [[1, 3], [2, 4]])
    for offset, size, stride in ((3, (2, 2), (2, 1)), (-1, (2,), (1,)), (0, (2,), (-1,))):
        with pytest.raises(ValueError, match="beyond its storage"):
            _rebuild_tensor(storage, offset, size, stride)


def test_the_vocabulary_of_clip_is_for_clip(tmp_path, towers):
    assert clip_vit_b_32().text.vocab_size == 49408
    save_towers(tmp_path / "clip", TINY_CLIP, towers, b"not json")
    with pytest.raises(CheckpointError, match=r"tokenizer\.json cannot be read"):
        load_towers(tmp_path / "clip")
