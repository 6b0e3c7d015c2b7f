// Runs tasks of the type "shout" until Ctrl-C: node worker.js [host:port]
const Redis = require("ioredis");

const [host, port] = (process.argv[2] || "127.0.0.1:6379").split(":");
const address = { host, port: Number(port), maxRetriesPerRequest: null };
const claims = new Redis(address); // its claims block; everything else needs a connection beside it
const words = new Redis(address);
const worker = `js-${process.pid}-${Math.random().toString(36).slice(2)}`;
const held = new Map();
let stopping = false;

async function handle(payload) {
  return JSON.stringify({ text: JSON.parse(payload).text.toUpperCase() });
}

async function run([id, token, type, payload]) {
  held.set(id, token);
  try {
    await words.call("TQ.COMPLETE", id, token, "RESULT", await handle(payload));
  } catch (error) {
    // LEASE_LOST here means that another worker has the task now; the broker ignores us.
    await words.call("TQ.FAIL", id, token, String(error.message), "KIND", error.name).catch(() => {});
  }
  held.delete(id);
}

const beat = () => words.call("TQ.BEAT", worker, ...[...held].flat()).catch(() => {});
const heart = setInterval(beat, 10000);

async function main() {
  console.log("worker", worker);
  while (!stopping) {
    const tasks = await claims.call("TQ.CLAIM", worker, "COUNT", 10, "BLOCK", 1000, "TYPES", "shout");
    await Promise.all(tasks.map(run));
  }
  clearInterval(heart);
  await words.call("TQ.LEAVE", worker);
  claims.disconnect();
  words.disconnect();
}

process.on("SIGTERM", () => (stopping = true)).on("SIGINT", () => (stopping = true));
main();
