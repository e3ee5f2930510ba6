"""A topic becomes an opening question, and this a dialogue of user-simulator and assistant turns, as UltraChat's do (arXiv:2305.14233)."""
import re
from collections.abc import Sequence

from zephyr.data.harvest import Found, Job, Task, answers, pieces, request, row
from zephyr.data.templates import fill
from zephyr.teacher import Request

SPEAKER = re.compile(r"^(user|assistant|human|ai)\s*:", re.IGNORECASE | re.MULTILINE)


def ask_opening(job: Job, number: int) -> tuple[Request, dict[str, object]]:
    """For the user's first words; topics come in the order of the seeds, over and over."""
    topic = job.seeds[number % len(job.seeds)]
    prompt = fill(job.templates["opening"], topic=topic.instruction)
    return (request(job, "opening", f"{number}", prompt, topic=topic.instruction),
            {"demonstrations": [topic.id], "topic": topic.instruction})


def parse_turn(text: str) -> Found:
    """The whole reply; None where nothing is said, or said by somebody named."""
    return [(text.strip(),) if text.strip() and not SPEAKER.search(text) else None]


def converse(job: Job, openings: Sequence[Task]) -> list[dict[str, object]]:
    """A row for each dialogue of `job.turns` user turns: all go on turn by turn, and one with a bad turn is left out and counted."""
    talks = [(task, [{"role": "user", "content": task.instruction}]) for task in openings]
    for turn in range(1, 2 * job.turns):
        kind, role = ("answer", "assistant") if turn % 2 else ("user_turn", "user")
        replies = answers(job, "dialogues", [
            request(job, kind, f"{task.id}/{turn}", said if turn % 2 else as_user(job, task, said), topic=task.lineage["topic"],
                    said=[message["content"] for message in said]) for task, said in talks])
        going_on = []
        for (task, said), reply in zip(talks, replies):
            for text, in pieces(job, "dialogues", reply, parse_turn):
                said.append({"role": role, "content": text})
                task.calls.setdefault(kind, []).append(reply.digest)
                going_on.append((task, said))
        talks = going_on
    job.count("dialogues", "kept", len(talks))
    return [row(job, task, 0, said) for task, said in talks]


def as_user(job: Job, task: Task, said: Sequence[dict[str, str]]) -> str:
    """What the teacher is told to play the user."""
    dialogue = "\n\n".join(f"{message['role'].capitalize()}: {message['content']}" for message in said)
    return fill(job.templates["user_turn"], topic=str(task.lineage["topic"]), dialogue=dialogue)
