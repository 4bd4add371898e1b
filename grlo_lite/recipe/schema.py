"""What a run is: frozen pydantic models. Imports no torch.

A recipe is a YAML file that holds only what differs from the defaults below. Every mistake in one ends as a `BadInput`
that names the key, its value and how to mend it.
"""

from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, field_validator, model_validator

from grlo_lite.wording import cut


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, protected_namespaces=())


Positive = Annotated[int, Field(ge=1)]


PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]


NonNegativeFloat = Annotated[float, Field(ge=0, allow_inf_nan=False)]


Fraction = Annotated[float, Field(ge=0, le=1)]


Quantization = Literal["nf4", "none"]


class Pretrained(Section):
    """A model by its name: a directory, a model of the Hugging Face Hub, or `microcosm`; its commit and precision."""

    name: str
    revision: str = "main"
    quantization: Quantization = "nf4"


class Model(Pretrained):
    """The base model that is trained, by the adapter on it.

    eos_token: ends an answer in place of the tokenizer's own EOS, beside the template's end of turn.
    adapter: a run, or an adapter's folder, that training goes on from with a fresh optimizer; `microcosm` is the
    shipped run's.
    """

    eos_token: str | None = None
    adapter: str | None = None


class Lora(Section):
    """The adapter: its rank, its scale (`alpha / rank`) and the linear layers it is put on.

    train_stop_tokens: also train the stop tokens' own rows of the embedding and the output layer, for a base model
    that has never seen them. They go with the adapter; vLLM and Unsloth take no such adapter.
    """

    rank: Positive = 32
    alpha: Positive = 64
    targets: Literal["all-linear"] | tuple[str, ...] = "all-linear"
    train_stop_tokens: bool = False


class DataSet(Section):
    """Rows from outside: a file, or a data set of the Hugging Face Hub with its subset, split, column and revision."""

    source: str
    subset: str | None = None
    split: str | None = None  # of a Hub data set: train for prompts, test for questions
    column: str | None = None
    revision: str | None = None


class Part(DataSet):
    """One source of a mixture: its share (`weight`), or its `count` of prompts; with neither, all it has. `answer` is
    the column of the right answers, where they stand in none that is known.
    """

    answer: str | None = None

    weight: PositiveFloat | None = None
    count: Positive | None = None


def _text_or_list(value: Any) -> str:
    return "list" if isinstance(value, list | tuple) else "text"


def _text_or_set(value: Any) -> str:
    return "set" if isinstance(value, dict | DataSet) else "text"


Text = Annotated[str, Tag("text")]
Sources = Annotated[Text | Annotated[tuple[Part, ...], Tag("list")], Discriminator(_text_or_list)]
Questions = Annotated[Text | Annotated[DataSet, Tag("set")], Discriminator(_text_or_set)]


class Decontaminate(Section):
    """Which prompts count as a benchmark's: those that share `ngram` words in a row with a question, or whose letters
    are as alike as `similarity` (Jaccard). `against` names the questions: files, folders of files, Hub data sets.
    """

    enabled: bool = True
    against: tuple[Questions, ...] = ()
    ngram: Annotated[int, Field(ge=4)] = 8
    similarity: Annotated[float, Field(gt=0, le=1)] = 0.8

    @model_validator(mode="before")
    @classmethod
    def on_or_off(cls, value: Any) -> Any:
        return {"enabled": value} if isinstance(value, bool) else value


class Prompts(DataSet):
    """Where the prompts come from and what is left out: `microcosm`, `grlo-1k`, a file, a Hub data set, or a list of
    such sources, mixed. `request` is put behind each prompt, such as how its answer is to be given.
    """

    source: Sources  # pyright: ignore[reportIncompatibleVariableOverride] (a data set's, or several)
    answer: str | None = None
    request: str | None = None
    limit: Positive | None = None
    max_tokens: Positive = 1024
    overlong: Literal["drop", "truncate"] = "drop"  # truncate keeps the template and the end of the last message
    near_duplicates: Annotated[float, Field(gt=0, le=1)] | None = 0.8  # Jaccard similarity; null keeps them
    language: Annotated[str, Field(pattern="^[a-z]{2}$")] | None = None
    decontaminate: Decontaminate = Decontaminate()

    @model_validator(mode="after")
    def a_list_says_it_in_its_items(self):
        if isinstance(self.source, str):
            return self
        if not self.source:
            raise ValueError("prompts.source is an empty list; name at least one source")
        for key in ("subset", "split", "column", "answer", "revision"):
            if (value := getattr(self, key)) is not None:
                raise ValueError(f"prompts.{key}={cut(value)} beside a list of sources; write it into the list's items")
        weighted = [part for part in self.source if part.weight]
        if any(part.count for part in weighted) or len(weighted) not in (0, len(self.source)):
            raise ValueError("prompts.source mixes weight and count; give every item a weight, or none")
        return self

    def parts(self) -> tuple[Part, ...]:
        """The sources, one or many."""
        if not isinstance(self.source, str):
            return self.source
        return (Part(**self.model_dump(include={*DataSet.model_fields, "answer"})),)


class Rollout(Section):
    """How completions are sampled. `batch` counts completions a step and is a multiple of `group_size`.

    engine: `generate` is Transformers' (or Unsloth's) own; `compact` is the kit's (grlo_lite/generation); `folded` is
    `compact` with a dense copy of the weights for the length of a rollout; `fast_inference` is the vLLM inside Unsloth;
    `vllm` is a vLLM of the kit's on the policy's own base (docs/vllm.md). `rows_at_once` bounds the completions that
    `compact`, `folded` and `vllm` decode together; `auto` goes by the free memory. `vllm_weights`: `adapter` puts the
    adapter beside the base, `folded` writes their sum into vLLM's weights at every step.
    """

    group_size: Positive = 8
    batch: Positive = 64
    max_tokens: Positive = 1024
    temperature: PositiveFloat = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    engine: Literal["auto", "generate", "compact", "folded", "fast_inference", "vllm"] = "auto"
    rows_at_once: Positive | Literal["auto"] = "auto"
    vllm_memory: Annotated[float, Field(gt=0, lt=1)] = 0.5  # fast_inference: of the GPU; vllm: of free memory, at most
    vllm_weights: Literal["adapter", "folded"] = "adapter"

    @model_validator(mode="after")
    def rows_at_once_needs_the_kits_engine(self):
        if self.rows_at_once != "auto" and self.engine in ("generate", "fast_inference"):
            raise ValueError(
                f"rollout.rows_at_once={self.rows_at_once} has no meaning with rollout.engine={self.engine}; "
                "choose compact, folded or vllm, or leave it out"
            )
        return self


class Truncated(Section):
    """What a completion that hit `rollout.max_tokens` earns; without this it would be scored as if it were finished.

    ordered: the batch's truncated completions are moved down together until the best of them lies `value` below the
    lowest finished one, so that they keep their order and there is something to learn while nothing ends; penalty: the
    batch's lowest raw score less `value`, the same for all; floor: `value` itself; score: its raw score less `value`;
    mask: nothing, it is left out of the loss and of its group's baseline.
    """

    mode: Literal["ordered", "penalty", "floor", "score", "mask"] = "ordered"
    value: Annotated[float, Field(allow_inf_nan=False)] = 1.0


class Judge(Pretrained):
    """One more reward model, whose raw score counts `weight` times."""

    weight: Annotated[float, Field(allow_inf_nan=False)] = 1.0


class PythonReward(Section):
    """A reward function of one's own, whose reward counts `weight` times: `FILE.py:FUNCTION` or
    `package.module:FUNCTION`, with TRL's signature.
    """

    function: str
    weight: Annotated[float, Field(allow_inf_nan=False)] = 1.0

    @model_validator(mode="before")
    @classmethod
    def a_name_alone(cls, value: Any) -> Any:
        return {"function": value} if isinstance(value, str) else value


class VerifiableReward(Section):
    """Right (1) or wrong (0) by the grader that evaluation uses, `weight` times. `microcosm` grades any of its domains,
    `microcosm-DOMAIN` that domain's questions alone.
    """

    grader: Literal[
        "mathematics",
        "choice",
        "code",
        "microcosm",
        "microcosm-arithmetic",
        "microcosm-ordering",
        "microcosm-spelling",
        "microcosm-code",
        "reasoning-gym",
    ]
    weight: Annotated[float, Field(allow_inf_nan=False)] = 1.0

    @model_validator(mode="before")
    @classmethod
    def a_name_alone(cls, value: Any) -> Any:
        return {"grader": value} if isinstance(value, str) else value


class Heldout(Section):
    """A reward model that is never optimized. Every `every` steps it scores the policy's answers to a fixed set of
    prompts.
    """

    name: str | None = None
    revision: str = "main"
    quantization: Quantization = "nf4"
    every: Positive = 10
    prompts: Annotated[int, Field(ge=2)] = 32


class Reward(Pretrained):
    """What earns a reward, a reward model (`name`), Python functions or graders, one of them or several added up, and
    how that is shaped. `shuffle` permutes the rewards: a control that must not learn.
    """

    name: str | None = None  # pyright: ignore[reportIncompatibleVariableOverride] (there may be other sources)
    models: tuple[Judge, ...] = ()  # further judges; the score is the main model's plus theirs, each times its weight
    python: tuple[PythonReward, ...] = ()  # functions whose rewards are added, each times its weight
    python_seconds: PositiveFloat = 60.0  # that a function may take for a batch
    verifiable: tuple[VerifiableReward, ...] = ()  # the first that can grade a prompt's answers does
    code_seconds: PositiveFloat = 1.5  # that an answer's program may run, under `verifiable: code`
    heldout: Heldout = Heldout()
    max_tokens: Positive = 4096
    tokens_per_batch: Positive | Literal["auto"] = "auto"
    truncated: Truncated = Truncated()
    length_penalty: NonNegativeFloat = 0.0  # reward units for each 1,000 completion tokens beyond length_free
    length_free: Annotated[int, Field(ge=0)] = 0
    repetition_penalty: NonNegativeFloat = 0.0  # reward units for a completion that consists of repeated 4-grams alone
    clip: PositiveFloat | None = None  # rewards are cut to ± this, last of all
    shuffle: bool = False

    @field_validator("python", "verifiable", mode="before")
    @classmethod
    def one_is_a_list_of_one(cls, value: Any) -> Any:
        return [value] if isinstance(value, str | dict) else value

    @property
    def judges(self) -> tuple[Judge, ...]:
        """Every reward model that is optimized, the main one first; none where other sources alone are named."""
        if self.name is None:
            return self.models
        return (Judge(name=self.name, revision=self.revision, quantization=self.quantization), *self.models)

    @property
    def needs_columns(self) -> bool:
        """Whether a prompt's answer, or what else its row holds, is asked for."""
        return bool(self.python or self.verifiable)

    @property
    def said(self) -> str:
        """The sources by name, for people: `microcosm + verifiable mathematics`."""
        graders = ", ".join(one.grader for one in self.verifiable)
        parts = [*(judge.name for judge in self.judges), *(one.function for one in self.python)]
        return " + ".join([*parts, *([f"verifiable {graders}"] if graders else [])])

    @model_validator(mode="after")
    def sources_have_names_of_their_own(self):
        names = [judge.name for judge in self.judges]
        if len(set(names)) < len(names):
            raise ValueError(
                f"reward.name and reward.models name a model twice ({cut(', '.join(names))}); use its weight instead"
            )
        for key, others in (
            ("python", [one.function for one in self.python]),
            ("verifiable", [one.grader for one in self.verifiable]),
        ):
            if len(set(others)) < len(others):
                raise ValueError(f"reward.{key} names one twice ({cut(', '.join(others))}); use its weight instead")
        if not (names or self.needs_columns):
            raise ValueError(
                "reward names no source; give reward.name=… (a reward model), reward.python=FILE.py:FUNCTION or "
                "reward.verifiable=…"
            )
        if self.heldout.name in names:
            raise ValueError(
                f"reward.heldout.name={cut(self.heldout.name)} is optimized; a held-out judge must be another model"
            )
        return self


class Critic(Section):
    """PPO's estimate of the reward that an unfinished answer will earn.

    kind: `adapter` is a second LoRA adapter on the policy's own base with a value head; `head` is the value head alone,
    on the base's states, cheaper and weaker. Of each rollout it makes `updates_per_rollout` updates before the policy
    makes its own; in the first `warmup_rollouts` it alone learns. `clip` bounds how far its loss lets a value move from
    the rollout's own, in standard deviations of the rollout's returns; null lets it go. `save` keeps it in the run's
    folder `critic/`.
    """

    kind: Literal["adapter", "head"] = "adapter"
    learning_rate: PositiveFloat | Literal["auto"] = "auto"  # three times optimizer.learning_rate
    rank: Positive | Literal["auto"] = "auto"  # lora.rank
    updates_per_rollout: Positive | Literal["auto"] = "auto"  # algorithm.updates_per_rollout
    warmup_rollouts: Annotated[int, Field(ge=0)] = 0
    clip: PositiveFloat | None = 0.5
    save: bool = False


class Algorithm(Section):
    """The policy-gradient method.

    `loss: auto` is `dr_grpo` for GRPO and `dapo`, the mean over tokens, for PPO; RLOO has a sequence-level loss of its
    own. `gamma` and `gae_lambda` are PPO's discount and the decay of its generalized advantage estimate; under PPO `kl`
    is a penalty of each token's reward.
    """

    name: Literal["grpo", "rloo", "ppo"] = "grpo"
    loss: Literal["auto", "dr_grpo", "dapo", "bnpo", "grpo"] = "auto"
    scale_rewards: Literal["none", "batch", "group"] = "none"
    kl: NonNegativeFloat = 0.0
    clip: PositiveFloat = 0.2
    updates_per_rollout: Positive = 1
    gamma: Annotated[float, Field(gt=0, le=1)] = 1.0
    gae_lambda: Fraction = 1.0
    critic: Critic = Critic()

    @model_validator(mode="after")
    def keys_are_the_algorithms_own(self):
        if self.name == "rloo" and self.loss != "auto":
            raise ValueError(f"algorithm.loss={self.loss} has no meaning with algorithm.name=rloo; leave it out")
        if self.name == "rloo" and self.scale_rewards == "group":
            raise ValueError(
                "algorithm.scale_rewards=group has no meaning with algorithm.name=rloo; choose none or batch"
            )
        if self.name == "ppo" and self.scale_rewards != "none":
            raise ValueError(
                f"algorithm.scale_rewards={self.scale_rewards} has no meaning with algorithm.name=ppo, whose "
                "advantages are whitened; leave it out"
            )
        if self.name != "ppo":
            for key, given, default in (
                ("gamma", self.gamma, 1.0),
                ("gae_lambda", self.gae_lambda, 1.0),
                ("critic", self.critic, Critic()),
            ):
                if given != default:
                    raise ValueError(
                        f"algorithm.{key} has no meaning with algorithm.name={self.name}; leave it out, or choose ppo"
                    )
        return self


class Optimizer(Section):
    """AdamW on the adapter. `warmup` is a fraction of all steps; `micro_batch` counts completions a forward and
    backward pass.
    """

    name: Literal["adamw", "adamw_8bit"] = "adamw"
    learning_rate: PositiveFloat = 1e-5
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    warmup: Fraction = 0.0
    max_grad_norm: PositiveFloat = 1.0
    micro_batch: Positive | Literal["auto"] = "auto"
    gradient_checkpointing: bool | Literal["auto"] = "auto"  # auto: on a GPU

    def checkpoints_activations(self, device_type: str) -> bool:
        """Whether the update computes activations again instead of keeping them, on a device of this type."""
        return device_type == "cuda" if self.gradient_checkpointing == "auto" else self.gradient_checkpointing


class Budget(Section):
    """When the run stops: after `steps` rollout batches, or earlier when `hours` or `usd` are spent.

    A checkpoint is made every `checkpoint_every` steps, and after the step in which `checkpoint_minutes` have gone by
    since the last one. The newest `checkpoints_kept` stay, and the best: by the held-out judge where there is one,
    else by the reward.
    """

    steps: Positive = 100
    hours: PositiveFloat | None = None
    usd: PositiveFloat | None = None
    usd_per_hour: PositiveFloat | None = None
    checkpoint_every: Positive = 10
    checkpoint_minutes: PositiveFloat | None = 15.0
    checkpoints_kept: Positive = 2

    @model_validator(mode="after")
    def usd_needs_a_price(self):
        if self.usd is not None and self.usd_per_hour is None:
            raise ValueError(f"budget.usd={self.usd} needs the price of the machine: set budget.usd_per_hour as well")
        return self


class Evaluation(Section):
    """The measurement that ends a run, base against tuned: prompts kept out of training, and a suite of questions."""

    heldout_prompts: Annotated[int, Field(ge=0)] = 64
    suite: Literal["none", "quick", "grlo", "math", "knowledge", "code", "chat", "microcosm"] = "none"
    limit: Positive = 300  # questions a task
    data_dir: str | None = None  # read all questions from the files in this folder, none from a hub


class Guard(Section):
    """A limit on one number, averaged over `guards.window` steps, and what to do when it is crossed; null turns it
    off.
    """

    limit: Annotated[float, Field(allow_inf_nan=False)] | None
    action: Literal["warn", "stop"] = "warn"


class Watched(NamedTuple):
    """On which side of its limit a guard speaks, and what that means."""

    too_high: bool
    meaning: str


class Guards(Section):
    """What is watched while a run goes on. Each guard speaks once, and saves the samples that show what it saw.

    A guard is a row here: the name of its metric in metrics.jsonl, what it watches for, its limit.
    """

    window: Positive = 5
    reward_length_correlation: Annotated[
        Guard, Watched(True, "longer answers earn more whatever they say: the reward is being hacked by length")
    ] = Guard(limit=0.8)
    truncated_fraction: Annotated[
        Guard,
        Watched(
            True, "most answers hit rollout.max_tokens: the policy does not end its turns, or the limit is too low"
        ),
    ] = Guard(limit=0.8)
    repetition_fraction: Annotated[Guard, Watched(True, "answers repeat themselves")] = Guard(limit=0.3)  # of 4-grams
    distinct_fraction: Annotated[
        Guard, Watched(False, "the answers to one prompt are nearly all the same: the policy has collapsed")
    ] = Guard(limit=0.3)  # of a group's completions, the share that differ
    entropy: Annotated[Guard, Watched(False, "the policy is nearly deterministic: it explores nothing any more")] = (
        Guard(limit=0.02)
    )  # nats a token
    equal_groups_fraction: Annotated[
        Guard, Watched(True, "the answers to one prompt all earn the same: there is no learning signal")
    ] = Guard(limit=0.9)
    explained_variance: Annotated[
        Guard,
        Watched(
            False,
            "the critic explains nothing of what answers earn, so PPO's advantages are noise; raise "
            "algorithm.critic.learning_rate or algorithm.critic.updates_per_rollout",
        ),
    ] = Guard(limit=0.0)  # under PPO; of ten rollouts
    skipped_update: Annotated[
        Guard,
        Watched(
            True,
            "updates overflow in fp16 step after step and are skipped, so nothing is learnt; a card with bf16 will do",
        ),
    ] = Guard(limit=0.5)  # of a step's updates; metrics.jsonl has it where there were any
    sampler_logp_difference: Annotated[
        Guard,
        Watched(
            True,
            "the rollout engine and the policy that is trained have drifted apart, as where the engine answers with an "
            "older adapter",
        ),
    ] = Guard(limit=0.1)  # nats a token; rounding makes 1e-6 in fp32 and 0.01 to 0.04 in bf16
    on_overoptimization: Literal["warn", "stop", "keep_best"] = "warn"
    overoptimization_patience: Positive = 3  # evaluations in a row with the trained reward up and the held-out one down

    @model_validator(mode="before")
    @classmethod
    def a_guard_keeps_what_is_not_given(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        defaults = {
            name: f.default.model_dump() for name, f in cls.model_fields.items() if isinstance(f.default, Guard)
        }
        return {k: {**defaults[k], **v} if k in defaults and isinstance(v, dict) else v for k, v in given.items()}


class Logging(Section):
    """Where metrics, samples and guards go beside the run directory (docs/export.md), and how many samples a step are
    kept.
    """

    report_to: tuple[Literal["tensorboard", "wandb", "trackio", "mlflow"], ...] = ()
    samples_per_step: Annotated[int, Field(ge=0)] = 4


class Recipe(Section):
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    backend: Literal["auto", "unsloth", "transformers"] = "auto"
    cpu_dtype: Literal["fp32", "bf16", "auto"] = "fp32"  # without a GPU; auto: bf16 where the CPU multiplies in it
    model: Model
    lora: Lora = Lora()
    prompts: Prompts
    rollout: Rollout = Rollout()
    reward: Reward
    algorithm: Algorithm = Algorithm()
    optimizer: Optimizer = Optimizer()
    budget: Budget = Budget()
    evaluation: Evaluation = Evaluation()
    guards: Guards = Guards()
    logging: Logging = Logging()

    @field_validator("*", mode="before")
    @classmethod
    def an_empty_section_is_its_default(cls, value: Any) -> Any:
        return {} if value is None else value

    @property
    def heldout_prompts(self) -> int:
        """How many prompts are kept out of training: for the measurement at the end and for the held-out judge."""
        return max(self.evaluation.heldout_prompts, self.reward.heldout.prompts if self.reward.heldout.name else 0)

    @model_validator(mode="after")
    def keep_best_needs_a_judge(self):
        if self.guards.on_overoptimization == "keep_best" and self.reward.heldout.name is None:
            raise ValueError(
                "guards.on_overoptimization=keep_best needs a judge that is not optimized: set reward.heldout.name"
            )
        return self

    @model_validator(mode="after")
    def kl_is_to_the_base(self):
        if self.model.adapter and self.algorithm.kl:
            raise ValueError(
                f"algorithm.kl={self.algorithm.kl:g} beside model.adapter: the policy it keeps to would be the base, "
                "not the adapter that training goes on from; leave it at 0"
            )
        return self

    @model_validator(mode="after")
    def ppo_needs_two_adapters(self):
        if self.algorithm.name != "ppo":
            return self
        if self.backend == "unsloth":
            raise ValueError(
                "backend=unsloth with algorithm.name=ppo: Unsloth's compiled loss takes one advantage a completion, "
                "and PPO gives one a token; choose backend=transformers, or auto"
            )
        if self.rollout.engine == "fast_inference":
            raise ValueError(
                "rollout.engine=fast_inference with algorithm.name=ppo: it is the vLLM inside Unsloth's model, which "
                "PPO cannot train; choose rollout.engine=folded"
            )
        return self

    @model_validator(mode="after")
    def batches_divide(self):
        batch, group, updates = self.rollout.batch, self.rollout.group_size, self.algorithm.updates_per_rollout
        if group == 1 and self.algorithm.name != "ppo":
            raise ValueError(
                f"rollout.group_size=1 leaves algorithm.name={self.algorithm.name} nothing to compare an answer with; "
                "choose at least 2, or algorithm.name=ppo"
            )
        if batch == 1:
            raise ValueError("rollout.batch=1 leaves an answer nothing to be compared with; choose at least 2")
        if batch % group:
            raise ValueError(_does_not_divide("rollout.group_size", group, "rollout.batch", batch))
        if batch % updates:
            raise ValueError(_does_not_divide("algorithm.updates_per_rollout", updates, "rollout.batch", batch))
        micro = self.optimizer.micro_batch
        if micro != "auto" and (batch // updates) % micro:
            whole = "rollout.batch" if updates == 1 else "rollout.batch / algorithm.updates_per_rollout"
            raise ValueError(_does_not_divide("optimizer.micro_batch", micro, whole, batch // updates))
        critics = self.critic_updates
        if self.algorithm.name == "ppo" and batch % critics:
            raise ValueError(_does_not_divide("algorithm.critic.updates_per_rollout", critics, "rollout.batch", batch))
        return self

    @property
    def critic_learning_rate(self) -> float:
        """Of PPO's critic."""
        wanted = self.algorithm.critic.learning_rate
        return 3 * self.optimizer.learning_rate if wanted == "auto" else wanted

    @property
    def critic_rank(self) -> int:
        """Of its adapter."""
        rank = self.algorithm.critic.rank
        return self.lora.rank if rank == "auto" else rank

    @property
    def critic_updates(self) -> int:
        """Updates of PPO's critic a rollout."""
        wanted = self.algorithm.critic.updates_per_rollout
        return self.algorithm.updates_per_rollout if wanted == "auto" else wanted


def _does_not_divide(key: str, value: int, whole_key: str, whole: int) -> str:
    divisors = [d for d in range(2, min(whole, 2**20) + 1) if whole % d == 0]  # a batch may be mistyped, and huge
    nearest = min(divisors, key=lambda d: abs(d - value), default=1)
    return f"{key}={value} does not divide {whole_key}={whole}; choose a divisor such as {nearest}"
