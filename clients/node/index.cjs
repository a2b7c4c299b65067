"use strict";

const { Mags } = require("./lib/client.cjs");
const { MagsError } = require("./lib/errors.cjs");

// `const Mags = require(…)` and `const { Mags } = require(…)` are both in use.
module.exports = Mags;
module.exports.Mags = Mags;
module.exports.MagsError = MagsError;
module.exports.default = Mags;
