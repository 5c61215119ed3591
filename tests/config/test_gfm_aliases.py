"""GFM-RAG's two YAML files as its guide prints them: their values where they belong, their odd nesting understood."""

from __future__ import annotations

import datetime
import textwrap
from pathlib import Path

import pytest

from ragtrain.config.commands import GfmConfig
from ragtrain.config.load import load_config
from ragtrain.errors import ConfigError

MODEL = """
model:
    _target_: gfmrag.models.{network}
    entity_model:
        _target_: gfmrag.ultra.models.{entities}
        input_dim: 512
        hidden_dims: [512, 512, 512, 512, 512, 512]
        message_func: distmult
        aggregate_func: sum
        short_cut: yes
        layer_norm: yes
"""
DATASETS = """
seed: 1024

datasets:
    _target_: gfmrag.datasets.{dataset}
    cfgs:
        root: ./data # data root directory
        force_rebuild: False
        text_emb_model_cfgs: ${{text_emb_model}}
    train_names:
        - hotpotqa
    valid_names: {valid}
"""
PRETRAIN = (
    """
hydra:
    run:
        dir: outputs/kg_pretrain/${now:%Y-%m-%d}/${now:%H-%M-%S}

defaults:
    - _self_
    - text_emb_model: mpnet
"""
    + DATASETS.format(dataset="KGDataset", valid="[]")
    + MODEL.format(network="QueryGNN", entities="EntityNBFNet")
    + """
task:
    num_negative: 256
    strict_negative: yes
    adversarial_temperature: 1
    metric: [mr, mrr, hits@1, hits@3, hits@10]

    optimizer:
    _target_: torch.optim.AdamW
    lr: 5.0e-4

train:
    batch_size: 8
    num_epoch: 10
    log_interval: 100
    fast_test: 500
    save_best_only: no
    save_pretrained: no
    batch_per_epoch: null
    timeout: 60

checkpoint: null
"""
)
FINETUNE = (
    """
hydra:
    run:
        dir: outputs/qa_finetune/${now:%Y-%m-%d}/${now:%H-%M-%S}

    defaults:
        - _self_
        - doc_ranker: idf_topk_ranker
        - text_emb_model: mpnet
"""
    + DATASETS.format(dataset="QADataset", valid="[hotpotqa_test, musique_test, 2wikimultihopqa_test]")
    + MODEL.format(network="GNNRetriever", entities="QueryNBFNet")
    + """
task:
    strict_negative: yes
    metric: [mrr, hits@1, hits@2, hits@100]
    losses:
        - name: ent_bce_loss
          loss:
            _target_: gfmrag.losses.BCELoss
            adversarial_temperature: 0.2
          cfg:
            weight: 0.3
            is_doc_loss: False
        - name: ent_pcr_loss
          loss:
            _target_: gfmrag.losses.ListCELoss
          cfg:
            weight: 0.7
            is_doc_loss: False

optimizer:
    _target_: torch.optim.AdamW
    lr: 5.0e-4

train:
    batch_size: 8
    num_epoch: 20
    log_interval: 100
    batch_per_epoch: null
    save_best_only: yes
    save_pretrained: yes
    do_eval: yes
    timeout: 60
    init_entities_weight: True

    checkpoint: null
"""
)


def resolved(tmp_path: Path, text: str, *words: str) -> GfmConfig:
    file = tmp_path / "given.yaml"
    file.write_text(textwrap.dedent(text))
    return load_config(GfmConfig, [file], words).config


def test_the_pretraining_file_as_it_is_printed(tmp_path: Path) -> None:
    config = resolved(tmp_path, PRETRAIN)
    assert config.data.stage == "pretrain"
    assert config.data.graphs == (Path("./data/hotpotqa"),)
    assert config.data.val_graphs == ()
    assert (config.model.hidden_dim, config.model.num_layers) == (512, 6)
    assert (config.model.message, config.model.aggregate) == ("distmult", "sum")
    assert (config.model.short_cut, config.model.layer_norm) == (True, True)
    assert config.model.text_encoder == "sentence-transformers/all-mpnet-base-v2"
    assert config.model.model_dir is None
    assert config.objective.num_negatives == 256
    assert config.objective.adversarial_temperature == 1
    assert config.optim.learning_rate == 5e-4
    assert (config.loop.seed, config.loop.batch_size, config.loop.num_epochs) == (1024, 8, 10)
    assert (config.loop.logging_steps, config.data.max_val_samples) == (100, 500)
    today = datetime.datetime.now().astimezone().date()
    assert config.run.output_dir.parts[:3] in {
        ("outputs", "kg_pretrain", day.isoformat()) for day in (today, today - datetime.timedelta(days=1))
    }


def test_the_finetuning_file_as_it_is_printed(tmp_path: Path) -> None:
    config = resolved(tmp_path, FINETUNE)
    assert config.data.stage == "finetune"
    assert [path.name for path in config.data.val_graphs] == ["hotpotqa_test", "musique_test", "2wikimultihopqa_test"]
    assert config.ranking.ranker == "idf_topk"
    objective = config.objective
    assert (objective.bce_weight, objective.list_weight, objective.document_weight) == (0.3, 0.7, 0)
    assert objective.adversarial_temperature == 0.2
    assert config.model.init_entity_weights
    assert config.run.output_dir.parts[:2] == ("outputs", "qa_finetune")
    assert config.loop.num_epochs == 20


def test_words_win_over_the_file(tmp_path: Path) -> None:
    config = resolved(
        tmp_path, PRETRAIN, "datasets.train_names=[a,b]", "model.entity_model.hidden_dims=[32,32]", "train.batch_size=2",
        "task.num_negative=16", "output_dir=here", "text_emb_model=minilm", "checkpoint=runs/before",
    )  # fmt: skip
    assert config.data.graphs == (Path("a"), Path("b"))
    assert (config.model.hidden_dim, config.model.num_layers) == (32, 2)
    assert (config.loop.batch_size, config.objective.num_negatives) == (2, 16)
    assert config.run.output_dir == Path("here")
    assert config.model.text_encoder == "sentence-transformers/all-MiniLM-L6-v2"
    assert config.model.model_dir == "runs/before"


def test_a_root_beside_the_file_is_explained(tmp_path: Path) -> None:
    assert resolved(tmp_path, PRETRAIN.replace("root: ./data", "root: ../sets")).data.graphs == (
        Path("../sets/hotpotqa"),
    )
    with pytest.raises(ConfigError, match="name whole folders, as --graphs other/NAME"):
        resolved(tmp_path, PRETRAIN, "datasets.cfgs.root=other")


def test_a_loss_of_documents(tmp_path: Path) -> None:
    text = FINETUNE.replace("weight: 0.7\n            is_doc_loss: False", "weight: 0.7\n            is_doc_loss: True")
    objective = resolved(tmp_path, text).objective
    assert (objective.bce_weight, objective.list_weight, objective.document_weight) == (0.3, 0, 0.7)


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("gfmrag.models.QueryGNN", "os.system", "builds nothing by its name"),
        ("torch.optim.AdamW", "torch.optim.SGD", "builds nothing by its name"),
        ("[512, 512, 512, 512, 512, 512]", "[512, 256]", "one width for all layers"),
        ("${text_emb_model}", "${nothing.here}", "is no key of this file"),
        ("num_negative", "num_negativ", "unknown"),
        ("aggregate_func: sum", "aggregate_func: median", "one of"),
    ],
)
def test_what_cannot_be_had_is_refused_with_its_line(before: str, after: str, said: str, tmp_path: Path) -> None:
    text = PRETRAIN.replace(before, after, 1)
    with pytest.raises(ConfigError, match=said) as error:
        resolved(tmp_path, text)
    line = next(number for number, row in enumerate(text.splitlines(), 1) if after in row)
    assert f"given.yaml:{line}" in error.value.message


def test_a_loss_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no loss 'gfmrag"):
        resolved(tmp_path, FINETUNE.replace("gfmrag.losses.ListCELoss", "gfmrag.losses.MSELoss"))


def test_our_own_files_are_left_as_they_are(tmp_path: Path) -> None:
    config = resolved(tmp_path, "data:\n  stage: finetune\nmodel:\n  hidden_dim: 64\n  message: transe\n")
    assert (config.data.stage, config.model.hidden_dim, config.model.message) == ("finetune", 64, "transe")
