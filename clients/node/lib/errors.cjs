"use strict";

/** A request was refused, or could not be made. The message is the server's own where there is one. */
class MagsError extends Error {
  /**
   * @param {string} message
   * @param {{statusCode?: number, code?: string, cause?: unknown}} [about]
   */
  constructor(message, about = {}) {
    super(message, about.cause === undefined ? undefined : { cause: about.cause });
    this.name = "MagsError";
    /** HTTP status of the refusal; undefined when there was no answer. */
    this.statusCode = about.statusCode;
    /** A reason for programs: the server's, such as `not_found`, or `unreachable`. */
    this.code = about.code;
  }
}

module.exports = { MagsError };
