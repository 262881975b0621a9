// The OpenAI Node SDK, unmodified, against a running graft: node openai_node.mjs URL MODEL_DIR
import assert from "node:assert/strict";
import fs from "node:fs";
import os from "node:os";
import path from "node:path";
import OpenAI, { toFile } from "openai";

const [url, modelDir] = process.argv.slice(2);
const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: "none" });
const rows = Array.from({ length: 24 }, (_, i) => JSON.stringify({ text: `row ${i}` }) + "\n").join("");
const checks = [];
const check = (name, run) => checks.push([name, run]);
const sleep = (ms) => new Promise((done) => setTimeout(done, ms));

async function until(job, status) {
  for (let i = 0; i < 2000; i++) {
    job = await client.fineTuning.jobs.retrieve(job.id);
    if (job.status === status) return job;
    assert(!["failed", "cancelled"].includes(job.status), JSON.stringify(job.error));
    await sleep(20);
  }
  throw new Error(`${job.id} is still ${job.status}`);
}

let training;
check("files are created from a stream, a Blob, bytes and a fetch reply", async () => {
  const file = path.join(fs.mkdtempSync(path.join(os.tmpdir(), "graft-node-")), "rows.jsonl");
  fs.writeFileSync(file, rows);
  const sources = [
    fs.createReadStream(file),
    new File([new Blob([rows])], "rows.jsonl"),
    await toFile(Buffer.from(rows), "rows.jsonl"),
    new File([await new Response(rows).blob()], "rows.jsonl"),
  ];
  for (const source of sources) {
    const f = await client.files.create({ file: source, purpose: "fine-tune" });
    assert.equal(f.object, "file");
    assert.equal(f.bytes, rows.length);
    assert.equal(f.filename, "rows.jsonl");
    assert.match(f._request_id, /^req_/);
    assert.equal((await client.files.waitForProcessing(f.id, { pollInterval: 20 })).status, "processed");
    assert.equal(await (await client.files.content(f.id)).text(), rows);
    training = f.id;
  }
  fs.rmSync(path.dirname(file), { recursive: true });
});

check("a list over three pages ends", async () => {
  const ids = [];
  for await (const f of client.files.list({ limit: 2 })) ids.push(f.id);
  assert.equal(new Set(ids).size, ids.length);
  assert(ids.length >= 4);
});

check("an error names line and field", async () => {
  const bad = await toFile(Buffer.from('{"text": "a"}\n{"txt": 1}\n'), "bad.jsonl");
  await assert.rejects(client.files.create({ file: bad, purpose: "fine-tune" }), (e) => {
    assert.equal(e.status, 422);
    assert.equal(e.code, "dataset_invalid");
    assert.equal(e.param, "file");
    assert.match(e.message, /line 2/);
    return true;
  });
});

check("a job runs to its result", async () => {
  let job = await client.fineTuning.jobs.create({
    model: "base/tiny", training_file: training, seed: 3, suffix: "node",
    method: { type: "supervised", supervised: { hyperparameters: { n_epochs: 1 } } },
  });
  job = await until(job, "succeeded");
  assert.equal(job.seed, 3);
  assert.equal(job.error, null);
  const events = [];
  for await (const e of client.fineTuning.jobs.listEvents(job.id, { limit: 2 })) events.push(e.id);
  assert.equal(new Set(events).size, events.length);
  assert(events.length >= 4);
  for await (const c of client.fineTuning.jobs.checkpoints.list(job.id)) {
    assert.equal(c.fine_tuning_job_id, job.id);
  }
  const models = [];
  for await (const m of client.models.list()) models.push(m.id);
  assert(models.includes(job.fine_tuned_model));
  assert.equal((await client.models.retrieve(job.fine_tuned_model)).id, job.fine_tuned_model);
  assert.equal((await client.models.delete(job.fine_tuned_model)).deleted, true);
  const jobs = [];
  for await (const j of client.fineTuning.jobs.list({ limit: 1 })) jobs.push(j.id);
  assert(jobs.includes(job.id));
  // A permanent conflict is thrown at once, not sent three times.
  const begun = Date.now();
  await assert.rejects(client.fineTuning.jobs.cancel(job.id), OpenAI.ConflictError);
  assert(Date.now() - begun < 400);
});

check("pause, resume, cancel", async () => {
  let job = await client.fineTuning.jobs.create({
    model: "base/tiny", training_file: training,
    method: { type: "lora", lora: { hyperparameters: {
      max_steps: 100000, n_epochs: 50, batch_size: 1, checkpoint_steps: 50 } } },
  });
  await until(job, "running");
  await client.fineTuning.jobs.pause(job.id);
  await until(job, "paused");
  await client.fineTuning.jobs.resume(job.id);
  await until(job, "running");
  job = await client.fineTuning.jobs.cancel(job.id);
  for (let i = 0; i < 1000 && job.status !== "cancelled"; i++) {
    await sleep(20);
    job = await client.fineTuning.jobs.retrieve(job.id);
  }
  assert.equal(job.status, "cancelled");
});

check("what is missing is a NotFoundError", async () => {
  await assert.rejects(client.models.retrieve("no/such"), OpenAI.NotFoundError);
  await assert.rejects(client.files.retrieve("file-none"), OpenAI.NotFoundError);
  await assert.rejects(client.fineTuning.jobs.retrieve("ftjob-none"), OpenAI.NotFoundError);
});

await client.post("/models", { body: { id: "base/tiny", path: modelDir } });
let failed = 0;
for (const [name, run] of checks) {
  try {
    await run();
    console.log(`ok: ${name}`);
  } catch (e) {
    failed++;
    console.log(`FAILED: ${name}\n${e.stack}`);
  }
}
console.log(`${checks.length - failed} passed, ${failed} failed`);
process.exit(failed ? 1 : 0);
