"""One model per command. The command line, the YAML keys, ``--print-config`` and the reference are made of these.

Field names are unique within a command, so that a flag needs no section and a YAML file may leave it out.
"""

from ragtrain.config.commands.compress import CompressConfig
from ragtrain.config.commands.data import DATASETS, FetchConfig
from ragtrain.config.commands.gfm import (
    GfmConfig,
    GfmDataConfig,
    GfmModelConfig,
    GfmObjectiveConfig,
    GfmRankConfig,
)
from ragtrain.config.commands.index import AnnConfig, EncoderConfig, InfoConfig, PrepareConfig, SearchConfig
from ragtrain.config.commands.judge import CompareConfig, DoctorConfig, EvalConfig, RunsConfig, StatusConfig
from ragtrain.config.commands.presets import (
    ConfigCopyConfig,
    ConfigListConfig,
    ConfigShowConfig,
    ConfigValidateConfig,
)
from ragtrain.config.commands.rag import (
    RagConfig,
    RagDataConfig,
    RagModelConfig,
    RagObjectiveConfig,
    RagOptimConfig,
    RagRetrieverConfig,
)
from ragtrain.config.commands.sft import (
    SftBatchConfig,
    SftConfig,
    SftContextConfig,
    SftDataConfig,
    SftEvaluationConfig,
    SftExportConfig,
    SftModelConfig,
    SftPromptConfig,
)
from ragtrain.config.commands.store import StoreConfig
from ragtrain.config.commands.teach import RerankConfig, TeachConfig, TeacherConfig

__all__ = [
    "DATASETS",
    "AnnConfig",
    "CompareConfig",
    "CompressConfig",
    "ConfigCopyConfig",
    "ConfigListConfig",
    "ConfigShowConfig",
    "ConfigValidateConfig",
    "DoctorConfig",
    "EncoderConfig",
    "EvalConfig",
    "FetchConfig",
    "GfmConfig",
    "GfmDataConfig",
    "GfmModelConfig",
    "GfmObjectiveConfig",
    "GfmRankConfig",
    "InfoConfig",
    "PrepareConfig",
    "RagConfig",
    "RagDataConfig",
    "RagModelConfig",
    "RagObjectiveConfig",
    "RagOptimConfig",
    "RagRetrieverConfig",
    "RerankConfig",
    "RunsConfig",
    "SearchConfig",
    "SftBatchConfig",
    "SftConfig",
    "SftContextConfig",
    "SftDataConfig",
    "SftEvaluationConfig",
    "SftExportConfig",
    "SftModelConfig",
    "SftPromptConfig",
    "StatusConfig",
    "StoreConfig",
    "TeachConfig",
    "TeacherConfig",
]
