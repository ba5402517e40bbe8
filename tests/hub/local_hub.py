"""A Hub on this machine: the part of the Hugging Face Hub's HTTP API that pushing, pulling and listing use.

Design decisions
- Real HTTP, real commits: clients are the unchanged `huggingface_hub`, `transformers` and `datasets`, told by
  `HF_ENDPOINT` where the Hub is. Weights go the way of git-lfs (`HF_HUB_DISABLE_XET`), checked by their sha256.
- A repository is a list of commits, each a complete mapping from path to bytes, with branches and tags as names for
  commits. So any revision can be read again, and tests can look at what was ever pushed.
- Writing needs the token; a card whose YAML is no valid card is refused, as on the Hub.

Knows: HTTP, commits. Must not know: models, music, what a file means (other than README.md).
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit


TOKEN = "hf_local"
DATE = "2026-01-01T00:00:00.000Z"
# what the Hub stores outside git; everything else goes up inside the commit
LFS_ENDINGS = (".safetensors", ".bin", ".pt", ".pth", ".arrow", ".parquet", ".mid")
_KIND = r"(?P<kind>models|datasets)"
_NAME = r"(?P<name>[\w.-]+/[\w.-]+)"


@dataclass
class Commit:
    """Files of one moment; `message` is the commit's first line."""

    oid: str
    message: str
    files: dict[str, bytes]


@dataclass
class Repository:
    commits: dict[str, Commit] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)  # branch or tag -> oid

    def find(self, revision: str) -> Commit | None:
        return self.commits.get(self.names.get(revision, revision))

    def add(self, branch: str, message: str, files: dict[str, bytes]) -> Commit:
        content = json.dumps([len(self.commits), message, sorted((k, _sha1(v)) for k, v in files.items())])
        commit = Commit(hashlib.sha1(content.encode()).hexdigest(), message, files)
        self.commits[commit.oid] = commit
        self.names[branch] = commit.oid
        return commit


def _sha1(content: bytes) -> str:
    """The id git gives a file."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _is_lfs(path: str) -> bool:
    return path.endswith(LFS_ENDINGS)


def card_problem(text: str) -> str | None:
    """What the Hub would refuse in a README.md, or None."""
    from huggingface_hub import ModelCard

    try:
        data = ModelCard(text).data.to_dict()
    except Exception as error:  # whatever the YAML reader raises is the answer
        return str(error)
    for name in ("tags", "base_model", "datasets", "language"):
        value = data.get(name)
        values = value if isinstance(value, list) else [] if value is None else [value]
        if not all(isinstance(v, str) and v for v in values):
            return f'"{name}" must be a string or a list of strings'
    for name in ("license", "pipeline_tag", "library_name"):
        if not isinstance(data.get(name, ""), str):
            return f'"{name}" must be a string'
    return None


class Problem(Exception):
    """An answer other than success: status, the Hub's error code, words."""

    def __init__(self, status: int, code: str = "", message: str = "", headers: dict | None = None):
        super().__init__(message)
        self.status, self.code, self.message, self.headers = status, code, message or code, headers or {}


class LocalHub:
    """`with LocalHub() as hub:` serves on a free port; `hub.repositories` is the state, `hub.requests` the log."""

    def __init__(self):
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.blobs: dict[str, bytes] = {}
        self.requests: list[tuple[str, str]] = []
        self.lock = threading.Lock()

    def __enter__(self):
        handler = type("Handler", (_Handler,), {"hub": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()

    def environment(self, home) -> dict[str, str]:
        """Variables for a client process that keeps all it caches in the folder `home`."""
        return {
            "HF_ENDPOINT": self.endpoint,
            "HF_HOME": str(home),
            "HF_TOKEN": TOKEN,
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
        }

    def repository(self, name: str, kind: str = "models") -> Repository:
        return self.repositories[kind, name]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: LocalHub

    def log_message(self, *_):
        pass

    # ------------------------------------------------------------------------------------------------------- plumbing

    def _answer(self, status: int, body: bytes = b"", headers: dict | None = None):
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _json(self, value, status: int = 200, headers: dict | None = None):
        self._answer(status, json.dumps(value).encode(), {"Content-Type": "application/json", **(headers or {})})

    def _serve(self):
        parts = urlsplit(self.path)
        path, self.query = unquote(parts.path), {k: v[0] for k, v in parse_qs(parts.query).items()}
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        with self.hub.lock:
            self.hub.requests.append((self.command, path))
            try:
                for method, pattern, action in ROUTES:
                    found = re.fullmatch(pattern, path) if self.command in method else None
                    if found:
                        return action(self, **found.groupdict())
                raise Problem(404, "EntryNotFound", f"this hub does not know {self.command} {path}")
            except Problem as problem:
                said = {"X-Error-Message": problem.message, **problem.headers}
                if problem.code:
                    said["X-Error-Code"] = problem.code
                self._json({"error": problem.message}, problem.status, said)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _serve

    def _authorised(self):
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            raise Problem(401, "", "Invalid username or password.")

    def _repository(self, kind: str | None, name: str) -> Repository:
        found = self.hub.repositories.get(((kind or "models").rstrip("/"), name))
        if found is None:
            raise Problem(404, "RepoNotFound", f"Repository not found: {name}")
        return found

    def _commit(self, kind, name: str, revision: str) -> tuple[Repository, Commit]:
        repository = self._repository(kind, name)
        commit = repository.find(revision)
        if commit is None:
            raise Problem(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return repository, commit

    # -------------------------------------------------------------------------------------------------------- writing

    def create(self):
        self._authorised()
        asked = json.loads(self.body)
        name = f"{asked.get('organization') or 'me'}/{asked['name']}"
        key = (asked.get("type") or "model") + "s", name
        url = self.hub.endpoint + ("/" if key[0] == "models" else "/datasets/") + name
        if key in self.hub.repositories:
            return self._json({"error": "You already created this repo", "url": url}, 409)
        repository = self.hub.repositories[key] = Repository()
        repository.add("main", "initial commit", {".gitattributes": b"*.safetensors filter=lfs -text\n"})
        self._json({"url": url, "name": name, "id": name})

    def validate_yaml(self):
        problem = card_problem(json.loads(self.body)["content"])
        if problem:
            return self._json({"errors": [{"message": problem}], "warnings": []}, 400)
        self._json({"errors": [], "warnings": []})

    def preupload(self, kind, name, revision):
        self._authorised()
        files = self._commit(kind, name, revision)[1].files
        answer = []
        for entry in json.loads(self.body)["files"]:
            path = entry["path"]
            mode = {"path": path, "uploadMode": "lfs" if _is_lfs(path) else "regular", "shouldIgnore": False}
            if path in files:
                known = files[path]
                mode["oid"] = hashlib.sha256(known).hexdigest() if _is_lfs(path) else _sha1(known)
            answer.append(mode)
        self._json({"files": answer})

    def lfs_batch(self, kind, name):
        self._authorised()
        self._repository(kind, name)
        objects = []
        for entry in json.loads(self.body)["objects"]:
            upload = {"href": f"{self.hub.endpoint}/blobs/{entry['oid']}"}
            actions = {} if entry["oid"] in self.hub.blobs else {"actions": {"upload": upload}}
            objects.append({"oid": entry["oid"], "size": entry["size"], **actions})
        self._json({"transfer": "basic", "objects": objects})

    def put_blob(self, oid):
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise Problem(400, "", "the content does not have this sha256")
        self.hub.blobs[oid] = self.body
        self._answer(200)

    def commit(self, kind, name, revision):
        self._authorised()
        repository, parent = self._commit(kind, name, revision)
        files, message = dict(parent.files), ""
        for line in self.body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "header":
                message = value["summary"]
            elif entry["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                files[value["path"]] = self.hub.blobs[value["oid"]]
            elif entry["key"] == "deletedFile":
                del files[value["path"]]
            elif entry["key"] == "deletedFolder":
                files = {k: v for k, v in files.items() if not k.startswith(value["path"].rstrip("/") + "/")}
            else:
                raise Problem(400, "", f"this hub does not know the operation {entry['key']}")
        made = repository.add(revision, message, files)
        self._json(
            {"success": True, "commitOid": made.oid, "commitUrl": f"{self.hub.endpoint}/{name}/commit/{made.oid}"}
        )

    def branch(self, kind, name, revision):
        self._authorised()
        repository = self._repository(kind, name)
        if revision in repository.names:
            return self._json({"error": "Reference already exists"}, 409)
        start = (json.loads(self.body) if self.body else {}).get("startingPoint") or "main"
        repository.names[revision] = self._commit(kind, name, start)[1].oid
        self._json({})

    def tag(self, kind, name, revision):
        self._authorised()
        repository, commit = self._commit(kind, name, revision)
        repository.names[json.loads(self.body)["tag"]] = commit.oid
        self._json({})

    # -------------------------------------------------------------------------------------------------------- reading

    def info(self, kind, name, revision="main"):
        _, commit = self._commit(kind, name, revision)
        card = {}
        if "README.md" in commit.files:
            from huggingface_hub import ModelCard

            card = ModelCard(commit.files["README.md"].decode()).data.to_dict()
        tags = [*card.get("tags", ())] + [f"base_model:{card[key]}" for key in ("base_model",) if key in card]
        self._json(
            {
                "_id": "0",
                "id": name,
                "modelId": name,
                "sha": commit.oid,
                "private": False,
                "lastModified": DATE,
                "createdAt": DATE,
                "tags": tags,
                "downloads": 0,
                "likes": 0,
                "cardData": card,
                "pipeline_tag": card.get("pipeline_tag"),
                "library_name": card.get("library_name"),
                "siblings": [{"rfilename": path} for path in sorted(commit.files)],
            }
        )

    def _entry(self, path: str, content: bytes) -> dict:
        entry = {"type": "file", "oid": _sha1(content), "size": len(content), "path": path}
        if _is_lfs(path):
            entry["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 134}
        return entry

    def tree(self, kind, name, revision, folder=None):
        _, commit = self._commit(kind, name, revision)
        start = f"{folder}/" if folder else ""
        inside = {path: content for path, content in commit.files.items() if path.startswith(start)}
        if folder and not inside:
            raise Problem(404, "EntryNotFound", f"{folder} does not exist on {revision}")
        deep = self.query.get("recursive", "false").lower() in ("true", "1")
        folders = {path[: i + 1] for path in inside for i, c in enumerate(path) if c == "/" and i >= len(start)}
        shown = [p for p in inside if deep or "/" not in p[len(start) :]]
        folders = [f for f in folders if deep or "/" not in f[len(start) : -1]]
        answer = [{"type": "directory", "oid": "0" * 40, "size": 0, "path": f[:-1]} for f in sorted(folders)]
        self._json(answer + [self._entry(path, inside[path]) for path in sorted(shown)])

    def paths_info(self, kind, name, revision):
        _, commit = self._commit(kind, name, revision)
        asked = json.loads(self.body) if self.body[:1] == b"{" else parse_qs(self.body.decode())
        paths = asked["paths"] if isinstance(asked["paths"], list) else [asked["paths"]]
        answer = [self._entry(path, commit.files[path]) for path in paths if path in commit.files]
        for path in paths:
            if any(other.startswith(path + "/") for other in commit.files):
                answer.append({"type": "directory", "oid": "0" * 40, "size": 0, "path": path})
        self._json(answer)

    def refs(self, kind, name):
        names = self._repository(kind, name).names
        branches = [{"name": k, "ref": f"refs/heads/{k}", "targetCommit": v} for k, v in names.items()]
        self._json({"branches": branches, "tags": [], "converts": []})

    def resolve(self, kind, name, revision, path):
        _, commit = self._commit(kind, name, revision)
        where = {"X-Repo-Commit": commit.oid}
        if path not in commit.files:
            raise Problem(404, "EntryNotFound", f"Entry not found: {path}", where)
        content = commit.files[path]
        if _is_lfs(path):
            # the Hub sends its readers on to another host; clients only follow what it says here
            where |= {"X-Linked-Etag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Linked-Size": str(len(content))}
        self._content(content, {**where, "ETag": f'"{_sha1(content)}"'})

    def _content(self, content: bytes, headers: dict):
        part = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if part is None or not content:
            return self._answer(200, content, {**headers, "Accept-Ranges": "bytes"})
        first, last = int(part[1]), min(int(part[2] or len(content)), len(content) - 1)
        said = {**headers, "Content-Range": f"bytes {first}-{last}/{len(content)}"}
        self._answer(206, content[first : last + 1], said)

    def whoami(self):
        self._authorised()
        self._json({"name": "me", "type": "user", "orgs": [], "auth": {"accessToken": {"role": "write"}}})


_READ, _API = ("GET", "HEAD"), rf"/api/{_KIND}/{_NAME}"
_ROUTE = rf"/(?P<kind>datasets/)?{_NAME}"
ROUTES = [
    (("POST",), "/api/repos/create", _Handler.create),
    (("POST",), "/api/validate-yaml", _Handler.validate_yaml),
    (_READ, "/api/whoami-v2", _Handler.whoami),
    (("POST",), rf"{_API}/preupload/(?P<revision>.+)", _Handler.preupload),
    (("POST",), rf"{_API}/commit/(?P<revision>.+)", _Handler.commit),
    (("POST",), rf"{_API}/branch/(?P<revision>.+)", _Handler.branch),
    (("POST",), rf"{_API}/tag/(?P<revision>.+)", _Handler.tag),
    (("POST",), rf"{_API}/paths-info/(?P<revision>.+)", _Handler.paths_info),
    (("POST",), rf"{_ROUTE}\.git/info/lfs/objects/batch", _Handler.lfs_batch),
    (("PUT",), r"/blobs/(?P<oid>\w+)", _Handler.put_blob),
    (_READ, rf"{_API}/refs", _Handler.refs),
    (_READ, rf"{_API}/tree/(?P<revision>[^/]+)(?:/(?P<folder>.+))?", _Handler.tree),
    (_READ, rf"{_API}/revision/(?P<revision>.+)", _Handler.info),
    (_READ, _API, _Handler.info),
    (_READ, rf"{_ROUTE}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", _Handler.resolve),
]
