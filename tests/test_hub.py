"""Models as folders and on the Hugging Face hub: saved, loaded, described. The hub itself is a stub."""

from __future__ import annotations

import shutil

import huggingface_hub
import pytest
import torch
import yaml
from helpers import refused, run_script, run_training
from huggingface_hub import ModelCard
from safetensors.torch import save_file

import export
import hub
import manipulate
from attributes import CELEBA_ATTRIBUTES
from checkpoint import IN_FOLDER, load_checkpoint, save_model
from config import SamplingConfig
from diffusion_model import ConditionalDiffusion, load_model


def drawn(model) -> torch.Tensor:
    sampling = SamplingConfig(num_inference_steps=2)
    return model.sample(2, None, {"Smiling": 1}, sampling, torch.Generator().manual_seed(0))


def test_a_folder_gives_the_same_pictures(checkpoint, tmp_path):
    model = ConditionalDiffusion.from_pretrained(checkpoint)
    folder = tmp_path / "mine"
    model.save_pretrained(folder)
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", IN_FOLDER]
    again = [ConditionalDiffusion.from_pretrained(str(folder)), load_model(folder)]
    assert all(torch.equal(drawn(model), drawn(other)) for other in again)
    facts = {"step": 3, "validation_loss": model.facts["validation_loss"]}
    assert again[0].facts == model.facts == facts
    assert load_checkpoint(folder)["config"] == load_checkpoint(checkpoint)["config"]
    (folder / "README.md").write_text("my own words")
    model.save_pretrained(folder)
    assert (folder / "README.md").read_text() == "my own words"


def test_the_card_says_what_the_file_knows(make_model, tmp_path):
    model = make_model(CELEBA_ATTRIBUTES, prediction="v", schedule="linear")
    model.facts = {"step": 1234, "validation_loss": 0.0567}
    model.save_pretrained(tmp_path)
    card = ModelCard.load(tmp_path / "README.md")
    millions = sum(weight.numel() for weight in model.parameters()) / 1e6
    facts = (
        "| image size | 16 x 16 |",
        "| attributes | 40 |",
        f"| parameters | {millions:.2f} M |",
        "| predicts | v |",
        "| linear, 1000 timesteps",
        "| training | 1,234 steps |",
        "| validation loss | 0.0567 |",
        "non-commercial research only",
        "`Wearing_Necktie`",
        '{"Smiling": 1}',
    )
    assert not [fact for fact in facts if fact not in card.text]
    assert yaml.safe_load(card.content.split("---")[1])["license"] == "other"


def test_the_card_of_classes_names_no_celebrities(make_model, tmp_path):
    make_model(("cat", "{{dog}}"), one_hot=True, guidable=False).save_pretrained(tmp_path)
    card = (tmp_path / "README.md").read_text()
    assert '{"cat": 1}' in card and "`{{dog}}`" in card and "cfg_scale is 1" in card
    assert "CelebA" not in card and "validation loss" not in card


@pytest.mark.parametrize("weights", [None, {"weight": torch.ones(2)}], ids=["none", "others"])
def test_folders_of_other_projects_are_refused(tmp_path, weights):
    if weights:
        save_file(weights, tmp_path / IN_FOLDER)
    said = "is not a checkpoint of this project" if weights else "no checkpoint at"
    refused(lambda: ConditionalDiffusion.from_pretrained(tmp_path), str(tmp_path / IN_FOLDER), said)


def test_facts_that_are_no_numbers_are_left_out(make_model, tmp_path):
    model = make_model()
    model.facts = {"step": "x" * 99, "validation_loss": {}, "other": 1}
    save_model(model, tmp_path / "model.pth", **model.facts)
    assert load_model(tmp_path / "model.pth").facts == {}


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("no/such/folder", "no checkpoint at no/such"),
        ("user/name", "no model user/name: there is no such"),
    ],
)
def test_without_folder_and_network(name, said):
    refused(lambda: ConditionalDiffusion.from_pretrained(name, local_files_only=True), said)


def test_a_path_is_not_looked_for_on_the_hub(tmp_path, monkeypatch):
    def download(*_):
        pytest.fail("the hub was asked")

    (tmp_path / "checkpoints").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    for path in ("checkpoints/none", "other/best_model.pth", "./other", tmp_path / "none", "~/none"):
        with pytest.raises(FileNotFoundError, match="no checkpoint at"):
            load_model(path)


@pytest.mark.parametrize("name", ["user/name", "drawn64"])
def test_unknown_arguments_are_refused_and_so_is_a_revision_of_what_is_here(name, make_model, tmp_path):
    for wrong in ({"devcie": "cpu"}, {"torch_dtype": torch.float16}):
        with pytest.raises(TypeError, match=next(iter(wrong))):
            ConditionalDiffusion.from_pretrained(name, **wrong)
    with pytest.raises(TypeError, match="privat"):
        make_model().push_to_hub("user/name", privat=True)
    with pytest.raises(ValueError, match=r"drawn64 is .*, which has no revision no-such: leave it out"):
        ConditionalDiffusion.from_pretrained("drawn64", revision="no-such")


def test_to_a_stub_of_the_hub_and_back(make_model, flags, tmp_path, monkeypatch, capsys):
    revisions = []

    class Hub:
        def __init__(self, token=None):
            pass

        def create_repo(self, repo_id, **more):
            return type("Url", (), {"repo_id": repo_id})

        def upload_folder(self, repo_id, folder_path):
            shutil.copytree(folder_path, tmp_path / repo_id)
            return "url"

    def download(name, filename, revision=None):
        revisions.append(revision)
        return str(tmp_path / name / filename)

    monkeypatch.setattr(hub, "HfApi", Hub)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    model = make_model()
    assert model.push_to_hub("someone/faces") == "url"
    assert {path.name for path in (tmp_path / "someone/faces").iterdir()} == {"README.md", IN_FOLDER}
    again = ConditionalDiffusion.from_pretrained("someone/faces", revision="main")
    assert torch.equal(drawn(model), drawn(again)) and revisions == ["main"]
    options = ["--mode", "generate", "--num_samples", "1", "--num_inference_steps", "2"]
    options += ["--checkpoint", "someone/faces", "--output_dir", tmp_path / "out", "--device", "cpu"]
    run_script(manipulate, *options, "--attributes", "Smiling=1")
    assert (tmp_path / "out" / "manifest.json").is_file()
    run_training(flags, tmp_path / "run", "--max_steps", "1", "--init_from", "someone/faces")
    assert "starts from someone/faces: " in capsys.readouterr().out


def test_the_command_line_writes_such_a_folder(checkpoint, tmp_path):
    run_script(export, "--checkpoint", checkpoint, "--out", tmp_path / "folder", "--half")
    assert "3 steps" in (tmp_path / "folder" / "README.md").read_text()
    half, whole = (load_model(path).state_dict() for path in (tmp_path / "folder", checkpoint))
    assert all(torch.equal(half[name], weight.half().to(weight)) for name, weight in whole.items())
