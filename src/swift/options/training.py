"""This file knows the options of training: steps, batches, the optimizer, evaluation, saving and packing."""

from typing import Annotated, Literal

from pydantic import AfterValidator, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from swift.options.conditions import absent, command, equals, given
from swift.options.declare import Fraction, Json, JsonOrName, Options, Unfit, option
from swift.options.model import MULTIMODAL

SAVES = equals("save_strategy", "steps", "epoch")
EVALUATES = equals("eval_strategy", "steps", "epoch")
HAS_WORKERS = given("dataloader_num_workers")
RESUMES = given("resume_from_checkpoint")
SUPERVISED = command("pt", "sft") & equals("task_type", "causal_lm")


def _steps(value: float) -> float:
    if value >= 1 and value != int(value):
        raise Unfit(
            "must be a whole number of steps, or a share of all steps below 1", "必须为整数步数，或小于 1 的步数比例"
        )
    return int(value) if value >= 1 else value


def _max_steps(value: int) -> int:
    if value == -1 or value > 0:
        return value
    raise Unfit(
        "must be a number of steps, or -1 for as many as --num_train_epochs asks for",
        "必须为步数，或 -1（由 --num_train_epochs 决定）",
    )


Steps = Annotated[PositiveFloat, AfterValidator(_steps)]
"""A number of optimizer steps, or below 1 a share of all of them."""


class TrainingOptions(Options):
    """Steps, batches, the optimizer, evaluation and saving."""

    output_dir: str | None = option(None, important=True, rule="output/<model_name>")
    """Folder of the run: checkpoints, logs and curves."""
    gradient_checkpointing: bool = option(True, important=True)
    """Whether activations are computed again in the backward pass instead of kept: much less memory, some more time."""
    vit_gradient_checkpointing: bool | None = option(
        None, important=True, rule="follows gradient_checkpointing", later=MULTIMODAL
    )
    """Gradient checkpointing of the vision and audio towers of a multimodal model."""
    deepspeed: JsonOrName | None = option(None, important=True)
    """Configuration of DeepSpeed: zero0, zero1, zero2, zero3, zero2_offload, zero3_offload, JSON text or a JSON file."""
    zero_hpz_partition_size: PositiveInt | None = option(None, when=given("deepspeed"))
    """ZeRO++: number of processes over which weights are sharded, usually those of one node. If gradients become NaN,
    try `--torch_dtype float16`."""
    deepspeed_autotp_size: PositiveInt = option(1, when=given("deepspeed"))
    """Degree of DeepSpeed's automatic tensor parallelism, for full training with zero0, zero1 or zero2."""
    fsdp: JsonOrName | None = option(None, important=True)
    """Configuration of PyTorch's fully sharded data parallelism: fsdp2, JSON text or a JSON file. Instead of
    `--deepspeed`."""
    per_device_train_batch_size: PositiveInt = option(1, important=True)
    """Rows per process and forward pass in training; with GRPO, completions."""
    per_device_eval_batch_size: PositiveInt = option(1, important=True)
    """Rows per process and forward pass in evaluation; with GRPO, completions."""
    gradient_accumulation_steps: PositiveInt | None = option(
        None, important=True, rule="smallest that makes total batch >= 16; 1 for grpo"
    )
    """Forward passes per optimizer step. The total batch is per_device_train_batch_size times this times the number
    of processes."""
    weight_decay: NonNegativeFloat = 0.1
    """Weight decay of the optimizer; biases and norms are spared."""
    adam_beta1: Fraction = 0.9
    """Decay of Adam's average of gradients."""
    adam_beta2: Fraction = 0.95
    """Decay of Adam's average of squared gradients."""
    learning_rate: PositiveFloat | None = option(None, important=True, rule="1e-5 for full, 1e-4 for tuners")
    """Highest learning rate. For a floor use `--lr_scheduler_type cosine_with_min_lr --lr_scheduler_kwargs
    '{"min_lr": 1e-6}'`."""
    vit_lr: PositiveFloat | None = option(None, important=True, later=MULTIMODAL)
    """Learning rate of the vision and audio towers; learning_rate when not given."""
    aligner_lr: PositiveFloat | None = option(None, important=True, later=MULTIMODAL)
    """Learning rate of the aligner of a multimodal model; learning_rate when not given."""
    lr_scheduler_type: str = "cosine"
    """How the learning rate goes over the steps: linear, cosine, constant, constant_with_warmup, polynomial,
    cosine_with_min_lr, warmup_stable_decay, ... as transformers names them."""
    lr_scheduler_kwargs: Json | None = None
    """Further arguments of the scheduler."""
    gradient_checkpointing_kwargs: Json | None = option(None, when=given("gradient_checkpointing"))
    """Arguments of torch.utils.checkpoint, e.g. `'{"use_reentrant": false}'`."""
    full_determinism: bool = False
    """Whether only deterministic operations are used, so that a run can be repeated exactly; slower."""
    logging_first_step: bool = True
    """Whether the first step is logged."""
    logging_steps: Steps = 5
    """Steps between two log entries; below 1 a share of all steps."""
    router_aux_loss_coef: NonNegativeFloat = option(0.0, when=equals("task_type", "causal_lm"))
    """Weight of the loss that balances the experts of a mixture-of-experts model; 0 leaves it out."""
    enable_dft_loss: bool = option(False, when=SUPERVISED)
    """Whether the loss of a token is weighted by its own probability (Dynamic Fine-Tuning, arXiv 2508.05629)."""
    enable_channel_loss: bool = option(False, when=SUPERVISED)
    """Whether the loss is also logged for each value of the data set's column `channel`; `None` stands for rows
    without one."""
    predict_with_generate: bool = option(False, important=True, when=command("pt", "sft") & EVALUATES)
    """Whether evaluation generates replies and compares them with the reference, instead of measuring the loss."""
    metric_for_best_model: str | None = option(
        None, rule="loss; rouge-l with predict_with_generate; reward for grpo; none for ppo"
    )
    """Metric by which checkpoints are compared."""
    greater_is_better: bool | None = option(None, rule="false when the metric name contains loss, else true")
    """Whether a larger metric_for_best_model is better."""
    max_epochs: PositiveInt | None = None
    """Epoch after which training ends, with a last evaluation and checkpoint; for streamed data, whose length is
    unknown."""
    num_train_epochs: PositiveFloat = option(3.0, important=True, when=equals("max_steps", -1))
    """How many times the training data is gone through."""
    save_strategy: Literal["no", "steps", "epoch"] = option("steps", important=True)
    """When checkpoints are saved: never, every `--save_steps`, or after every epoch."""
    save_steps: Steps = option(500, important=True, when=equals("save_strategy", "steps"))
    """Steps between two checkpoints; below 1 a share of all steps."""
    eval_strategy: Literal["no", "steps", "epoch"] | None = option(
        None, important=True, rule="follows save_strategy; no when there is nothing to evaluate on"
    )
    """When the model is evaluated: never, every `--eval_steps`, or after every epoch."""
    eval_steps: Steps | None = option(
        None, important=True, when=equals("eval_strategy", "steps"), rule="follows save_steps"
    )
    """Steps between two evaluations; below 1 a share of all steps."""
    eval_on_start: bool = option(False, when=EVALUATES)
    """Whether the model is evaluated once before training, which also proves that evaluation works."""
    save_total_limit: PositiveInt | None = option(None, important=True, when=SAVES)
    """Most checkpoints that are kept; older ones are deleted, never the best or the last. All are kept when not
    given."""
    max_steps: Annotated[int, AfterValidator(_max_steps)] = -1
    """Number of optimizer steps; -1 leaves it to `--num_train_epochs`. Needed with `--streaming`."""
    warmup_ratio: Fraction = option(0.0, important=True)
    """Share of all steps in which the learning rate rises from 0."""
    save_on_each_node: bool = option(False, when=SAVES)
    """Whether every node saves checkpoints, for clusters without a shared folder."""
    save_only_model: bool = option(False, when=SAVES)
    """Whether checkpoints hold the weights alone, without what is needed to resume."""
    resume_from_checkpoint: str | None = option(None, important=True)
    """Checkpoint to continue from: weights, optimizer, random numbers, step and place in the data. Of the folder of a
    run, or of several runs, the newest good one is taken. Keep the other options as they were."""
    resume_only_model: bool = option(False, when=RESUMES)
    """Whether only weights are taken from the checkpoint, not optimizer and random numbers. Trained data is still
    skipped unless `--ignore_data_skip true`."""
    ignore_data_skip: bool = option(False, when=RESUMES & given("resume_only_model"))
    """Whether a training that takes only weights from its checkpoint begins again at step 0 and the first row."""
    ddp_find_unused_parameters: bool | None = option(None, important=True)
    """Whether data parallelism looks for parameters that had no part in a forward pass; torch's own choice when not
    given."""
    dataloader_num_workers: NonNegativeInt | None = option(None, important=True, rule="0 on Windows, else 1")
    """Processes that prepare batches beside each training process."""
    dataloader_pin_memory: bool = True
    """Whether batches are put into pinned memory, for faster copies to the GPU."""
    dataloader_persistent_workers: bool = option(False, when=HAS_WORKERS)
    """Whether the workers live on between epochs."""
    dataloader_prefetch_factor: PositiveInt | None = option(
        None, when=HAS_WORKERS, rule="2 when dataloader_num_workers > 0"
    )
    """Batches each worker prepares ahead."""
    train_dataloader_shuffle: bool = option(True, when=absent("streaming"))
    """Whether each epoch of pt and sft sees the rows in a new order. Streams are read in order."""
    optim: str | None = option(None, rule="adamw_torch_fused for torch>=2.8, else adamw_torch")
    """Name of the optimizer, as transformers knows it."""
    optim_args: str | None = None
    """Further arguments of the optimizer, `name=value,name=value`; each optimizer says which it takes."""
    group_by_length: bool = option(False, when=absent("packing"))
    """Whether rows of like length come together in a batch, with some chance, which saves padding and balances
    processes."""
    neftune_noise_alpha: NonNegativeFloat = option(0.0, important=True)
    """Strength of the noise on input embeddings (NEFTune); 0 is none, 5, 10 and 15 are usual."""
    use_liger_kernel: bool = option(False, important=True)
    """Whether Liger's kernels for norms, rotary embeddings and feed-forward layers save memory and time on a GPU. The
    loss is computed without all logits in any case. Only for causal_lm, and not with `--device_map`."""
    average_tokens_across_devices: bool = False
    """Whether the loss is averaged over the tokens of all processes together instead of in each process."""
    max_grad_norm: NonNegativeFloat = 1.0
    """Norm to which gradients are clipped; 0 does not clip. The logged grad_norm is that before clipping."""
    push_to_hub: bool = option(False, when=SAVES)
    """Whether each checkpoint is pushed to the hub while training goes on, without what only resuming needs."""
    hub_model_id: str | None = option(None, when=given("push_to_hub"))
    """Id of the repository on the hub."""
    hub_private_repo: bool = option(False, when=given("push_to_hub"))
    """Whether the repository on the hub is private."""
    add_version: bool = True
    """Whether each run gets a folder `v<number>-<time>` inside output_dir, so that nothing is overwritten."""
    check_model: bool = True
    """Whether the files of a local model are checked for damage before they are loaded."""
    create_checkpoint_symlink: bool = option(False, important=True, when=SAVES)
    """Whether `best` and `last` in the run's folder link to these checkpoints, for use in scripts."""
    packing: bool = option(False, important=True)
    """Whether rows are packed whole into sequences of about packing_length tokens, laid end to end without seeing
    each other. Balances processes and keeps memory steady; there are fewer rows, so look at accumulation and learning
    rate again."""
    packing_length: PositiveInt | None = option(None, when=given("packing"), rule="max_length")
    """Tokens of a packed sequence."""
    packing_num_proc: PositiveInt = option(1, when=given("packing") & absent("streaming"))
    """Processes that pack. Their number changes which rows come together."""
    lazy_tokenize: bool | None = option(None, rule="false for text models, true for multimodal")
    """Whether rows are tokenized (and images read) when they are needed, instead of all before training."""
    use_logits_to_keep: bool | None = option(None, rule="chosen automatically")
    """Whether logits are computed only where a token is learnt, which saves memory and time."""
    acc_strategy: Literal["seq", "token"] = "token"
    """What the logged accuracy counts: tokens, or whole sequences."""
    optimizer: str | None = option(None, rule="lorap with lorap_lr_ratio, galore with use_galore")
    """Name of a registered optimizer, which goes before `--optim`: muon, muonclip, lorap, galore, or one of your own
    (`--external_plugins`)."""
    loss_type: str | None = option(None, rule="cosine_similarity for embedding, pointwise_reranker for rerankers")
    """Name of a registered loss. For causal_lm: cross_entropy, or one that `--external_plugins` adds; without it,
    cross-entropy of the learnt tokens with everything the other options say."""
    eval_metric: str | None = option(
        None,
        rule="nlg for causal_lm with predict_with_generate; infonce or paired for embedding by loss_type; "
        "reranker for rerankers",
    )
    """Metric that evaluation reports beside the loss: acc, paired, infonce, reranker, or one that a plugin registers in
    eval_metrics_map."""
    callbacks: list[str] = option([])
    """Names of registered trainer callbacks: early_stop, graceful_exit, perf_log, or some of your own
    (`--external_plugins`)."""
    early_stop_interval: PositiveInt | None = option(None, when=SAVES & EVALUATES)
    """Training ends when the best metric has not improved over this many checkpoints. Set eval_steps and save_steps
    alike."""
    use_flash_ckpt: bool = option(False, when=SAVES)
    """Whether checkpoints are copied to memory and written to disk while training goes on, and a run that was killed is
    gone on with when its command is given again."""
