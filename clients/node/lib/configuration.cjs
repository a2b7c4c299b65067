"use strict";

const { readFileSync } = require("node:fs");
const { homedir } = require("node:os");
const { join } = require("node:path");

const { MagsError } = require("./errors.cjs");

const DEFAULT_API_URL = "http://127.0.0.1:7070";

/** Where server and token are: an argument wins over the environment, that over `mags login`. */
function configuration({ apiUrl, apiToken }) {
  const saved = savedByLogin();
  const url = apiUrl || process.env.MAGS_API_URL || saved.api_url || DEFAULT_API_URL;
  const token =
    apiToken || process.env.MAGS_API_TOKEN || process.env.MAGS_TOKEN || saved.api_token;
  if (!/^https?:\/\//.test(url)) {
    throw new MagsError(`the server's address must begin with http:// or https://: ${url}`);
  }
  if (!token) {
    throw new MagsError(
      "API token required. Run `mags login`, set MAGS_API_TOKEN or pass apiToken.",
      { code: "unauthorized" },
    );
  }
  return { apiUrl: url.replace(/\/+$/, ""), apiToken: token };
}

function savedByLogin() {
  const path = join(homedir(), ".mags", "config.json");
  let text;
  try {
    text = readFileSync(path, "utf8");
  } catch (error) {
    if (error.code === "ENOENT" || error.code === "ENOTDIR") return {};
    throw new MagsError(`cannot read ${path}: ${error.message}; run \`mags login\` again`);
  }
  try {
    return JSON.parse(text) ?? {};
  } catch {
    throw new MagsError(`${path} is not JSON; run \`mags login\` again`);
  }
}

module.exports = { configuration };
