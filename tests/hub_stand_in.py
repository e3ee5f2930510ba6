"""A stand-in for the Hub on loopback: repositories, uploads by Git LFS, commits and downloads, as
far as `huggingface_hub` asks for them with HF_HUB_DISABLE_XET=1.

`ROUTES` maps method and path to a function; a route of your own is one more entry."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import MappingProxyType
from typing import Any, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

TOKEN = "hf_of_the_stand_in"
LARGE = (
    ".safetensors",
    ".bin",
    ".gguf",
)  # go through LFS, by the .gitattributes of new repositories


class Answer(NamedTuple):
    """An HTTP response."""

    body: object = None  # bytes, or what becomes JSON
    status: int = 200
    headers: Mapping[str, str] = MappingProxyType({})


class Request(NamedTuple):
    """What a route is given."""

    hub: Hub
    match: re.Match[str]
    body: bytes
    query: dict[str, list[str]]
    headers: Any

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    def group(self, name: str) -> str:
        return unquote(self.match[name])


class Repository:
    """Owns the commits of its branches; a commit is a mapping of paths to their bytes."""

    def __init__(self, *, private: bool) -> None:
        self.private = private
        self.commits: dict[str, dict[str, bytes]] = {}
        self.branches: dict[str, str] = {}
        self.commit("main", {})

    def commit(self, branch: str, files: dict[str, bytes]) -> str:
        parent = self.branches.get(branch, "")
        listed = "".join(f"{name}{git_hash(files[name])}" for name in sorted(files))
        oid = hashlib.sha1(f"{parent}{len(self.commits)}{listed}".encode()).hexdigest()
        self.commits[oid], self.branches[branch] = files, oid
        return oid

    def oid(self, revision: str) -> str | None:
        oid = self.branches.get(revision, revision)
        return oid if oid in self.commits else None


class Hub:
    """Owns the server, its repositories and its LFS objects, and records what it was asked."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}  # of LFS, by SHA-256
        self.asked: list[tuple[str, str]] = []  # method and path
        self.before: Callable[[str, str], Answer | None] = lambda method, path: None
        self.lock = threading.Lock()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler(self))
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def files(self, repo: str, revision: str = "main") -> dict[str, bytes]:
        """The files of a branch or a commit."""
        found = self.repositories[repo]
        return found.commits[found.branches.get(revision, revision)]

    def environment(self) -> dict[str, str]:
        """What a process needs to take this for the Hub."""
        return {
            "HF_ENDPOINT": self.url,
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_TOKEN": TOKEN,
            "HF_HUB_DISABLE_UPDATE_CHECK": "1",
            "NO_PROXY": "127.0.0.1",
        }


@contextlib.contextmanager
def hub() -> Iterator[Hub]:
    """A Hub that answers until the end of the block."""
    made = Hub()
    thread = threading.Thread(target=made.server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield made
    finally:
        made.server.shutdown()
        made.server.server_close()
        thread.join()


def handler(owner: Hub) -> type[BaseHTTPRequestHandler]:
    """The class that answers the requests of one hub."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            body = read_body(self)
            url = urlsplit(self.path)
            with owner.lock:
                owner.asked.append((self.command, url.path))
            reply = owner.before(self.command, url.path)
            if reply is None:
                reply = route(owner, self.command, url.path, body, url.query, self.headers)
            content = reply.body
            if not isinstance(content, bytes):
                content = json.dumps(content).encode()
            self.send_response(reply.status)
            for name, value in reply.headers.items():
                self.send_header(name, value)
            if "Content-Length" not in reply.headers:
                self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command != "HEAD":
                with contextlib.suppress(ConnectionError):  # a client that was killed
                    self.wfile.write(content)

        do_GET = do_HEAD = do_POST = do_PUT = answer

        def log_message(self, *_: object) -> None:
            pass

    return Handler


def read_body(request: BaseHTTPRequestHandler) -> bytes:
    """The body, by its length or in chunks. Raises: ConnectionError where it breaks off."""
    if request.headers.get("Transfer-Encoding") == "chunked":
        parts = []
        while size := int(request.rfile.readline().split(b";")[0], 16):
            parts.append(request.rfile.read(size))
            request.rfile.readline()
        request.rfile.readline()
        return b"".join(parts)
    expected = int(request.headers.get("Content-Length") or 0)
    body = request.rfile.read(expected)
    if len(body) < expected:
        raise ConnectionError("the client broke off")
    return body


def route(hub: Hub, method: str, path: str, body: bytes, query: str, headers: Any) -> Answer:
    """The answer of the first route that matches.

    POST wants the token, and so does every request about a private repository."""
    for of, pattern, function in ROUTES:
        match = re.fullmatch(pattern, path)
        if match and method in of:
            is_owner = headers.get("Authorization") == f"Bearer {TOKEN}"
            if "repo" in match.groupdict():
                repository = hub.repositories.get(match["repo"])
                if repository is None or (repository.private and not is_owner):
                    return error(404, "RepoNotFound", "Repository not found")
            if method == "POST" and not is_owner:
                return error(401, "", "Invalid username or password.")
            return function(Request(hub, match, body, parse_qs(query), headers))
    return error(404, "", f"the stand-in has no route for {method} {path}")


def error(status: int, code: str, message: str) -> Answer:
    """An error as the Hub writes it, in headers and body."""
    headers = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})
    return Answer({"error": message}, status, headers)


def create(request: Request) -> Answer:
    """POST /api/repos/create; 409 where the repository is there."""
    wanted = request.json
    name = f"{wanted['organization'] or 'me'}/{wanted['name']}"
    url = {"url": f"{request.hub.url}/{name}"}
    if name in request.hub.repositories:
        return Answer(url | {"error": "You already created this model repo"}, 409)
    private = wanted.get("private") or wanted.get("visibility") == "private"
    request.hub.repositories[name] = Repository(private=bool(private))
    return Answer(url)


def create_branch(request: Request) -> Answer:
    repository = request.hub.repositories[request.group("repo")]
    branch = request.group("branch")
    if branch in repository.branches:
        return error(409, "", "the branch is there already")
    repository.branches[branch] = repository.branches["main"]
    return Answer({})


def validate_yaml(request: Request) -> Answer:
    """The Hub's check of a card's header, of which this refuses what is no mapping."""
    parts = request.json["content"].split("---\n")
    header = yaml.safe_load(parts[1]) if len(parts) > 2 and not parts[0] else {}
    if isinstance(header, dict) and isinstance(header.get("license", ""), str):
        return Answer({"errors": [], "warnings": []})
    return Answer({"errors": [{"message": '"license" must be a string'}], "warnings": []}, 400)


def preupload(request: Request) -> Answer:
    """Which files go through LFS, and what the branch holds under their names."""
    repository = request.hub.repositories[request.group("repo")]
    oid = repository.oid(request.group("revision"))
    present = repository.commits[oid] if oid else {}
    files = []
    for wanted in request.json["files"]:
        path = wanted["path"]
        is_large = path.endswith(LARGE)
        entry = {"path": path, "uploadMode": "lfs" if is_large else "regular"}
        entry["shouldIgnore"] = False
        if path in present:
            entry["oid"] = sha256(present[path]) if is_large else git_hash(present[path])
        files.append(entry)
    return Answer({"files": files})


def lfs_batch(request: Request) -> Answer:
    """Where to put each object; no action for one that is there."""
    objects = []
    for wanted in request.json["objects"]:
        entry = {"oid": wanted["oid"], "size": wanted["size"]}
        if wanted["oid"] not in request.hub.objects:
            href = f"{request.hub.url}/lfs/{wanted['oid']}"
            entry["actions"] = {"upload": {"href": href, "header": {}}}
        objects.append(entry)
    return Answer({"transfer": "basic", "objects": objects})


def put_object(request: Request) -> Answer:
    """Keep an object, if it is what its address says."""
    oid = request.group("oid")
    if sha256(request.body) != oid:
        return Answer({"error": "the content is not of this digest"}, 400)
    request.hub.objects[oid] = request.body
    return Answer(b"", headers={"ETag": f'"{oid}"'})


def commit(request: Request) -> Answer:
    """Files by content or by LFS object, and deletions, on top of what the branch holds."""
    name, branch = request.group("repo"), request.group("revision")
    repository = request.hub.repositories[name]
    files = dict(repository.commits[repository.branches[branch]])
    for line in request.body.splitlines():
        entry = json.loads(line)
        value = entry["value"]
        if entry["key"] == "file":
            files[value["path"]] = base64.b64decode(value["content"])
        elif entry["key"] == "lfsFile":
            if value["oid"] not in request.hub.objects:
                return error(400, "", f"{value['path']}: its LFS object has not arrived")
            files[value["path"]] = request.hub.objects[value["oid"]]
        elif entry["key"] == "deletedFile":
            del files[value["path"]]
    oid = repository.commit(branch, files)
    url = f"{request.hub.url}/{name}/commit/{oid}"
    return Answer({"commitUrl": url, "commitOid": oid, "success": True})


def info(request: Request) -> Answer:
    """Name, commit and files of a repository."""
    name = request.group("repo")
    repository = request.hub.repositories[name]
    oid = repository.oid(request.match.groupdict().get("revision") or "main")
    if oid is None:
        return error(404, "RevisionNotFound", "Invalid rev id")
    siblings = [{"rfilename": path} for path in sorted(repository.commits[oid])]
    return Answer(
        {"id": name, "modelId": name, "sha": oid, "private": repository.private}
        | {"tags": [], "siblings": siblings}
    )


def tree(request: Request) -> Answer:
    """The files of a commit, with their sizes and digests."""
    repository = request.hub.repositories[request.group("repo")]
    oid = repository.oid(request.group("revision"))
    if oid is None:
        return error(404, "RevisionNotFound", "Invalid rev id")
    entries = []
    for path, content in sorted(repository.commits[oid].items()):
        entry: dict[str, object] = {"type": "file", "path": path, "size": len(content)}
        entry["oid"] = git_hash(content)
        if path.endswith(LARGE):
            entry["lfs"] = {"oid": sha256(content), "size": len(content), "pointerSize": 134}
        entries.append(entry)
    return Answer(entries)


def resolve(request: Request) -> Answer:
    """The bytes of a file, whole or from the start of a range."""
    repository = request.hub.repositories[request.group("repo")]
    oid = repository.oid(request.group("revision"))
    if oid is None:
        return error(404, "RevisionNotFound", "Invalid rev id")
    path = request.group("path")
    content = repository.commits[oid].get(path)
    if content is None:
        return error(404, "EntryNotFound", "Entry not found")
    digest = sha256(content) if path.endswith(LARGE) else git_hash(content)
    headers = {"ETag": f'"{digest}"', "X-Repo-Commit": oid, "Accept-Ranges": "bytes"}
    asked = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("Range") or "")
    if asked is None:
        return Answer(content, headers=headers)
    start, end = int(asked[1]), int(asked[2] or len(content) - 1)
    headers["Content-Range"] = f"bytes {start}-{end}/{len(content)}"
    return Answer(content[start : end + 1], 206, headers)


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def git_hash(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


REPO = r"(?P<repo>[\w.-]+/[\w.-]+)"
API = rf"/api/(?:models|datasets)/{REPO}"
ROUTES: list[tuple[tuple[str, ...], str, Callable[[Request], Answer]]] = [
    (("POST",), "/api/repos/create", create),
    (("POST",), "/api/validate-yaml", validate_yaml),
    (("POST",), rf"{API}/branch/(?P<branch>[^/]+)", create_branch),
    (("POST",), rf"{API}/preupload/(?P<revision>[^/]+)", preupload),
    (("POST",), rf"/(?:datasets/)?{REPO}\.git/info/lfs/objects/batch", lfs_batch),
    (("PUT",), r"/lfs/(?P<oid>\w{64})", put_object),
    (("POST",), rf"{API}/commit/(?P<revision>[^/]+)", commit),
    (("GET",), API, info),
    (("GET",), rf"{API}/revision/(?P<revision>[^/]+)", info),
    (("GET",), rf"{API}/tree/(?P<revision>[^/]+)", tree),
    (("GET", "HEAD"), rf"/(?:datasets/)?{REPO}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", resolve),
]
