/** Client for a Mags server. Times are seconds, but for `timeoutMs`. */
declare class Mags {
  constructor(options?: Mags.ClientOptions);

  readonly apiUrl: string;

  /** Submit a script and return at once. */
  run(script: string, options?: Mags.RunOptions): Promise<Mags.Accepted>;
  /** Submit a script, wait for its end and return its result and logs. */
  runAndWait(script: string, options?: Mags.RunOptions & Mags.WaitOptions): Promise<Mags.Result>;
  /** Return the final status of a job; it goes on when `timeout` is over. */
  wait(nameOrId: string, options?: Mags.WaitOptions): Promise<Mags.Status>;
  status(nameOrId: string): Promise<Mags.Status>;
  logs(nameOrId: string): Promise<{ logs: Mags.LogEntry[]; truncated?: boolean }>;
  /** Yield log entries as they are written, from the first; ends with the job. */
  followLogs(nameOrId: string, options?: { signal?: AbortSignal }): AsyncGenerator<Mags.LogEntry>;
  list(options?: { page?: number; pageSize?: number; status?: Mags.JobState }): Promise<Mags.Page>;
  /** Yield all jobs, page by page. */
  jobs(options?: { pageSize?: number; status?: Mags.JobState }): AsyncGenerator<Mags.Job>;
  /** Return the job meant by a name, workspace or id, or null. */
  findJob(nameOrId: string): Promise<Mags.Job | null>;
  stop(nameOrId: string): Promise<Mags.Answer>;
  /** Keep what a running job has changed in its workspace; the job goes on. */
  sync(nameOrId: string): Promise<Mags.Answer>;
  updateJob(
    nameOrId: string,
    settings?: { startupCommand?: string; noSleep?: boolean },
  ): Promise<Mags.Answer>;
  usage(options?: { windowDays?: number }): Promise<Mags.Answer>;
  whoami(): Promise<{ account: string; token_id: string; scopes: string[] }>;

  /** Make a sandbox that stays until it is stopped, and return when it runs. */
  new(name: string, options?: Mags.NewOptions): Promise<{ requestId: string; status: "running" }>;
  /** Run a command in a running job's sandbox; killed after `timeout` seconds, exit code 124. */
  exec(nameOrId: string, command: string, options?: { timeout?: number }): Promise<Mags.Executed>;

  /** Open a way into a job's sandbox: port 22 gives an SSH key, any other a URL. */
  enableAccess(nameOrId: string, options?: { port?: number }): Promise<Mags.Access>;
  /** Let a job's URL lead to a port in its sandbox; return it as `url`. */
  url(nameOrId: string, options?: { port?: number }): Promise<Mags.Access>;
  /** Make a URL that leads to whichever job has a workspace. */
  urlAliasCreate(
    subdomain: string,
    workspaceId: string,
    options?: { domain?: string; port?: number },
  ): Promise<Mags.Alias>;
  urlAliasList(): Promise<{ aliases: Mags.Alias[]; total: number }>;
  urlAliasDelete(subdomain: string): Promise<Mags.Answer>;

  /** Upload a file, and return its id for `fileIds`. */
  uploadFile(path: string): Promise<string>;
  uploadFiles(paths: Iterable<string>): Promise<string[]>;

  listWorkspaces(): Promise<{ workspaces: Mags.Workspace[]; total: number }>;
  deleteWorkspace(workspaceId: string): Promise<Mags.Answer>;
  workspaceVersions(workspaceId: string): Promise<Mags.Answer>;
  restoreWorkspace(workspaceId: string, version: number): Promise<Mags.Answer>;
  forkWorkspace(
    workspaceId: string,
    into: string,
    options?: { version?: number | null },
  ): Promise<Mags.Answer>;
}

declare namespace Mags {
  export { Mags };

  /** A request was refused, or could not be made. */
  export class MagsError extends Error {
    /** HTTP status of the refusal; undefined when there was no answer. */
    statusCode?: number;
    /** A reason for programs, such as `not_found` or `unreachable`. */
    code?: string;
  }

  export interface ClientOptions {
    /** Else `MAGS_API_TOKEN`, `MAGS_TOKEN`, or what `mags login` saved. */
    apiToken?: string;
    /** Else `MAGS_API_URL`, what `mags login` saved, or this machine's own server. */
    apiUrl?: string;
    /** For one request; 30 000 by default. */
    timeoutMs?: number;
  }

  export interface RunOptions {
    name?: string;
    workspaceId?: string;
    baseWorkspaceId?: string;
    persistent?: boolean;
    noSleep?: boolean;
    noSync?: boolean;
    /** Refuses to be combined with a workspace. */
    ephemeral?: boolean;
    startupCommand?: string;
    environment?: Record<string, string>;
    fileIds?: string[];
    diskGb?: number;
    rootfsType?: string;
    scriptTimeout?: number;
    idleTimeout?: number;
    vcpus?: number;
    memoryMb?: number;
    engine?: string;
  }

  export interface WaitOptions {
    timeout?: number;
    pollInterval?: number;
  }

  export interface NewOptions extends WaitOptions {
    /** Keep what changes in the workspace of that name. */
    persistent?: boolean;
    baseWorkspaceId?: string;
    diskGb?: number;
  }

  export type JobState = "pending" | "running" | "sleeping" | "completed" | "error";

  /** A reply as the server sends it. */
  export type Answer = Record<string, unknown>;

  export interface Accepted {
    requestId: string;
    request_id: string;
    status: "accepted";
    message: string;
    warnings?: string[];
  }

  export interface Result {
    requestId: string;
    status: JobState;
    exitCode: number | null;
    durationMs: number | null;
    logs: LogEntry[];
  }

  export interface LogEntry {
    timestamp: string;
    level: string;
    message: string;
    source: "stdout" | "stderr" | "system";
    seq?: number;
  }

  export interface Access {
    success: boolean;
    access_type: "http_proxy" | "ssh_proxy";
    url?: string;
    subdomain?: string;
    port?: number;
    ssh_host?: string;
    ssh_port?: number;
    ssh_private_key?: string;
    [more: string]: unknown;
  }

  export interface Alias {
    id: string;
    subdomain: string;
    workspace_id: string;
    domain: string;
    url: string;
    [more: string]: unknown;
  }

  export interface Executed {
    exitCode: number;
    output: string;
    stderr: string;
  }

  export interface Job {
    request_id: string;
    job_id: string;
    name: string;
    status: JobState;
    workspace_id: string | null;
    exit_code: number | null;
    created_at: string;
    persistent: boolean;
    vm_id: string;
  }

  export interface Status {
    request_id: string;
    name: string;
    status: JobState;
    vm_id: string;
    workspace_id: string | null;
    persistent: boolean;
    no_sleep: boolean;
    subdomain: string;
    url: string;
    sleeping: boolean;
    exit_code: number | null;
    script_duration_ms: number | null;
    created_at: string;
    started_at: string | null;
    completed_at: string | null;
    generation: number;
    error?: string;
    code?: string;
    [more: string]: unknown;
  }

  export interface Page {
    jobs: Job[];
    total: number;
    page: number;
    page_size: number;
  }

  export interface Workspace {
    workspace_id: string;
    size_bytes: number;
    version: number;
    created_at: string;
    updated_at: string;
    in_use_by: string | null;
    [more: string]: unknown;
  }
}

export = Mags;
