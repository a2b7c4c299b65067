"use strict";

const { openAsBlob } = require("node:fs");
const { readFile } = require("node:fs/promises");
const { basename } = require("node:path");
const { setTimeout: sleep } = require("node:timers/promises");

const { configuration } = require("./configuration.cjs");
const { MagsError } = require("./errors.cjs");
const { Transport } = require("./transport.cjs");

const FINAL = new Set(["completed", "error"]);
const LONG_POLL_S = 25;
/** The server answers stop and sync within 25 s. */
const SLOW_MS = 30_000;
/** How much longer than its command a request may take: a sandbox that sleeps is woken first. */
const EXEC_MORE_MS = 45_000;
const WAKE_MS = 60_000;
const UPLOAD_MS = 300_000;
const SILENCE_MS = 60_000;
const RECONNECTS_MAX = 10;
const RECONNECT_FIRST_MS = 200;
const RECONNECT_MOST_MS = 5_000;

/** Options of `run` as the API calls them. */
const FIELDS = {
  name: "name",
  workspaceId: "workspace_id",
  baseWorkspaceId: "base_workspace_id",
  noSleep: "no_sleep",
  noSync: "no_sync",
  startupCommand: "startup_command",
  environment: "environment",
  fileIds: "file_ids",
  diskGb: "disk_gb",
  rootfsType: "rootfs_type",
  scriptTimeout: "timeout",
  idleTimeout: "idle_timeout",
  vcpus: "vcpus",
  memoryMb: "memory_mb",
  engine: "engine",
};

/** A server and a token. Times in options are seconds, but for `timeoutMs`. */
class Mags {
  /** @param {{apiToken?: string, apiUrl?: string, timeoutMs?: number}} [options] */
  constructor(options = {}) {
    const found = configuration(options);
    this.apiUrl = found.apiUrl;
    this._transport = new Transport(found.apiUrl, found.apiToken, options.timeoutMs ?? SLOW_MS);
  }

  // --- jobs ------------------------------------------------------------------------

  /** Submit a script and return at once. */
  async run(script, options = {}) {
    const { persistent = false, ephemeral = false, ...rest } = options;
    if (ephemeral && rest.workspaceId) {
      throw new MagsError("Cannot use ephemeral with workspaceId");
    }
    if (ephemeral && persistent) throw new MagsError("Cannot use ephemeral with persistent");
    if (rest.noSleep && !persistent) throw new MagsError("noSleep requires persistent: true");
    const json = { script, type: "inline", persistent };
    for (const [key, value] of Object.entries(rest)) {
      if (!(key in FIELDS)) throw new MagsError(`run has no option ${key}`);
      if (value !== undefined && value !== null) json[FIELDS[key]] = value;
    }
    // A repeat after a lost answer gives the same job, not a second one.
    const reply = await this._ask("POST", "/mags-jobs", { json, isRepeatable: true });
    return { requestId: reply.request_id, ...reply };
  }

  /** Submit a script, wait for its end and return its result and logs. */
  async runAndWait(script, options = {}) {
    const { timeout = 60, pollInterval = 1, ...rest } = options;
    const { requestId } = await this.run(script, rest);
    const status = await this.wait(requestId, { timeout, pollInterval });
    const { logs } = await this.logs(requestId);
    return {
      requestId,
      status: status.status,
      exitCode: status.exit_code,
      durationMs: status.script_duration_ms,
      logs,
    };
  }

  /** Return the final status of a job; it goes on when `timeout` is over. */
  async wait(nameOrId, { timeout = 60, pollInterval = 1 } = {}) {
    const deadline = Date.now() + timeout * 1000;
    let seen;
    for (;;) {
      const askedAt = Date.now();
      const wait = Math.max(0, Math.min(LONG_POLL_S, (deadline - askedAt) / 1000));
      const status = await this._ask("GET", await this._job(nameOrId, "status"), {
        query: { wait },
        timeoutMs: wait * 1000 + this._transport.timeoutMs,
      });
      if (FINAL.has(status.status)) return status;
      if (Date.now() >= deadline) throw new MagsError(`Job ${nameOrId} timed out after ${timeout}s`);
      if (status.generation === seen && Date.now() - askedAt < pollInterval * 1000) {
        // Nothing new, and at once: this server does not hold requests.
        await sleep(Math.min(pollInterval * 1000, deadline - Date.now()));
      }
      seen = status.generation;
    }
  }

  async status(nameOrId) {
    return this._ask("GET", await this._job(nameOrId, "status"));
  }

  async logs(nameOrId) {
    return this._ask("GET", await this._job(nameOrId, "logs"));
  }

  /** Yield log entries as they are written, from the first; ends with the job. */
  async *followLogs(nameOrId, { signal } = {}) {
    const path = await this._job(nameOrId, "logs");
    let lastId;
    for (let failures = 0; ; failures++) {
      try {
        const about = { query: { after: 0 }, lastId, silenceMs: SILENCE_MS, signal };
        for await (const { event, id, data } of this._transport.events(path, about)) {
          if (event === "end") return;
          failures = 0;
          lastId = id;
          yield data;
        }
      } catch (error) {
        if (!(error instanceof MagsError) || error.statusCode !== undefined) throw error;
        if (failures >= RECONNECTS_MAX) throw error;
      }
      if (failures >= RECONNECTS_MAX) {
        throw new MagsError(`the log stream of ${nameOrId} keeps ending before the job does`);
      }
      const pauseMs = Math.min(RECONNECT_MOST_MS, RECONNECT_FIRST_MS * 2 ** failures);
      await sleep(pauseMs, undefined, { signal });
    }
  }

  /** Return one page of the account's jobs. */
  async list({ page = 1, pageSize = 20, status } = {}) {
    return this._ask("GET", "/mags-jobs", { query: { page, page_size: pageSize, status } });
  }

  /** Yield all jobs, page by page. */
  async *jobs({ pageSize = 100, status } = {}) {
    for (let page = 1; ; page++) {
      const { jobs } = await this.list({ page, pageSize, status });
      yield* jobs;
      if (jobs.length < pageSize) return;
    }
  }

  /** Return the job meant by a name, workspace or id, or null: running or sleeping ones first. */
  async findJob(nameOrId) {
    const { jobs } = await this.list({ pageSize: 50 });
    const live = jobs.filter((job) => job.status === "running" || job.status === "sleeping");
    for (const candidates of [live, jobs]) {
      for (const key of ["name", "workspace_id"]) {
        const found = candidates.find((job) => job[key] === nameOrId);
        if (found) return found;
      }
    }
    return jobs.find((job) => job.request_id === nameOrId) ?? null;
  }

  /** Stop a job and return when it is over; `status` says when that takes longer than 25 s. */
  async stop(nameOrId) {
    return this._ask("POST", await this._job(nameOrId, "stop"), { timeoutMs: this._slow() });
  }

  /** Keep what a running job has changed in its workspace; the job goes on. */
  async sync(nameOrId) {
    return this._ask("POST", await this._job(nameOrId, "sync"), { timeoutMs: this._slow() });
  }

  /** Change settings of a job. */
  async updateJob(nameOrId, { startupCommand, noSleep } = {}) {
    const json = {};
    if (startupCommand !== undefined) json.startup_command = startupCommand;
    if (noSleep !== undefined) json.no_sleep = noSleep;
    return this._ask("PATCH", await this._job(nameOrId), { json });
  }

  async usage({ windowDays = 30 } = {}) {
    return this._ask("GET", "/mags-jobs/usage", { query: { window_days: windowDays } });
  }

  async whoami() {
    return this._ask("GET", "/whoami");
  }

  // --- sandboxes that stay -----------------------------------------------------------

  /** Make a sandbox that stays until it is stopped, and return when it runs. */
  async new(name, options = {}) {
    const { persistent = false, baseWorkspaceId, diskGb, timeout = 30, pollInterval = 1 } = options;
    const { requestId } = await this.run("sleep infinity", {
      workspaceId: name,
      persistent: true,
      noSync: !persistent,
      baseWorkspaceId,
      diskGb,
    });
    const deadline = Date.now() + timeout * 1000;
    for (;;) {
      const status = await this.status(requestId);
      if (status.status === "running" && status.vm_id) return { requestId, status: "running" };
      if (FINAL.has(status.status)) {
        throw new MagsError(
          `Job ${requestId} ended unexpectedly: ${status.error || status.status}`,
        );
      }
      const leftMs = deadline - Date.now();
      if (leftMs <= 0) throw new MagsError(`Job ${requestId} did not start within ${timeout}s`);
      await sleep(Math.min(pollInterval * 1000, leftMs));
    }
  }

  /** Run a command in a running job's sandbox; killed after `timeout` seconds, exit code 124. */
  async exec(nameOrId, command, { timeout = 30 } = {}) {
    const reply = await this._ask("POST", await this._job(nameOrId, "exec"), {
      json: { command, timeout },
      timeoutMs: timeout * 1000 + EXEC_MORE_MS,
    });
    return { exitCode: reply.exit_code, output: reply.stdout, stderr: reply.stderr };
  }

  // --- ways in ---------------------------------------------------------------------------

  /**
   * Open a way into a job's sandbox, and wake it if it sleeps: port 22 gives an SSH key, any other a
   * URL.
   */
  async enableAccess(nameOrId, { port = 8080 } = {}) {
    const about = { json: { port }, timeoutMs: Math.max(this._transport.timeoutMs, WAKE_MS) };
    return this._ask("POST", await this._job(nameOrId, "access"), about);
  }

  /** Let a job's URL lead to a port in its sandbox; return it as `url`. */
  async url(nameOrId, options = {}) {
    return this.enableAccess(nameOrId, options);
  }

  /** Make a URL that leads to whichever job has a workspace. A server takes every domain for its own. */
  async urlAliasCreate(subdomain, workspaceId, { domain, port } = {}) {
    const json = { subdomain, workspace_id: workspaceId };
    if (domain !== undefined) json.domain = domain;
    if (port !== undefined) json.port = port;
    return this._ask("POST", "/mags-url-aliases", { json });
  }

  async urlAliasList() {
    return this._ask("GET", "/mags-url-aliases");
  }

  async urlAliasDelete(subdomain) {
    return this._ask("DELETE", `/mags-url-aliases/${encodeURIComponent(subdomain)}`);
  }

  // --- files and workspaces ------------------------------------------------------------

  /** Upload a file, and return its id for `fileIds` of any number of jobs. */
  async uploadFile(path) {
    const form = new FormData();
    form.append("file", await content(path), basename(path));
    const about = { body: form, timeoutMs: UPLOAD_MS };
    return (await this._ask("POST", "/mags-files", about)).file_id;
  }

  /** Upload files, and return their ids in the same order. */
  async uploadFiles(paths) {
    const ids = [];
    for (const path of paths) ids.push(await this.uploadFile(path));
    return ids;
  }

  async listWorkspaces() {
    return this._ask("GET", "/mags-workspaces");
  }

  /** Delete a workspace with all its versions. No job may use it. */
  async deleteWorkspace(workspaceId) {
    return this._ask("DELETE", workspace(workspaceId));
  }

  async workspaceVersions(workspaceId) {
    return this._ask("GET", workspace(workspaceId, "/versions"));
  }

  /** Make an earlier version the newest again. */
  async restoreWorkspace(workspaceId, version) {
    return this._ask("POST", workspace(workspaceId, "/restore"), { json: { version } });
  }

  /** Make a new workspace that begins as a version of another, by default the newest. */
  async forkWorkspace(workspaceId, into, { version = null } = {}) {
    const json = { workspace_id: into, version };
    return this._ask("POST", workspace(workspaceId, "/fork"), { json });
  }

  // --- inside --------------------------------------------------------------------------

  async _ask(method, path, about) {
    const reply = await this._transport.request(method, path, about);
    if (reply === null || typeof reply !== "object" || Array.isArray(reply)) {
      throw new MagsError(`${method} ${path}: the server's answer is not a JSON object`);
    }
    return reply;
  }

  async _job(nameOrId, what) {
    let segment = String(nameOrId);
    if (!segment.replaceAll(".", "").trim() || segment.includes("/")) {
      // No path segment can carry such a name.
      const job = await this.findJob(segment);
      if (!job) throw new MagsError(`No job found for '${segment}'`, { code: "not_found" });
      segment = job.request_id;
    }
    return `/mags-jobs/${encodeURIComponent(segment)}${what ? `/${what}` : ""}`;
  }

  _slow() {
    return Math.max(this._transport.timeoutMs, SLOW_MS);
  }
}

function workspace(workspaceId, what = "") {
  if (!workspaceId.replaceAll(".", "").trim() || workspaceId.includes("/")) {
    throw new MagsError(`there is no workspace '${workspaceId}'`, { code: "not_found" });
  }
  return `/mags-workspaces/${encodeURIComponent(workspaceId)}${what}`;
}

/** Return a file to be sent: read as it is sent where this Node can. */
async function content(path) {
  try {
    return openAsBlob ? await openAsBlob(path) : new Blob([await readFile(path)]);
  } catch (error) {
    throw new MagsError(`cannot read ${path}: ${error.message}`, { cause: error });
  }
}

module.exports = { Mags };
