"""`zephyr chat`: a person talks to a model, in the terminal or in the browser."""

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from zephyr.config import BadInput


def chat(
    models: Annotated[
        list[str],
        Argument(
            metavar="MODEL",
            help="A model folder, hf:PATH or openai:MODEL@BASE_URL. Two are possible with --web.",
        ),
    ],
    max_new_tokens: Annotated[int, Option(metavar="N", help="Limit of an answer.")] = 512,
    temperature: Annotated[float, Option(metavar="T", help="Of sampling.")] = 0.7,
    top_p: Annotated[float, Option(metavar="P", help="Of sampling.")] = 0.95,
    top_k: Annotated[
        int,
        Option(
            metavar="K",
            help="Of sampling; 0: all. Not sent to endpoints, because OpenAI's refuses the field.",
        ),
    ] = 50,
    greedy: Annotated[bool, Option("--greedy", help="No sampling.")] = False,
    seed: Annotated[int, Option(help="Of sampling; /regenerate takes the next.")] = 0,
    key_variable: Annotated[
        str, Option(metavar="NAME", help="Environment variable that holds an endpoint's key.")
    ] = "OPENAI_API_KEY",
    web: Annotated[bool, Option("--web", help="Serve a page for the browser.")] = False,
    port: Annotated[int, Option(metavar="N", help="Of --web.")] = 7860,
    host: Annotated[
        str, Option(metavar="NAME", help="Of --web. All but loopback require --share-on-network.")
    ] = "127.0.0.1",
    share_on_network: Annotated[
        bool,
        Option(
            "--share-on-network",
            help="Let others log in as user zephyr with the password in ZEPHYR_WEB_TOKEN.",
        ),
    ] = False,
    votes: Annotated[
        Path,
        Option(
            metavar="FILE",
            help="Votes become pairs for train_dpo.py here; ties and votes for neither go to "
            "NAME.undecided.jsonl beside it.",
        ),
    ] = Path("votes.jsonl"),
    prompts: Annotated[
        str | None,
        Option(
            metavar="SOURCE",
            help="Prompts shown as examples; default: those in samples.jsonl of the model's run.",
        ),
    ] = None,
) -> None:
    """Talk to a model in the terminal or the browser.

    With --web it also compares two models by blind votes.

    \b
    example: zephyr chat --web runs/tiny/sft/model runs/tiny/dpo/model --votes votes.jsonl
    """
    from zephyr.playground import models as playground

    if len(models) > (2 if web else 1):
        raise BadInput(f"chat: {len(models)} models; one is possible, or two with --web")
    sampling = playground.Sampling(max_new_tokens, temperature, top_p, top_k)
    playground.check_sampling(sampling)
    if greedy:
        sampling = sampling._replace(temperature=0.0)
    if web:
        from zephyr.playground.web import serve

        serve(
            models,
            sampling,
            seed=seed,
            key_variable=key_variable,
            votes=votes,
            prompts=prompts,
            host=host,
            port=port,
            share_on_network=share_on_network,
        )
    else:
        from zephyr.playground.terminal import talk

        talk(models[0], sampling, seed=seed, key_variable=key_variable, prompts=prompts)
