"""Loading from a hub: a server on this machine that answers what `datasets` asks of the real one."""

import hashlib
import json
import os
import re
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

TASKS = Path(__file__).parents[2] / "tasks"
NAME = "yurakuratov/babilong_qa1_0k"
COMMIT = "c0ffee" + "0" * 34
SCRIPT = """
import dataclasses, json, sys
from pathlib import Path
from gradmem_bench.tasks.declaration import load_task

task = load_task(Path(sys.argv[1]))
splits = ("train", "validation", "test")
print(json.dumps({split: [len(task.documents(split)), dataclasses.asdict(task.source(split))] for split in splits}))
"""


@pytest.fixture
def hub(tmp_path):
    """The address of a hub that has one data set: 6 stories to train on, 2 to validate and 3 to test."""
    files = {"README.md": b"---\nconfigs:\n- config_name: default\n  data_files:\n"}
    for split, count in {"train": 6, "valid": 2, "test": 3}.items():
        rows = [{"context": f"{split} {row}. ", "query": "Where? ", "target": "hall"} for row in range(count)]
        files[f"data/{split}.jsonl"] = "".join(json.dumps(row) + "\n" for row in rows).encode()
        files["README.md"] += f"  - split: {split}\n    path: data/{split}.jsonl\n".encode()
    files["README.md"] += b"---\n"

    class Hub(BaseHTTPRequestHandler):
        def log_message(self, *arguments):
            pass

        def reply(self, status: int, body: bytes = b"", **headers: str) -> None:
            self.send_response(status)
            for key, value in headers.items():
                self.send_header(key.replace("_", "-"), value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def do_GET(self) -> None:
            path = self.path.split("?")[0]
            if file := re.fullmatch(f"/datasets/{NAME}/resolve/[^/]+/(.+)", path):
                if file[1] in files:
                    body = files[file[1]]
                    return self.reply(200, body, X_Repo_Commit=COMMIT, ETag=f'"{hashlib.sha1(body).hexdigest()}"')
                return self.reply(404, X_Error_Code="EntryNotFound", X_Repo_Commit=COMMIT)
            if re.fullmatch(f"/api/datasets/{NAME}(/revision/[^/]+)?", path):
                siblings = [{"rfilename": name} for name in files]
                return self.reply(200, json.dumps({"id": NAME, "sha": COMMIT, "siblings": siblings}).encode())
            if re.fullmatch(f"/api/datasets/{NAME}/tree/[^/]+/data", path):
                entries = [
                    {"type": "file", "path": name, "size": len(body), "oid": hashlib.sha1(body).hexdigest()}
                    for name, body in files.items()
                    if name.startswith("data/")
                ]
                return self.reply(200, json.dumps(entries).encode())
            return self.reply(404)

        do_HEAD = do_GET

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def load(home: Path, **environment: str) -> dict:
    variables = {key: value for key, value in os.environ.items() if key != "GRADMEM_BENCH_DATA"}
    path = os.pathsep.join([str(TASKS.parent), os.environ.get("PYTHONPATH", "")])
    variables |= {"HF_HOME": str(home), "PYTHONPATH": path, **environment}
    command = [sys.executable, "-c", SCRIPT, str(TASKS / "babi_qa1.yaml")]
    return json.loads(subprocess.run(command, env=variables, check=True, stdout=subprocess.PIPE, timeout=120).stdout)


def test_the_hubs_three_splits_are_used_and_the_commit_recorded_online_and_from_the_cache(hub, tmp_path):
    online = load(tmp_path, HF_ENDPOINT=hub, HF_HUB_OFFLINE="0")
    assert {split: count for split, (count, _) in online.items()} == {"train": 6, "validation": 2, "test": 3}
    assert online["test"][1] == {"location": f"{NAME}:test", "revision": COMMIT, "content_hash": None, "rows": 3}
    assert load(tmp_path, HF_ENDPOINT=hub, HF_HUB_OFFLINE="1") == online
    # Nothing listens at port 9 (discard).
    assert load(tmp_path, HF_ENDPOINT="http://127.0.0.1:9", HF_HUB_OFFLINE="0") == online
