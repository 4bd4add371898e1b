"""From a recipe to its parts: model paths, prompts, policy, reward models; what train, doctor and their like begin
with.
"""

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from grlo_lite import microcosm, prompts
from grlo_lite.errors import BadInput
from grlo_lite.recipe import Heldout, Judge, Recipe


def policy_path(recipe: Recipe) -> str:
    return _model_path("model.name", recipe.model.name, microcosm.POLICY)


def model_paths(recipe: Recipe) -> list[str]:
    """Every model of the recipe as a path or a Hub id. Raises BadInput where a path leads nowhere."""
    heldout = recipe.reward.heldout.name
    names = [judge.name for judge in recipe.reward.judges] + ([heldout] if heldout else [])
    return [policy_path(recipe), *map(_judge_path, names)]


def _judge_path(name: str) -> str:
    if name == "microcosm-heldout":
        return str(microcosm.HELDOUT)
    return _model_path("reward.name", name, microcosm.REWARD)


def _model_path(key: str, name: str, shipped: Path) -> str:
    """`microcosm` means the shipped model; a path must exist; all else is a model of the Hub."""
    if name == "microcosm":
        return str(shipped)
    if not Path(name).exists() and (name.startswith((".", "/", "~")) or name.count("/") != 1):
        raise BadInput(
            f"{key}={name!r}: there is no such directory; give one, a Hub id such as Qwen/Qwen3-4B-Base, or microcosm"
        )
    return name


def needs_no_hub(recipe: Recipe) -> bool:
    """Whether all is local, or the Hub, which prompts are to come from, does not answer: then its cache has to do."""
    against = recipe.prompts.decontaminate.against if recipe.prompts.decontaminate.enabled else ()
    named = [*recipe.prompts.parts(), *against]
    if any(prompts.on_the_hub(place if isinstance(place, str) else place.source) for place in named):
        return not prompts.hub_answers()
    return all(Path(path).exists() for path in model_paths(recipe))


def prompt_rows(
    recipe: Recipe, write_to: Path | None = None
) -> tuple[list[prompts.Messages], list[prompts.Messages], dict[str, Any]]:
    """The prompts that are worth asking and no benchmark's, split into those to train on and those to measure on; and
    the content of contamination.json.
    """
    from grlo_lite.policy import PLAIN_TEMPLATE, formatted, load_tokenizer

    wanted = recipe.prompts
    rows, notes = prompts.load(wanted.parts(), wanted.limit, recipe.seed)
    tokenizer = load_tokenizer(policy_path(recipe), recipe.model.revision)
    if tokenizer.chat_template == PLAIN_TEMPLATE:
        print(f"{recipe.model.name} has no chat template: prompts are written as plain text, User: … Assistant:")

    def token_count(messages: prompts.Messages) -> int:
        return len(tokenizer(formatted(tokenizer, messages), add_special_tokens=False)["input_ids"])

    rows, steps = prompts.cleaned(
        rows, token_count, wanted.max_tokens, wanted.overlong, wanted.near_duplicates, wanted.language
    )
    rows, contamination = _decontaminated(recipe, rows, steps)
    print("\n".join([*(f"prompts: {note}" for note in notes), prompts.table(steps)]))
    print(prompts.verdict(contamination))
    if write_to:
        prompts.write(write_to, rows)
    train_rows, heldout_rows = prompts.split(rows, recipe.heldout_prompts, recipe.seed)
    print(f"prompts: {len(train_rows)} to train on, {len(heldout_rows)} held out", flush=True)
    return train_rows, heldout_rows, contamination


def _decontaminated(
    recipe: Recipe, rows: list[prompts.Messages], steps: list[prompts.Step]
) -> tuple[list[prompts.Messages], dict[str, Any]]:
    """The rows that ask no question of the evaluation sets, and contamination.json's content; adds its step to the
    others.
    """
    from grlo_lite.microcosm import world

    wanted = recipe.prompts.decontaminate
    domains = world.VERIFIABLE if recipe.evaluation.suite == "microcosm" else ()
    suite_sets = tuple(f"microcosm-{domain}" for domain in domains) or prompts.SUITE_SETS
    if not wanted.enabled:
        return rows, prompts.unchecked_report("prompts.decontaminate.enabled=false", suite_sets)
    exams = [world.exam(domain, recipe.evaluation.limit, recipe.seed) for domain in domains]
    sets = [prompts.question_set(f"microcosm-{exam[0].domain}", [q.text for q in exam]) for exam in exams]
    sets += prompts.question_sets(wanted.against, () if exams else suite_sets)
    rows, step, report = prompts.decontaminated(rows, sets, wanted.ngram, wanted.similarity)
    steps.append(step)
    return rows, report


def engine(recipe: Recipe, device: Any, backend: str) -> str:
    """The rollout engine. Raises BadInput, with the reason, where the recipe's cannot be had here."""
    from grlo_lite import policy as policies

    return policies.chosen_engine(recipe.rollout.engine, backend, recipe.model.quantization, device)


def device_and_backend(recipe: Recipe) -> tuple[Any, str]:
    """Where the run computes and who loads its policy; imports Unsloth, if it is that, before all that Unsloth
    patches.
    """
    from grlo_lite import hardware
    from grlo_lite import policy as policies

    device = hardware.device()
    backend = policies.chosen_backend(recipe.backend, device)
    chosen = engine(recipe, device, backend)
    if backend == "unsloth":
        policies.import_unsloth(chosen == "fast_inference")
    import transformers

    transformers.utils.logging.disable_progress_bar()
    return device, backend


def load_policy(recipe: Recipe, device: Any, backend: str) -> Any:
    """The recipe's base model with a fresh adapter. Raises BadInput where it cannot be loaded."""
    from grlo_lite import policy as policies

    return policies.load(
        policy_path(recipe),
        recipe.model.revision,
        recipe.model.quantization,
        recipe.lora,
        backend,
        device,
        recipe.prompts.max_tokens + recipe.rollout.max_tokens,
        recipe.seed,
        recipe.rollout.vllm_memory if engine(recipe, device, backend) == "fast_inference" else None,
    )


def load_policy_and_judges(recipe: Recipe, device: Any, backend: str) -> tuple[Any, list[tuple[str, float, Any]]]:
    """The policy, and each reward model with its name and weight.

    Raises BadInput where a reward model scores otherwise once the policy is loaded, as it does when the policy's
    loader patches the classes of both.
    """
    from grlo_lite import reward

    judges = [(judge.name, judge.weight, load_judge(recipe, judge, device)) for judge in recipe.reward.judges]
    alone = [reward.fixed_scores(model) for _, _, model in judges]
    policy = load_policy(recipe, device, backend)
    for (name, _, model), scores in zip(judges, alone, strict=True):
        reward.require_unchanged(name, scores, reward.fixed_scores(model))
        if recipe.reward.tokens_per_batch == "auto":
            model.tokens_per_batch = reward.tokens_that_fit(model.model, device)
    return policy, judges


def rollouts(recipe: Recipe, policy: Any, chosen: str) -> AbstractContextManager[None]:
    """Inside, the policy generates by the engine that was chosen."""
    if chosen not in ("compact", "folded"):
        return nullcontext()
    from grlo_lite import rollout

    return rollout.engine(policy.model, chosen == "folded", recipe.rollout.rows_at_once)


def load_judge(recipe: Recipe, judge: Judge | Heldout, device: Any) -> Any:
    """One of the recipe's reward models. Raises BadInput where it cannot be loaded or has no one-logit head."""
    from grlo_lite import reward

    limits = recipe.reward.max_tokens, recipe.reward.tokens_per_batch
    return reward.load(_judge_path(judge.name or ""), judge.revision, judge.quantization, device, *limits)


def sampling(recipe: Recipe, policy: Any) -> dict[str, int]:
    """How many tokens an answer may have outside of training, and how many answers are sampled at once."""
    on_gpu = policy.model.device.type == "cuda"
    return {"max_tokens": recipe.rollout.max_tokens, "rows_at_once": recipe.rollout.batch if on_gpu else 512}
