// Submits a task, waits for its end and prints the result: node producer.js [host:port] [text]
const { randomUUID } = require("node:crypto");
const Redis = require("ioredis");

const [host, port] = (process.argv[2] || "127.0.0.1:6379").split(":");
const queue = new Redis({ host, port: Number(port) });

async function main() {
  const payload = JSON.stringify({ text: process.argv[3] || "hello from JavaScript" });
  const id = randomUUID(); // of our own, so that the submit may be repeated if a connection breaks
  await queue.call("TQ.SUBMIT", "shout", payload, "ID", id, "PRIORITY", 150, "RETRIES", 2);
  console.log("submitted", id);

  // Maps come as a flat list of names and values.
  const answer = await queue.call("TQ.WAIT", id, 30_000);
  const task = {};
  for (let i = 0; i < answer.length; i += 2) task[answer[i]] = answer[i + 1];
  console.log(task.status, task.result ?? task.error);
}

main()
  .catch((error) => {
    console.error(error.message);
    process.exitCode = 1;
  })
  .finally(() => queue.disconnect());
