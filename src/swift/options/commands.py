"""This file knows the commands: which groups of options each holds, and the defaults it changes."""

from swift.options.data import DataOptions
from swift.options.declare import Command, part
from swift.options.distill import DistillOptions
from swift.options.engines import LmdeployOptions, SglangOptions, VllmOptions
from swift.options.evaluation import EvaluationOptions, TrainingEvaluationOptions
from swift.options.export import ExportOptions, MergeOptions
from swift.options.general import GeneralOptions
from swift.options.generation import GenerationOptions
from swift.options.model import ModelOptions, QuantizationOptions
from swift.options.optimizers import OptimizerOptions
from swift.options.parity import ParityOptions
from swift.options.policy import PolicyOptions
from swift.options.ppo import PpoOptions
from swift.options.preference import PreferenceOptions
from swift.options.proofs import ProofOptions
from swift.options.rewards import RewardOptions
from swift.options.rollout import SamplerOptions, TurnOptions
from swift.options.sampling import SamplingOptions
from swift.options.serving import AppOptions, DeployOptions, InferOptions, WebOptions
from swift.options.template import TemplateOptions
from swift.options.tracking import TrackingOptions
from swift.options.training import TrainingOptions
from swift.options.tuner import TunerChoice, TunerOptions
from swift.options.tuner_variants import TunerVariantOptions


class Sft(Command):
    """Supervised fine-tuning: learn the replies of conversations."""

    name = "sft"
    model: ModelOptions = part()
    data: DataOptions = part()
    template: TemplateOptions = part()
    method: TunerChoice = part()
    tuner: TunerOptions = part()
    training: TrainingOptions = part()
    tracking: TrackingOptions = part()
    generation: GenerationOptions = part(max_new_tokens=64, temperature=0.0)
    evaluation: TrainingEvaluationOptions = part()
    optimizers: OptimizerOptions = part()
    variants: TunerVariantOptions = part()
    quantization: QuantizationOptions = part()
    proof: ProofOptions = part()
    general: GeneralOptions = part()


class Pt(Sft):
    """Pre-training: learn to continue plain text."""

    name = "pt"
    template: TemplateOptions = part(use_chat_template=False, loss_scale="all")


class Rlhf(Sft):
    """Learning from preferences or rewards: DPO, KTO, reward models, PPO, GRPO, GKD."""

    name = "rlhf"
    template: TemplateOptions = part(loss_scale="last_round", truncation_strategy=None)
    training: TrainingOptions = part(without={"loss_type"})
    generation: GenerationOptions = part(max_new_tokens=64, temperature=0.9)
    preference: PreferenceOptions = part()
    policy: PolicyOptions = part()
    sampler: SamplerOptions = part()
    rewards: RewardOptions = part()
    distill: DistillOptions = part()
    ppo: PpoOptions = part()
    vllm: VllmOptions = part()


class Infer(Command):
    """Replies of a model: in a dialogue, or for a whole data set."""

    name = "infer"
    model: ModelOptions = part()
    infer: InferOptions = part()
    generation: GenerationOptions = part()
    template: TemplateOptions = part()
    data: DataOptions = part()
    merge: MergeOptions = part()
    vllm: VllmOptions = part()
    sglang: SglangOptions = part()
    lmdeploy: LmdeployOptions = part()
    quantization: QuantizationOptions = part()
    method: TunerChoice = part()
    general: GeneralOptions = part()


class Deploy(Infer):
    """A model behind an OpenAI-compatible server."""

    name = "deploy"
    deploy: DeployOptions = part()


class Rollout(Command):
    """A server of completions for a policy that is being trained."""

    name = "rollout"
    model: ModelOptions = part()
    deploy: DeployOptions = part()
    turns: TurnOptions = part()
    infer: InferOptions = part()
    generation: GenerationOptions = part()
    template: TemplateOptions = part()
    data: DataOptions = part()
    merge: MergeOptions = part()
    vllm: VllmOptions = part()
    quantization: QuantizationOptions = part()
    method: TunerChoice = part()
    general: GeneralOptions = part()


class Eval(Deploy):
    """Benchmarks against a local or served model."""

    name = "eval"
    evaluation: EvaluationOptions = part()
    generation: GenerationOptions = part(temperature=0.0)


class App(Deploy):
    """A chat page over a local or served model."""

    name = "app"
    app: AppOptions = part()
    web: WebOptions = part(lang="en")


class Export(Command):
    """Merge, quantize, convert, cache or push."""

    name = "export"
    model: ModelOptions = part()
    export: ExportOptions = part()
    merge: MergeOptions = part()
    data: DataOptions = part()
    template: TemplateOptions = part()
    generation: GenerationOptions = part()
    quantization: QuantizationOptions = part(without={"quant_method"})
    method: TunerChoice = part()
    general: GeneralOptions = part()


class MergeLora(Export):
    """Merge an adapter into its model: `swift export --merge_lora true`."""

    name = "merge-lora"
    merge: MergeOptions = part(merge_lora=True)


class Parity(Command):
    """What was trained held against what answers: token ids and log-probabilities."""

    name = "parity"
    parity: ParityOptions = part()
    model: ModelOptions = part()
    data: DataOptions = part()
    template: TemplateOptions = part()
    quantization: QuantizationOptions = part()
    method: TunerChoice = part()
    general: GeneralOptions = part()


class Sample(Command):
    """Many replies per prompt, kept by reward."""

    name = "sample"
    model: ModelOptions = part()
    sampling: SamplingOptions = part()
    generation: GenerationOptions = part(temperature=1.0)
    data: DataOptions = part()
    template: TemplateOptions = part()
    vllm: VllmOptions = part()
    quantization: QuantizationOptions = part()
    method: TunerChoice = part()
    general: GeneralOptions = part()


class WebUi(Command):
    """Training, inference and evaluation from a web page."""

    name = "web-ui"
    web: WebOptions = part()
    model: ModelOptions = part()
    data: DataOptions = part()
    template: TemplateOptions = part()
    generation: GenerationOptions = part()
    quantization: QuantizationOptions = part()
    method: TunerChoice = part()
    general: GeneralOptions = part()
