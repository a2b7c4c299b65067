// Against a real server: MAGS_API_URL and MAGS_API_TOKEN say which.
import assert from "node:assert/strict";
import { createHash, randomBytes } from "node:crypto";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { createRequire } from "node:module";
import { createServer, get } from "node:http";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";

import { Mags, MagsError } from "../index.mjs";

const mags = new Mags();
const unique = (name) => `${name}-${randomBytes(4).toString("hex")}`;

async function refused(work) {
  try {
    await work;
  } catch (error) {
    assert.ok(error instanceof MagsError, String(error));
    return error;
  }
  assert.fail("it was not refused");
}

/** Return what a URL of this machine's gateway answers with 200; its server may take a moment. */
async function page(url) {
  const { hostname, port } = new URL(url);
  for (let tried = 0; ; tried++) {
    const got = await new Promise((resolve, reject) => {
      const options = { host: "127.0.0.1", port, headers: { Host: `${hostname}:${port}` } };
      get(options, (reply) => {
        let text = "";
        reply.setEncoding("utf8").on("data", (piece) => (text += piece));
        reply.on("end", () => resolve({ status: reply.statusCode, text }));
      }).on("error", reject);
    });
    if (got.status === 200) return got.text;
    if (tried >= 50) assert.fail(`${url} answered ${got.status}: ${got.text}`);
    await new Promise((resolve) => setTimeout(resolve, 200));
  }
}

test("a script runs, and its result and lines come back", async () => {
  const done = await mags.runAndWait("echo out $A; echo err >&2; exit 3", {
    environment: { A: "of it" },
  });
  assert.equal(done.status, "error");
  assert.equal(done.exitCode, 3);
  const lines = done.logs.filter((line) => line.source !== "system");
  assert.deepEqual(
    lines.map((line) => [line.source, line.message]).sort(),
    [
      ["stderr", "err"],
      ["stdout", "out of it"],
    ],
  );
});

test("lines are followed while the script runs", async () => {
  const { requestId } = await mags.run("for i in 1 2 3; do echo $i; sleep 0.2; done");
  const seen = [];
  for await (const line of mags.followLogs(requestId)) {
    if (line.source === "stdout") seen.push(line.message);
  }
  assert.deepEqual(seen, ["1", "2", "3"]);
  assert.equal((await mags.status(requestId)).status, "completed");
});

test("following ends when it is told to", async () => {
  const { requestId } = await mags.run("echo begun; sleep 60");
  const ending = new AbortController();
  await assert.rejects(async () => {
    for await (const line of mags.followLogs(requestId, { signal: ending.signal })) {
      if (line.message === "begun") ending.abort();
    }
  });
  await mags.stop(requestId);
});

test("a sandbox stays, runs commands and is stopped", async () => {
  const name = unique("node");
  const { requestId } = await mags.new(name);
  assert.deepEqual(await mags.exec(name, "echo out; echo err >&2; exit 7"), {
    exitCode: 7,
    output: "out\n",
    stderr: "err\n",
  });
  assert.equal((await mags.findJob(name)).request_id, requestId);
  await mags.updateJob(name, { noSleep: true });
  assert.equal((await mags.status(name)).no_sleep, true);
  assert.equal((await mags.exec(name, "sleep 60", { timeout: 1 })).exitCode, 124);
  await mags.stop(name);
  assert.equal((await mags.wait(requestId)).status, "completed");
});

test("a server inside is reached by its URL and by an alias", async () => {
  const name = unique("web");
  await mags.new(name, { persistent: true });
  await mags.exec(name, "cd /srv && echo hello > index.html && nohup python3 -m http.server 8000 &");
  const access = await mags.url(name, { port: 8000 });
  assert.equal(access.access_type, "http_proxy");
  const alias = await mags.urlAliasCreate(unique("alias"), name, { port: 8000 });
  for (const url of [access.url, alias.url]) assert.equal(await page(url), "hello\n");
  const names = (await mags.urlAliasList()).aliases.map((one) => one.subdomain);
  assert.ok(names.includes(alias.subdomain));
  await mags.urlAliasDelete(alias.subdomain);
  assert.equal((await refused(mags.urlAliasDelete(alias.subdomain))).statusCode, 404);
  await mags.stop(name);
});

test("a workspace keeps its files and is deleted", async () => {
  const workspaceId = unique("node");
  await mags.runAndWait("echo kept > /root/file", { workspaceId });
  const again = await mags.runAndWait("cat /root/file", { baseWorkspaceId: workspaceId });
  assert.equal(again.logs.filter((line) => line.source === "stdout")[0].message, "kept");
  const fork = unique("fork");
  await mags.forkWorkspace(workspaceId, fork);
  const { workspaces } = await mags.listWorkspaces();
  const names = workspaces.map((one) => one.workspace_id);
  assert.ok(names.includes(workspaceId) && names.includes(fork));
  for (const each of [workspaceId, fork]) await mags.deleteWorkspace(each);
  assert.equal((await refused(mags.workspaceVersions(workspaceId))).statusCode, 404);
});

test("an upload is there before the script runs", async () => {
  const folder = await mkdtemp(join(tmpdir(), "mags-node-"));
  try {
    const bytes = randomBytes(300_000);
    await writeFile(join(folder, "data.bin"), bytes);
    const fileIds = await mags.uploadFiles([join(folder, "data.bin")]);
    const done = await mags.runAndWait("sha256sum < data.bin", { fileIds });
    const digest = createHash("sha256").update(bytes).digest("hex");
    assert.ok(done.logs.some((line) => line.message.startsWith(digest)));
    assert.match((await refused(mags.uploadFile(join(folder, "none")))).message, /cannot read/);
  } finally {
    await rm(folder, { recursive: true });
  }
});

test("jobs are listed, all of them", async () => {
  const { requestId } = await mags.runAndWait("true");
  const found = [];
  for await (const job of mags.jobs({ pageSize: 2 })) found.push(job.request_id);
  assert.ok(found.includes(requestId));
  assert.equal(new Set(found).size, found.length);
});

test("refusals are errors with the server's text", async () => {
  const unknown = await refused(mags.status("no-such-job"));
  assert.equal(unknown.statusCode, 404);
  assert.equal(unknown.code, "not_found");
  assert.equal((await refused(mags.run(" "))).statusCode, 400);
  assert.equal((await refused(mags.status("a/b"))).code, "not_found");
  assert.match((await refused(mags.run("true", { nosuch: 1 }))).message, /no option nosuch/);
  assert.match((await refused(mags.run("true", { noSleep: true }))).message, /persistent/);
  const wrong = new Mags({ apiToken: "mags_wrong", apiUrl: mags.apiUrl });
  assert.equal((await refused(wrong.whoami())).statusCode, 401);
});

test("a server that is not there is told of, and one that is none", async () => {
  const nowhere = new Mags({ apiToken: "x", apiUrl: "http://127.0.0.1:9" });
  assert.equal((await refused(nowhere.whoami())).code, "unreachable");
  const other = createServer((_, reply) => reply.end("<html>")).listen(0, "127.0.0.1");
  await new Promise((resolve) => other.once("listening", resolve));
  try {
    const apiUrl = `http://127.0.0.1:${other.address().port}`;
    const error = await refused(new Mags({ apiToken: "x", apiUrl }).whoami());
    assert.match(error.message, /is MAGS_API_URL the address/);
  } finally {
    other.close();
  }
});

test("a submit whose answer was lost is repeated as the same job", async () => {
  const keys = [];
  const flaky = createServer((request, reply) => {
    keys.push(request.headers["idempotency-key"]);
    if (keys.length === 1) request.socket.destroy();
    else reply.end(JSON.stringify({ request_id: "a", status: "accepted" }));
  }).listen(0, "127.0.0.1");
  await new Promise((resolve) => flaky.once("listening", resolve));
  try {
    const apiUrl = `http://127.0.0.1:${flaky.address().port}`;
    const { requestId } = await new Mags({ apiToken: "x", apiUrl }).run("true");
    assert.equal(requestId, "a");
    assert.equal(keys.length, 2);
    assert.ok(keys[0] && keys[0] === keys[1]);
  } finally {
    flaky.close();
  }
});

test("CommonJS has the same class", () => {
  const required = createRequire(import.meta.url)("../index.cjs");
  assert.equal(required, Mags);
  assert.equal(required.Mags, Mags);
  assert.equal(required.MagsError, MagsError);
});
