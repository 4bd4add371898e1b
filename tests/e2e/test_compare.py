"""Base and tuned, asked together and by many at once: each answer is its own arm's."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from peft import IA3Config, LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from grlo_lite.app.comparison import loading, waiting_line
from grlo_lite.app.comparison.comparison import ARMS
from grlo_lite.app.comparison.values import Refused, Settings, Turn
from grlo_lite.errors import BadInput
from grlo_lite.generation import decoding
from grlo_lite.microcosm import world
from grlo_lite.models import chat_template, names, reward_model, trained_adapter
from grlo_lite.models import policy as policies
from grlo_lite.models.backends import Place
from grlo_lite.recipe import schema
from grlo_lite.recipe.schema import Judge

CPU = torch.device("cpu")
BASE = str(names.POLICY)
GREEDY = Settings(max_tokens=20, temperature=0.0)
QUESTIONS = [q.text for domain in world.VERIFIABLE for q in world.exam(domain, 5, seed=1)]
QUESTIONS += world.chat_prompts(held_out=True)[: 20 - len(QUESTIONS)]


@pytest.fixture(scope="module")
def adapters(tmp_path_factory):
    """Two adapters of the microcosm's base that change its answers much: plain LoRA with random B."""
    folders = []
    for seed, name in enumerate(("one", "two")):
        made = policies.load(schema.Model(name=BASE), schema.Lora(rank=4, alpha=8), Place(CPU), 256, seed)
        torch.manual_seed(seed)
        for key, parameter in made.model.named_parameters():
            if "lora_B" in key:
                parameter.data.normal_(std=0.05)
        folders.append(tmp_path_factory.mktemp("adapters") / name)
        trained_adapter.save_adapter(made.model, made.tokenizer, folders[-1], "made by a test")
    return folders


def judge():
    return reward_model.load(Judge(name="microcosm"), CPU, 512, 16_384)


@pytest.fixture(scope="module")
def both(adapters):
    return loading.load([trained_adapter.find(folder, BASE) for folder in adapters], judge)


@pytest.fixture
def forwards(monkeypatch):
    """When each forward of a token began; each takes 20 ms more, so that a test can act in the middle."""
    began = []
    step = decoding.Slots._fed

    def waiting(slots, tokens_S):
        began.append(time.monotonic())
        time.sleep(0.02)
        return step(slots, tokens_S)

    monkeypatch.setattr(decoding.Slots, "_fed", waiting)
    return began


class Bare:
    """A model by PEFT and Transformers alone, one for each arm, asked for one answer at a time."""

    def __init__(self, adapter=None):
        nf4 = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
        base = AutoModelForCausalLM.from_pretrained(BASE, quantization_config=nf4, dtype=torch.float32).eval()
        self.model: Any = PeftModel.from_pretrained(base, str(adapter)).eval() if adapter else base
        self.tokenizer = AutoTokenizer.from_pretrained(BASE)
        self.packable = [m for m in self.model.modules() if getattr(m, "support_avx512bf16_for_cpu", False)]
        self.stops = chat_template.stop_token_ids(self.tokenizer)
        self.repack(False)

    def repack(self, repacked):
        """On CPUs with AVX512-BF16, bitsandbytes repacks the weights and computes in bf16 from then on."""
        for module in self.packable:
            module.support_avx512bf16_for_cpu = repacked

    def answer(self, turns, question, arm, settings):
        messages = []
        for turn in turns:
            messages.append({"role": "user", "content": turn.question})
            messages.append({"role": "assistant", "content": turn.answers[arm]})
        messages.append({"role": "user", "content": question})
        if settings.plain_base and arm == "base":
            text = "\n\n".join(message["content"] for message in messages) + "\n"
        else:
            text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        ids = self.tokenizer(text, return_tensors="pt", add_special_tokens=False)
        with torch.inference_mode():
            out = self.model.generate(
                **ids, do_sample=False, max_new_tokens=settings.max_tokens, eos_token_id=self.stops, pad_token_id=0
            )
        return self.tokenizer.decode(out[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)


def test_of_forty_requests_at_once_each_answer_is_its_own_arms(both, adapters):
    earlier = Turn(QUESTIONS[0], {"base": "Yes.", "tuned": "It is a longer answer than the other one."})
    requests = []
    for number in range(40):
        settings = Settings(max_tokens=12 + 4 * (number % 3), temperature=0.0, plain_base=number % 5 == 0)
        turns = [earlier] if number % 4 == 1 else []
        requests.append((turns, QUESTIONS[number % 20], "one" if number < 20 else "two", settings))
    with ThreadPoolExecutor(8) as threads:
        given = list(threads.map(lambda request: both.answers(*request), requests))
    bare = {"base": Bare(), "one": Bare(adapters[0]), "two": Bare(adapters[1])}
    for repacked in (False, True):
        same = []
        every = 4 if repacked else 1
        for (turns, question, adapter, settings), replies in list(zip(requests, given, strict=True))[::every]:
            for arm in ARMS:
                model = bare["base" if arm == "base" else adapter]
                model.repack(repacked)
                same.append(model.answer(turns, question, arm, settings) == replies[arm].text)
        if repacked:
            assert sum(same) >= 0.9 * len(same)  # in bf16, near ties may tip
        else:
            assert all(same), f"{same.count(False)} of {len(same)} differ"
    assert sum(r["base"].text != r["tuned"].text for r in given) > 30
    assert {r[arm].ended for r in given for arm in ARMS} == {"end of turn", "length"}


def test_the_adapter_that_is_asked_for_answers(both, adapters):
    for folder in adapters:
        alone = loading.load([trained_adapter.find(folder, BASE)])
        for question in QUESTIONS[:3]:
            expected = alone.answers([], question, folder.name, GREEDY)["tuned"].text
            assert both.answers([], question, folder.name, GREEDY)["tuned"].text == expected
            assert both.answers([], question, folder.name, GREEDY, arms=("tuned",))["tuned"].text == expected
    one, two = (both.answers([], QUESTIONS[0], folder.name, GREEDY) for folder in adapters)
    assert one["base"].text == two["base"].text
    assert one["tuned"].text != two["tuned"].text
    assert len({adapter.sha256 for adapter in both.adapters.values()}) == 2


def test_stop_in_the_middle_keeps_what_there_is_and_frees_the_model(both, forwards):
    whole = both.answers([], QUESTIONS[0], "one", GREEDY)
    stop = threading.Event()
    states = []
    for state in both.stream([], QUESTIONS[0], "one", GREEDY, stop):
        states.append(state)
        stop.set()
    last = states[-1].replies
    assert [reply.ended for reply in last.values()] == ["stopped", "stopped"]
    for arm in ARMS:
        assert 0 < last[arm].tokens < whole[arm].tokens
        assert whole[arm].text.startswith(last[arm].text)
    after = both.answers([], QUESTIONS[0], "one", GREEDY)
    assert {arm: after[arm].text for arm in ARMS} == {arm: whole[arm].text for arm in ARMS}


def test_a_closed_reader_costs_one_token_and_no_score_and_the_line_goes_on(both, forwards, monkeypatch):
    whole = both.answers([], QUESTIONS[1], "two", GREEDY)
    wants_score = Settings(max_tokens=200, temperature=0.0, score=True)
    loaded = []
    monkeypatch.setattr(both, "_judge", None)
    monkeypatch.setattr(both, "_load_judge", lambda: loaded.append("reward model") or judge())
    first = both.stream([], QUESTIONS[0], "one", wants_score)
    assert next(first).replies
    with ThreadPoolExecutor(4) as threads:
        waiting = [threads.submit(both.answers, [], QUESTIONS[1], "two", GREEDY) for _ in range(4)]
        while len(both.line) < 5:
            time.sleep(0.001)
        first.close()
        closed = time.monotonic()
        served = [future.result() for future in waiting]
    assert not loaded
    for replies in served:
        assert {arm: replies[arm].text for arm in ARMS} == {arm: whole[arm].text for arm in ARMS}
    per_answer = max(len(both.tokenizer(whole[arm].text)["input_ids"]) for arm in ARMS) + 1
    assert sum(at > closed for at in forwards) <= 4 * per_answer + 2
    assert len(both.line) == 0


def test_one_that_is_stopped_while_it_waits_leaves_the_line_at_once(both, forwards):
    long = Settings(max_tokens=200, temperature=2.0)
    running = both.stream([], QUESTIONS[0], "one", long)
    next(running)
    stop = threading.Event()
    waiting = both.stream([], QUESTIONS[1], "one", GREEDY, stop)
    assert next(waiting).ahead == 1
    stop.set()
    *_, last = waiting
    assert [reply.ended for reply in last.replies.values()] == ["stopped", "stopped"]
    assert not [reply.text for reply in last.replies.values() if reply.text]
    assert any(reply.ended is None for reply in next(running).replies.values())  # the one before it still goes on
    running.close()


def test_the_scores_are_the_reward_models(both):
    settings = Settings(max_tokens=20, temperature=0.0, score=True, system="Be brief.")
    earlier = Turn(QUESTIONS[0], {"base": "Yes.", "tuned": "No, it is not."})
    replies = both.answers([earlier], QUESTIONS[1], "one", settings)
    direct = judge()
    for arm in ARMS:
        conversation = [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": QUESTIONS[0]},
            {"role": "assistant", "content": earlier.answers[arm]},
            {"role": "user", "content": QUESTIONS[1]},
            {"role": "assistant", "content": replies[arm].text},
        ]
        assert replies[arm].score == pytest.approx(direct.score([conversation])[0], abs=1e-4)
    assert replies["base"].score != replies["tuned"].score


def test_what_is_too_long_or_unknown_is_refused(both):
    with pytest.raises(Refused, match="16,001 characters"):
        both.answers([], "a" * 16_001, "one", GREEDY)
    with pytest.raises(Refused, match="max_tokens is 2,048; at most 1,024"):
        both.answers([], QUESTIONS[0], "one", Settings(max_tokens=2048))
    with pytest.raises(Refused, match="longer than the model's 2,048 tokens; clear it"):
        both.answers([Turn("x" * 40_000, {"base": "", "tuned": ""})], QUESTIONS[0], "one", GREEDY)
    for wrong in ({"temperature": float("nan")}, {"seed": 0.5}, {"system": None}, {"max_tokens": True}, {"top_p": 2}):
        with pytest.raises(Refused, match=next(iter(wrong))):
            both.answers([], QUESTIONS[0], "one", Settings(**wrong))
    with pytest.raises(Refused, match="no text"):
        both.answers([], "\ud800", "one", GREEDY)
    past = [Turn("why " * 700, {"base": "so " * 700, "tuned": "so " * 700})]
    with pytest.raises(Refused, match="clear it, or ask for a shorter answer"):
        both.answers(past, QUESTIONS[0], "one", GREEDY)
    with pytest.raises(Refused, match="there is one, two"):
        both.answers([], QUESTIONS[0], "three", GREEDY)
    with pytest.raises(Refused, match="empty"):
        both.answers([], " \n", "one", GREEDY)
    assert both.answers([], QUESTIONS[0], "one", GREEDY)["base"].tokens


def test_the_line_takes_no_more_than_it_should():
    line = waiting_line.Line(longest=2)
    tickets = [line.join() for _ in range(3)]  # one is answered, two wait
    with pytest.raises(Refused, match="2 questions are waiting already"):
        line.join()
    assert [line.ahead(ticket, 0.0) for ticket in tickets] == [0, 1, 2]
    line.leave(tickets[1])
    assert line.ahead(tickets[2], 0.0) == 1
    line.join()


@pytest.mark.parametrize(
    ("config", "why"),
    [
        (LoraConfig(r=2, target_modules=["q_proj"], use_dora=True), "it is DoRA"),
        (LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["norm"]), "it replaces whole modules"),
        (LoraConfig(r=2, target_modules=["q_proj"], bias="lora_only"), "it trained biases"),
        (LoraConfig(r=2, target_modules=["q_proj"], layer_replication=[(0, 3), (1, 4)]), "it repeats layers"),
        (LoraConfig(r=2, target_modules=[], target_parameters=["q_proj.weight"]), "it adapts bare parameters"),
        (LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights="olora"), "it starts from olora"),
        (LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights="pissa"), "it starts from pissa"),
        (IA3Config(target_modules=["k_proj"], feedforward_modules=[]), "it is IA3"),
    ],
    ids=lambda value: value if isinstance(value, str) else "adapter",
)
def test_an_adapter_that_cannot_be_mixed_is_refused(config, why, adapters, tmp_path):
    config.task_type = "CAUSAL_LM"
    get_peft_model(AutoModelForCausalLM.from_pretrained(BASE), config).save_pretrained(tmp_path / "other")
    with pytest.raises(BadInput, match=f"other cannot answer beside its base.*{why}") as refused:
        loading.load([trained_adapter.find(adapters[0], BASE), trained_adapter.find(tmp_path / "other", BASE)])
    assert "\n" not in str(refused.value)
