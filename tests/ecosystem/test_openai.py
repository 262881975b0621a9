"""The OpenAI Python SDK, unmodified: only its base URL points to graft."""
import io
import time

import openai
import pytest

from server_kit import ROWS, Server, make_model

BASE = "base/tiny"
LONG = {"type": "lora", "lora": {"hyperparameters": {"max_steps": 100000, "n_epochs": 50,
                                                     "batch_size": 1, "checkpoint_steps": 50}}}


@pytest.fixture(scope="module")
def server():
    with Server("--jobs-max", "2") as s:
        make_model(s.models / "tiny")
        client = openai.OpenAI(base_url=s.url + "/v1", api_key="none", max_retries=0)
        client.post("/models", body={"id": BASE, "path": str(s.models / "tiny")}, cast_to=object)
        yield s


@pytest.fixture(scope="module")
def client(server):
    # The SDK's own number of retries: what must not be resent has to say so.
    return openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=2)


@pytest.fixture(scope="module")
def training(client):
    return client.files.create(file=("sums.jsonl", ROWS.encode()), purpose="fine-tune").id


def wait(client, job, *wanted):
    for _ in range(3000):
        job = client.fine_tuning.jobs.retrieve(job.id)
        if job.status in wanted:
            return job
        assert job.status not in ("failed", "cancelled"), job.error
        time.sleep(0.02)
    raise AssertionError(f"{job.id} is still {job.status}")


def test_files_are_created_from_path_bytes_and_stream(client, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(ROWS)
    ids = []
    for source in (path, open(path, "rb"), ("rows.jsonl", ROWS.encode()),
                   ("rows.jsonl", io.BytesIO(ROWS.encode()), "application/jsonl")):
        f = client.files.create(file=source, purpose="fine-tune")
        assert f.object == "file" and f.filename == "rows.jsonl" and f.bytes == len(ROWS)
        assert f._request_id.startswith("req_")
        done = client.files.wait_for_processing(f.id, poll_interval=0.05)
        assert done.status == "processed"
        assert client.files.content(f.id).read() == ROWS.encode()
        ids.append(f.id)
    assert {x.id for x in client.files.list(purpose="fine-tune")} >= set(ids)
    # Pages of three over all, as the SDK's iterator asks for them: each once, and an end.
    everything = [x.id for x in client.files.list(limit=3)]
    assert len(everything) == len(set(everything)) and set(everything) >= set(ids)
    for i in ids:
        assert client.files.delete(i).deleted
    with pytest.raises(openai.NotFoundError) as e:
        client.files.retrieve(ids[0])
    assert e.value.code == "file_not_found"


def test_files_expire_when_asked_to(client):
    f = client.files.create(file=("n.txt", b"x"), purpose="user_data",
                            expires_after={"anchor": "created_at", "seconds": 3600})
    assert f.expires_at == f.created_at + 3600
    client.files.delete(f.id)


def test_a_broken_data_set_names_its_line(client):
    with pytest.raises(openai.UnprocessableEntityError) as e:
        client.files.create(file=("bad.jsonl", b'{"text": "a"}\n{"text": \n'), purpose="fine-tune")
    assert e.value.code == "dataset_invalid" and e.value.param == "file"
    assert "line 2" in e.value.body["message"]
    assert e.value.body["details"][0]["line"] == 2
    assert e.value.request_id.startswith("req_")


def test_a_job_runs_to_its_result(client, training):
    job = client.fine_tuning.jobs.create(
        model=BASE, training_file=training, suffix="sums", seed=5, metadata={"team": "eco"},
        method={"type": "supervised",
                "supervised": {"hyperparameters": {"n_epochs": 2, "batch_size": 4}}})
    assert job.object == "fine_tuning.job" and job.status in ("validating_files", "queued",
                                                              "running")
    job = wait(client, job, "succeeded")
    assert job.seed == 5 and job.metadata == {"team": "eco"} and job.trained_tokens > 0
    assert job.hyperparameters.n_epochs == 2 and job.hyperparameters.batch_size == 4
    assert job.method.type == "supervised" and job.error is None
    assert job.finished_at >= job.created_at

    events = list(client.fine_tuning.jobs.list_events(job.id, limit=3))
    assert len({e.id for e in events}) == len(events) >= 4
    assert [e.created_at for e in events] == sorted((e.created_at for e in events), reverse=True)
    assert {e.object for e in events} == {"fine_tuning.job.event"}
    points = list(client.fine_tuning.jobs.checkpoints.list(job.id, limit=1))
    assert points and points[0].fine_tuning_job_id == job.id
    assert points[0].step_number > 0 and points[0].metrics is not None

    csv = client.files.content(job.result_files[0]).text
    assert csv.startswith("step,") and len(csv.splitlines()) > 2
    model = client.models.retrieve(job.fine_tuned_model)
    assert model.id == job.fine_tuned_model and model.owned_by
    assert job.fine_tuned_model in {m.id for m in client.models.list()}
    assert client.models.delete(job.fine_tuned_model).deleted
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve(job.fine_tuned_model)


def test_a_method_of_graft_fits_the_same_shape(client, training):
    job = client.fine_tuning.jobs.create(
        model=BASE, training_file=training,
        method={"type": "lora", "lora": {"hyperparameters": {"r": 2, "max_steps": 3}}})
    job = wait(client, job, "succeeded")
    assert job.method.type == "lora"
    assert job.method.model_extra["lora"]["hyperparameters"]["r"] == 2


def test_jobs_are_listed_to_their_end(client, training):
    for _ in range(3):
        wait(client, client.fine_tuning.jobs.create(
            model=BASE, training_file=training,
            hyperparameters={"n_epochs": 1}), "succeeded")
    ids = [j.id for j in client.fine_tuning.jobs.list(limit=2)]
    assert len(ids) == len(set(ids)) >= 3
    assert [j.id for j in client.fine_tuning.jobs.list(metadata={"team": "nobody"})] == []


def test_pause_resume_and_cancel(client, training):
    job = client.fine_tuning.jobs.create(model=BASE, training_file=training, extra_body={
        "method": LONG})
    wait(client, job, "running")
    client.fine_tuning.jobs.pause(job.id)
    wait(client, job, "paused")
    client.fine_tuning.jobs.resume(job.id)
    wait(client, job, "running")
    client.fine_tuning.jobs.cancel(job.id)
    assert wait_final(client, job) == "cancelled"


def wait_final(client, job):
    for _ in range(1500):
        status = client.fine_tuning.jobs.retrieve(job.id).status
        if status in ("succeeded", "failed", "cancelled"):
            return status
        time.sleep(0.02)
    return status


def test_a_conflict_is_not_sent_again(server, client, training):
    job = wait(client, client.fine_tuning.jobs.create(
        model=BASE, training_file=training, hyperparameters={"n_epochs": 1}), "succeeded")
    with pytest.raises(openai.ConflictError) as e:
        client.fine_tuning.jobs.cancel(job.id)
    assert e.value.code == "invalid_job_state"
    assert server.requests("POST", f"{job.id}/cancel") == 1


def test_errors_name_the_field(client, training):
    for body, error, param in (
            (dict(model="no/such", training_file=training), openai.NotFoundError, "model"),
            (dict(model=BASE, training_file="file-none"), openai.NotFoundError, "training_file"),
            (dict(model=BASE, training_file=training, seed=-1), openai.BadRequestError, "seed"),
            (dict(model=BASE, training_file=training,
                  method={"type": "lora", "lora": {"hyperparameters": {"r": 0}}}),
             openai.BadRequestError, "method.lora.hyperparameters.r"),
            (dict(model=BASE, training_file=training, method={"type": "magic"}),
             openai.BadRequestError, "method.type")):
        with pytest.raises(error) as e:
            client.fine_tuning.jobs.create(**body)
        assert e.value.param == param, e.value.body
        assert e.value.type == "invalid_request_error"


def test_an_idempotency_key_survives_a_resend(client, training):
    kwargs = dict(model=BASE, training_file=training, hyperparameters={"n_epochs": 1},
                  extra_headers={"Idempotency-Key": "once"})
    first, second = (client.fine_tuning.jobs.create(**kwargs) for _ in range(2))
    assert first.id == second.id
    wait(client, first, "succeeded")


def test_a_key_is_asked_for():
    with Server("--api-key", "right") as s:
        good = openai.OpenAI(base_url=s.url + "/v1", api_key="right")
        assert good.models.list().data == []
        with pytest.raises(openai.AuthenticationError) as e:
            openai.OpenAI(base_url=s.url + "/v1", api_key="wrong").models.list()
        assert e.value.code == "invalid_api_key"
