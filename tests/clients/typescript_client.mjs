// The official TypeScript SDK as a caller of the proxy; the twin of python_client.py, with the same one JSON line.
// node tests/clients/typescript_client.mjs SERVER [--slow-tool NAME --slow-args JSON]; needs tools/setup-node.
import { createRequire } from "node:module";
import { parseArgs } from "node:util";

const LIMIT_S = 60;
// The SDK lies in .tools/node, which no import from this folder would search.
const require = createRequire(new URL("../../.tools/node/package.json", import.meta.url));

function giveUp(reason) {
  process.stderr.write(`typescript client: ${String(reason).split(/\s+/).join(" ")}\n`);
  process.exit(1);
}

/** The answer's text and no error, or no text and the message that the caller of a failed tool sees. */
async function call(client, name, args) {
  let result;
  try {
    result = await client.callTool({ name, arguments: args });
  } catch (error) {
    return { said: null, error: error.message };
  }
  const said = result.content.map((block) => block.text ?? "").join("");
  return result.isError ? { said: null, error: said } : { said, error: null };
}

async function spoken(client, message) {
  const { said, error } = await call(client, "echo", { message });
  if (said === null) throw new Error(`echo failed: ${error}`);
  return said;
}

function connection(server) {
  if (server.startsWith("[")) {
    const { StdioClientTransport } = require("@modelcontextprotocol/sdk/client/stdio.js");
    const [command, ...args] = JSON.parse(server);
    return new StdioClientTransport({ command, args });
  }
  if (server.endsWith("/sse")) {
    const { SSEClientTransport } = require("@modelcontextprotocol/sdk/client/sse.js");
    return new SSEClientTransport(new URL(server));
  }
  const { StreamableHTTPClientTransport } = require("@modelcontextprotocol/sdk/client/streamableHttp.js");
  return new StreamableHTTPClientTransport(new URL(server));
}

async function visit(server, slowTool, slowArguments) {
  const { Client } = require("@modelcontextprotocol/sdk/client/index.js");
  const client = new Client({ name: "mcpdiag-typescript-client", version: "1.0.0" });
  const transport = connection(server);
  let protocol;
  // Each transport is told what was negotiated; only one of them shows it.
  const told = transport.setProtocolVersion?.bind(transport);
  transport.setProtocolVersion = (version) => ((protocol = version), told?.(version));
  await client.connect(transport);
  const { tools } = await client.listTools();
  const visited = { tools: tools.length, echo: await spoken(client, "hello"), error: null, echo_after: null };
  if (slowTool !== undefined) {
    visited.error = (await call(client, slowTool, slowArguments)).error;
    visited.echo_after = await spoken(client, "still here");
  }
  visited.protocol = protocol;
  await transport.terminateSession?.();
  await client.close();
  return visited;
}

setTimeout(() => giveUp(`not done after ${LIMIT_S} s`), LIMIT_S * 1000).unref();
try {
  const { values, positionals } = parseArgs({
    allowPositionals: true,
    options: { "slow-tool": { type: "string" }, "slow-args": { type: "string", default: "{}" } },
  });
  if (positionals.length !== 1) throw new Error("one server is expected");
  const visited = await visit(positionals[0], values["slow-tool"], JSON.parse(values["slow-args"]));
  process.stdout.write(`${JSON.stringify(visited)}\n`);
  process.exit(0);
} catch (error) {
  giveUp(error.cause ? `${error.message}: ${error.cause.message}` : error.message);
}
