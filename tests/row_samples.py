"""A row of every shape that is read, with what it must become, worked out by hand; and chat
templates that know tools and thoughts."""

from __future__ import annotations

TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "of a town",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
SAID = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ahoy"}]

# ChatML as Qwen2.5 writes it, tools included; </s> ends a turn.
TOOLS_TEMPLATE = (
    "{%- if tools %}<|system|>\n{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}{{ "
    "eos_token }}{% endif %}"
    "{%- for m in messages %}{%- if m.role == 'assistant' %}<|assistant|>\n{{ m.content }}"
    "{%- for call in m.tool_calls %}<call>{{ call.function.name }} {{ call.function.arguments | "
    "tojson }}</call>{% endfor %}"
    "{{ eos_token }}{%- elif m.role == 'tool' %}<|user|>\n<result>{{ m.content }}</result>{{ "
    "eos_token }}"
    "{%- else %}<|{{ m.role }}|>\n{{ m.content }}{{ eos_token }}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
# As Qwen3: thoughts, given apart or at the head of the words, are written in the last answer alone.
THINKING_TEMPLATE = (
    "{%- set ns = namespace(last=0) %}{%- for m in messages %}{%- if m.role == 'user' %}{%- set "
    "ns.last = loop.index0 %}"
    "{%- endif %}{%- endfor %}"
    "{%- for m in messages %}<|{{ m.role }}|>\n"
    "{%- if m.role == 'assistant' %}{%- set said = m.content.split('</think>')[-1].lstrip('\n') "
    "%}{%- set thought = '' %}"
    "{%- if m.reasoning_content %}{%- set thought = m.reasoning_content %}"
    "{%- elif '</think>' in m.content %}{%- set thought = "
    "m.content.split('</think>')[0].split('<think>')[-1].strip('\n') %}{%- endif %}"
    "{%- if loop.index0 > ns.last and thought %}{{ '<think>\n' + thought + '\n</think>\n\n' "
    "}}{%- endif %}{{ said }}"
    "{%- else %}{{ m.content }}{%- endif %}{{ eos_token }}{%- endfor %}"
    "{%- if add_generation_prompt %}<|assistant|>\n{%- endif %}"
)

# name in pair_shapes.PAIRS -> rows, and the prompt (system, user, assistant, ... in turn, "" for no
# system), chosen and rejected of each
PAIRS = {
    "prompt, chosen, rejected": [
        (
            {"prompt": "Why?", "chosen": "Heat.", "rejected": "Dunno."},
            ("", "Why?"),
            "Heat.",
            "Dunno.",
        ),
        (
            {"system": "Be brief.", "prompt": "Why?", "chosen": "Heat.", "rejected": "Dunno."},
            ("Be brief.", "Why?"),
            "Heat.",
            "Dunno.",
        ),
        (
            {
                "prompt": "Why?",
                "chosen": [
                    SAID[0],
                    {"role": "assistant", "content": "A"},
                    {"role": "user", "content": "Why?"},
                    SAID[1],
                ],
                "rejected": [
                    SAID[0],
                    {"role": "assistant", "content": "A"},
                    {"role": "user", "content": "Why?"},
                    {"role": "assistant", "content": "No"},
                ],
            },
            ("", "Hi", "A", "Why?"),
            "Ahoy",
            "No",
        ),
    ],
    "messages, rejected_response (ms-swift)": [
        (
            {
                "messages": [{"role": "system", "content": "Be brief."}, *SAID],
                "rejected_response": "No",
            },
            ("Be brief.", "Hi"),
            "Ahoy",
            "No",
        )
    ],
    "messages, chosen, rejected (LLaMA-Factory)": [
        (
            {
                "messages": SAID[:1],
                "chosen": SAID[1],
                "rejected": {"role": "assistant", "content": "No"},
            },
            ("", "Hi"),
            "Ahoy",
            "No",
        ),
        ({"messages": SAID[:1], "chosen": "Ahoy", "rejected": "No"}, ("", "Hi"), "Ahoy", "No"),
    ],
    "question, chosen, rejected (Orca)": [
        (
            {"system": "Be brief.", "question": "Why?", "chosen": "Heat.", "rejected": "Dunno."},
            ("Be brief.", "Why?"),
            "Heat.",
            "Dunno.",
        )
    ],
    "input, chosen, rejected (Orca)": [
        (
            {
                "system": "Be brief.",
                "input": "Why?",
                "chosen": "Heat.",
                "rejected": "Dunno.",
                "chosen_score": 8.0,
                "rejected_score": 6.0,
            },
            ("Be brief.", "Why?"),
            "Heat.",
            "Dunno.",
        )
    ],
    "instruction, input, chosen, rejected (Alpaca)": [
        (
            {
                "instruction": "Why?",
                "input": "bread",
                "chosen": "Heat.",
                "rejected": "Dunno.",
                "history": [["Hi", "Ahoy"]],
            },
            ("", "Hi", "Ahoy", "Why?\n\nbread"),
            "Heat.",
            "Dunno.",
        )
    ],
    "conversations, chosen, rejected (ShareGPT)": [
        (
            {
                "conversations": [
                    {"from": "system", "value": "Be brief."},
                    {"from": "human", "value": "Why?"},
                ],
                "chosen": {"from": "gpt", "value": "Heat."},
                "rejected": {"from": "gpt", "value": "Dunno."},
            },
            ("Be brief.", "Why?"),
            "Heat.",
            "Dunno.",
        )
    ],
    "trajectory, chosen, rejected (UltraInteract)": [
        (
            {"trajectory": [{"from": "user", "value": "2+2?"}], "chosen": "4.", "rejected": "5."},
            ("", "2+2?"),
            "4.",
            "5.",
        )
    ],
    "input, preferred_output, non_preferred_output (OpenAI)": [
        (
            {
                "input": {"messages": SAID[:1], "tools": []},
                "preferred_output": SAID[1:],
                "non_preferred_output": [{"role": "assistant", "content": "No"}],
            },
            ("", "Hi"),
            "Ahoy",
            "No",
        )
    ],
    "prompt, response_0, response_1, better_response_id (PKU-SafeRLHF)": [
        (
            {
                "prompt": "A fox?",
                "response_0": "Pet it.",
                "response_1": "It bites.",
                "better_response_id": 1,
                "safer_response_id": 1,
            },
            ("", "A fox?"),
            "It bites.",
            "Pet it.",
        ),
        (
            {
                "prompt": "A fox?",
                "response_0": "It bites.",
                "response_1": "Pet it.",
                "better_response_id": 0,
            },
            ("", "A fox?"),
            "It bites.",
            "Pet it.",
        ),
    ],
    "prompt, response_1, response_2, preference_strength (HelpSteer2)": [
        (
            {
                "prompt": "Why?",
                "response_1": "Heat.",
                "response_2": "Dunno.",
                "preference_strength": -2,
            },
            ("", "Why?"),
            "Heat.",
            "Dunno.",
        ),
        (
            {
                "prompt": "Why?",
                "response_1": "Dunno.",
                "response_2": "Heat.",
                "preference_strength": 1,
            },
            ("", "Why?"),
            "Heat.",
            "Dunno.",
        ),
    ],
    "history, human_ref_A, human_ref_B, labels (SHP)": [
        (
            {
                "history": "Why?",
                "human_ref_A": "Heat.",
                "human_ref_B": "Dunno.",
                "labels": 1,
                "score_A": 20,
                "score_B": 3,
            },
            ("", "Why?"),
            "Heat.",
            "Dunno.",
        ),
        (
            {
                "history": "Why?",
                "human_ref_A": "Dunno.",
                "human_ref_B": "Heat.",
                "labels": 0,
                "score_A": 3,
                "score_B": 20,
            },
            ("", "Why?"),
            "Heat.",
            "Dunno.",
        ),
    ],
    "prompt, answers of answer and rank (Nectar)": [
        (
            {
                "prompt": "\n\nHuman: Hi\n\nAssistant: Ahoy\n\nHuman: Why?\n\nAssistant: ",
                "answers": [
                    {"answer": "Dunno.", "rank": 3.0},
                    {"answer": "So.", "rank": 2.0},
                    {"answer": "Heat.", "rank": 1.0},
                ],
            },
            ("", "Hi", "Ahoy", "Why?"),
            "Heat.",
            "Dunno.",
        )
    ],
}
# name in sft_shapes.TEXTS -> rows, and the turns of each (system first, "" for none), or the plain
# text
TEXTS = {
    "messages": [
        ({"messages": SAID}, ("", "Hi", "Ahoy")),
        ({"system": "Be brief.", "messages": SAID}, ("Be brief.", "Hi", "Ahoy")),
    ],
    "conversations (ShareGPT)": [
        (
            {
                "conversations": [
                    {"from": "system", "value": "Be brief."},
                    {"from": "human", "value": "Hi"},
                    {"from": "gpt", "value": "Ahoy"},
                ]
            },
            ("Be brief.", "Hi", "Ahoy"),
        ),
        ({"conversations": SAID}, ("", "Hi", "Ahoy")),
    ],
    "data (UltraChat)": [
        ({"data": ["Hi", "Hello", "Joke?", "Knock."]}, ("", "Hi", "Hello", "Joke?", "Knock."))
    ],
    "prompt, completion": [({"prompt": "Hi", "completion": "Ahoy"}, ("", "Hi", "Ahoy"))],
    "prompt, response": [({"prompt": "Hi", "response": "Ahoy"}, ("", "Hi", "Ahoy"))],
    "prompt, answer": [({"prompt": "Hi", "answer": "Ahoy"}, ("", "Hi", "Ahoy"))],
    "question, completion": [({"question": "Hi", "completion": "Ahoy"}, ("", "Hi", "Ahoy"))],
    "question, response": [
        (
            {"system_prompt": "Be brief.", "question": "Hi", "response": "Ahoy"},
            ("Be brief.", "Hi", "Ahoy"),
        )
    ],
    "question, answer": [({"question": "2+2?", "answer": "4"}, ("", "2+2?", "4"))],
    "query, completion": [({"query": "Hi", "completion": "Ahoy"}, ("", "Hi", "Ahoy"))],
    "query, response": [({"query": "Hi", "response": "Ahoy"}, ("", "Hi", "Ahoy"))],
    "query, answer": [({"query": "Hi", "answer": "Ahoy"}, ("", "Hi", "Ahoy"))],
    "instruction, input, output (Alpaca)": [
        (
            {
                "instruction": "Add",
                "input": "1 1",
                "output": "2",
                "system": "Be brief.",
                "history": [["Hi", "Ahoy"]],
            },
            ("Be brief.", "Hi", "Ahoy", "Add\n\n1 1", "2"),
        ),
        (
            {"instruction": "What?", "context": "Bread is food.", "response": "Food."},
            ("", "What?\n\nBread is food.", "Food."),
        ),
    ],
    "input, output": [({"input": "Hi", "output": "Ahoy"}, ("", "Hi", "Ahoy"))],
    "text": [({"text": "plain words"}, "plain words")],
}


def rendered(said: tuple[str, ...]) -> str:
    """The text of turns (system, user, assistant, user, ...) in Zephyr's template."""
    roles = ["system", *["user", "assistant"] * len(said)]
    return "".join(f"<|{role}|>\n{words}</s>\n" for role, words in zip(roles, said))
