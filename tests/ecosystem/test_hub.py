"""huggingface_hub, transformers and peft load models straight from graft."""
import os
import socket
import subprocess
import sys
import threading
import time

import openai
import pytest
from huggingface_hub import HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import (EntryNotFoundError, RepositoryNotFoundError,
                                    RevisionNotFoundError)

from server_kit import ROWS, Server, make_model

BASE = "base/tiny"
NOTES = bytes(range(256)) * 100000  # clients go on after a break in steps of 10 MB


@pytest.fixture(scope="module")
def server():
    with Server() as s:
        make_model(s.models / "tiny")
        # Identified by its SHA-256, as large files on a hub are.
        (s.models / "tiny" / "notes.txt").write_bytes(NOTES)
        sdk = openai.OpenAI(base_url=s.url + "/v1", api_key="none")
        sdk.post("/models", body={"id": BASE, "path": str(s.models / "tiny")}, cast_to=object)
        f = sdk.files.create(file=("rows.jsonl", ROWS.encode()), purpose="fine-tune")
        job = sdk.fine_tuning.jobs.create(model=BASE, training_file=f.id,
                                          hyperparameters={"n_epochs": 1})
        while job.status not in ("succeeded", "failed", "cancelled"):
            time.sleep(0.05)
            job = sdk.fine_tuning.jobs.retrieve(job.id)
        assert job.status == "succeeded", job.error
        s.result = job.fine_tuned_model
        yield s


@pytest.fixture(scope="module")
def api(server):
    return HfApi(endpoint=server.url, token="hf_any")


def test_a_snapshot_is_the_folder(server, tmp_path):
    path = snapshot_download(BASE, endpoint=server.url, cache_dir=tmp_path)
    source = server.models / "tiny"
    names = sorted(p.name for p in source.iterdir())
    assert sorted(os.listdir(path)) == names
    for n in names:
        assert (source / n).read_bytes() == open(os.path.join(path, n), "rb").read()
    # By commit, and again from the cache: the same folder.
    sha = os.path.basename(path)
    assert len(sha) == 40
    assert snapshot_download(BASE, endpoint=server.url, cache_dir=tmp_path, revision=sha) == path


def test_one_file_and_its_second_download_from_the_cache(server, tmp_path):
    kw = dict(repo_id=BASE, endpoint=server.url, cache_dir=tmp_path)
    path = hf_hub_download(filename="notes.txt", **kw)
    assert os.path.getsize(path) == len(NOTES)
    before = server.requests("GET", "/resolve/")
    assert hf_hub_download(filename="notes.txt", **kw) == path
    assert server.requests("GET", "/resolve/") == before


class CuttingProxy:
    """Passes everything on, but cuts the first reply to a GET of `part` after `after` bytes."""

    def __init__(self, url, part, after):
        self.upstream = ("127.0.0.1", int(url.rsplit(":", 1)[1]))
        self.part, self.after, self.cut = part, after, False
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            server = socket.create_connection(self.upstream)
            allowance = [None]  # bytes still to pass to this client; None: all
            threading.Thread(target=self.requests, args=(client, server, allowance),
                             daemon=True).start()
            threading.Thread(target=self.replies, args=(server, client, allowance),
                             daemon=True).start()

    def requests(self, client, server, allowance):
        try:
            while data := client.recv(65536):
                if data.startswith(b"GET") and self.part in data and not self.cut:
                    self.cut, allowance[0] = True, self.after
                server.sendall(data)
        except OSError:
            pass
        server.close()

    def replies(self, server, client, allowance):
        try:
            while data := server.recv(65536):
                if allowance[0] is not None:
                    data = data[:allowance[0]]
                    allowance[0] -= len(data)
                client.sendall(data)
                if allowance[0] == 0:
                    break
        except OSError:
            pass
        client.shutdown(socket.SHUT_RDWR)  # a close alone waits for the other thread's recv
        client.close()


def test_a_broken_download_goes_on_where_it_stopped(server, tmp_path):
    proxy = CuttingProxy(server.url, b"notes.txt", 15000000)
    path = hf_hub_download(BASE, "notes.txt", endpoint=proxy.url, cache_dir=tmp_path)
    assert open(path, "rb").read() == NOTES
    assert proxy.cut and server.requests("GET", "/notes.txt", 206) == 1
    proxy.listener.close()


def test_the_api_describes_models(server, api):
    info = api.model_info(BASE, files_metadata=True)
    assert info.id == BASE and len(info.sha) == 40 and info.author == "base"
    assert info.library_name == "transformers" and info.private is False
    sizes = {s.rfilename: s.size for s in info.siblings}
    assert sizes["notes.txt"] == len(NOTES)
    lfs = {s.rfilename: s.lfs for s in info.siblings}
    assert len(lfs["notes.txt"].sha256) == 64 and lfs["config.json"] is None
    files = api.list_repo_files(BASE)
    assert set(files) == set(sizes)
    assert api.file_exists(BASE, "config.json") and not api.file_exists(BASE, "none.json")
    assert api.repo_exists(BASE) and not api.repo_exists("no/such")
    assert api.revision_exists(BASE, info.sha) and not api.revision_exists(BASE, "v9")
    assert [b.name for b in api.list_repo_refs(BASE).branches] == ["main"]
    tree = list(api.list_repo_tree(BASE, recursive=True, expand=True))
    assert {f.path for f in tree} == set(files)
    paths = api.get_paths_info(BASE, ["config.json", "none.json"], expand=True)
    assert [p.path for p in paths] == ["config.json"]
    assert server.result in {m.id for m in api.list_models(author="default")}
    assert {m.id for m in api.list_models(limit=1)} and api.whoami()["name"]
    adapter = api.model_info(server.result + "-adapter")
    assert adapter.library_name == "peft" and f"base_model:{BASE}" in adapter.tags


def test_what_is_missing_raises_the_right_error(server, tmp_path):
    kw = dict(endpoint=server.url, cache_dir=tmp_path)
    with pytest.raises(RepositoryNotFoundError):
        hf_hub_download("no/such", "config.json", **kw)
    with pytest.raises(RevisionNotFoundError):
        hf_hub_download(BASE, "config.json", revision="v9", **kw)
    with pytest.raises(EntryNotFoundError):
        hf_hub_download(BASE, "none.json", **kw)
    with pytest.raises(RepositoryNotFoundError):
        snapshot_download("no/such", **kw)


LOAD = """
import conftest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer
result, base = {result!r}, {base!r}
tok = AutoTokenizer.from_pretrained(result)
ids = tok("1 + 1 =", return_tensors="pt").input_ids
merged = AutoModelForCausalLM.from_pretrained(result, dtype=torch.float32)(ids).logits
model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
plain = model(ids).logits.detach().clone()
adapted = PeftModel.from_pretrained(model, result + "-adapter")(ids).logits
assert (merged - adapted).abs().max() < 1e-4, (merged - adapted).abs().max()
assert (plain - adapted).abs().max() > 1e-6
"""


def test_transformers_and_peft_load_results_by_name(server, tmp_path):
    env = dict(os.environ, HF_ENDPOINT=server.url, HF_HOME=str(tmp_path),
               TRANSFORMERS_VERBOSITY="error", PYTHONPATH=os.path.dirname(__file__))
    env.pop("HF_HUB_OFFLINE", None)
    code = LOAD.format(result=server.result, base=BASE)
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


def test_a_key_opens_the_hub_too(tmp_path):
    with Server("--api-key", "hf_secret") as s:
        make_model(s.models / "tiny")
        sdk = openai.OpenAI(base_url=s.url + "/v1", api_key="hf_secret")
        sdk.post("/models", body={"id": BASE, "path": str(s.models / "tiny")}, cast_to=object)
        assert hf_hub_download(BASE, "config.json", endpoint=s.url, cache_dir=tmp_path,
                               token="hf_secret")
        assert HfApi(endpoint=s.url, token="hf_secret").whoami()["name"]
        with pytest.raises(Exception) as e:
            HfApi(endpoint=s.url, token="hf_wrong").model_info(BASE)
        assert "401" in str(e.value)
