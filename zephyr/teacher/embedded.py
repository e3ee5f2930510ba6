"""A Python function becomes a teacher: it needs no model and no server, and costs nothing."""

from collections.abc import Callable, Sequence

from zephyr.teacher.request import Budget, Reply, Request, Teacher, utc_now


def embedded(name: str, reply: Callable[[Request], str], version: str) -> Teacher:
    """Return a teacher that is a function of the request.

    Args:
        name: the model's name in replies and rows.
        reply: returns the text of the reply. It may read `Request.about`.
        version: part of the teacher's identity: change it when `reply` changes, so that replies of
            the old function in a ledger are not used.
    Returns:
        The teacher. Its token counts are numbers of words; its price is 0.
    """
    identity = f"{name} {version}"

    def answer(requests: Sequence[Request], keep: Callable[[Reply], None], budget: Budget) -> None:
        for request in requests:
            reservation = budget.reserve(request.messages, request.max_tokens)
            text = reply(request)
            prompt_words = sum(len(str(message["content"]).split()) for message in request.messages)
            words = len(text.split())
            price = budget.settle(reservation, prompt_words, words)
            digest = request.digest(identity)
            keep(Reply(digest, text, name, version, prompt_words, words, price, utc_now()))

    return Teacher(name, answer, identity=identity)
