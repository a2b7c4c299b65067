// Compiled, never run: what the types promise.
import Mags, { MagsError } from "mags-client";
import { Mags as Named } from "mags-client";

async function use(): Promise<void> {
  const mags: Mags = new Named({ apiToken: "t" });
  const result = await mags.runAndWait("true", { timeout: 5, workspaceId: "w" });
  const code: number | null = result.exitCode;
  for await (const line of mags.followLogs(result.requestId)) {
    const text: string = line.message;
    void text;
  }
  // @ts-expect-error: no such option
  await mags.run("true", { nosuch: 1 });
  try {
    await mags.stop("a");
  } catch (error) {
    if (error instanceof MagsError && error.statusCode === 404) return;
    throw error;
  }
  void code;
}

void use;
