// Runs tasks of the type "shout" until Ctrl-C: node worker.js [host:port]
const Redis = require("ioredis");

const handlers = {
  shout: async ({ text }) => JSON.stringify({ text: text.toUpperCase() }),
};

const [host, port] = (process.argv[2] || "127.0.0.1:6379").split(":");
const address = { host, port: Number(port), maxRetriesPerRequest: null };
const claims = new Redis(address); // its claims block; everything else needs a connection beside it
const words = new Redis(address);
const worker = `js-${process.pid}-${Math.random().toString(36).slice(2)}`;
const held = new Map();
let stopping = false;

async function run([id, token, type, payload]) {
  held.set(id, token);
  let word;
  try {
    word = ["TQ.COMPLETE", id, token, "RESULT", await handlers[type](JSON.parse(payload))];
  } catch (error) {
    word = ["TQ.FAIL", id, token, error.message, "KIND", error.name, "TRACEBACK", error.stack];
  }
  await words.call(...word).catch(complain); // LEASE_LOST: another worker has the task now
  held.delete(id);
}

async function main() {
  const beat = () => words.call("TQ.BEAT", worker, ...[...held].flat()).catch(complain);
  const heart = setInterval(beat, 10_000); // a third of the lease that the broker grants
  console.log("worker", worker);
  while (!stopping) {
    const types = Object.keys(handlers);
    const claim = claims.call("TQ.CLAIM", worker, "COUNT", 10, "BLOCK", 1_000, "TYPES", ...types);
    await Promise.all((await claim.catch(complain)).map(run));
  }
  clearInterval(heart);
  await words.call("TQ.LEAVE", worker);
  claims.disconnect();
  words.disconnect();
}

async function complain(error) {
  console.error(error.message);
  await new Promise((resolve) => setTimeout(resolve, 200));
  return [];
}

for (const redis of [claims, words]) redis.on("error", complain); // it connects again by itself
// A second Ctrl-C ends it at once.
for (const signal of ["SIGTERM", "SIGINT"]) process.once(signal, () => (stopping = true));
main();
