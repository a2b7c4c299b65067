"use strict";

const { randomUUID } = require("node:crypto");
const { setTimeout: sleep } = require("node:timers/promises");

const { MagsError } = require("./errors.cjs");

/** Repeats of a request that is safe to repeat, when its connection broke. */
const REPEATS = 2;
const REPEAT_FIRST_MS = 100;

/** HTTP to one server: knows nothing of jobs. Every failure leaves here as `MagsError`. */
class Transport {
  constructor(apiUrl, apiToken, timeoutMs) {
    this.apiUrl = apiUrl;
    this.timeoutMs = timeoutMs;
    this._authorization = `Bearer ${apiToken}`;
  }

  /**
   * Return the decoded reply. A GET, and what carries an idempotency key, is repeated when its
   * connection broke.
   */
  async request(method, path, { json, query, body, timeoutMs, isRepeatable, headers } = {}) {
    const init = { method, headers: { Authorization: this._authorization, ...headers } };
    if (json !== undefined) {
      init.headers["Content-Type"] = "application/json";
      init.body = JSON.stringify(json);
    } else if (body !== undefined) {
      init.body = body;
    }
    if (isRepeatable) init.headers["Idempotency-Key"] = randomUUID();
    const repeats = method === "GET" || isRepeatable ? REPEATS : 0;
    const reply = await this._fetch(this._url(path, query), init, timeoutMs, repeats);
    return decoded(reply, await this._whole(reply));
  }

  /**
   * Yield the events of a stream until the server ends it. One that goes silent, or breaks, throws
   * an error without `statusCode`.
   */
  async *events(path, { query, lastId, silenceMs, signal }) {
    const headers = { Authorization: this._authorization, Accept: "text/event-stream" };
    if (lastId !== undefined) headers["Last-Event-ID"] = lastId;
    const quiet = new AbortController();
    const signals = signal ? anyOf([quiet.signal, signal]) : quiet.signal;
    let timer = setTimeout(() => quiet.abort(), silenceMs);
    try {
      const reply = await fetch(this._url(path, query), { headers, signal: signals });
      if (!reply.ok) throw refusal(reply, await reply.text());
      for await (const chunk of eventsIn(reply.body, () => timer.refresh())) yield chunk;
    } catch (error) {
      if (error instanceof MagsError) throw error;
      if (signal?.aborted) throw error;
      throw this._unreachable(error);
    } finally {
      clearTimeout(timer);
      quiet.abort();
    }
  }

  async _fetch(url, init, timeoutMs, repeats) {
    const limitMs = timeoutMs ?? this.timeoutMs;
    for (let tried = 0; ; tried++) {
      try {
        return await fetch(url, { ...init, signal: AbortSignal.timeout(limitMs) });
      } catch (error) {
        // A server that is slow is not helped by more of the same.
        if (tried >= repeats || isTimeout(error)) throw this._unreachable(error);
        await sleep(REPEAT_FIRST_MS * 2 ** tried);
      }
    }
  }

  async _whole(reply) {
    try {
      return await reply.text();
    } catch (error) {
      throw this._unreachable(error);
    }
  }

  _url(path, query) {
    const url = new URL(`${this.apiUrl}/api/v1${path}`);
    for (const [key, value] of Object.entries(query ?? {})) {
      if (value !== undefined && value !== null) url.searchParams.set(key, String(value));
    }
    return url;
  }

  _unreachable(error) {
    const message = isTimeout(error)
      ? `${this.apiUrl} did not answer in time`
      : `cannot reach ${this.apiUrl} (${error.cause?.message ?? error.message}); ` +
        "is the server running, and is MAGS_API_URL right?";
    return new MagsError(message, { code: "unreachable", cause: error });
  }
}

function isTimeout(error) {
  return error.name === "TimeoutError" || error.name === "AbortError";
}

/** Node 18 has no `AbortSignal.any`. */
function anyOf(signals) {
  const both = new AbortController();
  for (const signal of signals) {
    if (signal.aborted) both.abort(signal.reason);
    else signal.addEventListener("abort", () => both.abort(signal.reason), { once: true });
  }
  return both.signal;
}

function decoded(reply, text) {
  if (!reply.ok) throw refusal(reply, text);
  if (!text) return {};
  try {
    return JSON.parse(text);
  } catch (error) {
    throw new MagsError(
      `the answer of ${reply.url} is not JSON; is MAGS_API_URL the address of a Mags server?`,
      { statusCode: reply.status, cause: error },
    );
  }
}

function refusal(reply, text) {
  let body = {};
  try {
    body = JSON.parse(text) ?? {};
  } catch {
    // Of something between us and the server: told as it is.
  }
  const told = typeof body === "object" ? body.error || body.message : undefined;
  const message = told
    ? String(told)
    : `the server answered ${reply.status}: ${(text.trim() || reply.statusText).slice(0, 300)}`;
  return new MagsError(message, { statusCode: reply.status, code: body.code });
}

/** Yield `{event, id, data}` of a text/event-stream. */
async function* eventsIn(body, onBytes) {
  const decoder = new TextDecoder();
  let rest = "";
  let event = "message";
  let id = "";
  let data = [];
  for await (const chunk of body) {
    onBytes();
    const lines = (rest + decoder.decode(chunk, { stream: true })).split("\n");
    rest = lines.pop();
    for (const whole of lines) {
      const line = whole.endsWith("\r") ? whole.slice(0, -1) : whole;
      if (line === "") {
        // Without data it is no event, but a comment that keeps the connection alive.
        if (data.length) yield { event, id, data: JSON.parse(data.join("\n")) };
        event = "message";
        data = [];
        continue;
      }
      const colon = line.indexOf(":");
      const field = colon < 0 ? line : line.slice(0, colon);
      const value = colon < 0 ? "" : line.slice(colon + 1).replace(/^ /, "");
      if (field === "event") event = value;
      else if (field === "id") id = value;
      else if (field === "data") data.push(value);
    }
  }
}

module.exports = { Transport };
