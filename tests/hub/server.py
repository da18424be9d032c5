"""A small server that answers as Hugging Face and as ModelScope do, from repositories held in memory.

Repositories are read by everybody unless they say otherwise, and written by those whose token is among `writers`.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

PLURALS = {"models": "model", "datasets": "dataset"}


@dataclass
class Stored:
    """A repository: revision -> path -> content; who may read it."""

    revisions: dict[str, dict[str, bytes]]
    token: str | None = None
    gated: bool = False

    def commit(self, revision: str) -> str | None:
        """The commit of a branch, a tag or a commit; None when there is none."""
        commits = {name: hashlib.sha1(repr(files).encode()).hexdigest() for name, files in self.revisions.items()}
        return commits.get(revision) or next((known for known in commits.values() if known == revision), None)

    def files(self, revision: str) -> dict[str, bytes]:
        """The files of a branch, a tag or a commit."""
        return next(files for name, files in self.revisions.items() if revision in (name, self.commit(name)))


@dataclass
class Fakes:
    """What the server holds, what it is to do wrong, and what it was asked.

    statuses: part of a path -> statuses to answer with before it behaves.
    cuts: part of a path -> number of bytes after which the connection breaks, once.
    asked: method, path and headers of every request, the names of headers in small letters.
    writers, readers: tokens of accounts that may write everywhere, or nowhere. private: of repositories made by requests.
    messages: of the commits, in order. blobs: large files that came ahead of their commit. down: no request is answered.
    """

    url: str = ""
    repositories: dict[tuple[str, str], Stored] = field(default_factory=dict)
    statuses: dict[str, list[int]] = field(default_factory=dict)
    cuts: dict[str, int] = field(default_factory=dict)
    asked: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)
    writers: set[str] = field(default_factory=set)
    readers: set[str] = field(default_factory=set)
    private: dict[str, bool] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)
    blobs: dict[str, bytes] = field(default_factory=dict)
    down: bool = False

    def add(self, kind: str, name: str, files: dict[str, str | bytes], revision: str | None = None, **about) -> Stored:
        """A repository of these files, at both default revisions or at this one."""
        content = {path: text.encode() if isinstance(text, str) else text for path, text in files.items()}
        stored = self.repositories.setdefault((kind, name), Stored({}, **about))
        for each in [revision] if revision else ["main", "master"]:
            stored.revisions[each] = content
        return stored

    def paths(self, method: str = "GET", part: str = "") -> list[str]:
        """The paths asked for by this method that contain `part`."""
        return [path for how, path, _ in self.asked if how == method and part in path]


@contextmanager
def serve() -> Iterator[Fakes]:
    """The server, on a free port of this machine, while the block runs."""
    fakes = Fakes()
    handler = type("Handler", (Handler,), {"fakes": fakes})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    fakes.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield fakes
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    fakes: Fakes

    def log_message(self, format, *args):
        """Say nothing."""

    def do_HEAD(self):
        self.do_GET()

    # --------------------------------------------------------------------------------------------------- writing

    def do_PUT(self):
        self.do_POST()

    def do_POST(self):
        body = self.body()
        self.fakes.asked.append((self.command, unquote(self.path), {}))
        parts = [unquote(part) for part in urlsplit(self.path).path.strip("/").split("/")]
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None
        token = token or (self.headers.get("Cookie") or "").partition("m_session_id=")[2].partition(";")[0] or None
        if self.fakes.down:
            self.answer(503, b"down")
        elif parts[-1] == "validate-yaml":
            self.json(200, {"errors": [], "warnings": []})
        elif token not in self.fakes.writers:
            self.answer(403 if token in self.fakes.readers else 401, b"{}")
        elif self.command == "PUT":
            self.fakes.blobs[parts[-1]] = body
            self.answer(200, b"")
        elif parts[0] == "api" and parts[1] == "v1":
            self.write_modelscope(parts[2:], json.loads(body))
        else:
            self.write_huggingface(parts[1:], body)

    def body(self):
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        pieces = []
        while size := int(self.rfile.readline(), 16):
            pieces.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(pieces)

    def write_huggingface(self, parts, body):
        if parts == ["repos", "create"]:
            asked = json.loads(body)
            name = f"{asked['organization'] or 'me'}/{asked['name']}"
            self.make(name, asked.get("visibility") == "private" or bool(asked.get("private")))
            self.json(200, {"url": f"{self.fakes.url}/{name}", "name": name})
        elif parts[3] == "preupload":
            files = [{"path": each["path"], "uploadMode": "regular", "shouldIgnore": False, "oid": None}
                     for each in json.loads(body)["files"]]  # fmt: skip
            self.json(200, {"files": files})
        else:
            lines = [json.loads(line) for line in body.decode().splitlines()]
            files = {line["value"]["path"]: base64.b64decode(line["value"]["content"])
                     for line in lines if line["key"] == "file"}  # fmt: skip
            name = "/".join(parts[1:3])
            self.commit(name, lines[0]["value"]["summary"], files)
            self.json(200, {"commitUrl": f"{self.fakes.url}/{name}/commit/{'0' * 40}", "commitOid": "0" * 40,
                            "hookOutput": ""})  # fmt: skip

    def write_modelscope(self, parts, asked):
        if parts == ["models"]:
            self.make(f"{asked['Path']}/{asked['Name']}", asked["Visibility"] == 1)
            self.json(200, {"Code": 200, "Data": {}})
        elif parts[-1] == "batch":
            objects = [{"oid": each["oid"], "actions": {"upload": {"href": f"{self.fakes.url}/blobs/{each['oid']}"}}}
                       for each in asked["objects"]]  # fmt: skip
            self.json(200, {"Code": 200, "Data": {"objects": objects}})
        else:
            files = {each["path"]: self.fakes.blobs[each["sha256"]] if each["type"] == "lfs"
                     else base64.b64decode(each["content"]) for each in asked["actions"]}  # fmt: skip
            self.commit("/".join(parts[2:4]), asked["commit_message"], files)
            self.json(200, {"Code": 200, "Success": True, "Data": {}})

    def make(self, name, private):
        if ("model", name) not in self.fakes.repositories:
            self.fakes.private[name] = private
            self.fakes.add("model", name, {})

    def commit(self, name, message, files):
        self.fakes.messages.append(message)
        stored = self.fakes.repositories["model", name]
        for revision in ("main", "master"):
            stored.revisions[revision] = {**stored.revisions[revision], **files}

    # --------------------------------------------------------------------------------------------------- reading

    def do_GET(self):
        self.fakes.asked.append(
            (self.command, unquote(self.path), {name.lower(): value for name, value in self.headers.items()})
        )
        for part, statuses in self.fakes.statuses.items():
            if part in unquote(self.path) and statuses and self.command == "GET":
                self.answer(statuses.pop(0), b"not now")
                return
        url = urlsplit(self.path)
        parts = [unquote(part) for part in url.path.strip("/").split("/")]
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        if self.fakes.down:
            self.answer(503, b"down")
        elif parts == [""]:
            self.answer(200, b"")
        elif parts[0] == "openapi":
            self.answer(404, b"{}")
        elif parts[:2] == ["api", "v1"]:
            self.modelscope(parts[2:], query)
        elif parts[0] == "api":
            self.huggingface(PLURALS[parts[1]], "/".join(parts[2:4]), parts[4:])
        else:
            kind = PLURALS.get(parts[0], "model")
            rest = parts[1:] if parts[0] in PLURALS else parts
            self.resolve(kind, "/".join(rest[:2]), rest[3], "/".join(rest[4:]))

    # ---------------------------------------------------------------------------------------------- Hugging Face

    def huggingface(self, kind, name, rest):
        stored = self.allowed(kind, name, error_header=True, described=True)
        if stored is None:
            return
        if rest[:1] == ["auth-check"]:
            self.answer(200 if given_token(self) in self.fakes.writers else 403, b"")
            return
        if rest == ["refs"]:
            branches = [
                {"name": each, "ref": f"refs/heads/{each}", "targetCommit": "0" * 40} for each in stored.revisions
            ]
            self.json(200, {"branches": branches, "tags": [], "converts": []})
            return
        commit = stored.commit(rest[1])
        if commit is None:
            self.answer(404, b"", {"X-Error-Code": "RevisionNotFound"})
            return
        siblings = [{"rfilename": path} for path in stored.files(rest[1])]
        self.json(200, {"id": name, "sha": commit, "siblings": siblings, "tags": [], "private": False})

    def resolve(self, kind, name, revision, path):
        stored = self.allowed(kind, name, error_header=True)
        if stored is None:
            return
        content = stored.files(revision).get(path)
        if content is None:
            self.answer(404, b"", {"X-Error-Code": "EntryNotFound"})
            return
        etag = hashlib.sha1(content).hexdigest()
        self.send_file(path, content, {"ETag": f'"{etag}"', "X-Repo-Commit": stored.commit(revision) or ""})

    # ------------------------------------------------------------------------------------------------ ModelScope

    def modelscope(self, parts, query):
        if parts[0] not in PLURALS:
            self.answer(404, b"{}")
            return
        stored = self.allowed(PLURALS[parts[0]], "/".join(parts[1:3]), error_header=False)
        if stored is None:
            return
        if not parts[3:]:
            self.json(200, {"Code": 200, "Data": {"Path": parts[1], "Name": parts[2], "Visibility": 5}})
            return
        if parts[3:] == ["revisions"]:
            branches = [{"Revision": each} for each in stored.revisions]
            self.json(200, {"Code": 200, "Data": {"RevisionMap": {"Branches": branches, "Tags": []}}})
            return
        if stored.commit(query["Revision"]) is None:
            self.json(404, {"Code": 404, "Message": "no such revision"})
            return
        files = stored.files(query["Revision"])
        if parts[3:] == ["repo"]:
            self.send_file(query["FilePath"], files[query["FilePath"]], {})
            return
        entries = [
            {"Path": path, "Size": len(content), "Sha256": hashlib.sha256(content).hexdigest(), "Type": "blob"}
            for path, content in files.items()
        ]
        page, size = int(query.get("PageNumber", 1)), int(query.get("PageSize", 3000))
        self.json(200, {"Code": 200, "Data": {"Files": entries[(page - 1) * size : page * size]}})

    # ------------------------------------------------------------------------------------------------------ both

    def allowed(self, kind, name, *, error_header, described=False):
        """The repository, if there is one and the token opens it; else the refusal has been sent.

        What is gated is `described` to everybody on Hugging Face, and its files are not given.
        """
        stored = self.fakes.repositories.get((kind, name))
        given = (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None
        if stored is None:
            self.answer(404, b"{}", {"X-Error-Code": "RepoNotFound"} if error_header else {})
        elif stored.gated and given != stored.token and not described:
            self.answer(403, b"{}", {"X-Error-Code": "GatedRepo"} if error_header else {})
        elif stored.token is not None and not stored.gated and given != stored.token:
            self.answer(401, b"{}")
        else:
            return stored
        return None

    def send_file(self, path, content, headers):
        start = 0
        if self.headers.get("Range"):
            start = int(self.headers["Range"].removeprefix("bytes=").partition("-")[0])
            headers = {**headers, "Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"}
        cut = next((part for part in self.fakes.cuts if part in path), None)
        if self.command == "GET" and cut is not None:
            self.head(206 if start else 200, len(content) - start, headers)
            self.wfile.write(content[start : start + self.fakes.cuts.pop(cut)])
            self.wfile.flush()
            self.close_connection = True
            self.connection.close()
            return
        self.answer(206 if start else 200, content[start:], {**headers, "Accept-Ranges": "bytes"})

    def json(self, status, value):
        self.answer(status, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def answer(self, status, body, headers=None):
        self.head(status, len(body), headers or {})
        if self.command != "HEAD":
            self.wfile.write(body)

    def head(self, status, length, headers):
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(length)}.items():
            self.send_header(name, value)
        self.end_headers()


def given_token(handler):
    """The token of a request, None where there is none."""
    return (handler.headers.get("Authorization") or "").removeprefix("Bearer ") or None
