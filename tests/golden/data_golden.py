"""Files of preferences and prompts that are wrong, or of which something is worth saying, as `plan` finds them."""

from __future__ import annotations

import json
import os
from typing import Any

from golden_case import Case, Content, folder, plan, row

GOOD = json.dumps(row(1))
HELLO = {"role": "user", "content": "Hello!"}


def data(content: Content, **recipe: Any) -> Case:
    """A plan whose preferences are this one file."""
    return plan({"preferences": "bad.jsonl", **recipe}, bad__jsonl=content)


def dialogs(*turns: Any) -> list[dict[str, Any]]:
    """One bad row beside a good one: a dialog of these turns."""
    return [
        {"messages": [HELLO], "chosen": "Hi.", "rejected": "No."},
        {"messages": [*turns], "chosen": "Hi.", "rejected": "No."},
    ]


def prompts(content: Content, **recipe: Any) -> Case:
    """A plan with a file of prompts of its own."""
    return plan({"prompts": "prompts.jsonl", **recipe}, prompts__jsonl=content)


def thinking(number: int, *, earlier: str = "", **turn: Any) -> list[dict[str, Any]]:
    """Rows whose chosen answers hold reasoning; the rejected ones hold none."""
    start = [HELLO, {"role": "assistant", "content": earlier, **turn}] if earlier else []
    chosen = "It is." if earlier else "<think>\nIt flows.\n</think>\n\nRiver."
    return [row(n, prompt=[*start, {"role": "user", "content": f"River {n}?"}], chosen=chosen) for n in range(number)]


def topical(topic: str) -> list[dict[str, Any]]:
    return [{"prompt": f"Name river number {n}.", "topic": topic, "fine_topic": f"{topic}-{n % 2}"} for n in range(20)]


ALL_ASSISTANT = {"max_length": 384, "train_on": "all_assistant"}
NOT_MARKED = [row(n, strength="marginally_better") for n in range(12)]
BENCHMARK = "ifeval.jsonl"
QUESTION = "Name river number 7 and finish your answer with this exact phrase that is all I know"

DATA: dict[str, Case] = {
    "file-is-not-there": plan({"preferences": ["god.jsonl", "nowhere/x.jsonl"]}),
    "file-is-a-folder": plan({"preferences": "rows"}, rows=folder),
    "file-is-empty": data(""),
    "file-is-an-empty-list": data("[]"),
    "file-is-not-utf8": data(b'{"prompt": "Na\xefve?", "chosen": "Yes.", "rejected": "No."}\n'),
    "file-is-text": data("Dear reader,\nthese are no rows.\n"),
    "file-is-a-pipe": data(os.mkfifo),
    "file-on-a-hub": plan({"preferences": "hub:owner/name"}),
    "pattern-of-no-file": plan({"preferences": ["weeks/week-*.jsonl"], "prompts": ["ask-?.jsonl"]}),
    "list-cut-short": data(f"[{GOOD}, {GOOD[:20]}"),
    "list-of-no-objects": data('[1, "two", null]'),
    "row-is-no-json": data([GOOD, '{"prompt": "Hi", "chosen": ', GOOD]),
    "row-with-a-key-twice": data([GOOD, '{"prompt": "Hi", "prompt": "Ho", "chosen": "A", "rejected": "B"}']),
    "row-without-chosen": data([GOOD, {"prompt": "Hi", "rejected": "No."}]),
    "row-of-equal-answers": data([GOOD, row(2, chosen="Same.", rejected="Same. ")]),
    "row-with-empty-answers": data([GOOD, row(2, chosen="", rejected=" ")]),
    "row-with-a-number": data([GOOD, row(2, chosen=4)]),
    "row-with-nul-and-half-a-pair": data([GOOD, row(2, chosen="a\0b"), row(3, chosen="\ud83d")]),
    "row-of-unknown-strength": data([GOOD, row(2, strength="best")]),
    "row-too-long": data([GOOD, row(2, chosen="long " * 30)], data={"max_characters": 100}),
    "row-with-tools": data([GOOD, row(2, tools=[{"name": "search"}])]),
    "row-with-pictures": data([GOOD, row(2, images=["a.png"])]),
    "rows-bad-in-many-ways": data([GOOD, "{", row(2, chosen=None), row(3, rejected="River 3 it is."), "[]", "7"]),
    "rows-all-bad": data([{"prompt": "Hi", "rejected": "No."}] * 3),
    "rows-of-no-form": data([{"ask": "Hi", "good": "A", "bad": "B"}] * 3),
    "rows-of-two-forms": data([GOOD, row(2), {"instruction": "Hi", "chosen": "A", "rejected": "B"}]),
    "rows-of-another-form": data([GOOD], data={"form": "sharegpt"}),
    "rows-bad-but-allowed": data([GOOD, row(2), {"prompt": "Hi"}], data={"max_bad_fraction": 0.5}),
    "turns-without-role": data(dialogs(HELLO, {"content": "?"})),
    "turns-of-unknown-role": data(dialogs({"role": "wizard", "content": "?"})),
    "turns-of-a-tool": data(dialogs(HELLO, {"role": "tool", "content": "42"})),
    "turns-with-tool-calls": data(
        dialogs(HELLO, {"role": "assistant", "content": "", "tool_calls": [{"id": "1"}]}, HELLO)
    ),
    "turns-with-a-picture": data(
        dialogs({"role": "user", "content": [{"type": "image_url", "image_url": "http://x"}]})
    ),
    "turns-that-are-texts": data(dialogs("Hello!")),
    "turns-that-are-none": data([row(1, prompt=[HELLO]), row(2, prompt=[])]),
    "turns-that-end-with-the-assistant": data(dialogs(HELLO, {"role": "assistant", "content": "Hi."})),
    "columns-that-are-not-there": data([GOOD], data={"columns": {"prompt": "promt", "chosen": "answers[0]"}}),
    "csv-of-a-header-alone": plan({"preferences": "bad.csv"}, bad__csv="prompt,chosen,rejected\n"),
    "csv-with-a-cut-quote": plan({"preferences": "bad.csv"}, bad__csv='prompt,chosen,rejected\nHi,"A,B\n'),
    "parquet-that-is-damaged": plan({"preferences": "bad.parquet"}, bad__parquet=b"PAR1" + b"\0" * 40 + b"PAR1"),
    "strengths-that-leave-nothing": data(NOT_MARKED, pairs={"on_policy": False}),
    "strengths-in-every-round": data(NOT_MARKED, data={"batches": "all"}),
    "settings-that-leave-nothing": plan(
        {
            "prune": {"human_rows": 0, "quality": {"top_fraction": 0}},
            "pairs": {"max_preference_pairs": 0, "max_on_policy": 0},
        }
    ),
    "simulated-annotator-of-plain-prompts": plan({"collect": {"annotator": "simulated", "num_annotations": 4}}),
    "prompts-that-are-all-held-out": prompts([{"prompt": "Name river number 3."}], data={"heldout_fraction": 0.9}),
    "prompts-that-are-held-out-wholly": plan(
        {"preferences": "one.jsonl", "data": {"heldout_fraction": 1.0}}, one__jsonl=[GOOD]
    ),
    "prompts-that-cannot-be-read": prompts([{"prompt": "Hi"}, {"prompt": ""}, {"prompt": 3}, "{"]),
    "prompts-and-preferences-both-wrong": plan(
        {"preferences": "a.jsonl", "prompts": "b.jsonl"}, a__jsonl=[GOOD, row(2, chosen="")], b__jsonl=[{"prompt": " "}]
    ),
    "files-of-rounds-with-nothing-left": plan(
        {"preferences": ["one.jsonl", "two.jsonl"], "data": {"batches": "files", "heldout_fraction": 1.0}},
        one__jsonl=[GOOD],
        two__jsonl=[GOOD],
    ),
    "benchmark-questions-among-all-rows": plan(
        {
            "preferences": "bad.jsonl",
            "evaluate": {"tasks": [f"ifeval={BENCHMARK}"]},
            "best_metric": "ifeval/mean",
        },
        bad__jsonl=[row(n, prompt=QUESTION) for n in range(3)],
        ifeval__jsonl=[{"key": 1, "prompt": QUESTION, "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}],
    ),
    "benchmark-questions-among-some-rows": plan(
        {"preferences": "bad.jsonl", "evaluate": {"tasks": [f"ifeval={BENCHMARK}"]}, "best_metric": "ifeval/mean"},
        bad__jsonl=[row(0, prompt=QUESTION), *(row(n) for n in range(1, 20))],
        ifeval__jsonl=[{"key": 1, "prompt": QUESTION, "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}],
    ),
    "reasoning-behind-an-empty-block": data(thinking(20), chat_template="qwen3"),
    "no-reasoning-behind-an-open-block": data(
        thinking(20), chat_template="qwen3_5_think", chat_template_kwargs={"enable_thinking": True}
    ),
    "earlier-answers-that-are-not-sampled-so": data(
        thinking(20, earlier="Hi."), chat_template="qwen3", sft=ALL_ASSISTANT
    ),
    "earlier-answers-marked-as-untrained": data(
        thinking(20, earlier="Hi.", weight=0), chat_template="qwen3_training", sft=ALL_ASSISTANT
    ),
    "notes-on-reasoning-scores-and-copies": plan(
        {"preferences": ["thinks.jsonl", "thinks.jsonl"], "data": {"heldout_fraction": 0.0}},
        thinks__jsonl=[{**each, "score_chosen": n, "score_rejected": 4} for n, each in enumerate(thinking(20))],
    ),
    "notes-on-reasoning-that-is-taken": data(
        thinking(20), chat_template="qwen3", chat_template_kwargs={"enable_thinking": True}
    ),
    "notes-on-held-out-rows-of-other-strengths": plan(
        {
            "preferences": "rows.jsonl",
            "reward": {"max_length": 384, "strengths": ["better"]},
            "data": {"heldout_fraction": 0.02, "max_heldout": 1},
            "seed": 2,
        },
        rows__jsonl=[row(n, strength="slightly_better" if n % 2 else "better") for n in range(80)],
    ),
    "notes-on-files-of-rounds": plan(
        {
            "preferences": ["one.jsonl", "two.jsonl"],
            "data": {"batches": "files"},
            "collect": {"annotator": "human", "num_annotations": 4, "min_annotated": 2},
        },
        one__jsonl=[row(n) for n in range(30)],
        two__jsonl=[row(n) for n in range(30, 60)],
    ),
    "system-prompt-of-a-misspelt-topic": prompts(
        topical("code"),
        sample={
            "max_tokens": 64,
            "system_prompts": [{"text": "Be brief.", "topics": ["cod"]}, {"text": "Be kind.", "topics": ["law"]}],
        },
    ),
    "system-prompt-without-room": plan(
        {"sample": {"max_tokens": 64, "system_prompts": [{"text": "Be brief. " * 300}]}}
    ),
    "system-prompt-that-no-prompt-gets": prompts(
        [
            {"messages": [{"role": "system", "content": "Own."}, HELLO | {"content": f"Name river number {n}."}]}
            for n in range(8)
        ],
        sample={"max_tokens": 64, "system_prompts": [{"text": "Be brief."}]},
    ),
    "mix-of-topics-that-no-row-has": prompts(
        topical("code"), prune={"topic": {"by": "column"}, "mix": {"shares": {"law": 0.5}}}
    ),
    "mix-of-fine-topics-that-no-row-has": prompts(
        topical("code"), prune={"topic": {"by": "column"}, "mix": {"by": "fine_topic", "epochs": {"code-3": 2.0}}}
    ),
}
