# SPDX-License-Identifier: Apache-2.0
"""Models of transformers, saved and built again from their directory alone: no download."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

import slimrank as sr
from slimrank.records import Method

transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")
FACTORS: tuple[Method, ...] = ("weight_svd", "spatial_svd")
pytestmark = pytest.mark.filterwarnings("ignore")


def llama(nets: ModuleType, **changes: object) -> nn.Module:
    sizes: dict[str, object] = {
        "vocab_size": 50,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "max_position_embeddings": 64,
    }
    return nets.settle(transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes | changes))).eval()


def bert(nets: ModuleType) -> nn.Module:
    config = transformers.BertConfig(
        vocab_size=50,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=16,
        id2label={0: "good", 1: "bad", 2: "neither"},
        label2id={"good": 0, "bad": 1, "neither": 2},
    )
    return nets.settle(transformers.BertForSequenceClassification(config)).eval()


def vit(nets: ModuleType) -> nn.Module:
    config = transformers.ViTConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        image_size=16,
        patch_size=4,
        num_labels=5,
    )
    return nets.settle(transformers.ViTForImageClassification(config)).eval()


def inputs_of(model: nn.Module, nets: ModuleType) -> list[dict[str, Tensor]]:
    if model.main_input_name == "pixel_values":
        return [{"pixel_values": image} for image in nets.noise(3, 16, 16)]
    return [{"input_ids": ids} for ids in nets.tokens(length=8, size=6)]


def compressed(model: nn.Module, nets: ModuleType, methods: tuple[Method, ...] | None = None) -> sr.Result:
    study = sr.study(model, inputs_of(model, nets), effort="fast", progress=False)
    return study.apply(study.plan(macs=0.7, methods=methods))


def words() -> object:
    """A tokenizer made on the spot."""
    vocab = {word: index for index, word in enumerate(["[PAD]", "[UNK]", "a", "good", "bad", "film", "very"])}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocab, unk_token="[UNK]"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="[PAD]", unk_token="[UNK]", model_max_length=16
    )


@pytest.fixture(scope="module")
def llama_result(nets: ModuleType) -> sr.Result:
    return compressed(llama(nets), nets)


@pytest.mark.slow
def test_a_new_process_computes_the_same(nets: ModuleType, tmp_path: Path) -> None:
    names = []
    for build in (bert, llama, vit):
        model = build(nets)
        result = compressed(model, nets)
        folder = tmp_path / type(model).__name__
        result.save_pretrained(folder)
        batch = inputs_of(model, nets)[0]
        with torch.no_grad():
            torch.save((batch, result.model(**batch).logits), tmp_path / f"{folder.name}.pt")
        names.append(folder.name)
    code = (
        "import torch, slimrank as sr\n"
        f"for name in {names}:\n"
        f"    model = sr.from_pretrained({str(tmp_path)!r} + '/' + name)\n"
        f"    batch, expected = torch.load({str(tmp_path)!r} + '/' + name + '.pt')\n"
        "    with torch.no_grad(): logits = model(**batch).logits\n"
        "    print(type(model).__name__, model.training, torch.equal(logits, expected))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [f"{name} False True" for name in names]


def test_the_same_model_comes_back(llama_result: sr.Result, nets: ModuleType, tmp_path: Path) -> None:
    llama_result.save_pretrained(tmp_path / "saved")
    files = {file.name for file in (tmp_path / "saved").iterdir()}
    assert files == {
        "buffers.safetensors",
        "config.json",
        "generation_config.json",
        "manifest.json",
        "model.safetensors",
        "original_config.json",
        "plan.json",
    }
    loaded = sr.from_pretrained(tmp_path / "saved")
    state, expected = loaded.state_dict(), llama_result.model.state_dict()
    assert list(state) == list(expected)
    assert all(torch.equal(state[name], expected[name]) for name in state)
    assert dict(loaded.named_buffers()).keys() == dict(llama_result.model.named_buffers()).keys()
    # It is an ordinary saved model, too.
    again = sr.load(tmp_path / "saved", model=llama(nets)).state_dict()
    assert all(torch.equal(again[name], expected[name]) for name in expected)


@pytest.mark.slow
def test_tied_weights_stay_tied(nets: ModuleType, tmp_path: Path) -> None:
    result = compressed(llama(nets, tie_word_embeddings=True), nets, ("channel_pruning",))
    result.save_pretrained(tmp_path / "saved")
    loaded = sr.from_pretrained(tmp_path / "saved")
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight
    assert sum(p.numel() for p in loaded.parameters()) == sum(p.numel() for p in result.model.parameters())


def test_dtypes_are_those_that_were_saved(nets: ModuleType, tmp_path: Path) -> None:
    model = llama(nets).to(torch.bfloat16)
    study = sr.study(model, inputs_of(model, nets), methods=("weight_svd",), effort="fast", progress=False)
    result = study.apply(study.plan(macs=0.7))
    result.save_pretrained(tmp_path / "saved")
    loaded = sr.from_pretrained(tmp_path / "saved")
    tensors = {**dict(result.model.named_parameters()), **dict(result.model.named_buffers())}
    found = {**dict(loaded.named_parameters()), **dict(loaded.named_buffers())}
    assert {name: value.dtype for name, value in found.items()} == {
        name: value.dtype for name, value in tensors.items()
    }
    assert found["model.rotary_emb.inv_freq"].dtype == torch.bfloat16
    batch = inputs_of(model, nets)[0]
    with torch.no_grad():
        assert torch.equal(loaded(**batch).logits, result.model(**batch).logits)


def test_generate_with_a_cache(
    llama_result: sr.Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = llama_result.model
    settings = transformers.GenerationConfig(max_new_tokens=7, bos_token_id=1)
    monkeypatch.setattr(model, "generation_config", settings)
    llama_result.save_pretrained(tmp_path / "saved")
    loaded = sr.from_pretrained(tmp_path / "saved")
    assert loaded.generation_config.max_new_tokens == 7
    start = torch.tensor([[3, 4, 5]])
    expected = model.generate(start, do_sample=False, use_cache=False, pad_token_id=0)
    found = loaded.generate(start, do_sample=False, use_cache=True, pad_token_id=0)
    assert found.shape == (1, 10)
    assert torch.equal(found, expected)


@pytest.mark.slow
def test_a_pipeline_with_its_tokenizer(nets: ModuleType, tmp_path: Path) -> None:
    result = compressed(bert(nets), nets)
    result.save_pretrained(tmp_path / "saved", words())
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "saved")
    model = sr.from_pretrained(tmp_path / "saved")
    classify = transformers.pipeline("text-classification", model=model, tokenizer=tokenizer)
    (answer,) = classify("a very good film")
    with torch.no_grad():
        logits = result.model(**words()("a very good film", return_tensors="pt")).logits  # type: ignore[operator]
    assert answer["label"] == ("good", "bad", "neither")[int(logits.argmax())]
    assert answer["score"] == pytest.approx(float(logits.softmax(1).max()), abs=1e-6)


@pytest.mark.parametrize("load", ["AutoModelForCausalLM", "AutoModel", "LlamaForCausalLM"])
def test_transformers_alone_says_what_to_call(load: str, llama_result: sr.Result, tmp_path: Path) -> None:
    llama_result.save_pretrained(tmp_path / "saved")
    with pytest.raises(ValueError, match=r"slimrank\.from_pretrained"):
        getattr(transformers, load).from_pretrained(tmp_path / "saved")
    assert transformers.AutoConfig.from_pretrained(tmp_path / "saved").num_hidden_layers == 2


def uniform(model: nn.Module, nets: ModuleType, keep: dict[str, int]) -> sr.Result:
    """With so many units left in every group whose name ends so, and no new bias."""
    study = sr.study(model, inputs_of(model, nets), effort="fast", progress=False)
    settings = {
        name: ("channel_pruning", {"keep": count})
        for name in study.structure.channels.groups
        for end, count in keep.items()
        if name.endswith(end)
    }
    return study.apply(replace(sr.Plan.manual(study, settings), has_bias=False))


@pytest.mark.slow
def test_transformers_alone_loads_uniform_widths(nets: ModuleType, tmp_path: Path) -> None:
    model = llama(nets)
    study = sr.study(model, inputs_of(model, nets), effort="fast", progress=False)
    plan = study.plan(macs=0.7, methods=("channel_pruning",), uniform_widths=True, new_bias=False)
    result = study.apply(plan)
    assert result.plan.groups
    result.save_pretrained(tmp_path / "saved")
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    width = result.model.model.layers[0].mlp.gate_proj.out_features
    assert loaded.config.intermediate_size == width < 64
    batch = inputs_of(model, nets)[0]
    with torch.no_grad():
        expected = result.model(**batch).logits
        assert torch.equal(loaded(**batch).logits, expected)
        assert torch.equal(sr.from_pretrained(tmp_path / "saved")(**batch).logits, expected)


@pytest.mark.slow
def test_heads_and_neurons_follow_in_the_configuration(nets: ModuleType, tmp_path: Path) -> None:
    model = llama(nets)
    result = uniform(model, nets, {"self_attn.q_proj": 2, "mlp.gate_proj": 24})
    result.save_pretrained(tmp_path / "saved")
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    config = loaded.config
    assert (config.num_attention_heads, config.num_key_value_heads) == (4, 2)
    assert (config.head_dim, config.intermediate_size, config.hidden_size) == (4, 24, 32)
    start = torch.tensor([[3, 4, 5]])
    expected, found = (
        network.generate(start, do_sample=False, max_new_tokens=6, pad_token_id=0)
        for network in (result.model, loaded)
    )
    assert torch.equal(found, expected)


@pytest.mark.slow
@pytest.mark.parametrize(("build", "end"), [(bert, "intermediate.dense"), (vit, "mlp.fc1")])
def test_neurons_of_encoders_follow(build, end: str, nets: ModuleType, tmp_path: Path) -> None:  # noqa: ANN001
    model = build(nets)
    result = uniform(model, nets, {end: 40})
    result.save_pretrained(tmp_path / "saved")
    loaded = type(model).from_pretrained(tmp_path / "saved").eval()
    assert loaded.config.intermediate_size == 40
    batch = inputs_of(model, nets)[0]
    with torch.no_grad():
        assert torch.equal(loaded(**batch).logits, result.model(**batch).logits)


@pytest.mark.slow
def test_what_no_configuration_says_is_refused(nets: ModuleType, tmp_path: Path) -> None:
    # BERT has no field for the width of its heads: with fewer of them, they would be wider.
    model = bert(nets)
    heads = uniform(model, nets, {"attention.self.query": 2})
    heads.save_pretrained(tmp_path / "heads")
    # Another width in one layer of the two.
    uneven = uniform(model, nets, {"0.intermediate.dense": 40})
    uneven.save_pretrained(tmp_path / "uneven")
    for name, result in (("heads", heads), ("uneven", uneven)):
        with pytest.raises(ValueError, match=r"slimrank\.from_pretrained"):
            transformers.AutoModel.from_pretrained(tmp_path / name)
        assert json.loads((tmp_path / name / "config.json").read_text()).get("intermediate_size", 64) == 64
        batch = inputs_of(model, nets)[0]
        with torch.no_grad():
            found = sr.from_pretrained(tmp_path / name)(**batch).logits
            assert torch.equal(found, result.model(**batch).logits)


@pytest.mark.slow
def test_a_loaded_model_has_the_configuration_of_its_widths(nets: ModuleType, tmp_path: Path) -> None:
    for build, keep in (
        (llama, {"self_attn.q_proj": 2, "mlp.gate_proj": 24}),
        (bert, {"intermediate.dense": 24}),
    ):
        model = build(nets)
        result = uniform(model, nets, keep)
        folder = tmp_path / type(model).__name__
        result.save_pretrained(folder)
        loaded = sr.from_pretrained(folder)
        assert loaded.config.intermediate_size == 24
        assert model.config.intermediate_size == 64
        assert all(
            module.config.intermediate_size == 24 for module in loaded.modules() if hasattr(module, "config")
        )
        # As a trainer does.
        loaded.save_pretrained(folder / "resaved")
        again = type(model).from_pretrained(folder / "resaved").eval()
        batch = inputs_of(model, nets)[0]
        with torch.no_grad():
            expected = result.model(**batch).logits
            assert torch.equal(loaded(**batch).logits, expected)
            assert torch.equal(again(**batch).logits, expected)


@pytest.mark.slow
def test_a_loaded_model_is_compressed_again(nets: ModuleType, tmp_path: Path) -> None:
    model = llama(nets)
    uniform(model, nets, {"mlp.gate_proj": 40}).save_pretrained(tmp_path / "first")
    loaded = sr.from_pretrained(tmp_path / "first")
    batches = inputs_of(model, nets)
    for previous in (None, sr.Plan.load(tmp_path / "first" / "plan.json")):
        study = sr.study(
            loaded, batches, previous=previous, data_free=True, methods=FACTORS, effort="fast", progress=False
        )
        result = study.apply(study.plan(macs=0.8))
        folder = tmp_path / ("alone" if previous is None else "both")
        result.save_pretrained(folder)
        # Of what the first step of the plan starts from.
        original = json.loads((folder / "original_config.json").read_text())
        assert original["intermediate_size"] == (40 if previous is None else 64)
        with torch.no_grad():
            found = sr.from_pretrained(folder)(**batches[0]).logits
            assert torch.equal(found, result.model(**batches[0]).logits)


def told(caplog: pytest.LogCaptureFixture) -> tuple[str, str]:
    """Level and text of what the last save said."""
    (record,) = (record for record in caplog.records if record.name == "slimrank.pretrained")
    caplog.clear()
    return record.levelname, record.getMessage()


@pytest.mark.slow
def test_saving_says_whether_transformers_alone_loads_it(
    llama_result: sr.Result, nets: ModuleType, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "slimrank.pretrained")
    llama_result.save_pretrained(tmp_path / "factors")
    level, text = told(caplog)
    assert level == "INFO"
    assert "cannot load it" in text
    model = bert(nets)
    study = sr.study(model, inputs_of(model, nets), methods=FACTORS, effort="fast", progress=False)
    study.apply(study.plan(macs=0.8, new_bias=False)).save_pretrained(tmp_path / "asked")
    level, text = told(caplog)
    assert level == "WARNING"
    assert "' is a pair of factors; plan with methods=('channel_pruning',)" in text
    uniform(model, nets, {"intermediate.dense": 40}).save_pretrained(tmp_path / "plain")
    assert told(caplog) == ("INFO", f"{tmp_path / 'plain'}: plain AutoModel.from_pretrained loads it, too")
    uniform(model, nets, {"0.intermediate.dense": 40}).save_pretrained(tmp_path / "uneven")
    level, text = told(caplog)
    assert level == "WARNING"
    assert "widths differ from layer to layer; plan with uniform_widths=True" in text
    uniform(model, nets, {"intermediate.dense": 40, "attention.self.query": 2}).save_pretrained(
        tmp_path / "heads"
    )
    level, text = told(caplog)
    assert level == "WARNING"
    assert "no field for the width of 'bert.encoder.layer.0.attention.self.query'" in text
    model = llama(nets)
    study = sr.study(model, inputs_of(model, nets), effort="fast", progress=False)
    plan = study.plan(macs=0.7, methods=("channel_pruning",), uniform_widths=True)
    study.apply(plan).save_pretrained(tmp_path / "biases")
    level, text = told(caplog)
    assert level == "WARNING"
    assert "has a new bias; plan with new_bias=False" in text


@pytest.mark.parametrize(
    "file", ["config.json", "original_config.json", "plan.json", "model.safetensors", "buffers.safetensors"]
)
def test_an_altered_directory_is_refused(file: str, llama_result: sr.Result, tmp_path: Path) -> None:
    llama_result.save_pretrained(tmp_path / "saved")
    path = tmp_path / "saved" / file
    content = bytearray(path.read_bytes())
    content[-2] ^= 1
    path.write_bytes(content)
    with pytest.raises(sr.FileError, match=f"{file} was altered after it was saved"):
        sr.from_pretrained(tmp_path / "saved")
    path.unlink()
    with pytest.raises(sr.FileError, match=rf"{file} (is missing|does not exist)"):
        sr.from_pretrained(tmp_path / "saved")


def test_a_class_that_is_not_there_is_refused(llama_result: sr.Result, tmp_path: Path) -> None:
    llama_result.save_pretrained(tmp_path / "saved")
    manifest = tmp_path / "saved" / "manifest.json"
    facts = json.loads(manifest.read_text())
    for name in ("AnotherForCausalLM", "AutoTokenizer", None):
        facts["pretrained"]["class"] = name
        manifest.write_text(json.dumps(facts))
        with pytest.raises(sr.FileError, match="has no model class"):
            sr.from_pretrained(tmp_path / "saved")


def test_a_directory_that_holds_something_is_kept(llama_result: sr.Result, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(sr.NotEmptyError):
            llama_result.save_pretrained(tmp_path / "mine", overwrite=overwrite)
    saved = tmp_path / "saved"
    llama_result.save_pretrained(saved, words())
    (saved / "notes.txt").write_text("mine")
    with pytest.raises(sr.NotEmptyError, match="overwrite=True"):
        llama_result.save_pretrained(saved)
    llama_result.save(saved, overwrite=True)
    # Nothing of the model that was there is left for others to load.
    assert {file.name for file in saved.iterdir()} == {
        "manifest.json",
        "model.safetensors",
        "notes.txt",
        "plan.json",
        "report.html",
    }
    with pytest.raises(sr.FileError, match=r"slimrank\.load"):
        sr.from_pretrained(saved)
    llama_result.save_pretrained(saved, overwrite=True)
    assert not (saved / "report.html").exists()
    sr.from_pretrained(saved)


def test_other_models_are_refused(cnn_result: sr.Result, nets: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(sr.ModelError, match=r"no model of transformers.*result\.save"):
        cnn_result.save_pretrained(tmp_path / "saved")
    with pytest.raises(sr.FileError, match="is no directory"):
        sr.from_pretrained(tmp_path / "saved")

    class Mine(transformers.LlamaForCausalLM):  # type: ignore[misc, name-defined]
        pass

    model = nets.settle(Mine(llama(nets).config)).eval()
    study = sr.study(model, inputs_of(model, nets), methods=FACTORS, effort="fast", progress=False)
    result = study.apply(study.plan(macs=0.8))
    with pytest.raises(sr.ModelError, match="a class of its own"):
        result.save_pretrained(tmp_path / "saved")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_model_that_its_configuration_does_not_build_is_refused(nets: ModuleType, tmp_path: Path) -> None:
    model = bert(nets)
    model.classifier = nets.settle(nn.Linear(32, 7))
    result = compressed(model, nets, ("weight_svd",))
    with pytest.raises(sr.ModelError, match=r"configuration builds is not the BertFor.*result\.save\(\)"):
        result.save_pretrained(tmp_path / "saved")
    assert not list(tmp_path.iterdir())


def test_tokenizers_that_cannot_be_saved_are_refused(llama_result: sr.Result, tmp_path: Path) -> None:
    with pytest.raises(sr.OptionError, match="tokenizer is a str"):
        llama_result.save_pretrained(tmp_path / "saved", "name")  # type: ignore[arg-type]

    class WithCode:
        def save_pretrained(self, save_directory: str) -> None:
            (Path(save_directory) / "tokenization_mine.py").write_text("print()")

    with pytest.raises(sr.OptionError, match=r"tokenization_mine\.py.*holds no code"):
        llama_result.save_pretrained(tmp_path / "saved", WithCode())
    assert not list(tmp_path.iterdir())


def test_generation_settings_that_transformers_refuses(
    llama_result: sr.Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = transformers.GenerationConfig(do_sample=False)
    settings.num_return_sequences = 3
    monkeypatch.setattr(llama_result.model, "generation_config", settings)
    with pytest.raises(sr.ModelError, match="generation_config"):
        llama_result.save_pretrained(tmp_path / "saved")
    assert not list(tmp_path.iterdir())


def test_without_transformers_the_error_names_the_extra(
    llama_result: sr.Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    llama_result.save_pretrained(tmp_path / "saved")
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(sr.MissingPackageError, match=r"slimrank\[hf\]"):
        llama_result.save_pretrained(tmp_path / "other")
    with pytest.raises(sr.MissingPackageError, match=r"slimrank\[hf\]"):
        sr.from_pretrained(tmp_path / "saved")
