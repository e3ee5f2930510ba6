"""Files of this folder, figures and tables become parts of one HTML page that loads nothing else.

Large payloads (Plotly's JavaScript, figures, the rows of the pairs table) are stored as gzip in
base64, in elements that a browser takes for plain text, and `page.js` unpacks them. Base64 holds
neither `<` nor `&`, so nothing in a payload can end its element.
"""

import base64
import gzip
import json
from html import escape
from pathlib import Path

FOLDER = Path(__file__).parent


def asset(name: str) -> str:
    """The text of a `.css` or `.js` file beside this module."""
    return (FOLDER / name).read_text(encoding="utf-8")


def compressed(name: str, payload: str | bytes) -> str:
    """An element that holds `payload`; in the page `await zephyr.unpack(name)` gives its text.

    Args: name: unique on the page.
    """
    content = payload.encode("utf-8", "backslashreplace") if isinstance(payload, str) else payload
    packed = base64.b64encode(gzip.compress(content, 9, mtime=0)).decode("ascii")
    return f'<script type="text/plain" data-payload="{escape(name)}">{packed}</script>\n'


def compressed_json(name: str, value: object) -> str:
    """`compressed` of a value as JSON, without spaces; a number that is not finite is an error."""
    return compressed(name, json.dumps(value, separators=(",", ":"), allow_nan=False))
