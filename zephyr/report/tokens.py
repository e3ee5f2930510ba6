"""Responses become HTML that colours each token by its log-ratio, log pi - log pi_ref, in nats.

Blue and underlined: the policy finds the token more likely than the reference does. Orange and
dotted: less likely. The fragment works in a notebook cell (`IPython.display.HTML`) and in a page:
its colours lie over whatever ground and text colour are there.
"""

import math
from collections.abc import Iterator, Sequence
from html import escape
from itertools import accumulate
from typing import NamedTuple

from zephyr.evaluation.score import TokenScores

SCALE_SHARE = 0.98  # of the tokens whose colour is within the scale; others have its end
LEAST_SCALE = 0.1  # nats
MARKED = 0.25  # of the scale, from which a token is underlined
CARRIAGE_RETURN = "\r"  # a parser of HTML would make a line of it
ENDS = {"\n": "↵", "\t": "→", CARRIAGE_RETURN: "␍"}  # how they are shown
STYLE = """
.zt{line-height:1.5;max-width:100%}
.zt *{box-sizing:border-box}
.zt-key{display:flex;flex-wrap:wrap;gap:.2rem .6rem;align-items:center;margin:0 0 .8rem;
font-size:.9em}
.zt-bar{flex:0 1 14rem;min-width:8rem}
.zt-bar i{display:block;height:.8rem;border-radius:3px;background:linear-gradient(90deg,
rgba(230,126,20,.8),rgba(230,126,20,0) 50%,rgba(43,125,233,0) 50%,rgba(43,125,233,.8))}
.zt-bar span{display:flex;justify-content:space-between;font-variant-numeric:tabular-nums}
.zt-response{margin:0 0 1rem}
.zt-head{margin:0 0 .3rem}
.zt-head span{opacity:.75;font-variant-numeric:tabular-nums}
.zt-text{font-family:ui-monospace,"SF Mono","Cascadia Mono",Menlo,Consolas,monospace;
font-size:.92em;line-height:1.85;white-space:pre-wrap;overflow-wrap:anywhere;margin:0;
border:1px solid rgba(128,128,128,.35);border-radius:6px;padding:.5rem .7rem}
.zt-t{position:relative;border-radius:2px;padding:.12em 0;margin-right:1px;
text-underline-offset:.28em;background:rgba(var(--zt-rgb),calc(var(--a)*.8))}
.zt-up{--zt-rgb:43,125,233}
.zt-down{--zt-rgb:230,126,20}
.zt-up.zt-far{text-decoration:underline 2px rgb(43,125,233)}
.zt-down.zt-far{text-decoration:underline dotted 2px rgb(230,126,20)}
.zt-t:hover,.zt-t:focus{outline:2px solid currentColor;outline-offset:1px;z-index:2}
.zt-t:hover::after,.zt-t:focus::after{content:attr(data-v);position:absolute;left:0;top:100%;
z-index:3;white-space:pre;background:#14181f;color:#f2f4f8;border:1px solid #8d96a5;
border-radius:5px;padding:.3rem .55rem;font:12px/1.45 system-ui,sans-serif;margin-top:4px;
pointer-events:none;text-decoration:none;direction:ltr}
.zt-t.zt-late:hover::after,.zt-t.zt-late:focus::after{left:auto;right:0}
.zt-s{background:radial-gradient(circle,currentColor .055em,transparent .08em) center/100% 100%;
opacity:.4}
.zt-n::before{content:attr(data-c);opacity:.5}
"""
# Arrow keys move along the tokens of a response. Without scripts a click still shows a value.
SCRIPT = """
document.currentScript.parentElement.addEventListener("keydown",(event)=>{
const token=event.target.closest(".zt-t");
const to={ArrowRight:"nextElementSibling",ArrowLeft:"previousElementSibling"}[event.key];
if(!token||!to||!token[to])return;
token.tabIndex=-1;token[to].tabIndex=0;token[to].focus();event.preventDefault();});
document.currentScript.parentElement.addEventListener("mouseover",(event)=>{
const token=event.target.closest(".zt-t");if(token)turn(token);});
document.currentScript.parentElement.addEventListener("focusin",(event)=>{
const token=event.target.closest(".zt-t");if(token)turn(token);});
function turn(token){const box=token.parentElement.getBoundingClientRect();
token.classList.toggle("zt-late",token.getBoundingClientRect().left>box.left+box.width/2);}
"""
PAGE_STYLE = """
:root{color-scheme:light dark}
body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:1320px;padding:0 1.2rem;
background:Canvas;color:CanvasText;overflow-wrap:anywhere}
h2{font:600 1em ui-monospace,Menlo,Consolas,monospace;margin:2.2rem 0 .3rem}
.prompt{white-space:pre-wrap;margin:0 0 .8rem;max-height:16rem;overflow:auto}
.pair .zt-responses{display:grid;grid-template-columns:minmax(0,1fr) minmax(0,1fr);gap:1rem}
@media(max-width:760px){.pair .zt-responses{grid-template-columns:minmax(0,1fr)}}
@media print{.pair{break-inside:avoid}.prompt{max-height:none}}
"""


class ScoredPair(NamedTuple):
    """A pair and the tokens of both its responses."""

    id: str
    prompt: str
    chosen: TokenScores
    rejected: TokenScores


def tokens_html(responses: Sequence[tuple[str, TokenScores]]) -> str:
    """Render responses, each under its name, as one fragment with a scale of colours for all.

    In a notebook: `IPython.display.HTML(tokens_html([("chosen", scores)]))`.
    Returns: HTML with its own style; everything in it is escaped.
    Raises: ValueError naming the response whose lists differ in length.
    """
    scale = colour_scale([scores for _, scores in responses])
    return (
        f'<div class="zt"><style>{STYLE}</style>{key(scale)}{blocks(responses, scale)}'
        f"<script>(()=>{{{SCRIPT}}})()</script></div>"
    )


def tokens_page(pairs: Sequence[ScoredPair], title: str) -> str:
    """Render a page of pairs that loads no other file; one scale of colours for all pairs.

    A token takes about 150 bytes.
    Raises: ValueError naming the response whose lists differ in length.
    """
    scale = colour_scale([scores for pair in pairs for scores in (pair.chosen, pair.rejected)])
    body = "".join(pair_html(pair, scale) for pair in pairs)
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width">'
        f"<title>{text_html(title)}</title><style>{PAGE_STYLE}</style>"
        f'<h1>{text_html(title)}</h1><div class="zt"><style>{STYLE}</style>{key(scale)}'
        f"{body}<script>(()=>{{{SCRIPT}}})()</script></div></html>\n"
    )


def pair_html(pair: ScoredPair, scale: float) -> str:
    responses = (("chosen", pair.chosen), ("rejected", pair.rejected))
    return (
        f'<section class="pair"><h2><bdi>{text_html(pair.id)}</bdi></h2>'
        f'<p class="prompt" dir="auto">{text_html(pair.prompt)}</p>'
        f"{blocks(responses, scale)}</section>"
    )


def blocks(responses: Sequence[tuple[str, TokenScores]], scale: float) -> str:
    rendered = "".join(response_html(name, scores, scale) for name, scores in responses)
    return f'<div class="zt-responses">{rendered}</div>'


def log_ratios(name: str, scores: TokenScores) -> list[float]:
    """log pi - log pi_ref of each token. Raises: ValueError where the lists differ in length."""
    lengths = [len(values) for values in scores]
    if len(set(lengths)) != 1:
        raise ValueError(
            f"{name}: {lengths[0]} tokens, {lengths[1]} log-probs and {lengths[2]} of the "
            "reference; expected as many of each: score with a reference"
        )
    return [policy - reference for policy, reference in zip(scores.logp, scores.ref_logp)]


def colour_scale(responses: Sequence[TokenScores]) -> float:
    """The log-ratio of the strongest colour: that of the 98th percentile, rounded up to one digit,
    so that a single token does not fade all others."""
    sizes = sorted(
        size
        for scores in responses
        for policy, reference in zip(scores.logp, scores.ref_logp)
        if math.isfinite(size := abs(policy - reference))
    )
    largest = sizes[int(SCALE_SHARE * (len(sizes) - 1))] if sizes else 0.0
    if largest <= LEAST_SCALE:
        return LEAST_SCALE
    unit = 10.0 ** math.floor(math.log10(largest))
    return float(f"{math.ceil(largest / unit - 1e-9) * unit:.1g}")


def key(scale: float) -> str:
    """What the colours mean."""
    return (
        '<div class="zt-key"><span>log π − log π<sub>ref</sub> of each token, nats:</span>'
        f'<span class="zt-bar"><i></i><span><span>≤ −{scale:g}</span><span>0</span>'
        f"<span>≥ +{scale:g}</span></span></span>"
        "<span>Orange, dotted: less likely than under the reference; blue, underlined: more "
        "likely. Point at a token, or press ← →, for its numbers.</span></div>"
    )


def response_html(name: str, scores: TokenScores, scale: float) -> str:
    """A response under its name, its length and the sum of its log-ratios."""
    ratios = log_ratios(name, scores)
    total = sum(ratios)
    mean = f", {number(total / len(ratios))} a token" if ratios else ""
    return (
        f'<div class="zt-response"><p class="zt-head"><b>{text_html(name)}</b> '
        f"<span>{len(ratios):,} tokens, log-ratio {number(total)} nats{mean}</span></p>"
        f'<div class="zt-text" dir="auto">{"".join(token_spans(scores, ratios, scale))}</div></div>'
    )


def token_spans(scores: TokenScores, ratios: Sequence[float], scale: float) -> Iterator[str]:
    """An element for each token; the first one of a response can be reached by Tab."""
    sums = accumulate(ratios)
    columns = zip(scores.tokens, scores.logp, scores.ref_logp, ratios, sums)
    for n, (token, policy, reference, ratio, total) in enumerate(columns):
        share = min(abs(ratio) / scale, 1.0) if not math.isnan(ratio) else 0.0
        marks = ("zt-down" if ratio < 0 else "zt-up") + (" zt-far" if share >= MARKED else "")
        value = (
            f"{number(ratio)} nats\nlog p {number(policy)}, reference {number(reference)}\n"
            f"sum so far {number(total)}"
        )
        yield (
            f'<span class="zt-t {marks}" style="--a:{share:.2f}" tabindex="{-1 if n else 0}" '
            f'data-v="{escape(value)}">{token_text(token)}</span>'
        )


def number(value: float) -> str:
    """Two decimals, with a sign; +0.00 where it rounds to 0."""
    if not math.isfinite(value):
        return "not a number" if math.isnan(value) else "−∞" if value < 0 else "+∞"
    return f"{value + 0.0:+.2f}".replace("-0.00", "+0.00").replace("-", "−")


def token_text(token: str) -> str:
    """A token with spaces as dots, ends of lines as arrows; copied, they are as they were."""
    if not token:
        return '<span class="zt-n" data-c="∅"></span>'
    return "".join(map(character, token))


def character(c: str) -> str:
    if c == " ":
        return '<span class="zt-s"> </span>'
    if c in ENDS:
        return f'<span class="zt-n" data-c="{ENDS[c]}">{"" if c == CARRIAGE_RETURN else c}</span>'
    return text_html(c)


def text_html(text: str) -> str:
    """Escaped; what HTML can't hold becomes visible: control characters their pictures (U+2400 and
    on), lone surrogates U+FFFD."""
    shown = "".join(chr(0x2400 + ord(c)) if ord(c) < 32 and c not in "\n\t" else c for c in text)
    return escape(shown.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace"))
